"""The one autograd Function: what was solved for outside autograd, given its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retrograde.recurrence import Recurrence
from retrograde.result import Gradients


def attach(
    x: Tensor, gradients: Callable[..., Gradients], net: Recurrence, b: Tensor, x0: Tensor | None = None
) -> Tensor:
    """x, solved for outside autograd, as a differentiable function of the weights, b, x0 and the leak.

    A backward calls ``gradients(net, x, b, x0, g, wants_dW)`` with the numbers of the forward, and raises where weights
    were overwritten since.
    """
    W, leak = net.W.bind(), net.leak
    fixed, trained = (None, leak) if isinstance(leak, Tensor) else (leak, None)
    return _Attach.apply(x, replace(net, W=W.structure, leak=fixed), gradients, b, x0, trained, *W.weights)


class _Attach(torch.autograd.Function):
    """Forward the identity, backward the adjoint."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        net: Recurrence,
        gradients: Callable[..., Gradients],
        b: Tensor,
        x0: Tensor | None,
        leak: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        ctx.net, ctx.gradients = net, gradients
        ctx.save_for_backward(x, b, x0, leak, *weights)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, b, x0, leak, *weights = ctx.saved_tensors
        net = replace(ctx.net, W=ctx.net.W.bind(*weights), leak=ctx.net.leak if leak is None else leak)
        wants_dW = any(ctx.needs_input_grad[6:])
        with torch.no_grad():
            found = ctx.gradients(net, x, b, x0, g, wants_dW)
        answer: tuple[Tensor | None, ...] = (
            found.s.sum_to_size(b.shape),
            found.dx0 if x0 is not None else None,
            found.dleak if leak is not None else None,
            *(found.dW if wants_dW else (None,) * len(weights)),
        )
        if torch.is_grad_enabled():  # the caller asked for create_graph
            sources = [t for t in (g, b, x0, leak, *weights) if t is not None and t.requires_grad]
            answer = tuple(None if d is None else _NoSecondDerivative.apply(d, *sources) for d in answer)
        return None, None, None, *answer


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
