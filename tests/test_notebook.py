"""The notebook: its cells, run in their order, and what each shows, made. Its outputs are not kept."""

import ast
import json
from pathlib import Path

import pytest

pytest.importorskip("pandas")
NOTEBOOK = Path(__file__).parents[1] / "docs" / "worm.ipynb"


def run(source, names):
    """Run a cell, and return what it shows: the value of its last line."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last is not None else None


def test_the_notebook_runs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    names = {"__name__": "notebook"}
    shown = [run("".join(cell["source"]), names) for cell in cells]
    pictures = [each._repr_png_() for each in shown if hasattr(each, "_repr_png_")]
    assert len(pictures) == 6 and all(each.startswith(b"\x89PNG") for each in pictures)

    # What its text promises.
    rg, c = names["rg"], names["c"]
    command, sweep = ["AVAL", "AVAR"], names["sweep"]
    assert sorted(names["influence"].query("is_target")["id"]) == command
    want = rg.connectome.influence(c, target=command, scale=0.9).set_index("id")["influence"]
    assert (sweep.set_index("id")["0.9"] - want[sweep["id"]]).abs().max() < 1e-12 and (
        sweep["best"] < sweep["worst"]
    ).any()
    assert set(names["on"].index) == set(names["on"].columns) == set(c.neurons["class"])
    assert "margin" in names["touched"].attrs and list(names["touched"]["id"]) != list(names["rest"]["id"])
    assert {"influence", "importance", "stimulate", "simulate", "fit", "stability"} <= set(dir(rg.connectome))
    first = names["ranked"].iloc[:10]
    assert first["silencing_exact"].notna().all()
    assert names["stimulus"].attrs["met"] and (names["stimulus"]["input"] >= 0).all()
    assert not set(names["stimulus"]["id"][names["stimulus"]["input"] > 0]) - set(names["sensory"])
    gains = names["fit"].parameters.set_index("group")
    for group, true in names["true"].items():
        if gains.loc[group, "determined"]:
            assert abs(gains.loc[group, "value"] - true) < 5 * gains.loc[group, "standard_error"], group
    assert names["stability"].stable_continuous and len(c) == 300
