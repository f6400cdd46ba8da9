"""The choice between a kernel and the plain path, in one place.

A kernel stands in for a few lines of PyTorch that remain beside it and test it. RETROGRADE_PLAIN=1 in the environment
forces the plain path everywhere.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Dense, Operator, Sparse
from retrograde.connectivity.low_rank import LowRank
from retrograde.kernels.numbering import by_degree
from retrograde.nonlinearity import Identity, Nonlinearity, ReLU, Sigmoid, Softplus, Tanh

_PRODUCTS = (Dense.product, LowRank.product, Sparse.product)

# Their numbers in kernels.cpu.functions. Where there is no f, the slopes are given.
_NUMBERS: dict[type[Nonlinearity], int] = {Tanh: 0, Sigmoid: 1, ReLU: 2, Softplus: 3, Identity: 4}
_SLOPES = -1

# The threads of OpenMP do not come along into a forked process, such as a DataLoader's worker, which dies if it asks
# for them.
_started = _forked = False

# How many threads Numba was given by each of Python's.
_numbas = threading.local()


def _after_fork() -> None:
    global _forked
    _forked = _started


os.register_at_fork(after_in_child=_after_fork)


def why_plain(W: Operator, f: Nonlinearity | None) -> str | None:
    """Why no fused kernel serves this W and f, or None where one does."""
    if type(W.structure).product not in _PRODUCTS:  # a subclass may have its own
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
    trajectory: plain PyTorch (no kernel for Pointwise(...)), but dR/dW by a kernel
    steady state: plain PyTorch (the same), but dR/dW by a kernel
    """
    W = net.W.bind()
    why = why_plain(W, net.f)
    if why is not None:
        gradient = ", but dR/dW by a kernel" if _has_outer(W) else ""
        return f"trajectory: plain PyTorch ({why}){gradient}\nsteady state: plain PyTorch (the same){gradient}"
    shared = _is_lone(W, samples) or _are_few(W, samples)
    how = "the threads sharing each product" if shared else "each thread with its own samples"
    structure, f, dtype = type(W.structure).__name__, type(net.f).__name__.lower(), str(W.like.dtype)[6:]
    which = "FixedPoint and Anderson" if is_large(W) else "FixedPoint"
    return (
        f"trajectory: fused Numba kernels, {how} ({structure}, {f}, {dtype}, cpu, {samples} samples)\n"
        f"steady state: the same for {which}, plain PyTorch for the other solvers"
    )


def forward_sweep(
    W: Operator, f: Nonlinearity, leak: float | Tensor | None, b: Tensor | None, bias: Tensor | None, x0: Tensor, T: int
) -> tuple[Tensor, bool] | None:
    """x(0), ..., x(T), (T + 1, ..., n), and whether all that was met is finite; or None for the plain path.

    The input at t is b[t] + bias, of which one may be None; b broadcasts against (T, *x0.shape), bias against x0.
    """
    if why_plain(W, f) is not None:
        return None
    from retrograde.kernels.cpu import lone, sweeps

    samples, n = _samples(x0.shape)
    if _are_few(W, samples):
        return _forward_of_few(W, f, leak, b, bias, x0, T)
    path = np.empty((T + 1, samples, n), _dtype(x0))  # for which NumPy asks for huge pages, five times faster to touch
    path[0] = _array(x0).reshape(samples, n)
    varying = _by_sample(b, 1, x0.shape, (0, 0, 0), path.dtype)
    constant = _by_sample(bias, 0, x0.shape, (1, n), path.dtype)
    a, A = _leaks(leak, n, path.dtype), _matrix(W)
    if _is_lone(W, samples):
        finite = lone.forward(A, varying, constant, a, _number(f), _threads(), path)
    else:
        share, _ = _share(samples, n, A)
        finite = sweeps.forward(A, varying, constant, a, _number(f), share, path)
    if len(A) == 3:  # a neuron that sends to none is met nowhere
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
) -> tuple[Tensor, Tensor | None] | None:
    """What `through_time.substitute_back` gives: s and, with a leak, l; or None.

    y (T, ..., n) are the outputs of f, from which the slopes are read on the way; or, where f is None, the slopes D.
    """
    if why_plain(W, f) is not None:
        return None
    from retrograde.kernels.cpu import lone, sweeps

    shape, dtype = y.shape, _dtype(y)
    T, (samples, n) = len(y), _samples(shape[1:])
    if _are_few(W, samples):
        return _adjoint_of_few(W, f, y, g, at, leak, after)
    s = np.empty((T, samples, n), dtype)
    l = np.empty((0, 0, 0) if leak is None else s.shape, dtype)
    s_next, l_next = (_by_sample(z, 0, shape[1:], (0, 0), dtype) for z in after)
    slopes, rewards = _array(y).reshape(s.shape), _array(g).reshape(len(g), samples, n)
    a, A = _leaks(leak, n, dtype), _matrix(W, transposed=True)
    if _is_lone(W, samples):
        lone.adjoint(A, slopes, rewards, at, a, _number(f), _threads(), s_next, l_next, s, l)
    else:
        share, _ = _share(samples, n, A)
        sweeps.adjoint(A, slopes, rewards, at, a, _number(f), share, s_next, l_next, s, l)
    return torch.from_numpy(s).view(shape), None if leak is None else torch.from_numpy(l).view(shape)


