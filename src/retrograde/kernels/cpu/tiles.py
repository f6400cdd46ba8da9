"""A tile of a product, held in registers: `TALL` rows, 4 or 1, of u by up to `VECTORS` vectors of its columns.

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
# of AVX2. And there have to be eight sums or more, as an addition may begin only when the one before it is done.
_WIDE = "+avx512f" in (get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES)
BYTES, VECTORS, TALL = (64, 4, 4) if _WIDE else (32, 2, 6)  # of a vector; vectors and rows in a tile

_FUSED = ("contract", "nsz")  # a multiplication and the addition behind it are one instruction
_BIT, _INT32, _INT64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


def _tile(rows, vectors):
    """The tile of so many rows and vectors, as a function for Numba."""

    @intrinsic
    def tile(typingctx, A, x, u, row, block, first, last):
        """Add Σ_k x[row + r, k] A[block, k] for k = first..last-1 to the block's columns of u[row + r]."""

        def codegen(context, builder, signature, args):
            dtype = signature.args[0].dtype
            size = dtype.bitwidth // 8
            lanes = BYTES // size
            real = context.get_value_type(dtype)
            vector = ir.VectorType(real, lanes)
            kinds, (row, block, first, last) = signature.args[:3], args[3:]
            A, x, u = (context.make_array(kind)(context, builder, args[i]) for i, kind in enumerate(kinds))

            def number(value):
                return ir.Constant(_INT64, value)

            def place(array, *index):
                """The address of an entry."""
                address = builder.ptrtoint(array.data, _INT64)
                for i, stride in zip(index, cgutils.unpack_tuple(builder, array.strides), strict=True):
                    address = builder.add(address, builder.mul(i, stride))
                return address

            def pointer(address, kind):
                return builder.inttoptr(address, kind.as_pointer())

            def everywhere(value):
                """The vector whose entries are all that value."""
                nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
                one = builder.insert_element(nothing, value, ir.Constant(_INT32, 0))
                return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_INT32, lanes), [0] * lanes))

            zero = ir.Constant(vector, [0.0] * lanes)
            _, of_A, _ = cgutils.unpack_tuple(builder, A.strides)
            _, of_x = cgutils.unpack_tuple(builder, x.strides)
            A_block = place(A, block, number(0), number(0))
            x_rows = [place(x, builder.add(row, number(r)), number(0)) for r in range(rows)]

            before, loop = builder.block, builder.append_basic_block("tile")
            end = builder.append_basic_block("tile.end")
            builder.cbranch(builder.icmp_signed("<", first, last), loop, end)
            builder.position_at_end(loop)
            k = builder.phi(_INT64)
            sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
            here = builder.add(A_block, builder.mul(k, of_A))
            a = [
                builder.load(pointer(builder.add(here, number(v * BYTES)), vector), align=size) for v in range(vectors)
            ]
            added = []
            for r in range(rows):
                x_k = builder.load(pointer(builder.add(x_rows[r], builder.mul(k, of_x)), real))
                terms = [builder.fmul(everywhere(x_k), a[v], flags=_FUSED) for v in range(vectors)]
                added.append([builder.fadd(sums[r][v], terms[v], flags=_FUSED) for v in range(vectors)])
            k_next = builder.add(k, number(1))
            builder.cbranch(builder.icmp_signed("<", k_next, last), loop, end)
            k.add_incoming(first, before)
            k.add_incoming(k_next, loop)

            builder.position_at_end(end)
            total = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
            for r in range(rows):
                for v in range(vectors):
                    sums[r][v].add_incoming(zero, before)
                    sums[r][v].add_incoming(added[r][v], loop)
                    total[r][v].add_incoming(zero, before)
                    total[r][v].add_incoming(added[r][v], loop)

            # What lies behind the last column of u is neither read nor written.
            masks = ir.VectorType(_BIT, lanes)
            name = f"v{lanes}f{8 * size}.p0"
            masked_load = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(vector, [vector.as_pointer(), _INT32, masks, vector]),
                f"llvm.masked.load.{name}",
            )
            masked_store = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [vector, vector.as_pointer(), _INT32, masks]),
                f"llvm.masked.store.{name}",
            )
            _, columns = cgutils.unpack_tuple(builder, u.shape)
            lane = ir.Constant(ir.VectorType(_INT64, lanes), list(range(lanes)))
            aligned = ir.Constant(_INT32, size)
            for v in range(vectors):
                column = builder.add(builder.mul(block, number(VECTORS * lanes)), number(v * lanes))
                left = builder.sub(columns, column)
                entries = [pointer(place(u, builder.add(row, number(r)), column), vector) for r in range(rows)]
                # Where a vector is whole it goes without a mask, with which AVX2 stores many times as slowly.
                with builder.if_else(builder.icmp_signed("<=", number(lanes), left)) as (whole, part):
                    with whole:
                        for r, entry in enumerate(entries):
                            old = builder.load(entry, align=size)
                            builder.store(builder.fadd(old, total[r][v]), entry, align=size)
                    with part:
                        mask = builder.icmp_signed("<", lane, everywhere(left))
                        for r, entry in enumerate(entries):
                            old = builder.call(masked_load, [entry, aligned, mask, zero])
                            builder.call(masked_store, [builder.fadd(old, total[r][v]), entry, aligned, mask])
            return context.get_dummy_value()

        index = types.intp
        return types.void(A, x, u, index, index, index, index), codegen

    return tile


def _tiles(rows):
    """The tiles of so many rows, for a block of which so many vectors are needed."""
    some = [_tile(rows, v) for v in range(1, VECTORS + 1)]
    one, two, three, four = (some[min(v, VECTORS - 1)] for v in range(4))

    @njit(error_model="numpy", fastmath=FAST)
    def add(A, x, u, row, block, first, last, vectors):
        if vectors == 4:
            four(A, x, u, row, block, first, last)
        elif vectors == 3:
            three(A, x, u, row, block, first, last)
        elif vectors == 2:
            two(A, x, u, row, block, first, last)
        else:
            one(A, x, u, row, block, first, last)

    return add


_add_tall, _add_four, _add_one = (_tiles(rows) for rows in (TALL, 4, 1))


@njit(error_model="numpy", fastmath=FAST)
def add_rows(A, x, u, row, end, block, first, last, vectors):
    """The tiles of the rows from `row` to before `end`. A row's sums have one order in each, and so the same bits."""
    if TALL > 4:
        many, rest = divmod(end - row, TALL)
        if 2 <= rest <= 3 and many > 0:  # two tiles of four rows are faster than one that is tall and rows one by one
            many -= 1
        for _ in range(many):
            _add_tall(A, x, u, row, block, first, last, vectors)
            row += TALL
    while row + 4 <= end:
        _add_four(A, x, u, row, block, first, last, vectors)
        row += 4
    while row < end:
        _add_one(A, x, u, row, block, first, last, vectors)
        row += 1


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
