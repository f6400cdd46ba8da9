"""BiCGSTAB, some turns of it, for a batch: two products a turn and a handful of vectors, however long it runs."""

from __future__ import annotations

import torch
from torch import Tensor

from retrograde.solvers.base import Linear


def cycle(A: Linear, r: Tensor, goal: Tensor, turns: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """The best z met on the way to |r - Az| = 0, and how many products each sample took.

    A sample ends at its goal, after its `turns`, or where the method breaks down: where its residual has become
    orthogonal to its shadow. Where `turned`, the shadow is not r itself, for an r of which that has been seen.
    """
    tiny, eps = torch.finfo(r.dtype).tiny, torch.finfo(r.dtype).eps
    alternating = 1 - 2 * (torch.arange(r.shape[1], device=r.device) % 2).to(r.dtype)
    shadow = torch.where(turned[:, None], r * alternating, r)
    z, p, best = torch.zeros_like(r), r, torch.zeros_like(r)
    rho, least = _dot(shadow, r), _norm(r)
    going = least > goal
    size = torch.zeros(len(r), dtype=torch.int64, device=r.device)
    while going.any():
        v = A(p)
        sigma = _dot(shadow, v)
        broken = sigma.abs() <= eps * _norm(shadow) * _norm(v)
        alpha = torch.where(broken, 0, rho / sigma)
        s = r - alpha[:, None] * v
        t = A(s)
        ts, tt, ss = _dot(t, s), _dot(t, t), _dot(s, s)
        # Where t and s are nearly orthogonal, a minimal step would be none, and the next direction lost (Sleijpen and
        # van der Vorst, Numer. Algorithms 10 (1995)).
        length = (tt * ss).sqrt().clamp(min=tiny)
        cosine = ts / length
        cosine = torch.where(cosine < 0, -1, 1) * cosine.abs().clamp(min=0.7)
        omega = torch.where(tt > 0, cosine * (ss / tt.clamp(min=tiny)).sqrt(), 0)
        z = z + alpha[:, None] * p + omega[:, None] * s
        r = s - omega[:, None] * t
        now, rho_before = _norm(r), rho
        rho = _dot(shadow, r)
        size += 2 * going
        better = going & (now < least)
        best, least = torch.where(better[:, None], z, best), torch.where(better, now, least)
        broken |= ~now.isfinite() | (rho.abs() <= eps * _norm(shadow) * now) | (omega == 0)
        going = going & ~broken & (least > goal) & (size < 2 * turns)
        beta = (rho / rho_before) * (alpha / omega)
        p = torch.where(going[:, None], r + beta[:, None] * (p - omega[:, None] * v), 0)
        r = torch.where(going[:, None], r, 0)
    return best, size


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=-1)
