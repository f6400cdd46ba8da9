"""The stability radius: how much a Jacobian may change before perturbations no longer die out.

J + E has the eigenvalue z where zI - J - E is singular, and the least E that makes it so is as large as σ(z), the
smallest singular value of zI - J. Eigenvalues become unstable across a boundary, |z| = 1 in steps and Re z = 1 of DW in
continuous time, and so the radius is the least σ on it. Where on the boundary a singular value is γ, a matrix of 2n
rows tells by its eigenvalues. So from the least that is known, one goes down to a lower level between the places where
σ passes it, until it passes none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from retrograde.held import Holder
from retrograde.result import ConvergenceError
from retrograde.spectrum.extremes import SMALL
from retrograde.spectrum.first_order import Differential, Linear
from retrograde.spectrum.pairs import Pair

SURE = 1e-6  # of the radius: no point of the boundary has a σ that is less by more
_NEAR = 1e-5  # to the boundary, an eigenvalue that rounding may have moved from there
_FEW = 8  # points that are looked at together
_LEVELS = 50


class Boundary(ABC):
    """Beyond it the eigenvalues of one real J are unstable; by symmetry t >= 0 is all of it."""

    def __init__(self, J: Tensor):
        self.J = J
        self.one = torch.eye(len(J), dtype=J.dtype, device=J.device)

    @abstractmethod
    def at(self, t: Tensor) -> Tensor:
        """The points z."""

    @abstractmethod
    def begin(self) -> Tensor:
        """Where to look first: beside the eigenvalues that are nearest to it, and where it crosses the real axis."""

    @abstractmethod
    def passed(self, level: float) -> Tensor:
        """Where a singular value may be of that level, which is below σ on the real axis."""

    def sigma(self, t: Tensor) -> Tensor:
        """σ at each of the points t."""
        return torch.linalg.svdvals(self.at(t)[:, None, None] * self.one - self.J)[:, -1]


class Circle(Boundary):
    """|z| = 1, z = exp(it), t <= π."""

    def at(self, t: Tensor) -> Tensor:
        """The points z."""
        return torch.polar(torch.ones_like(t), t)

    def begin(self) -> Tensor:
        """Where to look first."""
        values = torch.linalg.eigvals(self.J)
        leading = values[values.abs().argsort(descending=True)[:_FEW]]
        return torch.cat([leading.angle().abs(), self.J.new_tensor([0.0, torch.pi])])

    def passed(self, level: float) -> Tensor:
        """Where a singular value may be of that level.

        With (zI - J) v = γu and its adjoint, z [[I, 0], [γI, Jᵀ]] (v, u) = [[J, γI], [0, I]] (v, u). Of that pencil
        (A, B), A - B and A + B have the eigenvalues μ = (z - 1) / (z + 1), which are imaginary where |z| = 1.
        """
        J, one, none = self.J, self.one, torch.zeros_like(self.J)
        A = torch.cat([torch.cat([J, level * one], -1), torch.cat([none, one], -1)])
        B = torch.cat([torch.cat([one, none], -1), torch.cat([level * one, J.T], -1)])
        mu = torch.linalg.eigvals(torch.linalg.solve(A + B, A - B))
        mu = mu[(mu.real.abs() <= _NEAR * (1 + mu.abs())) & (mu.imag > 0)]
        return ((1 + mu) / (1 - mu)).angle()


class Line(Boundary):
    """Re z = 1, z = 1 + it."""

    def at(self, t: Tensor) -> Tensor:
        """The points z."""
        return torch.complex(torch.ones_like(t), t)

    def begin(self) -> Tensor:
        """Where to look first."""
        values = torch.linalg.eigvals(self.J)
        rightmost = values[values.real.argsort(descending=True)[:_FEW]]
        return torch.cat([rightmost.imag.abs(), self.J.new_zeros(1)])

    def passed(self, level: float) -> Tensor:
        """Where a singular value may be of that level: it (v, u) = [[J - I, γI], [-γI, (I - J)ᵀ]] (v, u)."""
        A = self.J - self.one
        H = torch.cat([torch.cat([A, level * self.one], -1), torch.cat([-level * self.one, -A.T], -1)])
        values = torch.linalg.eigvals(H)
        return values.imag[(values.real.abs() <= _NEAR * (1 + values.abs())) & (values.imag > 0)]


@dataclass(frozen=True, eq=False)
class Jacobians(Holder):
    """DW and the Jacobian of the network's own dynamics; in float64 of the weights that W has, not of copies."""

    DW: Linear
    own: Linear

    def held(self) -> Iterable[object]:
        """What may be overwritten: slopes and leak are their own."""
        return self.DW.W.weights

    def radius(self, stable: Tensor, continuous: bool) -> Tensor:
        """That of each sample, of the shape of `stable`: `Stability.radius`."""
        if self.changed:
            raise RuntimeError("radius: W was overwritten since; ask before the optimiser takes its step")
        J = self.DW if continuous else self.own
        if J.W.shape[0] > SMALL:
            raise NotImplementedError(f"radius: expected at most {SMALL} neurons, got {J.W.shape[0]}")
        with torch.no_grad():
            found = stability_radius(J.detached(), stable.reshape(-1), continuous)
        return found.attached(J, once)[:, 0].reshape(stable.shape)


