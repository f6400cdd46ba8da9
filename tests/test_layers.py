"""Imports point one way, and `import retrograde` stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import retrograde as rg

SOURCE = Path(rg.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# From the bottom up. What stands in one row knows nothing of the others in it, but for what is named below.
LAYERS = [
    {"transforms", "tables", "starting", "closure", "held", "singular"},
    {"checks", "nonlinearity", "result"},
    {"connectivity", "receipt", "solvers"},
    {"blocks", "remembered", "scaling", "equation_graph"},
    {"recurrence", "kernels", "structure", "warm", "equation"},
    {"defaults"},
    {"feedback", "equation_feedback"},
    {"corrections"},
    {"accuracy"},
    {"nearing", "equation_accuracy"},
    {"targeting"},
    {"adjoint", "autograd", "through_time", "implicit"},
    {"derivatives", "equation_rules"},
    {"steady", "trajectories", "unfolding", "by_hand"},
    {"spectrum"},
    {"network", "equilibrium"},
    {"nn", "wellposed"},
    {"connectome", "training", "testing"},
    {"report"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def room(module):
    """The room of a module's dotted name; the package itself is its own."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "retrograde"


def imports(path):
    """The modules of this package that a file imports, but for those it needs for types alone."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("retrograde"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            if node.module == "retrograde":
                yield from (
                    f"retrograde.{alias.name}" if (alias.name in LEVEL) else "retrograde" for alias in node.names
                )
            elif node.module and node.module.startswith("retrograde."):
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if here in ("__init__",):
        return
    assert here in LEVEL, f"{here} has no place in the layers"
    for module in imports(path):
        there = room(module)
        if there == "retrograde":
            assert LEVEL[here] >= LEVEL["training"], f"{path} imports the package from within"
        elif there != here:
            assert LEVEL[there] < LEVEL[here], f"{here} imports {there}"


def test_kernels_are_asked_for_where_the_work_is_alone():
    users = {
        p.relative_to(SOURCE).parts[0].removesuffix(".py") for p in FILES if "retrograde.kernels" in set(imports(p))
    }
    assert users <= {
        "adjoint",
        "defaults",
        "feedback",
        "nearing",
        "through_time",
        "steady",
        "trajectories",
        "connectivity",
        "kernels",
    }


def test_testing_uses_public_names_alone():
    for path in (SOURCE / "testing").glob("*.py"):
        for module in imports(path):
            assert room(module) in ("retrograde", "testing")
        assert set(re.findall(r"\brg\.(\w+)", path.read_text())) <= set(rg.__all__)


def test_the_core_imports_no_application():
    heavy = ("pandas", "matplotlib", "typer", "rich", "sklearn", "jinja2", "pyarrow")
    code = f"import sys, retrograde; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_no_module_bears_the_name_of_a_public_function():
    assert not {path.stem for path in FILES} & set(rg.__all__)
    assert callable(rg.trajectory) and callable(rg.steady_state)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_read_can_run_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "__import__")
            if called == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if called.endswith(("np.load", "numpy.load")):
                assert not any(k.arg == "allow_pickle" for k in node.keywords)
