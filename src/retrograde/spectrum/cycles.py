"""What a network's own dynamics do in the end: settle, go round, wander, or grow without limit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from retrograde.recurrence import Recurrence
from retrograde.solvers import relative_residual
from retrograde.solvers.base import default_rtol

# A run is looked at after each eighth of it, and the last half decides.
_CHUNKS = 8
# Random directions in which a run is recorded: n numbers a step would be too many for a large network.
_DIRECTIONS = 8
# Two points are one, relative to the amplitude.
_SAME = 1e-6


class Fate(IntEnum):
    """Where a network's dynamics lead. Its ``message`` says it."""

    SETTLES = 0
    CYCLE = 1
    QUASI_PERIODIC = 2
    APERIODIC = 3
    GROWS = 4
    UNDECIDED = 5

    @property
    def message(self) -> str:
        """The fate in a few words."""
        return _FATES[self]


_FATES = {
    Fate.SETTLES: "the dynamics settle",
    Fate.CYCLE: "the dynamics repeat themselves exactly",
    Fate.QUASI_PERIODIC: "the dynamics go round without repeating themselves exactly",
    Fate.APERIODIC: "the dynamics are aperiodic: nearby states part exponentially, as in chaos",
    Fate.GROWS: "the activity grows without limit",
    Fate.UNDECIDED: "what the dynamics come to was not seen within the steps of the run",
}


@dataclass(frozen=True, eq=False)
class Course:
    """What runs of the dynamics came to, for each sample (samples,).

    Attributes:
        fate: a `Fate`.
        period: in steps: of an exact cycle a whole number; of a quasi-periodic one, one over the frequency that is
            strongest in the power spectrum. NaN of the others.
        amplitude: the peak-to-peak range of the neuron that moves most, over the end of the run; of the
            aperiodic too.
        exponent: the largest Lyapunov exponent a step, as far as the run could tell it; NaN where it settled or grew.
    """

    fate: Tensor
    period: Tensor
    amplitude: Tensor
    exponent: Tensor


