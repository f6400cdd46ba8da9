"""How each sample of a steady state ends: stable, unstable, marginal, oscillating, diverging, or not found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from retrograde.checks import broadcast_shapes, check_finite, check_last_axis, check_like
from retrograde.recurrence import Recurrence
from retrograde.result import SteadyState
from retrograde.solvers import relative_residual
from retrograde.solvers.base import default_rtol
from retrograde.spectrum.cycles import Dynamics, Fate, OfNetwork, course
from retrograde.spectrum.glance import Leading, look
from retrograde.spectrum.jacobians import cast_to, equations_of
from retrograde.spectrum.stable import Bifurcation
from retrograde.tables import Readable, Row
from retrograde.transforms import opaque, precisely, transformed

if TYPE_CHECKING:
    from retrograde.network import Network


class Verdict(IntEnum):
    """How a sample ends. Its ``message`` says it."""

    STABLE = 0
    UNSTABLE = 1
    MARGINAL = 2
    OSCILLATING = 3
    DIVERGING = 4
    NOT_FOUND = 5

    @property
    def message(self) -> str:
        """The verdict as a sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Verdict.STABLE: "stable: the dynamics return to this steady state",
    Verdict.UNSTABLE: "unstable: a steady state that the dynamics leave",
    Verdict.MARGINAL: "marginal: a bifurcation is near",
    Verdict.OSCILLATING: "oscillating: no steady state was found",
    Verdict.DIVERGING: "diverging: no steady state was found, and the activity grows without limit",
    Verdict.NOT_FOUND: "not found: no steady state was found",
}


