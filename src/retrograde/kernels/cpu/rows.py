"""W x for the samples of a solver that runs in PyTorch: one product a call, of a W made `structures.ready` before.

However many rows there are, a row's sums take the same terms in the same order, and so the same bits.
"""

from __future__ import annotations

from numba import njit, prange

from retrograde.kernels.cpu.functions import FAST
from retrograde.kernels.cpu.products import add_product
from retrograde.kernels.cpu.structures import (
    _across,
    _add_back,
    at_once,
    gather,
    multiply,
    multiply_part,
    part_of,
    room,
)


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def add_backwards(s, threads, total):
    """total += s[T-1] + ... + s[0], one after another: s (T, numbers), total (numbers,)."""
    numbers = len(total)
    for thread in prange(threads):
        first, last = numbers * thread // threads, numbers * (thread + 1) // threads
        part = total[first:last]
        for t in range(len(s) - 1, -1, -1):
            now = s[t, first:last]
            for j in range(len(now)):
                part[j] += now[j]


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def full(A, x, threads, u):
    """Add x A to u, A packed: x (rows, m), u (rows, n). Each thread has some of the neurons."""
    blocks = len(A)
    for thread in prange(threads):
        add_product(A, x, u, blocks * thread // threads, blocks * (thread + 1) // threads)


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def sparse(A, x, threads, u):
    """Likewise for compressed rows, n x n. Each thread has some of the rows, or of the neurons if a line holds all."""
    starts, others, values = A
    (rows, n), lanes = u.shape, at_once(A)
    if rows == 1:
        work = room(A, 0, 1)
        for thread in prange(threads):
            first, last = part_of(A, n, thread, threads)
            multiply_part(A, x, u, work, first, last)
    elif rows > lanes:
        chunks = (rows + lanes - 1) // lanes
        for thread in prange(threads):
            first, last = lanes * (chunks * thread // threads), min(lanes * (chunks * (thread + 1) // threads), rows)
            multiply(A, x[first:last], u[first:last], room(A, n, last - first))
    else:
        given, found = room(A, n, rows)
        _across(x, given)
        for thread in prange(threads):
            first, last = part_of(A, n, thread, threads)
            for i in range(first, last):
                gather(others, values, given, found, i, starts[i], starts[i + 1])
        _add_back(found, u)
