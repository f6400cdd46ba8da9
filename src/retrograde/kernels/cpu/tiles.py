"""A tile of a product, held in registers: some rows of u by some vectors of its columns.

Numba leaves a loop's sums in memory, where each multiplication then waits for a load and a store. Here the sums stay in
registers while k runs, as in a BLAS: two multiplications a cycle. Only the order of the sum, and what is rounded, are
mathematics, and `products` says them.
"""

from __future__ import annotations

from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from retrograde.kernels.cpu.functions import FAST

# TALL x VECTORS sums, VECTORS parts of a row of A and one number of x have to fit into the registers: 32 of AVX-512, 16
# of AVX2. And there have to be eight sums or more, as an addition may begin only when the one before it is done: one
# row alone takes more vectors, those of the next blocks too.
_AVX512 = "+avx512f" in (get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES)
BYTES, VECTORS, TALL = (64, 4, 4) if _AVX512 else (32, 2, 6)  # of a vector; vectors and rows in a tile

_FUSED = ("contract", "nsz")  # a multiplication and the addition behind it are one instruction
_BIT, _INT32, _INT64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


def everywhere(builder, value, lanes):
    """The vector whose entries are all that value."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_INT32, lanes), [0] * lanes))


def _held(builder, offset):
    """The same, hidden from LLVM, which else finds each row's address anew at each term, one from the other."""
    return builder.asm(ir.FunctionType(_INT64, [_INT64]), "", "=r,0", [offset], False)


def _masked(builder, vector, size):
    """LLVM's functions that load, and store, the entries of a vector that a mask tells."""
    masks, place = ir.VectorType(_BIT, vector.count), vector.as_pointer()
    name = f"v{vector.count}f{8 * size}.p0"
    load = ir.FunctionType(vector, [place, _INT32, masks, vector])
    store = ir.FunctionType(ir.VoidType(), [vector, place, _INT32, masks])
    return (
        cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.{what}.{name}")
        for kind, what in ((load, "load"), (store, "store"))
    )


