"""A network as a function of the input to some of its neurons: what its targets become, and how they move with it."""

from __future__ import annotations

import copy
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from retrograde.adjoint import steady_gradients
from retrograde.connectome.given import Targets
from retrograde.connectome.linear import how_found, solvers_for
from retrograde.connectome.steadiness import is_stable, linearised
from retrograde.nonlinearity import Identity
from retrograde.recurrence import Recurrence
from retrograde.result import ONLY_S, Inputs
from retrograde.solvers import FixedPoint
from retrograde.steady import steady_state
from retrograde.through_time import trajectory_gradients
from retrograde.trajectories import trajectory


class Driven(Protocol):
    """``at(b)`` moves to the input b, (m,); what is told then is of that b."""

    m: int

    @property
    def by_drive(self) -> bool:
        """Whether targets are looked at by their drive u = Wx + b, of which x = f(u), or by x."""
        ...

    def by_activity(self) -> Driven:
        """The same network, from where it is, with the targets looked at by x."""
        ...

    def at(self, b: np.ndarray) -> None:
        """Move to the input b, (m,)."""
        ...

    def activity(self) -> np.ndarray:
        """(k,), x of the targets."""
        ...

    def values(self) -> np.ndarray:
        """(k,), u or x of the targets."""
        ...

    def rows(self) -> np.ndarray:
        """(k, m), d values / db: one adjoint for each target."""
        ...


_Either = TypeVar("_Either", "Steady", "AlongTime")


def _by_activity(net: _Either) -> _Either:
    other = copy.copy(net)
    other.by_drive = False
    return other


class Steady:
    """At the steady state x = f(Wx + bias + b), b at the neurons `allowed` alone.

    The drive of target i is u_i = (Wx)_i + b_i: R = u_i has dR/dx = Wᵀeᵢ, so du_i/db = s + eᵢ. Unlike x_i it is not
    bent by f once more, and where a target is driven itself it is all but linear in b.
    """

    def __init__(self, net: Recurrence, bias: Tensor, allowed: np.ndarray, targets: Targets):
        self.net, self.bias, self.m = net, bias, len(allowed)
        self.allowed, self.place = torch.from_numpy(allowed), torch.from_numpy(targets.place)
        self.wanted = torch.from_numpy(targets.activity).to(bias)
        self.x: Tensor | None = None
        self.found: dict[str, Any] = {}
        self.by_drive = True

    def by_activity(self) -> Steady:
        """The same network, from where it is, with the targets looked at by x."""
        return _by_activity(self)

    def x_of_targets(self) -> Tensor:
        """(n,), what is wanted, where all neurons are targets."""
        return torch.zeros_like(self.bias).index_put((self.place,), self.wanted)

    def total(self, b: np.ndarray) -> Tensor:
        """bias + b, (n,)."""
        return self.bias.index_add(0, self.allowed, torch.from_numpy(b).to(self.bias))

    def at(self, b: np.ndarray) -> None:
        """Move to the input b, (m,)."""
        self.b = self.total(b)
        solver = solvers_for(self.net)[0]
        state = steady_state(self.net.W, self.b, self.net.f, x0=self.x, solver=solver)
        self.x, self.found = state.x.detach(), how_found(state)

    def activity(self) -> np.ndarray:
        """(k,), x of the targets."""
        return self._x[self.place].double().numpy()

    def values(self) -> np.ndarray:
        """(k,), u or x of the targets."""
        with torch.no_grad():
            return (self.net.W @ self._x + self.b)[self.place].double().numpy() if self.by_drive else self.activity()

    def rows(self) -> np.ndarray:
        """(k, m), d values / db."""
        with torch.no_grad():
            ones = self._x.new_zeros(len(self.place), len(self._x))
            ones[torch.arange(len(self.place)), self.place] = 1
            g = self.net.W.T @ ones if self.by_drive else ones
            x = self._x.expand_as(g)
            s = steady_gradients(self.net, x, self.b.expand_as(g), g, solvers_for(self.net)[1], wants=ONLY_S).s
            return ((s + ones) if self.by_drive else s)[:, self.allowed].double().numpy()

    def settles(self, most: float) -> bool:
        """Whether the network comes to this x by itself, from rest, by its leaky dynamics, to within `most`.

        A linear network that is stable, as is made sure of, has no other.
        """
        if isinstance(self.net.f, Identity):
            return True
        found = steady_state(
            self.net.W, self.b, self.net.f, solver=FixedPoint(damping=0.2, max_steps=5000), throw=False
        )
        near = float((found.x.detach() - self._x).abs().max()) <= most
        return near and bool(found.residual <= most)

    def stays(self) -> bool:
        """Whether the network would stay at this x; of a linear one that is made sure of before."""
        return isinstance(self.net.f, Identity) or is_stable(linearised(self.net, self._x, self.b)[1])

    @property
    def states(self) -> np.ndarray:
        """x, (n,)."""
        return self._x.double().numpy()

    @property
    def _x(self) -> Tensor:
        assert self.x is not None  # asked only of what was solved
        return self.x


