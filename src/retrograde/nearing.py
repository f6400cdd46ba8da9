"""What a few more plain steps tell of an error: how fast they still move says how far there is to go.

The residuals of plain steps add up to the error. If they shrink by ρ a step, and have a correlation c from one to the
next, those still to come add up to κ times the last, κ² = (1 + ρc) / ((1 - ρc) (1 - ρ²)): for a single slow mode
1 / (1 - ρ), and less where each leads elsewhere. So, each relative to |x| or |s|,

    error of x = κₓ |f(Wx + b) - x|
    error of s xᵀ = κ (|D (Wᵀs + g) - s| + |δD (Wᵀs + g)| + |εD (Wᵀs + g)| + m · error of x)

with δD what the error of x changes in the slopes, εD what its rounding does, and m how much more than x may change
dR/dx. Where a kernel takes these steps, a whole batch in one call, it follows the same rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from retrograde import kernels
from retrograde.accuracy import Evidence
from retrograde.corrections import carried, hidden_in_slopes, norm
from retrograde.feedback import adjoint_problem, state_problem
from retrograde.recurrence import Recurrence
from retrograde.solvers import Problem
from retrograde.solvers.factors import Factors

_NOISE = 32  # times eps, a residual may be rounding
_TURNS = 30  # of the plain steps that tell an error
_LOOKS = 2  # at most, of those of x that tell what its error does to s
_MISLED = 10  # times as much as it tells may an error be by a first rate alone
_SURE = 0.7  # of the error allowed is one that they tell to be, as two or three of them may tell too little
_REST = 0.1  # of the error, what is left of s is so little that further steps hardly change it
_SLOWEST = 0.95  # a turn: where they come no nearer, they tell nothing


class Nearing(NamedTuple):
    """Where plain steps z ← step(z) have come, for each sample, and what their residuals tell.

    Attributes:
        z: (samples, n).
        residual: |step(z) - z| / |z|.
        gain: the error of z in units of its residual; infinite where the steps come no nearer, and NaN where rounding
            hides whether they do.
        enough: whether this is near enough.
        turns: the steps from the start to z.
        onward: step(z).
    """

    z: Tensor
    residual: Tensor
    gain: Tensor
    enough: Tensor
    turns: Tensor
    onward: Tensor


def approach(
    problem: Problem,
    z: Tensor,
    onward: Tensor,
    enough: Callable[[Tensor, Tensor, Tensor], Tensor],
    turns: int = _TURNS,
    misled: float = _MISLED,
) -> Nearing:
    """Plain steps from z, of which `onward` is the first, until each sample is near enough.

    `enough` judges samples by their numbers, their residuals and their gains. A ρ that rises is taken to rise once
    more, as it does where a slower mode is about to show; one that fluctuates may seem slow once.
    The first may mislead, though hardly tenfold.
    """
    rows = torch.arange(len(z), device=z.device)
    told = Nearing(
        z.clone(), z.new_zeros(len(z)), z.new_zeros(len(z)), rows < 0, torch.zeros_like(rows), onward.clone()
    )
    r, noise = onward - z, _NOISE * torch.finfo(z.dtype).eps
    size, before, slow = norm(r), torch.full_like(told.residual, torch.inf), rows < 0
    for turn in range(1, turns + 1):
        z, onward = onward, problem.step(onward)
        r_before, size_before, r = r, size, onward - z
        size, length = norm(r), norm(z)
        rate, c = size / size_before, ((r * r_before).sum(-1) / (size * size_before)).nan_to_num(0).clamp(min=0)
        rho = rate + (rate - before).clamp(min=0)
        gain = ((1 + rho * c) / ((1 - rho * c) * (1 - rho**2))).sqrt()
        gain = torch.where(rho < _SLOWEST, gain, torch.inf)
        gain = torch.where(size_before > noise * length, gain, torch.nan)
        residual = size / length
        good = enough(rows, residual, gain)
        if turn == 1:
            good &= enough(rows, misled * residual, gain)
        done, slow = good | gain.isnan() | (gain.isinf() & slow), gain.isinf()
        if turn == turns:
            done = torch.ones_like(done)
        if done.any():
            ended, steps = rows[done], torch.full_like(rows[done], turn)
            for mine, each in zip(
                told, (z[done], residual[done], gain[done], good[done], steps, onward[done]), strict=True
            ):
                mine[ended] = each
            left = (~done).nonzero()[:, 0]
            if not len(left):
                break
            problem = problem.take(left)
            rows, z, onward, r, size, rate, slow = (each[left] for each in (rows, z, onward, r, size, rate, slow))
        before = rate
    return told


def _rules(dtype: torch.dtype, target: float, allowed: float) -> kernels.Rules:
    eps = torch.finfo(dtype).eps
    return kernels.Rules(eps, _NOISE * eps, _SLOWEST, _MISLED, _REST, _TURNS, _LOOKS, target, allowed)


def state_by_steps(
    net: Recurrence, b: Tensor, x: Tensor, problem: Callable[[], Problem], target: float
) -> Nearing | kernels.Steps:
    """x, (samples, n), after a few more plain steps of its problem, until its error is no more than the target.

    The error counts as amplified once more, since dR/dx and D change with the state, and the adjoint amplifies that.
    """
    fast = kernels.state_steps(net.W.bind(), net.f, b, x, _rules(x.dtype, target, target))
    if fast is not None:
        return fast
    carries, part = carried(x), problem()

    def enough(some: Tensor, residual: Tensor, gain: Tensor) -> Tensor:
        return carries[some] * gain**2 * residual <= target

    return approach(part, x, part.step(x), enough)


class Told(NamedTuple):
    """Of each sample, s (samples, n), the errors that plain steps tell, if they tell any, and what they cost."""

    s: Tensor
    state_error: Tensor
    error: Tensor
    residual: Tensor
    turns: Tensor

    def adopt(self, which: Tensor, other: Told) -> None:
        """Take what another tells of these samples."""
        for mine, theirs in zip(self, other, strict=True):
            mine[which] = theirs[which].to(mine.dtype)


def adjoint_by_steps(evidence: Evidence, grad_rtol: float) -> Told:
    """s after a few more plain steps, and what they tell: of x first, and then of s until it is right to grad_rtol.

    D where those of x lead to says what the error of x does to s through D.
    """
    net, (x, b, g, s) = evidence.net, evidence.flat()
    W, f, target = net.W.bind(), net.f, _SURE * grad_rtol
    D = net.slopes(x, x, b)
    fast = kernels.adjoint_steps(W, f, b, x, g, D, s, _rules(x.dtype, target, grad_rtol))
    if fast is not None:
        return Told(fast.z, fast.state_error, fast.error, fast.residual, fast.turns)
    scale = torch.ldexp(torch.ones_like(g[:, :1]), torch.frexp(g.abs().amax(-1, keepdim=True)).exponent)
    g, s = g / scale, s / scale
    none = torch.zeros_like(g[:, 0])
    pulled = W.T @ s + g
    x_error, x_gain, turned, carries = none, none + 1, none, carried(x)
    if b is not None:
        y = net.step(x, b)
        moved, at_state = norm(y - x), state_problem(net, b, Factors(D), None)

        def steady(some: Tensor, residual: Tensor, gain: Tensor) -> Tensor:
            return carries[some] * gain**2 * residual <= target

        look = approach(at_state, x, y, steady, _LOOKS, misled=1)
        x_gain, x_error = look.gain, moved / norm(x)
        bent = norm((net.slopes(look.onward, look.z, b) - D) * pulled)
        turned = torch.where(moved > 0, bent * moved / norm(look.onward - x), 0)
    tiny = torch.finfo(x.dtype).tiny

    def parts(some: Tensor, residual: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        of_x = torch.where(x_gain[some].isnan(), gain, x_gain[some])
        state_error = of_x * x_error[some]
        bent = of_x * turned[some] / size[some]
        return state_error, gain * (residual + bent + hidden[some] + carries[some] * state_error)

    def right(some: Tensor, residual: Tensor, gain: Tensor) -> Tensor:
        error = parts(some, residual, gain)[1]
        return error <= torch.where(gain * residual <= _REST * error, grad_rtol, target)

    size = norm(s).clamp(min=tiny)
    hidden = hidden_in_slopes(f, x, pulled) / size
    problem = adjoint_problem(W, D, g, Factors(D), None)
    near = approach(problem, s, D * pulled, right)
    every = torch.arange(len(s), device=s.device)
    state_error, error = parts(every, near.residual, near.gain)
    error = torch.where(error.isfinite(), error, torch.inf)
    return Told(near.z * scale, state_error, error, near.residual, near.turns)
