"""z = step(z) by iteration, for a whole batch in one call; each sample stops by its own residual.

A few samples at a time share each load of the matrix. When one of them stops, the next that waits takes its place, so a
slow sample costs its own steps alone, and a sample's arithmetic is the same whatever else is in the batch.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.functions import FAST, SLOPES, all_finite, apply, times_slope
from retrograde.kernels.cpu.structures import in_hand, is_finite, multiply, outer_part, ready, room

WINDOW = 32
LEAST, MOST = 2.0**-10, 2.0**10
UNFIT, DONE, ALL_CONVERGED = 0, 1, 2


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def iterate(M, transposed, c, D, kind, numbers, threads, whole, x, z, residual, steps, amplified, dW):
    """z <- z + damping (step(z) - z), written to z (B, n), residual (B,) and steps (B,).

    step(z) = f(Mz + c) with f by its number, or D (Mz + c) with the slopes D (B, n). M is as `structures` has it,
    transposed; c is (B, n). The numbers are the damping, rtol, tiny, max_steps, floor and whether it is
    hasty: see `is_given_up`.

    As a `whole` it does, in the same call, what comes before and after. For a steady state it looks whether all that is
    given is finite. For an adjoint it begins at Dc, finds |z| / |Dc| of each sample, amplified (B,), and, for a full W,
    adds Σ_k z[k] x[k]ᵀ to dW, unless that is (0, 0).

    Returns:
        UNFIT, and nothing was done, where what was looked at is not fit for it (see `is_fit`); DONE; or, of a whole,
        ALL_CONVERGED, which no rounding hides.
    """
    if whole and not (is_fit(D, c, z, amplified) if kind == SLOPES else is_finite(M) and all_finite(c)):
        return UNFIT
    A, B = ready(M, transposed), len(z)
    for thread in prange(threads):
        first, last = B * thread // threads, B * (thread + 1) // threads
        _iterate(A, c, D, kind, numbers, first, last, z, residual, steps)
    if not whole:
        return DONE
    if len(dW):
        for thread in prange(threads):
            outer_part(M, z, x, thread, threads, dW)
    return outcome(kind, numbers, z, residual, amplified)


@njit(error_model="numpy", fastmath=FAST)
def _iterate(A, c, D, kind, numbers, waiting, end, z, residual, steps):
    """The samples from `waiting` to before `end`, on one thread."""
    damping, rtol, tiny, max_steps, floor, hasty = numbers
    n = z.shape[1]
    most = in_hand(A, end - waiting)
    work = room(A, n, most)
    u, x = np.empty((most, n), z.dtype), np.empty((most, n), z.dtype)
    sample, count, mark = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most)
    lanes = 0
    while True:
        while lanes < most and waiting < end:
            sample[lanes], count[lanes], mark[lanes] = waiting, 0, np.inf
            put(x[lanes], z[waiting])
            waiting += 1
            lanes += 1
        if lanes == 0:
            break
        for lane in range(lanes):
            put(u[lane], c[sample[lane]])
        multiply(A, x[:lanes], u[:lanes], work)
        lane = lanes
        while lane > 0:
            lane -= 1
            i, now, before = sample[lane], u[lane], x[lane]
            if kind == SLOPES:
                times_slope(kind, D[i], now)
            else:
                apply(kind, now)
            gap, size = distance(now, before)
            r = gap / max(size, tiny)
            given_up = False
            if count[lane] % WINDOW == 0:
                given_up = is_given_up(r, mark[lane], max_steps - count[lane], rtol, floor, hasty)
                mark[lane] = r
            if r > rtol and r < np.inf and count[lane] < max_steps and not given_up:
                count[lane] += 1
                for j in range(n):
                    before[j] += damping * (now[j] - before[j])
                continue
            residual[i], steps[i] = r, count[lane]
            put(z[i], before)
            lanes -= 1  # the last, which has had its turn, moves here
            sample[lane], count[lane], mark[lane] = sample[lanes], count[lanes], mark[lanes]
            put(before, x[lanes])


@njit(error_model="numpy")
def is_given_up(residual, mark, left, rtol, floor, hasty):
    """Whether a residual that was `mark` WINDOW steps ago, infinite where that was before the first, is left as it is.

    So it is below `floor`, if it has not fallen: to rounding. And if hasty, where at its pace twice the steps that are
    left would not do.
    """
    if residual < floor and residual >= mark:
        return True
    return hasty and mark < np.inf and residual * (residual / mark) ** (2 * left / WINDOW) > rtol


@njit(error_model="numpy", fastmath=FAST)
def is_fit(D, c, z, amplified):
    """Whether the largest |c| of each sample, and |Dc|, are near 1: no limit of the dtype, nor of a tolerance, is met.

    z becomes Dc, and amplified |Dc|.
    """
    for k in range(len(z)):
        largest = 0.0
        for j in range(z.shape[1]):
            z[k, j] = D[k, j] * c[k, j]
            largest = max(largest, abs(c[k, j])) if c[k, j] - c[k, j] == 0 else np.inf
        amplified[k] = norm(z[k])
        if not (min(largest, amplified[k]) >= LEAST and max(largest, amplified[k]) <= MOST):
            return False
    return True


@njit(error_model="numpy")
def outcome(kind, numbers, z, residual, amplified):
    """ALL_CONVERGED or DONE. For an adjoint `amplified`, which held |Dc|, becomes |z| / |Dc|."""
    converged, rtol, tiny = True, numbers[1], numbers[2]
    for k in range(len(z)):
        converged &= residual[k] <= rtol
        if kind == SLOPES:
            amplified[k] = norm(z[k]) / amplified[k]
            converged &= amplified[k] <= 0.1 / math.sqrt(tiny)
    return ALL_CONVERGED if converged else DONE


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def norm(u):
    """|u|."""
    total = 0.0
    for j in range(len(u)):
        total += u[j] * u[j]
    return math.sqrt(total)


@njit(error_model="numpy", fastmath=FAST)
def put(row, values):
    """row[:] = values, in a tenth of the time to compile: without a message for shapes that do not fit."""
    for j in range(len(row)):
        row[j] = values[j]


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def distance(u, x):
    """|u - x| and |x|; where |x| overflows, nothing is small beside it, and |u - x| is infinite too."""
    gap = size = 0.0
    for j in range(len(u)):
        gap += (u[j] - x[j]) * (u[j] - x[j])
        size += x[j] * x[j]
    return (math.sqrt(gap), math.sqrt(size)) if size < np.inf else (np.inf, 1.0)
