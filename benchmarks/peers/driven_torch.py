"""Wx + b in PyTorch, for a full W and for a sparse one, as one writes it who cares for speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy.sparse import csr_array
from torch import Tensor

Drive = Callable[[Tensor, Tensor, Tensor], Tensor]


def driven(W: Tensor | csr_array) -> tuple[Tensor, Drive]:
    """The weights, and (weights, x, b) -> Wx + b for rows x, which autograd can differentiate."""
    if isinstance(W, Tensor):
        return W.clone(), lambda w, x, b: torch.addmm(b, x, w.T)
    pattern = Pattern(W)
    return torch.from_numpy(W.data), lambda w, x, b: _Product.apply(w, x, pattern) + b


class Pattern:
    """The connections of a sparse W by rows and by columns, so that neither direction has to be sorted again."""

    def __init__(self, W: csr_array):
        number = csr_array((torch.arange(1, W.nnz + 1).numpy(), W.indices, W.indptr), shape=W.shape)
        back = number.T.tocsr()
        self.shape, self.order = W.shape, torch.from_numpy(back.data - 1)
        self._rows, self._columns = (
            tuple(torch.from_numpy(part.astype("int64")) for part in (each.indptr, each.indices)) for each in (W, back)
        )

    def forth(self, w: Tensor, x: Tensor) -> Tensor:
        """Wx."""
        return (self._matrix(self._rows, w) @ x.T).T

    def back(self, w: Tensor, s: Tensor) -> Tensor:
        """Wᵀs."""
        return (self._matrix(self._columns, w[self.order]) @ s.T).T

    def outer(self, s: Tensor, x: Tensor) -> Tensor:
        """s xᵀ at the connections."""
        nothing = self._matrix(self._rows, s.new_zeros(len(self.order)))
        return torch.sparse.sampled_addmm(nothing, s.T, x, beta=0).values()

    def _matrix(self, index: tuple[Tensor, Tensor], w: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(*index, w, self.shape, check_invariants=False)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(w, x)
        ctx.pattern = pattern
        return pattern.forth(w, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        w, x = ctx.saved_tensors
        of_w, of_x, _ = ctx.needs_input_grad
        (s,) = grads
        return ctx.pattern.outer(s, x) if of_w else None, ctx.pattern.back(w, s) if of_x else None, None
