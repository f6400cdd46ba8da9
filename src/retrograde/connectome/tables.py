"""Tables of any common format, read as Arrow: only the columns that are wanted, and nothing that could run code."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_NUMBER = re.compile(r"-?(?P<padding>0*(?=\d))\d+(?P<rest>(\.\d*)?(e[+-]?\d+)?)", re.IGNORECASE)
_PIECE = 2**24  # bytes of a file that are looked at at once
_SQLITE = (".sqlite", ".sqlite3", ".db")
FORMATS = ".csv, .tsv, .parquet, .feather, .sqlite, a pandas or an Arrow table"


class Source:
    """A table that is looked at before it is read.

    Args:
        table: a path, a pandas DataFrame or an Arrow table.
        what: what errors call it.
        inside: names that the table may have within a database.

    Raises:
        ValueError: a file of a format that is not known, or cut short.
        TypeError: no table.
    """

    def __init__(self, table: Any, what: str, inside: Sequence[str] = ()):
        self.what = what
        if isinstance(table, pd.DataFrame):
            self._table: Any = pa.Table.from_pandas(table, preserve_index=False)
        elif isinstance(table, pa.Table):
            self._table = table
        elif isinstance(table, str | Path):
            self._table, self.path = None, Path(table)
            self.what = f"{what} {self.path}"
            if not self.path.is_file():
                raise FileNotFoundError(2, "no such file", str(self.path))
            self._inside = self._tables_inside(inside) if self._suffix in _SQLITE else ""
        else:
            raise TypeError(f"{what}: expected {FORMATS}, got {type(table).__name__}")
        self.names: list[str] = self._told(self._schema)
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise ValueError(f"{self.what}: columns that are there twice: {', '.join(sorted(twice))}")

    def read(self, columns: Sequence[str], ids: Sequence[str] = ()) -> pa.Table:
        """These columns. Those that are ids stay as they are written where a file has no types: 007 is not 7."""
        return self._told(lambda: self._read(list(dict.fromkeys(columns)), ids))

    @property
    def _suffix(self) -> str:
        return self.path.suffix.lower()

    def _told(self, call: Any) -> Any:
        try:
            return call()
        except (pa.ArrowException, sqlite3.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{self.what}: cannot be read: {str(error).splitlines()[0]}") from None

    def _schema(self) -> list[str]:
        if self._table is not None:
            return list(self._table.column_names)
        if self._suffix in _DELIMITERS:
            with pa.csv.open_csv(self.path, parse_options=self._delimited()) as reader:
                return list(reader.schema.names)
        if self._suffix == ".parquet":
            return list(pa.parquet.read_schema(self.path).names)
        if self._suffix == ".feather":
            with pa.memory_map(str(self.path)) as file:
                return list(pa.ipc.open_file(file).schema.names)
        if self._suffix in _SQLITE:
            with sqlite3.connect(f"file:{self.path}?mode=ro", uri=True) as data:
                return [row[1] for row in data.execute(f'pragma table_info("{self._inside}")')]
        raise ValueError(f"{self.what}: expected {FORMATS}")

    @property
    def untyped(self) -> bool:
        """Whether this is a text file, in which a number and its digits are the same."""
        return self._table is None and self._suffix in _DELIMITERS

    def _read(self, columns: list[str], ids: Sequence[str]) -> pa.Table:
        if self._table is not None:
            return self._table.select(columns)
        if self._suffix in _DELIMITERS:
            try:
                return self._read_delimited(columns, ids if self._padded() else ())
            except pa.ArrowInvalid as error:
                if not ids or "conversion error" not in str(error):
                    raise
                return self._read_delimited(columns, ids)  # names, after a first megabyte of numbers
        if self._suffix == ".parquet":
            return pa.parquet.read_table(self.path, columns=columns)
        if self._suffix == ".feather":
            return pa.feather.read_table(self.path, columns=columns)
        with sqlite3.connect(f"file:{self.path}?mode=ro", uri=True) as data:
            quoted = ", ".join(f'"{column}"' for column in columns)
            return pa.Table.from_pandas(pd.read_sql_query(f'select {quoted} from "{self._inside}"', data))

    def _read_delimited(self, columns: list[str], ids: Sequence[str]) -> pa.Table:
        """A CSV, whose ids stay text; else Arrow takes them for numbers where they look like that, which is faster."""
        types = dict.fromkeys(ids, pa.dictionary(pa.int32(), pa.string()))  # each id is kept once
        convert = pa.csv.ConvertOptions(include_columns=columns, column_types=types)
        return pa.csv.read_csv(self.path, parse_options=self._delimited(), convert_options=convert)

    def _padded(self) -> bool:
        """Whether any field begins with 0 and another digit."""
        before = np.zeros(256, bool)
        before[[ord(each) for each in ("\n", "\r", '"', _DELIMITERS[self._suffix])]] = True
        with open(self.path, "rb") as file:
            last = b"\n"
            while piece := file.read(_PIECE):
                part = np.frombuffer(last + piece, np.uint8)
                zero = np.flatnonzero(part[1:-1] == ord("0"))
                zero = zero[before[part[zero]]]
                if ((part[zero + 2] >= ord("0")) & (part[zero + 2] <= ord("9"))).any():
                    return True
                last = (last + piece)[-2:]
        return False

    def _delimited(self) -> pa.csv.ParseOptions:
        return pa.csv.ParseOptions(delimiter=_DELIMITERS[self._suffix])

    def _tables_inside(self, wanted: Sequence[str]) -> str:
        def tables() -> list[str]:
            with sqlite3.connect(f"file:{self.path}?mode=ro", uri=True) as data:
                return [name for (name,) in data.execute("select name from sqlite_master where type = 'table'")]

        names = self._told(tables)
        known = [name for name in wanted if name in names] or (names if len(names) == 1 else [])
        if not known:
            raise ValueError(f"{self.what}: expected a table {' or '.join(wanted)}, got {', '.join(names) or 'none'}")
        return known[0]


def identities(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """Ids as int64, or as strings.

    Raises:
        ValueError: ids in floats, which hold no more than 15 digits safely, beyond int64, missing or empty.
    """
    if pa.types.is_dictionary(column.type) and not column.null_count and len(column):
        return _of_dictionary(column.unify_dictionaries(), what)
    if column.null_count:
        raise ValueError(f"{what}: {column.null_count} of {len(column)} ids are missing")
    if pa.types.is_floating(column.type):
        raise ValueError(
            f"{what}: ids in floating-point numbers, which cannot hold 18 digits; save them as integers or as text"
        )
    if pa.types.is_integer(column.type):
        try:
            return column.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{what}: ids that no 64-bit integer holds: {error}") from None
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f"{what}: expected ids as integers or text, got {column.type}")
    text = column.to_numpy(zero_copy_only=False).astype(str)
    empty = int((text == "").sum())
    if empty:
        raise ValueError(f"{what}: {empty} of {len(text)} ids are empty")
    if any(_looks_like_a_float(each) for each in text[:1000]):
        raise ValueError(f"{what}: ids such as {text[0]!r} were floating-point numbers once, and have lost digits")
    return text


def _of_dictionary(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """The same where each id is there once, and a number for each row; ids that are all whole numbers as int64."""
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks if len(chunk)])
    known = column.chunk(0).dictionary
    used = np.flatnonzero(np.bincount(codes, minlength=len(known)))
    each = identities(pa.chunked_array([known.take(pa.array(used))]), what)
    if each.dtype.kind != "i":
        kinds = [_NUMBER.fullmatch(name) for name in each]
        if all(kinds) and any(kind["rest"] for kind in kinds if kind):
            raise ValueError(
                f"{what}: ids in floating-point numbers, which cannot hold 18 digits; save them as integers or as text"
            )
        if all(kind and not kind["padding"] for kind in kinds):
            each = _as_integers(each, what)
    of_code = np.zeros(len(known), each.dtype)
    of_code[used] = each
    return of_code[codes]


def of_one_kind(*several: np.ndarray, what: str) -> list[np.ndarray]:
    """Ids that meet: all as numbers if text is of digits alone and without leading zeros, else all as text.

    Raises:
        ValueError: numbers beyond int64.
    """
    if not all(ids.dtype.kind == "i" or (len(ids) and _digits(ids).all()) for ids in several):
        return [ids.astype(str) for ids in several]
    return [_as_integers(ids, what) for ids in several]


def _as_integers(ids: np.ndarray, what: str) -> np.ndarray:
    try:
        return ids.astype(np.int64)
    except OverflowError:
        raise ValueError(f"{what}: ids that no 64-bit integer holds") from None


def _digits(text: np.ndarray) -> np.ndarray:
    return np.char.isdecimal(text) & ((text == "0") | ~np.char.startswith(text, "0"))


def _looks_like_a_float(text: str) -> bool:
    mantissa, _, exponent = text.lower().partition("e")
    return exponent.lstrip("+").isdigit() and mantissa.replace(".", "", 1).isdigit() and "." in mantissa


def numbers(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """A column of finite numbers as float64.

    Raises:
        ValueError: text, or numbers that are missing or not finite.
    """
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ValueError(f"{what}: expected numbers, got {column.type}")
    if column.null_count:
        raise ValueError(f"{what}: {column.null_count} of {len(column)} numbers are missing")
    values = column.to_numpy().astype(np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{what}: {bad} of {len(values)} numbers are NaN or infinite")
    return values
