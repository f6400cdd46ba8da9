"""A sparse M cut into strips of columns: what a product takes here and there then comes from a near cache.

Beside one another, the samples of one neuron fill a line of the cache, and those of 100,000 neurons no cache but the
last. A product that ends with one strip before it begins with the next meets some thousands of them at a time.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange


@njit(parallel=True, error_model="numpy", cache=True)
def cut(starts, others, values, neurons, bits, first, columns, weights):
    """M, given as the compressed rows of Mᵀ, as pieces of its rows that lie in one strip of 2**bits columns each.

    A row of Mᵀ is a column of M, and `neurons` has the row of each new number; `others` are new numbers already. The
    threads are to have M's rows from first[thread] to before first[thread + 1] of the new numbers. `columns` and
    `weights` are room for the pieces' own.

    Returns (starts, others, values) as of a matrix with a row for each piece; the new number of the row that each is a
    piece of; and which are a thread's own in each strip, (strips, threads + 1). Pieces lie by strip, then by row; a
    strip may be followed by some that are no one's.
    """
    n = len(neurons)
    strips, threads = ((n - 1) >> bits) + 1, len(first) - 1
    entries, pieces = np.zeros(strips + 1, np.int64), np.zeros(strips + 1, np.int64)
    owner, load = np.empty(strips, np.int64), np.zeros(threads, np.int64)
    for k in range(strips):
        size = 0
        for q in range(k << bits, min((k + 1) << bits, n)):
            size += np.int64(starts[neurons[q] + 1] - starts[neurons[q]])
        entries[k + 1] = entries[k] + size
        pieces[k + 1] = pieces[k] + min(size, n) + 1  # at most, with the end of the last
        owner[k] = load.argmin()
        load[owner[k]] += size
    row_of, begins = np.empty(pieces[strips], others.dtype), np.empty(pieces[strips], starts.dtype)
    shares = np.empty((strips, threads + 1), np.int64)
    for thread in prange(threads):
        at = np.empty(n, starts.dtype)
        for k in range(strips):
            if owner[k] != thread:
                continue
            at[:] = 0
            for q in range(k << bits, min((k + 1) << bits, n)):
                for e in range(starts[neurons[q]], starts[neurons[q] + 1]):
                    at[others[e]] += 1
            piece, entry = pieces[k], entries[k]
            for sharer in range(threads):
                shares[k, sharer] = piece
                for p in range(first[sharer], first[sharer + 1]):
                    size = np.int64(at[p])
                    at[p] = entry
                    if size:
                        row_of[piece], begins[piece] = p, entry
                        piece += 1
                        entry += size
            shares[k, threads], begins[piece] = piece, entry
            for q in range(k << bits, min((k + 1) << bits, n)):
                for e in range(starts[neurons[q]], starts[neurons[q] + 1]):
                    entry = np.int64(at[others[e]])
                    columns[entry], weights[entry] = q, values[e]
                    at[others[e]] = entry + 1
    return (begins, columns, weights), row_of, shares
