"""SciPy, sample by sample, as it has no batches: its root finders, then a linear solve of the adjoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

Array = np.ndarray


def steady(W: Tensor | csr_array, b: Tensor, g: Tensor, method: str, rtol: float) -> Callable[[], Tensor]:
    """`root` by "hybr" and the adjoint by LU; or by "krylov" and the adjoint by GMRES."""
    full = isinstance(W, Tensor)
    A = W.numpy() if isinstance(W, Tensor) else W
    At = A.T if full else A.T.tocsr()
    rows = None if full else np.repeat(np.arange(A.shape[0]), np.diff(A.indptr))
    inputs, rewards = b.numpy(), g.numpy()

    def by_factors(b: Array, g: Array) -> tuple[Array, Array]:
        eye = np.eye(len(b), dtype=b.dtype)

        def jacobian(x: Array) -> Array:
            return eye - (1 - np.tanh(A @ x + b) ** 2)[:, None] * A

        x = scipy.optimize.root(lambda x: x - np.tanh(A @ x + b), 0 * b, jac=jacobian, tol=rtol).x.astype(b.dtype)
        D = 1 - x**2
        return x, D * scipy.linalg.solve(eye - At * D, g)

    def by_products(b: Array, g: Array) -> tuple[Array, Array]:
        options = {"fatol": rtol * len(b) ** 0.5, "tol_norm": np.linalg.norm, "maxiter": 100}
        x = scipy.optimize.root(lambda x: x - np.tanh(A @ x + b), 0 * b, method="krylov", options=options).x
        x = x.astype(b.dtype)
        D = 1 - x**2
        adjoint = LinearOperator((len(b), len(b)), matvec=lambda y: y - At @ (D * y), dtype=b.dtype)
        return x, D * gmres(adjoint, g, rtol=rtol, restart=50)[0]

    solve = by_factors if method == "hybr" else by_products

    def gradient() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x, s = (np.stack(each) for each in zip(*map(solve, inputs, rewards), strict=True))
        if rows is None:
            return torch.from_numpy(s.T @ x)
        dW = np.zeros(len(rows), x.dtype)
        for s_k, x_k in zip(s, x, strict=True):
            dW += s_k[rows] * x_k[A.indices]
        return torch.from_numpy(dW)

    return gradient
