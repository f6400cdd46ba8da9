"""Eigenvalues and modes of a Jacobian: the factors by which perturbations of a steady state grow from step to step.

A full matrix is decomposed; of anything else, known by its products alone, Arnoldi's method finds the leading part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigs
from torch import Tensor

from retrograde.connectivity import Connectivity
from retrograde.result import ConvergenceError

Product = Callable[[Tensor], Tensor]
Leading = Literal["modulus", "real"]

# Arnoldi's basis: the eigenvalues of a random matrix fill a disc, and its rim takes this many vectors to resolve.
_BASIS = 80
# How often Arnoldi's method may begin anew. A random matrix takes some twenty; what takes many more, such as a long
# ring of neurons, whose eigenvalues lie all round a circle, takes far too many.
_RESTARTS = 200
_KEYS: dict[str, Callable[[Tensor], Tensor]] = {"modulus": torch.abs, "real": lambda values: values.real}


def eigenvalues(W: Connectivity | Tensor, D: Tensor) -> Tensor:
    """The eigenvalues of DW at each state: (..., n) complex, in no particular order.

    The steady state is stable under x ← f(Wx + b) where all lie inside the unit circle. DW is formed in full: small n.

    Args:
        W: (n, n), a connectivity or a tensor.
        D: (..., n), the slopes f'(Wx + b).

    Raises:
        ValueError: W and D do not fit.

    >>> eigenvalues(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0.5, 0.5])).real.sort().values
    tensor([-0.5000,  0.5000])
    """
    M = (W.dense() if isinstance(W, Connectivity) else W).detach()
    n = M.shape[-1]
    if M.shape != (n, n) or D.ndim == 0 or D.shape[-1] != n:
        raise ValueError(f"D: expected shape (..., n) for W of shape (n, n), got {tuple(D.shape)} for {tuple(M.shape)}")
    return torch.linalg.eigvals(D.detach()[..., :, None] * M)


@dataclass(frozen=True, eq=False)
class Modes:
    """Eigenvalues of a matrix J, leading ones first, and their vectors, all of length 1: Jv = λv and Jᵀw = λ w.

    Attributes:
        values: (..., k) complex, λ.
        right: (..., k, n) complex, v: the direction that grows by λ a step.
        left: (..., k, n) complex, w: a perturbation holds wᵀ(it) / wᵀv of the mode. NaN where J was not transposed.
        residual: (..., k) the larger of |Jv - λv| and |Jᵀw - λw|.
        gap: (..., k) how far the nearest other eigenvalue is, of those that were computed.
    """

    values: Tensor
    right: Tensor
    left: Tensor
    residual: Tensor
    gap: Tensor

    @property
    def conditioning(self) -> Tensor:
        """(..., k) 1 / |wᵀv|: how much an eigenvalue feels of a change of J. Infinite where J is defective."""
        return 1 / (self.left * self.right).sum(-1).abs()

    @property
    def error(self) -> Tensor:
        """(..., k) the order of each eigenvalue's error: its residual, amplified by its conditioning."""
        rounding = torch.finfo(self.residual.dtype).eps * self.values.abs()
        return self.conditioning * (self.residual + rounding)

    @property
    def simple(self) -> Tensor:
        """(..., k) whether each is told apart from the others: one that is not has no derivative."""
        resolved = torch.finfo(self.residual.dtype).eps ** 0.6 * self.values.abs().amax(-1, keepdim=True)
        return (self.gap > 10 * self.error) & (self.gap > resolved)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its fields, in order."""
        return self.values, self.right, self.left, self.residual, self.gap

    def each(self, change: Callable[[Tensor], Tensor]) -> Modes:
        """The modes with every tensor changed."""
        return Modes(*map(change, self.tensors))

    def take(self, index: Tensor) -> Modes:
        """The modes that `index`, (..., k), names."""

        def rows(part: Tensor) -> Tensor:
            vectors = part.ndim > index.ndim
            return part.gather(
                index.ndim - 1, index[..., None].expand(*index.shape, part.shape[-1]) if vectors else index
            )

        return self.each(rows)


def leading_modes(
    J: Tensor | Product,
    k: int = 6,
    *,
    by: Leading = "modulus",
    transposed: Product | None = None,
    like: Tensor | None = None,
    rtol: float | None = None,
) -> Modes:
    """The k leading eigenvalues and modes of a Jacobian, given in full or by its products.

    Args:
        J: (..., n, n), each decomposed in full; or a function v -> Jv of one real vector (n,), for Arnoldi's method.
        k: how many; all, where n is less.
        by: "modulus", the largest \\|λ\\|, which decide on stability in discrete time; or "real", the largest real
            parts, which do in continuous time.
        transposed: w -> Jᵀw, where J is a function; without it there are no left modes, and no ``conditioning``.
        like: (n,), where J is a function: a vector of the dtype and on the device that it takes.
        rtol: how exactly Arnoldi's method finds each, relative to \\|λ\\|; None is as exactly as the dtype allows.

    Raises:
        ValueError: k is less than 1, or so many that Arnoldi's method cannot find them.
        ConvergenceError: Arnoldi's method did not converge.

    References:
        R. B. Lehoucq, D. C. Sorensen and C. Yang, "ARPACK users' guide" (1998).

    >>> turn = torch.tensor([[0.0, -0.5, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.1]])
    >>> leading_modes(turn, 2).values
    tensor([0.+0.5000j, 0.-0.5000j])
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    if isinstance(J, Tensor):
        modes = _of_matrix(J)
    elif like is None:
        raise ValueError("like: expected a vector such as J takes, since J is a function")
    else:
        modes = _of_products(J, transposed, like, k, by, rtol)
    return modes.take(_KEYS[by](modes.values).argsort(dim=-1, descending=True, stable=True)[..., :k])


