"""What is said of each sample, against dynamics whose end is known."""

import dataclasses
import math

import pytest
import torch
from problems import (
    DTYPE,
    bistable,
    dead,
    divergent,
    near_critical,
    not_normal,
    oscillating,
    randn,
    saturated,
    scalar,
)

import retrograde as rg
from retrograde.spectrum import eigen, first_order
from retrograde.spectrum.cycles import OfNetwork, course

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def names(verdicts, which="code", of=rg.Verdict):
    return [of(code).name for code in getattr(verdicts, which).flatten().tolist()]


# --- each problem by name


@dtypes
@pytest.mark.parametrize("problem", [scalar, saturated, dead, bistable])
def test_stable(problem, dtype):
    problem = problem(dtype=dtype)
    state = problem.network.steady_state(x0=problem.x0)
    assert names(state.verdict) == ["STABLE"] and names(state.verdict, "fate", rg.Fate) == ["SETTLES"]
    D = problem.f.slope(problem.x[0])
    margin = 1 - torch.linalg.eigvals(D[:, None] * problem.W).abs().max()
    assert state.verdict.margin == pytest.approx(float(margin), rel=1e-5)
    assert str(state.verdict).startswith("stable: the dynamics return to this steady state, with a margin of")


@dtypes
def test_marginal(dtype):
    problem = near_critical(gap=1e-4, dtype=dtype)
    found = problem.network.steady_state(solver=rg.Newton()).verdict
    assert names(found) == ["MARGINAL"] and names(found, "near", rg.Bifurcation) == ["FOLD"]
    assert found.margin.item() == pytest.approx(1e-4, rel=1e-2)
    assert str(found).startswith("marginal: a bifurcation is near, 0.0001 inside it: a fold")
    closer = rg.verdict(problem.network, problem.network.steady_state(solver=rg.Newton()), near=1e-5)
    assert names(closer) == ["STABLE"]


def test_marginal_on_either_side_of_a_hopf():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=DTYPE)
    for gain, side in ((0.995, "inside"), (1.005, "beyond")):
        found = rg.verdict(rg.Network(gain * turn), torch.zeros(2, dtype=DTYPE))
        assert names(found) == ["MARGINAL"] and names(found, "near", rg.Bifurcation) == ["HOPF"]
        assert f"0.005 {side} it: a Hopf" in str(found)


@dtypes
def test_unstable_and_what_the_dynamics_fall_into(dtype):
    problem = oscillating(dtype=dtype)
    state = problem.network.steady_state()  # Newton's method finds what the dynamics leave
    found = state.verdict
    assert names(found) == ["UNSTABLE"] and names(found, "near", rg.Bifurcation) == ["HOPF"]
    assert names(found, "fate", rg.Fate) == ["CYCLE"] and found.period == 4 and found.exponent < 0
    path = problem.network.trajectory(steps=3000, x0=problem.x0).x[-8:].detach()
    assert torch.allclose(path[:4], path[4:], atol=1e-5)
    assert found.amplitude.item() == pytest.approx((path.amax(0) - path.amin(0)).max().item(), rel=1e-5)
    assert "unstable" in str(found) and "period of 4 steps" in str(found)


@dtypes
def test_oscillating(dtype):
    problem = oscillating(dtype=dtype)
    state = problem.network.steady_state(solver=rg.FixedPoint(), throw=False)
    found = state.verdict
    assert names(found) == ["OSCILLATING"] and found.period == 4
    assert found.margin.isnan() and found.margin_continuous.isnan() and found.near == -1
    assert str(found).startswith(
        "oscillating: no steady state was found; the dynamics repeat themselves exactly, with a"
    )


@dtypes
@pytest.mark.parametrize("solver", [rg.FixedPoint(), rg.FixedPoint(max_steps=5), None])
def test_diverging(dtype, solver):
    network = divergent(dtype=dtype).network
    with pytest.raises(rg.ConvergenceError) as raised:
        network.steady_state(solver=solver)
    assert names(raised.value.result.verdict) == ["DIVERGING"]  # the failure knows, too


def test_diverging_slowly():
    ramp = rg.Network(torch.eye(2, dtype=DTYPE), f="relu", b=torch.ones(2, dtype=DTYPE))  # one more each step
    spiral = rg.Network(
        1.002 * torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=DTYPE), f="identity", b=torch.ones(2).double()
    )
    for network in (ramp, spiral):
        state = network.steady_state(solver=rg.FixedPoint(max_steps=50), throw=False)
        assert names(state.verdict) == ["DIVERGING"]


def test_what_a_solver_took_for_converged_as_its_length_overflowed_is_diverging():
    network = divergent(dtype=torch.float32).network
    state = network.steady_state(solver=rg.FixedPoint(max_steps=50), throw=False)
    huge = dataclasses.replace(state, x=torch.full((2,), 1e30), status=torch.tensor(0))
    assert names(rg.verdict(network, huge)) == ["DIVERGING"]


