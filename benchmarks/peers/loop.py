"""What one writes by hand in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.sparse import csr_array
from torch import Tensor

from benchmarks.peers.driven_torch import Pattern

MAX_STEPS = 1000


def trajectories(W: Tensor, b: Tensor, g: Tensor) -> Callable[[], Tensor]:
    """A loop over time, and autograd through it."""
    W = W.clone().requires_grad_()

    def gradient() -> Tensor:
        x, states = torch.zeros_like(b[0]), []
        for b_t in b:
            x = torch.tanh(torch.addmm(b_t, x, W.T))
            states.append(x)
        return torch.autograd.grad(torch.stack(states), W, g)[0]

    return gradient


def steady(W: Tensor | csr_array, b: Tensor, g: Tensor, rtol: float) -> Callable[[], Tensor]:
    """Step until the whole batch has settled, then the same for the adjoint; no autograd."""

    def settle(step: Callable[[Tensor], Tensor]) -> Tensor:
        z = torch.zeros_like(b)
        for _ in range(MAX_STEPS):
            before, z = z, step(z)
            if (z - before).norm() <= rtol * z.norm():
                break
        return z

    if isinstance(W, Tensor):
        forth, back = (lambda x: torch.addmm(b, x, W.T)), (lambda s: torch.addmm(g, s, W))
        outer: Callable[[Tensor, Tensor], Tensor] = lambda s, x: s.T @ x  # noqa: E731
    else:
        pattern, w = Pattern(W), torch.from_numpy(W.data)
        forth, back = (lambda x: pattern.forth(w, x) + b), (lambda s: pattern.back(w, s) + g)
        outer = pattern.outer

    def gradient() -> Tensor:
        with torch.no_grad():
            x = settle(lambda x: torch.tanh(forth(x)))
            D = 1 - x * x
            return outer(settle(lambda s: D * back(s)), x)

    return gradient
