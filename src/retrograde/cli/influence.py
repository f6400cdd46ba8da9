"""`retrograde influence EDGES`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from retrograde import connectome
from retrograde.cli import reading
from retrograde.cli.telling import err, out, telling


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


def influence(
    context: typer.Context,
    edges: reading.Edges,
    neurons: reading.Neurons = None,
    source: Annotated[reading.Several, typer.Option(help="A neuron that is driven; repeat it for more.")] = None,
    target: Annotated[reading.Several, typer.Option(help="A neuron that is looked at; repeat it for more.")] = None,
    scale: Annotated[float, typer.Option(help="The largest real part of an eigenvalue, after scaling.")] = 0.99,
    weights: reading.Weights = None,
    signs: reading.Signs = None,
    threshold: reading.Threshold = None,
    silence: reading.Silence = None,
    exclude: reading.Exclude = None,
    column: reading.Columns = None,
    orientation: reading.Orientation = None,
    preset: Annotated[Preset | None, typer.Option(help="Read and scale as another tool does.")] = None,
    top: reading.Top = 20,
    save: reading.Out = None,
    as_json: reading.Json = False,
) -> None:
    """Rank neurons by their influence, in the linear network x = αWx + b.

    With --source, the influence of these neurons on every neuron. With --target, the influence of every neuron on
    these, by one solve of the adjoint.

    Examples: [bold]retrograde influence edges.csv --source ADAL --source ADAR --scale 0.5[/]
    [bold]retrograde influence edges.parquet --neurons neurons.parquet --target AVAL --signs worm-gaba --out who.csv[/]
    """
    with telling(context):
        reading.check_out(save)
        usual, least = READING[preset and preset.value]
        c = connectome.read(
            edges,
            neurons,
            weights=weights or usual,
            signs=reading.signs_of(signs),
            threshold=least if threshold is None else threshold,
            exclude=exclude or (),
            columns=reading.pairs_of(column, "--column"),
            orientation=orientation,  # type: ignore[arg-type]  # looked at there
        )
        found = connectome.influence(
            c, source or None, target or None, scale=scale, silence=silence or (), preset=preset and preset.value
        )
        reading.write(found, save)
        if as_json:
            typer.echo(reading.as_json(found.head(top)))
            return
        for what, number in c.summary.itertuples(index=False):
            err.print(f"{number:>12,}  {what}", markup=False)
        told = "every neuron's on " + ", ".join(target) if target else ", ".join(source or ()) + " on every neuron"
        out.print(reading.shown(found.head(top), f"influence, {told}"))
        out.print(
            f"the largest real part of an eigenvalue of W is {found.attrs['eigenvalue']:.9g}; "
            f"residual {found.attrs['residual']:.1e}" + (f"; all {len(found):,} rows are in {save}" if save else ""),
            markup=False,
        )
        if not (found["influence"] != 0).any():
            out.print("No path leads there: every influence is exactly 0.")
