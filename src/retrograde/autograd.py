"""The one autograd Function: what was solved for outside autograd, given its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retrograde.recurrence import Recurrence
from retrograde.result import Gradients, Inputs, Wants


def attach(
    x: Tensor, gradients: Callable[..., Gradients], net: Recurrence, inputs: Inputs, value: Tensor | None = None
) -> Tensor:
    """x, solved for outside autograd, as a differentiable function of the weights, the inputs and the leak.

    A backward calls ``gradients(net, x, inputs, g, wants)`` with the numbers of the forward, and raises where weights
    were overwritten since. Given a `value`, read from x, that is what comes back in place of x.
    """
    W, leak = net.W.bind(), net.leak
    fixed, trained = (None, leak) if isinstance(leak, Tensor) else (leak, None)
    net = replace(net, W=W.structure, leak=fixed)
    return _Attach.apply(x, value, net, gradients, *inputs, trained, *W.weights)


class _Attach(torch.autograd.Function):
    """Forward the identity, backward the adjoint."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        value: Tensor | None,
        net: Recurrence,
        gradients: Callable[..., Gradients],
        b: Tensor | None,
        bias: Tensor | None,
        x0: Tensor | None,
        leak: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        ctx.net, ctx.gradients = net, gradients
        ctx.save_for_backward(x, b, bias, x0, leak, *weights)
        return x.view_as(x) if value is None else value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, b, bias, x0, leak, *weights = ctx.saved_tensors
        net = replace(ctx.net, W=ctx.net.W.bind(*weights), leak=ctx.net.leak if leak is None else leak)
        needed = ctx.needs_input_grad
        wants = Wants(s=needed[4], db=needed[5], dx0=needed[6], dW=any(needed[8:]))
        with torch.no_grad():
            found = ctx.gradients(net, x, Inputs(b, bias, x0), g, wants)
        answer: tuple[Tensor | None, ...] = (
            found.s.sum_to_size(b.shape) if wants.s else None,
            found.db if wants.db else None,
            found.dx0 if wants.dx0 else None,
            found.dleak if leak is not None else None,
            *(found.dW if wants.dW else (None,) * len(weights)),
        )
        if torch.is_grad_enabled():  # the caller asked for create_graph
            sources = [t for t in (g, b, bias, x0, leak, *weights) if t is not None and t.requires_grad]
            answer = tuple(None if d is None else _NoSecondDerivative.apply(d, *sources) for d in answer)
        return None, None, None, None, *answer


class _NoSecondDerivative(torch.autograd.Function):
    """The identity, of which a derivative is refused rather than silently taken to be zero."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "second derivatives through a steady state or a trajectory are not available: this gradient was "
            "computed by its adjoint, which is not itself differentiable. For a small network, differentiate "
            "net.unfold(T) twice."
        )
