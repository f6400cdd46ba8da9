"""What a structure, a nonlinearity, a solver or a gradient must satisfy: public, for your own as for ours."""

from retrograde.testing.conformance import check_connectivity, check_nonlinearity, check_solver
from retrograde.testing.routes import NONLINEARITIES, Disagreement, gradient_disagreements, structures

__all__ = [
    "NONLINEARITIES",
    "Disagreement",
    "check_connectivity",
    "check_nonlinearity",
    "check_solver",
    "gradient_disagreements",
    "structures",
]
