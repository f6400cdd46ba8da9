"""An answer to z = Mz + c, an adjoint, say, in proportion to c; and a word where rounding outgrows it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from retrograde.result import Status
from retrograde.solvers.base import Solution


def power_of_two(size: Tensor) -> Tensor:
    """(samples, 1), of each size (samples,): divided by it, c is about 1, and no bit of it changes."""
    return torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - 1)[:, None]


def largest_conditioning(dtype: torch.dtype) -> float:
    """Where z is so large beside what drives it, rounding is amplified to its size, and no residual shows it."""
    return 0.1 / torch.finfo(dtype).eps


def judged(found: Solution, size: Tensor, drive: Tensor) -> tuple[Solution, Tensor]:
    """What was found, and its conditioning |z| / drive, (samples,), beyond the largest of which it is SINGULAR.

    Where the size of c is 0, so is z, whatever became of the solve: no reward, no gradient.
    """
    none = size == 0
    conditioning = torch.linalg.vector_norm(found.value, dim=-1) / drive
    conditioning = torch.where(none | (drive == 0), 1, conditioning)
    status = torch.where(none, int(Status.CONVERGED), found.status)
    singular = (conditioning > largest_conditioning(found.value.dtype)) & (status == Status.CONVERGED)
    return replace(
        found,
        value=torch.where(none[:, None], 0, found.value),
        status=torch.where(singular, int(Status.SINGULAR), status),
        residual=torch.where(none, 0, found.residual),
    ), conditioning
