"""What a computation answers, and how far the answer can be trusted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property, partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import torch
from torch import Tensor

from retrograde.tables import Row, as_html, as_text

if TYPE_CHECKING:
    from retrograde.receipt import Receipt
    from retrograde.spectrum import Verdicts


class Status(IntEnum):
    """How the solve of one sample ended. Its ``message`` is what an error says."""

    CONVERGED = 0
    MAX_STEPS = 1
    DIVERGED = 2
    SINGULAR = 3
    STALLED = 4
    TRUNCATED = 5
    INACCURATE = 6

    @property
    def message(self) -> str:
        """The status as a sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "converged",
    Status.MAX_STEPS: "stopped at max_steps before the residual fell below the tolerance",
    Status.DIVERGED: "diverged: the iterates, or their squares, became infinite or NaN",
    Status.SINGULAR: "singular: I - DW has no inverse that this precision could tell",
    Status.STALLED: "stalled: the residual has come down to what rounding allows, above the tolerance",
    Status.TRUNCATED: "truncated as asked: an approximation, whose residual says how far it is from exact",
    Status.INACCURATE: "not accurate enough: the estimated error of the gradient exceeds grad_rtol",
}


class Solved:
    """What a state and its adjoint have in common: a solver found them, sample by sample."""

    solver: Any
    status: Tensor
    residual: Tensor
    steps: Tensor
    structure: str = ""
    attempt: Tensor | None = None

    @property
    def method(self) -> str:
        """The solver, in a line, and what it was given to solve if that was not all."""
        return f"{self.solver!r} on {self.structure}" if self.structure else repr(self.solver)

    @property
    def converged(self) -> Tensor:
        """(...,) bool."""
        return self.status == Status.CONVERGED

    @property
    def failed(self) -> Tensor:
        """(...,) bool: neither converged, nor truncated as asked."""
        return ~self.converged & (self.status != Status.TRUNCATED)

    @property
    def any_failed(self) -> bool:
        """Whether one has failed."""
        return bool(self.status.any()) and bool(self.failed.any())  # Status.CONVERGED is 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same numbers, without their history. What verdicts and estimates are made from is shared."""
        twin = copy.copy(self)
        for name, value in vars(twin).items():
            if isinstance(value, Tensor):
                vars(twin)[name] = value.detach().clone()
            elif isinstance(value, list):
                vars(twin)[name] = [copy.deepcopy(each, memo) if isinstance(each, Solved) else each for each in value]
        return twin

    def title(self, what: str) -> str:
        """How many converged, by what, and how the others ended."""
        lines = [f"{int(self.converged.sum())} of {self.status.numel()} {what} converged", *self.found_by]
        for code in self.status[~self.converged].unique().tolist():
            lines.append(f"{int((self.status == code).sum())} {Status(code).message}")
        return "\n".join(lines) if self.status.numel() else f"no samples, by {self.method}"

    @property
    def found_by(self) -> list[str]:
        """Which solver answered, in a line; of a cascade those that did, how many samples, and which failed before."""
        tried = getattr(getattr(self.solver, "solver", self.solver), "solvers", None)
        before = getattr(self.solver, "before", "")
        if self.attempt is None or not self.attempt.numel() or tried is None:
            return [f"by {self.method}"]
        lines = []
        for k in self.attempt.unique().tolist():
            failed = f", after {', '.join(type(each).__name__ for each in tried[:k])} failed" if k else ""
            on = f" on {self.structure}" if self.structure else ""
            lines.append(f"{int((self.attempt == k).sum())} by {tried[k]!r}{on}{failed}{before}")
        return lines


@dataclass(frozen=True, eq=False)
class SteadyState(Solved):
    """x = f(Wx + b), and how it was found. `...` is the batch.

    Attributes:
        x: (..., n), differentiable: R(x).backward() is recurrent backpropagation.
        status: (...,) a `Status`.
        residual: (...,) |f(Wx + b) - x| / max(|x|, eps²), neither damped nor accelerated.
        steps: (...,) how many steps the solver took.
        tolerance: what the residual had to fall below.
        solver: what found it.
        attempt: (...,) if that is a `Cascade`, which of its solvers answered, from 0 on: those before it failed; else
            None.
    """

    x: Tensor
    status: Tensor
    residual: Tensor
    steps: Tensor
    tolerance: float
    solver: Any
    attempt: Tensor | None = None
    _receipts: list[Receipt] = field(default_factory=list, repr=False)
    _judges: list[Callable[[SteadyState], Verdicts]] = field(default_factory=list, repr=False)

    @cached_property
    def verdict(self) -> Verdicts:
        """How each sample ends, stable or not and why: `retrograde.verdict`, computed when first asked for.

        Raises:
            ValueError: the state is not one of a Network or an Equilibrium, or no longer one: its weights have moved
                since; or it was found under a transform.
        """
        if not self._judges:
            raise ValueError(
                "verdict: this state was not found by a Network, or by an Equilibrium outside of torch.func; use "
                "rg.verdict(net, state)"
            )
        return self._judges[-1](self)

    @property
    def judge(self) -> Callable[[], Verdicts] | None:
        """What gives the verdict, without holding the history of x; None where there is none."""
        if not self._judges:
            return None
        return partial(self._judges[-1], replace(self, x=self.x.detach(), _receipts=[]))

    @property
    def receipt(self) -> Receipt | None:
        """What the latest backward through x found; None before the first."""
        if not self._receipts:
            return None
        self._receipts[-1].belongs_to(self)
        return self._receipts[-1]

    def __repr__(self) -> str:
        return as_text(self._head, self._rows())

    def _repr_html_(self) -> str:
        return as_html(self._head, self._rows())

    @property
    def _head(self) -> str:
        one = tuple(self.x.shape[self.status.ndim :])  # what a sample holds
        what = f"{one[0]} neurons" if len(one) == 1 else f"shape {one}"
        return f"SteadyState of {what}: {self.title('samples')}"

    def _rows(self) -> list[Row]:
        return [("steps", self.steps), ("residual", self.residual)] if self.status.numel() else []


