"""The flip-flop memory: three bits, each to hold the sign of its last pulse. Backpropagation through time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

import retrograde as rg
from retrograde.training.config import Config, option
from retrograde.training.examination import Examination, Example
from retrograde.training.tasks.base import Outcome, Task, normal

BITS = 3
BATCHES = 50  # an epoch
EXAMPLES = 3


@dataclass(frozen=True)
class FlipflopConfig(Config):
    """Options of the flip-flop."""

    task: ClassVar[str] = "flipflop"

    epochs: int = option(12, "Epochs, of 50 batches each.", low=1)
    rate: float = option(0.003, "Learning rate of Adam.", low=0, high=1)
    neurons: int = option(64, "Recurrent neurons.", low=1, high=5000)
    gain: float = option(0.9, "Standard deviation of W at the start, times √neurons.", low=0, high=10)
    steps: int = option(50, "Length of a trajectory.", low=2)
    pulses: float = option(0.1, "Chance of a pulse on each bit at each step.", low=0, high=1)


class Memory(nn.Module):
    """pulses -> trajectory of the network -> one number a bit, whose sign is the bit."""

    def __init__(self, config: FlipflopConfig, generator: Generator):
        super().__init__()
        n = config.neurons
        self.encoder = normal(n, BITS, std=BITS**-0.5, generator=generator)
        self.net = rg.Network(normal(n, n, std=config.gain * n**-0.5, generator=generator))
        self.readout = normal(BITS, n, std=n**-0.5, generator=generator)

    def forward(self, pulses: Tensor) -> tuple[Tensor, Tensor]:
        """(T, batch, 3) -> x (T, batch, n) and the output (T, batch, 3)."""
        x = self.net.trajectory(pulses @ self.encoder.T).x
        return x, x @ self.readout.T


class Flipflop(Task[FlipflopConfig]):
    """Every trial is new; the test trials are drawn once, and are four times as long as those of the training."""

    config_class = FlipflopConfig

    def __init__(self, config: FlipflopConfig):
        super().__init__(config)
        generator = Generator().manual_seed(config.seed)
        self.model = Memory(config, generator)
        self.net = self.model.net
        self.test = trials(256, 4 * config.steps, config.pulses, generator)

    def batches(self, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Pulses and bits, (T, batch, 3) each."""
        for _ in range(BATCHES):
            yield trials(self.config.batch, self.config.steps, self.config.pulses, generator)

    def outcome(self, batch: tuple[Tensor, Tensor]) -> Outcome:
        """The reward is minus the mean squared distance of the output from the bits, ±1."""
        pulses, bits = batch
        _, output = self.model(pulses)
        return Outcome(-(output - bits).square().mean(), share_right(output, bits), len(pulses))

    @torch.no_grad()
    def held_out_accuracy(self) -> float:
        """The share of the bits that are right, at all times of the test trials."""
        pulses, bits = self.test
        return share_right(self.model(pulses)[1], bits)

    @torch.no_grad()
    def examine(self) -> Examination:
        """Accuracy on the test trials; and the memories, the steady states that silence leaves the network in."""
        pulses, bits = self.test
        x, output = self.model(pulses)
        # A bit is held for good only if, without pulses, the network's own dynamics settle.
        memories = self.net.steady_state(x0=x[-1], solver=rg.FixedPoint(), throw=False)
        health, spectrum = self.health(memories)
        codes = ((bits[-1] > 0).int() * torch.tensor([4, 2, 1])).sum(-1)
        one_of_each = [int((codes == code).nonzero()[0]) for code in codes.unique()]
        T = self.config.steps
        return Examination(
            accuracy=share_right(output, bits),
            health=health,
            eigenvalues=spectrum[one_of_each],
            weights=self.weights,
            examples=[
                Example(
                    f"trial {i + 1}",
                    activity=x[:T, i].numpy(),
                    target=bits[:T, i].numpy(),
                    output=output[:T, i].numpy(),
                )
                for i in range(EXAMPLES)
            ],
        )


def trials(count: int, steps: int, chance: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pulses (-1, 0 or 1) and the bits they leave (±1), (steps, count, 3) each. Every bit is set at the first step."""
    signs = 2.0 * torch.randint(2, (steps, count, BITS), generator=generator) - 1
    on = torch.rand(steps, count, BITS, generator=generator) < chance
    on[0] = True
    latest = torch.where(on, torch.arange(steps)[:, None, None], 0).cummax(0).values
    return signs * on, signs.gather(0, latest)


def share_right(output: Tensor, bits: Tensor) -> float:
    """The share of outputs with the sign of their bit."""
    return float(((output > 0) == (bits > 0)).double().mean())
