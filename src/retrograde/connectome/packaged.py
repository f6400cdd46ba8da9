"""The connectomes that come along, as tables in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrograde.connectome.wiring import Connectome, read

SOURCES = {
    "worm": "The worm: 300 cells of C. elegans and their chemical synapses, from Cook et al., Nature 571 (2019), with "
    "the transmitters of Wang et al., eLife 13 (2024), by OpenWorm's Connectome Toolbox (MIT License)."
}
"""Name -> what it is, and whom to cite."""


def files(name: str) -> tuple[Path, Path]:
    """The tables of its connections and of its neurons.

    Raises:
        ValueError: no such example.
    """
    if name not in SOURCES:
        raise ValueError(f"example: expected one of {', '.join(SOURCES)}, got {name!r}")
    folder = Path(__file__).parent / "examples"
    return folder / f"{name}_edges.csv", folder / f"{name}_neurons.csv"


def example(name: str = "worm", **how: Any) -> Connectome:
    """A connectome that comes along: ``"worm"``, 300 cells of C. elegans and their 3,539 chemical connections.

    Args:
        name: of the example. ``retrograde.connectome.SOURCES`` tells where each is from.
        how: as `read` takes it: weights, signs, threshold, ...

    Raises:
        ValueError: no such example, or what `read` raises.

    >>> example("worm", signs="worm-gaba")
    Connectome of 300 neurons and 3,539 connections, 207 of them negative
    """
    edges, neurons = files(name)
    return read(edges, neurons, **how)
