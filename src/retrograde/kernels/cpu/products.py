"""Products of a few rows with a matrix that stays in cache: what a batch slice needs at each step."""

from __future__ import annotations

from numba import njit

from retrograde.kernels.cpu.functions import FAST

_PANEL = 2**19  # bytes of A that stay in a core's cache while all rows pass by


# The inner loop runs over neurons and becomes vector instructions. Four rows share each load of A, and four rows of A
# share each load and store of u: that is what keeps the multipliers busy. Each term is one fused multiply-add, in this
# order.


@njit(error_model="numpy", fastmath=FAST)
def add_product_4(A, x, u):
    """Add x A to u for four rows: x (4, m), u (4, n), A (m, n)."""
    m, n = A.shape
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    u0, u1, u2, u3 = u[0], u[1], u[2], u[3]
    whole = m - m % 4
    for k in range(0, whole, 4):
        a00, a01, a02, a03 = x0[k], x0[k + 1], x0[k + 2], x0[k + 3]
        a10, a11, a12, a13 = x1[k], x1[k + 1], x1[k + 2], x1[k + 3]
        a20, a21, a22, a23 = x2[k], x2[k + 1], x2[k + 2], x2[k + 3]
        a30, a31, a32, a33 = x3[k], x3[k + 1], x3[k + 2], x3[k + 3]
        w0, w1, w2, w3 = A[k], A[k + 1], A[k + 2], A[k + 3]
        for j in range(n):
            u0[j] = (((u0[j] + a00 * w0[j]) + a01 * w1[j]) + a02 * w2[j]) + a03 * w3[j]
            u1[j] = (((u1[j] + a10 * w0[j]) + a11 * w1[j]) + a12 * w2[j]) + a13 * w3[j]
            u2[j] = (((u2[j] + a20 * w0[j]) + a21 * w1[j]) + a22 * w2[j]) + a23 * w3[j]
            u3[j] = (((u3[j] + a30 * w0[j]) + a31 * w1[j]) + a32 * w2[j]) + a33 * w3[j]
    for k in range(whole, m):
        a0, a1, a2, a3 = x0[k], x1[k], x2[k], x3[k]
        w = A[k]
        for j in range(n):
            u0[j] += a0 * w[j]
            u1[j] += a1 * w[j]
            u2[j] += a2 * w[j]
            u3[j] += a3 * w[j]


@njit(error_model="numpy", fastmath=FAST)
def add_product_1(A, x, u):
    """Add x A to u for one row: x (m,), u (n,), A (m, n)."""
    m, n = A.shape
    whole = m - m % 4
    for k in range(0, whole, 4):
        a0, a1, a2, a3 = x[k], x[k + 1], x[k + 2], x[k + 3]
        w0, w1, w2, w3 = A[k], A[k + 1], A[k + 2], A[k + 3]
        for j in range(n):
            u[j] = (((u[j] + a0 * w0[j]) + a1 * w1[j]) + a2 * w2[j]) + a3 * w3[j]
    for k in range(whole, m):
        a, w = x[k], A[k]
        for j in range(n):
            u[j] += a * w[j]


@njit(error_model="numpy", fastmath=FAST)
def add_product(A, x, u):
    """Add x A to u for any number of rows: x (rows, m), u (rows, n), A (m, n).

    A row's sum takes the same terms in the same order whatever the number of rows, and so the same bits.
    """
    m, n = A.shape
    rows = len(x)
    fours = rows - rows % 4
    panel = max(4, _PANEL // (4 * n * A.itemsize) * 4)
    for first in range(0, m, panel):
        last = min(first + panel, m)
        some = A[first:last]
        for r in range(0, fours, 4):
            add_product_4(some, x[r : r + 4, first:last], u[r : r + 4])
        for r in range(fours, rows):
            add_product_1(some, x[r, first:last], u[r])


_PARTIAL = 64  # terms summed before they join the sum, so that its rounding grows with the square root of their groups


@njit(error_model="numpy", fastmath=FAST)
def add_partial_sums_4(A, x, u, partial):
    """Add x A to u for four rows, its rounding a fraction of `add_product_4`'s; partial (4, n) is overwritten."""
    m, n = A.shape
    for first in range(0, m, _PARTIAL):
        last = min(first + _PARTIAL, m)
        for r in range(4):
            for j in range(n):
                partial[r, j] = 0
        add_product_4(A[first:last], x[:, first:last], partial)
        for r in range(4):
            for j in range(n):
                u[r, j] += partial[r, j]


@njit(error_model="numpy", fastmath=FAST)
def add_partial_sums_1(A, x, u, partial):
    """Likewise for one row, x (m,), u and partial (n,)."""
    m, n = A.shape
    for first in range(0, m, _PARTIAL):
        last = min(first + _PARTIAL, m)
        for j in range(n):
            partial[j] = 0
        add_product_1(A[first:last], x[first:last], partial)
        for j in range(n):
            u[j] += partial[j]
