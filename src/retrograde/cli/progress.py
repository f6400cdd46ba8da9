"""A progress bar for whatever takes longer than a second, on the standard error of a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from retrograde.cli.telling import err

_SECONDS = 1.0


class _Late(Progress):
    """A progress bar that is not seen at first."""

    def get_renderables(self) -> Iterable[RenderableType]:
        if any((task.elapsed or 0) > _SECONDS for task in self.tasks):
            yield self.make_tasks_table(self.tasks)


class _Count(MofNCompleteColumn):
    """3/7, where a number is known."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text()


class Steps:
    """What is being done, and how long that has taken so far: a context within which the bar is shown."""

    def __init__(self) -> None:
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _Count(), TimeElapsedColumn()
        self._bar = _Late(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, what: str, done: int | None = None, total: int | None = None) -> None:
        """This is being done now; and so much of so much of it is."""
        self._bar.update(self._task, description=what, completed=done or 0)
        self._bar.tasks[0].total = total
