"""The lecture's equations, and nothing else.

A steady state and a trajectory share them: s = D (Wᵀ s_next + dR/dx), where s_next is s itself at a steady state, and
s(t+1) along a trajectory. Source: H. S. Seung, "Backprop for recurrent networks"; Almeida 1987, Pineda 1987.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.connectivity import Connectivity, Operator
from retrograde.nonlinearity import Nonlinearity


def adjoint_step(W: Connectivity | Operator, D: Tensor, s_next: Tensor, g: Tensor) -> Tensor:
    """s = D (Wᵀ s_next + g), g = dR/dx: the lecture's D⁻¹ s - Wᵀ s_next = g multiplied by D, which may hold zeros.

    At a steady state s_next is s, and this is iterated or solved; along a trajectory it is s(t+1), and this is
    substituted back.
    """
    return D * (W.T @ s_next + g)


@dataclass(frozen=True, eq=False)
class Recurrence:
    """A network as its equations: W, f and, along a trajectory, the leak a. b is the total input, of any batch shape.

    >>> import torch
    >>> from retrograde import Dense, Tanh
    >>> net = Recurrence(Dense(torch.tensor([[0.0, 0.5], [-0.5, 0.0]])), Tanh())
    >>> x = torch.tensor([0.3, -0.2])
    >>> torch.allclose(net.step(x, net.bias_for(x)), x)  # this b makes x a steady state
    True
    """

    W: Connectivity | Operator
    f: Nonlinearity
    leak: float | Tensor | None = None

    def to(self, dtype: torch.dtype) -> Recurrence:
        """The same equations in that dtype, connected with W and the leak by their history."""
        W, leak = self.W.bind(), self.leak
        leak = leak.to(dtype) if isinstance(leak, Tensor) else leak
        return Recurrence(W.bind(*(weight.to(dtype) for weight in W.weights)), self.f, leak)

    def step(self, x: Tensor, b: Tensor) -> Tensor:
        """x ← f(Wx + b). A steady state is left where it is."""
        return self.f(self.W @ x + b)

    def adjoint_step(self, s: Tensor, x: Tensor, g: Tensor) -> Tensor:
        """s ← D (Wᵀs + g), with g = dR/dx and D read from x."""
        return adjoint_step(self.W, self.f.slope(x), s, g)

    def tangent_step(self, v: Tensor, x: Tensor, c: Tensor) -> Tensor:
        """v ← D (Wv + c): how x moves where b moves by c."""
        return self.f.slope(x) * (self.W @ v + c)

    def bias_for(self, x: Tensor) -> Tensor:
        """b = f⁻¹(x) - Wx, the one input for which x is a steady state."""
        return self.f.inverse(x) - self.W @ x

    def advance(self, x: Tensor, b: Tensor) -> Tensor:
        """x(t) = (1-a) x(t-1) + a f(W x(t-1) + b(t)), the next point of a trajectory. Without a leak it is `step`."""
        y = self.step(x, b)
        return y if self.leak is None else x + self.leak * (y - x)

    def output(self, x: Tensor, x_before: Tensor) -> Tensor:
        """y(t) = f(W x(t-1) + b(t)), read from x(t): x(t) itself, or with a leak (x(t) - (1-a) x(t-1)) / a.

        Where the difference is no more than its rounding, y is 0: a ReLU that is off must not seem on.
        """
        if self.leak is None:
            return x
        y = x_before + (x - x_before) / self.leak
        rounding = 4 * torch.finfo(x.dtype).eps * torch.maximum(x.abs(), x_before.abs()) / self.leak
        return y - torch.where(y.abs() <= rounding, y, 0).detach()

    def slopes(self, x: Tensor, x_before: Tensor, b: Tensor | None) -> Tensor:
        """D(t) = f'(W x(t-1) + b(t)), read from the output x(t) where that tells it, or where b is not known."""
        if b is None:
            return self.f.slope(self.output(x, x_before))
        if self.leak is None and self.f.slope_from_output:
            return self.f.slope(x)
        return self.f.slope_at(self.W @ x_before + b)
