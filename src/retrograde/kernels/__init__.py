"""The choice between a kernel and the plain path, in one place.

A kernel stands in for a few lines of PyTorch that remain beside it and test it. RETROGRADE_PLAIN=1 in the environment
forces the plain path everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

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
    W: Operator, f: Nonlinearity, leak: float | Tensor | None, b: Tensor, x0: Tensor, T: int
) -> Tensor | None:
    """x(1), ..., x(T), (T, ..., n), or None for the plain path; b broadcasts against (T, *x0.shape)."""
    if why_plain(W, f) is not None:
        return None
    from retrograde.kernels.cpu import sweeps

    n = x0.shape[-1]
    if b.ndim < x0.ndim + 1:
        b = b.expand(1, *x0.shape)
    elif b.shape[1:-1].numel() != 1:
        b = b.expand(len(b), *x0.shape)
    b = b.reshape(len(b), -1, n)
    x = x0.new_empty(T, *x0.shape)
    A = W.weights[0].detach().T.contiguous()
    start = x0.detach().reshape(-1, n).contiguous()
    _share_threads()
    sweeps.forward(  # type: ignore[call-arg]
        *_arrays(A, b.detach().contiguous(), start, _leaks(leak, start)), _number(f), *_arrays(x.view(T, -1, n))
    )
    return x


def substitute_back(
    W: Operator, f: Nonlinearity | None, y: Tensor, g: Tensor, leak: float | Tensor | None
) -> tuple[Tensor, Tensor | None] | None:
    """S and, with a leak, l, as `adjoint.substitute_back` gives them; or None.

    y (T, ..., n) are the outputs of f, from which the slopes are read on the way; or, where f is None, the slopes D.
    """
    if why_plain(W, f) is not None:
        return None
    from retrograde.kernels.cpu import sweeps

    T, n = len(y), y.shape[-1]
    s = torch.empty_like(y, memory_format=torch.contiguous_format)
    l = None if leak is None else torch.empty_like(s)
    y, g = y.contiguous().view(T, -1, n), g.contiguous().view(T, -1, n)
    weight = W.weights[0].detach().contiguous()
    _share_threads()
    into = _arrays(s.view(T, -1, n), s.new_empty(0, 0, 0) if l is None else l.view(T, -1, n))
    sweeps.adjoint(*_arrays(weight, y, g, _leaks(leak, y)), _number(f), *into)  # type: ignore[call-arg]
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


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]
