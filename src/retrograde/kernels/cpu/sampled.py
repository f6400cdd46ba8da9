"""The sum over samples of s xᵀ, at the entries that a sparse W has: a sampled dense-dense product."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.functions import FAST

_AT_ONCE = 256  # samples, whose part of x stays in cache while the connections pass by
_SHARES = 64


@njit(parallel=True, error_model="numpy", fastmath=FAST | {"reassoc"}, cache=True)
def outer(row_starts, columns, s, x, dW):
    """dW[e] += Σ_k s[i, k] x[j, k] for each connection e from j to i.

    W is in compressed rows; s is (n_out, samples), x (n_in, samples), dW (edges,).
    """
    samples, edges = s.shape[1], len(columns)
    for share in prange(_SHARES):
        # Rows are shared out whole, about equally many connections to each.
        top = np.searchsorted(row_starts, edges * share // _SHARES)
        end = np.searchsorted(row_starts, edges * (share + 1) // _SHARES)
        for first in range(0, samples, _AT_ONCE):
            last = min(first + _AT_ONCE, samples)
            for i in range(top, min(end, len(row_starts) - 1)):
                a = s[i, first:last]
                for e in range(row_starts[i], row_starts[i + 1]):
                    b = x[columns[e], first:last]
                    total = dW[e]
                    for k in range(last - first):
                        total += a[k] * b[k]
                    dW[e] = total


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def outer_of_one(row_starts, columns, s, x, dW):
    """dW[e] = s_i x_j for each connection e from j to i: `outer` of one sample, s (n_out,) and x (n_in,)."""
    edges = len(columns)
    for share in prange(_SHARES):
        top = np.searchsorted(row_starts, edges * share // _SHARES)
        end = np.searchsorted(row_starts, edges * (share + 1) // _SHARES)
        for i in range(top, min(end, len(row_starts) - 1)):
            for e in range(row_starts[i], row_starts[i + 1]):
                dW[e] = s[i] * x[columns[e]]


@njit(parallel=True, error_model="numpy", cache=True)
def taken(weight, order):
    """weight[order], by all threads: torch takes it on one."""
    found = np.empty(len(order), weight.dtype)
    for e in prange(len(order)):
        found[e] = weight[order[e]]
    return found
