"""What can be trained, one task a file."""

from typing import Any

from retrograde.training.tasks.attractors import Attractors, AttractorsConfig
from retrograde.training.tasks.base import Outcome, Task
from retrograde.training.tasks.digits import Digits, DigitsConfig
from retrograde.training.tasks.flipflop import Flipflop, FlipflopConfig

TASKS: dict[str, type[Task[Any]]] = {task.config_class.task: task for task in (Digits, Flipflop, Attractors)}

__all__ = [
    "TASKS",
    "Attractors",
    "AttractorsConfig",
    "Digits",
    "DigitsConfig",
    "Flipflop",
    "FlipflopConfig",
    "Outcome",
    "Task",
]
