"""The choice between a kernel and the plain path, in one place.

A kernel stands in for a few lines of PyTorch that remain beside it and test it. RETROGRADE_PLAIN=1 in the environment
forces the plain path everywhere. `choice` says which path is taken; the other files hand tensors to the kernels.
"""

from __future__ import annotations

from typing import Any

from retrograde.kernels.accelerations import adjoint_anderson, anderson, tangent_anderson
from retrograde.kernels.choice import by_few, has_outer, is_large, is_lone, why_plain
from retrograde.kernels.iterations import (
    adjoint_fixed_point,
    fixed_point,
    tangent_fixed_point,
    whole_adjoint,
    whole_state,
)
from retrograde.kernels.nearing import Rules, Steps, adjoint_steps, state_steps
from retrograde.kernels.paths import forward_sweep, substitute_back
from retrograde.kernels.rows import add_backwards, by_rows
from retrograde.kernels.sums import outer

__all__ = [
    "Rules",
    "Steps",
    "add_backwards",
    "adjoint_anderson",
    "adjoint_fixed_point",
    "adjoint_steps",
    "anderson",
    "by_rows",
    "explain",
    "fixed_point",
    "forward_sweep",
    "is_large",
    "outer",
    "state_steps",
    "substitute_back",
    "tangent_anderson",
    "tangent_fixed_point",
    "whole_adjoint",
    "whole_state",
    "why_plain",
]


def explain(net: Any, samples: int = 32) -> str:
    """Which path the trajectories and steady states of `net` take for so many samples, and why.

    >>> import torch, retrograde as rg
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
        gradient = ", but dR/dW by a kernel" if has_outer(W) else ""
        return f"trajectory: plain PyTorch ({why}){gradient}\nsteady state: plain PyTorch (the same){gradient}"
    by_sample, shared = "each thread with its own samples", "the threads sharing each product"
    along = shared if is_lone(W, samples) or by_few(W, samples) else by_sample
    plainly = shared if is_lone(W, samples) else by_sample
    structure, f, dtype = type(W.structure).__name__, type(net.f).__name__.lower(), str(W.like.dtype)[6:]
    which = "the same for FixedPoint" if plainly == along else f"{plainly} for FixedPoint"
    which += f", {shared} for Anderson" if is_large(W) else ""
    return (
        f"trajectory: fused Numba kernels, {along} ({structure}, {f}, {dtype}, cpu, {samples} samples)\n"
        f"steady state: {which}, plain PyTorch for the other solvers"
    )