class Dynamics(Protocol):
    """What runs: x ← F(x) for some samples, x (samples, n)."""

    @property
    def drive(self) -> Tensor:
        """(samples,) the size of what drives them, beside which rounding is measured."""

    @property
    def bounded(self) -> bool:
        """Whether F is known to be."""

    def take(self, rows: Tensor) -> Dynamics:
        """Those of some samples."""

    def advance(self, x: Tensor) -> Tensor:
        """The next x."""

    def carried(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The next x, and where a perturbation v is then."""


@dataclass(frozen=True, eq=False)
class OfNetwork:
    """A network's own dynamics, its leak included, for the total input b (samples, n)."""

    net: Recurrence
    b: Tensor

    @property
    def drive(self) -> Tensor:
        """(samples,) |b|."""
        return torch.linalg.vector_norm(self.b, dim=-1)

    @property
    def bounded(self) -> bool:
        """Whether f is bounded, as far as its values far out tell."""
        far = self.net.f(self.b.new_tensor([-1e6, 1e6]))
        return bool((far.abs() < 1e3).all())

    def take(self, rows: Tensor) -> OfNetwork:
        """Those of some samples."""
        return OfNetwork(self.net, self.b[rows])

    def advance(self, x: Tensor) -> Tensor:
        """The next x."""
        return self.net.advance(x, self.b)

    def carried(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The next x, and where a perturbation v is then."""
        net = self.net
        u = net.W @ x + self.b
        y = net.f(u)
        turned = (net.f.slope(y) if net.f.slope_from_output else net.f.slope_at(u)) * (net.W @ v)
        return (y, turned) if net.leak is None else (x + net.leak * (y - x), v + net.leak * (turned - v))


def course(dynamics: Dynamics, x: Tensor, steps: int) -> Course:
    """The dynamics run from x, (samples, n), until they are understood or for `steps`.

    The exponent is that of an infinitesimal perturbation, carried along by the exact tangent of each step.
    """
    nan = x.new_full((len(x),), torch.nan)
    told = Course(torch.full_like(nan, int(Fate.UNDECIDED), dtype=torch.int64), nan, nan.clone(), nan.clone())
    rows = torch.arange(len(x), device=x.device)
    generator = torch.Generator().manual_seed(0)  # the same for every sample, and every time
    directions = torch.randn(x.shape[1], _DIRECTIONS, generator=generator, dtype=torch.float64).to(x)
    v = torch.randn(x.shape[1], generator=generator, dtype=torch.float64).to(x).expand(x.shape)
    tracks: list[Tensor] = []
    growths: list[Tensor] = []
    early = torch.linalg.vector_norm(x, dim=-1)
    for chunk in range(_CHUNKS):
        if not len(rows):
            break
        x, v, track, growth, swing = _run(dynamics, x, v, directions, max(steps // _CHUNKS, 8))
        tracks, growths = [*tracks, track], [*growths, growth]
        early = early if chunk else torch.linalg.vector_norm(x, dim=-1)
        fate, period = _understood(dynamics, x, track)
        told.fate[rows], told.period[rows] = fate, period
        told.amplitude[rows] = torch.where(fate == Fate.CYCLE, swing, torch.nan)
        told.exponent[rows] = torch.where(fate == Fate.CYCLE, growth, torch.nan)
        going = (fate == Fate.UNDECIDED).nonzero()[:, 0]
        rows, x, v, early, swing = (tensor[going] for tensor in (rows, x, v, early, swing))
        dynamics = dynamics.take(going)
        tracks, growths = [each[:, going] for each in tracks], [each[going] for each in growths]
    if len(rows):
        half = len(tracks) // 2
        exponent = torch.stack(growths[half:]).mean(0)
        grown = torch.linalg.vector_norm(x, dim=-1) / early.clamp(min=torch.finfo(x.dtype).tiny)
        fate, period = _outlasted(torch.cat(tracks[half:]), exponent, grown, dynamics.bounded)
        turns = (fate == Fate.QUASI_PERIODIC) | (fate == Fate.APERIODIC)
        told.fate[rows], told.period[rows] = fate, period
        told.amplitude[rows] = torch.where(turns, swing, torch.nan)
        told.exponent[rows] = torch.where(fate == Fate.GROWS, torch.nan, exponent)
    return told


def _run(
    dynamics: Dynamics, x: Tensor, v: Tensor, directions: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x and a perturbation v carried on; the track (steps, samples, directions); v's growth; the swing of late."""
    track = x.new_empty(steps, len(x), directions.shape[1])
    growth = x.new_zeros(len(x))
    low = high = x
    for t in range(steps):
        x, v = dynamics.carried(x, v)
        size = torch.linalg.vector_norm(v, dim=-1)
        growth += size.log()
        v = torch.where((size > 0)[:, None], v / size[:, None], 1.0)  # one that died starts again, its log -infinity
        track[t] = x @ directions
        low, high = torch.minimum(low, x), torch.maximum(high, x)
        if t == steps // 2:  # what was before may have been on its way
            low = high = x
    return x, v, track, growth / steps, (high - low).amax(-1)


def _understood(dynamics: Dynamics, x: Tensor, track: Tensor) -> tuple[Tensor, Tensor]:
    """The fate and period of those that have settled, repeat themselves or are infinite; UNDECIDED for the others."""
    L = len(track)
    eps = torch.finfo(x.dtype).eps
    same = max(_SAME, eps**0.5)
    swing = (track.amax(0) - track.amin(0)).amax(-1)
    back = (track[-1] - track.flip(0)).abs().amax(-1) <= same * swing  # (L, samples): after how many steps it was here
    back[0] = False
    lags = torch.arange(L, device=x.device)[:, None]
    period = torch.where(back & (lags <= L // 2), lags, L).amin(0)  # the shortest, if any
    lag = period.clamp(max=L // 2)
    # It was here once: was it so all along the last half?
    late = torch.arange(L - L // 2, L, device=x.device)[:, None]
    before = track.gather(0, (late - lag)[..., None].expand(-1, -1, track.shape[-1]))
    repeats = (period < L) & ((track[L - L // 2 :] - before).abs().amax(-1).amax(0) <= same * swing)

    size = torch.linalg.vector_norm(x, dim=-1)
    still = relative_residual(dynamics.advance(x), x) <= 10 * default_rtol(x.dtype)
    still |= swing <= 100 * eps * (size + dynamics.drive)  # but for rounding
    fate = torch.where(repeats & (period > 1), int(Fate.CYCLE), int(Fate.UNDECIDED))
    fate = torch.where(still, int(Fate.SETTLES), fate)
    fate = torch.where(x.isfinite().all(-1) & size.isfinite(), fate, int(Fate.GROWS))
    return fate, torch.where(fate == Fate.CYCLE, period.to(x), torch.nan)


def _outlasted(track: Tensor, exponent: Tensor, grown: Tensor, bounded: bool) -> tuple[Tensor, Tensor]:
    """The fate and period of those that did none of this within the run, from its last half (steps, samples, q)."""
    first, second = track.tensor_split(2)
    swings = [(part.amax(0) - part.amin(0)).amax(-1) for part in (first, second)]
    ratio = swings[1] / swings[0]
    drift = (first.mean(0) - second.mean(0)).abs().amax(-1)
    goes_round = (drift < 0.2 * swings[1]) & (ratio > 0.9) & (ratio < 1.1)
    grows = (grown > 4) & (ratio > 0.9) & ~goes_round & (not bounded)
    # On a torus a perturbation of size 1 grows to T at most. What grew by more did so exponentially.
    T = len(track)
    wild = (exponent > math.log(T) / T) & (ratio > 0.67) & (ratio < 1.5)
    fate = torch.where(goes_round, int(Fate.QUASI_PERIODIC), int(Fate.UNDECIDED))
    fate = torch.where(grows, int(Fate.GROWS), fate)
    fate = torch.where(wild, int(Fate.APERIODIC), fate)
    return fate, torch.where(fate == Fate.QUASI_PERIODIC, _strongest_period(track), torch.nan)


def _strongest_period(track: Tensor) -> Tensor:
    """One over the frequency of the highest peak of the power spectrum, placed by a parabola through its log."""
    T = len(track)
    window = torch.hann_window(T, periodic=False, dtype=track.dtype, device=track.device)[:, None, None]
    power = torch.fft.rfft((track - track.mean(0)) * window, dim=0).abs().square().sum(-1)
    height = power.clamp(min=torch.finfo(track.dtype).tiny).log()
    peak = height[1:-1].argmax(0) + 1
    below, top, above = (height.gather(0, (peak + k)[None])[0] for k in (-1, 0, 1))
    shift = 0.5 * (below - above) / (below - 2 * top + above).clamp(max=-torch.finfo(track.dtype).eps)
    return T / (peak + shift.clamp(-0.5, 0.5))
