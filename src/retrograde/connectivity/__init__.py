"""W: one structure a file. `as_connectivity` and `as_operator` take what a caller may hand in."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import scipy.sparse
import torch
from torch import Tensor, nn

from retrograde.checks import check_finite, check_floating
from retrograde.connectivity.base import Connectivity, Operator, Transposed
from retrograde.connectivity.dense import Dense
from retrograde.connectivity.sparse import Sparse
from retrograde.transforms import transformed

__all__ = [
    "Connectivity",
    "Dense",
    "Operator",
    "Sparse",
    "Transposed",
    "as_connectivity",
    "as_operator",
]


def as_connectivity(W: Any) -> Connectivity:
    """A square connectivity: an int n (Dense, normal, standard deviation 0.9/√n), a matrix, a sparse matrix, or itself.

    Raises:
        TypeError: something else.
        ValueError: not square.
    """
    if isinstance(W, bool):
        raise TypeError("W: expected an int, a tensor, a sparse matrix or a Connectivity, got a bool")
    if isinstance(W, Integral):
        if W < 1:
            raise ValueError(f"W: expected at least one neuron, got {W}")
        n = int(W)
        W = Dense(nn.Parameter(torch.randn(n, n) * 0.9 / n**0.5))
    elif scipy.sparse.issparse(W) or (isinstance(W, Tensor) and W.layout != torch.strided):
        W = Sparse(W)
    elif isinstance(W, Tensor):
        check_finite("W", check_floating("W", W))
        W = Dense(W)
    elif not isinstance(W, Connectivity):
        raise TypeError(f"W: expected an int, a tensor, a sparse matrix or a Connectivity, got {type(W).__name__}")
    if W.shape[0] != W.shape[1]:
        raise ValueError(f"W: expected a square matrix, got shape {W.shape}")
    if not W.shape[0]:
        raise ValueError("W: expected at least one neuron, got none")
    return W


def as_operator(W: Any) -> Operator:
    """A square operator whose weights are the very tensors given, so that their gradients reach the caller."""
    if isinstance(W, Operator):
        return W
    if not isinstance(W, Tensor):
        return as_connectivity(W).bind()
    if W.layout == torch.strided and transformed():  # the structure is its shape; the numbers are looked at later
        like = torch.zeros((), dtype=W.dtype, device=W.device).expand(W.shape)
        return as_connectivity(Dense(nn.Parameter(like, requires_grad=False))).bind(W)
    if W.layout == torch.strided:
        return as_connectivity(nn.Parameter(W.detach(), requires_grad=False)).bind(W)
    W = W.to_sparse_coo().coalesce()  # in the order of Sparse: by row, then column
    return as_connectivity(W).bind(W.values())
