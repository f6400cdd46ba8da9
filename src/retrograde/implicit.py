"""The gradient of x = fn(x, *inputs): implicit differentiation by vector-Jacobian products.

With J = d fn/dx at x, the adjoint is l = Jᵀl + dR/dx, and the gradient in any θ is (d fn/dθ)ᵀ l. For fn = f(Wx + b), l
is the lecture's Wᵀs + dR/dx, and s = Dl. The adjoint is a fixed point itself, of l -> Jᵀl + g. So its own derivative is
taken by the same code, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from retrograde.checks import check_finite
from retrograde.equation import Equation, check_apart
from retrograde.equation_accuracy import GraphEvidence
from retrograde.equation_feedback import graph_problem
from retrograde.equation_graph import Graph, check_twice, differentiated
from retrograde.receipt import Receipt
from retrograde.result import Gradients, convergence_error
from retrograde.scaling import judged, power_of_two
from retrograde.solvers import Solver, relative_residual
from retrograde.solvers.factors import Factors
from retrograde.transforms import precisely
from retrograde.warm import Visit


@dataclass(frozen=True, eq=False)
class Adjoint:
    """How adjoints are solved for: with which solver, from which factors of I - J, and where the receipts go.

    For a `tangent` J stands in the place of Jᵀ. They may start `warm`; what is known `about` the state, by the names of
    a receipt's fields, goes into the receipt too.
    """

    solver: Solver
    throw: bool
    factors: Factors | None = None
    receipts: list[Receipt] | None = None
    tangent: bool = False
    warm: Visit | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def solve(self, graph: Graph, g: Tensor) -> Tensor:
        """l = Jᵀl + g, of the shape of g.

        Each g is first scaled to about 1 by a power of two, and l scaled back: no tolerance depends on the reward's
        size.

        Raises:
            ValueError: g is not finite.
            ConvergenceError: some sample has not converged, and `throw`.
        """
        what = "tangent" if self.tangent else "adjoint"
        check_finite("tangent" if self.tangent else "dR/dx", g)
        given, whole, coupled = g, g.shape, graph.equation.coupled
        g = graph.equation.rows(g)
        size = g.abs().amax(-1) if g.shape[-1] else g.new_zeros(len(g))
        scale = power_of_two(size)
        g = g / scale
        rows = torch.arange(len(g), device=g.device)
        problem = graph_problem(graph, g, self.factors or Factors(g), rows, rows, self.tangent)
        if self.warm is None:
            found = self.solver.solve(problem, g)
        else:
            found = self.warm.solve_adjoint(self.solver, problem, g, torch.linalg.vector_norm(g, dim=-1, keepdim=True))
        if len(g) > 1:
            together = relative_residual(problem.step(found.value), found.value)
            check_apart(together, found.residual, found.status, f"the {what}")
        found, conditioning = judged(found, size, torch.linalg.vector_norm(g, dim=-1))

        samples = whole[:1] if coupled else g.shape[:1]
        l = (found.value * scale).reshape(whole)
        receipt = Receipt(
            solver=self.solver,
            status=found.status.expand(samples),
            residual=found.residual.expand(samples),
            steps=found.steps.expand(samples),
            conditioning=conditioning.expand(samples),
            attempt=None if found.method is None else found.method.expand(samples),
            evidence=None if self.receipts is None else GraphEvidence(graph, given.detach(), l),
            **self.about,
        )
        if self.receipts is not None:
            self.receipts.append(receipt)
        if self.throw and not receipt.converged.all():
            advice = "I - J may be nearly singular there, as at a bifurcation; try adjoint=Krylov(restart=100)."
            tolerance, result = self.solver.tolerance(g.dtype), Gradients(l, (), receipt=receipt)
            raise convergence_error(f"{what} of the equilibrium", receipt, tolerance, advice, result)
        return l

    @property
    def inner(self) -> Adjoint:
        """For the adjoint of an adjoint: its matrix is another, and it has no receipt of its own."""
        return Adjoint(self.solver, self.throw)


def attach(x: Tensor, graph: Graph, adjoint: Adjoint) -> Tensor:
    """x, solved for outside autograd, as a differentiable function of the inputs and of all that fn depends on."""
    return _Implicit.apply(x, graph, adjoint, *differentiated(graph.equation.inputs), *graph.captured)


class _Implicit(torch.autograd.Function):
    """Forward the identity, backward the adjoint; with create_graph, the adjoint attached in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: Graph, adjoint: Adjoint, *sources: Tensor) -> Tensor:
        ctx.graph, ctx.adjoint = graph, adjoint
        ctx.set_materialize_grads(False)
        x = x.view_as(x)
        ctx.save_for_backward(x, *sources)
        return x

    @staticmethod
    @precisely
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, *sources = ctx.saved_tensors  # raises if one was overwritten since
        if g is None:
            return (None,) * (3 + len(sources))
        with torch.no_grad():
            l = ctx.adjoint.solve(ctx.graph, g)
        if not torch.is_grad_enabled():
            return None, None, None, *ctx.graph.gradients(l)
        return None, None, None, *_differentiable(ctx.graph, ctx.adjoint.inner, x, sources, g, l)


def _differentiable(
    graph: Graph, adjoint: Adjoint, x: Tensor, sources: Sequence[Tensor], g: Tensor, l: Tensor
) -> tuple[Tensor, ...]:
    """(d fn/dθ)ᵀl as a differentiable function of θ and g, with which x and l move."""
    equation, given = graph.equation, iter(sources)
    inputs = tuple(next(given) if differentiated((each,)) else each for each in equation.inputs)
    of_l = Equation(_transposed(equation.fn), (g, x, *inputs), (True, True, *equation.sampled), equation.coupled)
    l = attach(l, Graph(of_l, l), adjoint)

    # fn once more, of x and inputs that keep their history. The gate stands between: closed for this gradient, which
    # is a partial derivative, open for the next.
    gate = _Gate()
    behind = tuple(gate(each) if differentiated((each,)) else each for each in inputs)
    y = replace(equation, inputs=behind)(gate(x))
    graph.check_same(y, torch.arange(len(equation.rows(x)), device=x.device))
    wanted = [*differentiated(behind), *graph.captured]
    with gate:
        return torch.autograd.grad(y, wanted, l, create_graph=True, allow_unused=True, materialize_grads=True)


def _transposed(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """(l, g, x, *inputs) -> Jᵀl + g."""

    def step(l: Tensor, g: Tensor, x: Tensor, *inputs: Any) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            y = fn(x, *inputs)
            if not y.requires_grad:
                return g
            (pulled,) = torch.autograd.grad(y, x, l, create_graph=True, allow_unused=True, materialize_grads=True)
            check_twice(pulled)
            return g + pulled

    return step


class _Gate:
    """Tensors as they are, whose gradient stops here while the gate is closed: within its `with`."""

    def __init__(self) -> None:
        self.closed = False

    def __enter__(self) -> None:
        self.closed = True

    def __exit__(self, *error: object) -> None:
        self.closed = False

    def __call__(self, x: Tensor) -> Tensor:
        return _Gated.apply(x, self)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: _Gate) -> Tensor:
        ctx.gate = gate
        ctx.set_materialize_grads(False)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        return (None if ctx.gate.closed else gradients[0]), None
