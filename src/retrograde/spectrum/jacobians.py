"""The Jacobian of a network's dynamics at its steady states: DW, and with a leak (1-a) I + a DW."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retrograde.checks import check_finite, check_last_axis, check_like
from retrograde.recurrence import Recurrence
from retrograde.spectrum.first_order import Linear

if TYPE_CHECKING:
    from retrograde.network import Network


def equations_of(net: Network | Recurrence, input: Tensor | None) -> tuple[Recurrence, Tensor | None]:
    """The recurrence and its total input; None where no input was given."""
    if isinstance(net, Recurrence):
        W = net.W.bind()
        if input is not None:
            check_finite("input", check_last_axis("input", check_like("input", input, W.like), W.shape[0]))
        return replace(net, W=W), input
    if not isinstance(getattr(net, "recurrence", None), Recurrence):
        raise TypeError(f"net: expected a Network or a Recurrence, got {type(net).__name__}")
    return net.recurrence, None if input is None else net.total(input)


def cast_to(
    dtype: torch.dtype, net: Recurrence, x: Tensor, b: Tensor | None
) -> tuple[Recurrence, Tensor, Tensor | None]:
    """The same network and state in that dtype, connected with what was given by their history."""
    return net.to(dtype), x.to(dtype), None if b is None else b.to(dtype)


def slopes(net: Recurrence, x: Tensor, b: Tensor | None) -> Tensor:
    """f'(Wx + b), differentiable; read from x = f(Wx + b) where f allows it."""
    if net.f.slope_from_output:
        return net.f.slope(x)
    if b is None:
        raise ValueError(f"input: expected the input of the state, as {net.f} has no slope in terms of x alone")
    with torch.enable_grad():
        u = net.W @ x + b
        wanted = u.requires_grad
        u = u if wanted else u.requires_grad_()
        y = net.f(u)
        if not y.requires_grad:  # flat
            return torch.zeros_like(u)
        (slope,) = torch.autograd.grad(y.sum(), u, create_graph=True, materialize_grads=True, allow_unused=True)
    return slope if wanted else slope.detach()


def jacobians(net: Recurrence, x: Tensor, b: Tensor | None) -> tuple[Linear, Linear]:
    """DW, and the Jacobian of the network's own dynamics, (1-a) I + a DW."""
    D = slopes(net, x, b).reshape(-1, x.shape[-1])
    DW = Linear(net.W.bind(), torch.zeros_like(D), D)
    if net.leak is None:
        return DW, DW
    a = torch.as_tensor(net.leak, dtype=D.dtype, device=D.device).expand(D.shape[-1])
    return DW, Linear(DW.W, (1 - a).expand(D.shape), a * D)
