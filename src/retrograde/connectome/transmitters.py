"""The transmitter of each neuron, where the tables tell it of connections, or as probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from retrograde.connectome.columns import transmitter
from retrograde.connectome.ids import texts


class Told(Protocol):
    """What the rows of a list of connections tell of transmitters."""

    def of_neurons(self, pre: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
        """(n,) names, blank where nothing tells; `pre` is who sends each row, and `counts` its synapses."""
        ...


@dataclass(frozen=True, eq=False)
class Named:
    """A name for each row: a neuron has the one that most of its synapses are told to have."""

    names: pd.Categorical

    def of_neurons(self, pre: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
        """(n,) names."""
        votes = pd.DataFrame({"pre": pre, "code": self.names.codes, "count": counts})
        votes = votes[votes["code"] > 0]  # 0 is blank
        sums = votes.groupby(["pre", "code"], as_index=False)["count"].sum()
        first = sums.sort_values("count", ascending=False, kind="stable").drop_duplicates("pre")
        codes = np.zeros(n, np.int64)
        codes[first["pre"]] = first["code"]
        return self.names.categories.to_numpy(object)[codes]


@dataclass(frozen=True, eq=False)
class Probable:
    """A probability for each row and transmitter, (rows,) each: a neuron has the one that is most probable on average
    over its synapses, as FlyWire's are assigned."""

    names: list[str]
    parts: list[np.ndarray]

    def of_neurons(self, pre: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
        """(n,) names."""
        sums = np.stack([np.bincount(pre, np.abs(counts) * np.nan_to_num(part), minlength=n) for part in self.parts])
        return most_probable(self.names, sums)


def most_probable(names: list[str], parts: np.ndarray) -> np.ndarray:
    """Of each column of the parts, (transmitters, neurons), the name of the largest; blank where none is above 0."""
    largest = np.array(names, object)[parts.argmax(0)]
    return np.where(parts.max(0) > 0, largest, "")


def named(column: pa.ChunkedArray) -> Named:
    """Each row's transmitter, in one spelling; blank where there is none."""
    labels, codes = texts(column.cast(pa.string()) if pa.types.is_null(column.type) else column)
    names = pd.Index([transmitter(str(name)) for name in labels], dtype="str")
    known = pd.Index(["", *names.unique().difference([""])])
    return Named(pd.Categorical.from_codes(known.get_indexer(names)[codes], known))


def probable(table: pa.Table, columns: Mapping[str, str], what: str) -> Probable:
    """The columns of probabilities, column -> transmitter, of a table.

    Raises:
        ValueError: text in the place of numbers.
    """
    for column in columns:
        kind = table[column].type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise ValueError(f"{what}, {column}: expected probabilities, got {kind}")
    parts = [table[column].cast(pa.float32()).to_numpy().astype(np.float32, copy=False) for column in columns]
    return Probable(list(columns.values()), parts)
