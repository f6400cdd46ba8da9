"""Where stability changes along a curve of steady states, or the curve turns or branches: found, located and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from scipy.optimize import brentq
from torch import Tensor

from retrograde.spectrum.curve import Curve, Point
from retrograde.spectrum.modes import modes

# Two that lie closer together, as a share of the step, are one.
_SAME = 1e-3


@dataclass(frozen=True, eq=False)
class SpecialPoint:
    """A point of a branch at which an eigenvalue of J crosses a border of stability.

    Attributes:
        kind: "fold": the branch turns back, and two states meet. "pitchfork", "transcritical": another branch crosses;
            "branch point" where it was not told which, or where several eigenvalues reach 1 at once. "hopf": a complex
            pair has Re λ = 1; in continuous time a cycle appears. "neimark-sacker": a complex pair of multipliers of
            the cell's own dynamics on the unit circle; in discrete time a cycle appears. "flip": a multiplier of -1.
        parameter: where.
        x: (n,).
        eigenvalue: of J; for "neimark-sacker" and "flip" the multiplier.
        mode: (n,) complex, its vector.
        multiplicity: how many eigenvalues cross together; a complex pair counts once.
        defect: by how much it misses: \\|dt/ds\\| of a fold (s the length of the branch), else \\|Re λ - 1\\| or
            \\|\\|μ\\| - 1\\|.
        bracket: the width of the interval of the parameter, about it, in which this changes sign. It is wide where the
            branch could not be followed right up to it.
        residual: \\|F(x) - x\\|, relative.
        index: it lies between this point of the branch and the one before it.
    """

    kind: str
    parameter: float
    x: Tensor
    eigenvalue: complex
    mode: Tensor
    multiplicity: int
    defect: float
    bracket: float
    residual: float
    index: int
    _point: Point

    def __str__(self) -> str:
        return f"{self.kind} at {self.parameter:.8g} (within {self.bracket:.0e}), eigenvalue {self.eigenvalue:.4g}"


@dataclass
class _Crossing:
    kind: str
    at: float
    width: float
    point: Point
    eigenvalue: complex
    defect: float
    multiplicity: int = 1


def special_points(curve: Curve, p: Point, q: Point, length: float, index: int) -> list[SpecialPoint]:
    """Those between p and q, which lies at that length along the tangent of p; in order."""
    found = _real_and_hopf(curve, p, q, length) + _of_own_dynamics(curve, p, q, length)
    turns = None
    if p.tangent[-1] * q.tangent[-1] < 0:
        turns = _locate(curve, p, q, length, lambda each: float(each.tangent[-1]))
    if turns is not None:
        at, width, point = turns
        same = [each for each in found if each.kind == "real" and abs(each.at - at) <= _SAME * length]
        found = [each for each in found if each not in same]
        one = complex(point.real[(point.real - 1).abs().argmin()])
        if same or _crosses_one(curve, p, at, length):
            defect = abs(float(point.tangent[-1])) * float(curve.weights[-1]) ** 0.5
            found.append(
                _Crossing("fold", at, width, point, one, defect, max(1, sum(each.multiplicity for each in same)))
            )
        else:  # it turns, and no eigenvalue crosses: another branch passes through its apex
            found.append(_Crossing("real", at, width, point, one, abs(one - 1)))
    return [_told(curve, each, index) for each in sorted(found, key=lambda each: each.at)]


def _real_and_hopf(curve: Curve, p: Point, q: Point, length: float) -> list[_Crossing]:
    """Where an eigenvalue of J has Re λ = 1: the j-th largest real part is a continuous function of the length."""

    def excess(j: int, point: Point) -> float:
        return float(point.real[j].real) - 1

    counts = [int((each.real.real > 1).sum()) for each in (p, q)]
    found: list[_Crossing] = []
    for j in range(min(counts), max(counts)):
        located = _locate(curve, p, q, length, partial(excess, j))
        if located is not None:
            value = complex(located[-1].real[j])
            kind = "hopf" if _is_complex(value, located[-1]) else "real"
            _add(found, _Crossing(kind, *located, value, abs(value.real - 1)), length)
    return found


def _crosses_one(curve: Curve, p: Point, at: float, length: float) -> bool:
    """Whether a real eigenvalue of J crosses 1 there, even if over the whole step another makes up for it."""
    signs = []
    for s in (at - _SAME * length, at + _SAME * length):
        y = curve.beyond(p, s)
        if y is None:
            return False
        values = curve.point(y, p.tangent).real
        signs.append(bool(values[(values - 1).abs().argmin()].real > 1))
    return signs[0] != signs[1]


def _of_own_dynamics(curve: Curve, p: Point, q: Point, length: float) -> list[_Crossing]:
    """Where a multiplier μ of the cell's own dynamics has |μ| = 1; but for μ = 1, where λ is 1 too."""

    def excess(j: int, point: Point) -> float:
        return float(point.own[j].abs()) - 1

    counts = [int((each.own.abs() > 1).sum()) for each in (p, q)]
    found: list[_Crossing] = []
    for j in range(min(counts), max(counts)):
        located = _locate(curve, p, q, length, partial(excess, j))
        if located is not None:
            value = complex(located[-1].own[j])
            if _is_complex(value, located[-1]):
                _add(found, _Crossing("neimark-sacker", *located, value, abs(abs(value) - 1)), length)
            elif value.real < 0:
                _add(found, _Crossing("flip", *located, value, abs(abs(value) - 1)), length)
    return found


