"""Whether a network would stay at a steady state: no answer is told of one that it leaves by itself."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from retrograde.connectivity import Operator
from retrograde.connectome.eigenvalues import largest_real_eigenvalue, matrix
from retrograde.nonlinearity import Identity
from retrograde.recurrence import Recurrence

_POWERS = 50


def linearised(net: Recurrence, x: Tensor, b: Tensor) -> tuple[Tensor, Recurrence]:
    """The slopes D at the steady state x = f(Wx + b), and the linear network of DW around it."""
    D = net.f.slope_at(net.W @ x + b)
    return D, Recurrence(times_rows(D, net.W.bind()), Identity())


def times_rows(D: Tensor, W: Operator) -> Operator:
    """DW, of a sparse W."""
    (weight,) = W.weights
    post, _pre, _ = W.entries()
    return W.bind(D[post] * weight)


def is_stable(around: Recurrence) -> bool:
    """Whether every eigenvalue of DW, of a network that was linearised, has a real part below 1.

    Where the rows of a power of |DW| sum to less than 1, all of them have a modulus below 1, for some products. Else
    the largest is looked for.
    """
    W = around.W.bind()
    A = abs(matrix(W))
    sums = np.ones(A.shape[1])
    for _ in range(_POWERS):
        sums = A @ sums
        if sums.max(initial=0.0) < 1:
            return True
    return largest_real_eigenvalue(W) < 1


def stable_margin(around: Recurrence, what: str, other: str) -> float:
    """1 - the largest real part of an eigenvalue of DW, of a network that was linearised at a steady state.

    Args:
        around: the linear network.
        what: the argument that asks for the state, and `other`, the one that another state would come from: of the
            error.

    Raises:
        ValueError: the state is unstable: it is none that τ dx/dt = -x + f(Wx + b) would stay at.
    """
    margin = 1 - largest_real_eigenvalue(around.W.bind())
    if margin <= 0:
        raise ValueError(
            f"{what}: the steady state is unstable, for the largest real part of an eigenvalue of DW there is "
            f"{1 - margin:.3g}, which has to be below 1; try another {other}, or a smaller scale"
        )
    return margin
