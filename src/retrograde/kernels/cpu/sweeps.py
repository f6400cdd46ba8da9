"""A whole trajectory, and its whole adjoint, in one call each.

x(t) depends on x(t-1) of the same sample alone: each thread takes its share of the batch through all of time, and none
waits for another at a step.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.functions import FAST, apply, oddity, times_slope
from retrograde.kernels.cpu.structures import multiply, outer_part, ready, room


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def forward(M, transposed, b, bias, leak, kind, share, x):
    """x(t) = (1-a) x(t-1) + a f(W x(t-1) + b(t) + bias), written to x (T + 1, B, n), which holds x(0).

    M is Wᵀ, as `structures` has it, or W `transposed`; b (T, B or 1, n), or (0, 0, 0) for none; bias (B or 1, n); leak
    (n,), or (0,) for none. A thread takes `share` samples at a time.

    Returns:
        Whether all that was met is finite; looking for it elsewhere would cost another pass.
    """
    A, B = ready(M, transposed), x.shape[1]
    shares = (B + share - 1) // share
    odd = np.zeros(shares)
    for k in prange(shares):
        odd[k] = _forward(A, b, bias, leak, kind, share * k, min(share * (k + 1), B), x)
    return odd.sum() == 0


@njit(error_model="numpy", fastmath=FAST)
def _forward(A, b, bias, leak, kind, first, last, x):
    """The samples from `first` to before `last`, on one thread. 0 where all was finite."""
    T, n = x.shape[0] - 1, x.shape[2]
    odd, work = 0.0, room(A, n, last - first)
    for t in range(T):
        before, now = x[t, first:last], x[t + 1, first:last]
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
        for r in range(last - first):
            odd += oddity(now[r])
            apply(kind, now[r])
        if len(leak):
            for r in range(last - first):
                for j in range(n):
                    now[r, j] = before[r, j] + leak[j] * (now[r, j] - before[r, j])
    return odd


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def adjoint(M, transposed, y, g, at, leak, kind, share, s_next, l_next, s, l, s_rows, x_rows, threads, dW):
    """s(t) = D(t) (Wᵀ s(t+1) + g(t)), written to s (T, B, n); M is W as `structures` has it, y (T, B, n) outputs of f.

    g(t) is g[at[t]], or 0 where at[t] is -1. s_next is s(T+1), (B, n), or (0, 0) for 0.

    With a leak, l(t) = Wᵀ s(t+1) + g(t) + (1-a) l(t+1) is written to l, and s(t) = a D(t) l(t).

    For a full W Σ s(t) x(t-1)ᵀ is added to dW, unless that is (0, 0): s_rows and x_rows (T B, n) are s and x(t-1).
    """
    A, B = ready(M, transposed), s.shape[1]
    shares = (B + share - 1) // share
    for k in prange(shares):
        _adjoint(A, y, g, at, leak, kind, share * k, min(share * (k + 1), B), s_next, l_next, s, l)
    if len(dW):
        for thread in prange(threads):
            outer_part(M, s_rows, x_rows, thread, threads, dW)


@njit(error_model="numpy", fastmath=FAST)
def _adjoint(A, y, g, at, leak, kind, first, last, s_next, l_next, s, l):
    """The samples from `first` to before `last`, on one thread."""
    T, n = len(s), s.shape[2]
    work = room(A, n, last - first)
    for back in range(T):
        t = T - 1 - back
        now = s[t, first:last]
        for r in range(last - first):
            row = now[r]
            if at[t] >= 0:
                given = g[at[t], first + r]
                for j in range(n):
                    row[j] = given[j]
            else:
                for j in range(n):
                    row[j] = 0
        if back > 0:
            multiply(A, s[t + 1, first:last], now, work)
        elif len(s_next):
            multiply(A, s_next[first:last], now, work)
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
        for r in range(last - first):
            times_slope(kind, y[t, first + r], now[r])
