"""`retrograde stimulate EDGES`."""

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
from retrograde.report import Answer, Figure, drawings
from retrograde.training import InputError


@question
def stimulate(
    asked: Asked,
    target: Annotated[
        Several,
        typer.Option(
            help="What is wanted: ID=ACTIVITY, or ID@STEP=ACTIVITY; for a maximum, ID. Each of a type: "
            "cell_type:AVA=ACTIVITY."
        ),
    ] = None,
    targets: Annotated[Path | None, typer.Option(help="Or a table of it: neuron, activity, and time.")] = None,
    allowed: Annotated[Several, typer.Option(help=f"Neurons that may have input: {WHO}. \\[default: all]")] = None,
    least: Annotated[str, typer.Option(help="l1, which few neurons bear, or l2.")] = "l1",
    lower: Annotated[float, typer.Option(help="No input is below; -inf for any.")] = 0.0,
    upper: Annotated[float, typer.Option(help="No input is above.")] = float("inf"),
    steps: Annotated[int | None, typer.Option(help="Along a trajectory of so many steps.")] = None,
    maximum: Annotated[bool, typer.Option("--maximum", help="Maximise the targets' activity instead.")] = False,
    budget: Annotated[float, typer.Option(help="For a maximum: all input together.")] = float("inf"),
    f: Annotated[str, typer.Option("--f", help="tanh, relu, sigmoid, softplus, identity.")] = "tanh",
    scale: Annotated[float | None, scaling("The largest real part of an eigenvalue, after scaling")] = 0.99,
    bias: Annotated[Several, typer.Option(help=f"Input that is always there: {EACH}. \\[default: 0]")] = None,
    tau: Annotated[Several, typer.Option(help=f"τ in steps: {EACH}.")] = None,
    cutoff: Cutoff = None,
    steepness: Steepness = None,
    preset: Annotated[
        str | None, typer.Option(help="ci-2.9 or ci-2.10: connectome_interpreter's network and its search.")
    ] = None,
) -> Answer:
    """Find the least input that brings neurons to given activities, at a steady state or along a trajectory.

    Says when they cannot be brought there, and how near they came; the exit code is 0 then too.

    Examples:

    [bold]retrograde stimulate --example worm --weights fraction --target AVAL=0.1 --allowed super_class:sensory[/]

    [bold]retrograde stimulate edges.csv --target AVAL@4=0.2 --steps 5 --allowed ASHL ASHR --upper 1[/]
    """
    if (target is None) == (targets is None):
        raise InputError(f"--target: expected ID=ACTIVITY or --targets, got {'neither' if target is None else 'both'}")
    bare = [each for each in target or () if "=" not in each]
    if bare and not maximum and preset is None:
        raise InputError(f"--target: expected ID=ACTIVITY, or --maximum, got {bare[0]!r}")
    asked.check_table("input")
    c = asked.connectome()
    wanted: Any = targets if targets is not None else _timed(numbers_of(target, "--target"), steps)
    asked.step("searching")
    told = partial(asked.step, "searching")
    how: dict[str, Any] = {"least": least, "lower": lower, "upper": upper, "steps": steps, "maximum": maximum}
    how |= {"budget": budget, "f": f, "scale": scale}
    how |= {"bias": per_neuron_of(bias, "--bias") or 0, "tau": per_neuron_of(tau, "--tau")}
    how |= cell_of(cutoff, steepness)
    found = connectome.stimulate(
        c, wanted, allowed=allowed, silence=asked.silence or (), preset=preset, seed=asked.seed or 0, told=told, **how
    )
    title = "the most that the targets can be driven" if maximum else "the least input that brings the targets there"
    receipts = {"the search": dict(found.attrs)}
    return Answer(title, {"input": found}, _figures(found), receipts, _notes(found), c.summary)


def _timed(given: dict[str, float], steps: int | None) -> dict[Any, float]:
    """ID@STEP as (id, step)."""
    found: dict[Any, float] = {}
    for name, activity in given.items():
        who, at, step = name.rpartition("@")
        if not at:
            found[(name, steps) if steps is not None else name] = activity
            continue
        if not step.isdigit():
            raise InputError(f"--target: expected a step behind the @, got {name!r}")
        found[who, int(step)] = activity
    return found


def _notes(found: pd.DataFrame) -> list[str]:
    told = found.attrs
    proved = "proved" if told["proved"] else "for the network linearised there, f being curved"
    if "reward" in told:
        notes = [f"the reward is {told['reward']:.6g}, which at most {told['gap']:.2g} surpasses ({proved})"]
    elif told["met"]:
        notes = [f"every target is met; the size of the input is {told['size']:.6g}"]
        if told.get("size_bound") is not None:
            notes.append(f"none that meets them is less than {told['size_bound']:.6g} ({proved})")
    else:
        notes = [f"the targets are not met: they are missed by {told['distance']:.6g} in all"]
        if np.isfinite(told.get("distance_bound", np.nan)):
            notes.append(f"none comes nearer than {told['distance_bound']:.6g} ({proved})")
    if told.get("stable") is False:
        notes.append("This steady state is unstable: the network would leave it by itself.")
    elif told.get("from_rest") is False:
        notes.append("From rest the network does not come to this steady state by itself: there is another, or none.")
    if told.get("settled") is False:
        notes.append(f"The search ended before it came to rest: {told['stopped']}. What it found is no proven optimum.")
    return notes


def _figures(found: pd.DataFrame) -> list[Figure]:
    driven = found[found["input"] != 0]
    figures = []
    if "time" in found:
        inputs = driven.pivot(index="id", columns="time", values="input").fillna(0.0)
        if len(inputs):
            largest = inputs.abs().max(axis=1).sort_values(ascending=False).index[: drawings.NAMED]
            sketch = drawings.groups(inputs.loc[largest], "input", cluster=False, rows="neuron", columns="time")
            figures.append(Figure("The input over time", sketch))
    elif len(driven):
        figures.append(Figure("The input", drawings.bars(driven["id"], driven["input"], "input")))
    asked = found[found["wanted"].notna()]
    if len(asked):
        names = asked["id"].astype(str) + ("@" + asked["time"].astype(str) if "time" in asked else "")
        sketch = drawings.bars(names.tolist(), asked["activity"], "activity", asked["wanted"], "wanted")
        figures.append(Figure("The targets", sketch, "Bars: what was reached. Diamonds: what was wanted."))
    return figures
