"""How exactly a steady state is known, and whether it is one at all and not one of a continuum."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retrograde.spectrum.cells import Cell, Function

# What rounding may accumulate, in units of what one operation may lose.
_SLACK = 64


class Polished(NamedTuple):
    """States after one more Newton step, sample by sample.

    x (samples, n); `change`, by how much that step changed |F(x) - x|²/2; `reach`, how far off x may be; `isolated`.
    """

    x: Tensor
    change: Tensor
    reach: Tensor
    isolated: Tensor


def polished(cell: Cell, x: Tensor, scale: float) -> Polished:
    """One more Newton step where it helps, and what is then known of x, (samples, n); `scale` counts as the size of 0.

    x may be off by the norm of (I - J)⁻¹, times the residual and rounding. It is isolated if F(x) - x changes along the
    direction in which it changes least.
    """
    one, two, three, four = zip(*(_polished(cell, block, scale) for block in cell.blocks(x)), strict=True)
    return Polished(torch.cat(one), torch.cat(two), torch.cat(three), torch.cat(four))


def norm(x: Tensor) -> Tensor:
    """(samples,)."""
    return torch.linalg.vector_norm(x, dim=-1)


def _polished(cell: Cell, x: Tensor, scale: float) -> Polished:
    eps = torch.finfo(x.dtype).eps
    inverse = cell.inverse(x)
    correction = inverse(cell.step(x) - x).nan_to_num(0, 0, 0)
    before, after = (norm(cell.step(each) - each) for each in (x, x + correction))
    x = torch.where((after <= before)[:, None], x + correction, x)
    amplified, v = _weakest(cell, x, inverse)
    unsure = _SLACK * (torch.minimum(before, after) + eps * norm(x).clamp(min=scale))
    # At a bifurcation the norm is infinite, and says nothing of how far apart two states must be.
    furthest = eps**0.25 * scale
    reach = (amplified.clamp(min=1) * unsure).clamp(max=furthest)
    flat = torch.zeros_like(before, dtype=torch.bool)
    for aside in (x + furthest * v, x - furthest * v):
        flat |= norm(cell.step(aside) - aside) <= _SLACK * eps * norm(aside)
    # A residual that vanishes by rounding alone leaves a Newton step of any size.
    return Polished(x, (before**2 - after**2).abs() / 2, reach, (norm(correction) <= furthest) & ~flat)


def _weakest(cell: Cell, x: Tensor, inverse: Function) -> tuple[Tensor, Tensor]:
    """By how much (I - J)⁻¹ amplifies, and a direction v in which I - J is about that small, by inverse iteration."""
    v = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
    v = (v / norm(v)).expand_as(x)
    amplified = torch.ones_like(x[:, 0])
    for _ in range(3):
        image = inverse(v)
        amplified = norm(image).nan_to_num(nan=torch.inf)
        image = image / amplified[:, None]
        v = torch.where(image.isfinite().all(-1, keepdim=True), image, v)
    singular = (~amplified.isfinite()).nonzero()[:, 0]
    if len(singular) and cell.full is not None:
        A = torch.eye(x.shape[-1]).to(x) - cell.full(x[singular])
        v = v.index_copy(0, singular, torch.linalg.svd(A).Vh[:, -1])
    return amplified, v
