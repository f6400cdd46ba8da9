"""One face for all that steps: a network, a torch cell or a function, as x ← F(x) with its Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.checks import check_finite, check_floating, check_last_axis, check_like
from retrograde.defaults import is_small
from retrograde.recurrence import Recurrence
from retrograde.solvers import Krylov, Problem

Function = Callable[[Tensor], Tensor]

# Up to this many neurons any Jacobian is formed in full; beyond, only that of a full W or a cell, up to LARGEST.
TINY = 64
LARGEST = 1024
# Numbers that a batch of Jacobians may hold at a time.
_ROOM = 2**26


@dataclass(frozen=True, eq=False)
class Cell:
    """x ← F(x), one sample a row, whose steady states are looked for; and J = dF/dx.

    Attributes:
        step: F, (samples, n) -> (samples, n).
        tangent: x -> (v -> Jv), sample by sample.
        full: x -> J, (samples, n, n); None where J is too large and known by its products alone.
        like: (n,), a vector of its dtype and device.
        leak: a, if its own dynamics are x ← (1-a) x + a F(x).
        draw: (count, generator) -> (count, n), random states to start from.
        input: what drives it; None for a function.
        of_input: (x (samples, n)) -> dF/dinput, (samples, n, inputs); None for a function.
        bound: no steady state has an entry beyond it. Where a gate saturates, rounding would have them anywhere.
    """

    step: Function
    tangent: Callable[[Tensor], Function]
    full: Function | None
    like: Tensor
    draw: Callable[[int, torch.Generator], Tensor]
    leak: float | Tensor | None = None
    input: Tensor | None = None
    of_input: Function | None = None
    bound: float = torch.inf

    def advance(self, x: Tensor) -> Tensor:
        """Its own dynamics: F, or with a leak a part of the way."""
        y = self.step(x)
        return y if self.leak is None else x + self.leak * (y - x)

    def own(self, J: Tensor) -> Tensor:
        """The Jacobian of its own dynamics, (1-a) I + a J, for J (..., n, n)."""
        if self.leak is None:
            return J
        a = torch.as_tensor(self.leak, dtype=J.dtype, device=J.device).expand(J.shape[-1])
        return torch.diag(1 - a) + a[:, None] * J

    def own_product(self, x: Tensor) -> Function:
        """v -> ((1-a) I + a J) v."""
        J, a = self.tangent(x), self.leak
        return J if a is None else lambda v: v + a * (J(v) - v)

    def inverse(self, x: Tensor) -> Function:
        """r -> (I - J)⁻¹ r at x, (samples, n): by a factorisation, or where J is not formed by GMRES."""
        if self.full is not None:
            LU, pivots, _ = torch.linalg.lu_factor_ex(torch.eye(len(self.like)).to(x) - self.full(x))
            return lambda r: torch.linalg.lu_solve(LU, pivots, r[..., None])[..., 0]
        J = self.tangent(x)
        return lambda r: solve_affine(lambda v, rows: J(v) if rows is None else self.tangent(x[rows])(v), r)

    def problem(self, own: bool = False) -> Problem:
        """What a solver sees: x = F(x), or the cell's own dynamics."""
        return Problem(
            step=self.advance if own else self.step,
            take=lambda rows: self.problem(own),
            factorise=lambda x, anew=False: self.inverse(x),
        )

    def blocks(self, x: Tensor) -> tuple[Tensor, ...]:
        """The samples x in blocks whose Jacobians fit into memory together."""
        return x.split(len(x) or 1 if self.full is None else max(1, _ROOM // len(self.like) ** 2))


def solve_affine(J: Callable[[Tensor, Tensor | None], Tensor], r: Tensor, rtol: float = 1e-4) -> Tensor:
    """z = Jz + r by GMRES, sample by sample; J(v, rows) for the samples `rows`, None for all.

    It returns what it found: the Newton steps that use it look at their own residual.
    """

    def problem(r: Tensor, rows: Tensor | None) -> Problem:
        return Problem(
            step=lambda v: J(v, rows) + r,
            take=lambda some: problem(r[some], some if rows is None else rows[some]),
            factorise=_no_factors,
            affine=True,
        )

    return Krylov(rtol=rtol, restart=50, max_steps=200).solve(problem(r, None), r.clone()).value


def _no_factors(*_: Any, **__: Any) -> Function:
    """For a problem that has to say how it is factored: Krylov, which alone is given this one, never asks."""
    raise NotImplementedError("a matrix known by its products has no factors")


def cell_of(net: Any, input: Tensor | None = None, n: int | None = None, x0: Tensor | None = None) -> Cell:
    """The cell of a Network, a Recurrence, a torch cell, or a function x -> x' of rows.

    Raises:
        ValueError, TypeError: none of these; or an input, n or x0 that does not fit it.
    """
    if isinstance(net, Recurrence) or isinstance(getattr(net, "recurrence", None), Recurrence):
        recurrence, b = equations(net, input)
        cell = of_network(recurrence, b, M=matrix_of(recurrence))
        cell = replace(cell, input=torch.zeros_like(cell.like) if input is None else input.detach())
    elif isinstance(net, nn.RNNCellBase):
        cell = _of_torch(net, input)
    elif isinstance(net, nn.RNNBase):
        raise TypeError(
            f"net: expected a torch cell such as {type(net).__name__}Cell, which takes one step, "
            f"got {type(net).__name__}, which takes a whole sequence"
        )
    elif callable(net):
        if input is not None:
            raise ValueError("input: a function x -> x' takes none; let the function hold it")
        if x0 is None and n is None:
            raise ValueError("n: expected how many neurons a function x -> x' has, or x0, a state of it")
        like = torch.zeros(n or 0) if x0 is None else check_floating("x0", x0).detach()
        cell = _of_function(net, like if x0 is None else torch.zeros_like(like.reshape(-1, like.shape[-1])[0]))
    else:
        raise TypeError(f"net: expected a Network, a torch cell or a function x -> x', got {type(net).__name__}")
    if n is not None and n != len(cell.like):
        raise ValueError(f"n: expected {len(cell.like)}, as net has them, got {n}")
    if x0 is not None:
        check_finite("x0", check_last_axis("x0", check_like("x0", x0, cell.like), len(cell.like)))
    return cell


def equations(net: Any, input: Tensor | None) -> tuple[Recurrence, Tensor]:
    """A network's recurrence and its total input, without their history."""
    recurrence = net if isinstance(net, Recurrence) else net.recurrence
    W = recurrence.W.bind()
    if input is not None:
        check_finite("input", check_last_axis("input", check_like("input", input, W.like), W.shape[0]))
        if input.ndim != 1:
            raise ValueError(f"input: expected one, of shape ({W.shape[0]},), got {tuple(input.shape)}")
    if isinstance(net, Recurrence):
        b = torch.zeros(W.shape[0]).to(W.like) if input is None else input
    else:
        b = net.total(input)
    leak = recurrence.leak
    return (
        replace(
            recurrence,
            W=W.bind(*(weight.detach() for weight in W.weights)),
            leak=leak.detach() if isinstance(leak, Tensor) else leak,
        ),
        b.detach(),
    )


def matrix_of(net: Recurrence) -> Tensor | None:
    """W in full, where J may be."""
    n = net.W.shape[0]
    return net.W.dense() if n <= TINY or is_small(net.W.bind()) else None


def of_network(net: Recurrence, b: Tensor, gain: float = 1.0, M: Tensor | None = None) -> Cell:
    """x ← f(g W x + b), with J = g D W and dF/db = D. M is W in full, where J may be formed."""
    W, n = net.W, net.W.shape[0]

    def slopes(x: Tensor) -> Tensor:
        return net.f.slope_at(gain * (W @ x) + b)

    def tangent(x: Tensor) -> Function:
        D = gain * slopes(x)
        return lambda v: D * (W @ v)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return net.f(_scattered(count, n, generator).to(b))

    return Cell(
        step=lambda x: net.f(gain * (W @ x) + b),
        tangent=tangent,
        full=None if M is None else lambda x: gain * slopes(x)[..., :, None] * M,
        like=torch.zeros_like(b),
        draw=draw,
        leak=net.leak,
        of_input=lambda x: torch.diag_embed(slopes(x)),
    )


def _of_torch(net: nn.RNNCellBase, input: Tensor | None) -> Cell:
    """The hidden state of an RNNCell or a GRUCell; of an LSTMCell the hidden and the cell state, (h, c) end to end."""
    weight = net.weight_hh.detach()
    if input is None:
        input = torch.zeros(net.input_size).to(weight)
    check_finite("input", check_last_axis("input", check_like("input", input, weight), net.input_size))
    if input.ndim != 1:
        raise ValueError(f"input: expected one, of shape ({net.input_size},), got {tuple(input.shape)}")
    input = input.detach()

    def step(x: Tensor, u: Tensor) -> Tensor:
        u = u.expand(len(x), -1)
        if isinstance(net, nn.LSTMCell):
            return torch.cat(net(u, tuple(x.chunk(2, -1))), -1)
        return net(u, x)

    n = net.hidden_size * (2 if isinstance(net, nn.LSTMCell) else 1)

    def of_input(x: Tensor) -> Tensor:
        return torch.func.jacrev(lambda u: step(x, u))(input)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return torch.tanh(_scattered(count, n, generator)).to(weight)

    cell = _of_function(lambda x: step(x, input), torch.zeros(n).to(weight))
    bound = 1.0 if isinstance(net, nn.GRUCell) else torch.inf
    return replace(cell, draw=draw, input=input, of_input=of_input, bound=bound)


def _of_function(fn: Function, like: Tensor) -> Cell:
    """A function of rows, (samples, n) -> (samples, n), differentiated automatically."""
    n = len(like)
    _check_rows(fn, like)

    def full(x: Tensor) -> Tensor:
        # Rows are independent, so that the sum of them has every row's Jacobian.
        chunk = max(1, _ROOM // max(1, 8 * x.numel()))
        J = torch.func.jacrev(lambda x: fn(x).sum(0), chunk_size=chunk)(x)
        return J.transpose(0, 1).detach()

    def tangent(x: Tensor) -> Function:
        # Jᵀu is linear in u, and its derivative by u along v is Jv.
        with torch.enable_grad():
            x, u = x.detach().requires_grad_(), torch.zeros_like(x, requires_grad=True)
            y = fn(x)
            if not y.requires_grad:
                return torch.zeros_like
            (back,) = torch.autograd.grad(y, x, u, create_graph=True)
        return lambda v: torch.autograd.grad(back, u, v, retain_graph=True)[0].detach()

    return Cell(
        step=lambda x: fn(x).detach(),
        tangent=tangent,
        full=full if n <= LARGEST else None,
        like=like,
        draw=lambda count, generator: _scattered(count, n, generator).to(like),
    )


def _check_rows(fn: Function, like: Tensor) -> None:
    """Raise where fn does not map (samples, n) to (samples, n), row by row."""
    x = _scattered(3, len(like), torch.Generator().manual_seed(0)).to(like)
    with torch.no_grad():
        y = fn(x)
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            told = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"net: expected a function of (samples, n) that keeps shape and dtype, got {told}")
        alone = fn(x[:1])
    if not (y.isfinite().all() and alone.isfinite().all()):
        return  # it may be finite where it is used
    size = max(float(y.abs().max()), float(x.abs().max()))
    if not (alone - y[:1]).abs().max() <= torch.finfo(y.dtype).eps ** 0.5 * size:
        raise ValueError("net: expected a function that maps each row by itself; a row's answer depends on the others")


def _scattered(count: int, n: int, generator: torch.Generator) -> Tensor:
    """Normal vectors of sizes from 0.1 to 10: what comes out of a tanh is near 0, in a corner, or between."""
    size = 10 ** (2 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 1)
    return size * torch.randn(count, n, generator=generator, dtype=torch.float64)
