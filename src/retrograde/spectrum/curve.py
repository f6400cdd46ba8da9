"""The curve of steady states F(x, t) = x in (x, t): tangents and corrections, by the bordered system."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.solvers.base import default_rtol
from retrograde.spectrum.cells import solve_affine
from retrograde.spectrum.families import Family
from retrograde.spectrum.modes import spectra

# The least cosine between the tangents of neighbouring points: about 10 degrees.
STRAIGHT = 0.985
_CORRECTIONS = 8
# Beyond this the squared length of a tangent, next to that of the one before it, tells of a singular matrix.
_STEEP = 1e6


@dataclass(frozen=True, eq=False)
class Point:
    """A point of the curve.

    Attributes:
        y: (n + 1,), x and then t.
        tangent: (n + 1,), of length 1 in the curve's own measure.
        residual: \\|F(x) - x\\|, relative.
        values: eigenvalues of J, largest modulus first.
        real: eigenvalues of J, largest real part first.
        own: multipliers of the cell's own dynamics, largest modulus first.
    """

    y: Tensor
    tangent: Tensor
    residual: float
    values: Tensor
    real: Tensor
    own: Tensor

    @property
    def x(self) -> Tensor:
        """(n,)."""
        return self.y[:-1]

    @property
    def t(self) -> float:
        """The parameter."""
        return float(self.y[-1])


class Curve:
    """Length is measured with x as its root mean square over `scale`, and t over the `width` of its range."""

    def __init__(self, family: Family, x: Tensor, width: float, modes: int):
        self.family, self.modes = family, modes
        n = len(x)
        self.scale = max(1.0, float(torch.linalg.vector_norm(x)) / max(1, n) ** 0.5)
        self.weights = torch.cat([torch.full_like(x, 1 / (n * self.scale**2)), x.new_tensor([1 / width**2])])
        self.rtol = default_rtol(x.dtype)

    def inner(self, one: Tensor, other: Tensor) -> float:
        """The inner product."""
        return float((self.weights * one * other).sum())

    def unit(self, v: Tensor) -> Tensor:
        """v made of length 1."""
        return v / self.inner(v, v) ** 0.5

    def jacobian(self, y: Tensor) -> Tensor:
        """d(x - F)/d(x, t), (n, n + 1): [I - J, -dF/dt]. For small n."""
        x, t = y[None, :-1], float(y[-1])
        full = self.family.at(t).full
        assert full is not None  # of small n
        return torch.cat([torch.eye(x.shape[1]).to(x) - full(x)[0], -self.family.slope(x, t).mT], 1)

    def solve(self, y: Tensor, border: Tensor, r: Tensor, s: float, exactly: bool = False) -> Tensor | None:
        """v with [I - J, -dF/dt] v = r and <border, v> = s; None where there is none."""
        row = self.weights * border
        row, s = row / torch.linalg.vector_norm(row), s / float(torch.linalg.vector_norm(row))
        right = torch.cat([r, r.new_tensor([s])])
        x, t = y[None, :-1], float(y[-1])
        cell = self.family.at(t)
        if cell.full is not None:
            A = torch.cat([self.jacobian(y), row[None]])
            v, info = torch.linalg.solve_ex(A, right)
            return v if not info and v.isfinite().all() else None
        J, slope = cell.tangent(x), self.family.slope(x, t)

        def product(v: Tensor, _: Tensor | None) -> Tensor:
            along = v[:, -1:]
            return torch.cat([J(v[:, :-1]) + slope * along, along - (v @ row)[:, None]], 1)

        v = solve_affine(product, right[None], self.rtol if exactly else 1e-4)[0]
        return v if v.isfinite().all() else None

    def tangent(self, y: Tensor, before: Tensor) -> Tensor:
        """The tangent at y that goes on in the direction of the one before; at a branch point, where none, that one."""
        v = self.solve(y, before, torch.zeros_like(y[:-1]), 1.0, exactly=True)
        if v is None or self.inner(v, v) > _STEEP:
            return before
        return self.unit(v)

    def residual(self, y: Tensor) -> tuple[Tensor, float]:
        """F(x) - x, and its size relative to x; where x is near 0, to a thousandth of `scale`."""
        x = y[:-1]
        r = self.family.at(float(y[-1])).step(x[None])[0] - x
        size = max(float(torch.linalg.vector_norm(x)), 1e-3 * self.scale * len(x) ** 0.5)
        return r, float(torch.linalg.vector_norm(r)) / size

    def correct(self, y: Tensor, normal: Tensor) -> Tensor | None:
        """Newton's method from y in the hyperplane through y that has this normal; None where it does not converge."""
        before = float("inf")
        for _ in range(_CORRECTIONS):
            r, size = self.residual(y)
            rounding = before / 2 < size <= 1e3 * self.rtol  # is all that is left of r
            if size <= self.rtol or rounding:
                return y
            v = self.solve(y, normal, r, 0.0)
            if v is None or not size < torch.inf:
                return None
            y, before = y + v, size
        return None

    def point(self, y: Tensor, before: Tensor) -> Point:
        """All that is known of a point of the curve; `before` is the tangent of one before it."""
        cell = self.family.at(float(y[-1]))
        return Point(y, self.tangent(y, before), self.residual(y)[1], *spectra(cell, y[:-1], self.modes))

    def beyond(self, p: Point, length: float) -> Tensor | None:
        """The point of the curve in the hyperplane at that length along the tangent of p; None where not found."""
        return self.correct(p.y + length * p.tangent, p.tangent)

    def between(self, p: Point, q: Point, length: float, s: float) -> Tensor | None:
        """As `beyond`, on the way to q, which lies at `length`. None, too, where it is a point of another branch.

        From the cubic through both ends it takes so small a correction that a branch that crosses is not run into until
        very near.
        """
        aligned = self.inner(q.tangent, p.tangent)
        if aligned < STRAIGHT:
            return self.beyond(p, s)
        r, end = s / length, q.tangent * (length / aligned)
        start, away = p.tangent * length, q.y - p.y
        y = p.y + r * start + r**2 * (3 * away - 2 * start - end) + r**3 * (start + end - 2 * away)
        found = self.correct(y, p.tangent)
        if found is None or self.inner(self.tangent(found, p.tangent), p.tangent) < STRAIGHT:
            return None
        return found
