"""Simulations against plain loops, against each other's equations, and connectome_interpreter's network by its own."""

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import retrograde as rg
from retrograde.cli.app import app
from retrograde.connectome import read, simulate, simulation
from retrograde.connectome.layered import layered

N = 9


@pytest.fixture(scope="module")
def c():
    """A network that is not symmetric, with signs, an autapse and types; ids in letters."""
    random = np.random.default_rng(1)
    pairs = [(i, j) for i in range(N) for j in range(N) if random.random() < 0.4]
    pairs += [(i, (i + 1) % N) for i in range(N) if (i, (i + 1) % N) not in pairs]
    edges = pd.DataFrame(
        {
            "pre": ["abcdefghi"[i] for i, _ in pairs],
            "post": ["abcdefghi"[j] for _, j in pairs],
            "weight": random.normal(0, 0.5, len(pairs)),
            "count": 1,
        }
    )
    neurons = pd.DataFrame({"id": list("abcdefghi"), "cell_type": list("pppqqqqrr")})
    return read(edges, neurons.assign(rest=np.linspace(-0.2, 0.3, N)), weights="weight")


@pytest.fixture
def pulses():
    """One of three pulses overlaps another, one starts and stops between steps."""
    return pd.DataFrame(
        {"neuron": ["a", "a", "c"], "start": [0.0, 2.0, 1.25], "stop": [5.0, 4.0, 2.5], "strength": [0.4, -0.9, 1.0]}
    )


def dense(c):
    return c.W.dense().detach().numpy()


def inputs(pulses, steps, dt):
    """(steps, n), each the mean of the pulses over the step, by sampling them finely."""
    b = np.zeros((steps, N))
    fine = (np.arange(4000) + 0.5) / 4000 * dt
    for who, start, stop, strength in pulses.itertuples(index=False):
        for t in range(steps):
            at = t * dt + fine
            b[t, ord(who) - ord("a")] += strength * np.mean((at >= start) & (at < stop))
    return b


@pytest.mark.parametrize("tau", (None, 2.0, {"cell_type:p": 1.5, "type:q": 4.0, "i": 0.5}))
@pytest.mark.parametrize("form", ("rate", "voltage"))
def test_every_step_is_the_equation(c, pulses, form, tau):
    found = simulate(c, pulses, form=form, f="tanh", dt=0.5, tau=tau, bias="rest", duration=8, wide=True)
    M, rest = dense(c), np.linspace(-0.2, 0.3, N)
    a = {None: np.ones(N), 2.0: np.full(N, 0.25)}.get(tau if not isinstance(tau, dict) else 0)
    a = np.array([1 / 3] * 3 + [1 / 8] * 4 + [1, 1]) if a is None else a
    b = inputs(pulses, 16, 0.5) + rest
    state = np.zeros(N) if form == "rate" else rest.copy()
    want = [state if form == "rate" else np.tanh(state)]
    for t in range(16):
        drive = M @ state + b[t] if form == "rate" else M @ np.tanh(state) + b[t]
        state = state + a * ((np.tanh(drive) if form == "rate" else drive) - state)
        want.append(state if form == "rate" else np.tanh(state))
    assert list(found["time"]) == [0.5 * k for k in range(17)]
    np.testing.assert_allclose(found[list("abcdefghi")].to_numpy(), want, rtol=1e-12, atol=1e-12)


def test_voltages_are_those_of_the_rate_form_with_filtered_input(c, pulses):
    """With one tau, v = W r + beta, where r is a rate with the low-passed input beta: an equation of its own."""
    found = simulate(c, pulses, form="voltage", f="relu", dt=1.0, tau=4.0, duration=12)
    b, a, M = inputs(pulses, 12, 1.0), 0.25, c.W
    beta = np.zeros((13, N))
    for t in range(12):
        beta[t + 1] = beta[t] + a * (b[t] - beta[t])
    rates = rg.trajectory(M, torch.from_numpy(beta[:-1]), f="relu", leak=a).x.detach()
    want = (M @ rates).detach().numpy() + beta[1:]
    got = found["voltage"].to_numpy().reshape(13, N)
    np.testing.assert_allclose(got[1:], want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["activity"].to_numpy().reshape(13, N), np.maximum(got, 0))


