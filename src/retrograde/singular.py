"""The extreme singular values of A, which is I - DW or I - J, by products and solves."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_LARGEST_STEPS = 12


class Spectrum(NamedTuple):
    """The smallest and the largest singular value, for each sample."""

    smallest: Tensor
    largest: Tensor


class Maps(NamedTuple):
    """A v, Aᵀv, A⁻¹v and A⁻ᵀv for samples v, (samples, n)."""

    A: Callable[[Tensor], Tensor]
    transposed: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    inverse_transposed: Callable[[Tensor], Tensor]


def extreme_values(of: Maps, like: Tensor, smallest_steps: int) -> Spectrum:
    """By the power method, with AᵀA and with its inverse: it finds none larger, and none smaller, than there are."""

    def unit(v: Tensor) -> Tensor:
        return v / _norm(v)[:, None]

    generator = torch.Generator().manual_seed(0)  # the same start for all samples, so that none depends on its batch
    start = torch.randn(like.shape[1], generator=generator, dtype=torch.float64).to(like)
    v = unit(start.expand_as(like))
    for _ in range(_LARGEST_STEPS):
        v = unit(of.transposed(of.A(v)))
    largest = _norm(of.A(v))
    v = unit(start.expand_as(like))
    for _ in range(smallest_steps):
        v = unit(of.inverse_transposed(v))
        v = unit(of.inverse(v))
    smallest = _norm(of.A(v))
    return Spectrum(torch.where(smallest.isfinite(), smallest, 0), torch.where(largest.isfinite(), largest, torch.inf))


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=-1)
