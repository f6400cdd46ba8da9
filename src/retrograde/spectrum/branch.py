"""A branch of steady states, followed as a parameter changes, through folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from retrograde.checks import check_finite, check_like
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError, Status
from retrograde.solvers import Cascade, FixedPoint, Newton
from retrograde.solvers.base import check_number
from retrograde.spectrum.cells import Cell
from retrograde.spectrum.curve import STRAIGHT, Curve, Point
from retrograde.spectrum.diagram import SteadyBranch
from retrograde.spectrum.families import family_of
from retrograde.spectrum.special import SpecialPoint, special_points
from retrograde.transforms import precisely

if TYPE_CHECKING:
    from retrograde.network import Network

# As shares of the largest step: the first; where a bend counts as a kink and is stepped over; where it is given up.
_FIRST, _KINK, _LEAST = 0.25, 1e-4, 1e-8
# From how many starts the first state is looked for where it is not found at once.
_STARTS = 64


@precisely
def continue_steady_state(
    net: Network | Recurrence | nn.RNNCellBase | None,
    parameter: str | tuple[str, Tensor] | Callable[[float], Any],
    range: tuple[float, float],
    *,
    input: Tensor | None = None,
    x0: Tensor | None = None,
    start: float | None = None,
    step: float = 0.02,
    max_points: int = 2000,
    modes: int = 6,
    branches: bool = False,
    throw: bool = True,
) -> SteadyBranch:
    """Follows a steady state x = F(x, t) as t runs through a range, round folds and past other branches.

    Pseudo-arclength continuation: a step along the tangent of (x, t), as long as the bend allows, corrected by Newton's
    method at right angles to it. The tangent solves [I - J, -dF/dt] (dx, dt) = 0, bordered by the one before. Wherever
    an eigenvalue crosses the border of stability, or dt changes its sign, the place is located by root finding.

    Args:
        net: a Network, a Recurrence or a torch cell; None where `parameter` is a function.
        parameter: "gain": x = f(t W x + b). ("input", d): t d is added to the input, d (n,) or (input_size,). Or a
            function of t that gives a Network, a torch cell, or a function x -> x' of rows (samples, n); its slope in t
            is taken by finite differences, which steer the steps and touch no result.
        range: (first, last), in which order t runs to begin with. The branch ends where t leaves this interval, on
            either side.
        input: as in `find_steady_states`.
        x0: (n,), near the steady state to begin with; None is 0. Where nothing is found from there, the nearest of
            those that many starts lead to is taken.
        start: the t of x0; None is ``range[0]``. From inside the range the branch is followed both ways.
        step: the longest step, as a share of the range, and of the root mean square of x (or 1, where that is more).
        max_points: how many points to take at most.
        modes: how many leading eigenvalues to keep.
        branches: whether to follow the branches, too, that cross this one at pitchforks and transcritical points; those
            that cross them in turn are marked, and not followed.
        throw: whether to raise where the branch was lost before it left the range. If not, ``ended`` tells.

    Returns:
        A `SteadyBranch`: parameter, states, stability, special points; ``.plot()``, ``.table()``.

    Raises:
        ValueError, TypeError: an argument of the wrong kind, shape or dtype, or not finite.
        ConvergenceError: no steady state was found at the start; or, with ``throw``, the branch was lost.

    References:
        H. B. Keller, "Numerical solution of bifurcation and nonlinear eigenvalue problems" (1977); E. L. Allgower and
        K. Georg, "Introduction to numerical continuation methods" (2003).

    >>> import retrograde as rg
    >>> net = rg.Network(torch.tensor([[2.0]]).double())  # x = tanh(2x + t)
    >>> branch = continue_steady_state(net, ("input", torch.ones(1).double()), (-1.0, 1.0))
    >>> [(point.kind, round(point.parameter, 6)) for point in branch.special]
    [('fold', 0.53284), ('fold', -0.53284)]
    """
    low, stop = _range(range)
    start = low if start is None else float(check_number("start", start))
    if not min(low, stop) <= start <= max(low, stop):
        raise ValueError(f"start: expected a number within the range {range!r:.60}, got {start}")
    for name, value in (("max_points", max_points), ("modes", modes)):
        if check_number(name, value, Integral) < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value}")
    if not 0 < check_number("step", step) < 1:
        raise ValueError(f"step: expected a number between 0 and 1, got {step}")
    with torch.no_grad():
        family = family_of(net, parameter, input, x0)
        x = _first(family.at(start), x0)
        curve = Curve(family, x, abs(stop - low), modes)
        towards = torch.cat([torch.zeros_like(x), x.new_tensor([stop - low])])
        first = curve.point(torch.cat([x, x.new_tensor([start])]), curve.unit(towards))
        walk = _Walk(curve, min(low, stop), max(low, stop), float(step), int(max_points))
        walk.follow(first)
        if min(low, stop) < start < max(low, stop) and walk.ended != "closed":
            back = _Walk(curve, walk.low, walk.high, walk.longest, walk.max_points)
            back.follow(replace(first, tangent=-first.tangent))
            walk.precede(back)
        others = _others(walk) if branches else ()
        branch = walk.told(others)
    if throw and branch.lost:
        raise ConvergenceError(
            f"branch: lost at {branch.name} = {float(branch.parameter[-1]):.6g} after {len(branch)} points "
            f"({branch.ended}). Try a smaller step, or more points; throw=False returns what was found.",
            branch,
        )
    return branch


class _Walk:
    """Along a curve, point by point, until it leaves the range."""

    def __init__(self, curve: Curve, low: float, high: float, step: float, max_points: int):
        self.curve, self.low, self.high, self.longest, self.max_points = curve, low, high, step, max_points
        self.points: list[Point] = []
        self.special: list[SpecialPoint] = []
        self.ended = ""

    def follow(self, p: Point) -> None:
        """On from p, in the direction of its tangent."""
        self.points.append(p)
        length = _FIRST * self.longest
        while not self.ended:
            if len(self.points) >= self.max_points:
                self.ended = "max_points"
                return
            p = self.points[-1]
            home = self.to_the_first(p)
            taken = min(length, home)
            q = self.next(p, taken)
            if q is None:
                length = taken / 2
                if length < _LEAST * self.longest:
                    self.ended = "step too small"
                continue
            if taken == home:
                self.ended = "closed"
            if not self.low <= q.t <= self.high:
                q, taken = self.at_the_border(p, q, length)
                self.ended = "left the range"
            self.special += special_points(self.curve, p, q, taken, len(self.points))
            self.points.append(q)
            length = min(self.longest, 1.5 * length)

    def next(self, p: Point, length: float) -> Point | None:
        """The point at that length; None where it is not found, or lies round too sharp a bend."""
        curve = self.curve
        y = curve.beyond(p, length)
        if y is None:
            return None
        aside = y - p.y - length * p.tangent
        if curve.inner(aside, aside) > (length / 2) ** 2:
            return None
        q = curve.point(y, p.tangent)
        straight = curve.inner(q.tangent, p.tangent) > STRAIGHT
        # Where t ran against both tangents, it turned twice between them.
        turned = p.tangent[-1] * q.tangent[-1] > 0 and (q.t - p.t) * q.tangent[-1] < 0
        return q if (straight and not turned) or length < _KINK * self.longest else None

    def to_the_first(self, p: Point) -> float:
        """How far ahead the first point is, if the curve has come round to it; else infinity."""
        first = self.points[0]
        ahead = first.y - p.y
        length = self.curve.inner(ahead, p.tangent)
        near = 0 < length <= self.longest and self.curve.inner(ahead, ahead) < 1.1 * length**2
        along = self.curve.inner(first.tangent, p.tangent) > STRAIGHT
        return length if near and along and len(self.points) > 10 else torch.inf

    def precede(self, back: _Walk) -> None:
        """Join another walk from the same first point, backwards, before this one."""
        turned = len(back.points)
        self.points = back.points[:0:-1] + self.points
        self.special = [replace(each, index=turned - each.index) for each in back.special[::-1]] + [
            replace(each, index=each.index + turned - 1) for each in self.special
        ]
        self.ended = self.ended if self.ended != "left the range" else back.ended

    def at_the_border(self, p: Point, q: Point, length: float) -> tuple[Point, float]:
        """The point between p and q where t leaves the range."""
        border = self.low if q.t < self.low else self.high
        ends = {0.0: p.y, length: q.y}

        def beyond(s: float) -> float:
            y = ends[s] if s in ends else self.curve.beyond(p, s)
            return (float(q.t) if y is None else float(y[-1])) - border

        s = float(brentq(beyond, 0.0, length, xtol=1e-14 * length)) if p.t != border else 0.0
        y = self.curve.beyond(p, s) if s else p.y
        if y is None:
            return q, length
        y = y.clone()
        y[-1] = border
        along = torch.zeros_like(y)
        along[-1] = 1
        exact = self.curve.correct(y, along)
        return (q, length) if exact is None else (self.curve.point(exact, p.tangent), s)

    def told(self, others: tuple[SteadyBranch, ...] = ()) -> SteadyBranch:
        points = self.points
        y = torch.stack([p.y for p in points])
        own, values, real = (torch.stack([getattr(p, name) for p in points]) for name in ("own", "values", "real"))
        return SteadyBranch(
            name=self.curve.family.name,
            parameter=y[:, -1],
            x=y[:, :-1],
            residual=y.new_tensor([p.residual for p in points]),
            stable=(own.abs() < 1).all(-1),
            stable_discrete=(values.abs() < 1).all(-1),
            stable_continuous=(real.real < 1).all(-1),
            eigenvalues=values[:, : self.curve.modes],
            rightmost=real[:, 0],
            special=tuple(self.special),
            ended=self.ended,
            branches=others,
        )


def _others(walk: _Walk) -> tuple[SteadyBranch, ...]:
    """The branches that cross this one, each in both directions from where it does."""
    found = []
    curve = walk.curve
    for special in walk.special:
        point = special._point
        if special.kind not in ("pitchfork", "transcritical"):
            continue
        across = _across(curve, point)
        for side in (across, -across):
            length = walk.longest
            y = curve.correct(point.y + length * side, side)
            if y is None or not walk.low <= float(y[-1]) <= walk.high:
                continue
            other = _Walk(curve, walk.low, walk.high, walk.longest, walk.max_points)
            other.points.append(point)
            other.follow(curve.point(y, side))
            found.append(other.told())
    return tuple(found)


def _across(curve: Curve, point: Point) -> Tensor:
    """The direction at right angles to the tangent in which [I - J, -dF/dt] vanishes, too."""
    root = curve.weights.sqrt()
    _, _, Vh = torch.linalg.svd(curve.jacobian(point.y) / root)
    along = curve.unit(point.tangent) * root
    plane = Vh[-2:]
    inside = plane - (plane @ along)[:, None] * along
    v = inside[torch.linalg.vector_norm(inside, dim=-1).argmax()]
    return curve.unit(v / root)


def _first(cell: Cell, x0: Tensor | None) -> Tensor:
    """The steady state to begin with, (n,)."""
    x = cell.like
    if x0 is not None:
        x = check_finite("x0", check_like("x0", x0, x))
        if x.shape != cell.like.shape:
            raise ValueError(f"x0: expected shape ({len(cell.like)},), got {tuple(x.shape)}")
    solver = Cascade(Newton(), FixedPoint())
    found = solver.solve(cell.problem(), x[None])
    if found.status[0] != Status.CONVERGED:
        # From many starts, as find_steady_states does; of what they lead to, what is nearest.
        starts = cell.draw(_STARTS, torch.Generator().manual_seed(0))
        others = solver.solve(cell.problem(), starts)
        good = (others.status == Status.CONVERGED) & (others.value.abs().amax(-1) <= cell.bound)
        if good.any():
            states = others.value[good]
            return states[torch.linalg.vector_norm(states - x, dim=-1).argmin()]
        raise ConvergenceError(
            f"branch: no steady state found to begin with ({Status(int(found.status[0])).message}; residual "
            f"{float(found.residual[0]):.2e}). Give an x0 nearer to one, such as rg.find_steady_states finds.",
            found,
        )
    return found.value[0]


def _range(given: Any) -> tuple[float, float]:
    try:
        first, last = (float(each) for each in given)
    except (TypeError, ValueError):
        raise ValueError(f"range: expected (first, last), got {given!r:.60}") from None
    if not (abs(first) < torch.inf and abs(last) < torch.inf) or first == last:
        raise ValueError(f"range: expected two different finite numbers, got {given!r:.60}")
    return first, last
