"""Steady states x = f(Wx + b): solved for, then their adjoint attached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from retrograde import kernels
from retrograde.adjoint import FEW_LEVELS, is_small, steady_gradients
from retrograde.autograd import attach
from retrograde.blocks import Blocks, blocks_of
from retrograde.checks import broadcast_shapes, check_finite, check_last_axis, check_like
from retrograde.connectivity import Operator, as_operator
from retrograde.nonlinearity import Nonlinearity, as_nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.result import Gradients, Inputs, Receipt, SteadyState, Wants, convergence_error
from retrograde.solvers import Blockwise, Cascade, FixedPoint, Newton, Problem, Solver
from retrograde.solvers.factors import Factors
from retrograde.structure import SMALL, core, factor_size, invert
from retrograde.warm import WarmStart


def default_solver(W: Operator) -> Solver:
    """The network's own dynamics; for a small full W, Newton where they do not settle. A W in levels by these."""
    blocks = blocks_of(W)
    if blocks is not None:
        return _BY_LEVELS if len(blocks.levels) <= FEW_LEVELS else _SETTLE_OR_BY_LEVELS
    return _SETTLE_OR_NEWTON if is_small(W) else _SETTLE


_SETTLE, _SETTLE_OR_NEWTON = FixedPoint(), Cascade(FixedPoint(max_steps=100), Newton())
_BY_LEVELS, _SETTLE_OR_BY_LEVELS = Blockwise(_SETTLE), Cascade(FixedPoint(max_steps=100), Blockwise(_SETTLE))


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
) -> SteadyState:
    """x = f(Wx + b) for each sample, differentiable in W and b by recurrent backpropagation.

    Args:
        W: (n, n), a tensor, a sparse matrix or a Connectivity.
        b: (..., n), the total input.
        f: the name of a nonlinearity, or a Nonlinearity.
        x0: (..., n), where to start; None is 0. No gradient reaches it: the steady state does not depend on it, only
            which of several is found.
        solver: None for the default: FixedPoint, then for a full W of up to 1024 neurons, or a W of up to that rank,
            Newton where it is needed. A sparse W in which most connections lead one way is solved level by level.
        adjoint: the solver of the backward; None for the default: FixedPoint, then a factorisation (the one that Newton
            left, where there is one) for such a W, else GMRES; up to rank 64 the factorisation at once; level by level
            likewise. Neurons of slope 0 are left out where they are many.
        throw: whether a sample that fails, forward or backward, raises. If not, ``converged`` and ``receipt`` tell.
        warm: a WarmStart, which starts x and its adjoint from the last ones of the same samples.

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
    if warm is not None and not isinstance(warm, WarmStart):
        raise TypeError(f"warm: expected a WarmStart, got {type(warm).__name__}")
    solver = solver or default_solver(net.W.bind())

    batch, n = x.shape[:-1], x.shape[-1]
    x, total = x.reshape(-1, n), b.detach().expand(x.shape).reshape(-1, n)
    factors = Factors(x[:, : factor_size(net.W.bind())])
    with torch.no_grad():
        problem = _problem(net, total, factors, torch.arange(len(x), device=x.device))
        visit = None if warm is None else warm.visit(batch, x.device)
        found = solver.solve(problem, x) if visit is None else visit.solve(solver, problem, x)

    receipts: list[Receipt] = []

    def gradients(net: Recurrence, x: Tensor, inputs: Inputs, g: Tensor, wants: Wants) -> Gradients:
        residual = found.residual.reshape(batch)
        answer = steady_gradients(net, x, inputs.b, g, adjoint, factors, throw, wants, residual, visit)
        assert answer.receipt is not None
        receipts.append(answer.receipt)
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
        factors.put(rows, lambda: core(net.W.bind(), D))
        return lambda r: invert(net.W.bind(), D, r, partial(factors.solve, rows))

    blocks = blocks_of(net.W.bind())
    return Problem(
        step=lambda x: net.step(x, b),
        take=lambda some: _problem(net, b[some], factors, rows[some]),
        factorise=factorise,
        iterate=kernels.fixed_point(net.W.bind(), net.f, b),
        substitute=None if blocks is None else partial(_substitute, net, b, blocks),
    )


def _substitute(net: Recurrence, b: Tensor, blocks: Blocks, x: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
    """x = f(Wx + b), level by level upwards, each from its part of x."""
    every = torch.arange(len(x), device=x.device)

    def settle(neurons: Tensor, W: Operator | None, drive: Tensor) -> tuple[Tensor, Tensor]:
        if W is None:
            return net.f(drive), torch.zeros_like(every)
        part = x[:, neurons]
        found = solver.solve(_problem(replace(net, W=W), drive.T.contiguous(), Factors(part), every), part)
        return found.value.T, found.steps

    return blocks.substitute(net.W.bind(), b, settle)
