"""W: what every connectivity does, whatever its structure.

A `Connectivity` owns its weights, as a module owns its parameters. An `Operator` is the matrix itself: the same
structure with one set of weights taken in hand, so that a whole solve, and its backward, see the same numbers and a
parametrised weight is computed once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from retrograde.checks import check_last_axis, check_like
from retrograde.transforms import transformed


class Connectivity(nn.Module, ABC):
    """W, a linear map on the last axis: ``W[i, j]`` is the connection from neuron j to neuron i.

    A structure gives ``shape``, ``weights`` and ``product``; it may give ``transposed_product`` and ``outer_product``
    where it knows something faster than automatic differentiation. The three are functions of the weights, on one axis
    of samples. `retrograde.testing.check_connectivity` tests all of it against the dense matrix.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""

    @property
    @abstractmethod
    def weights(self) -> tuple[Tensor, ...]:
        """The tensors a gradient is taken in."""

    @abstractmethod
    def product(self, x: Tensor, *weights: Tensor) -> Tensor:
        """W x for each sample: (samples, n_in) -> (samples, n_out)."""

    def transposed_product(self, s: Tensor, *weights: Tensor) -> Tensor:
        """Wᵀ s for each sample: (samples, n_out) -> (samples, n_in). By default d<s, Wx>/dx."""
        x = s.new_zeros(len(s), self.shape[1])
        if torch.is_grad_enabled() or transformed():  # differentiable in turn
            return torch.func.vjp(lambda x: self.product(x, *weights), x)[1](s)[0]
        with torch.enable_grad():
            x.requires_grad_()
            return torch.autograd.grad(self.product(x, *weights), x, s)[0]

    def transposed_products(self, *weights: Tensor) -> Callable[[Tensor], Tensor]:
        """s -> Wᵀ s, for many s outside autograd: what they all need of the weights is made once."""
        return lambda s: self.transposed_product(s, *weights)

    def outer_product(self, s: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """The sum over samples of d<s, Wx>/d weights, one tensor a weight. By default automatic differentiation."""
        if torch.is_grad_enabled() or transformed():
            return torch.func.vjp(lambda *w: self.product(x, *w), *weights)[1](s)
        with torch.enable_grad():
            leaves = tuple(w.detach().requires_grad_() for w in weights)
            return torch.autograd.grad(self.product(x, *leaves), leaves, s)

    def entries(self, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(post, pre, weight), each with one axis: the entries that W may have. By default all of them."""
        W = self.bind(*weights).dense()
        post, pre = torch.meshgrid(*(torch.arange(n, device=W.device) for n in self.shape), indexing="ij")
        return post.flatten(), pre.flatten(), W.flatten()

    # What follows is the same for every structure.

    def bind(self, *weights: Tensor) -> Operator:
        """The operator with these weights (by default its own), one for each of ``self.weights``."""
        return Operator(self, weights or self.weights)

    def __matmul__(self, x: Tensor) -> Tensor:
        """W @ x on the last axis, (..., n_in) -> (..., n_out)."""
        return self.bind() @ x

    @property
    def T(self) -> Transposed:
        """Wᵀ: ``W.T @ s`` maps (..., n_out) to (..., n_in). A view; nothing is copied."""
        return self.bind().T

    def outer(self, s: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """The sensitivity lemma, dR/dW_ij = dR/db_i x_j: the sum over all leading axes of s xᵀ, in each weight's terms.

        Args:
            s: dR/db, (..., n_out).
            x: the input of W, (..., n_in), with the same leading axes.

        Returns:
            d<s, Wx>/d weights, a tensor for each of ``weights``.
        """
        return self.bind().outer(s, x)

    def dense(self) -> Tensor:
        """W as a matrix, (n_out, n_in): for small n, tests and pictures."""
        return self.bind().dense()

    def extra_repr(self) -> str:
        """The shape, where a module prints."""
        return f"shape={self.shape}"


@dataclass(frozen=True, eq=False)
class Operator:
    """A connectivity with its weights in hand: its ``@``, ``T``, ``outer``, ``dense``, ``entries`` and ``shape``."""

    structure: Connectivity
    weights: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self.structure.shape

    @property
    def like(self) -> Tensor:
        """A tensor that has the dtype and the device of W."""
        return self.weights[0]

    def bind(self, *weights: Tensor) -> Operator:
        """The operator of the same structure with these weights; without any, itself."""
        return Operator(self.structure, weights) if weights else self

    def __matmul__(self, x: Tensor) -> Tensor:
        """W @ x on the last axis."""
        rows = self._samples("x", x, self.shape[1])
        return self.structure.product(rows, *self.weights).reshape(*x.shape[:-1], self.shape[0])

    @property
    def T(self) -> Transposed:
        """Wᵀ, a view."""
        return Transposed(self)

    def held(self) -> Operator:
        """The same for a solve, in which the weights stay what they are."""
        return _Held(self.structure, self.weights)

    def _transposed_product(self, s: Tensor) -> Tensor:
        return self.structure.transposed_product(s, *self.weights)

    def outer(self, s: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """The sum over all leading axes of s xᵀ, projected on the weights."""
        if s.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"s and x: expected the same leading axes, got {tuple(s.shape)} and {tuple(x.shape)}")
        rows = self._samples("s", s, self.shape[0]), self._samples("x", x, self.shape[1])
        return self.structure.outer_product(*rows, *self.weights)

    def dense(self) -> Tensor:
        """W as a matrix, (n_out, n_in)."""
        return (self @ torch.eye(self.shape[1], dtype=self.like.dtype, device=self.like.device)).T

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """(post, pre, weight), each with one axis: the entries that W may have."""
        return self.structure.entries(*self.weights)

    def _samples(self, name: str, x: Tensor, n: int) -> Tensor:
        """x with all its leading axes made one."""
        check_last_axis(name, check_like(name, x, self.like), n)
        return x if x.ndim == 2 else x.reshape(x.shape[:-1].numel(), n)


class _Held(Operator):
    """Weights that are put in the order that Wᵀ takes but once."""

    @cached_property
    def _in_order(self) -> Callable[[Tensor], Tensor]:
        return self.structure.transposed_products(*(weight.detach() for weight in self.weights))

    def held(self) -> Operator:
        return self

    def _transposed_product(self, s: Tensor) -> Tensor:
        differentiated = torch.is_grad_enabled() or transformed()
        return super()._transposed_product(s) if differentiated else self._in_order(s)


@dataclass(frozen=True, eq=False)
class Transposed:
    """Wᵀ, as `Connectivity.T` gives it."""

    operator: Operator

    @property
    def shape(self) -> tuple[int, int]:
        """(n_in, n_out)."""
        n_out, n_in = self.operator.shape
        return n_in, n_out

    @property
    def T(self) -> Operator:
        """W again."""
        return self.operator

    def __matmul__(self, s: Tensor) -> Tensor:
        """Wᵀ @ s on the last axis."""
        W = self.operator
        rows = W._samples("s", s, W.shape[0])
        return W._transposed_product(rows).reshape(*s.shape[:-1], W.shape[1])

    def dense(self) -> Tensor:
        """Wᵀ as a matrix."""
        return self.operator.dense().T


def as_parameter(value: Tensor) -> nn.Parameter:
    """A Parameter as it is, so that it is shared; any other tensor copied into a new one."""
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())
