"""One solver after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.result import Status
from retrograde.solvers.base import Problem, Solution, Solver


@dataclass(frozen=True, init=False)
class Cascade(Solver):
    """The cheapest solver first; the samples on which it fails go on to the next, from where they were left.

    A sample that diverged starts again where the caller started.

    >>> from retrograde import FixedPoint, Newton
    >>> Cascade(FixedPoint(max_steps=50), Newton())
    Cascade(FixedPoint(rtol=None, max_steps=50, damping=1.0), Newton(rtol=None, max_steps=100))
    """

    solvers: tuple[Solver, ...]

    def __init__(self, *solvers: Solver):
        if not solvers:
            raise ValueError("solvers: expected at least one, got none")
        for solver in solvers:
            if not isinstance(solver, Solver):
                raise TypeError(f"solvers: expected solvers such as FixedPoint(), got {type(solver).__name__}")
        object.__setattr__(self, "solvers", solvers)

    def __repr__(self) -> str:
        return f"Cascade({', '.join(map(repr, self.solvers))})"

    def tolerance(self, dtype: torch.dtype) -> float:
        """The loosest of its solvers': each is content with its own."""
        return max(solver.tolerance(dtype) for solver in self.solvers)

    def solve(self, problem: Problem, z: Tensor) -> Solution:
        """Each solver in turn, on the samples that still need one."""
        first, *others = self.solvers
        solution = first.solve(problem, z)
        for solver in others:
            rows = (solution.status != Status.CONVERGED).nonzero()[:, 0]
            if not len(rows):
                break
            diverged = (solution.status[rows] == Status.DIVERGED)[:, None]
            start = torch.where(diverged, z[rows], solution.value[rows])
            again = solver.solve(problem.take(rows), start)
            solution.record(rows, again.value, again.status, again.residual, solution.steps[rows] + again.steps)
        return solution
