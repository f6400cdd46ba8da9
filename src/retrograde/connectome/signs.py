"""The sign of each connection, by the transmitter of the neuron that sends it, or from a column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from retrograde.connectome.columns import SIGNS, TRANSMITTERS, transmitter
from retrograde.connectome.edges import check_signs
from retrograde.connectome.naming import did_you_mean


def signs_of(
    signs: str | Mapping[str, int] | None, values: dict[str, np.ndarray], table: pd.DataFrame, pre: np.ndarray
) -> np.ndarray | float:
    """What each connection's weight is multiplied by, as the argument of `read` says; `table` is of the neurons."""
    if signs is None:
        return 1.0
    if isinstance(signs, str):
        if signs == "column":
            return values["sign"] if "sign" in values else table["sign"].fillna(1.0).to_numpy(np.float64)[pre]
        if signs not in SIGNS:
            hint = did_you_mean(signs, ["column", *SIGNS])
            raise ValueError(
                f"signs: expected a mapping such as {{'gaba': -1}}, 'column' or one of {', '.join(SIGNS)}, "
                f"got {signs!r}{hint}"
            )
        check_transmitters(table, "signs")
        return _by_transmitter(SIGNS[signs], table, pre)
    for name, sign in signs.items():
        if sign not in (1, -1):
            raise ValueError(f"signs: expected +1 or -1 for {name!r}, got {sign!r}")
    check_transmitters(table, "signs", signs)
    return _by_transmitter(signs, table, pre)


def check_column(table: pd.DataFrame) -> None:
    """ValueError unless there are signs of the neurons, where the edges have none; what is blank is left out."""
    if "sign" not in table:
        raise ValueError("signs: expected a column of signs in the edges or in the neuron table, found none")
    signs = pd.to_numeric(table["sign"], errors="coerce").astype(np.float64)
    given = table["sign"].notna()
    check_signs(signs[given].to_numpy(), "neurons, sign")
    table["sign"] = signs


def told_of(signs: str | Mapping[str, int] | None, table: pd.DataFrame) -> list[tuple[str, int]]:
    """For the summary: which neurons are +1 as no sign was given for what they release, or it is not known.

    And which signs were given for what no neuron releases.
    """
    known = SIGNS.get(signs, {}) if isinstance(signs, str) else signs or {}
    told = table["transmitter"]
    named = sorted({transmitter(name) for name in known})
    others = told[(told != "") & ~told.isin(named)]
    rows = [("neurons without a transmitter", int((told == "").sum()))]
    if len(others):
        rows.append((f"+1, not named in signs: {', '.join(sorted(set(others)))}", len(others)))
    if absent := sorted(set(named) - set(told)):
        rows.append((f"neurons of a transmitter named in signs: {', '.join(absent)}", 0))
    return rows


def check_transmitters(table: pd.DataFrame, what: str, named: Iterable[str] = ()) -> None:
    """ValueError where none is told, or where one is named that neither a neuron has nor any connectome."""
    present = sorted(set(table["transmitter"]) - {""})
    if not present:
        raise ValueError(f"{what}: no transmitter is told by the neuron table, nor by the edges")
    absent = [name for name in named if transmitter(name) not in TRANSMITTERS.union(present)]
    if absent:
        hint = did_you_mean(absent[0], present)
        raise ValueError(f"{what}: no neuron's transmitter is {absent[0]!r}; there are {', '.join(present)}{hint}")


def _by_transmitter(signs: Mapping[str, int], table: pd.DataFrame, pre: np.ndarray) -> np.ndarray:
    by_name = {transmitter(name): sign for name, sign in signs.items()}
    return table["transmitter"].map(by_name).fillna(1.0).to_numpy(np.float64)[pre]
