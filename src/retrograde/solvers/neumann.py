"""The first terms of a Neumann series: an approximation, and called one."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from retrograde.result import Status
from retrograde.solvers.base import Problem, Solution, Solver, check_number, default_rtol, relative_residual, verdict


@dataclass(frozen=True)
class Neumann(Solver):
    """The first terms of z = c + Jc + J²c + ..., for an affine problem z = Jz + c: of an adjoint, s = Dg + DWᵀDg + ...

    One term is s = Dg, the "Jacobian-free" gradient. It is not the gradient, and does not claim to be: each sample ends
    with the status TRUNCATED, which is not ``converged`` and raises nothing, and the residual |Jz + c - z| / |z|, for
    which one more product is spent, tells how far it is from exact. It leaves out J^terms of the answer: nothing is
    known of the slow modes, those with eigenvalues of DW near 1, after a few terms.

    Args:
        terms: how many, at least 1.

    Raises:
        ValueError: an argument outside its range; or, at the solve, a problem that is not affine.

    References:
        Liao et al., "Reviving and improving recurrent back-propagation", ICML (2018). Fung et al., "JFB: Jacobian-free
        backpropagation for implicit networks", AAAI (2022).
    """

    terms: int = 1

    def __post_init__(self) -> None:
        if check_number("terms", self.terms, Integral) < 1:
            raise ValueError(f"terms: expected an integer of at least 1, got {self.terms}")

    def tolerance(self, dtype: torch.dtype) -> float:
        """Below which an answer counts as exact all the same."""
        return default_rtol(dtype)

    def solve(self, problem: Problem, z: Tensor) -> Solution:
        """The sum of the terms, whatever z is."""
        if not problem.affine:
            raise ValueError(
                "solver: Neumann sums the series of an affine problem, an adjoint or the state of a linear network; "
                "for other states use FixedPoint"
            )
        z = torch.zeros_like(z)
        for _ in range(self.terms):
            z = problem.step(z)
        residual = relative_residual(problem.step(z), z)
        steps = torch.full_like(residual, self.terms, dtype=torch.int64)
        status = verdict(residual, self.tolerance(z.dtype), steps, self.terms)
        return Solution(z, torch.where(status == Status.MAX_STEPS, int(Status.TRUNCATED), status), residual, steps)
