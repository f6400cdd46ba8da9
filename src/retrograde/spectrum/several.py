"""The several steady states of one network: many starts, Newton's method, and deflation of those already found."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from retrograde.checks import check_finite, check_last_axis, check_like
from retrograde.recurrence import Recurrence
from retrograde.result import Status, Trajectory
from retrograde.solvers import FixedPoint, Newton, Solution, Solver
from retrograde.solvers.base import check_number
from retrograde.spectrum.cells import Cell, cell_of
from retrograde.spectrum.deflation import DeflatedNewton
from retrograde.spectrum.found import SteadyStates
from retrograde.spectrum.modes import decompose, modes, spectra
from retrograde.spectrum.resolution import norm, polished
from retrograde.transforms import precisely

if TYPE_CHECKING:
    from retrograde.network import Network

# Every other random start has run along its trajectory for so long: gated cells live far from most random states.
_ALONG = 20
# After so many rounds in a row without a new state the search ends.
_QUIET = 2


@precisely
def find_steady_states(
    net: Network | Recurrence | nn.RNNCellBase | Callable[[Tensor], Tensor],
    input: Tensor | None = None,
    *,
    starts: int | Tensor | Trajectory = 128,
    seed: int = 0,
    n: int | None = None,
    x0: Tensor | None = None,
    rounds: int = 20,
    settle: int = 1000,
    modes: int = 6,
) -> SteadyStates:
    """Looks for all steady states x = F(x) of a network, a torch cell or a function, and says how thorough that was.

    From every start Newton's method runs, and the cell's own dynamics. Then Newton's method runs again, from as many
    starts, on F(x) - x multiplied by η(x) = Π (1/|x - xᵢ|² + 1), which keeps it away from the xᵢ found (lengths are in
    units of the distance between neighbours among these); round after round, until two in a row find nothing new. No
    method knows that it has found all: ``dry``, ``hits`` and ``coverage`` tell how it went.

    Args:
        net: a Network, whose F(x) = f(Wx + b + input); a Recurrence, F(x) = f(Wx + input); a ``torch.nn.RNNCell`` or
            ``GRUCell``, F(h) = cell(input, h), or ``LSTMCell``, x = (h, c) end to end; or a differentiable function
            that takes (samples, n) to (samples, n), row by row.
        input: (n,) for a network, (input_size,) for a torch cell; None is 0.
        starts: how many random ones, half of which then run for 20 steps of the dynamics; or a tensor (..., n) of
            them; or a Trajectory, whose states they are.
        seed: of the random starts.
        n: how many neurons a function has.
        x0: (n,), around which the random starts of a function are scattered; it tells the dtype, too.
        rounds: how often deflation may be repeated.
        settle: for how many steps the dynamics may run. 0: no basins are sampled.
        modes: how many leading eigenvalues and modes to give.

    Returns:
        `SteadyStates`. Two states count as one if they are as close as the dtype and (I - J)⁻¹ let them be told apart.

    Raises:
        ValueError, TypeError: an argument of the wrong kind, shape or dtype, or not finite.
        ConvergenceError: Arnoldi's method, for the eigenvalues of a W that is not a full matrix, did not converge.

    References:
        P. E. Farrell, Á. Birkisson and S. W. Funke, SIAM J. Sci. Comput. 37 (2015), arXiv 1410.5620; D. Sussillo and
        O. Barak, "Opening the black box", Neural Computation 25 (2013).

    >>> import retrograde as rg
    >>> net = rg.Network(torch.tensor([[2.0]]).double())  # x = tanh(2x)
    >>> found = find_steady_states(net)
    >>> found.x[:, 0].sort().values
    tensor([-0.9575,  0.0000,  0.9575], dtype=torch.float64)
    >>> found.stable[found.x[:, 0].argsort()], found.dry
    (tensor([ True, False,  True]), True)
    """
    for name, value, least in (("rounds", rounds, 0), ("settle", settle, 0), ("modes", modes, 1), ("seed", seed, 0)):
        _check_integer(name, value, least)
    with torch.no_grad():
        cell = cell_of(net, input, n, x0)
        draw = _draw(cell, starts, seed, x0)
        return _Search(cell, draw).run(rounds, settle, modes)


class _Search:
    """The states found so far, and how."""

    def __init__(self, cell: Cell, draw: Callable[[], Tensor]):
        self.cell, self.draw = cell, draw
        self.starts = starts = draw()
        # What counts as 1 in a distance, and what a state near 0 is measured by.
        self.scale = float(norm(starts).median()) or 1.0
        self.found = starts[:0]
        self.reach = starts.new_empty(0)  # how far from each its duplicates may lie
        self.isolated = torch.empty(0, dtype=torch.bool, device=starts.device)
        self.x_init, self.change = starts[:0], starts.new_empty(0)
        self.steps = torch.empty(0, dtype=torch.int64, device=starts.device)

    def run(self, rounds: int, settle: int, modes: int) -> SteadyStates:
        plain = self.solve(Newton(), self.starts)
        hits = self.merge(plain, self.starts)
        ends = torch.full((len(self.starts),), -1, device=self.starts.device)
        if settle:
            own = FixedPoint(max_steps=settle).solve(self.cell.problem(own=True), self.starts)
            settled = (own.status == Status.CONVERGED).nonzero()[:, 0]
            ends[settled] = self.merge(self.solve(Newton(), own.value[settled]), self.starts[settled])
        done = quiet = 0
        while done < rounds and quiet < _QUIET and len(self.starts):
            known, starts = len(self.found), self.draw()
            deflated = DeflatedNewton(known=self.found, scale=self.apart())
            self.merge(self.solve(deflated, starts), starts)
            done, quiet = done + 1, 0 if self.isolated[known:].any() else quiet + 1
        return self.told(hits, ends, done, quiet == _QUIET, modes)

    def apart(self) -> float:
        """How far, at the median, a state's nearest neighbour is. Longer arms would repel from all as if from one."""
        if len(self.found) < 2:
            return self.scale
        away = torch.cdist(self.found, self.found).fill_diagonal_(torch.inf).amin(1)
        return min(self.scale, float(away.median()))

    def solve(self, solver: Solver, x: Tensor) -> Solution:
        """The solver from each row of x; a state near 0 converges by its residual beside the size of the starts."""
        parts = [solver.solve(self.cell.problem(), block) for block in self.cell.blocks(x)]
        value, status, residual, steps = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("value", "status", "residual", "steps")
        )
        status = torch.where(self.residual(value) <= solver.tolerance(x.dtype), int(Status.CONVERGED), status)
        beyond = value.abs().amax(-1) > self.cell.bound
        return Solution(value, torch.where(beyond, int(Status.DIVERGED), status), residual, steps)

    def residual(self, x: Tensor) -> Tensor:
        """|F(x) - x| / |x|, (samples,); where x is near 0, relative to a thousandth of the size of the starts."""
        return norm(self.cell.step(x) - x) / norm(x).clamp(min=1e-3 * self.scale)

    def merge(self, solution: Solution, starts: Tensor) -> Tensor:
        """Which state each row ended at, -1 for none; those not seen before are added."""
        label = torch.full((len(starts),), -1, device=starts.device)
        rows = (solution.status == Status.CONVERGED).nonzero()[:, 0]
        if not len(rows):
            return label
        x, steps = solution.value[rows], solution.steps[rows]
        x, change, reach, isolated = polished(self.cell, x, self.scale)
        left = self.residual(x).argsort(stable=True)
        for state in range(len(self.found)):
            left = self.claim(state, label, rows, x, reach, left)
        while len(left):
            best = left[:1]
            self.found = torch.cat([self.found, x[best]])
            self.reach = torch.cat([self.reach, reach[best]])
            self.x_init = torch.cat([self.x_init, starts[rows[best]]])
            self.change = torch.cat([self.change, change[best]])
            self.isolated = torch.cat([self.isolated, isolated[best]])
            self.steps = torch.cat([self.steps, steps[best] + 1])
            label[rows[best]] = len(self.found) - 1
            left = self.claim(len(self.found) - 1, label, rows, x, reach, left[1:])
        return label

    def claim(self, state: int, label: Tensor, rows: Tensor, x: Tensor, reach: Tensor, left: Tensor) -> Tensor:
        """Labels those of `left` that are this state, and gives the rest."""
        away = norm(x[left] - self.found[state])
        same = away <= reach[left] + self.reach[state]
        label[rows[left[same]]] = state
        return left[~same]

    def told(self, hits: Tensor, ends: Tensor, rounds: int, dry: bool, most: int) -> SteadyStates:
        """The result, with the spectrum at each state."""
        cell, x, count = self.cell, self.found, max(1, len(self.starts))
        k, n = x.shape
        basin = torch.bincount(ends[ends >= 0], minlength=k).to(x) / count
        values, vectors, real, own = _spectra(cell, x, most)
        stable = (own.abs() < 1).all(-1)
        order = torch.arange(k, device=x.device)
        for key in (x[:, 0] if n else basin, stable.to(x), basin):  # the last decides first
            order = order[key[order].argsort(descending=True, stable=True)]
        kept = min(most, values.shape[-1])
        return SteadyStates(
            x=x[order],
            residual=self.residual(x)[order],
            isolated=self.isolated[order],
            stable=stable[order],
            stable_discrete=(values.abs() < 1).all(-1)[order],
            stable_continuous=(real.real < 1).all(-1)[order],
            eigenvalues=values[order, :kept],
            modes=vectors[order, :kept],
            basin=basin[order],
            unsettled=int((ends < 0).sum()) / count,
            hits=torch.bincount(hits[hits >= 0], minlength=k)[order],
            failed=int((hits < 0).sum()),
            starts=len(self.starts),
            rounds=rounds,
            dry=dry,
            x_init=self.x_init[order],
            steps=self.steps[order],
            _change=self.change[order],
            _cell=cell,
        )


