"""What a structure, a nonlinearity, a solver or a gradient must satisfy: public, for your own as for ours."""

from retrograde.testing.conformance import check_connectivity, check_nonlinearity, check_solver
from retrograde.testing.problems import NONLINEARITIES, structures
from retrograde.testing.routes import Disagreement, gradient_disagreements

__all__ = [
    "NONLINEARITIES",
    "Disagreement",
    "check_connectivity",
    "check_nonlinearity",
    "check_solver",
    "gradient_disagreements",
    "structures",
]
