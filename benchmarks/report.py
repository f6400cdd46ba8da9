"""RESULTS.md: the means and the goals first, then every time beside its error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.measure import TOLERANCES
from benchmarks.peers import PEERS
from benchmarks.results import Log, Result
from benchmarks.steady import Steady
from benchmarks.summary import GOALS, GROUPS, Cell, cells, is_steady, is_trajectory, mean_ratio, peak_fraction
from benchmarks.trajectories import Trajectory

OPENING = f"""\
# How fast each gradient is, and how exact

Written by `make bench`. Float32, tanh, a full random W: the states, their adjoint and dR/dW, for a reward that is a
fixed random sum of the states. The peers of a table ran together on the same threads and took turns, so that a slow
spell of the machine hit them all. A time is the median of the repetitions, beside their range; the first call, which
compiles, is not among them.

The error is that of dR/dW against float64, relative, in the Frobenius norm: a dense solve at a steady state, a loop
over time along a trajectory. A time in brackets does not count: its error is above {Steady.largest_error:.0e} at a
steady state, or {Trajectory.largest_error:.0e} along a trajectory. "× best" is a time over that of the fastest peer
that counts.
"""

TRAJECTORIES = """\
## Trajectories

6 n² batch T operations, at this fraction of the speed of a large product. The memory is what a call holds at its peak
beyond its input. The two `nn.RNN` multiply their input by a W_ih, here the identity and frozen, which costs them a
product more; with each other they compare fairly.
"""

STEADY = f"""\
## Steady states

Gain is the spectral radius of W; b has standard deviation 1. "Retrograde" is as it comes, and so it is in float64. The
others took the loosest relative tolerance that holds the error, of the numbers 1, 2 and 5 times a power of ten from
{TOLERANCES[0]:.0e} to {TOLERANCES[-1]:.0e}; where none did, the one with the least error.
"""


def report(log: Log) -> str:
    """The whole page."""
    everything = cells(log.results)
    product = max((result.product for result in log.results if result.product), default=float("nan"))
    parts = [OPENING, _machine(log.machine, product), _means(everything), _goals(everything, product)]
    parts += [_trajectories(everything, product), _steady(everything), _first_calls(log.results), _left_out(everything)]
    return "\n".join(part for part in parts if part)


def _machine(machine: dict[str, Any], product: float) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    missing = sorted({peer.package for peer in PEERS if not peer.installed})
    return (
        f"{machine['processor']}, {machine['threads']} threads; a large product in float32 runs at {product / 1e9:.0f} "
        f"GFLOP/s. Python {machine['python']}, {versions}.\n"
        + (f"Left out, as they are not installed: {', '.join(missing)}.\n" if missing else "")
    )


def _means(everything: list[Cell]) -> str:
    rows = []
    for name, which in GROUPS.items():
        group = [cell for cell in everything if which(cell) and cell.ratio is not None]
        if group:
            lowest = min(group, key=lambda cell: cell.ratio or 0)
            rows.append((name, len(group), _times(mean_ratio(group)), f"{_times(lowest.ratio)} ({lowest.problem})"))
    head = ("", "cells", "best peer's time / Retrograde's, geometric mean", "lowest")
    return "## Against the best peer\n\n![The ratio in each cell](results.svg)\n\n" + _table(head, rows)


def _goals(everything: list[Cell], product: float) -> str:
    rows = []
    for goal in GOALS:
        asked = [cell for cell in everything if goal.which(cell)]
        misses = goal.misses(asked, product)
        told = "; ".join(f"{cell.problem}: {_number(value)}" for cell, value in misses.items())
        if asked:
            rows.append((goal.name, f"{len(asked) - len(misses)} of {len(asked)}", told))
    return "## Goals\n\n" + _table(("goal", "cells that reach it", "cells that miss it, and what they reach"), rows)


def _trajectories(everything: list[Cell], product: float) -> str:
    rows = []
    for cell in filter(is_trajectory, everything):
        for result in filter(lambda result: result.seconds, cell.results):
            where = (cell.problem.n, cell.problem.batch, cell.problem.T)
            rows.append((*where, *_common(result, cell), _number(peak_fraction(result, product)), _mebibytes(result)))
    head = ("n", "batch", "T", "by", "ms", "range", "× best", "error", "of peak", "MiB")
    return TRAJECTORIES + "\n" + _table(head, rows) if rows else ""


def _steady(everything: list[Cell]) -> str:
    rows = []
    for cell in filter(is_steady, everything):
        for result in filter(lambda result: result.seconds, cell.results):
            where = (cell.problem.n, cell.problem.batch, cell.problem.gain)
            tolerance = "" if result.tolerance is None else f"{result.tolerance:.0e}"
            rows.append((*where, *_common(result, cell), tolerance, _mebibytes(result)))
    head = ("n", "batch", "gain", "by", "ms", "range", "× best", "error", "tolerance", "MiB")
    return STEADY + "\n" + _table(head, rows) if rows else ""


def _first_calls(results: Iterable[Result]) -> str:
    rows = []
    for peer in PEERS:
        first = [r.first for r in results if (r.problem.kind, r.peer) == (peer.kind, peer.name) and r.first is not None]
        if first:
            rows.append((peer.kind, peer.name, f"{median(first):.2f}", f"{max(first):.2f}"))
    text = "Seconds of the first call on a problem, over all problems. JAX compiles for each shape anew."
    return f"## First calls\n\n{text}\n\n" + _table(("", "by", "median", "longest"), rows)


def _left_out(everything: list[Cell]) -> str:
    grouped: dict[tuple[str, str], list[str]] = {}
    for cell in everything:
        for result in filter(lambda result: result.note, cell.results):
            grouped.setdefault((result.peer, result.note), []).append(str(cell.problem))
    rows = [(peer, note, "; ".join(problems)) for (peer, note), problems in grouped.items()]
    return "## Left out\n\n" + _table(("who", "why", "where"), rows) if rows else ""


def _common(result: Result, cell: Cell) -> tuple[str, ...]:
    time, spread = _ms(result.median), f"{_ms(min(result.seconds))}–{_ms(max(result.seconds))}"
    best = "" if cell.best is None or not result.counts else _number(result.median / cell.best.median)
    return result.peer, time if result.counts else f"({time})", spread, best, f"{result.error:.1e}"


def _mebibytes(result: Result) -> str:
    return "" if result.peak is None else f"{result.peak / 2**20:.1f}"


def _ms(seconds: float) -> str:
    return _number(1e3 * seconds)


def _number(value: float | None) -> str:
    """Three digits, and all those before the point."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _times(value: float | None) -> str:
    return f"{_number(value)}×"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
