"""The derivatives of a steady state and of a trajectory, in operations that can be differentiated again.

The adjoint s = D (Wᵀs + g) of a steady state is itself the solution of an equation, linear and of the same form. So its
derivative is one more such solution, with W in the place of Wᵀ: the tangent v = D (Wv + c). And the derivative of that
is an adjoint again. Along a trajectory it is the same with substitution, backward and forward in time, in the place of
the solution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from retrograde.adjoint import receipt_of, solve_adjoint
from retrograde.autograd import Rule, Tensors, attach
from retrograde.checks import check_numbers
from retrograde.connectivity import Connectivity, Operator
from retrograde.defaults import default_adjoint
from retrograde.recurrence import Recurrence
from retrograde.result import ONLY_S, Gradients, Inputs, Wants, convergence_error
from retrograde.solvers import Solver
from retrograde.solvers.factors import Factors
from retrograde.through_time import swept_back, total_input, trajectory_gradients
from retrograde.transforms import opaque, transformed


@dataclass(frozen=True, eq=False)
class Feedback(Rule):
    """z = D (Mz + c), where M is Wᵀ (an adjoint) or W (a tangent), as a function of D, c and the weights.

    The inputs are rows, D, c and the weights. `rows` are the numbers of the samples in `factors`, those of I - DW known
    so far; None where the samples are 0, 1, 2, ....
    """

    structure: Connectivity
    solver: Solver | None
    factors: Factors
    throw: bool
    transposed: bool

    def __call__(self, rows: Tensor | None, D: Tensor, c: Tensor, *weights: Tensor) -> Tensor:
        """z, (..., n), differentiable."""
        if rows is None and transformed():  # a batch of backwards asks for each sample more than once
            rows = torch.arange(D.shape[:-1].numel(), device=D.device).reshape(D.shape[:-1])
        (z,) = opaque(self._solve, (rows, D, c), weights)
        return attach(z, self, (rows, D, c, *weights))

    def pull(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        """From h = dR/dz: y = D (Mᵀy + h), and dR/dc = y, dR/dD = (Mᵀy + h)(Mz + c), dR/dM = y zᵀ."""
        rows, D, c, weights = _parts(inputs)
        z, W = attach(x, self, inputs), self.structure.bind(*weights)
        y = replace(self, transposed=not self.transposed)(rows, D, g, *weights)
        M, M_T = (W.T, W) if self.transposed else (W, W.T)
        dD = (M_T @ y + g) * (M @ z + c) if needed[1] else None
        dW = W.outer(*((z, y) if self.transposed else (y, z))) if any(needed[3:]) else (None,) * len(weights)
        return None, dD, y, *dW

    def push(self, x: Tensor, inputs: Tensors, tangents: Tensors) -> Tensor:
        """dz = D (M dz + k), where k = dM z + dc, and D moves by dD: dD (Mz + c) comes to it from outside of D."""
        rows, D, c, weights = _parts(inputs)
        _, dD, dc, *dW = tangents
        z, W = attach(x, self, inputs), self.structure.bind(*weights)
        M = W.T if self.transposed else W
        k = _moved(W, z, tuple(dW), self.transposed) + (0 if dc is None else dc)
        if dD is None:
            return self(rows, D, k, *weights)
        outside = dD * (M @ z + c)
        return outside + self(rows, D, k + M @ outside, *weights)

    def _solve(self, rows: Tensor | None, D: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor]:
        W, n = self.structure.bind(*weights), D.shape[-1]
        solver = self.solver or default_adjoint(W)
        check_numbers("dR/dx" if self.transposed else "tangent", c)
        found, conditioning = solve_adjoint(
            W,
            D.reshape(-1, n),
            c.reshape(-1, n),
            solver,
            self.factors,
            rows=None if rows is None else rows.reshape(-1),
            tangent=not self.transposed,
        )
        z, receipt = found.value.reshape(D.shape), receipt_of(solver, found, conditioning, D.shape[:-1])
        if self.throw and receipt.any_failed:
            raise convergence_error(
                f"{'adjoint' if self.transposed else 'tangent'} of the steady state",
                receipt,
                solver.tolerance(z.dtype),
                "I - DW may be nearly singular there, as at a bifurcation; try adjoint=Direct().",
                Gradients(z, (), receipt=receipt),
            )
        return (z,)


@dataclass(frozen=True, eq=False)
class Sweep(Rule):
    """v(t) = A(t) v(t-1) + c(t), or backwards l(t) = Aᵀ(t+1) l(t+1) + c(t), where A(t) = (1-a) I + a D(t) W.

    The inputs are D and c, (T, ..., n), a leak that is a tensor, and the weights.
    """

    structure: Connectivity
    leak: float | Tensor | None
    transposed: bool

    def __call__(self, D: Tensor, c: Tensor, a: Tensor | None, *weights: Tensor) -> Tensor:
        """v or l, (T, ..., n), differentiable."""
        (z,) = opaque(self._substitute, (D.movedim(0, -2), c.movedim(0, -2)), (a, *weights))
        return attach(z.movedim(-2, 0), self, (D, c, a, *weights))

    def pull(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        """From h = dR/dz, one by the other: dR/dc is the other sweep's answer to h, and dR/dA(t) = l(t) v(t-1)ᵀ."""
        D, _, leak, *weights = inputs
        z, W, a = attach(x, self, inputs), self.structure.bind(*weights), self._a(leak)
        y = replace(self, transposed=not self.transposed)(D, g, leak, *weights)
        l, v = (z, _before(y)) if self.transposed else (y, _before(z))
        Wv = W @ v
        return (
            a * l * Wv if needed[0] else None,
            y,
            (l * (D * Wv - v)).sum_to_size(leak.shape) if needed[2] else None,
            *(W.outer(a * D * l, v) if any(needed[3:]) else (None,) * len(weights)),
        )

    def push(self, x: Tensor, inputs: Tensors, tangents: Tensors) -> Tensor:
        """The same sweep, driven by dc and by how A moves."""
        D, _, leak, *weights = inputs
        dD, dc, da, *dW = tangents
        z, W, a = attach(x, self, inputs), self.structure.bind(*weights), self._a(leak)
        if self.transposed:
            drive = _moved(W, a * D * z, tuple(dW), transposed=True)
            drive = drive if dD is None else drive + W.T @ (a * dD * z)
            drive = drive if da is None else drive + W.T @ (da * D * z) - da * z
            drive = torch.cat([drive[1:], torch.zeros_like(drive[:1])])
        else:
            v = _before(z)
            drive = a * D * _moved(W, v, tuple(dW))
            drive = drive if dD is None else drive + a * dD * (W @ v)
            drive = drive if da is None else drive + da * (D * (W @ v) - v)
        return self(D, drive if dc is None else drive + dc, leak, *weights)

    def _substitute(self, D: Tensor, c: Tensor, leak: Tensor | None, *weights: Tensor) -> tuple[Tensor]:
        check_numbers("dR/dx" if self.transposed else "tangent", c)
        W, D, c = self.structure.bind(*weights), D.movedim(-2, 0), c.movedim(-2, 0)
        if self.transposed:
            s, l = swept_back(W, D, c, self.leak if leak is None else leak)
            z = c + torch.cat([W.T @ s[1:], torch.zeros_like(c[:1])]) if l is None else l
        else:
            v, a, path = torch.zeros_like(c[0]), self._a(leak), []
            for D_t, c_t in zip(D, c, strict=True):
                v = (1 - a) * v + a * D_t * (W @ v) + c_t
                path.append(v)
            z = torch.stack(path)
        return (z.movedim(0, -2),)

    def _a(self, leak: float | Tensor | None) -> float | Tensor:
        leak = self.leak if leak is None else leak
        return 1.0 if leak is None else leak


