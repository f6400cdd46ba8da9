"""Steady states x = f(Wx + b): solved for, then their adjoint attached."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from retrograde import kernels
from retrograde.adjoint import on_its_side, steady_gradients
from retrograde.autograd import attach
from retrograde.checks import broadcast_shapes, check_finite, check_last_axis, check_like, check_numbers, check_real
from retrograde.connectivity import Operator, as_operator
from retrograde.defaults import default_solver, is_small
from retrograde.derivatives import SteadyStateRule
from retrograde.feedback import state_problem
from retrograde.nonlinearity import Nonlinearity, as_nonlinearity
from retrograde.receipt import Receipt
from retrograde.recurrence import Recurrence
from retrograde.result import Gradients, Status, SteadyState, Wants, convergence_error
from retrograde.solvers import FixedPoint, Homotopy, Multistart, Newton, Solver
from retrograde.solvers.at_once import begin, go_on
from retrograde.solvers.factors import Factors
from retrograde.solvers.given import check_solver, check_throw, parts_of
from retrograde.structure import SMALL, factor_size
from retrograde.targeting import asks_for_float64, check_grad_rtol, for_the_state, settle
from retrograde.transforms import from_autocast, opaque, transformed, uncompiled
from retrograde.warm import Visit, WarmStart

LookedAt = tuple[tuple[str, Tensor], ...]


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
    warm: WarmStart | None = None,
    grad_rtol: float | None = None,
) -> SteadyState:
    """x = f(Wx + b) for each sample, differentiable in W and b by recurrent backpropagation.

    Args:
        W: (n, n), a tensor, a sparse matrix or a Connectivity.
        b: (..., n), the total input.
        f: the name of a nonlinearity, or a Nonlinearity.
        x0: (..., n), where to start; None is 0. No gradient reaches it: the steady state does not depend on it, only
            which of several is found.
        solver: None for the default: FixedPoint (for a sparse W of hundreds of thousands of connections first
            Anderson after a few plain steps), then where it is needed Newton (for a full W of up to 1024 neurons,
            or a W of up to that rank) or NewtonKrylov, then PseudoTransient, then for a network small enough to be
            factored Homotopy and Multistart. A sparse W in which most connections lead one way is solved level by
            level.
        adjoint: the solver of the backward; None for the default: FixedPoint, then a factorisation (the one that Newton
            left, where there is one) for such a W, else GMRES, and after it, of up to 512 neurons, a factorisation; up
            to rank 64 the factorisation at once; level by level likewise. Neurons of slope 0 are left out where they
            are many.
        throw: whether a sample that fails, forward or backward, raises. If not, ``converged`` and ``receipt`` tell.
        warm: a WarmStart, which starts x and its adjoint from the last ones of the same samples.
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
    how: dict[str, Any] = {"x0": x0, "solver": solver, "adjoint": adjoint, "throw": throw}
    how |= {"warm": warm, "grad_rtol": grad_rtol}
    return solved(Recurrence(as_operator(W), as_nonlinearity(f)), b, (("b", b),), **how)


def solved(
    net: Recurrence,
    b: Tensor,
    looked_at: LookedAt,
    *,
    x0: Tensor | None,
    solver: Solver | None,
    adjoint: Solver | None,
    throw: bool,
    warm: WarmStart | None,
    grad_rtol: float | None,
    rounded: torch.dtype | None = None,
) -> SteadyState:
    """`steady_state`, where b was made from what is to be `looked_at`, tensors that have to be finite, by name.

    x is `rounded` to what it is handed over in, so that the gradient's error tells of that too.
    """
    W, n = net.W.bind(), net.W.shape[0]
    check_real("W", W.like)
    b = check_last_axis("b", check_like("b", from_autocast(b, W.like.dtype), W.like), n)
    net.f.check_elementwise(n, W.like)
    x0 = None if x0 is None else _checked_start(W, b, x0)
    for name, given in (("solver", solver), ("adjoint", adjoint)):
        check_solver(name, given)
    check_throw(throw)
    if warm is not None and not isinstance(warm, WarmStart):
        raise TypeError(f"warm: expected a WarmStart, got {type(warm).__name__}")
    check_grad_rtol(grad_rtol, solver=solver, adjoint=adjoint)
    if asks_for_float64(grad_rtol, b.dtype):
        how: dict[str, Any] = {"solver": solver, "adjoint": adjoint, "throw": throw, "warm": warm}
        precise, x0 = net.to(torch.float64), None if x0 is None else x0.double()
        state = solved(precise, b.double(), looked_at, x0=x0, grad_rtol=grad_rtol, rounded=b.dtype, **how)
        return replace(state, x=state.x.to(b.dtype))
    solver = solver or default_solver(W, net.f)
    if grad_rtol is not None:
        solver = for_the_state(solver, grad_rtol, b.dtype)

    rows = known = visit = attempt = None
    if transformed():
        if warm is not None:
            raise ValueError("warm: expected None under the transforms of torch.func, which have no memory")
        factors, all_converged = Factors(W.like, 0, factor_size(W)), True  # what has not, has raised
        x, status, residual, steps, rows = _solve_apart(net, b, x0, solver, factors, throw, grad_rtol)
    else:
        batch = (b if x0 is None else x0).shape[:-1]
        visit = None if warm is None else warm.visit(batch, b.device)
        factors = Factors(W.like, batch.numel(), factor_size(W))
        with torch.no_grad():
            x, status, residual, steps, attempt, all_converged = _solve(
                net, b, x0, solver, factors, None, visit, grad_rtol, looked_at
            )
        known = residual
    if rounded is not None:
        x, known = x.to(rounded).to(x), None

    receipts: list[Receipt] = []

    def gradients(net: Recurrence, x: Tensor, b: Tensor | None, g: Tensor, wants: Wants) -> Gradients:
        about: dict[str, Any] = {"state_solver": solver, "state_steps": steps, "rounded": rounded}
        answer = steady_gradients(net, x, b, g, adjoint, factors, throw, wants, known, visit, grad_rtol, **about)
        assert answer.receipt is not None  # of a steady state there is one
        receipts[:] = [answer.receipt]
        return answer

    rule = SteadyStateRule(Recurrence(W.structure, net.f), gradients, adjoint, factors, throw)
    x = attach(x, rule, (rows, b, *W.weights))
    state = SteadyState(x, status, residual, steps, solver.tolerance(x.dtype), solver, attempt, receipts)
    if not all_converged:
        _check_converged(state, W, throw)
    return state