class AlongTime:
    """Along x(t) = (1-a) x(t-1) + a f(W x(t-1) + bias + b(t)) from x(0) = 0; b is (T, neurons allowed), flattened."""

    def __init__(
        self,
        net: Recurrence,
        bias: Tensor,
        allowed: np.ndarray,
        targets: Targets,
        steps: int,
    ):
        self.net, self.bias, self.T, self.m = net, bias, steps, steps * len(allowed)
        self.allowed, self.place = torch.from_numpy(allowed), torch.from_numpy(targets.place)
        self.time = torch.from_numpy(targets.time)
        self.by_drive = net.leak is None  # with a leak, x(t) is no function of u(t) alone

    def by_activity(self) -> AlongTime:
        """The same network, from where it is, with the targets looked at by x."""
        return _by_activity(self)

    def at(self, b: np.ndarray) -> None:
        """Move to the input b, (m,)."""
        b_t = torch.from_numpy(b.reshape(self.T, -1)).to(self.bias)
        self.b = self.bias.expand(self.T, -1).index_add(1, self.allowed, b_t)
        with torch.no_grad():
            x = trajectory(self.net.W, self.b, None, self.net.f, leak=self.net.leak).x
        self.path = torch.cat([torch.zeros_like(x[:1]), x])

    @property
    def states(self) -> np.ndarray:
        """x(0), ..., x(T), (T + 1, n)."""
        return self.path.double().numpy()

    def activity(self) -> np.ndarray:
        """(k,), x of the targets."""
        return self.path[self.time, self.place].double().numpy()

    def values(self) -> np.ndarray:
        """(k,), u or x of the targets."""
        if not self.by_drive:
            return self.activity()
        with torch.no_grad():
            u = self.net.W @ self.path[self.time - 1] + self.b[self.time - 1]
        return u[torch.arange(len(u)), self.place].double().numpy()

    def rows(self) -> np.ndarray:
        """(k, m), d values / db."""
        k, n = len(self.place), len(self.bias)
        every = torch.arange(k)
        ones = self.path.new_zeros(k, n)
        ones[every, self.place] = 1
        with torch.no_grad():
            g = self.path.new_zeros(self.T + 1, k, n)  # g[t] = dR/dx(t)
            g[self.time - int(self.by_drive), every] = self.net.W.T @ ones if self.by_drive else ones
            path, b = (z[:, None].expand(-1, k, -1) for z in (self.path, self.b))
            s = trajectory_gradients(self.net, path, Inputs(b), g[1:].contiguous(), ONLY_S).s
            if self.by_drive:
                s = s.index_put((self.time - 1, every), ones, accumulate=True)
            return s[:, :, self.allowed].permute(1, 0, 2).reshape(k, -1).double().numpy()
