"""The choice between a kernel and the plain path, in one place.

A kernel stands in for a few lines of PyTorch that remain beside it and test it. RETROGRADE_PLAIN=1 in the environment
forces the plain path everywhere.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

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

_DTYPES: dict[torch.dtype, np.dtype] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_TINY = {dtype: torch.finfo(dtype).eps ** 2 for dtype in _DTYPES}

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
    how = "the threads sharing each product" if _is_shared(W, samples) else "each thread with its own samples"
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
    cpu = _cpu()

    samples, n = _samples(x0.shape)
    path = np.empty((T + 1, samples, n), _dtype(x0))  # for which NumPy asks for huge pages, five times faster to touch
    path[0] = _array(x0).reshape(samples, n)
    varying = _by_sample(b, 1, x0.shape, (0, 0, 0), path.dtype)
    constant = _by_sample(bias, 0, x0.shape, (1, n), path.dtype)
    about = varying, constant, _leaks(leak, n, path.dtype), _number(f)
    if _is_shared(W, samples):
        finite = cpu.lone.forward(_packed(W), *about, _ask_for(_most()), path)
    else:
        share, threads = _share(samples, n, W)
        _ask_for(threads)
        finite = cpu.sweeps.forward(*_matrix(W), *about, share, path)
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
    cpu = _cpu()

    shape, dtype = y.shape, _dtype(y)
    T, (samples, n) = len(y), _samples(shape[1:])
    s = np.empty((T, samples, n), dtype)
    l = np.empty((0, 0, 0) if leak is None else s.shape, dtype)
    s_next, l_next = (_by_sample(z, 0, shape[1:], (0, 0), dtype) for z in after)
    about = _array(y).reshape(s.shape), _array(g).reshape(len(g), samples, n), at, _leaks(leak, n, dtype), _number(f)
    shared = _is_shared(W, samples)
    at_once = before is not None and not shared and _is_full(W)  # what a kernel then does in the same call
    rows = dW = np.empty((0, 0), dtype)
    if before is not None and at_once:
        rows, dW = _array(before).reshape(-1, n), np.zeros((n, n), dtype)
    if shared:
        cpu.lone.adjoint(_packed(W, transposed=True), *about, _ask_for(_most()), s_next, l_next, s, l)
    else:
        share, threads = _share(samples, n, W)
        sharers = _sharers(s.size, dW)
        M = _matrix(W, transposed=True)
        _ask_for(threads, sharers)
        cpu.sweeps.adjoint(*M, *about, share, s_next, l_next, s, l, s.reshape(-1, n), rows, sharers, dW)
    found = torch.from_numpy(s).view(shape), None if leak is None else torch.from_numpy(l).view(shape)
    if before is None:
        return *found, ()
    return *found, (torch.from_numpy(dW),) if at_once else outer(W, found[0], before)


def outer(W: Operator, s: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """``W.outer(s, x)``, where W is full or sparse by a kernel."""
    if not _has_outer(W):
        return W.outer(s, x)
    cpu = _cpu()

    s_rows, x_rows = (z.reshape(-1, z.shape[-1]) for z in (s, x))
    structure = W.structure
    if isinstance(structure, Sparse):
        _ask_for(_most())
        starts, columns = (_unsigned(index) for index in (structure.row_starts, structure.columns))
        if len(x_rows) == 1:
            dW = np.empty(len(columns), _dtype(x))
            cpu.sampled.outer_of_one(starts, columns, _array(s_rows)[0], _array(x_rows)[0], dW)
        else:
            dW = np.zeros(len(columns), _dtype(x))
            cpu.sampled.outer(starts, columns, _array(s_rows.T), _array(x_rows.T), dW)
    else:
        dW = np.zeros(structure.shape, _dtype(x))
        cpu.products.outer(_array(s_rows), _array(x_rows), _ask_for(_sharers(s.numel(), dW)), dW)
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
    cpu = _cpu()

    found = _array(z).copy()
    (samples, n), dtype = found.shape, found.dtype.type
    numbers = dtype(damping), rtol, _TINY[z.dtype], max_steps, floor
    if _is_lone(W, samples):
        threads = _ask_for(_most())
        A = _packed(W, transposed)
        one = cpu.lone.iterate(A, _array(c)[0], _array(D).reshape(-1), kind, *numbers, threads, found[0])
        residual, steps = np.array(one[:1], dtype), np.array(one[1:])
    else:
        residual, steps = np.empty(samples, dtype), np.empty(samples, np.int64)
        none, nor_of_these = np.empty((0, 0), dtype), np.empty(0, dtype)
        M, (_, threads) = _matrix(W, transposed), _share(samples, n, W)
        _ask_for(threads)
        about = _array(c), _array(D), kind, numbers, threads, False, none
        cpu.fixed_point.iterate(*M, *about, found, residual, steps, nor_of_these, none)
    return torch.from_numpy(found), torch.from_numpy(residual), torch.from_numpy(steps)


class Whole(NamedTuple):
    """A whole batch by one call: what the first of its solvers found, and whether that is all there is to do.

    `amplified` is |s| / |Dg| of an adjoint's samples, and `dW` its dR/dW where one was asked for.
    """

    z: Tensor
    residual: Tensor
    steps: Tensor
    all_converged: bool
    amplified: Tensor
    dW: tuple[Tensor, ...]


def whole_state(
    W: Operator, f: Nonlinearity, b: Tensor, x: Tensor, rtol: float, max_steps: int, floor: float
) -> Whole | None:
    """`fixed_point` from x, after a look at the numbers; None without a kernel, or where one is not finite."""
    if why_plain(W, f) is not None:
        return None
    return _whole(W, False, b, b, _number(f), x, rtol, max_steps, floor, None)


def whole_adjoint(
    W: Operator, D: Tensor, g: Tensor, x: Tensor | None, rtol: float, max_steps: int, floor: float
) -> Whole | None:
    """`adjoint_fixed_point` from Dg and, given x, dR/dW = s xᵀ; None without a kernel, or where g or Dg is far from 1.

    That is 2**-10 to 2**10; beyond it, and where a sample has no reward, there is more to be looked at.
    """
    if why_plain(W, None) is not None:
        return None
    return _whole(W, True, g, D, _number(None), None, rtol, max_steps, floor, x)


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
) -> Whole | None:
    samples, n = c.shape
    if not samples or _is_lone(W, samples):
        return None
    cpu = _cpu()

    drive = _array(c)
    dtype = drive.dtype
    found = np.empty((samples, n), dtype) if z is None else _array(z).copy()
    residual, steps, amplified = np.empty(samples, dtype), np.empty(samples, np.int64), np.empty(samples, dtype)
    rows = dW = np.empty((0, 0), dtype)
    at_once = x is not None and _is_full(W)
    if x is not None and at_once:
        rows, dW = _array(x), np.zeros((n, n), dtype)
    M, (_, threads) = _matrix(W, transposed), _share(samples, n, W)
    threads = max(threads, _sharers(c.numel(), dW))
    _ask_for(threads)
    numbers = dtype.type(1), rtol, _TINY[c.dtype], max_steps, floor
    about = drive, _array(D), kind, numbers, threads, True, rows
    told = cpu.fixed_point.iterate(*M, *about, found, residual, steps, amplified, dW)
    if told == cpu.fixed_point.UNFIT:
        return None
    s = torch.from_numpy(found)
    gradient: tuple[Tensor, ...] = () if x is None else (torch.from_numpy(dW),) if at_once else outer(W, s, x)
    residuals, counts, factors = torch.from_numpy(residual), torch.from_numpy(steps), torch.from_numpy(amplified)
    return Whole(s, residuals, counts, told == cpu.fixed_point.ALL_CONVERGED, factors, gradient)


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
    cpu = _cpu()

    structure, (weight,) = W.structure, W.weights
    assert isinstance(structure, Sparse)
    samples, n = z.shape
    lanes = 1 if samples <= _ONE_BY_ONE else cpu.tiles.BYTES // z.itemsize
    threads, scattered = _ask_for(_most()), transposed and lanes == 1
    neurons, renumbered, others = by_degree(structure)
    starts, values = _unsigned(structure.row_starts), _array(weight)
    if transposed and not scattered:
        starts = _unsigned(structure.column_starts)
        values = cpu.sampled.taken(values, _array(structure.order))
        others = cpu.sampled.taken(renumbered, _array(structure.rows_by_column))
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
        told = cpu.anderson.iterate((starts, others, values), renumbered, scattered, drive, slopes, *numbers, start)
        last = min(first + lanes, samples)
        found[first:last] = start[renumbered].T[: last - first]
        for each, some in zip((residual, steps, stays), told, strict=True):
            each[first:last] = some[: last - first]
    return torch.from_numpy(found), torch.from_numpy(residual), torch.from_numpy(steps), torch.from_numpy(stays)


# So few samples are quicker one after another than side by side in a vector.
_ONE_BY_ONE = 4


# One sample of so many connections is worth waiting for each other at each step.
_LONE = 768**2


def _is_full(W: Operator) -> bool:
    """Whether dR/dW is Σ s xᵀ itself; a subclass may have its own."""
    return type(W.structure).outer_product is Dense.outer_product


def _is_lone(W: Operator, samples: int) -> bool:
    enough = not isinstance(W.structure, LowRank) and W.weights[0].numel() >= _LONE
    return samples == 1 and enough and torch.get_num_threads() > 1


def _is_shared(W: Operator, samples: int) -> bool:
    """Whether the threads share each product of a trajectory, rather than the samples."""
    if isinstance(W.structure, Sparse):
        few = 0 < samples <= _cpu().tiles.BYTES // W.like.itemsize  # which one vector holds
        return few and _is_lone(W, 1)
    return _is_lone(W, samples)


def _matrix(W: Operator, transposed: bool = False) -> tuple[tuple[np.ndarray, ...], bool]:
    """M of x M, which is Wx, or Wᵀx, as `kernels.cpu.structures` wants it; and whether it is to be transposed yet."""
    structure = W.structure
    if isinstance(structure, Sparse):
        (weight,) = W.weights
        starts, others = structure.row_starts, structure.columns
        if transposed:
            _ask_for(_most())  # before the first of Numba's parallel calls, which sets those of torch
            weight = torch.from_numpy(_cpu().sampled.taken(_array(weight), _array(structure.order)))
            starts, others = structure.column_starts, structure.rows_by_column
        return (_unsigned(starts), _unsigned(others), _array(weight)), False
    if isinstance(structure, LowRank):
        U, V = map(_array, W.weights)
        return ((U, V) if transposed else (V, U)), False
    (weight,) = W.weights
    if weight.is_contiguous() or not weight.T.is_contiguous():
        return (_array(weight),), not transposed
    return (_array(weight.T),), transposed


def _packed(W: Operator, transposed: bool = False) -> tuple[np.ndarray, ...]:
    """`_matrix`, packed by all threads where it is full; a sparse one is ready as it is."""
    M, flipped = _matrix(W, transposed)
    if len(M) == 3:
        return M
    threads = _ask_for(_most() if M[0].size > _SMALL_COPY else 1)
    return (_cpu().products.pack(M[0], flipped, threads),)


def _unsigned(index: Tensor) -> np.ndarray:
    """For Numba, which else allows for indices that count from the end."""
    return _array(index).view(f"u{index.itemsize}")


@cache
def _cpu() -> Any:
    from retrograde.kernels import cpu  # and Numba, which takes a second

    return cpu


@cache
def _numbas_most() -> int:
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]  # set at its import


def _most() -> int:
    """How many threads there may be: as many as PyTorch has."""
    return min(torch.get_num_threads(), _numbas_most())


def _ask_for(*threads: int) -> int:
    """Let Numba have so many threads, the most of these, and no more than there is work for."""
    global _started
    _started = True
    torchs, most = torch.get_num_threads(), max(threads)
    if getattr(_numbas, "threads", None) != most:  # as setting it takes a lock
        import numba

        numba.set_num_threads(most)
        _numbas.threads = most
    if torch.get_num_threads() != torchs:  # Numba's first call sets the OpenMP that the two share
        torch.set_num_threads(torchs)
    return most


def _share(samples: int, n: int, W: Operator) -> tuple[int, int]:
    """How many samples a thread takes through time together, and how many threads there are.

    The samples are each thread's part, or as many as leave room in its cache for W.
    """
    threads = max(1, min(_most(), samples))
    rounds = -(-samples // (threads * max(4, 2**16 // n)))
    share = max(1, -(-samples // max(1, threads * rounds)))
    together = 16 if isinstance(W.structure, Sparse) else 4  # as they share each load of W
    return share if share <= together // 2 else -(-share // together) * together, threads


def _sharers(numbers: int, dW: np.ndarray) -> int:
    """How many threads share the rows of dR/dW, summed over so many numbers of s."""
    rows, columns = dW.shape
    return max(1, min(_most(), -(-rows // 4))) if numbers * columns > _SMALL else 1


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
    lead, own = b.shape[:time], b.shape[time:]
    if own != batch and own[:-1].numel() != 1:
        b, own = b.expand(*lead, *batch), batch
    return _array(b) if len(own) == 2 else _array(b).reshape(*lead, own[:-1].numel(), batch[-1])


def _samples(batch: torch.Size) -> tuple[int, int]:
    """How many samples, and of how many neurons."""
    return batch[:-1].numel(), batch[-1]


def _dtype(like: Tensor) -> np.dtype:
    return _DTYPES[like.dtype]


def _array(x: Tensor) -> np.ndarray:
    x = x.detach() if x.requires_grad else x
    return (x if x.is_contiguous() else x.contiguous()).numpy()
