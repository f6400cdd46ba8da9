"""z = step(z) by iteration, a whole batch in one call."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator
from retrograde.kernels.arrays import array, matrix, packed, together
from retrograde.kernels.choice import cpu_kernels, has_outer_at_once, is_lone, number, why_plain
from retrograde.kernels.sums import outer
from retrograde.kernels.threads import ask_for, most, share, sharers
from retrograde.nonlinearity import Nonlinearity
from retrograde.result import Aimed

_TINY = {dtype: torch.finfo(dtype).eps ** 2 for dtype in (torch.float32, torch.float64)}

Iterate = Callable[[Tensor, float, float, int, float], tuple[Tensor, Tensor, Tensor]]


def fixed_point(W: Operator, f: Nonlinearity, b: Tensor) -> Iterate | None:
    """The iteration of x = f(Wx + b) on a batch b (samples, n) as one call, or None.

    Called with (x, damping, rtol, max_steps, floor), it answers x, the residual and the steps of each sample.
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
) -> tuple[Tensor, Tensor, Tensor]:
    cpu = cpu_kernels()

    found = array(z).copy()
    (samples, n), dtype = found.shape, found.dtype.type
    numbers = dtype(damping), rtol, _TINY[z.dtype], max_steps, floor, 0.0
    if is_lone(W, samples):
        threads = ask_for(most())
        A = packed(W, transposed)
        one = cpu.lone.iterate(A, array(c)[0], array(D).reshape(-1), kind, *numbers, threads, found[0], None, None)
        residual, steps = np.array(one[:1], dtype), np.array(one[1:])
    else:
        residual, steps = np.empty(samples, dtype), np.empty(samples, np.int64)
        none, nor_of_these = np.empty((0, 0), dtype), np.empty(0, dtype)
        M, (_, threads) = matrix(W, transposed), share(samples, n, together(W))
        ask_for(threads)
        about = array(c), array(D), kind, numbers, threads, False, none
        cpu.fixed_point.iterate(*M, *about, found, residual, steps, nor_of_these, none, None, None)
    return torch.from_numpy(found), torch.from_numpy(residual), torch.from_numpy(steps)


class Whole(NamedTuple):
    """A whole batch by one call: what the first of its solvers found, and whether that is all there is to do.

    `amplified` is |s| / |Dg| of an adjoint's samples, and `dW` its dR/dW if it was asked for, and all converged. Where
    an error was `aimed` at, that is what the residuals tell.
    """

    z: Tensor
    residual: Tensor
    steps: Tensor
    amplified: Tensor
    all_converged: bool
    dW: tuple[Tensor, ...]
    aimed: Aimed | None


def whole_state(
    W: Operator, f: Nonlinearity, b: Tensor, x: Tensor, target: float, rtol: float, max_steps: int, floor: float
) -> Whole | None:
    """`fixed_point` from x, after a look at the numbers; None without a kernel, or where one is not finite.

    A `target`, if not 0, is the error that a state may have, once the adjoint amplifies it: each sample goes on until
    its residuals tell that it is met, or that they cannot tell.
    """
    if why_plain(W, f) is not None:
        return None
    return _whole(W, False, b, b, number(f), x, rtol, max_steps, floor, None, target, None)


def whole_adjoint(
    W: Operator,
    D: Tensor,
    g: Tensor,
    x: Tensor | None,
    target: float,
    state: Aimed | None,
    rtol: float,
    max_steps: int,
    floor: float,
) -> Whole | None:
    """`adjoint_fixed_point` from Dg and, given x, dR/dW = s xᵀ; None without a kernel, or where g or Dg is far from 1.

    That is 2**-10 to 2**10; beyond it, and where a sample has no reward, there is more to be looked at. With a target,
    the error of s xᵀ, and what was told of the state, it is None only where g is not finite, and of what is very far
    from 1 nothing is told.
    """
    if why_plain(W, None) is not None:
        return None
    return _whole(W, True, g, D, number(None), None, rtol, max_steps, floor, x, target, state)