def test_not_found():
    problem = scalar()
    state = problem.network.steady_state(solver=rg.FixedPoint(max_steps=3), throw=False)
    assert names(state.verdict) == ["NOT_FOUND"] and names(state.verdict, "fate", rg.Fate) == ["SETTLES"]
    assert str(state.verdict) == "not found: no steady state was found; the dynamics settle."
    slow = near_critical(gap=1e-5).network.steady_state(solver=rg.FixedPoint(max_steps=3), throw=False)
    assert names(slow.verdict) == ["NOT_FOUND"] and names(slow.verdict, "fate", rg.Fate) == ["UNDECIDED"]


def test_the_middle_of_three():
    problem = bistable()
    found = rg.verdict(problem.network, problem.x.reshape(3, 1, 2))
    assert found.code.shape == (3, 1) and names(found) == ["STABLE", "UNSTABLE", "STABLE"]
    assert names(found, "fate", rg.Fate) == ["SETTLES"] * 3  # pushed off the middle one, it settles elsewhere
    assert str(found) == "2 stable, 1 unstable" and len(found.sentences) == 3
    assert found.stable.tolist() == [[True], [False], [True]]


# --- cycles, and what only looks like one


def turning(angle, gain=1.3, leak=None):
    c, s = math.cos(angle), math.sin(angle)
    W = gain * torch.tensor([[c, -s], [s, c]], dtype=DTYPE)
    return rg.Network(W, b=False, leak=leak)


def ran(net, x, steps=4096):
    with torch.no_grad():
        return course(OfNetwork(net.recurrence, net.total(None).expand(x.shape)), x, steps)


def turns(path):
    """The mean period of what goes round the origin of a plane, by counting."""
    angle = torch.atan2(path[:, 1], path[:, 0])
    steps = torch.remainder(angle.diff() + math.pi, 2 * math.pi) - math.pi
    return 2 * math.pi * len(steps) / abs(float(steps.sum()))


@pytest.mark.parametrize("angle", [0.3, 0.77, 1.9, 2.6])
def test_a_quasi_periodic_cycle_and_its_period(angle):
    net = turning(angle)
    x = torch.tensor([[0.1, 0.05]], dtype=DTYPE)
    found = ran(net, x)
    path = net.trajectory(x0=x, steps=6000).x[2000:, 0].detach()
    assert found.fate == rg.Fate.QUASI_PERIODIC
    assert found.period.item() == pytest.approx(turns(path), rel=1e-3)
    assert found.amplitude.item() == pytest.approx((path.amax(0) - path.amin(0)).max().item(), rel=1e-2)
    assert abs(found.exponent.item()) < 1e-3


def test_a_limit_cycle_in_nearly_continuous_time():
    net = turning(0.7, gain=2.0, leak=0.05)
    state = net.steady_state()
    found = state.verdict
    assert names(found) == ["UNSTABLE"] and names(found, "fate", rg.Fate) == ["QUASI_PERIODIC"]
    path = net.trajectory(x0=torch.tensor([0.1, 0.05], dtype=DTYPE), steps=6000).x[3000:].detach()
    assert found.period.item() == pytest.approx(turns(path), rel=1e-2)


@pytest.mark.parametrize("period", [2, 3, 5, 7])
def test_an_exact_cycle_has_a_whole_period(period):
    ring = torch.roll(3 * torch.eye(period, dtype=DTYPE), 1, 0)  # neuron after neuron, round a ring
    x = -torch.ones(1, period, dtype=DTYPE)
    x[0, 0] = 1
    found = ran(rg.Network(ring, b=False), x)
    assert found.fate == rg.Fate.CYCLE and found.period == period
    assert found.amplitude.item() == pytest.approx(2 * 0.9949015284526289, rel=1e-8)  # 2x, with x = tanh(3x)


@pytest.mark.parametrize(("n", "gain", "leak"), [(60, 2.5, None), (150, 4.0, 0.3)])
def test_chaos_is_told_from_a_cycle(n, gain, leak):
    net = rg.Network(gain * randn(n, n) / n**0.5, b=False, leak=leak)
    found = ran(net, randn(3, n, seed=1))
    assert (found.fate == rg.Fate.APERIODIC).all() and (found.exponent > 0.003).all()
    assert found.period.isnan().all() and (found.amplitude > 1).all()
    # The exponent is the rate at which two nearby paths part.
    x = net.trajectory(x0=randn(1, n, seed=1), steps=2000).x[-1].detach()
    rates = []
    for _ in range(60):
        near = net.trajectory(x0=x + 1e-9 * randn(1, n, seed=2) / n**0.5, steps=50).x[-1].detach()
        x = net.trajectory(x0=x, steps=50).x[-1].detach()
        near_ = net.trajectory(x0=near, steps=50).x[-1].detach()
        after = net.trajectory(x0=x, steps=50).x[-1].detach()
        rates.append(float(((near_ - after).norm() / (near - x).norm()).log()) / 50)
    assert sum(rates) / len(rates) == pytest.approx(float(found.exponent[0]), rel=0.5)


# --- leaks, batches, and what is refused


