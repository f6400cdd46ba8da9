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
            tol=0 if eps < 1e-12 else 10 * eps,
        )
    except ArpackNoConvergence as error:
        raise ConvergenceError(f"eigenvalues: Arnoldi's method did not converge: {error}", None) from None
    order = np.argsort(-(np.abs(values) if which == "LM" else values.real), kind="stable")
    return torch.from_numpy(values[order]), torch.from_numpy(np.ascontiguousarray(vectors.T[order]))


def spectra(cell: Cell, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of J at one state x (n,): eigenvalues and modes, largest \\|λ\\| first; eigenvalues, largest real part first; and
    the multipliers of the cell's own dynamics, largest modulus first. Where J is not formed, k of each.
    """
    if cell.full is not None:
        J = cell.full(x[None])[0]
        values, modes = decompose(J)
        real = values[values.real.argsort(descending=True, stable=True)]
        return values, modes, real, values if cell.leak is None else decompose(cell.own(J))[0]
    J_product, own = cell.tangent(x[None]), cell.own_product(x[None])
    k = min(k, len(cell.like) - 2)
    values, modes = leading(J_product, cell.like, k, "LM")
    real, _ = leading(J_product, cell.like, k, "LR")
    return values, modes, real, values if cell.leak is None else leading(own, cell.like, k, "LM")[0]
