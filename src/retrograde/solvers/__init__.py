"""Solvers of z = step(z), one method a file."""

from retrograde.solvers.base import Iteration, Problem, Solution, Solver, relative_residual
from retrograde.solvers.blockwise import Blockwise
from retrograde.solvers.cascade import Cascade
from retrograde.solvers.fixed_point import FixedPoint
from retrograde.solvers.krylov import Krylov
from retrograde.solvers.newton import Direct, Newton

__all__ = [
    "Blockwise",
    "Cascade",
    "Direct",
    "FixedPoint",
    "Iteration",
    "Krylov",
    "Newton",
    "Problem",
    "Solution",
    "Solver",
    "relative_residual",
]
