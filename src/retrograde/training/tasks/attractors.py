"""Attractors: patterns taught to be steady states, and to be reached from corrupted versions of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

import retrograde as rg
from retrograde.training.config import Config, InputError, option
from retrograde.training.examination import Examination, Example
from retrograde.training.tasks.base import Outcome, Task, normal

BATCHES = 25  # an epoch
LEVELS = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]  # corruptions at which recall is measured
CUES = 50  # of each pattern at each level
CLOSE = 0.1  # a pattern is recalled if no neuron is farther from it
EXAMPLES = 6


@dataclass(frozen=True)
class AttractorsConfig(Config):
    """Options of the attractors."""

    task: ClassVar[str] = "attractors"

    epochs: int = option(20, "Epochs, of 25 batches each.", low=1)
    rate: float = option(0.003, "Learning rate of Adam.", low=0, high=1)
    patterns: Path | None = option(None, "CSV file of patterns, one a row, each entry between -1 and 1.")
    count: int = option(10, "Number of random patterns, where no file is given.", low=1)
    neurons: int = option(100, "Neurons of random patterns, where no file is given.", low=1, high=5000)
    gain: float = option(0.5, "Standard deviation of W at the start, times √neurons.", low=0, high=10)
    corruption: float = option(
        0.25, "Largest share of flipped entries to train with, and the share to test at.", low=0, high=0.5
    )
    steps: int = option(10, "Steps from a corrupted pattern to where it should have been restored.", low=1)


class Attractors(Task[AttractorsConfig]):
    """The patterns are random, ±0.8, unless a file gives them. To corrupt one is to flip the sign of some entries."""

    config_class = AttractorsConfig

    def __init__(self, config: AttractorsConfig):
        super().__init__(config)
        generator = Generator().manual_seed(config.seed)
        if config.patterns is None:
            signs = 2.0 * torch.randint(2, (config.count, config.neurons), generator=generator) - 1
            self.patterns = 0.8 * signs
        else:
            self.patterns = read_patterns(config.patterns)
        n = self.patterns.shape[1]
        self.net = rg.Network(normal(n, n, std=config.gain * n**-0.5, generator=generator))
        self.model = self.net
        self.test_rows = torch.arange(len(self.patterns)).repeat(CUES)
        self.test_cues = self.corrupted(self.test_rows, config.corruption, generator)
        self._test_state = generator.get_state()

    def corrupted(self, rows: Tensor, share: float | Tensor, generator: Generator) -> Tensor:
        """Patterns (samples, n) of which the share, on average, of the entries is flipped."""
        patterns = self.patterns[rows]
        return torch.where(torch.rand(patterns.shape, generator=generator) < share, -patterns, patterns)

    def batches(self, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Patterns and corrupted patterns, (batch, n) each; the corruption goes from none to the largest."""
        for _ in range(BATCHES):
            rows = torch.randint(len(self.patterns), (self.config.batch,), generator=generator)
            share = self.config.corruption * torch.rand(len(rows), 1, generator=generator)
            yield self.patterns[rows], self.corrupted(rows, share, generator)

    def outcome(self, batch: tuple[Tensor, Tensor]) -> Outcome:
        """The reward has two terms, minus a mean square each.

        The gradient of a steady state knows nothing of where the state was reached from: it can move an attractor, but
        neither make one nor widen its basin. So the first term uses that input is a function of output: the input that
        would hold a pattern in place shall be none, which makes the pattern a steady state. The second lets the network
        run from a corrupted pattern, and shall find it restored at the end, which makes that steady state attract.
        """
        patterns, cues = batch
        x = self.net.trajectory(x0=cues, steps=self.config.steps).x[-1]
        missing = self.net.input_for(patterns)
        reward = -missing.square().mean() - (x - patterns).square().mean()
        return Outcome(reward, share_recalled(x, patterns), self.config.steps)

    def settle(self, cues: Tensor) -> rg.SteadyState:
        """Where the network's own dynamics come to rest from these starts."""
        return self.net.steady_state(x0=cues, solver=rg.FixedPoint(), throw=False)

    @torch.no_grad()
    def held_out_accuracy(self) -> float:
        """The share of the test cues from which their pattern is recalled."""
        return self._recall(self.settle(self.test_cues))

    @torch.no_grad()
    def examine(self) -> Examination:
        """Recall at each level of corruption; health of the steady states that the test cues lead to."""
        state = self.settle(self.test_cues)
        health, spectrum = self.health(state)
        generator = Generator()
        generator.set_state(self._test_state)
        recall = [self._recall(self.settle(self.corrupted(self.test_rows, level, generator))) for level in LEVELS]
        shown = range(min(len(self.patterns), EXAMPLES))
        return Examination(
            accuracy=self._recall(state),
            health=health,
            eigenvalues=spectrum[: len(self.patterns)],
            weights=self.weights,
            examples=[
                Example(
                    f"pattern {i + 1}, {self.config.corruption:.0%} of it flipped",
                    activity=state.x[i].numpy(),
                    picture=as_picture(self.test_cues[i]),
                    target=self.patterns[i].numpy(),
                    output=state.x[i].numpy(),
                )
                for i in shown
            ],
            recall=pd.DataFrame({"corruption": LEVELS, "recall": recall}),
        )

    def _recall(self, state: rg.SteadyState) -> float:
        # One that did not settle is not recalled, however near it passes.
        return share_recalled(state.x[state.converged], self.patterns[self.test_rows][state.converged]) * float(
            state.converged.double().mean()
        )


def share_recalled(x: Tensor, patterns: Tensor) -> float:
    """The share of states (samples, n) of which no neuron is far from the pattern."""
    return float(((x - patterns).abs().amax(-1) <= CLOSE).double().mean()) if len(x) else 0.0


def as_picture(pattern: Tensor) -> np.ndarray | None:
    """The pattern as a square, if it fills one."""
    side = isqrt(len(pattern))
    return pattern.view(side, side).numpy() if side * side == len(pattern) else None


def read_patterns(path: Path) -> Tensor:
    """The patterns in a CSV file without a header, (patterns, n).

    Raises:
        InputError: no such file, not a table of numbers, or a number not between -1 and 1.
    """
    try:
        table = pd.read_csv(path, header=None, skipinitialspace=True)
    except OSError as error:
        raise InputError(f"patterns: {path}: {error.strerror}") from None
    except (ValueError, UnicodeDecodeError) as error:  # of which pandas' own errors are kinds
        raise InputError(f"patterns: {path}: expected a table of numbers, one pattern a row: {error}") from None
    numbers = table.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float32)
    wrong = np.argwhere(~(np.abs(numbers) < 1))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(
            f"patterns: {path}, row {row + 1}, column {column + 1}: expected a number between -1 and 1, "
            f"which a neuron's tanh can reach, got {table.iat[row, column]}"
        )
    return torch.tensor(numbers)
