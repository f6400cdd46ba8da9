"""The search for an input: linearise the network at b, solve for the least b of the linear problem, move, repeat.

For f = identity one turn is the answer. Otherwise each turn solves a problem that is convex and separable in b, made
strongly so by the curvature of the network that was met on the last move, along the multipliers p of the targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from retrograde.connectome.driving import Driven
from retrograde.connectome.least import Box, Rows, distance_bound, least, nearest, separable, size_bound
from retrograde.result import ConvergenceError

Told = Callable[[int], None] | None

# A target that is missed by more than rounding is given up where so many turns bring no more than so small a part.
_ROUNDING, _PATIENCE, _WORTH = 1e-6, 5, 0.01
_FLAT = 1e-6  # a curvature that is no more than rounding


class Answer(NamedTuple):
    """b; whether the search came to rest, and why it stopped; and what it proves, of the network linearised at b."""

    b: np.ndarray
    settled: bool
    stopped: str
    turns: int
    size_bound: float
    distance_bound: float


def bring(
    net: Driven,
    low: np.ndarray,
    high: np.ndarray,
    box: Box,
    norm: str,
    linear: bool,
    most: int,
    told: Told = None,
    start: np.ndarray | None = None,
) -> Answer:
    """The least b within the box for which low <= values <= high, or which comes as near as the search gets."""
    b = box.clip(np.zeros(net.m) if start is None else start)
    net.at(b)
    A, value = net.rows(), net.values()
    curvature, heavy, settled = 0.0, 0.0, False
    stopped = f"all of the {most} turns were taken"
    nearest_so_far, since = np.inf, 0
    p = np.zeros(len(low))
    for turn in range(1, most + 1):
        rows = _around(A, value, b, low, high)
        if linear:
            b, p, _ = least(rows, box, norm)
            net.at(b)
            settled = True
            break
        towards, p = _step(rows, box, norm, b, curvature)
        step = towards - b
        length = float(np.abs(step).max(initial=0.0))
        off = float(np.abs(_off(value, low, high)).sum())
        # Out of reach, an f that saturates is approached for ever, by ever larger inputs.
        nearest_so_far, since = (off, 0) if off < (1 - _WORTH) * nearest_so_far else (nearest_so_far, since + 1)
        if off > _ROUNDING and since >= _PATIENCE:
            stopped = f"{_PATIENCE} turns brought the targets no nearer"
            break
        if length <= 1e-9 * (1 + np.abs(b).max(initial=0.0)):
            settled = True
            break
        # As an exact penalty, each unit of distance weighs more than any multiplier.
        heavy = max(heavy, 2 * float(np.abs(p).max(initial=0.0)), 1e-3)
        now = size_of(b, norm) + heavy * off
        gain = now - size_of(towards, norm) - heavy * np.abs(rows.off(towards)).sum()
        share, moved = _back_track(net, low, high, b, step, now, gain, norm, heavy)
        if not moved:
            settled = bool(gain <= 1e-9 * (1 + abs(now)))
            net.at(b)
            if settled or curvature > 1e6:
                stopped = f"no step is better, though the network linearised here promises {gain:.1e}"
                break
            curvature = max(10 * curvature, 1.0)
            continue
        b, value, before = b + share * step, net.values(), A
        A = net.rows()
        # Of size(b) - p·values(b), along the move; it grows where the step had to be cut.
        bend = -float(((A - before).T @ p) @ step) / (float(step @ step) or 1.0) / share
        curvature = max(bend, 0.0) if share == 1.0 else max(bend, 2 * curvature, 1e-3)
        if curvature * (1 + float(np.abs(b).max(initial=0.0))) < _FLAT:
            curvature = 0.0
        if told is not None:
            told(turn)
    rows = _around(net.rows(), net.values(), b, low, high)
    _, q = nearest(rows, box)
    stopped = "nothing moves any more" if settled else stopped
    return Answer(b, settled, stopped, turn, size_bound(rows, box, norm, p), distance_bound(rows, box, q))


def _around(A: np.ndarray, value: np.ndarray, b: np.ndarray, low: np.ndarray, high: np.ndarray) -> Rows:
    """low <= value + A (b' - b) <= high, as rows for b'."""
    shift = A @ b - value
    return Rows(A, low + shift, high + shift)


def _step(rows: Rows, box: Box, norm: str, b: np.ndarray, curvature: float) -> tuple[np.ndarray, np.ndarray]:
    """The answer of the linear problem, with its curvature, and the multipliers."""
    if curvature == 0:
        found = least(rows, box, norm)
        return found.b, found.dual
    if norm == "l2":
        centre, bent, weight = curvature * b / (1 + curvature), 1 + curvature, 0.0
    else:
        centre, bent, weight = b, curvature, 1.0
    bent_so = separable(rows, box, centre, bent, weight)
    if bent_so is not None:
        return bent_so
    plain = least(rows, box, norm)
    if not plain.off.any():
        return plain.b, plain.dual
    slack = 1e-9 * (1 + np.abs(rows.A) @ np.abs(plain.b))
    relaxed = Rows(rows.A, rows.low + np.minimum(plain.off, 0) - slack, rows.high + np.maximum(plain.off, 0) + slack)
    return separable(relaxed, box, centre, bent, weight) or (plain.b, plain.dual)


def _back_track(
    net: Driven,
    low: np.ndarray,
    high: np.ndarray,
    b: np.ndarray,
    step: np.ndarray,
    now: float,
    gain: float,
    norm: str,
    heavy: float,
) -> tuple[float, bool]:
    """How much of the step lowers size + heavy · distance by a part of what the linear problem promises."""
    share = 1.0
    while share > 1e-5:
        tried = b + share * step
        try:
            net.at(tried)
            then = size_of(tried, norm) + heavy * np.abs(_off(net.values(), low, high)).sum()
            if then <= now - 1e-4 * share * gain and gain > 1e-13 * (1 + abs(now)):
                return share, True
        except ConvergenceError:  # there is no steady state so far out
            pass
        share /= 2
    return 0.0, False


def size_of(b: np.ndarray, norm: str) -> float:
    """Σ |b|, or Σ b² / 2."""
    return float(np.abs(b).sum() if norm == "l1" else b @ b / 2)


def _off(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.where(value < low, value - low, np.maximum(value - high, 0.0))


class Most(NamedTuple):
    """b; the reward; and by how much, of the network linearised at b, it may be surpassed."""

    b: np.ndarray
    reward: float
    gap: float
    turns: int


def maximise(
    net: Driven,
    weights: np.ndarray,
    box: Box,
    budget: float,
    most: int,
    told: Told = None,
    start: np.ndarray | None = None,
) -> Most:
    """The b within the box, of Σ |b| <= budget, for which weights · values, those of x, is largest.

    By Frank and Wolfe: to the best corner for the gradient, as far as it climbs. The gap bounds what is left where the
    reward is concave in b, as it is where f = identity.
    """
    b = box.clip(np.zeros(net.m) if start is None else start)
    net.at(b)
    reward, gap = float(weights @ net.values()), np.inf
    for turn in range(1, most + 1):
        gradient = weights @ net.rows()
        step = corner(gradient, box, budget) - b
        gap = float(gradient @ step)
        if gap <= 1e-6 * (1 + abs(reward)):
            break
        share, moved = 1.0, False
        while share > 1e-5 and not moved:
            try:
                net.at(b + share * step)
                then = float(weights @ net.values())
                moved = then >= reward + 1e-4 * share * gap
            except ConvergenceError:
                pass
            share /= 2
        if not moved:
            net.at(b)
            break
        b, reward = b + 2 * share * step, then
        if told is not None:
            told(turn)
    return Most(b, reward, max(gap, 0.0), turn)


def corner(gradient: np.ndarray, box: Box, budget: float) -> np.ndarray:
    """The b within the box, of Σ |b| <= budget, for which gradient · b is largest: the steepest first."""
    end = np.where(gradient > 0, box.upper, np.where(gradient < 0, box.lower, box.clip(np.zeros(len(gradient)))))
    if np.isinf(budget):
        return end
    end = np.where(gradient * end > 0, end, 0.0)
    order = np.argsort(-np.abs(gradient), kind="stable")
    length = np.minimum(np.abs(end[order]), budget)
    left = budget - np.concatenate([[0.0], np.cumsum(length)[:-1]])
    found = np.zeros(len(gradient))
    found[order] = np.sign(end[order]) * np.clip(left, 0.0, length)
    return found
