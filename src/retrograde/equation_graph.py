"""The autograd graph of fn at an x: products with its Jacobian, and the gradient in all that fn depends on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from retrograde.equation import Equation


class NoTangent(ValueError):
    """Torch has no products Jv for an fn."""


class Graph:
    """The autograd graph of fn at x, cut off from what x and the inputs came from.

    Attributes:
        captured: what fn depends on beside x and the inputs: the leaves, such as Parameters, that autograd knows of.
    """

    def __init__(self, equation: Equation, x: Tensor):
        with torch.enable_grad():
            self.x = x.detach().requires_grad_()
            inputs = tuple(cut(each) for each in equation.inputs)
            y = replace(equation, inputs=inputs)(self.x)
            self.y = y.view_as(y)  # so that there is a graph even if fn hands back what it was given
        self.equation = equation
        self._once: list[RuntimeError] = []  # why there are no second derivatives
        self._given, self._inputs = inputs, differentiated(inputs)
        own = {id(each) for each in (self.x, *self._inputs)}
        leaves = _leaves(self.y)
        self.captured = [leaf for leaf in leaves if id(leaf) not in own]
        if not any(leaf is self.x for leaf in leaves):
            _check_constant(equation, self.x, self.y)

    def take(self, rows: Tensor) -> Graph:
        """The graph of these samples, made anew."""
        if self.equation.coupled:
            return self
        fewer = Graph(self.equation.take(rows), self.x.detach()[rows])
        self.check_same(fewer.y, rows)
        return fewer

    def check_same(self, y: Tensor, rows: Tensor) -> None:
        """Raise if y, which is fn evaluated again at the x of these samples, is not what it was."""
        y, before = self.equation.rows(y.detach()), self.equation.rows(self.y.detach())[rows]
        allowed = math.sqrt(torch.finfo(y.dtype).eps) * torch.linalg.vector_norm(before, dim=-1)
        if (torch.linalg.vector_norm(y - before, dim=-1) > allowed).any():
            raise RuntimeError(
                "fn: expected the same value at the same x again. Between forward and backward its mode, its random "
                "numbers, autocast or what it closes over has changed; or it mixes samples, which takes "
                "Equilibrium(fn, coupled=True)"
            )

    def transposed(self, l: Tensor) -> Tensor:
        """Jᵀl, as rows."""
        return self.equation.rows(self._pull(l, [self.x])[0])

    def jacobian(self) -> Tensor:
        """J, as one matrix for each row, (rows, n, n), by one vector-Jacobian product a row of it."""
        rows, n = self.equation.rows(self.x.detach()).shape
        return torch.stack([self.transposed(e.expand(rows, -1)) for e in torch.eye(n).to(self.x.detach())], dim=1)

    def moved(self, v: Tensor) -> Tensor:
        """Jv, as rows: the transpose of the transpose, or by forward mode where fn has no second derivatives.

        The transpose is made once, and no product with it takes a step of fn, as one by forward mode does.
        """
        v = v.reshape(self.x.shape)
        if not self._once:
            try:
                return self.equation.rows(self._moved(v))
            except RuntimeError as error:
                self._once = [error]
        try:
            with torch.no_grad():
                return self.equation.rows(self.equation.pushed(self.x.detach(), v)[1])
        except RuntimeError as error:
            raise NoTangent(
                "fn: expected products Jv with its Jacobian, and torch has neither forward mode for it nor second "
                f"derivatives ({str(self._once[0]).splitlines()[0]}). FixedPoint, Anderson, Newton and Direct need none"
            ) from error

    def _moved(self, v: Tensor) -> Tensor:
        u, Ju = self._transpose
        if not Ju.requires_grad:
            return torch.zeros_like(v)
        return torch.autograd.grad(Ju, u, v, retain_graph=True, allow_unused=True, materialize_grads=True)[0]

    @cached_property
    def _transpose(self) -> tuple[Tensor, Tensor]:
        """u = 0 and Jᵀu, of which the derivative is Jᵀ."""
        u = torch.zeros_like(self.y, requires_grad=True)
        if not self.y.requires_grad:
            return u, u.detach()
        how = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        with torch.enable_grad():
            Ju = torch.autograd.grad(self.y, self.x, u, **how)[0]
        check_twice(Ju)
        return u, Ju

    def swayed(self) -> Tensor:
        """(d fn/dθ) v, as rows, for a random direction v of all θ that the gradient is taken in, always the same."""
        sources = [each for each in (*self._inputs, *self.captured) if each.is_floating_point()]
        u = torch.zeros_like(self.y, requires_grad=True)
        if not self.y.requires_grad or not sources:
            return self.equation.rows(u.detach())
        own = {id(each) for each, own in zip(self._given, self.equation.sampled, strict=False) if own}
        random, along = torch.Generator().manual_seed(0), u.new_zeros(())
        try:
            with torch.enable_grad():
                pulled = torch.autograd.grad(
                    self.y, sources, u, create_graph=True, allow_unused=True, materialize_grads=True
                )
                for each, part in zip(sources, pulled, strict=True):
                    shape = each.shape[1:] if id(each) in own else each.shape  # no sample depends on its batch
                    along = along + (part * torch.randn(shape, generator=random, dtype=torch.float64).to(part)).sum()
                (moved,) = torch.autograd.grad(along, u, allow_unused=True, materialize_grads=True)
        except RuntimeError:  # no second derivatives
            moved = torch.zeros_like(u)
        return self.equation.rows(moved.detach())

    def gradients(self, l: Tensor) -> tuple[Tensor, ...]:
        """(d fn/dθ)ᵀl for the inputs that are differentiated and for what is captured."""
        return self._pull(l, [*self._inputs, *self.captured])

    def _pull(self, l: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
        if not self.y.requires_grad:
            return tuple(torch.zeros_like(each) for each in wanted)
        return torch.autograd.grad(
            self.y, wanted, l.reshape(self.y.shape), retain_graph=True, allow_unused=True, materialize_grads=True
        )


def cut(each: Any) -> Any:
    """An input without its history, a leaf if it is to be differentiated."""
    return each.detach().requires_grad_(each.requires_grad) if isinstance(each, Tensor) else each


def differentiated(inputs: tuple[Any, ...]) -> list[Tensor]:
    """Those of the inputs that a gradient is taken in."""
    return [each for each in inputs if isinstance(each, Tensor) and each.requires_grad]


def check_twice(pulled: Tensor) -> None:
    """Raise a RuntimeError if a function on the way to this gradient is marked as once differentiable.

    ``torch.autograd.grad`` would leave out what lies behind it, without a word.
    """
    if any(type(node).__name__ == "Error" for node in _nodes(pulled)):
        raise RuntimeError("fn: a function in it has no second derivatives, as it is marked as once_differentiable")


def _nodes(y: Tensor) -> Iterator[Any]:
    """The nodes of y's graph, each once."""
    seen, stack = set(), [y.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(parent for parent, _ in node.next_functions)


def _leaves(y: Tensor) -> list[Tensor]:
    """The leaves of y's graph, each once, in the order they are met."""
    return [node.variable for node in _nodes(y) if type(node).__name__ == "AccumulateGrad"]


def _check_constant(equation: Equation, x: Tensor, y: Tensor) -> None:
    """Autograd sees no x in y: raise if y depends on it all the same."""
    with torch.no_grad():
        moved = equation(1.5 * x.detach() + 0.5)
    if x.numel() and not torch.equal(moved, y.detach()):
        raise ValueError(
            "fn: it depends on x, but autograd does not see how; expected no detach, no no_grad and no NumPy between"
        )
