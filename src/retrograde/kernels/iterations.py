"""z = step(z) by iteration, a whole batch in one call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator, Sparse
from retrograde.kernels.arrays import array, matrix, packed, together
from retrograde.kernels.choice import cpu_kernels, has_outer_at_once, is_lone, number, why_plain
from retrograde.kernels.sums import outer
from retrograde.kernels.threads import ask_for, most, share, sharers
from retrograde.nonlinearity import Identity, Nonlinearity

_TINY = {dtype: torch.finfo(dtype).eps ** 2 for dtype in (torch.float32, torch.float64)}

Iterate = Callable[[Tensor, float, float, int, float, bool], tuple[Tensor, Tensor, Tensor]]


def fixed_point(W: Operator, f: Nonlinearity, b: Tensor) -> Iterate | None:
    """The iteration of x = f(Wx + b) on a batch b (samples, n) as one call, or None.

    Called with (x, damping, rtol, max_steps, floor, hasty), it answers x, the residual and the steps of each sample.
    """
    if why_plain(W, f) is not None:
        return None
    return partial(_iterate, W, False, b, b, number(f))  # which needs no slopes


def adjoint_fixed_point(W: Operator, D: Tensor, g: Tensor) -> Iterate | None:
    """Likewise the iteration of s = D (Wᵀs + g)."""
    if why_plain(W, None) is not None:
        return None
    return partial(_iterate, W, True, g, D, number(None))


def tangent_fixed_point(W: Operator, D: Tensor, c: Tensor) -> Iterate | None:
    """Likewise the iteration of v = D (Wv + c)."""
    if why_plain(W, None) is not None:
        return None
    return partial(_iterate, W, False, c, D, number(None))


def _iterate(
    W: Operator,
    transposed: bool,
    c: Tensor,
    D: Tensor,
    kind: int,
    z: Tensor,
    damping: float,
    rtol: float,
    max_steps: int,
    floor: float,
    hasty: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    cpu = cpu_kernels()

    found = array(z).copy()
    (samples, n), dtype = found.shape, found.dtype.type
    numbers = dtype(damping), rtol, _TINY[z.dtype], max_steps, floor, hasty
    if is_lone(W, samples):
        A = packed(W, transposed)
        threads = ask_for(most())
        one = cpu.lone.iterate(A, array(c)[0], array(D).reshape(-1), kind, *numbers, threads, found[0])
        residual, steps = np.array(one[:1], dtype), np.array(one[1:])
    else:
        residual, steps = np.empty(samples, dtype), np.empty(samples, np.int64)
        none, nor_of_these = np.empty((0, 0), dtype), np.empty(0, dtype)
        M, (_, threads) = matrix(W, transposed), share(samples, n, together(W))
        ask_for(threads)
        about = array(c), array(D), kind, numbers, threads, False, none
        cpu.fixed_point.iterate(*M, *about, found, residual, steps, nor_of_these, none)
    return torch.from_numpy(found), torch.from_numpy(residual), torch.from_numpy(steps)


class Whole(NamedTuple):
    """A whole batch by one call: what the first of its solvers found, and whether that is all there is to do.

    `amplified` is |s| / |Dg| of an adjoint's samples, and `dW` its dR/dW if it was asked for, and all converged.
    """

    z: Tensor
    residual: Tensor
    steps: Tensor
    amplified: Tensor
    all_converged: bool
    dW: tuple[Tensor, ...]


def whole_state(
    W: Operator, f: Nonlinearity, b: Tensor, x: Tensor | None, rtol: float, max_steps: int, floor: float, hasty: bool
) -> Whole | None:
    """`fixed_point` from x, None for 0, after a look at the numbers.

    None without a kernel, where one is not finite, or where the threads share a sparse W.
    """
    if why_plain(W, f) is not None:
        return None
    hasty = hasty and isinstance(f, Identity)  # else its pace may change
    return _whole(W, False, b, None, number(f), x, (rtol, max_steps, floor, hasty), None)


def whole_adjoint(
    W: Operator, D: Tensor, g: Tensor, x: Tensor | None, rtol: float, max_steps: int, floor: float, hasty: bool
) -> Whole | None:
    """`adjoint_fixed_point` from Dg and, given x, dR/dW = s xᵀ; None likewise, or where g or Dg is far from 1.

    That is 2**-10 to 2**10; beyond it, and where a sample has no reward, there is more to be looked at.
    """
    if why_plain(W, None) is not None:
        return None
    return _whole(W, True, g, D, number(None), None, (rtol, max_steps, floor, hasty), x)


def _whole(
    W: Operator,
    transposed: bool,
    c: Tensor,
    D: Tensor | None,
    kind: int,
    z: Tensor | None,
    when_to_stop: tuple[float, int, float, bool],
    x: Tensor | None,
) -> Whole | None:
    samples, n = c.shape
    lone = is_lone(W, samples)
    if not samples or (lone and isinstance(W.structure, Sparse)):  # which `is_large`, and has Anderson first
        return None
    cpu = cpu_kernels()

    drive = array(c)
    dtype = drive.dtype
    found = (np.zeros if D is None else np.empty)((samples, n), dtype) if z is None else array(z).copy()
    residual, steps, amplified = np.empty(samples, dtype), np.empty(samples, np.int64), np.empty(samples, dtype)
    rows = dW = np.empty((0, 0), dtype)
    at_once = x is not None and not lone and has_outer_at_once(W, c.numel())
    if x is not None and at_once:
        rows, dW = array(x), np.zeros((n, n), dtype)
    rtol, *others = when_to_stop
    about = drive, drive if D is None else array(D), kind, (dtype.type(1), rtol, _TINY[c.dtype], *others)
    if lone:  # with what is packed unnamed, so that it is let go of before there is dR/dW
        told = cpu.lone.whole(packed(W, transposed), *about, ask_for(most()), found, residual, steps, amplified)
    else:
        M, (_, threads) = matrix(W, transposed), share(samples, n, together(W))
        threads = ask_for(max(threads, sharers(c.numel(), dW)))
        told = cpu.fixed_point.iterate(*M, *about, threads, True, rows, found, residual, steps, amplified, dW)
    if told == cpu.fixed_point.UNFIT:
        return None
    s, all_converged = torch.from_numpy(found), told == cpu.fixed_point.ALL_CONVERGED
    gradient: tuple[Tensor, ...] = (torch.from_numpy(dW),) if at_once else ()
    if x is not None and not at_once and all_converged:
        gradient = outer(W, s, x)
    vectors = torch.from_numpy(residual), torch.from_numpy(steps), torch.from_numpy(amplified)
    return Whole(s, *vectors, all_converged, gradient)
