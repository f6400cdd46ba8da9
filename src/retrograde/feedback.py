"""The equations of a steady state as a solver sees them: x = f(Wx + b), s = D (Wᵀs + g) and v = D (Wv + c)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from retrograde import kernels
from retrograde.blocks import Blocks, blocks_of
from retrograde.connectivity import Operator
from retrograde.defaults import is_factorable
from retrograde.nonlinearity import Identity
from retrograde.recurrence import Recurrence, adjoint_step
from retrograde.solvers import Problem, Solver
from retrograde.solvers.factors import Factors
from retrograde.structure import core, invert, invert_adjoint


def state_problem(
    net: Recurrence, b: Tensor, factors: Factors, rows: Tensor | None, gain: Tensor | None = None
) -> Problem:
    """What a solver sees: x = f(Wx + b), for the samples `rows` of the batch; or, at a gain t, x = f(t Wx + b)."""
    W = net.W.bind()

    def drive(x: Tensor) -> Tensor:
        return W @ x + b if gain is None else gain * (W @ x) + b

    def slopes(x: Tensor) -> Tensor:
        D = net.f.slope_at(drive(x))
        return D if gain is None else gain * D

    def tangent(x: Tensor) -> Callable[[Tensor], Tensor]:
        D = slopes(x)
        return lambda v: D * (W @ v)

    def factorise(x: Tensor, anew: bool = False, shift: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        D, scale = slopes(x), 1 if shift is None else 1 + shift
        # (1 + shift) I - DW is (1 + shift) times I - DW with other slopes.
        factors.put(rows, lambda: core(W, D / scale))
        return lambda r: invert(W, D / scale, r / scale, partial(factors.solve, rows))

    blocks = blocks_of(W) if gain is None else None
    return Problem(
        step=lambda x: net.f(drive(x)),
        take=lambda some: state_problem(
            net, b[some], factors, some if rows is None else rows[some], None if gain is None else gain[some]
        ),
        factorise=factorise,
        affine=isinstance(net.f, Identity),
        iterate=kernels.fixed_point(W, net.f, b) if gain is None else None,
        accelerate=kernels.anderson(W, net.f, b) if gain is None else None,
        tangent=tangent,
        at_gain=lambda t: state_problem(net, b, factors, rows, t),
        factorable=is_factorable(W),
        substitute=None if blocks is None else partial(_substitute_state, net, b, blocks),
    )


def adjoint_problem(W: Operator, D: Tensor, g: Tensor, factors: Factors, rows: Tensor | None) -> Problem:
    """What a solver sees: s = D (Wᵀs + g), for the samples `rows` of the batch, None for all."""

    def factorise(s: Tensor, anew: bool = False) -> Callable[[Tensor], Tensor]:
        wanted = torch.arange(len(D), device=D.device) if anew else factors.missing(rows)
        if len(wanted):
            factors.put(wanted if rows is None else rows[wanted], lambda: core(W, D[wanted]))
        return lambda r: invert_adjoint(W, D, r, partial(factors.solve, rows))

    blocks, W = blocks_of(W), W.held()
    return Problem(
        step=lambda s: adjoint_step(W, D, s, g),
        take=lambda some: adjoint_problem(W, D[some], g[some], factors, some if rows is None else rows[some]),
        factorise=factorise,
        iterate=kernels.adjoint_fixed_point(W, D, g),
        accelerate=kernels.adjoint_anderson(W, D, g),
        tangent=lambda s: lambda v: D * (W.T @ v),
        affine=True,
        substitute=None if blocks is None else partial(_substitute, W, D, g, blocks, True),
    )


def tangent_problem(W: Operator, D: Tensor, c: Tensor, factors: Factors, rows: Tensor | None) -> Problem:
    """Likewise v = D (Wv + c): how a steady state moves with its input."""

    def factorise(v: Tensor, anew: bool = False) -> Callable[[Tensor], Tensor]:
        wanted = torch.arange(len(D), device=D.device) if anew else factors.missing(rows)
        if len(wanted):
            factors.put(wanted if rows is None else rows[wanted], lambda: core(W, D[wanted]))
        return lambda r: invert(W, D, r, partial(factors.solve, rows))

    blocks = blocks_of(W)
    return Problem(
        step=lambda v: D * (W @ v + c),
        take=lambda some: tangent_problem(W, D[some], c[some], factors, some if rows is None else rows[some]),
        factorise=factorise,
        iterate=kernels.tangent_fixed_point(W, D, c),
        accelerate=kernels.tangent_anderson(W, D, c),
        tangent=lambda v: lambda w: D * (W @ w),
        affine=True,
        substitute=None if blocks is None else partial(_substitute, W, D, c, blocks, False),
    )


def _substitute_state(net: Recurrence, b: Tensor, blocks: Blocks, x: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
    """x = f(Wx + b), level by level upwards, each from its part of x."""
    none = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def settle(neurons: Tensor, W: Operator | None, drive: Tensor) -> tuple[Tensor, Tensor]:
        if W is None:
            return net.f(drive), none
        part = x[:, neurons]
        found = solver.solve(state_problem(replace(net, W=W), drive.T.contiguous(), Factors(part), None), part)
        return found.value.T, found.steps

    return blocks.substitute(net.W.bind(), b, settle)


def _substitute(
    W: Operator, D: Tensor, c: Tensor, blocks: Blocks, transposed: bool, z: Tensor, solver: Solver
) -> tuple[Tensor, Tensor]:
    """s = D (Wᵀs + c), level by level downwards, or v = D (Wv + c), upwards."""
    none = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    part_of = adjoint_problem if transposed else tangent_problem

    def settle(neurons: Tensor, W: Operator | None, drive: Tensor) -> tuple[Tensor, Tensor]:
        slopes = D[:, neurons]
        if W is None:
            return slopes.T * drive, none
        problem = part_of(W, slopes, drive.T.contiguous(), Factors(slopes), None)
        found = solver.solve(problem, z[:, neurons])
        return found.value.T, found.steps

    return blocks.substitute(W, c, settle, transposed)
