"""How a command on a connectome is made of its question, and where the answer goes: a command is few lines."""

from __future__ import annotations

import inspect
import json
import random
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pyarrow
import torch
import typer
import typer.core
from rich.markup import escape
from rich.table import Table

from retrograde.cli.reading import Asked, the_name
from retrograde.cli.telling import err, out, telling
from retrograde.cli.wording import as_options
from retrograde.connectome.writing import written
from retrograde.report.answer import Answer, Figure
from retrograde.training import InputError

_SUFFIXES = {"out": (".csv", ".parquet"), "figure": (".png", ".svg", ".pdf"), "report": (".html",)}


def question(ask: Callable[..., Answer]) -> Callable[..., None]:
    """Turn ``ask(asked, own options)``, which returns an `Answer`, into a command that has the shared options too."""
    _asked, *own = inspect.signature(ask, eval_str=True).parameters.values()
    hints = get_type_hints(Asked, include_extras=True)
    shared = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in fields(Asked)
        if each.name != "steps"
    ]
    own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)

    def command(context: typer.Context, **given: Any) -> None:
        with telling(context):
            asked = Asked(**{each.name: given.pop(each.name) for each in shared})
            _check(asked)
            with asked.steps:
                answer = ask(asked, **given)
                notes = [as_options(note, context) for note in answer.notes]
                tables = _named_first(asked.table, answer.tables)
                answer = replace(answer, source=asked.source, notes=notes, tables=tables)
                _write(asked, answer, as_typed(context))
            _print(asked, answer)

    signature = inspect.Signature([context, shared[0], *own, *shared[1:]])
    command.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
    command.__annotations__ = {each.name: each.annotation for each in (context, *own, *shared)}
    command.__name__, command.__doc__ = ask.__name__, ask.__doc__
    return command


class Question(typer.core.TyperCommand):
    """A command whose repeatable options take several values at once: --target AVAL AVAR."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say --target AVAL AVAR as --target AVAL --target AVAR."""
        several = {name for each in self.params if getattr(each, "multiple", False) for name in each.opts}
        valued = {
            name
            for each in self.params
            if isinstance(each, typer.core.TyperOption) and not each.is_flag
            for name in each.opts
        }
        said: list[str] = []
        option, free = "", True  # the repeatable option that goes on, and whether EDGES is still to come
        rest = iter(args)
        for each in rest:
            if each == "--":
                said += [each, *rest]
            elif each.startswith("-") and len(each) > 1:
                name, equals, _value = each.partition("=")
                option = name if name in several else ""
                said.append(each)
                if name in valued and not equals:
                    said += [value for value in [next(rest, None)] if value is not None]
            elif option and not (free and Path(each).is_file()):
                said += [option, each]
            else:
                option, free = "", False
                said.append(each)
        return super().parse_args(ctx, said)


