"""Exact gradients of any reward through a recurrent network, at a steady state or along a trajectory."""

from retrograde.by_hand import backpropagation_through_time, recurrent_backpropagation
from retrograde.connectivity import Connectivity, Convolution, Dense, LowRank, Sparse, Sum
from retrograde.equilibrium import Equilibrium
from retrograde.network import Network
from retrograde.nonlinearity import Identity, Nonlinearity, Pointwise, ReLU, Sigmoid, Softplus, Tanh
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError, Gradients, Receipt, Status, SteadyState, Trajectory
from retrograde.solvers import Cascade, Direct, FixedPoint, Krylov, Newton
from retrograde.steady import steady_state
from retrograde.trajectories import trajectory
from retrograde.wellposed import SpectralBall, jacobian_penalty

__version__ = "0.1.0"

__all__ = [
    "Cascade",
    "Connectivity",
    "ConvergenceError",
    "Convolution",
    "Dense",
    "Direct",
    "Equilibrium",
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
    "SpectralBall",
    "Status",
    "SteadyState",
    "Sum",
    "Tanh",
    "Trajectory",
    "backpropagation_through_time",
    "jacobian_penalty",
    "recurrent_backpropagation",
    "steady_state",
    "trajectory",
]