@dataclass(frozen=True, eq=False)
class SteadyStateRule(Rule):
    """x = f(Wx + b), of which the inputs are rows, b and the weights; `first` is its first-order gradient."""

    net: Recurrence
    first: Callable[[Recurrence, Tensor, Tensor | None, Tensor, Wants], Gradients]
    solver: Solver | None
    factors: Factors
    throw: bool

    def gradients(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        """s, and dR/dW = s xᵀ."""
        _, b, *weights = inputs
        wants = Wants(s=needed[1], dW=any(needed[2:]), db=False, dx0=False)
        found = self.first(_with_weights(self.net, weights), x, b, g, wants)
        return None, found.s.sum_to_size(b.shape) if wants.s else None, *(found.dW or (None,) * len(weights))

    def pull(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        """The same."""
        rows, b, *weights = inputs
        net, x_ = _with_weights(self.net, weights), attach(x, self, inputs)
        D, adjoint = net.slopes(x_, x_, b), self._feedback(transposed=True)
        if transformed():
            s = adjoint(rows, D, g, *weights)
        else:  # the one that leaves a receipt
            with torch.no_grad():
                s = self.first(net, x, b, g, ONLY_S).s
            s = attach(s, adjoint, (rows, D, g, *weights))
        dW = net.W.bind().outer(s, x_) if any(needed[2:]) else (None,) * len(weights)
        return None, s.sum_to_size(b.shape) if needed[1] else None, *dW

    def push(self, x: Tensor, inputs: Tensors, tangents: Tensors) -> Tensor:
        """dx = D (W dx + dW x + db)."""
        rows, b, *weights = inputs
        _, db, *dW = tangents
        net, x = _with_weights(self.net, weights), attach(x, self, inputs)
        c = _moved(net.W.bind(), x, tuple(dW)) + (0 if db is None else db)
        return self._feedback(transposed=False)(rows, net.slopes(x, x, b), c, *weights)

    def _feedback(self, transposed: bool) -> Feedback:
        return Feedback(self.net.W.bind().structure, self.solver, self.factors, self.throw, transposed)


@dataclass(frozen=True, eq=False)
class TrajectoryRule(Rule):
    """x(t) = f(W x(t-1) + b(t)), of which the inputs are b, the bias, x(0), a leak that is a tensor, and the weights.

    What was found is x(0), ..., x(T). What is attached is x(1), ..., x(T), or of these what `at` gives a number.
    """

    net: Recurrence
    at: np.ndarray | None = None

    def gradients(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        """s(t), and dR/dW = Σ s(t) x(t-1)ᵀ."""
        net, given = self._equations(inputs)
        wants = Wants(s=needed[0], db=needed[1], dx0=needed[2], dW=any(needed[4:]))
        found = trajectory_gradients(net, x, given, g, wants, self.at)
        return (
            found.s.sum_to_size(given.b.shape) if wants.s and given.b is not None else None,
            found.db if wants.db else None,
            found.dx0 if wants.dx0 else None,
            found.dleak if needed[3] else None,
            *(found.dW if wants.dW else (None,) * (len(inputs) - 4)),
        )

    def pull(self, x: Tensor, inputs: Tensors, g: Tensor, needed: tuple[bool, ...]) -> Tensors:
        """The same."""
        net, (b, bias, _) = self._equations(inputs)
        before, after = self._ends(x, inputs)
        W, D, a = net.W.bind(), net.slopes(after, before, total_input(b, bias)), _leak(net)
        if self.at is not None:
            nothing = torch.zeros_like(g[0])
            g = torch.stack([g[row] if row >= 0 else nothing for row in self.at])
        l = self._sweep(transposed=True)(D, g, inputs[3], *W.weights)
        s = a * D * l
        # x(t) = x(t-1) + a (y(t) - x(t-1)), so the reward grows by l(t) (y(t) - x(t-1)) with a.
        dleak = (l * (after - before) / a).sum_to_size(inputs[3].shape) if needed[3] else None
        return (
            None if b is None else s.sum_to_size(b.shape),
            None if bias is None else s.sum_to_size(bias.shape),
            W.T @ s[0] + (1 - a) * l[0] if needed[2] else None,
            dleak,
            *(W.outer(s, before) if any(needed[4:]) else (None,) * (len(inputs) - 4)),
        )

    def push(self, x: Tensor, inputs: Tensors, tangents: Tensors) -> Tensor:
        """dx(t) = (1-a) dx(t-1) + a D(t) (W dx(t-1) + dW x(t-1) + db(t)), and what the leak's own da adds."""
        net, (b, bias, _) = self._equations(inputs)
        db, dbias, dx0, da, *dW = tangents
        before, after = self._ends(x, inputs)
        W, D, a = net.W.bind(), net.slopes(after, before, total_input(b, bias)), _leak(net)
        drive = total_input(db, dbias)
        c = a * D * (_moved(W, before, tuple(dW)) + (0 if drive is None else drive))
        if da is not None:
            c = c + da * (after - before) / a
        if dx0 is not None:
            c = torch.cat([(c[0] + (1 - a) * dx0 + a * D[0] * (W @ dx0))[None], c[1:]])
        dx = self._sweep(transposed=False)(D, c, inputs[3], *W.weights)
        return dx if self.at is None else dx[np.flatnonzero(self.at >= 0).tolist()]

    def _sweep(self, transposed: bool) -> Sweep:
        return Sweep(self.net.W.bind().structure, self.net.leak, transposed)

    def _equations(self, inputs: Tensors) -> tuple[Recurrence, Inputs]:
        b, bias, x0, leak, *weights = inputs
        net = _with_weights(self.net, weights)
        return (net if leak is None else replace(net, leak=leak)), Inputs(b, bias, x0)

    def _ends(self, path: Tensor, inputs: Tensors) -> tuple[Tensor, Tensor]:
        """x(t-1) and x(t) for t = 1..T, attached."""
        after = attach(path, replace(self, at=None), inputs, path[1:])
        return torch.cat([inputs[2][None], after[:-1]]), after


def _leak(net: Recurrence) -> float | Tensor:
    return 1.0 if net.leak is None else net.leak


def _before(v: Tensor) -> Tensor:
    """v(t-1) for t = 1..T, v(0) = 0."""
    return torch.cat([torch.zeros_like(v[:1]), v[:-1]])


def _with_weights(net: Recurrence, weights: list[Tensor]) -> Recurrence:
    return Recurrence(net.W.bind(*weights), net.f, net.leak)


def _moved(W: Operator, z: Tensor, dW: Tensors, transposed: bool = False) -> Tensor:
    """dW z, or dWᵀ z: how a product moves with the weights. `outer` tells, as <q, dW z> = <outer(q, z), d weights>."""
    if all(d is None for d in dW):
        return torch.zeros_like(z)

    def outer(q: Tensor) -> tuple[Tensor, ...]:
        return W.outer(z, q) if transposed else W.outer(q, z)

    cotangents = tuple(torch.zeros_like(w) if d is None else d for w, d in zip(W.weights, dW, strict=True))
    transpose = torch.func.vjp(outer, torch.zeros_like(z))[1]
    return transpose(cotangents)[0]


def _parts(inputs: Tensors) -> tuple[Tensor | None, Tensor, Tensor, tuple[Tensor, ...]]:
    rows, D, c, *weights = inputs
    assert D is not None and c is not None  # rows alone may be None
    return rows, D, c, tuple(w for w in weights if w is not None)
