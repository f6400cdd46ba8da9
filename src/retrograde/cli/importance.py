"""`retrograde importance EDGES`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retrograde import connectome
from retrograde.cli import reading
from retrograde.cli.telling import err, out, telling
from retrograde.training import InputError


def importance(
    context: typer.Context,
    edges: reading.Edges,
    source: Annotated[list[str], typer.Option(help="A neuron that is driven, ID or ID=INPUT; repeat it for more.")],
    target: Annotated[
        list[str], typer.Option(help="A neuron whose activity is the reward, ID or ID=WEIGHT; repeat it for more.")
    ],
    neurons: reading.Neurons = None,
    f: Annotated[
        str, typer.Option("--f", help="The nonlinearity: identity, tanh, relu, sigmoid, softplus.")
    ] = "identity",
    scale: Annotated[float, typer.Option(help="The largest real part of an eigenvalue, after scaling.")] = 0.99,
    exact: Annotated[int, typer.Option(min=0, help="Silence so many neurons for true, too.")] = 0,
    weights: reading.Weights = None,
    signs: reading.Signs = None,
    threshold: reading.Threshold = None,
    silence: reading.Silence = None,
    exclude: reading.Exclude = None,
    column: reading.Columns = None,
    orientation: reading.Orientation = None,
    by: Annotated[str | None, typer.Option(help="Sum over a column of the neurons, such as cell_type.")] = None,
    top: reading.Top = 20,
    save: reading.Out = None,
    synapses: Annotated[Path | None, typer.Option(help="Write every connection's importance, as Parquet.")] = None,
    as_json: reading.Json = False,
) -> None:
    """Rank neurons and synapses by what a reward, the activity of some neurons, depends on.

    One steady state x = f(αWx + b) and one adjoint tell all of it: how the reward changes with each neuron's input,
    and, to first order, if its output is silenced or its transmitter's sign turned; and what each synapse carries.

    Example: [bold]retrograde importance edges.csv --source ADAL --target AVAL=1 --target AVAR=-1 --exact 10[/]
    """
    with telling(context):
        reading.check_out(save)
        if synapses is not None and synapses.suffix.lower() != ".parquet":
            raise InputError(f"--synapses: expected a name that ends in .parquet, got {synapses}")
        c = connectome.read(
            edges,
            neurons,
            weights=weights or "count",
            signs=reading.signs_of(signs),
            threshold=threshold or 0,
            exclude=exclude or (),
            columns=reading.pairs_of(column, "--column"),
            orientation=orientation,  # type: ignore[arg-type]  # looked at there
        )
        found = connectome.importance(
            c,
            _numbered(source, "--source"),
            _numbered(target, "--target"),
            f=f,
            scale=scale,
            silence=silence or (),
            exact=exact,
        )
        table = found.neurons if by is None else found.by(by)
        reading.write(table, save)
        if synapses is not None:
            found.write_synapses(synapses)
        if as_json:
            typer.echo(reading.as_json(table.head(top)))
            return
        for what, number in c.summary.itertuples(index=False):
            err.print(f"{number:>12,}  {what}", markup=False)
        out.print(reading.shown(table.head(top), f"what the reward, {found.reward:.6g}, depends on"))
        if by is None:
            out.print(reading.shown(found.synapses(top), "synapses"))
        out.print(f"residuals: state {found.attrs['residual']:.1e}, adjoint {found.attrs['adjoint_residual']:.1e}")


def _numbered(given: list[str], option: str) -> dict[str, float]:
    """ID or ID=NUMBER, which is else 1."""
    pairs = reading.pairs_of([each if "=" in each else f"{each}=1" for each in given], option)
    try:
        return {name: float(number) for name, number in pairs.items()}
    except ValueError:
        raise InputError(f"{option}: expected a number behind each =, got {', '.join(given)}") from None
