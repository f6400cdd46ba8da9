"""W = U Vᵀ."""

from __future__ import annotations

from torch import Tensor, nn

from retrograde.checks import check_finite, check_floating, check_like
from retrograde.connectivity.base import Connectivity, as_parameter


class LowRank(Connectivity):
    """W = U Vᵀ of rank r: r(n_out + n_in) weights, and products that cost as much.

    Args:
        U: (n_out, r).
        V: (n_in, r). Parameters are shared, other tensors are copied.

    Raises:
        TypeError: not floating-point tensors of one dtype.
        ValueError: not two matrices of equally many columns, or NaN or infinity in them.

    >>> import torch
    >>> LowRank(torch.ones(5, 2), torch.ones(4, 2)).shape
    (5, 4)
    """

    def __init__(self, U: Tensor, V: Tensor):
        super().__init__()
        check_like("U", U, check_floating("U", U))
        check_like("V", V, U)
        if U.ndim != 2 or V.ndim != 2 or U.shape[1] != V.shape[1]:
            raise ValueError(f"U and V: expected (n_out, r) and (n_in, r), got {tuple(U.shape)} and {tuple(V.shape)}")
        check_finite("U", U)
        check_finite("V", V)
        self.U: nn.Parameter = as_parameter(U)
        self.V: nn.Parameter = as_parameter(V)
        self._shape = (len(U), len(V))

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self._shape

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """U and V."""
        return self.U, self.V

    def product(self, x: Tensor, *weights: Tensor) -> Tensor:
        """U (Vᵀ x)."""
        U, V = weights
        return (x @ V) @ U.T

    def transposed_product(self, s: Tensor, *weights: Tensor) -> Tensor:
        """V (Uᵀ s)."""
        U, V = weights
        return (s @ U) @ V.T

    def outer_product(self, s: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """dU = s (Vᵀ x)ᵀ and dV = x (Uᵀ s)ᵀ, summed over samples."""
        U, V = weights
        return s.T @ (x @ V), x.T @ (s @ U)
