"""Anderson's acceleration of it, for a sparse W of so many connections that a step costs more than its bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator, Sparse
from retrograde.kernels.arrays import array, dtype_of, rooms, side_by_side, unsigned
from retrograde.kernels.choice import cpu_kernels, is_large, number, why_plain
from retrograde.kernels.numbering import by_degree
from retrograde.kernels.threads import ask_for, most
from retrograde.nonlinearity import Nonlinearity

# So few samples are quicker one after another than side by side.
_ONE_BY_ONE = 4

# Of so many neurons, a power of two, a line each fills a megabyte, which is near; half or twice as many do as well.
STRIP = 2**14

Accelerate = Callable[[Tensor, int, int, float, int, float], tuple[Tensor, Tensor, Tensor, Tensor]]


def anderson(W: Operator, f: Nonlinearity, b: Tensor) -> Accelerate | None:
    """Anderson acceleration of x = f(Wx + b), b (samples, n), as one call; or None. For a sparse W of many connections.

    Called with (x, memory, delay, rtol, max_steps, floor), it answers x, the residual and the steps of each sample, and
    whether x is where the dynamics lead.
    """
    if not is_large(W) or why_plain(W, f) is not None:
        return None
    return partial(_accelerate, W, False, b, b[:0], number(f))


def adjoint_anderson(W: Operator, D: Tensor, g: Tensor) -> Accelerate | None:
    """Likewise of s = D (Wᵀs + g)."""
    if not is_large(W) or why_plain(W, None) is not None:
        return None
    return partial(_accelerate, W, True, g, D, number(None))


def tangent_anderson(W: Operator, D: Tensor, c: Tensor) -> Accelerate | None:
    """Likewise of v = D (Wv + c)."""
    if not is_large(W) or why_plain(W, None) is not None:
        return None
    return partial(_accelerate, W, False, c, D, number(None))


def _accelerate(
    W: Operator,
    transposed: bool,
    c: Tensor,
    D: Tensor,
    kind: int,
    z: Tensor,
    memory: int,
    delay: int,
    rtol: float,
    max_steps: int,
    floor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cpu = cpu_kernels()

    structure, (weight,) = W.structure, W.weights
    assert isinstance(structure, Sparse)  # as `is_large` asks
    samples, n = z.shape
    one_by_one = samples <= _ONE_BY_ONE
    threads, scattered = ask_for(most()), transposed and one_by_one
    # Half a line of each neuron, or all lines of fewer, are near as they are.
    cuts = n > 4 * STRIP and cpu.structures.lanes_for(samples, z.itemsize) * z.itemsize == cpu.structures.LINE
    M, row_of, shares = _rows(structure, weight, transposed and not scattered, threads, cuts)
    _, renumbered, _ = by_degree(structure)
    eps = torch.finfo(z.dtype).eps
    numbers = kind, memory, delay, rtol, eps**2, max_steps, floor, max(eps ** (4 / 3), 1e-15)
    found, residual = np.empty((samples, n), dtype_of(z)), np.empty(samples, dtype_of(z))
    steps, stays = np.empty(samples, np.int64), np.empty(samples, bool)
    given = [array(each) for each in (z, c, D)]
    groups = [slice(k, k + 1) for k in range(samples)] if one_by_one else side_by_side(samples, z.itemsize)
    for some in groups:
        size = some.stop - some.start
        lanes = 1 if one_by_one else cpu.structures.lanes_for(size, z.itemsize)
        start, drive, slopes = states = rooms(3, n, lanes, found.dtype)
        for each, lines in zip(given, states, strict=True):
            if len(each):
                cpu.anderson.to_lines(each[some], renumbered, threads, lines)
        about = row_of, shares, scattered, drive, slopes, *numbers
        told = cpu.anderson.iterate(M, *about, rooms(5 + 2 * memory, n, lanes, found.dtype), start)
        cpu.anderson.from_lines(start, renumbered, threads, found[some])
        for all_of_it, of_these in zip((residual, steps, stays), told, strict=True):
            all_of_it[some] = of_these[:size]
    return torch.from_numpy(found), torch.from_numpy(residual), torch.from_numpy(steps), torch.from_numpy(stays)


def _rows(
    structure: Sparse, weight: Tensor, transposed: bool, threads: int, cuts: bool
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """M, which is W or Wᵀ, as `cpu.anderson.product` wants it, in strips if it cuts."""
    cpu = cpu_kernels()
    neurons, renumbered, columns = by_degree(structure)
    ends = structure.row_starts, structure.column_starts
    starts, others, values = unsigned(ends[transposed != cuts]), columns, array(weight)
    if transposed != cuts:  # to cut M, its transpose is wanted
        values = cpu.sampled.taken(values, array(structure.order))
        others = cpu.sampled.taken(renumbered, array(structure.rows_by_column))
    lengths = ends[transposed].diff().numpy()
    if not cuts:
        return (starts, others, values), renumbered, _shared_out(lengths, threads)[None]
    share = _shared_out(lengths[neurons], threads)
    told: tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray] = cpu.strips.cut(
        starts, others, values, neurons, STRIP.bit_length() - 1, share, np.empty_like(others), np.empty_like(values)
    )
    return told


def _shared_out(lengths: np.ndarray, threads: int) -> np.ndarray:
    """The first row of each thread, and the end, (threads + 1,), for about equally many connections."""
    ends = np.cumsum(lengths)
    return np.array([0, *ends.searchsorted(np.arange(1, threads) * ends[-1] // threads), len(lengths)])
