"""connectome_interpreter's network, its equations and its search for an input, for results that are its own.

What it computes step by step is a trajectory with a leak, x ← (1 - a) x + a φ(β Wx + |I|), φ(z) = tanh z where z ≥ θ
and 0 elsewhere, behind each step of which the input is added to the *state*, which is then clamped. A trajectory of
`retrograde.trajectory` adds its input before f, so these are equations of their own, and so is their adjoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator
from retrograde.connectome.amounts import per_neuron
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
        W, WT: βW and its transpose, (n, n), in compressed rows: β is the steepness of the neuron that receives.
        threshold: θ >= 0.
        bias, tau: |I| and τ, one number each, or (n, 1).
        cut: "input" or "state", what the threshold is applied to besides φ.
    """

    W: Tensor
    WT: Tensor
    threshold: float
    bias: Tensor
    tau: Tensor
    cut: str

    def __call__(self, u: Tensor, driven: Tensor) -> Tensor:
        """x(1), ..., x(T), (T, n, samples), for the inputs u, (T, neurons driven, samples), u(0), ..., u(T-1)."""
        return _Sweep.apply(u, self, driven)

    def forward(self, u: Tensor, driven: Tensor) -> tuple[Tensor, ...]:
        """x(1), ..., x(T); φ(...) of each step, of which the slope is read; where u and the state were let through."""
        T, n, keep = len(u), self.W.shape[0], self._keep
        theta = u.new_tensor(self.threshold)
        below = float(torch.nextafter(theta, theta - 1))  # so that z > below is z >= θ
        allowed, inside = torch.ones(2, *u.shape, dtype=torch.bool)
        if self.cut == "input":
            allowed = (u >= self.threshold) & (u <= 1)
            u = torch.where(u >= self.threshold, u, 0).clamp(max=1)
        x = u.new_zeros(n, u.shape[2]).index_add(0, driven, u[0])
        path, outputs = u.new_empty(T, *x.shape), u.new_empty(T, *x.shape)
        for t in range(T):
            y, after = outputs[t], path[t]
            torch.mm(self.W, x, out=y)
            if self.bias.any():
                y += self.bias
            torch.threshold_(y, below, 0.0).tanh_()
            if keep is None:
                after.copy_(y)
            else:
                torch.addcdiv(keep * x, y, self.tau, out=after)
            x = after
            if t < T - 1:
                there = x[driven] + u[t + 1]
                # The others are below 1 by themselves.
                inside[t + 1] = there <= 1
                x[driven] = there.clamp(max=1)
                if self.cut == "state":
                    torch.threshold_(x, below, 0.0)
        return path, outputs, allowed, inside

    def adjoint(self, swept: tuple[Tensor, ...], g: Tensor, driven: Tensor) -> Tensor:
        """dR/du: l = dR/dx(t) + (1 - 1/τ) l(t+1) + Wᵀ s(t+1), 0 where x(t) was cut off; s(t) = D(t) l / τ."""
        (path, outputs, allowed, inside), T, keep, aten = swept, len(g), self._keep, torch.ops.aten
        du = g.new_empty(allowed.shape)
        carry = torch.zeros_like(g[0])
        for t in reversed(range(T)):
            l = g[t] + carry
            if t < T - 1:
                if self.cut == "state":
                    l = aten.threshold_backward(l, path[t], 0.0)  # l where x > 0
                du[t + 1] = l[driven] = torch.where(inside[t + 1], l[driven], 0)
            s = aten.threshold_backward(aten.tanh_backward(l, outputs[t]), outputs[t], 0.0)
            carry = self.WT @ (s if keep is None else s.div_(self.tau))
            if keep is not None:
                carry.add_(keep * l)
        du[0] = carry[driven]
        return torch.where(allowed, du, 0)

    @property
    def _keep(self) -> Tensor | None:
        """1 - 1/τ, or None where that is 0."""
        return None if bool((self.tau == 1).all()) else 1 - 1 / self.tau


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, net: Layered, driven: Tensor) -> Tensor:
        ctx.net, ctx.driven, swept = net, driven, net.forward(u, driven)
        ctx.save_for_backward(*swept)
        return swept[0]

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.net.adjoint(ctx.saved_tensors, g[0], ctx.driven), None, None


def cell_options(preset: str | None, threshold: float | None, steepness: Any) -> dict[str, Any]:
    """The options of `layered` that are given; ValueError where there is no such network."""
    given = {"threshold": threshold, "steepness": steepness}
    some = {name: value for name, value in given.items() if value is not None}
    if some and preset is None:
        raise ValueError(
            f"{next(iter(some))}: expected None, for it is of the networks of preset='ci-2.9' or 'ci-2.10'"
        )
    return some


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
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold: expected a finite number of at least 0, got {threshold}")
    index, n = torch.stack([post, pre]), len(c)
    beta = torch.from_numpy(per_neuron(c, steepness, "steepness", 5.0)).to(weight)
    rows = torch.sparse_coo_tensor(index, beta[post] * weight, (n, n), check_invariants=False)

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
