"""Network: a recurrence with parameters, and the methods people call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.checks import broadcast_shapes, check_finite, check_last_axis, check_like
from retrograde.connectivity import Connectivity, as_connectivity
from retrograde.connectivity.base import as_parameter
from retrograde.nonlinearity import Nonlinearity, as_nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError, SteadyState, Trajectory
from retrograde.solvers import Solver
from retrograde.spectrum import Verdicts, verdict
from retrograde.steady import solved
from retrograde.trajectories import hold_leak, run
from retrograde.transforms import from_autocast, uncompiled
from retrograde.unfolding import Layer, Unfolded
from retrograde.warm import WarmStart


class Network(nn.Module):
    """A recurrent network x = f(Wx + b), or x(t) = f(W x(t-1) + b(t)). As a layer, it gives its steady state.

    Args:
        W: an int n (a full matrix, normal, standard deviation 0.9/√n), an (n, n) tensor, a torch or SciPy sparse
            matrix, or any Connectivity. ``W[i, j]`` is the connection from j to i.
        f: "tanh", "sigmoid", "relu", "softplus", "identity", or any Nonlinearity.
        b: True for a trainable bias that starts at 0, False for none, or an (n,) tensor, trainable.
        leak: a = dt/τ of the trajectories x(t) = (1-a) x(t-1) + a f(...): a number, or a Parameter of one or of n
            entries. Steady states do not depend on it.

    A tensor given is copied; a Parameter is shared. Sparse matrices are always copied: see `Sparse`.

    Raises:
        ValueError, TypeError: W not square, a shape or dtype that does not fit, NaN or infinity, a leak outside (0, 1].

    >>> _ = torch.manual_seed(0)
    >>> net = Network(100)
    >>> state = net.steady_state(torch.randn(32, 100))
    >>> state.x.shape, bool(state.converged.all())
    (torch.Size([32, 100]), True)
    >>> state.x.square().sum().backward()
    >>> net.W.weight.grad.shape
    torch.Size([100, 100])
    """

    W: Connectivity
    b: nn.Parameter | None
    leak: float | Tensor | None

    def __init__(
        self,
        W: Any,
        f: str | Nonlinearity = "tanh",
        b: bool | Tensor = True,
        leak: float | Tensor | None = None,
    ):
        super().__init__()
        self.W = as_connectivity(W)
        self.f = as_nonlinearity(f)
        n, like = self.W.shape[0], self.W.weights[0]
        self.f.check_elementwise(n, like)
        if isinstance(b, Tensor):
            check_finite("b", check_like("b", b, like))
            if b.shape != (n,):
                raise ValueError(
                    f"b: expected shape ({n},), got {tuple(b.shape)}; what differs between samples is the input"
                )
            self.b = as_parameter(b)
        elif isinstance(b, bool):
            self.b = nn.Parameter(torch.zeros(n, dtype=like.dtype, device=like.device)) if b else None
        else:
            raise TypeError(f"b: expected True, False or a tensor, got {type(b).__name__}")
        hold_leak(self, leak, n, like, persistent=True)

    @property
    def recurrence(self) -> Recurrence:
        """The equations, with the weights as they are now."""
        return Recurrence(self.W.bind(), self.f, self.leak)

    # --- steady states

    def forward(self, input: Tensor | None = None) -> Tensor:
        """The steady state, (..., n), for the input, (..., n)."""
        return self.steady_state(input).x

    @uncompiled
    def steady_state(
        self,
        input: Tensor | None = None,
        x0: Tensor | None = None,
        solver: Solver | None = None,
        adjoint: Solver | None = None,
        throw: bool = True,
        warm: WarmStart | None = None,
        grad_rtol: float | None = None,
    ) -> SteadyState:
        """x = f(Wx + b + input) for each sample; R(x).backward() is recurrent backpropagation.

        Args:
            input: (..., n), added to the bias; None is 0.
            x0: (..., n), where to start; None is 0.
            solver: None, or a solver such as ``FixedPoint(damping=0.5)`` or ``Newton()``.
            adjoint: None, or the solver of the backward, such as ``Direct()`` or ``Krylov()``.
            throw: whether a sample that fails raises.
            warm: a WarmStart, which starts x and its adjoint from the last ones of the same samples.
            grad_rtol: None, or the relative error that the gradient may have, in place of the solvers' tolerances. See
                `retrograde.steady_state` for all of this.

        Raises:
            ValueError, TypeError: an argument of the wrong shape or dtype, or not finite.
            ConvergenceError: some sample has not converged; the error's ``result`` is what was found.
        """
        x0 = None if x0 is None else from_autocast(x0, self._like.dtype)
        how: dict[str, Any] = {"x0": x0, "solver": solver, "adjoint": adjoint, "throw": throw}
        how |= {"warm": warm, "grad_rtol": grad_rtol}
        net, b = self.recurrence, self._total(input)
        looked_at = (("b", b),) if input is None else (("input", input), ("b", b))
        judge = partial(verdict, net, input=b.detach(), x0=x0)  # asked where `state.verdict` is
        try:
            state = solved(net, b, looked_at, **how)
        except ConvergenceError as error:
            if isinstance(error.result, SteadyState):  # in forward mode it is a tangent
                error.result._judges.append(judge)
            raise
        state._judges.append(judge)
        return state

    def judge_at(self, x: Tensor, b: Tensor) -> Callable[[], Verdicts]:
        """What gives the verdict on x for the total input b."""
        return partial(verdict, self.recurrence, x.detach(), input=b.detach())

    def input_for(self, x: Tensor) -> Tensor:
        """The one input for which x, (..., n), is a steady state: f⁻¹(x) - Wx - b.

        x may not be a unique function of the input; the input is a unique function of x.

        Raises:
            ValueError: x has entries outside the range of f.
        """
        b = self.recurrence.bias_for(self._states("x", x))
        return b if self.b is None else b - self.b

    def jacobian(self, x: Tensor) -> Tensor:
        """db/dx = D⁻¹ - W at x, (..., n): (..., n, n), so that dR/dx = (D⁻¹ - Wᵀ) dR/db.

        Raises:
            ValueError: a slope is 0, where D⁻¹ does not exist; or the slope is not a function of x.
        """
        D = self.f.slope(self._states("x", x))
        return torch.diag_embed(_inverse(D)) - self.W.dense()

    # --- trajectories

    @uncompiled
    def trajectory(
        self, input: Tensor | None = None, x0: Tensor | None = None, steps: int | None = None, adjoint: None = None
    ) -> Trajectory:
        """x(t) = f(W x(t-1) + b + input(t)), t = 1..T; R(x).backward() is backpropagation through time.

        Args:
            input: (T, ..., n), added to the bias; or, with ``steps``, (..., n), the same at all times, or None for 0.
            x0: (..., n), x(0); None is 0.
            steps: T, where the input is constant.
            adjoint: None: the adjoint of a trajectory is exact back-substitution, and needs no solver.

        Raises:
            ValueError, TypeError: an argument of the wrong shape or dtype, or not finite.
            ConvergenceError: the activity became infinite.
        """
        if adjoint is not None:
            raise TypeError(
                f"adjoint: a trajectory's adjoint is substituted back exactly, without a solver; got {adjoint!r}"
            )
        if input is None and steps is None:
            raise ValueError("steps: expected T, as there is no input whose length tells it")
        if input is not None and steps is None:
            return run(self.recurrence, input, self.b, x0, None, "input")
        return run(self.recurrence, None, self.total(input), x0, steps, "input")

    def input_for_trajectory(self, x: Tensor, x0: Tensor) -> Tensor:
        """The one input, (T, ..., n), that drives the network along x, (T, ..., n), from x0, (..., n).

        It is f⁻¹(y(t)) - W x(t-1) - b, where y(t) is x(t), or with a leak (x(t) - (1-a) x(t-1)) / a.

        Raises:
            ValueError: some y(t) has entries outside the range of f: with a leak, x moves faster than it can.
        """
        x_before, y = self._steps(x, x0)
        b = self.f.inverse(y) - self.W @ x_before
        return b if self.b is None else b - self.b

    def jacobian_trajectory(self, x: Tensor, x0: Tensor) -> Tensor:
        """db/dx of one trajectory x, (T, n), as a sparse matrix (T n, T n).

        Entry (t n + i, u n + j), t and u counted from 0, is db_i(t+1)/dx_j(u+1).

        It is block bidiagonal: D⁻¹(t) on the diagonal and -W one block below. With a leak a the blocks are D⁻¹(t)/a and
        -(1-a) D⁻¹(t)/a - W.

        Raises:
            ValueError: more than one trajectory; or a slope is 0, where D⁻¹ does not exist.
        """
        if x.ndim != 2 or not len(x):
            raise ValueError(f"x: expected one trajectory, shape (T, {self.W.shape[0]}), got {tuple(x.shape)}")
        _, y = self._steps(x, x0)
        T, n = x.shape
        steepness = _inverse(self.f.slope(y))
        keep = torch.zeros_like(steepness)  # how far each x(t) keeps what x(t-1) was
        if self.leak is not None:
            steepness, keep = steepness / self.leak, steepness * (1 - self.leak) / self.leak
        post, pre, weight = self.W.bind().entries()
        time = torch.arange(T, device=x.device)[:, None] * n
        neurons = torch.arange(n, device=x.device)
        diagonal = time + neurons
        rows = [diagonal, time[1:] + neurons, time[1:] + post]
        columns = [diagonal, time[:-1] + neurons, time[:-1] + pre]
        values = [steepness, -keep[1:], (-weight).expand(T - 1, -1)]
        index = torch.stack([torch.cat([part.flatten() for part in ends]) for ends in (rows, columns)])
        return torch.sparse_coo_tensor(
            index, torch.cat([part.flatten() for part in values]), (T * n, T * n), check_invariants=False
        ).coalesce()

    def unfold(self, T: int) -> Unfolded:
        """Time unfolded into space: a perceptron of T layers, ordinary modules that hold this network's own Parameters.

        Raises:
            ValueError: T less than 1.

        >>> net = Network(torch.tensor([[0.0, 0.5], [-0.5, 0.0]]))
        >>> x0 = torch.tensor([1.0, 0.0])
        >>> torch.allclose(net.unfold(3)(x0), net.trajectory(x0=x0, steps=3).x[-1])
        True
        """
        if isinstance(T, bool) or not isinstance(T, Integral) or T < 1:
            raise ValueError(f"T: expected an integer of at least 1, got {T!r}")
        return Unfolded(*(Layer(self.W, self.b, self.f, self.leak) for _ in range(T)))

    # --- the equations, as `Recurrence` has them

    def step(self, x: Tensor, b: Tensor) -> Tensor:
        """f(Wx + b), b the total input."""
        return self.recurrence.step(x, b)

    def adjoint_step(self, s: Tensor, x: Tensor, g: Tensor) -> Tensor:
        """D (Wᵀs + g)."""
        return self.recurrence.adjoint_step(s, x, g)

    def tangent_step(self, v: Tensor, x: Tensor, c: Tensor) -> Tensor:
        """D (Wv + c)."""
        return self.recurrence.tangent_step(v, x, c)

    def total(self, input: Tensor | None) -> Tensor:
        """The total input: the bias plus the input, where there are any."""
        total = self._total(input)
        if input is not None:
            check_finite("input", input)
        return total

    def _total(self, input: Tensor | None) -> Tensor:
        """The same, without a look at its numbers."""
        n, like = self.W.shape[0], self._like
        if input is not None:
            input = check_last_axis("input", check_like("input", from_autocast(input, like.dtype), like), n)
        if self.b is None:
            return torch.zeros(n, dtype=like.dtype, device=like.device) if input is None else input
        return self.b if input is None else self.b + input

    def extra_repr(self) -> str:
        """f and the leak, where a module prints."""
        return f"f={self.f}" + ("" if self.leak is None else f", leak={self.leak}")

    @property
    def _like(self) -> Tensor:
        """What has the dtype and device of W, without computing a parametrised W."""
        own = next(iter(self.W._parameters.values()), None)  # at hand; W.parameters() goes through all of its modules
        own = next(self.W.parameters(), None) if own is None else own
        return self.W.weights[0] if own is None else own

    def _states(self, name: str, x: Tensor) -> Tensor:
        check_last_axis(name, check_like(name, x, self._like), self.W.shape[0])
        check_finite(name, x)
        return x

    def _steps(self, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """x(t-1) and the outputs y(t) of f, for t = 1..T."""
        self._states("x", x)
        self._states("x0", x0)
        if x.ndim < 2 or not len(x):
            raise ValueError(
                f"x: expected shape (T, ..., {self.W.shape[0]}) with T of at least 1, got {tuple(x.shape)}"
            )
        if broadcast_shapes("x and x0", x=x.shape[1:], x0=x0.shape) != x.shape[1:]:
            raise ValueError(f"x0: expected shape {tuple(x.shape[1:])}, got {tuple(x0.shape)}")
        x_before = torch.cat([x0.expand(x.shape[1:])[None], x[:-1]])
        return x_before, self.recurrence.output(x, x_before)


def _inverse(D: Tensor) -> Tensor:
    flat = int((D == 0).sum())
    if flat:
        raise ValueError(
            f"x: D⁻¹ does not exist, as f' is 0 at {flat} of {D.numel()} entries; adjoint_step needs no D⁻¹"
        )
    return 1 / D
