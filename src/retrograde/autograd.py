"""The one autograd Function: what was solved for outside autograd, given its derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrograde.transforms import batched, one_level_down, precisely, transformed

Tensors = tuple[Any, ...]  # of Tensor or None


class Rule(ABC):
    """How an x that solves an equation follows the inputs of that equation: its derivatives.

    ``pull`` and ``push`` are differentiable themselves, and so give derivatives of every order: they are made of torch
    operations, of x attached to its inputs again, and of further solutions that are attached likewise.
    """

    @abstractmethod
    def pull(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        """dR/d inputs from g = dR/dx: one for each input that is needed, None for the others."""

    @abstractmethod
    def push(self, x: Tensor, inputs: Tensors, tangents: Tensors) -> Tensor:
        """How x moves where the inputs move by the tangents, of which None is 0."""

    def gradients(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        """The numbers of `pull`, where no further derivative is asked for: the place for a faster way to them."""
        return self.pull(x, inputs, g, needed)


def attach(x: Tensor, rule: Rule, inputs: Tensors, value: Tensor | None = None) -> Tensor:
    """x, solved for outside autograd, as a differentiable function of its inputs.

    A derivative asks `rule`, with the numbers of the forward, and raises where inputs were overwritten since. Given a
    `value`, read from x, that is what comes back in place of x.
    """
    function = _Transformed if transformed() else _Attach
    return function.apply(x, value, rule, *inputs)


class _Attach(torch.autograd.Function):
    """Forward the identity, backward the rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor | None, rule: Rule, *inputs: Tensor | None) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(x, *inputs)
        return x.view_as(x) if value is None else value.view_as(value)

    @staticmethod
    @precisely
    @batched
    def backward(ctx: Any, g: Tensor) -> Tensors:
        x, *inputs = ctx.saved_tensors
        again = torch.is_grad_enabled() or transformed()  # with create_graph, say, or in a batch of backwards
        answer = (ctx.rule.pull if again else ctx.rule.gradients)(x, tuple(inputs), g, ctx.needs_input_grad[3:])
        return None, None, None, *answer


class _Transformed(_Attach):
    """The same as torch's transforms want it. Its apply costs 10 to 30 µs more, so that it serves them alone."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        x, value, *_ = args
        return (x if value is None else value).clone()  # forward mode takes no view

    @staticmethod
    def setup_context(ctx: Any, inputs: Tensors, output: Tensor) -> None:
        x, _, ctx.rule, *others = inputs
        ctx.save_for_backward(x, *others)
        ctx.save_for_forward(x, *others)

    @staticmethod
    @precisely
    @one_level_down
    @batched
    def jvp(ctx: Any, saved: Tensors, *tangents: Any) -> Tensor:
        x, *inputs = saved
        return ctx.rule.push(x, tuple(inputs), tangents[3:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        x, value, rule, *inputs = (
            arg if dim is None else arg.movedim(dim, 0) for arg, dim in zip(args, in_dims, strict=True)
        )
        first = [None if dim is None else 0 for dim in in_dims]
        mapped = _Mapped(rule, first[0], tuple(first[3:]))
        if (first[0] if value is None else first[1]) is None:
            value = x if value is None else value
            value = value.expand(info.batch_size, *value.shape)
        return _Transformed.apply(x, value, mapped, *inputs), 0


@dataclass(frozen=True, eq=False)
class _Mapped(Rule):
    """A rule for all slices of a torch.vmap at once; those of x and of the inputs lie along axis 0, or are None."""

    rule: Rule
    x: int | None
    inputs: tuple[int | None, ...]

    def pull(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        given: list[bool] = []  # which inputs have a gradient, as vmap takes no None

        def one(x: Tensor, g: Tensor, *inputs: Tensor | None) -> tuple[Tensor, ...]:
            answer = self.rule.pull(x, inputs, g, needed)
            given.extend(each is not None for each in answer)
            return tuple(each for each in answer if each is not None)

        answer = iter(torch.func.vmap(one, (self.x, 0, *self.inputs))(x, g, *inputs))
        found = [next(answer) if each else None for each in given]
        shared = (dim is None for dim in self.inputs)
        return tuple(d.sum(0) if d is not None and each else d for d, each in zip(found, shared, strict=True))

    def push(self, x: Tensor, inputs: Tensors, tangents: Tensors) -> Tensor:
        count = len(inputs)
        dims = (None if d is None else dim for d, dim in zip(tangents, self.inputs, strict=True))

        def one(x: Tensor, *both: Any) -> Tensor:
            return self.rule.push(x, both[:count], both[count:])

        return torch.func.vmap(one, (self.x, *self.inputs, *dims))(x, *inputs, *tangents)
