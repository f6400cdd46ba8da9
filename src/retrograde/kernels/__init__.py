"""The choice between a kernel and the plain path, in one place.

A kernel stands in for a few lines of PyTorch that remain beside it and test it. RETROGRADE_PLAIN=1 in the environment
forces the plain path everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Dense, Operator, Sparse
from retrograde.nonlinearity import Identity, Nonlinearity, ReLU, Sigmoid, Softplus, Tanh

# Their numbers in kernels.cpu.functions. Where there is no f, the slopes are given.
_NUMBERS: dict[type[Nonlinearity], int] = {Tanh: 0, Sigmoid: 1, ReLU: 2, Softplus: 3, Identity: 4}
_SLOPES = -1

# The threads of OpenMP do not come along into a forked process, such as a DataLoader's worker, which dies if it asks
# for them.
_started = _forked = False


def _after_fork() -> None:
    global _forked
    _forked = _started


os.register_at_fork(after_in_child=_after_fork)


def why_plain(W: Operator, f: Nonlinearity | None) -> str | None:
    """Why no fused kernel serves this W and f, or None where one does."""
    if getattr(type(W.structure), "product", None) is not Dense.product:  # subclasses may say otherwise
        return f"no kernel for {type(W.structure).__name__}"
    if f is not None and type(f) not in _NUMBERS:
        return f"no kernel for {f}"
    return _why_not_here(W)


def _why_not_here(W: Operator) -> str | None:
    if os.environ.get("RETROGRADE_PLAIN", "0").lower() not in ("", "0", "false"):
        return "RETROGRADE_PLAIN is set"
    if _forked:
        return "no threads in a forked process"
    if W.like.device.type != "cpu":
        return f"no kernel on {W.like.device.type}"
    if W.like.dtype not in (torch.float32, torch.float64):
        return f"no kernel for {W.like.dtype}"
    return None


def explain(net: Any, samples: int = 32) -> str:
    """Which path the trajectories and steady states of `net` take for so many samples, and why.

    >>> import retrograde as rg
    >>> print(explain(rg.Network(64)))
    trajectory: fused Numba kernels, each thread with its own samples (Dense, tanh, float32, cpu, 32 samples)
    steady state: the same for FixedPoint, plain PyTorch for the other solvers
    >>> print(explain(rg.Network(64, f=rg.Pointwise(torch.sin))))
    trajectory: plain PyTorch (no kernel for Pointwise(fn=<built-in method sin of type object at ...>, inverse_fn=None))
    steady state: plain PyTorch (the same)
    """
    W = net.W.bind()
    why = why_plain(W, net.f)
    if why is not None:
        gradient = ", but dR/dW by a kernel" if isinstance(W.structure, Sparse) and _why_not_here(W) is None else ""
        return f"trajectory: plain PyTorch ({why}){gradient}\nsteady state: plain PyTorch (the same){gradient}"
    n = W.shape[0]
    how = "fused Numba kernels, each thread with its own samples"
    if _is_lone(samples, n):
        how = "fused Numba kernels, the threads sharing each product"
    elif _is_large(samples, n):
        how = "PyTorch in place, one BLAS product a step"
    f, dtype = type(net.f).__name__.lower(), str(W.like.dtype)[6:]
    steady = "fused Numba kernels" if _is_large(samples, n) else "the same"
    return (
        f"trajectory: {how} (Dense, {f}, {dtype}, cpu, {samples} samples)\n"
        f"steady state: {steady} for FixedPoint, plain PyTorch for the other solvers"
    )


def forward_sweep(
    W: Operator, f: Nonlinearity, leak: float | Tensor | None, b: Tensor | None, bias: Tensor | None, x0: Tensor, T: int
) -> tuple[Tensor, bool] | None:
    """x(0), ..., x(T), (T + 1, ..., n), and whether all that was met is finite; or None for the plain path.

    The input at t is b[t] + bias, of which one may be None; b broadcasts against (T, *x0.shape), bias against x0.
    """
    if why_plain(W, f) is not None:
        return None
    from retrograde.kernels.cpu import large, lone, sweeps

    samples, n = _samples(x0.shape)
    path = np.empty((T + 1, samples, n), _dtype(x0))  # for which NumPy asks for huge pages, five times faster to touch
    path[0] = _array(x0).reshape(samples, n)
    varying = _by_sample(b, 1, x0.shape, (0, 0, 0), path.dtype)
    constant = _by_sample(bias, 0, x0.shape, (1, n), path.dtype)
    a, A = _leaks(leak, n, path.dtype), W.weights[0].T
    if _is_large(samples, n):
        inputs = None if b is None else torch.from_numpy(varying), None if bias is None else torch.from_numpy(constant)
        finite = large.forward(W.weights[0], f, *inputs, leak, torch.from_numpy(path))
    elif _is_lone(samples, n):
        finite = lone.forward(_parts(A), varying.reshape(-1, n), constant[0], a, _number(f), path[:, 0])
    else:
        share, _ = _share(samples, n)
        finite = sweeps.forward(_array(A), varying, constant, a, _number(f), share, path)
    return torch.from_numpy(path).view(T + 1, *x0.shape), finite


def substitute_back(
    W: Operator,
    f: Nonlinearity | None,
    y: Tensor,
    g: Tensor,
    at: np.ndarray,
    leak: float | Tensor | None,
    after: tuple[Tensor | None, ...],
) -> tuple[Tensor, Tensor | None] | None:
    """What `through_time.substitute_back` gives: s and, with a leak, l; or None.

    y (T, ..., n) are the outputs of f, from which the slopes are read on the way; or, where f is None, the slopes D.
    """
    if why_plain(W, f) is not None:
        return None
    from retrograde.kernels.cpu import large, lone, sweeps

    shape, dtype = y.shape, _dtype(y)
    T, (samples, n) = len(y), _samples(shape[1:])
    s = np.empty((T, samples, n), dtype)
    l = np.empty((0, 0, 0) if leak is None else s.shape, dtype)
    s_next, l_next = (_by_sample(z, 0, shape[1:], (0, 0), dtype) for z in after)
    slopes, rewards = _array(y).reshape(s.shape), _array(g).reshape(len(g), samples, n)
    a, weight = _leaks(leak, n, dtype), W.weights[0]
    if _is_large(samples, n):
        ends = tuple(None if z is None else z.reshape(samples, n) for z in after)
        y, g, s_, l_ = (torch.from_numpy(z) for z in (slopes, rewards, s, l))
        large.adjoint(weight, f, y, g, at, leak, ends, s_, None if leak is None else l_)
    elif _is_lone(samples, n):
        after_one = s_next.reshape(-1), l_next.reshape(-1)
        y_one, g_one = slopes.reshape(-1, n), rewards.reshape(-1, n)
        lone.adjoint(_parts(weight), y_one, g_one, at, a, _number(f), *after_one, s[:, 0], l.reshape(-1, n))
    else:
        share, _ = _share(samples, n)
        sweeps.adjoint(_array(weight), slopes, rewards, at, a, _number(f), share, s_next, l_next, s, l)
    return torch.from_numpy(s).view(shape), None if leak is None else torch.from_numpy(l).view(shape)


def outer(W: Operator, s: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """``W.outer(s, x)``; at the entries of a sparse W by a kernel."""
    structure = W.structure
    if not isinstance(structure, Sparse) or _why_not_here(W) is not None:
        return W.outer(s, x)
    from retrograde.kernels.cpu import sampled

    dW = np.zeros(len(structure.columns), _dtype(x))
    s_T, x_T = (_array(z.reshape(-1, z.shape[-1]).T) for z in (s, x))
    _share(torch.get_num_threads(), 1)
    sampled.outer(_array(structure.row_starts), _array(structure.columns), s_T, x_T, dW)
    return (torch.from_numpy(dW),)


Iterate = Callable[[Tensor, float, float, int, float], tuple[Tensor, Tensor, Tensor]]


def fixed_point(W: Operator, f: Nonlinearity, b: Tensor) -> Iterate | None:
    """The iteration of x = f(Wx + b) on a batch b (samples, n) as one call, or None.

    Called with (x, damping, rtol, max_steps, floor), it answers x, the residual and the steps of each sample.
    """
    if why_plain(W, f) is not None:
        return None
    return partial(_iterate, W.weights[0].T, b, b[:0], _number(f))


def adjoint_fixed_point(W: Operator, D: Tensor, g: Tensor) -> Iterate | None:
    """Likewise the iteration of s = D (Wᵀs + g)."""
    if why_plain(W, None) is not None:
        return None
    return partial(_iterate, W.weights[0], g, D, _number(None))


def _iterate(
    A: Tensor, c: Tensor, D: Tensor, kind: int, z: Tensor, damping: float, rtol: float, max_steps: int, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    from retrograde.kernels.cpu import fixed_point, lone

    found = _array(z).copy()
    (samples, n), dtype = found.shape, found.dtype.type
    numbers = dtype(damping), rtol, torch.finfo(z.dtype).eps ** 2, max_steps, floor
    if _is_lone(samples, n):
        one = lone.iterate(_parts(A), _array(c)[0], _array(D).reshape(-1), kind, *numbers, found[0])
        residual, steps = np.array(one[:1], dtype), np.array(one[1:])
    else:
        _, threads = _share(samples, n)
        residual, steps = np.empty(samples, dtype), np.empty(samples, np.int64)
        fixed_point.iterate(_array(A), _array(c), _array(D), kind, *numbers, threads, found, residual, steps)
    return torch.from_numpy(found), torch.from_numpy(residual), torch.from_numpy(steps)


# One sample of so many neurons is worth waiting for each other at each step.
_LONE = 768


# From so many samples of so many neurons on BLAS is the fastest at the product of a step.
_LARGE = 64, 1024


def _is_large(samples: int, n: int) -> bool:
    return samples >= _LARGE[0] and n >= _LARGE[1]


def _is_lone(samples: int, n: int) -> bool:
    return samples == 1 and n >= _LONE and torch.get_num_threads() > 1


def _parts(A: Tensor) -> np.ndarray:
    """A, (n, n), in parts of some columns each, (parts, n, columns), a part for each thread."""
    n = len(A)
    _, threads = _share(torch.get_num_threads(), n)
    columns = -(-n // (16 * threads)) * 16
    parts = A.new_zeros(threads, n, columns)
    for p in range(threads):
        part = A.detach()[:, p * columns : (p + 1) * columns]
        parts[p, :, : part.shape[1]] = part
    return _array(parts)


def _share(samples: int, n: int) -> tuple[int, int]:
    """How many samples a thread takes through time together, and how many threads there are.

    The samples are each thread's part, or as many as leave room in its cache for W. Numba is given as many threads as
    PyTorch has, and no more than there is work for.
    """
    import numba

    global _started
    _started = True
    torchs = torch.get_num_threads()
    threads = max(1, min(torchs, numba.config.NUMBA_NUM_THREADS, samples))  # type: ignore[attr-defined]  # set at its import
    numba.set_num_threads(threads)
    if torch.get_num_threads() != torchs:  # Numba's first call sets the OpenMP that the two share
        torch.set_num_threads(torchs)
    rounds = -(-samples // (threads * max(4, 2**16 // n)))
    share = -(-samples // max(1, threads * rounds))
    share = max(share, 1)
    return share if share <= 2 else -(-share // 4) * 4, threads


def _number(f: Nonlinearity | None) -> int:
    return _SLOPES if f is None else _NUMBERS[type(f)]


def _leaks(leak: float | Tensor | None, n: int, dtype: np.dtype) -> np.ndarray:
    """The leak of each neuron, or an empty array."""
    if leak is None:
        return np.empty(0, dtype)
    a = leak.detach().numpy() if isinstance(leak, Tensor) else leak
    return np.full(n, a, dtype)


def _by_sample(
    b: Tensor | None, time: int, batch: torch.Size, otherwise: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """b with `time` axes of time, one of samples, B or 1, and one of neurons; or zeros of another shape."""
    if b is None:
        return np.zeros(otherwise, dtype)
    lead = b.shape[:time]
    if b.shape[time:] != batch and b.shape[time:-1].numel() != 1:
        b = b.expand(*lead, *batch)
    return _array(b).reshape(*lead, _samples(b.shape[time:])[0], batch[-1])


def _samples(batch: torch.Size) -> tuple[int, int]:
    """How many samples, and of how many neurons."""
    return batch[:-1].numel(), batch[-1]


def _dtype(like: Tensor) -> np.dtype:
    return np.dtype(str(like.dtype)[6:])


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()
