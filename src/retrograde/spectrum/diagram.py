"""A branch of steady states as a result: what is known along it, as numbers, a table and a diagram."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde.spectrum.found import pandas
from retrograde.spectrum.special import SpecialPoint
from retrograde.tables import Readable, Row

_MARKS = {
    "fold": "o",
    "pitchfork": "^",
    "transcritical": "v",
    "branch point": "D",
    "hopf": "s",
    "neimark-sacker": "P",
    "flip": "X",
}


@dataclass(frozen=True, eq=False, repr=False)
class SteadyBranch(Readable):
    """Steady states x = F(x, t) along a branch, in the order in which it was followed.

    Attributes:
        name: what t is.
        parameter: (k,), t.
        x: (k, n).
        residual: (k,) \\|F(x) - x\\| / \\|x\\|.
        stable: (k,) whether the cell's own dynamics return after a small perturbation.
        stable_discrete: (k,) whether x ← F(x) does: every \\|λ\\| < 1.
        stable_continuous: (k,) whether τ dx/dt = -x + F(x) does: every Re λ < 1.
        eigenvalues: (k, modes) complex, of J, the largest \\|λ\\| first.
        rightmost: (k,) complex, the eigenvalue of J with the largest real part.
        special: folds, branch points, and where a cycle appears: see `SpecialPoint`.
        ended: "left the range", "closed" (it came back to where it began), "max_points", or "step too small".
        branches: those that cross it, each from the point where it does, in one direction.
    """

    name: str
    parameter: Tensor
    x: Tensor
    residual: Tensor
    stable: Tensor
    stable_discrete: Tensor
    stable_continuous: Tensor
    eigenvalues: Tensor
    rightmost: Tensor
    special: tuple[SpecialPoint, ...]
    ended: str
    branches: tuple[SteadyBranch, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def lost(self) -> bool:
        """Whether it ended anywhere but at a border of the range or at its own beginning."""
        return self.ended not in ("left the range", "closed")

    def _title(self) -> str:
        if not len(self):
            return f"SteadyBranch of no points: {self.ended}"
        t = self.parameter.detach()
        special = ", ".join(f"{each.kind} at {each.parameter:.4g}" for each in self.special) or "no special points"
        across = f"; {len(self.branches)} branches cross it" if self.branches else ""
        return (
            f"SteadyBranch of {len(self)} points, {self.name} from {float(t[0]):.4g} to {float(t[-1]):.4g} "
            f"({self.ended}), {int(self.stable.sum())} of them stable\n{special}{across}"
        )

    def _rows(self) -> list[Row]:
        return [("|x|", torch.linalg.vector_norm(self.x, dim=-1)), ("residual", self.residual)] if len(self) else []

    def table(self) -> Any:
        """A pandas DataFrame, a row a point. `special` holds what lies between a point and the one before it.

        Raises:
            ImportError: pandas is not installed.
        """
        special = [""] * len(self)
        for each in self.special:
            special[each.index] = ", ".join(filter(None, (special[each.index], each.kind)))
        x = _array(self.x)
        columns = {
            self.name: _array(self.parameter),
            "|x|": np.linalg.norm(x, axis=1),
            "stable": _array(self.stable),
            "stable_discrete": _array(self.stable_discrete),
            "stable_continuous": _array(self.stable_continuous),
            "largest |λ|": np.abs(_array(self.eigenvalues[:, 0])),
            "largest Re λ": _array(self.rightmost.real),
            "residual": _array(self.residual),
            "special": special,
        }
        return pandas("table").DataFrame(columns | {f"x[{i}]": x[:, i] for i in range(x.shape[1])})

    def plot(
        self,
        ax: Any = None,
        *,
        component: int | None = None,
        measure: Callable[[Tensor], Tensor] | None = None,
        continuous: bool = False,
    ) -> Any:
        """The bifurcation diagram: stable states solid, unstable ones dashed, special points marked.

        Args:
            ax: matplotlib axes; None for new ones.
            component: which entry of x to draw.
            measure: what to draw instead, (k, n) -> (k,). Neither: the norm of x.
            continuous: whether to draw stability in continuous time, not that of the cell's own dynamics.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: both a component and a measure.
        """
        if component is not None and measure is not None:
            raise ValueError("measure: expected a component or a measure, got both")
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("plot needs matplotlib: pip install 'retrograde[app]'") from None
        if ax is None:
            ax = Figure(figsize=(5, 3.5), layout="constrained").subplots()
        label = "|x|" if component is None else f"x[{component}]"
        if measure is None:
            measure = (
                (lambda x: torch.linalg.vector_norm(x, dim=-1)) if component is None else lambda x: x[:, component]
            )
        else:
            label = getattr(measure, "__name__", "measure")
        for branch in (self, *self.branches):
            branch._draw(ax, measure, continuous)
        ax.set(xlabel=self.name, ylabel=label)
        handles, labels = ax.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        if named:
            ax.legend(named.values(), named.keys(), fontsize="small")
        return ax

    def _draw(self, ax: Any, measure: Callable[[Tensor], Tensor], continuous: bool) -> None:
        """This branch alone. The line goes through the special points, which is where its style changes."""
        stable = self.stable_continuous if continuous else self.stable
        t, x, solid = list(self.parameter), list(self.x), list(stable)
        for each in sorted(self.special, key=lambda each: each.index, reverse=True):
            t.insert(each.index, each._point.y[-1])
            x.insert(each.index, each.x)
            # Up to the next point the line looks like that point.
            solid.insert(each.index, solid[each.index])
        across, up = _array(torch.stack(t)), _array(measure(torch.stack(x)))
        shown = np.array([bool(each) for each in solid])
        for style, wanted in (("-", True), ("--", False)):
            # A piece from point i to i + 1 is drawn as point i; at its far end it joins the next.
            pieces = [i for i in range(len(across) - 1) if shown[i] == wanted]
            for first, last in _runs(pieces):
                name = "stable" if wanted else "unstable"
                ax.plot(across[first : last + 2], up[first : last + 2], style, color="C0", label=name)
        for each in self.special:
            height = _array(measure(each.x[None]))
            ax.plot(each.parameter, height, _MARKS[each.kind], color="C3", markersize=6, label=each.kind, zorder=3)


def _runs(indices: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for i in indices:
        if runs and runs[-1][1] == i - 1:
            runs[-1] = (runs[-1][0], i)
        else:
            runs.append((i, i))
    return runs


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
