"""The trajectories that are timed: x(t) = tanh(W x(t-1) + b(t)), t = 1..T, from x(0) = 0; R = sum of g(t) x(t)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Trajectory:
    """One cell of the grid: a full W, `batch` samples, T steps. W is random, with eigenvalues up to about 0.9."""

    kind: ClassVar[str] = "trajectories"
    largest_error: ClassVar[float] = 1e-5  # T products in float32 leave 1e-6 or less

    n: int
    batch: int
    T: int

    def __str__(self) -> str:
        return f"n {self.n}, batch {self.batch}, T {self.T}"

    @property
    def size(self) -> int:
        """Bytes of all states x(1), ..., x(T) in float32."""
        return 4 * self.n * self.batch * self.T

    @property
    def flops(self) -> int:
        """Of Wx, of its transpose and of dR/dW: a product each, for each sample and step."""
        return 6 * self.n**2 * self.batch * self.T

    def arrays(self) -> tuple[Array, Array, Array]:
        """W (n, n), b and g (T, batch, n), the same for every peer."""
        random = np.random.default_rng(0)
        W = random.standard_normal((self.n, self.n), dtype=np.float32) * np.float32(0.9 / self.n**0.5)
        shape = (self.T, self.batch, self.n)
        return W, random.standard_normal(shape, dtype=np.float32), random.standard_normal(shape, dtype=np.float32)

    def exact(self, W: Array, b: Array, g: Array) -> Array:
        """dR/dW in float64, step by step."""
        W = W.astype(np.float64)
        x = np.zeros((self.T + 1, self.batch, self.n))
        for t in range(self.T):
            x[t + 1] = np.tanh(x[t] @ W.T + b[t])
        s, dW = np.zeros((self.batch, self.n)), np.zeros_like(W)
        for t in reversed(range(self.T)):
            s = (1 - x[t + 1] ** 2) * (s @ W + g[t])
            dW += s.T @ x[t]
        return dW


GRID = [Trajectory(*cell) for cell in product((64, 128, 256, 512, 1024), (1, 32, 256), (50, 200, 1000))]
QUICK = [Trajectory(64, 1, 200), Trajectory(64, 32, 200), Trajectory(256, 32, 50)]
