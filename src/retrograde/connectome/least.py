"""The least b within bounds that brings a few linear functions Ab to given values, and a proof that none is less.

A is (k, m): k targets and m inputs, k small and m large. Both kinds of least have a dual with k numbers p, one for each
target, and any p at all proves a bound: for each b within the bounds that meets the targets r,

    size(b) >= p·r + Σ_j min over b_j of (size(b_j) - (Aᵀp)_j b_j).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse

_TURNS = 200


class Box(NamedTuple):
    """lower <= b <= upper, (m,)."""

    lower: np.ndarray
    upper: np.ndarray

    def clip(self, b: np.ndarray) -> np.ndarray:
        """The nearest to b within it."""
        return np.clip(b, self.lower, self.upper)


class Rows(NamedTuple):
    """low <= Ab <= high, (k,)."""

    A: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def off(self, b: np.ndarray) -> np.ndarray:
        """How far Ab is from where it should be, (k,), with its sign."""
        reached = self.A @ b
        return np.where(reached < self.low, reached - self.low, np.maximum(reached - self.high, 0.0))


class Found(NamedTuple):
    """b; the dual p, (k,); and how far b has to stay from the targets, 0 where these can be met, (k,)."""

    b: np.ndarray
    dual: np.ndarray
    off: np.ndarray


def nearest(rows: Rows, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """b with the least Σ |off|, and p with |p| <= 1 which proves it: see `distance_bound`."""
    k, m = rows.A.shape
    size = _sizes(rows)
    A = np.hstack([rows.A / size[:, None], np.eye(k), -np.eye(k)])
    cost = np.concatenate([np.zeros(m), size, size])
    bounds = np.column_stack(
        [np.concatenate([box.lower, np.zeros(2 * k)]), np.concatenate([box.upper, np.full(2 * k, np.inf)])]
    )
    found = _linear_program(cost, A, rows.low / size, rows.high / size, bounds)
    assert found is not None  # b = 0, clipped, and what is missing then, is a solution
    z, p = found
    return box.clip(z[:m]), np.clip(p / size, -1, 1)


def distance_bound(rows: Rows, box: Box, p: np.ndarray) -> float:
    """No b within the bounds has a smaller Σ |off| than this, whatever |p| <= 1 is; -inf where p proves nothing."""
    p = p / max(1.0, np.abs(p).max(initial=0.0))
    return _wanted(rows, p) - _most(box, rows.A.T @ p, np.abs(rows.A).T @ np.abs(p))


def least(rows: Rows, box: Box, norm: str) -> Found:
    """The b of least Σ |b| ("l1") or Σ b² / 2 ("l2") within the bounds that comes as near as one can."""
    off = np.zeros(len(rows.low))
    found = _least_l1(rows, box) if norm == "l1" else separable(rows, box, np.zeros(rows.A.shape[1]), 1.0, 0.0)
    if found is None:
        b, _ = nearest(rows, box)
        off = rows.off(b)
        relaxed = Rows(
            rows.A, np.where(off < 0, rows.low + off, rows.low), np.where(off > 0, rows.high + off, rows.high)
        )
        slack = 1e-9 * (1 + np.abs(rows.A) @ np.abs(b))
        relaxed = Rows(rows.A, relaxed.low - slack, relaxed.high + slack)
        again = (
            _least_l1(relaxed, box) if norm == "l1" else separable(relaxed, box, np.zeros(rows.A.shape[1]), 1.0, 0.0)
        )
        found = (b, np.zeros(len(off))) if again is None else again
    return Found(found[0], found[1], off)


def size_bound(rows: Rows, box: Box, norm: str, p: np.ndarray) -> float:
    """No b within the bounds that meets the targets is less than this, whatever p is; -inf where p proves nothing."""
    if norm == "l1":
        slope = rows.A.T @ p
        # Rounding leaves Aᵀp a little above 1, where an unbounded b_j would seem to gain without end.
        above = slope[np.isinf(box.upper)].max(initial=1.0), -slope[np.isinf(box.lower)].min(initial=-1.0)
        p, slope = p / max(above), slope / max(above)
        ends = [np.where(np.isfinite(end), end, 0.0) for end in box]
        at = [np.abs(b) - slope * b for b in (*ends, box.clip(np.zeros(len(slope))))]
        return _wanted(rows, p) + float(np.minimum.reduce(at).sum())
    slope = rows.A.T @ p
    b = box.clip(slope)
    return _wanted(rows, p) + float((b * b / 2 - slope * b).sum())


def separable(
    rows: Rows, box: Box, centre: np.ndarray, curvature: float, weight: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """The b of least Σ weight |b| + curvature (b - centre)² / 2 that meets the targets within the bounds; and the dual.

    None where no b does, as far as this method can tell. The dual is concave, smooth, and has k variables: Newton's
    method on it, with the rows whose p would have the wrong sign held at 0.
    """
    size = _sizes(rows)
    A, low, high = rows.A / size[:, None], rows.low / size, rows.high / size
    one_sided = low < high
    p = np.zeros(len(low))

    def primal(p: np.ndarray) -> np.ndarray:
        push = curvature * centre + A.T @ p
        return box.clip(np.sign(push) * np.maximum(np.abs(push) - weight, 0.0) / curvature)

    def wanted(p: np.ndarray) -> np.ndarray:
        return np.where(p > 0, low, np.where(p < 0, high, np.where(one_sided, np.nan, low)))

    def value(p: np.ndarray, b: np.ndarray) -> float:
        r = np.where(p == 0, 0.0, np.where(p > 0, low, high))
        own = weight * np.abs(b) + curvature * (b - centre) ** 2 / 2
        return float(p @ r + (own - (A.T @ p) * b).sum())

    b, damping = primal(p), 0.0
    now, scale = value(p, b), 1 + np.abs(np.where(np.isfinite(low), low, high)).max(initial=0.0)
    for _ in range(_TURNS):
        reached = A @ b
        edge = wanted(p)
        # A row at p = 0 that is within its interval stays; one that is outside is drawn to its nearer edge.
        edge = np.where(np.isnan(edge), np.clip(reached, low, high), edge)
        gradient = edge - reached
        if np.abs(gradient).max(initial=0.0) <= 1e-13 * (scale + np.abs(reached).max(initial=0.0)):
            return b, p / size
        moving = (p != 0) | (gradient != 0)
        free = (b > box.lower) & (b < box.upper) & ((b != 0) | (weight == 0))
        part = A[np.ix_(moving, free)]
        H = part @ part.T / curvature
        damped = max(damping, 1e-13) * max(1.0, np.trace(H)) + (1.0 if not free.any() else 0.0)
        H[np.diag_indices_from(H)] += damped
        step = np.zeros_like(p)
        step[moving] = scipy.linalg.solve(H, gradient[moving], assume_a="pos")
        length, better = 1.0, False
        while length > 1e-6 and not better:
            # p may reach 0 on the way from one side of an interval, and stops there.
            tried = p + length * step
            tried = np.where(one_sided & (tried * p < 0), 0.0, tried)
            b_tried = primal(tried)
            then = value(tried, b_tried)
            better = then >= now + 1e-4 * float(gradient @ (tried - p)) - 1e-15 * abs(now)
            length /= 2
        if better:
            p, b, now, damping = tried, b_tried, then, damping / 10
        else:
            damping = max(100 * damping, 1e-12)
        if damping > 1e3 or np.abs(p).max(initial=0.0) > 1e12:
            break
    slack = np.abs(Rows(A, low, high).off(b)).max(initial=0.0)
    return (b, p / size) if slack <= 1e-9 * (scale + np.abs(A @ b).max(initial=0.0)) else None


def _least_l1(rows: Rows, box: Box) -> tuple[np.ndarray, np.ndarray] | None:
    """The linear program; None where it has no solution."""
    size = _sizes(rows)
    A, (low, high) = rows.A / size[:, None], (rows.low / size, rows.high / size)
    # b is what is above 0 less what is below: (b⁺, b⁻), each as far as the bounds let it.
    positive = np.column_stack([np.maximum(box.lower, 0), np.maximum(box.upper, 0)])
    negative = np.column_stack([np.maximum(-box.upper, 0), np.maximum(-box.lower, 0)])
    both = (box.lower < 0).nonzero()[0]
    found = _linear_program(
        np.ones(len(positive) + len(both)),
        np.hstack([A, -A[:, both]]),
        low,
        high,
        np.vstack([positive, negative[both]]),
    )
    if found is None:
        return None
    z, p = found
    b = z[: len(positive)].copy()
    b[both] -= z[len(positive) :]
    return box.clip(b), p / size


def _linear_program(
    cost: np.ndarray, A: np.ndarray, low: np.ndarray, high: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The z of least cost with low <= Az <= high, and the dual of these rows; None where there is no such z."""
    equal = low == high
    above, below = ~equal & np.isfinite(low), ~equal & np.isfinite(high)
    found = scipy.optimize.linprog(
        cost,
        A_ub=np.vstack([-A[above], A[below]]) if above.any() or below.any() else None,
        b_ub=np.concatenate([-low[above], high[below]]) if above.any() or below.any() else None,
        A_eq=A[equal] if equal.any() else None,
        b_eq=low[equal] if equal.any() else None,
        bounds=bounds,
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.status != 0:
        return None
    p = np.zeros(len(low))
    p[equal] = found.eqlin.marginals if equal.any() else 0.0
    if above.any() or below.any():
        p[above] -= found.ineqlin.marginals[: int(above.sum())]
        p[below] += found.ineqlin.marginals[int(above.sum()) :]
    return found.x, p


def _wanted(rows: Rows, p: np.ndarray) -> float:
    """p·r, r the edge of each interval that p pushes to."""
    edge = np.where(p > 0, rows.low, rows.high)
    return float((p[p != 0] * edge[p != 0]).sum())


def _most(box: Box, slope: np.ndarray, rounded: np.ndarray) -> float:
    """The largest slope·b within the bounds. A slope that is no more than what was rounded gains nothing."""
    end = np.where(slope > 0, box.upper, box.lower)
    some = (slope != 0) & ~((np.abs(slope) <= 1e-9 * rounded) & np.isinf(end))
    return float(slope[some] @ end[some])


def _sizes(rows: Rows) -> np.ndarray:
    """What each row is divided by, so that targets that little reaches count like the others."""
    size = np.abs(rows.A).max(1, initial=0.0)
    return np.where(size > 0, size, 1.0)