@pytest.mark.parametrize("form", ("rate", "voltage"))
def test_what_is_on_for_long_brings_the_steady_state(c, form):
    found = simulate(c, {"a": 0.7, "d": -0.3}, form=form, tau=3.0, duration=400, scale=0.5, wide=True)
    b = torch.zeros(N, dtype=torch.float64)
    b[0], b[3] = 0.7, -0.3
    M = dense(c)
    alpha = 0.5 / np.linalg.eigvals(M).real.max()
    x = rg.steady_state(torch.from_numpy(alpha * M), b).x.numpy()
    np.testing.assert_allclose(found.iloc[-1, 1:].to_numpy(float), x, atol=1e-10)


def test_from_the_steady_state_nothing_moves_before_the_pulse(c):
    late = pd.DataFrame({"neuron": ["b"], "start": [5], "stop": [6], "strength": [1.0]})
    for form in ("rate", "voltage"):
        found = simulate(c, late, form=form, tau=3.0, bias=0.2, start="steady", duration=8, wide=True)
        x = found.iloc[:, 1:].to_numpy()
        assert np.ptp(x[:6], axis=0).max() < 1e-12 and np.ptp(x[6:], axis=0).max() > 1e-3


def test_long_wide_means_and_records_are_the_same_numbers(c, pulses):
    wide = simulate(c, pulses, wide=True)
    x = wide.iloc[:, 1:].to_numpy()
    table = simulate(c, pulses)
    assert list(table.columns) == ["time", "id", "cell_type", "activity"]
    assert (table["activity"].to_numpy().reshape(6, N) == x).all()
    assert (table.pivot(index="time", columns="id", values="activity").to_numpy() == x).all()
    some = simulate(c, pulses, record=["c", "a"], wide=True)
    assert (some[["c", "a"]].to_numpy() == x[:, [2, 0]]).all()
    means = simulate(c, pulses, by="cell_type")
    np.testing.assert_allclose(means.query("cell_type == 'q'")["activity"], x[:, 3:7].mean(1))
    assert means["neurons"].tolist()[:3] == [3, 4, 2]
    of_a = simulate(c, pulses, by="cell_type", record=["a", "i"], wide=True)
    np.testing.assert_allclose(of_a[["p", "r"]].to_numpy(), x[:, [0, 8]])


def test_a_stimulus_may_name_a_type_or_be_a_file(c, pulses, tmp_path):
    by_type = pd.DataFrame({"cell_type": ["r"], "start": [0], "stop": [2], "strength": [1.0]})
    one_by_one = pd.DataFrame({"id": ["h", "i"], "start": [0, 0], "stop": [2, 2], "strength": [1.0, 1.0]})
    assert simulate(c, by_type, duration=3).equals(simulate(c, one_by_one, duration=3))
    pulses.to_csv(tmp_path / "pulses.csv", index=False)
    pd.testing.assert_frame_equal(simulate(c, tmp_path / "pulses.csv"), simulate(c, pulses))


@pytest.mark.parametrize("form", ("rate", "voltage"))
def test_in_pieces_it_is_the_same(c, pulses, form, monkeypatch):
    whole = simulate(c, pulses, form=form, tau=2.0, duration=11)
    monkeypatch.setattr(simulation, "_NUMBERS", 3 * N)
    seen = []
    pieces = simulate(c, pulses, form=form, tau=2.0, duration=11, told=lambda done, steps: seen.append((done, steps)))
    pd.testing.assert_frame_equal(pieces, whole, rtol=1e-12)
    assert seen[-1] == (11, 11) and len(seen) > 3


def test_silenced_neurons_send_nothing(c, pulses):
    silent = simulate(c, pulses, silence=["a"], wide=True)
    M = dense(c)
    M[:, 0] = 0
    x, b = np.zeros(N), inputs(pulses, 5, 1.0)
    for t in range(5):
        x = np.tanh(M @ x + b[t])
    np.testing.assert_allclose(silent.iloc[-1, 1:].to_numpy(float), x)


