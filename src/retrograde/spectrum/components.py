"""What decides on the eigenvalues of a sparse W: its loops."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from retrograde.connectivity import Operator, Sparse


def within_components(W: Operator) -> Operator:
    """W without the connections that lie on no loop: those from one strongly connected component to another.

    Sorted by component DW is block triangular, so it keeps its eigenvalues, whatever D; and as a simple one has its
    left vector upstream and its right vector downstream of its component, its derivative too. What is lost is much of
    the distance from normality, by which a long chain of neurons, all of whose eigenvalues are 0, would seem to have
    large ones. Any W but a sparse one is given back as it is.
    """
    if not isinstance(W.structure, Sparse):
        return W
    post, pre, weight = W.entries()
    ends = post.cpu().numpy(), pre.cpu().numpy()
    graph = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=W.shape)
    _, labels = connected_components(graph, connection="strong")
    inside = torch.from_numpy(labels[ends[0]] == labels[ends[1]]).to(weight.device)
    return W.bind(torch.where(inside, weight, 0))
