"""What an answer of several tables prints as: a few lines, and in a notebook HTML.

`retrograde.tables` prints numbers that are told sample by sample; these are tables of pandas, which prints them itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd

ROWS = 10  # of each table
COLUMNS = 8  # as many are printed; a notebook has room for all


class Printed(ABC):
    """Prints as a sentence and the first rows of its tables."""

    @abstractmethod
    def _sentence(self) -> str:
        """What stands above the tables."""

    @abstractmethod
    def _tables(self) -> Mapping[str, pd.DataFrame]:
        """Name -> table."""

    def __repr__(self) -> str:
        printed = [f"{type(self).__name__}: {self._sentence()}"]
        for name, table in self._tables().items():
            rows = table.head(ROWS).to_string(index=False, max_cols=COLUMNS, **_FORMAT)
            printed.append(f"{_counted(name, table)}\n{rows}")
        return "\n\n".join(printed)

    def _repr_html_(self) -> str:
        printed = [f"<p>{type(self).__name__}: {escape(self._sentence())}</p>"]
        for name, table in self._tables().items():
            rows = table.head(ROWS).to_html(index=False, border=0, **_FORMAT)
            printed.append(f"<p>{escape(_counted(name, table))}</p>\n{rows}")
        return "\n".join(printed)


_FORMAT: dict[str, Any] = {"float_format": "{:.4g}".format, "na_rep": ""}


def _counted(name: str, table: pd.DataFrame) -> str:
    return f".{name}" if len(table) <= ROWS else f".{name}, the first {ROWS} of {len(table):,}"