@dataclass(frozen=True, eq=False, repr=False)
class Verdicts(Readable):
    """The verdict on each sample; `...` is the batch.

    Attributes:
        code: (...,) a `Verdict`.
        margin: (...,) 1 - |leading eigenvalue| of the network's own dynamics, its leak included; below 0 they leave.
            NaN where no steady state was found.
        margin_discrete: (...,) 1 - max |λ| of DW, for x ← f(Wx + b). NaN likewise.
        margin_continuous: (...,) 1 - max Re λ of DW, for τ dx/dt = -x + f(Wx + b). NaN likewise.
        near: (...,) the `Bifurcation` to which the leading eigenvalue leads; -1 where no steady state was found.
        fate: (...,) the `Fate` of the dynamics: from an unstable state, after a push along its leading mode; where none
            was found, from where the solve stopped. Stable states settle; from marginal ones nothing is run.
        period: (...,) in steps: of an exact cycle a whole number; of a quasi-periodic one, one over its strongest
            frequency. NaN where the dynamics do not go round.
        amplitude: (...,) peak to peak, of the neuron that moves most; of aperiodic dynamics too.
        exponent: (...,) the largest Lyapunov exponent a step; NaN where nothing was run, or it settled or grew.
    """

    code: Tensor
    margin: Tensor
    margin_discrete: Tensor
    margin_continuous: Tensor
    near: Tensor
    fate: Tensor
    period: Tensor
    amplitude: Tensor
    exponent: Tensor

    @property
    def stable(self) -> Tensor:
        """(...,) whether the verdict is `Verdict.STABLE`."""
        return self.code == Verdict.STABLE

    @property
    def sentences(self) -> list[str]:
        """A sentence for each sample, in the order of ``code.flatten()``."""
        columns = (self.code, self.margin, self.near, self.fate, self.period, self.amplitude)
        return [_sentence(*row) for row in zip(*(column.flatten().tolist() for column in columns), strict=True)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its fields, in order."""
        return tuple(getattr(self, each.name) for each in fields(self))

    def _title(self) -> str:
        return f"Verdicts: {self}"

    def _rows(self) -> list[Row]:
        rows = [
            ("margin", self.margin),
            ("margin, discrete", self.margin_discrete),
            ("margin, continuous", self.margin_continuous),
        ]
        return [(name, value) for name, value in rows if value.isfinite().any()]

    def __str__(self) -> str:
        """Of one sample the sentence; of several, how many there are of each verdict."""
        if self.code.numel() == 1:
            return self.sentences[0]
        counts = Counter(self.code.flatten().tolist())
        told = ", ".join(
            f"{counts[verdict]} {verdict.name.lower().replace('_', ' ')}" for verdict in Verdict if counts[verdict]
        )
        return told or "no samples"


def _sentence(code: int, margin: float, near: int, fate: int, period: float, amplitude: float) -> str:
    told = Verdict(code).message
    if code == Verdict.STABLE:
        return f"{told}, with a margin of {margin:.3g}."
    if code == Verdict.MARGINAL:
        side = "inside it" if margin > 0 else "beyond it"
        return f"{told}, {abs(margin):.2g} {side}: {Bifurcation(near).message}."
    if code == Verdict.DIVERGING:
        return f"{told}."
    if code == Verdict.UNSTABLE:
        told = f"{told}, {-margin:.3g} beyond {Bifurcation(near).message}"
    numbers = [f"a period of {period:.4g} steps"] if math.isfinite(period) else []
    numbers += [f"an amplitude of {amplitude:.3g}"] if math.isfinite(amplitude) else []
    return f"{told}; {Fate(fate).message}{', with ' if numbers else ''}{' and '.join(numbers)}."


@precisely
def verdict(
    net: Network | Recurrence,
    state: SteadyState | Tensor,
    *,
    input: Tensor | None = None,
    x0: Tensor | None = None,
    near: float = 0.01,
    steps: int = 4096,
) -> Verdicts:
    """How each sample of a steady state ends, by the network's own dynamics, its leak included.

    A state that was found is judged by `stability`. One that the dynamics leave, and one that was not found, is run on
    for up to ``steps`` steps, to see what becomes of it.

    Args:
        net: a Network or a Recurrence.
        state: what ``net.steady_state`` gave, or x (..., n), which is found where |f(Wx + b) - x| is as small as the
            dtype allows.
        input: (..., n), what was added to the bias (of a Recurrence: b); None is 0.
        x0: (..., n), where a sample whose solve ended at infinity is run from; None is 0.
        near: how close to the unit circle is marginal, on either side.
        steps: how long to run; periods of up to a sixth of it are seen.

    Raises:
        ValueError, TypeError: an argument of the wrong shape or dtype, or not finite; or the state is not one of this
            network with this input.

    >>> import retrograde as rg
    >>> shy = rg.Network(torch.tensor([[-3.0]]), b=torch.tensor([0.5]))
    >>> found = verdict(shy, shy.steady_state())
    >>> Verdict(int(found.code)).message
    'unstable: a steady state that the dynamics leave'
    >>> Bifurcation(int(found.near)).name, Fate(int(found.fate)).name, int(found.period)
    ('FLIP', 'CYCLE', 2)
    """
    equations, b = equations_of(net, input)
    W = equations.W.bind()
    n = W.shape[0]
    if b is None:
        b = W.like.new_zeros(n) if isinstance(net, Recurrence) else net.total(None)
    solved = state if isinstance(state, SteadyState) else None
    x = state.x if isinstance(state, SteadyState) else state
    check_last_axis("state", check_like("state", x, W.like), n)
    if solved is None:
        check_finite("state", x)
    if not 0 <= near < 1:
        raise ValueError(f"near: expected a number of at least 0 and less than 1, got {near}")
    if broadcast_shapes("state and input", state=x.shape, input=b.shape) != x.shape:
        raise ValueError(f"input: expected shape {tuple(x.shape)} or one that broadcasts to it, got {tuple(b.shape)}")
    batch = x.shape[:-1]
    start = x.new_zeros(n) if x0 is None else check_finite("x0", check_last_axis("x0", check_like("x0", x0, W.like), n))
    samples = x, b.expand(x.shape), start.expand(*batch, n), None if solved is None else solved.converged

    def judge(
        x: Tensor, b: Tensor, start: Tensor, converged: Tensor | None, leak: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        net = replace(equations, W=W.bind(*weights), leak=equations.leak if leak is None else leak)
        batch = x.shape[:-1]
        x, b, start = (each.detach().reshape(-1, n) for each in (x, b, start))
        found = _found(net, b, x, converged, 0.0 if solved is None else solved.tolerance)
        if x.dtype in (torch.float16, torch.bfloat16):  # too coarse to run on for long
            net, x, widened = cast_to(torch.float32, net, x, b)
            b, start = cast(Tensor, widened), start.float()
        told = judged(OfNetwork(net, b), partial(look, net, b), x, found, start, near, steps)
        return tuple(each.reshape(batch) for each in told.tensors)

    leak = equations.leak if isinstance(equations.leak, Tensor) else None
    with torch.no_grad():
        told = opaque(judge, samples, (leak, *W.weights)) if transformed() else judge(*samples, leak, *W.weights)
    return Verdicts(*told)


def _found(net: Recurrence, b: Tensor, x: Tensor, converged: Tensor | None, tolerance: float) -> Tensor:
    """(samples,) whether x is a steady state; ValueError where a solver found it for another input or other weights."""
    residual = relative_residual(net.step(x, b), x)
    if converged is None:
        return residual <= 10 * default_rtol(x.dtype)
    # Where |x| overflows, a residual relative to it says nothing.
    found = converged.reshape(-1) & torch.linalg.vector_norm(x, dim=-1).isfinite()
    if not (residual[found] <= max(10 * tolerance, torch.finfo(x.dtype).eps ** 0.5)).all():
        raise ValueError("state: it is no steady state of this network as it is now, with this input")
    return found


def judged(
    dynamics: Dynamics,
    seen: Callable[[Tensor, Tensor, float], Leading],
    x: Tensor,
    found: Tensor,
    x0: Tensor,
    near: float,
    steps: int,
) -> Verdicts:
    """The verdict on samples x (samples, n), which are steady states where `found`.

    Args:
        dynamics: their own.
        seen: (x of some samples, which samples, near) -> what decides on their stability.
        x0: (samples, n), where a sample at infinity is run from.
        near: how close to the unit circle is marginal.
        steps: how long to run.
    """
    nan = x.new_full((len(x),), torch.nan)
    code = torch.full_like(nan, int(Verdict.NOT_FOUND), dtype=torch.int64)
    told = Verdicts(
        code=code,
        margin=nan,
        margin_discrete=nan.clone(),
        margin_continuous=nan.clone(),
        near=torch.full_like(code, -1),
        fate=torch.full_like(code, int(Fate.UNDECIDED)),
        period=nan.clone(),
        amplitude=nan.clone(),
        exponent=nan.clone(),
    )
    rows = found.nonzero()[:, 0]
    x = torch.where(x.isfinite().all(-1, keepdim=True), x, x0)
    if len(rows):
        leading = seen(x[rows], rows, near)
        told.margin[rows], told.near[rows] = leading.margin.to(told.margin), leading.near.to(told.near)
        told.margin_discrete[rows] = leading.margin_discrete.to(told.margin)
        told.margin_continuous[rows] = leading.margin_continuous.to(told.margin)
        direction = leading.direction
        margin = told.margin[rows]
        close = margin.abs() <= near
        code[rows] = torch.where(margin > 0, int(Verdict.STABLE), int(Verdict.UNSTABLE))
        code[rows[close]] = int(Verdict.MARGINAL)
        told.fate[code == Verdict.STABLE] = int(Fate.SETTLES)
        # A push along the leading mode, small beside the state.
        push = direction.real + direction.imag
        push = push / torch.linalg.vector_norm(push, dim=-1, keepdim=True)
        x[rows] += 1e-3 * torch.linalg.vector_norm(x[rows], dim=-1, keepdim=True).clamp(min=1) * push
    run = (~found | (code == Verdict.UNSTABLE)).nonzero()[:, 0]
    if len(run):
        end = course(dynamics.take(run), x[run], steps)
        told.fate[run], told.period[run], told.amplitude[run], told.exponent[run] = (
            end.fate,
            end.period,
            end.amplitude,
            end.exponent,
        )
        missed = (~found).nonzero()[:, 0]
        fate = told.fate[missed]
        turns = (fate == Fate.CYCLE) | (fate == Fate.QUASI_PERIODIC) | (fate == Fate.APERIODIC)
        code[missed[turns]] = int(Verdict.OSCILLATING)
        code[missed[fate == Fate.GROWS]] = int(Verdict.DIVERGING)
    return told
