"""What the commands on connectomes share: options that say how the tables are read, and tables that are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.markup import escape
from rich.table import Table

from retrograde.training import InputError

Several = list[str] | None
Edges = Annotated[Path, typer.Argument(help="The connections: CSV, TSV, Parquet, Feather, SQLite or .npz.")]
Neurons = Annotated[Path | None, typer.Option(help="A table of the neurons: transmitter, type, side.")]
Weights = Annotated[str | None, typer.Option(help="count, norm, weight or fraction. [default: count]")]
Signs = Annotated[
    str | None, typer.Option(help="A preset, 'column', or gaba=-1,glutamate=-1; what is not named is +1.")
]
Threshold = Annotated[float | None, typer.Option(help="Drop connections of a smaller count. [default: 0]")]
Exclude = Annotated[Several, typer.Option(help="A neuron to leave out; repeat it for more.")]
Silence = Annotated[Several, typer.Option(help="A neuron whose output is cut; repeat it for more.")]
Columns = Annotated[Several, typer.Option("--column", help="ROLE=COLUMN where one is not recognised: pre=from_id.")]
Orientation = Annotated[str | None, typer.Option(help="Of a matrix: post_pre or pre_post.")]
Top = Annotated[int, typer.Option(min=1, help="How many rows to print.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write all rows, as CSV or Parquet by its suffix.")]
Json = Annotated[bool, typer.Option("--json", help="Print the rows as JSON, and nothing else.")]


def signs_of(given: str | None) -> str | dict[str, int] | None:
    """A preset's name, or a table from gaba=-1,glutamate=-1."""
    if given is None or "=" not in given:
        return given
    pairs = pairs_of(given.split(","), "--signs")
    try:
        return {name: int(sign) for name, sign in pairs.items()}
    except ValueError:
        raise InputError(f"--signs: expected +1 or -1 behind each =, got {given}") from None


def pairs_of(given: Several, option: str) -> dict[str, str]:
    """NAME=VALUE, NAME=VALUE, ... as a dict."""
    found = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise InputError(f"{option}: expected NAME=VALUE, got {each!r}")
        found[name.strip()] = value.strip()
    return found


def check_out(save: Path | None) -> None:
    """InputError where the name does not say a format."""
    if save is not None and save.suffix.lower() not in (".csv", ".parquet"):
        raise InputError(f"--out: expected a name that ends in .csv or .parquet, got {save}")


def write(table: pd.DataFrame, save: Path | None) -> None:
    """The table in a file, by its suffix."""
    if save is not None and save.suffix.lower() == ".csv":
        table.to_csv(save, index=False)
    elif save is not None:
        table.to_parquet(save, index=False)


def as_json(rows: pd.DataFrame) -> str:
    """The rows as JSON, in which what is missing is null."""
    return json.dumps(rows.astype(object).where(rows.notna(), None).to_dict("records"), default=str, allow_nan=False)


def shown(rows: pd.DataFrame, title: str) -> Table:
    """The rows for a terminal, without columns that say nothing."""
    table = Table(title=escape(title))
    names = [name for name in rows.columns if rows[name].notna().any()]
    for name in names:
        table.add_column(escape(name), justify="right" if pd.api.types.is_float_dtype(rows[name]) else "left")
    for row in rows[names].itertuples(index=False):
        table.add_row(*(f"{each:.6g}" if isinstance(each, float) else escape(str(each)) for each in row))
    return table
