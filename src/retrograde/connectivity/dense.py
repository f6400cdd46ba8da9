"""W as a full matrix."""

from __future__ import annotations

from torch import Tensor, nn

from retrograde.checks import check_finite, check_floating, check_like
from retrograde.connectivity.base import Connectivity, Operator, as_parameter


class Dense(Connectivity):
    """A full matrix, every entry trained.

    Args:
        weight: (n_out, n_in). A Parameter is shared, any other tensor is copied.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not a matrix, or NaN or infinity in it.

    >>> import torch
    >>> W = Dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> W @ torch.tensor([1.0, 0.0])
    tensor([0., 3.], grad_fn=...)
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        check_floating("weight", weight)
        check_like("weight", weight, like=weight)  # that it is not a sparse layout
        if weight.ndim != 2:
            raise ValueError(f"weight: expected a matrix (n_out, n_in), got shape {tuple(weight.shape)}")
        check_finite("weight", weight)
        self.weight: nn.Parameter = as_parameter(weight)
        self._shape = (weight.shape[0], weight.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self._shape

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The matrix."""
        return (self.weight,)

    def bind(self, *weights: Tensor) -> Operator:
        """The operator with this matrix; ValueError where one of another shape has taken the weight's place."""
        W = super().bind(*weights)
        if W.weights[0].shape != self._shape:
            raise ValueError(f"W: expected shape {self._shape}, as it was made, got {tuple(W.weights[0].shape)}")
        return W

    def product(self, x: Tensor, *weights: Tensor) -> Tensor:
        """W x, a matrix product."""
        (weight,) = weights
        return x @ weight.T

    def transposed_product(self, s: Tensor, *weights: Tensor) -> Tensor:
        """Wᵀ s, a matrix product."""
        (weight,) = weights
        return s @ weight

    def outer_product(self, s: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """The sum over samples of s xᵀ, one matrix product."""
        return (s.T @ x,)
