"""Stability at a glance: what decides on it, and no more, from products alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError
from retrograde.spectrum.components import within_components
from retrograde.spectrum.extremes import decomposes, searched_modes
from retrograde.spectrum.jacobians import cast_to, jacobians
from retrograde.spectrum.stable import Bifurcation, stability, turns

_RTOL = 1e-4  # of the slowest Ritz pair: the leading eigenvalue then has four to six digits


class Glance(NamedTuple):
    """What decides on stability, to four digits or more: of the network's own dynamics, and of DW, for (samples,)."""

    multiplier: Tensor
    direction: Tensor
    radius: Tensor
    rightmost: Tensor


def glance(net: Recurrence, x: Tensor, b: Tensor) -> Glance | None:
    """That of x (samples, n), by Arnoldi's method from products with W alone, in a fraction of the time of `stability`.

    None where a matrix is decomposed, or that method finds nothing.
    """
    W = net.W.bind()
    if decomposes(W) or not len(x):
        return None
    DW, own = jacobians(*cast_to(torch.float64, net, x, b))
    one = own is DW
    DW, own = DW.detached(), own.detached()
    loops = within_components(DW.W)
    rows = []
    try:
        for row in torch.arange(len(x), device=x.device).split(1):
            by_modulus, by_real = (searched_modes(DW.rows(row), loops, 1, by, _RTOL) for by in ("modulus", "real"))
            leader = by_modulus if one else searched_modes(own.rows(row), loops, 1, "modulus", _RTOL)
            rows.append((leader.values[:, 0], leader.right[:, 0], by_modulus.values[:, 0].abs(), by_real.values[:, 0]))
    except ConvergenceError:
        return None
    return Glance(*map(torch.cat, zip(*rows, strict=True)))


class Leading(NamedTuple):
    """What decides on the stability of samples: the margins (samples,), what is near, and the mode (samples, n)."""

    margin: Tensor
    margin_discrete: Tensor
    margin_continuous: Tensor
    near: Tensor
    direction: Tensor


def look(net: Recurrence, b: Tensor, x: Tensor, rows: Tensor, near: float) -> Leading:
    """What decides on the stability of these samples of b.

    Where a glance at the eigenvalues decides, all there is to see is not computed.
    """
    b = b[rows]
    seen = glance(net, x, b)
    direction = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.complex64), device=x.device)
    margins = [x.new_zeros(len(x)) for _ in range(3)]
    close, closer = torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool)
    if seen is not None:
        margin = 1 - seen.multiplier.abs()
        margins = [each.to(x) for each in (margin, 1 - seen.radius, 1 - seen.rightmost.real)]
        turning = turns(seen.multiplier)
        close = torch.where(turning, int(Bifurcation.HOPF), int(Bifurcation.FLIP))
        direction[:] = seen.direction
        # A fold is told from a pitchfork by left modes too.
        closer = (margin <= near) | (~turning & (seen.multiplier.real > 0))
    some = closer.nonzero()[:, 0]
    if len(some):
        spectrum = stability(net, x[some], input=b[some], k=1)
        for mine, each in zip(
            margins, (spectrum.margin, spectrum.margin_discrete, spectrum.margin_continuous), strict=True
        ):
            mine[some] = each.to(mine)
        close[some] = spectrum.near.to(close)
        direction[some] = spectrum.direction.to(direction)
    return Leading(margins[0], margins[1], margins[2], close, direction)
