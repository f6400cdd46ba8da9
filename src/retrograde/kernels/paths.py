"""Whole trajectories, and whole adjoints of them, in one call each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator, Sparse
from retrograde.kernels.arrays import array, by_sample, count, dtype_of, leaks, matrix, packed, together
from retrograde.kernels.choice import by_few, cpu_kernels, has_outer_at_once, is_lone, number, why_plain
from retrograde.kernels.few import adjoint_of_few, forward_of_few
from retrograde.kernels.sums import outer
from retrograde.kernels.threads import ask_for, most, share, sharers
from retrograde.nonlinearity import Nonlinearity


def forward_sweep(
    W: Operator, f: Nonlinearity, leak: float | Tensor | None, b: Tensor | None, bias: Tensor | None, x0: Tensor, T: int
) -> tuple[Tensor, bool] | None:
    """x(0), ..., x(T), (T + 1, ..., n), and whether all that was met is finite; or None for the plain path.

    The input at t is b[t] + bias, of which one may be None; b broadcasts against (T, *x0.shape), bias against x0.
    """
    if why_plain(W, f) is not None:
        return None
    cpu = cpu_kernels()

    samples, n = count(x0.shape)
    if by_few(W, samples):
        return forward_of_few(W, f, leak, b, bias, x0, T)
    # NumPy asks for huge pages, five times faster to touch than what torch would ask for.
    path = np.empty((T + 1, samples, n), dtype_of(x0))
    path[0] = array(x0).reshape(samples, n)
    varying = by_sample(b, 1, x0.shape, (0, 0, 0), path.dtype)
    constant = by_sample(bias, 0, x0.shape, (1, n), path.dtype)
    about = varying, constant, leaks(leak, n, path.dtype), number(f)
    if is_lone(W, samples):
        finite = cpu.lone.forward(packed(W), *about, ask_for(most()), path)
    else:
        each, threads = share(samples, n, together(W))
        ask_for(threads)
        finite = cpu.sweeps.forward(*matrix(W), *about, each, path)
    if isinstance(W.structure, Sparse):  # a neuron that sends to none is met nowhere
        finite = finite and bool(np.isfinite(path[0].sum()))
    return torch.from_numpy(path).view(T + 1, *x0.shape), finite


def substitute_back(
    W: Operator,
    f: Nonlinearity | None,
    y: Tensor,
    g: Tensor,
    at: np.ndarray,
    leak: float | Tensor | None,
    after: tuple[Tensor | None, ...],
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]] | None:
    """What `through_time.substitute_back` gives, or None: s and, with a leak, l; and given x(t-1) `before` dR/dW too.

    y (T, ..., n) are the outputs of f, from which the slopes are read on the way; or, where f is None, the slopes D.
    """
    if why_plain(W, f) is not None:
        return None
    cpu = cpu_kernels()

    shape, dtype = y.shape, dtype_of(y)
    T, (samples, n) = len(y), count(shape[1:])
    if by_few(W, samples):
        s_of_few, l_of_few = adjoint_of_few(W, f, y, g, at, leak, after)
        return s_of_few, l_of_few, () if before is None else outer(W, s_of_few, before)
    s = np.empty((T, samples, n), dtype)
    l = np.empty((0, 0, 0) if leak is None else s.shape, dtype)
    s_next, l_next = (by_sample(z, 0, shape[1:], (0, 0), dtype) for z in after)
    about = array(y).reshape(s.shape), array(g).reshape(len(g), samples, n), at, leaks(leak, n, dtype), number(f)
    lone = is_lone(W, samples)
    # What a kernel then does in the same call.
    at_once = before is not None and not lone and has_outer_at_once(W, s.size)
    rows = dW = np.empty((0, 0), dtype)
    if before is not None and at_once:
        rows, dW = array(before).reshape(-1, n), np.zeros((n, n), dtype)
    if lone:
        cpu.lone.adjoint(packed(W, transposed=True), *about, ask_for(most()), s_next, l_next, s, l)
    else:
        each, threads = share(samples, n, together(W))
        rows_by = sharers(s.size, dW)
        M = matrix(W, transposed=True)
        ask_for(threads, rows_by)
        cpu.sweeps.adjoint(*M, *about, each, s_next, l_next, s, l, s.reshape(-1, n), rows, rows_by, dW)
    found = torch.from_numpy(s).view(shape), None if leak is None else torch.from_numpy(l).view(shape)
    if before is None:
        return *found, ()
    return *found, (torch.from_numpy(dW),) if at_once else outer(W, found[0], before)
