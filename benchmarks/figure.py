"""results.svg: the best peer's time over Retrograde's, in every cell."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from benchmarks.results import Result
from benchmarks.summary import Cell, cells, is_steady, is_trajectory

COLOURS = {1: "#0072b2", 32: "#e69f00", 64: "#e69f00", 256: "#009e73"}  # of the batches


def draw(results: Iterable[Result], path: Path) -> None:
    """Trajectories above, steady states below; a panel for each T or gain, a line for each batch."""
    everything = cells(results)
    rows = [
        [(f"trajectories, T = {T}", group) for T, group in _by("T", filter(is_trajectory, everything))],
        [(f"steady states, gain {gain}", group) for gain, group in _by("gain", filter(is_steady, everything))],
    ]
    rows = [row for row in rows if row]
    columns = max(map(len, rows), default=1)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(3.2 * columns, 2.8 * len(rows)), sharey="row", squeeze=False, layout="constrained"
    )
    for panels, row in zip(axes, rows, strict=True):
        for panel in panels[len(row) :]:
            panel.set_visible(False)
        for panel, (title, group) in zip(panels, row, strict=False):
            _panel(panel, title, group)
        panels[0].set_ylabel("best peer's time / Retrograde's")
    plt.rcParams["svg.hashsalt"] = "retrograde"  # the same bytes for the same results
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _panel(panel: Axes, title: str, group: list[Cell]) -> None:
    for batch, line in _by("batch", group):
        points = [(cell.problem.n, cell.ratio) for cell in line if cell.ratio is not None]
        if points:
            panel.plot(*zip(*points, strict=True), "o-", color=COLOURS[batch], label=f"batch {batch}")
    sizes = sorted({cell.problem.n for cell in group})
    panel.axhline(1, color="black", linewidth=0.8)
    panel.set(title=title, xlabel="n", xscale="log", yscale="log")
    panel.set_xticks(sizes, map(str, sizes))
    panel.minorticks_off()
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}×")
    panel.legend(frameon=False, fontsize="small")


def _by(name: str, group: Iterable[Cell]) -> list[tuple[float, list[Cell]]]:
    """The cells for each value of n, batch, T or gain."""
    values: dict[float, list[Cell]] = {}
    for cell in group:
        values.setdefault(getattr(cell.problem, name), []).append(cell)
    return sorted(values.items())
