"""Trajectories of a large sparse W, a few samples at a time. They lie in memory as the input does."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator
from retrograde.kernels.arrays import count, dtype_of, leaks, matrix, rooms, side_by_side
from retrograde.kernels.choice import cpu_kernels, number
from retrograde.kernels.threads import ask_for, most
from retrograde.nonlinearity import Nonlinearity


def forward_of_few(
    W: Operator, f: Nonlinearity, leak: float | Tensor | None, b: Tensor | None, bias: Tensor | None, x0: Tensor, T: int
) -> tuple[Tensor, bool]:
    """`forward_sweep`, a few samples at a time. The path lies as the input does: by samples, or by neurons."""
    cpu = cpu_kernels()

    batch, (samples, n), dtype = x0.shape, count(x0.shape), dtype_of(x0)
    given = [
        None if each is None else each.expand(times, *batch).reshape(times, samples, n)
        for each, times in ((b, T), (None if bias is None else bias[None], 1))
    ]
    if any(each is not None and each.stride(1) == 1 for each in given):
        path = torch.from_numpy(np.empty((T + 1, n, samples), dtype)).mT
    else:
        path = torch.from_numpy(np.empty((T + 1, samples, n), dtype))
    path[0] = x0.reshape(samples, n)
    (A, _), a, threads = matrix(W), leaks(leak, n, dtype), ask_for(most())
    finite = bool(torch.isfinite(x0.sum()))  # as a neuron that sends to none is met nowhere
    for some in side_by_side(samples, dtype.itemsize):
        (varying, constant, flat), strides = _without_axes((*given, path), some, dtype)
        size = some.stop - some.start
        room = rooms(2, n, cpu.structures.lanes_for(size, dtype.itemsize), dtype)
        finite &= cpu.few.forward(A, varying, constant, a, number(f), threads, T, size, flat, strides, room)
    return path.view(T + 1, *batch), finite


def adjoint_of_few(
    W: Operator,
    f: Nonlinearity | None,
    y: Tensor,
    g: Tensor,
    at: np.ndarray,
    leak: float | Tensor | None,
    after: tuple[Tensor | None, ...],
) -> tuple[Tensor, Tensor | None]:
    """`substitute_back`, a few samples at a time. s lies by neurons where y does, all times of one together."""
    cpu = cpu_kernels()

    shape, dtype, T = y.shape, dtype_of(y), len(y)
    samples, n = count(shape[1:])
    y, g = (each.reshape(len(each), samples, n) for each in (y, g))
    by_neurons = f is not None and y.stride(1) == 1  # slopes that are given lie as it happens

    def made() -> Tensor:
        if by_neurons:
            return torch.from_numpy(np.empty((n, T, samples), dtype)).permute(1, 2, 0)
        return torch.from_numpy(np.empty((T, samples, n), dtype))

    s, l = made(), None if leak is None else made()
    ends = [None if each is None else each.reshape(1, samples, n) for each in after]
    (A, _), about, threads = matrix(W, transposed=True), (at, leaks(leak, n, dtype), number(f)), ask_for(most())
    for some in side_by_side(samples, dtype.itemsize):
        (slopes, rewards, *flat), strides = _without_axes((y, g, *ends, s, l), some, dtype)
        size = some.stop - some.start
        room = rooms(2, n, cpu.structures.lanes_for(size, dtype.itemsize), dtype)
        cpu.few.adjoint(A, slopes, rewards, *about, threads, size, *flat, strides, room)
    return s.view(shape), None if l is None else l.view(shape)


def _without_axes(
    given: tuple[Tensor | None, ...], some: slice, dtype: np.dtype
) -> tuple[list[np.ndarray], np.ndarray]:
    """Of some samples the numbers of each tensor, from first to last, (0,) for None; and for all the strides."""
    flat, strides = [], np.zeros((len(given), 3), np.int64)
    for k, each in enumerate(given):
        if each is None or not each.numel():
            flat.append(np.empty(0, dtype))
            continue
        each = each[:, some]
        strides[k] = each.stride()
        length = 1 + sum((size - 1) * stride for size, stride in zip(each.shape, each.stride(), strict=True))
        flat.append(each.detach().as_strided((length,), (1,)).numpy())
    return flat, strides
