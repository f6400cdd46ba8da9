"""One sample of many neurons: the threads share each product, and wait for one another.

A thread takes some neurons, whose part of the matrix may then stay in its core's cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.fixed_point import UNFIT, WINDOW, distance, is_fit, is_given_up, outcome
from retrograde.kernels.cpu.functions import FAST, SLOPES, all_finite, apply, oddity, times_slope
from retrograde.kernels.cpu.structures import multiply_part, part_of, room


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def forward(A, b, bias, leak, kind, threads, x):
    """`sweeps.forward` of one sample. Whether all that was met is finite."""
    T, n = x.shape[0] - 1, x.shape[2]
    odd, work = np.zeros(threads), room(A, 0, 1)
    for t in range(T):
        for thread in prange(threads):
            first, last = part_of(A, n, thread, threads)
            part = x[t + 1, 0, first:last]
            part[:] = bias[0, first:last]
            if len(b):
                part += b[t, 0, first:last]
            multiply_part(A, x[t], x[t + 1], work, first, last)
            for j in range(last - first):
                odd[thread] += part[j] * 0
            apply(kind, part)
            if len(leak):
                before, a = x[t, 0, first:last], leak[first:last]
                for j in range(last - first):
                    part[j] = before[j] + a[j] * (part[j] - before[j])
    return odd.sum() == 0


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def adjoint(A, y, g, at, leak, kind, threads, s_next, l_next, s, l):
    """`sweeps.adjoint` of one sample."""
    T, n = s.shape[0], s.shape[2]
    work = room(A, 0, 1)
    for back in range(T):
        t = T - 1 - back
        after = s[t + 1] if back > 0 else s_next
        for thread in prange(threads):
            first, last = part_of(A, n, thread, threads)
            part = s[t, 0, first:last]
            if at[t] >= 0:
                part[:] = g[at[t], 0, first:last]
            else:
                part[:] = 0
            if len(after):
                multiply_part(A, after, s[t], work, first, last)
            if len(leak):
                a = leak[first:last]
                kept = l[t, 0, first:last]
                if back > 0 or len(l_next):
                    before = l[t + 1, 0, first:last] if back > 0 else l_next[0, first:last]
                    for j in range(last - first):
                        part[j] += (1 - a[j]) * before[j]
                for j in range(last - first):
                    kept[j] = part[j]
                    part[j] *= a[j]
            times_slope(kind, y[t, 0, first:last], part)


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def iterate(A, c, D, kind, damping, rtol, tiny, max_steps, floor, hasty, threads, z):
    """`fixed_point.iterate` for one sample: z, c and D (n,). The residual and the steps."""
    n, steps, mark = len(z), 0, np.inf
    x, u, work = z.reshape(1, n), np.empty((1, n), z.dtype), room(A, 0, 1)
    while True:
        for thread in prange(threads):
            first, last = part_of(A, n, thread, threads)
            part = u[0, first:last]
            part[:] = c[first:last]
            multiply_part(A, x, u, work, first, last)
            if kind == SLOPES:
                times_slope(kind, D[first:last], part)
            else:
                apply(kind, part)
        gap, size = distance(u[0], z)
        residual = gap / max(size, tiny)
        given_up = False
        if steps % WINDOW == 0:
            given_up = is_given_up(residual, mark, max_steps - steps, rtol, floor, hasty)
            mark = residual
        if not (residual > rtol and residual < np.inf and steps < max_steps) or given_up:
            return residual, steps
        steps += 1
        for j in range(n):
            z[j] += damping * (u[0, j] - z[j])


@njit(error_model="numpy", fastmath=FAST, cache=True)
def whole(A, c, D, kind, numbers, threads, z, residual, steps, amplified):
    """`fixed_point.iterate` as a whole, of one sample and a full W, without dR/dW: c, D and z are (1, n)."""
    if not (is_fit(D, c, z, amplified) if kind == SLOPES else _is_finite(A[0], threads) and all_finite(c)):
        return UNFIT
    residual[0], steps[0] = iterate(A, c[0], D[0], kind, *numbers, threads, z[0])
    return outcome(kind, numbers, z, residual, amplified)


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def _is_finite(blocks, threads):
    odd, numbers = np.zeros(threads), blocks.reshape(blocks.size)
    for thread in prange(threads):
        odd[thread] = oddity(numbers[blocks.size * thread // threads : blocks.size * (thread + 1) // threads])
    return odd.sum() == 0
