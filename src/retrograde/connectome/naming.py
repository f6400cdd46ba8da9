"""Who is meant: a neuron by its id, or all of a cell type, class, side, ... as COLUMN:VALUE, such as cell_type:T4a."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from retrograde.connectome.columns import NEURONS
from retrograde.connectome.ids import WHOLE

READ_AS = "columns"  # in the attrs of a table of neurons: the name of a column in the file -> its name here


def meant(known: np.ndarray, table: pd.DataFrame, given: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The places, among the sorted `known` ids, of the neurons that are given; and which of the given each is of.

    What is an id means that neuron, even with a colon in it. Whoever is in two groups is there twice.

    Args:
        table: what is told of the neurons, in the order of the ids.
        given: one, or several: ids, and COLUMN:VALUE.

    Raises:
        ValueError: ids or values that are not there; the nearest are suggested.
    """
    wanted = [given] if isinstance(given, str | int | np.integer) else list(given)
    columns = [_column(known, table, each) for each in wanted]
    single = [each for each, column in zip(wanted, columns, strict=True) if column is None]
    if len(single) == len(wanted):
        return find(known, wanted, what, table), np.arange(len(wanted))
    places = iter(find(known, single, what, table).tolist())
    found: list[np.ndarray] = []
    for each, column in zip(wanted, columns, strict=True):
        if column is None:
            found.append(np.array([next(places)]))
        else:
            found += of_groups(table, column, [str(each).partition(":")[2]], what)
    sizes = [len(each) for each in found]
    return np.concatenate([np.empty(0, np.int64), *found]), np.repeat(np.arange(len(wanted)), sizes)


def _column(known: np.ndarray, table: pd.DataFrame, name: Any) -> str | None:
    """Which column of the table a COLUMN:VALUE is of; None where it is none, or is an id."""
    if not isinstance(name, str) or ":" not in name or (known.dtype.kind != "i" and _holds(known, name)):
        return None
    return _by_name(table, name.partition(":")[0])


def _by_name(table: pd.DataFrame, name: str) -> str | None:
    """The column that goes by this name: its own, or one that it has where it was read, or that is known for it."""
    roles = [role for role, aliases in NEURONS.items() if name.lower() in aliases]
    return next((each for each in (name, table.attrs.get(READ_AS, {}).get(name), *roles) if each in table), None)


def column_of(table: pd.DataFrame, name: str, what: str, also: Sequence[str] = ()) -> str:
    """The column of the neurons that goes by this name, which may be the one in the file; or one of `also`.

    Raises:
        ValueError: there is none; the nearest are suggested.
    """
    found = name if name in also else _by_name(table, name)
    if found is None:
        known = [*map(str, table), *also]
        hint = did_you_mean(name, [*known, *table.attrs.get(READ_AS, {})])
        raise ValueError(f"{what}: expected a column of the neurons, {', '.join(known)}; got {name!r}{hint}")
    return found


def _holds(known: np.ndarray, name: str) -> bool:
    place = int(np.searchsorted(known, name))
    return place < len(known) and known[place] == name


def of_groups(table: pd.DataFrame, column: str, names: Iterable[Any], what: str) -> list[np.ndarray]:
    """The places of the neurons of each of these groups, which that column of theirs tells.

    Raises:
        ValueError: a group that no neuron is of; the nearest are suggested.
    """
    values = labels(table, column)
    places: dict[str, np.ndarray] = {}
    for name in (names := [str(each) for each in names]):
        if name in places:
            continue
        (places[name],) = np.nonzero(values == name)
        if not name or not len(places[name]):
            there = np.unique(values[values != ""])
            if not name and len(there):
                raise ValueError(f"{what}: expected a {column} behind the colon, such as {column}:{there[0]}; got none")
            raise ValueError(f"{what}: no neuron has the {column} {name!r}{did_you_mean(name, there)}")
    return [places[name] for name in names]


def labels(table: pd.DataFrame, column: str) -> np.ndarray:
    """Each neuron's value in a column as text, "" where none is told."""
    values = table[column]
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")  # whole numbers, which pandas holds as floats where some are missing
    return values.astype(object).where(values.notna(), "").astype(str).to_numpy(object)


def find(known: np.ndarray, ids: Any, what: str, table: pd.DataFrame | None = None) -> np.ndarray:
    """The places of `ids` among the sorted `known` ones; ValueError, with suggestions, for those that are not there."""
    wanted = [ids] if isinstance(ids, str | int | np.integer) else list(ids)
    if known.dtype.kind == "i":
        bad = [each for each in wanted if not _whole(each)]
        if bad:
            raise ValueError(f"{what}: expected integer ids, got {bad[0]!r}" + _hint(str(bad[0]), table))
        beyond = [each for each in wanted if not -(2**63) <= int(each) < 2**63]
        if beyond:
            raise ValueError(f"{what}: expected ids that 64-bit integers hold, got {beyond[0]}")
        given = np.array([int(each) for each in wanted], dtype=np.int64)
    else:
        given = np.array([str(each) for each in wanted], dtype=known.dtype if not wanted else None)
    place = np.searchsorted(known, given) if len(known) else np.zeros(len(given), np.int64)
    there = np.zeros(len(given), bool) if not len(known) else known[np.minimum(place, len(known) - 1)] == given
    if not there.all():
        unknown = given[~there]
        hint = _hint(str(unknown[0]), table, known)
        raise ValueError(f"{what}: {len(unknown)} of {len(given)} ids are not in the connectome: {unknown[0]}{hint}")
    return place


def _hint(name: str, table: pd.DataFrame | None, known: np.ndarray | None = None) -> str:
    """What a name that is no id may mean: a type or class by itself, an id that is like it, a column that is none."""
    if table is None or not name:
        return "" if known is None else did_you_mean(name, known)
    for value in (name, name.partition(":")[2]):  # a value alone, or behind a column that is none
        columns = [each for each in table if each not in ("id", "transmitter") and value]
        meant = [f"{each}:{value}" for each in columns if (labels(table, each) == value).any()]
        if meant:
            return f"; did you mean {', '.join(meant)}?"
    near = "" if known is None else did_you_mean(name, known)
    return near or (f"; the neurons have the columns {', '.join(map(str, table))}" if ":" in name else "")


def did_you_mean(name: str, known: Iterable[Any]) -> str:
    """The end of an error: the names that are most like this one, in whatever case it is written; "" if none is."""
    alike: dict[str, list[str]] = {}
    for each in itertools.islice(known, 200_000):
        alike.setdefault(str(each).casefold(), []).append(str(each))
    near = difflib.get_close_matches(name.casefold(), alike, n=3, cutoff=0.5)
    names = [each for folded in near for each in alike[folded]][:3]
    return f"; did you mean {', '.join(names)}?" if names else ""


def _whole(each: Any) -> bool:
    if isinstance(each, bool):
        return False
    return isinstance(each, int | np.integer) or (isinstance(each, str) and WHOLE.fullmatch(each) is not None)