def as_typed(context: typer.Context) -> str:
    """The command with the options that were given, to be typed again."""
    words = ["retrograde", context.info_name or ""]
    for each in context.command.params:
        value = context.params.get(each.name or "")
        given = context.get_parameter_source(each.name or "")
        if given is None or given.name != "COMMANDLINE":
            continue
        if isinstance(each, typer.core.TyperArgument):
            words.append(str(value))
        elif getattr(each, "is_flag", False):
            words.append((each.opts if value else each.secondary_opts)[0])
        else:
            words += [each.opts[0], *map(str, value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)


def check_name(path: Path | None, option: str, suffixes: tuple[str, ...], folder: bool = False) -> None:
    """InputError where the name does not say a format, or the folder is not there; it may be one where that is told."""
    if path is None or (folder and path.is_dir()):
        return
    if path.suffix.lower() not in suffixes and (path.is_file() or not path.exists()):
        there = ", or a folder that is there" if folder else ""
        raise InputError(f"--{option}: expected a name that ends in {' or '.join(suffixes)}{there}, got {path}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--{option}: expected a file in a folder that is there, got {path}")


def _check(asked: Asked) -> None:
    """What can be looked at before any work is done; then the seed and the threads."""
    for option, suffixes in _SUFFIXES.items():
        check_name(getattr(asked, option), option, suffixes, folder=option == "figure")
    seed = asked.seed or 0
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if asked.threads is not None:
        use_threads(asked.threads)


def use_threads(threads: int) -> None:
    """So many for torch and Numba, which follows it, for Arrow, and for BLAS."""
    torch.set_num_threads(threads)
    pyarrow.set_cpu_count(threads)
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:  # it comes with scikit-learn
        return
    threadpool_limits(threads, user_api="blas")


def _named_first(part: str | None, tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables, that of which the name has this part first."""
    if part is None:
        return dict(tables)
    first = the_name(part, tables)
    return {first: tables[first], **tables}


def _write(asked: Asked, answer: Answer, command: str) -> None:
    if asked.out is not None:
        asked.step(f"writing {asked.out}")
        with written(asked.out) as path:
            if asked.out.suffix.lower() == ".parquet":
                answer.table.to_parquet(path, index=False)
            else:
                answer.table.to_csv(path, index=False)
    if asked.figure is not None:
        asked.step(f"drawing {asked.figure}")
        if not answer.figures:
            raise InputError("--figure: there is nothing to draw")
        for name, figure in _drawn(asked.figure, answer.figures):
            with written(name) as path:
                figure.sketch.save(path, format=name.suffix[1:].lower())
    if asked.report is not None:
        asked.step(f"writing {asked.report}")
        page = answer.page(command)
        with written(asked.report) as path:
            path.write_text(page, encoding="utf-8")


def _drawn(at: Path, figures: Sequence[Figure]) -> list[tuple[Path, Figure]]:
    """The first figure by that name; or in a folder all of them, by their titles."""
    if not at.is_dir():
        return [(at, figures[0])]
    return [(at / f"{re.sub(r'[^a-z0-9]+', '-', each.title.lower()).strip('-')}.svg", each) for each in figures]


def _print(asked: Asked, answer: Answer) -> None:
    if answer.summary is not None:
        for what, number in answer.summary.itertuples(index=False):
            err.print(f"{number:>12,}  {what}", markup=False)
    if answer.source:
        err.print(answer.source, markup=False, soft_wrap=True)
    if asked.json:
        typer.echo(as_json(answer.table[: asked.rows]))
        for note in answer.notes:  # that the targets are not met, say, which no row tells
            err.print(note, markup=False, soft_wrap=True)
        return
    if len(answer.tables) > 1:
        out.print(answer.title, markup=False, soft_wrap=True)
    for title, table in answer.tables.items():
        out.print(shown(table[: asked.rows], title if len(answer.tables) > 1 else answer.title))
    for note in answer.notes:
        out.print(note, markup=False, soft_wrap=True)
    for path in (asked.out, asked.figure, asked.report):
        if path is not None:
            what = f"written: {path}"
            if path is asked.out:
                what = f"all {len(answer.table):,} rows are in {path}"
            elif path is asked.figure and path.is_dir():
                what = f"written: {len(answer.figures)} figures in {path}"
            out.print(what, markup=False, soft_wrap=True)


def as_json(rows: pd.DataFrame) -> str:
    """The rows as JSON, in which what is missing is null, and what is infinite the text "inf" or "-inf"."""
    cells = rows.astype(object).where(rows.notna(), None).replace({np.inf: "inf", -np.inf: "-inf"})
    records = cells.to_dict("records")
    return json.dumps(records, default=_plain, allow_nan=False)


def _plain(value: Any) -> Any:
    """NumPy's numbers and truths as Python's own; anything else as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


_RANKED = ("importance", "removal")  # what connections are ranked by, which stands behind all else


def shown(rows: pd.DataFrame, title: str, width: int | None = None) -> Table:
    """The rows for a terminal, without columns that say nothing, and without the last ones where it is narrow.

    What they are ranked by stays.
    """
    names = [name for name in rows.columns if rows[name].notna().any() and (rows[name].astype(str) != "").any()]
    cells = {name: [f"{each:.6g}" if isinstance(each, float) else str(each) for each in rows[name]] for name in names}
    needs = {name: 3 + max(len(str(name)), *map(len, cells[name])) for name in names}
    room = (out.width if width is None else width) - 1 - sum(needs[name] for name in names if name in _RANKED)
    fit: list[Any] = []
    for name in names:
        room -= 0 if name in _RANKED else needs[name]
        if name in _RANKED or room >= 0 or len(fit) < 2:
            fit.append(name)
    left = [str(name) for name in names if name not in fit]
    table = Table(title=escape(title), caption=escape(f"not shown: {', '.join(left)}") if left else None)
    for name in fit:
        table.add_column(escape(str(name)), justify="right" if pd.api.types.is_float_dtype(rows[name]) else "left")
    for row in zip(*(cells[name] for name in fit), strict=True):
        table.add_row(*map(escape, row))
    return table