def _spectra(cell: Cell, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each state eigenvalues and modes, eigenvalues again, and multipliers; where J is formed, in batches."""
    if cell.full is None:
        each = [(*spectra(cell, state, k), modes(cell, state, k)[1]) for state in x]
        if not each:
            empty = torch.empty(0, 0, dtype=torch.complex128)
            return empty, empty[..., None], empty, empty
        values, real, own, vectors = (torch.stack(parts) for parts in zip(*each, strict=True))
        return values, vectors, real, own
    J = torch.cat([cell.full(block) for block in cell.blocks(x)]) if len(x) else x.new_empty(0, x.shape[1], x.shape[1])
    values, vectors = decompose(J)
    return values, vectors, values, values if cell.leak is None else decompose(cell.own(J))[0]


def _draw(cell: Cell, starts: Any, seed: int, x0: Tensor | None) -> Callable[[], Tensor]:
    """What gives (samples, n) starts: those asked for, or at each call other random ones."""
    n = len(cell.like)
    if isinstance(starts, Trajectory):
        starts = starts.x
    if isinstance(starts, Tensor):
        check_finite("starts", check_last_axis("starts", check_like("starts", starts, cell.like), n))
        given = starts.detach().reshape(-1, n)
        return lambda: given
    _check_integer("starts", starts, 1)
    generator = torch.Generator().manual_seed(seed)
    centre = cell.like if x0 is None else x0.detach()

    def random() -> Tensor:
        x = centre + cell.draw(starts, generator)
        y = x[1::2]
        for _ in range(_ALONG):
            y = cell.advance(y)
        x[1::2] = torch.where(y.isfinite().all(-1, keepdim=True), y, x[1::2])
        return x

    return random


def _check_integer(name: str, value: Any, least: int) -> None:
    if check_number(name, value, Integral) < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value}")
