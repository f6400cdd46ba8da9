"""The lecture's two algorithms by hand, for those who do not use autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retrograde.adjoint import on_its_side, steady_gradients
from retrograde.checks import broadcast_shapes, check_finite, check_last_axis, check_like
from retrograde.recurrence import Recurrence
from retrograde.result import Gradients, Inputs
from retrograde.solvers import Solver
from retrograde.solvers.given import check_solver, check_throw
from retrograde.targeting import asks_for_float64, check_grad_rtol
from retrograde.through_time import trajectory_gradients
from retrograde.transforms import precisely

if TYPE_CHECKING:
    from retrograde.network import Network


@precisely
def recurrent_backpropagation(
    net: Network | Recurrence,
    x: Tensor,
    dR_dx: Tensor,
    *,
    input: Tensor | None = None,
    adjoint: Solver | None = None,
    throw: bool = True,
    grad_rtol: float | None = None,
) -> Gradients:
    """Recurrent backpropagation by hand: (D⁻¹ - Wᵀ) s = dR/dx, dR/db = s, dR/dW = s xᵀ, at a steady state x.

    Args:
        net: a Network or a Recurrence.
        x: (..., n), steady states of it.
        dR_dx: (..., n), the gradient of any reward.
        input: (..., n), what was added to the bias. Only a `Pointwise` nonlinearity needs it; with it, the receipt also
            tells how steady x is, and, of a Network, its verdict.
        adjoint: the solver of the adjoint; None for the default.
        throw: whether an adjoint that does not converge raises.
        grad_rtol: the relative error that s xᵀ may have, x's own included where the input is given; it takes the place
            of an ``rtol`` of the adjoint.

    Returns:
        ``.s`` (..., n); ``.dW`` (one tensor for each of ``net.W.weights``) and ``.db`` (n,), summed over the batch;
        ``.receipt``.

    Raises:
        ValueError, TypeError: x or dR_dx of the wrong shape or dtype, or not finite.
        ConvergenceError: the adjoint did not converge.

    References:
        H. S. Seung, "Backprop for recurrent networks"; F. J. Pineda, Phys. Rev. Lett. 59 (1987); L. B. Almeida, ICNN
        (1987).

    >>> import retrograde as rg
    >>> net = rg.Network(torch.tensor([[0.0, 0.5], [-0.5, 0.0]]), f="identity")
    >>> x = net.steady_state(torch.tensor([1.0, 0.0])).x.detach()
    >>> rg.recurrent_backpropagation(net, x, torch.tensor([1.0, 0.0])).s  # the first column of (I - Wᵀ)⁻¹
    tensor([0.8000, 0.4000])
    """
    equations = replace(_equations(net), leak=None)  # steady states do not depend on it
    _check_states(equations, "x", x)
    _check_states(equations, "dR_dx", dR_dx, x.shape)
    check_solver("adjoint", adjoint, "Direct()")
    check_throw(throw)
    check_grad_rtol(grad_rtol, adjoint=adjoint)
    b = None
    if input is not None:
        _check_states(equations, "input", input)
        if broadcast_shapes("input and x", input=input.shape, x=x.shape) != x.shape:
            raise ValueError(f"input: expected a shape that broadcasts to {tuple(x.shape)}, got {tuple(input.shape)}")
        b = _total(net, input)
    if b is None and not equations.f.slope_from_output:
        raise ValueError(
            f"input: expected the input that x is steady for, as {equations.f} has no slope in terms of x alone"
        )
    with torch.no_grad():
        x = x if b is None else on_its_side(equations, x, b)
        how: dict[str, Any] = {"adjoint": adjoint, "throw": throw, "grad_rtol": grad_rtol}
        if asks_for_float64(grad_rtol, x.dtype):
            precise = equations.to(torch.float64), x.double(), None if b is None else b.double(), dR_dx.double()
            found = steady_gradients(*precise, rounded=x.dtype, **how).to(x.dtype)
        else:
            found = steady_gradients(equations, x, b, dR_dx, **how)
    if b is not None and found.receipt is not None and not isinstance(net, Recurrence):
        found.receipt.judged_by(net.judge_at(x, b))
    return found


@precisely
def backpropagation_through_time(
    net: Network | Recurrence, x: Tensor, x0: Tensor, dR_dx: Tensor, *, input: Tensor | None = None
) -> Gradients:
    """Backpropagation through time by hand: s(t) = D(t) (Wᵀ s(t+1) + dR/dx(t)), dR/dW = Σ s(t) x(t-1)ᵀ.

    Args:
        net: a Network or a Recurrence.
        x: (T, ..., n), a trajectory x(1), ..., x(T) of it.
        x0: (..., n), x(0).
        dR_dx: (T, ..., n), the gradient of any reward.
        input: what was added to the bias, (..., n) or (T, ..., n). A `Pointwise` nonlinearity needs it; with a small
            leak it makes the slopes more exact.

    Returns:
        ``.s`` (T, ..., n), which is dR/db(t); ``.dW`` and ``.db`` (n,), summed over time and batch; ``.dx0`` (..., n);
        with a leak, ``.dleak``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape or dtype, or not finite.

    References:
        H. S. Seung, "Backprop for recurrent networks"; P. J. Werbos, Proc. IEEE 78 (1990).
    """
    equations = _equations(net)
    _check_states(equations, "x", x)
    if x.ndim < 2 or not len(x):
        raise ValueError(
            f"x: expected shape (T, ..., {equations.W.shape[0]}) with T of at least 1, got {tuple(x.shape)}"
        )
    _check_states(equations, "x0", x0)
    x0 = x0.expand(broadcast_shapes("x and x0", x=x.shape[1:], x0=x0.shape))
    _check_states(equations, "x0", x0, x.shape[1:])
    _check_states(equations, "dR_dx", dR_dx, x.shape)
    b = None
    if input is not None:
        _check_states(equations, "input", input)
        b = _total(net, _over_time(input, x.shape))
    if b is None and not equations.f.slope_from_output:
        raise ValueError(
            f"input: expected the input of the trajectory, as {equations.f} has no slope in terms of x alone"
        )
    with torch.no_grad():
        path = torch.cat([x0[None], x])
        return trajectory_gradients(equations, path, Inputs(None if b is None else b.expand(x.shape)), dR_dx)


def _equations(net: Network | Recurrence) -> Recurrence:
    if isinstance(net, Recurrence):
        return replace(net, W=net.W.bind())
    if not isinstance(getattr(net, "recurrence", None), Recurrence):
        raise TypeError(f"net: expected a Network or a Recurrence, got {type(net).__name__}")
    return net.recurrence


def _total(net: Network | Recurrence, input: Tensor) -> Tensor:
    return input if isinstance(net, Recurrence) else net.total(input)


def _over_time(input: Tensor, shape: torch.Size) -> Tensor:
    """The input of a trajectory x of that shape, (T, ..., n), made to broadcast against it.

    An input of fewer axes than x is one for all times, or has time first; ValueError where it could be both or neither.
    """
    (T, *batch), lead = shape[:-1], input.shape[:-1]

    def fits(lead: torch.Size, whole: list[int]) -> bool:
        return len(lead) <= len(whole) and all(
            a in (1, b) for a, b in zip(reversed(lead), reversed(whole), strict=False)
        )

    if input.ndim == len(shape) and fits(lead, [T, *batch]):
        return input
    constant, timed = fits(lead, batch), len(lead) > 0 and lead[0] == T and fits(lead[1:], batch)
    if constant == timed:
        told = "has the same T as batch: give it an axis for each of x's" if constant else "fits neither"
        raise ValueError(
            f"input: expected (..., n), or (T, ..., n), for x of shape {tuple(shape)}; {tuple(input.shape)} {told}"
        )
    return input if constant else input.reshape(T, *(1,) * (len(batch) - len(lead) + 1), *input.shape[1:])


def _check_states(net: Recurrence, name: str, x: Tensor, shape: torch.Size | None = None) -> None:
    W = net.W.bind()
    check_finite(name, check_last_axis(name, check_like(name, x, W.like), W.shape[0]))
    if shape is not None and x.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(x.shape)}")
