"""`retrograde influence EDGES`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.table import Table

from retrograde import connectome
from retrograde.cli.telling import err, out, telling
from retrograde.training import InputError

Several = list[str]


class Preset(StrEnum):
    """The names of `retrograde.connectome.influences.PRESETS`, for --help."""

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
    edges: Annotated[Path, typer.Argument(help="The connections: CSV, TSV, Parquet, Feather, SQLite or .npz.")],
    neurons: Annotated[Path | None, typer.Option(help="A table of the neurons: transmitter, type, side.")] = None,
    source: Annotated[Several | None, typer.Option(help="A neuron that is driven; repeat it for more.")] = None,
    target: Annotated[Several | None, typer.Option(help="A neuron that is looked at; repeat it for more.")] = None,
    scale: Annotated[float, typer.Option(help="The largest real part of an eigenvalue, after scaling.")] = 0.99,
    weights: Annotated[str | None, typer.Option(help="count, norm, weight or fraction. [default: count]")] = None,
    signs: Annotated[
        str | None, typer.Option(help="A preset, 'column', or gaba=-1,glutamate=-1; what is not named is +1.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Drop connections of a smaller count. [default: 0]")] = None,
    silence: Annotated[Several | None, typer.Option(help="A neuron whose output is cut; repeat it for more.")] = None,
    exclude: Annotated[Several | None, typer.Option(help="A neuron to leave out; repeat it for more.")] = None,
    column: Annotated[
        Several | None, typer.Option(help="ROLE=COLUMN where a column is not recognised, such as pre=from_id.")
    ] = None,
    orientation: Annotated[str | None, typer.Option(help="Of a matrix: post_pre or pre_post.")] = None,
    preset: Annotated[Preset | None, typer.Option(help="Read and scale as another tool does.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many rows to print.")] = 20,
    save: Annotated[Path | None, typer.Option("--out", help="Write all rows, as CSV or Parquet by its suffix.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, and nothing else.")] = False,
) -> None:
    """Rank neurons by their influence, in the linear network x = αWx + b.

    With --source, the influence of these neurons on every neuron. With --target, the influence of every neuron on
    these, by one solve of the adjoint.

    Examples: [bold]retrograde influence edges.csv --source ADAL --source ADAR --scale 0.5[/]
    [bold]retrograde influence edges.parquet --neurons neurons.parquet --target AVAL --signs worm-gaba --out who.csv[/]
    """
    with telling(context):
        if save is not None and save.suffix.lower() not in (".csv", ".parquet"):
            raise InputError(f"--out: expected a name that ends in .csv or .parquet, got {save}")
        usual, least = READING[preset and preset.value]
        c = connectome.read(
            edges,
            neurons,
            weights=weights or usual,
            signs=_signs(signs),
            threshold=least if threshold is None else threshold,
            exclude=exclude or (),
            columns=dict(_pair(each, "--column") for each in column or ()),
            orientation=orientation,  # type: ignore[arg-type]  # looked at there
        )
        found = connectome.influence(
            c, source or None, target or None, scale=scale, silence=silence or (), preset=preset and preset.value
        )
        if save is not None:
            found.to_csv(save, index=False) if save.suffix.lower() == ".csv" else found.to_parquet(save, index=False)
        if as_json:
            typer.echo(json.dumps(found.head(top).to_dict("records"), default=str))
            return
        for what, number in c.summary.itertuples(index=False):
            err.print(f"{number:>12,}  {what}")
        told = "every neuron's on " + ", ".join(target) if target else ", ".join(source or ()) + " on every neuron"
        out.print(_table(found.head(top), f"influence, {told}"))
        out.print(
            f"the largest real part of an eigenvalue of W is {found.attrs['eigenvalue']:.9g}; "
            f"residual {found.attrs['residual']:.1e}" + (f"; all {len(found):,} rows are in {save}" if save else "")
        )
        if not (found["influence"] != 0).any():
            out.print("No path leads there: every influence is exactly 0.")


def _signs(given: str | None) -> str | dict[str, int] | None:
    if given is None or "=" not in given:
        return given
    pairs = dict(_pair(each, "--signs") for each in given.split(","))
    try:
        return {name: int(sign) for name, sign in pairs.items()}
    except ValueError:
        raise InputError(f"--signs: expected +1 or -1 behind each =, got {given}") from None


def _pair(given: str, option: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise InputError(f"{option}: expected NAME=VALUE, got {given!r}")
    return name.strip(), value.strip()


def _table(rows: pd.DataFrame, title: str) -> Table:
    table = Table(title=title)
    shown = [name for name in rows.columns if rows[name].notna().any()]
    for name in shown:
        table.add_column(name, justify="right" if pd.api.types.is_float_dtype(rows[name]) else "left")
    for row in rows[shown].itertuples(index=False):
        table.add_row(*(f"{each:.6g}" if isinstance(each, float) else str(each) for each in row))
    return table
