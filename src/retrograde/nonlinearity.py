"""f, elementwise: its value, its slope and its inverse.

The slope is a function of the *output* x = f(u) wherever that is possible, so that a solver stores x and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.transforms import followed, transformed


class Nonlinearity(ABC):
    """x = f(u), one number at a time. Subclasses are frozen dataclasses, so they compare, print and copy well.

    A subclass gives ``__call__``, ``slope`` and ``inverse``, and is tested by `retrograde.testing.check_nonlinearity`.
    """

    slope_from_output = True
    """Whether f'(u) is a function of f(u). Where it is not, only ``slope_at`` works."""

    kinked = False
    """Whether the slope jumps as a function of the output: where rounding then decides, x is stepped once more."""

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """x = f(u)."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """f'(u) as a function of the output x = f(u): the diagonal of D."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Tensor:
        """u = f⁻¹(x).

        Raises:
            ValueError: naming how many entries of x lie outside the range of f.
        """

    def slope_at(self, u: Tensor) -> Tensor:
        """f'(u) as a function of the input."""
        return self.slope(self(u))

    def check_elementwise(self, n: int, like: Tensor) -> None:
        """Raise ValueError where f is not an elementwise function without parameters of its own."""
        return  # the named functions are elementwise by construction; `Pointwise` looks


def _check_range(inside: Tensor, f: str, interval: str) -> None:
    outside = int((~inside).sum())
    if outside:
        raise ValueError(
            f"x: {outside} of {inside.numel()} entries lie outside the range of {f}, {interval}; no input gives them"
        )


@dataclass(frozen=True)
class Tanh(Nonlinearity):
    """x = tanh(u), f' = 1 - x², u = artanh(x).

    >>> f = Tanh()
    >>> f.slope(f(torch.tensor(0.0)))
    tensor(1.)
    """

    def __call__(self, u: Tensor) -> Tensor:
        """x = tanh(u)."""
        return torch.tanh(u)

    def slope(self, x: Tensor) -> Tensor:
        """f' = 1 - x²."""
        return 1 - x * x

    def inverse(self, x: Tensor) -> Tensor:
        """u = artanh(x); ValueError outside (-1, 1)."""
        _check_range(x.abs() < 1, "tanh", "(-1, 1)")
        return torch.atanh(x)


@dataclass(frozen=True)
class Sigmoid(Nonlinearity):
    """x = 1 / (1 + exp(-u)), f' = x (1 - x), u = log(x / (1 - x))."""

    def __call__(self, u: Tensor) -> Tensor:
        """x = 1 / (1 + exp(-u))."""
        if followed(u):
            return torch.sigmoid(u)
        # Of exp and log1p the bits do not depend on where in memory a number lies, as sigmoid's and logaddexp's do.
        e = torch.exp(-u.abs())
        x = 1 / (1 + e)
        return torch.where(u < 0, e * x, x)

    def slope(self, x: Tensor) -> Tensor:
        """f' = x (1 - x)."""
        return x * (1 - x)

    def inverse(self, x: Tensor) -> Tensor:
        """u = log(x / (1 - x)); ValueError outside (0, 1)."""
        _check_range((x > 0) & (x < 1), "sigmoid", "(0, 1)")
        return torch.logit(x)


@dataclass(frozen=True)
class ReLU(Nonlinearity):
    """x = max(u, 0), f' = 1 where x > 0, else 0 (at the kink too). Of the inputs that give 0, the inverse is 0."""

    kinked = True

    def __call__(self, u: Tensor) -> Tensor:
        """x = max(u, 0)."""
        return torch.relu(u)

    def slope(self, x: Tensor) -> Tensor:
        """f' = 1 where x > 0, else 0."""
        return (x > 0).to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        """u = x, the largest input that gives x; ValueError below 0."""
        _check_range(x >= 0, "relu", "[0, ∞)")
        return x.clone()


@dataclass(frozen=True)
class Softplus(Nonlinearity):
    """x = log(1 + exp(u)), f' = 1 - exp(-x), u = x + log(1 - exp(-x))."""

    def __call__(self, u: Tensor) -> Tensor:
        """x = log(1 + exp(u))."""
        # Not torch's softplus, which is the identity beyond a threshold.
        if not followed(u):
            return torch.log1p(torch.exp(-u.abs())) + u.clamp(min=0)
        return torch.logaddexp(u, torch.zeros_like(u))

    def slope(self, x: Tensor) -> Tensor:
        """f' = 1 - exp(-x)."""
        return -torch.expm1(-x)

    def inverse(self, x: Tensor) -> Tensor:
        """u = x + log(1 - exp(-x)); ValueError at 0 and below."""
        _check_range(x > 0, "softplus", "(0, ∞)")
        return x + torch.log(-torch.expm1(-x))


