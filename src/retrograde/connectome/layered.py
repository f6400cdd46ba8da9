"""connectome_interpreter's network, its equations and its search for an input, for results that are its own.

What it computes step by step is a trajectory with a leak, x ← (1 - a) x + a φ(β Wx + |I|), φ(z) = tanh z where z ≥ θ
and 0 elsewhere, behind each step of which the input is added to the *state*, which is then clamped. A trajectory of
`retrograde.trajectory` adds its input before f, so these are equations of their own, and so is their adjoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator
from retrograde.connectome.given import per_neuron
from retrograde.connectome.wiring import Connectome

# What each release does: the time constant, and what of the input and the state is cut off below the threshold.
RELEASES = {"ci-2.9": (1.0, "input"), "ci-2.10": (10.0, "state")}


@dataclass(frozen=True, eq=False)
class Layered:
    """connectome_interpreter's MultilayeredNetwork, differentiable in its input by one sweep back.

    x(0) = u(0) at the driven neurons. Then x(t) = (1 - 1/τ) x(t-1) + φ(β W x(t-1) + |I|) / τ, and for all t but the
    last x(t) ← min(x(t) + u(t), 1). Release 2.9 sets an input below the threshold to 0 and limits it to 1; from 2.10 on
    it is the state, with the input added, that is set to 0 below the threshold.

    The derivative taken of the jump at θ is 0, and that of what is clamped is 0: as that tool has it.

    Attributes:
        W, WT: (n, n), in compressed rows.
        threshold: θ.
        steepness, bias, tau: one number, or (n, 1): β, I and τ.
        cut: "input" or "state", what the threshold is applied to besides φ.
    """

    W: Tensor
    WT: Tensor
    threshold: float
    steepness: Tensor
    bias: Tensor
    tau: Tensor
    cut: str

    def __call__(self, u: Tensor, driven: Tensor) -> Tensor:
        """x(1), ..., x(T), (T, n, samples), for the inputs u, (T, neurons driven, samples), u(0), ..., u(T-1)."""
        return _Sweep.apply(u, self, driven)

    def forward(self, u: Tensor, driven: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """x(1), ..., x(T); the slopes β D / τ of each step; and where x(t) went on unchanged behind it."""
        allowed = torch.ones_like(u, dtype=torch.bool)
        if self.cut == "input":
            allowed = (u >= self.threshold) & (u <= 1)
            u = torch.where(u >= self.threshold, u, 0).clamp(max=1)
        T, n, gain = len(u), self.W.shape[0], self.steepness / self.tau
        keep = 1 - 1 / self.tau
        x = u.new_zeros(n, u.shape[2]).index_add(0, driven, u[0])
        path, slopes, kept = u.new_empty(T, *x.shape), [], [allowed]
        for t in range(T):
            z = (self.W @ x).mul_(self.steepness).add_(self.bias)
            y = torch.where(z >= self.threshold, torch.tanh(z), 0)
            slopes.append(torch.where(z >= self.threshold, gain * (1 - y * y), 0))
            x = keep * x + y / self.tau
            if t < T - 1:
                x.index_add_(0, driven, u[t + 1])
                inside = x <= 1
                if self.cut == "state":
                    inside &= x >= self.threshold
                    x = torch.where(x >= self.threshold, x, 0)
                x = x.clamp_(max=1)
                kept.append(inside)
            path[t] = x
        return path, slopes, kept

    def adjoint(self, slopes: list[Tensor], kept: list[Tensor], g: Tensor, driven: Tensor) -> Tensor:
        """dR/du: l = dR/dx(t) + (1 - 1/τ) l(t+1) + Wᵀ s(t+1), 0 where x(t) was cut off; s(t) = β D l / τ."""
        allowed, inside, T, keep = kept[0], kept[1:], len(g), 1 - 1 / self.tau
        du = g.new_empty(T, len(driven), g.shape[2])
        l = g[T - 1]
        for t in reversed(range(T)):
            if t < T - 1:
                l = torch.where(inside[t], g[t] + l, 0)
                du[t + 1] = l[driven]
            l = keep * l + self.WT @ (slopes[t] * l)
        du[0] = l[driven]
        return torch.where(allowed, du, 0)


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, net: Layered, driven: Tensor) -> Tensor:
        path, ctx.slopes, ctx.kept = net.forward(u, driven)
        ctx.net, ctx.driven = net, driven
        return path

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.net.adjoint(ctx.slopes, ctx.kept, g[0], ctx.driven), None, None


def layered(
    c: Connectome,
    release: str,
    *,
    threshold: float = 0.01,
    steepness: Any = 5.0,
    bias: Any = 0.0,
    tau: Any = None,
    W: Operator | None = None,
) -> Layered:
    """The network of that release, "ci-2.9" or "ci-2.10"; numbers for each neuron as `per_neuron` takes them.

    W is that of the connectome if none is given.

    Raises:
        ValueError: an unknown release, a τ below 1.
    """
    if release not in RELEASES:
        raise ValueError(f"preset: expected one of {', '.join(RELEASES)}, got {release!r}")
    usual, cut = RELEASES[release]
    post, pre, weight = (each.detach() for each in (W or c.W.bind()).entries())
    index, n = torch.stack([post, pre]), len(c)
    rows = torch.sparse_coo_tensor(index, weight, (n, n), check_invariants=False)

    def each(given: Any, what: str, otherwise: float) -> Tensor:
        found = per_neuron(c, given, what, otherwise)
        return torch.from_numpy(found).to(weight)[:, None] if np.ptp(found) else weight.new_tensor(found[0])

    tau = each(usual if tau is None else tau, "tau", usual)
    if bool((tau < 1).any()):
        raise ValueError(f"tau: expected at least 1 step, got {float(tau.min()):g}")
    return Layered(
        rows.to_sparse_csr(),
        rows.T.coalesce().to_sparse_csr(),
        float(threshold),
        each(steepness, "steepness", 5.0),
        each(bias, "bias", 0.0).abs(),
        tau,
        cut,
    )


Target = tuple[Tensor, Tensor, Tensor]  # times, places, activities


def activation_maximisation(
    net: Layered,
    driven: Tensor,
    targets: Target,
    steps: int,
    *,
    seed: int = 0,
    turns: int = 50,
    rate: float = 0.1,
    penalty: float = 0.01,
    told: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """connectome_interpreter's search: Adam from a random input, on the mean squared error and the penalties.

    The loss is Σ (x_i(t) - target)² / targets + penalty (|u|₁ + |u|₂ + |x|₁ + |x|₂), over all neurons and times; the
    search ends where the loss moved by less than 1e-5 in ten turns. What it finds passes the threshold and a tanh.

    Returns:
        u(0), ..., u(T-1), (T, neurons driven); x(1), ..., x(T), (T, n); the losses, (turns,).
    """
    times, places, wanted = targets
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand((1, len(driven), steps), generator=generator)  # in its shape, for the same numbers
    u = start[0].T.to(net.W.dtype).contiguous()[:, :, None].requires_grad_()
    adam, losses = torch.optim.Adam([u], lr=rate), []
    for turn in range(turns):
        adam.zero_grad()
        path = net(u, driven)
        error = (path[times - 1, places, 0] - wanted).square().mean()
        loss = error + penalty * sum(z.abs().sum() + torch.linalg.vector_norm(z) for z in (u, path))
        losses.append(float(loss.detach()))
        if turn > 10 and max(losses[-10:]) - min(losses[-10:]) < 1e-5:
            break
        loss.backward()
        adam.step()
        if told is not None:
            told(turn)
    with torch.no_grad():
        u = torch.tanh(torch.where(u >= net.threshold, u, 0))
        return u[:, :, 0], net(u, driven)[:, :, 0], torch.tensor(losses)
