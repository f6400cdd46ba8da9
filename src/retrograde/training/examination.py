"""What a trained model does on held-out data: what `evaluate` prints and the report draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True, eq=False)
class Example:
    """One held-out example, to be drawn.

    Attributes:
        title: what it is, in a few words.
        activity: (n,) a steady state, or (T, n) a trajectory.
        picture: (h, w) the input image or pattern, if it is one.
        target: (T, k) or (n,) what was wanted.
        output: (T, k) or (n,) what came.
    """

    title: str
    activity: np.ndarray
    picture: np.ndarray | None = None
    target: np.ndarray | None = None
    output: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Examination:
    """What a trained model does on held-out data.

    Attributes:
        accuracy: the share of test images (digits), of bits (flipflop) or of patterns recalled (attractors) right.
        health: the shares "converged" and "stable", "worst residual" and "largest |eigenvalue| of DW", as far as the
            task has them.
        eigenvalues: (m, n) complex, of DW at m example states.
        weights: (n, n) W.
        examples: what to draw.
        confusion: rows the true class, columns the predicted one (digits).
        recall: columns "corruption" and "recall" (attractors).
    """

    accuracy: float
    health: dict[str, float]
    eigenvalues: np.ndarray
    weights: np.ndarray
    examples: list[Example]
    confusion: pd.DataFrame | None = None
    recall: pd.DataFrame | None = None
