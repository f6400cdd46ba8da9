"""What a few more plain steps tell of an error: how fast they still move says how far there is to go."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from retrograde.accuracy import Evidence
from retrograde.corrections import carried, hidden_in_slopes, norm
from retrograde.feedback import adjoint_problem
from retrograde.solvers import Problem
from retrograde.solvers.factors import Factors

_NOISE = 32  # times eps, a residual may be rounding
_TURNS = 30  # of the plain steps that tell an error
_SURE = 0.7  # of the error allowed is one that they tell to be, as two or three of them may tell too little
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
    """

    z: Tensor
    residual: Tensor
    gain: Tensor
    enough: Tensor
    turns: Tensor


def approach(
    problem: Problem, z: Tensor, onward: Tensor, enough: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Nearing:
    """Plain steps from z, of which `onward` is the first, until each sample is near enough.

    `enough` judges samples by their numbers, their residuals and their gains. Of residuals that shrink by ρ a step,
    and have a correlation c from one to the next, those still to come add up to κ times the last,
    κ² = (1 + ρc) / ((1 - ρc) (1 - ρ²)): for a single slow mode 1 / (1 - ρ), and less where each leads elsewhere. A ρ
    that rises is taken to rise once more, as it does where a slower mode is about to show.
    """
    rows = torch.arange(len(z), device=z.device)
    told = Nearing(z.clone(), z.new_zeros(len(z)), z.new_zeros(len(z)), rows < 0, torch.zeros_like(rows))
    r, noise = onward - z, _NOISE * torch.finfo(z.dtype).eps
    size, before = norm(r), torch.full_like(told.residual, torch.inf)
    for turn in range(1, _TURNS + 1):
        z, onward = onward, problem.step(onward)
        r_before, size_before, r = r, size, onward - z
        size, length = norm(r), norm(z)
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
    """s after a few more plain steps, and what they tell: of x two, and then of s until it is right to grad_rtol.

    With D at the state that the first two lead to, the residual of s says what the error of x does to s through D.
    """
    net, (x, b, g, s) = evidence.net, evidence.flat()
    W, f = net.W.bind(), net.f
    scale = torch.ldexp(torch.ones_like(g[:, :1]), torch.frexp(g.abs().amax(-1, keepdim=True)).exponent)
    g, s = g / scale, s / scale
    D, none = net.slopes(x, x, b), torch.zeros_like(g[:, 0])
    pulled = W.T @ s + g
    x_error, x_gain, turned = none, none + 1, none
    if b is not None:
        y = net.step(x, b)
        u = W @ y + b
        z, moved = f(u), norm(y - x)
        rate = norm(z - y) / moved
        c = (((z - y) * (y - x)).sum(-1) / (norm(z - y) * moved)).clamp(min=0)
        x_gain = torch.where(rate < _SLOWEST, ((1 + rate * c) / ((1 - rate * c) * (1 - rate**2))).sqrt(), torch.inf)
        x_gain = torch.where(moved > _NOISE * torch.finfo(x.dtype).eps * norm(x), x_gain, torch.nan)
        x_error = moved / norm(x)
        turned = torch.where(moved > 0, norm((f.slope_at(u) - D) * pulled) * moved / norm(z - x), 0)
    carries = carried(x)
    tiny = torch.finfo(x.dtype).tiny

    def parts(some: Tensor, residual: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        of_x = torch.where(x_gain[some].isnan(), gain, x_gain[some])
        state_error = of_x * x_error[some]
        bent = of_x * turned[some] / size[some]
        return state_error, gain * (residual + bent + hidden[some] + carries[some] * state_error)

    size = norm(s).clamp(min=tiny)
    hidden = hidden_in_slopes(f, x, pulled) / size
    problem = adjoint_problem(W, D, g, Factors(D), None)
    near = approach(problem, s, D * pulled, lambda *told: parts(*told)[1] <= _SURE * grad_rtol)
    every = torch.arange(len(s), device=s.device)
    state_error, error = parts(every, near.residual, near.gain)
    error = torch.where(error.isfinite(), error, torch.inf)
    return Told(near.z * scale, state_error, error, near.residual, near.turns)
