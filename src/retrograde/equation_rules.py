"""The derivatives of x = fn(x, *inputs) as torch's transforms and forward mode ask for them.

The adjoint l = Jᵀl + g and the tangent v = Jv + c are each other's transpose, as those of a network are. Both are
solved for on plain numbers; all else is made of vector-Jacobian products of fn, which can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import vjp, vmap

from retrograde.autograd import Rule, Tensors, attach
from retrograde.checks import check_finite
from retrograde.closure import Closed, has_tangent
from retrograde.equation import Equation, Sliced, check_converged, settle
from retrograde.equation_graph import Graph
from retrograde.implicit import Adjoint
from retrograde.result import SteadyState
from retrograde.solvers import Solver, relative_residual
from retrograde.solvers.factors import Factors
from retrograde.transforms import opaque

HIDDEN = (
    "Equilibrium: under torch.func and forward mode, expected fn to give all that it depends on to torch functions; a "
    "tensor is hidden, as by a torch.autograd.Function, or by another layer of this package. "
    "torch.autograd.grad(..., create_graph=True) sees it"
)
CHANGED = (
    "fn: expected the same value at the same x again. Between forward and backward its mode, its random numbers or "
    "what it closes over has changed"
)


@dataclass(frozen=True, eq=False)
class Family:
    """x = fn(x, *inputs) for whatever inputs, all of them arguments of fn.

    Attributes:
        axes: of x, without those that ``vmap`` adds.
        sampled: for each input, whether its first axis is the samples'.
        residuals: the largest one of each state that was found.
    """

    fn: Callable[..., Tensor]
    axes: int
    sampled: tuple[bool, ...]
    coupled: bool
    solver: Solver
    adjoint: Solver
    throw: bool
    residuals: list[float] = field(default_factory=list)

    def state(self, x0: Tensor, inputs: Tensors, names: list[str]) -> tuple[Tensor, ...]:
        """x from x0, differentiable; and each sample's status, residual, steps. The first inputs have these names."""

        def solve(x0: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            for name, each in zip(("x0", *names), (x0, *inputs), strict=False):
                if is_real(each):
                    check_finite(name, each)
            return self._solve(x0, inputs)

        x, *told = opaque(solve, (x0, *inputs), ())
        return attach(x, StateRule(self), inputs), *told

    def _solve(self, x0: Tensor, inputs: Tensors) -> tuple[Tensor, ...]:
        equation, flat = self.member(x0, inputs)
        try:
            y = equation(flat)
        except RuntimeError as error:
            raise ValueError(HIDDEN) from error
        if torch._C._functorch.is_functorch_wrapped_tensor(y):
            raise ValueError(HIDDEN)
        found, graph = settle(equation, flat, self.solver, Factors(equation.rows(flat)), keep=True)
        if graph is None or graph.captured:
            raise ValueError(HIDDEN)
        self.residuals.append(float(found.residual.max()) if found.residual.numel() else 0.0)
        slices, batch = x0.shape[: x0.ndim - self.axes], x0.shape[: x0.ndim - self.axes + 1]
        status, residual, steps = (
            each.reshape(*slices, -1).expand(batch).clone() for each in (found.status, found.residual, found.steps)
        )
        x, tolerance = found.value.reshape(x0.shape), self.solver.tolerance(x0.dtype)
        state = SteadyState(x, status, residual, steps, tolerance, self.solver)
        if self.throw:
            check_converged(state)
        return x, status, residual, steps

    def member(self, x: Tensor, inputs: Tensors) -> tuple[Equation, Tensor]:
        """Of plain numbers, the equation, and x as it takes it: the samples of all slices along one axis."""
        inputs, mapped = tuple(each.detach() for each in inputs), x.ndim - self.axes
        if not mapped:
            return Equation(self.fn, inputs, self.sampled, self.coupled), x.detach()
        first = x.shape[: mapped if self.coupled else mapped + 1]  # coupled samples are one state, and so one row
        flat = x.detach().flatten(0, len(first) - 1)
        fn = _over_slices(self.fn, mapped)

        def step(z: Tensor) -> Tensor:
            return fn(z.unflatten(0, first), *inputs).reshape(z.shape)

        return Sliced(step, (), (), whole=flat), flat


def check_seen(fn: Closed, x: Tensor, inputs: Tensors) -> None:
    """Raise if forward mode follows fn's answer though neither x nor an input has a tangent."""
    if forward_ad._current_level < 0 or torch._C._functorch.maybe_current_level() is not None:
        return
    if has_tangent(fn(x, *(forward_ad.unpack_dual(each).primal for each in inputs))):
        raise ValueError(HIDDEN)


def is_real(each: Tensor) -> bool:
    """Whether a derivative may be taken in it: real, or complex, but no integers."""
    return each.is_floating_point() or each.is_complex()


def _over_slices(fn: Callable[..., Tensor], mapped: int) -> Callable[..., Tensor]:
    """fn for tensors that have so many axes of slices before their own; what is the same in all is not copied."""
    if not mapped:
        return fn
    inner = _over_slices(fn, mapped - 1)

    def called(*tensors: Tensor) -> Tensor:
        same = [each.stride(0) == 0 and len(each) > 1 for each in tensors]
        same[0] = False
        given = (each[0] if one else each for each, one in zip(tensors, same, strict=True))
        return vmap(inner, tuple(None if one else 0 for one in same))(*given)

    return called


@dataclass(frozen=True, eq=False)
class StateRule(Rule):
    """x = fn(x, *inputs), as a function of the inputs."""

    family: Family

    def pull(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        """(d fn/d inputs)ᵀl, where l = Jᵀl + g."""
        x = attach(x, self, inputs)
        l = Feedback(self.family, transposed=True)(g, x, *inputs)
        return _pulled(partial(self.family.fn, x), inputs, l, needed)

    def push(self, x: Tensor, inputs: Tensors, tangents: Tensors) -> Tensor:
        """dx = J dx + (d fn/d inputs) d inputs."""
        x = attach(x, self, inputs)
        c = _pushed(partial(self.family.fn, x), inputs, tangents, x)
        return Feedback(self.family, transposed=False)(c, x, *inputs)


@dataclass(frozen=True, eq=False)
class Feedback(Rule):
    """z = Mz + c, where M is Jᵀ (an adjoint) or J (a tangent), as a function of c, x and the inputs of fn."""

    family: Family
    transposed: bool

    def __call__(self, c: Tensor, x: Tensor, *inputs: Tensor) -> Tensor:
        """z, differentiable."""
        (z,) = opaque(self._solve, (c, x, *inputs), ())
        return attach(z, self, (c, x, *inputs))

    def pull(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        """With y = Mᵀy + dR/dz: dR/dc = y, and all else through yᵀMz."""
        _, *where = inputs
        z = attach(x, self, inputs)
        y = replace(self, transposed=not self.transposed)(g, *where)
        l, v = (z, y) if self.transposed else (y, z)
        return y, *_pulled(partial(self._transposed, l), tuple(where), v, needed[1:])

    def push(self, x: Tensor, inputs: Tensors, tangents: Tensors) -> Tensor:
        """dz = M dz + dM z + dc."""
        _, *where = inputs
        dc, *moved = tangents
        z = attach(x, self, inputs)
        product = partial(self._transposed if self.transposed else self._straight, z)
        dMz = _pushed(product, tuple(where), tuple(moved), z)
        return self(dMz if dc is None else dMz + dc, *where)

    def _transposed(self, l: Tensor, x: Tensor, *inputs: Tensor) -> Tensor:
        """Jᵀl."""
        return vjp(lambda x: self.family.fn(x, *inputs), x)[1](l)[0]

    def _straight(self, v: Tensor, x: Tensor, *inputs: Tensor) -> Tensor:
        """Jv."""
        return _pushed(lambda x: self.family.fn(x, *inputs), (x,), (v,), x)

    def _solve(self, c: Tensor, x: Tensor, *inputs: Tensor) -> tuple[Tensor]:
        equation, flat = self.family.member(x, inputs)
        graph = Graph(equation, flat)
        residual = relative_residual(equation.rows(graph.y.detach()), equation.rows(flat))
        allowed = max(self.family.residuals, default=0.0) + torch.finfo(x.dtype).eps ** 0.5
        if graph.captured or not (residual <= allowed).all():
            raise RuntimeError(CHANGED)
        how = Adjoint(self.family.adjoint, self.family.throw, tangent=not self.transposed)
        return (how.solve(graph, c.reshape(flat.shape)).reshape(x.shape),)


def _pulled(fn: Callable[..., Tensor], inputs: Tensors, u: Tensor, needed: tuple[bool, ...]) -> Tensors:
    """uᵀ d fn/d inputs, None for those that are not needed."""
    wanted = [i for i, each in enumerate(inputs) if needed[i] and is_real(each)]
    if not wanted:
        return (None,) * len(inputs)
    pull = vjp(_of(fn, inputs, wanted), *(inputs[i] for i in wanted))[1]
    found = dict(zip(wanted, pull(u), strict=True))
    return tuple(found.get(i) for i in range(len(inputs)))


def _pushed(fn: Callable[..., Tensor], inputs: Tensors, tangents: Tensors, like: Tensor) -> Tensor:
    """(d fn/d inputs) tangents, of the shape of `like`: the transpose of what `_pulled` does."""
    wanted = [i for i, each in enumerate(inputs) if tangents[i] is not None and is_real(each)]
    if not wanted:
        return torch.zeros_like(like)
    of, where = _of(fn, inputs, wanted), [inputs[i] for i in wanted]
    transpose = vjp(lambda u: vjp(of, *where)[1](u), torch.zeros_like(like))[1]
    return transpose(tuple(tangents[i] for i in wanted))[0]


def _of(fn: Callable[..., Tensor], inputs: Tensors, wanted: list[int]) -> Callable[..., Tensor]:
    """fn as a function of some of its inputs."""

    def called(*some: Tensor) -> Tensor:
        given = dict(zip(wanted, some, strict=True))
        return fn(*(given.get(i, each) for i, each in enumerate(inputs)))

    return called
