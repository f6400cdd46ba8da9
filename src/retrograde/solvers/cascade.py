"""One solver after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.result import Status
from retrograde.solvers.base import Problem, Solution, Solver, relative_residual

_MUCH = 100  # times as long a step as the first one tells that the iterates grow without limit


@dataclass(frozen=True, init=False)
class Cascade(Solver):
    """The cheapest solver first; the samples on which it fails, and they alone, go on to the next.

    They begin where they were left, or where the caller starts if the residual is smaller there, relative to what is
    solved for or much smaller by itself: what grows without limit has no large relative residual. Of a sample on which
    all fail, the answer of the smallest residual is kept. The solution's `method` counts which solver that was; those
    before it failed.

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

    def solve(self, problem: Problem, z: Tensor, found: Solution | None = None) -> Solution:
        """Each solver in turn, on the samples that still need one; of the first, what it `found`, if known."""
        first, *others = self.solvers
        found = first.solve(problem, z) if found is None else found
        method = torch.zeros_like(found.status)
        solution = Solution(found.value, found.status, found.residual, found.steps, method)
        at_start = away = None
        for index, solver in enumerate(others, start=1):
            rows = solution.status.nonzero()[:, 0]  # of those that are not Status.CONVERGED
            if not len(rows):
                break
            left = problem.take(rows)
            if at_start is None or away is None:
                at_start, away = (torch.full_like(solution.residual, torch.inf) for _ in range(2))
                step = left.step(z[rows])
                at_start[rows] = relative_residual(step, z[rows])
                away[rows] = torch.linalg.vector_norm(step - z[rows], dim=-1).to(away)
            residual = solution.residual[rows].nan_to_num(nan=torch.inf)
            better = at_start[rows] < residual
            better |= residual * torch.linalg.vector_norm(solution.value[rows], dim=-1) > _MUCH * away[rows]
            better |= solution.status[rows] == Status.DIVERGED
            again = solver.solve(left, torch.where(better[:, None], z[rows], solution.value[rows]))
            solution.steps[rows] += again.steps
            before = solution.residual[rows]
            kept = (again.status == Status.CONVERGED) | (again.residual < before) | ~before.isfinite()
            best = rows[kept]
            method[best] = index
            value, status, residual = again.value[kept], again.status[kept], again.residual[kept]
            solution.record(best, value, status, residual, solution.steps[best])
        return solution
