"""The receipt of a gradient: how it was found, and how far it can be trusted."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from retrograde.result import Solved
from retrograde.tables import Row, as_html, as_text


@dataclass(frozen=True, eq=False)
class Receipt(Solved):
    """What is known of a gradient at a steady state, for each sample. Printed, it is a table.

    What costs more than the backward had at hand is computed when it is first asked for, or printed, in float64: the
    estimates and singular values below. For that a receipt keeps W, b, x, dR/dx and s, not copies of them, until
    `forget`; a step of an optimiser overwrites W, and after it they are no longer told.

    Of an `Equilibrium`, x = fn(x, *inputs), J stands in the place of DW, and l = Jᵀl + dR/dx in that of s; the
    estimates are made in the dtype of fn. The error is that of l, or of what l does to all that fn depends on, along
    one random direction, where that is larger.

    Attributes:
        solver: that of the adjoint.
        status: (...,) a `Status`.
        residual: (...,) |D (Wᵀs + g) - s| / |s|.
        steps: (...,) how often the adjoint step was taken.
        state_residual: (...,) |f(Wx + b) - x| / |x| of the state the gradient was taken at; None where b was not given.
        conditioning: (...,) |s| / |Dg|, a lower bound on the norm of (I - DWᵀ)⁻¹, which amplifies every residual.
        state_solver: what found the state; None where it was given.
        state_steps: (...,) the steps that took.
        attempt: (...,) if the adjoint's solver is a `Cascade`, which of its solvers answered; those before it failed.
        structure: which neurons alone the solver was given, if not all: those whose slope is not 0.

    Raises:
        RuntimeError: an estimate asked for too late.
    """

    solver: Any
    status: Tensor
    residual: Tensor
    steps: Tensor
    conditioning: Tensor
    state_residual: Tensor | None = None
    state_solver: Any = None
    state_steps: Tensor | None = None
    structure: str = ""
    attempt: Tensor | None = None
    evidence: Any = field(default=None, repr=False)
    _state: Any = field(default=None, repr=False)
    _judge: Callable[[], Any] | None = field(default=None, repr=False)

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

    @property
    def verdict(self) -> Any:
        """The verdict on the state, its `SteadyState.verdict`.

        Raises:
            RuntimeError: it is not known what the state was found from.
            ValueError: the weights have moved since.
        """
        state = self._state() if self._state is not None else None
        if state is not None:
            return state.verdict
        if "_verdict" not in vars(self):
            if self._judge is None:
                raise RuntimeError(
                    "receipt: the verdict takes a Network and its input, of which this receipt has not both; "
                    "give recurrent_backpropagation a Network and input=..., or use rg.verdict(net, x, input=...)"
                )
            vars(self)["_verdict"] = self._judge()
        return vars(self)["_verdict"]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_state": None, "_judge": None}  # a weak reference cannot be copied

    def belongs_to(self, state: Any) -> None:
        """Remember the state as long as somebody else does, and then what its verdict takes."""
        object.__setattr__(self, "_state", weakref.ref(state))
        self.judged_by(state.judge)

    def judged_by(self, judge: Callable[[], Any] | None) -> None:
        """Take this for what gives the verdict, where there is no state."""
        object.__setattr__(self, "_judge", judge)

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
            return "W, x and s are not held; ask for an estimate before forget()"
        if self.evidence.changed:
            return "W, or x or s, was overwritten since; ask for an estimate before the optimiser takes its step"
        return str(self.evidence.lacking)

    def forget(self) -> None:
        """Let go of W, b, x, dR/dx and s. What was asked for until now stays."""
        object.__setattr__(self, "evidence", None)
        self.judged_by(None)

    def __repr__(self) -> str:
        text = f"Receipt: {self.title('adjoints')}"
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
            state_error = None if self.state_residual is None else self.state_error
            rows += [("error of the state", state_error), ("error of the gradient", self.error_estimate)]
        if not late or "reward_correction" in done:
            change = self.reward_correction
            rows.append(("correction of R, size", None if change is None else change.abs()))
        title = f"{self!r}\nno more is told: {late}" if late else repr(self)
        state = self._state() if self._state is not None else None
        if "_verdict" in vars(self) or (state is not None and "verdict" in vars(state)):
            title += f"\nthe state: {self.verdict}"
        return title, [(name, value) for name, value in rows if value is not None], ("smallest singular value",)
