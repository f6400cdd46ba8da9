"""Plain steps that tell how far there is to go, for a whole batch in one call, by the rules of `retrograde.nearing`.

As in `fixed_point`, a few samples at a time share each load of the matrix, and the next that waits takes the place of
one that is near enough. What is told of a sample is the same whatever else is in the batch.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.fixed_point import distance, norm, put
from retrograde.kernels.cpu.functions import FAST, SLOPES, apply, times_slope
from retrograde.kernels.cpu.structures import in_hand, multiply, ready, room

# What is told of each sample.
RESIDUAL, GAIN, STATE_ERROR, ERROR = range(4)

# What is known of it from before: of its first product, and from a look at its state.
_HIDDEN, _TURNED, _CARRIES, _X_RESIDUAL, _X_GAIN = range(5)


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def approach(M, turned, Mt, t_turned, b, kinds, x, g, D, rules, threads, z, told, turns):
    """z (B, n) some steps on, until its error is told to be small enough: whether it is, (B,).

    z is x if there is no reward, g (0, n); else s, and x, from which D (B, n) was read, is but looked at for some
    steps first, unless b is (0, n). What else is told goes to told (B, 4), and how many steps there were to turns (B,).
    The kinds are those of f and of an adjoint, and the rules `retrograde.kernels.nearing.Rules`.
    """
    B, n = z.shape
    f, slopes = kinds
    A = ready(M, turned)
    At = ready(Mt, t_turned) if len(g) else A
    y, bend, none = x.copy() if len(g) else z, np.empty((min(len(b), len(g)), n), z.dtype), np.empty((0, n), z.dtype)
    known, met = np.zeros((B, 5)), np.zeros(B, np.bool_)
    known[:, _X_GAIN] = 1
    for thread in prange(threads):
        first, last = B * thread // threads, B * (thread + 1) // threads
        if len(b):
            _approach(A, b, D, f, f, rules, first, last, y, none, bend, known, told, turns, met)
        if len(g):
            _approach(At, g, D, slopes, f, rules, first, last, z, x, bend, known, told, turns, met)
    return met


@njit(error_model="numpy", fastmath=FAST)
def _approach(A, c, D, kind, f, rules, waiting, end, z, x, bend, known, told, turns, met):
    """z of the samples from `waiting` to before `end`, on one thread; a state that has `bend` to fill is looked at."""
    n = z.shape[1]
    most = in_hand(A, end - waiting)
    work = room(A, n, most)
    u, here, way = np.empty((most, n), z.dtype), np.empty((most, n), z.dtype), np.empty((most, n), z.dtype)
    between = np.empty((2, n), z.dtype)
    sample, turn, slow = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.bool_)
    gaps, rates, scale = np.empty(most), np.empty(most), np.ones(most, z.dtype)
    looking = kind != SLOPES and len(bend) > 0
    turns_at_most = rules.looks if looking else rules.turns
    lanes = 0
    while True:
        while lanes < most and waiting < end:
            sample[lanes], turn[lanes], slow[lanes], rates[lanes] = waiting, 0, False, np.inf
            if kind == SLOPES:
                scale[lanes] = _to_about_1(c[waiting])
            for j in range(n):
                here[lanes, j] = z[waiting, j] * scale[lanes]
            waiting += 1
            lanes += 1
        if lanes == 0:
            break
        for lane in range(lanes):
            for j in range(n):
                u[lane, j] = c[sample[lane], j] * scale[lane]
        multiply(A, here[:lanes], u[:lanes], work)
        lane = lanes
        while lane > 0:
            lane -= 1
            i, now, before = sample[lane], u[lane], here[lane]
            if kind == SLOPES:
                if turn[lane] == 0:
                    _beside(f, x[i], rules.eps, bend[i] if len(bend) else c[i, :0], now, before, between, known[i])
                times_slope(kind, D[i], now)
            else:
                apply(kind, now)
            gap, size = distance(now, before)
            if turn[lane] == 0 and kind != SLOPES:
                known[i, _CARRIES], known[i, _X_RESIDUAL] = max(size / math.sqrt(n), 1.0), gap / size
            done = False
            if turn[lane] > 0:
                along = _along(now, before, way[lane])
                rate, gain = _gain(gap, gaps[lane], rates[lane], along, rules.noise * size, rules.slowest)
                state_error, error = _errors(kind, gap / size, gain, known[i])
                times = rules.misled if turn[lane] == 1 and not looking else 1.0
                largest, rest = _errors(kind, times * gap / size, gain, known[i])[1], times * gain * gap / size
                good = largest <= (rules.allowed if rest <= rules.rest * largest else rules.target)
                done = good or gain != gain or (gain == np.inf and slow[lane]) or turn[lane] == turns_at_most
                slow[lane], rates[lane] = gain == np.inf, rate
                if done and looking:
                    known[i, _X_GAIN] = gain
                    _bend(kind, z[i], now, D[i], known[i, _X_RESIDUAL], between[0], bend[i])
                elif done:
                    told[i, RESIDUAL], told[i, GAIN] = gap / size, gain
                    told[i, STATE_ERROR], told[i, ERROR] = state_error, error
                    turns[i], met[i] = turn[lane], good
                    for j in range(n):
                        z[i, j] = before[j] / scale[lane]
            if done:
                lanes -= 1  # the last, which has had its turn, moves here
                sample[lane], turn[lane], slow[lane] = sample[lanes], turn[lanes], slow[lanes]
                gaps[lane], rates[lane], scale[lane] = gaps[lanes], rates[lanes], scale[lanes]
                put(before, here[lanes])
                put(way[lane], way[lanes])
                continue
            gaps[lane] = gap
            turn[lane] += 1
            for j in range(n):
                way[lane, j] = now[j] - before[j]
            put(before, now)


@njit(error_model="numpy", fastmath=FAST)
def _gain(gap, gap_before, rate_before, along, noise, slowest):
    """|r| / |r before|, and the error in units of |r|, of residuals r that go on like that."""
    rate = gap / gap_before
    if not gap_before > noise:
        return rate, np.nan
    rho = rate + max(rate - rate_before, 0.0)
    if not rho < slowest:
        return rate, np.inf
    c = max(along / (gap * gap_before), 0.0) if gap > 0 else 0.0
    return rate, math.sqrt((1 + rho * c) / ((1 - rho * c) * (1 - rho * rho)))


@njit(error_model="numpy", fastmath=FAST)
def _errors(kind, residual, gain, known):
    """That of the state, and that of the gradient."""
    carries = known[_CARRIES]
    if kind != SLOPES:
        return gain * residual, carries * gain * gain * residual
    of_x = gain if known[_X_GAIN] != known[_X_GAIN] else known[_X_GAIN]
    state_error = of_x * known[_X_RESIDUAL]
    return state_error, gain * (residual + of_x * known[_TURNED] + known[_HIDDEN] + carries * state_error)


@njit(error_model="numpy", fastmath=FAST)
def _bend(kind, x, onward, D, residual, slopes, bend):
    """How far each slope is off, if x is by its relative residual: by as much as it changes from x to some onward."""
    slopes[:] = 1
    times_slope(kind, onward, slopes)
    gap, size = distance(onward, x)
    times = residual * size / gap if residual > 0 else 0.0
    for j in range(len(x)):
        bend[j] = times * (slopes[j] - D[j])


@njit(error_model="numpy", fastmath=FAST)
def _beside(f, x, eps, bend, pulled, s, between, known):
    """What its rounding, and an error of x, do to s through the slopes; `pulled` is Wᵀs + g."""
    slopes, nearby = between
    for j in range(len(x)):
        nearby[j], slopes[j] = x[j] + eps * x[j], 1
    times_slope(f, nearby, slopes)
    nearby[:] = 1
    times_slope(f, x, nearby)
    for j in range(len(x)):
        slopes[j] = (slopes[j] - nearby[j]) * pulled[j]
    hidden, size = norm(slopes), norm(s)
    known[_HIDDEN] = hidden / size if hidden > 0 else 0.0
    if len(bend):
        for j in range(len(x)):
            slopes[j] = bend[j] * pulled[j]
        turned = norm(slopes)
        known[_TURNED] = turned / size if turned > 0 else 0.0


@njit(error_model="numpy", fastmath=FAST)
def _to_about_1(g):
    """The power of two that takes the largest |g| to between a half and 1."""
    largest = 0.0
    for j in range(len(g)):
        largest = max(largest, abs(g[j]))
    most = 120 if g.itemsize == 4 else 1000
    return math.ldexp(1.0, max(-most, min(most, -math.frexp(largest)[1])))


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def _along(now, before, way):
    """The inner product of the step from `before` to `now` with the step before it."""
    total = 0.0
    for j in range(len(now)):
        total += (now[j] - before[j]) * way[j]
    return total
