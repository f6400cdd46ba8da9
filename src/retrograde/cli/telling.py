"""What a command says when something fails, and with which exit code: 1 the numbers failed, 2 bad input."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from retrograde.cli.wording import as_options
from retrograde.result import ConvergenceError
from retrograde.training import InputError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@contextmanager
def telling(context: typer.Context) -> Iterator[None]:
    """Errors become one message and an exit code; with --debug their traceback is shown too."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(130) from None
    except Exception as error:
        if context.find_root().params.get("debug"):
            traceback.print_exc()
        code, message = _verdict(error)
        err.print(f"[bold red]error[/] {escape(as_options(message, context))}", soft_wrap=True)
        raise typer.Exit(code) from None


def _verdict(error: Exception) -> tuple[int, str]:
    if isinstance(error, ConvergenceError):
        return 1, str(error)
    if isinstance(error, OSError):
        return 2, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, InputError | ValueError | TypeError):
        return 2, str(error)
    return 1, f"unexpected {type(error).__name__}: {error} (retrograde --debug shows where)"
