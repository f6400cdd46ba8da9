"""What the results amount to: ratios to the best peer, their means, and the goals that they reach or miss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import geometric_mean

from benchmarks.peers import PEERS, RETROGRADE, TORCH_RNN
from benchmarks.results import Result
from benchmarks.steady import Steady
from benchmarks.trajectories import Trajectory
from benchmarks.workers import Problem

OURS = {peer.name for peer in PEERS if peer.ours}


@dataclass(frozen=True)
class Cell:
    """All results of one problem."""

    problem: Problem
    results: tuple[Result, ...]

    @property
    def ours(self) -> Result | None:
        """Retrograde as it comes; where that misses the error, the fastest of its other rows that do not."""
        counting = [result for result in self.results if result.peer in OURS and result.counts]
        as_it_comes = (result for result in counting if result.peer == RETROGRADE)
        return next(as_it_comes, min(counting, key=lambda result: result.median, default=None))

    @property
    def best(self) -> Result | None:
        """The fastest peer whose gradient is right."""
        peers = [result for result in self.results if result.peer not in OURS and result.counts]
        return min(peers, key=lambda result: result.median, default=None)

    @property
    def ratio(self) -> float | None:
        """How many times faster than the best peer."""
        return self._over(self.best)

    @property
    def over_rnn(self) -> float | None:
        """How many times faster than `torch.nn.RNN`."""
        return self._over(next((r for r in self.results if r.peer == TORCH_RNN and r.counts), None))

    def _over(self, peer: Result | None) -> float | None:
        return peer.median / self.ours.median if self.ours is not None and peer is not None else None


def cells(results: Iterable[Result]) -> list[Cell]:
    """The results by problem, the small problems first."""
    grouped: dict[Problem, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.problem, []).append(result)
    order = sorted(grouped, key=lambda problem: (problem.kind, *vars(problem).values()))
    return [Cell(problem, tuple(grouped[problem])) for problem in order]


def peak_fraction(result: Result, product: float) -> float | None:
    """The speed of a trajectory's products, as a fraction of the machine's."""
    if not isinstance(result.problem, Trajectory) or not result.seconds:
        return None
    return result.problem.flops / result.median / product


def mean_ratio(cells: Iterable[Cell]) -> float | None:
    """The geometric mean of the ratios that there are."""
    ratios = [cell.ratio for cell in cells if cell.ratio is not None]
    return geometric_mean(ratios) if ratios else None


def is_trajectory(cell: Cell) -> bool:
    return isinstance(cell.problem, Trajectory)


def is_steady(cell: Cell) -> bool:
    return isinstance(cell.problem, Steady)


def is_large(cell: Cell) -> bool:
    return is_trajectory(cell) and cell.problem.n >= 256 and cell.problem.batch >= 32


Which = Callable[[Cell], bool]

GROUPS: dict[str, Which] = {
    "trajectories, all cells": is_trajectory,
    "trajectories, n ≥ 256, batch ≥ 32": is_large,
    "trajectories, batch 1": lambda cell: is_trajectory(cell) and cell.problem.batch == 1,
    "steady states, all cells": is_steady,
    "steady states, n ≤ 256": lambda cell: is_steady(cell) and cell.problem.n <= 256,
    "steady states, n = 1000": lambda cell: is_steady(cell) and cell.problem.n == 1000,
    "steady states, gain 0.99": lambda cell: is_steady(cell) and cell.problem.gain == 0.99,
}


@dataclass(frozen=True)
class Goal:
    """`value` is at least `least` in all the cells that `which` picks. A cell without a value misses it."""

    name: str
    least: float
    which: Which
    value: Callable[[Cell, float], float | None]

    def misses(self, cells: Iterable[Cell], product: float) -> dict[Cell, float | None]:
        """The cells that miss it, and what they reach."""
        values = {cell: self.value(cell, product) for cell in cells if self.which(cell)}
        return {cell: value for cell, value in values.items() if value is None or value < self.least}


def _ratio(cell: Cell, _: float) -> float | None:
    return cell.ratio


GOALS = (
    Goal("trajectories: no slower than the best peer", 1, is_trajectory, _ratio),
    Goal(
        "trajectories, n ≥ 256, batch ≥ 32: 0.80 of the product's speed",
        0.8,
        is_large,
        lambda cell, product: peak_fraction(cell.ours, product) if cell.ours else None,
    ),
    Goal(
        "trajectories, n = 64, batch 1: 20 times as fast as torch.nn.RNN",
        20,
        lambda cell: is_trajectory(cell) and cell.problem.n == 64 and cell.problem.batch == 1,
        lambda cell, _: cell.over_rnn,
    ),
    Goal("steady states, n ≤ 256: 5 times as fast as the best peer", 5, GROUPS["steady states, n ≤ 256"], _ratio),
    Goal("steady states, n = 1000: twice as fast as the best peer", 2, GROUPS["steady states, n = 1000"], _ratio),
    Goal("steady states, gain 0.99: 5 times as fast as the best peer", 5, GROUPS["steady states, gain 0.99"], _ratio),
)