def stability_radius(J: Linear, stable: Tensor, continuous: bool) -> Differential:
    """The least norm of a complex E by which an eigenvalue of J + E reaches the boundary, for each sample.

    It is 0, and does not change, where a sample is not `stable`. Its differential is -Re(uᴴ dJ v), of the singular
    vectors at the nearest point of the boundary, which to first order stays where it is.
    """
    samples, n = J.d.shape
    values, simple = J.d.new_zeros(samples, 1), torch.ones(samples, 1, dtype=torch.bool, device=J.d.device)
    p, v = torch.zeros(2, samples, 1, n, dtype=torch.complex128, device=J.d.device)
    for k in stable.nonzero()[:, 0].tolist():
        M = J.rows(torch.tensor([k], device=J.d.device)).dense()[0]
        boundary = Line(M) if continuous else Circle(M)
        values[k, 0], p[k, 0], v[k, 0], simple[k, 0] = _there(boundary, _nearest(boundary))
    return Differential(values, p, v, simple)


def once(*_: Tensor) -> Pair:
    """What would be the singular vectors as functions of M."""
    raise NotImplementedError("radius: expected to be differentiated once; a second derivative is not known")


def _nearest(boundary: Boundary) -> Tensor:
    """Where on the boundary σ is least."""
    t = boundary.begin()
    s = boundary.sigma(t)
    here, least = t[s.argmin()], s.min()
    rounding = torch.finfo(s.dtype).eps * (1 + torch.linalg.matrix_norm(boundary.J, 2))
    for _ in range(_LEVELS):
        if least <= rounding:
            return here
        ends = boundary.passed(float((1 - SURE) * least)).sort().values
        between = (ends[:-1] + ends[1:])[ends.diff().argsort(descending=True)] / 2
        for some in between.split(_FEW):
            s = boundary.sigma(some)
            if len(s) and s.min() < (1 - SURE) * least:
                here, least = some[s.argmin()], s.min()
                break
        else:
            return _bottom(boundary, here, 1e-3 * float(least))
    raise ConvergenceError(f"radius: after {_LEVELS} levels there are still lower ones than {float(least):.3g}", here)


def _bottom(boundary: Boundary, here: Tensor, width: float) -> Tensor:
    """The least of σ about here, where it is smooth: the derivative of the radius is that of the least alone."""

    def sigma(t: float) -> float:
        return float(boundary.sigma(here.new_tensor([t])))

    t = float(here)
    for _ in range(_LEVELS):
        how = {"xatol": 1e-7 * width}
        found = minimize_scalar(sigma, bounds=(t - width, t + width), method="bounded", options=how)
        inside = abs(found.x - t) < 0.9 * width
        t, width = (float(found.x) if found.fun < sigma(t) else t), 4 * width
        if inside:
            break
    return here.new_tensor(t)


def _there(boundary: Boundary, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """σ, its differential's -ū and v, and whether it is simple."""
    U, values, Vh = torch.linalg.svd(boundary.at(t) * boundary.one - boundary.J)
    resolved = torch.finfo(values.dtype).eps ** 0.6 * values[0]
    gap = values[-2] - values[-1] if len(values) > 1 else values.new_tensor(torch.inf)
    return values[-1], -U[:, -1].conj(), Vh[-1].conj(), (gap > resolved) & (values[-1] > resolved)
