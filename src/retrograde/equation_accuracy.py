"""How far the gradient of x = fn(x, *inputs) is from the true one, and how close I - J is to singular.

What `accuracy` tells of a network, by products with J and Jᵀ alone. Nothing is known of fn but its values, so that they
and their rounding are those of its own dtype; how large rounding is shows where x is moved by its last digit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from retrograde.corrections import carried, norm, solver_for
from retrograde.equation import SMALL
from retrograde.equation_feedback import graph_problem
from retrograde.equation_graph import Graph, NoTangent
from retrograde.held import Holder
from retrograde.result import Status
from retrograde.scaling import power_of_two
from retrograde.singular import Maps, Spectrum, extreme_values
from retrograde.solvers.factors import Factors
from retrograde.transforms import precisely

_STEPS = 8  # of the power method with the inverse
_NOISES = 2  # samples of what rounding may do
_ROOM = 2**26  # numbers that the matrices of one turn may hold


class Errors(NamedTuple):
    """The relative errors of x and of its gradient, for each sample; infinite where unknown."""

    state_error: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False)
class GraphEvidence(Holder):
    """What a gradient was computed from, and itself: fn's graph at x, g = dR/dx and l, of the shape of x.

    It holds these tensors and all that fn depends on, not copies of them, and knows when one was overwritten.
    """

    graph: Graph
    g: Tensor
    l: Tensor

    def held(self) -> tuple[Any, ...]:
        """What fn and the gradient were computed from, and the gradient itself."""
        return (self.g, self.l, self.graph.x, *self.graph.captured, *self.graph.equation.inputs)

    def __deepcopy__(self, memo: Any) -> GraphEvidence:
        return self  # a graph cannot be copied

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()  # nor be stored

    @property
    def lacking(self) -> str:
        """Why nothing can be told, if that is so: of some fn torch has no products Jv."""
        try:
            self.graph.moved(self._rows(self.l))
        except NoTangent as error:
            return str(error)
        return ""

    def correction(self) -> Errors:
        """One Newton step from x, and one from l there: what they change."""
        return Errors(*self._in_turns(_errors))

    def spectrum(self) -> Spectrum:
        """The extreme singular values of I - J; where it is not formed by the power method, which finds none beyond."""
        return Spectrum(*self._in_turns(_singular_values))

    def reward_change(self) -> Tensor:
        """lᵀ (fn(x) - x): how far R is from what it is at the steady state, to second order."""
        return self._in_turns(_reward_change)[0]

    def _rows(self, z: Tensor) -> Tensor:
        return self.graph.equation.rows(z.detach())

    @precisely
    def _in_turns(self, told: Callable[[_Samples], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What is told of the samples, a few at a time where matrices are formed."""
        g, l = self._rows(self.g), self._rows(self.l)
        coupled = self.graph.equation.coupled
        few = not coupled and g.shape[1] <= SMALL
        at_once = max(1, _ROOM // g.shape[1] ** 2) if few and g.shape[1] else max(1, len(g))
        turns = []
        with torch.no_grad(), parametrize.cached():
            for rows in torch.arange(len(g), device=g.device).split(at_once):
                graph = self.graph.take(rows)
                if coupled:
                    graph = Graph(graph.equation, graph.x)
                    self.graph.check_same(graph.y, rows)
                turns.append(told(_Samples(graph, g[rows], l[rows], few)))
        found = tuple(torch.cat(each) for each in zip(*turns, strict=True))
        return tuple(each.expand(len(self.l)) for each in found) if coupled else found


@dataclass(frozen=True, eq=False)
class _Samples:
    """Some samples: fn's graph at x, and g and l, (samples, n); whether I - J may be `factored`."""

    graph: Graph
    g: Tensor
    l: Tensor
    factored: bool
    _factors: Factors = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_factors", Factors(self.g))

    def solve(self, c: Tensor, transposed: bool = False) -> tuple[Tensor, Tensor]:
        """(I - J)⁻¹ c, or (I - Jᵀ)⁻¹ c, to four digits; and whether it was found."""
        scale = power_of_two(c.abs().amax(-1) if c.shape[1] else c.new_zeros(len(c)))
        rows = torch.arange(len(c), device=c.device)
        problem = graph_problem(self.graph, c / scale, self._factors, rows, rows, tangent=not transposed)
        found = solver_for(c.shape[1], self.factored, quick=False).solve(problem, c / scale)
        return found.value * scale, found.status == Status.CONVERGED

    def moved_to(self, x: Tensor) -> Graph:
        """fn's graph at another x, given as rows."""
        return Graph(self.graph.equation, x.reshape(self.graph.x.shape))


def _nothing() -> None:
    """What is left of an evidence that was stored."""


def _errors(given: _Samples) -> tuple[Tensor, ...]:
    graph, g, l = given.graph, given.g, given.l
    x, y = (graph.equation.rows(each.detach()) for each in (graph.x, graph.y))
    eps, tiny = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).eps ** 2
    signs = _signs(x)
    scale = power_of_two(g.abs().amax(-1) if g.shape[1] else g.new_zeros(len(g)))
    g, l = g / scale, l / scale

    # δx, and what else it might be: what fn does when x moves by its last digit, beside what J says, is rounding.
    r = y - x
    dx, solved = given.solve(r)
    there = given.moved_to(x + dx)
    noises, noise_size = [], torch.zeros_like(r[:, 0])
    for one, other in signs:
        last = eps * one * x
        noise = graph.equation.rows(given.moved_to(x + last).y.detach()) - y - graph.moved(last) + eps * other * y
        noises.append(given.solve(noise)[0])
        noise_size = torch.maximum(noise_size, norm(noise))
    left = norm(graph.equation.rows((there.y - there.x).detach()))
    solved = solved & (left <= 0.5 * norm(r) + 8 * noise_size + 8 * eps * norm(x))
    size = norm(x + dx).clamp(min=tiny)
    state_error = (norm(dx) + _spread(noises)) / size

    # δl at x + δx, and likewise; and the same of what l does to all that fn depends on, along one direction.
    pushed = there.transposed(l)
    dl, adjoint_solved = given.solve(pushed + g - l, transposed=True)
    l_there = l + dl
    before, after = l * graph.swayed(), l_there * there.swayed()
    changes, others = [], []
    for (one, other), noise in zip(signs, noises, strict=True):
        beside = given.moved_to(x + dx + noise)
        rounding = eps * (one * (g.abs() + l.abs()) + other * pushed.abs())
        change = given.solve(beside.transposed(l) - pushed + rounding, transposed=True)[0]
        changes.append(change)
        others.append((l_there + change) * beside.swayed() - after)
    of_l = (norm(dl) + _spread(changes)) / norm(l_there)
    of_all = (norm(after - before) + _spread(others)) / norm(after)
    gain = (norm(dx) / norm(r)).nan_to_num(1).clamp(min=1)
    error = torch.maximum(of_l, of_all.nan_to_num(0)) + gain * carried(x) * state_error + eps

    known = solved & adjoint_solved
    state_error, error = (torch.where(known & e.isfinite(), e, torch.inf) for e in (state_error, error))
    return state_error, error.masked_fill((g == 0).all(-1), 0)


