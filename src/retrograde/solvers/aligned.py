"""Rows filled up with zeros, so that what is computed of each has the same bits in any batch.

On the CPU, BLAS and LAPACK take sums in another order where a row does not begin at a multiple of 16 bytes. That was
found by trying, with torch's MKL: products and factors of one sample, in batches of one to twelve.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BYTES = 16


def filled(n: int, like: Tensor) -> int:
    """How long rows of n numbers are then, in the dtype and on the device of `like`."""
    whole = max(1, _BYTES // like.dtype.itemsize) if like.device.type == "cpu" else 1
    return n + -n % whole


def fill(z: Tensor, n: int) -> Tensor:
    """z with rows of n numbers, the last of which are 0."""
    return z if z.shape[-1] == n else torch.nn.functional.pad(z, (0, n - z.shape[-1]))
