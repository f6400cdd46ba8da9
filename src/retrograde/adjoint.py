"""The adjoint of a steady state, s = D (Wᵀs + dR/dx): solved for.

Along a trajectory the same equation is substituted back, in `through_time`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from retrograde import kernels
from retrograde.accuracy import Evidence
from retrograde.checks import check_finite
from retrograde.connectivity import Dense, Operator
from retrograde.receipt import Receipt
from retrograde.recurrence import Recurrence, adjoint_step
from retrograde.result import EVERYTHING, Gradients, Status, Wants, convergence_error
from retrograde.solvers import Cascade, Direct, FixedPoint, Krylov, Problem, Solver, relative_residual
from retrograde.solvers.factors import Factors
from retrograde.targeting import FIRST, refine, with_rtol

# Up to this many neurons a full W is factored where iteration fails.
SMALL = 1024


def is_small(W: Operator) -> bool:
    """Whether the default solvers may factor I - DW: never for a W that is not a full matrix anyway."""
    return isinstance(W.structure, Dense) and W.shape[0] <= SMALL


def default_adjoint(W: Operator) -> Solver:
    """The network's own dynamics first; where they do not converge, a factorisation for a small full W.

    For any other W, GMRES, and then the dynamics again: what passes along a chain of neurons arrives after as many
    steps, which a restarted GMRES may not see.
    """
    return _SETTLE_OR_FACTOR if is_small(W) else _SETTLE_OR_SEARCH


_SETTLE_OR_FACTOR = Cascade(FixedPoint(max_steps=100), Direct())
_SETTLE_OR_SEARCH = Cascade(FixedPoint(max_steps=100), Krylov(), FixedPoint())


def one_minus_DW(W: Operator, D: Tensor) -> Tensor:
    """I - DW for each sample of D (samples, n): (samples, n, n)."""
    return torch.eye(D.shape[-1], dtype=D.dtype, device=D.device) - D[..., :, None] * W.dense()


def solve_adjoint(W: Operator, D: Tensor, g: Tensor, solver: Solver, factors: Factors) -> tuple[Tensor, Receipt]:
    """s = D (Wᵀs + g) for each sample of D and g, (samples, n); `factors` are those of I - DW known so far.

    Each g is first scaled to about 1 by a power of two, and s scaled back: no tolerance depends on the reward's size.
    """
    size = g.abs().amax(-1)
    scale = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - 1)[:, None]
    g = g / scale
    problem = _adjoint_problem(W, D, g, factors, torch.arange(len(g), device=g.device))
    solution = solver.solve(problem, D * g)

    s, status, residual = solution.value, solution.status, solution.residual
    none = size == 0
    if none.any():  # no reward, no gradient, whatever became of the state
        s = torch.where(none[:, None], 0, s)
        status = torch.where(none, int(Status.CONVERGED), status)
        residual = torch.where(none, 0, residual)
    drive = torch.linalg.vector_norm(D * g, dim=-1)
    conditioning = torch.where(none | (drive == 0), 1, torch.linalg.vector_norm(s, dim=-1) / drive)
    # Where s is so large beside what drives it, rounding is amplified to the size of s, and no residual shows it.
    singular = conditioning > 0.1 / torch.finfo(g.dtype).eps
    if singular.any():
        status = torch.where(singular, int(Status.SINGULAR), status)
    return s * scale, Receipt(solver, status, residual, solution.steps, None, conditioning)


def _adjoint_problem(W: Operator, D: Tensor, g: Tensor, factors: Factors, rows: Tensor) -> Problem:
    """What a solver sees: s = D (Wᵀs + g), for the samples `rows` of the batch."""

    def factorise(s: Tensor, anew: bool = False) -> Callable[[Tensor], Tensor]:
        wanted = torch.arange(len(rows), device=rows.device) if anew else factors.missing(rows)
        if len(wanted):
            factors.put(rows[wanted], lambda: one_minus_DW(W, D[wanted]))
        # (I - DWᵀ)⁻¹ r = r + D (I - WᵀD)⁻¹ Wᵀr, and I - WᵀD is the transpose of the forward solve's I - DW.
        return lambda r: r + D * factors.solve(rows, W.T @ r, transposed=True)

    return Problem(
        step=lambda s: adjoint_step(W, D, s, g),
        take=lambda some: _adjoint_problem(W, D[some], g[some], factors, rows[some]),
        factorise=factorise,
        iterate=kernels.adjoint_fixed_point(W, D, g),
        affine=True,
    )


def steady_gradients(
    net: Recurrence,
    x: Tensor,
    b: Tensor | None,
    g: Tensor,
    adjoint: Solver | None = None,
    factors: Factors | None = None,
    throw: bool = True,
    wants: Wants = EVERYTHING,
    state_residual: Tensor | None = None,
    grad_rtol: float | None = None,
) -> Gradients:
    """Recurrent backpropagation at x (..., n): s, dR/dW = s xᵀ, and a receipt.

    How steady x is, `state_residual` (...,), goes into the receipt; where it is not known it is found from b.
    `grad_rtol` is the relative error that s xᵀ may have.
    """
    W = net.W.bind()
    check_finite("dR/dx", g)
    n, batch = x.shape[-1], x.shape[:-1]
    D = net.slopes(x, x, b).reshape(-1, n)  # a steady state is its own step before
    adjoint = adjoint or default_adjoint(W)
    if grad_rtol is not None:
        adjoint = with_rtol(adjoint, FIRST * grad_rtol, x.dtype)
    if state_residual is None and b is not None:
        state_residual = relative_residual(net.step(x, b), x)
    s, receipt = solve_adjoint(W, D, g.reshape(-1, n), adjoint, factors or Factors(D))
    s = s.reshape(x.shape)
    receipt = replace(
        receipt,
        status=receipt.status.reshape(batch),
        residual=receipt.residual.reshape(batch),
        steps=receipt.steps.reshape(batch),
        conditioning=receipt.conditioning.reshape(batch),
        state_residual=state_residual,
        evidence=Evidence(net, x, b, g, s, is_small(W)),
    )
    if grad_rtol is not None:
        s, receipt = refine(receipt, grad_rtol)
    gradients = Gradients(
        s, kernels.outer(W, s, x) if wants.dW else (), s.sum_to_size(n) if wants.db else None, receipt
    )
    if throw and not receipt.converged.all():
        advice = (
            "I - DW may be nearly singular there, as at a bifurcation; try adjoint=Direct() or Krylov(restart=100)."
        )
        if grad_rtol is not None:
            error = float(receipt.error_estimate.max())
            advice = f"The estimated error of the gradient is {error:.1e}, above grad_rtol={grad_rtol:g}. {advice}"
        raise convergence_error("adjoint of the steady state", receipt, adjoint.tolerance(x.dtype), advice, gradients)
    return gradients
