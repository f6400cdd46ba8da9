"""The loop of every solver, written once.

A solver knows nothing of networks: it sees a step z -> z' and looks for z = step(z), one sample a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from retrograde.result import Status

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """z = step(z) for a batch of samples, z (samples, n).

    Attributes:
        step: z -> z'. A sample's z' depends on that sample alone.
        take: the problem of the samples with these indices.
        factorise: z -> the map r -> (I - J(z))⁻¹ r, J the Jacobian of step. It may give again what it found before,
            unless told ``anew=True``. A problem that is `factorable` takes a ``shift`` (samples, 1) to add to I.
        affine: whether step(z) = Jz + c.
        iterate: (z, damping, rtol, max_steps, floor, hasty) -> z, residual, steps: the step taken until each sample's
            residual has fallen, or below `floor` stalled, or if hasty will not fall soon enough, as one call; None
            where there is no kernel for it.
        accelerate: (z, memory, delay, rtol, max_steps, floor) -> z, residual, steps, stays: the same with Anderson's
            acceleration.
        tangent: z -> the map v -> J(z) v, exact. None where it is not known; an affine problem's follows from its step.
        at_gain: t (samples, 1) -> the same problem with its feedback scaled by t, so that at t = 0 step is constant;
            None where that makes no sense.
        factorable: whether n is so small, and J so full, that factors of it cost less than many products.
        substitute: (z, solver) -> z, steps: part after part in the order of what depends on what, each from z by the
            solver; None where the problem has no such order.
    """

    step: Linear
    take: Callable[[Tensor], Problem]
    factorise: Callable[..., Linear]
    affine: bool = False
    iterate: Callable[[Tensor, float, float, int, float, bool], tuple[Tensor, Tensor, Tensor]] | None = None
    accelerate: Callable[[Tensor, int, int, float, int, float], tuple[Tensor, Tensor, Tensor, Tensor]] | None = None
    tangent: Callable[[Tensor], Linear] | None = None
    at_gain: Callable[[Tensor], Problem] | None = None
    factorable: bool = False
    substitute: Callable[[Tensor, Solver], tuple[Tensor, Tensor]] | None = None

    def linearised(self, z: Tensor) -> Linear:
        """v -> J(z) v."""
        if self.tangent is not None:
            return self.tangent(z)
        if not self.affine:
            raise ValueError(
                "solver: expected a problem with a tangent, v -> J(z) v; without one use FixedPoint, Anderson or Newton"
            )
        c = self.step(torch.zeros_like(z))
        return lambda v: self.step(v) - c


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found for each sample: value (samples, n), and status, residual, steps (samples,).

    `method` (samples,) counts, from 0, which solver of a `Cascade` had the last word; None where there was but one.
    """

    value: Tensor
    status: Tensor
    residual: Tensor
    steps: Tensor
    method: Tensor | None = None

    @classmethod
    def like(cls, z: Tensor) -> Solution:
        """Room for the solution of a problem that starts at z."""
        count = (len(z),)
        status = torch.full(count, int(Status.MAX_STEPS), device=z.device)
        residual = z.new_empty(count, dtype=_norm_dtype(z))
        return cls(z.clone(), status, residual, torch.zeros(count, dtype=torch.int64, device=z.device))

    def record(self, rows: Tensor, value: Tensor, status: Tensor, residual: Tensor, steps: Tensor) -> None:
        """Write down how the samples `rows` ended."""
        self.value[rows], self.status[rows], self.residual[rows], self.steps[rows] = value, status, residual, steps

    def adopt(self, rows: Tensor, other: Solution) -> None:
        """Take the answers of another solution for the samples `rows`, all but its steps, which are added."""
        self.record(rows, other.value, other.status, other.residual, self.steps[rows] + other.steps)
        if self.method is not None and other.method is not None:
            self.method[rows] = other.method

    def some(self, which: Tensor) -> Solution:
        """That of the samples `which`."""
        value, status, residual, steps = self.value[which], self.status[which], self.residual[which], self.steps[which]
        return Solution(value, status, residual, steps, None if self.method is None else self.method[which])


def _norm_dtype(z: Tensor) -> torch.dtype:
    return torch.float32 if z.dtype in (torch.float16, torch.bfloat16) else z.dtype


def _norm(z: Tensor) -> Tensor:
    return torch.linalg.vector_norm(z, dim=-1, dtype=_norm_dtype(z))


def relative_residual(step: Tensor, z: Tensor) -> Tensor:
    """|step(z) - z| / max(|z|, tiny) for each sample; tiny is eps squared, 1e-14 in float32."""
    return torch.where(_norm(z) < torch.inf, _ratio(step, z), torch.inf)


def _ratio(step: Tensor, z: Tensor) -> Tensor:
    """`relative_residual`, but that it may be 0 where |z| overflows, beside which nothing is small."""
    size = _norm(z)
    return _norm(step - z) / size.clamp(min=torch.finfo(size.dtype).eps ** 2)


