"""dR/dW = Σ s xᵀ, the sensitivity lemma summed over samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator, Sparse
from retrograde.kernels.arrays import array, dtype_of, unsigned
from retrograde.kernels.choice import cpu_kernels, has_outer, torch_is_faster
from retrograde.kernels.threads import ask_for, most, sharers


def outer(W: Operator, s: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """``W.outer(s, x)``, where W is full or sparse by a kernel."""
    if not has_outer(W):
        return W.outer(s, x)
    cpu = cpu_kernels()

    s_rows, x_rows = (z.reshape(-1, z.shape[-1]) for z in (s, x))
    structure = W.structure
    if isinstance(structure, Sparse):
        ask_for(most())
        starts, columns = (unsigned(index) for index in (structure.row_starts, structure.columns))
        if len(x_rows) == 1:
            dW = np.empty(len(columns), dtype_of(x))
            cpu.sampled.outer_of_one(starts, columns, array(s_rows)[0], array(x_rows)[0], dW)
        else:
            dW = np.zeros(len(columns), dtype_of(x))
            cpu.sampled.outer(starts, columns, array(s_rows.T), array(x_rows.T), dW)
    elif len(s_rows) == 1:  # without zeros to add to
        return (s_rows.T * x_rows,)
    elif torch_is_faster(W, s.numel()):
        return (s_rows.T @ x_rows,)
    else:
        dW = np.zeros(structure.shape, dtype_of(x))
        cpu.products.outer(array(s_rows), array(x_rows), ask_for(sharers(s.numel(), dW)), dW)
    return (torch.from_numpy(dW),)
