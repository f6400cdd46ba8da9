"""grad_rtol: states and adjoints solved as exactly as a gradient needs that shall have that relative error, no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from retrograde.accuracy import Evidence
from retrograde.nearing import Told, adjoint_by_steps, state_by_steps
from retrograde.receipt import Receipt
from retrograde.recurrence import Recurrence, adjoint_step
from retrograde.result import Status
from retrograde.solvers import Blockwise, Cascade, FixedPoint, Multistart, Neumann, Problem, Solution, Solver
from retrograde.solvers.base import check_number, default_rtol, relative_residual
from retrograde.solvers.given import parts_of

_FIRST = 1.0  # times grad_rtol may a residual of the adjoint be at first,
_FIRST_STATE = 0.5  # and so much of it one of the state,
_LOOSEST = 1e-3  # but no more, as a slow mode shows only where faster ones have ended,
_FIRST_NEAR = 5.0  # and of both so much, if Newton's steps follow with residuals in float64,
_STATE = 0.2  # and so much of it the error of the state
_REFINEMENTS = 4  # of s, and of x, are tried where rounding is near,
_TENTHS = 16  # and so many tolerances for x where it is far
_HIDDEN = 10  # times what plain steps tell an error may be where something else has led there
_FAR = 300  # times eps, an error is found as well without float64


def with_rtol(solver: Solver, rtol: float, dtype: torch.dtype) -> Solver:
    """The solver with that tolerance, or with the dtype's where it is larger; a solver without one as it is."""
    if isinstance(solver, Cascade):
        return Cascade(*(with_rtol(each, rtol, dtype) for each in solver.solvers))
    if isinstance(solver, Blockwise | Multistart):
        return replace(solver, solver=with_rtol(solver.solver, rtol, dtype))
    return replace(solver, rtol=max(rtol, default_rtol(dtype))) if hasattr(solver, "rtol") else solver  # type: ignore[type-var]  # a dataclass, as all that have one


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


def for_the_state(solver: Solver, grad_rtol: float, dtype: torch.dtype) -> Solver:
    """The solver with the tolerance that the state is first solved to."""
    rtol = _FIRST_STATE if _is_far(grad_rtol, dtype) else _FIRST_NEAR
    return with_rtol(solver, min(rtol * grad_rtol, _LOOSEST), dtype)


def for_the_adjoint(solver: Solver, grad_rtol: float, dtype: torch.dtype) -> Solver:
    """Likewise for the adjoint."""
    rtol = _FIRST if _is_far(grad_rtol, dtype) else _FIRST_NEAR
    return with_rtol(solver, min(rtol * grad_rtol, _LOOSEST), dtype)


def asks_for_float64(grad_rtol: float | None, dtype: torch.dtype) -> bool:
    """Whether so much is asked of float32 that all is solved in float64, which takes less than to mend it would."""
    return grad_rtol is not None and dtype == torch.float32 and not _is_far(grad_rtol, dtype)


def _is_far(grad_rtol: float, dtype: torch.dtype) -> bool:
    """Whether that is so much more than rounding that residuals may be computed in the dtype."""
    return grad_rtol > _FAR * torch.finfo(dtype).eps


