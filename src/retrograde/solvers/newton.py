"""Newton's method with a direct factorisation, and for an affine problem the factorisation alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from retrograde.solvers.base import Iteration, Problem

# A line search that has halved this often takes the step it has.
_SHORTEST = 2.0**-8


@dataclass(frozen=True, kw_only=True)
class Newton(Iteration):
    """z ← z + (I - J)⁻¹ (step(z) - z), with a line search on |step(z) - z|, sample by sample.

    It factors an n x n matrix a sample and step: for small n. It finds steady states that the network's dynamics would
    leave, too. The factorisation of the last step is kept for the adjoint.

    Args:
        rtol: the relative residual to reach; None takes it from the dtype.
        max_steps: how many steps a sample may take.
    """

    max_steps: int = 100

    window: ClassVar[int] = 8  # it converges fast, where it does

    def start(self, problem: Problem, z: Tensor) -> tuple[Tensor, ...]:
        """Where the line search stands: its foot, the residual there, the direction, the share of it taken."""
        size = z.new_full((len(z), 1), torch.inf)
        return z, size, torch.zeros_like(z), torch.ones_like(size)

    def turn(
        self, problem: Problem, z: Tensor, step: Tensor, residual: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | int]:
        """A new direction where the last step made things better, half of the old one where it did not."""
        foot, size, direction, share = memory
        new_size = torch.linalg.vector_norm(step - z, dim=-1, keepdim=True)
        accepted = (new_size <= (1 - 1e-4 * share) * size) | (share < _SHORTEST)
        rows = accepted[:, 0].nonzero()[:, 0]
        cost: Tensor | int = 1
        if len(rows):
            towards, cost_there = self.towards(problem.take(rows), z[rows], (step - z)[rows], (new_size / size)[rows])
            # Where I - J is singular, the plain step leads on.
            towards = torch.where(towards.isfinite().all(-1, keepdim=True), towards, (step - z)[rows])
            direction = direction.index_copy(0, rows, towards)
            if isinstance(cost_there, Tensor):
                cost = torch.ones_like(accepted[:, 0], dtype=torch.int64).index_add(0, rows, cost_there)
        foot = torch.where(accepted, z, foot)
        size = torch.where(accepted, new_size, size)
        share = torch.where(accepted, 1.0, share / 2)
        return foot + share * direction, (foot, size, direction, share), cost

    def towards(self, problem: Problem, z: Tensor, r: Tensor, drop: Tensor) -> tuple[Tensor, Tensor | int]:
        """(I - J)⁻¹ r, and what more than a step it cost; `drop` (samples, 1) is what became of |r| since the last."""
        return problem.factorise(z, anew=True)(r), 0


@dataclass(frozen=True, kw_only=True)
class Direct(Iteration):
    """z = (I - J)⁻¹ c by a factorisation, then refined: for an affine problem of small n: an adjoint, a linear network.

    Where the forward solve left its last factorisation, that one is used, and made anew only if refinement does not
    converge quickly.

    Args:
        rtol: the relative residual to reach; None takes it from the dtype.
        max_steps: how many refinements a sample may take.
    """

    max_steps: int = 100

    def start(self, problem: Problem, z: Tensor) -> tuple[Tensor, ...]:
        """The residual before."""
        if not problem.affine:
            raise ValueError(
                "solver: Direct solves affine problems, an adjoint or the state of a linear network; for other states "
                "use Newton or FixedPoint"
            )
        return (z.new_full((len(z),), torch.inf),)

    def turn(
        self, problem: Problem, z: Tensor, step: Tensor, residual: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], int]:
        """A step of iterative refinement."""
        (before,) = memory
        slow = (residual > 0.1 * before).nonzero()[:, 0]
        if len(slow):
            problem.take(slow).factorise(z[slow], anew=True)
        return z + problem.factorise(z)(step - z), (residual,), 1
