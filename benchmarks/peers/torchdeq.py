"""torchdeq, with the exact gradient: `ift=True`, as its default is a single step's, and relative tolerances."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.sparse import csr_array
from torch import Tensor
from torchdeq import get_deq

from benchmarks.peers.driven_torch import driven


def steady(
    W: Tensor | csr_array, b: Tensor, g: Tensor, solver: str, max_steps: int, rtol: float
) -> Callable[[], Tensor]:
    """One of its solvers, for the states and for the adjoint. Broyden's memory grows with `max_steps`."""
    w, drive = driven(W)
    w.requires_grad_()
    settings = {
        f"{way}_{name}": value
        for way in "fb"
        for name, value in (("solver", solver), ("tol", rtol), ("stop_mode", "rel"), ("max_iter", max_steps))
    }
    deq = get_deq(ift=True, **settings)

    def gradient() -> Tensor:
        states, _ = deq(lambda x: torch.tanh(drive(w, x, b)), torch.zeros_like(b))
        return torch.autograd.grad(states[-1], w, g)[0]

    return gradient
