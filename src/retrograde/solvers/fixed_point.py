"""z ← step(z), again and again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.result import Status
from retrograde.solvers.base import Iteration, Problem, Solution, check_number, floor, verdict


@dataclass(frozen=True)
class FixedPoint(Iteration):
    """z ← z + damping (step(z) - z): the network's own dynamics, and for an adjoint the dynamics of Almeida and Pineda.

    It converges where the eigenvalues of DW lie inside the unit circle (damped: inside a larger one that touches 1), by
    a factor of the largest of them a step.

    Args:
        damping: 0 < damping <= 1. Less than 1 tames oscillation; the residual that counts is the undamped one.
        rtol: the relative residual to reach; None takes it from the dtype.
        max_steps: how many steps a sample may take.
        hasty: whether a linear equation, as an adjoint is, is left to another solver as soon as the residual has fallen
            so little in 32 steps that at this pace twice the steps that are left would not do. What passes along a
            chain of neurons, and is then gone, has no pace.

    Raises:
        ValueError, TypeError: an argument outside its range, or of the wrong kind.
    """

    damping: float = 1.0
    hasty: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < check_number("damping", self.damping) <= 1:
            raise ValueError(f"damping: expected 0 < damping <= 1, got {self.damping}")
        if not isinstance(self.hasty, bool):
            raise TypeError(f"hasty: expected True or False, got {self.hasty!r}")

    def __repr__(self) -> str:
        rest = ", hasty=True" if self.hasty else ""
        return f"FixedPoint(rtol={self.rtol}, max_steps={self.max_steps}, damping={self.damping}{rest})"

    def solve(self, problem: Problem, z: Tensor) -> Solution:
        """All turns in one call, where a kernel takes them."""
        if problem.iterate is None:
            found = super().solve(problem, z)
            return self.reached(found.value, found.residual, found.steps)
        rtol, hasty = self.tolerance(z.dtype), self.hasty and problem.affine
        return self.reached(*problem.iterate(z, self.damping, rtol, self.max_steps, floor(z.dtype), hasty))

    def reached(self, z: Tensor, residual: Tensor, steps: Tensor) -> Solution:
        """What the iteration has come to."""
        status = verdict(residual, self.tolerance(z.dtype), steps, self.max_steps)
        if self.hasty:  # what was left early had too few steps; only a residual below the floor may be rounding's
            early = (status == Status.STALLED) & (residual >= floor(z.dtype))
            status = status.masked_fill(early, int(Status.MAX_STEPS))
        return Solution(z, status, residual, steps)

    def is_hopeless(self, problem: Problem, residual: Tensor, mark: Tensor, left: Tensor, rtol: float) -> Tensor | None:
        """Where it is hasty, and would not get there."""
        if not (self.hasty and problem.affine):
            return None
        return (mark < torch.inf) & (residual * (residual / mark) ** (2 * left / self.window) > rtol)

    def turn(
        self, problem: Problem, z: Tensor, step: Tensor, residual: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], int]:
        """The step itself, or part of the way."""
        return (step if self.damping == 1 else z + self.damping * (step - z)), memory, 1
