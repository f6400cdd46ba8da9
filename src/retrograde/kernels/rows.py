"""W whose products give each sample the bits that it has alone, for solvers that run in PyTorch.

A BLAS chooses how it sums by how many rows it is given, and by where they lie in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator, Sparse
from retrograde.connectivity.low_rank import LowRank
from retrograde.kernels.arrays import array, dtype_of, in_blocks, matrix
from retrograde.kernels.choice import cpu_kernels, is_large, why_no_numbers, why_plain
from retrograde.kernels.threads import ask_for, most
from retrograde.transforms import followed

# So few multiplications are done before a second thread has woken up.
_SMALL = 2**17

Product = Callable[[Tensor], Tensor]


def by_rows(W: Operator) -> Operator:
    """W for a solve, in which its weights stay what they are; by kernels, unless it is sparse and very large."""
    served = why_plain(W, None) is None and not is_large(W)
    return _ByRows(W.structure, W.weights) if served and W.shape[0] == W.shape[1] else W


class _ByRows(Operator):
    """Packed once, at the first product."""

    @cached_property
    def _product(self) -> Product:
        return _product_of(self, False)

    @cached_property
    def _product_of_T(self) -> Product:
        return _product_of(self, True)

    def held(self) -> Operator:
        return self

    def __matmul__(self, x: Tensor) -> Tensor:
        if followed(x, *self.weights):
            return super().__matmul__(x)
        return self._product(self._samples("x", x, self.shape[1])).reshape(x.shape)

    def _transposed_product(self, s: Tensor) -> Tensor:
        if followed(s, *self.weights):
            return super()._transposed_product(s)
        return self._product_of_T(s)


def _product_of(W: Operator, transposed: bool) -> Product:
    cpu, (M, flipped) = cpu_kernels(), matrix(W, transposed)
    dtype = dtype_of(W.like)
    if isinstance(W.structure, Sparse):
        return partial(_by, cpu.rows.sparse, M, M[-1].size, W.shape[0], dtype)
    # x V Uᵀ is one after the other.
    full = [(M[0], False), (M[1], True)] if isinstance(W.structure, LowRank) else [(M[0], flipped)]
    first, *others = (
        partial(_by, cpu.rows.full, in_blocks(each, turned), each.size, each.shape[0 if turned else 1], dtype)
        for each, turned in full
    )
    return lambda x: reduce(lambda y, part: part(y), others, first(x))


def _by(kernel: Any, A: Any, terms: int, n: int, dtype: np.dtype, x: Tensor) -> Tensor:
    """x A, (rows, n), for A of so many terms."""
    rows = array(x)
    u = np.zeros((len(rows), n), dtype)
    if u.size:
        kernel(A, rows, ask_for(most() if terms * len(rows) > _SMALL else 1), u)
    return torch.from_numpy(u)


def add_backwards(s: Tensor, total: Tensor) -> None:
    """total += s(T) + ... + s(1), in this order wherever the numbers lie; s (T, ..., n), total (..., n)."""
    if why_no_numbers(s) is not None or not total.is_contiguous():
        for each in s.flip(0):
            total += each
        return
    threads = ask_for(most() if s.numel() > _SMALL else 1)
    cpu_kernels().rows.add_backwards(array(s).reshape(len(s), -1), threads, total.numpy().reshape(-1))
