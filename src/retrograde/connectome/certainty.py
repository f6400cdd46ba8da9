"""What a least-squares fit knows of its parameters: the Gauss-Newton matrix JᵀJ, its inverse and its eigenvectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_NOTABLE = 0.1  # of a combination: parts smaller than this times its largest are not told
# A singular value below this, beside the largest, is rounding: J is as exact as the solves behind it.
_RESOLVED = 1e-10


class Certainty(NamedTuple):
    """Standard errors and combinations.

    Attributes:
        standard_error: (p,), of θ; infinite where the data do not pin it down.
        rank: how many combinations the data pin down.
        noise: the standard deviation of the noise, in units of the residuals; NaN where no residual is left to tell.
        singular: (p,) singular values of J, the smallest first: a combination has the standard error noise / it.
        combinations: (p, p), their directions as rows.
    """

    standard_error: np.ndarray
    rank: int
    noise: float
    singular: np.ndarray
    combinations: np.ndarray

    def told(self, labels: list[str], k: int) -> list[dict[str, object]]:
        """The k combinations that are known worst."""
        rows: list[dict[str, object]] = []
        for s, v in zip(self.singular[:k], self.combinations[:k], strict=True):
            parts = [i for i in np.argsort(-np.abs(v), kind="stable") if abs(v[i]) >= _NOTABLE * np.abs(v).max()]
            v = v * np.sign(v[parts[0]])
            text = " ".join(f"{v[i]:+.2f} {labels[i]}" for i in parts[:6]) + (" ..." if len(parts) > 6 else "")
            rows.append({"combination": text, "singular_value": s, "standard_error": self._error(s)})
        return rows

    def _error(self, singular: float) -> float:
        return self.noise / singular if singular > 0 and np.isfinite(self.noise) else np.inf


def certainty(J: np.ndarray, residual: np.ndarray, noise: float | None) -> Certainty:
    """From the Jacobian J (m, p) of the residuals (m,): Cov θ = noise² (JᵀJ)⁻¹.

    Args:
        J: in units of the noise where that is known, `noise` = 1; else in any, and it is estimated from the residuals,
            noise² = |residual|² / (m - rank).
    """
    m, p = J.shape
    _, found, V = np.linalg.svd(J, full_matrices=m < p)  # all of V, and of U, which may be large, no more than it needs
    singular = np.zeros(p)
    singular[: len(found)] = found
    singular[singular <= _RESOLVED * singular.max(initial=0)] = 0
    rank = int((singular > 0).sum())
    if noise is None:
        noise = float(np.linalg.norm(residual) / np.sqrt(m - rank)) if m > rank else np.nan
    if np.isnan(noise):  # as many parameters as numbers: what noise there is, nobody knows
        error = np.full(p, np.inf)
    else:
        known = singular > 0
        error = noise * np.sqrt(np.sum((V[known] / singular[known, None]) ** 2, axis=0))
        # A parameter with a part in what nothing is known of is not known.
        error[np.sum(V[~known] ** 2, axis=0) > _RESOLVED] = np.inf
    order = np.argsort(singular, kind="stable")
    return Certainty(error, rank, noise, singular[order], V[order])
