"""Pseudo-transient continuation: a step through time, ever longer, until it is Newton's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from retrograde.solvers import gmres
from retrograde.solvers.base import Iteration, Problem, check_number


@dataclass(frozen=True, kw_only=True)
class PseudoTransient(Iteration):
    """z ← z + ((1 + 1/δ) I - J)⁻¹ (step(z) - z): an implicit step of length δ along dz/dt = step(z) - z.

    δ grows as the residual falls and shrinks as it rises, δ ← δ |r before| / |r|. While it is short, z follows the
    dynamics in continuous time, away from where a line search would be caught; when it is long, the step is Newton's.
    Each sample has a δ of its own. The equation is solved by factors where the problem says that they are cheap, by
    GMRES elsewhere.

    Args:
        delta: the first δ.
        rtol: the relative residual to reach; None takes it from the dtype.
        max_steps: how many steps a sample may take.

    Raises:
        ValueError: an argument outside its range.

    References:
        Kelley and Keyes, "Convergence analysis of pseudo-transient continuation", SIAM J. Numer. Anal. 35 (1998).
    """

    delta: float = 1.0
    max_steps: int = 100

    window: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < check_number("delta", self.delta) < float("inf"):
            raise ValueError(f"delta: expected a number greater than 0, got {self.delta}")

    def start(self, problem: Problem, z: Tensor) -> tuple[Tensor, ...]:
        """Of each sample: δ, and |r| before, of which there is none yet."""
        return z.new_full((len(z), 1), self.delta), z.new_zeros(len(z), 1)

    def turn(
        self, problem: Problem, z: Tensor, step: Tensor, residual: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], int]:
        """One step through time."""
        delta, before = memory
        r = step - z
        size = torch.linalg.vector_norm(r, dim=-1, keepdim=True)
        delta = (delta * torch.where(before > 0, before / size, 1)).clamp(1e-6, min(1e12, torch.finfo(z.dtype).max))
        if problem.factorable:
            move = problem.factorise(z, anew=True, shift=1 / delta)(r)
        else:
            move, _ = gmres.solve(problem, z, r, 0.03 * size[:, 0], shift=1 / delta)
        return z + torch.where(move.isfinite().all(-1, keepdim=True), move, r), (delta, size), 1
