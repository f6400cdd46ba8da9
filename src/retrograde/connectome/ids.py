"""Ids of neurons as int64 or as text, and never as floating-point numbers, which cannot hold 18 digits."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

WHOLE = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)
_FRACTION = re.compile(r"-?\d+\.\d*", re.ASCII)


@dataclass(frozen=True, eq=False)
class Ids:
    """Ids as int64 or as text, and of text each one once: the id of row i is ``labels[codes[i]]``."""

    labels: np.ndarray
    codes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels if self.codes is None else self.codes)

    @property
    def values(self) -> np.ndarray:
        """The id of each row."""
        return self.labels if self.codes is None else self.labels[self.codes]

    @property
    def distinct(self) -> np.ndarray:
        """Those that occur, each once."""
        if self.codes is None:
            return pd.unique(self.labels)
        return self.labels[np.bincount(self.codes, minlength=len(self.labels)) > 0]

    def among(self, known: np.ndarray) -> np.ndarray:
        """Where the id of each row is among the `known` ones."""
        place = pd.Index(known).get_indexer(self.labels)
        return place if self.codes is None else place[self.codes]


def identities(column: pa.ChunkedArray, what: str) -> Ids:
    """Ids as int64, or as text.

    Raises:
        ValueError: ids in floats, which hold no more than 15 digits safely, beyond int64, missing or empty.
    """
    if column.null_count:
        raise ValueError(f"{what}: {column.null_count} of {len(column)} ids are missing")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_floating(kind):
        raise ValueError(
            f"{what}: ids in floating-point numbers, which cannot hold 18 digits; save them as integers or as text"
        )
    if pa.types.is_integer(kind):
        try:
            return Ids(column.cast(kind).cast(pa.int64()).to_numpy())
        except pa.ArrowInvalid as error:
            raise ValueError(f"{what}: ids that no 64-bit integer holds: {error}") from None
    if pa.types.is_null(kind) and not len(column):  # of a file with a header alone
        raise ValueError(f"{what}: expected at least one row, got none")
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{what}: expected ids as integers or text in UTF-8, got {kind}")
    labels, codes = texts(column)
    empty = int((labels[codes] == "").sum()) if (labels == "").any() else 0
    if empty:
        raise ValueError(f"{what}: {empty} of {len(codes)} ids are empty")
    strange = next((each for each in labels[:1000] if _looks_like_a_float(each)), None)
    if strange is not None:
        raise ValueError(f"{what}: ids such as {strange!r} were floating-point numbers once, and have lost digits")
    if len(labels) and all(map(_FRACTION.fullmatch, labels)):
        raise ValueError(
            f"{what}: ids in floating-point numbers, which cannot hold 18 digits; save them as integers or as text"
        )
    return Ids(labels, codes)


def texts(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column of text as its distinct values and, for each row, which of them it is; "" where it is null."""
    if column.null_count:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        column = column.cast(kind).fill_null("")
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    if not column.num_chunks:
        return np.empty(0, str), np.empty(0, np.int64)
    labels = column.chunk(0).dictionary.to_numpy(zero_copy_only=False).astype(str)
    return labels, np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])


def of_one_kind(*several: Ids, what: str) -> list[Ids]:
    """Ids that meet: all as numbers if text is of digits alone and without leading zeros, else all as text.

    Raises:
        ValueError: numbers beyond int64.
    """
    if not all(ids.labels.dtype.kind == "i" or (len(ids) and _digits(ids.labels)) for ids in several):
        return [Ids(ids.labels.astype(str), ids.codes) for ids in several]
    try:
        return [Ids(ids.labels.astype(np.int64), ids.codes) for ids in several]
    except OverflowError:
        raise ValueError(f"{what}: ids that no 64-bit integer holds") from None


def _digits(text: np.ndarray) -> bool:
    return all(map(WHOLE.fullmatch, text))


def _looks_like_a_float(text: str) -> bool:
    mantissa, _, exponent = text.lower().partition("e")
    return exponent.lstrip("+").isdigit() and mantissa.replace(".", "", 1).isdigit() and "." in mantissa