def test_what_grows_without_end_is_told(c):
    with pytest.raises(rg.ConvergenceError, match="infinite between"):
        simulate(c, {"a": 1.0}, f="identity", scale=50.0, duration=2000)
    with pytest.raises(rg.ConvergenceError, match="infinite between"):
        simulate(c, {"a": 1.0}, form="voltage", f="identity", scale=50.0, duration=2000)


def interpreter(M, u, release, driven, threshold=0.01, steepness=5.0, tau=1.0, bias=0.0):
    """connectome_interpreter's layers as its paper and code have them, neuron by neuron."""
    if release == "ci-2.9":
        u = np.minimum(np.where(u >= threshold, u, 0), 1)
    T, n = len(u), len(M)
    x = np.zeros(n)
    x[driven] = u[0]
    layers = []
    for t in range(T):
        z = steepness * (M @ x) + abs(bias)
        x = np.tanh(np.where(z >= threshold, z, 0)) / tau + (1 - 1 / tau) * x
        if t < T - 1:
            x[driven] += u[t + 1]
            if release == "ci-2.10":
                x = np.where(x >= threshold, x, 0)
            x = np.minimum(x, 1)
        layers.append(x)
    return np.array(layers)


@pytest.mark.parametrize(("release", "tau"), (("ci-2.9", 1.0), ("ci-2.10", 10.0), ("ci-2.10", 1.0), ("ci-2.9", 3.0)))
def test_connectome_interpreters_layers(c, release, tau):
    random = np.random.default_rng(5)
    u = random.uniform(-0.3, 1.4, (6, 4)) * (random.random((6, 4)) < 0.8)
    u[2, 1] = 0.005  # below the threshold
    driven = np.array([0, 2, 5, 6])
    rows = [(k, "abcdefghi"[i], u[k, j]) for k in range(6) for j, i in enumerate(driven)]
    pulses = pd.DataFrame(rows, columns=["start", "neuron", "strength"])
    pulses["stop"] = pulses["start"] + 1
    table = simulate(
        c,
        pulses,
        preset=release,
        tau=None if tau in (1.0, 10.0) and release != "ci-2.10" else tau,
        bias=-0.02,
        wide=True,
    )
    got = table.iloc[1:, 1:].to_numpy(float)
    want = interpreter(dense(c), u, release, driven, tau=tau, bias=-0.02)
    np.testing.assert_allclose(got, want, atol=1e-13)
    assert ((want == 0).any() and (want == 1).any()) or release == "ci-2.10"


@pytest.mark.parametrize("release", ("ci-2.9", "ci-2.10"))
def test_their_threshold_and_steepness_may_be_others(c, release):
    random = np.random.default_rng(6)
    u, driven = random.uniform(0, 0.9, (5, 4)), np.array([0, 2, 5, 6])
    rows = [(k, k + 1, "abcdefghi"[i], u[k, j]) for k in range(5) for j, i in enumerate(driven)]
    pulses = pd.DataFrame(rows, columns=["start", "stop", "neuron", "strength"])
    own = {"threshold": 0.2, "steepness": {"cell_type:p": 2.0, "cell_type:q": 3.0}}
    got = simulate(c, pulses, preset=release, wide=True, **own).iloc[1:, 1:].to_numpy(float)
    own["steepness"] = np.array([2.0] * 3 + [3.0] * 4 + [5.0] * 2)
    np.testing.assert_allclose(
        got, interpreter(dense(c), u, release, driven, tau=RELEASE_TAU[release], **own), atol=1e-13
    )
    for name in own:
        with pytest.raises(ValueError, match=f"{name}: expected None"):
            simulate(c, pulses, **{name: 1.0})


