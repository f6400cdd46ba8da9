"""Newton's method kept away from the solutions already known."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from retrograde.solvers import Iteration, Problem

# A line search that has halved this often takes the step it has.
_SHORTEST = 2.0**-8


@dataclass(frozen=True, kw_only=True, eq=False)
class DeflatedNewton(Iteration):
    """Newton's method on η(z) (step(z) - z), where η = Π (1/\\|z - zᵢ\\|² + 1) is infinite at the solutions zᵢ known.

    Its direction is Newton's own times a number, 1 / (1 - ∇log η · δ): a further solution costs about one more solve.

    Args:
        known: (k, n), the solutions zᵢ.
        scale: the length that counts as 1 in η.
        rtol: the relative residual, without η, to reach; None takes it from the dtype.
        max_steps: how many steps a sample may take.

    References:
        P. E. Farrell, Á. Birkisson and S. W. Funke, "Deflation techniques for finding distinct solutions of nonlinear
        partial differential equations", SIAM J. Sci. Comput. 37 (2015), arXiv 1410.5620.
    """

    known: Tensor = field(repr=False)
    scale: float = 1.0
    max_steps: int = 100

    def start(self, problem: Problem, z: Tensor) -> tuple[Tensor, ...]:
        """Where the line search stands: its foot, log of η times the residual, the direction, the share of it taken."""
        size = z.new_full((len(z), 1), torch.inf)
        return z, size, torch.zeros_like(z), torch.ones_like(size)

    def turn(
        self, problem: Problem, z: Tensor, step: Tensor, residual: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], int]:
        """A new direction where the last step made things better, half of the old one where it did not."""
        foot, size, direction, share = memory
        log_eta, slope = self._deflation(z)
        new_size = torch.linalg.vector_norm(step - z, dim=-1, keepdim=True).log() + log_eta
        accepted = (new_size <= size + torch.log1p(-1e-4 * share)) | (share < _SHORTEST)
        rows = accepted[:, 0].nonzero()[:, 0]
        if len(rows):
            r = (step - z)[rows]
            towards = problem.take(rows).factorise(z[rows], anew=True)(r)
            towards = torch.where(towards.isfinite().all(-1, keepdim=True), towards, r)
            towards = towards / (1 - (slope[rows] * towards).sum(-1, keepdim=True))
            towards = torch.where(towards.isfinite().all(-1, keepdim=True), towards, r)
            direction = direction.index_copy(0, rows, towards)
        foot = torch.where(accepted, z, foot)
        size = torch.where(accepted, new_size, size)
        share = torch.where(accepted, 1.0, share / 2)
        return foot + share * direction, (foot, size, direction, share), 1

    def _deflation(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log η, (samples, 1), and its gradient, (samples, n)."""
        away = z[:, None] - self.known
        d2 = away.square().sum(-1).clamp(min=torch.finfo(z.dtype).tiny)
        s2 = self.scale**2
        log_eta = torch.log1p(s2 / d2).sum(-1, keepdim=True)
        slope = (-2 * away * (s2 / (d2 * (d2 + s2)))[..., None]).sum(1)
        return log_eta, slope
