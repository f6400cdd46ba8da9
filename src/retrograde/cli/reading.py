"""What the commands on connectomes share: the options, and the connectome that they say how to read."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from retrograde import connectome
from retrograde.cli.cells import number_or_name
from retrograde.cli.progress import Steps
from retrograde.connectome import SIGNS
from retrograde.connectome.naming import did_you_mean
from retrograde.connectome.packaged import SOURCES, files
from retrograde.connectome.tables import Source
from retrograde.training import InputError

Several = list[str] | None
WHO = "ID, or COLUMN:VALUE such as cell_type:AVA"  # how neurons are named
EACH = "a number, a column of the neurons, or ID=NUMBER of some"  # how each is given its own
_READING, _ANSWER = "Reading the connectome", "The answer"


class Example(StrEnum):
    """The connectomes that come along."""

    worm = "worm"


def _reading(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_READING, show_default=False)


def _answer(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_ANSWER, **more)


@dataclass
class Asked:
    """The options that all questions on a connectome share; a command gets them as its first argument.

    `connectome` reads what they say. `step` tells a progress bar what is being done.
    """

    edges: Annotated[
        Path | None, typer.Argument(help="The connections: CSV, TSV (.gz too), Parquet, Feather, SQLite, .npz or .npy.")
    ] = None
    example: Annotated[Example | None, _reading("A connectome that comes along, in place of EDGES.")] = None
    neurons: Annotated[list[Path] | None, _reading("A table of the neurons: transmitter, type, side; or several.")] = (
        None
    )
    weights: Annotated[str, _reading("count, norm, weight, fraction, or rows, 1 each. \\[default: count]")] = "count"
    signs: Annotated[str | None, _reading("A preset, 'column', or gaba=-1,glutamate=-1; what is not named is +1.")] = (
        None
    )
    threshold: Annotated[float, _reading("Drop connections of a smaller count. \\[default: 0]")] = 0
    silence: Annotated[Several, _reading(f"Neurons whose output is cut: {WHO}.")] = None
    exclude: Annotated[Several, _reading("Neurons to leave out, likewise.")] = None
    exclude_transmitter: Annotated[Several, _reading("Transmitters whose neurons' output is left out.")] = None
    column: Annotated[Several, _reading("ROLE=COLUMN where one is not recognised: pre=from_id, id=cell.")] = None
    orientation: Annotated[str | None, _reading("Of a matrix: post_pre or pre_post.")] = None
    ids: Annotated[Path | None, _reading("Of a matrix: the ids of its rows, in a table or a .txt with one a line.")] = (
        None
    )
    table: Annotated[
        str | None, _answer("Which of the tables comes first and is written, by a part of its name: eigenvalues, say.")
    ] = None
    top: Annotated[int | None, _answer("How many rows to print. \\[default: 20, as JSON all]", min=1)] = None
    out: Annotated[Path | None, _answer("Write all rows, as CSV or Parquet by its suffix.")] = None
    json: Annotated[
        bool, _answer("Print the rows as JSON; what was read, and notes, go to the standard error.", "--json")
    ] = False
    figure: Annotated[
        Path | None, _answer("Draw the first figure, as PNG, SVG or PDF by its suffix; or all, into a folder.")
    ] = None
    report: Annotated[Path | None, _answer("Write one HTML page with tables, figures and receipts.")] = None
    seed: Annotated[int | None, _answer("Of whatever is random. \\[default: 0]", min=0, show_default=False)] = None
    threads: Annotated[int | None, _answer("How many to compute with.", min=1, show_default=False)] = None
    steps: Steps = field(default_factory=Steps)

    @property
    def rows(self) -> int | None:
        """How many to print, None for all."""
        return 20 if self.top is None and not self.json else self.top

    def check_table(self, *names: str) -> None:
        """InputError unless ``--table`` is a part of one of these names: before any work is done."""
        if self.table is not None:
            the_name(self.table, names)

    def wants(self, name: str, names: Collection[str]) -> bool:
        """Whether ``--table`` means this one of them."""
        return self.table is not None and the_name(self.table, names) == name

    def step(self, what: str, done: int | None = None, total: int | None = None) -> None:
        """Tell the progress bar what is being done, and how far it is where that is known."""
        self.steps.step(what, done, total)

    @property
    def source(self) -> str:
        """Where the data are from, if they came along."""
        return SOURCES[self.example] if self.example is not None else ""

    @property
    def files(self) -> tuple[Path, list[Path]]:
        """The tables of the connections and of the neurons."""
        if self.edges is not None and self.example is None:
            if str(self.edges) in SOURCES and not self.edges.exists():
                raise InputError(f"edges: no such file: {self.edges}; did you mean --example {self.edges}?")
            return self.edges, self.neurons or []
        if self.edges is None and self.example is not None:
            edges, neurons = files(self.example)
            return edges, self.neurons or [neurons]
        got = "neither (EDGES comes before the options)" if self.edges is None else "both"
        raise InputError(f"edges: expected EDGES, or --example, one of the two; got {got}")

    @property
    def columns(self) -> dict[str, str]:
        """Role -> column, where they are given."""
        return pairs_of(self.column, "--column")

    def connectome(self) -> connectome.Connectome:
        """The connectome, read as the options say."""
        edges, neurons = self.files
        self.step("reading")
        return connectome.read(
            edges,
            neurons,
            weights=self.weights,
            signs=signs_of(self.signs),
            threshold=self.threshold,
            exclude=self.exclude or (),
            exclude_transmitters=self.exclude_transmitter or (),
            columns=self.columns,
            orientation=self.orientation,  # type: ignore[arg-type]  # which `read` checks
            ids=None if self.ids is None else _ids(self.ids),
        )


def the_name(part: str, names: Collection[str]) -> str:
    """The name of a table of which this is a part."""
    found = [name for name in names if part.lower() in name.lower()]
    if len(found) != 1:
        raise InputError(f"--table: expected a part of one name among {'; '.join(names)}; got {part!r}")
    return found[0]


def signs_of(given: str | None) -> str | dict[str, int] | None:
    """A preset's name, or a table from gaba=-1,glutamate=-1."""
    if given is None or given in (*SIGNS, "column"):
        return given
    if "=" not in given:
        meant = ",".join(f"{name}={sign}" for name, sign in re.findall(r"(\w[\w-]*)\W*?[:=]\s*([+-]?1)", given))
        hint = f"; did you mean {meant}?" if meant else did_you_mean(given, ["column", *SIGNS])
        raise InputError(
            f"--signs: expected {', '.join(SIGNS)}, column, or TRANSMITTER=SIGN,TRANSMITTER=SIGN,..., "
            f"got {given!r}{hint}"
        )
    pairs = pairs_of(given.split(","), "--signs")
    try:
        return {name: int(sign) for name, sign in pairs.items()}
    except ValueError:
        raise InputError(f"--signs: expected +1 or -1 behind each =, got {given}") from None


