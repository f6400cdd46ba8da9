"""`retrograde influence EDGES`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import pandas as pd
import typer

from retrograde import connectome
from retrograde.cli.answering import question
from retrograde.cli.reading import Asked, Several
from retrograde.connectome import Connectome
from retrograde.report import Answer, Figure, drawings, paths
from retrograde.training import InputError


class Preset(StrEnum):
    """The names of `retrograde.connectome.linear.PRESETS`, for --help."""

    cic_2026 = "cic-2026"
    banc_paper = "banc-paper"
    influencer_R = "influencer-R"


# What these tools read, where nothing else is asked for.
READING: dict[str | None, tuple[str, float]] = {
    None: ("count", 0),
    "cic-2026": ("count", 5),
    "banc-paper": ("norm", 5),
    "influencer-R": ("norm", 3),
}
ENDS = 4  # neurons at the other end of the wiring diagram


@question
def influence(
    asked: Asked,
    source: Annotated[Several, typer.Option(help="Neurons that are driven.")] = None,
    target: Annotated[Several, typer.Option(help="Neurons that are looked at.")] = None,
    by: Annotated[
        str | None, typer.Option(help="Groups on groups, by a column of the neurons such as cell_type.")
    ] = None,
    scale: Annotated[float, typer.Option(help="The largest real part of an eigenvalue, after scaling.")] = 0.99,
    preset: Annotated[Preset | None, typer.Option(help="Read and scale as another tool does.")] = None,
) -> Answer:
    """Rank neurons by their influence, in the linear network x = αWx + b.

    With --source, the influence of these neurons on every neuron. With --target, the influence of every neuron on
    these, by one solve of the adjoint. With --by, of groups of neurons on groups.

    Examples:

    [bold]retrograde influence --example worm --target AVAL AVAR[/]

    [bold]retrograde influence edges.csv --source ADAL ADAR --scale 0.5 --out who.csv --report page.html[/]
    """
    usual, least = READING[preset and preset.value]
    c = asked.connectome(usual, least)
    how: dict[str, Any] = {"scale": scale, "silence": asked.silence or (), "preset": preset and preset.value}
    if by is not None:
        return _of_groups(asked, c, by, source, target, how)
    asked.step("solving")
    found = connectome.influence(c, source or None, target or None, **how)
    if target:
        title = f"influence, every neuron's on {', '.join(target)}"
    else:
        title = f"influence, {', '.join(source or ())} on every neuron"
    notes = [_note(found)]
    if not (found["influence"] != 0).any():
        notes.append("No path leads there: every influence is exactly 0.")
    figures = _figures(found)
    if asked.report is not None:
        asked.step("looking for the strongest paths")
        figures += _paths(c, found, how)
    return Answer(title, {title: found}, figures, _receipt(found), notes, c.summary, asked.source)


def _note(found: pd.DataFrame) -> str:
    return (
        f"the largest real part of an eigenvalue of W is {found.attrs['eigenvalue']:.9g}; "
        f"residual {found.attrs['residual']:.1e}"
    )


def _receipt(found: pd.DataFrame) -> dict[str, dict[str, float]]:
    return {"the solve of (I − αW)": dict(found.attrs)}


def _figures(found: pd.DataFrame) -> list[Figure]:
    backwards = "is_target" in found
    others = found[~found["is_target" if backwards else "is_source"]]
    zeros = f"the {int((others['influence'] == 0).sum()):,} neurons"
    return [
        Figure(
            "The largest",
            drawings.bars(others["id"], others["influence"], "influence"),
            "Red raises and blue lowers; without " + ("the targets" if backwards else "the sources") + " themselves.",
        ),
        Figure(
            "How it is distributed",
            drawings.density(others["influence"], "|influence|", logarithmic=True),
            f"Without {zeros} from which no path leads there."
            if backwards
            else f"Without {zeros} to which no path leads.",
        ),
    ]


def _paths(c: Connectome, found: pd.DataFrame, how: dict[str, Any]) -> list[Figure]:
    """The strongest paths to the targets from the neurons of the largest influence on them, or the other way round.

    One more solve, from these neurons, tells with the first what each synapse carries from end to end: s_i W_ij x_j.
    """
    backwards = "is_target" in found
    at_end = found["is_target" if backwards else "is_source"]
    here, there = list(found["id"][at_end]), list(found["id"][~at_end & (found["influence"] != 0)].head(ENDS))
    if not there:
        return []
    other_end: dict[str, Any] = {"source" if backwards else "target": there}
    other = connectome.influence(c, **other_end, **how)
    s, x = (each.set_index("id")["influence"] for each in ((found, other) if backwards else (other, found)))
    edges = c.edges
    value = s.loc[edges["post"]].to_numpy() * edges["weight"].to_numpy() * x.loc[edges["pre"]].to_numpy()
    ends = (there, here) if backwards else (here, there)
    strongest = paths.strongest_paths(edges.assign(value=found.attrs["alpha"] * value), "value", *ends)
    if not len(strongest):
        return []
    note = (
        "From the neurons of the largest influence to the targets."
        if backwards
        else "From the sources to the neurons they influence most."
    )
    note += " A connection is as broad as what it carries from end to end."
    return [Figure("The strongest paths", paths.wiring(strongest, *ends), note)]


def _of_groups(asked: Asked, c: Connectome, by: str, source: Several, target: Several, how: dict[str, Any]) -> Answer:
    """Groups on groups: those that the sources and the targets are in, or all."""
    if by not in c.neurons:
        raise InputError(f"--by: expected one of {', '.join(c.neurons.columns)}, got {by!r}")
    group = c.neurons[by].fillna("").astype(str)
    ends = []
    for given, option in (source, "source"), (target, "target"):
        chosen = group.iloc[c.index(given, option)].unique() if given else sorted(set(group) - {""})
        ends.append({name: c.ids[(group == name).to_numpy()] for name in chosen})
    asked.step("solving")
    found = connectome.influence(c, *ends, **how)
    title = f"influence of groups on groups, by {by}"
    figure = drawings.groups(found, "influence", rows="from", columns="on")
    note = "Rows and columns that are alike are neighbours."
    attrs = dict(found.attrs)
    table = found.reset_index()
    table.attrs = attrs
    receipt = _receipt(found)
    return Answer(
        title, {title: table}, [Figure(title, figure, note)], receipt, [_note(found)], c.summary, asked.source
    )
