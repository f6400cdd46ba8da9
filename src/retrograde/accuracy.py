"""How far a gradient is from the true one, and how close I - DW is to singular: told afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from retrograde.corrections import Correction, Inner, Samples, StateCorrection, correct, correct_state, norm, solver_for
from retrograde.recurrence import Recurrence

# Steps of the power method, for the largest singular value and, with the inverse, for the smallest.
_LARGEST_STEPS, _SMALLEST_STEPS = 12, 4

_ROOM = 2**31  # bytes that the samples of one turn may take


class Spectrum(NamedTuple):
    """The smallest and the largest singular value of I - DW, for each sample."""

    smallest: Tensor
    largest: Tensor


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a gradient was computed from, and itself: x, g = dR/dx and s, each (..., n), and b, where it is known.

    It holds these tensors and the weights of W, not copies of them, and knows when one was overwritten.

    Args:
        net: the equations.
        x: where g was taken.
        b: broadcasts against x.
        g: dR/dx.
        s: dR/db.
        factored: whether I - DW may be factored.
    """

    net: Recurrence
    x: Tensor
    b: Tensor | None
    g: Tensor
    s: Tensor
    factored: bool
    lacking: ClassVar[str] = ""  # why nothing can be told: of a network something always can
    _versions: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_versions", self._now())

    def _now(self) -> list[int]:
        held = (self.x, self.b, self.g, self.s, *self.net.W.bind().weights)
        return [t._version for t in held if t is not None and not t.is_inference()]

    @property
    def changed(self) -> bool:
        """Whether a tensor was overwritten since, as an optimiser's step overwrites W."""
        return self._now() != self._versions

    def correction(self, quick: bool = False, rounded: bool = False) -> Correction:
        """One Newton step from x, and one from s there; `quick` ones to a digit, in the dtype of x.

        Their residuals are in float64, but those of quick ones in the dtype of x too where it does not matter how it
        `rounded`.
        """
        return Correction(*self._in_turns(correct, quick, rounded))

    def state_correction(self, rounded: bool = False) -> StateCorrection:
        """One quick Newton step from x."""
        return StateCorrection(*self._in_turns(correct_state, True, rounded))

    def spectrum(self) -> Spectrum:
        """The extreme singular values of I - DW by the power method, which finds no smaller and no larger ones."""
        return Spectrum(*self._in_turns(_singular_values))

    def reward_change(self) -> Tensor:
        """lᵀ (f(Wx + b) - x), l = g + Wᵀs: how far R is from what it is at the steady state, to second order."""
        return self._in_turns(_reward_change)[0]

    def take(self, rows: Tensor) -> Evidence:
        """That of some samples, (samples, n)."""
        x, b, g, s = self.flat()
        return Evidence(self.net, x[rows], None if b is None else b[rows], g[rows], s[rows], self.factored)

    def flat(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """x, b, g and s, each (samples, n)."""
        shape = self.x.shape

        def flattened(t: Tensor) -> Tensor:
            return t.detach().expand(shape).reshape(-1, shape[-1])

        b = None if self.b is None else flattened(self.b)
        return flattened(self.x), b, flattened(self.g), flattened(self.s)

    def _in_turns(
        self, told: Callable[[Samples], tuple[Tensor, ...]], quick: bool = False, rounded: bool = True
    ) -> tuple[Tensor, ...]:
        """What is told of the samples, a few at a time."""
        W, n, own = self.net.W.bind(), self.x.shape[-1], self.x.dtype
        low = torch.promote_types(own, torch.float32)
        dtype = low if quick and not rounded else torch.float64
        inner = W.bind(*(w.detach().to(low if quick else dtype) for w in W.weights))
        W = W.bind(*(w.detach().to(dtype) for w in W.weights))
        solver = solver_for(n, self.factored, quick)
        at_once = max(1, _ROOM // (dtype.itemsize * n * max(150, 9 * n if self.factored else 0)))
        turns = []
        with torch.no_grad():
            for rows in torch.arange(self.x[..., 0].numel(), device=self.x.device).split(at_once):
                x, b, g, s = self.take(rows).flat()
                b = None if b is None else b.to(dtype)
                x, g, s = (t.to(dtype) for t in (x, g, s))
                turns.append(told(Samples(W, self.net.f, x, b, g, s, own, inner, solver, quick)))
        return tuple(torch.cat(each) for each in zip(*turns, strict=True))


def _singular_values(given: Samples) -> Spectrum:
    W, f, x, b = given[:4]
    D, solve = f.slope(x) if b is None else f.slope_at(W @ x + b), Inner(given, len(x))
    start = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)

    def A(v: Tensor) -> Tensor:
        return v - D * (W @ v)

    def unit(v: Tensor) -> Tensor:
        return v / norm(v)[:, None]

    v = unit(start.expand_as(x))
    for _ in range(_LARGEST_STEPS):
        v = A(v)
        v = unit(v - W.T @ (D * v))  # Aᵀ
    largest = norm(A(v))
    v = unit(start.expand_as(x))
    for _ in range(_SMALLEST_STEPS):
        v = unit(v + W.T @ solve(D, v, transposed=True)[0])  # A⁻ᵀ = I + Wᵀ (I - DWᵀ)⁻¹ D
        v = unit(v + solve(D, W @ v, transposed=False)[0])  # A⁻¹ = I + (I - DW)⁻¹ DW
    smallest = norm(A(v))
    return Spectrum(torch.where(smallest.isfinite(), smallest, 0), torch.where(largest.isfinite(), largest, torch.inf))


def _reward_change(given: Samples) -> tuple[Tensor, ...]:
    W, f, x, b, g, s, *_ = given
    assert b is not None  # R is corrected where b is known
    change = ((g + W.T @ s) * (f(W @ x + b) - x)).sum(-1)
    return (torch.where(change.isnan(), torch.inf, change),)
