"""Eigenvalues and modes of a cell's Jacobian at one state."""

from __future__ import annotations

import torch
from torch import Tensor

from retrograde.spectrum.cells import Cell
from retrograde.spectrum.eigen import Leading, leading_modes

_ENOUGH = 1e-6  # for the slowest of the eigenvalues: those that stand apart, and decide, are exact long before


def decompose(J: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues of J (..., n, n), the largest \\|λ\\| first, and their modes as rows: (..., n), (..., n, n)."""
    values, vectors = torch.linalg.eig(J)
    order = values.abs().argsort(dim=-1, descending=True, stable=True)
    return values.gather(-1, order), vectors.mT.gather(-2, order[..., None].expand(vectors.shape))


def modes(cell: Cell, x: Tensor, k: int, own: bool = False, which: Leading = "modulus") -> tuple[Tensor, Tensor]:
    """Eigenvalues of J at one state x (n,), or of the cell's own dynamics, and their modes.

    All of them, largest \\|λ\\| first; where J is not formed, k, those that `which` names as in `leading_modes`.
    """
    if cell.full is not None:
        J = cell.full(x[None])[0]
        return decompose(cell.own(J) if own else J)
    product = cell.own_product(x[None]) if own else cell.tangent(x[None])
    found = leading_modes(
        lambda v: product(v[None])[0], min(k, len(cell.like) - 4), by=which, like=cell.like, rtol=_ENOUGH
    )
    return found.values, found.right


def spectra(cell: Cell, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """At one state x (n,): eigenvalues of J by \\|λ\\|, and by Re λ; multipliers of the cell's own dynamics by \\|μ\\|.

    The largest is first. All of them; where J is not formed, k of each.
    """
    if cell.full is None:
        values, _ = modes(cell, x, k)
        real, _ = modes(cell, x, k, which="real")
        return values, real, values if cell.leak is None else modes(cell, x, k, own=True)[0]
    J = cell.full(x[None])[0]
    values = _by_modulus(torch.linalg.eigvals(J))
    real = values[values.real.argsort(descending=True, stable=True)]
    return values, real, values if cell.leak is None else _by_modulus(torch.linalg.eigvals(cell.own(J)))


def _by_modulus(values: Tensor) -> Tensor:
    return values[values.abs().argsort(descending=True, stable=True)]
