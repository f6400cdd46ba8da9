"""xitorch's `equilibrium`, with the adjoint by one of its linear solvers.

Its tolerance is absolute and for the batch as one vector, so it is scaled by the size that a state can have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from scipy.sparse import csr_array
from torch import Tensor
from xitorch.optimize import equilibrium

from benchmarks.peers.driven_torch import driven

MAX_STEPS = 1000


def steady(W: Tensor | csr_array, b: Tensor, g: Tensor, solver: str, linear: str, rtol: float) -> Callable[[], Tensor]:
    """One of its root finders, and one of its linear solvers."""
    w, drive = driven(W)
    w.requires_grad_()
    forth = {"method": solver, "f_tol": rtol * b.numel() ** 0.5, "maxiter": MAX_STEPS}
    back = {"method": linear, "rtol": rtol, "posdef": False}

    def gradient() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = equilibrium(
                lambda x, w: torch.tanh(drive(w, x, b)), torch.zeros_like(b), params=(w,), bck_options=back, **forth
            )
            return torch.autograd.grad(x, w, g)[0]

    return gradient