def _forward_of_few(
    W: Operator, f: Nonlinearity, leak: float | Tensor | None, b: Tensor | None, bias: Tensor | None, x0: Tensor, T: int
) -> tuple[Tensor, bool]:
    """`forward_sweep` of a few samples. The path lies in memory as the input does: by samples, or by neurons."""
    from retrograde.kernels.cpu import few

    batch, (samples, n), dtype = x0.shape, _samples(x0.shape), _dtype(x0)
    given = [
        None if each is None else each.expand(times, *batch).reshape(times, samples, n)
        for each, times in ((b, T), (None if bias is None else bias[None], 1))
    ]
    if any(each is not None and each.stride(1) == 1 for each in given):
        path = torch.from_numpy(np.empty((T + 1, n, samples), dtype)).mT
    else:
        path = torch.from_numpy(np.empty((T + 1, samples, n), dtype))
    path[0] = x0.reshape(samples, n)
    (varying, constant, flat), strides = _without_axes((*given, path), dtype)
    a, A = _leaks(leak, n, dtype), _matrix(W)
    finite = few.forward(A, varying, constant, a, _number(f), _threads(), samples, flat, strides)
    finite = finite and bool(torch.isfinite(x0.sum()))  # as a neuron that sends to none is met nowhere
    return path.view(T + 1, *batch), finite


def _adjoint_of_few(
    W: Operator,
    f: Nonlinearity | None,
    y: Tensor,
    g: Tensor,
    at: np.ndarray,
    leak: float | Tensor | None,
    after: tuple[Tensor | None, ...],
) -> tuple[Tensor, Tensor | None]:
    """`substitute_back` of a few samples. s lies in memory by neurons where y does, all times of one together."""
    from retrograde.kernels.cpu import few

    shape, dtype, T = y.shape, _dtype(y), len(y)
    samples, n = _samples(shape[1:])
    y, g = (each.reshape(len(each), samples, n) for each in (y, g))
    by_neurons = f is not None and y.stride(1) == 1  # slopes that are given lie as it happens

    def made() -> Tensor:
        if by_neurons:
            return torch.from_numpy(np.empty((n, T, samples), dtype)).permute(1, 2, 0)
        return torch.from_numpy(np.empty((T, samples, n), dtype))

    s, l = made(), None if leak is None else made()
    ends = [None if each is None else each.reshape(1, samples, n) for each in after]
    (slopes, rewards, s_next, l_next, s_flat, l_flat), strides = _without_axes((y, g, *ends, s, l), dtype)
    A, a = _matrix(W, transposed=True), _leaks(leak, n, dtype)
    few.adjoint(A, slopes, rewards, at, a, _number(f), _threads(), samples, s_next, l_next, s_flat, l_flat, strides)
    return s.view(shape), None if l is None else l.view(shape)


def _without_axes(given: tuple[Tensor | None, ...], dtype: np.dtype) -> tuple[list[np.ndarray], np.ndarray]:
    """For each tensor its numbers from the first to the last, (0,) for None; and for all of them the strides."""
    flat, strides = [], np.zeros((len(given), 3), np.int64)
    for k, each in enumerate(given):
        if each is None or not each.numel():
            flat.append(np.empty(0, dtype))
            continue
        strides[k] = each.stride()
        length = 1 + sum((size - 1) * stride for size, stride in zip(each.shape, each.stride(), strict=True))
        flat.append(each.detach().as_strided((length,), (1,)).numpy())
    return flat, strides


