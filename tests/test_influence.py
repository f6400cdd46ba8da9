"""Influence around a steady state, by groups and over scales; importance by group, by neuropil, and its progress."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from typer.testing import CliRunner

import retrograde as rg
from retrograde.blocks import blocks_of
from retrograde.cli.app import app
from retrograde.connectome import eigenvalues, exactly, importance, influence, influences, memory, read
from retrograde.connectome.paths import reached
from retrograde.kernels.choice import is_large
from retrograde.report import paths


def network(n=20, seed=0, signed=True):
    rng = np.random.default_rng(seed)
    M = rng.gamma(2.0, size=(n, n)) * (rng.random((n, n)) < 0.3)
    if signed:
        M = M * np.where(np.arange(n) % 3 == 1, -1, 1)
    names = np.array([f"n{i:02}" for i in range(n)])
    neurons = pd.DataFrame({"id": names, "cell_type": ["", *(f"t{i % 3}" for i in range(1, n))]})
    edges = read(M, orientation="post_pre", ids=names).edges[["pre", "post", "weight"]]
    return read(edges, neurons, weights="weight")


def in_order(table, c, column="influence"):
    return table.set_index("id").loc[list(c.ids), column].to_numpy()


def steady(c, alpha, b, f=np.tanh):
    M = alpha * c.W.dense().detach().numpy()
    x = np.zeros(len(c))
    for _ in range(3000):
        x = x + 0.5 * (f(M @ x + b) - x)
    return M, x


@pytest.mark.parametrize(
    ("name", "f", "slope", "scale"),
    [
        ("tanh", np.tanh, lambda x: 1 - x**2, 1.2),
        ("sigmoid", lambda u: 1 / (1 + np.exp(-u)), lambda x: x * (1 - x), 3.0),
        ("softplus", lambda u: np.logaddexp(0, u), lambda x: 1 - np.exp(-x), 0.7),
    ],
    ids=("tanh", "sigmoid", "softplus"),
)
def test_nonlinear_influence_is_the_response_to_a_small_input(name, f, slope, scale):
    c = network()
    b = np.zeros(len(c))
    b[[2, 5]] = 1.5, -0.7
    drive = {"n02": 1.5, "n05": -0.7}
    how = {"scale": scale, "f": name, "drive": drive}
    found = influence(c, source=["n03", "n04"], **how)
    more = np.zeros(len(c))
    more[[3, 4]] = 1e-5
    alpha = found.attrs["alpha"]
    differences = (steady(c, alpha, b + more, f)[1] - steady(c, alpha, b - more, f)[1]) / 2e-5
    assert np.allclose(in_order(found, c), differences, rtol=0, atol=1e-8)
    M, x = steady(c, alpha, b, f)
    DW = slope(x)[:, None] * M
    assert np.isclose(found.attrs["margin"], 1 - np.linalg.eigvals(DW).real.max())
    G = np.linalg.inv(np.eye(len(c)) - DW) * slope(x)  # dx_i / db_j
    on = influence(c, target=["n07"], **how)
    assert np.allclose(in_order(on, c), G[7], rtol=0, atol=1e-10)
    both = influence(c, {"a": ["n03"], "b": ["n04"]}, {"c": ["n07"]}, **how)
    assert np.allclose(both["c"], [G[7, 3], G[7, 4]], rtol=0, atol=1e-10)


def test_the_calculators_normalised_scores_are_those_of_its_formulas():
    """By hand: ln(|x| / n) + 24 and ln(|x| / (sources n)) + 24 with the sign of x, and 0 from e⁻²⁴ down."""
    c = network()
    sources = ["n03", "n04", "n05"]
    found = influence(c, source=sources, scale=0.5, preset="cic-2026")
    assert (found["influence"] < 0).any()
    for column, share in (("targets", 20), ("sources_and_targets", 60)):
        want = [
            np.sign(x) * (np.log(abs(x) / share) + 24) if abs(x) / share > np.exp(-24) else 0
            for x in found["influence"]
        ]
        assert np.allclose(found[f"adjusted_norm_by_{column}"], want, rtol=1e-14)
    # Its own example: three neurons of scores 1, 0.5 and 0.1.
    chain = pd.DataFrame({"pre": ["A", "A", "C"], "post": ["B", "C", "C"], "weight": [0.5, 0.1, 1e-9]})
    table = influence(read(chain, weights="weight"), source="A", scale=1e-9, preset="cic-2026").set_index("id")
    assert np.isclose(table.loc["A", "adjusted_norm_by_targets"], np.log(1 / 3) + 24)
    for other in (
        influence(c, target=sources, preset="cic-2026"),
        influence(c, source=sources, preset="banc-paper"),
        influence(c, source=sources, scale=[0.2, 0.5], preset="cic-2026"),
    ):
        assert not any("norm_by" in name for name in other)


def test_at_rest_a_tanh_network_is_the_linear_one():
    c = network()
    linear, tanh = influence(c, "n03", scale=0.8), influence(c, "n03", scale=0.8, f="tanh")
    assert np.allclose(in_order(linear, c), in_order(tanh, c), rtol=0, atol=1e-12)
    assert np.isclose(tanh.attrs["margin"], 0.2)


def test_a_relu_that_is_off_passes_nothing_on():
    chain = pd.DataFrame({"pre": ["a", "b", "c"], "post": ["b", "c", "c"], "count": [2, 2, 1]})
    c = read(chain)
    on = influence(c, "a", scale=0.5, f="relu", drive={"a": 1.0})
    assert (in_order(on, c) > 0).all() and "note" not in on.attrs
    off = influence(c, "a", scale=0.5, f="relu", drive={"a": 1.0, "b": -9.0})
    assert list(in_order(off, c)) == [1.0, 0.0, 0.0] and "note" in off.attrs
    back = influence(c, target="c", scale=0.5, f="relu", drive={"a": 1.0, "b": -9.0, "c": 1.0})
    assert list(in_order(back, c)) == [0.0, 0.0, 2.0] and "note" in back.attrs


def test_a_sweep_has_a_column_for_each_scale_and_the_ranks_between_which_neurons_move():
    c = network()
    scales = [0.2, 0.9, 0.5]
    found = influence(c, source="n03", scale=scales)
    single = {each: in_order(influence(c, source="n03", scale=each), c) for each in scales}
    ranks = []
    for each in scales:
        assert np.allclose(in_order(found, c, f"{each:g}"), single[each], rtol=0, atol=1e-12)
        ranks.append([1 + (np.abs(single[each]) > size).sum() for size in np.abs(single[each])])
    assert (in_order(found, c, "best") == np.min(ranks, 0)).all()
    assert (in_order(found, c, "worst") == np.max(ranks, 0)).all()
    assert found.loc[found["is_source"], "best"].item() == 1
    on = influence(c, target="n03", scale=[0.3, 1.4], f="tanh", drive={"n02": 2.0})
    assert np.allclose(
        in_order(on, c, "1.4"), in_order(influence(c, target="n03", scale=1.4, f="tanh", drive={"n02": 2.0}), c)
    )
    small = read(c.edges.assign(weight=0.01 * c.edges["weight"]), weights="weight")
    old = influence(small, "n03", scale=[0.001, 0.5], preset="banc-paper")
    assert np.allclose(in_order(old, c, "0.5"), in_order(influence(small, "n03", scale=0.5, preset="banc-paper"), c))


def test_groups_by_a_column_of_the_neurons():
    c = network()
    G = np.linalg.inv(np.eye(20) - 0.6 / np.linalg.eigvals(c.W.dense().detach().numpy()).real.max() * dense(c))
    of = {t: (c.neurons["cell_type"] == t).to_numpy() for t in ("t0", "t1", "t2")}
    table = influence(c, scale=0.6, by="cell_type")
    assert list(table.index) == list(table.columns) == ["t0", "t1", "t2"]
    for a in of:
        for b in of:
            assert np.isclose(table.loc[a, b], G[of[b]][:, of[a]].sum())
    some = influence(c, source=["t0"], target="t2", scale=0.6, by="cell_type")
    assert some.shape == (1, 1) and np.isclose(some.loc["t0", "t2"], table.loc["t0", "t2"])
    columns = influence(c, target=["t1"], scale=0.6, by="cell_type")
    assert np.allclose(in_order(columns, c, "t1"), G[of["t1"]].sum(0))


def dense(c):
    return c.W.dense().detach().numpy()


def test_a_source_that_reaches_no_target_gives_exact_zeros_and_a_note():
    c = read(pd.DataFrame({"pre": ["a", "b", "c"], "post": ["a", "c", "b"], "count": [2, 1, 2]}))
    found = influence(c, source=["a"], target=["b"], scale=0.5)
    assert (found["influence"] == 0).all() and found.attrs["note"].startswith("no path leads there")
    assert "note" in influence(c, source=["a"], scale=0.5).attrs
    assert "note" not in influence(c, source=["b"], scale=0.5).attrs
    assert "note" not in influence(c, source=["b"], target=["b"], scale=0.5).attrs


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"source": "n00", "f": "tanh", "scale": 3.0}, "drive: the steady state is unstable"),
        ({"source": "n00", "drive": ["n01"]}, "drive: expected None"),
        ({"source": "n00", "f": "tanh", "preset": "cic-2026"}, "preset: expected None"),
        ({"source": "n00", "scale": [0.5, 1.0]}, "scale: expected 0 < scale < 1"),
        ({"source": "n00", "scale": []}, "scale: expected at least one"),
        ({"source": "n00", "scale": None}, "scale: the linear network is unstable, for the largest real part"),
        ({"source": "n00", "scale": [0.5, None], "f": "tanh"}, "scale: expected numbers in a sweep"),
        ({"source": "n00", "scale": [0.5, 0.6, 0.5]}, "scale: expected different ones in a sweep, got 0.5 twice"),
        ({"source": {"id": "n00"}}, "source: expected a group's name that no other column has, got 'id'"),
        ({"target": {"a": "n00", "is_target": "n01"}}, "target: expected a group's name .* got 'is_target'"),
        ({"source": {"cell_type": "n00"}}, "source: expected a group's name .* got 'cell_type'"),
        ({"source": {"a": "n00"}, "target": {"source": "n01"}}, "target: expected a group's name .* got 'source'"),
        ({"source": {"a": "n00", "b": "n01"}, "scale": [0.5, 0.6]}, "scale: expected one, where there are several"),
        ({"source": "t9", "by": "cell_type"}, "source: no neuron has the cell_type 't9'; did you mean t"),
        ({"source": "t0", "by": "colour"}, "by: expected a column of the neurons"),
        ({"source": "n00", "f": "sine"}, "sine"),
    ],
)
def test_bad_questions_are_said(how, said):
    with pytest.raises(ValueError, match=said):
        influence(network(), **how)


def test_importance_sums_what_is_exact_over_groups_whose_neurons_are_all_known():
    c = network(signed=False)
    found = importance(c, ["n02", "n03"], "n07", scale=0.5, exact=len(c))
    rows = found.neurons.groupby("cell_type")
    table = found.by("cell_type").set_index("cell_type")
    for name in ("silencing", "flipping", "silencing_exact", "flipping_exact"):
        assert np.allclose(table[name], rows[name].sum().loc[table.index], equal_nan=True)
    assert list(table["neurons"]) == list(rows.size().loc[table.index])
    some = importance(c, ["n02", "n03"], "n07", scale=0.5, exact=2).by("cell_type")
    assert some["silencing_exact"].isna().any() and some["silencing"].notna().all()


def test_importance_by_neuropil_divides_each_connection_by_its_counts(tmp_path):
    rows = pd.DataFrame(
        {
            "pre": ["a", "a", "b", "b", "c", "b"],
            "post": ["b", "b", "a", "c", "b", "z"],
            "syn_count": [3, 1, 4, 2, 2, 1],
            "neuropil": ["LO", "ME", "ME", "LO", None, "LO"],
        }
    )
    c = read(rows, exclude=["z"])
    found = importance(c, "a", "c", scale=0.5)
    carried = found.synapses().set_index(["pre", "post"])["importance"]
    table = found.by_neuropil(rows).set_index("neuropil")
    assert np.isclose(table.loc["LO", "importance"], 0.75 * carried["a", "b"] + carried["b", "c"])
    assert np.isclose(table.loc["ME", "importance"], 0.25 * carried["a", "b"] + carried["b", "a"])
    assert np.isclose(table.loc["", "importance"], carried["c", "b"]) and table.loc["LO", "count"] == 5
    assert np.isclose(table["importance"].sum(), carried.sum())
    with pytest.raises(ValueError, match="neuropil not found among pre, post, syn_count"):
        found.by_neuropil(rows.drop(columns="neuropil"))
    with pytest.raises(ValueError, match=r"by: expected a column of the neurons, .* got 'colour'"):
        found.by_neuropil(tmp_path / "not there", by="colour")  # said before anything is read
    named = found.by_neuropil(rows.rename(columns={"neuropil": "where"}), {"neuropil": "where"})
    assert (named["importance"] == found.by_neuropil(rows)["importance"]).all()


def test_neuropils_are_of_the_same_neurons_however_ids_and_neuropils_are_written(monkeypatch):
    rows = pd.DataFrame(
        {"pre": [1, 1, 2, 2], "post": [2, 2, 1, 3], "syn_count": [3, 1, 4, 2], "neuropil": [7, 8, 8, 7]}
    )
    found = importance(read(rows), 1, 3, scale=0.5)
    want = found.by_neuropil(rows)
    assert want["neuropil"].tolist() == ["7", "8"] and want["count"].tolist() == [5, 5]
    as_text = rows.astype({"pre": str, "post": str, "neuropil": "category"})
    pd.testing.assert_frame_equal(found.by_neuropil(as_text), want)
    shuffled = rows.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(found.by_neuropil(shuffled), want)
    monkeypatch.setattr(memory, "available", lambda: 100.0)
    with pytest.raises(ValueError, match="about 4 rows, to read which takes"):
        found.by_neuropil(rows)


@pytest.mark.parametrize("f", ("identity", "tanh"))
def test_progress_is_told_of_exact_effects(f):
    seen = []
    importance(network(), "n02", "n07", scale=0.5, f=f, exact=5, progress=lambda *now: seen.append(now))
    assert seen[-1] == (10, 10) and [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("f", ("identity", "tanh"))
def test_the_solves_of_exact_effects_leave_their_largest_residual(f, monkeypatch):
    states = []

    def remembered(*args, **how):
        states.append(rg.steady_state(*args, **how))
        return states[-1]

    monkeypatch.setattr(exactly, "steady_state", remembered)
    found = importance(network(), "n02", "n07", scale=0.5, f=f, exact=3)
    assert len(states) == (2 if f == "identity" else 6) and found.attrs["not_exact"] == 0
    assert found.attrs["exact_residual"] == max(float(each.residual.max()) for each in states)
    assert found.attrs["exact_residual"] > 0 or f == "identity"


def test_a_turned_transmitter_against_a_network_that_has_it():
    c = network()
    found = importance(c, "n02", "n07", scale=0.7, f="tanh", exact=4)
    alpha = found.attrs["alpha"]
    b = np.eye(20)[2]
    for row in found.neurons.head(4).itertuples():
        M, x = steady(c, alpha, b)
        M[:, c.index(row.id)[0]] *= -1
        turned = rg.steady_state(torch.from_numpy(M), torch.from_numpy(b), "tanh").x.numpy()
        assert np.isclose(row.flipping_exact, turned[7] - x[7], rtol=0, atol=1e-9)


def test_the_commands_sweep_linearise_and_sum_over_neuropils(tmp_path):
    c = rg.connectome.example("worm")

    def run(*said):
        out = tmp_path / "out.csv"
        done = CliRunner().invoke(app, [*said, "--out", str(out)])
        assert done.exit_code == 0, done.output
        return pd.read_csv(out), done.output

    found, _ = run("influence", "--example", "worm", "--source", "ADAL", "--scale", "0.3", "0.9", "--figure",
                   str(tmp_path / "sweep.png"))  # fmt: skip
    assert np.allclose(found["0.9"], influence(c, "ADAL", scale=[0.3, 0.9])["0.9"])
    found, _ = run("influence", "--example", "worm", "--target", "AVAL", "--f", "tanh", "--drive", "ADAR=2", "ADAL")
    exact = influence(c, target="AVAL", f="tanh", drive={"ADAR": 2, "ADAL": 1})
    assert np.allclose(found["influence"], exact["influence"])
    rows = pd.DataFrame({"pre": list("aabc"), "post": list("bbab"), "count": [3, 1, 4, 2], "roi": ["LO", *["ME"] * 3]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    table, _ = run("importance", str(tmp_path / "rows.csv"), "--source", "c", "--target", "a", "--by", "neuropil",
                   "--report", str(tmp_path / "page.html"))  # fmt: skip
    assert set(table["neuropil"]) == {"LO", "ME"}
    _, said = run("influence", str(tmp_path / "rows.csv"), "--source", "a", "--target", "c", "--scale", "0.5")
    assert "No path leads there: every influence is exactly 0." in said


def test_the_page_of_sources_and_targets_draws_the_paths_between_them(tmp_path, monkeypatch):
    drawn = []
    original = paths.strongest_paths
    monkeypatch.setattr(paths, "strongest_paths", lambda *given: drawn.append(given) or original(*given))
    said = ["influence", "--example", "worm", "--source", "ADAL", "ADAR", "--target", "AVAL", "--scale", "0.6"]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, [*said, "--silence", "ADAR", "AVBL", "--report", str(page)])
    assert done.exit_code == 0, done.output
    assert "From the sources to the targets." in page.read_text(encoding="utf-8")
    ((edges, column, sources, targets),) = drawn
    assert (list(sources), list(targets)) == (["ADAL", "ADAR"], ["AVAL"])
    c = rg.connectome.example("worm")
    M = 0.6 / np.linalg.eigvals(dense(c)).real.max() * dense(c)
    M[:, c.index("AVBL")] = 0  # the sources are exempt
    inverse = np.linalg.inv(np.eye(len(c)) - M)
    x, s = inverse[:, c.index(["ADAL", "ADAR"])].sum(1), inverse[c.index("AVAL")[0]]
    post, pre = (end.numpy() for end in c.W.edges)
    assert np.allclose(edges[column], s[post] * M[post, pre] * x[pre], rtol=0, atol=1e-12)


@pytest.mark.parametrize("end", ("--source", "--target"))
def test_no_path_of_the_page_leads_through_silenced_neurons(tmp_path, monkeypatch, end):
    drawn = []
    original = paths.strongest_paths
    monkeypatch.setattr(paths, "strongest_paths", lambda *given: drawn.append(given) or original(*given))
    page = str(tmp_path / "page.html")
    done = CliRunner().invoke(
        app, ["influence", "--example", "worm", end, "AVAL", "--silence", "AVBL", "--report", page]
    )
    assert done.exit_code == 0, done.output
    ((edges, column, *_),) = drawn
    assert (edges.loc[edges["pre"] == "AVBL", column] == 0).all() and (edges[column] > 0).any()


def test_silenced_synapses_carry_nothing(tmp_path):
    c = network()
    found = importance(c, ["n02", "n03"], "n07", scale=0.5, silence=["n03", "n05"])
    synapses = found.synapses()
    cut = synapses["pre"].isin(["n03", "n05"])
    assert cut.any() and (synapses.loc[cut, "importance"] == 0).all()
    kept = synapses[~cut]
    assert np.allclose(kept["importance"], kept["gradient"] * found.attrs["alpha"] * kept["weight"])
    found.write_synapses(tmp_path / "all.parquet")
    written = pd.read_parquet(tmp_path / "all.parquet")
    assert (written.loc[written["pre"].isin(["n03", "n05"]), "importance"] == 0).all()
    rows = c.edges.assign(count=1, neuropil=np.where(c.edges["pre"] == "n05", "A", "B"))
    assert found.by_neuropil(rows).set_index("neuropil").loc["A", "magnitude"] == 0


def test_scales_that_are_almost_equal_have_a_column_each():
    found = influence(network(), "n03", scale=[0.9, 0.9000001])
    assert {"0.9", "0.9000001"} < set(found) and (found["0.9"] != found["0.9000001"]).any()


@pytest.mark.parametrize("scales", ([0.3, 1.4], [1.4, 0.3]))
def test_a_sweep_tells_the_least_margin_and_the_largest_residual(scales, monkeypatch):
    how = {"source": "n03", "f": "tanh", "drive": {"n02": 2.0}}
    single = [influence(network(), scale=each, **how).attrs for each in scales]
    residuals = iter([3e-9, 1e-9] if scales[0] == 0.3 else [1e-9, 3e-9])
    states = influences.states
    monkeypatch.setattr(
        influences, "states", lambda *given: (states(*given)[0], {**states(*given)[1], "residual": next(residuals)})
    )
    found = influence(network(), scale=scales, **how).attrs
    assert np.isclose(found["margin"], min(each["margin"] for each in single), rtol=0, atol=1e-9)
    assert found["residual"] == 3e-9 and found["scale"] == 1.4
    assert found["alpha"] == max(each["alpha"] for each in single)


CHAIN = pd.DataFrame({"pre": ["a", "b", "a"], "post": ["b", "c", "c"], "count": [2, 3, 4]})


def test_a_network_without_cycles_is_taken_as_it_is(tmp_path):
    c = read(CHAIN)
    with pytest.raises(ValueError, match="scale=None takes W as it is"):
        influence(c, "a")
    assert list(in_order(influence(c, "a", scale=None), c)) == pytest.approx([1, 2, 10], rel=1e-14)
    assert list(in_order(influence(c, target="c", scale=None), c)) == pytest.approx([10, 3, 1], rel=1e-14)
    CHAIN.to_csv(tmp_path / "chain.csv", index=False)
    out = tmp_path / "out.csv"
    said = ["influence", str(tmp_path / "chain.csv"), "--source", "a", "--scale", "none", "--out", str(out)]
    done = CliRunner().invoke(app, said)
    assert done.exit_code == 0, done.output
    assert list(in_order(pd.read_csv(out), c)) == pytest.approx([1, 2, 10], rel=1e-14)


@pytest.mark.parametrize(
    "said",
    [
        ["importance", "--source", "a", "--target", "c"],
        ["stability"],
        ["stimulate", "--target", "c=0.5", "--allowed", "a", "--f", "tanh"],
        ["simulate", "--source", "a", "--duration", "20"],
    ],
    ids=lambda said: said[0],
)
def test_every_command_takes_w_as_it_is_with_scale_none(tmp_path, said):
    CHAIN.to_csv(tmp_path / "chain.csv", index=False)
    said = [said[0], str(tmp_path / "chain.csv"), *said[1:]]
    done = CliRunner().invoke(app, [*said, "--scale", "none"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*said, "--scale", "nothing"])
    assert done.exit_code == 2 and "expected a number or none" in done.output


def test_the_eigenvalue_is_computed_once_for_the_same_weights(monkeypatch):
    computed = []
    largest = eigenvalues.largest_real_eigenvalue
    monkeypatch.setattr(eigenvalues, "largest_real_eigenvalue", lambda W: computed.append(1) or largest(W))
    c = network(signed=False)
    first = influence(c, "n03", scale=0.5, preset="cic-2026")
    for scale in (0.5, 0.7):
        influence(c, target="n04", scale=scale)
    assert len(computed) == 1
    cut = influence(c, "n03", scale=0.5, silence=["n04"], preset="cic-2026").attrs["eigenvalue"]
    assert len(computed) == 2 and cut < first.attrs["eigenvalue"]
    with torch.no_grad():
        c.W.weight.mul_(2)  # other weights, another eigenvalue
    again = influence(c, "n03", scale=0.5, preset="cic-2026")
    assert np.isclose(again.attrs["eigenvalue"], 2 * first.attrs["eigenvalue"]) and len(computed) == 3
    assert np.allclose(in_order(again, c), in_order(first, c))


@pytest.mark.parametrize("f", ("identity", "tanh"))
@pytest.mark.parametrize("way", ("plain", "by levels", "by acceleration"))
@pytest.mark.parametrize("what", ("source", "target"))
def test_products_leave_exact_zeros_where_no_path_leads(what, way, f):
    n, rng = 2700, np.random.default_rng(0)
    post = np.repeat(np.arange(n), 270 if way == "by acceleration" else 3)
    third = post // 900  # each third of the neurons is a network by itself, and also sends to the next
    pre = rng.integers(0, 900, len(post))
    if way == "by levels":
        pre = np.where(rng.random(len(post)) < 0.97, pre * (post % 900) // 900, pre)
    pre += 900 * np.where(rng.random(len(post)) < 0.1, np.maximum(third - 1, 0), third)
    table = pd.DataFrame({"pre": pre, "post": post, "weight": rng.normal(size=len(post))})
    c = read(table.drop_duplicates(["pre", "post"]), weights="weight", silence=[1400, 1500])
    W = c.W.bind()
    assert is_large(W) == (way == "by acceleration") and (blocks_of(W) is not None) == (way == "by levels")
    drive = None if f == "identity" else [100, 1000, 2000]
    x = in_order(influence(c, **{what: [int(c.ids[np.searchsorted(c.ids, 1300)])]}, scale=0.9, f=f, drive=drive), c)
    without, there = (c.ids < 900, c.ids >= 900) if what == "source" else (c.ids >= 1800, c.ids < 1800)
    assert (x[without] == 0).all() and not np.signbit(x[without]).any()
    assert np.mean(x[there] != 0) > (0.02 if way == "by levels" else 0.9)


@pytest.mark.parametrize("backwards", (False, True))
def test_what_is_reached_from_several_groups_is_what_powers_of_w_reach(backwards):
    rng = np.random.default_rng(3)
    M = (rng.random((30, 30)) < 0.04) * 1.0
    driven = (rng.random((4, 30)) < 0.05) * 1.0
    driven[3] = 0
    W = rg.Sparse(scipy.sparse.csr_array(M)).bind()
    after = np.linalg.matrix_power(np.eye(30) + (M.T if backwards else M), 30) > 0
    want = (driven @ after.T) > 0
    assert (reached(W, torch.from_numpy(driven), backwards) == want).all() and 0 < want.sum() < want[:3].size