def pairs_of(given: Several, option: str) -> dict[str, str]:
    """NAME=VALUE, NAME=VALUE, ... as a dict."""
    found = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise InputError(f"{option}: expected NAME=VALUE, got {each!r}")
        if name.strip() in found:
            raise InputError(f"{option}: {name.strip()} is there more than once")
        found[name.strip()] = value.strip()
    return found


def numbers_of(given: Several, option: str, usual: float | None = 1) -> dict[str, float]:
    """ID or ID=NUMBER, which is else the usual one; where there is none, each has to have its own."""
    pairs = pairs_of([each if "=" in each or usual is None else f"{each}={usual}" for each in given or ()], option)
    try:
        return {name: float(number) for name, number in pairs.items()}
    except ValueError:
        raise InputError(f"{option}: expected a number behind each =, got {', '.join(given or ())}") from None


def per_neuron_of(given: Several, option: str) -> Any:
    """A number for all, the name of a column, or ID=NUMBER of several; None where nothing is given."""
    if not given:
        return None
    if any("=" in each for each in given):
        if any("=" not in each for each in given):
            raise InputError(f"{option}: expected a number behind each id, as ID=NUMBER, got {', '.join(given)}")
        return numbers_of(given, option)
    if len(given) > 1:
        raise InputError(f"{option}: expected one number or column, or ID=NUMBER of several, got {', '.join(given)}")
    return number_or_name(given[0])


def _ids(path: Path) -> Any:
    """The ids of a matrix's rows: the lines of a text, or the first column of a table."""
    if path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()]
    source = Source(path, "ids")
    return source.read(source.names[:1])[0].combine_chunks()
