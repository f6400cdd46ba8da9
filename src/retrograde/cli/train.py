"""`retrograde train TASK`: a command a task, with a flag for each of its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from retrograde.cli.evaluate import health_table, require_convergence, suit_threads
from retrograde.cli.telling import err, out, telling
from retrograde.report import render
from retrograde.result import ConvergenceError
from retrograde.training import TASKS, Config, Examination, InputError, Run, Training, metrics_table, read_config

train = typer.Typer(
    no_args_is_help=True,
    help="Train a recurrent network by gradient ascent on a reward, and leave a run folder with a report.",
)

ABOUT = {
    "digits": "Read handwritten digits from the steady state of a recurrent network, by recurrent backpropagation.",
    "flipflop": "Remember three bits along trajectories, by backpropagation through time.",
    "attractors": "Teach patterns to be steady states that are reached from corrupted versions of themselves.",
}


def run_task(
    task: str, config: Path | None, out_folder: Path | None, resume: Path | None, flags: dict[str, Any]
) -> None:
    """Make or find the run folder, train, and report."""
    if resume is not None:
        run = _resumed(task, resume, config, out_folder, flags)
        suit_threads(run.config)
        training = run.training()
        if len(training.metrics) > run.config.epochs:
            raise InputError(f"epochs: {resume} has {len(training.metrics)} already, got {run.config.epochs}")
        run.write_config()
    else:
        cls = TASKS[task].config_class
        chosen = read_config(cls, config, **flags) if config is not None else cls.from_mapping(flags)
        suit_threads(chosen)
        training = Training(TASKS[task](chosen))  # before the folder, so that bad input leaves none
        run = Run.create(out_folder or _unused(task), chosen)
        run.save(training)  # so that a folder that cannot be written is found before any work is done

    kept = f"What was learned is kept; go on with: retrograde train {task} --resume {run.folder}"
    failure: ConvergenceError | None = None
    interrupted = False
    try:
        _train(run, training)
    except KeyboardInterrupt:
        interrupted = True
    except ConvergenceError as error:
        failure = error
    except OSError:
        err.print(kept, markup=False, soft_wrap=True)
        raise
    examination = _report(run)
    if failure is not None:
        raise failure
    if interrupted:
        err.print(f"Interrupted. {kept}", markup=False, soft_wrap=True)
        raise typer.Exit(130)
    require_convergence(examination)


def _unused(task: str) -> Path:
    """runs/TASK-TIME, with a number where another run began in the same second."""
    first = Path("runs") / f"{task}-{datetime.now():%Y%m%d-%H%M%S}"
    others = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return next(folder for folder in chain([first], others) if not folder.exists())


def _resumed(task: str, folder: Path, config: Path | None, out_folder: Path | None, flags: dict[str, Any]) -> Run:
    run = Run.open(folder)
    if run.config.task != task:
        raise InputError(f"resume: {folder} is a run of {run.config.task}, not of {task}")
    others = [key for key in flags if key != "epochs"]
    if config is not None or out_folder is not None or others:
        what = "--config" if config is not None else "--out" if out_folder is not None else f"--{others[0]}"
        raise InputError(f"resume: a run goes on as it was configured, but for --epochs; got {what}")
    return run.lasting(flags["epochs"]) if "epochs" in flags else run


def columns() -> tuple[ProgressColumn, ...]:
    """Those of the progress bar. They fit in 80 characters: the bar takes what the others leave."""
    shown = "reward {task.fields[reward]}  accuracy {task.fields[accuracy]}  test {task.fields[test]}"
    text = TextColumn(f"{shown}  steps {{task.fields[steps]}}")
    return MofNCompleteColumn(), BarColumn(), text, TimeRemainingColumn()


def _train(run: Run, training: Training) -> None:
    """Epoch by epoch, with a bar; each epoch is saved."""
    done, epochs = len(training.metrics), run.config.epochs
    with Progress(*columns(), console=err) as progress:
        bar = progress.add_task(
            run.config.task, total=epochs, completed=done, reward="-", accuracy="-", test="-", steps="-"
        )
        while len(training.metrics) < epochs:
            for outcome in training.epoch():
                progress.update(
                    bar,
                    reward=f"{float(outcome.reward.detach()):.4f}",
                    accuracy=f"{outcome.accuracy:.1%}",
                    steps=f"{outcome.steps:.0f}",
                )
            run.save(training)
            progress.update(bar, advance=1, test=f"{training.metrics[-1].test_accuracy:.1%}")


def _report(run: Run) -> Examination:
    """The report and the summary, of what the checkpoint holds; and what they were made of."""
    training = run.training()
    run.write_metrics(training)  # an interrupt may have come between the checkpoint and its metrics
    examination = training.task.examine()
    title = f"{run.config.task}: {len(training.metrics)} of {run.config.epochs} epochs"
    config = {"task": run.config.task, **run.config.as_dict()}
    run.write_report(render(title, config, metrics_table(training), examination))
    out.print(health_table(title, examination))
    out.print(f"Report: {run.folder / 'report.html'}", soft_wrap=True)
    return examination


def _command(task: str, config: type[Config]) -> Callable[..., None]:
    """The command of a task: --config, --out and --resume, and a flag for each field of its configuration."""

    def command(context: typer.Context, **given: Any) -> None:
        with telling(context):
            flags = {key: given[key] for key in config.types() if given[key] is not None}
            run_task(task, given["config"], given["out"], given["resume"], flags)

    def parameter(name: str, kind: Any, flag: str, help: str) -> inspect.Parameter:
        annotation = Annotated[kind | None, typer.Option(flag, help=help, show_default=False)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    parameters += [
        parameter("config", Path, "--config", "A TOML file with any of the options; flags win over it."),
        parameter("out", Path, "--out", "The run folder to make; runs/TASK-TIME if not given."),
        parameter("resume", Path, "--resume", "A run folder to go on with, from its checkpoint."),
    ]
    for name, kind in config.types().items():
        option = config.__dataclass_fields__[name]
        default = "" if option.default is None else f" [dim]\\[{str(option.default).lower()}][/]"
        flag = f"--{name}/--no-{name}" if kind is bool else f"--{name}"
        parameters.append(parameter(name, kind, flag, option.metadata["help"] + default))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__doc__ = (
        f"{ABOUT[task]}\n\nThe run folder holds config.toml, metrics.csv, checkpoint.pt and report.html. Ctrl-C stops, "
        f"and keeps what was learned. Exit code 1 if some steady state does not converge in the end.\n\n"
        f"Examples:\n\n[bold]retrograde train {task}[/]\n\n"
        f"[bold]retrograde train {task} --epochs 5 --out runs/{task}[/]\n\n"
        f"[bold]retrograde train {task} --resume runs/{task} --epochs 10[/]"
    )
    return command


for name, task in TASKS.items():
    train.command(name)(_command(name, task.config_class))
