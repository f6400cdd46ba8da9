"""The figures of training and of the trained network, each as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from retrograde.report.ink import AMOUNT, BLUE, FAINT, GREEN, INK, PURPLE, RED, drawing, heat, thin

POINTS = 2000  # as many eigenvalues are drawn
CELLS = 512  # as many rows and columns of a matrix
FEW = 30  # marks, up to which each is drawn


def column(metrics: pd.DataFrame, name: str) -> np.ndarray:
    """A column as numbers, NaN where it has none; empty where it is missing or holds no number at all."""
    if name not in metrics:
        return np.empty(0)
    values = pd.to_numeric(metrics[name], errors="coerce").to_numpy(float)
    return values if np.isfinite(values).any() else np.empty(0)


@drawing(3.4, 2.4)
def curves(figure: Figure, metrics: pd.DataFrame, lines: Mapping[str, str], axis: str, share: bool = False) -> str:
    """Columns of the metrics against the epoch; ``lines`` names each. A ``share`` is shown in per cent."""
    axes = figure.subplots()
    epoch = column(metrics, "epoch")
    epoch = epoch if epoch.size else np.arange(1.0, len(metrics) + 1)
    for (name, label), style in zip(lines.items(), ("-", (0, (4, 1.5))), strict=False):
        values = column(metrics, name)
        if values.size:
            shown = np.where(np.isfinite(values), values, np.nan)
            axes.plot(epoch, shown, linestyle=style, marker="o" if len(epoch) <= FEW else "", markersize=3, label=label)
    axes.set(xlabel="epoch", ylabel=axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    if share:
        axes.set_ylim(top=1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    if len(axes.lines) > 1:
        axes.legend(loc="lower right")
    return f"{axis} at each epoch"


@drawing(3.4, 3.1)
def confusion(figure: Figure, table: pd.DataFrame) -> str:
    """How often each true class (row) was taken for each class (column): shade by share of the row, and the count."""
    axes = figure.subplots()
    counts = np.nan_to_num(table.to_numpy(float))
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    heat(axes, share, cmap=AMOUNT, norm=Normalize(0, 1))
    if counts.size <= 15 * 15:
        for (row, col), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, col] > 0.5 else INK
                axes.text(col, row, f"{count:g}", ha="center", va="center", fontsize=8, color=colour)
    if len(table) <= FEW:
        axes.set_xticks(range(table.shape[1]), [_short(label) for label in table.columns])
        axes.set_yticks(range(table.shape[0]), [_short(label) for label in table.index])
    axes.set_xticks(np.arange(table.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(table.shape[0] + 1) - 0.5, minor=True)
    axes.tick_params(which="both", length=0)
    axes.grid(which="minor")
    axes.set(xlabel="the network's answer", ylabel="the truth")
    return "confusion matrix"


@drawing(3.4, 2.4)
def recall(figure: Figure, table: pd.DataFrame) -> str:
    """How much is recalled from ever more corrupted cues."""
    axes = figure.subplots()
    table = table.sort_values("corruption")
    corruption, recalled = column(table, "corruption"), column(table, "recall")
    axes.plot(corruption, recalled, marker="o" if len(table) <= FEW else "", markersize=3.5, color=PURPLE)
    axes.fill_between(corruption, recalled, color=PURPLE, alpha=0.12, linewidth=0)
    axes.set(xlabel="share of the cue that is corrupted", ylabel="recalled", ylim=(0, 1.02))
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.grid(axis="y")
    return "recall against corruption"


@drawing(3.4, 3.1)
def eigenvalues(figure: Figure, values: np.ndarray) -> str:
    """Eigenvalues in the complex plane, and the unit circle."""
    axes = figure.subplots()
    values = some(values)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    axes.axvline(0, color=FAINT, linewidth=0.6)
    axes.add_patch(Circle((0, 0), 1, facecolor=GREEN, alpha=0.08, linewidth=0))
    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=GREEN, linewidth=1.2))
    stable = np.abs(values) < 1
    for inside, colour in ((stable, BLUE), (~stable, RED)):
        axes.scatter(values[inside].real, values[inside].imag, s=9, color=colour, alpha=0.55, linewidths=0)
    span = 1.12 * max(1.0, float(np.abs(values).max(initial=0)))
    axes.set(xlim=(-span, span), ylim=(-span, span), aspect="equal", xlabel="real part", ylabel="imaginary part")
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_locator(MaxNLocator(5))
    return "eigenvalues of DW against the unit circle"


def some(values: np.ndarray) -> np.ndarray:
    """At most `POINTS` of the finite ``values``: the very largest, and an even choice of the rest."""
    values = values[np.isfinite(values)].ravel()
    if values.size <= POINTS:
        return values
    values = values[np.argsort(-np.abs(values), kind="stable")]
    edge = POINTS // 20
    rest = np.linspace(edge, values.size - 1, POINTS - edge).astype(int)
    return np.concatenate([values[:edge], values[rest]])


@drawing(3.4, 3.9)
def weights(figure: Figure, matrix: np.ndarray) -> str:
    """W as a heat map centred at 0; below, how the weights that are not 0 are distributed."""
    figure.set_layout_engine("none")  # which does not foresee how a square picture and its scale share the space
    picture, below = figure.add_axes((0.19, 0.43, 0.63, 0.55)), figure.add_axes((0.19, 0.12, 0.63, 0.15))
    post, pre = matrix.shape
    heat(picture, thin(matrix, CELLS), bar=" ", extent=(0, pre, post, 0), aspect="equal")
    picture.set(xlabel="from neuron", ylabel="to neuron")
    values = matrix[np.isfinite(matrix) & (matrix != 0)]
    span = float(np.abs(values).max(initial=0)) or 1.0
    counts, edges = np.histogram(values, bins=60, range=(-span, span))
    middle = (edges[1:] + edges[:-1]) / 2
    below.bar(middle, counts, np.diff(edges) * 0.85, color=np.where(middle < 0, BLUE, RED), linewidth=0)
    below.set(xlabel="weight, and how common it is", yticks=[])
    below.spines["left"].set_visible(False)
    for side in (picture.xaxis, picture.yaxis, below.xaxis):
        side.set_major_locator(MaxNLocator(5, integer=side is not below.xaxis))
    return "weight matrix and histogram of the weights"


def _short(label: object, most: int = 12) -> str:
    text = str(label)
    return text if len(text) <= most else text[: most - 1] + "…"
