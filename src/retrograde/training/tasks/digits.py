"""Handwritten digits, read from the steady state of a recurrent network: recurrent backpropagation at work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils import parametrize

import retrograde as rg
from retrograde.training.config import Config, option
from retrograde.training.examination import Examination, Example
from retrograde.training.tasks.base import Outcome, Task, normal

EXAMPLES = 12


@dataclass(frozen=True)
class DigitsConfig(Config):
    """Options of the digits."""

    task: ClassVar[str] = "digits"

    epochs: int = option(60, "How often to go through the training images.", low=1)
    batch: int = option(32, "Images in a batch.", low=1)
    rate: float = option(0.01, "Learning rate of Adam.", low=0, high=1)
    decay: float = option(0.95, "Factor on the learning rate after each epoch.", low=0, high=1)
    neurons: int = option(200, "Recurrent neurons.", low=1, high=5000)
    gain: float = option(0.5, "Standard deviation of W at the start, times √neurons.", low=0, high=10)
    bound: float = option(
        0.9, "Largest gain of W, its spectral norm. Below 1 each image has one steady state.", low=0, high=1
    )
    shift: bool = option(True, "Move each training image by up to one pixel each way, at random.")


class Bounded(nn.Module):
    """A matrix scaled down until its spectral norm is at most the bound.

    As |f'| <= 1, a bound below 1 makes x <- f(Wx + b) a contraction: there is one steady state, the dynamics reach it,
    and its adjoint converges as fast. It is a constraint on the weights, so W itself knows nothing of it.
    """

    def __init__(self, bound: float):
        super().__init__()
        self.bound = bound

    def forward(self, V: Tensor) -> Tensor:
        """W, (n, n), from any V."""
        return V * (self.bound / torch.linalg.matrix_norm(V, 2).clamp(min=self.bound))


class Reader(nn.Module):
    """image -> linear encoder -> steady state -> linear readout -> one number a class."""

    def __init__(self, config: DigitsConfig, generator: Generator):
        super().__init__()
        n = config.neurons
        self.encoder = normal(n, 64, std=64**-0.5, generator=generator)
        self.net = rg.Network(normal(n, n, std=config.gain * n**-0.5, generator=generator))
        parametrize.register_parametrization(self.net.W, "weight", Bounded(config.bound))
        self.readout = normal(10, n, std=n**-0.5, generator=generator)
        self.bias = nn.Parameter(torch.zeros(10))

    def settle(self, images: Tensor, throw: bool = True) -> rg.SteadyState:
        """The steady state for each image, reached by the network's own dynamics, so that it is a stable one."""
        input = images.flatten(1) @ self.encoder.T
        return self.net.steady_state(input, solver=rg.FixedPoint(), adjoint=rg.FixedPoint(), throw=throw)

    def scores(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., 10)."""
        return x @ self.readout.T + self.bias


class Digits(Task[DigitsConfig]):
    """The 1,797 real images of 8 x 8 pixels that scikit-learn brings; the same fifth of them is always the test."""

    config_class = DigitsConfig
    model: Reader

    def __init__(self, config: DigitsConfig):
        super().__init__(config)
        images, classes = load_digits(return_X_y=True)
        parts = train_test_split(images / 8 - 1, classes, test_size=0.2, stratify=classes, random_state=0)
        self.train_images, self.test_images = (torch.tensor(part).float().view(-1, 8, 8) for part in parts[:2])
        self.train_classes, self.test_classes = (torch.tensor(part) for part in parts[2:])
        self.model = Reader(config, Generator().manual_seed(config.seed))
        self.net = self.model.net

    def batches(self, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Images, moved a little, and their classes."""
        for rows in torch.randperm(len(self.train_images), generator=generator).split(self.config.batch):
            images = self.train_images[rows]
            yield (shifted(images, generator) if self.config.shift else images), self.train_classes[rows]

    def outcome(self, batch: tuple[Tensor, Tensor]) -> Outcome:
        """The reward is the logarithm of the probability given to the right class."""
        images, classes = batch
        state = self.model.settle(images)
        scores = self.model.scores(state.x)
        right = scores.argmax(-1) == classes
        return Outcome(-cross_entropy(scores, classes), float(right.float().mean()), float(state.steps.float().mean()))

    @torch.no_grad()
    def held_out_accuracy(self) -> float:
        """The share of the test images that are read rightly."""
        state = self.model.settle(self.test_images, throw=False)
        return self._accuracy(state, self.model.scores(state.x).argmax(-1))

    @torch.no_grad()
    def examine(self) -> Examination:
        """Accuracy, confusion and steady states on the test images."""
        state = self.model.settle(self.test_images, throw=False)
        guesses = self.model.scores(state.x).argmax(-1)
        # Mistakes teach more than successes, so they come first.
        shown = torch.argsort((guesses == self.test_classes).int(), stable=True)[:EXAMPLES].tolist()
        health, spectrum = self.health(state)
        return Examination(
            accuracy=self._accuracy(state, guesses),
            health=health,
            eigenvalues=spectrum[shown],
            weights=self.weights,
            examples=[
                Example(
                    f"a {self.test_classes[i]}, read as {guesses[i]}",
                    activity=state.x[i].numpy(),
                    picture=self.test_images[i].numpy(),
                )
                for i in shown
            ],
            confusion=pd.crosstab(
                pd.Categorical(self.test_classes.numpy(), categories=range(10)),
                pd.Categorical(guesses.numpy(), categories=range(10)),
                rownames=["true"],
                colnames=["predicted"],
                dropna=False,
            ),
        )

    def _accuracy(self, state: rg.SteadyState, guesses: Tensor) -> float:
        return float(((guesses == self.test_classes) & state.converged).double().mean())


def shifted(images: Tensor, generator: Generator) -> Tensor:
    """Each image, (samples, h, w), moved by -1, 0 or 1 pixel each way; background -1 comes in from outside."""
    count, h, w = images.shape
    down, right = torch.randint(3, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(h), right + torch.arange(w)
    return pad(images, (1, 1, 1, 1), value=-1.0)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None]]
