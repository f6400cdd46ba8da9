"""A sparse W in the order of what depends on what: solved level by level, each neuron after those that drive it.

Neurons that reach each other along connections make a strongly connected component. Between components there is no way
back, so that they can be put in levels: each is driven by levels below it, and by itself. A steady state is then
substituted up the levels, and its adjoint down, and only within a component is there anything to iterate. This is the
block triangular form of T. A. Davis, "Direct Methods for Sparse Linear Systems" (2006).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from retrograde.connectivity import Operator, Sparse
from retrograde.transforms import untransformed

# (neurons of a level, the W among them or None, what drives them) -> their z and the steps it took, neurons first.
Settle = Callable[[Tensor, "Operator | None", Tensor], tuple[Tensor, Tensor]]

# Levels share out the work only if most connections lead from one to another.
_MOST_INSIDE = 0.5


@dataclass(frozen=True, eq=False)
class Links:
    """The connections between levels, by the neuron at one of their ends, in the order of levels."""

    edges: Tensor  # which of W's
    starts: Tensor  # (n + 1,) where those of each neuron begin
    others: Tensor  # the neuron at the other end

    def rows(self, first: int, last: int, weight: Tensor) -> Tensor:
        """Those of the neurons from `first` to before `last`, torch's CSR; `weight` is in the order of edges."""
        low, high = int(self.starts[first]), int(self.starts[last])
        starts, shape = self.starts[first : last + 1] - low, (last - first, len(self.starts) - 1)
        return torch.sparse_csr_tensor(starts, self.others[low:high], weight[low:high], shape, check_invariants=False)


@dataclass(frozen=True, eq=False)
class Level:
    """Neurons `first` to `last` of the order, and the connections among them, if there are any."""

    first: int
    last: int
    inside: Sparse | None
    edges: Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """W in levels."""

    order: Tensor  # (n,) the neurons, level by level
    levels: list[Level]
    below: Links  # what drives each neuron from levels below its own
    above: Links  # what each neuron drives
    connections: int

    def substitute(self, W: Operator, c: Tensor, settle: Settle, transposed: bool = False) -> tuple[Tensor, Tensor]:
        """z (samples, n), level by level: each settled under c plus what the levels before it send; and the cost.

        The cost is that of so many products with the whole of W, for each sample. Transposed, levels go downwards, and
        what they send goes against the connections.
        """
        weight = W.weights[0].detach()
        links = self.above if transposed else self.below
        between = weight[links.edges]
        c = c.T[self.order]
        z, cost = torch.zeros_like(c), torch.zeros(c.shape[1], device=c.device)
        for level in reversed(self.levels) if transposed else self.levels:
            here = slice(level.first, level.last)
            drive = c[here] + links.rows(level.first, level.last, between) @ z
            part = None if level.inside is None else level.inside.bind(weight[level.edges])
            z[here], steps = settle(self.order[here], part, drive)
            cost += steps * len(level.edges)
        answer = torch.empty_like(z)
        answer[self.order] = z
        return answer.T.contiguous(), torch.ceil((cost + len(between)) / self.connections).long()


_found: WeakKeyDictionary[Sparse, tuple[torch.device, Blocks | None]] = WeakKeyDictionary()


def blocks_of(W: Operator) -> Blocks | None:
    """The levels of W; None if it is not sparse, or most of it lies within one. Found once for each structure."""
    structure = W.structure
    if not isinstance(structure, Sparse) or type(structure).product is not Sparse.product:
        return None
    device = structure.columns.device
    if structure not in _found or _found[structure][0] != device:
        with untransformed():  # for the indices
            _found[structure] = device, _levels(structure)
    return _found[structure][1]


def undivided(structure: Sparse) -> None:
    """Take it for granted that this structure has no levels: it is one of them, or not kept for long."""
    _found[structure] = structure.columns.device, None


def _levels(W: Sparse) -> Blocks | None:
    n, device = W.shape[0], W.columns.device
    starts, pre = W.row_starts.cpu().numpy(), W.columns.cpu().numpy()
    graph = csr_matrix((np.ones(len(pre), np.int8), pre, starts), shape=(n, n))
    count, component = connected_components(graph, directed=True, connection="strong")
    post = np.repeat(np.arange(n), np.diff(starts))
    inside = component[post] == component[pre]
    if not len(pre) or inside.mean() > _MOST_INSIDE:
        return None
    height = _heights(component[pre[~inside]], component[post[~inside]], count)[component]
    order = np.argsort(height, kind="stable")
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    post, pre = place[post], place[pre]

    def links(ends: np.ndarray, others: np.ndarray) -> Links:
        edges = np.nonzero(~inside)[0]
        return Links(*(torch.from_numpy(each).to(device) for each in _by_row(edges, ends[edges], others[edges], n)))

    within = np.nonzero(inside)[0]
    within, _, _ = _by_row(within, post[within], pre[within], n)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(height))])
    cuts = np.searchsorted(post[within], bounds)
    levels = []
    for first, last, low, high in zip(bounds[:-1], bounds[1:], cuts[:-1], cuts[1:], strict=True):
        edges = within[low:high]
        rows, columns = (torch.from_numpy(end[edges] - first).to(device) for end in (post, pre))
        part = torch.from_numpy(edges).to(device)
        some = None
        if len(edges):
            order_of_columns = torch.argsort(columns, stable=True)
            some = Sparse.of_sorted(rows, columns, order_of_columns, W.weight.detach()[part], int(last - first))
            undivided(some)
        levels.append(Level(int(first), int(last), some, part))
    return Blocks(torch.from_numpy(order).to(device), levels, links(post, pre), links(pre, post), len(pre))


def _by_row(edges: np.ndarray, rows: np.ndarray, columns: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """The edges sorted by row, then column; where each row begins; and their columns."""
    sorted_ = coo_matrix((edges, (rows, columns)), shape=(n, n)).tocsr()
    sorted_.sort_indices()
    return sorted_.data, sorted_.indptr.astype(np.int64), sorted_.indices.astype(np.int64)


def _heights(source: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """The longest way to each node of an acyclic graph, in edges."""
    height = np.zeros(count, np.int64)
    waits = np.bincount(target, minlength=count)
    target = target[np.argsort(source, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=count))])
    ready, now = np.nonzero(waits == 0)[0], 0
    while len(ready):
        height[ready] = now
        many = starts[ready + 1] - starts[ready]
        nth = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        driven, times = np.unique(target[np.repeat(starts[ready], many) + nth], return_counts=True)
        waits[driven] -= times
        ready, now = driven[waits[driven] == 0], now + 1
    return height
