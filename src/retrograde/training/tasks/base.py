"""What a task is: a model, a reward to climb, and an examination."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor, nn

import retrograde as rg
from retrograde.spectrum import eigenvalues
from retrograde.training.config import Config
from retrograde.training.examination import Examination

C = TypeVar("C", bound=Config)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a batch.

    Attributes:
        reward: a number, differentiable, averaged over the batch.
        accuracy: the share of the batch that was right.
        steps: the solver's steps, averaged over the batch; along a trajectory its length.
    """

    reward: Tensor
    accuracy: float
    steps: float


class Task(ABC, Generic[C]):
    """Something to learn. ``model`` holds every parameter; the data and the first parameters follow from the config.

    Args:
        config: a configuration of the task's own class.
    """

    config_class: ClassVar[type[Config]]
    model: nn.Module
    net: rg.Network

    def __init__(self, config: C):
        self.config = config

    @abstractmethod
    def batches(self, generator: Generator) -> Iterator[Any]:
        """One epoch of batches. All that is random comes from the generator."""

    @abstractmethod
    def outcome(self, batch: Any) -> Outcome:
        """The reward of a batch, to be differentiated.

        Raises:
            ConvergenceError: the numbers failed.
        """

    @abstractmethod
    def held_out_accuracy(self) -> float:
        """The share that is right on data never trained on; a state that does not converge is not right."""

    @abstractmethod
    def examine(self) -> Examination:
        """Everything there is to say on data never trained on. It raises nothing where states do not converge."""

    @torch.no_grad()
    def health(self, state: rg.SteadyState) -> tuple[dict[str, float], np.ndarray]:
        """How good steady states are, and the eigenvalues of DW at each, (samples, n)."""
        spectrum = eigenvalues(self.net.W, self.net.f.slope(state.x))
        health = {
            "converged": float(state.converged.float().mean()),
            "stable": float((state.converged & (spectrum.abs().amax(-1) < 1)).float().mean()),
            "worst residual": float(state.residual.max()),
            "largest |eigenvalue| of DW": float(spectrum.abs().max()),
        }
        return health, spectrum.numpy()

    @property
    def weights(self) -> np.ndarray:
        """W, (n, n)."""
        return self.net.W.dense().detach().numpy().copy()


def normal(*shape: int, std: float, generator: Generator) -> nn.Parameter:
    """A parameter of normal random numbers."""
    return nn.Parameter(std * torch.randn(*shape, generator=generator))
