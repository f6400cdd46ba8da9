"""What the structure of W saves a solve, exactly: small factors, neurons that take no part, an order to solve in."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from retrograde.blocks import blocks_of, undivided
from retrograde.connectivity import Dense, Operator, Sparse, as_operator
from retrograde.connectivity.low_rank import LowRank

# Up to this many neurons, or columns of U and V, what has to be factored is.
SMALL = 1024

# Among fewer neurons, or where a larger share is active, selecting them takes as long as it saves.
_WORTH, _SHARE = 256, 0.6

# Numbers in a piece of a product that is summed over neurons.
_PIECE = 2**23


class Solve(Protocol):
    """y -> C⁻¹y, or C⁻ᵀy, for each sample, C what `core` gave."""

    def __call__(self, y: Tensor, transposed: bool = False) -> Tensor:
        """See above."""


def is_low_rank(W: Operator) -> bool:
    """Whether W = UVᵀ with fewer columns than neurons, so that I - DW is inverted in as many dimensions."""
    return _is(W, LowRank) and W.weights[0].shape[1] < W.shape[0]


def factor_size(W: Operator) -> int:
    """How large a matrix a sample's I - DW takes to factor: n, or the rank r."""
    return W.weights[0].shape[1] if is_low_rank(W) else W.shape[0]


def core(W: Operator, D: Tensor) -> Tensor:
    """What is factored in place of I - DW, for each sample of D: itself, or for W = UVᵀ the r x r matrix I - VᵀDU."""
    if not is_low_rank(W):
        return _identity(D, D.shape[-1]) - D[..., :, None] * W.dense()
    U, V = W.weights
    r, samples = U.shape[1], len(D)
    fewer = min(samples, r)
    VDU = D.new_zeros(samples, r, r)
    pieces = max(1, _PIECE // max(1, r * fewer))
    for u, v, d in zip(U.split(pieces), V.split(pieces), D.split(pieces, dim=1), strict=True):
        if samples > r:
            VDU += (d @ (v[:, :, None] * u[:, None, :]).flatten(1)).view(samples, r, r)
        else:
            VDU += v.T @ (d[:, :, None] * u)
    return _identity(D, r) - VDU


def invert(W: Operator, D: Tensor, r: Tensor, solve: Solve) -> Tensor:
    """(I - DW)⁻¹ r. For W = UVᵀ by Woodbury's identity, r + D U (I - VᵀDU)⁻¹ Vᵀ r."""
    if not is_low_rank(W):
        return solve(r)
    U, V = W.weights
    return r + D * (solve(r @ V) @ U.T)


def invert_adjoint(W: Operator, D: Tensor, r: Tensor, solve: Solve) -> Tensor:
    """(I - DWᵀ)⁻¹ r = r + D (I - WᵀD)⁻¹ Wᵀ r, and I - WᵀD is the transpose of the forward solve's I - DW.

    For W = UVᵀ likewise r + D V (I - UᵀDV)⁻¹ Uᵀ r, and I - UᵀDV is the transpose of I - VᵀDU.
    """
    if not is_low_rank(W):
        return r + D * solve(W.T @ r, transposed=True)
    U, V = W.weights
    return r + D * (solve(r @ U, transposed=True) @ V.T)


def active_part(W: Operator, D: Tensor) -> tuple[Tensor, Operator] | None:
    """The neurons whose slope is not 0 in every sample, and the W among them; None where that is not worth while.

    s = D (Wᵀs + g) is 0 at all others, exactly: they take no part in the adjoint, and get none.
    """
    n = W.shape[0]
    if n < _WORTH or not (_is(W, Dense) or _is(W, Sparse)) or blocks_of(W) is not None:
        return None  # levels save more
    active = (D != 0).any(0)
    count = int(active.sum())
    if not 0 < count <= _SHARE * n:
        return None
    neurons = active.nonzero()[:, 0]
    (weight,) = (each.detach() for each in W.weights)
    if not isinstance(W.structure, Sparse):
        return neurons, as_operator(weight.index_select(0, neurons).index_select(1, neurons))
    part, edges = W.structure.part(active)
    undivided(part)
    return neurons, part.bind(weight[edges])


def _identity(like: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)


def _is(W: Operator, kind: type[Dense] | type[Sparse] | type[LowRank]) -> bool:
    """Whether W is of this kind; a subclass with a product of its own is not."""
    return getattr(type(W.structure), "product", None) is kind.product
