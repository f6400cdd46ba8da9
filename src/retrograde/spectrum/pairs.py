"""Simple eigenvalues and their vectors as functions of the matrix, differentiable as often as is asked.

With cᵀv = 1, Hv = λv are as many equations as there are unknowns: the matrix of their derivatives in (v, λ) is H - λ
with a border of -v and cᵀ. It is regular where λ is simple, whatever the other eigenvalues do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Follow = Callable[[Tensor, Tensor, Tensor, Tensor], Pair]
"""From M (rows, n, n) and numbers read from it, (rows,), with dλ = pᵀ dM v: p and v, (rows, n), as functions of M."""


def of_eigenvalues(M: Tensor, values: Tensor, p: Tensor, v: Tensor) -> Pair:
    """Of an eigenvalue of M."""
    return _followed(M.to(v.dtype), values, v)


def of_symmetric(M: Tensor, values: Tensor, p: Tensor, v: Tensor) -> Pair:
    """Of an eigenvalue of the symmetric part of M."""
    return _followed((M + M.mT) / 2, values, v)


def of_singular(M: Tensor, values: Tensor, p: Tensor, v: Tensor) -> Pair:
    """Of a singular value of A = I - M, which is an eigenvalue of [[0, A], [Aᵀ, 0]] with (u, v) for its vector."""
    A = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device) - M
    none = torch.zeros_like(A)
    H = torch.cat([torch.cat([none, A], -1), torch.cat([A.mT, none], -1)], -2)
    w, uv = _followed(H, values, torch.cat([-p, v], -1) / 2**0.5)
    return -2 * w.chunk(2, -1)[0], uv.chunk(2, -1)[1]


def _followed(H: Tensor, values: Tensor, v: Tensor) -> Pair:
    """w / wᵀv and v of an eigenvalue of H."""
    c = v.conj().resolve_conj()
    values, v = _Eigenpair.apply(H, values, v, c)
    last = torch.zeros_like(v[:, :1])
    w = torch.linalg.solve(_bordered(H, values, v, c).mT, torch.cat([torch.zeros_like(v), last - 1], -1))
    return w[:, :-1], v


def _bordered(H: Tensor, values: Tensor, v: Tensor, c: Tensor) -> Tensor:
    shifted = H - values[:, None, None] * torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
    below = torch.cat([c, torch.zeros_like(c[:, :1])], -1)
    return torch.cat([torch.cat([shifted, -v[..., None]], -1), below[:, None]], -2)


class _Eigenpair(torch.autograd.Function):
    """Forward the identity on λ and v, backward the implicit function theorem, in terms of what it has given."""

    @staticmethod
    def forward(ctx: Any, H: Tensor, values: Tensor, v: Tensor, c: Tensor) -> Pair:
        values, v = values.clone(), v.clone()
        ctx.save_for_backward(H, values, v, c)
        return values, v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        H, values, v, c = ctx.saved_tensors
        g_values, g_v = gradients
        right = torch.cat([g_v, g_values[:, None]], -1)
        z = torch.linalg.solve(_bordered(H, values, v, c).mH, right)
        return -z[:, :-1, None] * v.conj()[:, None], None, None, None
