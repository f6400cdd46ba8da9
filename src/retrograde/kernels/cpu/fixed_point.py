"""z = step(z) by iteration, for a whole batch in one call; each sample stops by its own residual.

A few samples at a time share each load of the matrix. When one of them stops, the next that waits takes its place, so a
slow sample costs its own steps alone, and a sample's arithmetic is the same whatever else is in the batch.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.functions import FAST, SLOPES, apply, times_slope
from retrograde.kernels.cpu.structures import at_once, multiply, room

WINDOW = 32


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def iterate(A, c, D, kind, damping, rtol, tiny, max_steps, floor, threads, z, residual, steps):
    """z <- z + damping (step(z) - z), written to z (B, n), residual (B,) and steps (B,).

    step(z) = f(Mz + c) with f by its number, or D (Mz + c) with the slopes D (B, n). A is Mᵀ, as `structures` has it;
    c is (B, n). A residual below `floor` that has not fallen for WINDOW steps is left to rounding.
    """
    B, n = z.shape
    for thread in prange(threads):
        waiting, end = B * thread // threads, B * (thread + 1) // threads
        most, work = at_once(A), room(A, n)
        u, x = np.empty((most, n), z.dtype), np.zeros((most, n), z.dtype)
        sample = np.full(most, -1)
        count, mark = np.zeros(most, np.int64), np.zeros(most)
        lanes = 0
        while True:
            for lane in range(most):
                if sample[lane] < 0 and waiting < end:
                    sample[lane], count[lane], mark[lane] = waiting, 0, np.inf
                    x[lane] = z[waiting]
                    waiting += 1
                    lanes += 1
            if lanes == 0:
                break
            for lane in range(most):
                if sample[lane] >= 0:
                    u[lane] = c[sample[lane]]
            if lanes > 2:
                multiply(A, x, u, work)
            else:  # the same terms in the same order, and so the same bits
                for lane in range(most):
                    if sample[lane] >= 0:
                        multiply(A, x[lane : lane + 1], u[lane : lane + 1], work)
            for lane in range(most):
                i = sample[lane]
                if i < 0:
                    continue
                now, before = u[lane], x[lane]
                if kind == SLOPES:
                    times_slope(kind, D[i], now)
                else:
                    apply(kind, now)
                gap, size = distance(now, before)
                r = gap / max(size, tiny)
                stalled = False
                if count[lane] % WINDOW == 0:
                    stalled = r < floor and r >= mark[lane]
                    mark[lane] = r
                if r > rtol and r < np.inf and count[lane] < max_steps and not stalled:
                    count[lane] += 1
                    for j in range(n):
                        before[j] += damping * (now[j] - before[j])
                else:
                    residual[i], steps[i] = r, count[lane]
                    z[i] = before
                    sample[lane] = -1
                    lanes -= 1


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def distance(u, x):
    """|u - x| and |x|; where |x| overflows, nothing is small beside it, and |u - x| is infinite too."""
    gap = size = 0.0
    for j in range(len(u)):
        gap += (u[j] - x[j]) * (u[j] - x[j])
        size += x[j] * x[j]
    return (math.sqrt(gap), math.sqrt(size)) if size < np.inf else (np.inf, 1.0)
