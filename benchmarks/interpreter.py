"""Writes what connectome-interpreter 2.9.5 computes, tests/connectome_interpreter.json, for tests to be held against.

``python -m benchmarks.interpreter``, where the package is installed. A network of nine neurons, its layers and their
gradient in the input for three choices of threshold, steepness and bias, and what its search for an input finds; in
float64.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from connectome_interpreter.activation_maximisation import (
    MultilayeredNetwork,
    TargetActivation,
    activation_maximisation,
)

HERE = Path(__file__).parents[1] / "tests" / "connectome_interpreter.json"
DRIVEN, STEPS, TYPES = [0, 2, 5, 6], 6, "pppqqqqrr"
TURNS = 20
CPU = torch.device("cpu")
CHOICES: dict[str, dict[str, Any]] = {
    "as released": {},
    "others": {"threshold": 0.2, "tanh_steepness": 2.0, "default_bias": 0.02},
    "by type": {"slope_dict": {"p": 2.0, "q": 3.0, "r": 5.0}, "idx_to_group": dict(enumerate(TYPES))},
}


def main() -> None:
    """Write it."""
    torch.set_default_dtype(torch.float64)  # in which it makes its zeros: in float32 its search depends on rounding
    random = np.random.default_rng(8)
    M = np.where(random.random((9, 9)) < 0.5, 0.6 * random.normal(size=(9, 9)), 0).round(4)
    u = random.uniform(-0.3, 1.4, (3, len(DRIVEN), STEPS)).round(4)  # samples, neurons, time
    weights = random.normal(size=(3, 9, STEPS)).round(4)
    sparse = torch.from_numpy(M).to_sparse()
    told: dict[str, Any] = {"version": version("connectome-interpreter"), "types": TYPES, "driven": DRIVEN}
    told |= {"M": M.tolist(), "u": u.tolist(), "weights": weights.tolist(), "choices": {}}
    for name, how in CHOICES.items():
        given = torch.from_numpy(u).requires_grad_()
        layers = MultilayeredNetwork(sparse, DRIVEN, STEPS, **how, device=CPU)(given)
        (layers * torch.from_numpy(weights)).sum().backward()
        assert given.grad is not None
        told["choices"][name] = {"layers": layers.tolist(), "gradient": given.grad.tolist()}
    net = MultilayeredNetwork(sparse, DRIVEN, 4, device=CPU)
    start = torch.rand((1, len(DRIVEN), 4), generator=torch.Generator().manual_seed(7), dtype=torch.float32)
    targets = TargetActivation({2: {7: 0.4}, 3: {8: 0.3}})
    quietly = {"use_tqdm": False, "print_output": False}
    found, x, *_ = activation_maximisation(net, targets, start.double(), num_iterations=TURNS, device=CPU, **quietly)
    told["search"] = {"targets": [[2, 7, 0.4], [3, 8, 0.3]], "seed": 7, "turns": TURNS}
    told["search"] |= {"input": np.asarray(found).tolist(), "layers": np.asarray(x).tolist()}
    HERE.write_text(json.dumps(told) + "\n")
    print(f"written: {HERE}")


if __name__ == "__main__":
    main()
