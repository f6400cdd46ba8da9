"""What surrounds a steady state: its stability, the other steady states, and the branch that it lies on."""

from retrograde.spectrum.branch import continue_steady_state
from retrograde.spectrum.diagram import SteadyBranch
from retrograde.spectrum.eigen import eigenvalues
from retrograde.spectrum.found import FixedPoints, SteadyStates
from retrograde.spectrum.several import find_steady_states
from retrograde.spectrum.special import SpecialPoint

__all__ = [
    "FixedPoints",
    "SpecialPoint",
    "SteadyBranch",
    "SteadyStates",
    "continue_steady_state",
    "eigenvalues",
    "find_steady_states",
]
