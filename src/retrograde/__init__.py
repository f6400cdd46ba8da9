"""Exact gradients of any reward through a recurrent network, at a steady state or along a trajectory."""

from retrograde import starting  # before torch: from here on an interrupt of the command is looked after
from retrograde.by_hand import backpropagation_through_time, recurrent_backpropagation
from retrograde.connectivity.base import Connectivity
from retrograde.connectivity.convolution import Convolution
from retrograde.connectivity.dense import Dense
from retrograde.connectivity.low_rank import LowRank
from retrograde.connectivity.sparse import Sparse
from retrograde.connectivity.sum import Sum
from retrograde.equilibrium import Equilibrium
from retrograde.network import Network
from retrograde.nonlinearity import Identity, Nonlinearity, Pointwise, ReLU, Sigmoid, Softplus, Tanh
from retrograde.receipt import Receipt
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError, Gradients, Status, SteadyState, Trajectory
from retrograde.solvers import (
    Anderson,
    Cascade,
    Direct,
    FixedPoint,
    Homotopy,
    Krylov,
    Multistart,
    Neumann,
    Newton,
    NewtonKrylov,
    PseudoTransient,
)
from retrograde.spectrum import (
    Bifurcation,
    Certificate,
    Fate,
    FixedPoints,
    SpecialPoint,
    Stability,
    SteadyBranch,
    SteadyStates,
    Verdict,
    Verdicts,
    continue_steady_state,
    find_steady_states,
    stability,
    uniqueness_certificate,
    verdict,
)
from retrograde.steady import steady_state
from retrograde.trajectories import trajectory
from retrograde.warm import WarmStart
from retrograde.wellposed import SpectralBall, jacobian_penalty

__version__ = "0.1.0"

# Asked for by attribute as well, and imported only then: a connectome's tables need pandas.
_MODULES = ("connectome", "nn", "testing")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        from importlib import import_module

        return import_module(f"retrograde.{name}")
    raise AttributeError(f"module 'retrograde' has no attribute {name!r}")


# What is imported above is public: a name needs its import here and nothing more.
__all__ = sorted(
    name for name, public in globals().items() if getattr(public, "__module__", "").startswith("retrograde.")
)
