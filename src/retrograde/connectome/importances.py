"""What a reward depends on, neuron by neuron and synapse by synapse: one steady state and one adjoint tell all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from retrograde.by_hand import recurrent_backpropagation
from retrograde.connectome.advice import advising
from retrograde.connectome.amounts import at
from retrograde.connectome.eigenvalues import matrix
from retrograde.connectome.exactly import Reward, Solved, exact_effects
from retrograde.connectome.linear import how_found, scaled, solvers_for
from retrograde.connectome.naming import column_of
from retrograde.connectome.neuropils import by_connection
from retrograde.connectome.presets import Preset
from retrograde.connectome.printed import ROWS, Printed
from retrograde.connectome.rollups import by_neuropil, by_pair
from retrograde.connectome.scales import check_scale
from retrograde.connectome.steadiness import linearised, stable_margin
from retrograde.connectome.wiring import Connectome
from retrograde.connectome.writing import write_pieces
from retrograde.nonlinearity import Identity, Nonlinearity, as_nonlinearity
from retrograde.receipt import Receipt
from retrograde.steady import steady_state

_ROWS = 2**20  # synapses in a piece of the table that is written
_SUMMED = ("activity", "sensitivity", "silencing", "flipping", "silencing_exact", "flipping_exact")


@dataclass(frozen=True, eq=False, repr=False)
class Importance(Printed):
    """How a reward R depends on the neurons and the synapses of a connectome, at the steady state x.

    Attributes:
        neurons: a row for each neuron, the most important first: ``id``; ``activity`` x_k; ``sensitivity``
            s_k = dR/db_k; ``silencing``, the change of R to first order if the neuron's output is cut, -x_k (Wᵀs)_k;
            ``flipping``, twice that, if its transmitter's sign is turned; where they were asked for
            ``silencing_exact`` and ``flipping_exact``; and what the neuron table says.
        reward: R.
        receipt: of the gradient: its estimated error, the smallest singular value of I - DW, ..., which are computed
            when they are first asked for.
        attrs: ``eigenvalue``, ``alpha``, ``residual``, ``steps`` and ``solver`` of the state, and the same of the
            adjoint, as ``adjoint_residual``, ...; where `f` is not the identity ``margin``, 1 - the largest real part
            of an eigenvalue of DW at the state; and where exact effects were asked for ``not_exact``, how many of them
            are NaN, as no stable steady state is known for them, and, if there are others, ``exact_residual``, the
            largest of the solves that these are from.
    """

    neurons: pd.DataFrame
    reward: float
    receipt: Receipt
    attrs: dict[str, Any]
    _connectome: Connectome
    _x: np.ndarray
    _s: np.ndarray
    _weight: np.ndarray

    def synapses(self, top: int | None = None) -> pd.DataFrame:
        """A row for each connection, the most important first: ``gradient`` s_i x_j, ``importance`` s_i W_ij x_j.

        W is the scaled αW, and the gradient dR/dW. The importance is how much of R the connection carries: what R
        loses, to first order, without it; of a silenced neuron's connections, which carry nothing, it is 0.
        """
        ends = self._ends
        rows: slice | np.ndarray = slice(None)
        if top is not None and top < len(self._weight):
            rows = np.sort(np.argpartition(-np.abs(self._carried(*ends)), top)[:top])
        table = self._piece(rows, ends)
        return table.sort_values("importance", key=np.abs, ascending=False, kind="stable", ignore_index=True)

    def write_synapses(self, path: str | Path) -> None:
        """All connections, in the order of ``edges``, as Parquet or CSV by the suffix.

        They are written a piece at a time, 15 million take little memory, and under another name until all are there.

        Raises:
            ValueError: another suffix.
        """
        every, ends = range(0, len(self._connectome.edges), _ROWS), self._ends
        write_pieces(Path(path), (self._piece(slice(first, first + _ROWS), ends) for first in every))

    def by(self, column: str) -> pd.DataFrame:
        """Sums over the neurons of each cell type, class, ...: ``neurons``, and what is a number in the table.

        An exact effect is NaN for a group of which not every neuron's was asked for. It is the sum of the effects of
        one neuron at a time, not that of all together.

        Raises:
            ValueError: no such column.
        """
        column = column_of(self._connectome.neurons, column, "column")
        told = [name for name in _SUMMED if name in self.neurons]
        rows = self.neurons.groupby(column, dropna=False)
        grouped = rows[told].agg(lambda part: part.sum(skipna=False))
        grouped.insert(0, "neurons", rows.size())
        grouped = grouped.reset_index()
        return grouped.sort_values("silencing", key=np.abs, ascending=False, kind="stable", ignore_index=True)

    def by_pair(self, column: str) -> pd.DataFrame:
        """Sums over the synapses from each cell type, class, ... to each other.

        A row for each pair that is connected: ``pre_`` and ``post_`` with the column's name, ``connections``,
        ``importance``, and ``magnitude``, Σ|importance|, by which they are sorted. Neurons of no group are left out.

        Raises:
            ValueError: no such column.
        """
        post, pre = self._ends
        return by_pair(self._connectome, column, pre, post, self._carried(post, pre))

    def by_neuropil(self, edges: Any, columns: Mapping[str, str] | None = None, by: str | None = None) -> pd.DataFrame:
        """Sums over the synapses of each neuropil: ``count``, ``importance`` and ``magnitude``, Σ|importance|.

        A connection's importance is divided among its neuropils by their counts; what was dropped in reading is left
        out.

        Args:
            edges: the table that the connectome was read from, with a row for each pair and neuropil.
            columns: role -> column, where they are not recognised.
            by: a column of the neurons, such as "cell_type": a row for each neuropil and group of neurons that send.

        Raises:
            ValueError: no column of neuropils, or of counts; no such column of the neurons.
        """
        by = None if by is None else column_of(self._connectome.neurons, by, "by")
        found = by_connection(self._connectome, edges, columns or {})
        return by_neuropil(self._connectome, found, self._carried(*self._ends), by)

    def _sentence(self) -> str:
        state, adjoint = self.attrs["residual"], self.attrs["adjoint_residual"]
        return f"what the reward, {self.reward:.6g}, depends on; residuals: state {state:.1e}, adjoint {adjoint:.1e}"

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {"neurons": self.neurons, "synapses()": self.synapses(ROWS)}

    @property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The places of those that receive and of those that send."""
        post, pre = self._connectome.W.edges
        return post.numpy(), pre.numpy()

    def _carried(self, post: np.ndarray, pre: np.ndarray) -> np.ndarray:
        return self._s[post] * self._x[pre] * self._weight

    def _piece(self, rows: slice | np.ndarray, ends: tuple[np.ndarray, np.ndarray]) -> pd.DataFrame:
        post, pre = (end[rows] for end in ends)
        gradient = self._s[post] * self._x[pre]
        return self._connectome.edges.iloc[rows].assign(gradient=gradient, importance=gradient * self._weight[rows])


