"""Neurons named by a cell type or another group, in the place of ids: the same as naming each of them."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from retrograde.cli.app import app
from retrograde.connectome import fit, importance, influence, read, simulate, stability, stimulate

N = 12


@pytest.fixture(scope="module", params=("text", "integers"))
def c(request):
    """Of three types and two sides; its ids are text, of which one has a colon, or integers."""
    return network(request.param)


def network(kind):
    rng = np.random.default_rng(3)
    M = rng.gamma(2.0, size=(N, N)) * (rng.random((N, N)) < 0.4)
    ids = np.array([f"n:{i:02}" for i in range(N)]) if kind == "text" else 720575940000000000 + np.arange(N)
    types = ["T4a", "T4b", "Mi1"] * (N // 3)
    neurons = pd.DataFrame({"root_id": ids, "type": types, "side": ["left", "right"] * (N // 2), "n": 1})
    edges = read(M, orientation="post_pre", ids=ids).edges[["pre", "post", "count"]]
    return read(edges, neurons)


def of(c, column, value):
    return c.ids[(c.neurons[column] == value).to_numpy()].tolist()


def test_a_group_is_its_neurons(c):
    a, left = of(c, "cell_type", "T4a"), of(c, "side", "left")
    assert len(a) == 4 and len(left) == 6
    assert c.ids[c.index("cell_type:T4a")].tolist() == c.ids[c.index("type:T4a")].tolist() == a
    both = c.index([c.ids[1], "cell_type:T4a", "side:left"])
    assert c.ids[both].tolist() == [c.ids[1], *a, *(each for each in left if each not in a)]
    assert c.index([c.ids[3], c.ids[0], c.ids[3]]).tolist() == [3, 0, 3]  # ids alone are not made one


def test_every_question_takes_groups(c):
    a, b, left = of(c, "cell_type", "T4a"), of(c, "cell_type", "T4b"), of(c, "side", "left")

    def same(found, want):
        pd.testing.assert_frame_equal(getattr(found, "neurons", found), getattr(want, "neurons", want))

    mean = {"cell_type:T4a": 0.25, "cell_type:T4b": -0.25}
    each = dict.fromkeys(a, 0.25) | dict.fromkeys(b, -0.25)
    same(influence(c, target="cell_type:T4a", scale=0.5), influence(c, target=a, scale=0.5))
    same(influence(c, {"x": "cell_type:T4a"}, b, scale=0.5), influence(c, {"x": a}, b, scale=0.5))
    same(
        influence(c, "side:left", f="tanh", drive={"type:Mi1": 0.3}, silence="type:T4b", scale=0.5),
        influence(c, left, f="tanh", drive=dict.fromkeys(of(c, "cell_type", "Mi1"), 0.3), silence=b, scale=0.5),
    )
    same(
        importance(c, {"side:left": 0.5}, mean, f="tanh", scale=0.5, silence=["cell_type:Mi1"]),
        importance(c, dict.fromkeys(left, 0.5), each, f="tanh", scale=0.5, silence=of(c, "cell_type", "Mi1")),
    )
    how = {"scale": 0.5, "bias": 0.01}
    same(
        stimulate(c, {"cell_type:T4a": 0.1}, allowed=["side:left"], **how),
        stimulate(c, dict.fromkeys(a, 0.1), allowed=left, **how),
    )
    same(
        stimulate(c, {("cell_type:T4a", 2): 0.1}, steps=3, bias={"side:left": 0.1}, upper=2, scale=0.5),
        stimulate(c, {(k, 2): 0.1 for k in a}, steps=3, bias=dict.fromkeys(left, 0.1), upper=2, scale=0.5),
    )
    pulses = pd.DataFrame({"neuron": ["cell_type:T4a"], "start": [0], "stop": [2], "strength": [0.4]})
    spelled = pd.DataFrame({"neuron": a, "start": 0, "stop": 2, "strength": 0.4})
    how = {"scale": 0.5, "duration": 4}
    same(
        simulate(c, pulses, tau={"side:left": 3.0}, record=[c.ids[0], "cell_type:T4a"], **how),
        simulate(c, spelled, tau=dict.fromkeys(left, 3.0), record=a, **how),
    )
    same(simulate(c, {"cell_type:T4a": 0.4}, **how), simulate(c, dict.fromkeys(a, 0.4), **how))
    same(stability(c, {"cell_type:T4a": 0.4}, silence="side:left"), stability(c, dict.fromkeys(a, 0.4), silence=left))
    recorded = pd.DataFrame({"neuron": c.ids, "activity": np.linspace(0.1, 0.3, N)})
    drives = {"cell_type:T4a": 0.4}, pd.DataFrame({"neuron": ["cell_type:T4a"], "strength": [0.4]})
    costs = [
        fit(c, recorded, drive, parameters="gain", scale=0.5, hold_out=0).attrs["cost"]
        for drive in (*drives, pd.DataFrame({"neuron": a, "strength": 0.4}))
    ]
    assert costs[0] == costs[1] == costs[2]


def test_reading_leaves_out_and_silences_groups():
    c = network("text")
    kept = read(c.edges, c.neurons, exclude="cell_type:T4a", silence="cell_type:T4b")
    left = read(c.edges, c.neurons, exclude=of(c, "cell_type", "T4a"), silence=of(c, "cell_type", "T4b"))
    assert set(kept.neurons["cell_type"]) == {"T4b", "Mi1"}
    pd.testing.assert_frame_equal(kept.edges, left.edges)


@pytest.mark.parametrize(
    ("given", "message"),
    (
        ("cell_type:T4A", "target: no neuron has the cell_type 'T4A'; did you mean T4a"),
        ("type:", "target: expected a cell_type behind the colon, such as cell_type:Mi1; got none"),
        ("T4a", "T4a.*; did you mean cell_type:T4a?"),
        ("typ:T4a", "typ:T4a.*; did you mean cell_type:T4a?"),
        ("colour:red", "colour:red.*; the neurons have the columns id, cell_type, side, n, transmitter"),
    ),
)
def test_who_is_not_there_is_told_with_the_nearest(c, given, message):
    with pytest.raises(ValueError, match=message):
        importance(c, c.ids[0], given)


@pytest.mark.parametrize("name", ("cell_type", "type", "kind"))
def test_a_column_goes_by_its_name_in_the_file_too(c, name):
    own = c.neurons.rename(columns={"cell_type": "kind"}) if name == "kind" else c.neurons
    some = read(c.edges, own, columns={"cell_type": "kind"} if name == "kind" else None)
    first, how = some.ids[0], {"scale": 0.5}
    assert some.index(f"{name}:T4a").tolist() == some.index("cell_type:T4a").tolist()
    pd.testing.assert_frame_equal(influence(some, by=name, **how), influence(some, by="cell_type", **how))
    means = simulate(some, {first: 1.0}, by=name, duration=3)
    pd.testing.assert_frame_equal(means, simulate(some, {first: 1.0}, by="cell_type", duration=3))
    for found in importance(some, first, first, **how), stability(some, **how):
        pd.testing.assert_frame_equal(found.by(name), found.by("cell_type"))
    recorded = pd.DataFrame({"neuron": some.ids, "activity": 0.1})
    fits = [
        fit(some, recorded, {first: 0.4}, parameters="gain", tie=tie, hold_out=0, **how) for tie in (name, "cell_type")
    ]
    pd.testing.assert_frame_equal(fits[0].parameters, fits[1].parameters)


def test_a_column_that_is_none_is_told_with_the_nearest(c):
    first = c.ids[0]
    message = ": expected a column of the neurons, id, .*, transmitter; got 'typ'; did you mean type, cell_type"
    for what, ask in {
        "by": lambda: influence(c, by="typ"),
        "tie": lambda: fit(c, pd.DataFrame({"neuron": [first], "activity": [0.1]}), tie="typ"),
        "tau": lambda: simulate(c, {first: 1.0}, tau="typ", duration=3),
        "column": lambda: importance(c, first, first, scale=0.5).by("typ"),
    }.items():
        with pytest.raises(ValueError, match=what + message):
            ask()


def test_a_neuron_named_twice_with_different_numbers_is_refused(c):
    first = of(c, "cell_type", "T4a")[0]
    with pytest.raises(ValueError, match=f"source: {first} is named twice, with different numbers"):
        importance(c, {"cell_type:T4a": 0.5, first: 1.0}, c.ids[1])
    same = importance(c, {"cell_type:T4a": 0.5, first: 0.5}, c.ids[1], scale=0.5).reward
    assert same == importance(c, {"cell_type:T4a": 0.5}, c.ids[1], scale=0.5).reward
    with pytest.raises(ValueError, match=f"target: {first} is there more than once at one time, with"):
        stimulate(c, {"cell_type:T4a": 0.1, first: 0.2})
    how = {"allowed": "side:left", "scale": 0.5}
    pd.testing.assert_frame_equal(
        stimulate(c, {"cell_type:T4a": 0.1, first: 0.1}, **how), stimulate(c, {"cell_type:T4a": 0.1}, **how)
    )


def test_the_command_line_takes_groups(tmp_path):
    c = network("integers")
    c.edges.to_csv(tmp_path / "edges.csv", index=False)
    c.neurons.to_csv(tmp_path / "neurons.csv", index=False)

    def said(command, *words):
        files = tmp_path / "edges.csv", "--neurons", tmp_path / "neurons.csv", "--out", tmp_path / "out.csv"
        told = CliRunner().invoke(app, [command, *map(str, files), *map(str, words)])
        assert told.exit_code == 0, told.output
        return pd.read_csv(tmp_path / "out.csv")

    found = said("importance", "--source", "side:left", "--target", "type:T4a=0.5", "type:T4b=-1", "--scale", 0.5)
    want = importance(c, "side:left", {"cell_type:T4a": 0.5, "cell_type:T4b": -1}, scale=0.5).neurons
    np.testing.assert_allclose(found["sensitivity"], want["sensitivity"], rtol=1e-12)
    found = said("stimulate", "--target", "type:T4a@2=0.1", "--steps", 2, "--allowed", "side:left")
    wanted = found.set_index("id")["wanted"].dropna()
    assert sorted(wanted.index) == of(c, "cell_type", "T4a") and (wanted == 0.1).all()


def test_a_mapping_drives_a_neuron_that_it_names_twice_once(c):
    first = of(c, "cell_type", "T4a")[0]
    how = {"scale": 0.5, "duration": 3}
    once = simulate(c, {"cell_type:T4a": 0.5}, **how)
    pd.testing.assert_frame_equal(simulate(c, {"cell_type:T4a": 0.5, first: 0.5}, **how), once)
    with pytest.raises(ValueError, match=f"stimulus, strength: {first} is named twice, with different numbers"):
        simulate(c, {"cell_type:T4a": 0.5, first: 1.0}, **how)


def test_whole_numbers_of_a_column_with_gaps_are_named_as_whole_numbers(c):
    neurons = c.neurons.assign(cluster=[np.nan, *([1, 2, 3] * N)[: N - 1]])
    some = read(c.edges, neurons)
    assert some.ids[some.index("cluster:3")].tolist() == c.ids[[3, 6, 9]].tolist()
    assert influence(some, by="cluster", scale=0.5).columns.tolist() == ["1", "2", "3"]
    recorded = pd.DataFrame({"neuron": c.ids, "activity": np.linspace(0.1, 0.3, N)})
    fitted = fit(some, recorded, {c.ids[0]: 0.4}, parameters="gain", tie="cluster", scale=0.5, hold_out=0)
    assert fitted.parameters["group"].tolist() == ["1", "2", "3"]
    halves = read(c.edges, c.neurons.assign(depth=[np.nan, *([0.5, 1.0] * N)[: N - 1]]))
    assert len(halves.index("depth:0.5")) == 6 and len(halves.index("depth:1.0")) == 5
