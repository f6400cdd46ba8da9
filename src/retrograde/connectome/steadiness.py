"""Whether a network would stay at a steady state: no answer is told of one that it leaves by itself."""

from __future__ import annotations

from torch import Tensor

from retrograde.connectome.linear import largest_real_eigenvalue
from retrograde.nonlinearity import Identity, Sigmoid, Tanh
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError, SteadyState
from retrograde.solvers import Solver
from retrograde.steady import steady_state


def steady(net: Recurrence, b: Tensor, solver: Solver | None = None) -> SteadyState:
    """The steady state x = f(Wx + b).

    Raises:
        ConvergenceError: there is none, or it was not found; of an f without an upper bound it says what to try.
    """
    try:
        return steady_state(net.W, b, net.f, solver=solver)
    except ConvergenceError as error:
        if isinstance(net.f, Tanh | Sigmoid):
            raise
        raise ConvergenceError(
            f"{error} An f without an upper bound grows where W is large: give a smaller scale, or a bounded f.",
            error.result,
        ) from None


def linearised(net: Recurrence, x: Tensor, b: Tensor) -> tuple[Tensor, Recurrence]:
    """The slopes D at the steady state x = f(Wx + b), and the linear network of DW around it."""
    D = net.f.slope_at(net.W @ x + b)
    W = net.W.bind()
    (weight,) = W.weights
    post, _pre, _ = W.entries()
    return D, Recurrence(W.bind(D[post] * weight), Identity())


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
