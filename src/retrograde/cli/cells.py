"""What is told of neurons on the command line: numbers, and the options of connectome_interpreter's networks."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Cutoff = Annotated[
    float | None, typer.Option(help="Of such a preset: below which drive a neuron is silent. \\[default: 0.01]")
]
Steepness = Annotated[
    str | None, typer.Option(help="Of such a preset: a number, or a column of the neurons. \\[default: 5]")
]


def cell_of(cutoff: float | None, steepness: str | None) -> dict[str, Any]:
    """Both, as `retrograde.connectome` calls them."""
    return {"threshold": cutoff, "steepness": number_or_name(steepness)}


def number_or_name(given: str | None) -> float | str | None:
    """A number, where it is one; else the name of a column."""
    try:
        return None if given is None else float(given)
    except ValueError:
        return given
