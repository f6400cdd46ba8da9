"""Stability: the eigenvalues of DW, the factors by which a perturbation of a steady state grows from step to step."""

from __future__ import annotations

import torch
from torch import Tensor

from retrograde.connectivity import Connectivity


def eigenvalues(W: Connectivity | Tensor, D: Tensor) -> Tensor:
    """The eigenvalues of DW at each state: (..., n) complex, in no particular order.

    The steady state is stable under x ← f(Wx + b) where all lie inside the unit circle. DW is formed in full: small n.

    Args:
        W: (n, n), a connectivity or a tensor.
        D: (..., n), the slopes f'(Wx + b).

    Raises:
        ValueError: W and D do not fit.

    >>> eigenvalues(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0.5, 0.5])).real.sort().values
    tensor([-0.5000,  0.5000])
    """
    M = (W.dense() if isinstance(W, Connectivity) else W).detach()
    n = M.shape[-1]
    if M.shape != (n, n) or D.ndim == 0 or D.shape[-1] != n:
        raise ValueError(f"D: expected shape (..., n) for W of shape (n, n), got {tuple(D.shape)} for {tuple(M.shape)}")
    return torch.linalg.eigvals(D.detach()[..., :, None] * M)