@dataclass(frozen=True)
class Identity(Nonlinearity):
    """x = u: the linear network."""

    def __call__(self, u: Tensor) -> Tensor:
        """x = u."""
        return u

    def slope(self, x: Tensor) -> Tensor:
        """f' = 1."""
        return torch.ones_like(x)

    def inverse(self, x: Tensor) -> Tensor:
        """u = x; ValueError where x is not finite."""
        _check_range(x.isfinite(), "identity", "(-∞, ∞)")
        return x


@dataclass(frozen=True)
class Pointwise(Nonlinearity):
    """Any elementwise torch function without parameters of its own.

    Its slope is in general not a function of its output (sin has two slopes for each value), so it is taken from the
    input u by automatic differentiation.

    Args:
        fn: an elementwise function of a tensor, made of differentiable torch operations.
        inverse_fn: its inverse, if `inverse` will be asked for.

    >>> f = Pointwise(torch.sin)
    >>> f.slope_at(torch.tensor([0.0, torch.pi]))
    tensor([ 1., -1.])
    """

    fn: Callable[[Tensor], Tensor]
    inverse_fn: Callable[[Tensor], Tensor] | None = None

    slope_from_output = False

    def __call__(self, u: Tensor) -> Tensor:
        """x = fn(u)."""
        x = self.fn(u)
        if not isinstance(x, Tensor) or x.shape != u.shape or x.dtype != u.dtype:
            raise ValueError(
                f"f: an elementwise function keeps shape and dtype; {self._name} made {tuple(u.shape)} {u.dtype} "
                + (f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__)
            )
        return x

    def slope(self, x: Tensor) -> Tensor:
        """Not known from the output: raises ValueError. Use `slope_at`."""
        raise ValueError(
            f"f: the slope of {self._name} is not a function of its output x; use slope_at(u), with u = Wx + b"
        )

    def slope_at(self, u: Tensor) -> Tensor:
        """f'(u), by automatic differentiation."""
        if transformed():
            return torch.func.vjp(self, u)[1](torch.ones_like(u))[0]
        graph = torch.is_grad_enabled() and u.requires_grad  # whether the slope is to be differentiated in turn
        with torch.enable_grad():
            u = u if graph else u.detach().requires_grad_()
            x = self(u)
            if not x.requires_grad:  # a step, or a constant: flat wherever it is differentiable
                return torch.zeros_like(u)
            return torch.autograd.grad(x.sum(), u, create_graph=graph, allow_unused=True, materialize_grads=True)[0]

    def inverse(self, x: Tensor) -> Tensor:
        """u = inverse_fn(x), checked: ValueError where fn(u) is not x."""
        if self.inverse_fn is None:
            raise ValueError(f"f: no inverse of {self._name} is known; give Pointwise(fn, inverse_fn)")
        u = self.inverse_fn(x)
        scale = x.detach().abs().clamp(min=1)
        _check_range(
            (self.fn(u) - x).detach().abs() <= torch.finfo(x.dtype).eps ** 0.5 * scale,
            self._name,
            "as its inverse_fn knows it",
        )
        return u

    def check_elementwise(self, n: int, like: Tensor) -> None:
        """Raise ValueError where fn mixes entries, or holds trainable tensors that no gradient would reach."""
        with torch.enable_grad():
            u = torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device)
            x = self(u)
            if x.requires_grad:
                raise ValueError(f"f: {self._name} holds tensors that require a gradient, which would not reach them")
            for moving, still in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
                moved = u.clone()
                moved[moving] += 0.5
                # NaN, where fn is not defined, is the same NaN.
                if not torch.equal(self(moved)[still].nan_to_num(), x[still].nan_to_num()):
                    raise ValueError(
                        f"f: {self._name} is not elementwise: an entry of f(u) depends on other entries of u"
                    )

    @property
    def _name(self) -> str:
        return getattr(self.fn, "__name__", type(self.fn).__name__)


_BY_NAME: dict[str, type[Nonlinearity]] = {
    "tanh": Tanh,
    "sigmoid": Sigmoid,
    "relu": ReLU,
    "softplus": Softplus,
    "identity": Identity,
}


def as_nonlinearity(f: str | Nonlinearity) -> Nonlinearity:
    """The nonlinearity of that name, or the one given.

    Raises:
        ValueError: a name that is not known.
        TypeError: neither a name nor a Nonlinearity.
    """
    if isinstance(f, Nonlinearity):
        return f
    if isinstance(f, str):
        if f in _BY_NAME:
            return _BY_NAME[f]()
        raise ValueError(f"f: expected one of {', '.join(_BY_NAME)} or a Nonlinearity, got {f!r}")
    hint = "; wrap a function as Pointwise(fn)" if callable(f) else ""
    raise TypeError(f"f: expected a name or a Nonlinearity, got {type(f).__name__}{hint}")
