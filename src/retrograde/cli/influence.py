"""`retrograde influence EDGES`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from retrograde import connectome
from retrograde.cli.answering import question
from retrograde.cli.reading import WHO, Asked, Several, numbers_of
from retrograde.cli.scales import scale_of
from retrograde.connectome import Connectome
from retrograde.connectome.presets import as_it_reads
from retrograde.connectome.ranks import name_of
from retrograde.report import Answer, Figure, drawings, paths


class Preset(StrEnum):
    """The names of `retrograde.connectome.presets.PRESETS`, for --help."""

    cic_2026 = "cic-2026"
    banc_paper = "banc-paper"
    influencer_R = "influencer-R"


_TOOLS = "; ".join(f"{each.value}: {as_it_reads(each.value)}" for each in Preset)
ENDS = 4  # neurons at the other end of the wiring diagram


@question
def influence(
    asked: Asked,
    source: Annotated[Several, typer.Option(help=f"Neurons that are driven: {WHO}. With --by, groups.")] = None,
    target: Annotated[Several, typer.Option(help="Neurons that are looked at, likewise.")] = None,
    by: Annotated[
        str | None, typer.Option(help="A column of the neurons, such as cell_type; else all groups on all.")
    ] = None,
    scale: Annotated[
        list[float] | None,
        typer.Option(
            parser=scale_of,
            metavar="FLOAT|none",
            help="The largest real part of an eigenvalue, after scaling; several are compared; none takes W as it is. "
            "\\[default: 0.99]",
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(help=f"Scale as another tool does. Of the table they read, {_TOOLS}: --weights, --threshold."),
    ] = None,
    f: Annotated[
        str, typer.Option("--f", help="The nonlinearity: identity, tanh, relu, sigmoid, softplus.")
    ] = "identity",
    drive: Annotated[
        Several, typer.Option(help="Around which state: neurons that are driven, or with =INPUT. Not for identity.")
    ] = None,
) -> Answer:
    """Rank neurons by their influence, in the linear network x = αWx + b, or around a steady state of another f.

    With --source, the influence of these neurons on every neuron. With --target, the influence of every neuron on
    these, by one solve of the adjoint. With --by, of groups of neurons on groups.

    Examples:

    [bold]retrograde influence --example worm --target AVAL AVAR[/]

    [bold]retrograde influence edges.csv --source ADAL ADAR --scale 0.5 --out who.csv --report page.html[/]
    """
    asked.check_table("influence")
    c = asked.connectome()
    how: dict[str, Any] = {
        "scale": 0.99 if not scale else scale[0] if len(scale) == 1 else scale,
        "silence": asked.silence or (),
        "preset": preset and preset.value,
        "f": f,
        "drive": numbers_of(drive, "--drive") or None,
    }
    asked.step("solving")
    found = connectome.influence(c, source or None, target or None, by=by, **how)
    of = "every neuron's" if not source else ", ".join(source)
    title = f"influence, {of} on {', '.join(target) if target else 'every neuron'}"
    if by is not None and not source and not target:
        title = f"influence of groups on groups, by {by}"
    if "influence" in found and "id" in found:
        figures = _figures(found)
        if asked.report is not None or (asked.figure is not None and asked.figure.is_dir()):
            asked.step("looking for the strongest paths")
            figures += _paths(c, found, source or [], target or [], how)
    else:
        figures = [_compared(found, scale or [])]
    notes = [
        f"the largest real part of an eigenvalue of W is {found.attrs['eigenvalue']:.9g}; "
        f"residual {found.attrs['residual']:.1e}"
    ]
    if "note" in found.attrs:
        note = found.attrs["note"]
        notes.append(note[:1].upper() + note[1:] + ".")
    receipts = {"the solve": dict(found.attrs)}
    table = found if "id" in found else found.reset_index()
    return Answer(title, {"influence": table}, figures, receipts, notes, c.summary)


def _compared(found: pd.DataFrame, scales: list[float]) -> Figure:
    """Several columns of numbers side by side: groups, or scales."""
    if len(scales) > 1:
        others = found[~found["is_target" if "is_target" in found else "is_source"]]
        rows = others.head(drawings.BARS).set_index("id")[[name_of(each) for each in scales]]
        figure = drawings.groups(rows / rows.abs().max(), "influence / its largest", cluster=False, columns="scale")
        return Figure("What depends on the scale", figure, "Each column by its largest; rows by their best rank.")
    if "id" in found:
        first = next(i for i, name in enumerate(found) if str(name).startswith("is_"))
        figure = drawings.groups(found.head(drawings.NAMED).set_index("id").iloc[:, : first - 1], "influence")
        return Figure("The largest", figure, "Rows and columns that are alike are neighbours.")
    figure = drawings.groups(found, "influence", rows="from", columns="on")
    return Figure("Groups on groups", figure, "Rows and columns that are alike are neighbours.")


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


def _paths(
    c: Connectome, found: pd.DataFrame, source: list[str], target: list[str], how: dict[str, Any]
) -> list[Figure]:
    """The strongest paths from the sources to the targets; or from or to the neurons of the largest influence.

    What the sources drive, and what the targets depend on, tell together what each synapse carries from end to end:
    s_i W_ij x_j. Both are of one network, in which the sources are exempt from silencing.
    """
    backwards = "is_target" in found
    at_end = found["is_target" if backwards else "is_source"]
    others = list(found["id"][~at_end & (found["influence"] != 0)].head(ENDS))
    if not others:
        return []
    sources, targets = (list(c.ids[c.index(some)]) if some else others for some in (source, target))
    silent = np.setdiff1d(c.index(how["silence"]), c.index(source))
    how = {**how, "silence": list(c.ids[silent])}
    x = found if not backwards else connectome.influence(c, sources, **how)
    s = found if not source else connectome.influence(c, target=targets, **how)
    x, s = (each.set_index("id")["influence"] for each in (x, s))
    edges = c.edges
    weight = np.where(edges["pre"].isin(c.ids[silent]), 0, edges["weight"])
    value = found.attrs["alpha"] * s.loc[edges["post"]].to_numpy() * weight * x.loc[edges["pre"]].to_numpy()
    strongest = paths.strongest_paths(edges.assign(value=value), "value", sources, targets)
    if not len(strongest):
        return []
    note = "From the sources to the targets."
    if not source:
        note = "From the neurons of the largest influence to the targets."
    if not target:
        note = "From the sources to the neurons they influence most."
    note += " A connection is as broad as what it carries from end to end."
    return [Figure("The strongest paths", paths.wiring(strongest, sources, targets), note)]
