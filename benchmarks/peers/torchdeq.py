"""torchdeq, with the exact gradient: `ift=True`, as its default is a single step's, and relative tolerances."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchdeq import get_deq


def steady(W: Tensor, b: Tensor, g: Tensor, solver: str, max_steps: int, rtol: float) -> Callable[[], Tensor]:
    """One of its solvers, for the states and for the adjoint. Broyden's memory grows with `max_steps`."""
    W = W.clone().requires_grad_()
    settings = {
        f"{way}_{name}": value
        for way in "fb"
        for name, value in (("solver", solver), ("tol", rtol), ("stop_mode", "rel"), ("max_iter", max_steps))
    }
    deq = get_deq(ift=True, **settings)

    def gradient() -> Tensor:
        states, _ = deq(lambda x: torch.tanh(torch.addmm(b, x, W.T)), torch.zeros_like(b))
        return torch.autograd.grad(states[-1], W, g)[0]

    return gradient
