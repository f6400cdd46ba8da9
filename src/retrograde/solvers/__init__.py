"""Solvers of z = step(z), one method a file."""

from retrograde.solvers.anderson import Anderson
from retrograde.solvers.base import Iteration, Problem, Solution, Solver, relative_residual
from retrograde.solvers.blockwise import Blockwise
from retrograde.solvers.cascade import Cascade
from retrograde.solvers.fixed_point import FixedPoint
from retrograde.solvers.homotopy import Homotopy
from retrograde.solvers.krylov import Krylov
from retrograde.solvers.multistart import Multistart
from retrograde.solvers.neumann import Neumann
from retrograde.solvers.newton import Direct, Newton
from retrograde.solvers.newton_krylov import NewtonKrylov
from retrograde.solvers.pseudo_transient import PseudoTransient

__all__ = [
    "Anderson",
    "Blockwise",
    "Cascade",
    "Direct",
    "FixedPoint",
    "Homotopy",
    "Iteration",
    "Krylov",
    "Multistart",
    "Neumann",
    "Newton",
    "NewtonKrylov",
    "Problem",
    "PseudoTransient",
    "Solution",
    "Solver",
    "relative_residual",
]
