"""What surrounds a steady state: its stability, the other steady states, the branch it lies on; one idea a file."""

from retrograde.spectrum.branch import continue_steady_state
from retrograde.spectrum.certificate import Certificate, uniqueness_certificate
from retrograde.spectrum.cycles import Fate
from retrograde.spectrum.diagram import SteadyBranch
from retrograde.spectrum.eigen import Modes, eigenvalues, leading_modes
from retrograde.spectrum.found import FixedPoints, SteadyStates
from retrograde.spectrum.several import find_steady_states
from retrograde.spectrum.special import SpecialPoint
from retrograde.spectrum.stable import Bifurcation, Stability, stability
from retrograde.spectrum.verdicts import Verdict, Verdicts, verdict

__all__ = [
    "Bifurcation",
    "Certificate",
    "Fate",
    "FixedPoints",
    "Modes",
    "SpecialPoint",
    "Stability",
    "SteadyBranch",
    "SteadyStates",
    "Verdict",
    "Verdicts",
    "continue_steady_state",
    "eigenvalues",
    "find_steady_states",
    "leading_modes",
    "stability",
    "uniqueness_certificate",
    "verdict",
]
