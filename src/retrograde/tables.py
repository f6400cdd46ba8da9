"""One readable table of what is known sample by sample: the middle, the worst, and whose that is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape
from typing import ClassVar

import torch
from torch import Tensor

Row = tuple[str, Tensor]
"""A name, and a number for each sample."""


def as_text(title: str, rows: Sequence[Row], smallest_is_worst: Sequence[str] = ()) -> str:
    """The table in a few lines of plain text.

    >>> print(as_text("Two samples", [("steps", torch.tensor([3, 5])), ("residual", torch.tensor([1e-9, 2e-12]))]))
    Two samples
                median     worst    sample
    steps            4         5         1
    residual  5.01e-10     1e-09         0
    """
    head, *body = _cells(rows, smallest_is_worst) or [[""]]
    width = max((len(name) for name, *_ in body), default=0)
    lines = [f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in (head, *body)]
    return "\n".join([title, *(lines if any(head) else lines[1:])])


def as_html(title: str, rows: Sequence[Row], smallest_is_worst: Sequence[str] = ()) -> str:
    """The same as an HTML table."""
    head, *body = _cells(rows, smallest_is_worst) or [[""]]
    lines = [f"<caption>{escape(title)}</caption>".replace("\n", "<br>")]
    if any(head):
        lines.append("<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>")
    for name, *cells in body:
        lines.append(f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


class Readable(ABC):
    """Prints as a table, and in a notebook is one in HTML."""

    @abstractmethod
    def _title(self) -> str:
        """What stands above it."""

    @abstractmethod
    def _rows(self) -> list[Row]:
        """What it holds."""

    def __repr__(self) -> str:
        return as_text(self._title(), self._rows(), self._smallest_is_worst)

    def _repr_html_(self) -> str:
        return as_html(self._title(), self._rows(), self._smallest_is_worst)

    _smallest_is_worst: ClassVar[tuple[str, ...]] = ("margin", "margin, discrete", "margin, continuous", "distance")


def _cells(rows: Sequence[Row], smallest_is_worst: Sequence[str]) -> list[list[str]]:
    """The head, empty where there is one sample, and a line of cells for each row."""
    cells = [[""] * 2 if all(value.ndim == 0 for _, value in rows) else ["", "median", "worst", "sample"]]
    for name, value in rows:
        if value.ndim == 0:
            cells.append([name, _number(value)])
        elif value.numel():
            flat = value.detach().double().flatten().nan_to_num(torch.inf, torch.inf, -torch.inf)
            where = int(flat.argmin() if name in smallest_is_worst else flat.argmax())
            low, high = flat.sort().values[[(len(flat) - 1) // 2, len(flat) // 2]]
            index = [int(i) for i in torch.unravel_index(torch.tensor(where), value.shape)]
            sample = str(index[0] if len(index) == 1 else tuple(index))
            cells.append([name, _number((low + high) / 2), _number(value.flatten()[where]), sample])
    return cells if len(cells) > 1 else []


def _number(value: Tensor) -> str:
    return f"{float(value.detach()):.3g}"
