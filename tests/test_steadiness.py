"""No question is answered at a steady state that the network would leave by itself."""

import importlib
import inspect
import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from typer.testing import CliRunner

import retrograde as rg
from retrograde import ConvergenceError, FixedPoint, Identity, Sparse
from retrograde.cli.app import app
from retrograde.connectome import importance, influence, read, simulate, simulation, stability, stimulate
from retrograde.connectome.steadiness import is_stable
from retrograde.recurrence import Recurrence

UNSTABLE = (
    "{}: the steady state is unstable, for the largest real part of an eigenvalue of DW there is 2, which has to be "
    "below 1; try another {}, or a smaller scale"
)


@pytest.fixture
def c():
    """Two that excite each other, at rest an unstable state, and one that listens to nobody."""
    return read(pd.DataFrame({"pre": list("abc"), "post": list("bad"), "count": [2, 2, 1]}))


def test_neither_influence_nor_importance_nor_a_simulation_takes_an_unstable_state(c):
    how = {"f": "tanh", "scale": None}
    for ask, at, other in (
        (lambda: influence(c, "c", drive="c", **how), "drive", "drive"),
        (lambda: importance(c, "c", {"d": 1, "a": 1}, **how), "source", "source"),
        (lambda: simulate(c, {"c": 1.0}, start="steady", duration=3, **how), "start", "bias"),
        (lambda: simulate(c, {"c": 1.0}, start="steady", duration=3, f="identity"), "start", "bias"),
    ):
        with pytest.raises(ValueError) as error:
            ask()
        assert str(error.value) == UNSTABLE.format(at, other)


def test_a_stable_one_is_taken_and_its_margin_told(c):
    found = importance(c, {"a": 2.0, "c": 1.0}, "b", f="tanh", scale=None)
    margin = stability(c, {"a": 2.0, "c": 1.0}, scale=None).margin_continuous
    assert 0 < margin < 1 and np.isclose(found.attrs["margin"], margin)
    rest = simulate(c, {"c": 1.0}, start="steady", duration=3, scale=0.5, wide=True)
    assert (rest[["a", "b"]] == 0).all(axis=None)
    assert "margin" not in importance(c, "a", "b").attrs  # of a linear network the scale says it


def test_what_may_help_where_an_f_without_a_bound_has_no_steady_state(c):
    for ask in (
        lambda: importance(c, "a", "b", f="relu", scale=1.5),
        lambda: influence(c, "c", f="relu", scale=1.5, drive="a"),
        lambda: simulate(c, {"c": 1.0}, start="steady", bias=1.0, f="relu", scale=1.5, duration=3),
    ):
        with pytest.raises(ConvergenceError, match=r"Try a smaller scale, another .* or a bounded f") as error:
            ask()
        assert error.value.result is not None


def test_scales_and_rewards_that_are_none(c):
    for ask in (
        lambda: influence(c, "c", scale="0.5"),
        lambda: influence(c, "c", scale=["0.5", "0.6"]),
        lambda: importance(c, "c", "d", scale="0.5"),
        lambda: stability(c, scale=True),
    ):
        with pytest.raises(TypeError, match=r"scale: expected a number, or None, got ('0.5'|True)"):
            ask()
    for reward, said in (
        (lambda x: x.numpy().sum(), "reward: expected a function of the tensor x in torch's operations; it raised: "),
        (lambda x: x.detach().sum(), "reward: expected a differentiable function of x"),
    ):
        with pytest.raises(ValueError, match=said):
            importance(c, "c", reward=reward)


@pytest.fixture
def held():
    """Two that excite each other, at rest as long as p inhibits them both; and s, which drives c."""
    rows = [("a", "b", 1.5), ("b", "a", 1.5), ("a", "p", 1), ("b", "p", 1), ("p", "a", -1), ("p", "b", -1)]
    rows += [("s", "c", 1), ("a", "c", 1)]
    return read(pd.DataFrame(rows, columns=["pre", "post", "weight"]), weights="weight")


@pytest.mark.parametrize("f", ("tanh", "identity"))
def test_an_exact_effect_is_none_where_the_network_would_not_stay(held, f):
    reward = (lambda x: x.sum()) if f == "identity" else None
    found = importance(held, "s", None if reward else "c", reward=reward, f=f, scale=None, exact=len(held))
    table = found.neurons.set_index("id")
    for name in ("a", "b", "c", "p", "s"):
        silent = stability(held, "s", f=f, scale=None, silence=[name])
        assert np.isnan(table.loc[name, "silencing_exact"]) == (not silent.stable_continuous)
    assert np.isnan(table.loc["p", ["silencing_exact", "flipping_exact"]].astype(float)).all()
    assert found.attrs["not_exact"] == table[["silencing_exact", "flipping_exact"]].isna().sum().sum() > 0
    assert "not_exact" not in importance(held, "s", "c", scale=None).attrs
    assert 0 <= found.attrs["exact_residual"] < 1e-9  # of those that are told