@pytest.mark.parametrize("release", ("ci-2.9", "ci-2.10"))
def test_the_gradient_of_the_layers_is_that_of_differences(c, release):
    random = np.random.default_rng(3)
    u, driven = random.uniform(0.05, 0.8, (5, 4)), np.array([0, 2, 5, 6])
    steep = {"cell_type:p": 2.0, "cell_type:q": 3.0}
    net = layered(c, release, steepness=steep, tau={"cell_type:r": 2.0})
    weights = random.normal(size=(5, N, 2))
    leaf = torch.from_numpy(np.stack([u, u[::-1]], -1).copy()).requires_grad_()
    (net(leaf, torch.from_numpy(driven)) * torch.from_numpy(weights)).sum().backward()
    tau = np.array([RELEASE_TAU[release]] * 7 + [2.0] * 2)
    how = {"steepness": np.array([2.0] * 3 + [3.0] * 4 + [5.0] * 2), "tau": tau}

    def R(u, k):
        return (interpreter(dense(c), u, release, driven, **how) * weights[..., k]).sum()

    for k, one in enumerate((u, u[::-1].copy())):
        for at in np.ndindex(u.shape):
            h = np.zeros_like(u)
            h[at] = 1e-6
            want = (R(one + h, k) - R(one - h, k)) / 2e-6
            assert abs(float(leaf.grad[(*at, k)]) - want) < 1e-7 * (1 + abs(want)), at


RELEASE_TAU = {"ci-2.9": 1.0, "ci-2.10": 10.0}

