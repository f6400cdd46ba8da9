"""Matrix-free linear solves: GMRES and BiCGSTAB."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from retrograde.solvers import bicgstab, gmres
from retrograde.solvers.base import Iteration, Problem, check_number


@dataclass(frozen=True)
class Krylov(Iteration):
    """GMRES or BiCGSTAB on (I - J) z = c, for an affine problem z = Jz + c: an adjoint, or a linear network.

    Each sample has a Krylov space of its own; the products of a batch are taken together.

    - "gmres": within one cycle the residual is the least that as many products can reach, FixedPoint's included.
      Between cycles it forgets, and might stagnate; so a sample's next cycle is twice as long where one gained less
      than a factor of ten, up to n, where nothing is forgotten, or to 512 vectors (and 2²⁴ numbers).
    - "bicgstab": two products a step, seven vectors in all, and no minimum: its residual is erratic. The best that it
      met is kept, and it starts again from there where it breaks down.

    Args:
        method: "gmres" or "bicgstab".
        restart: how many products between restarts, at first; for GMRES as many vectors a sample are held.
        rtol: the relative residual to reach; None takes it from the dtype.
        max_steps: after how many products a sample is given up, at the end of a cycle.

    Raises:
        ValueError: an argument outside its range; or, at the solve, a problem that is not affine.

    References:
        Saad and Schultz, "GMRES", SIAM J. Sci. Stat. Comput. 7 (1986). Van der Vorst, "Bi-CGSTAB", SIAM J. Sci. Stat.
        Comput. 13 (1992).
    """

    method: str = "gmres"
    restart: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("gmres", "bicgstab"):
            raise ValueError(f"method: expected 'gmres' or 'bicgstab', got {self.method!r}")
        if check_number("restart", self.restart, Integral) < 1:
            raise ValueError(f"restart: expected an integer of at least 1, got {self.restart}")

    def start(self, problem: Problem, z: Tensor) -> tuple[Tensor, ...]:
        """Of each sample: the length of the next cycle, and the residual before the last."""
        if not problem.affine:
            raise ValueError(
                "solver: Krylov solves affine problems, an adjoint or the state of a linear network; for other states "
                "use NewtonKrylov, or FixedPoint for an Equilibrium"
            )
        return torch.full((len(z),), self.restart, device=z.device), z.new_full((len(z),), torch.inf)

    def turn(
        self, problem: Problem, z: Tensor, step: Tensor, residual: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """One cycle from z."""
        restart, before = memory
        r = step - z
        size = torch.linalg.vector_norm(r, dim=-1)
        restart = gmres.longer(restart, before, size, z.shape[1])
        goal = 0.5 * self.tolerance(z.dtype) * torch.linalg.vector_norm(z, dim=-1)
        J = problem.linearised(z)
        if self.method == "gmres":
            correction, cost = gmres.cycle(lambda v: v - J(v), r, goal, restart)
        else:
            correction, cost = bicgstab.cycle(lambda v: v - J(v), r, goal, restart, turned=size >= before)
        return z + correction, (restart, size), cost
