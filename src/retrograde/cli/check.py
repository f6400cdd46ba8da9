"""`retrograde check`: the gradient by four routes."""

from __future__ import annotations

import numpy as np
import typer
from rich.progress import track
from rich.table import Table

from retrograde.cli.telling import err, out, telling
from retrograde.testing import NONLINEARITIES, gradient_disagreements, structures

ALLOWED = 1e-10


def check(context: typer.Context) -> None:
    """Compare the gradient by four independent routes, in float64, for every structure, nonlinearity and mode.

    The adjoint is what the library computes. The table shows how far from it each other route comes out, relative to
    the gradient's length: a dense solve of the whole linear system, autograd through the unrolled iteration, and finite
    differences of the reward. Exit code 1 if any differs by more than 1e-10.
    """
    with telling(context):
        tables: dict[str, Table] = {}
        rows = len(structures()) * len(NONLINEARITIES) * 3
        numbers: list[float] = []
        for row in track(gradient_disagreements(), "comparing", total=rows, console=err, transient=True):
            if row.structure not in tables:
                tables[row.structure] = _table(row.structure)
            routes = (row.dense_solve, row.unrolled, row.finite_differences)
            numbers += routes
            shown = [f"{x:.0e}" if x <= ALLOWED else f"[red]{x:.0e}[/]" for x in routes]
            tables[row.structure].add_row(row.nonlinearity, row.mode, *shown)
        for table in tables.values():
            out.print(table)
        agree = all(x <= ALLOWED for x in numbers)  # which a NaN is not
        out.print(
            f"The routes {'agree' if agree else '[red]do not agree[/]'}: the largest distance is "
            f"{float(np.max(numbers)):.1e}, and {ALLOWED:.0e} is allowed."
        )
        if not agree:
            raise typer.Exit(1)


def _table(structure: str) -> Table:
    table = Table("f", "mode", title=structure)
    for route in ("dense solve", "unrolled", "differences"):
        table.add_column(route, justify="right")
    return table
