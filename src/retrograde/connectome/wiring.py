"""A connectome: who connects to whom, how strongly and with which sign, as tables and as W."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import torch

from retrograde.connectivity import Sparse
from retrograde.connectome.columns import EDGES, NEURONS, transmitter
from retrograde.connectome.edges import merged, numbered, of_list
from retrograde.connectome.eigenvalues import Eigenvalues
from retrograde.connectome.matrices import matrix_of, of_matrix
from retrograde.connectome.naming import meant
from retrograde.connectome.neurons import ids_by_row, neuron_table
from retrograde.connectome.signs import check_column, check_transmitters, signs_of, told_of
from retrograde.connectome.tables import Source


class Reading(NamedTuple):
    """How `read` was asked to make the weights."""

    weights: str
    threshold: float


@dataclass(frozen=True, eq=False)
class Connectome:
    """Neurons and their connections.

    Attributes:
        ids: (n,) integers or strings, in index order: sorted.
        neurons: a row for each neuron, in that order: ``id``, and what the neuron table says.
        edges: a row for each connection: ``pre`` and ``post`` (ids), ``count`` where there is one, ``weight``.
        W: a `Sparse` connectivity, ``W[post, pre]``.
        summary: what reading dropped and merged, a row each.
        reading: how the weights were made.
    """

    ids: np.ndarray
    neurons: pd.DataFrame
    edges: pd.DataFrame
    W: Sparse
    summary: pd.DataFrame = field(repr=False)
    reading: Reading = field(repr=False)
    _eigenvalues: Eigenvalues = field(default_factory=Eigenvalues, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        signs = self.edges["weight"]
        return (
            f"Connectome of {len(self):,} neurons and {len(self.edges):,} connections, "
            f"{int((signs < 0).sum()):,} of them negative"
        )

    def index(self, ids: Any, what: str = "ids") -> np.ndarray:
        """The places of these neurons, given by one id or several.

        In the place of an id there may be COLUMN:VALUE, ``"cell_type:T4a"`` say, for all neurons of that value in a
        column of ``neurons``; then each neuron is there once, though several may mean it.

        Raises:
            ValueError: ids or values that are not there; the nearest are suggested.
        """
        places, which = self.meant(ids, what)
        return places if len(which) == len(set(which.tolist())) else pd.unique(places)

    def meant(self, ids: Any, what: str = "ids") -> tuple[np.ndarray, np.ndarray]:
        """The same, and for each place which of the ids it is of; a neuron that several mean is there as often."""
        return meant(self.ids, self.neurons, ids, what)


def read(
    edges: Any,
    neurons: Any = None,
    *,
    weights: str = "count",
    signs: str | Mapping[str, int] | None = None,
    threshold: float = 0,
    exclude: Iterable[Any] = (),
    exclude_transmitters: Iterable[str] = (),
    silence: Iterable[Any] = (),
    columns: Mapping[str, str] | None = None,
    orientation: Literal["post_pre", "pre_post"] | None = None,
    ids: Any = None,
    dtype: torch.dtype = torch.float64,
) -> Connectome:
    """A connectome from an edge list and, if there is one, a table of its neurons.

    Connections that are there more than once, a row for each neuropil say, are summed before the threshold is applied.

    Args:
        edges: a file (CSV or TSV, compressed as ``.csv.gz`` too, Parquet, Feather, SQLite), a pandas or Arrow table; or
            a matrix: of SciPy, NumPy or torch, a square pandas table, ``.npz`` or ``.npy``. The columns of FlyWire's
            Codex and Zenodo tables, BANC, MaleCNS, neuPrint, ConnectomeInfluenceCalculator, connectome_interpreter and
            others are recognised; `columns` names any other.
        neurons: the same for the neurons, by id: transmitter, cell type, class, side. Or a list of several tables.
        weights: the column that W holds, "count", "norm" or "weight"; "rows", how many rows there are of each pair, as
            in a list of pre and post alone; or "fraction", each connection's part of all the input of its post neuron,
            of what is left after the threshold and everything that is excluded. Where there is no column "norm", it is
            the part of what is left after the threshold alone, and what is excluded leaves that as it is, as it leaves
            a column: ConnectomeInfluenceCalculator's order.
        signs: transmitter -> +1 or -1, by which the weights of a neuron's outgoing connections are multiplied; what is
            not named is +1, and a name that is no transmitter's is an error. Or a preset's name, see
            ``retrograde.connectome.SIGNS``; or "column", for a column of signs, +1 or -1, in the edges, else in the
            neuron table. None leaves all weights as they are. Transmitters that edges tell are voted on, by count; of
            their probabilities (``gaba_avg``, ``ach_avg``, ...) the one that is largest on average over a neuron's
            synapses is taken. The summary tells which transmitters are +1 because nothing names them.
        threshold: connections of a smaller count, by absolute value, are dropped.
        exclude: neurons to leave out, by id, or as COLUMN:VALUE: ``"cell_type:T4a"``.
        exclude_transmitters: transmitters whose neurons' outgoing connections are dropped.
        silence: neurons whose outgoing connections are given weight 0, likewise.
        columns: role -> column, for columns that are not recognised: roles "pre", "post", "count", "norm", "weight",
            "sign", "transmitter" of the edges, "id", "cell_type", ... of the neurons.
        orientation: of a matrix, and required there: "post_pre" where rows receive, "pre_post" where rows send.
        ids: of a matrix, one for each row; None takes the names of a pandas table's columns, or the ids of a neuron
            table that has a column ``idx``, the row of each neuron, as connectome_interpreter's have; else rows are
            numbered.
        dtype: of W.

    Raises:
        ValueError: a column that is missing, ids in floats, negative counts, ids that are not there, a threshold
            that is no number >= 0, nothing left.
        TypeError: no table.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"pre": ["a", "a", "b", "b"], "post": ["b", "c", "c", "c"], "count": [4, 6, 1, 2]})
    >>> c = read(table)
    >>> c.ids, len(c.edges)
    (array(['a', 'b', 'c'], dtype='<U1'), 3)
    >>> c.W.dense().detach()
    tensor([[0., 0., 0.],
            [4., 0., 0.],
            [6., 3., 0.]], dtype=torch.float64)
    """
    told: list[tuple[str, int]] = []
    if not (isinstance(threshold, int | float | np.number) and threshold >= 0):
        raise ValueError(f"threshold: expected a number of at least 0, got {threshold!r}")
    given, roles = dict(columns or {}), {**EDGES, **NEURONS}
    strange = [role for role in given if role not in roles]
    if strange:
        raise ValueError(f"columns: expected roles among {', '.join(roles)}, got {strange[0]!r}")
    several = list(neurons) if isinstance(neurons, list | tuple) else [] if neurons is None else [neurons]
    about = [Source(each, "neurons", ("meta", "neurons")) for each in several]
    there = {name for each in about for name in each.names}
    of_neurons = {r: column for r, column in given.items() if r in NEURONS and (r not in EDGES or column in there)}
    of_edges = {role: column for role, column in given.items() if role not in of_neurons}
    unwanted = [exclude_transmitters] if isinstance(exclude_transmitters, str) else list(exclude_transmitters)
    by_transmitter = signs is not None and signs != "column"
    matrix = matrix_of(edges, orientation)
    if matrix is not None:
        names = ids_by_row(about, of_neurons, matrix.entries.shape[0]) if ids is None and matrix.names is None else ids
        found = of_matrix(matrix, str(orientation), names, weights)
    elif orientation is not None:
        raise ValueError("orientation: expected None for an edge list, whose columns say which neuron sends")
    elif ids is not None:
        raise ValueError("ids: expected None for an edge list, which has its own; they are those of a matrix's rows")
    else:
        found = of_list(edges, of_edges, weights, signs == "column", by_transmitter or bool(unwanted))
    senders, receivers, values, spoken, alone = found
    del found
    told.append(("rows read", len(senders)))
    if alone:
        told.append(("rows of the matrix without a connection", alone))
    known, (pre, post) = numbered(senders, receivers)
    del senders, receivers
    table, of_table = neuron_table(about, known, of_neurons, spoken, pre, values.get("count"))
    told += of_table
    if by_transmitter:
        told += told_of(signs, table)
    elif signs == "column" and "sign" not in values:
        check_column(table)
        told.append(("neurons without a sign, +1", int(table["sign"].isna().sum())))

    pre, post, values = merged(pre, post, values, len(known))
    told.append(("connections, rows of one pair summed", len(pre)))

    def keep(kept: np.ndarray, why: str) -> None:
        nonlocal pre, post, values
        told.append((why, int((~kept).sum())))
        pre, post = pre[kept], post[kept]
        values = {name: column[kept] for name, column in values.items()}

    if threshold > 0:
        if "count" not in values:
            raise ValueError("threshold: expected a column of counts in the edges, found none")
        keep(np.abs(values["count"]) >= threshold, f"connections dropped, count below {threshold:g}")
    if weights == "norm" and "norm" not in values:
        values["norm"] = _fractions(values["count"], post, len(known))
    out, _ = meant(known, table, exclude, "exclude")
    if len(out):
        keep(~(np.isin(pre, out) | np.isin(post, out)), "connections dropped, of excluded neurons")
    if unwanted:
        check_transmitters(table, "exclude_transmitters", unwanted)
        names = [transmitter(name) for name in unwanted]
        keep(~table["transmitter"].isin(names).to_numpy()[pre], "connections dropped, by transmitter")
    if not len(pre):
        raise ValueError("edges: no connection is left" + (f" at threshold {threshold:g}" if threshold else ""))

    here = np.unique(np.concatenate([pre, post]))
    told.append(("neurons without a connection left, dropped", len(known) - len(here)))
    weight = _weights(weights, values, post, len(known)) * signs_of(signs, values, table, pre)
    weight = np.where(np.isin(pre, meant(known, table, silence, "silence")[0]), 0.0, weight)

    place = np.full(len(known), -1)
    place[here] = np.arange(len(here))
    pre, post, known = place[pre], place[post], known[here]
    W = _sparse(pre, post, torch.tensor(weight, dtype=dtype), len(known))
    names = pd.Series(known).array
    listed: dict[str, Any] = {"pre": names.take(pre), "post": names.take(post)}  # of text no more copies than it needs
    listed |= {name: values[name] for name in ("count", "norm") if name in values} | {"weight": weight}
    return Connectome(
        ids=known,
        neurons=table.iloc[here].reset_index(drop=True),
        edges=pd.DataFrame(listed),
        W=W,
        summary=pd.DataFrame(told, columns=["what", "number"]),
        reading=Reading(weights, float(threshold)),
    )


def _sparse(pre: np.ndarray, post: np.ndarray, weight: torch.Tensor, n: int) -> Sparse:
    """W of connections that are sorted by post, then pre, each there once, which need not be sorted once more."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(post, minlength=n))])
    by_row = scipy.sparse.csr_array((np.arange(len(pre)), pre, starts), shape=(n, n))
    order = torch.from_numpy(by_row.tocsc().data)
    W = Sparse.of_sorted(torch.from_numpy(post), torch.from_numpy(pre), order, weight, n)
    W.weight.requires_grad_()
    return W


def _weights(weights: str, values: dict[str, np.ndarray], post: np.ndarray, n: int) -> np.ndarray:
    if weights == "fraction":
        return _fractions(values["count"], post, n)
    return values["count" if weights == "rows" else weights]


def _fractions(counts: np.ndarray, post: np.ndarray, n: int) -> np.ndarray:
    total = np.bincount(post, counts, minlength=n)[post]
    return np.divide(counts, total, out=np.zeros_like(total), where=total > 0)
