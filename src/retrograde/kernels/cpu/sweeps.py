"""A whole trajectory, and its whole adjoint, in one call each.

x(t) depends on x(t-1) of the same sample alone: four samples at a time go through all of time, while W stays in cache.
The batch is split over threads, and no thread waits for another at a step.
"""

from __future__ import annotations

from numba import njit, prange

from retrograde.kernels.cpu.functions import FAST, apply, times_slope
from retrograde.kernels.cpu.products import add_product_1, add_product_4


@njit(error_model="numpy", fastmath=FAST)
def _copy(a, b):
    for j in range(len(a)):
        b[j] = a[j]


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def forward(A, b, x0, leak, kind, x):
    """x(t) = (1-a) x(t-1) + a f(W x(t-1) + b(t)), written to x (T, B, n).

    A is Wᵀ, (n, n); b (T or 1, B or 1, n); x0 (B, n); leak (n,), or (0,) for none.
    """
    T, B, n = x.shape
    for block in prange((B + 3) // 4):
        first, last = 4 * block, min(4 * block + 4, B)
        for t in range(T):
            now = x[t]
            before = x0 if t == 0 else x[t - 1]
            for r in range(first, last):
                _copy(b[t if len(b) > 1 else 0, r if b.shape[1] > 1 else 0], now[r])
            if last - first == 4:
                add_product_4(A, before[first:last], now[first:last])
            else:
                for r in range(first, last):
                    add_product_1(A, before[r], now[r])
            for r in range(first, last):
                apply(kind, now[r])
                if len(leak):
                    for j in range(n):
                        now[r, j] = before[r, j] + leak[j] * (now[r, j] - before[r, j])


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def adjoint(W, y, g, leak, kind, s, l):
    """s(t) = D(t) (Wᵀ s(t+1) + g(t)), written to s (T, B, n); y (T, B, n) the outputs of f.

    With a leak, l(t) = Wᵀ s(t+1) + g(t) + (1-a) l(t+1) is written to l, and s(t) = a D(t) l(t).
    """
    T, B, n = s.shape
    for block in prange((B + 3) // 4):
        first, last = 4 * block, min(4 * block + 4, B)
        for back in range(T):
            t = T - 1 - back
            now = s[t]
            for r in range(first, last):
                _copy(g[t, r], now[r])
            if back > 0:
                if last - first == 4:
                    add_product_4(W, s[t + 1, first:last], now[first:last])
                else:
                    for r in range(first, last):
                        add_product_1(W, s[t + 1, r], now[r])
            for r in range(first, last):
                if len(leak):
                    if back > 0:
                        for j in range(n):
                            now[r, j] += (1 - leak[j]) * l[t + 1, r, j]
                    _copy(now[r], l[t, r])
                    for j in range(n):
                        now[r, j] *= leak[j]
                times_slope(kind, y[t, r], now[r])
