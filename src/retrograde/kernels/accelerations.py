"""Anderson's acceleration of it, for a sparse W of so many connections that a step costs more than its bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator, Sparse
from retrograde.kernels.arrays import array, dtype_of, side_by_side, two_states, unsigned
from retrograde.kernels.choice import cpu_kernels, is_large, number, why_plain
from retrograde.kernels.numbering import by_degree
from retrograde.kernels.threads import ask_for, most
from retrograde.nonlinearity import Nonlinearity

# So few samples are quicker one after another than side by side.
_ONE_BY_ONE = 4

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
    neurons, renumbered, others = by_degree(structure)
    starts, values = unsigned(structure.row_starts), array(weight)
    if transposed and not scattered:
        starts = unsigned(structure.column_starts)
        values = cpu.sampled.taken(values, array(structure.order))
        others = cpu.sampled.taken(renumbered, array(structure.rows_by_column))
    eps = torch.finfo(z.dtype).eps
    numbers = kind, memory, delay, rtol, eps**2, max_steps, floor, max(eps ** (4 / 3), 1e-15), threads
    found, residual = np.empty((samples, n), dtype_of(z)), np.empty(samples, dtype_of(z))
    steps, stays = np.empty(samples, np.int64), np.empty(samples, bool)
    groups = [slice(k, k + 1) for k in range(samples)] if one_by_one else side_by_side(samples, z.itemsize)
    for some in groups:
        size = some.stop - some.start
        lanes = 1 if one_by_one else cpu.structures.lanes_for(size, z.itemsize)
        rows = np.arange(some.start, some.start + lanes).clip(max=samples - 1)  # the last one again, to fill the line
        start, drive, slopes = (
            np.ascontiguousarray(array(each)[rows][:, neurons].T if len(each) else np.empty((0, lanes), found.dtype))
            for each in (z, c, D)
        )
        about = renumbered, scattered, drive, slopes, *numbers
        room = two_states(n, lanes, found.dtype)
        told = cpu.anderson.iterate((starts, others, values), *about, room, start)
        found[some] = start[renumbered].T[:size]
        for each, of_these in zip((residual, steps, stays), told, strict=True):
            each[some] = of_these[:size]
    return torch.from_numpy(found), torch.from_numpy(residual), torch.from_numpy(steps), torch.from_numpy(stays)
