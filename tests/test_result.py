"""Results: what they hold, and that they travel."""

import pickle

import pytest
import torch

import retrograde as rg


def test_an_error_travels_between_processes_with_its_result():
    with pytest.raises(rg.ConvergenceError) as caught:
        rg.Network(torch.tensor([[3.0]]), f="relu", b=False).trajectory(x0=torch.ones(1), steps=2000)
    assert str(caught.value).startswith("trajectory: 1 of 1 samples became infinite")
    error = pickle.loads(pickle.dumps(rg.ConvergenceError("why", torch.ones(2))))
    assert str(error) == "why" and torch.equal(error.result, torch.ones(2))


def test_factors_are_held_for_the_samples_that_need_them(monkeypatch):
    monkeypatch.setattr("retrograde.solvers.factors._LARGEST", 3 * 20 * 20 * 8)  # room for three
    W = -1.5 * torch.eye(20, dtype=torch.float64)
    b = torch.zeros(50, 20, dtype=torch.float64)
    b[7] = 0.3  # whose own dynamics oscillate
    x = rg.steady_state(W, b).x
    assert float((torch.tanh(x @ W.T + b) - x).norm()) < 1e-12
    with pytest.raises(ValueError, match="solver: 4 matrices of 20 x 20 would take"):
        rg.steady_state(W, b[:4] + 0.3, solver=rg.Newton())
