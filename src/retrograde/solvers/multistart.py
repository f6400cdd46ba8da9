"""Another solver, from one start after another."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from retrograde.result import Status
from retrograde.solvers.base import Problem, Solution, Solver, check_number

# The standard deviation of z: so wide that the starts f(Wz + b) fall on different pieces of f.
_SPREAD = 3.0


@dataclass(frozen=True)
class Multistart(Solver):
    """`solver` from the caller's start, then from random ones, each for the samples that are not found yet.

    Where f is unbounded and the dynamics grow without end, steady states may still be there, mostly unstable ones, to
    which neither Newton's method leads from x0, nor a path from the network without feedback. Of relu networks of 2 to
    9 neurons and gains up to 5 that have one, the default finds 164 of 165; without this, its last resort, 157
    (`python -m benchmarks.exhaustive`).

    The random starts are step(3 z), z normal: f(3 Wz + b). They are the same each time, and for every sample of a
    batch. Where all fail the answer of the smallest residual is kept. An affine problem, which has one answer, is
    solved from the caller's start alone.

    Args:
        solver: what is tried.
        starts: how often.

    >>> from retrograde import Newton
    >>> Multistart(Newton(max_steps=10))
    Multistart(Newton(rtol=None, max_steps=10), starts=16)
    """

    solver: Solver
    starts: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise TypeError(f"solver: expected a solver such as Newton(), got {type(self.solver).__name__}")
        if check_number("starts", self.starts, Integral) < 1:
            raise ValueError(f"starts: expected an integer of at least 1, got {self.starts}")

    def __repr__(self) -> str:
        return f"Multistart({self.solver!r}, starts={self.starts})"

    def tolerance(self, dtype: torch.dtype) -> float:
        """That of its solver."""
        return self.solver.tolerance(dtype)

    def solve(self, problem: Problem, z: Tensor) -> Solution:
        """From one start after another."""
        random = torch.Generator().manual_seed(0)
        solution = Solution.like(z)
        solution.residual.fill_(torch.inf)
        solution.status.fill_(int(Status.DIVERGED))
        rows, start = torch.arange(len(z), device=z.device), z
        for _ in range(1 if problem.affine else self.starts):
            found = self.solver.solve(problem, start)
            steps = solution.steps[rows] + found.steps
            solution.steps[rows] = steps
            nearer = (found.residual < solution.residual[rows]) | (found.status == Status.CONVERGED)
            best = found.some(nearer)
            solution.record(rows[nearer], best.value, best.status, best.residual, steps[nearer])
            left = (found.status != Status.CONVERGED).nonzero()[:, 0]
            if not len(left):
                break
            rows, problem = rows[left], problem.take(left)
            spread = _SPREAD * torch.randn(z.shape[1], generator=random, dtype=torch.float64)
            start = problem.step(spread.to(z).expand(len(rows), -1))
        return solution
