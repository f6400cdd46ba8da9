"""How far a gradient is from the true one, and how close I - DW is to singular: told afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from retrograde.corrections import Correction, Inner, Samples, StateCorrection, correct, correct_state, solver_for
from retrograde.defaults import is_accelerated, is_factorable
from retrograde.held import Holder
from retrograde.recurrence import Recurrence
from retrograde.singular import Maps, Spectrum, extreme_values

_STEPS = 4  # of the power method with the inverse
_ROOM = 2**31  # bytes that the samples of one turn may take


@dataclass(frozen=True, eq=False)
class Evidence(Holder):
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

    def held(self) -> tuple[Tensor | None, ...]:
        """All that it was computed from, and itself."""
        return (self.x, self.b, self.g, self.s, *self.net.W.bind().weights)

    def correction(self, quick: bool = False, rounded: bool = False, settles: bool = True) -> Correction:
        """One Newton step from x, and one from s there; `quick` ones to a digit, in the dtype of x.

        Their residuals are in float64, but those of quick ones in the dtype of x too where it does not matter how it
        `rounded`. Plain steps solve for them where that `settles`.
        """
        return Correction(*self._in_turns(correct, quick, rounded, settles))

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
        self,
        told: Callable[[Samples], tuple[Tensor, ...]],
        quick: bool = False,
        rounded: bool = True,
        settles: bool = True,
    ) -> tuple[Tensor, ...]:
        """What is told of the samples, a few at a time."""
        W, n, own = self.net.W.bind(), self.x.shape[-1], self.x.dtype
        low = torch.promote_types(own, torch.float32)
        dtype = low if quick and not rounded else torch.float64
        inner = W.bind(*(w.detach().to(low if quick else dtype) for w in W.weights))
        W = W.bind(*(w.detach().to(dtype) for w in W.weights))
        solver = solver_for(n, self.factored, quick, settles, is_accelerated(W), is_factorable(W))
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

    maps = Maps(
        A=lambda v: v - D * (W @ v),
        transposed=lambda v: v - W.T @ (D * v),
        inverse=lambda v: v + solve(D, W @ v, transposed=False)[0],  # I + (I - DW)⁻¹ DW
        inverse_transposed=lambda v: v + W.T @ solve(D, v, transposed=True)[0],  # I + Wᵀ (I - DWᵀ)⁻¹ D
    )
    return extreme_values(maps, x, _STEPS)


def _reward_change(given: Samples) -> tuple[Tensor, ...]:
    W, f, x, b, g, s, *_ = given
    assert b is not None  # R is corrected where b is known
    change = ((g + W.T @ s) * (f(W @ x + b) - x)).sum(-1)
    return (torch.where(change.isnan(), torch.inf, change),)