def _of_matrix(J: Tensor) -> Modes:
    """Every mode of (..., n, n). Left ones are those of Jᵀ: where J is defective, the right ones have no inverse."""
    values, right = torch.linalg.eig(J)
    left = _partners(values, *torch.linalg.eig(J.mT))
    right = right.mT
    residual = torch.maximum(
        _norm(right @ J.mT.to(right.dtype) - values[..., None] * right),
        _norm(left @ J.to(left.dtype) - values[..., None] * left),
    )
    return Modes(values, right, left, residual, _gaps(values))


def _of_products(
    J: Product, transposed: Product | None, like: Tensor, k: int, by: Leading, rtol: float | None
) -> Modes:
    """Leading modes by Arnoldi's method, and a few more."""
    if k > len(like) - 4:
        raise ValueError(f"k: expected at most {len(like) - 4}, as J is known by products alone, got {k}")
    # Two more than wanted: a complex pair is not cut in half, and the last is told from the next.
    which = {"modulus": "LM", "real": "LR"}[by]
    complex_dtype = torch.promote_types(like.dtype, torch.complex64)

    def search(product: Product) -> tuple[Tensor, Tensor]:
        values, vectors = arpack(eigs, product, like, k + 2, which, rtol)
        return values.to(complex_dtype), vectors.to(complex_dtype)

    def residual(product: Product, vectors: Tensor) -> Tensor:
        images = torch.stack([torch.complex(product(v.real), product(v.imag)) for v in vectors])
        return _norm(images - values[:, None] * vectors)

    values, right = search(J)
    right = right.mT
    size, left = residual(J, right), torch.full_like(right, torch.nan)
    if transposed is not None:
        left = _partners(values, *search(transposed))
        size = torch.maximum(size, residual(transposed, left))
    return Modes(values, right, left, size, _gaps(values))


def _partners(values: Tensor, others: Tensor, vectors: Tensor) -> Tensor:
    """For each value, of the columns of `vectors` the one whose eigenvalue, of `others`, is nearest; as rows."""
    nearest = (values[..., :, None] - others[..., None, :]).abs().argmin(-1)
    return vectors.mT.gather(-2, nearest[..., None].expand(*nearest.shape, vectors.shape[-2]))


def _gaps(values: Tensor) -> Tensor:
    gaps = (values[..., :, None] - values[..., None, :]).abs()
    return gaps.masked_fill(torch.eye(gaps.shape[-1], dtype=torch.bool, device=gaps.device), torch.inf).amin(-1)


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=-1)


def arpack(
    search: Any, J: Product, like: Tensor, k: int, which: str, rtol: float | None = None
) -> tuple[Tensor, Tensor]:
    """ARPACK's `search` on v -> Jv: (k,) values and (n, k) vectors, always from the same start, to the same bits."""
    n = len(like)
    start = np.random.default_rng(0).standard_normal(n)

    def product(v: np.ndarray) -> np.ndarray:
        return J(torch.tensor(v).to(like)).double().cpu().numpy()

    if not product(start).any():  # J is 0, which ARPACK calls an error
        return like.new_zeros(k), torch.eye(n, k, dtype=like.dtype, device=like.device)
    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
    # A product in less than float64 is not exact enough for ARPACK's own tolerance.
    eps = torch.finfo(like.dtype).eps
    try:
        found = search(
            operator,
            k,
            which=which,
            v0=start,
            ncv=min(n, max(2 * k + 1, _BASIS)),
            maxiter=_RESTARTS,
            tol=rtol or (0 if eps < 1e-12 else 10 * eps),
        )
    except ArpackError as error:
        facts = (
            f"eigenvalues: Arnoldi's method found too few of {k} ({error}). Many may lie equally far out, as those of "
            "a long ring of neurons do."
        )
        advice = "If the matrix fits into memory, a network with Dense(W.dense()) is decomposed."
        raise ConvergenceError(f"{facts} {advice}", None, facts) from None
    values, vectors = (torch.from_numpy(np.ascontiguousarray(part)).to(like.device) for part in found)
    return values, vectors