def _tile(rows, vectors):
    """The tile of so many rows and vectors, as a function for Numba. More than `VECTORS` go on in the next blocks."""

    @intrinsic
    def tile(typingctx, A, x, u, row, end, block, first, last):
        """Add Σ_k x[i, k] A[block, k], k = first..last-1, to the block's columns of u[i], for i from row to before end.

        They are taken `rows` at a time; those that are left, fewer than that, are not touched.
        """

        def codegen(context, builder, signature, args):
            dtype = signature.args[0].dtype
            size = dtype.bitwidth // 8
            lanes = BYTES // size
            real = context.get_value_type(dtype)
            vector = ir.VectorType(real, lanes)
            kinds, (row, end, block, first, last) = signature.args[:3], args[3:]
            A, x, u = (context.make_array(kind)(context, builder, args[i]) for i, kind in enumerate(kinds))
            zero = ir.Constant(vector, [0.0] * lanes)

            def number(value):
                return ir.Constant(_INT64, value)

            def place(array, *index):
                """The address of an entry."""
                address = builder.ptrtoint(array.data, _INT64)
                for i, stride in zip(index, cgutils.unpack_tuple(builder, array.strides), strict=True):
                    address = builder.add(address, builder.mul(i, stride))
                return address

            def load(address, kind, align=None):
                return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)

            _, of_A, _ = cgutils.unpack_tuple(builder, A.strides)
            _, of_x = cgutils.unpack_tuple(builder, x.strides)
            _, columns = cgutils.unpack_tuple(builder, u.shape)
            parts = [
                builder.add(place(A, builder.add(block, number(b)), first, number(0)), number(v * BYTES))
                for b, v in (divmod(p, VECTORS) for p in range(vectors))
            ]

            def sums(top):
                """Those of the rows from `top` on, for each row and vector."""
                lines = [place(x, builder.add(top, number(r)), first) for r in range(rows)]
                before, loop = builder.block, builder.append_basic_block("tile")
                after = builder.append_basic_block("tile.end")
                builder.cbranch(builder.icmp_signed("<", first, last), loop, after)
                builder.position_at_end(loop)
                k, along_A, along_x = (builder.phi(_INT64) for _ in range(3))
                so_far = [[builder.phi(vector) for _ in parts] for _ in range(rows)]
                a = [load(builder.add(part, along_A), vector, size) for part in parts]
                onward = []
                for r in range(rows):
                    x_k = everywhere(builder, load(builder.add(lines[r], along_x), real), lanes)
                    terms = [builder.fmul(x_k, each, flags=_FUSED) for each in a]
                    onward.append([builder.fadd(*pair, flags=_FUSED) for pair in zip(so_far[r], terms, strict=True)])
                k_next = builder.add(k, number(1))
                next_A, next_x = (_held(builder, builder.add(*pair)) for pair in ((along_A, of_A), (along_x, of_x)))
                builder.cbranch(builder.icmp_signed("<", k_next, last), loop, after)
                for phi, start, then in zip(
                    (k, along_A, along_x), (first, number(0), number(0)), (k_next, next_A, next_x), strict=True
                ):
                    phi.add_incoming(start, before)
                    phi.add_incoming(then, loop)
                builder.position_at_end(after)
                total = [[builder.phi(vector) for _ in parts] for _ in range(rows)]
                for r in range(rows):
                    for p in range(vectors):
                        for phi in (so_far[r][p], total[r][p]):
                            phi.add_incoming(zero, before)
                            phi.add_incoming(onward[r][p], loop)
                return total

            def add(terms, top, column, mask=None):
                """Add them to a vector of u in each row; where the mask is 0 u is neither read nor written."""
                aligned = ir.Constant(_INT32, size)
                for r, term in enumerate(terms):
                    entry = builder.inttoptr(place(u, builder.add(top, number(r)), column), vector.as_pointer())
                    if mask is None:
                        builder.store(builder.fadd(builder.load(entry, align=size), term), entry, align=size)
                    else:
                        masked_load, masked_store = _masked(builder, vector, size)
                        old = builder.call(masked_load, [entry, aligned, mask, zero])
                        builder.call(masked_store, [builder.fadd(old, term), entry, aligned, mask])

            start = builder.mul(block, number(VECTORS * lanes))
            with cgutils.for_range_slice(builder, row, builder.sub(end, number(rows - 1)), number(rows)) as (top, _):
                *all_but_last, last_ones = zip(*sums(top), strict=True)
                for p, terms in enumerate(all_but_last):
                    add(terms, top, builder.add(start, number(p * lanes)))
                # The last alone may be part of a vector. A mask makes AVX2 store many times as slowly.
                column = builder.add(start, number((vectors - 1) * lanes))
                left = builder.sub(columns, column)
                with builder.if_else(builder.icmp_signed("<=", number(lanes), left)) as (is_whole, is_part):
                    with is_whole:
                        add(last_ones, top, column)
                    with is_part:
                        lane = ir.Constant(ir.VectorType(_INT64, lanes), list(range(lanes)))
                        mask = builder.icmp_signed("<", lane, everywhere(builder, left, lanes))
                        add(last_ones, top, column, mask)
            return context.get_dummy_value()

        index = types.intp
        return types.void(A, x, u, index, index, index, index, index), codegen

    return tile


def _tiles(rows):
    """The tiles of so many rows, for a block of which so many vectors are needed."""
    some = [_tile(rows, v) for v in range(1, VECTORS + 1)]
    one, two, three, four = (some[min(v, VECTORS - 1)] for v in range(4))

    def add(A, x, u, row, end, block, first, last, vectors):
        if vectors == 4:
            four(A, x, u, row, end, block, first, last)
        elif vectors == 3:
            three(A, x, u, row, end, block, first, last)
        elif vectors == 2:
            two(A, x, u, row, end, block, first, last)
        else:
            one(A, x, u, row, end, block, first, last)

    # Kernels kept on disk by different processes meet in another, where the linker takes one function for all that
    # Numba calls the same: by qualified name, types, and a number that begins anew in each process.
    add.__qualname__ = f"add_{rows}_rows"
    return njit(error_model="numpy", fastmath=FAST)(add)


_add_fours, _add_ones = _tiles(4), _tiles(1)
_add_tall = _tiles(TALL) if TALL > 4 else _add_fours
_add_eight_vectors, _add_four_vectors = _tile(1, 8), _tile(1, 4)