def _solve(
    net: Recurrence,
    b: Tensor,
    x0: Tensor | None,
    solver: Solver,
    factors: Factors,
    rows: Tensor | None,
    visit: Visit | None = None,
    grad_rtol: float | None = None,
    looked_at: LookedAt = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, bool]:
    """x, status, residual, steps, which solver of a cascade answered; and whether all are known to have converged.

    `rows` are the numbers of the samples in `factors`, None for 0, 1, 2, ....
    """
    shape = b.shape if x0 is None else x0.shape
    total, start = _as_rows(b, shape), None if x0 is None else _as_rows(x0, shape)
    W = net.W.bind()
    begun = None
    if visit is None:
        begun = begin(solver, partial(kernels.whole_state, W, net.f, total, start), b.dtype)
    if begun is None:
        for name, tensor in (*looked_at, *(("W", weight) for weight in W.weights)):
            check_numbers(name, tensor)
    done = begun is not None and begun.is_all
    if not done and grad_rtol is None:
        net = replace(net, W=kernels.by_rows(W))
    problem = partial(state_problem, net, total, factors, rows)
    if begun is not None and done:
        found = begun.solution
    else:
        start = torch.zeros_like(total) if start is None else start
        found = go_on(solver, problem(), start, begun) if visit is None else visit.solve(solver, problem(), start)
    if grad_rtol is not None:
        found = settle(net, total, found, solver, problem, grad_rtol, is_small(W))
    x, all_converged = on_its_side(net, found.value, total), done and grad_rtol is None
    told, attempt = (found.status, found.residual, found.steps), found.method
    if len(shape) != 2:
        status, residual, steps = (each.reshape(shape[:-1]) for each in told)
        x, told = x.reshape(shape), (status, residual, steps)
        attempt = None if attempt is None else attempt.reshape(shape[:-1])
    return x, *told, attempt, all_converged


def _as_rows(z: Tensor, shape: torch.Size) -> Tensor:
    """z, expanded to that shape, with one sample a row."""
    z = z if z.shape == shape else z.expand(shape)
    return z if len(shape) == 2 else z.reshape(-1, shape[-1])


def _solve_apart(
    net: Recurrence,
    b: Tensor,
    x0: Tensor | None,
    solver: Solver,
    factors: Factors,
    throw: bool,
    grad_rtol: float | None,
) -> tuple[Tensor, ...]:
    """x, status, residual and steps on the plain numbers under torch's transforms; and `rows`, (...,)."""
    W = net.W.bind()

    def solve(b: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        check_numbers("x0", x)
        rows = factors.admit(x.shape[:-1].numel())
        plain, looked_at = Recurrence(W.bind(*weights), net.f), (("b", b),)
        x, status, residual, steps, *_ = _solve(plain, b, x, solver, factors, rows, None, grad_rtol, looked_at)
        _check_converged(SteadyState(x, status, residual, steps, solver.tolerance(x.dtype), solver), W, throw)
        return x, status, residual, steps, rows.reshape(x.shape[:-1])

    start = torch.zeros_like(b) if x0 is None else x0
    return opaque(solve, (b.expand(start.shape), start), W.weights)


def _check_converged(state: SteadyState, W: Operator, throw: bool) -> None:
    if throw and state.status.any():  # Status.CONVERGED is 0
        raise convergence_error("steady state", state, state.tolerance, _advice(state.solver, W, state.status), state)


def _advice(solver: Solver, W: Operator, status: Tensor) -> str:
    """What was not tried yet."""
    tried = parts_of(solver)
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
    if W.shape[0] <= SMALL and not any(isinstance(each, Multistart) for each in tried):
        others.append("Multistart(Newton())")
    what = f"{', '.join(others)} or another x0" if others else "another x0"
    return f"Try {what}; where f is unbounded, a network with a large W may have no steady state."


def _checked_start(W: Operator, b: Tensor, x0: Tensor) -> Tensor:
    """x0, of the whole batch's shape."""
    x0 = from_autocast(x0, W.like.dtype)
    check_finite("x0", check_last_axis("x0", check_like("x0", x0, W.like), W.shape[0]))
    return x0.detach().expand(broadcast_shapes("b and x0", b=b.shape, x0=x0.shape))
