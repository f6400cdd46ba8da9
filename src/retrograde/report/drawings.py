"""The figures of the questions on a connectome, each a `Sketch` for a page or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering

from retrograde.report.figures import some
from retrograde.report.ink import AMOUNT, BLUE, CYCLE, FAINT, GREEN, INK, PURPLE, RED, finite, heat, reach, sketch, thin

BARS = 25  # as many are drawn
NAMED = 60  # rows or columns of a heat map, up to which each is named
LINES = 8  # traces, up to which each has a colour
CLUSTERED = 1500  # rows, up to which they are clustered
CELLS = 512  # rows and columns of a heat map


@sketch(5.2, 4.6)
def bars(
    figure: Figure, names: Sequence[object], values: ArrayLike, axis: str, beside: ArrayLike | None = None, of: str = ""
) -> str:
    """The first values, a bar each, red above 0 and blue below; ``beside`` them a second number, called ``of``."""
    values = finite(values)[:BARS]
    labels = [short(name) for name in names[: len(values)]]
    figure.set_figheight(max(1.4, 0.75 + 0.17 * len(values)))
    axes = figure.subplots()
    place = np.arange(len(values))
    axes.barh(place, np.nan_to_num(values), 0.72, color=np.where(values < 0, BLUE, RED), linewidth=0)
    if beside is not None:
        others = finite(beside)[: len(values)]
        axes.scatter(others, place, marker="D", s=16, facecolor=INK, linewidth=0, label=of, zorder=3)
        figure.legend(loc="outside upper right")
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set_yticks(place, labels)
    axes.set(ylim=(len(values) - 0.4, -0.6), xlabel=axis)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x")
    return f"the {len(values)} largest, as bars: {axis}"


@sketch(5.2, 4.6)
def groups(
    figure: Figure, table: pd.DataFrame, bar: str, cluster: bool = True, rows: str = "", columns: str = ""
) -> str:
    """A table of groups (rows) by groups (columns) as a heat map, those that are alike as neighbours."""
    values = finite(table.to_numpy(float))
    square = list(table.index) == list(table.columns)
    rest = values * (1 - np.eye(len(values))) if square else values  # the diagonal would hide the rest
    across, down = np.arange(len(values)), np.arange(values.shape[1])
    if cluster:
        across, down = [alike(np.hstack([rest, rest.T]))] * 2 if square else (alike(values), alike(values.T))
    values = values[across][:, down]
    signs = {"limit": reach(rest)}
    amounts = {"cmap": AMOUNT, "norm": Normalize(0, reach(rest))}
    names = [short(table.index[i]) for i in across], [short(table.columns[i]) for i in down]
    longest = max(map(len, names[1]), default=1)
    figure.set_size_inches(
        float(np.clip(2.2 + 0.2 * values.shape[1], 3.6, 7.5)), float(np.clip(1.3 + 0.2 * len(values), 2.2, 8))
    )
    axes = figure.subplots()
    extent = (-0.5, values.shape[1] - 0.5, len(values) - 0.5, -0.5)
    heat(axes, thin(values, CELLS), bar=bar, extent=extent, **(signs if np.nanmin(values, initial=0) < 0 else amounts))
    size = 8 if max(values.shape) <= 30 else 6
    for side, labels in zip((axes.yaxis, axes.xaxis), names, strict=True):
        if len(labels) <= NAMED:
            turned = side is axes.xaxis and longest * len(labels) > 40
            side.set_ticks(range(len(labels)), labels, fontsize=size, rotation=90 if turned else 0)
        else:
            side.set_ticks([])
    axes.tick_params(length=0)
    axes.set(xlabel=columns, ylabel=rows)
    return f"heat map of {len(values)} by {values.shape[1]} groups: {bar}"


@sketch(5.2, 2.9)
def density(figure: Figure, values: Mapping[str, ArrayLike] | ArrayLike, axis: str, logarithmic: bool = False) -> str:
    """How values are distributed; several, by name, as outlines. A logarithmic axis leaves out those that are 0."""
    named = values if isinstance(values, Mapping) else {"": values}
    several = {str(name): _positive(finite(each).ravel(), logarithmic) for name, each in named.items()}
    axes = figure.subplots()
    everything = np.concatenate([each[np.isfinite(each)] for each in several.values()])
    if everything.size:
        low, high = float(everything.min()), float(everything.max())
        high = high if high > low else low + (abs(low) or 1.0)
        edges = np.geomspace(low, high, 61) if logarithmic else np.linspace(low, high, 61)
        for i, (name, each) in enumerate(several.items()):
            counts, _ = np.histogram(each[np.isfinite(each)], edges)
            colour = CYCLE[i % len(CYCLE)]
            axes.stairs(counts, edges, color=colour, linewidth=1.4, linestyle=_DASHES[i % 4], label=name or None)
            axes.stairs(counts, edges, color=colour, fill=True, alpha=0.25 if len(several) == 1 else 0.08)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(several) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.set(xlabel=axis, ylabel="neurons", ylim=(0, None))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(axis="y")
    return f"distribution of: {axis}"


_DASHES: Sequence[object] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


@sketch(5.8, 4.2)
def traces(
    figure: Figure,
    time: ArrayLike,
    activity: ArrayLike,
    names: Sequence[object],
    unit: str = "time",
    title: str = "activity",
    input: ArrayLike | None = None,
    rows: str = "neurons",
) -> str:
    """Activity (T, n) over time: up to `LINES` traces, or else the liveliest of them; below, all as a raster.

    ``rows`` says what the n are.
    """
    time, activity = np.asarray(time, float), finite(activity)
    T, n = activity.shape
    lively = np.argsort(-np.ptp(np.nan_to_num(activity), axis=0), kind="stable")[:LINES]
    heights = [1.1, max(0.5, min(1.6, 0.09 * n))]
    parts = figure.subplots(
        2 + (input is not None), 1, sharex=True, height_ratios=[0.35] * (input is not None) + heights
    )
    if input is not None:
        given = finite(input).reshape(T, -1)
        axes = parts[0]
        axes.fill_between(time, given.sum(1), step="mid", color=FAINT, linewidth=0)
        axes.set(ylabel="input")
        axes.yaxis.set_major_locator(MaxNLocator(2))
    above, below = parts[-2:]
    for i, k in enumerate(sorted(lively)):
        style = _DASHES[(i // 4) % 4]
        above.plot(time, activity[:, k], color=CYCLE[i], linestyle=style, linewidth=1.3, label=short(names[k]))
    above.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    above.legend(loc="upper left", bbox_to_anchor=(1.0, 1.1), handlelength=1.6, labelspacing=0.2, fontsize=7.5)
    above.set(ylabel=title)
    above.yaxis.set_major_locator(MaxNLocator(4))
    raster(below, time, activity, names, rows)
    below.set(xlabel=unit)
    below.xaxis.set_major_locator(MaxNLocator(7))
    return f"{title} of {n} {rows} over time, as traces and as a raster"


def raster(axes: Axes, time: np.ndarray, activity: np.ndarray, names: Sequence[object], rows: str = "neurons") -> None:
    """A row for each neuron, or whatever the rows are, ordered by when it peaks, red above 0 and blue below."""
    T, n = activity.shape
    order = np.argsort(np.argmax(np.abs(np.nan_to_num(activity)), axis=0), kind="stable")
    step = (time[-1] - time[0]) / max(T - 1, 1) or 1.0
    extent = (time[0] - step / 2, time[-1] + step / 2, n - 0.5, -0.5)
    heat(axes, thin(activity[:, order].T, CELLS), bar="activity", extent=extent)
    if n <= 24:
        axes.set_yticks(range(n), [short(names[k]) for k in order], fontsize=7)
    else:
        axes.set(yticks=[], ylabel=f"{n:,} {rows}, by when they peak")
    axes.tick_params(axis="y", length=0)


@sketch(4.4, 4.2)
def spectrum(figure: Figure, values: ArrayLike, what: str = "DW") -> str:
    """Eigenvalues in the complex plane: the unit circle, within which steps settle, and the line Re = 1 of the flow."""
    axes = figure.subplots()
    values = some(np.asarray(values, complex))
    axes.axhline(0, color=FAINT, linewidth=0.6)
    axes.axvline(0, color=FAINT, linewidth=0.6)
    axes.add_patch(Circle((0, 0), 1, facecolor=GREEN, alpha=0.08, linewidth=0))
    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=GREEN, linewidth=1.2))
    axes.axvline(1, color=PURPLE, linewidth=1.2, linestyle=(0, (5, 2)))
    for inside, colour, mark in ((values.real < 1, BLUE, "o"), (values.real >= 1, RED, "D")):
        axes.scatter(values[inside].real, values[inside].imag, s=14, color=colour, marker=mark, alpha=0.6, linewidths=0)
    span = 1.12 * max(1.0, float(np.abs(values).max(initial=0)))
    axes.set(xlim=(-span, span), ylim=(-span, span), aspect="equal", xlabel="real part", ylabel="imaginary part")
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_locator(MaxNLocator(5))
    handles = [
        Line2D([], [], color=GREEN, linewidth=1.2, label="|λ| = 1: x(t) = f(W x(t−1) + b)"),
        Line2D([], [], color=PURPLE, linewidth=1.2, linestyle=(0, (5, 2)), label="Re λ = 1: τ dx/dt = −x + f(Wx + b)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=1, fontsize=7.5)
    return f"eigenvalues of {what} against the unit circle and the line of real part 1"


def alike(values: np.ndarray) -> np.ndarray:
    """An order of the rows in which those that are alike are neighbours: average linkage, leaves turned to fit."""
    values = np.nan_to_num(values)
    if not 2 < len(values) <= CLUSTERED:
        return np.arange(len(values))
    tree = linkage(values, "average")
    return leaves_list(optimal_leaf_ordering(tree, values) if len(values) <= 300 else tree)


def _positive(values: np.ndarray, logarithmic: bool) -> np.ndarray:
    return np.abs(values[values != 0]) if logarithmic else values


def short(name: object, most: int = 22) -> str:
    """A name that fits beside a figure."""
    text = str(name)
    return text if len(text) <= most else text[: most - 1] + "…"
