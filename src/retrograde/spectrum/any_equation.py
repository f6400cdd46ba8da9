"""The verdict on steady states of x = fn(x, *inputs), for any fn, by products with its Jacobian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from retrograde.equation import SMALL, Equation
from retrograde.equation_graph import Graph
from retrograde.result import ConvergenceError, SteadyState
from retrograde.spectrum.eigen import Modes, leading_modes
from retrograde.spectrum.glance import Leading
from retrograde.spectrum.stable import Bifurcation, turns
from retrograde.spectrum.verdicts import Verdicts, judged
from retrograde.transforms import precisely

# A Jacobian is formed after all, where the search by products failed, up to this many numbers.
_LARGEST = 1024
_RTOL = 1e-4  # of the slowest Ritz pair: the leading eigenvalue then has four to six digits


@precisely
def verdict_of_equation(
    equation: Equation, x0: Tensor, state: SteadyState, near: float = 0.01, steps: int = 4096
) -> Verdicts:
    """How each sample of a state of the equation ends, by the dynamics x ← fn(x, *inputs); see `verdict`.

    Raises:
        ValueError: the state is no longer one of fn, as its parameters have moved.
        ConvergenceError: Arnoldi's method did not find the leading eigenvalues.
    """
    batch, equation = state.status.shape, equation.detached()
    with torch.no_grad(), parametrize.cached():
        x, start = equation.rows(state.x.detach()), equation.rows(x0)
        found = state.converged[: len(x)] & torch.linalg.vector_norm(x, dim=-1).isfinite()  # coupled samples are one
        dynamics = OfEquation(equation, x, state.x.shape)
        r = torch.linalg.vector_norm(dynamics.advance(x) - x, dim=-1)
        allowed = max(10 * state.tolerance, torch.finfo(x.dtype).eps ** 0.5) * torch.linalg.vector_norm(x, dim=-1)
        if not (r <= allowed.clamp(min=torch.finfo(x.dtype).eps))[found].all():
            raise ValueError("verdict: the state is none of fn as it is now; ask before the optimiser takes its step")
        told = judged(dynamics, dynamics.look, x, found, start, near, steps)
    # Of coupled samples there is one verdict, on all of them.
    return Verdicts(*(each.expand(batch) if equation.coupled else each.reshape(batch) for each in told.tensors))


@dataclass(frozen=True, eq=False)
class OfEquation:
    """x ← fn(x, *inputs) for some samples, as rows.

    Attributes:
        like: (samples, n), any x of these.
        shape: of all of x.
    """

    equation: Equation
    like: Tensor
    shape: torch.Size

    @property
    def drive(self) -> Tensor:
        """(samples,) |fn(0)|."""
        return torch.linalg.vector_norm(self.advance(torch.zeros_like(self.like)), dim=-1)

    @property
    def bounded(self) -> bool:
        """What is not known of an fn is not taken for granted."""
        return False

    def take(self, rows: Tensor) -> OfEquation:
        """Those of some samples."""
        return OfEquation(self.equation.take(rows), self.like[rows], self.shape)

    def _whole(self, z: Tensor) -> Tensor:
        return z.reshape(self.shape if self.equation.coupled else (len(z), *self.shape[1:]))

    def advance(self, x: Tensor) -> Tensor:
        """The next x."""
        return self.equation.rows(self.equation(self._whole(x)))

    def carried(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The next x, and where a perturbation v is then."""
        x, v = self._whole(x), self._whole(v)
        try:
            y, Jv = self.equation.pushed(x, v)
        except RuntimeError:
            graph = Graph(self.equation, x)
            return self.equation.rows(graph.y.detach()), graph.moved(self.equation.rows(v))
        return self.equation.rows(y), self.equation.rows(Jv)

    def look(self, x: Tensor, rows: Tensor, near: float) -> Leading:
        """What decides on the stability of these samples, whose x this is."""
        told = [self.take(row)._look(x_row) for row, x_row in zip(rows.split(1), x.split(1), strict=True)]
        margin, rightmost, close, direction = (torch.cat(each) for each in zip(*told, strict=True))
        return Leading(margin, margin, 1 - rightmost, close, direction)

    def _look(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one sample."""
        graph, n = Graph(self.equation, self._whole(x)), x.shape[1]
        by_modulus, by_real = (each.each(lambda part: part[None]) for each in _modes(graph, n))
        value, v = by_modulus.values[:, 0], by_modulus.right[:, 0]
        margin = 1 - value.abs()
        flip = torch.full_like(margin, int(Bifurcation.FLIP), dtype=torch.int64)
        close = torch.where(turns(value), int(Bifurcation.HOPF), flip)
        if not turns(value) and value.real > 0:
            meet = self._three_meet(x, margin, v.real, by_modulus.left[:, 0].real)
            close[:] = int(Bifurcation.PITCHFORK if meet else Bifurcation.FOLD)
        return margin, by_real.values[:, 0].real, close, v

    def _three_meet(self, x: Tensor, margin: Tensor, v: Tensor, w: Tensor) -> bool:
        """Whether two other steady states are near rather than one; see `normal_form.three_meet`.

        Here a = wᵀ D²fn(v, v) and c = wᵀ D³fn(v, v, v) for wᵀv = 1, by differences of wᵀJv along v.
        """
        v, w = v.to(x), w.to(x)
        eps = torch.finfo(x.dtype).eps
        h = eps**0.25 * max(1.0, float(torch.linalg.vector_norm(x)) / x.shape[1] ** 0.5)
        low, here, high = ((w * self.carried(x + step * v, v)[1]).sum() / (w * v).sum() for step in (-h, 0.0, h))
        a, c = (high - low) / (2 * h), (high - 2 * here + low) / h**2
        return bool(a**2 < 6 * c.abs() * margin.abs().clamp(min=eps**0.5))


def _modes(graph: Graph, n: int) -> tuple[Modes, Modes]:
    """The leading mode of one sample by |λ|, and by Re λ."""
    like = graph.equation.rows(graph.x.detach())[0]

    def product(v: Tensor) -> Tensor:
        return graph.moved(v[None])[0]

    def transposed(w: Tensor) -> Tensor:
        return graph.transposed(w[None])[0]

    if n > SMALL:
        try:
            by_modulus = leading_modes(product, 1, by="modulus", transposed=transposed, like=like, rtol=_RTOL)
            return by_modulus, leading_modes(product, 1, by="real", like=like, rtol=_RTOL)
        except ConvergenceError:
            if n > _LARGEST:
                raise
    equation, x = graph.equation, graph.x.detach()
    J = (graph.jacobian() if equation.coupled or n > SMALL else equation.jacobian(x))[0].double()
    return leading_modes(J, 1, by="modulus"), leading_modes(J, 1, by="real")
