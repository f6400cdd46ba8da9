"""What a computation answers, and how far the answer can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from numbers import Integral
from typing import Any, NamedTuple, cast

from torch import Tensor

from retrograde.tables import Row, as_html, as_text


class Status(IntEnum):
    """How the solve of one sample ended. Its ``message`` is what an error says."""

    CONVERGED = 0
    MAX_STEPS = 1
    DIVERGED = 2
    SINGULAR = 3
    INACCURATE = 6

    @property
    def message(self) -> str:
        """The status as a sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "converged",
    Status.MAX_STEPS: "stopped at max_steps before the residual fell below the tolerance",
    Status.DIVERGED: "diverged: the iterates became infinite or NaN",
    Status.SINGULAR: "singular: I - DW has no inverse that this precision could tell",
    Status.INACCURATE: "not accurate enough: the estimated error of the gradient exceeds grad_rtol",
}


class _Solved:
    """What a state and its adjoint have in common: a solver found them, sample by sample."""

    solver: Any
    status: Tensor

    @property
    def method(self) -> str:
        """The solver, in a line."""
        return repr(self.solver)

    @property
    def converged(self) -> Tensor:
        """(...,) bool."""
        return self.status == Status.CONVERGED

    def _title(self, what: str) -> str:
        """How many converged, by what, and how the others ended."""
        lines = [f"{int(self.converged.sum())} of {self.status.numel()} {what} converged", f"by {self.method}"]
        for code in self.status[~self.converged].unique().tolist():
            lines.append(f"{int((self.status == code).sum())} {Status(code).message}")
        return "\n".join(lines) if self.status.numel() else f"no samples, by {self.method}"


@dataclass(frozen=True, eq=False)
class Receipt(_Solved):
    """What is known of a gradient at a steady state, for each sample. Printed, it is a table.

    What costs more than the backward had at hand is computed when it is first asked for, or printed, in float64: the
    estimates and singular values below. For that a receipt keeps W, b, x, dR/dx and s, not copies of them, until
    `forget`; a step of an optimiser overwrites W, and after it they are no longer told.

    Attributes:
        solver: that of the adjoint.
        status: (...,) a `Status`.
        residual: (...,) |D (Wᵀs + g) - s| / |s|.
        steps: (...,) how often the adjoint step was taken.
        state_residual: (...,) |f(Wx + b) - x| / |x| of the state the gradient was taken at; None where b was not given.
        conditioning: (...,) |s| / |Dg|, a lower bound on the norm of (I - DWᵀ)⁻¹, which amplifies every residual.
        state_solver: what found the state; None where it was given.
        state_steps: (...,) the steps that took.

    Raises:
        RuntimeError: an estimate asked for too late.
    """

    solver: Any
    status: Tensor
    residual: Tensor
    steps: Tensor
    state_residual: Tensor | None
    conditioning: Tensor
    state_solver: Any = None
    state_steps: Tensor | None = None
    evidence: Any = field(default=None, repr=False)

    @property
    def error_estimate(self) -> Tensor:
        """(...,) the relative error of a sample's dR/dW = s xᵀ, and so of s, for the dR/dx given; infinite if unknown.

        Newton's method takes a step from the state, δx, and there one from the adjoint, δs. The estimate is |δs| / |s|,
        what rounding hides, and what δx changes in x and in dR/dx. How dR/dx changes is the reward's affair, R'': it is
        taken to do so on the scale of x, or of 1 where that is smaller.
        """
        return self._errors[1]

    @property
    def state_error(self) -> Tensor:
        """(...,) the relative error of x, |δx| / |x|; infinite if unknown, and 0 where b was not given."""
        return self._errors[0]

    @property
    def sigma_min(self) -> Tensor:
        """(...,) the smallest singular value of I - DW, or a little more; 0 at a bifurcation, where s has no bound."""
        return self._singular[0]

    @property
    def condition_number(self) -> Tensor:
        """(...,) the largest singular value of I - DW divided by the smallest, or a little less."""
        smallest, largest = self._singular
        return largest / smallest

    @cached_property
    def reward_correction(self) -> Tensor | None:
        """(...,) lᵀ (f(Wx + b) - x), l = dR/dx + Wᵀs: R(x) with it added is R at the steady state, to second order.

        None where b was not given. Source: M. B. Giles and E. Süli, Acta Numerica 11 (2002).
        """
        return None if self.state_residual is None else self._own(self._known().reward_change())

    @cached_property
    def _errors(self) -> tuple[Tensor, Tensor]:
        found = self._known().correction()
        return self._own(found.state_error), self._own(found.error)

    def remember(self, state_error: Tensor, error: Tensor) -> None:
        """Take these estimates, known already, for its own."""
        vars(self)["_errors"] = self._own(state_error), self._own(error)

    @cached_property
    def _singular(self) -> tuple[Tensor, Tensor]:
        found = self._known().spectrum()
        return self._own(found.smallest), self._own(found.largest)

    def _own(self, value: Tensor) -> Tensor:
        return value.reshape(self.status.shape).to(self.residual.dtype)

    def _known(self) -> Any:
        """What the estimates are made from."""
        if self._too_late:
            raise RuntimeError(f"receipt: {self._too_late}")
        return self.evidence

    @property
    def _too_late(self) -> str:
        """Why what was not asked for until now cannot be told."""
        if self.evidence is None:
            return "W, x and s are forgotten; ask for an estimate before forget()"
        if self.evidence.changed:
            return "W, or x or s, was overwritten since; ask for an estimate before the optimiser takes its step"
        return ""

    def forget(self) -> None:
        """Let go of W, b, x, dR/dx and s. What was asked for until now stays."""
        object.__setattr__(self, "evidence", None)

    def __repr__(self) -> str:
        text = f"Receipt: {self._title('adjoints')}"
        return text if self.state_solver is None else f"{text}\nthe state by {self.state_solver!r}"

    def __str__(self) -> str:
        return as_text(*self._table())

    def _repr_html_(self) -> str:
        return as_html(*self._table())

    def _table(self) -> tuple[str, list[Row], tuple[str, ...]]:
        late, done = self._too_late, vars(self)
        rows: list[tuple[str, Tensor | None]] = [
            ("steps to the state", self.state_steps),
            ("residual of the state", self.state_residual),
            ("steps of the adjoint", self.steps),
            ("residual of the adjoint", self.residual),
            ("amplification |s| / |Dg|", self.conditioning),
        ]
        if not late or "_singular" in done:
            rows += [("smallest singular value", self.sigma_min), ("condition number", self.condition_number)]
        if not late or "_errors" in done:
            rows += [("error of the state", self.state_error), ("error of the gradient", self.error_estimate)]
        if not late or "reward_correction" in done:
            change = self.reward_correction
            rows.append(("correction of R, size", None if change is None else change.abs()))
        title = f"{self!r}\nno more is told: {late}" if late else repr(self)
        return title, [(name, value) for name, value in rows if value is not None], ("smallest singular value",)