@dataclass(frozen=True, eq=False)
class Trajectory:
    """x(1), ..., x(T).

    Attributes:
        x: (T, ..., n), differentiable: R(x).backward() is backpropagation through time.
        x0: (..., n), x(0).
    """

    x: Tensor
    x0: Tensor
    _at: Callable[[list[int]], Tensor] = field(repr=False)

    def at(self, t: int | Sequence[int]) -> Tensor:
        """x(t), (..., n), or for several times (times, ..., n): for a reward on these alone.

        It equals ``x[t - 1]`` and has the same gradient, whose backward sweep starts at the last of these times and is
        handed no zeros for the others.

        Args:
            t: 1 <= t <= T; or from the end, -1 for T.

        Raises:
            ValueError, TypeError: not a time of this trajectory.
        """
        T, one = len(self.x), not isinstance(t, Sequence)
        times: list[Any] = [t] if one else list(cast(Sequence[int], t))
        for each in times:
            if isinstance(each, bool) or not isinstance(each, Integral):
                raise TypeError(f"t: expected an integer or a list of them, got {each!r}")
            if not 1 <= int(each) <= T and not -T <= int(each) <= -1:
                raise ValueError(f"t: expected 1 to {T}, or -{T} to -1, got {each}; x(0) is x0")
        rows = [int(each) - 1 if each > 0 else T + int(each) for each in times]
        unique = sorted(set(rows))
        x = self._at(unique)
        if one:
            return x[0]
        return x if rows == unique else x[[unique.index(row) for row in rows]]


@dataclass(frozen=True, eq=False)
class Gradients:
    """A gradient taken by hand: add ``eta`` times each to climb the reward.

    Attributes:
        s: dR/db for each sample, (..., n); along a trajectory dR/db(t), (T, ..., n).
        dW: dR/dW summed over the batch, one tensor for each of ``W.weights``.
        db: (n,) s summed over everything but the neurons: the gradient of a bias that all samples and times share.
        receipt: of a steady state; None along a trajectory, whose back-substitution is exact.
        dx0: (..., n) dR/dx(0), along a trajectory.
        dleak: dR/da, along a trajectory with a leak.
    """

    s: Tensor
    dW: tuple[Tensor, ...]
    db: Tensor | None = None
    receipt: Receipt | None = None
    dx0: Tensor | None = None
    dleak: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Gradients:
        """The same numbers in that dtype."""
        s, db, dx0, dleak = (None if z is None else z.to(dtype) for z in (self.s, self.db, self.dx0, self.dleak))
        assert s is not None
        return Gradients(s, tuple(z.to(dtype) for z in self.dW), db, self.receipt, dx0, dleak)


class Inputs(NamedTuple):
    """What a state was found from, beside the network; a backward is given the same numbers."""

    b: Tensor | None
    bias: Tensor | None = None
    x0: Tensor | None = None


class Wants(NamedTuple):
    """Which gradients are asked for, of those that cost something."""

    s: bool
    dW: bool
    db: bool
    dx0: bool


EVERYTHING, ONLY_S = Wants(True, True, True, True), Wants(s=True, dW=False, db=False, dx0=False)


class ConvergenceError(RuntimeError):
    """The numbers failed. ``result`` is what was found all the same.

    `facts` are what the message says before it gives advice; None where it gives none that is a solver's.
    """

    def __init__(self, message: str, result: Any, facts: str | None = None):
        super().__init__(message, result)
        self.result, self.facts = result, facts

    def __str__(self) -> str:
        return str(self.args[0])


def convergence_error(what: str, told: Solved, tolerance: float, advice: str, result: Any) -> ConvergenceError:
    """The error for a batch of which some samples failed: status, residual against tolerance, steps, what to try."""
    failed = told.failed
    status, residual = told.status[failed], told.residual[failed]
    statuses = ", ".join(f"{int((status == code).sum())} {Status(code).message}" for code in status.unique().tolist())
    facts = (
        f"{what}: {int(failed.sum())} of {failed.numel()} samples failed with {told.method} "
        f"({statuses}). The worst residual is {float(residual.max()):.2e} against a tolerance of {tolerance:.2e}, "
        f"after at most {int(told.steps.max())} steps."
    )
    return ConvergenceError(f"{facts} {advice} throw=False returns what was found.", result, facts)
