"""grad_rtol: states and adjoints solved as exactly as a gradient needs that shall have that relative error, no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from retrograde.accuracy import Evidence, carried, hidden_in_slopes
from retrograde.feedback import adjoint_problem
from retrograde.receipt import Receipt
from retrograde.recurrence import Recurrence, adjoint_step
from retrograde.result import Status
from retrograde.solvers import Blockwise, Cascade, Neumann, Problem, Solution, Solver
from retrograde.solvers.base import check_number, default_rtol, relative_residual
from retrograde.solvers.factors import Factors

_FIRST = 1.0  # times grad_rtol may a residual of the adjoint be at first,
_FIRST_STATE = 0.5  # and so much of it one of the state,
_LOOSEST = 1e-3  # but no more, as a slow mode shows only where faster ones have ended,
_FIRST_NEAR = 5.0  # and of both so much, if Newton's steps follow with residuals in float64,
_STATE = 0.2  # and so much of it the error of the state
_REFINEMENTS = 4  # of s, and of x, are tried where rounding is near,
_TENTHS = 16  # and so many tolerances for x where it is far
_FAR = 300  # times eps, an error is found as well without float64
_NOISE = 32  # times eps, a residual may be rounding
_TURNS = 30  # of the plain steps that tell an error
_SURE = 0.7  # of grad_rtol is an error that they tell to be, as two or three of them may tell too little
_SLOWEST = 0.95  # a turn: where they come no nearer, they tell nothing


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
    rtol = _FIRST_STATE if _is_far(grad_rtol, dtype) else _FIRST_NEAR
    return with_rtol(solver, min(rtol * grad_rtol, _LOOSEST), dtype)


def for_the_adjoint(solver: Solver, grad_rtol: float, dtype: torch.dtype) -> Solver:
    """Likewise for the adjoint."""
    return with_rtol(solver, (_FIRST if _is_far(grad_rtol, dtype) else _FIRST_NEAR) * grad_rtol, dtype)


def _is_far(grad_rtol: float, dtype: torch.dtype) -> bool:
    """Whether that is so much more than rounding that residuals may be computed in the dtype."""
    return grad_rtol > _FAR * torch.finfo(dtype).eps


class _Nearing(NamedTuple):
    """Where plain steps z ← step(z) have come, for each sample, and what their residuals tell.

    Attributes:
        z: (samples, n).
        residual: |step(z) - z| / |z|.
        gain: the error of z in units of its residual; infinite where the steps come no nearer, and NaN where rounding
            hides whether they do.
        enough: whether this is near enough.
        turns: the steps from the start to z.
    """

    z: Tensor
    residual: Tensor
    gain: Tensor
    enough: Tensor
    turns: Tensor


def _approach(
    problem: Problem, z: Tensor, onward: Tensor, enough: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> _Nearing:
    """Plain steps from z, of which `onward` is the first, until each sample is near enough.

    `enough` judges samples by their numbers, their residuals and their gains. Of residuals that shrink by ρ a step,
    and have a correlation c from one to the next, those still to come add up to κ times the last,
    κ² = (1 + ρc) / ((1 - ρc) (1 - ρ²)): for a single slow mode 1 / (1 - ρ), and less where each leads elsewhere. A ρ
    that rises is taken to rise once more, as it does where a slower mode is about to show.
    """
    rows = torch.arange(len(z), device=z.device)
    told = _Nearing(z.clone(), z.new_zeros(len(z)), z.new_zeros(len(z)), rows < 0, torch.zeros_like(rows))
    r, noise = onward - z, _NOISE * torch.finfo(z.dtype).eps
    size, before = _norm(r), torch.full_like(told.residual, torch.inf)
    for turn in range(1, _TURNS + 1):
        z, onward = onward, problem.step(onward)
        r_before, size_before, r = r, size, onward - z
        size, length = _norm(r), _norm(z)
        rate, c = size / size_before, ((r * r_before).sum(-1) / (size * size_before)).clamp(min=0)
        rho = rate + (rate - before).clamp(min=0)
        gain = ((1 + rho * c) / ((1 - rho * c) * (1 - rho**2))).sqrt()
        gain = torch.where(rho < _SLOWEST, gain, torch.inf)
        gain = torch.where(size_before > noise * length, gain, torch.nan)
        residual = size / length
        good = enough(rows, residual, gain)
        if turn == 1:  # which may mislead, though hardly tenfold
            good &= enough(rows, 10 * residual, gain)
        done = good | gain.isnan() | (gain.isinf() if turn > 1 else good)
        if turn == _TURNS:
            done = torch.ones_like(done)
        if done.any():
            ended, steps = rows[done], torch.full_like(rows[done], turn)
            for mine, each in zip(told, (z[done], residual[done], gain[done], good[done], steps), strict=True):
                mine[ended] = each
            left = (~done).nonzero()[:, 0]
            if not len(left):
                break
            problem = problem.take(left)
            rows, z, onward, r, size, rate = (each[left] for each in (rows, z, onward, r, size, rate))
        before = rate
    return told


def _norm(z: Tensor) -> Tensor:
    return torch.linalg.vector_norm(z, dim=-1)


def settle(
    net: Recurrence, b: Tensor, found: Solution, solver: Solver, problem: Problem, grad_rtol: float, factored: bool
) -> None:
    """Solve the states found, (samples, n), as far as a gradient needs that shall be right to grad_rtol.

    A few more plain steps tell how far they are off, and take them nearer. Where these tell nothing, Newton's step
    does, and is taken where it is enough; otherwise they go on from where they are with a tenth of the tolerance. The
    error counts as amplified once more, since dR/dx and D change with the state, and the adjoint amplifies that.
    """
    dtype, small = b.dtype, _STATE * grad_rtol
    far = _is_far(grad_rtol, dtype)
    rows = (found.status == Status.CONVERGED).nonzero()[:, 0]
    if not len(rows) or not (far or dtype != torch.float64):
        return
    if far:
        here = found.value[rows]
        carries, part = carried(here), problem.take(rows)

        def enough(some: Tensor, residual: Tensor, gain: Tensor) -> Tensor:
            return carries[some] * gain**2 * residual <= small

        near = _approach(part, here, part.step(here), enough)
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
            again = with_rtol(solver, rtol, dtype).solve(problem.take(rows), found.value[rows])
            found.adopt(rows, again)


def _keep(found: Solution, rows: Tensor, which: Tensor, z: Tensor, residual: Tensor, steps: Tensor) -> None:
    """Of these rows, take those `which` came nearer."""
    some = rows[which]
    found.record(
        some, z[which], found.status[some], residual[which].to(found.residual.dtype), found.steps[some] + steps[which]
    )


class _Told(NamedTuple):
    """Of each sample, s (samples, n), the errors that plain steps tell, if they tell any, and what they cost."""

    s: Tensor
    state_error: Tensor
    error: Tensor
    residual: Tensor
    turns: Tensor


def _by_steps(evidence: Evidence, grad_rtol: float) -> _Told:
    """s after a few more plain steps, and what they tell: of x two, and then of s until it is right to grad_rtol.

    With D at the state that the first two lead to, the residual of s says what the error of x does to s through D.
    """
    net, (x, b, g, s) = evidence.net, evidence.flat()
    assert x is not None and g is not None and s is not None
    W, f = net.W.bind(), net.f
    scale = torch.ldexp(torch.ones_like(g[:, :1]), torch.frexp(g.abs().amax(-1, keepdim=True)).exponent)
    g, s = g / scale, s / scale
    D, none = net.slopes(x, x, b), torch.zeros_like(g[:, 0])
    pulled = W.T @ s + g
    x_error, x_gain, turned = none, none + 1, none
    if b is not None:
        y = net.step(x, b)
        u = W @ y + b
        z, moved = f(u), _norm(y - x)
        rate = _norm(z - y) / moved
        c = (((z - y) * (y - x)).sum(-1) / (_norm(z - y) * moved)).clamp(min=0)
        x_gain = torch.where(rate < _SLOWEST, ((1 + rate * c) / ((1 - rate * c) * (1 - rate**2))).sqrt(), torch.inf)
        x_gain = torch.where(moved > _NOISE * torch.finfo(x.dtype).eps * _norm(x), x_gain, torch.nan)
        x_error = moved / _norm(x)
        turned = torch.where(moved > 0, _norm((f.slope_at(u) - D) * pulled) * moved / _norm(z - x), 0)
    carries = carried(x)
    tiny = torch.finfo(x.dtype).tiny

    def parts(some: Tensor, residual: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        of_x = torch.where(x_gain[some].isnan(), gain, x_gain[some])
        state_error = of_x * x_error[some]
        bent = of_x * turned[some] / size[some]
        return state_error, gain * (residual + bent + hidden[some] + carries[some] * state_error)

    size = _norm(s).clamp(min=tiny)
    hidden = hidden_in_slopes(f, x, pulled) / size
    problem = adjoint_problem(W, D, g, Factors(D), None)
    near = _approach(problem, s, D * pulled, lambda *told: parts(*told)[1] <= _SURE * grad_rtol)
    every = torch.arange(len(s), device=s.device)
    state_error, error = parts(every, near.residual, near.gain)
    error = torch.where(error.isfinite(), error, torch.inf)
    return _Told(near.z * scale, state_error, error, near.residual, near.turns)


def refine(receipt: Receipt, grad_rtol: float) -> tuple[Tensor, Receipt]:
    """s, as exact as grad_rtol asks for; and what is known of it.

    Plain steps tell the error, and make it less. Where they tell nothing, or do not lead so far, Newton's steps are
    added where the error exceeds grad_rtol and they make it less. Their residuals are computed in float64, so that a
    gradient in float32 comes out right to its last digits even where float32 alone would lose them.
    """
    evidence: Evidence = receipt.evidence
    *_, flat = evidence.flat()
    assert flat is not None
    s, quick = flat.clone(), _is_far(grad_rtol, flat.dtype)
    far = quick or flat.dtype != torch.float64
    error = torch.full_like(s[:, 0], torch.inf, dtype=torch.float64)
    state_error, residual = error.clone(), receipt.residual.reshape(-1).clone()
    steps = torch.zeros_like(receipt.steps).reshape(-1)
    stepped = steps.clone()
    rows = torch.arange(len(s), device=s.device)
    if quick:
        told = _by_steps(evidence, grad_rtol)
        good = told.error <= grad_rtol
        s[good], residual[good], stepped[good] = told.s[good], told.residual[good].to(residual.dtype), told.turns[good]
        error[good], state_error[good] = told.error[good].double(), told.state_error[good].double()
        rows = (~good).nonzero()[:, 0]
    tried = s[rows]
    for turn in range(2 + _REFINEMENTS):
        if not len(rows):
            break
        there = replace(evidence, s=s.index_copy(0, rows, tried).reshape(evidence.x.shape)).take(rows)
        # To a digit at first, unless it is rounding in float64 that matters; then, where that is not enough, to more.
        now = there.correction(quick=turn == 0 and far, rounded=not quick)
        better = (now.error < error[rows]) | (turn == 0)
        s[rows] = torch.where(better[:, None], tried, s[rows])
        error[rows] = torch.where(better, now.error.double(), error[rows])
        known = now.error.isfinite()
        state_error[rows] = now.state_error.double()
        tried = torch.where(known[:, None], tried + now.adjoint, tried).to(s.dtype)
        ending = (error[rows] > grad_rtol) & (now.left <= grad_rtol) & (turn == 0 and far)
        s[rows[ending]], error[rows[ending]] = tried[ending], now.left[ending].double()
        steps[rows] += torch.where(ending | (turn > 0), now.steps, 0)
        going = better & (error[rows] > grad_rtol) & (known | (turn == 0))
        rows, tried = rows[going], tried[going]

    batch, s = receipt.status.shape, s.reshape(evidence.x.shape)
    net, enough, steps = evidence.net, error.reshape(batch) <= grad_rtol, steps.reshape(batch)
    residual = residual.reshape(batch)
    if steps.any():
        again = adjoint_step(net.W.bind(), net.slopes(evidence.x, evidence.x, evidence.b), s, evidence.g)
        residual = torch.where(steps > 0, relative_residual(again, s), residual)
    status = torch.where(receipt.converged, int(Status.INACCURATE), receipt.status)
    receipt = replace(
        receipt,
        status=torch.where(enough, int(Status.CONVERGED), status),
        residual=residual,
        steps=receipt.steps + steps + stepped.reshape(batch),
        evidence=replace(evidence, s=s),
    )
    receipt.remember(state_error, error)
    return s, receipt


def told_short(receipt: Receipt, grad_rtol: float, dtype: torch.dtype) -> str:
    """What error was reached in place of grad_rtol, and whether it is the dtype that allows no less."""
    error = float(receipt.error_estimate.max())
    told = f"The estimated error of the gradient is {error:.1e}, above grad_rtol={grad_rtol:g}."
    if _is_far(grad_rtol, dtype) or not error < 0.1:
        return told
    return (
        f"{told} {str(dtype)[6:]} allows no less here, as x and dR/dx are rounded: grad_rtol={2 * error:.0e} would do."
    )
