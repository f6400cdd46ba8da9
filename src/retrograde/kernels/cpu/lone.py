"""One sample of many neurons: the threads share each product, and wait for one another at each step.

W comes in parts, (P, n, m): part p has the columns p m, ..., p m + m - 1 of the matrix A in u += x A, and zeros behind
the last. A core's part may then stay in its cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.fixed_point import WINDOW, distance
from retrograde.kernels.cpu.functions import FAST, SLOPES, apply, times_slope
from retrograde.kernels.cpu.products import add_partial_sums_1, add_product_1


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def forward(parts, b, bias, leak, kind, x):
    """`sweeps.forward` for one sample: x (T + 1, n), b (T or 0, n), bias (n,). Whether all that was met is finite."""
    T, n = x.shape[0] - 1, x.shape[1]
    P, m = parts.shape[0], parts.shape[2]
    u = np.empty((P, m), x.dtype)
    odd = np.zeros(P)
    for t in range(T):
        for p in prange(P):
            first, last = p * m, min(p * m + m, n)
            part = u[p]
            part[:] = 0
            for j in range(first, last):
                part[j - first] = bias[j] + b[t, j] if len(b) else bias[j]
            add_product_1(parts[p], x[t], part)
            for j in range(last - first):
                odd[p] += part[j] * 0
            apply(kind, part)
            for j in range(first, last):
                y = part[j - first]
                x[t + 1, j] = x[t, j] + leak[j] * (y - x[t, j]) if len(leak) else y
    return odd.sum() == 0


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def adjoint(parts, y, g, at, leak, kind, s_next, l_next, s, l):
    """`sweeps.adjoint` for one sample: y and s (T, n)."""
    T, n = s.shape
    P, m = parts.shape[0], parts.shape[2]
    u = np.empty((P, m), s.dtype)
    for back in range(T):
        t = T - 1 - back
        for p in prange(P):
            first, last = p * m, min(p * m + m, n)
            part = u[p]
            part[:] = 0
            if at[t] >= 0:
                part[: last - first] = g[at[t], first:last]
            if back > 0:
                add_product_1(parts[p], s[t + 1], part)
            elif len(s_next):
                add_product_1(parts[p], s_next, part)
            for j in range(first, last):
                value = part[j - first]
                if len(leak):
                    if back > 0:
                        value += (1 - leak[j]) * l[t + 1, j]
                    elif len(l_next):
                        value += (1 - leak[j]) * l_next[j]
                    l[t, j] = value
                    value *= leak[j]
                s[t, j] = value
            times_slope(kind, y[t, first:last], s[t, first:last])


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def iterate(parts, c, D, kind, damping, rtol, tiny, max_steps, floor, z):
    """`fixed_point.iterate` for one sample: z, c and D (n,). The residual and the steps."""
    n = len(z)
    P, m = parts.shape[0], parts.shape[2]
    u, partial, steps, mark = np.empty((P, m), z.dtype), np.empty((P, m), z.dtype), 0, np.inf
    whole = u.reshape(P * m)[:n]
    while True:
        for p in prange(P):
            first, last = p * m, min(p * m + m, n)
            part = u[p]
            part[:] = 0
            part[: last - first] = c[first:last]
            add_partial_sums_1(parts[p], z, part, partial[p])
            if kind == SLOPES:
                times_slope(kind, D[first:last], part[: last - first])
            else:
                apply(kind, part)
        gap, size = distance(whole, z)
        residual = gap / max(size, tiny)
        stalled = False
        if steps % WINDOW == 0:
            stalled = residual < floor and residual >= mark
            mark = residual
        if not (residual > rtol and residual < np.inf and steps < max_steps) or stalled:
            return residual, steps
        steps += 1
        for j in range(n):
            z[j] += damping * (whole[j] - z[j])
