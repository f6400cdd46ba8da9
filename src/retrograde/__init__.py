"""Exact gradients of any reward through a recurrent network, at a steady state or along a trajectory."""

from retrograde.by_hand import backpropagation_through_time, recurrent_backpropagation
from retrograde.connectivity import Connectivity, Convolution, Dense, LowRank, Sparse, Sum
from retrograde.network import Network
from retrograde.nonlinearity import Identity, Nonlinearity, Pointwise, ReLU, Sigmoid, Softplus, Tanh
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError, Gradients, Receipt, Status, SteadyState, Trajectory
from retrograde.solvers import Cascade, Direct, FixedPoint, Krylov, Newton
from retrograde.spectrum import (
    Bifurcation,
    Certificate,
    Fate,
    Stability,
    Verdict,
    Verdicts,
    stability,
    uniqueness_certificate,
    verdict,
)
from retrograde.steady import steady_state
from retrograde.trajectories import trajectory

__version__ = "0.1.0"

__all__ = [
    "Bifurcation",
    "Cascade",
    "Certificate",
    "Connectivity",
    "ConvergenceError",
    "Convolution",
    "Dense",
    "Direct",
    "Fate",
    "FixedPoint",
    "Gradients",
    "Identity",
    "Krylov",
    "LowRank",
    "Network",
    "Newton",
    "Nonlinearity",
    "Pointwise",
    "ReLU",
    "Receipt",
    "Recurrence",
    "Sigmoid",
    "Softplus",
    "Sparse",
    "Stability",
    "Status",
    "SteadyState",
    "Sum",
    "Tanh",
    "Trajectory",
    "Verdict",
    "Verdicts",
    "backpropagation_through_time",
    "recurrent_backpropagation",
    "stability",
    "steady_state",
    "trajectory",
    "uniqueness_certificate",
    "verdict",
]
