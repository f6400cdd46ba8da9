"""One Newton step from a state and from its adjoint: what it changes of them is how far off they are.

Where x and s are close, what is left after these steps, x + δx and s + δs, is of second order, and δx and δs are the
errors themselves. All that is solved are the lecture's two equations, v = D (Wv + c) and s = D (Wᵀs + c).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retrograde.connectivity import Operator
from retrograde.feedback import adjoint_problem, tangent_problem
from retrograde.nonlinearity import Nonlinearity
from retrograde.result import Status
from retrograde.solvers import Anderson, Cascade, Direct, FixedPoint, Krylov, Solver
from retrograde.solvers.factors import Factors
from retrograde.structure import factor_size

# One digit of a correction would do, were what is left of it not amplified once more; to be quick, it does.
_RTOL, _QUICK_RTOL = 1e-4, 3e-2

_EPS = torch.finfo(torch.float64).eps


class Correction(NamedTuple):
    """What one Newton step changes, for each sample, and what that says.

    Attributes:
        adjoint: (samples, n) δs.
        state_error: |δx| / |x + δx|, and what rounding hides.
        error: the relative error of s xᵀ: |δs| / |s + δs|, what rounding hides, and what δx changes in x and in g.
        left: the error that s + δs, rounded, would have: its residual, amplified as the one before was.
        steps: how many steps of a solver δx and δs took.
    """

    adjoint: Tensor
    state_error: Tensor
    error: Tensor
    left: Tensor
    steps: Tensor


class StateCorrection(NamedTuple):
    """What one Newton step changes of x, for each sample.

    Attributes:
        there: (samples, n) x + δx, rounded.
        error: |δx| / |x + δx|.
        left: likewise the error that x + δx has: its residual, amplified as the one before was.
        residual: |f(Wx + b) - x| / |x| there.
        amplified: what an error of the state becomes in a gradient, in units of it.
        steps: how many steps of a solver δx took.
    """

    there: Tensor
    error: Tensor
    left: Tensor
    residual: Tensor
    amplified: Tensor
    steps: Tensor


class Samples(NamedTuple):
    """Some samples, (samples, n), in the dtype of residuals; `own` is that they had, `inner` W in that of solves."""

    W: Operator
    f: Nonlinearity
    x: Tensor
    b: Tensor | None
    g: Tensor
    s: Tensor
    own: torch.dtype
    inner: Operator
    solver: Solver
    quick: bool


def correct(given: Samples) -> Correction:
    """One Newton step from x, and one from s there.

    The residuals of a state in float32 are exact in float64. Those of one in float64 are not: what rounding may hide in
    them, noise of that size shows, which is corrected for in two samples more beside each.
    """
    W, f, x, b, g, s = given[:6]
    eps = torch.finfo(given.own).eps
    scale = torch.ldexp(torch.ones_like(g[:, :1]), torch.frexp(g.abs().amax(-1, keepdim=True)).exponent)
    g, s = g / scale, s / scale
    samples, turns = len(x), 1 if given.quick or eps > _EPS else 3
    x, g, s = (t.repeat(turns, 1) for t in (x, g, s))
    b = None if b is None else b.repeat(turns, 1)
    solve, noise = Inner(given, len(x)), _Noise(samples, turns)
    state = _step_of_state(W, f, x, b, solve, noise)
    D = state.D
    if turns > 1 and f.slope_from_output:
        D = D + noise((f.slope(x + _EPS * x) - f.slope(x)) / _EPS)
    Wts = W.T @ s
    r = D * (Wts + g + noise(_product_error(Wts) + g.abs())) - s + noise(s)
    ds, solved, steps = solve(D, W.T @ r, transposed=True)
    ds = ds + r

    known = (state.solved & solved).view(turns, samples).all(0)
    state_error = state.unseen[:samples] * _relative(state.dx, x, samples, tiny=torch.finfo(x.dtype).eps ** 2)
    hidden = hidden_in_slopes(f, x + state.dx, Wts + g)[:samples] if turns == 1 else torch.zeros_like(g[:samples, 0])
    beside = state.amplified[:samples] * state_error + eps
    error = _relative(ds, s, samples)
    D, r, s, ds, g = (each[:samples] for each in (D, r, s, ds, g))
    again, size = (s + ds).to(given.own).to(s), norm(s + ds)
    # A slow mode may hide in r behind rounding, but hardly in s.
    gain = torch.maximum(norm(ds) / norm(r), size / norm(D * g)).nan_to_num(1).clamp(min=1)
    beside = beside + torch.where(hidden > 0, gain * hidden / size, 0)
    left = gain * norm(D * (W.T @ again + g) - again) / size + beside
    error = error + beside + solve.unseen * gain * norm(ds) / size
    state_error, error, left = (torch.where(known & e.isfinite(), e, torch.inf) for e in (state_error, error, left))
    nothing = ((s == 0) & (ds == 0)).all(-1)
    if given.quick:  # else float64 was asked
        nothing = nothing & (hidden == 0)
    nothing = nothing | (g == 0).all(-1)
    error, left = error.masked_fill(nothing, 0), left.masked_fill(nothing, 0)
    return Correction(ds * scale, state_error, error, left, (state.steps + steps)[:samples])


def correct_state(given: Samples) -> StateCorrection:
    """One Newton step from x."""
    W, f, x, b = given[:4]
    assert b is not None  # or there is nothing to correct x by
    state = _step_of_state(W, f, x, b, Inner(given, len(x)), _Noise(len(x), 1))
    there, tiny = (x + state.dx).to(given.own), torch.finfo(x.dtype).eps ** 2
    again = there.to(x)
    residual = norm(f(W @ again + b) - again) / norm(again).clamp(min=tiny)
    error, left = state.unseen * _relative(state.dx, x, len(x), tiny=tiny), state.gain * residual
    error, left = (torch.where(state.solved & e.isfinite(), e, torch.inf) for e in (error, left))
    return StateCorrection(there, error, left, residual, state.amplified, state.steps)


class _State(NamedTuple):
    """δx, D at x + δx, and how far an error is amplified; whether δx leads to a state, and the steps it took.

    `gain` is |δx| over the residual. A quick solve leaves a residual of its own, which may be as much amplified: δx may
    be `unseen` times as long, and so may the gain be.

    How g = dR/dx changes on the way to the steady state is not known from g. It is taken to change on the scale of x,
    or of 1 where that is smaller: relative to g by |δx| / |x|, or by |δx| / √n. The adjoint then amplifies the change,
    by as much, it is assumed, as I - DW amplified the residual. `amplified` |δx| / |x| is what becomes of it.
    """

    dx: Tensor
    D: Tensor
    unseen: Tensor
    gain: Tensor
    amplified: Tensor
    solved: Tensor
    steps: Tensor


def _step_of_state(W: Operator, f: Nonlinearity, x: Tensor, b: Tensor | None, solve: Inner, noise: _Noise) -> _State:
    one = torch.ones_like(x[:, 0])
    if b is None:
        return _State(torch.zeros_like(x), f.slope(x), one, one, one, one.bool(), 0 * one.long())
    Wx = W @ x
    u = Wx + b + noise(_product_error(Wx) + b.abs())
    D, r = f.slope_at(u), f(u) - x + noise(x)
    dx, solved, steps = solve(D, W @ r, transposed=False)
    dx = dx + r
    u = u + W @ dx
    rounding = 8 * torch.finfo(x.dtype).eps * (norm(x) + norm(u))
    solved = solved & (norm(f(u) - x - dx) <= 0.5 * norm(r) + rounding)  # or x is not where Newton's method converges
    gain = torch.where(norm(dx) > norm(r), norm(dx) / norm(r), 1)
    unseen = 1 + solve.unseen * gain
    gain = unseen * gain
    return _State(dx, f.slope_at(u), unseen, gain, gain * carried(x), solved, steps)


class Inner:
    """Solves of v = D (Wv + c), or s = D (Wᵀs + c), in the dtype that is enough for them."""

    def __init__(self, given: Samples, count: int):
        self._W, self._solver, self._dtype = given.inner, given.solver, given.x.dtype
        rtol = given.solver.tolerance(self._W.like.dtype)
        self.unseen = rtol if rtol > _RTOL else 0.0  # of what is solved for, times the gain
        like = given.x.to(self._W.like)
        self._factors, self._rows = Factors(like, count, factor_size(self._W)), torch.arange(count, device=like.device)

    def __call__(self, D: Tensor, c: Tensor, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """v, or s, with whether it was solved and the steps it took, for each sample."""
        D, c = D.to(self._W.like), c.to(self._W.like)
        problem = adjoint_problem if transposed else tangent_problem
        found = self._solver.solve(problem(self._W, D, c, self._factors, self._rows), D * c)
        return found.value.to(self._dtype), found.status == Status.CONVERGED, found.steps


class _Noise:
    """Rounding errors of float64: none in the first turn of the samples, random signs in the others.

    The signs are the same for all samples, so that none depends on its batch.
    """

    def __init__(self, samples: int, turns: int):
        self._turns, self._samples = turns, samples
        self._random = torch.Generator().manual_seed(0)

    def __call__(self, size: Tensor) -> Tensor | float:
        """Noise of that size, in units of eps."""
        if self._turns == 1:
            return 0.0
        n = size.shape[-1]
        signs = torch.randint(2, (self._turns, 1, n), generator=self._random).to(size) * 2 - 1
        signs[0] = 0
        return _EPS * (signs * size.reshape(self._turns, self._samples, n)).reshape(-1, n)


def solver_for(
    n: int, factored: bool, quick: bool, settles: bool = True, large: bool = False, factorable: bool = False
) -> Solver:
    """Iteration, as long as it costs less than a factorisation would; then that, or a search.

    Where nothing `settles` the iteration is left out: what is slow would hide from it. Factors take no longer for more.
    For a `large` W, of which one mode is often far slower than all others, it is accelerated. What is `factorable` is
    factored where the search fails.
    """
    rtol = _QUICK_RTOL if quick and (settles or not factored) else _RTOL
    plain = Anderson(rtol=rtol, max_steps=100) if large else FixedPoint(rtol=rtol, max_steps=30 + n // 4)
    settle = (plain,) if settles else ()
    if factored:
        return Cascade(*settle, Direct(rtol=rtol))
    last = Direct(rtol=rtol) if factorable else FixedPoint(rtol=rtol)
    return Cascade(*settle, Krylov(rtol=rtol, max_steps=300), last)


def _relative(change: Tensor, z: Tensor, samples: int, tiny: float = 0.0) -> Tensor:
    """|δz| / |z + δz|, δz without noise, and how the noise moves it, added; 0 where both are 0."""
    size = norm(z[:samples] + change[:samples]).clamp(min=tiny)
    first, *noisy = change.split(samples) if samples else (change,)
    length = norm(first)
    if noisy:
        length = length + torch.stack([norm(each - first) for each in noisy]).square().mean(0).sqrt()
    return torch.where(length == 0, 0, length / size)


def _product_error(Wx: Tensor) -> Tensor:
    """What rounding does to a product of n terms, in units of eps: as measured, and as much again."""
    return Wx.abs() + (1 + Wx.shape[-1] ** 0.5 / 8) * Wx.square().mean(-1, keepdim=True).sqrt()


def hidden_in_slopes(f: Nonlinearity, x: Tensor, pulled: Tensor) -> Tensor:
    """|dD (Wᵀs + g)|, of what the rounding of x does to D: of a saturated neuron 1 - x² may be nothing else."""
    if not f.slope_from_output:
        return torch.zeros_like(x[:, 0])
    return norm((f.slope(x + torch.finfo(x.dtype).eps * x) - f.slope(x)) * pulled)


def carried(x: Tensor) -> Tensor:
    """How much more than the relative error of x that of dR/dx may be, which changes on the scale of x, or of 1."""
    return (norm(x) / x.shape[-1] ** 0.5).clamp(min=1)


def norm(z: Tensor) -> Tensor:
    """|z|, of each sample."""
    return torch.linalg.vector_norm(z, dim=-1)
