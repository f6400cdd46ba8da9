"""The loop: gradient ascent on a task's reward, epoch by epoch. It prints nothing, and remembers all that it must."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator

from retrograde.result import ConvergenceError
from retrograde.training.tasks.base import Outcome, Task

# A gradient longer than this is shortened: along a trajectory a rare one is huge.
_LONGEST = 1.0


@dataclass(frozen=True)
class Epoch:
    """A row of metrics.csv: training means over the epoch, and the accuracy on held-out data after it."""

    epoch: int
    seconds: float
    reward: float
    accuracy: float
    test_accuracy: float
    steps: float


class Training:
    """A task on its way: the model, the optimiser, the random numbers and the metrics so far.

    Its `state` is all there is to it: a Training made of the same config that has loaded it goes on with the same bits.

    >>> from retrograde.training import Flipflop, FlipflopConfig
    >>> training = Training(Flipflop(FlipflopConfig(epochs=1, neurons=8, steps=5, batch=4)))
    >>> for outcome in training.epoch():
    ...     pass
    >>> training.metrics[-1].epoch
    1
    """

    def __init__(self, task: Task[Any]):
        self.task = task
        config = task.config
        self.optimizer = torch.optim.Adam(task.model.parameters(), lr=config.rate, maximize=True)
        # Independent of the length of the run, so that a longer one starts with the same bits.
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, config.decay)
        self.generator = Generator().manual_seed(config.seed + 1)  # the task has drawn from `seed`
        self.metrics: list[Epoch] = []

    def epoch(self) -> Iterator[Outcome]:
        """Go through the training data once, an outcome a batch; at the end a row is added to ``metrics``.

        Raises:
            ConvergenceError: the numbers failed.
        """
        start = time.perf_counter()
        rewards, accuracies, steps = [], [], []
        for batch in self.task.batches(self.generator):
            outcome = self.task.outcome(batch)
            self._climb(outcome)
            rewards.append(float(outcome.reward.detach()))
            accuracies.append(outcome.accuracy)
            steps.append(outcome.steps)
            yield outcome
        self.schedule.step()
        test_accuracy = self.task.held_out_accuracy()
        seconds = time.perf_counter() - start
        self.metrics.append(
            Epoch(len(self.metrics) + 1, seconds, _mean(rewards), _mean(accuracies), test_accuracy, _mean(steps))
        )

    def _climb(self, outcome: Outcome) -> None:
        if not outcome.reward.isfinite():
            raise ConvergenceError(f"the reward became {float(outcome.reward.detach())}; try a lower rate", outcome)
        self.optimizer.zero_grad()
        outcome.reward.backward()
        length = torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), _LONGEST)
        if not length.isfinite():
            raise ConvergenceError(f"the gradient's length became {float(length)}; try a lower rate", outcome)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and strings alone, to be read back with ``weights_only=True``."""
        return {
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "metrics": [vars(row) for row in self.metrics],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is not the state of such a training.
        """
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.metrics = [Epoch(**row) for row in state["metrics"]]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
