"""In the order of what depends on what, where a problem has one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from retrograde.result import Status
from retrograde.solvers.base import Problem, Solution, Solver


@dataclass(frozen=True)
class Blockwise(Solver):
    """Part after part, each by `solver`; then `solver` on the whole, which checks the answer and finishes it.

    What nothing leads back to is found by substitution, in one pass. The steps are counted in products with all of W.
    A problem that does not fall into parts is solved as a whole, and so is a sample that fails in parts.
    """

    solver: Solver
    before: ClassVar[str] = ", after a pass level by level"

    def tolerance(self, dtype: torch.dtype) -> float:
        """That of its solver."""
        return self.solver.tolerance(dtype)

    def solve(self, problem: Problem, z: Tensor) -> Solution:
        """One pass over the parts, then the whole."""
        if problem.substitute is None:
            return self.solver.solve(problem, z)
        start, cost = problem.substitute(z, self.solver)
        start = torch.where(start.isfinite().all(-1, keepdim=True), start, z)
        found = self.solver.solve(problem, start)
        found = replace(found, steps=found.steps + cost)
        rows = (found.status != Status.CONVERGED).nonzero()[:, 0]
        if len(rows):
            again = self.solver.solve(problem.take(rows), z[rows])
            found.adopt(rows, again)
        return found
