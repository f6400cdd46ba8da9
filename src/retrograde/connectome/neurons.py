"""What is told of the neurons, in the order of the connectome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from retrograde.connectome.columns import NEURONS, data_set_ids, probabilities, recognise, transmitter
from retrograde.connectome.ids import identities, of_one_kind
from retrograde.connectome.naming import READ_AS
from retrograde.connectome.tables import Source, numbers
from retrograde.connectome.transmitters import Probable, Told, most_probable


def neuron_table(
    sources: Sequence[Source],
    known: np.ndarray,
    given: Mapping[str, str],
    told: Told | None,
    pre: np.ndarray,
    counts: np.ndarray | None,
) -> tuple[pd.DataFrame, list[tuple[str, int]]]:
    """A row for each of the known ids: id, transmitter where it is told, and the columns of the neuron tables.

    Of a column that several tables have, the first table's. And for the summary, how many ids are in one place alone,
    and what was made of probabilities.
    """
    summary: list[tuple[str, int]] = []
    read_as: dict[str, str] = {}
    table = pd.DataFrame({"id": known})
    in_some = np.zeros(len(known), bool)
    for source in sources:
        about = _about(source, known, _of_table(given, source, sources))
        here = np.isin(known, about.frame.index)
        in_some |= here
        if about.blank:
            summary.append((f"rows of the neuron table without a {about.column}", about.blank))
        summary.append(("rows of the neuron table without a connection", len(about.frame) - int(here.sum())))
        table = table.join(about.frame.drop(columns=about.frame.columns.intersection(table.columns)), on="id")
        read_as |= {column: role for column, role in about.roles.items() if column not in table and role in table}
    if sources:
        summary.insert(0, ("neurons not in the neuron table", int((~in_some).sum())))
    names = _names_of_transmitters(table)
    if not (names != "").any():
        likely = probabilities(map(str, table.columns))
        guessed = bool(likely) or isinstance(told, Probable)
        if likely:
            parts = table[list(likely)].apply(pd.to_numeric, errors="coerce").fillna(0.0).to_numpy().T
            names = most_probable(list(likely.values()), parts)
        elif told is not None:
            names = told.of_neurons(pre, np.ones(len(pre)) if counts is None else counts, len(known))
        if guessed:
            summary.append(("transmitters, each the most probable one", int((names != "").sum())))
    table["transmitter"] = names
    table.attrs[READ_AS] = read_as
    return table, summary


def ids_by_row(sources: Sequence[Source], given: Mapping[str, str], n: int) -> Any:
    """The ids of the n rows of a matrix, where a neuron table tells by a column `idx` in which row each neuron is.

    Raises:
        ValueError: rows that are no numbers, are there twice or are missing.
    """
    for source in sources:
        roles = recognise(source.names, NEURONS, _of_table(given, source, sources), source.what)
        if "idx" not in roles or roles.get("id") in (None, roles["idx"]):
            continue
        rows = source.read([roles["idx"], roles["id"]], ids=(roles["id"],))
        what = f"{source.what}, {roles['idx']}"
        place = numbers(rows[roles["idx"]], what)
        if not np.array_equal(np.sort(place), np.arange(n)):
            raise ValueError(
                f"{what}: expected each row of the matrix once, 0 to {n - 1}; got {len(place)} from "
                f"{place.min(initial=np.inf):g} to {place.max(initial=-np.inf):g}; ids= names the rows"
            )
        return identities(rows[roles["id"]], f"{source.what}, {roles['id']}").values[np.argsort(place)]
    return None


class _About(NamedTuple):
    """What a table tells, by id; column -> role; the column of ids, and how many rows have none."""

    frame: pd.DataFrame
    roles: dict[str, str]
    column: str
    blank: int


def _about(source: Source, known: np.ndarray, given: Mapping[str, str]) -> _About:
    roles = recognise(source.names, NEURONS, given, source.what)
    several = data_set_ids(source.names)
    if roles.get("id") in (None, roles.get("idx")) and several:
        roles.pop("id", None)
    candidates = [roles["id"]] if "id" in roles else several
    if not candidates:
        raise ValueError(
            f"{source.what}: no column of ids found among {', '.join(source.names)}; name it by columns={{'id': ...}}"
        )
    rows = source.read(source.names, ids=candidates)
    column, ids, there = _meeting(source, rows, candidates, known, blanks="id" not in roles)
    frame = rows.to_pandas()[there]
    frame.index = pd.Index(ids)
    frame = frame.drop(columns=list({column, "id"} & set(frame.columns)))  # "id" is that of the edges
    by_column = {of: role for role, of in roles.items() if role != "id"}
    frame = frame.rename(columns={c: r for c, r in by_column.items() if r == c or r not in frame.columns})
    return _About(frame, by_column, column, int((~there).sum()))


def _meeting(
    source: Source, rows: pa.Table, candidates: list[str], known: np.ndarray, blanks: bool
) -> tuple[str, np.ndarray, np.ndarray]:
    """The column of ids of which most are among the known ones; its ids, and which rows have one.

    Raises:
        ValueError: of the first column, where none will do.
    """
    best, most, first = None, 0, None
    for column in candidates:
        there = np.ones(len(rows), bool)
        if blanks:
            there = ~_blank(rows[column])
        try:
            ids = _ids(source, rows[column].filter(pa.array(there)), f"{source.what}, {column}", known)
        except ValueError as error:
            first = first or error
            continue
        meeting = int(np.isin(known, ids).sum())
        if meeting > most:
            best, most = (column, ids, there), meeting
        elif first is None:
            first = ValueError(
                f"{source.what}: none of its {len(ids)} ids is among the {len(known)} of the edges, such as {known[0]}"
            )
    if best is None:
        assert first is not None  # there is a candidate, which either meets some or does not
        raise first
    return best


def _ids(source: Source, column: pa.ChunkedArray, what: str, known: np.ndarray) -> np.ndarray:
    told = identities(column, what)
    if known.dtype.kind == "i":
        (told,) = of_one_kind(told, what=source.what)
    ids = told.values.astype(str) if known.dtype.kind != "i" and source.untyped else told.values
    if ids.dtype.kind != known.dtype.kind:
        raise ValueError(
            f"{source.what}: its ids are {_kind(ids)}, those of the edges are {_kind(known)}: they cannot match"
        )
    repeated = len(ids) - len(np.unique(ids))
    if repeated:
        raise ValueError(f"{source.what}: {repeated} of {len(ids)} ids are there more than once")
    return ids


def _blank(column: pa.ChunkedArray) -> np.ndarray:
    """Which rows hold nothing, or text without a character."""
    empty = column.is_null().to_numpy().astype(bool)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        empty |= pa.compute.equal(column, "").fill_null(True).to_numpy().astype(bool)
    return empty


def _of_table(given: Mapping[str, str], source: Source, sources: Sequence[Source]) -> dict[str, str]:
    """The columns that are given for this table: all that no other one has."""
    others = {name for each in sources if each is not source for name in each.names}
    return {role: column for role, column in given.items() if column in source.names or column not in others}


def _names_of_transmitters(table: pd.DataFrame) -> np.ndarray:
    if "transmitter" not in table.columns:
        return np.full(len(table), "", object)
    return table["transmitter"].astype(object).fillna("").astype(str).map(transmitter).to_numpy(object)


def _kind(ids: np.ndarray) -> str:
    return "integers" if ids.dtype.kind == "i" else "text"
