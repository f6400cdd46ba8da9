"""x M for a few rows x, whatever the structure of M: a full matrix, a product of two, or compressed rows.

A kernel is handed M as a tuple of arrays, whose number tells Numba the structure:

    (A,)                      a full matrix, A or its transpose
    (A, B)                    the product of two: x A Bᵀ
    (starts, others, values)  for each column i of M, the rows `others` that have an entry there, and the entries;
                              unsigned, as Numba else allows for indices that count from the end

and begins by making it `ready`, which packs what is full; `products.pack` does so by several threads. So a kernel is
written once, and compiled for the structures that it meets. A row's sums take the same terms in the same
order whatever the number of rows, and so the same bits.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload, register_jitable

from retrograde.kernels.cpu.functions import FAST, all_finite, oddity
from retrograde.kernels.cpu.products import add_outer, add_product, packed
from retrograde.kernels.cpu.tiles import everywhere

ROWS = 24  # whole tiles, be they of four rows or of six
LINE = 64  # bytes, which the caches hold and hand on together


def ready(M, transposed):
    """M as the functions below want it; of a full matrix the transpose, if asked for."""


def is_finite(M):
    """Whether all of its entries are."""


def outer_part(M, s, x, thread, threads, dW):
    """A thread's share of dW += Σ_k s[k] x[k]ᵀ for a full W; else nothing. s and x are (samples, neurons)."""


def at_once(M):
    """How many rows are best multiplied together."""


def in_hand(M, samples):
    """How many of so many samples a thread best takes through their steps together: all rounds are about as large."""


def room(M, n, rows):
    """What `multiply` needs to work in, for so many rows of n neurons: made once, and handed to each call."""


def multiply(M, x, u, room):
    """Add x M to u: x (rows, m), u (rows, n)."""


def part_of(M, n, thread, threads):
    """The neurons, from `first` to before `last`, that are a thread's share of a product."""


def multiply_part(M, x, u, room, first, last):
    """`multiply` of one row, for some neurons of u (1, n)."""


def _structure(M):
    return "sparse" if len(M) == 3 else "full" if len(M) == 1 else "low rank"


@overload(ready)
def _ready_for(M, transposed):
    if _structure(M) == "sparse":
        return lambda M, transposed: M
    if _structure(M) == "low rank":
        return lambda M, transposed: (packed(M[0], False), packed(M[1], True))
    return lambda M, transposed: (packed(M[0], transposed),)


@overload(is_finite)
def _finite_for(M):
    if _structure(M) == "sparse":
        return lambda M: oddity(M[2]) == 0
    if _structure(M) == "low rank":
        return lambda M: all_finite(M[0]) and all_finite(M[1])
    return lambda M: all_finite(M[0])


@overload(outer_part)
def _outer_for(M, s, x, thread, threads, dW):
    if _structure(M) == "full":
        return lambda M, s, x, thread, threads, dW: add_outer(s, x, thread, threads, dW)
    return lambda M, s, x, thread, threads, dW: None


@overload(at_once)
def _at_once_for(M):
    if _structure(M) == "sparse":
        return lambda M: LINE // M[2].itemsize
    return lambda M: ROWS


