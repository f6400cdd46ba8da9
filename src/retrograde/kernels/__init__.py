"""The choice between a kernel and the plain path, in one place.

A kernel stands in for a few lines of PyTorch that remain beside it and test it. RETROGRADE_PLAIN=1 in the environment
forces the plain path everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Dense, Operator
from retrograde.nonlinearity import Identity, Nonlinearity, ReLU, Sigmoid, Softplus, Tanh

# Their numbers in kernels.cpu.functions. Where there is no f, the slopes are given.
_NUMBERS: dict[type[Nonlinearity], int] = {Tanh: 0, Sigmoid: 1, ReLU: 2, Softplus: 3, Identity: 4}
_SLOPES = -1


def why_plain(W: Operator, f: Nonlinearity | None) -> str | None:
    """Why no kernel serves this W and f, or None where one does."""
    if os.environ.get("RETROGRADE_PLAIN", "0") not in ("", "0"):
        return "RETROGRADE_PLAIN is set"
    if getattr(type(W.structure), "product", None) is not Dense.product:  # subclasses may say otherwise
        return f"no kernel for {type(W.structure).__name__}"
    if f is not None and type(f) not in _NUMBERS:
        return f"no kernel for {f}"
    if W.like.device.type != "cpu":
        return f"no kernel on {W.like.device.type}"
    if W.like.dtype not in (torch.float32, torch.float64):
        return f"no kernel for {W.like.dtype}"
    return None


def explain(net: Any) -> str:
    """Which path the trajectories and steady states of `net` take, and why.

    >>> import retrograde as rg
    >>> print(explain(rg.Network(64)))
    trajectory: fused Numba kernels (Dense, tanh, float32, cpu)
    steady state: fused Numba kernels for FixedPoint, plain PyTorch for the other solvers (Dense, tanh, float32, cpu)
    >>> print(explain(rg.Network(64, f=rg.Pointwise(torch.sin))).splitlines()[0])
    trajectory: plain PyTorch (no kernel for Pointwise(fn=<built-in method sin of type object at ...>, inverse_fn=None))
    """
    W = net.W.bind()
    why = why_plain(W, net.f)
    if why is not None:
        return f"trajectory: plain PyTorch ({why})\nsteady state: plain PyTorch ({why})"
    what = f"({type(W.structure).__name__}, {type(net.f).__name__.lower()}, {str(W.like.dtype)[6:]}, {W.like.device})"
    return (
        f"trajectory: fused Numba kernels {what}\n"
        f"steady state: fused Numba kernels for FixedPoint, plain PyTorch for the other solvers {what}"
    )


def forward_sweep(
    W: Operator, f: Nonlinearity, leak: float | Tensor | None, b: Tensor | None, bias: Tensor | None, x0: Tensor, T: int
) -> tuple[Tensor, bool] | None:
    """x(0), ..., x(T), (T + 1, ..., n), and whether all that was met is finite; or None for the plain path.

    The input at t is b[t] + bias, of which one may be None; b broadcasts against (T, *x0.shape), bias against x0.
    """
    if why_plain(W, f) is not None:
        return None
    from retrograde.kernels.cpu import sweeps

    n = x0.shape[-1]
    path = _empty(T + 1, *x0.shape, like=x0)
    path[0] = x0
    samples = x0.shape[:-1].numel()
    A = W.weights[0].detach().T.contiguous()
    varying = x0.new_empty(0, 0, 0) if b is None else _by_sample(b, 1, x0.shape)
    constant = x0.new_zeros(1, n) if bias is None else _by_sample(bias, 0, x0.shape)
    threads = _share_threads()
    finite = sweeps.forward(  # type: ignore[call-arg]
        *_arrays(A, varying, constant, _leaks(leak, x0)),
        _number(f),
        _share(samples, n, threads),
        *_arrays(path.view(T + 1, samples, n)),
    )
    return path, finite


def substitute_back(
    W: Operator,
    f: Nonlinearity | None,
    y: Tensor,
    g: Tensor,
    at: np.ndarray,
    leak: float | Tensor | None,
    after: tuple[Tensor | None, ...],
) -> tuple[Tensor, Tensor | None] | None:
    """S and, with a leak, l, as `through_time.substitute_back` gives them, or None.

    y (T, ..., n) are the outputs of f, from which the slopes are read on the way; or, where f is None, the slopes D.
    """
    if why_plain(W, f) is not None:
        return None
    from retrograde.kernels.cpu import sweeps

    T, n, samples = len(y), y.shape[-1], y[0].numel() // y.shape[-1]
    s = _empty(*y.shape, like=y)
    l = None if leak is None else _empty(*y.shape, like=y)
    none = y.new_empty(0, 0, 0)
    s_next, l_next = (none.view(0, 0) if z is None else z.reshape(samples, n).contiguous() for z in after)
    sweeps.adjoint(  # type: ignore[call-arg]
        *_arrays(W.weights[0].detach().contiguous(), y.contiguous().view(T, samples, n)),
        *_arrays(g.contiguous().view(len(g), samples, n)),
        at,
        *_arrays(_leaks(leak, y)),
        _number(f),
        _share(samples, n, _share_threads()),
        *_arrays(s_next, l_next, s.view(T, samples, n), none if l is None else l.view(T, samples, n)),
    )
    return s, l


Iterate = Callable[[Tensor, float, float, int], tuple[Tensor, Tensor, Tensor]]


def fixed_point(W: Operator, f: Nonlinearity, b: Tensor) -> Iterate | None:
    """The iteration of x = f(Wx + b) on a batch b (samples, n) as one call (x, damping, rtol, max_steps), or None.

    It answers x, the residual and the steps of each sample.
    """
    if why_plain(W, f) is not None or _is_lone(b):
        return None
    A = W.weights[0].detach().T.contiguous()
    return lambda x, damping, rtol, max_steps: _iterate(A, b, b[:0], _number(f), x, damping, rtol, max_steps)


def adjoint_fixed_point(W: Operator, D: Tensor, g: Tensor) -> Iterate | None:
    """Likewise the iteration of s = D (Wᵀs + g)."""
    if why_plain(W, None) is not None or _is_lone(g):
        return None
    A = W.weights[0].detach().contiguous()
    return lambda s, damping, rtol, max_steps: _iterate(A, g, D, _number(None), s, damping, rtol, max_steps)


def _is_lone(c: Tensor) -> bool:
    """Whether there are fewer samples than threads, of so many neurons that threads better share one product."""
    return len(c) < torch.get_num_threads() and c.shape[1] >= 512


def _iterate(
    A: Tensor, c: Tensor, D: Tensor, kind: int, z: Tensor, damping: float, rtol: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    from retrograde.kernels.cpu import fixed_point

    z = z.clone(memory_format=torch.contiguous_format)
    residual = z.new_empty(len(z))
    steps = torch.empty(len(z), dtype=torch.int64)
    tiny = torch.finfo(z.dtype).eps ** 2
    numbers = (z.numpy().dtype.type(damping), rtol, tiny, max_steps, _share_threads())
    arrays, into = _arrays(A, c.contiguous(), D.contiguous()), _arrays(z, residual, steps)
    fixed_point.iterate(*arrays, kind, *numbers, *into)  # type: ignore[call-arg]
    return z, residual, steps


def _share(samples: int, n: int, threads: int) -> int:
    """How many samples a thread takes through time together: its part, or as many as leave room in its cache for W."""
    most = max(4, 2**16 // n)
    shares = threads * -(-samples // (threads * most))
    return max(4, -(-samples // (4 * shares)) * 4) if shares else 4


def _share_threads() -> int:
    """Give Numba as many threads as PyTorch has, and no more."""
    import numba

    torchs = torch.get_num_threads()
    threads = min(torchs, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(threads)
    if torch.get_num_threads() != torchs:  # Numba's first call sets the OpenMP that the two share
        torch.set_num_threads(torchs)
    return threads


def _number(f: Nonlinearity | None) -> int:
    return _SLOPES if f is None else _NUMBERS[type(f)]


def _leaks(leak: float | Tensor | None, like: Tensor) -> Tensor:
    """The leak of each neuron, or an empty tensor."""
    if leak is None:
        return like.new_empty(0)
    return torch.as_tensor(leak, dtype=like.dtype).detach().expand(like.shape[-1]).contiguous()


def _by_sample(b: Tensor, time: int, batch: torch.Size) -> Tensor:
    """b with `time` axes of time, then one of samples, B or 1, then neurons."""
    lead, n = b.shape[:time], b.shape[-1]
    if b.shape[time:-1].numel() != 1:
        b = b.expand(*lead, *batch)
    return b.detach().reshape(*lead, -1, n).contiguous()


def _empty(*shape: int, like: Tensor) -> Tensor:
    """An uninitialised tensor. NumPy asks for huge pages, and first touching those takes a fifth of the time."""
    return torch.from_numpy(np.empty(shape, like.numpy().dtype))


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]
