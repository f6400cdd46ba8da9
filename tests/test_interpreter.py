"""The preset "ci-2.9" beside what connectome-interpreter 2.9.5 computed, as `benchmarks.interpreter` wrote it down."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from retrograde.connectome import read, stimulate
from retrograde.connectome.layered import layered

THEIRS = json.loads((Path(__file__).parent / "connectome_interpreter.json").read_text())
CHOICES = {
    "as released": {},
    "others": {"threshold": 0.2, "steepness": 2.0, "bias": -0.02},
    "by type": {"steepness": {"cell_type:p": 2.0, "cell_type:q": 3.0, "cell_type:r": 5.0}},
}


@pytest.fixture(scope="module")
def c():
    types = pd.DataFrame({"id": range(9), "cell_type": list(THEIRS["types"])})
    return read(np.array(THEIRS["M"]), types, orientation="post_pre", ids=range(9))


def test_the_numbers_are_of_that_release_and_tell_something(c):
    assert THEIRS["version"] == "2.9.5" and c.W.shape == (9, 9)
    for choice in THEIRS["choices"].values():
        layers, gradient = np.array(choice["layers"]), np.array(choice["gradient"])
        assert (layers != 0).mean() > 0.2 and (layers == 1).any() and (gradient != 0).mean() > 0.2


@pytest.mark.parametrize("choice", CHOICES)
def test_the_layers_and_their_gradient(c, choice):
    want = THEIRS["choices"][choice]
    u = torch.tensor(THEIRS["u"], dtype=torch.float64).permute(2, 1, 0).requires_grad_()  # time, neurons, samples
    x = layered(c, "ci-2.9", **CHOICES[choice])(u, torch.tensor(THEIRS["driven"]))
    (x * torch.tensor(THEIRS["weights"], dtype=torch.float64).permute(2, 1, 0)).sum().backward()
    np.testing.assert_allclose(x.detach().permute(2, 1, 0), np.array(want["layers"]), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(u.grad.permute(2, 1, 0), np.array(want["gradient"]), rtol=1e-11, atol=1e-13)


def test_the_search_finds_the_same_input(c):
    want = THEIRS["search"]
    wanted = {(place, time + 1): activity for time, place, activity in want["targets"]}
    how = {"steps": 4, "scale": None, "preset": "ci-2.9", "seed": want["seed"], "turns": want["turns"]}
    found = stimulate(c, wanted, allowed=THEIRS["driven"], **how)
    inputs = found.pivot(index="id", columns="time", values="input").reindex(index=THEIRS["driven"], columns=range(4))
    np.testing.assert_allclose(inputs.fillna(0), np.array(want["input"]), atol=1e-9)
    activity, layers = found.set_index(["time", "id"])["activity"], np.array(want["layers"])
    for time, place, _ in want["targets"]:
        assert activity[time + 1, place] == pytest.approx(layers[place, time], abs=1e-9)
    assert (layers > 0.05).any() and (np.array(want["input"]) > 0.05).any()
