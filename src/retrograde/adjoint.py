"""The adjoint s = dR/db: solved for at a steady state, substituted back along a trajectory.

Either way it is one equation, s = D (Wᵀ s_next + dR/dx). `autograd` hands it to PyTorch; here it is taken by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retrograde import kernels
from retrograde.checks import broadcast_shapes, check_finite, check_last_axis, check_like
from retrograde.connectivity import Dense, Operator
from retrograde.recurrence import Recurrence, adjoint_step
from retrograde.result import Gradients, Receipt, Status, convergence_error
from retrograde.solvers import Cascade, Direct, FixedPoint, Krylov, Problem, Solver, relative_residual
from retrograde.solvers.factors import Factors

if TYPE_CHECKING:
    from retrograde.network import Network

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
    if is_small(W):
        return Cascade(FixedPoint(max_steps=100), Direct())
    return Cascade(FixedPoint(max_steps=100), Krylov(), FixedPoint())


def one_minus_DW(W: Operator, D: Tensor) -> Tensor:
    """I - DW for each sample of D (samples, n): (samples, n, n)."""
    return torch.eye(D.shape[-1], dtype=D.dtype, device=D.device) - D[..., :, None] * W.dense()


# --- at a steady state: (D⁻¹ - Wᵀ) s = g, multiplied by D


def solve_adjoint(W: Operator, D: Tensor, g: Tensor, solver: Solver, factors: Factors) -> tuple[Tensor, Receipt]:
    """s = D (Wᵀs + g) for each sample of D and g, (samples, n); `factors` are those of I - DW known so far.

    Each g is first scaled to about 1 by a power of two, and s scaled back: no tolerance depends on the reward's size.
    """
    size = g.abs().amax(-1)
    scale = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - 1)[:, None]
    g = g / scale
    problem = _adjoint_problem(W, D, g, factors, torch.arange(len(g), device=g.device))
    solution = solver.solve(problem, D * g)

    # No reward, no gradient, whatever became of the state.
    none = size == 0
    s = torch.where(none[:, None], 0, solution.value)
    status = torch.where(none, int(Status.CONVERGED), solution.status)
    residual = torch.where(none, 0, solution.residual)
    drive = torch.linalg.vector_norm(D * g, dim=-1)
    conditioning = torch.where(drive == 0, 1, torch.linalg.vector_norm(s, dim=-1) / drive)
    return s * scale, Receipt(repr(solver), status, residual, solution.steps, None, conditioning)


def _adjoint_problem(W: Operator, D: Tensor, g: Tensor, factors: Factors, rows: Tensor) -> Problem:
    """What a solver sees: s = D (Wᵀs + g), for the samples `rows` of the batch."""

    def factorise(s: Tensor, anew: bool = False) -> Callable[[Tensor], Tensor]:
        wanted = torch.arange(len(rows), device=rows.device) if anew else factors.missing(rows)
        if len(wanted):
            factors.put(rows[wanted], one_minus_DW(W, D[wanted]))
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
    wants_dW: bool = True,
) -> Gradients:
    """Recurrent backpropagation at x (..., n): s, dR/dW = s xᵀ, and a receipt."""
    W = net.W.bind()
    check_finite("dR/dx", g)
    n, batch = x.shape[-1], x.shape[:-1]
    D = net.slopes(x, x, b).reshape(-1, n)  # a steady state is its own step before
    adjoint = adjoint or default_adjoint(W)
    s, receipt = solve_adjoint(W, D, g.reshape(-1, n), adjoint, factors or Factors(len(D), n))
    s = s.reshape(x.shape)
    receipt = replace(
        receipt,
        status=receipt.status.reshape(batch),
        residual=receipt.residual.reshape(batch),
        steps=receipt.steps.reshape(batch),
        conditioning=receipt.conditioning.reshape(batch),
        state_residual=None if b is None else relative_residual(net.step(x, b), x),
    )
    gradients = Gradients(s, W.outer(s, x) if wants_dW else (), s.sum_to_size(n), receipt)
    if throw and not receipt.converged.all():
        advice = (
            "I - DW may be nearly singular there, as at a bifurcation; try adjoint=Direct() or Krylov(restart=100)."
        )
        raise convergence_error("adjoint of the steady state", receipt, adjoint.tolerance(x.dtype), advice, gradients)
    return gradients


# --- along a trajectory: the same equation, substituted back


def substitute_back(W: Operator, D: Tensor, g: Tensor, leak: float | Tensor | None) -> tuple[Tensor, Tensor | None]:
    """s(t) = D(t) (Wᵀ s(t+1) + g(t)), s(T+1) = 0, for t = T..1; D, g and s are (T, ..., n).

    With a leak a: l(t) = Wᵀ s(t+1) + g(t) + (1-a) l(t+1), and s(t) = a D(t) l(t).

    Returns:
        s, and with a leak l = dR/dx(t), the reward's whole dependence on x(t); None without.
    """
    s = torch.empty_like(D)
    s_next = l_next = torch.zeros_like(D[0])
    if leak is None:
        for t in reversed(range(len(D))):
            s[t] = s_next = adjoint_step(W, D[t], s_next, g[t])
        return s, None
    l = torch.empty_like(D)
    for t in reversed(range(len(D))):
        l[t] = l_next = W.T @ s_next + g[t] + (1 - leak) * l_next
        s[t] = s_next = leak * D[t] * l_next
    return s, l


def trajectory_gradients(
    net: Recurrence, x: Tensor, x0: Tensor, b: Tensor | None, g: Tensor, wants_dW: bool = True
) -> Gradients:
    """Backpropagation through time along x (T, ..., n): s(t), and dR/dW = Σ s(t) x(t-1)ᵀ as one product."""
    W = net.W.bind()
    check_finite("dR/dx", g)
    if net.leak is None and net.f.slope_from_output:
        swept = kernels.substitute_back(W, net.f, x, g, None) or substitute_back(W, net.f.slope(x), g, None)
    else:
        D = net.slopes(x, torch.cat([x0[None], x[:-1]]), b)
        swept = kernels.substitute_back(W, None, D, g, net.leak) or substitute_back(W, D, g, net.leak)
    s, l = swept
    dx0 = W.T @ s[0]
    dleak = None
    if l is not None and net.leak is not None:
        dx0 = dx0 + (1 - net.leak) * l[0]
        # x(t) = x(t-1) + a (y(t) - x(t-1)), so the reward grows by l(t) (y(t) - x(t-1)) with a.
        moved = torch.cat([(x[0] - x0)[None], x[1:] - x[:-1]])
        dleak = (l * moved / net.leak).sum_to_size(torch.as_tensor(net.leak).shape)
    # One product over time and batch. What x(0) adds is taken apart from it, which spares a copy of all of x.
    dW = tuple(a + b for a, b in zip(W.outer(s[0], x0), W.outer(s[1:], x[:-1]), strict=True)) if wants_dW else ()
    return Gradients(s, dW, s.sum_to_size(x.shape[-1]), dx0=dx0, dleak=dleak)


# --- by hand


def recurrent_backpropagation(
    net: Network | Recurrence,
    x: Tensor,
    dR_dx: Tensor,
    *,
    input: Tensor | None = None,
    adjoint: Solver | None = None,
    throw: bool = True,
) -> Gradients:
    """Recurrent backpropagation by hand: (D⁻¹ - Wᵀ) s = dR/dx, dR/db = s, dR/dW = s xᵀ, at a steady state x.

    Args:
        net: a Network or a Recurrence.
        x: (..., n), steady states of it.
        dR_dx: (..., n), the gradient of any reward.
        input: (..., n), what was added to the bias. Only a `Pointwise` nonlinearity needs it; with it, the receipt also
            tells how steady x is.
        adjoint: the solver of the adjoint; None for the default.
        throw: whether an adjoint that does not converge raises.

    Returns:
        ``.s`` (..., n); ``.dW`` (one tensor for each of ``net.W.weights``) and ``.db`` (n,), summed over the batch;
        ``.receipt``.

    Raises:
        ValueError, TypeError: x or dR_dx of the wrong shape or dtype, or not finite.
        ConvergenceError: the adjoint did not converge.

    References:
        H. S. Seung, "Backprop for recurrent networks"; F. J. Pineda, Phys. Rev. Lett. 59 (1987); L. B. Almeida, ICNN
        (1987).

    >>> import retrograde as rg
    >>> net = rg.Network(torch.tensor([[0.0, 0.5], [-0.5, 0.0]]), f="identity")
    >>> x = net.steady_state(torch.tensor([1.0, 0.0])).x.detach()
    >>> rg.recurrent_backpropagation(net, x, torch.tensor([1.0, 0.0])).s  # the first column of (I - Wᵀ)⁻¹
    tensor([0.8000, 0.4000])
    """
    equations = replace(_equations(net), leak=None)  # steady states do not depend on it
    _check_states(equations, "x", x)
    _check_states(equations, "dR_dx", dR_dx, x.shape)
    if adjoint is not None and not isinstance(adjoint, Solver):
        raise TypeError(f"adjoint: expected a solver such as Direct(), got {type(adjoint).__name__}")
    b = None
    if input is not None:
        _check_states(equations, "input", input)
        if broadcast_shapes("input and x", input=input.shape, x=x.shape) != x.shape:
            raise ValueError(f"input: expected a shape that broadcasts to {tuple(x.shape)}, got {tuple(input.shape)}")
        b = _total(net, input)
    if b is None and not equations.f.slope_from_output:
        raise ValueError(
            f"input: expected the input that x is steady for, as {equations.f} has no slope in terms of x alone"
        )
    with torch.no_grad():
        return steady_gradients(equations, x, b, dR_dx, adjoint=adjoint, throw=throw)


def backpropagation_through_time(
    net: Network | Recurrence, x: Tensor, x0: Tensor, dR_dx: Tensor, *, input: Tensor | None = None
) -> Gradients:
    """Backpropagation through time by hand: s(t) = D(t) (Wᵀ s(t+1) + dR/dx(t)), dR/dW = Σ s(t) x(t-1)ᵀ.

    Args:
        net: a Network or a Recurrence.
        x: (T, ..., n), a trajectory x(1), ..., x(T) of it.
        x0: (..., n), x(0).
        dR_dx: (T, ..., n), the gradient of any reward.
        input: what was added to the bias, (..., n) or (T, ..., n). A `Pointwise` nonlinearity needs it; with a small
            leak it makes the slopes more exact.

    Returns:
        ``.s`` (T, ..., n), which is dR/db(t); ``.dW`` and ``.db`` (n,), summed over time and batch; ``.dx0`` (..., n);
        with a leak, ``.dleak``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape or dtype, or not finite.

    References:
        H. S. Seung, "Backprop for recurrent networks"; P. J. Werbos, Proc. IEEE 78 (1990).
    """
    equations = _equations(net)
    _check_states(equations, "x", x)
    if x.ndim < 2 or not len(x):
        raise ValueError(
            f"x: expected shape (T, ..., {equations.W.shape[0]}) with T of at least 1, got {tuple(x.shape)}"
        )
    _check_states(equations, "x0", x0)
    x0 = x0.expand(broadcast_shapes("x and x0", x=x.shape[1:], x0=x0.shape))
    _check_states(equations, "x0", x0, x.shape[1:])
    _check_states(equations, "dR_dx", dR_dx, x.shape)
    b = None
    if input is not None:
        _check_states(equations, "input", input)
        b = _total(net, _over_time(input, x.shape))
    if b is None and not equations.f.slope_from_output:
        raise ValueError(
            f"input: expected the input of the trajectory, as {equations.f} has no slope in terms of x alone"
        )
    with torch.no_grad():
        return trajectory_gradients(equations, x, x0, b, dR_dx)


def _equations(net: Network | Recurrence) -> Recurrence:
    if isinstance(net, Recurrence):
        return replace(net, W=net.W.bind())
    if not isinstance(getattr(net, "recurrence", None), Recurrence):
        raise TypeError(f"net: expected a Network or a Recurrence, got {type(net).__name__}")
    return net.recurrence


def _total(net: Network | Recurrence, input: Tensor) -> Tensor:
    return input if isinstance(net, Recurrence) else net.total(input)


def _over_time(input: Tensor, shape: torch.Size) -> Tensor:
    """The input of a trajectory x of that shape, (T, ..., n), made to broadcast against it.

    An input of fewer axes than x is one for all times, or has time first; ValueError where it could be both or neither.
    """
    (T, *batch), lead = shape[:-1], input.shape[:-1]

    def fits(lead: torch.Size, whole: list[int]) -> bool:
        return len(lead) <= len(whole) and all(
            a in (1, b) for a, b in zip(reversed(lead), reversed(whole), strict=False)
        )

    if input.ndim == len(shape) and fits(lead, [T, *batch]):
        return input
    constant, timed = fits(lead, batch), len(lead) > 0 and lead[0] == T and fits(lead[1:], batch)
    if constant == timed:
        told = "has the same T as batch: give it an axis for each of x's" if constant else "fits neither"
        raise ValueError(
            f"input: expected (..., n), or (T, ..., n), for x of shape {tuple(shape)}; {tuple(input.shape)} {told}"
        )
    return input if constant else input.reshape(T, *(1,) * (len(batch) - len(lead) + 1), *input.shape[1:])


def _check_states(net: Recurrence, name: str, x: Tensor, shape: torch.Size | None = None) -> None:
    W = net.W.bind()
    check_finite(name, check_last_axis(name, check_like(name, x, W.like), W.shape[0]))
    if shape is not None and x.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(x.shape)}")
