"""Tasks to train a network on, the loop, and the run folder. It prints nothing and draws nothing."""

from retrograde.training.config import Config, InputError, read_config
from retrograde.training.examination import Examination, Example
from retrograde.training.loop import Epoch, Training
from retrograde.training.run import Run, metrics_table
from retrograde.training.tasks import (
    TASKS,
    Attractors,
    AttractorsConfig,
    Digits,
    DigitsConfig,
    Flipflop,
    FlipflopConfig,
    Outcome,
    Task,
)

__all__ = [
    "TASKS",
    "Attractors",
    "AttractorsConfig",
    "Config",
    "Digits",
    "DigitsConfig",
    "Epoch",
    "Examination",
    "Example",
    "Flipflop",
    "FlipflopConfig",
    "InputError",
    "Outcome",
    "Run",
    "Task",
    "Training",
    "metrics_table",
    "read_config",
]
