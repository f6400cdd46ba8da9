"""The adjoint of a steady state, s = D (Wᵀs + dR/dx): solved for.

Along a trajectory the same equation is substituted back, in `through_time`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from retrograde import kernels
from retrograde.accuracy import Evidence
from retrograde.checks import check_finite
from retrograde.connectivity import Operator
from retrograde.defaults import default_adjoint, is_small
from retrograde.feedback import adjoint_problem, tangent_problem
from retrograde.receipt import Receipt
from retrograde.recurrence import Recurrence
from retrograde.result import EVERYTHING, Gradients, Wants, convergence_error
from retrograde.scaling import judged, largest_conditioning, power_of_two
from retrograde.solvers import Solution, Solver, relative_residual
from retrograde.solvers.at_once import Begun, begin, go_on
from retrograde.solvers.factors import Factors
from retrograde.structure import active_part, factor_size, is_low_rank
from retrograde.targeting import for_the_adjoint, refine, told_short
from retrograde.warm import Visit

# Between these, g, Dg and so s meet no limit of float32, nor of a tolerance; powers of two then change no bit of s.
_NEAR_1 = 2.0**-10, 2.0**10


def solve_adjoint(
    W: Operator,
    D: Tensor,
    g: Tensor,
    solver: Solver,
    factors: Factors,
    rows: Tensor | None = None,
    tangent: bool = False,
    warm: Visit | None = None,
    begun: Begun | None = None,
) -> tuple[Solution, Tensor]:
    """s = D (Wᵀs + g) for each sample of D and g, (samples, n), and |s| / |Dg|; `factors` are those of I - DW so far.

    `rows` are the samples' numbers there, None for 0, 1, 2, .... For a `tangent` W stands in the place of Wᵀ.

    Where one is far from 1, each g is scaled to about 1 by a power of two, and s scaled back: no tolerance depends on
    the reward's size.
    """
    size, start = g.abs().amax(-1), D * g
    drive = torch.linalg.vector_norm(start, dim=-1)
    least, most = map(float, torch.aminmax(torch.cat([size, drive]))) if len(g) else (1.0, 1.0)
    far = g.dtype == torch.float16 or not _NEAR_1[0] <= least <= most <= _NEAR_1[1]
    if far:
        near = (torch.minimum(size, drive) >= _NEAR_1[0]) & (torch.maximum(size, drive) <= _NEAR_1[1])
        scale = torch.where(near[:, None] & (g.dtype != torch.float16), 1, power_of_two(size))
        g = g / scale
        start = D * g
        drive = torch.linalg.vector_norm(start, dim=-1)
    problem = (tangent_problem if tangent else adjoint_problem)(W, D, g, factors, rows)
    if warm is None:
        solution = go_on(solver, problem, start, begun)
    else:
        solution = warm.solve_adjoint(solver, problem, start, torch.linalg.vector_norm(g, dim=-1, keepdim=True))

    conditioning = torch.linalg.vector_norm(solution.value, dim=-1) / drive
    if far or (len(g) and not float(conditioning.max()) <= largest_conditioning(g.dtype)):
        solution, conditioning = judged(solution, size, drive)
    return (replace(solution, value=solution.value * scale) if far else solution), conditioning


def receipt_of(solver: Solver, found: Solution, conditioning: Tensor, batch: torch.Size, **told: Any) -> Receipt:
    """The receipt of what a solver found, in the shape of its batch."""
    status, residual, steps, attempt = found.status, found.residual, found.steps, found.method
    if len(batch) != 1:
        status, residual, steps, conditioning = (z.reshape(batch) for z in (status, residual, steps, conditioning))
        attempt = None if attempt is None else attempt.reshape(batch)
    return Receipt(solver, status, residual, steps, conditioning=conditioning, attempt=attempt, **told)


def on_its_side(net: Recurrence, x: Tensor, b: Tensor) -> Tensor:
    """x, but that entries which are off its kink by no more than rounding, or a damped step, are put on their side.

    A ReLU that is off must be 0, and not 1e-9, of which the slope would be 1.
    """
    if not net.f.kinked:
        return x
    y = net.step(x, b)
    return torch.where(net.f.slope(y) != net.f.slope(x), y, x)


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
    warm: Visit | None = None,
    grad_rtol: float | None = None,
    rounded: torch.dtype | None = None,
    **about_state: Any,
) -> Gradients:
    """Recurrent backpropagation at x (..., n): s, dR/dW = s xᵀ, and a receipt.

    How steady x is, `state_residual` (...,), goes into the receipt; where it is not known it is found from b.
    `grad_rtol` is the relative error that s xᵀ may have; x may have been `rounded` to a dtype that is not its own. What
    else is known `about_state` goes into the receipt too.
    """
    W = net.W.bind()
    n, batch = x.shape[-1], x.shape[:-1]
    D, g_rows = net.slopes(x, x, b), g  # a steady state is its own step before
    if x.ndim != 2:
        D, g_rows = D.reshape(-1, n), g.reshape(-1, n)
    if state_residual is None and b is not None:
        state_residual = relative_residual(net.step(x, b), x)
    part = active_part(W, D) if adjoint is None else None  # a solver that was asked for gets all of it
    structure = f"W of rank {factor_size(W)}" if adjoint is None and is_low_rank(W) else ""
    adjoint = adjoint or default_adjoint(W if part is None else part[1])
    if grad_rtol is not None:
        adjoint = for_the_adjoint(adjoint, grad_rtol, x.dtype)
    begun = dW = None
    if part is None and warm is None:
        x_rows = x.reshape(-1, n) if wants.dW and grad_rtol is None else None
        begun = begin(adjoint, partial(kernels.whole_adjoint, W, D, g_rows, x_rows), x.dtype)
    if begun is None:
        check_finite("dR/dx", g)
    done = begun if begun is not None and begun.is_all else None
    if done is not None:
        found, conditioning, dW = done.solution, done.whole.amplified, done.whole.dW
    elif part is None:
        factors = factors or Factors(D, len(D), factor_size(W))
        exact = W if grad_rtol is not None else kernels.by_rows(W)
        found, conditioning = solve_adjoint(exact, D, g_rows, adjoint, factors, warm=warm, begun=begun)
    else:
        neurons, W_part = part
        D_part, g_part = D[:, neurons], g_rows[:, neurons]
        warm = None if warm is None else warm.among(neurons, n)
        found, conditioning = solve_adjoint(W_part, D_part, g_part, adjoint, Factors(D_part), warm=warm)
        found = replace(found, value=torch.zeros_like(D).index_copy_(1, neurons, found.value))
        structure = f"{len(neurons)} of {n} neurons"
    s = found.value if x.ndim == 2 else found.value.reshape(x.shape)
    told = {"state_residual": state_residual, "evidence": Evidence(net, x, b, g, s, is_small(W)), **about_state}
    receipt = receipt_of(adjoint, found, conditioning, batch, structure=structure, **told)
    if grad_rtol is not None:
        s, receipt = refine(receipt, grad_rtol)
    if done is None and not math.isfinite(x.sum()):  # of a diverged sample that the reward leaves out
        x = torch.where((s != 0).any(-1, keepdim=True), x, 0)
    if not wants.dW:
        dW = ()
    elif dW is None or grad_rtol is not None:
        dW = kernels.outer(W, s, x)
    gradients = Gradients(s, dW, s.sum_to_size(n) if wants.db else None, receipt)
    if throw and (done is None or grad_rtol is not None) and receipt.any_failed:
        advice = "I - DW may be nearly singular there, as at a bifurcation; try adjoint=Direct() or a longer Krylov()."
        if grad_rtol is not None:
            advice = f"{told_short(receipt, grad_rtol, rounded or x.dtype)} {advice}"
        raise convergence_error("adjoint of the steady state", receipt, adjoint.tolerance(x.dtype), advice, gradients)
    return gradients
