"""`retrograde evaluate RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from retrograde.cli.telling import err, out, telling
from retrograde.training import Config, Examination, InputError, Run

SMALL = 512  # neurons


def evaluate(
    context: typer.Context, run: Annotated[Path, typer.Argument(help="A run folder, as train leaves it.")]
) -> None:
    """Print a run's accuracy on held-out data, and the health of its steady states.

    Exit code 1 if some steady state does not converge.

    Example: [bold]retrograde evaluate runs/digits[/]
    """
    with telling(context):
        found = Run.open(run)
        if not (run / "checkpoint.pt").is_file():
            raise InputError(f"{run}: no checkpoint.pt in it; nothing was trained yet")
        suit_threads(found.config)
        training = found.training()
        examination = training.task.examine()
        title = f"{found.config.task}, {len(training.metrics)} of {found.config.epochs} epochs"
        out.print(health_table(title, examination))
        require_convergence(examination)


def require_convergence(examination: Examination) -> None:
    """Exit code 1 where some steady state has not converged."""
    if not examination.health.get("converged", 1.0) >= 1:  # which a NaN is not
        err.print("Not every steady state converged.")
        raise typer.Exit(1)


def health_table(title: str, examination: Examination) -> Table:
    """Accuracy and health, a row each."""
    table = Table(title=title, show_header=False)
    table.add_row("test accuracy", f"{examination.accuracy:.2%}")
    for name, value in examination.health.items():
        table.add_row(name, f"{value:.2%}" if name in ("converged", "stable") else f"{value:.3g}")
    if examination.recall is not None:
        for corruption, recall in examination.recall[["corruption", "recall"]].itertuples(index=False):
            table.add_row(f"recalled with {corruption:.0%} flipped", f"{recall:.1%}")
    return table


def suit_threads(config: Config) -> None:
    """One thread for a small network, in training as in evaluation: their number decides the last bits.

    A small batch is not worth a second thread, and waiting for one takes long where others work too.
    """
    if getattr(config, "neurons", 0) <= SMALL:
        torch.set_num_threads(1)
