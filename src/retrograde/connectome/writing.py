"""Files that are there when all of them is: what is written a piece at a time, under another name until it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` when all is written; until then nothing there changes."""
    if path.exists() and not path.is_file():  # /dev/stdout, say
        yield path
        return
    path = path.resolve()  # through a link
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_pieces(path: Path, pieces: Iterable[pd.DataFrame]) -> None:
    """The rows of all pieces in one file, CSV or Parquet by its suffix.

    Raises:
        ValueError: another suffix.
    """
    suffix = path.suffix.lower()
    special = path.exists() and not path.is_file()  # which has no suffix, and gets Parquet
    if suffix not in (".parquet", ".csv") and not special:
        raise ValueError(f"path: expected a name that ends in .parquet or .csv, got {path}")
    kind = pa.csv.CSVWriter if suffix == ".csv" else pa.parquet.ParquetWriter
    writer = None
    with written(path) as part:
        try:
            for piece in pieces:
                rows = pa.Table.from_pandas(piece, preserve_index=False)
                writer = writer or kind(str(part), rows.schema)
                writer.write_table(rows)
        finally:
            if writer is not None:
                writer.close()
