"""Steady states x = f(Wx + b): solved for, then their adjoint attached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retrograde import kernels
from retrograde.adjoint import SMALL, is_small, one_minus_DW, steady_gradients
from retrograde.autograd import attach
from retrograde.checks import broadcast_shapes, check_finite, check_last_axis, check_like
from retrograde.connectivity import Operator, as_operator
from retrograde.derivatives import SteadyStateRule
from retrograde.nonlinearity import Nonlinearity, as_nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.result import Gradients, Receipt, Status, SteadyState, Wants, convergence_error
from retrograde.solvers import (
    Cascade,
    FixedPoint,
    Homotopy,
    Newton,
    NewtonKrylov,
    Problem,
    PseudoTransient,
    Solver,
)
from retrograde.solvers.factors import Factors
from retrograde.transforms import opaque, transformed, uncompiled


def default_solver(W: Operator) -> Solver:
    """The network's own dynamics; where they do not settle, Newton's method, then what does not need luck.

    Newton's method by factors for a small full W, without a matrix for any other. Of a network too large to be factored
    no path is followed: nobody knows how long it is.
    """
    if is_small(W):
        return _BY_FACTORS
    return _BY_PRODUCTS if _is_factorable(W) else _OF_MANY


# The last resorts factor I - DW of any structure of so few neurons: a Krylov space that solves what they ask holds as
# many vectors, and so no fewer numbers.
_FEW = 512


def _is_factorable(W: Operator) -> bool:
    return is_small(W) or W.shape[0] <= _FEW


_PATH = Homotopy(max_steps=500)
_BY_FACTORS = Cascade(FixedPoint(max_steps=100), Newton(max_steps=20), PseudoTransient(max_steps=50), _PATH)
_OF_MANY = Cascade(FixedPoint(max_steps=100), NewtonKrylov(max_steps=1000), PseudoTransient(max_steps=50))
_BY_PRODUCTS = Cascade(*_OF_MANY.solvers, _PATH)


@uncompiled
def steady_state(
    W: Any,
    b: Tensor,
    f: str | Nonlinearity = "tanh",
    *,
    x0: Tensor | None = None,
    solver: Solver | None = None,
    adjoint: Solver | None = None,
    throw: bool = True,
) -> SteadyState:
    """x = f(Wx + b) for each sample, differentiable in W and b by recurrent backpropagation.

    Args:
        W: (n, n), a tensor, a sparse matrix or a Connectivity.
        b: (..., n), the total input.
        f: the name of a nonlinearity, or a Nonlinearity.
        x0: (..., n), where to start; None is 0. No gradient reaches it: the steady state does not depend on it, only
            which of several is found.
        solver: None for the default: FixedPoint, then where it is needed Newton (for a full W of up to 1024 neurons) or
            NewtonKrylov, then PseudoTransient, then for a network small enough to be factored Homotopy.
        adjoint: the solver of the backward; None for the default: FixedPoint, then a factorisation (the one that Newton
            left, where there is one) for a full W of up to 1024 neurons, else GMRES.
        throw: whether a sample that fails, forward or backward, raises. If not, ``converged`` and ``receipt`` tell.

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
    W = net.W.bind()
    solver = solver or default_solver(W)

    batch, n = x.shape[:-1], x.shape[-1]
    rows = known = None
    if transformed():
        factors = Factors(torch.empty(0, n, dtype=W.like.dtype, device=W.like.device))
        x, status, residual, steps, rows = _solve_apart(net, b, x, solver, factors, throw)
    else:
        factors, numbers = Factors(x.reshape(-1, n)), torch.arange(batch.numel(), device=x.device)
        with torch.no_grad():
            x, status, residual, steps = _solve(net, b.detach().expand(x.shape), x, solver, factors, numbers)
        known = residual

    receipts: list[Receipt] = []

    def gradients(net: Recurrence, x: Tensor, b: Tensor | None, g: Tensor, wants: Wants) -> Gradients:
        answer = steady_gradients(net, x, b, g, adjoint, factors, throw, wants, known)
        assert answer.receipt is not None
        receipts.append(answer.receipt)
        return answer

    rule = SteadyStateRule(Recurrence(W.structure, net.f), gradients, adjoint, factors, throw)
    x = attach(x, rule, (rows, b, *W.weights))
    state = SteadyState(x, status, residual, steps, solver.tolerance(x.dtype), solver, receipts)
    if rows is None:
        _check_converged(state, W, throw)
    return state


