"""What is told of the neurons, in the order of the connectome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from retrograde.connectome.columns import NEURONS, recognise, transmitter
from retrograde.connectome.tables import Source, identities


def neuron_table(
    neurons: Any, known: np.ndarray, given: Mapping[str, str], spoken: np.ndarray | None, pre: np.ndarray
) -> pd.DataFrame:
    """A row for each of the known ids: id, transmitter where it is told, and the columns of the neuron table."""
    table = pd.DataFrame({"id": known})
    if neurons is not None:
        source = Source(neurons, "neurons", ("meta", "neurons"))
        roles = recognise(source.names, NEURONS, given, source.what)
        if "id" not in roles:
            raise ValueError(
                f"{source.what}: no column of ids found among {', '.join(source.names)}; "
                "name it by columns={'id': ...}"
            )
        rows = source.read(source.names)
        ids = identities(rows[roles["id"]], f"{source.what}, {roles['id']}")
        if ids.dtype.kind != known.dtype.kind:
            raise ValueError(
                f"{source.what}: its ids are {_kind(ids)}, those of the edges are {_kind(known)}: they cannot match"
            )
        repeated = len(ids) - len(np.unique(ids))
        if repeated:
            raise ValueError(f"{source.what}: {repeated} of {len(ids)} ids are there more than once")
        frame = rows.to_pandas()
        frame.index = pd.Index(ids)
        frame = frame.drop(columns=roles["id"])
        column_roles = {column: role for role, column in roles.items() if role != "id"}
        frame = frame.rename(columns={c: r for c, r in column_roles.items() if r == c or r not in frame.columns})
        table = table.join(frame, on="id")
    if "transmitter" not in table.columns:
        table["transmitter"] = ""
    table["transmitter"] = table["transmitter"].fillna("").astype(str).map(transmitter)
    if spoken is not None and (table["transmitter"] == "").all():
        first = pd.Series(spoken).groupby(pre).agg(_most_often)
        table.loc[first.index, "transmitter"] = first.map(transmitter).to_numpy()
    return table


def _most_often(names: pd.Series) -> str:
    return names.mode().iloc[0]


def _kind(ids: np.ndarray) -> str:
    return "integers" if ids.dtype.kind == "i" else "text"
