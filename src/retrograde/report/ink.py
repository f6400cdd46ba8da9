"""How a matplotlib figure becomes part of a page: its colours, its type, and the SVG that goes inline."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec

import matplotlib
import matplotlib.colors
import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike

P = ParamSpec("P")

# Two colours are names. In a file they are those of a white page. In a page they are the page's own, which turn over in
# the dark: matplotlib draws a stand-in, and the SVG names the page's.
INK, FAINT = "retrograde: ink", "retrograde: faint"
_ON_WHITE, _STAND_INS = {INK: "#22262b", FAINT: "#c4c9cf"}, {INK: "#010203", FAINT: "#030201"}
# The others are of middling lightness, and read on white and on black.
BLUE, RED, GREEN, ORANGE, PURPLE = "#3b82d0", "#d9503f", "#2e9e78", "#d98a2b", "#8f6fd1"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, "#c2589b", "#6f8a2f", "#4aa3b5")

# Nothing is drawn where a value is 0: the page shows through, light or dark.
_BAD = (0.5, 0.5, 0.5, 0.35)
_BELOW, _ABOVE = matplotlib.colors.to_rgb(BLUE), matplotlib.colors.to_rgb(RED)
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [(0, (*_BELOW, 1)), (0.5, (*_BELOW, 0)), (0.5, (*_ABOVE, 0)), (1, (*_ABOVE, 1))]
).with_extremes(bad=_BAD)
AMOUNT = LinearSegmentedColormap.from_list(
    "amount", [(*matplotlib.colors.to_rgb(PURPLE), 0), (*matplotlib.colors.to_rgb(PURPLE), 1)]
).with_extremes(bad=_BAD)

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "font.family": "DejaVu Sans",  # matplotlib's own: the layout is the same on every machine
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "normal",
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=CYCLE),
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Sketch:
    """A figure that is yet to be drawn, in a page or in a file; ``draw`` says what is on it."""

    draw: Callable[[Figure], str]
    width: float
    height: float
    name: str

    def inline(self) -> Markup:
        """The figure as SVG for a page, in the page's colours."""
        with self._styled(_STAND_INS):
            figure, label = self._drawn()
            return _inline(figure, label)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        self.save(file, format="png")
        return file.getvalue()

    def save(self, path: str | Path | IO[bytes], format: str | None = None) -> None:
        """The figure in a file, PNG, SVG or PDF by its suffix, on white."""
        with self._styled(_ON_WHITE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="constrained_layout not applied")
            figure, _label = self._drawn()
            figure.savefig(path, format=format, dpi=200, facecolor="white", bbox_inches="tight", pad_inches=0.1)

    def _drawn(self) -> tuple[Figure, str]:
        figure = Figure(
            figsize=(self.width, self.height), layout="constrained"
        )  # no pyplot: nothing global, or to close
        return figure, self.draw(figure)

    @contextmanager
    def _styled(self, named: dict[str, str]) -> Iterator[None]:
        colours = matplotlib.colors.get_named_colors_mapping()
        for name, colour in named.items():
            colours[name] = colour
        with matplotlib.rc_context({**_defaults(), **_STYLE, "svg.hashsalt": self.name}):
            yield


def sketch(width: float, height: float) -> Callable[[Callable[Concatenate[Figure, P], str]], Callable[P, Sketch]]:
    """Turn a function that draws on an empty figure, and says what is on it, into one that returns a `Sketch`."""

    def decorate(draw: Callable[Concatenate[Figure, P], str]) -> Callable[P, Sketch]:
        @wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> Sketch:
            return Sketch(lambda figure: draw(figure, *args, **kwargs), width, height, draw.__name__)

        return drawn

    return decorate


def drawing(width: float, height: float) -> Callable[[Callable[Concatenate[Figure, P], str]], Callable[P, Markup]]:
    """The same, into one that returns inline SVG."""

    def decorate(draw: Callable[Concatenate[Figure, P], str]) -> Callable[P, Markup]:
        sketched = sketch(width, height)(draw)

        @wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> Markup:
            return sketched(*args, **kwargs).inline()

        return drawn

    return decorate


def _defaults() -> dict[Any, Any]:
    """matplotlib's own settings, whatever its user's are."""
    return {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}


def _inline(figure: Figure, label: str) -> Markup:
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser draws it, in its own font
        warnings.filterwarnings("ignore", message="constrained_layout not applied")  # numbers too long for the figure
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = svg.replace("font-family: 'DejaVu Sans'; ", "")  # in the page's own font
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' id="image\w*"', "", svg)  # which nothing refers to, and two alike would share
    mark = hashlib.sha256(svg.encode()).hexdigest()[:8]  # ids are the page's, so those of two figures must differ
    svg = re.sub(r'((?:\bid|href)="#?|url\(#)(?!data:)', rf"\g<1>{mark}-", svg)
    svg = svg.replace(_STAND_INS[INK], "var(--ink)").replace(_STAND_INS[FAINT], "var(--faint)")
    return Markup('<svg role="img" aria-label="{}"').format(label) + Markup(svg.removeprefix("<svg"))


def heat(axes: Axes, values: np.ndarray, limit: float | None = None, bar: str = "", **options: Any) -> AxesImage:
    """A heat map, blue below 0 and red above, or of amounts where ``options`` say so; ``bar`` labels its scale."""
    limit = limit or reach(values)
    options = {"cmap": SIGNED, "norm": Normalize(-limit, limit), "aspect": "auto", **options}
    image = axes.imshow(np.ma.masked_invalid(values), interpolation="none", **options)
    axes.spines[:].set_visible(False)
    if bar:
        scale = axes.inset_axes((1.03, 0.0, 0.03, 1.0))
        low, high = image.get_clim()
        steps = np.linspace(low, high, 128)[:, None]
        scale.imshow(
            steps,
            cmap=image.cmap,
            norm=Normalize(low, high),
            aspect="auto",
            interpolation="none",
            origin="lower",
            extent=(0, 1, low, high),
        )
        scale.set(xticks=[], ylabel=bar)
        scale.yaxis.tick_right()
        scale.yaxis.set_label_position("right")
        scale.spines[:].set_visible(False)
    return image


def finite(values: ArrayLike) -> np.ndarray:
    """Numbers, NaN where one is infinite."""
    values = np.asarray(values, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def reach(values: np.ndarray) -> float:
    """How far a scale centred at 0 goes: past all but the rarest values, so that outliers do not bleach the rest."""
    size = np.abs(values[np.isfinite(values)])
    if not size.size:
        return 1.0
    return float(np.quantile(size, 0.995)) or float(size.max()) or 1.0


def thin(values: np.ndarray, most: int) -> np.ndarray:
    """A matrix of at most ``most`` rows and columns, the largest value of each block, so that a lone one stays."""
    for axis in (0, 1):
        n = values.shape[axis]
        if n > most:
            starts = np.arange(most) * n // most
            top = np.maximum.reduceat(values, starts, axis)
            bottom = np.minimum.reduceat(values, starts, axis)
            values = np.where(top >= -bottom, top, bottom)
    return values
