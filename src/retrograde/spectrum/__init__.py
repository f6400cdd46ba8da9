"""Stability of steady states: eigenvalues and modes, verdicts, and a proof of uniqueness; one idea a file."""

from retrograde.spectrum.certificate import Certificate, uniqueness_certificate
from retrograde.spectrum.cycles import Fate
from retrograde.spectrum.eigen import Modes, eigenvalues, leading_modes
from retrograde.spectrum.stable import Bifurcation, Stability, stability
from retrograde.spectrum.verdicts import Verdict, Verdicts, verdict

__all__ = [
    "Bifurcation",
    "Certificate",
    "Fate",
    "Modes",
    "Stability",
    "Verdict",
    "Verdicts",
    "eigenvalues",
    "leading_modes",
    "stability",
    "uniqueness_certificate",
    "verdict",
]
