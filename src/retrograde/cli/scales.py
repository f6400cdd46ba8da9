"""`--scale NUMBER`, or none."""

from __future__ import annotations

from typing import Any

import typer


def scale_of(given: Any) -> float | None:
    """A number; or none, by which W is taken as it is."""
    if str(given).lower() == "none":
        return None
    try:
        return float(given)
    except ValueError:
        raise typer.BadParameter(f"expected a number or none, got {given!r}") from None


def scaling(help: str, usual: str = "") -> Any:
    """The option."""
    return typer.Option(parser=scale_of, metavar="FLOAT|none", help=f"{help}; none takes W as it is. {usual}".strip())
