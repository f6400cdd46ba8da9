"""The figures of a fit: what was recorded beside what the network does, and how well each parameter is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from retrograde.report.drawings import BARS, short
from retrograde.report.figures import some
from retrograde.report.ink import BLUE, FAINT, RED, finite, sketch


@sketch(4.4, 4.0)
def agreement(figure: Figure, recorded: ArrayLike, predicted: ArrayLike, held_out: ArrayLike) -> str:
    """A point for each number: on the diagonal where the network has it; those that were held out in red."""
    axes = figure.subplots()
    recorded, predicted = finite(recorded), finite(predicted)
    out = np.asarray(held_out, bool)
    ends = [float(f([np.nanmin(recorded), np.nanmax(recorded)])) for f in (min, max)]
    axes.plot(ends, ends, color=FAINT, linewidth=1.0, zorder=0)
    for rows, colour, mark, label in ((~out, BLUE, "o", "fitted"), (out, RED, "D", "held out")):
        if rows.any():
            which = some(np.flatnonzero(rows))
            axes.scatter(
                recorded[which],
                predicted[which],
                s=12,
                color=colour,
                marker=mark,
                alpha=0.6,
                linewidths=0,
                label=label,
            )
    axes.legend(loc="upper left")
    axes.set(xlabel="recorded", ylabel="predicted")
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_locator(MaxNLocator(5))
    return f"{len(recorded)} recorded numbers beside those predicted, {int(out.sum())} of them held out"


@sketch(5.2, 4.6)
def intervals(figure: Figure, names: Sequence[object], values: ArrayLike, low: ArrayLike, high: ArrayLike) -> str:
    """A value and its 95% interval in each row; one that is not determined is a red diamond, without an interval."""
    values, low, high = (np.asarray(each, float)[:BARS] for each in (values, low, high))
    labels = [short(name, 28) for name in names[: len(values)]]
    figure.set_figheight(max(1.4, 0.75 + 0.17 * len(values)))
    axes = figure.subplots()
    place = np.arange(len(values))
    known = np.isfinite(low) & np.isfinite(high)
    axes.hlines(place[known], low[known], high[known], color=BLUE, linewidth=2.0, alpha=0.5)
    axes.scatter(values[known], place[known], s=16, color=BLUE, linewidth=0)
    axes.scatter(values[~known], place[~known], s=18, color=RED, marker="D", linewidth=0)
    axes.set_yticks(place, labels)
    axes.set(ylim=(len(values) - 0.4, -0.6), xlabel="value")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x")
    return f"the first {len(values)} values and their 95% intervals; {int((~known).sum())} are not determined"
