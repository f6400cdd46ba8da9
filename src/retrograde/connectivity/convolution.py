"""W as a convolution: the same few weights at every place of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight

from retrograde.checks import check_finite, check_floating
from retrograde.connectivity.base import Connectivity, as_parameter


class Convolution(Connectivity):
    """Neurons lie on a grid, in channels; each sees the neurons around it through one kernel.

    Neuron (c, p) of the grid is entry ``c * prod(grid) + p`` of x, p counted in row-major order. As in
    ``torch.nn.Conv1d`` and ``Conv2d``, the kernel is not flipped.

    Args:
        kernel: (channels_out, channels_in, k) on a line or (channels_out, channels_in, k1, k2) on a plane, k odd. A
            Parameter is shared, any other tensor is copied.
        grid: the size of the grid, (length,) or (height, width).
        padding: "circular" (the grid is a ring or a torus) or "zeros" (nothing lies beyond its edge).

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: a kernel of another shape or of even or too great width, or NaN or infinity in it.

    >>> import torch
    >>> ring = Convolution(torch.tensor([[[1.0, 0.0, 0.0]]]), grid=(4,))  # each neuron sees the one before it
    >>> ring @ torch.tensor([1.0, 0.0, 0.0, 0.0])
    tensor([0., 1., 0., 0.], grad_fn=...)
    """

    def __init__(self, kernel: Tensor, grid: Sequence[int], padding: Literal["circular", "zeros"] = "circular"):
        super().__init__()
        check_floating("kernel", kernel)
        grid = tuple(int(size) for size in grid)
        if len(grid) not in (1, 2) or min(grid) < 1:
            raise ValueError(f"grid: expected (length,) or (height, width), got {grid}")
        if kernel.ndim != 2 + len(grid) or 0 in kernel.shape:
            raise ValueError(
                f"kernel: expected shape (channels_out, channels_in, {', '.join('k' * len(grid))}) for grid {grid}, "
                f"got {tuple(kernel.shape)}"
            )
        widths = kernel.shape[2:]
        if any(k % 2 == 0 or k // 2 > size for k, size in zip(widths, grid, strict=True)):
            raise ValueError(
                f"kernel: expected odd widths that reach no further than the grid {grid}, got {tuple(widths)}"
            )
        if padding not in ("circular", "zeros"):
            raise ValueError(f"padding: expected 'circular' or 'zeros', got {padding!r}")
        check_finite("kernel", kernel)
        self.kernel: nn.Parameter = as_parameter(kernel)
        self.grid = grid
        self._shape = (kernel.shape[0] * prod(grid), kernel.shape[1] * prod(grid))
        self._around = [k // 2 for k in reversed(widths) for _ in range(2)]  # what is padded, as F.pad wants it
        self.padding = padding

    @property
    def shape(self) -> tuple[int, int]:
        """(channels_out * places, channels_in * places)."""
        return self._shape

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The kernel."""
        return (self.kernel,)

    def product(self, x: Tensor, *weights: Tensor) -> Tensor:
        """W x: the convolution."""
        (kernel,) = weights
        y = self._convolve(self._padded(x, kernel.shape[1]), kernel)
        return y.reshape(len(x), self.shape[0])

    def transposed_product(self, s: Tensor, *weights: Tensor) -> Tensor:
        """Wᵀ s: the convolution with the kernel turned round and its channels swapped, as its widths are odd."""
        (kernel,) = weights
        turned = kernel.flip(*range(2, kernel.ndim)).transpose(0, 1)
        y = self._convolve(self._padded(s, kernel.shape[0]), turned)
        return y.reshape(len(s), self.shape[1])

    def outer_product(self, s: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """d<s, Wx>/d kernel: the correlation of x with s, summed over places and samples."""
        (kernel,) = weights
        weight_gradient = conv1d_weight if len(self.grid) == 1 else conv2d_weight
        return (
            weight_gradient(
                self._padded(x, kernel.shape[1]), kernel.shape, s.reshape(len(s), kernel.shape[0], *self.grid)
            ),
        )

    def _padded(self, x: Tensor, channels: int) -> Tensor:
        mode = "circular" if self.padding == "circular" else "constant"
        return F.pad(x.reshape(len(x), channels, *self.grid), self._around, mode=mode)

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv1d(x, kernel) if len(self.grid) == 1 else F.conv2d(x, kernel)
