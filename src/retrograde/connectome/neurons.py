"""What is told of the neurons, in the order of the connectome."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from retrograde.connectome.columns import NEURONS, recognise, transmitter
from retrograde.connectome.ids import identities, of_one_kind
from retrograde.connectome.naming import READ_AS
from retrograde.connectome.tables import Source


def neuron_table(
    source: Source | None,
    known: np.ndarray,
    given: Mapping[str, str],
    spoken: pd.Categorical | None,
    pre: np.ndarray,
    counts: np.ndarray | None,
) -> tuple[pd.DataFrame, list[tuple[str, int]]]:
    """A row for each of the known ids: id, transmitter where it is told, and the columns of the neuron table.

    And for the summary, how many ids are in one place alone.
    """
    told: list[tuple[str, int]] = []
    read_as: dict[str, str] = {}
    table = pd.DataFrame({"id": known})
    if source is not None:
        roles = recognise(source.names, NEURONS, given, source.what)
        if "id" not in roles:
            raise ValueError(
                f"{source.what}: no column of ids found among {', '.join(source.names)}; "
                "name it by columns={'id': ...}"
            )
        rows = source.read(source.names, ids=(roles["id"],))
        told_ids = identities(rows[roles["id"]], f"{source.what}, {roles['id']}")
        if known.dtype.kind == "i":
            (told_ids,) = of_one_kind(told_ids, what=source.what)
        ids = told_ids.values.astype(str) if known.dtype.kind != "i" and source.untyped else told_ids.values
        if ids.dtype.kind != known.dtype.kind:
            raise ValueError(
                f"{source.what}: its ids are {_kind(ids)}, those of the edges are {_kind(known)}: they cannot match"
            )
        repeated = len(ids) - len(np.unique(ids))
        if repeated:
            raise ValueError(f"{source.what}: {repeated} of {len(ids)} ids are there more than once")
        meeting = int(np.isin(known, ids).sum())
        if not meeting:
            raise ValueError(
                f"{source.what}: none of its {len(ids)} ids is among the {len(known)} of the edges, such as {known[0]}"
            )
        told = [
            ("neurons not in the neuron table", len(known) - meeting),
            ("rows of the neuron table without a connection", len(ids) - meeting),
        ]
        frame = rows.to_pandas()
        frame.index = pd.Index(ids)
        frame = frame.drop(columns=list({roles["id"], "id"} & set(frame.columns)))  # "id" is that of the edges
        column_roles = {column: role for role, column in roles.items() if role != "id"}
        frame = frame.rename(columns={c: r for c, r in column_roles.items() if r == c or r not in frame.columns})
        table = table.join(frame, on="id")
        read_as = {column: role for role, column in roles.items() if column not in table and role in table}
    if "transmitter" not in table.columns:
        table["transmitter"] = ""
    table["transmitter"] = table["transmitter"].astype(object).fillna("").astype(str).map(transmitter)
    if spoken is not None and (table["transmitter"] == "").all():
        table["transmitter"] = _voted(spoken, pre, np.ones(len(pre)) if counts is None else counts, len(known))
    table.attrs[READ_AS] = read_as
    return table, told


def _voted(spoken: pd.Categorical, pre: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
    """The transmitter that most of each neuron's synapses are told to have; blank where none tells."""
    votes = pd.DataFrame({"pre": pre, "code": spoken.codes, "count": counts})[spoken.codes > 0]  # 0 is blank
    sums = votes.groupby(["pre", "code"], as_index=False)["count"].sum()
    first = sums.sort_values("count", ascending=False, kind="stable").drop_duplicates("pre")
    codes = np.zeros(n, np.int64)
    codes[first["pre"]] = first["code"]
    return spoken.categories.to_numpy(object)[codes]


def _kind(ids: np.ndarray) -> str:
    return "integers" if ids.dtype.kind == "i" else "text"
