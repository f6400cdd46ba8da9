"""Steady states x = f(Wx + b): solved for, then their adjoint attached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retrograde import kernels
from retrograde.adjoint import SMALL, is_small, one_minus_DW, steady_gradients
from retrograde.autograd import attach
from retrograde.checks import broadcast_shapes, check_finite, check_last_axis, check_like
from retrograde.connectivity import Operator, as_operator
from retrograde.nonlinearity import Nonlinearity, as_nonlinearity
from retrograde.receipt import Receipt
from retrograde.recurrence import Recurrence
from retrograde.result import Gradients, Inputs, SteadyState, Wants, convergence_error
from retrograde.solvers import Cascade, FixedPoint, Newton, Problem, Solver
from retrograde.solvers.factors import Factors
from retrograde.targeting import check_grad_rtol, settle


def default_solver(W: Operator) -> Solver:
    """The network's own dynamics; for a small full W, Newton where they do not settle."""
    return _SETTLE_OR_NEWTON if is_small(W) else _SETTLE


_SETTLE, _SETTLE_OR_NEWTON = FixedPoint(), Cascade(FixedPoint(max_steps=100), Newton())


def steady_state(
    W: Any,
    b: Tensor,
    f: str | Nonlinearity = "tanh",
    *,
    x0: Tensor | None = None,
    solver: Solver | None = None,
    adjoint: Solver | None = None,
    throw: bool = True,
    grad_rtol: float | None = None,
) -> SteadyState:
    """x = f(Wx + b) for each sample, differentiable in W and b by recurrent backpropagation.

    Args:
        W: (n, n), a tensor, a sparse matrix or a Connectivity.
        b: (..., n), the total input.
        f: the name of a nonlinearity, or a Nonlinearity.
        x0: (..., n), where to start; None is 0. No gradient reaches it: the steady state does not depend on it, only
            which of several is found.
        solver: None for the default: FixedPoint, then for a full W of up to 1024 neurons Newton where it is needed.
        adjoint: the solver of the backward; None for the default: FixedPoint, then a factorisation (the one that Newton
            left, where there is one) for a full W of up to 1024 neurons, else GMRES.
        throw: whether a sample that fails, forward or backward, raises. If not, ``converged`` and ``receipt`` tell.
        grad_rtol: the relative error that the gradient may have. It chooses both tolerances, so no solver may have an
            ``rtol`` of its own beside it; the backward checks its estimate, and refines the adjoint where it must. None
            solves as exactly as the dtype allows.

    Returns:
        A `SteadyState`: ``x``, and for each sample ``converged``, ``residual``, ``steps``, ``status``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape or dtype, or not finite.
        ConvergenceError: some sample has not converged; the error's ``result`` is what was found.

    References:
        H. S. Seung, "Backprop for recurrent networks"; F. J. Pineda, Phys. Rev. Lett. 59 (1987).

    >>> W = torch.tensor([[0.0, 0.5], [-0.5, 0.0]])
    >>> b = torch.tensor([1.0, 0.0], requires_grad=True)
    >>> state = steady_state(W, b, f="identity")
    >>> state.x.sum().backward()  # R = x₁ + x₂
    >>> b.grad
    tensor([0.4000, 1.2000])
    """
    net = Recurrence(as_operator(W), as_nonlinearity(f))
    b, x = _checked(net, b, x0)
    for name, given in (("solver", solver), ("adjoint", adjoint)):
        if given is not None and not isinstance(given, Solver):
            raise TypeError(f"{name}: expected a solver such as FixedPoint(), got {type(given).__name__}")
    check_grad_rtol(grad_rtol, solver=solver, adjoint=adjoint)
    solver = solver or default_solver(net.W.bind())

    batch, n = x.shape[:-1], x.shape[-1]
    x, total = x.reshape(-1, n), b.detach().expand(x.shape).reshape(-1, n)
    factors = Factors(x)
    with torch.no_grad():
        problem = _problem(net, total, factors, torch.arange(len(x), device=x.device))
        if grad_rtol is None:
            found = solver.solve(problem, x)
        else:
            solver, found = settle(net, total, x, solver, problem, grad_rtol, is_small(net.W.bind()))

    receipts: list[Receipt] = []

    def gradients(net: Recurrence, x: Tensor, inputs: Inputs, g: Tensor, wants: Wants) -> Gradients:
        how = adjoint, factors, throw, wants, found.residual.reshape(batch), grad_rtol
        answer = steady_gradients(net, x, inputs.b, g, *how)
        assert answer.receipt is not None
        receipts[:] = [replace(answer.receipt, state_solver=solver, state_steps=found.steps.reshape(batch))]
        return answer

    state = SteadyState(
        x=attach(found.value.reshape(*batch, n), gradients, net, Inputs(b)),
        status=found.status.reshape(batch),
        residual=found.residual.reshape(batch),
        steps=found.steps.reshape(batch),
        tolerance=solver.tolerance(x.dtype),
        solver=solver,
        _receipts=receipts,
    )
    if throw and not state.converged.all():
        raise convergence_error("steady state", state, state.tolerance, _advice(solver, net.W.bind()), state)
    return state


def _advice(solver: Solver, W: Operator) -> str:
    """What was not tried yet."""
    tried = _parts(solver)
    others = []
    if not any(isinstance(each, FixedPoint) and each.damping < 1 for each in tried):
        others.append("FixedPoint(damping=0.5)")
    if W.shape[0] <= SMALL and not any(isinstance(each, Newton) for each in tried):
        others.append("Newton()")
    what = f"{', '.join(others)} or another x0" if others else "another x0"
    return f"Try {what}; a network with a large W may settle nowhere."


def _parts(solver: Solver) -> list[Solver]:
    return [part for each in solver.solvers for part in _parts(each)] if isinstance(solver, Cascade) else [solver]


def _checked(net: Recurrence, b: Tensor, x0: Tensor | None) -> tuple[Tensor, Tensor]:
    """b and the start x, looked over; x has the whole batch's shape."""
    W = net.W.bind()
    n = W.shape[0]
    check_last_axis("b", check_like("b", b, W.like), n)
    net.f.check_elementwise(n, W.like)
    for name, tensor in (("b", b), *(("W", weight) for weight in W.weights)):
        check_finite(name, tensor)
    if x0 is None:
        return b, torch.zeros_like(b)
    check_finite("x0", check_last_axis("x0", check_like("x0", x0, W.like), n))
    return b, x0.detach().expand(broadcast_shapes("b and x0", b=b.shape, x0=x0.shape))


def _problem(net: Recurrence, b: Tensor, factors: Factors, rows: Tensor) -> Problem:
    """What a solver sees: x = f(Wx + b), for the samples `rows` of the batch."""

    def factorise(x: Tensor, anew: bool = False) -> Callable[[Tensor], Tensor]:
        D = net.slopes(net.step(x, b), x, b)
        factors.put(rows, lambda: one_minus_DW(net.W.bind(), D))
        return lambda r: factors.solve(rows, r)

    return Problem(
        step=lambda x: net.step(x, b),
        take=lambda some: _problem(net, b[some], factors, rows[some]),
        factorise=factorise,
        iterate=kernels.fixed_point(net.W.bind(), net.f, b),
    )
