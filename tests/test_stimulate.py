"""The least input: against enumerations, other solvers, differences, and what the simulation makes of it."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from helpers import assert_close
from typer.testing import CliRunner

import retrograde as rg
from retrograde.cli.app import app
from retrograde.connectome import read, simulate, stimulate
from retrograde.connectome.driving import AlongTime, Steady
from retrograde.connectome.given import Targets
from retrograde.connectome.least import Box, Rows, distance_bound, least, nearest, size_bound
from retrograde.connectome.simulation import network
from retrograde.nonlinearity import as_nonlinearity
from retrograde.recurrence import Recurrence

N, IDS = 9, list("abcdefghi")
FUNCTIONS = {"identity": lambda u: u, "tanh": np.tanh, "relu": lambda u: np.maximum(u, 0)}


@pytest.fixture(scope="module")
def c():
    """Not symmetric, with signs and an autapse; its largest real eigenvalue is well above 0."""
    random = np.random.default_rng(4)
    edges = [(i, j, w) for i in range(N) for j in range(N) if (w := random.normal(0.15, 0.5)) and random.random() < 0.5]
    edges += [(i, (i + 1) % N, 0.3) for i in range(N)]
    table = pd.DataFrame(edges, columns=["pre", "post", "weight"]).assign(count=1)
    table["pre"], table["post"] = table["pre"].map(IDS.__getitem__), table["post"].map(IDS.__getitem__)
    return read(table, weights="weight")


def scaled(c, scale):
    M = c.W.dense().detach().numpy()
    return M * (scale / np.linalg.eigvals(M).real.max())


def places(names):
    return [IDS.index(name) for name in names]


def state(M, b, f, steps=3000):
    """x = f(Mx + b), by small steps from rest."""
    x = np.zeros(len(M))
    for _ in range(steps):
        x += 0.3 * (f(M @ x + b) - x)
    return x


def enumerated(A, y, norm):
    """The least b >= 0 with Ab = y, over every set of neurons that may be above 0; None where there is none."""
    best = None
    for size in range(A.shape[1] + 1):
        if norm == "l1" and size > len(y):
            break  # a corner has no more
        for some in map(list, combinations(range(A.shape[1]), size)):
            b = np.zeros(A.shape[1])
            b[some] = np.linalg.pinv(A[:, some]) @ y
            if np.allclose(A @ b, y, atol=1e-10) and b.min() >= -1e-12:
                length = np.abs(b).sum() if norm == "l1" else b @ b / 2
                best = length if best is None else min(best, length)
    return best


@pytest.mark.parametrize("norm", ("l1", "l2"))
def test_the_linear_answer_is_the_least_of_all(c, norm):
    allowed, targets = list("abcdef"), ["h", "i"]
    G = np.linalg.inv(np.eye(N) - scaled(c, 0.7))
    A = G[np.ix_(places(targets), places(allowed))]
    b0 = np.array([0.1, 0.4, 0, 0.2, 0.3, 0])
    y = A @ b0
    found = stimulate(c, dict(zip(targets, y, strict=True)), allowed=allowed, least=norm, f="identity", scale=0.7)
    got = found.set_index("id").loc[IDS]
    want = enumerated(A, y, norm)
    assert found.attrs["met"] and found.attrs["proved"] and found.attrs["from_rest"]
    assert found.attrs["size"] == pytest.approx(want, rel=1e-8)
    assert found.attrs["size_bound"] == pytest.approx(want, rel=1e-7) and np.isnan(found.attrs["distance_bound"])
    np.testing.assert_allclose(got["activity"], G @ got["input"], atol=1e-10)
    np.testing.assert_allclose(got.loc[targets, "wanted"], y)
    assert got["wanted"].notna().sum() == 2 and (got.loc[["g", "h", "i"], "input"] == 0).all()


def test_what_cannot_be_met_is_approached_and_proved():
    """One neuron drives two in the ratio 2 to 1, but they are to be alike: by hand."""
    c = read(pd.DataFrame({"pre": ["a", "a"], "post": ["b", "c"], "count": [2, 1]}))
    how = {"allowed": ["a"], "f": "identity", "scale": None}
    found = stimulate(c, {"b": 1.0, "c": 1.0}, **how)
    assert not found.attrs["met"] and found.attrs["proved"]
    # |2a - 1| + |a - 1| is least at a = 1/2, where it is 1/2.
    assert found.set_index("id").loc["a", "input"] == pytest.approx(0.5)
    assert found.attrs["distance"] == pytest.approx(0.5) and found.attrs["distance_bound"] == pytest.approx(0.5)
    below = stimulate(c, {"b": -1.0}, **how)
    assert below.attrs["distance"] == below.attrs["distance_bound"] == 1.0 and below.attrs["size"] == 0
    assert stimulate(c, {"b": -1.0}, lower=-1.0, **how).attrs["met"]
    assert stimulate(c, {"b": 3.0}, upper=1.0, **how).attrs["distance"] == pytest.approx(1.0)
    no_path = stimulate(c, {"b": 0.5}, allowed=["c"], f="tanh", scale=None)
    assert not no_path.attrs["met"] and no_path.attrs["distance"] == pytest.approx(0.5)


@pytest.mark.parametrize("f", ("tanh", "softplus", "sigmoid", "identity"))
def test_where_every_activity_is_given_there_is_one_input(c, f):
    random = np.random.default_rng(2)
    nonlinearity = as_nonlinearity(f)
    x = nonlinearity(torch.from_numpy(random.normal(0, 1, N)))
    bias = random.normal(0, 0.1, N)
    found = stimulate(
        c,
        dict(zip(IDS, x.tolist(), strict=True)),
        lower=-np.inf,
        f=f,
        scale=0.5,
        bias=dict(zip(IDS, bias, strict=True)),
    )
    want = nonlinearity.inverse(x).numpy() - scaled(c, 0.5) @ x.numpy() - bias
    np.testing.assert_allclose(found.set_index("id").loc[IDS, "input"], want, atol=1e-10)
    assert found.attrs["met"] and found.attrs["proved"] and found.attrs["turns"] == 0


def test_where_every_activity_is_given_and_bounds_forbid_it(c):
    x = np.full(N, 0.3)
    x[0] = -0.9
    M = scaled(c, 0.5)
    found = stimulate(c, dict(zip(IDS, x, strict=True)), f="identity", scale=0.5)
    assert not found.attrs["met"] and found.attrs["distance_bound"] == pytest.approx(found.attrs["distance"], rel=1e-6)
    # The nearest, by another route: Σ |x - wanted| over b >= 0 as a linear program in x.
    A = np.eye(N) - M
    program = scipy.optimize.linprog(
        np.concatenate([np.zeros(N), np.ones(N)]),
        A_ub=np.block([[np.eye(N), -np.eye(N)], [-np.eye(N), -np.eye(N)], [-A, np.zeros((N, N))]]),
        b_ub=np.concatenate([x, -x, np.zeros(N)]),
        bounds=[(None, None)] * N + [(0, None)] * N,
    )
    assert found.attrs["distance"] == pytest.approx(program.fun, rel=1e-8)


@pytest.mark.parametrize("norm", ("l1", "l2"))
@pytest.mark.parametrize("f", ("tanh", "relu"))
def test_the_nonlinear_answer_is_as_little_as_another_solver_finds(c, f, norm):
    M, fn = scaled(c, 0.6), FUNCTIONS[f]
    allowed, targets = places("abcdef"), places("gh")
    b0 = np.zeros(N)
    b0[allowed] = [0.6, 0.0, 0.8, 0.3, 0.0, 0.9]
    y = state(M, b0, fn)[targets]
    found = stimulate(c, {"g": y[0], "h": y[1]}, allowed=list("abcdef"), least=norm, f=f, scale=0.6)
    assert found.attrs["met"] and found.attrs["settled"] and found.attrs["from_rest"] and not found.attrs["proved"]
    b = found.set_index("id").loc[IDS, "input"].to_numpy()
    np.testing.assert_allclose(state(M, b, fn)[targets], y, atol=1e-6)
    assert b.min() >= 0 and found.attrs["size_bound"] == pytest.approx(found.attrs["size"], rel=1e-4)

    def spread(b):
        whole = np.zeros(N)
        whole[allowed] = b
        return whole

    sizes = []
    for start in (b0[allowed], np.full(6, 0.5), b[allowed] + 0.1):
        other = scipy.optimize.minimize(
            (lambda b: b.sum()) if norm == "l1" else (lambda b: b @ b / 2),
            start,
            constraints={"type": "eq", "fun": lambda b: state(M, spread(b), fn, 400)[targets] - y},
            bounds=[(0, None)] * 6,
            method="SLSQP",
            options={"ftol": 1e-10, "maxiter": 100},
        )
        sizes += [other.fun] if other.success else []
    assert sizes and found.attrs["size"] <= min(sizes) * (1 + 1e-5)


def test_a_relu_that_is_to_be_off_may_have_any_drive_below():
    """a excites b and inhibits c: with b at 0.4, c has the drive -0.2, and is off all the same."""
    table = pd.DataFrame({"pre": ["a", "a"], "post": ["b", "c"], "weight": [1.0, -0.5], "count": 1})
    c = read(table, weights="weight")
    found = stimulate(c, {"b": 0.4, "c": 0.0}, allowed=["a"], f="relu", scale=None)
    assert found.attrs["met"] and found.attrs["size"] == pytest.approx(0.4)
    whole = stimulate(c, {"a": 0.4, "b": 0.4, "c": 0.0}, f="relu", scale=None)
    assert whole.attrs["met"] and whole.attrs["proved"] and whole.attrs["size"] == pytest.approx(0.4)


@pytest.mark.parametrize("tau", (None, 2.5))
@pytest.mark.parametrize("f", ("identity", "tanh", "relu"))
@pytest.mark.parametrize("norm", ("l1", "l2"))
def test_along_a_trajectory_the_simulation_gets_there(c, f, norm, tau):
    some = pd.DataFrame(
        {"neuron": list("abcd"), "start": [0, 2, 1, 3], "stop": [2, 4, 5, 4], "strength": [0.5, 0.7, 0.3, 0.8]}
    )
    reached = simulate(c, some, duration=5, f=f, scale=0.8, tau=tau, wide=True).set_index("time")
    wanted = {(name, time): float(reached.loc[time, name]) for name, time in (("g", 3), ("g", 5), ("h", 5))}
    found = stimulate(c, wanted, allowed=list("abcd"), steps=5, f=f, least=norm, scale=0.8, tau=tau)
    # On a kink, where a ReLU is just about to be on, the linearised network allows a little less.
    assert found.attrs["met"] and found.attrs["size_bound"] == pytest.approx(
        found.attrs["size"], rel=0.05 if f == "relu" else 1e-4
    )
    assert set(found.loc[found["input"] != 0, "id"]) <= set("abcd") and (found["input"] >= 0).all()
    driven = found[found["input"] != 0]
    pulses = pd.DataFrame(
        {"neuron": driven["id"], "start": driven["time"] - 1, "stop": driven["time"], "strength": driven["input"]}
    )
    path = simulate(c, pulses, duration=5, f=f, scale=0.8, tau=tau, wide=True).set_index("time")
    for (name, time), activity in wanted.items():
        assert path.loc[time, name] == pytest.approx(activity, abs=1e-6)


def test_the_least_of_a_linear_trajectory_is_the_least_of_all(c):
    M, allowed = scaled(c, 0.8), places("ab")
    blocks = [np.linalg.matrix_power(M, 3 - t)[:, allowed] for t in range(1, 4)]
    A = np.hstack(blocks)[places("gh")]
    y = A @ np.array([0.3, 0.1, 0, 0.5, 0.2, 0.0])
    for norm in ("l1", "l2"):
        found = stimulate(c, {"g": y[0], "h": y[1]}, allowed=["a", "b"], steps=3, f="identity", scale=0.8, least=norm)
        assert found.attrs["size"] == pytest.approx(enumerated(A, y, norm), rel=1e-8)


@pytest.mark.parametrize("f", ("identity", "tanh"))
@pytest.mark.parametrize("steps", (None, 4))
def test_no_input_drives_the_targets_further_than_the_maximum(c, f, steps):
    weights = {"g": 1.0, "h": -0.5}
    how = {"allowed": list("abcde"), "maximum": True, "upper": 0.8, "lower": -0.3, "f": f, "scale": 0.7}
    found = stimulate(c, weights, steps=steps, budget=1.2, turns=40, **how)
    b = found["input"].abs()
    assert b.sum() <= 1.2 + 1e-12 and found["input"].between(-0.3, 0.8).all()
    M, fn, random = scaled(c, 0.7), FUNCTIONS[f], np.random.default_rng(0)

    def reward(b):
        if steps is None:
            x = np.linalg.solve(np.eye(N) - M, b[0]) if f == "identity" else state(M, b[0], fn, 300)
        else:
            x = np.zeros(N)
            for b_t in b:
                x = fn(M @ x + b_t)
        return x[6] - 0.5 * x[7]

    got = np.zeros((steps or 1, N))
    for row in found.itertuples():
        got[(row.time - 1) if steps else 0, IDS.index(row.id)] = row.input
    assert found.attrs["reward"] == pytest.approx(reward(got), abs=1e-8)
    for _ in range(60):
        b = np.zeros((steps or 1, N))
        b[:, :5] = np.clip(random.normal(0, 1, (steps or 1, 5)) * (random.random((steps or 1, 5)) < 0.4), -0.3, 0.8)
        b *= min(1.0, 1.2 / max(np.abs(b).sum(), 1e-9))
        assert reward(b) <= found.attrs["reward"] + found.attrs["gap"] + 1e-9
    if f == "identity" and steps is None:  # a linear program, by another solver
        A = np.linalg.inv(np.eye(N) - M)
        gain = (A[6] - 0.5 * A[7])[:5]
        program = scipy.optimize.linprog(
            np.concatenate([-gain, gain]), A_ub=np.ones((1, 10)), b_ub=[1.2], bounds=[(0, 0.8)] * 5 + [(0, 0.3)] * 5
        )
        assert found.attrs["proved"] and found.attrs["reward"] == pytest.approx(-program.fun)


@pytest.mark.parametrize("by_drive", (True, False))
@pytest.mark.parametrize("leak", (None, 0.4))
@pytest.mark.parametrize("f", ("tanh", "softplus", "relu"))
def test_the_rows_are_those_of_differences(c, f, leak, by_drive):
    net = network(c, 0.7, np.empty(0, int), as_nonlinearity(f))
    bias = torch.full((N,), 0.1, dtype=torch.float64)
    allowed = np.array([0, 2, 3, 5])
    times = Targets(np.array([1, 3, 3]), np.array([3, 4, 2]), np.zeros(3))
    for driven in (
        Steady(net, bias, allowed, Targets(np.array([1, 3]), np.zeros(2, int), np.zeros(2))),
        AlongTime(Recurrence(net.W, net.f, leak), bias, allowed, times, 4),
    ):
        assert driven.by_drive == (leak is None or isinstance(driven, Steady))
        driven = driven if by_drive else driven.by_activity()
        b = 0.5 * np.random.default_rng(1).random(driven.m)
        driven.at(b)
        got, want = driven.rows(), np.zeros((len(driven.place), driven.m))
        for j in range(driven.m):
            ends = []
            for h in (1e-6, -1e-6):
                moved = b.copy()
                moved[j] += h
                driven.at(moved)
                ends.append(driven.values())
            want[:, j] = (ends[0] - ends[1]) / 2e-6
        assert_close(torch.from_numpy(got), torch.from_numpy(want), within=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_found_and_what_is_proved_agree(seed):
    """Over random problems, of any scaling, with and without bounds: the dual proves what the primal found."""
    random = np.random.default_rng(seed)
    k, m = int(random.integers(1, 5)), int(random.integers(6, 40))
    A = random.normal(size=(k, m)) * np.exp(2 * random.normal(size=(k, 1)))
    box = Box(np.full(m, (0.0, -np.inf)[seed % 2]), np.full(m, (np.inf, 0.7)[seed // 2 % 2]))
    r = A @ box.clip(random.normal(size=m))
    rows = Rows(A, np.where((np.arange(k) == 0) & (seed % 3 == 0), -np.inf, r), r)
    for norm in ("l1", "l2"):
        b, p, off = least(rows, box, norm)
        size = np.abs(b).sum() if norm == "l1" else b @ b / 2
        assert (off == 0).all() and np.abs(rows.off(b)).max() < 1e-8 * (1 + np.abs(r).max())
        assert (b >= box.lower).all() and (b <= box.upper).all()
        bound = size_bound(rows, box, norm, p)
        assert bound <= size + 1e-8 * (1 + size) and bound == pytest.approx(size, rel=1e-6, abs=1e-9)
        # And any other multipliers prove no more than is true.
        assert size_bound(rows, box, norm, p + 0.1 * random.normal(size=k)) <= size + 1e-8 * (1 + size)
    beyond = Rows(np.vstack([A, A[:1]]), np.append(r, r[0] + 1), np.append(r, r[0] + 1))  # contradicts itself
    b, p = nearest(beyond, box)
    distance = np.abs(beyond.off(b)).sum()
    assert distance == pytest.approx(1.0, rel=1e-6) and distance_bound(beyond, box, p) == pytest.approx(1.0, rel=1e-6)
    assert distance_bound(beyond, box, random.normal(size=k + 1)) <= distance + 1e-9


@pytest.mark.parametrize(("threshold", "steepness"), [(None, None), (0.05, 2.0)])
def test_connectome_interpreters_search_is_its_own(c, threshold, steepness):
    """Its loop, written plainly with automatic differentiation: the same input and the same activity."""
    wanted = {("g", 3): 0.4, ("h", 4): 0.7}
    own = {"threshold": threshold, "steepness": steepness}
    found = stimulate(c, wanted, allowed=list("abc"), steps=4, scale=None, preset="ci-2.10", seed=7, turns=20, **own)
    threshold, steepness = threshold or 0.01, steepness or 5
    M = c.W.dense().detach()

    def layers(u):
        x = torch.zeros(N, dtype=M.dtype)
        x = x.index_add(0, torch.arange(3), u[:, 0])
        out = []
        for t in range(4):
            z = steepness * (M @ x)
            x = torch.tanh(torch.where(z >= threshold, z, 0)) / 10 + 0.9 * x
            if t < 3:
                x = x.index_add(0, torch.arange(3), u[:, t + 1])
                x = torch.where(x >= threshold, x, 0)
                x = torch.where(x > 1, 1.0, x)
            out.append(x)
        return torch.stack(out, -1)  # neurons by layers, counted from 0

    u = torch.rand((1, 3, 4), generator=torch.Generator().manual_seed(7))[0].double().requires_grad_()
    adam = torch.optim.Adam([u], lr=0.1)
    for _ in range(20):
        adam.zero_grad()
        x = layers(u)
        loss = ((x[6, 2] - 0.4) ** 2 + (x[7, 3] - 0.7) ** 2) / 2
        loss = loss + 0.01 * (u.abs().sum() + u.norm() + x.abs().sum() + x.norm())
        loss.backward()
        adam.step()
    u = torch.tanh(torch.where(u >= threshold, u, 0)).detach()
    x = layers(u)
    inputs = found.pivot(index="id", columns="time", values="input").reindex(index=list("abc"), columns=range(4))
    np.testing.assert_allclose(inputs.fillna(0).to_numpy(), u.numpy(), atol=1e-10)
    got = found.set_index(["time", "id"])["activity"]
    assert got[3, "g"] == pytest.approx(float(x[6, 2])) and got[4, "h"] == pytest.approx(float(x[7, 3]))
    assert found.attrs["loss"] == pytest.approx(float(loss.detach())) and not found.attrs["met"]


def test_why_the_search_ended_is_told(c):
    how = {"allowed": ["a", "b"], "scale": 0.7}
    few = stimulate(c, {"g": 0.2}, turns=1, **how).attrs
    assert not few["settled"] and few["stopped"] == "all of the 1 turns were taken"
    far = stimulate(c, {"g": 0.99}, upper=0.1, **how).attrs
    assert not far["met"] and (far["settled"] or "no nearer" in far["stopped"] or "no step" in far["stopped"])
    assert stimulate(c, {"g": 0.2}, **how).attrs["stopped"] == "nothing moves any more"


BAD = {
    "no target": ({}, {}, "at least one"),
    "unknown": ({"gg": 0.1}, {}, "did you mean g"),
    "unknown allowed": ({"g": 0.1}, {"allowed": ["zz"]}, "allowed: 1 of 1 ids"),
    "none allowed": ({"g": 0.1}, {"allowed": []}, "allowed: expected at least one"),
    "NaN": ({"g": np.nan}, {}, "target, activity: 1 of 1"),
    "beyond tanh": ({"g": 1.5}, {}, "target, x: 1 of 1 entries lie outside the range of tanh"),
    "below relu": ({"g": -0.5}, {"f": "relu"}, "outside the range of relu"),
    "bounds": ({"g": 0.1}, {"lower": 2.0, "upper": 1.0}, "lower <= upper"),
    "norm": ({"g": 0.1}, {"least": "l0"}, "least: expected l1 or l2"),
    "time without steps": ({("g", 2): 0.1}, {}, "no time at a steady state"),
    "late": ({("g", 9): 0.1}, {"steps": 4}, "from 1 to 4"),
    "half a step": ({("g", 1.5): 0.1}, {"steps": 4}, "whole steps"),
    "steps": ({"g": 0.1}, {"steps": 0}, "steps: expected a whole number"),
    "tau": ({"g": 0.1}, {"tau": 2.0}, "tau: a steady state"),
    "unbounded": ({"g": 1.0}, {"maximum": True}, "finite bounds, or a budget"),
    "budget": ({"g": 1.0}, {"maximum": True, "budget": 0.0}, "budget above 0"),
    "unstable": ({"g": 0.1}, {"f": "identity", "scale": 1.5}, "unstable"),
    "twice": (pd.DataFrame({"neuron": ["g", "g"], "activity": [0.1, 0.2]}), {}, "more than once"),
    "columns": (pd.DataFrame({"neuron": ["g"]}), {}, "activity not found"),
    "layers": ({"g": 0.1}, {"preset": "ci-2.10"}, "how many layers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(c, case):
    target, how, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        stimulate(c, target, **how)


def test_a_state_that_rest_does_not_lead_to_is_told(c):
    """a and b excite each other: off and on are both steady without input; wanted is between, which is neither."""
    flip = read(
        pd.DataFrame({"pre": ["a", "b"], "post": ["b", "a"], "weight": [2.0, 2.0], "count": 1}), weights="weight"
    )
    found = stimulate(flip, {"a": 0.5, "b": 0.5}, lower=-np.inf, scale=None)
    assert found.attrs["met"] and not found.attrs["from_rest"]


def test_a_table_of_targets_is_the_same_as_a_mapping(c, tmp_path):
    table = pd.DataFrame({"neuron": ["g", "h"], "activity": [0.1, 0.2], "time": [2, 3]})
    table.to_csv(tmp_path / "targets.csv", index=False)
    want = stimulate(c, {("g", 2): 0.1, ("h", 3): 0.2}, steps=3)
    for given in (table, tmp_path / "targets.csv", str(tmp_path / "targets.csv")):
        pd.testing.assert_frame_equal(stimulate(c, given, steps=3), want)


def test_the_worm_is_stimulated_through_its_sensory_neurons():
    c = rg.connectome.example("worm", weights="fraction", signs="worm-gaba")
    found = stimulate(
        c, {"AVAL": 0.1, "AVAR": 0.1}, allowed=["ASHL", "ASHR", "PHBL", "PHBR", "ADLL", "AWBL"], scale=0.9
    )
    assert found.attrs["met"] and found.attrs["from_rest"] and (found["input"] > 0).sum() <= 6


def run(*words):
    return CliRunner().invoke(app, ["stimulate", "--example", "worm", "--weights", "fraction", *map(str, words)])


def test_the_command_gives_what_the_function_gives(tmp_path):
    out, figure, page = tmp_path / "out.csv", tmp_path / "out.svg", tmp_path / "out.html"
    words = ["--target", "AVAL@3=0.05", "AVAR=0.1", "--steps", 4, "--allowed", "super_class:sensory", "--tau", 1.5]
    told = run(*words, "--out", out, "--figure", figure, "--report", page)
    assert told.exit_code == 0, told.output
    assert "every target is met" in told.output and "is less than" in told.output
    c = rg.connectome.example("worm", weights="fraction")
    sensory = c.neurons.loc[c.neurons["super_class"] == "sensory", "id"].tolist()
    want = stimulate(c, {("AVAL", 3): 0.05, ("AVAR", 4): 0.1}, steps=4, allowed=sensory, tau=1.5)
    got = pd.read_csv(out)
    names = ["time", "id", "input", "activity"]
    pd.testing.assert_frame_equal(got[names], want[names], check_dtype=False, rtol=1e-6)
    assert "<svg" in figure.read_text("utf-8") and "<svg" in page.read_text("utf-8")


def test_the_command_says_what_cannot_be_met():
    told = run("--target", "AVAL=0.5", "--allowed", "AVAR", "--upper", 0.01, "--f", "identity", "--scale", 0.5)
    assert told.exit_code == 0 and "are not met" in told.output and "none comes nearer than" in told.output
    assert "(proved)" in told.output


@pytest.mark.parametrize(
    ("words", "message"),
    (
        ([], "expected ID=ACTIVITY or --targets, got neither"),
        (["--target", "AVAX=0.5"], "did you mean"),
        (["--target", "AVAL=high"], "expected a number behind"),
        (["--target", "AVAR=0.1", "AVAL"], "expected ID=ACTIVITY, or --maximum, got 'AVAL'"),
        (["--target", "AVAL=2"], "outside the range of tanh"),
        (["--target", "AVAL@x=0.1", "--steps", 3], "expected a step behind the @"),
        (["--target", "AVAL@9=0.1", "--steps", 3], "whole steps from 1 to 3"),
        (["--target", "AVAL=0.1", "--allowed", "mood:good"], "mood:good; the neurons have the columns id,"),
        (
            ["--target", "AVAL=0.1", "--allowed", "super_class:sensor"],
            "no neuron has the super_class 'sensor'; did you mean sensory",
        ),
        (["--target", "AVAL=0.1", "--lower", 2, "--upper", 1], "lower <= upper"),
    ),
)
def test_bad_words_are_told_in_a_line(words, message):
    told = run(*words)
    assert told.exit_code == 2 and message in told.output and "Traceback" not in told.output
