"""The gradient of a reward by four independent routes, and how far they disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

import retrograde as rg
from retrograde.testing.problems import NONLINEARITIES, structures


@dataclass(frozen=True)
class Disagreement:
    """How far the adjoint's gradient is from each other route's, relative to the gradient's length."""

    structure: str
    nonlinearity: str
    mode: str
    dense_solve: float
    unrolled: float
    finite_differences: float

    @property
    def worst(self) -> float:
        """The largest of the three."""
        return max(self.dense_solve, self.unrolled, self.finite_differences)


def gradient_disagreements() -> Iterator[Disagreement]:
    """The gradient of a reward by four routes, in float64, for each structure, nonlinearity and mode.

    The adjoint; a dense solve of the whole linear system; autograd through the unrolled iteration; finite differences
    of the reward. The gradient is in everything at once: the weights, b, and along a trajectory x(0) and the leak.

    >>> next(gradient_disagreements()).worst < 1e-10
    True
    """
    for (structure, W), (nonlinearity, f) in product(structures().items(), NONLINEARITIES.items()):
        yield _compare(structure, nonlinearity, "steady state", _Steady(W, f))
        yield _compare(structure, nonlinearity, "trajectory", _Path(W, f, leak=None))
        yield _compare(structure, nonlinearity, "trajectory, leak", _Path(W, f, leak=0.3))


def _inputs(*shape: int) -> tuple[Tensor, Tensor]:
    """What f shall see, away from kinks at 0, which finite differences must not cross; and numbers for a reward."""
    generator = torch.Generator().manual_seed(1)
    u, c = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return u + 0.05 * u.sign(), c


class _Steady:
    """Steady states of four samples, and their gradient by each route."""

    def __init__(self, W: rg.Connectivity, f: rg.Nonlinearity):
        self.W, self.f, self.weights = W, f, len(W.weights)
        u, self.c = _inputs(4, W.shape[0])
        self.leaves = [*(w.detach() for w in W.weights), u - f(u) @ W.dense().detach().T]

    def operator(self, leaves: list[Tensor]) -> Any:
        return self.W.bind(*leaves[: self.weights])

    def reward(self, x: Tensor) -> Tensor:
        return (self.c * torch.sin(x + self.c)).sum()

    def activity(self, leaves: list[Tensor]) -> Tensor:
        return rg.steady_state(self.operator(leaves), leaves[-1], self.f).x

    def unrolled(self, leaves: list[Tensor]) -> Tensor:
        M, b = self.operator(leaves).dense(), leaves[-1]
        x = torch.zeros_like(b)
        for _ in range(100):
            x = self.f(x @ M.T + b)
        return x

    def dense_solve(self, leaves: list[Tensor]) -> list[Tensor]:
        """(I - DWᵀ) s = Dg as one matrix a sample; dR/dW = s xᵀ in full, then through W's dense form to its weights."""
        x, M, b = self.activity(leaves).detach(), self.operator(leaves).dense(), leaves[-1]
        D, g = self.f.slope_at(x @ M.T + b).detach(), self.c * torch.cos(x + self.c)
        s = torch.linalg.solve(torch.eye(x.shape[-1]).to(x) - D[:, :, None] * M.T.detach(), D * g)
        return [*_through_dense(self.operator, leaves, self.weights, s.T @ x), s]


