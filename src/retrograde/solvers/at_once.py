"""The plain iteration that most solvers begin with, taken by one call, and what is left to them after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrograde.solvers.base import Problem, Solution, Solver, floor
from retrograde.solvers.cascade import Cascade
from retrograde.solvers.fixed_point import FixedPoint


@dataclass(frozen=True, eq=False)
class Begun:
    """What the iteration has come to, whether that is all there is to do, and what the kernel found besides."""

    solution: Solution
    is_all: bool
    whole: Any


def begin(solver: Solver, whole: Callable[[float, int, float, bool], Any], dtype: torch.dtype) -> Begun | None:
    """The first of a solver's steps, by ``whole(rtol, max_steps, floor, hasty)``: see `retrograde.kernels.whole_state`.

    None where the solver begins with something else, or there is no kernel for it.
    """
    first = solver.solvers[0] if type(solver) is Cascade else solver
    if type(first) is not FixedPoint or first.damping != 1:
        return None
    found = whole(first.tolerance(dtype), first.max_steps, floor(dtype), first.hasty)
    if found is None:
        return None
    if not found.all_converged:
        return Begun(first.reached(found.z, found.residual, found.steps), False, found)
    converged = torch.zeros_like(found.steps)  # Status.CONVERGED is 0
    method = torch.zeros_like(converged) if first is not solver else None
    return Begun(Solution(found.z, converged, found.residual, found.steps, method), True, found)


def go_on(solver: Solver, problem: Problem, z: Tensor, begun: Begun | None) -> Solution:
    """The solution from z of a solver that may have `begun`."""
    if begun is None:
        return solver.solve(problem, z)
    return solver.solve(problem, z, begun.solution) if isinstance(solver, Cascade) else begun.solution
