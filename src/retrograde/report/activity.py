"""The activity of one example: a steady state as bars or on a grid, a trajectory as traces and a heat map."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from retrograde.report.ink import AMOUNT, BLUE, CYCLE, FAINT, INK, RED, drawing, finite, heat, reach, thin
from retrograde.training.examination import Example

BARS = 256  # neurons, up to which each has a bar
TRACES = 6  # neurons or outputs, up to which each has a trace
CELLS = 256  # rows and columns of a heat map


@drawing(3.4, 2.5)
def steady(figure: Figure, example: Example, limit: float) -> str:
    """What was shown, answered and wanted, where there is such; below, the activity, up to ``limit`` in size."""
    activity = finite(example.activity)
    panels = _panels(example, activity)
    recalled = any(values.size == activity.size and np.array_equal(values.ravel(), activity) for _, values in panels)
    rows = [*([panels] if panels else []), *([] if recalled else [None])]
    if len(rows) == 1:
        figure.set_figheight(1.4)
    parts = figure.subfigures(len(rows), 1, height_ratios=[1.2 if row else 1 for row in rows], squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        if row is None:
            _steady_activity(part.subplots(), activity, limit)
            continue
        for axes, (title, values) in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            _panel(axes, title, values, limit)
    return f"activity at a steady state: {example.title}"


def _panels(example: Example, activity: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Title and values of each small picture, laid out as the picture is where there are as many values."""
    shape = None if example.picture is None else np.shape(example.picture)
    panels = [] if example.picture is None else [("shown", finite(example.picture))]
    for title, values in (("answered", example.output), ("wanted", example.target)):
        if values is not None and np.ndim(values) == 1:
            values = finite(values)
            fits = shape is not None and values.size == np.prod(shape)
            panels.append((title, values.reshape(shape) if fits else values))
    return panels


def _panel(axes: Axes, title: str, values: np.ndarray, limit: float) -> None:
    if values.ndim == 1 and values.size <= BARS:
        _bars(axes, values, reach(values))
    else:
        picture = grid(values) if values.ndim == 1 else thin(values, CELLS)
        if np.nanmin(picture, initial=0) < 0:
            heat(axes, picture, limit, aspect="equal")
        else:
            top = float(np.nanmax(picture, initial=0)) or 1.0
            heat(axes, picture, cmap=AMOUNT, norm=Normalize(0, top), aspect="equal")
        axes.set(xticks=[], yticks=[])
    axes.set_title(title)


def _steady_activity(axes: Axes, activity: np.ndarray, limit: float) -> None:
    if activity.size <= BARS:
        _bars(axes, activity, limit)
        axes.set_ylabel("activity")
    else:
        heat(axes, grid(activity), limit, "activity", aspect="equal")
        axes.set(xticks=[], yticks=[], xlabel=f"{activity.size:,} neurons, row by row")


def _bars(axes: Axes, values: np.ndarray, limit: float) -> None:
    colours = np.where(values < 0, BLUE, RED)
    axes.bar(np.arange(values.size), np.nan_to_num(values), 0.85, color=colours, linewidth=0)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    low = -limit if np.nanmin(values, initial=0) < 0 else 0
    axes.set(xlim=(-0.8, values.size - 0.2), ylim=(1.05 * low, 1.05 * limit))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=(1, 2, 5, 10)))
    axes.spines["bottom"].set_visible(False)


def grid(values: np.ndarray) -> np.ndarray:
    """Values row by row on a grid twice as wide as high, NaN where the last row runs out; thinned if there are many."""
    width = int(np.ceil(np.sqrt(2 * values.size)))
    height = -(-values.size // width)
    padded = np.full(width * height, np.nan)
    padded[: values.size] = values
    return thin(padded.reshape(height, width), CELLS)


@drawing(3.4, 3.2)
def moving(figure: Figure, example: Example, limit: float) -> str:
    """Traces of the output against its target, or else of the liveliest neurons; below, all neurons as a heat map."""
    activity = finite(example.activity)
    T, n = activity.shape
    time = np.arange(1, T + 1)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    output, target = (_over_time(values, T) for values in (example.output, example.target))
    if output is not None and target is not None and output.shape != target.shape:
        target = None
    if output is None and target is None:
        lively = np.sort(np.argsort(-np.ptp(np.nan_to_num(activity), axis=0), kind="stable")[:TRACES])
        output, title = activity[:, lively], f"the {len(lively)} liveliest neurons"
    else:
        title = "output" if target is None else "output, and in grey its target"
    _traces(above, time, output, target)
    above.set_title(title, loc="left")
    order = np.argsort(np.argmax(np.abs(np.nan_to_num(activity)), axis=0), kind="stable")
    extent = (0.5, T + 0.5, n, 0)
    heat(below, thin(activity[:, order].T, CELLS), limit, "activity", extent=extent)
    below.set(xlabel="time", ylabel="neuron, sorted", xlim=(0.5, T + 0.5))
    for side in (below.xaxis, below.yaxis):
        side.set_major_locator(MaxNLocator(5, integer=True))
    return f"activity along a trajectory: {example.title}"


def _over_time(values: np.ndarray | None, T: int) -> np.ndarray | None:
    """(T, k), at most `TRACES` of them; None where the values do not run along the trajectory."""
    if values is None or len(values) != T:
        return None
    return finite(values).reshape(T, -1)[:, :TRACES]


def _traces(axes: Axes, time: np.ndarray, output: np.ndarray | None, target: np.ndarray | None) -> None:
    """One trace above another, each about its own level."""
    given = [values for values in (output, target) if values is not None]
    lane = 2.4 * max(reach(values) for values in given)
    mark = "." if len(time) < 3 else ""
    levels = -lane * np.arange(given[0].shape[1])
    for i, level in enumerate(levels):
        axes.axhline(level, color=FAINT, linewidth=0.5)
        if target is not None:
            axes.plot(time, target[:, i] + level, color=INK, alpha=0.2, linewidth=4, marker=mark)
        if output is not None:
            axes.plot(time, output[:, i] + level, color=CYCLE[i], linewidth=1.3, marker=mark)
    axes.set(yticks=[], ylim=(levels[-1] - lane / 2, lane / 2))
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False)