def _solve(
    net: Recurrence, b: Tensor, x: Tensor, solver: Solver, factors: Factors, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, status, residual and steps; `rows` are the numbers of the samples in `factors`."""
    batch, n = x.shape[:-1], x.shape[-1]
    found = solver.solve(_problem(net, b.reshape(-1, n), factors, rows), x.reshape(-1, n))
    told = found.status.reshape(batch), found.residual.reshape(batch), found.steps.reshape(batch)
    return found.value.reshape(x.shape), *told


def _solve_apart(
    net: Recurrence, b: Tensor, x: Tensor, solver: Solver, factors: Factors, throw: bool
) -> tuple[Tensor, ...]:
    """The same on the plain numbers under torch's transforms; and `rows`, (...,)."""
    W = net.W.bind()

    def solve(b: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        for name, tensor in (("b", b), ("x0", x), *(("W", weight) for weight in weights)):
            check_finite(name, tensor)
        rows = factors.admit(x.shape[:-1].numel())
        x, status, residual, steps = _solve(Recurrence(W.bind(*weights), net.f), b, x, solver, factors, rows)
        _check_converged(SteadyState(x, status, residual, steps, solver.tolerance(x.dtype), solver), W, throw)
        return x, status, residual, steps, rows.reshape(x.shape[:-1])

    return opaque(solve, (b.expand(x.shape), x), W.weights)


def _check_converged(state: SteadyState, W: Operator, throw: bool) -> None:
    if throw and not state.converged.all():
        raise convergence_error("steady state", state, state.tolerance, _advice(state.solver, W, state.status), state)


def _advice(solver: Solver, W: Operator, status: Tensor) -> str:
    """What was not tried yet."""
    tried = _parts(solver)
    failed = status[status != Status.CONVERGED]
    if (failed == Status.STALLED).all():
        return "Try float64, or a looser rtol: this precision has no state that is steadier."
    others = []
    if not any(isinstance(each, FixedPoint) and each.damping < 1 for each in tried):
        others.append("FixedPoint(damping=0.5)")
    if not any(isinstance(each, Newton) for each in tried):
        others.append("Newton()" if W.shape[0] <= SMALL else "NewtonKrylov()")
    if W.shape[0] <= SMALL and not any(isinstance(each, Homotopy) for each in tried):
        others.append("Homotopy()")
    elif (failed == Status.MAX_STEPS).any() and not others:
        others.append("Homotopy(max_steps=5000)")
    what = f"{', '.join(others)} or another x0" if others else "another x0"
    return f"Try {what}; where f is unbounded, a network with a large W may have no steady state."


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


def _problem(net: Recurrence, b: Tensor, factors: Factors, rows: Tensor, gain: Tensor | None = None) -> Problem:
    """What a solver sees: x = f(Wx + b), for the samples `rows` of the batch; or, at a gain t, x = f(t Wx + b)."""
    W = net.W.bind()

    def drive(x: Tensor) -> Tensor:
        return W @ x + b if gain is None else gain * (W @ x) + b

    def slopes(x: Tensor) -> Tensor:
        D = net.f.slope_at(drive(x))
        return D if gain is None else gain * D

    def tangent(x: Tensor) -> Callable[[Tensor], Tensor]:
        D = slopes(x)
        return lambda v: D * (W @ v)

    def factorise(x: Tensor, anew: bool = False, shift: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        D = slopes(x)

        def matrices() -> Tensor:
            A = one_minus_DW(W, D)
            if shift is not None:
                A.diagonal(dim1=-2, dim2=-1).add_(shift)
            return A

        factors.put(rows, matrices)
        return lambda r: factors.solve(rows, r)

    return Problem(
        step=lambda x: net.f(drive(x)),
        take=lambda some: _problem(net, b[some], factors, rows[some], None if gain is None else gain[some]),
        factorise=factorise,
        iterate=kernels.fixed_point(W, net.f, b) if gain is None else None,
        tangent=tangent,
        at_gain=lambda t: _problem(net, b, factors, rows, t),
        factorable=_is_factorable(W),
    )
