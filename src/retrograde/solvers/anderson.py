"""Anderson acceleration of z ← step(z)."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from retrograde.result import Status
from retrograde.solvers.aligned import fill, filled
from retrograde.solvers.base import Iteration, Problem, Solution, check_number, floor, relative_residual, verdict
from retrograde.solvers.factors import factored_in
from retrograde.solvers.fixed_point import FixedPoint


@dataclass(frozen=True)
class Anderson(Iteration):
    """z ← step(z), extrapolated from the last few steps so that |step(z) - z| would be least if step were affine.

    With r = step(z) - z and the differences ΔR, ΔZ of the last `memory` residuals and iterates,
    z ← z + r - (ΔZ + ΔR) γ, where γ makes |r - ΔR γ| least. γ is found by QR of ΔR, each column scaled to length 1, and
    a ridge relative to that: normal equations would square its condition, and an absolute ridge would end the
    acceleration as r becomes small. Where the residual has grown tenfold a sample forgets its history, and goes on from
    the plain step of the best iterate it has met. Each sample has a history of its own. For a large sparse W a kernel
    has the inner products of ΔR, in float64, in place of QR.

    Acceleration finds steady states whether or not the dynamics would stay there. With a `delay`, plain steps come
    first, after which what is left of z - z* is the slowest mode, or one that grows; an answer z* that one more of them
    does not come nearer to is none, and the plain steps' z is told in its place.

    Args:
        memory: how many differences are kept, at least 1.
        delay: how many plain steps come first.
        rtol: the relative residual to reach; None takes it from the dtype.
        max_steps: how many steps a sample may take.

    Raises:
        ValueError: an argument outside its range.

    References:
        Anderson, "Iterative procedures for nonlinear integral equations", J. ACM 12 (1965). Walker and Ni, "Anderson
        acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011).
    """

    memory: int = 5
    delay: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_number("memory", self.memory, Integral) < 1:
            raise ValueError(f"memory: expected an integer of at least 1, got {self.memory}")
        if check_number("delay", self.delay, Integral) < 0:
            raise ValueError(f"delay: expected an integer of at least 0, got {self.delay}")

    def solve(self, problem: Problem, z: Tensor) -> Solution:
        """All turns in one call, where a kernel takes them."""
        rtol = self.tolerance(z.dtype)
        if problem.accelerate is not None:
            z, residual, steps, stays = problem.accelerate(
                z, self.memory, self.delay, rtol, self.max_steps, floor(z.dtype)
            )
            status = verdict(residual, rtol, steps, self.max_steps)
            if not stays.all():
                status = torch.where(stays, status, int(Status.MAX_STEPS))
            return Solution(z, status, residual, steps)
        found = super().solve(problem, z)
        if self.delay:
            x = FixedPoint(rtol=self.rtol, max_steps=self.delay).solve(problem, z).value
            onward = problem.step(x)
            after, before = (torch.linalg.vector_norm(each - found.value, dim=-1) for each in (onward, x))
            stays = (found.status != Status.CONVERGED) | (found.steps <= self.delay) | (after < before)
            rows = (~stays).nonzero()[:, 0]
            left = relative_residual(onward, x)[rows]
            found.record(rows, x[rows], torch.full_like(rows, int(Status.MAX_STEPS)), left, found.steps[rows])
        return found

    def start(self, problem: Problem, z: Tensor) -> tuple[Tensor, ...]:
        """Of each sample: ΔR and ΔZ, newest first; the last r and z; the best step, its |r|; turns known, and taken."""
        differences = z.new_zeros(len(z), self.memory, filled(z.shape[1], z))
        none = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return differences, differences, z, z, z, z.new_full((len(z),), torch.inf), none, none

    def turn(
        self, problem: Problem, z: Tensor, step: Tensor, residual: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], int]:
        """The step extrapolated; or, where the last one made things much worse, a new beginning."""
        dR, dZ, r_before, z_before, best, least, known, taken = memory
        r = step - z
        size = torch.linalg.vector_norm(r, dim=-1)
        accelerated = taken >= self.delay
        worse = accelerated & ~(size <= 10 * least)
        known = torch.where(worse, 0, (known + 1))
        width = dR.shape[-1]
        dR = torch.cat([fill(r - r_before, width)[:, None], dR[:, :-1]], dim=1)
        dZ = torch.cat([fill(z - z_before, width)[:, None], dZ[:, :-1]], dim=1)
        # Of the first turn, and of a new beginning, there are no differences yet.
        valid = torch.arange(self.memory, device=z.device) < (known - 1)[:, None]
        scale = torch.linalg.vector_norm(dR, dim=-1)
        valid = valid & (scale > 0)
        columns = torch.where(valid[..., None], dR / scale.clamp(min=torch.finfo(z.dtype).tiny)[..., None], 0)
        ridge = torch.finfo(z.dtype).eps ** (2 / 3)
        eye = torch.eye(self.memory, dtype=z.dtype, device=z.device)
        ridges = torch.where(valid[..., None], ridge, 1) * eye
        wide, rows = factored_in(z.dtype), filled(width + self.memory, z)
        Q, R = torch.linalg.qr(fill(torch.cat([columns, ridges], dim=2), rows).mT.to(wide))
        right = torch.bmm(fill(r, width)[:, None].to(wide), Q[:, :width]).mT
        gamma = torch.linalg.solve_triangular(R, right, upper=True)[..., 0].to(z)
        gamma = torch.where(valid & accelerated[:, None], gamma / scale.clamp(min=torch.finfo(z.dtype).tiny), 0)
        onward = step - torch.bmm(gamma[:, None], dZ + dR)[:, 0, : z.shape[1]]
        better = size < least
        best, least = torch.where(better[:, None], step, best), torch.where(better, size, least)
        # A new beginning is measured against itself, lest a best far back hold every other up.
        least = torch.where(worse, torch.inf, least)
        z_next = torch.where(worse[:, None], best, onward)
        return z_next, (dR, dZ, r, z, best, least, known, taken + 1), 1
