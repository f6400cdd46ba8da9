"""``make bench``: all peers that are installed side by side. ``python -m benchmarks --help`` tells the options.

A run that was interrupted goes on where it was. To measure anew, delete ``results.jsonl``.
"""

from __future__ import annotations

import os
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks import steady, trajectories
from benchmarks.figure import draw
from benchmarks.measure import measure
from benchmarks.report import report
from benchmarks.results import Log
from benchmarks.workers import Problem, Worker


class Kind(StrEnum):
    trajectories = "trajectories"
    steady = "steady"


GRIDS = {Kind.trajectories: trajectories, Kind.steady: steady}


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A few cells of the grid.")] = False,
    only: Annotated[Kind | None, typer.Option(help="One of the two grids.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions of each.")] = 7,
    out: Annotated[Path, typer.Option(help="The folder of the results.")] = Path(__file__).parent,
) -> None:
    """Time the gradients of Retrograde and its peers; write RESULTS.md, results.svg and results.jsonl."""
    grids = [GRIDS[kind] for kind in Kind if only in (None, kind)]
    problems = [problem for grid in grids for problem in (grid.QUICK if quick else grid.GRID)]
    log = Log(out / "results.jsonl")
    if os.getloadavg()[0] > 0.5:
        print("The machine is busy. Calls whose threads wait for each other will look slow.")
    workers = {"torch": Worker(), "jax": Worker()}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns) as progress:
            task = progress.add_task("", total=len(problems))
            for problem in problems:
                say = partial(_say, progress, task, problem)
                if not log.has(problem):
                    log.add(measure(problem, repeats, workers, say))
                progress.advance(task)
    finally:
        for worker in workers.values():
            worker.stop()
    (out / "RESULTS.md").write_text(report(log))
    draw(log.results, out / "results.svg")


def _say(progress: Progress, task: TaskID, problem: Problem, what: str) -> None:
    progress.update(task, description=f"{problem}: {what}")


if __name__ == "__main__":
    typer.run(main)
