"""Any fixed-point layer: x = fn(x, *inputs), a deep equilibrium model."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from retrograde.checks import check_finite, check_floating
from retrograde.closure import Closed, Reading
from retrograde.defaults import EQUATION_ADJOINT, equation_solver
from retrograde.equation import SMALL, Equation, check_converged, settle
from retrograde.equation_rules import Family, check_seen
from retrograde.implicit import Adjoint, attach
from retrograde.receipt import Receipt
from retrograde.result import SteadyState
from retrograde.solvers import Solver
from retrograde.solvers.factors import Factors
from retrograde.solvers.given import check_solver, check_throw
from retrograde.spectrum.any_equation import verdict_of_equation
from retrograde.transforms import from_autocast, transformed, uncompiled
from retrograde.warm import WarmStart


class Equilibrium(nn.Module):
    """The layer x = fn(x, *inputs): its output is the fixed point, its gradient the fixed point's, exactly.

    With J = d fn/dx at x and g = dR/dx, a backward solves l = Jᵀl + g, and the gradient in whatever fn depends on is
    (d fn/dθ)ᵀ l: recurrent backpropagation for any fn.

    Args:
        fn: (x, *inputs) -> the next x, a function or a module, whose parameters then train. It keeps shape and dtype,
            gives the same answer when it is called again, and is made of torch operations that autograd can follow.
        solver: of the state; None for the default: FixedPoint, and for the samples on which it fails Newton,
            PseudoTransient, Homotopy and Multistart, where a sample holds at most 256 numbers; else Anderson,
            NewtonKrylov and PseudoTransient.
        adjoint: the solver of the backward; None for the default: FixedPoint for 30 steps, then GMRES.
        coupled: whether samples depend on one another, as with BatchNorm in training. They are then one state with one
            residual.

    The first axis of x is the samples', the others are whatever fn wants. A tensor among the inputs whose first axis is
    as long is each sample's own; any other input, and all that fn closes over, is shared. Samples that have converged
    leave the batch, so that fn is called with fewer. That fn treats each by itself is checked, not taken on trust.

    Gradients reach the inputs, and every Parameter or other leaf that fn depends on: closed over, held in a module, or
    behind a tensor that was computed from it before. x0 gets none.

    Raises:
        TypeError: fn is not callable, or a solver is not one.

    References:
        Bai, Kolter and Koltun, "Deep equilibrium models", NeurIPS (2019); F. J. Pineda, Phys. Rev. Lett. 59 (1987).

    >>> _ = torch.manual_seed(0)
    >>> cell = nn.GRUCell(8, 16)
    >>> layer = Equilibrium(lambda x, u: cell(u, x))
    >>> state = layer.steady_state(torch.randn(4, 8), x0=torch.zeros(4, 16))
    >>> state.x.shape, bool(state.converged.all())
    (torch.Size([4, 16]), True)
    >>> state.x.square().sum().backward()
    >>> cell.weight_hh.grad.shape, bool(state.receipt.converged.all())
    (torch.Size([48, 16]), True)
    """

    def __init__(
        self,
        fn: Callable[..., Tensor],
        solver: Solver | None = None,
        adjoint: Solver | None = None,
        coupled: bool = False,
    ):
        super().__init__()
        if not callable(fn):
            raise TypeError(f"fn: expected a function or a module, got {type(fn).__name__}")
        if not isinstance(coupled, bool):
            raise TypeError(f"coupled: expected True or False, got {coupled!r}")
        self.fn = fn
        self.solver, self.adjoint = check_solver("solver", solver), check_solver("adjoint", adjoint)
        self.coupled = coupled

    def forward(self, *inputs: Any, x0: Tensor | None = None) -> Tensor:
        """The fixed point, of the shape of x0."""
        return self.steady_state(*inputs, x0=x0).x

    @uncompiled
    def steady_state(
        self,
        *inputs: Any,
        x0: Tensor | None = None,
        solver: Solver | None = None,
        adjoint: Solver | None = None,
        throw: bool = True,
        warm: WarmStart | None = None,
    ) -> SteadyState:
        """x = fn(x, *inputs) for each sample, differentiable.

        Args:
            inputs: what fn is given beside x; tensors whose first axis is the samples' are each sample's own.
            x0: (samples, ...), where to start; None is 0, of the shape of the first input.
            solver: as for the layer, for this call alone.
            adjoint: likewise.
            throw: whether a sample that fails, forward or backward, raises. If not, ``converged`` and ``receipt`` tell.
            warm: a WarmStart, which starts x and its adjoint from the last ones of the same samples.

        Returns:
            A `SteadyState`: ``x``, of the shape of x0, and for each sample ``converged``, ``residual``, ``steps``,
            ``status``, and ``attempt``, (samples,).

        Raises:
            ValueError, TypeError: an argument is not finite or not of the kind expected; fn changes the shape or the
                dtype, mixes samples, or hides x from autograd, or from torch.func what else it depends on.
            ConvergenceError: some sample has not converged; the error's ``result`` is what was found.
        """
        solver = check_solver("solver", solver) or self.solver
        adjoint = check_solver("adjoint", adjoint) or self.adjoint
        check_throw(throw)
        if warm is not None and not isinstance(warm, WarmStart):
            raise TypeError(f"warm: expected a WarmStart, got {type(warm).__name__}")
        self._check_samples_apart()
        inputs, x0 = tuple(map(self._from_autocast, inputs)), self._from_autocast(x0)
        for place, each in enumerate(inputs):
            if isinstance(each, Tensor) and (each.is_floating_point() or each.is_complex()):
                check_finite(f"inputs[{place}]", each)
        adjoint = adjoint or EQUATION_ADJOINT
        if transformed():
            if warm is not None:
                raise ValueError("warm: expected None under the transforms of torch.func, which have no memory")
            return self._transformed_state(inputs, x0, solver, adjoint, throw)
        # A parametrised weight is computed once, and with its history: the first call of fn is one that autograd sees.
        with parametrize.cached():
            x0 = self._start(inputs, x0)
            solver = solver or equation_solver(self._is_factorable(x0))
            equation = Equation(self.fn, inputs, _own(inputs, x0), self.coupled)
            z = equation.rows(x0)
            factors, visit = Factors(z), None if warm is None else warm.visit(z.shape[:1], z.device)
            found, graph = settle(equation, x0, solver, factors, torch.is_grad_enabled(), visit)

        x, samples, receipts = found.value.reshape(x0.shape), x0.shape[:1], list[Receipt]()
        residual, steps = found.residual.expand(samples), found.steps.expand(samples)
        if graph is not None:
            about = {"state_residual": residual, "state_solver": solver, "state_steps": steps}
            x = attach(x, graph, Adjoint(adjoint, throw, factors, receipts, warm=visit, about=about))
        state = SteadyState(
            x=x,
            status=found.status.expand(samples),
            residual=residual,
            steps=steps,
            tolerance=solver.tolerance(x.dtype),
            solver=solver,
            attempt=None if found.method is None else found.method.expand(samples),
            _receipts=receipts,
            _judges=[partial(verdict_of_equation, equation, x0)],  # asked where `state.verdict` is
        )
        if throw:
            check_converged(state)
        return state

    def _transformed_state(
        self, inputs: tuple[Any, ...], x0: Tensor | None, solver: Solver | None, adjoint: Solver, throw: bool
    ) -> SteadyState:
        """The same under torch's transforms, on the plain numbers underneath, of all slices of a ``vmap`` at once."""
        if parametrize._cache_enabled:
            raise ValueError("Equilibrium: expected no parametrize.cached() around it under torch.func")
        with Reading(self.fn, (x0, *inputs)) as reading:
            start = self._start(inputs, x0)
        if reading.nested:
            with Reading(self.fn, (x0, *inputs)) as other:
                self._start(inputs, x0)
            reading.again(other)
        x0 = start
        solver = solver or equation_solver(self._is_factorable(x0))
        places = [place for place, each in enumerate(inputs) if isinstance(each, Tensor)]

        def of_tensors(x: Tensor, *tensors: Tensor) -> Tensor:
            given = dict(zip(places, tensors, strict=False))
            return self.fn(x, *(given.get(place, each) for place, each in enumerate(inputs)))

        fn = Closed(of_tensors, reading)
        tensors = tuple(inputs[place] for place in places)
        arguments, own = (*tensors, *reading.found), (*_own(tensors, x0), *(False for _ in reading.found))
        check_seen(fn, x0, arguments)
        family = Family(fn, x0.ndim, own, self.coupled, solver, adjoint, throw)
        x, status, residual, steps = family.state(x0, arguments, [f"inputs[{place}]" for place in places])
        return SteadyState(x, status, residual, steps, solver.tolerance(x.dtype), solver)

    def _from_autocast(self, given: Any) -> Any:
        """In the dtype of fn's parameters, or float32, what layers before gave in that of an autocast under way."""
        like = next((each for each in self.parameters() if each.is_floating_point()), None)
        return from_autocast(given, torch.float32 if like is None else like.dtype)

    def _is_factorable(self, x0: Tensor) -> bool:
        return math.prod(x0.shape[1:]) <= SMALL and not self.coupled

    def _start(self, inputs: tuple[Any, ...], x0: Tensor | None) -> Tensor:
        """x0, or 0 of the shape of the first input, with which fn has been tried once."""
        given = x0 is not None
        if x0 is None:
            if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
                raise ValueError(
                    "x0: expected a start, (samples, ...), as no first input tells what shape and dtype x has"
                )
            x0 = torch.zeros_like(inputs[0])
        check_finite("x0", check_floating("x0", x0))
        x0 = x0.detach()
        if x0.ndim == 0:
            raise ValueError("x0: expected shape (samples, ...), samples first, got ()")
        try:
            Equation(self.fn, inputs, ())(x0)
        except (RuntimeError, ValueError) as error:
            if given:
                raise
            raise ValueError(
                f"x0: expected a start, as fn does not map the shape of the first input, {tuple(x0.shape)}, to itself: "
                f"{error}"
            ) from error
        return x0

    def _check_samples_apart(self) -> None:
        """Whether a module says of itself that it mixes samples."""
        if self.coupled or not isinstance(self.fn, nn.Module):
            return
        for name, module in self.fn.named_modules():
            if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
                raise ValueError(
                    f"fn: expected each sample to depend on itself alone, and {name or 'it'} is a "
                    f"{type(module).__name__} in training; use GroupNorm or LayerNorm, or Equilibrium(fn, coupled=True)"
                )


def _own(inputs: tuple[Any, ...], x0: Tensor) -> tuple[bool, ...]:
    """Which inputs are each sample's own."""
    return tuple(isinstance(each, Tensor) and each.ndim > 0 and len(each) == len(x0) for each in inputs)