class _Path(_Steady):
    """Trajectories of three samples over five steps from x(0), with the input at each time, and their gradient."""

    def __init__(self, W: rg.Connectivity, f: rg.Nonlinearity, leak: float | None):
        super().__init__(W, f)
        self.leaky = leak is not None
        u, self.c = _inputs(5, 3, W.shape[0])
        M, x = W.dense().detach(), u[-1].sin()
        b, x0 = torch.empty_like(u), x
        for t in range(len(u)):
            b[t] = u[t] - x @ M.T
            x = f(u[t]) if leak is None else (1 - leak) * x + leak * f(u[t])
        self.leaves = [*(w.detach() for w in W.weights), x0, b]
        if leak is not None:
            self.leaves.insert(self.weights, torch.tensor(leak, dtype=torch.float64))

    def leak(self, leaves: list[Tensor]) -> Tensor | None:
        return leaves[self.weights] if self.leaky else None

    def activity(self, leaves: list[Tensor]) -> Tensor:
        *_, x0, b = leaves
        return rg.trajectory(self.operator(leaves), b, x0, self.f, leak=self.leak(leaves)).x

    def unrolled(self, leaves: list[Tensor]) -> Tensor:
        M, (*_, x0, b) = self.operator(leaves).dense(), leaves
        a = self.leak(leaves)
        path = [x0]
        for input in b:
            y = self.f(path[-1] @ M.T + input)
            path.append(y if a is None else (1 - a) * path[-1] + a * y)
        return torch.stack(path[1:])

    def dense_solve(self, leaves: list[Tensor]) -> list[Tensor]:
        """All times as one linear system: l(t) - ((1-a) + a Wᵀ D(t+1)) l(t+1) = g(t), and s(t) = a D(t) l(t)."""
        x, M, (*_, x0, b) = self.activity(leaves).detach(), self.operator(leaves).dense().detach(), leaves
        a = torch.tensor(1.0).to(x) if not self.leaky else leaves[self.weights]
        before = torch.cat([x0[None], x[:-1]])
        y = self.f(before @ M.T + b)
        D, g = self.f.slope_at(before @ M.T + b).detach(), self.c * torch.cos(x + self.c)
        T, samples, n = x.shape
        # dx(t)/dx(t-1), transposed: (T, samples, n, n)
        step = (1 - a) * torch.eye(n).to(x) + a * M.T * D[:, :, None, :]
        system = torch.eye(T * n).to(x).repeat(samples, 1, 1)
        for t in range(T - 1):
            system[:, t * n : (t + 1) * n, (t + 1) * n : (t + 2) * n] = -step[t + 1]
        l = torch.linalg.solve(system, g.transpose(0, 1).reshape(samples, T * n)).reshape(samples, T, n).transpose(0, 1)
        s = a * D * l
        dx0 = torch.einsum("sij,sj->si", step[0], l[0])
        dleak = [(l * (y - before)).sum()] if self.leaky else []
        dM = torch.einsum("tsi,tsj->ij", s, before)
        return [*_through_dense(self.operator, leaves, self.weights, dM), *dleak, dx0, s]


def _through_dense(
    operator: Callable[[list[Tensor]], Any], leaves: list[Tensor], weights: int, dM: Tensor
) -> list[Tensor]:
    copies = [leaf.detach().requires_grad_() for leaf in leaves]
    return list(torch.autograd.grad(operator(copies).dense(), copies[:weights], dM))


def _gradient(case: _Steady, activity: Callable[[list[Tensor]], Tensor]) -> Tensor:
    copies = [leaf.detach().requires_grad_() for leaf in case.leaves]
    return _flat(torch.autograd.grad(case.reward(activity(copies)), copies))


def _flat(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _compare(structure: str, nonlinearity: str, mode: str, case: _Steady) -> Disagreement:
    adjoint = _gradient(case, case.activity)
    size = adjoint.norm()
    dense = _flat(case.dense_solve(case.leaves))
    unrolled = _gradient(case, case.unrolled)

    generator = torch.Generator().manual_seed(3)
    worst = 0.0
    for _ in range(3):
        direction = torch.randn(adjoint.shape, generator=generator, dtype=torch.float64)
        # Some way along the gradient, where there is most to see.
        direction = direction / direction.norm() + adjoint / size
        worst = max(worst, abs(float(direction @ adjoint - _difference(case, direction))) / float(size))
    return Disagreement(
        structure,
        nonlinearity,
        mode,
        float((dense - adjoint).norm() / size),
        float((unrolled - adjoint).norm() / size),
        worst,
    )


def _difference(case: _Steady, direction: Tensor, h: float = 2e-3) -> Tensor:
    """The derivative of the reward along `direction`, by central differences of sixth order."""
    parts = [
        part.reshape(leaf.shape)
        for part, leaf in zip(direction.split([leaf.numel() for leaf in case.leaves]), case.leaves, strict=True)
    ]

    def reward(k: int) -> Tensor:
        moved = [leaf + k * h * part for leaf, part in zip(case.leaves, parts, strict=True)]
        return case.reward(case.activity(moved))

    with torch.no_grad():
        return sum(c * (reward(k) - reward(-k)) for k, c in ((1, 45), (2, -9), (3, 1))) / (60 * h)  # type: ignore[return-value]  # sum may be 0
