"""How many steady states meet where a real eigenvalue reaches 1: two, at a fold, or three, at a pitchfork."""

from __future__ import annotations

import torch
from torch import Tensor

from retrograde.recurrence import Recurrence

_H = 1e-3  # the step of the differences, in float64


def three_meet(net: Recurrence, x: Tensor, b: Tensor | None, margin: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """(samples,) whether three meet, at x (samples, n) in float64.

    Along the mode v, at a distance y from x, the dynamics move by -m y + a y²/2 + c y³/6, where m is the margin,
    a = wᵀ[f″ (Wv)²] and c = wᵀ[f‴ (Wv)³] for wᵀv = 1. The other steady states nearby are the y that solve
    m = a y/2 + c y²/6. With a = 0, by a symmetry, there are two of them, at ±√(6m/c); on one of the outer branches of a
    pitchfork a² is 3 |cm|. Where a² is over twice that, the nearest is at y = 2m/a, as at a fold, and the other far
    away. The other modes, which follow v, change c, and are left out.

    Args:
        net: the equations, its leak included.
        x: steady states.
        b: their total input; it is needed where f' is not a function of f.
        margin: (samples,) 1 - the eigenvalue of the network's own dynamics.
        v: (samples, n) its right vector.
        w: (samples, n) its left vector.
    """
    if net.f.kinked:  # bends nowhere, or at once
        return torch.zeros_like(margin, dtype=torch.bool)
    second, third = _bends(net, x, b)
    Wv = net.W @ v
    size = (w * v).sum(-1)
    w = w if net.leak is None else w * net.leak
    a = (w * second * Wv**2).sum(-1) / size
    c = (w * third * Wv**3).sum(-1) / size
    return a**2 < 6 * c.abs() * margin.abs().clamp(min=torch.finfo(x.dtype).eps ** 0.5)


def _bends(net: Recurrence, x: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """f″ and f‴ at Wx + b, by differences of f'; from x itself, with df' = (df'/dx) f' du, where f allows it."""
    if net.f.slope_from_output:
        low, D, high = (net.f.slope(x + h) for h in (-_H, 0, _H))
        by_x, by_x_twice = (high - low) / (2 * _H), (high - 2 * D + low) / _H**2
        return by_x * D, (by_x_twice * D + by_x**2) * D
    assert b is not None  # or there was no D
    u = net.W @ x + b
    low, D, high = (net.f.slope_at(u + h) for h in (-_H, 0, _H))
    return (high - low) / (2 * _H), (high - 2 * D + low) / _H**2