def importance(
    c: Connectome,
    source: Any,
    target: Any = None,
    *,
    reward: Reward | None = None,
    f: str | Nonlinearity = "identity",
    scale: float | None = 0.99,
    silence: Iterable[Any] = (),
    exact: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Importance:
    """Which neurons and synapses a reward depends on: x = f(αWx + b) is solved once, and its adjoint once.

    Args:
        c: the connectome.
        source: what is driven: ids, b = 1 there; or a mapping from id to b. Here and below there may be COLUMN:VALUE
            in the place of an id, all of a cell type, say: ``"cell_type:T4a"``.
        target: the reward is the activity of these neurons: ids, whose activities are added; or a mapping from id to
            weight, such as {"left": 1, "right": -1}.
        reward: or any differentiable function of x, (n,), in the order of ``c.ids``, such as
            ``lambda x: x[c.index("side:left")].mean()``.
        f: the nonlinearity; "identity" is the linear network of `influence`.
        scale: the largest real part of an eigenvalue of αW; None takes W as it is.
        silence: neurons whose outgoing connections are cut.
        exact: for how many neurons, the most important ones, the effects of silencing and flipping are computed exactly
            too: in the linear network from one more solve each, by the rank-one identity; else by solving anew without
            them. With negative weights the network may be unstable then. In a linear one they are of the formal steady
            state, (I - αW)⁻¹ b, and NaN where det (I - αW) ≤ 0, which no stable one has. A number does not prove that
            it is stable: two eigenvalues beyond 1, or a pair of complex ones, leave the sign as it is; `stability` with
            ``silence`` tells. With another `f` an effect is NaN where no steady state is found from x on, or one that
            is unstable.
        progress: called with how many exact effects are known, and of how many.

    Raises:
        ValueError: ids that are not there, both target and reward or neither, a scale out of range, a steady state that
            is unstable.
        ConvergenceError: a solve did not converge.

    >>> import pandas as pd
    >>> from retrograde.connectome import read
    >>> c = read(pd.DataFrame({"pre": ["a", "b", "b", "c"], "post": ["b", "a", "c", "c"], "count": [1, 3, 2, 1]}))
    >>> found = importance(c, source=["a", "b"], target="c", scale=0.5, exact=3)
    >>> found.neurons[["id", "silencing", "silencing_exact"]].round(3)
      id  silencing  silencing_exact
    0  b     -1.859           -1.395
    1  a     -0.777           -0.583
    2  c     -0.566           -0.403
    """
    if (target is None) == (reward is None):
        raise ValueError("target: expected a target or a reward, one of the two")
    if isinstance(exact, bool) or not isinstance(exact, int | np.integer) or exact < 0:
        raise ValueError(f"exact: expected a number of neurons, got {exact!r}")
    nonlinearity = as_nonlinearity(f)
    check_scale(scale, nonlinearity)
    b, weights = at(c, source, "source"), None if reward is not None else at(c, target, "target")
    net, eigenvalue, alpha = scaled(c, scale, c.index(silence, "silence"), Preset(), nonlinearity)
    solver, adjoint = solvers_for(net)
    with advising(nonlinearity, "another source"):
        state = steady_state(net.W, b, net.f, solver=solver)
    x = state.x.detach()
    margin = None if isinstance(net.f, Identity) else stable_margin(linearised(net, x, b)[1], "source", "source")
    R, g = _rewarded(weights, reward, x)
    with advising(nonlinearity, "another source"):
        gradient = recurrent_backpropagation(net, x, g, input=b, adjoint=adjoint)
    s = gradient.s
    assert gradient.receipt is not None  # a steady state's gradient has one

    # The one product with Wᵀ here: sorted by columns for it, W would take ten times as long.
    silencing = 0 - x * torch.from_numpy(matrix(net.W.bind()).T @ s.double().numpy()).to(x)  # and no -0
    order = torch.argsort(silencing.abs(), descending=True, stable=True)
    told = {"activity": x, "sensitivity": s, "silencing": silencing, "flipping": 2 * silencing}
    exactly: dict[str, float] = {}
    if exact:
        here = Solved(c, net, b, x, s, g, R, None if reward is None else lambda x: _rewarded(None, reward, x)[0])
        with advising(nonlinearity, "exact=0"):
            effects, residuals = exact_effects(here, order[: int(exact)], progress)
        exactly["not_exact"] = sum(int(each[order[: int(exact)]].isnan().sum()) for each in effects.values())
        exactly |= {"exact_residual": max(residuals)} if residuals else {}
        told |= effects
    table = pd.DataFrame({"id": c.ids, **{name: value.double().numpy() for name, value in told.items()}})
    table = pd.concat([table, c.neurons.drop(columns=[name for name in c.neurons if name in table])], axis=1)
    attrs = {
        "eigenvalue": eigenvalue,
        "alpha": alpha,
        **how_found(state),
        **how_found(gradient.receipt, "adjoint_"),
        **({} if margin is None else {"margin": margin}),
        **exactly,
    }
    return Importance(
        neurons=table.iloc[order.numpy()].reset_index(drop=True),
        reward=float(R),
        receipt=gradient.receipt,
        attrs=attrs,
        _connectome=c,
        _x=x.double().numpy(),
        _s=s.double().numpy(),
        _weight=net.W.bind().weights[0].numpy(),
    )


def _rewarded(weights: Tensor | None, reward: Reward | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """R and dR/dx, of R = weights · x or of any other."""
    if weights is not None:
        return weights @ x, weights
    assert reward is not None  # one of the two is there
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        try:
            R = reward(leaf)
        except RuntimeError as error:  # torch's, of .numpy() say
            raise ValueError(
                f"reward: expected a function of the tensor x in torch's operations; it raised: {error}"
            ) from error
        if not isinstance(R, Tensor) or R.numel() != 1:
            got = f"shape {tuple(R.shape)}" if isinstance(R, Tensor) else type(R).__name__
            raise ValueError(f"reward: expected a function that gives one number, a tensor; got {got}")
        if not R.requires_grad:
            raise ValueError("reward: expected a differentiable function of x; what it gave does not depend on x")
        (g,) = torch.autograd.grad(R.squeeze(), leaf, materialize_grads=True)
    return R.detach().squeeze(), g
