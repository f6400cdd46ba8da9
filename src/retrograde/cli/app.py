"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

import retrograde as rg
from retrograde.cli.answering import Question
from retrograde.cli.check import check
from retrograde.cli.evaluate import evaluate
from retrograde.cli.fit import fit
from retrograde.cli.importance import importance
from retrograde.cli.influence import influence
from retrograde.cli.margins import stability
from retrograde.cli.simulate import simulate
from retrograde.cli.stimulate import stimulate
from retrograde.cli.train import train

app = typer.Typer(
    name="retrograde",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(train, name="train")
app.command()(evaluate)
app.command()(check)
for question in (influence, importance, stimulate, simulate, fit, stability):
    app.command(cls=Question)(question)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"retrograde {rg.__version__}")
        raise typer.Exit()


@app.callback()
def retrograde(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Exact gradients of any reward through a recurrent network, at a steady state or along a trajectory.

    Start with [bold]retrograde train digits[/].

    Exit codes: 0 done, 1 the numbers failed (something did not converge), 2 bad input, 130 interrupted.
    """
