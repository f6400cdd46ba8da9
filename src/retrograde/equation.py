"""x = fn(x, *inputs), for any fn that autograd can differentiate: what the solvers see of it, and its graph at an x."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from retrograde.result import Status, SteadyState, convergence_error
from retrograde.solvers import (
    Cascade,
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


class NoTangent(ValueError):
    """Torch has no products Jv for an fn."""


class Graph:
    """The autograd graph of fn at x, cut off from what x and the inputs came from.

    Attributes:
        captured: what fn depends on beside x and the inputs: the leaves, such as Parameters, that autograd knows of.
    """

    def __init__(self, equation: Equation, x: Tensor):
        with torch.enable_grad():
            self.x = x.detach().requires_grad_()
            inputs = tuple(cut(each) for each in equation.inputs)
            y = replace(equation, inputs=inputs)(self.x)
            self.y = y.view_as(y)  # so that there is a graph even if fn hands back what it was given
        self.equation = equation
        self._once: list[RuntimeError] = []  # why there are no second derivatives
        self._given, self._inputs = inputs, differentiated(inputs)
        own = {id(each) for each in (self.x, *self._inputs)}
        leaves = _leaves(self.y)
        self.captured = [leaf for leaf in leaves if id(leaf) not in own]
        if not any(leaf is self.x for leaf in leaves):
            _check_constant(equation, self.x, self.y)

    def take(self, rows: Tensor) -> Graph:
        """The graph of these samples, made anew."""
        if self.equation.coupled:
            return self
        fewer = Graph(self.equation.take(rows), self.x.detach()[rows])
        self.check_same(fewer.y, rows)
        return fewer

    def check_same(self, y: Tensor, rows: Tensor) -> None:
        """Raise if y, which is fn evaluated again at the x of these samples, is not what it was."""
        y, before = self.equation.rows(y.detach()), self.equation.rows(self.y.detach())[rows]
        allowed = math.sqrt(torch.finfo(y.dtype).eps) * torch.linalg.vector_norm(before, dim=-1)
        if (torch.linalg.vector_norm(y - before, dim=-1) > allowed).any():
            raise RuntimeError(
                "fn: expected the same value at the same x again. Between forward and backward its mode, its random "
                "numbers, autocast or what it closes over has changed; or it mixes samples, which takes "
                "Equilibrium(fn, coupled=True)"
            )

    def transposed(self, l: Tensor) -> Tensor:
        """Jᵀl, as rows."""
        return self.equation.rows(self._pull(l, [self.x])[0])

    def jacobian(self) -> Tensor:
        """J, as one matrix for each row, (rows, n, n), by one vector-Jacobian product a row of it."""
        rows, n = self.equation.rows(self.x.detach()).shape
        return torch.stack([self.transposed(e.expand(rows, -1)) for e in torch.eye(n).to(self.x.detach())], dim=1)

    def moved(self, v: Tensor) -> Tensor:
        """Jv, as rows: the transpose of the transpose, or by forward mode where fn has no second derivatives.

        The transpose is made once, and no product with it takes a step of fn, as one by forward mode does.
        """
        v = v.reshape(self.x.shape)
        if not self._once:
            try:
                return self.equation.rows(self._moved(v))
            except RuntimeError as error:
                self._once = [error]
        try:
            with torch.no_grad():
                return self.equation.rows(self.equation.pushed(self.x.detach(), v)[1])
        except RuntimeError as error:
            raise NoTangent(
                "fn: expected products Jv with its Jacobian, and torch has neither forward mode for it nor second "
                f"derivatives ({str(self._once[0]).splitlines()[0]}). FixedPoint, Anderson, Newton and Direct need none"
            ) from error

    def _moved(self, v: Tensor) -> Tensor:
        u, Ju = self._transpose
        if not Ju.requires_grad:
            return torch.zeros_like(v)
        return torch.autograd.grad(Ju, u, v, retain_graph=True, allow_unused=True, materialize_grads=True)[0]

    @cached_property
    def _transpose(self) -> tuple[Tensor, Tensor]:
        """u = 0 and Jᵀu, of which the derivative is Jᵀ."""
        u = torch.zeros_like(self.y, requires_grad=True)
        if not self.y.requires_grad:
            return u, u.detach()
        how = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        with torch.enable_grad():
            return u, torch.autograd.grad(self.y, self.x, u, **how)[0]

    def swayed(self) -> Tensor:
        """(d fn/dθ) v for a random direction v of all θ that the gradient is taken in, the same at each call; as rows."""
        sources = [each for each in (*self._inputs, *self.captured) if each.is_floating_point()]
        u = torch.zeros_like(self.y, requires_grad=True)
        if not self.y.requires_grad or not sources:
            return self.equation.rows(u.detach())
        own = {id(each) for each, own in zip(self._given, self.equation.sampled, strict=False) if own}
        random, along = torch.Generator().manual_seed(0), u.new_zeros(())
        how = {"allow_unused": True, "materialize_grads": True}
        try:
            with torch.enable_grad():
                pulled = torch.autograd.grad(self.y, sources, u, create_graph=True, **how)
                for each, part in zip(sources, pulled, strict=True):
                    shape = each.shape[1:] if id(each) in own else each.shape  # no sample depends on its batch
                    along = along + (part * torch.randn(shape, generator=random, dtype=torch.float64).to(part)).sum()
                (moved,) = torch.autograd.grad(along, u, **how)
        except RuntimeError:  # no second derivatives
            moved = torch.zeros_like(u)
        return self.equation.rows(moved.detach())

    def gradients(self, l: Tensor) -> tuple[Tensor, ...]:
        """(d fn/dθ)ᵀl for the inputs that are differentiated and for what is captured."""
        return self._pull(l, [*self._inputs, *self.captured])

    def _pull(self, l: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
        if not self.y.requires_grad:
            return tuple(torch.zeros_like(each) for each in wanted)
        return torch.autograd.grad(
            self.y, wanted, l.reshape(self.y.shape), retain_graph=True, allow_unused=True, materialize_grads=True
        )


def cut(each: Any) -> Any:
    """An input without its history, a leaf if it is to be differentiated."""
    return each.detach().requires_grad_(each.requires_grad) if isinstance(each, Tensor) else each


def differentiated(inputs: tuple[Any, ...]) -> list[Tensor]:
    """Those of the inputs that a gradient is taken in."""
    return [each for each in inputs if isinstance(each, Tensor) and each.requires_grad]


def _leaves(y: Tensor) -> list[Tensor]:
    """The leaves of y's graph, each once, in the order they are met."""
    leaves, seen, stack = [], set(), [y.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            leaves.append(node.variable)
        stack.extend(parent for parent, _ in node.next_functions)
    return leaves


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
    tried = state.solver.solvers if isinstance(state.solver, Cascade) else (state.solver,)
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


def _check_constant(equation: Equation, x: Tensor, y: Tensor) -> None:
    """Autograd sees no x in y: raise if y depends on it all the same."""
    with torch.no_grad():
        moved = equation(1.5 * x.detach() + 0.5)
    if x.numel() and not torch.equal(moved, y.detach()):
        raise ValueError(
            "fn: it depends on x, but autograd does not see how; expected no detach, no no_grad and no NumPy between"
        )
