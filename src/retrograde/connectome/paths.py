"""Whom paths of connections lead to."""

from __future__ import annotations

import numpy as np
import scipy.sparse.csgraph
from torch import Tensor

from retrograde.connectivity import Operator
from retrograde.connectome.eigenvalues import matrix


def reached(W: Operator, driven: Tensor, backwards: bool) -> np.ndarray:
    """(groups, n): whether a path of connections that are not 0 leads there from the group, or from there to it."""
    A = matrix(W)
    n, found = len(driven.T), np.zeros(driven.shape, bool)
    # n + k leads to the group k, and nothing to it.
    groups = [scipy.sparse.csr_array(driven.numpy()), scipy.sparse.csr_array((len(driven), len(driven)))]
    paths = scipy.sparse.block_array([[A if backwards else A.T, None], groups], format="csr")
    for k, row in enumerate(found):
        order = scipy.sparse.csgraph.breadth_first_order(paths, n + k, return_predecessors=False)
        row[order[1:]] = True
    return found
