"""`retrograde simulate EDGES`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from retrograde import connectome
from retrograde.cli.answering import question
from retrograde.cli.cells import Cutoff, Steepness, cell_of
from retrograde.cli.reading import EACH, WHO, Asked, Several, numbers_of, per_neuron_of
from retrograde.cli.scales import scaling
from retrograde.connectome.naming import column_of
from retrograde.report import Answer, Figure, drawings
from retrograde.training import InputError

ACTIVITY, PEAKS = "activity", "the liveliest, by their peaks"
SHOWN = 200  # neurons in a figure, the liveliest


@question
def simulate(
    asked: Asked,
    stimulus: Annotated[Path | None, typer.Option(help="A table: neuron or cell_type, start, stop, strength.")] = None,
    source: Annotated[
        Several, typer.Option(help=f"Neurons that are driven all the time: {WHO}; or with =STRENGTH.")
    ] = None,
    form: Annotated[str, typer.Option(help="rate, or voltage: τ dv/dt = −v + W f(v) + b.")] = "rate",
    f: Annotated[str, typer.Option("--f", help="tanh, relu, sigmoid, softplus, identity.")] = "tanh",
    dt: Annotated[float, typer.Option(help="How long a step is, in the unit of the stimulus' times.")] = 1.0,
    tau: Annotated[Several, typer.Option(help=f"τ: {EACH}. \\[default: dt]")] = None,
    bias: Annotated[Several, typer.Option(help=f"Input that is always there: {EACH}. \\[default: 0]")] = None,
    duration: Annotated[float | None, typer.Option(help="How long. \\[default: to the end of the stimulus]")] = None,
    start: Annotated[str, typer.Option(help="rest, or steady: the steady state without the stimulus.")] = "rest",
    scale: Annotated[
        float | None, scaling("The largest real part of an eigenvalue, after scaling", "\\[default: as it is]")
    ] = None,
    record: Annotated[Several, typer.Option(help="Neurons to tell of, likewise. \\[default: all]")] = None,
    by: Annotated[str | None, typer.Option(help="Means by a column of the neurons, such as cell_type.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="A column for each neuron.")] = False,
    cutoff: Cutoff = None,
    steepness: Steepness = None,
    preset: Annotated[
        str | None, typer.Option(help="ci-2.9 or ci-2.10: the equations of connectome_interpreter's releases.")
    ] = None,
) -> Answer:
    """Simulate activity over time for a table of stimuli: a row for each time and neuron.

    The form "rate" is x(t) = (1 − a) x(t − dt) + a f(αW x(t − dt) + b(t)), a = dt/τ. Times, dt and τ have one unit.

    Examples:

    [bold]retrograde simulate --example worm --weights fraction --source ASHL ASHR --duration 30 --tau 5[/]

    [bold]retrograde simulate edges.csv --neurons types.csv --stimulus pulses.csv --form voltage --by cell_type[/]
    """
    if (stimulus is None) == (source is None):
        raise InputError(f"--stimulus: expected a table or --source, got {'neither' if source is None else 'both'}")
    asked.check_table(ACTIVITY, PEAKS)
    c = asked.connectome()
    by = None if by is None else column_of(c.neurons, by, "by")
    how: dict[str, Any] = {"form": form, "f": f, "dt": dt}
    how |= {"tau": per_neuron_of(tau, "--tau"), "bias": per_neuron_of(bias, "--bias") or 0}
    how |= {"duration": duration, "start": start, "scale": scale, "silence": asked.silence or (), "preset": preset}
    how |= cell_of(cutoff, steepness)
    asked.step("simulating")
    given = stimulus if stimulus is not None else numbers_of(source, "--source")
    told = partial(asked.step, "simulating")
    found = connectome.simulate(c, given, record=record or None, by=by, told=told, **how)
    key = by or "id"
    activity = found.pivot(index="time", columns=key, values="activity")
    what = {"rate": "activity", "voltage": "activity, f(v)"}.get(found.attrs["form"], "activity")
    title = f"activity over {activity.index[-1]:g} in {found.attrs['steps']:,} steps"
    figures = [_traces(activity, what, "neurons" if by is None else f"groups by {by}")]
    if by is None and "cell_type" in found and found["cell_type"].nunique() > 1:
        means = found.groupby(["time", "cell_type"], sort=True)["activity"].mean().unstack()
        figures.append(_by_type(means, "cell type"))
    elif by is not None:
        figures.append(_by_type(activity, by))
    table = activity.rename(columns=str).reset_index() if wide else found
    tables = {ACTIVITY: table, PEAKS: _peaks(activity, key)}
    receipts = {"the simulation": dict(found.attrs)}
    return Answer(title, tables, figures, receipts, (), c.summary)


def _peaks(activity: pd.DataFrame, key: str) -> pd.DataFrame:
    """How far each came from 0, when, and where it ended."""
    at = activity.abs().to_numpy().argmax(axis=0)
    told = {key: activity.columns, "peak": activity.to_numpy()[at, np.arange(len(at))], "time": activity.index[at]}
    table = pd.DataFrame({**told, "last": activity.iloc[-1].to_numpy()})
    return table.sort_values("peak", key=np.abs, ascending=False, kind="stable", ignore_index=True)


def _traces(activity: pd.DataFrame, what: str, rows: str) -> Figure:
    lively = np.argsort(-np.ptp(activity.to_numpy(), axis=0), kind="stable")[:SHOWN]
    shown = activity.iloc[:, np.sort(lively)]
    note = "Above, the liveliest; below, ordered by when they peak."
    if shown.shape[1] < activity.shape[1]:
        note += f" The {shown.shape[1]} liveliest of {activity.shape[1]:,}."
    names = [str(name) for name in shown.columns]
    sketch = drawings.traces(shown.index.to_numpy(), shown.to_numpy(), names, title=what, rows=rows)
    return Figure("Activity", sketch, note)


def _by_type(means: pd.DataFrame, kind: str) -> Figure:
    # Of many times, as many as there is room for.
    some = np.unique(np.linspace(0, len(means) - 1, 40).astype(int))
    table = means.iloc[some].T
    table.columns = [f"{time:g}" for time in table.columns]
    sketch = drawings.groups(table, "mean activity", cluster=False, rows=kind, columns="time")
    return Figure(f"Means by {kind}", sketch)