def _is_complex(value: complex, point: Point) -> bool:
    return abs(value.imag) > torch.finfo(point.y.dtype).eps ** 0.25


def _add(found: list[_Crossing], new: _Crossing, length: float) -> None:
    """One more; the other half of a pair is none, and another eigenvalue at the same place counts with the first."""
    for each in found:
        if each.kind == new.kind and abs(each.at - new.at) <= _SAME * length:
            if abs(each.eigenvalue.conjugate() - new.eigenvalue) > 1e-6 or new.kind in ("real", "flip"):
                each.multiplicity += 1
            return
    found.append(new)


def _locate(
    curve: Curve, p: Point, q: Point, length: float, test: Callable[[Point], float]
) -> tuple[float, float, Point] | None:
    """Where the test, of opposite signs at p and q, is 0: the length, the width of its interval, and the point.

    None where the signs are the same.
    """
    seen = {0.0: p, length: q}

    def at(s: float) -> Point:
        if s not in seen:
            y = curve.between(p, q, length, s)
            if y is None:
                raise _Lost
            seen[s] = curve.point(y, p.tangent)
        return seen[s]

    if test(p) * test(q) > 0:
        return None
    within = _resolution(curve) * length
    try:
        s = float(brentq(lambda s: test(at(s)), 0.0, length, xtol=within, maxiter=100))
        return s, 2 * within, at(s)
    except _Lost:
        # The branch could not be followed right up to it: the nearest that was seen, once the interval is as small as
        # halves make it.
        known = sorted(seen)
        low, high = next(pair for pair in pairwise(known) if test(seen[pair[0]]) * test(seen[pair[1]]) <= 0)
        try:
            while high - low > within:
                middle = (low + high) / 2
                low, high = (low, middle) if test(seen[low]) * test(at(middle)) <= 0 else (middle, high)
        except _Lost:
            pass
        s = min((low, high), key=lambda s: abs(test(seen[s])))
        return s, high - low, seen[s]


class _Lost(Exception):
    """A point between two of the curve that was not found."""


def _resolution(curve: Curve) -> float:
    return float(torch.finfo(curve.weights.dtype).eps) ** 0.75


def _told(curve: Curve, crossing: _Crossing, index: int) -> SpecialPoint:
    point = crossing.point
    own = crossing.kind in ("flip", "neimark-sacker")
    values, vectors = modes(curve.family.at(point.t), point.x, curve.modes, own, "modulus" if own else "real")
    mode = vectors[(values - crossing.eigenvalue).abs().argmin()]
    kind = _kind_of_branch_point(curve, crossing) if crossing.kind == "real" else crossing.kind
    along = abs(float(point.tangent[-1])) * crossing.width
    rounding = float(torch.finfo(point.y.dtype).eps) * max(abs(point.t), 1 / float(curve.weights[-1]) ** 0.5)
    return SpecialPoint(
        kind=kind,
        parameter=point.t,
        x=point.x,
        eigenvalue=crossing.eigenvalue,
        mode=mode,
        multiplicity=crossing.multiplicity,
        defect=crossing.defect,
        bracket=along + rounding,
        residual=point.residual,
        index=index,
        _point=point,
    )


def _kind_of_branch_point(curve: Curve, crossing: _Crossing) -> str:
    """By the normal form: with v and w the null vectors of I - J, wᵀF_xx[v, v] is 0 at a pitchfork."""
    point = crossing.point
    cell, x = curve.family.at(point.t), point.x[None]
    if cell.full is None or crossing.multiplicity > 1:
        return "branch point"
    U, _, Vh = torch.linalg.svd(torch.eye(x.shape[1]).to(x) - cell.full(x)[0])
    w, v = U[:, -1], Vh[-1:]
    h = torch.finfo(x.dtype).eps ** (1 / 3) * curve.scale
    bend = (cell.tangent(x + h * v)(v) - cell.tangent(x - h * v)(v))[0] / (2 * h)
    flat = abs(float(w @ bend)) * curve.scale <= 10 * torch.finfo(x.dtype).eps ** (1 / 3)
    return "pitchfork" if flat else "transcritical"
