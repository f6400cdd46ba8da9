"""The answer to a question on a connectome, and its page: tables that sort and filter, figures, receipts."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retrograde.report.ink import Sketch
from retrograde.report.page import number

ROWS = 1000  # of each table, as many are in the page
IDS = ("id", "neuron", "pre", "post", "source", "target")
EXACT = 2**53  # a page's script rounds larger integers


@dataclass(frozen=True)
class Figure:
    """A figure, its title, and the sentence that tells what to look for."""

    title: str
    sketch: Sketch
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Args:
        title: of the page.
        tables: name -> table, the most important rows first. The first, or the one that ``--table`` names, is what
            ``--out`` and ``--json`` give.
        figures: the first is what ``--figure`` draws, and all of them into a folder.
        receipts: what was solved -> how: a mapping from names to numbers or text, or a receipt that prints itself.
        notes: sentences that are printed below the tables.
        summary: the connectome's.
        source: where its data are from, if they came along.
    """

    title: str
    tables: Mapping[str, pd.DataFrame]
    figures: Sequence[Figure] = ()
    receipts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    summary: pd.DataFrame | None = None
    source: str = ""

    @property
    def table(self) -> pd.DataFrame:
        """The first table."""
        return next(iter(self.tables.values()))

    def page(self, command: str) -> str:
        """One HTML page with nothing outside itself; the same answer gives the same page, byte for byte.

        Args:
            command: what was typed.
        """
        loader = PackageLoader("retrograde.report", "")
        page = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return page.get_template("answer.html.j2").render(
            answer=self,
            tables=[_Rows.of(title, table) for title, table in self.tables.items()],
            figures=[(each, each.sketch.inline()) for each in self.figures],
            receipts=[(what, _receipt(how)) for what, how in self.receipts.items()],
            command=command,
            versions=list(versions()),
            number=number,
        )


@dataclass(frozen=True)
class _Rows:
    """A table as the page has it: a cell is what is shown, and what it is sorted by, empty for text."""

    title: str
    names: list[str]
    numeric: list[bool]
    rows: list[list[tuple[str, str]]]
    left_out: int

    @classmethod
    def of(cls, title: str, table: pd.DataFrame) -> _Rows:
        names = [name for name in table.columns if table[name].notna().any()]
        numeric = [_is_numeric(table[name]) for name in names]
        rows = [
            [_cell(value, is_number) for value, is_number in zip(row, numeric, strict=True)]
            for row in table[names].head(ROWS).itertuples(index=False, name=None)
        ]
        return cls(title, list(map(str, names)), numeric, rows, max(len(table) - ROWS, 0))


def _is_numeric(column: pd.Series) -> bool:
    """Whether a column is sorted, filtered and shown as numbers. Ids are names, of however many digits."""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return False
    if str(column.name) in IDS or str(column.name).endswith("_id"):
        return False
    return not (pd.api.types.is_integer_dtype(column) and max(-column.min(), column.max()) > EXACT)


def _cell(value: Any, is_number: bool) -> tuple[str, str]:
    if not is_number:
        return ("" if pd.isna(value) else str(value)), ""
    if isinstance(value, float):
        return number(value), "" if pd.isna(value) else repr(float(value))
    return f"{value:,}", str(value)


def _receipt(how: Any) -> Markup | list[tuple[str, str]]:
    """A receipt as it prints itself, or as rows."""
    if hasattr(how, "_repr_html_"):
        return Markup(how._repr_html_())  # from numbers and names of our own, escaped there
    rows = how.items() if isinstance(how, Mapping) else [("", how)]
    return [(str(what), f"{value:.6g}" if isinstance(value, float) else str(value)) for what, value in rows]


def versions() -> Iterator[tuple[str, str]]:
    """What computed it."""
    yield "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    for name in ("retrograde", "torch", "numpy", "scipy", "numba", "pandas", "pyarrow", "matplotlib"):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            from retrograde import __version__

            yield name, __version__ if name == "retrograde" else "absent"
