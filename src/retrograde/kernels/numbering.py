"""The neurons of a sparse W, numbered anew: what is asked for most often then lies together in cache."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Sparse

_known: WeakKeyDictionary[Sparse, tuple[Tensor, tuple[np.ndarray, ...]]] = WeakKeyDictionary()


def by_degree(structure: Sparse) -> tuple[np.ndarray, ...]:
    """The neurons, those of most connections first; each one's place among them; and the columns in these terms."""
    known = _known.get(structure)
    if known is None or known[0] is not structure.columns:
        starts, columns = structure.row_starts, structure.columns
        degree = starts.diff() + structure.column_starts.diff()
        neurons = torch.argsort(degree, descending=True, stable=True)
        place = torch.empty_like(neurons)
        place[neurons] = torch.arange(len(neurons))
        kind = f"u{columns.itemsize}"
        place = place.to(columns.dtype)
        told = neurons.numpy(), place.numpy().view(kind), place[columns].numpy().view(kind)
        known = _known[structure] = columns, told
    return known[1]
