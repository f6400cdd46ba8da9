"""Connectomes: from a table of connections to what an output depends on."""

from retrograde.connectome.columns import SIGNS
from retrograde.connectome.fitted import Fit, fit
from retrograde.connectome.importances import Importance, importance
from retrograde.connectome.influences import influence
from retrograde.connectome.packaged import SOURCES, example
from retrograde.connectome.simulation import simulate
from retrograde.connectome.stabilities import ConnectomeStability, stability
from retrograde.connectome.stimulation import stimulate
from retrograde.connectome.wiring import Connectome, read

__all__ = [
    "SIGNS",
    "SOURCES",
    "Connectome",
    "ConnectomeStability",
    "Fit",
    "Importance",
    "example",
    "fit",
    "importance",
    "influence",
    "read",
    "simulate",
    "stability",
    "stimulate",
]
