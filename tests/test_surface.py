"""The public names, pinned: a change here is a change of the interface, and belongs in CHANGELOG.md."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import retrograde as rg
from retrograde.testing import structures

NAMES = [
    "Anderson",
    "Bifurcation",
    "Cascade",
    "Certificate",
    "Connectivity",
    "ConvergenceError",
    "Direct",
    "Fate",
    "Equilibrium",
    "FixedPoint",
    "FixedPoints",
    "Gradients",
    "Homotopy",
    "Identity",
    "Krylov",
    "Multistart",
    "Network",
    "Neumann",
    "Newton",
    "NewtonKrylov",
    "Nonlinearity",
    "Pointwise",
    "PseudoTransient",
    "ReLU",
    "Receipt",
    "Recurrence",
    "Sigmoid",
    "Softplus",
    "Sparse",
    "Stability",
    "SpecialPoint",
    "SpectralBall",
    "Status",
    "SteadyBranch",
    "SteadyState",
    "SteadyStates",
    "Sum",
    "Tanh",
    "Trajectory",
    "WarmStart",
    "Verdict",
    "Verdicts",
    "backpropagation_through_time",
    "continue_steady_state",
    "find_steady_states",
    "jacobian_penalty",
    "recurrent_backpropagation",
    "stability",
    "steady_state",
    "trajectory",
    "uniqueness_certificate",
    "verdict",
]


# A structure is pinned by its row in retrograde.testing.problems.
STRUCTURES = {type(W).__name__ for W in structures().values()}


def test_the_public_names_are_these_and_sorted():
    assert rg.__all__ == sorted({*NAMES, *STRUCTURES})
    assert all(hasattr(rg, name) for name in rg.__all__)


RING = """
import torch
from torch import Tensor, nn

from retrograde.connectivity.base import Connectivity


class Ring(Connectivity):
    \"""Each neuron drives the next.\"""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.weight), len(self.weight)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def product(self, x: Tensor, *weights: Tensor) -> Tensor:
        return (weights[0] * x).roll(1, -1)
"""


def test_a_new_structure_costs_a_file_a_line_and_a_row(tmp_path):
    here = Path(__file__).parent
    shutil.copytree(here.parent / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(here, tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "src" / "retrograde"
    (package / "connectivity" / "ring.py").write_text(RING)
    with (package / "__init__.py").open("r+") as file:
        text = file.read().replace(
            "\nfrom retrograde.network", "\nfrom retrograde.connectivity.ring import Ring\nfrom retrograde.network"
        )
        file.seek(0)
        file.write(text)
    with (package / "testing" / "problems.py").open("r+") as file:
        text = file.read().replace('    "Sum":', '    "Ring": lambda random: _shrunk(rg.Ring(random(12))),\n    "Sum":')
        file.seek(0)
        file.write(text)
    public = "tests/test_surface.py::test_the_public_names_are_these_and_sorted"
    conforms = "tests/test_conformance.py::test_every_structure_conforms"
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", public, conforms],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout
    assert f"{conforms}[Ring] PASSED" in found.stdout


def test_every_public_name_says_what_it_is():
    assert all((inspect.getdoc(getattr(rg, name)) or "").strip() for name in NAMES)


def test_the_signatures_that_callers_rely_on():
    def names(function):
        return list(inspect.signature(function).parameters)

    assert names(rg.Network.__init__) == ["self", "W", "f", "b", "leak"]
    assert names(rg.Network.steady_state) == ["self", "input", "x0", "solver", "adjoint", "throw", "warm", "grad_rtol"]
    assert names(rg.Network.trajectory) == ["self", "input", "x0", "steps", "adjoint"]
    assert names(rg.steady_state)[:3] == ["W", "b", "f"]
    assert names(rg.trajectory)[:4] == ["W", "b", "x0", "f"]
    assert names(rg.recurrent_backpropagation)[:3] == ["net", "x", "dR_dx"]
    assert names(rg.backpropagation_through_time)[:4] == ["net", "x", "x0", "dR_dx"]
    assert {"damping", "rtol", "max_steps", "hasty"} == set(names(rg.FixedPoint))
