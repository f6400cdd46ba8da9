"""Products with a matrix of few entries, and at these entries alone, which torch can differentiate again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from retrograde.transforms import batched, one_level_down, transformed

with warnings.catch_warnings():  # torch calls its CSR layout a beta, once a process: said here, it is not said to users
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1), check_invariants=False)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which entries of W there are, by rows and by columns."""

    shape: tuple[int, int]
    row_starts: Tensor
    columns: Tensor
    column_starts: Tensor
    rows: Tensor
    order: Tensor

    def matrix(self, weight: Tensor, transposed: bool) -> Tensor:
        """W or Wᵀ as torch's CSR tensor, in a dtype that it multiplies."""
        weight = multipliable(weight)
        if transposed:
            return _csr(self.column_starts, self.rows, weight[self.order], (self.shape[1], self.shape[0]))
        return _csr(self.row_starts, self.columns, weight, self.shape)


def multipliable(t: Tensor) -> Tensor:
    """Half precision in float32 on the CPU, where torch has no sparse products of it."""
    half = t.dtype in (torch.float16, torch.bfloat16) and t.device.type == "cpu"
    return t.float() if half else t


# The two operations are each other's derivatives, so that any order of derivative stays on the pattern. Torch's own
# derivative of a sparse product is as large as the dense matrix.


def multiplied(weight: Tensor, x: Tensor, pattern: Pattern, transposed: bool) -> Tensor:
    """W x, or Wᵀ x, sample by sample."""
    differentiated = torch.is_grad_enabled() or transformed()  # a Function costs more than it needs otherwise
    return (_Product.apply if differentiated else _Product.forward)(weight, x, pattern, transposed)


def sampled(s: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    """The sum over samples of s xᵀ, at the entries that W has."""
    differentiated = torch.is_grad_enabled() or transformed()
    return (_Sampled.apply if differentiated else _Sampled.forward)(s, x, pattern)


class _Product(torch.autograd.Function):
    """`multiplied`, linear in the weight and in x."""

    @staticmethod
    def forward(weight: Tensor, x: Tensor, pattern: Pattern, transposed: bool) -> Tensor:
        return (pattern.matrix(weight, transposed) @ multipliable(x).T).T.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, x, ctx.pattern, ctx.transposed = inputs
        ctx.save_for_backward(weight, x)
        ctx.save_for_forward(weight, x)

    @staticmethod
    @batched
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        d_weight = d_x = None
        if ctx.needs_input_grad[0]:
            s, z = (x, g) if ctx.transposed else (g, x)
            d_weight = sampled(s, z, ctx.pattern)
        if ctx.needs_input_grad[1]:
            d_x = multiplied(weight, g, ctx.pattern, not ctx.transposed)
        return d_weight, d_x, None, None

    @staticmethod
    @one_level_down
    @batched
    def jvp(ctx: Any, saved: tuple[Tensor, Tensor], *tangents: Tensor | None) -> Tensor:
        weight, x = saved
        pairs = (tangents[0], x), (weight, tangents[1])
        return _sum(multiplied(w, z, ctx.pattern, ctx.transposed) for w, z in pairs if w is not None and z is not None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        weight, x, pattern, transposed = args
        if in_dims[0] is not None:
            return _slice_by_slice(multiplied, info, in_dims, args)
        x = x.movedim(in_dims[1], 0)  # one more axis of samples
        return multiplied(weight, x.flatten(0, 1), pattern, transposed).unflatten(0, x.shape[:2]), 0


class _Sampled(torch.autograd.Function):
    """`sampled`, linear in s and in x."""

    @staticmethod
    def forward(s: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
        empty = pattern.matrix(s.new_zeros(len(pattern.columns)), transposed=False)
        if len(s) == 0 or len(pattern.columns) == 0:
            return empty.values().to(s.dtype)
        s_wide, x_wide = multipliable(s), multipliable(x)
        return torch.sparse.sampled_addmm(empty, s_wide.T.contiguous(), x_wide.contiguous()).values().to(s.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, x, ctx.pattern = inputs
        ctx.save_for_backward(s, x)
        ctx.save_for_forward(s, x)

    @staticmethod
    @batched
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        s, x = ctx.saved_tensors
        return multiplied(g, x, ctx.pattern, False), multiplied(g, s, ctx.pattern, True), None

    @staticmethod
    @one_level_down
    @batched
    def jvp(ctx: Any, saved: tuple[Tensor, Tensor], *tangents: Tensor | None) -> Tensor:
        s, x = saved
        pairs = (tangents[0], x), (s, tangents[1])
        return _sum(sampled(a, b, ctx.pattern) for a, b in pairs if a is not None and b is not None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        return _slice_by_slice(sampled, info, in_dims, args)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(add, parts)


def _slice_by_slice(
    operation: Callable[..., Tensor], info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[Tensor, int]:
    """What torch.vmap asks for, where each slice is a sparse matrix of its own."""
    slices = (
        [arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)]
        for i in range(info.batch_size)
    )
    return torch.stack([operation(*each) for each in slices]), 0


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)
