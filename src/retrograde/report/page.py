"""The report page: which figures there are, what each shows, and the numbers above them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retrograde.report import activity, figures
from retrograde.report.figures import column
from retrograde.report.ink import reach
from retrograde.training.examination import Examination

EXAMPLES = 12  # as many are shown
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Plate:
    """A figure, its title, and the sentence that tells a newcomer what to look for."""

    title: str
    figure: Markup
    note: str


@dataclass(frozen=True)
class Section:
    """Figures that belong together."""

    title: str
    plates: list[Plate]
    note: str = ""


@dataclass(frozen=True)
class Number:
    """A headline number; ``warning`` where it is not what it should be."""

    label: str
    value: str
    warning: bool = False


def render(title: str, config: Mapping[str, object], metrics: pd.DataFrame, examination: Examination) -> str:
    """One HTML page on a run, with nothing outside itself; the same run gives the same page, byte for byte.

    Args:
        title: its heading.
        config: what was run; a mapping inside it is shown with dotted names.
        metrics: a row an epoch, with any of "epoch", "seconds", "reward", "accuracy", "test_accuracy", "steps".
        examination: what the trained network does.
    """
    sections = [
        Section("What it learned", [*_training(metrics), *_performance(examination)]),
        Section("The network", [*_settling(metrics, examination), *_network(examination)]),
        _examples(examination),
    ]
    environment = Environment(
        loader=PackageLoader("retrograde.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        numbers=list(_numbers(metrics, examination)),
        sections=[section for section in sections if section.plates],
        epochs=len(metrics),
        config=list(_flat(config)),
    )


def _numbers(metrics: pd.DataFrame, examination: Examination) -> Iterator[Number]:
    yield Number("accuracy", percent(examination.accuracy))
    for name, value in examination.health.items():
        if name == "converged":
            yield Number(name, percent(value), warning=not value >= 1)
        elif name == "stable":
            yield Number(name, percent(value))
        else:
            unstable = name.startswith("largest") and not value < 1 and not _moving(examination)
            yield Number(name, number(value), warning=unstable)
    reward, seconds = column(metrics, "reward"), column(metrics, "seconds")
    if reward.size:
        yield Number("reward, last epoch", number(reward[-1]))
    yield Number("epochs", f"{len(metrics):,}")
    if seconds.size:
        yield Number("training time", duration(np.nansum(seconds)))
    yield Number("neurons", f"{examination.weights.shape[0]:,}")
    yield Number("connections", f"{np.count_nonzero(examination.weights):,}")


def _moving(examination: Examination) -> bool:
    """Whether the examples are trajectories, along which nothing need be stable."""
    return any(np.ndim(example.activity) == 2 for example in examination.examples)


def _training(metrics: pd.DataFrame) -> Iterator[Plate]:
    if column(metrics, "reward").size:
        yield Plate(
            "Reward",
            figures.curves(metrics, {"reward": "reward"}, "reward"),
            "Gradient ascent should make it climb, then level off; sudden drops mean too high a learning rate.",
        )
    if column(metrics, "accuracy").size or column(metrics, "test_accuracy").size:
        yield Plate(
            "Accuracy",
            figures.curves(metrics, {"accuracy": "training", "test_accuracy": "test"}, "accuracy", share=True),
            "The two lines should rise together; training well above test means that examples are learned by heart.",
        )


def _settling(metrics: pd.DataFrame, examination: Examination) -> Iterator[Plate]:
    if column(metrics, "steps").size and not _moving(examination):
        yield Plate(
            "Solver steps",
            figures.curves(metrics, {"steps": "steps"}, "steps to the steady state"),
            "How far the activity runs before it settles; a steady climb warns that the network nears instability.",
        )


def _performance(examination: Examination) -> Iterator[Plate]:
    if examination.confusion is not None and examination.confusion.size:
        yield Plate(
            "Confusion matrix",
            figures.confusion(examination.confusion),
            "Right answers lie on the diagonal; a coloured cell off it is a pair of classes that the network mixes up.",
        )
    if examination.recall is not None and column(examination.recall, "recall").size:
        yield Plate(
            "Recall",
            figures.recall(examination.recall),
            "A good memory stays near 100% while the cue gets worse, then fails all at once.",
        )


def _examples(examination: Examination) -> Section:
    shown = examination.examples[:EXAMPLES]
    limit = reach(np.concatenate([np.ravel(example.activity) for example in shown])) if shown else 1.0
    plates = [
        Plate(
            example.title,
            (activity.moving if np.ndim(example.activity) == 2 else activity.steady)(example, limit),
            "",
        )
        for example in shown
        if np.size(example.activity)
    ]
    note = (
        "Above, each line is an output or a neuron over time, and should follow its target, the grey band, where there "
        "is one; below, each row is a neuron, sorted by when it peaks, red while above 0 and blue while below."
        if _moving(examination)
        else "Each bar or cell is a neuron, red above 0 and blue below, in the same place in every example: look for "
        "neurons that tell the examples apart."
    )
    if len(examination.examples) > len(shown):
        note += f" These are the first {len(shown)} of {len(examination.examples):,}."
    return Section("Examples", plates, note)


def _network(examination: Examination) -> Iterator[Plate]:
    values = examination.eigenvalues[np.isfinite(examination.eigenvalues)]
    if values.size:
        count = f" ({figures.POINTS:,} of {values.size:,} are drawn.)" if values.size > figures.POINTS else ""
        yield Plate(
            "Eigenvalues of DW",
            figures.eigenvalues(values),
            "Inside the unit circle perturbations die out, the slower the nearer to it, and outside they grow; "
            + (
                "a network that remembers has some near the circle or beyond it."
                if _moving(examination)
                else "at a steady state all points should lie inside."
            )
            + count,
        )
    matrix = examination.weights
    if matrix.size:
        thinned = " (Each cell is the largest of a block of weights.)" if len(matrix) > figures.CELLS else ""
        yield Plate(
            "Weights",
            figures.weights(matrix),
            "Red excites and blue inhibits: stripes are neurons that send or receive more than others, and the tails "
            "of the histogram are the few strongest connections." + thinned,
        )


def _flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "—" if value is None else str(value)


def percent(share: float) -> str:
    """A share in per cent. It says 100% of the whole only.

    >>> percent(1.0), percent(0.99999), percent(0.9725), percent(float("nan"))
    ('100%', '99.9%', '97.2%', '—')
    """
    if not np.isfinite(share):
        return "—"
    tenths = np.floor(1000 * share + 1e-9) / 10
    return f"{tenths:g}%"


def number(value: float) -> str:
    """A number in three digits, as people write it.

    >>> number(0.93217), number(12.0), number(3.2e-07), number(float("nan"))
    ('0.932', '12', '3.2 × 10⁻⁷', '—')
    """
    if not np.isfinite(value):
        return "—" if np.isnan(value) else ("∞" if value > 0 else "−∞")
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    raised = " × 10" + str(int(exponent)).translate(_RAISED) if exponent else ""
    return mantissa.replace("-", "−") + raised


def duration(seconds: float) -> str:
    """A time in the units that suit it.

    >>> duration(0.42), duration(12.3), duration(754.0), duration(7500.0)
    ('0.42 s', '12 s', '12 min 34 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
