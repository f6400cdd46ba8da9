"""grad_rtol: states and adjoints solved as exactly as a gradient needs that shall have that relative error, no more."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from retrograde.accuracy import Evidence
from retrograde.receipt import Receipt
from retrograde.recurrence import Recurrence, adjoint_step
from retrograde.result import Status
from retrograde.solvers import Blockwise, Cascade, Neumann, Problem, Solution, Solver
from retrograde.solvers.base import check_number, default_rtol, relative_residual

FIRST = 0.1  # of grad_rtol may a residual of the adjoint be at first,
_FIRST_STATE = 0.03  # and so much of it one of the state,
_STATE = 0.2  # and so much of it the error of the state
_REFINEMENTS = 4  # of s are tried
_FAR = 300  # times eps, an error is found as well without float64


def with_rtol(solver: Solver, rtol: float, dtype: torch.dtype) -> Solver:
    """The solver with that tolerance, or with the dtype's where it is larger; a solver without one as it is."""
    if isinstance(solver, Cascade):
        return Cascade(*(with_rtol(each, rtol, dtype) for each in solver.solvers))
    if isinstance(solver, Blockwise):
        return Blockwise(with_rtol(solver.solver, rtol, dtype))
    return replace(solver, rtol=max(rtol, default_rtol(dtype))) if hasattr(solver, "rtol") else solver  # type: ignore[type-var]


def check_grad_rtol(grad_rtol: float | None, **solvers: Solver | None) -> None:
    """ValueError or TypeError where grad_rtol is no tolerance, or where a solver has one of its own beside it."""
    if grad_rtol is None:
        return
    if not 0 < check_number("grad_rtol", grad_rtol) < 1:
        raise ValueError(f"grad_rtol: expected None or a number between 0 and 1, got {grad_rtol}")
    for name, solver in solvers.items():
        parts = parts_of(solver)
        if any(getattr(part, "rtol", None) is not None for part in parts):
            raise ValueError(f"{name}: expected a solver without rtol, as grad_rtol chooses it, got {solver!r}")
        if any(isinstance(part, Neumann) for part in parts):
            raise ValueError(f"{name}: expected a solver that can be exact beside grad_rtol, got {solver!r}")


def parts_of(solver: Solver | None) -> list[Solver | None]:
    """The solvers that it tries, or itself."""
    inner = solver.solvers if isinstance(solver, Cascade) else [solver.solver] if isinstance(solver, Blockwise) else []
    return [part for each in inner for part in parts_of(each)] or [solver]


def for_the_state(solver: Solver, grad_rtol: float, dtype: torch.dtype) -> Solver:
    """The solver with the tolerance that the state is first solved to."""
    return with_rtol(solver, _FIRST_STATE * grad_rtol, dtype)


def settle(
    net: Recurrence, b: Tensor, found: Solution, solver: Solver, problem: Problem, grad_rtol: float, factored: bool
) -> None:
    """Solve the states found, (samples, n), as far as a gradient needs that shall be right to grad_rtol.

    Samples whose error, by a Newton step, is too large as yet go on from where they are with a tenth of the tolerance.
    The error counts as amplified once more, since dR/dx and D change with the state, and the adjoint amplifies that.
    """
    rtol, dtype = _FIRST_STATE * grad_rtol, b.dtype
    rows = (found.status == Status.CONVERGED).nonzero()[:, 0]
    while rtol > default_rtol(dtype) and len(rows):
        here = found.value[rows]
        error, amplified = Evidence(net, here, b[rows], here, here, factored).state_error()
        rows = rows[amplified * error > _STATE * grad_rtol]
        rtol /= 10
        if len(rows):
            again = with_rtol(solver, rtol, dtype).solve(problem.take(rows), found.value[rows])
            found.adopt(rows, again)


def refine(receipt: Receipt, grad_rtol: float) -> tuple[Tensor, Receipt]:
    """s, with Newton's steps added where its error exceeds grad_rtol and they make it less; and what is known of it.

    The residuals are computed in float64, so that a gradient in float32 comes out right to its last digits even where
    float32 alone would lose them.
    """
    evidence: Evidence = receipt.evidence
    *_, flat = evidence.flat()
    assert flat is not None
    s, now = flat.clone(), evidence.correction(quick=grad_rtol > _FAR * torch.finfo(flat.dtype).eps)
    state_error, error, steps = now.state_error.double(), now.error.double(), torch.zeros_like(now.steps)
    rows = (error > grad_rtol).nonzero()[:, 0]
    change = torch.zeros_like(s[rows])
    for _ in range(1 + _REFINEMENTS):
        if not len(rows):
            break
        tried = s[rows] + change
        now = replace(evidence, s=s.index_copy(0, rows, tried).reshape(evidence.x.shape)).take(rows).correction()
        better = (now.error < error[rows]) | (steps[rows] == 0)
        s[rows] = torch.where(better[:, None], tried, s[rows])
        state_error[rows], steps[rows] = now.state_error, steps[rows] + now.steps
        error[rows] = torch.where(better, now.error, error[rows])
        going = better & (now.error > grad_rtol) & now.error.isfinite()
        rows, change = rows[going], now.adjoint[going].to(s.dtype)

    batch, s = receipt.status.shape, s.reshape(evidence.x.shape)
    net, enough = evidence.net, error.reshape(receipt.status.shape) <= grad_rtol
    again = adjoint_step(net.W.bind(), net.slopes(evidence.x, evidence.x, evidence.b), s, evidence.g)
    status = torch.where(receipt.converged, int(Status.INACCURATE), receipt.status)
    receipt = replace(
        receipt,
        status=torch.where(enough, int(Status.CONVERGED), status),
        residual=torch.where(steps.reshape(batch) > 0, relative_residual(again, s), receipt.residual),
        steps=receipt.steps + steps.reshape(batch),
        evidence=replace(evidence, s=s),
    )
    receipt.remember(state_error, error)
    return s, receipt
