"""A connectome's activities, where they were recorded, as a function of the parameters θ that a fit adjusts.

x = f(g ∘ (Wx + h + b)), g the gains, h the given drive, b the biases; with time, a leak dt/τ.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from retrograde.connectivity import Operator
from retrograde.connectome.certainty import Certainty
from retrograde.connectome.eigenvalues import SMALL, largest_real_eigenvalue
from retrograde.connectome.recordings import Recordings
from retrograde.connectome.tied import Kind
from retrograde.connectome.wiring import Connectome
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError
from retrograde.steady import steady_state
from retrograde.trajectories import trajectory

_NORMAL = 1.959964  # 95% of a normal distribution lie within this many standard deviations


class Adjustable:
    """Activities as a function of θ."""

    def __init__(
        self,
        c: Connectome,
        net: Recurrence,
        kinds: dict[str, Kind],
        fitted: list[str],
        of: Recordings,
        dt: float | None,
    ):
        self.net, self.kinds, self.fitted, self.of, self.dt = net, kinds, fitted, of, dt
        self.weight = net.W.bind().weights[0].detach()
        self.post = c.W.edges[0]
        self.theta = np.concatenate([kinds[kind].theta() for kind in fitted])
        self.labels = [label for kind in fitted for label in kinds[kind].labels()]
        # A step is no longer than what decays: τ >= dt.
        least = [np.full(len(kinds[k].start), np.log(dt) if k == "tau" and dt else -np.inf) for k in fitted]
        self.least = np.concatenate(least)
        self.x0: Tensor | None = None

    def values(self, theta: Tensor) -> dict[str, Tensor]:
        """Kind -> the value at each neuron, or connection."""
        parts = dict(zip(self.fitted, theta.split([len(self.kinds[k].start) for k in self.fitted]), strict=True))
        found = {}
        for name, kind in self.kinds.items():
            found[name] = kind.spread(parts.get(name, torch.from_numpy(kind.theta()))).to(self.weight.dtype)
        return found

    def equations(self, values: Mapping[str, Tensor]) -> tuple[Operator, Tensor, Tensor | None]:
        """W with gains and strengths, g b, and the leak."""
        gain = values["gain"]
        W = self.net.W.bind(self.weight * values["strength"] * gain[self.post])
        leak = None if self.dt is None else (self.dt / values["tau"]).clamp(max=1.0)
        return W, gain * values["bias"], leak

    def inputs(self, theta: Tensor, x: Tensor, drive: Tensor) -> Tensor:
        """u = g ∘ (Wx + h + b), of which f makes the next x."""
        values = self.values(theta)
        Wx = self.net.W.bind(self.weight * values["strength"]) @ x
        return values["gain"] * (Wx + drive + values["bias"])

    def activities(self, theta: Tensor, start: Tensor | None = None, throw: bool = True) -> tuple[Tensor, Tensor]:
        """What was recorded, as the network has it; and the states."""
        values = self.values(theta)
        W, bias, leak = self.equations(values)
        b = bias + values["gain"] * self.of.drive
        if self.dt is None:
            state = steady_state(W, b, self.net.f, x0=start, throw=throw)
            if not throw and not state.converged.all():
                raise ConvergenceError("fit: states not found", None)
            x = state.x
            return x[self.of.condition, self.of.neuron], x
        steps = self.of.steps
        if b.ndim == 2:
            x = trajectory(W, b, None, self.net.f, steps=steps, leak=leak).x
        else:
            x = trajectory(W, b, None, self.net.f, leak=leak).x
        return x[self.of.step - 1, self.of.condition, self.of.neuron], x

    def predicted(self, theta: Tensor) -> Tensor | None:
        """The activities, (rows,); None where the network has none: W or b overflow, or no state is found."""
        with torch.no_grad():
            values = self.values(theta)
            if not all(bool(torch.isfinite(part).all()) for part in values.values()):
                return None
            try:
                found, x = self.activities(theta, throw=False)
            except ConvergenceError:
                return None
            except ValueError:  # products of finite numbers that are not
                W, bias, _ = self.equations(values)
                if all(bool(torch.isfinite(part).all()) for part in (*W.weights, bias)):
                    raise
                return None
        self.x0 = x if self.dt is None else None
        return found.double()

    def table(self, theta: np.ndarray, known: Certainty | None) -> pd.DataFrame:
        """A row for each parameter."""
        error = np.full(len(theta), np.nan) if known is None else known.standard_error
        tables, first = [], 0
        for name in self.fitted:
            kind = self.kinds[name]
            part, e = (each[first : first + len(kind.start)] for each in (theta, error))
            first += len(part)

            def of(theta: np.ndarray, kind: Kind = kind) -> np.ndarray:
                with np.errstate(over="ignore"):
                    return np.exp(theta) if kind.logarithmic else theta

            pairs = [each if isinstance(each, tuple) else (each, None) for each in kind.names]
            table = pd.DataFrame({"kind": name, "group": [a for a, _ in pairs], "post": [b for _, b in pairs]})
            table["value"] = of(part)
            table["standard_error"] = e * of(part) if kind.logarithmic else e
            table["low"], table["high"] = of(part - _NORMAL * e), of(part + _NORMAL * e)
            table["determined"] = np.isfinite(e) if known is not None else None
            tables.append(table)
        found = pd.concat(tables, ignore_index=True)
        return found if found["post"].notna().any() else found.drop(columns="post")

    def margin(self, theta: np.ndarray) -> float:
        """The least 1 - max Re λ of DW over the steady states."""
        if self.dt is not None or len(self.of.drive[0]) > SMALL or self.x0 is None:
            return float("nan")
        values = self.values(torch.from_numpy(theta))
        W, bias, _ = self.equations(values)
        (weight,) = W.weights
        drive = bias + values["gain"] * self.of.drive
        D = self.net.f.slope_at(W @ self.x0 + drive)
        return min(1 - largest_real_eigenvalue(W.bind(row[self.post] * weight)) for row in D)
