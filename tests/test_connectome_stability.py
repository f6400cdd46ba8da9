"""How near a connectome is to instability, against full decompositions and against synapses that are changed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from typer.testing import CliRunner

import retrograde as rg
from retrograde.cli.app import app
from retrograde.connectome import importance, read, stability
from retrograde.connectome import stabilities as module

DATA = Path(__file__).parents[2] / "shared" / "data"
FLY = DATA / "fly_visual_edges.parquet", DATA / "fly_visual_neurons.parquet"


def network(n=40, seed=0, inhibitory=0.3):
    """A random signed network, not symmetric, with a chain that lies on no loop."""
    rng = np.random.default_rng(seed)
    M = rng.gamma(2.0, size=(n, n)) * (rng.random((n, n)) < 0.3) * np.where(rng.random(n) < inhibitory, -1, 1)
    M[-3:], M[:, -3:] = 0, 0
    M[-3, 0], M[-2, -3], M[-1, -2] = 40, 40, 40
    names = np.array([f"n{i:02}" for i in range(n)])
    neurons = pd.DataFrame({"id": names, "cell_type": [f"t{i % 4}" for i in range(n)]})
    c = read(M, orientation="post_pre", ids=names)
    return read(c.edges[["pre", "post", "weight"]], neurons, weights="weight")


def dense(c, alpha, x=None):
    """αW; DW where x = tanh(αWx + b)."""
    M = alpha * c.W.dense().detach().numpy()
    return M if x is None else (1 - x**2)[:, None] * M


def margins(M):
    values = np.linalg.eigvals(M)
    return 1 - values.real.max(), 1 - np.abs(values).max()


def in_order(found, c, column):
    return found.neurons.set_index("id").loc[list(c.ids), column].to_numpy()


@pytest.mark.parametrize("drive", (None, {"n00": 2.0, "n05": -1.0}))
def test_margins_eigenvalues_and_modes_against_a_full_decomposition(drive):
    c = network()
    found = stability(c, drive, scale=1.3 if drive else 0.9, k=5)
    x = in_order(found, c, "activity")
    M = dense(c, found.attrs["alpha"], x)
    assert (x != 0).any() == (drive is not None)
    assert np.allclose([found.margin_continuous, found.margin_discrete], margins(M), rtol=0, atol=1e-10)
    values, V = np.linalg.eig(M)
    order = np.argsort(-values.real)
    assert np.allclose(found.eigenvalues["real"], values.real[order[:5]], atol=1e-10)
    assert (found.eigenvalues["error"] < 1e-9).all()
    loops = np.arange(len(c)) < 37  # the mode is told on its strongly connected component
    v = np.abs(V[loops, order[0]])
    assert np.allclose(in_order(found, c, "amplitude")[loops], v / np.linalg.norm(v), atol=1e-8)
    w = np.abs(np.linalg.eig(M.T)[1][:, np.argsort(-np.linalg.eigvals(M.T).real)[0]])[loops]
    assert np.allclose(in_order(found, c, "reception")[loops], w / np.linalg.norm(w), atol=1e-8)
    assert (in_order(found, c, "amplitude")[~loops] == 0).all() and np.abs(V[~loops, order[0]]).max() > 1e-6
    assert np.isclose(found.by("cell_type")["part"].sum(), 1)


@pytest.mark.parametrize("time", ("continuous", "discrete"))
def test_a_synapse_moves_the_margin_as_its_change_does(time):
    c = network(seed=3)
    drive = {"n00": 1.5, "n01": -0.8, "n07": 1.0}
    found = stability(c, drive, scale=1.1, time=time)
    synapses = found.synapses()
    assert (synapses["removal"].abs().diff().dropna() <= 0).all() and len(synapses) == len(c.edges)
    assert list(synapses.columns[-2:]) == ["pre_type", "post_type"]
    M = dense(c, found.attrs["alpha"])
    b = np.zeros(len(c))
    b[[0, 1, 7]] = 1.5, -0.8, 1.0

    def margin(M):
        x = rg.steady_state(torch.from_numpy(M), torch.from_numpy(b), "tanh").x.numpy()
        return margins((1 - x**2)[:, None] * M)[time == "discrete"]

    for row in [*synapses.head(4).itertuples(), *synapses.iloc[100:103].itertuples()]:
        i, j = c.index(row.post)[0], c.index(row.pre)[0]
        moved, h = [], 1e-5
        for sign in (1, -1):
            changed = M.copy()
            changed[i, j] += sign * h
            moved.append(margin(changed))
        assert np.isclose((moved[0] - moved[1]) / (2 * h), row.gradient, rtol=1e-4, atol=1e-6)
        assert np.isclose(row.removal, -row.gradient * M[i, j])


def test_at_rest_it_is_the_formula_of_the_eigenvectors():
    c = network(seed=5)
    found = stability(c, scale=0.8, time="discrete")
    values, V = np.linalg.eig(dense(c, found.attrs["alpha"])[:37, :37])  # without the chain
    k = np.abs(values).argmax()
    w = np.linalg.inv(V)[k]  # wᵀv = 1
    for row in found.synapses(20).itertuples():
        i, j = c.index(row.post)[0], c.index(row.pre)[0]
        assert max(i, j) < 37
        exact = -(np.conj(values[k]) * w[i] * V[j, k]).real / np.abs(values[k])
        assert np.isclose(row.gradient, exact, rtol=1e-8, atol=1e-12)


def test_a_synapse_that_is_silenced_moves_no_margin():
    c = network()
    table = stability(c, {"n00": 2.0}, scale=0.9, silence=["n01", "n04"]).synapses()
    cut = table["pre"].isin(["n01", "n04"])
    assert cut.any() and (table.loc[cut, "removal"] == 0).all() and (table.loc[~cut, "removal"] != 0).any()


def test_an_exact_effect_may_be_finite_where_silencing_makes_the_network_unstable():
    M = 2 * np.random.default_rng(0).normal(size=(6, 6))
    c = read(M, orientation="post_pre", ids=list("abcdef"))
    effects = importance(c, "a", "b", scale=0.9, exact=6).neurons.set_index("id")["silencing_exact"]
    assert np.isfinite(effects["a"])
    assert stability(c, scale=0.9).stable_continuous and not stability(c, scale=0.9, silence="a").stable_continuous


def test_large_networks_by_products_alone_are_as_small_ones(monkeypatch):
    c = network(80, seed=7)
    small = stability(c, {"n00": 1.0}, scale=1.2)
    monkeypatch.setattr(module, "SMALL", 10)
    heard = []
    large = stability(c, {"n00": 1.0}, scale=1.2, progress=heard.append)
    assert heard == list(range(1, len(heard) + 1)) and len(heard) > 100
    for name in ("margin_continuous", "margin_discrete"):
        assert np.isclose(getattr(small, name), getattr(large, name), rtol=0, atol=1e-9)
    assert np.allclose(small.synapses()["removal"].abs(), large.synapses()["removal"].abs(), atol=1e-8)
    assert np.allclose(in_order(small, c, "amplitude"), in_order(large, c, "amplitude"), atol=1e-7)


def test_a_linear_network_beyond_its_limit_is_told_unstable_and_not_refused():
    c = network()
    found = stability(c, f="identity", scale=1.5)
    assert np.isclose(found.margin_continuous, -0.5) and not found.stable_continuous and not found.stable_discrete
    assert stability(c, scale=None).attrs["alpha"] == 1
    silent = stability(c, silence=list(c.ids), scale=0.9)
    assert silent.margin_continuous == silent.margin_discrete == 1


def test_an_eigenvalue_that_is_not_simple_has_no_derivative():
    twice = pd.DataFrame({"pre": list("abcd"), "post": list("badc"), "count": 1})
    found = stability(read(twice), scale=0.5)
    assert np.isclose(found.margin_continuous, 0.5)
    with pytest.raises(rg.ConvergenceError, match="have no derivative"):
        found.synapses()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"time": "real"}, "time: expected 'continuous' or 'discrete', got 'real'"),
        ({"k": 0}, "k: expected a number of eigenvalues, got 0"),
        ({"scale": -1}, "scale: expected a finite scale > 0"),
        ({"drive": ["nobody"]}, "drive: 1 of 1 ids are not in the connectome"),
        ({"drive": {}}, "drive: expected at least one id"),
        ({"silence": ["nobody"]}, "silence: 1 of 1"),
    ],
)
def test_bad_questions_are_said(how, said):
    with pytest.raises(ValueError, match=said):
        stability(network(), **how)
    with pytest.raises(ValueError, match="column: expected a column of the neurons, id"):
        stability(network()).by("colour")


def test_the_command_ranks_every_synapse(tmp_path):
    out, report = tmp_path / "synapses.csv", tmp_path / "page.html"
    said = ["stability", "--example", "worm", "--drive", "ADAL", "ADAR=2", "--scale", "1.5", "--time", "discrete"]
    run = CliRunner().invoke(app, [*said, "--out", str(out), "--report", str(report)])
    assert run.exit_code == 0, run.output
    c = rg.connectome.example("worm")
    found = stability(c, {"ADAL": 1, "ADAR": 2}, scale=1.5, time="discrete")
    written = pd.read_csv(out)
    assert len(written) == len(c.edges) and np.allclose(written["removal"], found.synapses()["removal"])
    assert f"{found.margin_discrete:.6g} in discrete time" in run.output
    assert "If a synapse were cut" in report.read_text(encoding="utf-8")
    run = CliRunner().invoke(app, ["stability", "--example", "worm", "--drive", "nobody"])
    assert run.exit_code == 2 and "drive: 1 of 1 ids" in run.output


def test_the_command_says_where_no_synapse_can_be_ranked(tmp_path):
    pd.DataFrame({"pre": list("abcd"), "post": list("badc"), "count": 1}).to_csv(tmp_path / "twice.csv", index=False)
    run = CliRunner().invoke(app, ["stability", str(tmp_path / "twice.csv")])
    assert run.exit_code == 0 and "no synapses are ranked" in run.output
    run = CliRunner().invoke(app, ["stability", str(tmp_path / "twice.csv"), "--table", "synapses"])
    assert run.exit_code == 1 and "have no derivative" in run.output


@pytest.mark.skipif(not FLY[0].is_file(), reason=f"{FLY[0].name} is not there")
def test_a_part_of_a_flys_motion_pathway():
    near = pd.read_parquet(FLY[1])
    near = near[(near["u"].abs() <= 3) & (near["v"].abs() <= 3)]
    edges = pd.read_parquet(FLY[0])
    edges = edges[edges["pre"].isin(near["root_id"]) & edges["post"].isin(near["root_id"])]
    c = read(edges, near, signs="column")
    found = stability(c, scale=0.99)
    A = found.attrs["alpha"] * scipy.sparse.csr_array(
        (c.edges["weight"], [end.numpy() for end in c.W.edges]), shape=c.W.shape
    )
    start = np.ones(len(c))
    values = [scipy.sparse.linalg.eigs(A, 3, which=which, v0=start, ncv=80)[0] for which in ("LR", "LM")]
    assert len(c) > module.SMALL and np.isclose(found.margin_continuous, 0.01, atol=1e-8)
    assert np.isclose(found.margin_continuous, 1 - values[0].real.max(), atol=1e-8)
    assert np.isclose(found.margin_discrete, 1 - np.abs(values[1]).max(), atol=1e-8)