def test_the_command_tells_how_many_effects_are_left_out(held, tmp_path):
    held.edges.to_csv(tmp_path / "edges.csv", index=False)
    words = ["importance", str(tmp_path / "edges.csv"), "--weights", "weight", "--scale", "none", "--f", "tanh"]
    words += ["--source", "s", "--target", "c", "--exact", "5"]
    told = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    count = importance(held, "s", "c", f="tanh", scale=None, exact=5).attrs["not_exact"]
    assert f"{count} of the 10 exact effects are left empty" in told.stdout
    shorter = CliRunner().invoke(app, [*words[:-1], "1"], env={"COLUMNS": "300"})
    assert "left empty" not in shorter.stdout


def test_a_state_that_an_input_brings_about_may_be_one_that_is_left(c, tmp_path):
    rest = {name: 0.0 for name in "abd"} | {"c": 0.5}
    at_rest = stimulate(c, rest, lower=-5, scale=None)  # by the one input there is
    assert at_rest.attrs["met"] and not at_rest.attrs["stable"]
    assert stimulate(c, rest, lower=-5, scale=0.5).attrs["stable"]
    assert stimulate(c, {"d": 0.1}, f="identity", scale=0.5).attrs["stable"]
    c.edges.to_csv(tmp_path / "edges.csv", index=False)
    words = ["stimulate", str(tmp_path / "edges.csv"), "--lower", "-5"]
    words += ["--target", *(f"{name}={x}" for name, x in rest.items())]
    for scale, unstable in ("none", True), ("0.5", False):
        told = CliRunner().invoke(app, [*words, "--scale", scale], env={"COLUMNS": "300"})
        assert told.exit_code == 0 and ("This steady state is unstable" in told.stdout) == unstable


@pytest.mark.parametrize("seed", range(20))
def test_a_power_whose_rows_sum_to_less_than_1_is_that_of_a_stable_network(seed):
    rng = np.random.default_rng(seed)
    M = rng.normal(size=(12, 12)) * (rng.random((12, 12)) < 0.4)
    M *= rng.uniform(0.3, 2.0) / np.abs(np.linalg.eigvals(M)).max()
    around = Recurrence(Sparse(scipy.sparse.csr_array(M)).bind(), Identity())
    assert is_stable(around) == bool(np.linalg.eigvals(M).real.max() < 1)


# --- what is advised


PARTS = {"scale", "drive", "source", "bias", "upper", "f", "k", "exact", "start"}


@pytest.mark.parametrize("f", ("relu", "identity", "tanh"))
@pytest.mark.parametrize("ask", (influence, importance, stimulate, simulate, stability))
def test_what_is_advised_is_an_argument_of_what_was_asked(c, monkeypatch, ask, f):
    nothing = FixedPoint(max_steps=1)
    for module in ("influences", "importances", "exactly", "driving", "stabilities", "linear"):
        module = importlib.import_module(f"retrograde.connectome.{module}")
        if hasattr(module, "solvers_for"):
            monkeypatch.setattr(module, "solvers_for", lambda net: (nothing, nothing))
    monkeypatch.setattr(simulation, "steady_state", lambda *args: rg.steady_state(*args, solver=nothing))
    how = {"f": f, "scale": 0.5}
    questions = {
        influence: lambda: influence(c, "a", **how),
        importance: lambda: importance(c, "a", "b", **how),
        stimulate: lambda: stimulate(c, {"d": 0.1}, bias=1.0, **how),
        simulate: lambda: simulate(c, {"c": 1.0}, start="steady", bias=1.0, duration=3, **how),
        stability: lambda: stability(c, {"a": 1.0}, **how),
    }
    if ask is influence and f != "identity":
        how["drive"] = "c"
    with pytest.raises(ConvergenceError) as error:
        questions[ask]()
    facts, advice = str(error.value).rsplit(" Try ", 1)
    assert "throw" not in facts + advice and error.value.result is not None and "after at most" in facts
    named = PARTS & set(re.findall(r"\w+", advice.partition(", for")[0]))
    assert "scale" in named and named <= set(inspect.signature(ask).parameters)
    assert ("bounded f" in advice) == (f == "relu")


def test_a_command_advises_its_options(c, tmp_path):
    c.edges.to_csv(tmp_path / "edges.csv", index=False)
    words = ["simulate", str(tmp_path / "edges.csv"), "--source", "c", "--duration", "3", "--start", "steady"]
    told = CliRunner().invoke(app, [*words, "--f", "relu", "--scale", "1.5", "--bias", "1"], env={"COLUMNS": "400"})
    assert told.exit_code == 1 and "throw" not in told.stderr
    assert "Try a smaller scale, another bias, --start rest, or a bounded f" in told.stderr
