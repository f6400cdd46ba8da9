"""This library, called as its users call it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.sparse import csr_array
from torch import Tensor

import retrograde as rg


def trajectories(W: Tensor, b: Tensor, g: Tensor) -> Callable[[], Tensor]:
    """`Network.trajectory` and its adjoint."""
    net = rg.Network(W, b=False)
    return lambda: torch.autograd.grad(net.trajectory(b).x, net.W.weight, g)[0]


def steady(
    W: Tensor | csr_array, b: Tensor, g: Tensor, rtol: float | None = None, grad_rtol: float | None = None
) -> Callable[[], Tensor]:
    """`Network.steady_state` and its adjoint: by default, by fixed-point iteration to a tolerance, or to an error.

    Where a tolerance is not reached, the best that was found is taken, as the peers do.
    """
    net = rg.Network(W, b=False)
    solver = None if rtol is None else rg.FixedPoint(rtol=rtol)
    how = {"solver": solver, "adjoint": solver, "throw": rtol is None, "grad_rtol": grad_rtol}
    return lambda: torch.autograd.grad(net.steady_state(b, **how).x, net.W.weight, g)[0]