def _whole(
    W: Operator,
    transposed: bool,
    c: Tensor,
    D: Tensor,
    kind: int,
    z: Tensor | None,
    rtol: float,
    max_steps: int,
    floor: float,
    x: Tensor | None,
    target: float,
    state: Aimed | None,
) -> Whole | None:
    samples, n = c.shape
    lone = is_lone(W, samples)
    if not samples or (lone and not target):
        return None
    cpu = cpu_kernels()

    drive = array(c)
    dtype = drive.dtype
    errors: np.ndarray | None = None
    bend: np.ndarray | None = None
    if target and state is None:
        errors, bend = np.full((samples, 3), np.inf), np.empty((samples, n), dtype)
    elif target and state is not None:
        errors, bend = state.errors.numpy().copy(), state.bend.numpy()
    if lone and errors is not None and bend is not None:
        return _lone(W, transposed, drive, D, kind, z, (rtol, max_steps, floor, target), x, errors, bend)
    found = np.empty((samples, n), dtype) if z is None else array(z).copy()
    residual, steps, amplified = np.empty(samples, dtype), np.empty(samples, np.int64), np.empty(samples, dtype)
    rows = dW = np.empty((0, 0), dtype)
    at_once = x is not None and has_outer_at_once(W)
    if x is not None and at_once:
        rows, dW = array(x), np.zeros((n, n), dtype)
    M, (_, threads) = matrix(W, transposed), share(samples, n, together(W))
    threads = max(threads, sharers(c.numel(), dW))
    ask_for(threads)
    numbers = dtype.type(1), rtol, _TINY[c.dtype], max_steps, floor, target
    about = drive, array(D), kind, numbers, threads, True, rows
    how = cpu.fixed_point.iterate(*M, *about, found, residual, steps, amplified, dW, errors, bend)
    if how == cpu.fixed_point.UNFIT:
        return None
    everything = how == cpu.fixed_point.ALL_TOLD
    s, all_converged = torch.from_numpy(found), how == cpu.fixed_point.ALL_CONVERGED or everything
    gradient: tuple[Tensor, ...] = (torch.from_numpy(dW),) if at_once else ()
    if x is not None and not at_once and all_converged:
        gradient = outer(W, s, x)
    vectors = torch.from_numpy(residual), torch.from_numpy(steps), torch.from_numpy(amplified)
    aimed = None
    if errors is not None and bend is not None:
        aimed = Aimed(torch.from_numpy(errors), torch.from_numpy(bend), everything)
    return Whole(s, *vectors, all_converged, gradient, aimed)


def _lone(
    W: Operator,
    transposed: bool,
    c: np.ndarray,
    D: Tensor,
    kind: int,
    z: Tensor | None,
    numbers: tuple[float, int, float, float],
    x: Tensor | None,
    errors: np.ndarray,
    bend: np.ndarray,
) -> Whole | None:
    """`_whole` of a lone sample that is to have an error."""
    if not np.isfinite(c.sum()) or not all(math.isfinite(weight.detach().sum()) for weight in W.weights):
        return None
    cpu, slopes = cpu_kernels(), array(D)
    found = slopes * c if z is None else array(z).copy()
    drive, size = np.linalg.norm(found), np.abs(c).max()
    far = cpu.fixed_point.FARTHEST
    if transposed and not 1 / far <= min(drive, size) <= max(drive, size) <= far:
        errors[:, 1] = np.inf
    threads, A = ask_for(most()), packed(W, transposed)
    one, (rtol, max_steps, floor, target) = c.dtype.type(1), numbers
    tiny = _TINY[W.like.dtype]
    rules = kind, one, rtol, tiny, max_steps, floor, target, threads
    r, steps = cpu.lone.iterate(A, c[0], slopes.reshape(-1), *rules, found[0], errors[0], bend[0])
    amplified = np.linalg.norm(found) / drive if transposed and drive > 0 else 1.0
    converged = bool(r <= rtol) and amplified <= 0.1 / tiny**0.5
    if not converged:
        errors[:, 2 if transposed else 0] = np.inf
    everything = bool(errors[0, 2 if transposed else 0] < np.inf)
    s = torch.from_numpy(found)
    residual, conditioning = (torch.from_numpy(np.array([each], c.dtype)) for each in (r, amplified))
    gradient: tuple[Tensor, ...] = outer(W, s, x) if x is not None and converged else ()
    aimed = Aimed(torch.from_numpy(errors), torch.from_numpy(bend), everything)
    return Whole(s, residual, torch.tensor([steps]), conditioning, converged, gradient, aimed)
