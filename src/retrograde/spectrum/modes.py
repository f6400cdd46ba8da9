"""Eigenvalues and modes of a cell's Jacobian at one state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs
from torch import Tensor

from retrograde.result import ConvergenceError
from retrograde.spectrum.cells import Cell, Function

# Arnoldi's basis: the eigenvalues of a random matrix fill a disc, and its rim takes this many vectors to resolve.
_BASIS = 80


def decompose(J: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues of J (..., n, n), the largest \\|λ\\| first, and their modes as rows: (..., n), (..., n, n)."""
    values, vectors = torch.linalg.eig(J)
    order = values.abs().argsort(dim=-1, descending=True, stable=True)
    return values.gather(-1, order), vectors.mT.gather(-2, order[..., None].expand(vectors.shape))


def leading(J: Function, like: Tensor, k: int, which: str) -> tuple[Tensor, Tensor]:
    """k eigenvalues of v -> Jv and their modes as rows, first the largest \\|λ\\|, "LM", or real part, "LR".

    Raises:
        ConvergenceError: Arnoldi's method did not converge.
    """
    n = len(like)

    def product(v: Any) -> Any:
        return J(torch.from_numpy(np.asarray(v)).reshape(1, n).to(like))[0].double().cpu().numpy()

    start = np.random.default_rng(0).standard_normal(n)
    if not product(start).any():  # J is 0, which ARPACK calls an error
        return torch.zeros(k, dtype=torch.complex128), torch.eye(k, n, dtype=torch.complex128)
    eps = torch.finfo(like.dtype).eps
    try:
        values, vectors = eigs(
            LinearOperator((n, n), matvec=product, dtype=np.float64),
            k,
            which=which,
            v0=start,
            ncv=min(n, max(2 * k + 1, _BASIS)),
            tol=eps**0.4,  # of the slowest: those that stand apart, and decide, are exact long before
        )
    except ArpackNoConvergence as error:
        raise ConvergenceError(f"eigenvalues: Arnoldi's method did not converge: {error}", None) from None
    order = np.argsort(-(np.abs(values) if which == "LM" else values.real), kind="stable")
    return torch.from_numpy(values[order]), torch.from_numpy(np.ascontiguousarray(vectors.T[order]))


def modes(cell: Cell, x: Tensor, k: int, own: bool = False, which: str = "LM") -> tuple[Tensor, Tensor]:
    """Eigenvalues of J at one state x (n,), or of the cell's own dynamics, and their modes.

    All of them, largest \\|λ\\| first; where J is not formed, k, those that `which` names as in `leading`.
    """
    if cell.full is not None:
        J = cell.full(x[None])[0]
        return decompose(cell.own(J) if own else J)
    product = cell.own_product(x[None]) if own else cell.tangent(x[None])
    return leading(product, cell.like, min(k, len(cell.like) - 2), which)


def spectra(cell: Cell, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """At one state x (n,): eigenvalues of J by \\|λ\\|, and by Re λ; multipliers of the cell's own dynamics by \\|μ\\|.

    The largest is first. All of them; where J is not formed, k of each.
    """
    if cell.full is None:
        values, _ = modes(cell, x, k)
        real, _ = modes(cell, x, k, which="LR")
        return values, real, values if cell.leak is None else modes(cell, x, k, own=True)[0]
    J = cell.full(x[None])[0]
    values = _by_modulus(torch.linalg.eigvals(J))
    real = values[values.real.argsort(descending=True, stable=True)]
    return values, real, values if cell.leak is None else _by_modulus(torch.linalg.eigvals(cell.own(J)))


def _by_modulus(values: Tensor) -> Tensor:
    return values[values.abs().argsort(descending=True, stable=True)]
