"""The one autograd Function: what was solved for outside autograd, given its derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from retrograde.transforms import batched, transformed

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
    @batched
    def backward(ctx: Any, g: Tensor) -> Tensors:
        x, *inputs = ctx.saved_tensors
        again = torch.is_grad_enabled() or transformed()  # with create_graph, say, or in a batch of backwards
        answer = (ctx.rule.pull if again else ctx.rule.gradients)(x, tuple(inputs), g, ctx.needs_input_grad[3:])
        return None, None, None, *answer


class _Transformed(_Attach):
    """The same as torch's transforms want it. Its apply costs 10 to 30 µs more, so that it serves them alone."""

    generate_vmap_rule = True

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
    @batched
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, *inputs = ctx.saved_tensors
        return ctx.rule.push(x, tuple(inputs), tangents[3:])
