"""Whether a kernel stands in for the plain path, and which."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from retrograde.connectivity import Dense, Operator, Sparse
from retrograde.connectivity.low_rank import LowRank
from retrograde.kernels.threads import in_a_fork, is_much
from retrograde.nonlinearity import Identity, Nonlinearity, ReLU, Sigmoid, Softplus, Tanh

_PRODUCTS = (Dense.product, LowRank.product, Sparse.product)
_OUTER_PRODUCTS = (Dense.outer_product, Sparse.outer_product)

# Their numbers in kernels.cpu.functions. Where there is no f, the slopes are given.
_NUMBERS: dict[type[Nonlinearity], int] = {Tanh: 0, Sigmoid: 1, ReLU: 2, Softplus: 3, Identity: 4}
_SLOPES = -1

# So many connections are worth waiting for each other at each step: for one sample, and of a sparse W for any number.
LONE = 768**2

_AT_ONCE = 512**2


@cache
def cpu_kernels() -> Any:
    """`kernels.cpu`, imported where it is needed."""
    from retrograde.kernels import cpu  # and Numba, which takes a second

    return cpu


def why_plain(W: Operator, f: Nonlinearity | None) -> str | None:
    """Why no fused kernel serves this W and f, or None where one does."""
    if type(W.structure).product not in _PRODUCTS:  # a subclass may have its own
        return f"no kernel for {type(W.structure).__name__}"
    if f is not None and type(f) not in _NUMBERS:
        return f"no kernel for {f}"
    return why_not_here(W)


def why_not_here(W: Operator) -> str | None:
    """Why no kernel at all serves here, whatever the structure; None where they do."""
    return why_no_numbers(W.like)


def why_no_numbers(like: Tensor) -> str | None:
    """Why no kernel serves numbers of this dtype and device; None where they do."""
    if os.environ.get("RETROGRADE_PLAIN", "0").lower() not in ("", "0", "false"):
        return "RETROGRADE_PLAIN is set"
    if in_a_fork():
        return "no threads in a forked process"
    if like.device.type != "cpu":
        return f"no kernel on {like.device.type}"
    if like.dtype not in (torch.float32, torch.float64):
        return f"no kernel for {like.dtype}"
    return None


def number(f: Nonlinearity | None) -> int:
    """What `kernels.cpu.functions` knows f by."""
    return _SLOPES if f is None else _NUMBERS[type(f)]


def has_outer(W: Operator) -> bool:
    """Whether there is a kernel for `outer`; a subclass may have its own."""
    return type(W.structure).outer_product in _OUTER_PRODUCTS and why_not_here(W) is None


def has_outer_at_once(W: Operator, numbers: int) -> bool:
    """Whether a kernel that solves for so many numbers of s gives dR/dW in the same call; a subclass may have its own.

    Of a large W, what was packed is better let go of first: dR/dW then takes the memory that it leaves.
    """
    if type(W.structure).outer_product is not Dense.outer_product or torch_is_faster(W, numbers):
        return False
    return W.weights[0].numel() <= _AT_ONCE


def torch_is_faster(W: Operator, numbers: int) -> bool:
    """Whether torch's product is ahead of the tiles where dR/dW of a full W is summed over so many numbers of s.

    It is where the processor has no AVX-512, and there is enough to do.
    """
    return cpu_kernels().tiles.BYTES < 64 and is_much(numbers, W.shape[1])


def is_lone(W: Operator, samples: int) -> bool:
    """Whether the threads share each product with the one sample, and wait for each other."""
    enough = not isinstance(W.structure, LowRank) and W.weights[0].numel() >= LONE
    return samples == 1 and enough and torch.get_num_threads() > 1


def by_few(W: Operator, samples: int) -> bool:
    """Whether the samples of a trajectory go a few at a time, of which the threads share each product."""
    return samples > 1 and isinstance(W.structure, Sparse) and W.weights[0].numel() >= LONE


def is_large(W: Operator) -> bool:
    """Whether W is sparse, and its products so long that what steps are saved by is cheap beside them."""
    large = isinstance(W.structure, Sparse) and W.shape[0] == W.shape[1] and W.weights[0].numel() >= LONE
    return large and why_plain(W, None) is None
