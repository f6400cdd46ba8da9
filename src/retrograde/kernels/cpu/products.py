"""Products of a few rows with a matrix, and of two tall matrices with each other: what every step of a sweep costs.

The matrix comes packed, in blocks of some of its columns, (blocks, m, width), with zeros behind the last column: a tile
then reads one line after another. Sums are taken over `_PANEL` terms before they join u: their rounding is a fraction
of what it would be, and a block's part stays in the nearest cache while `_ROWS` rows pass by.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numba.extending import register_jitable

from retrograde.kernels.cpu.functions import FAST
from retrograde.kernels.cpu.tiles import BYTES, VECTORS, add_row, add_rows, in_tiles, transpose, vectors_of

_PANEL = 64
_ROWS = 96  # whose part of x stays in the nearest cache while the columns pass by
_SAMPLES = 128  # whose x stays in cache while dW passes by
_FEW = 24  # neurons, whose s of so many samples lies side by side in the nearest cache


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def pack(W, transposed, threads, blocks):
    """W (m, n) in `blocks` of its columns, or of its rows if `transposed`: Wᵀ in blocks. W lies row after row.

    `blocks` has the shape `shape_of_packed`.
    """
    for thread in prange(threads):
        _pack(W, transposed, len(blocks) * thread // threads, len(blocks) * (thread + 1) // threads, blocks)


@njit(error_model="numpy", fastmath=FAST)
def packed(W, transposed):
    """The same, on one thread."""
    blocks = np.empty(shape_of_packed(W, transposed), W.dtype)
    _pack(W, transposed, 0, len(blocks), blocks)
    return blocks


@register_jitable
def shape_of_packed(W, transposed):
    """How many blocks, of how many rows and columns."""
    m, n = W.shape[::-1] if transposed else W.shape
    width = VECTORS * BYTES // W.itemsize
    return (n + width - 1) // width, m, width


@njit(error_model="numpy", fastmath=FAST)
def _pack(W, transposed, start, end, packed):
    n, width = W.shape[0 if transposed else 1], packed.shape[2]
    for block in range(start, end):
        first, last = block * width, min((block + 1) * width, n)
        if last - first < width:
            for k in range(packed.shape[1]):
                for j in range(last - first, width):
                    packed[block, k, j] = 0
        if transposed:
            transpose(W[first:last], packed[block])
    if transposed:
        return
    for k in range(len(W)):  # as it lies in memory, which is read ahead of time
        for block in range(start, end):
            row, copy = W[k, block * width : min((block + 1) * width, n)], packed[block, k]
            for j in range(len(row)):
                copy[j] = row[j]


@njit(error_model="numpy", fastmath=FAST)
def add_product(A, x, u, block, end):
    """Add x A to u in the columns of the blocks from `block` to before `end`: x (rows, m), u (rows, n), A packed.

    A row's sums take the same terms in the same order whatever the number of rows, and so the same bits.
    """
    rows, n = u.shape
    _, m, width = A.shape
    tiled = in_tiles(rows)
    for top in range(0, max(tiled - 3, 0), _ROWS):  # where fewer than four would be left, they join the last
        bottom = top + _ROWS if tiled - top >= _ROWS + 4 else tiled
        for b in range(block, end):
            vectors = vectors_of(n, b, width)
            for first in range(0, m, _PANEL):
                add_rows(A, x, u, top, bottom, b, first, min(first + _PANEL, m), vectors)
    for row in range(tiled, rows):
        add_row(A, x, u, row, block, end, _PANEL)


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def outer(s, x, threads, dW):
    """dW += Σ_k s[k] x[k]ᵀ: s (samples, n_out), x (samples, n_in), dW (n_out, n_in). The threads share out its rows."""
    for thread in prange(threads):
        add_outer(s, x, thread, threads, dW)


@njit(error_model="numpy", fastmath=FAST)
def add_outer(s, x, thread, threads, dW):
    """The rows of `outer` that are a thread's share."""
    fours = (len(dW) + 3) // 4
    top, bottom = 4 * (fours * thread // threads), min(4 * (fours * (thread + 1) // threads), len(dW))
    samples, n = x.shape
    x_packed = np.empty(shape_of_packed(x[:_SAMPLES], False), x.dtype)
    few = np.empty((_SAMPLES, _FEW), s.dtype)
    blocks, _, width = x_packed.shape
    for first in range(0, samples, _SAMPLES):
        x_part, s_part = x[first : first + _SAMPLES], s[first : first + _SAMPLES]
        _pack(x_part, False, 0, blocks, x_packed)
        for row in range(top, bottom, _FEW):
            end = min(row + _FEW, bottom)
            for k in range(len(s_part)):
                given, copy = s_part[k, row:end], few[k]
                for j in range(len(given)):
                    copy[j] = given[j]
            for block in range(blocks):
                vectors = vectors_of(n, block, width)
                add_rows(x_packed, few.T, dW[row:end], 0, end - row, block, 0, len(s_part), vectors)