@dataclass(frozen=True, eq=False)
class SteadyState(_Solved):
    """x = f(Wx + b), and how it was found. `...` is the batch.

    Attributes:
        x: (..., n), differentiable: R(x).backward() is recurrent backpropagation.
        status: (...,) a `Status`.
        residual: (...,) |f(Wx + b) - x| / max(|x|, eps²), neither damped nor accelerated.
        steps: (...,) how many steps the solver took.
        tolerance: what the residual had to fall below.
        solver: what found it.
    """

    x: Tensor
    status: Tensor
    residual: Tensor
    steps: Tensor
    tolerance: float
    solver: Any
    _receipts: list[Receipt] = field(default_factory=list, repr=False)

    @property
    def receipt(self) -> Receipt | None:
        """What the latest backward through x found; None before the first."""
        return self._receipts[-1] if self._receipts else None

    def __repr__(self) -> str:
        return as_text(self._head, self._rows())

    def _repr_html_(self) -> str:
        return as_html(self._head, self._rows())

    @property
    def _head(self) -> str:
        return f"SteadyState of {self.x.shape[-1]} neurons: {self._title('samples')}"

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


EVERYTHING = Wants(True, True, True, True)


class ConvergenceError(RuntimeError):
    """The numbers failed. ``result`` is what was found all the same."""

    def __init__(self, message: str, result: Any):
        super().__init__(message, result)
        self.result = result

    def __str__(self) -> str:
        return str(self.args[0])


def convergence_error(
    what: str, told: SteadyState | Receipt, tolerance: float, advice: str, result: Any
) -> ConvergenceError:
    """The error for a batch of which some samples failed: status, residual against tolerance, steps, what to try."""
    failed = ~told.converged
    status, residual = told.status[failed], told.residual[failed]
    statuses = ", ".join(f"{int((status == code).sum())} {Status(code).message}" for code in status.unique().tolist())
    return ConvergenceError(
        f"{what}: {int(failed.sum())} of {failed.numel()} samples failed with {told.method} "
        f"({statuses}). The worst residual is {float(residual.max()):.2e} against a tolerance of {tolerance:.2e}, "
        f"after at most {int(told.steps.max())} steps. {advice} throw=False returns what was found.",
        result,
    )
