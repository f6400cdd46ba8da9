"""Tables of any common format, read as Arrow: only the columns that are wanted, and nothing that could run code."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet

from retrograde.connectome.memory import check_room
from retrograde.connectome.padding import padded

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_SQLITE = (".sqlite", ".sqlite3", ".db")
_BLOCK = 2**24  # bytes of a text file that are parsed in one piece, with one dictionary
FORMATS = ".csv or .tsv (.gz too), .parquet, .feather, .sqlite, a pandas or an Arrow table"


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
        self._table: Any = None
        if isinstance(table, pd.DataFrame):
            self._check_names([str(name) for name in table.columns])
            self._table = pa.Table.from_pandas(table, preserve_index=False)
        elif isinstance(table, pa.Table):
            self._table = table
        elif isinstance(table, str | Path):
            self.path = Path(table)
            self.what = f"{what} {self.path}"
            if not self.path.is_file():
                raise FileNotFoundError(2, "no such file", str(self.path))
            self._inside = self._tables_inside(inside) if self._suffix in _SQLITE else ""
        else:
            raise TypeError(f"{what}: expected {FORMATS}, got {type(table).__name__}")
        self.names: list[str] = self._told(self._schema)
        self._check_names(self.names)
        if len(self.names) == 1 and self.untyped:
            self._check_delimiter(self.names[0])

    def _check_names(self, names: list[str]) -> None:
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{self.what}: columns that are there twice: {', '.join(sorted(twice))}")

    def _check_delimiter(self, name: str) -> None:
        usual = _DELIMITERS[self._suffix]
        other = next((each for each in ";\t,|" if each != usual and each in name), None)
        if other is not None:
            raise ValueError(
                f"{self.what}: one column, {name!r}: its fields seem to be separated by {other!r}, where those of a "
                f"{self._suffix} are by {usual!r}; save it so, or give the table as pandas reads it"
            )

    def read(self, columns: Sequence[str], many: bool = False, ids: Sequence[str] = ()) -> pa.Table:
        """These columns. Of `many` rows the text is read as a dictionary.

        In a text file those that are `ids` are text too where any field is padded: 007 is not 7.

        Raises:
            ValueError: a table of so many rows that memory would not hold what is made of them.
        """
        check_room(self.what, self._told(self._rows))
        return self._told(lambda: self._read(list(dict.fromkeys(columns)), many, ids))

    @property
    def untyped(self) -> bool:
        """Whether this is a text file, in which a number and its digits are the same."""
        return self._table is None and self._suffix in _DELIMITERS

    @property
    def _suffix(self) -> str:
        """The format's; a text file may be compressed, as .csv.gz."""
        within = self.path.with_suffix("").suffix.lower() if self._zipped else ""
        return within if within in _DELIMITERS else self.path.suffix.lower()

    @property
    def _zipped(self) -> bool:
        return self.path.suffix.lower() == ".gz"

    def _text(self) -> Any:
        return pa.input_stream(str(self.path), compression="gzip") if self._zipped else self.path

    def _told(self, call: Any) -> Any:
        try:
            return call()
        except (pa.ArrowException, sqlite3.Error, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the file, and not of what is in it
                raise
            raise ValueError(f"{self.what}: cannot be read: {str(error).splitlines()[0]}") from None

    def _schema(self) -> list[str]:
        if self._table is not None:
            return list(self._table.column_names)
        if self._suffix in _DELIMITERS:
            with pa.csv.open_csv(self._text(), parse_options=self._delimited()) as reader:
                return list(reader.schema.names)
        if self._suffix == ".parquet":
            return list(pa.parquet.read_schema(self.path).names)
        if self._suffix == ".feather":
            with pa.memory_map(str(self.path)) as file:
                return list(pa.ipc.open_file(file).schema.names)
        if self._suffix in _SQLITE:
            with self._database() as data:
                return [row[1] for row in data.execute(f'pragma table_info("{self._inside}")')]
        raise ValueError(f"{self.what}: expected {FORMATS}")

    def _rows(self) -> float:
        """How many rows there are; of a text file, by the length of the first ones."""
        if self._table is not None:
            return len(self._table)
        if self._suffix in _DELIMITERS:
            with open(self.path, "rb") as file:
                start = file.read(2**20)
            length = len(start)
            if self._zipped:  # so many of its bytes hold so many rows
                unzip = zlib.decompressobj(wbits=31)
                start = unzip.decompress(start, 2**26)
                length -= len(unzip.unconsumed_tail) + len(unzip.unused_data)
            return self.path.stat().st_size * start.count(b"\n") / max(length, 1)
        if self._suffix == ".parquet":
            return pa.parquet.read_metadata(self.path).num_rows
        if self._suffix == ".feather":
            with pa.memory_map(str(self.path)) as file:
                reader = pa.ipc.open_file(file)
                return sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
        with self._database() as data:
            return data.execute(f'select count(*) from "{self._inside}"').fetchone()[0]

    def _read(self, columns: list[str], many: bool, ids: Sequence[str]) -> pa.Table:
        if self._table is not None:
            return self._table.select(columns)
        if self._suffix in _DELIMITERS:
            try:
                as_text = ids if padded(self.path, _DELIMITERS[self._suffix]) else ()
                return self._read_delimited(columns, many, as_text)
            except pa.ArrowInvalid as error:
                if not ids or "conversion error" not in str(error):
                    raise
                return self._read_delimited(columns, many, ids)  # names, after a first block of numbers
        if self._suffix == ".parquet":
            schema = pa.parquet.read_schema(self.path)
            texts = [name for name in columns if pa.types.is_string(schema.field(name).type)] if many else []
            return pa.parquet.read_table(self.path, columns=columns, read_dictionary=texts)
        if self._suffix == ".feather":
            return pa.feather.read_table(self.path, columns=columns)
        with self._database() as data:
            quoted = ", ".join(f'"{column}"' for column in columns)
            pieces = pd.read_sql_query(f'select {quoted} from "{self._inside}"', data, chunksize=2**18)
            return pa.concat_tables(
                [pa.Table.from_pandas(piece, preserve_index=False) for piece in pieces], promote_options="permissive"
            )

    def _read_delimited(self, columns: list[str], many: bool, as_text: Sequence[str]) -> pa.Table:
        types = dict.fromkeys(as_text, pa.dictionary(pa.int32(), pa.string()))  # each is kept once
        encoded = {"auto_dict_encode": True, "auto_dict_max_cardinality": _BLOCK} if many else {}
        convert = pa.csv.ConvertOptions(include_columns=columns, column_types=types, **encoded)
        blocks = pa.csv.ReadOptions(block_size=_BLOCK)
        return pa.csv.read_csv(
            self._text(), read_options=blocks, parse_options=self._delimited(), convert_options=convert
        )

    def _delimited(self) -> pa.csv.ParseOptions:
        return pa.csv.ParseOptions(delimiter=_DELIMITERS[self._suffix])

    def _database(self) -> closing[sqlite3.Connection]:
        """The database, to be read alone; its name may hold what a URI takes for its own, # or ?."""
        return closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True))

    def _tables_inside(self, wanted: Sequence[str]) -> str:
        def tables() -> list[str]:
            with self._database() as data:
                return [name for (name,) in data.execute("select name from sqlite_master where type = 'table'")]

        names = self._told(tables)
        known = [name for name in wanted if name in names] or (names if len(names) == 1 else [])
        if not known:
            raise ValueError(f"{self.what}: expected a table {' or '.join(wanted)}, got {', '.join(names) or 'none'}")
        return known[0]


def numbers(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """A column of finite numbers as float64.

    Raises:
        ValueError: text, or numbers that are missing or not finite.
    """
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        raise ValueError(f"{what}: expected numbers, got {kind}")
    if column.null_count:
        raise ValueError(f"{what}: {column.null_count} of {len(column)} numbers are missing")
    values = column.to_numpy().astype(np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{what}: {bad} of {len(values)} numbers are NaN or infinite")
    return values
