"""x = fn(x, *inputs), for any fn that autograd can differentiate: what the solvers see of it, and its graph at an x."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from retrograde.equation_graph import Graph
from retrograde.result import Status, SteadyState, convergence_error
from retrograde.solvers import (
    FixedPoint,
    Homotopy,
    Newton,
    NewtonKrylov,
    Problem,
    Solution,
    Solver,
    relative_residual,
)
from retrograde.solvers.base import Linear
from retrograde.solvers.factors import Factors
from retrograde.solvers.given import parts_of

if TYPE_CHECKING:
    from retrograde.warm import Visit

# Up to this many numbers a sample, I - J may be factored, which costs as many copies of the sample.
SMALL = 256

_PART = (
    "fn was called with a part of the samples, as those that have converged leave the batch. What each sample has of "
    "its own must be an input, with samples first."
)


@dataclass(frozen=True, eq=False)
class Equation:
    """x = fn(x, *inputs), x (samples, ...).

    Attributes:
        fn: (x, *inputs) -> x, of the same shape and dtype.
        inputs: what it is given beside x.
        sampled: for each input, whether its first axis is the samples'; if not, all samples share it.
        coupled: whether the samples depend on one another, and are one state with one residual.
        part: whether these are not all samples of the batch.
    """

    fn: Callable[..., Tensor]
    inputs: tuple[Any, ...]
    sampled: tuple[bool, ...]
    coupled: bool = False
    part: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """fn(x, *inputs), looked over."""
        try:
            y = self.fn(x, *self.inputs)
        except Exception as error:
            if self.part:
                error.add_note(_PART)
            raise
        if not isinstance(y, Tensor):
            raise TypeError(f"fn: expected it to return a tensor, got {type(y).__name__}")
        if y.dtype != x.dtype or y.device != x.device:
            raise TypeError(f"fn: expected {x.dtype} on {x.device}, as x is, got {y.dtype} on {y.device}")
        if y.shape != x.shape:
            told = f" {_PART}" if self.part else ""
            raise ValueError(f"fn: expected it to return the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}.{told}")
        return y

    def rows(self, x: Tensor) -> Tensor:
        """What the solvers see of x: (samples, n), or (1, n) if the samples are coupled."""
        return x.reshape(1, -1) if self.coupled else x.reshape(len(x), math.prod(x.shape[1:]))

    def take(self, rows: Tensor) -> Equation:
        """The equation of these samples."""
        if self.coupled:
            return self
        pairs = zip(self.inputs, self.sampled, strict=True)
        return replace(self, inputs=tuple(each[rows] if own else each for each, own in pairs), part=True)

    def problem(self, shape: torch.Size, factors: Factors, rows: Tensor, gain: Tensor | None = None) -> Problem:
        """What a solver of the state sees; `rows` are the places of these samples in the batch.

        Args:
            shape: of one sample; of all of x if they are coupled.
            gain: t (samples, 1), of x = fn(tx, *inputs), whose feedback is scaled by t; None is 1.
        """

        def fed(z: Tensor) -> Tensor:
            z = z if gain is None else gain * z
            return z.reshape(shape if self.coupled else (len(z), *shape))

        def tangent(z: Tensor) -> Linear:
            moved = Graph(self.detached(), fed(z)).moved
            return moved if gain is None else lambda v: moved(gain * v)

        def factorise(z: Tensor, anew: bool = False, shift: Tensor | None = None) -> Linear:
            def matrices() -> Tensor:
                A = self.jacobian(fed(z)).neg_() if gain is None else -gain[:, :, None] * self.jacobian(fed(z))
                A.diagonal(dim1=-2, dim2=-1).add_(1 if shift is None else 1 + shift)
                return A

            factors.put(rows, matrices)
            return lambda r: factors.solve(rows, r)

        def take(some: Tensor) -> Problem:
            return self.take(some).problem(shape, factors, rows[some], None if gain is None else gain[some])

        return Problem(
            step=lambda z: self.rows(self(fed(z))),
            take=take,
            factorise=factorise,
            tangent=tangent,
            at_gain=lambda t: self.problem(shape, factors, rows, t),
            factorable=not self.coupled and math.prod(shape) <= SMALL,
        )

    def detached(self) -> Equation:
        """The same, of inputs in which no derivative is taken."""
        return replace(self, inputs=tuple(each.detach() if isinstance(each, Tensor) else each for each in self.inputs))

    def jacobian(self, x: Tensor) -> Tensor:
        """J for each sample, (samples, n, n): n copies of each, and one vector-Jacobian product."""
        if self.coupled:
            raise ValueError("solver: Newton and Direct factor a matrix a sample, and coupled samples have none")
        samples, n = len(x), math.prod(x.shape[1:])
        copies = torch.arange(samples, device=x.device).repeat_interleave(n)
        eye = torch.eye(n, dtype=x.dtype, device=x.device)
        graph = Graph(self.detached().take(copies), x[copies])
        return graph.transposed(eye.repeat(samples, 1)).reshape(samples, n, n)

    def pushed(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """fn(x, *inputs) and Jv, both by forward mode, of the shape of x."""
        with forward_ad.dual_level():
            y, Jv = forward_ad.unpack_dual(self(forward_ad.make_dual(x, v)))
        return y, torch.zeros_like(x) if Jv is None else Jv


@dataclass(frozen=True, eq=False)
class Sliced(Equation):
    """The equation of what cannot be cut: fn is always called with `whole`, into which the samples asked for are put.

    Attributes:
        whole: any x of all samples.
        index: which samples these are; None for all.
    """

    whole: Tensor = field(kw_only=True)
    index: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """fn(x, *inputs) for these samples, looked over."""
        if self.index is None:
            return super().__call__(x)
        return super().__call__(self.whole.index_copy(0, self.index, x))[self.index]

    def take(self, rows: Tensor) -> Sliced:
        """The equation of these samples."""
        return replace(self, index=rows if self.index is None else self.index[rows])

    def jacobian(self, x: Tensor) -> Tensor:
        """J for each sample, by one vector-Jacobian product a row."""
        return Graph(self, x).jacobian()


def settle(
    equation: Equation, x0: Tensor, solver: Solver, factors: Factors, keep: bool, warm: Visit | None = None
) -> tuple[Solution, Graph | None]:
    """The x that the solver found, as rows; and, to `keep`, its graph."""
    z = equation.rows(x0)
    with torch.no_grad():
        shape = x0.shape if equation.coupled else x0.shape[1:]
        problem = equation.problem(shape, factors, torch.arange(len(z), device=z.device))
        found = solver.solve(problem, z) if warm is None else warm.solve(solver, problem, z)
        x = found.value.reshape(x0.shape)
    graph = Graph(equation, x) if keep else None
    if len(z) > 1:
        with torch.no_grad():
            y = equation(x) if graph is None else graph.y.detach()
            together = relative_residual(equation.rows(y), found.value)
        check_apart(together, found.residual, found.status, "the state")
    return found, graph


def check_converged(state: SteadyState) -> None:
    """Raise the ConvergenceError of a state of which some sample failed."""
    if not state.converged.all():
        raise convergence_error("equilibrium", state, state.tolerance, _advice(state), state)


def _advice(state: SteadyState) -> str:
    """What was not tried yet."""
    tried = parts_of(state.solver)
    others: list[Solver] = [] if any(isinstance(each, FixedPoint) and each.damping < 1 for each in tried) else [_DAMPED]
    others += [] if any(isinstance(each, Newton) for each in tried) else [NewtonKrylov()]
    others += [] if any(isinstance(each, Homotopy) for each in tried) else [Homotopy()]
    what = ", ".join(f"{type(each).__name__}({'damping=0.5' if each is _DAMPED else ''})" for each in others)
    return f"Try {what}{' or ' if what else ''}another x0; fn may have no fixed point."


_DAMPED = FixedPoint(damping=0.5)


# --- what is asked of fn, looked after


def check_apart(together: Tensor, apart: Tensor, status: Tensor, what: str) -> None:
    """Samples were solved apart, as they stopped at their own times: raise unless that holds in their batch.

    Args:
        together: (samples,) the residuals within the batch.
        apart: (samples,) the residuals that the solver saw.
        status: (samples,) how each ended; only those that converged are looked at.
        what: was solved.
    """
    allowed = math.sqrt(torch.finfo(together.dtype).eps)  # rounding differs a little from batch to batch
    wrong = (status == Status.CONVERGED) & ~(together <= apart + allowed)
    if wrong.any():
        raise ValueError(
            f"fn: expected each sample to depend on itself alone. Of {what}, {int(wrong.sum())} of {wrong.numel()} "
            f"samples, solved apart to a residual of at most {float(apart[wrong].max()):.1e}, have one of up to "
            f"{float(together[wrong].max()):.1e} in their batch. If fn mixes samples, as BatchNorm does, use "
            "Equilibrium(fn, coupled=True). If an input that all samples share has as many rows as there are samples, "
            "let fn close over it"
        )