@overload(in_hand)
def _in_hand_for(M, samples):
    if _structure(M) == "sparse":
        return lambda M, samples: min(at_once(M), samples)

    def about_as_many_each_time(M, samples):
        rounds = max(samples // at_once(M), 1)
        return (samples + rounds - 1) // rounds

    return about_as_many_each_time


@overload(room)
def _room_for(M, n, rows):
    if _structure(M) == "sparse":
        return lambda M, n, rows: np.zeros((2, n, lanes_for(rows, M[2].itemsize)), M[2].dtype)
    if _structure(M) == "low rank":
        return lambda M, n, rows: np.empty((1, ROWS, M[1].shape[1]), M[0].dtype)
    return lambda M, n, rows: np.empty((0, 0, 0), M[0].dtype)


@overload(multiply)
def _multiply_for(M, x, u, room):
    if _structure(M) == "sparse":
        return _sparse
    if _structure(M) == "low rank":
        return _low_rank

    def full(M, x, u, room):
        add_product(M[0], x, u, 0, len(M[0]))

    return full


@overload(part_of)
def _part_for(M, n, thread, threads):
    if _structure(M) == "sparse":

        def about_equally_many_entries(M, n, thread, threads):
            starts, edges = M[0], M[0][n]
            first = np.searchsorted(starts[:n], edges * thread // threads) if thread > 0 else 0
            last = np.searchsorted(starts[:n], edges * (thread + 1) // threads) if thread < threads - 1 else n
            return first, last

        return about_equally_many_entries

    def whole_blocks(M, n, thread, threads):
        blocks, _, width = M[0].shape
        return blocks * thread // threads * width, min(blocks * (thread + 1) // threads * width, n)

    return whole_blocks


@overload(multiply_part)
def _multiply_part_for(M, x, u, room, first, last):
    if _structure(M) == "sparse":

        def sparse(M, x, u, room, first, last):
            starts, others, values = M
            _one_row(starts[first : last + 1], others, values, x[0], u[0, first:last])

        return sparse

    def full(M, x, u, room, first, last):
        width = M[0].shape[2]
        add_product(M[0], x, u, first // width, (last + width - 1) // width)

    return full


def _low_rank(M, x, u, room):
    for first in range(0, len(x), ROWS):
        last = min(first + ROWS, len(x))
        between = room[0, : last - first]
        between[:] = 0
        add_product(M[0], x[first:last], between, 0, len(M[0]))
        add_product(M[1], between, u[first:last], 0, len(M[1]))


def _sparse(M, x, u, room):
    starts, others, values = M
    given, found = room
    rows, lanes = len(x), given.shape[1]
    for first in range(0, rows, lanes):
        last = min(first + lanes, rows)
        if last - first <= 2:
            for row in range(first, last):
                _one_row(starts, others, values, x[row], u[row])
            continue
        # Neurons along the rows: one entry of M then serves all samples by one line.
        _across(x[first:last], given)
        for i in range(u.shape[1]):
            gather(others, values, given, found, i, starts[i], starts[i + 1])
        _add_back(found, u[first:last])


@njit(error_model="numpy", fastmath=FAST)
def _across(x, given):
    """given[j, r] = x[r, j], some neurons at a time, whose lines stay in cache."""
    rows, n = x.shape
    for start in range(0, n, 16):
        for r in range(rows):
            row = x[r]
            for j in range(start, min(start + 16, n)):
                given[j, r] = row[j]


@njit(error_model="numpy", fastmath=FAST)
def _add_back(found, u):
    """u[r, i] += found[i, r], likewise."""
    rows, n = u.shape
    for start in range(0, n, 16):
        for r in range(rows):
            row = u[r]
            for i in range(start, min(start + 16, n)):
                row[i] += found[i, r]


@njit(error_model="numpy", fastmath=FAST)
def _one_row(starts, others, values, x, u):
    for i in range(len(u)):
        total = values[:0].sum()
        for e in range(starts[i], starts[i + 1]):
            total += values[e] * x[others[e]]
        u[i] += total


def _gather_lanes(share, onto):
    """`gather` of the samples that fill such a share of a line, as a function for Numba; or, if onto, `gather_onto`."""

    @intrinsic
    def some(typingctx, others, values, given, found, i, first, last):
        """The sum stays in registers."""

        def codegen(context, builder, signature, args):
            kinds, (i, first, last) = signature.args[:4], args[4:]
            others, values, given, found = (
                context.make_array(kind)(context, builder, args[place]) for place, kind in enumerate(kinds)
            )
            dtype, index = kinds[1].dtype, context.get_value_type(kinds[0].dtype)
            size = dtype.bitwidth // 8
            lanes, real, int64 = LINE // (share * size), context.get_value_type(dtype), ir.IntType(64)
            vector = ir.VectorType(real, lanes)
            width = ir.Constant(int64, LINE // share)

            def row(array, k):
                start = builder.add(builder.ptrtoint(array.data, int64), builder.mul(k, width))
                return builder.inttoptr(start, vector.as_pointer())

            at_first = builder.load(row(found, i), align=size) if onto else ir.Constant(vector, [0.0] * lanes)
            before, loop = builder.block, builder.append_basic_block("gather")
            end = builder.append_basic_block("gather.end")
            builder.cbranch(builder.icmp_signed("<", first, last), loop, end)
            builder.position_at_end(loop)
            e, total = builder.phi(int64), builder.phi(vector)
            other = builder.load(builder.gep(others.data, [e]))
            k = other if index.width == 64 else builder.zext(other, int64)
            value = builder.load(builder.gep(values.data, [e]))
            line = builder.load(row(given, k), align=size)
            term = builder.fmul(everywhere(builder, value, lanes), line, flags=("contract", "nsz"))
            added = builder.fadd(total, term, flags=("contract", "nsz"))
            e_next = builder.add(e, ir.Constant(int64, 1))
            builder.cbranch(builder.icmp_signed("<", e_next, last), loop, end)
            for phi, start, again in ((e, first, e_next), (total, at_first, added)):
                phi.add_incoming(start, before)
                phi.add_incoming(again, loop)
            builder.position_at_end(end)
            whole = builder.phi(vector)
            whole.add_incoming(at_first, before)
            whole.add_incoming(added, loop)
            builder.store(whole, row(found, i), align=size)
            return context.get_dummy_value()

        int64 = types.int64
        return types.void(others, values, given, found, int64, int64, int64), codegen

    return some


_gather_line, _gather_half = _gather_lanes(1, onto=False), _gather_lanes(2, onto=False)
_gather_line_onto, _gather_half_onto = _gather_lanes(1, onto=True), _gather_lanes(2, onto=True)


@register_jitable
def lanes_for(samples, itemsize):
    """How many samples lie side by side: those that fill a line of the cache, or half of them where that will do."""
    lanes = LINE // itemsize
    return lanes if samples > lanes // 2 else lanes // 2


@njit(error_model="numpy", inline="always")
def gather(others, values, given, found, i, first, last):
    """found[i] = Σ_e values[e] given[others[e]] for e = first..last-1: given and found are (n, lanes)."""
    if given.shape[1] * values.itemsize == LINE:
        _gather_line(others, values, given, found, i, first, last)
    else:
        _gather_half(others, values, given, found, i, first, last)


@njit(error_model="numpy", inline="always")
def gather_onto(others, values, given, found, i, first, last):
    """The same added to found[i]."""
    if given.shape[1] * values.itemsize == LINE:
        _gather_line_onto(others, values, given, found, i, first, last)
    else:
        _gather_half_onto(others, values, given, found, i, first, last)
