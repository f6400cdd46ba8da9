"""How far a connectome's activities are from those recorded, and the θ for which they are nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from retrograde.connectome.adjustable import Adjustable
from retrograde.connectome.certainty import Certainty
from retrograde.connectome.sensitivities import jacobian
from retrograde.result import ConvergenceError

_EXACT = 1e-8  # a residual this small beside what was recorded is 0
_FLAT = 1e-3  # the cosine between the residual and its derivative along a parameter, at most, at a minimum
_AT_ONCE = 2**24  # numbers in the tangents that are solved for together

Progress = Callable[[int, float], None]


class Misfit:
    """The residuals of the rows that are fitted, in units of their noise, as SciPy asks for them."""

    def __init__(self, model: Adjustable, rows: np.ndarray, progress: Progress | None):
        self.model, self.rows, self.progress = model, rows, progress
        sd = model.of.sd
        self.unit = np.ones(int(rows.sum())) if sd is None else sd[rows]
        self.wanted = model.of.activity[rows]
        self.evaluations = self.not_found = 0
        self._last: tuple[bytes, np.ndarray] | None = None

    def residual(self, theta: np.ndarray) -> np.ndarray:
        """(rows,), infinite where the network has no activities."""
        if self._last is not None and self._last[0] == theta.tobytes():
            return self._last[1]
        self.evaluations += 1
        predicted = self.model.predicted(torch.from_numpy(theta))
        if predicted is None:
            self.not_found += 1
            return np.full(len(self.unit), np.inf)
        residual = (predicted.numpy()[self.rows] - self.wanted) / self.unit
        self._last = theta.tobytes(), residual
        if self.progress is not None:
            self.progress(self.evaluations, 0.5 * float(residual @ residual))
        return residual

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """d residual / dθ, (rows, parameters): at steady states by tangents or adjoints, along time by tangents."""
        self.residual(theta)
        rows = torch.from_numpy(np.flatnonzero(self.rows))
        at = torch.from_numpy(theta)
        if self.model.x0 is not None:  # the states at θ
            with self._derivatives():
                return jacobian(self.model, at, self.model.x0, rows).numpy() / self.unit[:, None]
        drive = self.model.of.drive
        size = drive.numel() * (self.model.of.steps if drive.ndim == 2 else 1)

        def activities(theta: Tensor) -> Tensor:
            return self.model.activities(theta)[0][rows].double()

        push = torch.func.vmap(
            lambda v: torch.func.jvp(activities, (at,), (v,))[1], chunk_size=max(1, _AT_ONCE // size)
        )
        return push(torch.eye(len(at), dtype=at.dtype)).T.numpy() / self.unit[:, None]

    def by_gauss_newton(self, max_steps: int) -> tuple[np.ndarray, bool, str]:
        """By steps of Gauss and Newton within a trust region, as Levenberg's and Marquardt's are."""
        start = self._start()
        bounds = self.model.least, np.full(len(start), np.inf)
        exact = {"ftol": 1e-13, "xtol": 1e-11, "gtol": 1e-13}
        found = scipy.optimize.least_squares(
            self.residual, start, self.jacobian, bounds, "trf", **exact, x_scale="jac", max_nfev=max_steps
        )
        try:
            if self.not_found and self._slopes(found.x):
                return found.x, False, "it stopped beside parameters for which the network has no activities"
        except ConvergenceError as error:
            return found.x, False, f"whether this is a minimum is not known: {error.facts}"
        return found.x, bool(found.status > 0), str(found.message).rstrip(".")

    def _slopes(self, theta: np.ndarray) -> bool:
        """Whether the cost still falls along some parameter at θ, beyond what rounding leaves."""
        residual, J = self.residual(theta), self.jacobian(theta)
        size = np.linalg.norm(residual)
        if size <= _EXACT * np.linalg.norm(self.wanted / self.unit):
            return False
        steepness = np.abs(J.T @ residual) / np.maximum(np.linalg.norm(J, axis=0) * size, np.finfo(float).tiny)
        return bool(steepness.max() > _FLAT)

    def by_lbfgs(self, max_steps: int) -> tuple[np.ndarray, bool, str]:
        """By gradients, of one adjoint each."""
        start = self._start()
        first = 0.5 * float(self.residual(start) @ self.residual(start))
        bounds = [(None if np.isinf(low) else low, None) for low in self.model.least]

        def cost(theta: np.ndarray) -> tuple[float, np.ndarray]:
            residual = self.residual(theta)
            if not np.isfinite(residual).all():  # the line search comes back from there
                return 10 * (1 + first), np.zeros_like(theta)
            leaf = torch.from_numpy(theta.copy()).requires_grad_()
            with self._derivatives():
                predicted = self.model.activities(leaf, self.model.x0)[0][torch.from_numpy(np.flatnonzero(self.rows))]
                (g,) = torch.autograd.grad(predicted, leaf, torch.from_numpy(residual / self.unit).to(predicted))
            return 0.5 * float(residual @ residual), g.double().numpy()

        found = scipy.optimize.minimize(
            cost,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxfun": max_steps, "maxiter": max_steps, "ftol": 1e-15, "gtol": 1e-9 * (1 + first)},
        )
        return found.x, bool(found.success), str(found.message).rstrip(".")

    @contextmanager
    def _derivatives(self) -> Iterator[None]:
        """What a user of the fit can do where the states that were found have no derivatives, and not of its solver."""
        try:
            yield
        except ConvergenceError as error:
            where = "at the start" if self.evaluations == 1 else f"after {self.evaluations} evaluations"
            facts = (
                f"{where} the states have no derivatives that could be told, for I - DW is singular or nearly so: "
                "the network is on the edge of instability"
            )
            advice = "Give a scale below 1, or a smaller one, or another start"
            raise ConvergenceError(f"fit: {facts}. {advice}", error.result, facts) from error

    def _start(self) -> np.ndarray:
        """θ at the start, within the bounds; ConvergenceError where the network has no activities there."""
        theta = np.maximum(self.model.theta, self.model.least)
        if not np.isfinite(self.residual(theta)).all():
            raise ConvergenceError(
                "fit: no activities are found at the start, with these gains, biases and strengths; "
                "give another start, or a smaller scale",
                None,
            )
        return theta

    def notes(self, theta: np.ndarray, known: Certainty | None) -> list[str]:
        """What there is to know of the parameters."""
        told = []
        if self.not_found:
            told.append(f"at {self.not_found} of {self.evaluations} trial points the network had no activities")
        if known is not None:
            unknown = int(np.isinf(known.standard_error).sum())
            if np.isnan(known.noise):
                told.append("there are no more numbers than parameters, which leaves none to estimate the noise by")
            elif unknown:
                told.append(
                    f"the data pin down {known.rank} of {len(theta)} combinations, "
                    f"and {unknown} parameters not at all: their standard errors are infinite, their values arbitrary"
                )
        bound = np.flatnonzero(theta - self.model.least < 1e-6)
        told += [f"{self.model.labels[k]} is at its bound, dt" for k in bound[:5]]
        return told
