"""The adjoint l = Jᵀl + g and the tangent v = Jv + c of x = fn(x, *inputs), as a solver sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from retrograde.equation_graph import Graph
from retrograde.solvers import Problem
from retrograde.solvers.base import Linear
from retrograde.solvers.factors import Factors


def graph_problem(
    graph: Graph, g: Tensor, factors: Factors, rows: Tensor, places: Tensor, tangent: bool = False
) -> Problem:
    """l = Jᵀl + g, or for a `tangent` l = Jl + g, of samples that are `rows` of the batch, at `places` in the graph.

    Args:
        g: (samples, n).
        factors: those of I - J.
    """
    held = len(graph.equation.rows(graph.x))

    def step(l: Tensor) -> Tensor:
        product = graph.moved if tangent else graph.transposed
        if len(places) == held:
            return product(l) + g
        padded = l.new_zeros(held, l.shape[1]).index_copy(0, places, l)
        return product(padded)[places] + g

    def take(some: Tensor) -> Problem:
        there = places[some]
        if 2 * len(there) > held:
            return graph_problem(graph, g[some], factors, rows[some], there, tangent)
        here = torch.arange(len(there), device=there.device)  # a graph of half the size repays its making
        return graph_problem(graph.take(there), g[some], factors, rows[some], here, tangent)

    def factorise(l: Tensor, anew: bool = False) -> Linear:
        wanted = torch.arange(len(rows), device=rows.device) if anew else factors.missing(rows)
        if len(wanted):
            some = places[wanted]
            factors.put(rows[wanted], lambda: _one_minus(graph.equation.take(some).jacobian(graph.x.detach()[some])))
        return lambda r: factors.solve(rows, r, transposed=not tangent)

    return Problem(step=step, take=take, factorise=factorise, affine=True)


def _one_minus(J: Tensor) -> Tensor:
    return torch.eye(J.shape[-1], dtype=J.dtype, device=J.device) - J
