"""A whole trajectory, and its whole adjoint, in one call each.

x(t) depends on x(t-1) of the same sample alone: each thread takes its share of the batch through all of time, and none
waits for another at a step.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.functions import FAST, apply, times_slope
from retrograde.kernels.cpu.structures import multiply, room


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def forward(A, b, bias, leak, kind, share, x):
    """x(t) = (1-a) x(t-1) + a f(W x(t-1) + b(t) + bias), written to x (T + 1, B, n), which holds x(0).

    A is Wᵀ, as `structures` has it; b (T, B or 1, n), or (0, 0, 0) for none; bias (B or 1, n); leak (n,), or (0,) for
    none. A thread takes `share` samples at a time.

    Returns:
        Whether all that was met is finite; looking for it elsewhere would cost another pass.
    """
    T, B, n = x.shape[0] - 1, x.shape[1], x.shape[2]
    shares = (B + share - 1) // share
    odd = np.zeros(shares)
    for k in prange(shares):
        first, last, work = share * k, min(share * (k + 1), B), room(A, n)
        for t in range(T):
            before, now = x[t][first:last], x[t + 1][first:last]
            for r in range(last - first):
                row = now[r]
                constant = bias[first + r if len(bias) > 1 else 0]
                if len(b):
                    varying = b[t, first + r if b.shape[1] > 1 else 0]
                    for j in range(n):
                        row[j] = varying[j] + constant[j]
                else:
                    for j in range(n):
                        row[j] = constant[j]
            multiply(A, before, now, work)
            flat = now.reshape((last - first) * n)
            odd[k] += _oddity(flat)
            apply(kind, flat)
            if len(leak):
                for r in range(last - first):
                    for j in range(n):
                        now[r, j] = before[r, j] + leak[j] * (now[r, j] - before[r, j])
    return odd.sum() == 0


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def adjoint(W, y, g, at, leak, kind, share, s_next, l_next, s, l):
    """s(t) = D(t) (Wᵀ s(t+1) + g(t)), written to s (T, B, n); W as `structures` has it, y (T, B, n) the outputs of f.

    g(t) is g[at[t]], or 0 where at[t] is -1. s_next is s(T+1), (B, n), or (0, 0) for 0.

    With a leak, l(t) = Wᵀ s(t+1) + g(t) + (1-a) l(t+1) is written to l, and s(t) = a D(t) l(t).
    """
    T, B, n = s.shape
    shares = (B + share - 1) // share
    for k in prange(shares):
        first, last, work = share * k, min(share * (k + 1), B), room(W, n)
        for back in range(T):
            t = T - 1 - back
            now = s[t][first:last]
            flat = now.reshape((last - first) * n)
            if at[t] >= 0:
                flat[:] = g[at[t]][first:last].reshape((last - first) * n)
            else:
                flat[:] = 0
            if back > 0:
                multiply(W, s[t + 1][first:last], now, work)
            elif len(s_next):
                multiply(W, s_next[first:last], now, work)
            if len(leak):
                for r in range(last - first):
                    if back > 0:
                        for j in range(n):
                            now[r, j] += (1 - leak[j]) * l[t + 1, first + r, j]
                    elif len(s_next):
                        for j in range(n):
                            now[r, j] += (1 - leak[j]) * l_next[first + r, j]
                    for j in range(n):
                        l[t, first + r, j] = now[r, j]
                        now[r, j] *= leak[j]
            times_slope(kind, y[t][first:last].reshape((last - first) * n), flat)


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def _oddity(u):
    """0 where all of u is finite, else NaN."""
    total = u[:0].sum()
    for j in range(len(u)):
        total += u[j] * 0
    return total