def outer(W: Operator, s: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """``W.outer(s, x)``, where W is full or sparse by a kernel."""
    if not _has_outer(W):
        return W.outer(s, x)
    from retrograde.kernels.cpu import products, sampled

    s_rows, x_rows = (z.reshape(-1, z.shape[-1]) for z in (s, x))
    structure = W.structure
    if isinstance(structure, Sparse):
        _threads()
        starts, columns = (_unsigned(index) for index in (structure.row_starts, structure.columns))
        if len(x_rows) == 1:
            dW = np.empty(len(columns), _dtype(x))
            sampled.outer_of_one(starts, columns, _array(s_rows)[0], _array(x_rows)[0], dW)
        else:
            dW = np.zeros(len(columns), _dtype(x))
            sampled.outer(starts, columns, _array(s_rows.T), _array(x_rows.T), dW)
    else:
        dW = np.zeros(structure.shape, _dtype(x))
        _, threads = _share(-(-len(dW) // 4) if s.numel() * dW.shape[1] > _SMALL else 1)
        products.outer(_array(s_rows), _array(x_rows), threads, dW)
    return (torch.from_numpy(dW),)


def _has_outer(W: Operator) -> bool:
    """Whether there is a kernel for `outer`; a subclass may have its own."""
    known = (Dense.outer_product, Sparse.outer_product)
    return type(W.structure).outer_product in known and _why_not_here(W) is None


# So few multiplications are done before a second thread has woken up, and so few numbers are copied.
_SMALL, _SMALL_COPY = 2**20, 2**18

Iterate = Callable[[Tensor, float, float, int, float], tuple[Tensor, Tensor, Tensor]]


def fixed_point(W: Operator, f: Nonlinearity, b: Tensor) -> Iterate | None:
    """The iteration of x = f(Wx + b) on a batch b (samples, n) as one call, or None.

    Called with (x, damping, rtol, max_steps, floor), it answers x, the residual and the steps of each sample.
    """
    if why_plain(W, f) is not None:
        return None
    return partial(_iterate, W, False, b, b, _number(f))  # which needs no slopes


def adjoint_fixed_point(W: Operator, D: Tensor, g: Tensor) -> Iterate | None:
    """Likewise the iteration of s = D (Wᵀs + g)."""
    if why_plain(W, None) is not None:
        return None
    return partial(_iterate, W, True, g, D, _number(None))


def tangent_fixed_point(W: Operator, D: Tensor, c: Tensor) -> Iterate | None:
    """Likewise the iteration of v = D (Wv + c)."""
    if why_plain(W, None) is not None:
        return None
    return partial(_iterate, W, False, c, D, _number(None))


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
    from retrograde.kernels.cpu import fixed_point, lone

    A, found = _matrix(W, transposed), _array(z).copy()
    (samples, n), dtype = found.shape, found.dtype.type
    numbers = dtype(damping), rtol, torch.finfo(z.dtype).eps ** 2, max_steps, floor
    if _is_lone(W, samples):
        one = lone.iterate(A, _array(c)[0], _array(D).reshape(-1), kind, *numbers, _threads(), found[0])
        residual, steps = np.array(one[:1], dtype), np.array(one[1:])
    else:
        _, threads = _share(samples, n, A)
        residual, steps = np.empty(samples, dtype), np.empty(samples, np.int64)
        fixed_point.iterate(A, _array(c), _array(D), kind, *numbers, threads, found, residual, steps)
    return torch.from_numpy(found), torch.from_numpy(residual), torch.from_numpy(steps)


Accelerate = Callable[[Tensor, int, int, float, int, float], tuple[Tensor, Tensor, Tensor, Tensor]]


def anderson(W: Operator, f: Nonlinearity, b: Tensor) -> Accelerate | None:
    """Anderson acceleration of x = f(Wx + b), b (samples, n), as one call; or None. For a sparse W of many connections.

    Called with (x, memory, delay, rtol, max_steps, floor), it answers x, the residual and the steps of each sample, and
    whether x is where the dynamics lead.
    """
    if not is_large(W) or why_plain(W, f) is not None:
        return None
    return partial(_accelerate, W, False, b, b[:0], _number(f))


def adjoint_anderson(W: Operator, D: Tensor, g: Tensor) -> Accelerate | None:
    """Likewise of s = D (Wᵀs + g)."""
    if not is_large(W) or why_plain(W, None) is not None:
        return None
    return partial(_accelerate, W, True, g, D, _number(None))


def tangent_anderson(W: Operator, D: Tensor, c: Tensor) -> Accelerate | None:
    """Likewise of v = D (Wv + c)."""
    if not is_large(W) or why_plain(W, None) is not None:
        return None
    return partial(_accelerate, W, False, c, D, _number(None))


def is_large(W: Operator) -> bool:
    """Whether W is sparse, and its products so long that what steps are saved by is cheap beside them."""
    large = isinstance(W.structure, Sparse) and W.shape[0] == W.shape[1] and W.weights[0].numel() >= _LONE
    return large and why_plain(W, None) is None


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
    from retrograde.kernels.cpu import anderson, sampled, tiles

    structure, (weight,) = W.structure, W.weights
    assert isinstance(structure, Sparse)
    samples, n = z.shape
    lanes = 1 if samples <= _ONE_BY_ONE else tiles.BYTES // z.itemsize
    threads, scattered = _threads(), transposed and lanes == 1
    neurons, renumbered, others = by_degree(structure)
    starts, values = _unsigned(structure.row_starts), _array(weight)
    if transposed and not scattered:
        starts = _unsigned(structure.column_starts)
        values = sampled.taken(values, _array(structure.order))
        others = sampled.taken(renumbered, _array(structure.rows_by_column))
    eps = torch.finfo(z.dtype).eps
    numbers = kind, memory, delay, rtol, eps**2, max_steps, floor, max(eps ** (4 / 3), 1e-15), threads
    found, residual = np.empty((samples, n), _dtype(z)), np.empty(samples, _dtype(z))
    steps, stays = np.empty(samples, np.int64), np.empty(samples, bool)
    for first in range(0, samples, lanes):
        rows = np.minimum(np.arange(first, first + lanes), samples - 1)  # the last one again, to fill the vector
        start, drive, slopes = (
            np.ascontiguousarray(_array(each)[rows][:, neurons].T if len(each) else np.empty((0, lanes), found.dtype))
            for each in (z, c, D)
        )
        told = anderson.iterate((starts, others, values), renumbered, scattered, drive, slopes, *numbers, start)
        last = min(first + lanes, samples)
        found[first:last] = start[renumbered].T[: last - first]
        for each, some in zip((residual, steps, stays), told, strict=True):
            each[first:last] = some[: last - first]
    return torch.from_numpy(found), torch.from_numpy(residual), torch.from_numpy(steps), torch.from_numpy(stays)


# So few samples are quicker one after another than side by side in a vector.
_ONE_BY_ONE = 4


# One sample of so many connections is worth waiting for each other at each step.
_LONE = 768**2


def _is_lone(W: Operator, samples: int) -> bool:
    enough = not isinstance(W.structure, LowRank) and W.weights[0].numel() >= _LONE
    return samples == 1 and enough and torch.get_num_threads() > 1


def _are_few(W: Operator, samples: int) -> bool:
    """Whether one vector holds the samples of a trajectory, of which the threads share each product."""
    from retrograde.kernels.cpu import tiles

    held = isinstance(W.structure, Sparse) and 1 < samples <= tiles.BYTES // W.like.itemsize
    return held and W.weights[0].numel() >= _LONE


def _matrix(W: Operator, transposed: bool = False) -> tuple[np.ndarray, ...]:
    """M of ``x @ M``, which is Wx, or Wᵀx, sample by sample, as `kernels.cpu.structures` wants it."""
    structure = W.structure
    if isinstance(structure, Sparse):
        (weight,) = W.weights
        starts, others = structure.row_starts, structure.columns
        if transposed:
            from retrograde.kernels.cpu import sampled

            _threads()  # before the first of Numba's parallel calls, which sets those of torch
            weight = torch.from_numpy(sampled.taken(_array(weight), _array(structure.order)))
            starts, others = structure.column_starts, structure.rows_by_column
        return _unsigned(starts), _unsigned(others), _array(weight)
    if isinstance(structure, LowRank):
        U, V = W.weights
        first, second = (U, V) if transposed else (V, U)
        return _packed(first), _packed(second, transposed=True)
    return (_packed(W.weights[0], not transposed),)


def _unsigned(index: Tensor) -> np.ndarray:
    """For Numba, which else allows for indices that count from the end."""
    return _array(index).view(f"u{index.itemsize}")


def _packed(A: Tensor, transposed: bool = False) -> np.ndarray:
    """A, or its transpose, as `kernels.cpu.products` wants it."""
    from retrograde.kernels.cpu import products

    if not A.is_contiguous() and A.T.is_contiguous():
        A, transposed = A.T, not transposed
    _, threads = _share(len(A) if A.numel() > _SMALL_COPY else 1)
    return products.pack(_array(A), transposed, threads)


def _threads() -> int:
    """As many as PyTorch has."""
    return _share(torch.get_num_threads())[1]


def _share(samples: int, n: int = 1, A: tuple[np.ndarray, ...] = ()) -> tuple[int, int]:
    """How many samples a thread takes through time together, and how many threads there are.

    The samples are each thread's part, or as many as leave room in its cache for W. Numba is given as many threads as
    PyTorch has, and no more than there is work for.
    """
    import numba

    global _started
    _started = True
    torchs = torch.get_num_threads()
    threads = max(1, min(torchs, numba.config.NUMBA_NUM_THREADS, samples))  # type: ignore[attr-defined]  # set at its import
    if getattr(_numbas, "threads", None) != threads:  # as setting it takes a lock
        numba.set_num_threads(threads)
        _numbas.threads = threads
    if torch.get_num_threads() != torchs:  # Numba's first call sets the OpenMP that the two share
        torch.set_num_threads(torchs)
    rounds = -(-samples // (threads * max(4, 2**16 // n)))
    share = max(1, -(-samples // max(1, threads * rounds)))
    together = 16 if len(A) == 3 else 4  # as they share each load of W
    return share if share <= together // 2 else -(-share // together) * together, threads


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
    x = x.detach() if x.requires_grad else x
    return (x if x.is_contiguous() else x.contiguous()).numpy()
