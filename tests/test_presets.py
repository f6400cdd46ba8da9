"""Influence as other tools have it: what they read, and how they scale, against their recipes written out."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from retrograde.cli.app import app
from retrograde.connectome import influence, read
from retrograde.connectome.presets import PRESETS

# What each reads: the column, and the least count.
READS = {"cic-2026": ("count", 5), "banc-paper": ("norm", 5), "influencer-R": ("norm", 3)}
N = 12


@pytest.fixture
def edges():
    """Not symmetric, with a norm that is of more than the rows here, as where a table leaves the weakest out."""
    rng = np.random.default_rng(3)
    post, pre = np.nonzero(rng.random((N, N)) < 0.5)
    table = pd.DataFrame({"pre": pre, "post": post, "count": rng.integers(1, 12, len(pre))})
    return table.assign(norm=table["count"] / (2 + table.groupby("post")["count"].transform("sum")))


@pytest.fixture
def neurons():
    return pd.DataFrame({"root_id": np.arange(N), "top_nt": ["gaba", "ach"] * (N // 2)})


def recipe(edges, preset, seeds, silenced=(), negative=()):
    """x of (I - αW) x = s, by the tool's own steps, of the neurons that its table has left."""
    column, least = READS[preset]
    left = edges[edges["count"] >= least]
    ids = np.unique(left[["pre", "post"]])
    W = np.zeros((len(ids), len(ids)))
    value = left[column].to_numpy(float)
    value = np.where(left["pre"].isin(negative), -value, value) if column == "count" else value
    W[np.searchsorted(ids, left["post"]), np.searchsorted(ids, left["pre"])] = value
    W[:, np.isin(ids, silenced) & ~np.isin(ids, seeds)] = 0
    eigenvalue = np.linalg.eigvals(W).real.max()
    if preset == "cic-2026" or eigenvalue > 0.99:
        W *= 0.99 / eigenvalue
    return ids, np.linalg.solve(np.eye(len(ids)) - W, np.isin(ids, seeds).astype(float))


def asked(tmp_path, edges, *args):
    edges.to_csv(tmp_path / "edges.csv", index=False)
    args = ["influence", str(tmp_path / "edges.csv"), *args, "--json", "--top", "99"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    return pd.DataFrame(json.loads(result.stdout)).set_index("id"), result.stderr


@pytest.mark.parametrize("preset", READS)
def test_both_ways_to_ask_give_the_tools_numbers(edges, tmp_path, preset):
    weights, threshold = READS[preset]
    ids, x = recipe(edges, preset, [2, 3], silenced=[3, 5])
    how = {"source": [2, 3], "silence": [3, 5], "preset": preset}
    found = influence(read(edges, weights=weights, threshold=threshold), **how)
    assert "note" not in found.attrs
    options = "--source", "2", "3", "--silence", "3", "5", "--preset", preset
    typed, said = asked(tmp_path, edges, *options, "--weights", weights, "--threshold", str(threshold))
    assert " reads --weights" not in said
    for table in (found.set_index("id"), typed):
        np.testing.assert_allclose(table.loc[ids, "influence"], x, rtol=1e-9)
        with np.errstate(divide="ignore"):  # R's floor: max(ln |x| + 24, 0)
            np.testing.assert_allclose(table.loc[ids, "adjusted"], np.maximum(np.log(np.abs(x)) + 24, 0), rtol=1e-9)


def test_what_was_read_otherwise_is_told(edges, neurons, tmp_path):
    otherwise = influence(read(edges), 2, preset="influencer-R")
    assert otherwise.attrs["note"] == (
        "the preset influencer-R reads weights='norm', threshold=3; this connectome was read with weights='count', "
        "threshold=0"
    )
    _, said = asked(tmp_path, edges, "--source", "2", "--preset", "banc-paper", "--threshold", "4")
    assert "reads --weights norm, --threshold 5; this connectome was read with --weights count, --threshold 4" in said


def test_the_same_words_mean_the_same_as_options(edges, tmp_path):
    for preset in READS:
        found = influence(read(edges), [2, 3], scale=0.5, preset=preset).set_index("id")
        typed, said = asked(tmp_path, edges, "--source", "2", "3", "--scale", "0.5", "--preset", preset)
        np.testing.assert_allclose(typed.loc[found.index, "influence"], found["influence"], rtol=1e-12)
        assert f"preset {preset} reads --weights" in said


def test_signs_that_the_tools_have_not(edges, neurons):
    """Both turned the counts, and made W of the fractions: their numbers are those without signs."""
    negative = neurons["root_id"][neurons["top_nt"] == "gaba"]
    for preset, (weights, threshold) in READS.items():
        c = read(edges, neurons, weights=weights, threshold=threshold, signs={"gaba": -1})
        found = influence(c, 2, preset=preset)
        ids, x = recipe(edges, preset, [2], negative=negative)
        same = np.allclose(found.set_index("id").loc[ids, "influence"], x)
        note = found.attrs.get("note", "")
        assert same == (preset == "cic-2026") == (note == "")
        assert same or note.startswith(f"the preset {preset} has no signs, for its option `signed` turn")


def test_without_cycles_the_calculator_leaves_w_as_it_is(edges):
    chain = edges[edges["pre"] < edges["post"]]
    c = read(chain, threshold=5)
    found = influence(c, 0, preset="cic-2026")
    W = c.W.dense().detach().numpy()
    want = np.linalg.solve(np.eye(len(c)) - W, (c.ids == 0).astype(float))
    np.testing.assert_allclose(found.set_index("id").loc[c.ids, "influence"], want, atol=1e-9)
    assert found.attrs["alpha"] == 1 and "the preset cic-2026 takes W as it is then" in found.attrs["note"]
    with pytest.raises(ValueError, match="nothing to scale"):
        influence(c, 0)


def test_the_help_tells_what_each_preset_reads():
    assert {name: (how.weights, how.threshold) for name, how in PRESETS.items()} == READS
    result = CliRunner().invoke(app, ["influence", "--help"], env={"COLUMNS": "300"})
    for name, (weights, threshold) in READS.items():
        assert f"{name}: {weights}, threshold {threshold}" in " ".join(result.output.replace("│", " ").split())
