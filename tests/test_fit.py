"""Fits to activities that a plain network of known parameters made, and what a fit says of its own certainty."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from typer.testing import CliRunner

import retrograde as rg
from retrograde.cli.app import app
from retrograde.connectome import adjustable, fit, misfit, read, sensitivities
from retrograde.connectome.certainty import certainty
from retrograde.connectome.eigenvalues import largest_real_eigenvalue

TYPES = list("ABC")
PLAIN = {"tanh": np.tanh, "sigmoid": lambda u: 1 / (1 + np.exp(-u)), "softplus": lambda u: np.log1p(np.exp(u))}


def network(n=24, seed=0):
    """A signed network, not symmetric, of three types, and of one neuron of none."""
    rng = np.random.default_rng(seed)
    M = rng.gamma(2.0, size=(n, n)) * (rng.random((n, n)) < 0.4) * np.where(np.arange(n) % 3 == 1, -1, 1)
    names = np.array([f"n{i:02}" for i in range(n)])
    neurons = pd.DataFrame({"id": names, "cell_type": [TYPES[i % 3] for i in range(n)]})
    edges = read(M, orientation="post_pre", ids=names).edges[["pre", "post", "weight"]]
    return read(edges, neurons, weights="weight")


class Truth:
    """A network of known parameters, in NumPy alone."""

    def __init__(self, c, scale, *, f="tanh", gain=1.0, bias=0.0, strength=None, tau=None, dt=None):
        types = c.neurons["cell_type"].to_numpy()

        def each(given):
            return np.array([given.get(t, np.nan) if isinstance(given, dict) else given for t in types])

        W = c.W.dense().detach().numpy()
        self.M = scale / np.linalg.eigvals(W).real.max() * W
        if strength:
            self.M = self.M * np.array([[strength[pre, post] for pre in types] for post in types])
        self.f, self.gain, self.bias, self.tau, self.dt = PLAIN[f], each(gain), each(bias), each(tau), dt

    def step(self, x, h):
        return self.f(self.gain * (x @ self.M.T + h + self.bias))

    def steady(self, h):
        x = np.zeros_like(h)
        for _ in range(4000):
            x = x + 0.5 * (self.step(x, h) - x)
        return x

    def path(self, h):
        """h is (steps, conditions, n)."""
        x, found = np.zeros_like(h[0]), []
        for now in h:
            x = x + self.dt / self.tau * (self.step(x, now) - x)
            found.append(x)
        return np.array(found)


def drives(c, conditions=6, seed=1, size=1.0, of=slice(None)):
    """(conditions, n) as an array and as a table."""
    rng = np.random.default_rng(seed)
    h = np.zeros((conditions, len(c)))
    h[:, of] = size * rng.normal(size=h[:, of].shape) * (rng.random(h[:, of].shape) < 0.5)
    rows = [(c.ids[i], f"k{k}", h[k, i]) for k, i in zip(*np.nonzero(h), strict=True)]
    return h, pd.DataFrame(rows, columns=["neuron", "condition", "strength"])


def table(c, x, seed=2, part=0.6):
    """Some of the activities (conditions, n), or (steps, conditions, n) at dt = 0.5, as a table."""
    rng = np.random.default_rng(seed)
    some = np.nonzero(rng.random(x.shape) < part)
    found = pd.DataFrame({"neuron": c.ids[some[-1]], "condition": [f"k{k}" for k in some[-2]], "activity": x[some]})
    return found if x.ndim == 2 else found.assign(time=0.5 * (some[0] + 1))


def known(found, **true):
    """The values that are known, in the order of the table of parameters."""
    rows = found.parameters
    post = rows["post"] if "post" in rows else [None] * len(rows)
    return np.array(
        [
            true[k][(g, p)] if k == "strength" else true[k][g]
            for k, g, p in zip(rows["kind"], rows["group"], post, strict=True)
        ]
    )


GAIN, BIAS = {"A": 1.4, "B": 0.7, "C": 0.9}, {"A": 0.2, "B": -0.3, "C": 0.1}
TAU = {"A": 1.0, "B": 3.0, "C": 0.8}
PAIRS = {(a, b): 0.6 + 0.2 * i for i, (a, b) in enumerate((a, b) for a in TYPES for b in TYPES)}


@pytest.mark.parametrize("f", list(PLAIN))
def test_gains_and_biases_are_recovered_from_steady_states(f):
    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, f=f, gain=GAIN, bias=BIAS).steady(h))
    found = fit(c, recorded, drive, f=f, scale=0.6)
    assert found.converged and found.parameters["determined"].all() and found.rank == 6
    assert np.abs(found.parameters["value"] - known(found, gain=GAIN, bias=BIAS)).max() < 1e-6
    assert list(found.errors["numbers"]) == ["fitted", "held out"] and (found.errors["rmse"] < 1e-8).all()
    assert found.attrs["margin"] > 0 and not found.notes


@pytest.mark.parametrize("method", ("gauss-newton", "lbfgs"))
def test_strengths_of_pairs_of_types_are_recovered_and_keep_their_signs(method):
    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, strength=PAIRS).steady(h))
    found = fit(c, recorded, drive, parameters="strength", scale=0.6, method=method, max_steps=2000)
    limit = 1e-6 if method == "gauss-newton" else 1e-3
    assert np.abs(found.parameters["value"] - known(found, strength=PAIRS)).max() < limit
    (W,) = found.network.W.weights
    assert (torch.sign(W) == torch.sign(c.W.weight)).all()


def test_time_constants_are_recovered_along_time_with_stimuli_that_come_and_go():
    c = network()
    rng = np.random.default_rng(5)
    who = rng.choice(len(c), 8, replace=False)
    drive = pd.DataFrame(
        {
            "neuron": np.tile(c.ids[who], 2),
            "condition": np.repeat(["k0", "k1"], 8),
            "start": np.tile(np.arange(8) * 0.5, 2),
            "stop": np.tile(np.arange(8) * 0.5 + 2.25, 2),  # half a step
            "strength": rng.normal(size=16),
        }
    )
    h = np.zeros((20, 2, len(c)))
    for row in drive.itertuples():
        for t in range(20):
            part = max(0.0, min(row.stop, 0.5 * (t + 1)) - max(row.start, 0.5 * t)) / 0.5
            h[t, int(row.condition[1]), c.index(row.neuron)] += part * row.strength
    recorded = table(c, Truth(c, 0.8, gain=GAIN, tau=TAU, dt=0.5).path(h))
    found = fit(c, recorded, drive, parameters=["gain", "tau"], scale=0.8, dt=0.5, hold_out_by="neuron")
    assert np.abs(found.parameters["value"] - known(found, gain=GAIN, tau=TAU)).max() < 1e-6
    assert (found.errors["rmse"] < 1e-8).all() and np.isnan(found.attrs["margin"])
    x = rg.trajectory(found.network.W, found.gain * torch.from_numpy(h) + found.bias, leak=found.network.leak).x
    assert np.allclose(x.detach(), Truth(c, 0.8, gain=GAIN, tau=TAU, dt=0.5).path(h), atol=1e-8)


def test_a_constant_drive_along_time():
    c = network()
    h, drive = drives(c, 3)
    recorded = table(c, Truth(c, 0.8, bias=BIAS, tau=TAU, dt=0.5).path(np.tile(h, (12, 1, 1))))
    found = fit(c, recorded, drive, parameters=["bias", "tau"], scale=0.8, dt=0.5)
    assert np.abs(found.parameters["value"] - known(found, bias=BIAS, tau=TAU)).max() < 1e-6


def jacobian_of(c, recorded, drive, theta, **how):
    """The Jacobian that a fit computes, and its residuals as a function of θ."""
    from retrograde.connectome import fitted

    kept = {}

    class Kept(fitted.Misfit):
        def __init__(self, *args):
            super().__init__(*args)
            kept["misfit"] = self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitted, "Misfit", Kept)
        fit(c, recorded, drive, max_steps=1, throw=False, uncertainty=False, **how)
    misfit = kept["misfit"]
    return misfit.jacobian(theta), misfit.residual


@pytest.mark.parametrize(("dt", "part", "route"), ((None, 0.2, "adjoints"), (None, 0.6, "tangents"), (0.5, 0.6, "")))
def test_the_jacobian_against_finite_differences(dt, part, route, monkeypatch):
    """At steady states by 15 tangents in each of six conditions, or by an adjoint for each number if these are few."""
    asked = []
    for name in ("_by_adjoints", "_by_tangents"):
        plain = getattr(sensitivities, name)
        monkeypatch.setattr(sensitivities, name, lambda *a, plain=plain, name=name: (asked.append(name), plain(*a))[1])
    c = network()
    h, drive = drives(c)
    x = Truth(c, 0.6).steady(h)
    recorded = table(c, x if dt is None else np.tile(x, (5, 1, 1)), part=part).assign(sd=0.3)
    kinds = ["gain", "bias", "strength"] + ["tau"] * (dt is not None)
    theta = 0.3 * np.random.default_rng(3).normal(size=15 + 3 * (dt is not None))
    theta[15:] += 1
    J, residual = jacobian_of(c, recorded, drive, theta, parameters=kinds, scale=0.6, dt=dt)
    assert set(asked) == ({f"_by_{route}"} if route else set())
    h = 2e-4

    def slope(d):  # to fourth order
        near, far = (residual(theta + k * h * d) - residual(theta - k * h * d) for k in (1, 2))
        return (8 * near - far) / (12 * h)

    differences = np.stack([slope(d) for d in np.eye(len(theta))], 1)
    assert J.shape == differences.shape and np.abs(J - differences).max() < 1e-8 * np.abs(J).max()


def test_a_95_percent_interval_holds_the_truth_in_95_percent_of_fits():
    c = network(12)
    h, drive = drives(c, 8)
    clean = table(c, Truth(c, 0.6, gain=GAIN).steady(h), part=1.0)
    inside, noise, drawn = [], [], []
    for seed in range(40):
        by = 0.05 * np.random.default_rng(seed).normal(size=len(clean))
        noisy = clean.assign(activity=clean["activity"] + by)
        found = fit(c, noisy, drive, parameters="gain", scale=0.6, hold_out=0)
        truth = known(found, gain=GAIN)
        inside.append((found.parameters["low"] < truth) & (truth < found.parameters["high"]))
        noise.append(found.attrs["noise"])
        drawn.append(np.sqrt(np.mean(by**2)))
    assert abs(np.mean(inside) - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 120)
    assert np.isclose(np.mean(noise), np.mean(drawn), rtol=0.005)


def test_noise_that_is_known_scales_the_standard_errors():
    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, gain=GAIN).steady(h))
    one, two = (fit(c, recorded.assign(sd=sd), drive, parameters="gain", scale=0.6) for sd in (0.1, 0.2))
    assert np.allclose(2 * one.parameters["standard_error"], two.parameters["standard_error"], rtol=1e-6)
    assert np.isnan(one.attrs["noise"])  # it was given


def test_what_the_data_do_not_pin_down_has_an_infinite_standard_error():
    c = network()
    h, drive = drives(c, of=slice(0, None, 3))  # A alone is driven: gains of B and C and strengths to them are one
    recorded = table(c, Truth(c, 0.6).steady(h))
    found = fit(c, recorded, drive, parameters=["gain", "strength"], scale=0.6)
    rows = found.parameters
    one = (rows["kind"] == "gain") & (rows["group"] != "A") | (rows["kind"] == "strength") & (rows["post"] != "A")
    assert np.isinf(rows["standard_error"][one]).all() and not rows["determined"][one].any()
    assert np.isfinite(rows["standard_error"][~one]).all() and rows["determined"][~one].all()
    assert found.rank == 10 and "pin down 10 of 12 combinations, and 8 parameters" in " ".join(found.notes)
    assert np.isinf(found.combinations["standard_error"][:2]).all()
    assert np.isfinite(found.combinations["standard_error"][2:]).all()
    assert "gain[B]" in " ".join(found.combinations["combination"][:2])


def test_certainty_is_the_inverse_of_the_gauss_newton_matrix():
    rng = np.random.default_rng(0)
    J, residual = rng.normal(size=(30, 4)), rng.normal(size=30)
    found = certainty(J, residual, None)
    covariance = residual @ residual / 26 * np.linalg.inv(J.T @ J)
    assert np.allclose(found.standard_error, np.sqrt(np.diag(covariance))) and found.rank == 4
    doubled = certainty(J[:, [0, 1, 2, 2]], residual, None)
    assert doubled.rank == 3 and list(np.isinf(doubled.standard_error)) == [False, False, True, True]
    few = certainty(J[:3], residual[:3], None)
    assert np.isnan(few.noise) and np.isinf(few.standard_error).all()
    assert np.isinf(certainty(J[:3], residual[:3], 1.0).standard_error).all()
    nothing = certainty(np.zeros((5, 2)), residual[:5], None)
    assert nothing.rank == 0 and np.isinf(nothing.standard_error).all()


def test_as_many_parameters_as_numbers_leave_no_noise_to_estimate():
    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, gain=GAIN).steady(h)).head(3)
    found = fit(c, recorded, drive, parameters="gain", scale=0.6, hold_out=0, throw=False)
    assert np.isinf(found.parameters["standard_error"]).all() and "no more numbers" in " ".join(found.notes)


def test_what_is_held_out_is_not_fitted_and_depends_on_the_seed():
    c = network()
    h, drive = drives(c, 10)
    clean = table(c, Truth(c, 0.6, gain=GAIN).steady(h))
    noisy = clean.assign(activity=clean["activity"] + 0.05 * np.random.default_rng(0).normal(size=len(clean)))
    how = {"parameters": "gain", "scale": 0.6, "hold_out": 0.3}
    found = fit(c, noisy, drive, **how)
    rows = found.activities
    out = rows[rows["held_out"]]
    assert set(out["condition"]).isdisjoint(rows[~rows["held_out"]]["condition"]) and out["condition"].nunique() == 3
    moved = noisy.assign(activity=noisy["activity"] + 100.0 * rows["held_out"])
    again = fit(c, moved, drive, **how)
    assert (again.parameters["value"] == found.parameters["value"]).all()
    assert np.isclose(found.errors["rmse"][1], np.sqrt(np.mean((out["predicted"] - out["activity"]) ** 2)))
    assert not (fit(c, noisy, drive, **how, seed=1).activities["held_out"] == rows["held_out"]).all()
    by_neuron = fit(c, noisy, drive, **how, hold_out_by="neuron").activities
    assert set(by_neuron[by_neuron["held_out"]]["neuron"]).isdisjoint(by_neuron[~by_neuron["held_out"]]["neuron"])


def test_of_one_condition_nothing_is_held_out_and_that_is_said():
    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, gain=GAIN).steady(h))
    recorded = recorded[recorded["condition"] == "k0"]
    found = fit(c, recorded, drive, parameters="gain", scale=0.6, throw=False)
    assert not found.activities["held_out"].any() and list(found.errors["numbers"]) == ["fitted"]
    assert "one condition was recorded, so nothing is held out" in " ".join(found.notes)
    asked = fit(c, recorded, drive, parameters="gain", scale=0.6, hold_out=0, throw=False)
    assert "nothing is held out" not in " ".join(asked.notes)
    by_neuron = fit(c, recorded, drive, parameters="gain", scale=0.6, hold_out_by="neuron", throw=False)
    assert by_neuron.activities["held_out"].any() and "nothing is held out" not in " ".join(by_neuron.notes)


def test_many_parameters_of_single_neurons_and_those_of_no_type():
    c = network()
    h, drive = drives(c, 8)
    gain = np.random.default_rng(0).uniform(0.6, 1.4, len(c))
    truth = Truth(c, 0.6)
    truth.gain = gain
    recorded = table(c, truth.steady(h), part=1.0)
    found = fit(c, recorded, drive, parameters="gain", tie="id", scale=0.6)
    assert np.abs(found.parameters.set_index("group").loc[list(c.ids), "value"] - gain).max() < 1e-6
    some = c.neurons.assign(cell_type=["", None, *["A"] * 22])
    c = read(c.edges[["pre", "post", "weight"]], some, weights="weight")
    found = fit(c, recorded, drive, parameters="gain", scale=0.6, throw=False)
    assert "2 neurons have no cell_type" in found.notes[0] and list(found.parameters["group"]) == ["A"]
    assert (found.gain[:2] == 1).all() and (found.gain[2:] == found.parameters["value"][0]).all()


def test_what_is_not_fitted_stays_at_its_start():
    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, gain=GAIN, bias=BIAS).steady(h))
    found = fit(c, recorded, drive, parameters="gain", start={"bias": BIAS, "gain": {"A": 2.0}}, scale=0.6)
    assert np.abs(found.parameters["value"] - known(found, gain=GAIN)).max() < 1e-6


def test_silenced_neurons_have_no_outputs_and_leave_the_scale():
    c = network()
    h, drive = drives(c)
    truth = Truth(c, 0.6, gain=GAIN)
    truth.M[:, [3, 4]] = 0
    found = fit(c, table(c, truth.steady(h)), drive, parameters="gain", scale=0.6, silence=["n03", "n04"])
    assert np.abs(found.parameters["value"] - known(found, gain=GAIN)).max() < 1e-6


def test_fits_that_fail_say_so():
    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, gain=GAIN, bias=BIAS).steady(h))
    with pytest.raises(rg.ConvergenceError, match=r"fit: .* after 2 evaluations") as caught:
        fit(c, recorded, drive, scale=0.6, max_steps=2)
    assert not caught.value.result.converged and "not converged" in " ".join(caught.value.result.notes)
    assert not fit(c, recorded, drive, scale=0.6, max_steps=2, throw=False).converged
    path = table(c, np.tile(h, (400, 1, 1)), part=0.05)
    with pytest.raises(rg.ConvergenceError, match="no activities are found at the start"):
        fit(c, path, drive, parameters="gain", f="identity", scale=50.0, dt=0.5, start={"tau": 0.5})


@pytest.mark.parametrize("method", ("gauss-newton", "lbfgs"))
def test_a_start_on_the_edge_of_instability_says_what_to_do(method):
    c = read(pd.DataFrame({"pre": ["a", "b"], "post": ["b", "a"], "count": [1, 1]}))
    recorded = pd.DataFrame({"neuron": ["a", "b"], "activity": [0.1, 0.3]})
    with pytest.raises(rg.ConvergenceError, match=r"fit: at the start .*Give a scale below 1, .* or another start"):
        fit(c, recorded, parameters="bias", tie="id", scale=1.0, method=method)  # at rest D = 1, and I - W is singular


@pytest.mark.parametrize("method", ("gauss-newton", "lbfgs"))
def test_trial_points_without_activities_are_counted_and_left(monkeypatch, method):
    from retrograde.connectome.adjustable import Adjustable

    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, gain=GAIN).steady(h))
    find = Adjustable.predicted

    def predicted(self, theta):  # a cliff between the start and what is looked for
        return None if theta.abs().max() > 0.3 else find(self, theta)

    monkeypatch.setattr(Adjustable, "predicted", predicted)
    found = fit(c, recorded, drive, parameters="gain", scale=0.6, method=method, throw=False, max_steps=60)
    assert found.attrs["states_not_found"] > 0 and not found.converged
    start = fit(c, recorded, drive, parameters="gain", scale=0.6, throw=False, max_steps=1)
    assert found.attrs["cost"] < 0.5 * start.attrs["cost"]
    assert "the network had no activities" in " ".join(found.notes)


def test_parameters_that_overflow_leave_no_activities():
    c = network()
    h, drive = drives(c)
    recorded = table(c, np.zeros_like(h))
    _, residual = jacobian_of(c, recorded, drive, np.zeros(3), parameters="gain", scale=0.6)
    assert np.isfinite(residual(np.zeros(3))).all()
    assert np.isinf(residual(np.array([800.0, 0.0, 0.0]))).all()
    assert np.isinf(residual(np.array([709.0, 0.0, 0.0]))).all()  # finite itself, and its products not


def test_a_fit_that_ends_in_an_unstable_state_says_so():
    c = network()
    drive = pd.DataFrame({"neuron": [c.ids[0]], "strength": [0.0]})
    recorded = pd.DataFrame({"neuron": c.ids, "activity": 0.0})
    found = fit(c, recorded, drive, parameters="gain", scale=3.0, hold_out=0, throw=False)
    eigenvalue = largest_real_eigenvalue(found.network.W)
    assert np.isclose(found.attrs["margin"], 1 - eigenvalue) and "unstable in continuous time" in " ".join(found.notes)


def test_what_f_does_not_reach_is_told():
    c = network()
    recorded = pd.DataFrame({"neuron": c.ids, "activity": [5.0, -1.0, 1.0, *np.full(len(c) - 3, 0.1)]})
    drive = pd.DataFrame({"neuron": [c.ids[0]], "strength": [1.0]})
    found = fit(c, recorded, drive, parameters="gain", hold_out=0, throw=False)
    assert any("3 of 24 entries lie outside the range of tanh" in note for note in found.notes)
    found = fit(c, recorded.assign(activity=0.1), drive, parameters="gain", hold_out=0, throw=False)
    assert not any("outside" in note for note in found.notes)


BAD = [
    (lambda r, d: (r.drop(columns="activity"), d), {}, "expected the columns neuron and activity; activity not found"),
    (lambda r, d: (r.head(0), d), {}, "recorded: expected at least one row"),
    (lambda r, d: (r.assign(neuron="nobody"), d), {}, "recorded: .* ids are not in the connectome: nobody"),
    (lambda r, d: (r.assign(activity=np.nan), d), {}, "are NaN or infinite|are missing"),
    (lambda r, d: (pd.concat([r, r.head(1)]), d), {}, "is there more than once"),
    (lambda r, d: (r.assign(sd=0.0), d), {}, "sd: expected numbers > 0, got 0"),
    (lambda r, d: (r.assign(time=1.0), d), {}, "dt: expected the length of a step"),
    (lambda r, d: (r, d), {"dt": 0.5}, "recorded: expected a column of times"),
    (lambda r, d: (r.assign(time=0.7), d), {"dt": 0.5}, "expected multiples of dt = 0.5, from dt on, got 0.7"),
    (lambda r, d: (r, d), {"dt": -1.0}, "dt: expected a finite length"),
    (lambda r, d: (r, d.drop(columns="strength")), {}, "drive: expected the columns neuron and strength"),
    (lambda r, d: (r, d.assign(condition="other")), {}, "drive: none of its conditions, such as 'other'"),
    (lambda r, d: (r, d.assign(start=0.0)), {}, "drive: expected no column 'start' at a steady state"),
    (lambda r, d: (r.assign(time=1.0), d.assign(start=2.0, stop=1.0)), {"dt": 0.5}, "expected stop after start"),
    (lambda r, d: (r, {"nobody": 1.0}), {}, "drive: 1 of 1 ids"),
    (lambda r, d: (r, d), {"parameters": "gains"}, "parameters: expected some of gain, bias, tau, strength"),
    (lambda r, d: (r, d), {"parameters": []}, "parameters: expected some of .* got none"),
    (lambda r, d: (r, d), {"parameters": "tau"}, "parameters: tau decides on no steady state"),
    (lambda r, d: (r, d), {"start": {"gains": 1}}, "start: expected some of gain, bias, tau, strength"),
    (lambda r, d: (r, d), {"start": {"tau": 1}}, "start: tau decides on no steady state"),
    (lambda r, d: (r, d), {"tie": "colour"}, "tie: expected a column of the neurons"),
    (lambda r, d: (r, d), {"start": {"gain": -1}}, "start, gain: expected numbers > 0, got -1"),
    (lambda r, d: (r, d), {"start": {"gain": {"Z": 1}}}, "start, gain: there is no group 'Z'"),
    (lambda r, d: (r, d), {"start": {"gain": [1]}}, "start, gain: expected a number, or one for each group"),
    (lambda r, d: (r.assign(time=1.0), d), {"dt": 0.5, "start": {"tau": 0.1}}, "at least dt = 0.5, got 0.1"),
    (lambda r, d: (r, d), {"hold_out": 1.0}, "hold_out: expected a part"),
    (lambda r, d: (r, d), {"hold_out_by": "side"}, "hold_out_by: expected 'condition' or 'neuron'"),
    (lambda r, d: (r, d), {"hold_out": 0.99}, "give hold_out_by='neuron' or hold_out=0"),
    (
        lambda r, d: (r[r["neuron"] == r["neuron"].iloc[0]], d),
        {"hold_out_by": "neuron"},
        "expected more than one neuron that was recorded",
    ),
    (lambda r, d: (r, d), {"silence": ["nobody"]}, "silence: 1 of 1 ids"),
    (lambda r, d: (r, d), {"method": "newton"}, "method: expected"),
    (lambda r, d: (r, d), {"max_steps": 0}, "max_steps: expected a number"),
    (lambda r, d: (r, d), {"scale": 0.0}, "scale: expected a finite scale"),
]


@pytest.mark.parametrize(("change", "how", "said"), BAD)
def test_bad_tables_and_options_are_said(change, how, said):
    c = network(12)
    h, drive = drives(c)
    recorded = table(c, np.zeros_like(h))
    with pytest.raises(ValueError, match=said):
        fit(c, *change(recorded, drive), **how)


@pytest.fixture
def files(tmp_path):
    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, gain=GAIN, bias=BIAS).steady(h))
    named = {"edges": c.edges, "neurons": c.neurons[["id", "cell_type"]], "recorded": recorded, "drive": drive}
    for name, each in named.items():
        each.to_csv(tmp_path / f"{name}.csv", index=False)
    path = {name: str(tmp_path / f"{name}.csv") for name in named}
    said = ["fit", path["edges"], "--neurons", path["neurons"], "--weights", "weight", "--scale", "0.6"]
    return tmp_path, [*said, "--recorded", path["recorded"], "--drive", path["drive"]]


def test_the_command_fits_and_writes_its_answer(files):
    folder, said = files
    out, report = folder / "found.csv", folder / "page.html"
    run = CliRunner().invoke(app, [*said, "--parameters", "gain", "bias", "--out", str(out), "--report", str(report)])
    assert run.exit_code == 0, run.output
    found = pd.read_csv(out)
    assert np.abs(found["value"] - [*GAIN.values(), *BIAS.values()]).max() < 1e-6 and found["determined"].all()
    page = report.read_text(encoding="utf-8")
    assert all(title in page for title in ("Recorded and predicted", "The parameters", "what the data pin down worst"))


def test_the_command_tells_in_json_what_is_not_pinned_down(files):
    folder, said = files
    drive = pd.DataFrame({"neuron": ["n00"], "strength": [1.0]})
    drive.to_csv(folder / "drive.csv", index=False)
    run = CliRunner().invoke(app, [*said, "--parameters", "gain", "strength", "--json", "--top", "30"])
    assert run.exit_code == 0, run.output
    open_ones = [row for row in json.loads(run.stdout) if row["standard_error"] == "inf"]
    assert open_ones and not any(row["determined"] for row in open_ones)


def test_the_command_says_what_is_wrong(files):
    folder, said = files
    run = CliRunner().invoke(app, [*said, "--max-steps", "2"])
    assert run.exit_code == 1 and "after 2 evaluations" in run.output
    run = CliRunner().invoke(app, [*said, "--parameters", "tau"])
    assert run.exit_code == 2 and "tau decides on no steady state" in run.output
    run = CliRunner().invoke(app, [*said, "--start", "bias"])
    assert run.exit_code == 2 and "--start: expected NAME=VALUE, got 'bias'" in run.output
    run = CliRunner().invoke(app, [*said[:-1], str(folder / "nothing.csv")])
    assert run.exit_code == 2 and "nothing.csv" in run.output


@pytest.mark.parametrize("not_found", (0, 1))
def test_a_fit_whose_last_jacobian_fails_is_kept_and_says_so(files, monkeypatch, not_found):
    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, gain=GAIN).steady(h))
    search = scipy.optimize.least_squares

    def fails(*_):
        raise rg.ConvergenceError("adjoint: failed. Try Direct().", None)

    def searched(residual, *args, **how):
        found = search(residual, *args, **how)
        residual.__self__.not_found = not_found
        monkeypatch.setattr(misfit, "jacobian", fails)
        return found

    exact, told = misfit.jacobian, fit(c, recorded, drive, parameters="gain", scale=0.6)
    monkeypatch.setattr(scipy.optimize, "least_squares", searched)
    found = fit(c, recorded, drive, parameters="gain", scale=0.6, throw=False)
    assert found.rank is None and found.combinations.empty and np.isnan(found.attrs["noise"])
    assert np.array_equal(found.parameters["value"], told.parameters["value"])
    assert found.parameters["standard_error"].isna().all()
    (note,) = (each for each in found.notes if "no standard errors could be told: after" in each)
    assert "I - DW is singular or nearly so" in note and "Direct" not in note
    # Of a search that met points without activities, the Jacobian tells whether it ended at a minimum, too.
    assert found.converged == (not not_found) == ("whether this is a minimum is not known" not in found.message)
    if not not_found:
        monkeypatch.setattr(misfit, "jacobian", exact)
        folder, said = files
        run = CliRunner().invoke(app, [*said, "--parameters", "gain", "bias", "--report", str(folder / "page.html")])
        assert run.exit_code == 0 and "no standard errors could be told" in run.output


def test_that_stability_is_not_looked_at_is_told(monkeypatch):
    c = network()
    h, drive = drives(c)
    recorded = table(c, Truth(c, 0.6, gain=GAIN).steady(h))
    unknown = "whether the steady states are stable is not looked at"
    assert not any(unknown in note for note in fit(c, recorded, drive, parameters="gain", scale=0.6).notes)
    monkeypatch.setattr(adjustable, "SMALL", 10)
    assert any(unknown in note for note in fit(c, recorded, drive, parameters="gain", scale=0.6).notes)


def test_eigenvalues_and_singular_values_take_one_thread_and_no_more_memory_than_they_need(monkeypatch):
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="threadpoolctl tells threads; it is in the extra app")
    c = network()
    h, drive = drives(c)
    recorded, seen = table(c, Truth(c, 0.6, gain=GAIN).steady(h)), []

    def watched(module, name):
        call = getattr(module, name)

        def wrapper(*args, **how):
            pools = threadpoolctl.threadpool_info()
            seen.append((name, max(each["num_threads"] for each in pools if each["user_api"] == "blas")))
            return call(*args, **how)

        monkeypatch.setattr(module, name, wrapper)

    for module, name in (np.linalg, "eigvals"), (np.linalg, "svd"), (scipy.optimize, "least_squares"):
        watched(module, name)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        fit(c, recorded, drive, parameters="gain", scale=0.6)
    assert {name for name, _ in seen} == {"eigvals", "svd", "least_squares"} and {threads for _, threads in seen} == {1}
    sizes = []
    svd = np.linalg.svd
    monkeypatch.setattr(
        np.linalg, "svd", lambda *args, **how: sizes.append((found := svd(*args, **how))[0].size) or found
    )
    J = np.random.default_rng(0).normal(size=(500, 3))
    assert certainty(J, np.ones(500), 1.0).rank == 3 and certainty(J[:2], np.ones(2), 1.0).rank == 2
    assert sizes == [1500, 4]
