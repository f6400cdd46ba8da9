"""How near a connectome is to instability, in which modes, and which synapses decide on it.

The eigenvalues λ of DW, D = diag f'(Wx + b) at the steady state x, decide: x ← f(Wx + b) returns where all \\|λ\\| < 1,
and τ dx/dt = -x + f(Wx + b) where all Re λ < 1. A simple one moves by dλ = wᵀ d(DW) v / wᵀv, and d(DW) = D dW + dD W:
a synapse acts directly, and by moving the state at which the slopes are taken. Autograd puts the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from retrograde.connectome.advice import advising
from retrograde.connectome.amounts import at
from retrograde.connectome.eigenvalues import SMALL
from retrograde.connectome.linear import how_found, scaled, solvers_for
from retrograde.connectome.naming import column_of
from retrograde.connectome.presets import Preset
from retrograde.connectome.printed import Printed
from retrograde.connectome.scales import check_scale
from retrograde.connectome.steadiness import times_rows
from retrograde.connectome.threads import one_blas_thread
from retrograde.connectome.wiring import Connectome
from retrograde.nonlinearity import Nonlinearity, Tanh, as_nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError
from retrograde.spectrum.components import within_components
from retrograde.spectrum.eigen import Leading, Modes, Product, leading_modes
from retrograde.spectrum.first_order import Linear, of_modes
from retrograde.spectrum.jacobians import slopes
from retrograde.steady import steady_state

# Of Arnoldi's method, for the slowest of the modes that are asked for: the leading ones, which decide, are exact long
# before. Their residuals are told.
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class ConnectomeStability(Printed):
    """The leading eigenvalues of DW at a steady state of a connectome, and what they depend on.

    Attributes:
        margin_continuous: 1 - max Re λ: positive where τ dx/dt = -x + f(Wx + b) returns, at this rate over τ.
        margin_discrete: 1 - max \\|λ\\|: positive where x ← f(Wx + b) returns.
        eigenvalues: a row for each that was asked for, the leading one first: ``real``, ``imaginary``, ``modulus``,
            ``error`` (the order of its error), and ``neurons``, 1 / Σ|v|⁴: over how many neurons its mode v extends.
        neurons: a row for each neuron, the largest part in the leading mode first: ``id``; ``activity`` x; ``slope``
            D; ``amplitude`` and ``phase`` of v, of length 1; ``reception`` |w|, of length 1: how strongly a
            perturbation of this neuron excites the mode; and what the neuron table says. v and w are those within the
            loops that make the mode, the strongly connected component that λ is of, and 0 elsewhere: a whole
            eigenvector of DW goes on downstream of it, and a left one upstream.
        attrs: ``eigenvalue`` of W and ``alpha``, by which it is scaled; ``residual``, ``steps`` and ``solver`` of the
            state; ``time``.
    """

    margin_continuous: float
    margin_discrete: float
    eigenvalues: pd.DataFrame
    neurons: pd.DataFrame
    attrs: dict[str, Any]
    _connectome: Connectome
    _gradient: np.ndarray | ConvergenceError
    _weight: np.ndarray

    @property
    def stable_continuous(self) -> bool:
        """Whether τ dx/dt = -x + f(Wx + b) returns after a small perturbation."""
        return self.margin_continuous > 0

    @property
    def stable_discrete(self) -> bool:
        """Whether x ← f(Wx + b) does."""
        return self.margin_discrete > 0

    def synapses(self, top: int | None = None) -> pd.DataFrame:
        """A row for each connection, the one that moves the margin most first.

        ``gradient`` is d margin / dW_ij, of the scaled W, with α held; the state that the synapse moves, and so the
        slopes, are taken into account. ``removal`` is -W_ij times that: the change to first order if it is cut, 0
        where it is cut already. The cell types of both ends come along, as ``pre_type`` and ``post_type``, where they
        are known.

        Raises:
            ConvergenceError: the leading eigenvalue is not simple, and so has no derivative.
        """
        if isinstance(self._gradient, ConvergenceError):
            raise self._gradient
        edges = self._connectome.edges
        removal = -self._weight * self._gradient
        order = np.argsort(-np.abs(removal), kind="stable")[:top]
        table = edges.iloc[order].assign(gradient=self._gradient[order], removal=removal[order])
        if "cell_type" in self._connectome.neurons:
            types = self._connectome.neurons["cell_type"].to_numpy()
            post, pre = (end.numpy()[order] for end in self._connectome.W.edges)
            table = table.assign(pre_type=types[pre], post_type=types[post])
        return table.reset_index(drop=True)

    def by(self, column: str) -> pd.DataFrame:
        """What part of the leading mode, Σ|v|², each cell type, class, ... has.

        Raises:
            ValueError: no such column.
        """
        column = column_of(self._connectome.neurons, column, "column")
        part = self.neurons.assign(neurons=1, part=self.neurons["amplitude"] ** 2)
        grouped = part.groupby(column, dropna=False)[["neurons", "part"]].sum().reset_index()
        return grouped.sort_values("part", ascending=False, kind="stable", ignore_index=True)

    def _sentence(self) -> str:
        ways = {"continuous": self.margin_continuous, "discrete": self.margin_discrete}
        return "; ".join(
            f"{'stable' if margin > 0 else 'unstable'} in {time} time, by a margin of {margin:.4g}"
            for time, margin in ways.items()
        )

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {"eigenvalues": self.eigenvalues, "neurons": self.neurons}


def stability(
    c: Connectome,
    drive: Any = None,
    *,
    f: str | Nonlinearity = "tanh",
    scale: float | None = 0.99,
    silence: Iterable[Any] = (),
    time: Literal["continuous", "discrete"] = "continuous",
    k: int = 6,
    progress: Callable[[int], None] | None = None,
) -> ConnectomeStability:
    """Leading eigenvalues and modes of DW at rest or at a driven steady state x = f(αWx + b), and both margins.

    Args:
        c: the connectome.
        drive: what is driven: ids, b = 1 there; or a mapping from id to b; ``"cell_type:T4a"`` is all of
            that type. None is rest, b = 0.
        f: the nonlinearity.
        scale: the largest real part of an eigenvalue of αW; None takes W as it is.
        silence: neurons whose outgoing connections are cut. α stays what it is for the whole network.
        time: whose leading eigenvalue the modes and `ConnectomeStability.synapses` are about: "continuous", the largest
            real part, or "discrete", the largest modulus.
        k: how many eigenvalues.
        progress: called with how many products with DW the search has taken so far, of more than 2,000 neurons.

    Raises:
        ValueError: ids that are not there, a scale out of range, k that is not a number of eigenvalues.
        ConvergenceError: the state, or Arnoldi's method, did not converge.

    References:
        J. R. Magnus, Econometric Theory 1 (1985), for the derivative of an eigenvalue.

    >>> import pandas as pd
    >>> from retrograde.connectome import read
    >>> c = read(pd.DataFrame({"pre": ["a", "b", "b", "c"], "post": ["b", "a", "c", "b"], "count": [1, 3, 2, 1]}))
    >>> found = stability(c, scale=0.9)
    >>> round(found.margin_continuous, 3), found.stable_discrete
    (0.1, True)
    >>> found.synapses(top=2)[["pre", "post", "removal"]].round(3).sort_values("pre")
      pre post  removal
    1   a    b     0.27
    0   b    a     0.27
    """
    if time not in ("continuous", "discrete"):
        raise ValueError(f"time: expected 'continuous' or 'discrete', got {time!r}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k: expected a number of eigenvalues, got {k!r}")
    check_scale(scale)
    nonlinearity = as_nonlinearity(f)
    driven = None if drive is None else at(c, drive, "drive")
    # Whether a linear network is stable is asked here, so it is not refused where it is not.
    net, eigenvalue, alpha = scaled(c, scale, c.index(silence, "silence"), Preset(), Tanh())
    (weight,) = (part.detach().requires_grad_() for part in net.W.bind().weights)
    net = Recurrence(c.W.bind(weight), nonlinearity)
    b = torch.zeros(len(c), dtype=weight.dtype) if driven is None else driven
    with advising(nonlinearity, "another drive"):
        state = steady_state(net.W, b, nonlinearity, solver=solvers_for(net)[0])

    DW = Linear(net.W.bind(), torch.zeros_like(b)[None], slopes(net, state.x, b)[None])
    plain = DW.detached()
    plain = replace(plain, W=within_components(plain.W))
    ways: tuple[Leading, Leading] = ("real", "modulus") if time == "continuous" else ("modulus", "real")
    with torch.no_grad(), advising(nonlinearity, "another drive", "k=1"):
        modes, other = _modes(plain, int(k), ways, progress)
    leader = of_modes(modes.take(torch.zeros(1, 1, dtype=torch.int64))).attached(DW)[0, 0]
    here = 1 - (leader.real if time == "continuous" else leader.abs())
    gradient: np.ndarray | ConvergenceError
    try:
        with advising(nonlinearity, "another drive"):
            gradient = torch.autograd.grad(here, weight)[0].double().numpy()
    except ConvergenceError as error:
        gradient = error

    margins = float(here.detach()), float(1 - (other.abs() if time == "continuous" else other.real))
    continuous, discrete = margins if time == "continuous" else margins[::-1]
    v, w = modes.right[0, 0], modes.left[0, 0]
    v = v / v[v.abs().argmax()].sgn()  # the phase is 0 where the amplitude is largest
    told = {"activity": state.x.detach(), "slope": plain.d[0], "amplitude": v.abs(), "phase": v.angle()}
    told |= {"reception": w.abs()}
    neurons = pd.DataFrame({"id": c.ids, **{name: value.double().numpy() for name, value in told.items()}})
    neurons = pd.concat([neurons, c.neurons.drop(columns=[name for name in c.neurons if name in neurons])], axis=1)
    return ConnectomeStability(
        margin_continuous=continuous,
        margin_discrete=discrete,
        eigenvalues=_table(modes),
        neurons=neurons.sort_values("amplitude", ascending=False, kind="stable", ignore_index=True),
        attrs={"eigenvalue": eigenvalue, "alpha": alpha, **how_found(state), "time": time},
        _connectome=c,
        _gradient=gradient,
        _weight=weight.detach().double().numpy(),
    )


def _modes(
    DW: Linear, k: int, ways: tuple[Leading, Leading], progress: Callable[[int], None] | None
) -> tuple[Modes, Tensor]:
    """The k modes that lead in the first way, (1, k), and the eigenvalue that leads in the second."""
    n = DW.d.shape[-1]
    if n <= SMALL:
        every = leading_modes(DW.dense(), n, by=ways[0])
        values = every.values[0]
        other = values[(values.real if ways[1] == "real" else values.abs()).argmax()]
        return every.take(torch.arange(min(k, n))[None]), other

    M = times_rows(DW.d[0], DW.W).held()
    how: dict[str, Any] = {"like": DW.d[0], "rtol": _TOLERANCE}
    products = count(1)

    def counted(A: Any) -> Product:
        def product(v: Tensor) -> Tensor:
            if progress is not None:
                progress(next(products))
            return A @ v

        return product

    with one_blas_thread():
        found = leading_modes(counted(M), k, by=ways[0], transposed=counted(M.T), **how)
        other = leading_modes(counted(M), 1, by=ways[1], **how).values[0]
    return found.each(lambda part: part[None]), other


def _table(modes: Modes) -> pd.DataFrame:
    values, error = modes.values[0].to(torch.complex128), modes.error[0].double()
    return pd.DataFrame(
        {
            "real": values.real.numpy(),
            "imaginary": values.imag.numpy(),
            "modulus": values.abs().numpy(),
            "error": error.numpy(),
            "neurons": (1 / modes.right[0].abs().pow(4).sum(-1)).double().numpy(),
        }
    )