def test_a_leak_decides():
    W = torch.tensor([[0.0, -1.5], [1.5, 0.0]], dtype=DTYPE)
    plain, leaky = rg.Network(W, b=False), rg.Network(W, b=False, leak=0.2)
    assert names(plain.steady_state().verdict) == ["UNSTABLE"]
    found = leaky.steady_state().verdict
    assert names(found) == ["STABLE"] and found.margin.item() == pytest.approx(1 - abs(0.8 + 0.3j))
    assert found.margin_discrete.item() == pytest.approx(-0.5) and found.margin_continuous.item() == pytest.approx(1)


def test_each_sample_by_itself_and_none_at_all():
    net = rg.Network(torch.tensor([[2.0, 0.0], [0.0, -3.0]]), b=False)
    x = net.steady_state(torch.tensor([[5.0, 9.0], [0.0, 9.0], [5.0, 0.0]]), x0=torch.zeros(2))
    assert names(x.verdict) == ["STABLE", "UNSTABLE", "UNSTABLE"]
    assert names(x.verdict, "fate", rg.Fate) == ["SETTLES", "SETTLES", "CYCLE"]
    alone = net.steady_state(torch.tensor([5.0, 0.0])).verdict
    assert alone.code == rg.Verdict.UNSTABLE and alone.code.shape == () and alone.period == x.verdict.period[2] == 2
    assert x.verdict is x.verdict  # computed once
    none = net.steady_state(torch.zeros(0, 2)).verdict
    assert none.code.shape == (0,) and str(none) == "no samples" and none.sentences == []


def test_a_nonlinearity_whose_slope_needs_the_input():
    net = rg.Network(not_normal(5), f=rg.Pointwise(torch.sin))
    state = net.steady_state(randn(3, 5))
    assert names(state.verdict) == ["STABLE"] * 3


def test_what_is_refused():
    net = rg.Network(not_normal(5))
    input = randn(3, 5)
    state = net.steady_state(input)
    assert names(rg.verdict(net, state, input=input)) == ["STABLE"] * 3
    with pytest.raises(ValueError, match="no steady state of this network as it is now, with this input"):
        rg.verdict(net, state)
    with torch.no_grad():
        net.W.weight.mul_(1.1)
    with pytest.raises(ValueError, match="as it is now"):
        _ = state.verdict
    with pytest.raises(ValueError, match="not found by a Network"):
        _ = rg.steady_state(not_normal(5), randn(5)).verdict
    with pytest.raises(ValueError, match="near: expected a number"):
        rg.verdict(net, input, near=-1)
    with pytest.raises(ValueError, match="state: expected shape"):
        rg.verdict(net, input[:, :4])
    with pytest.raises(ValueError, match="input: expected shape"):
        rg.verdict(net, input[0], input=input)
    assert names(rg.verdict(net, input)) == ["NOT_FOUND"] * 3  # no steady states, and it settles elsewhere
    functional = rg.steady_state(not_normal(5), input)
    assert (
        names(rg.verdict(rg.Recurrence(rg.Dense(not_normal(5)), rg.Tanh()), functional, input=input)) == ["STABLE"] * 3
    )


def test_every_code_has_a_message():
    assert all(each.message for kind in (rg.Verdict, rg.Bifurcation, rg.Fate) for each in kind)


@pytest.mark.parametrize("leak", [None, 0.4])
def test_a_glance_says_what_all_of_the_spectrum_says_for_fewer_products(leak, monkeypatch):
    n = 300
    post, pre = torch.randint(n, (2, 8 * n), generator=torch.Generator().manual_seed(0))
    weight = randn(8 * n) / 8**0.5
    spent, arpack = [], eigen.arpack

    def counted(search, J, *given):
        return arpack(search, lambda v: (spent.append(1), J(v))[1], *given)

    for where in (eigen, first_order):
        monkeypatch.setattr(where, "arpack", counted)
    for gain, f in ((0.7, "tanh"), (0.8, "identity"), (-0.9, "sigmoid"), (1.3, "tanh")):
        net = rg.Network(rg.Sparse.from_edges(pre, post, gain * weight, n), f, leak=leak)
        x = net.steady_state(randn(2, n, seed=1)).x.detach()
        spent.clear()
        told, few = rg.verdict(net, x, input=randn(2, n, seed=1), steps=10), len(spent)
        spent.clear()
        truth, all_of_them = rg.stability(net, x, k=1), len(spent)
        assert few < all_of_them / 2 or (truth.multiplier.imag == 0).any() or (truth.margin < 0.01).any()
        for name in ("margin", "margin_discrete", "margin_continuous"):
            assert getattr(told, name) == pytest.approx(getattr(truth, name).detach(), abs=1e-5)
        assert torch.equal(told.near, truth.near)


def test_the_verdict_under_transforms_is_the_plain_one():
    net = rg.Network(1.5 * not_normal(6), leak=torch.full((6,), 0.5, dtype=DTYPE))
    input = randn(3, 6)
    plain = net.steady_state(input).verdict

    def told(u):
        state = net.steady_state(u)
        return state.x.sum(), (state.verdict.code, state.verdict.margin)

    for transformed in (torch.func.vmap(told), torch.func.vmap(torch.func.grad(told, has_aux=True))):
        _, (code, margin) = transformed(input)
        assert torch.equal(code, plain.code) and torch.allclose(margin, plain.margin)
