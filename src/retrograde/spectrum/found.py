"""What a search for steady states answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde.spectrum.cells import Cell
from retrograde.spectrum.modes import decompose
from retrograde.tables import Readable, Row


@dataclass(frozen=True, eq=False)
class FixedPoints:
    """Steady states in the fields of the fixed-point-finder package, as NumPy arrays; "one step" is the cell's own.

    Attributes:
        xstar: (k, n), the states.
        x_init: (k, n), where the search for each started.
        inputs: (k, inputs), what drove the cell; (k, 0) for a function.
        F_xstar: (k, n), each state one step later.
        qstar: (k,) \\|F(x) - x\\|² / 2.
        dq: (k,) by how much one more Newton step changed that.
        n_iters: (k,) how many Newton steps were taken.
        J_xstar: (k, n, n), the Jacobian of a step.
        dFdu: (k, n, inputs), its derivative by the input.
        eigval_J_xstar: (k, n) complex, the eigenvalues of J, largest modulus first.
        eigvec_J_xstar: (k, n, n) complex, their vectors in columns.
        is_stable: (k,) bool, whether all of them lie inside the unit circle.
        cond_id: (k,) int, zeros: one condition, that is, one input, is searched at a time.

    References:
        M. D. Golub and D. Sussillo, "FixedPointFinder", Journal of Open Source Software 3 (2018).
    """

    xstar: np.ndarray
    x_init: np.ndarray
    inputs: np.ndarray
    F_xstar: np.ndarray
    qstar: np.ndarray
    dq: np.ndarray
    n_iters: np.ndarray
    J_xstar: np.ndarray
    dFdu: np.ndarray
    eigval_J_xstar: np.ndarray
    eigvec_J_xstar: np.ndarray
    is_stable: np.ndarray
    cond_id: np.ndarray

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.xstar)


@dataclass(frozen=True, eq=False, repr=False)
class SteadyStates(Readable):
    """The k distinct steady states that a search found, those of the largest basin first. There may be others.

    Eigenvalues are those of J = dF/dx, of a network J = DW. Its own dynamics are x ← F(x), or with a leak a
    x ← (1-a) x + a F(x).

    Attributes:
        x: (k, n).
        residual: (k,) \\|F(x) - x\\| / \\|x\\|; for a state near 0, relative to a thousandth of the size of the starts.
        isolated: (k,) whether F(x) - x differs from 0 on all sides of x, to what this precision can tell. If not, x may
            be one of a continuum; or a gate is so saturated that F(x) = x holds by rounding alone.
        stable: (k,) whether the cell's own dynamics return after a small perturbation.
        stable_discrete: (k,) whether x ← F(x) does: every \\|λ\\| < 1.
        stable_continuous: (k,) whether τ dx/dt = -x + F(x) does: every Re λ < 1.
        eigenvalues: (k, modes) complex, the largest \\|λ\\| first.
        modes: (k, modes, n) complex, their vectors.
        basin: (k,) the share of the starts from which the cell's own dynamics end there.
        unsettled: the share of the starts from which they ended nowhere: they cycle, wander, diverge or are slow.
        hits: (k,) how many starts plain Newton led there; 0 where deflation or the dynamics alone found it.
        failed: how many starts plain Newton led nowhere.
        starts: how many starts there were.
        rounds: how many rounds of deflated Newton followed, each from as many starts.
        dry: whether the last two of them found no other isolated state. That is a sign of completeness and no proof.
        x_init: (k, n), where the search for each started.
        steps: (k,) how many Newton steps it took.
    """

    x: Tensor
    residual: Tensor
    isolated: Tensor
    stable: Tensor
    stable_discrete: Tensor
    stable_continuous: Tensor
    eigenvalues: Tensor
    modes: Tensor
    basin: Tensor
    unsettled: float
    hits: Tensor
    failed: int
    starts: int
    rounds: int
    dry: bool
    x_init: Tensor
    steps: Tensor
    _change: Tensor = field(repr=False)
    _cell: Cell = field(repr=False)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def coverage(self) -> float:
        """An estimate of the chance that plain Newton from one more such start would end at a state it had found.

        It is Good and Turing's: 1 - (states hit by exactly one start) / (starts that hit any); NaN where none did. Many
        small basins may hide more than it tells.

        References:
            I. J. Good, "The population frequencies of species and the estimation of population parameters", Biometrika
            40 (1953).
        """
        hits = int(self.hits.sum())
        return 1 - int((self.hits == 1).sum()) / hits if hits else float("nan")

    def _title(self) -> str:
        return f"SteadyStates: {self}"

    def _rows(self) -> list[Row]:
        return [("basin", self.basin), ("residual", self.residual), ("steps", self.steps)] if len(self) else []

    def to_fixed_points(self) -> FixedPoints:
        """The same in the fields of the fixed-point-finder package.

        Raises:
            ValueError: J is not formed for a network of this size and structure.
        """
        cell, x = self._cell, self.x
        k, n = x.shape
        if cell.full is None:
            raise ValueError(f"to_fixed_points: J_xstar would hold {k} matrices of {n} x {n}, which are not formed")
        with torch.no_grad():
            J = cell.own(cell.full(x))
            values, modes = decompose(J)
            F = cell.advance(x)
            a = 1.0 if cell.leak is None else torch.as_tensor(cell.leak).to(x).expand(n)[:, None]
            inputs, dFdu = x.new_empty(k, 0), x.new_empty(k, n, 0)
            if cell.input is not None and cell.of_input is not None:
                inputs, dFdu = cell.input.expand(k, -1), a * cell.of_input(x).detach()
        return FixedPoints(
            xstar=_array(x),
            x_init=_array(self.x_init),
            inputs=_array(inputs),
            F_xstar=_array(F),
            qstar=_array((F - x).square().sum(-1) / 2),
            dq=_array(self._change),
            n_iters=_array(self.steps),
            J_xstar=_array(J),
            dFdu=_array(dFdu),
            eigval_J_xstar=_array(values),
            eigvec_J_xstar=_array(modes.mT),
            is_stable=_array((values.abs() < 1).all(-1)),
            cond_id=np.zeros(k, dtype=np.int64),
        )

    def table(self) -> Any:
        """A pandas DataFrame, a row a state: what is known of it, then x.

        Raises:
            ImportError: pandas is not installed.
        """
        leading = self.eigenvalues[:, 0] if len(self) else self.eigenvalues.flatten()
        columns = {
            "residual": _array(self.residual),
            "isolated": _array(self.isolated),
            "stable": _array(self.stable),
            "stable_discrete": _array(self.stable_discrete),
            "stable_continuous": _array(self.stable_continuous),
            "leading eigenvalue": _array(leading),
            "basin": _array(self.basin),
            "hits": _array(self.hits),
        }
        states = _array(self.x)
        return pandas("table").DataFrame(columns | {f"x[{i}]": states[:, i] for i in range(states.shape[1])})

    def __str__(self) -> str:
        """A line for all, and a line for each."""
        told = "two found nothing new" if self.dry else "two still found new ones"
        lines = [
            f"{len(self)} steady states from {self.starts} starts ({self.failed} led nowhere); of {self.rounds} rounds "
            f"of deflation the last {told}; {self.unsettled:.0%} of the starts do not settle"
        ]
        for i in range(len(self)):
            kind = ("stable" if self.stable[i] else "unstable") + ("" if self.isolated[i] else ", not isolated")
            lines.append(
                f"  {i}: {kind}, basin {float(self.basin[i]):.0%}, |λ| = {float(self.eigenvalues[i, 0].abs()):.4g}, "
                f"residual {float(self.residual[i]):.1e}"
            )
        return "\n".join(lines)


def pandas(asks: str) -> ModuleType:
    """Pandas, which the core does without."""
    try:
        import pandas
    except ImportError:
        raise ImportError(f"{asks} needs pandas: pip install 'retrograde[app]'") from None
    return pandas


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
