"""`retrograde fit EDGES`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from retrograde import connectome
from retrograde.cli.answering import question
from retrograde.cli.reading import Asked, Several, numbers_of
from retrograde.cli.scales import scaling
from retrograde.report import Answer, Figure, fits

TABLES = "parameters", "errors", "what the data pin down worst", "activities"


class By(StrEnum):
    """What is held out together."""

    condition = "condition"
    neuron = "neuron"


class Kind(StrEnum):
    """What can be fitted."""

    gain = "gain"
    bias = "bias"
    tau = "tau"
    strength = "strength"


class Method(StrEnum):
    """How."""

    gauss_newton = "gauss-newton"
    lbfgs = "lbfgs"


@question
def fit(
    asked: Asked,
    recorded: Annotated[Path, typer.Option(help="A table: neuron, activity; condition, time, sd.")],
    drive: Annotated[Path | None, typer.Option(help="A table: neuron, strength; condition, start, stop.")] = None,
    parameters: Annotated[list[Kind] | None, typer.Option(help="What is fitted. \\[default: gain bias]")] = None,
    tie: Annotated[str, typer.Option(help="The column whose groups share a parameter; id ties nothing.")] = "cell_type",
    f: Annotated[str, typer.Option("--f", help="The nonlinearity: tanh, relu, sigmoid, softplus, identity.")] = "tanh",
    scale: Annotated[float | None, scaling("The largest real part of an eigenvalue, before the fit")] = 0.99,
    start: Annotated[
        Several,
        typer.Option(
            help="Where each starts, and stays unless it is fitted: KIND=NUMBER. \\[default: 1, bias 0, tau 10 dt]"
        ),
    ] = None,
    dt: Annotated[float | None, typer.Option(help="The length of a step, for activities over time.")] = None,
    hold_out: Annotated[float, typer.Option(help="Which part is held out, to be predicted; 0 for none.")] = 0.2,
    hold_out_by: Annotated[By, typer.Option(help="Whole conditions, or whole neurons.")] = By.condition,
    method: Annotated[Method | None, typer.Option(help="\\[default: gauss-newton up to 400 parameters]")] = None,
    uncertainty: Annotated[bool, typer.Option(help="Standard errors, from one Jacobian more.")] = True,
    max_steps: Annotated[int, typer.Option(min=1, help="Evaluations at most.")] = 200,
) -> Answer:
    """Fit gains, biases, time constants or synaptic strengths, tied by cell type, to recorded activities.

    The network is x = f(g (αWx + input + b)); each strength scales the connections from one type to another, and keeps
    their signs. What was held out tells how well the fit predicts; standard errors which parameters the data pin down.

    Example: [bold]retrograde fit edges.csv --neurons neurons.csv --recorded activity.csv --drive stimuli.csv[/]
    """
    asked.check_table(*TABLES)
    c = asked.connectome()
    asked.step("fitting")
    found = connectome.fit(
        c,
        recorded,
        drive,
        parameters=[each.value for each in parameters or (Kind.gain, Kind.bias)],
        tie=tie,
        f=f,
        scale=scale,
        silence=asked.silence or (),
        dt=dt,
        start=numbers_of(start, "--start", usual=None),
        hold_out=hold_out,
        hold_out_by=hold_out_by.value,
        seed=asked.seed or 0,
        method=None if method is None else method.value,
        uncertainty=uncertainty,
        max_steps=max_steps,
        progress=lambda count, cost: asked.step(f"fitting: evaluation {count}, cost {cost:.4g}"),
    )
    errors = {row.numbers: row for row in found.errors.itertuples()}
    title = f"fit of {len(found.parameters)} parameters to {errors['fitted'].number:,} numbers"
    tables = dict(zip(TABLES, (found.parameters, found.errors, found.combinations, found.activities), strict=True))
    rows, shown = found.parameters, found.activities
    post = rows["post"].notna() if "post" in rows else rows["group"].isna()
    names = (rows["kind"] + " " + rows["group"]).where(~post, rows["group"] + " → " + rows.get("post", rows["group"]))
    figures = [
        Figure(
            "Recorded and predicted",
            fits.agreement(shown["activity"], shown["predicted"], shown["held_out"]),
            "On the line where the network does what was recorded.",
        )
    ]
    if found.rank is not None:
        figures.append(
            Figure(
                "The parameters",
                fits.intervals(list(names), rows["value"], rows["low"], rows["high"]),
                "With 95% intervals; a red diamond is a parameter that the data do not pin down.",
            )
        )
    notes = [found.message, *found.notes]
    return Answer(title, tables, figures, {"the fit": found.attrs}, notes, c.summary)