def _signs(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pairs of random signs (n,), the same for all samples, so that none depends on its batch."""
    random = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (_NOISES, 2, x.shape[-1]), generator=random) * 2 - 1
    return [(one, other) for one, other in signs.to(x)]


def _spread(changes: list[Tensor]) -> Tensor:
    return torch.stack([norm(each) for each in changes]).square().mean(0).sqrt()


def _singular_values(given: _Samples) -> tuple[Tensor, ...]:
    graph, like = given.graph, given.g
    if given.factored and like.numel():
        J = graph.equation.jacobian(graph.x.detach())
        values = torch.linalg.svdvals(torch.eye(J.shape[-1]).to(J) - J.nan_to_num(torch.inf))
        return values[:, -1], values[:, 0]
    maps = Maps(
        A=lambda v: v - graph.moved(v),
        transposed=lambda v: v - graph.transposed(v),
        inverse=lambda v: given.solve(v)[0],
        inverse_transposed=lambda v: given.solve(v, transposed=True)[0],
    )
    return extreme_values(maps, like, _STEPS)


def _reward_change(given: _Samples) -> tuple[Tensor, ...]:
    graph = given.graph
    change = (given.l * graph.equation.rows((graph.y - graph.x).detach())).sum(-1)
    return (torch.where(change.isnan(), torch.inf, change),)
