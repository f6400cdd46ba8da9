"""The derivatives of a steady state and of a trajectory, in operations that can be differentiated again.

The adjoint s = D (Wᵀs + g) of a steady state is itself the solution of an equation, linear and of the same form. So its
derivative is one more such solution, with W in the place of Wᵀ: the tangent v = D (Wv + c). And the derivative of that
is an adjoint again. Along a trajectory nothing is solved for, and torch differentiates the substitution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from retrograde.adjoint import default_adjoint, solve_adjoint
from retrograde.autograd import Rule, Tensors, attach
from retrograde.checks import check_finite
from retrograde.connectivity import Connectivity, Operator
from retrograde.recurrence import Recurrence
from retrograde.result import Gradients, Inputs, Wants, convergence_error
from retrograde.solvers import Solver
from retrograde.solvers.factors import Factors
from retrograde.through_time import substitute_back, total_input, trajectory_gradients
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
        check_finite("dR/dx" if self.transposed else "tangent", c)
        z, receipt = solve_adjoint(
            W,
            D.reshape(-1, n),
            c.reshape(-1, n),
            solver,
            self.factors,
            rows=None if rows is None else rows.reshape(-1),
            tangent=not self.transposed,
        )
        z = z.reshape(D.shape)
        if self.throw and not receipt.converged.all():
            raise convergence_error(
                f"{'adjoint' if self.transposed else 'tangent'} of the steady state",
                receipt,
                solver.tolerance(z.dtype),
                "I - DW may be nearly singular there, as at a bifurcation; try adjoint=Direct().",
                Gradients(z, (), receipt=receipt),
            )
        return (z,)


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
                s = self.first(net, x, b, g, Wants(s=True, dW=False, db=False, dx0=False)).s
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
        W, D = net.W.bind(), net.slopes(after, before, total_input(b, bias))
        at = np.arange(len(D)) if self.at is None else self.at
        s, l = substitute_back(W, D, g, at, net.leak, (None, None))
        dx0, dleak = W.T @ s[0], None
        if l is not None and net.leak is not None:
            dx0 = dx0 + (1 - net.leak) * l[0]
            # x(t) = x(t-1) + a (y(t) - x(t-1)), so the reward grows by l(t) (y(t) - x(t-1)) with a.
            dleak = (l * (after - before) / net.leak).sum_to_size(torch.as_tensor(net.leak).shape)
        return (
            None if b is None else s.sum_to_size(b.shape),
            None if bias is None else s.sum_to_size(bias.shape),
            dx0,
            dleak if needed[3] else None,
            *(W.outer(s, before) if any(needed[4:]) else (None,) * (len(inputs) - 4)),
        )

    def push(self, x: Tensor, inputs: Tensors, tangents: Tensors) -> Tensor:
        """dx(t) = D(t) (W dx(t-1) + dW x(t-1) + db(t)), substituted forward from dx(0)."""
        net, (b, bias, _) = self._equations(inputs)
        db, dbias, v, da, *dW = tangents
        before, after = self._ends(x, inputs)
        W, D = net.W.bind(), net.slopes(after, before, total_input(b, bias))
        drive = total_input(db, dbias)
        c = _moved(W, before, tuple(dW)) + (0 if drive is None else drive)
        v = torch.zeros_like(before[0]) if v is None else v
        moved = []
        for t in range(len(D)):
            y = D[t] * (W @ v + c[t])
            if net.leak is not None:
                y = v + net.leak * (y - v)
                y = y if da is None else y + da * (after[t] - before[t]) / net.leak
            v = y
            moved.append(v)
        return torch.stack(moved if self.at is None else [moved[t] for t in np.flatnonzero(self.at >= 0)])

    def _equations(self, inputs: Tensors) -> tuple[Recurrence, Inputs]:
        b, bias, x0, leak, *weights = inputs
        net = _with_weights(self.net, weights)
        return (net if leak is None else replace(net, leak=leak)), Inputs(b, bias, x0)

    def _ends(self, path: Tensor, inputs: Tensors) -> tuple[Tensor, Tensor]:
        """x(t-1) and x(t) for t = 1..T, attached."""
        after = attach(path, replace(self, at=None), inputs, path[1:])
        return torch.cat([inputs[2][None], after[:-1]]), after


def _with_weights(net: Recurrence, weights: list[Tensor]) -> Recurrence:
    return replace(net, W=net.W.bind(*weights))


def _moved(W: Operator, z: Tensor, dW: Tensors, transposed: bool = False) -> Tensor:
    """dW z, or dWᵀ z: how a product moves with the weights. `outer` tells, as <q, dW z> = <outer(q, z), d weights>."""
    if all(d is None for d in dW):
        return torch.zeros_like(z)

    def outer(q: Tensor) -> tuple[Tensor, ...]:
        return W.outer(z, q) if transposed else W.outer(q, z)

    cotangents = tuple(torch.zeros_like(w) if d is None else d for w, d in zip(W.weights, dW, strict=True))
    _, transpose = torch.func.vjp(outer, torch.zeros_like(z))[:2]
    return transpose(cotangents)[0]


def _parts(inputs: Tensors) -> tuple[Tensor | None, Tensor, Tensor, tuple[Tensor, ...]]:
    rows, D, c, *weights = inputs
    assert D is not None and c is not None
    return rows, D, c, tuple(w for w in weights if w is not None)