def settle(
    net: Recurrence,
    b: Tensor,
    found: Solution,
    solver: Solver,
    problem: Callable[[], Problem],
    grad_rtol: float,
    factored: bool,
) -> Solution:
    """The states found, (samples, n), solved as far as a gradient needs that shall be right to grad_rtol.

    A few more plain steps tell how far they are off, and take them nearer. Where these tell nothing, Newton's step
    does, and is taken where it is enough; otherwise they go on from where they are with a tenth of the tolerance.
    """
    dtype, small = b.dtype, _STATE * grad_rtol
    far = _is_far(grad_rtol, dtype)
    rows = (found.status == Status.CONVERGED).nonzero()[:, 0]
    if not len(rows) or not (far or dtype != torch.float64):
        return found
    if far:
        every = len(rows) == len(b)
        drive, here = (b, found.value) if every else (b[rows], found.value[rows])
        near = state_by_steps(net, drive, here, lambda: problem().take(rows), small)
        if every and near.enough.all():
            residual, steps = near.residual.to(found.residual.dtype), found.steps + near.turns
            return replace(found, value=near.z, residual=residual, steps=steps)
        _keep(found, rows, near.gain.isfinite(), near.z, near.residual, near.turns)
        rows = rows[~near.enough]
    rtol = min(_FIRST_STATE * grad_rtol, _LOOSEST)
    for _ in range(_REFINEMENTS if not far else _TENTHS):
        if not len(rows):
            break
        here = found.value[rows]
        off = Evidence(net, here, b[rows], here, here, factored).state_correction(rounded=not far)
        away = off.amplified * off.error > small
        _keep(found, rows, away & (off.left < off.error), off.there, off.residual, off.steps)
        rows, rtol = rows[away & ~(off.amplified * off.left <= small)], rtol / 10
        if len(rows) and rtol > default_rtol(dtype):
            again = with_rtol(solver, rtol, dtype).solve(problem().take(rows), found.value[rows])
            found.adopt(rows, again)
    return found


def _keep(found: Solution, rows: Tensor, which: Tensor, z: Tensor, residual: Tensor, steps: Tensor) -> None:
    """Of these rows, take those `which` came nearer."""
    some = rows[which]
    found.record(
        some, z[which], found.status[some], residual[which].to(found.residual.dtype), found.steps[some] + steps[which]
    )


def refine(receipt: Receipt, grad_rtol: float) -> tuple[Tensor, Receipt]:
    """s, as exact as grad_rtol asks for; and what is known of it.

    Plain steps tell the error, and make it less. Where they tell nothing, or do not lead so far, Newton's steps are
    added where the error exceeds grad_rtol and they make it less. Their residuals are computed in float64, so that a
    gradient in float32 comes out right to its last digits even where float32 alone would lose them.
    """
    evidence: Evidence = receipt.evidence
    told = adjoint_by_steps(evidence, grad_rtol) if _is_far(grad_rtol, evidence.s.dtype) else None
    met = None if told is None else _is_met(receipt, told, grad_rtol)
    if told is None or met is None or not met.all():
        told = _mended(receipt, told, met, grad_rtol)
    batch, s = receipt.status.shape, told.s.reshape(evidence.x.shape)
    status = torch.where(receipt.converged, int(Status.INACCURATE), receipt.status)
    receipt = replace(
        receipt,
        status=torch.where(told.error.reshape(batch) <= grad_rtol, int(Status.CONVERGED), status),
        residual=told.residual.reshape(batch).to(receipt.residual.dtype),
        steps=receipt.steps + told.turns.reshape(batch),
        evidence=replace(evidence, s=s),
    )
    receipt.remember(told.state_error, told.error)
    return s, receipt


def _mended(receipt: Receipt, told: Told | None, met: Tensor | None, grad_rtol: float) -> Told:
    """What is told, where it is `met`; with Newton's steps from s where its error is not told to be small enough."""
    evidence: Evidence = receipt.evidence
    *_, s = evidence.flat()
    unknown = torch.full_like(s[:, 0], torch.inf, dtype=torch.float64)
    residual, none = receipt.residual.reshape(-1).clone(), torch.zeros_like(receipt.steps).reshape(-1)
    now = Told(s.clone(), unknown, unknown.clone(), residual, none)
    if told is not None and met is not None:
        now.adopt(met, told)
    stepped = now.turns.clone()
    led_by_steps = _led_by_steps(receipt)
    _by_newton(evidence, now, ((now.error > grad_rtol) & led_by_steps).nonzero()[:, 0], grad_rtol, settles=True)
    _by_newton(evidence, now, (now.error > grad_rtol).nonzero()[:, 0], grad_rtol, settles=False)
    moved = (now.turns > stepped).nonzero()[:, 0]
    if len(moved):
        net, (x, b, g, s) = evidence.net, evidence.take(moved).flat()
        s = now.s[moved]
        now.residual[moved] = relative_residual(adjoint_step(net.W.bind(), net.slopes(x, x, b), s, g), s)
    return now


