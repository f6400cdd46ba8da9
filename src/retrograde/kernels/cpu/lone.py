"""One sample of many neurons: the threads share each product, and wait for one another at each step.

A thread takes some neurons, whose part of the matrix may then stay in its core's cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.fixed_point import WINDOW, distance
from retrograde.kernels.cpu.functions import FAST, SLOPES, apply, times_slope
from retrograde.kernels.cpu.structures import multiply_part, part_of


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def forward(A, b, bias, leak, kind, threads, x):
    """`sweeps.forward` for one sample: x (T + 1, n), b (T or 0, n), bias (n,). Whether all that was met is finite."""
    T, n = x.shape[0] - 1, x.shape[1]
    odd = np.zeros(threads)
    for t in range(T):
        for thread in prange(threads):
            first, last = part_of(A, n, thread, threads)
            part = x[t + 1, first:last]
            part[:] = bias[first:last]
            if len(b):
                part += b[t, first:last]
            multiply_part(A, x[t : t + 1], x[t + 1 : t + 2], first, last)
            for j in range(last - first):
                odd[thread] += part[j] * 0
            apply(kind, part)
            if len(leak):
                before, a = x[t, first:last], leak[first:last]
                for j in range(last - first):
                    part[j] = before[j] + a[j] * (part[j] - before[j])
    return odd.sum() == 0


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def adjoint(A, y, g, at, leak, kind, threads, s_next, l_next, s, l):
    """`sweeps.adjoint` for one sample: y and s (T, n)."""
    T, n = s.shape
    after = s_next.reshape(len(s_next) // n, n)
    for back in range(T):
        t = T - 1 - back
        for thread in prange(threads):
            first, last = part_of(A, n, thread, threads)
            part = s[t, first:last]
            if at[t] >= 0:
                part[:] = g[at[t], first:last]
            else:
                part[:] = 0
            if back > 0:
                multiply_part(A, s[t + 1 : t + 2], s[t : t + 1], first, last)
            elif len(after):
                multiply_part(A, after, s[t : t + 1], first, last)
            if len(leak):
                a = leak[first:last]
                if back > 0:
                    part += (1 - a) * l[t + 1, first:last]
                elif len(l_next):
                    part += (1 - a) * l_next[first:last]
                l[t, first:last] = part
                part *= a
            times_slope(kind, y[t, first:last], part)


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def iterate(A, c, D, kind, damping, rtol, tiny, max_steps, floor, threads, z):
    """`fixed_point.iterate` for one sample: z, c and D (n,). The residual and the steps."""
    n, steps, mark = len(z), 0, np.inf
    x, u = z.reshape(1, n), np.empty((1, n), z.dtype)
    while True:
        for thread in prange(threads):
            first, last = part_of(A, n, thread, threads)
            part = u[0, first:last]
            part[:] = c[first:last]
            multiply_part(A, x, u, first, last)
            if kind == SLOPES:
                times_slope(kind, D[first:last], part)
            else:
                apply(kind, part)
        gap, size = distance(u[0], z)
        residual = gap / max(size, tiny)
        stalled = False
        if steps % WINDOW == 0:
            stalled = residual < floor and residual >= mark
            mark = residual
        if not (residual > rtol and residual < np.inf and steps < max_steps) or stalled:
            return residual, steps
        steps += 1
        for j in range(n):
            z[j] += damping * (u[0, j] - z[j])
