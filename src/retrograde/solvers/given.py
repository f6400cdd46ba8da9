"""What a caller gives for a solver, checked, and taken apart."""

from __future__ import annotations

from typing import Any

from retrograde.solvers.base import Solver
from retrograde.solvers.blockwise import Blockwise
from retrograde.solvers.cascade import Cascade
from retrograde.solvers.multistart import Multistart


def check_solver(name: str, given: Any, such_as: str = "FixedPoint()") -> Solver | None:
    """`given`, a solver or None; TypeError otherwise."""
    if given is None or isinstance(given, Solver):
        return given
    got = f"the class {given.__name__}: write {given.__name__}()" if isinstance(given, type) else type(given).__name__
    raise TypeError(f"{name}: expected a solver such as {such_as}, got {got}")


def check_throw(throw: Any) -> bool:
    """`throw`, True or False; TypeError otherwise."""
    if isinstance(throw, bool):
        return throw
    raise TypeError(f"throw: expected True or False, got {throw!r}")


def parts_of(solver: Solver | None) -> list[Solver | None]:
    """The solvers that it tries, or itself."""
    if isinstance(solver, Blockwise):
        return parts_of(solver.solver)
    if isinstance(solver, Multistart):
        return [solver, *parts_of(solver.solver)]
    inner = solver.solvers if isinstance(solver, Cascade) else []
    return [part for each in inner for part in parts_of(each)] or [solver]