def _is_met(receipt: Receipt, told: Told, grad_rtol: float) -> Tensor:
    """Which samples plain steps tell to be as exact as asked.

    Where something else led to s it may have left a slow mode, which a few plain steps do not show: they are believed
    with reserve, and not at all where factors can tell.
    """
    led = _led_by_steps(receipt)
    met = torch.where(led, 1, _HIDDEN) * told.error <= grad_rtol
    return met & (led | (told.error == 0)) if receipt.evidence.factored else met


def _led_by_steps(receipt: Receipt) -> Tensor:
    """Whether plain steps led to s, for each sample. To the levels of a W in levels anything may have."""
    solver, attempt = receipt.solver, receipt.attempt
    if isinstance(solver, Blockwise):
        return torch.zeros_like(receipt.converged).reshape(-1)
    parts = solver.solvers if isinstance(solver, Cascade) else (solver,)
    plain = torch.tensor([isinstance(each, FixedPoint) for each in parts], device=receipt.steps.device)
    return plain[(torch.zeros_like(receipt.steps) if attempt is None else attempt).reshape(-1)]


def _by_newton(evidence: Evidence, now: Told, rows: Tensor, grad_rtol: float, settles: bool) -> None:
    """Take Newton's steps from the s of these rows, each as long as it makes an error less that is too large."""
    quick = _is_far(grad_rtol, now.s.dtype)
    far = quick or now.s.dtype != torch.float64
    tried = now.s[rows]
    for turn in range(2 + _REFINEMENTS):
        if not len(rows):
            return
        s = now.s.index_copy(0, rows, tried).reshape(evidence.x.shape)
        # To a digit at first, unless it is rounding in float64 that matters; then, where that is not enough, to more.
        at_first = turn == 0 and far
        here, rounded = replace(evidence, s=s).take(rows), not (quick and settles)
        told = here.correction(quick=at_first, rounded=rounded, settles=settles)
        times = _HIDDEN if at_first and not settles and not evidence.factored else 1
        error, left, known = times * told.error.double(), times * told.left.double(), told.error.isfinite()
        better = (error < now.error[rows]) | (turn == 0)
        now.s[rows] = torch.where(better[:, None], tried, now.s[rows])
        now.error[rows] = torch.where(better, error, now.error[rows])
        now.state_error[rows] = told.state_error.double()
        tried = torch.where(known[:, None], tried + told.adjoint, tried).to(now.s.dtype)
        # A step that will be enough needs no other to say so.
        ending = (now.error[rows] > grad_rtol) & (left <= grad_rtol) & at_first
        now.s[rows[ending]], now.error[rows[ending]] = tried[ending], left[ending]
        now.turns[rows] += torch.where(ending | (turn > 0), told.steps, 0)
        going = better & (now.error[rows] > grad_rtol) & (known | (turn == 0))
        rows, tried = rows[going], tried[going]


def told_short(receipt: Receipt, grad_rtol: float, dtype: torch.dtype) -> str:
    """What error was reached in place of grad_rtol, and whether it is the dtype that allows no less."""
    error = float(receipt.error_estimate.max())
    told = f"The estimated error of the gradient is {error:.1e}, above grad_rtol={grad_rtol:g}."
    if _is_far(grad_rtol, dtype) or not error < 0.1:
        return told
    return (
        f"{told} {str(dtype)[6:]} allows no less here, as x and dR/dx are rounded: grad_rtol={2 * error:.0e} would do."
    )
