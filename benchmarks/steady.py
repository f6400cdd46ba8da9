"""The steady states that are timed: x = tanh(Wx + b), R = sum of g x."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from benchmarks.trajectories import Array


@dataclass(frozen=True)
class Steady:
    """One cell of the grid: a full W, `batch` samples; `gain` is the spectral radius of W."""

    kind: ClassVar[str] = "steady"
    largest_error: ClassVar[float] = 1e-6

    n: int
    batch: int
    gain: float

    def __str__(self) -> str:
        return f"n {self.n}, batch {self.batch}, gain {self.gain}"

    @property
    def size(self) -> int:
        """Bytes of the states in float32."""
        return 4 * self.n * self.batch

    def arrays(self) -> tuple[Array, Array, Array]:
        """W (n, n), b and g (batch, n), the same for every peer."""
        random = np.random.default_rng(0)
        W = random.standard_normal((self.n, self.n))
        W *= self.gain / np.abs(np.linalg.eigvals(W)).max()
        b, g = random.standard_normal((2, self.batch, self.n), dtype=np.float32)
        return W.astype(np.float32), b, g

    def exact(self, W: Array, b: Array, g: Array) -> Array:
        """dR/dW in float64: x by iteration, then for each sample a dense solve of (1 - Wᵀ D) y = g, s = D y."""
        W, b, g = (array.astype(np.float64) for array in (W, b, g))
        x, before = np.tanh(b), np.zeros_like(b)
        while np.abs(x - before).max() > 1e-14:
            x, before = np.tanh(x @ W.T + b), x
        D = 1 - x**2
        s = [D_k * np.linalg.solve(np.eye(self.n) - W.T * D_k, g_k) for D_k, g_k in zip(D, g, strict=True)]
        return np.stack(s).T @ x


GRID = [Steady(*cell) for cell in product((100, 256, 1000), (1, 64), (0.5, 0.9, 0.99))]
QUICK = [Steady(100, 1, 0.9), Steady(100, 64, 0.9)]