BAD = {
    "no columns": (pd.DataFrame({"neuron": ["a"], "start": [0]}), {}, "stop, strength not found"),
    "no neuron": (pd.DataFrame({"start": [0], "stop": [1], "strength": [1]}), {}, "neuron not found"),
    "unknown": (pd.DataFrame({"neuron": ["aa"], "start": [0], "stop": [1], "strength": [1]}), {}, "did you mean a"),
    "backwards": (pd.DataFrame({"neuron": ["a"], "start": [3], "stop": [1], "strength": [1]}), {}, "stop after start"),
    "early": (pd.DataFrame({"neuron": ["a"], "start": [-3], "stop": [1], "strength": [1]}), {}, "start of at least 0"),
    "NaN": (
        pd.DataFrame({"neuron": ["a"], "start": [0], "stop": [1], "strength": [np.nan]}),
        {},
        "strength: 1 of 1 numbers are",
    ),
    "text": (pd.DataFrame({"neuron": ["a"], "start": [0], "stop": [1], "strength": ["x"]}), {}, "expected numbers"),
    "empty": (
        pd.DataFrame({"neuron": ["a"], "start": [0.0], "stop": [1.0], "strength": [1.0]}).head(0),
        {},
        "at least one row",
    ),
    "type": (
        pd.DataFrame({"cell_type": ["z"], "start": [0], "stop": [1], "strength": [1]}),
        {},
        "no neuron has the cell_type 'z'",
    ),
    "NaN in a mapping": ({"a": np.nan}, {"duration": 3}, "NaN or infinite"),
    "no duration": ({"a": 1.0}, {}, "duration: expected how long"),
    "endless": ({"a": 1.0}, {"duration": np.inf}, "duration: expected a finite"),
    "tau": ({"a": 1.0}, {"duration": 3, "tau": 0.5}, "tau: expected at least dt = 1"),
    "dt": ({"a": 1.0}, {"duration": 3, "dt": 0.0}, "dt: expected"),
    "bias": (
        {"a": 1.0},
        {"duration": 3, "bias": "nothing"},
        "bias: expected a column of the neurons",
    ),
    "bias of text": ({"a": 1.0}, {"duration": 3, "bias": "cell_type"}, "bias, cell_type: 9 of 9 numbers are missing"),
    "form": ({"a": 1.0}, {"duration": 3, "form": "spikes"}, "form: expected one of"),
    "by": ({"a": 1.0}, {"duration": 3, "by": "side"}, "by: expected a column of the neurons, .* got 'side'"),
    "record": ({"a": 1.0}, {"duration": 3, "record": ["z"]}, "record: 1 of 1 ids"),
    "too long": ({"a": 1.0}, {"duration": 10**8}, "record: expected fewer"),
    "scale": ({"a": 1.0}, {"duration": 3, "scale": -1.0}, "scale: expected"),
    "preset": ({"a": 1.0}, {"duration": 3, "preset": "ci-1"}, "preset: expected one of ci-2.9"),
    "tau of a preset": ({"a": 1.0}, {"duration": 3, "preset": "ci-2.10", "tau": 0.5}, "tau: expected at least 1 step"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(c, case):
    stimulus, how, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        simulate(c, stimulus, **how)


@pytest.fixture
def files(c, pulses, tmp_path):
    c.edges[["pre", "post", "weight"]].assign(count=1).to_csv(tmp_path / "edges.csv", index=False)
    c.neurons[["id", "cell_type", "rest"]].to_csv(tmp_path / "neurons.csv", index=False)
    pulses.to_csv(tmp_path / "pulses.csv", index=False)
    return [str(tmp_path / "edges.csv"), "--neurons", str(tmp_path / "neurons.csv"), "--weights", "weight"]


def run(*words):
    return CliRunner().invoke(app, ["simulate", *map(str, words)])


def test_the_command_gives_what_the_function_gives(c, pulses, files, tmp_path):
    out, figure, page = tmp_path / "out.csv", tmp_path / "out.png", tmp_path / "out.html"
    words = ["--stimulus", tmp_path / "pulses.csv", "--tau", "2", "--bias", "rest", "--duration", "6"]
    told = run(*files, *words, "--out", out, "--figure", figure, "--report", page)
    assert told.exit_code == 0, told.output
    want = simulate(c, pulses, tau=2.0, bias="rest", duration=6)
    pd.testing.assert_frame_equal(pd.read_csv(out), want, check_dtype=False)
    assert figure.read_bytes().startswith(b"\x89PNG") and "<svg" in page.read_text("utf-8")
    wide = tmp_path / "wide.parquet"
    told = run(*files, *words, "--wide", "--by", "cell_type", "--form", "voltage", "--out", wide)
    assert told.exit_code == 0, told.output
    got = simulate(c, pulses, tau=2.0, bias="rest", duration=6, form="voltage", by="cell_type", wide=True)
    pd.testing.assert_frame_equal(pd.read_parquet(wide), got)


@pytest.mark.parametrize(
    ("words", "message"),
    (
        ([], "expected a table or --source, got neither"),
        (["--source", "aa", "--duration", "3"], "did you mean a"),
        (["--source", "a"], "duration: expected how long"),
        (["--source", "a=x", "--duration", "3"], "expected a number behind"),
        (["--stimulus", "nowhere.csv"], "no such file"),
        (["--source", "a", "--duration", "3", "--tau", "slow"], "--tau: expected a column of the neurons"),
        (["--source", "a", "--duration", "3", "--tau", "0.5"], "tau: expected at least dt"),
        (["--source", "a", "--duration", "3", "--tau", "3", "4"], "--tau: expected one number or column"),
        (["--source", "a", "--duration", "3", "--tau", "3", "a=4"], "--tau: expected a number behind each id"),
        (["--source", "a", "--duration", "3", "--bias", "a=x"], "--bias: expected a number behind each ="),
    ),
)
def test_bad_words_are_told_in_a_line(files, words, message):
    told = run(*files, *words)
    assert told.exit_code == 2 and message in told.output and "Traceback" not in told.output


def test_a_stimulus_that_stops_before_it_starts_is_told_by_the_command(files, tmp_path):
    (tmp_path / "bad.csv").write_text("neuron,start,stop,strength\na,5,2,1\n")
    told = run(*files, "--stimulus", tmp_path / "bad.csv")
    assert told.exit_code == 2 and "stop after start" in told.output and "row 1" in told.output
    (tmp_path / "bad.csv").write_text("neuron,start,stop,strength\na,0,2,nan\n")
    told = run(*files, "--stimulus", tmp_path / "bad.csv")
    assert told.exit_code == 2 and "strength" in told.output