@njit(error_model="numpy", fastmath=FAST)
def vectors_of(n, block, width):
    """How many vectors of a block, which has room for `width` columns, hold any of the n."""
    return min(VECTORS, ((n - block * width) * VECTORS + width - 1) // width)


@njit(error_model="numpy", fastmath=FAST)
def in_tiles(rows):
    """How many of so many rows are best taken several at a time; the others, up to three, go one by one."""
    if TALL == 4:
        return rows - rows % 4
    return rows - rows % 2 if rows >= 4 else 0


@njit(error_model="numpy", fastmath=FAST)
def add_rows(A, x, u, row, end, block, first, last, vectors):
    """The tiles of the rows from `row` to before `end`. A row's sums have one order in each, and so the same bits."""
    if TALL > 4:
        many, rest = divmod(end - row, TALL)
        if 2 <= rest <= 3 and many > 0:  # two tiles of four rows are faster than one that is tall and rows one by one
            many -= 1
        _add_tall(A, x, u, row, row + many * TALL, block, first, last, vectors)
        row += many * TALL
    _add_fours(A, x, u, row, end, block, first, last, vectors)
    row = end - (end - row) % 4
    if row < end:
        _add_ones(A, x, u, row, end, block, first, last, vectors)


@njit(error_model="numpy", fastmath=FAST)
def add_row(A, x, u, row, block, end, panel):
    """Add x[row] A to u[row] in the columns of the blocks from `block` to before `end`, so many terms at a time."""
    _, m, width = A.shape
    lanes = width // VECTORS
    left = (min(end * width, u.shape[1]) - block * width + lanes - 1) // lanes
    while left > 0:
        vectors = 8 if left >= 8 else 4 if left >= 4 else min(left, VECTORS)
        for first in range(0, m, panel):
            last = min(first + panel, m)
            if vectors == 8:
                _add_eight_vectors(A, x, u, row, row + 1, block, first, last)
            elif vectors > VECTORS:
                _add_four_vectors(A, x, u, row, row + 1, block, first, last)
            else:
                _add_ones(A, x, u, row, row + 1, block, first, last, vectors)
        block += (vectors + VECTORS - 1) // VECTORS
        left -= vectors


@intrinsic
def _square(typingctx, A, T, row, column):
    """T[column + j, row + i] = A[row + i, column + j] for as many i and j as a vector has entries."""

    def codegen(context, builder, signature, args):
        dtype = signature.args[0].dtype
        size = dtype.bitwidth // 8
        lanes = BYTES // size
        vector = ir.VectorType(context.get_value_type(dtype), lanes)
        kinds, (row, column) = signature.args[:2], args[2:]
        A, T = (context.make_array(kind)(context, builder, args[i]) for i, kind in enumerate(kinds))

        def lines(array, row, column):
            """The addresses of so many rows, from this column on."""
            of_rows, of_columns = cgutils.unpack_tuple(builder, array.strides)
            start = builder.add(builder.ptrtoint(array.data, _INT64), builder.mul(column, of_columns))
            for i in range(lanes):
                place = builder.mul(builder.add(row, ir.Constant(_INT64, i)), of_rows)
                yield builder.inttoptr(builder.add(start, place), vector.as_pointer())

        rows = [builder.load(line, align=size) for line in lines(A, row, column)]
        # Rows h apart exchange the halves of each 2h entries, for h = lanes/2, ..., 2, 1.
        half = lanes // 2
        while half:
            low = [j if j & half == 0 else lanes + j - half for j in range(lanes)]
            high = [j + half if j & half == 0 else lanes + j for j in range(lanes)]
            masks = [ir.Constant(ir.VectorType(_INT32, lanes), mask) for mask in (low, high)]
            for i in range(lanes):
                if i & half == 0:
                    pair = rows[i], rows[i + half]
                    rows[i], rows[i + half] = (builder.shuffle_vector(*pair, mask) for mask in masks)
            half //= 2
        for line, entries in zip(lines(T, column, row), rows, strict=True):
            builder.store(entries, line, align=size)
        return context.get_dummy_value()

    return types.void(A, T, types.intp, types.intp), codegen


@njit(error_model="numpy", fastmath=FAST)
def transpose(A, T):
    """Aᵀ written to T, which may be wider: A (n, m), T (m, n or more). It goes by squares that fit into registers."""
    n, m = A.shape
    lanes = BYTES // A.itemsize
    rows, columns = n - n % lanes, m - m % lanes
    for i in range(0, rows, lanes):
        for j in range(0, columns, lanes):
            _square(A, T, i, j)
    for i in range(n):
        for j in range(columns if i < rows else 0, m):
            T[j, i] = A[i, j]