@cache
def default_rtol(dtype: torch.dtype) -> float:
    """What the dtype allows, eps ** 0.9: 6e-7 in float32, 8e-15 in float64, a little more than a step's rounding."""
    return torch.finfo(dtype).eps ** 0.9


def check_number(name: str, value: Any, kind: type = Real) -> Any:
    """`value`, a number of that kind; TypeError otherwise. True and False are no numbers."""
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name}: expected {'an integer' if kind is Integral else 'a number'}, got {value!r}")
    return value


class Solver(ABC):
    """Finds z = step(z). Subclasses are frozen dataclasses."""

    before: ClassVar[str] = ""  # what went before it, as a receipt says it

    @abstractmethod
    def solve(self, problem: Problem, z: Tensor) -> Solution:
        """The solution reached from z, (samples, n), sample by sample."""

    @abstractmethod
    def tolerance(self, dtype: torch.dtype) -> float:
        """What the relative residual has to fall below."""


@dataclass(frozen=True, kw_only=True)
class Iteration(Solver):
    """A solver that takes turns. Each sample stops by its own residual, and those that stopped cost nothing more.

    Args:
        rtol: the relative, undamped residual to reach; None takes it from the dtype.
        max_steps: how many steps a sample may take.
    """

    rtol: float | None = None
    max_steps: int = 1000

    window: ClassVar[int] = 32
    """How many turns are given to a residual that rounding may hold up, or by which its pace is told."""

    def __post_init__(self) -> None:
        if self.rtol is not None and not 0 < check_number("rtol", self.rtol) < 1:
            raise ValueError(f"rtol: expected None or a number between 0 and 1, got {self.rtol}")
        if check_number("max_steps", self.max_steps, Integral) < 1:
            raise ValueError(f"max_steps: expected an integer of at least 1, got {self.max_steps}")

    def tolerance(self, dtype: torch.dtype) -> float:
        """``rtol``, or what the dtype allows."""
        return default_rtol(dtype) if self.rtol is None else self.rtol

    def start(self, problem: Problem, z: Tensor) -> tuple[Tensor, ...]:
        """What the solver remembers from turn to turn, tensors with samples first."""
        return ()

    def is_hopeless(self, problem: Problem, residual: Tensor, mark: Tensor, left: Tensor, rtol: float) -> Tensor | None:
        """Which samples, whose residual was `mark` a window ago, are left as they are with so many steps `left`."""
        return None

    @abstractmethod
    def turn(
        self, problem: Problem, z: Tensor, step: Tensor, residual: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | int]:
        """From z, step(z) and the residual to the next z; what is remembered; and the steps that cost each sample."""

    def solve(self, problem: Problem, z: Tensor) -> Solution:
        """Take turns until every sample has converged or failed."""
        rtol = self.tolerance(z.dtype)
        solution = Solution.like(z)
        rows = torch.arange(len(z), device=z.device)
        memory = self.start(problem, z)
        steps = torch.zeros_like(solution.steps)
        mark = torch.full_like(solution.residual, torch.inf)  # the residual a window ago
        most = turns = 0
        while len(rows):
            step = problem.step(z)
            residual = _ratio(step, z)
            going = (residual > rtol) & (residual < torch.inf)
            if most >= self.max_steps:
                going &= steps < self.max_steps
            if turns % self.window == 0:
                if turns > self.window:
                    going &= ~((residual < floor(z.dtype)) & (residual >= mark))
                hopeless = self.is_hopeless(problem, residual, mark, self.max_steps - steps, rtol)
                going = going if hopeless is None else going & ~hopeless
                mark = residual
            if not going.all():
                stopped = ~going
                last = relative_residual(step[stopped], z[stopped])
                status = verdict(last, rtol, steps[stopped], self.max_steps)
                solution.record(rows[stopped], z[stopped], status, last, steps[stopped])
                left = going.nonzero()[:, 0]
                if not len(left):
                    break
                problem = problem.take(left)
                rows, z, step, residual, steps, mark, *rest = (
                    tensor[left] for tensor in (rows, z, step, residual, steps, mark, *memory)
                )
                memory = tuple(rest)

            z, memory, cost = self.turn(problem, z, step, residual, memory)
            steps = steps + cost
            most += int(cost.max() if isinstance(cost, Tensor) else cost)
            turns += 1
        return solution


@cache
def floor(dtype: torch.dtype) -> float:
    """The relative residual from which on rounding may be what keeps it up: 6e-6 in float32, 2e-12 in float64."""
    return torch.finfo(dtype).eps ** 0.75


def verdict(residual: Tensor, rtol: float, steps: Tensor, max_steps: int) -> Tensor:
    """Why samples stopped that stopped with these residuals after these steps: stalled, where there were steps left."""
    if not len(residual) or residual.max() <= rtol:
        return residual.new_full(residual.shape, int(Status.CONVERGED), dtype=torch.int64)
    converged = residual <= rtol
    failed = torch.where(steps < max_steps, int(Status.STALLED), int(Status.MAX_STEPS))
    failed = torch.where(residual.isfinite(), failed, int(Status.DIVERGED))
    return failed.masked_fill_(converged, int(Status.CONVERGED))
