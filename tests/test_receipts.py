"""Receipts: what they say of a gradient, beside the truth."""

import copy
import gc
import itertools

import numpy as np
import pytest
import torch
from helpers import assert_close, count_products, dense_adjoint, slopes
from problems import (
    DTYPE,
    NONLINEARITIES,
    STRUCTURES,
    Reward,
    dead,
    each_nonlinearity,
    each_structure,
    manufactured,
    near_critical,
    not_normal,
    randn,
    saturated,
)

import retrograde as rg
from retrograde import accuracy, nearing, targeting
from retrograde.accuracy import Evidence
from retrograde.corrections import solver_for
from retrograde.tables import as_html, as_text

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
WITHIN = 10  # what an estimate may be off by


# --- the truth: Newton's method with residuals in extended precision


def sigmoid(u):
    return np.exp(-np.logaddexp(0, -u))


EXACT = {  # f and f' in NumPy
    "tanh": (np.tanh, lambda u: 1 / np.cosh(u) ** 2),
    "sigmoid": (sigmoid, lambda u: sigmoid(u) * sigmoid(-u)),
    "relu": (lambda u: np.maximum(u, 0), lambda u: (u > 0) * np.ones_like(u)),
    "softplus": (lambda u: np.logaddexp(u, 0), sigmoid),
    "identity": (lambda u: u, np.ones_like),
    "sin": (np.sin, np.cos),
    "silu": (lambda u: u * sigmoid(u), lambda u: sigmoid(u) * (1 + u * sigmoid(-u))),
}


def long(t):
    return t.detach().double().numpy().astype(np.longdouble)


def size(z):
    return np.sqrt((z * z).sum())


def truth(name, W, b, x, dR_dx):
    """x and s, exact to far below float64, from a state nearby; None where there is none."""
    f, slope = EXACT[name]
    W, b, x = long(W), long(b), long(x)
    eye = np.eye(len(b))
    for _ in range(20):
        u = W @ x + b
        step = np.linalg.solve((eye - slope(u)[:, None] * W).astype(float), (f(u) - x).astype(float))
        x = x + step
        if size(step) <= 1e-18 * size(x):
            break
    if not size(step) <= 1e-16 * size(x):
        return None
    D, g = slope(W @ x + b), dR_dx(x)
    s = np.zeros_like(g)
    for _ in range(8):
        r = D * (W.T @ s + g) - s
        s = s + r + D * np.linalg.solve((eye - W.T * D).astype(float), (W.T @ r).astype(float))
    return x, s


def error(x, s, exact):
    """The relative error of s xᵀ; of one that is 0, infinite unless 0 was found."""
    of_x, of_s = exact
    off, whole = size(np.outer(long(s), long(x)) - np.outer(of_s, of_x)), size(of_s) * size(of_x)
    return float(off / whole) if whole else float(np.inf if off else 0)


def networks(count):
    """Gains from 0.1 to 3, 2 to 30 neurons, every f, both dtypes."""
    random = torch.Generator().manual_seed(1)
    kinds = itertools.cycle(itertools.product(EXACT, (torch.float32, torch.float64)))
    for name, dtype in itertools.islice(kinds, count):
        n = int(torch.randint(2, 31, (), generator=random))
        gain = 0.1 + 2.9 * float(torch.rand((), generator=random))
        W = gain / n**0.5 * torch.randn(n, n, generator=random, dtype=DTYPE)
        b, c = torch.randn(2, n, generator=random, dtype=DTYPE)
        yield name, W.to(dtype), b.to(dtype), c.to(dtype)


def looked_at(count, curved, first=0, **how):
    """For each network from the `first` on that settles: its dtype, the receipt, the true error of its gradient."""
    for name, W, b, c in itertools.islice(networks(count), first, None):
        b = b.requires_grad_()
        f = NONLINEARITIES.get(name)
        state = rg.steady_state(W, b, f, throw=False, **how)
        if not state.converged:
            continue
        (c * torch.sin(state.x + c) if curved else c * state.x).sum().backward()
        k = long(c)
        exact = truth(name, W, b, state.x, lambda x, k=k: k * np.cos(x + k) if curved else k)
        if exact is not None:
            yield W.dtype, state.receipt, error(state.x, b.grad, exact)


@pytest.mark.parametrize(("curved", "count"), [(False, 1000), (True, 100)])
def test_the_estimate_bounds_the_true_error_and_is_not_empty(curved, count):
    rows = [(receipt, true, torch.finfo(dtype).eps) for dtype, receipt, true in looked_at(count, curved)]
    estimates = np.array([float(receipt.error_estimate) for receipt, _, _ in rows])
    true, eps = np.array([row[1:] for row in rows]).T
    assert len(rows) > 0.6 * count and all(receipt.converged for receipt, _, _ in rows)
    assert np.mean(true <= WITHIN * estimates) >= (0.99 if curved else 1)
    assert np.mean(estimates <= WITHIN * np.maximum(true, eps)) >= 0.7
    assert np.median(estimates / np.maximum(true, eps)) < 3


@pytest.mark.parametrize("f", ["identity", "tanh"])
@pytest.mark.parametrize("rtol", [1e-3, 1e-6, None])
def test_the_estimate_for_a_large_sparse_W_is_accelerated_and_tells_the_same(f, rtol, monkeypatch):
    n, edges = 600, 6000
    ends = torch.randint(n, (2, edges), generator=torch.Generator().manual_seed(3))
    W = rg.Sparse.from_edges(ends[0], ends[1], randn(edges, seed=4).abs(), n)  # one mode far slower than the others
    with torch.no_grad():
        W.weight.mul_(0.99 / np.abs(np.linalg.eigvals(W.dense().numpy())).max())
    net, b, g = rg.Network(W, f=f, b=False), (0.01 * randn(n, seed=5)).requires_grad_(), randn(n, seed=6)
    exact = net.steady_state(b.detach(), solver=rg.Newton()).x.detach()
    s = dense_adjoint(W, net.f, exact, b.detach(), g)
    told, asked = [], []
    monkeypatch.setattr(accuracy, "solver_for", lambda *how: asked.append(solver_for(*how)) or asked[-1])
    for least in (1, 10**9):
        monkeypatch.setattr("retrograde.kernels.choice.LONE", least)
        state = net.steady_state(b, solver=rg.Anderson(rtol=rtol), adjoint=rg.Anderson(rtol=rtol))
        (ds,) = torch.autograd.grad(state.x, b, g)
        receipt, off = state.receipt, float((state.x.detach() - exact).norm() / exact.norm())
        assert (ds - s).norm() / s.norm() <= receipt.error_estimate
        assert float(receipt.state_error) == pytest.approx(off, rel=0.1)
        told.append(float(receipt.error_estimate))
    assert told[0] == pytest.approx(told[1], rel=0.1)
    assert [type(each.solvers[0]) for each in asked] == [rg.Anderson, rg.FixedPoint]


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
def test_the_estimate_follows_a_loose_solve(rtol):
    loose = {"solver": rg.FixedPoint(rtol=rtol), "adjoint": rg.FixedPoint(rtol=rtol)}
    rows = [(receipt, true) for _, receipt, true in looked_at(42, False, **loose) if receipt.converged]
    estimates = np.array([float(receipt.error_estimate) for receipt, _ in rows])
    true = np.array([true for _, true in rows])
    assert len(rows) > 20 and np.median(true) > 0.01 * rtol
    assert (true <= WITHIN * estimates).all() and np.median(estimates / true) < 3


def test_the_corrections_are_the_errors_to_second_order():
    W, f = rg.Dense(not_normal(12, norm=0.95)), rg.Tanh()
    x, b = manufactured(W, f, 5)
    g, net = randn(5, 12), rg.Network(W, b=False)
    exact = rg.recurrent_backpropagation(net, x, g).s
    left = []
    for h in (1e-2, 1e-3):
        there = x + h * randn(5, 12, seed=7)
        s = rg.recurrent_backpropagation(net, there, g).s  # exact there, wrong by the slopes
        ds = Evidence(net.recurrence, there, b, g, s, factored=True).correction().adjoint
        assert ((s - exact).norm(dim=-1) > 0.1 * h * exact.norm(dim=-1)).all()
        left.append((s + ds - exact).norm() / exact.norm())
    assert left[1] < 1e-4 and left[0] / left[1] > 50


def test_rounding_that_no_residual_shows_is_estimated_too():
    told = []
    for seed in range(40):
        p = near_critical(1e-6)
        b, g = randn(4, seed=seed).requires_grad_(), randn(4, seed=seed + 100)
        state = rg.steady_state(p.W, b, p.f, solver=rg.Newton(), adjoint=rg.Direct())
        state.x.backward(g)
        true = error(state.x, b.grad, truth("identity", p.W, b, state.x, lambda x, g=g: long(g)))
        told.append(true <= WITHIN * float(state.receipt.error_estimate))
    assert np.mean(told) >= 0.97


def test_a_reward_may_curve_within_one_where_x_is_large():
    W, f = rg.Dense(not_normal(12)), rg.Identity()
    x, b = manufactured(W, f, 5)
    x, b, R = 100 * x, 100 * b, Reward(5, 12)
    there = x + 1e-3 * randn(5, 12, seed=7)
    found = rg.recurrent_backpropagation(rg.Network(W, f="identity", b=False), there, R.gradient(there), input=b)
    s = rg.recurrent_backpropagation(rg.Network(W, f="identity", b=False), x, R.gradient(x)).s
    true = (found.s - s).norm(dim=-1) / s.norm(dim=-1)
    assert (true > 1e-4).all() and (true <= WITHIN * found.receipt.error_estimate).all()


def test_a_gradient_that_is_cut_short_is_told_by_how_much():
    W, f = rg.Dense(not_normal(12, norm=0.95)), rg.Tanh()
    x, b = manufactured(W, f, 5)
    g = randn(5, 12)
    receipt = rg.recurrent_backpropagation(
        rg.Network(W, b=False), x, g, input=b, adjoint=rg.FixedPoint(max_steps=1), throw=False
    ).receipt
    exact = [truth("tanh", W.weight, b[k], x[k], lambda x, k=k: long(g[k]))[1] for k in range(5)]
    D = slopes(W, f, x, b)
    s = D * ((D * g) @ W.weight + g)
    true = torch.tensor([float(size(long(s[k]) - exact[k]) / size(exact[k])) for k in range(5)])
    assert not receipt.converged.any()
    assert_close(receipt.error_estimate, true.double(), within=0.02)


# --- singular values


def singular_values(W, f, x, b):
    """Those of I - DW, by a dense decomposition."""
    M = W.dense().detach().double()
    D = slopes(W, f, x, b).double()
    return torch.linalg.svdvals(torch.eye(M.shape[0], dtype=DTYPE) - D[..., :, None] * M)


@BOTH
@each_structure
def test_the_singular_values_are_within_a_factor_of_two(structure, dtype):
    net, b = rg.Network(STRUCTURES[structure](), b=False).to(dtype), randn(2, 3, 12, dtype=dtype)
    state = net.steady_state(b)
    state.x.sum().backward()
    receipt, exact = state.receipt, singular_values(net.W, net.f, state.x.detach(), b)
    smallest, condition = exact[..., -1], exact[..., 0] / exact[..., -1]
    assert receipt.sigma_min.shape == receipt.condition_number.shape == (2, 3)
    assert ((1 - 1e-5) * smallest <= receipt.sigma_min).all() and (receipt.sigma_min <= 2 * smallest).all()
    assert (receipt.condition_number <= (1 + 1e-5) * condition).all()
    assert (condition <= 2 * receipt.condition_number).all()


@pytest.mark.parametrize("gain", [0.9, 1.5])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_singular_values_of_a_larger_network(sparse, gain):
    W, b = gain / 200**0.5 * randn(200, 200), randn(2, 200)
    W = rg.Sparse(W.to_sparse()) if sparse else rg.Dense(W)
    state = rg.steady_state(W, b, solver=rg.Newton())
    state.x.sum().backward()
    exact = singular_values(W, rg.Tanh(), state.x.detach(), b)
    near = 1.2  # such singular values lie closer together than most
    assert (state.receipt.sigma_min <= near * exact[:, -1]).all()
    assert (exact[:, 0] / exact[:, -1] <= near * state.receipt.condition_number).all()


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_near_a_bifurcation_the_smallest_singular_value_is_as_small(gap):
    p = near_critical(gap)
    state = p.network.steady_state()
    state.x.sum().backward()
    exact = singular_values(p.network.W, p.f, p.x[0], p.b)
    assert exact[-1] < gap
    assert 0.99 * exact[-1] <= state.receipt.sigma_min <= 2 * exact[-1]


@pytest.mark.parametrize("known", [True, False])
def test_at_a_bifurcation_infinities_and_no_NaN(known):
    net, zero = rg.Network(torch.eye(3, dtype=DTYPE), b=False), torch.zeros(3, dtype=DTYPE)
    receipt = rg.recurrent_backpropagation(
        net, zero, torch.ones(3, dtype=DTYPE), input=zero if known else None, throw=False
    ).receipt
    assert not receipt.converged
    assert receipt.sigma_min == 0 and receipt.condition_number == torch.inf and receipt.error_estimate == torch.inf
    assert "inf" in str(receipt)


def test_a_state_that_diverged_is_not_told_to_be_right():
    state = rg.steady_state(
        torch.tensor([[3.0]]), torch.ones(1), "relu", solver=rg.FixedPoint(max_steps=50), throw=False
    )
    receipt = rg.recurrent_backpropagation(
        rg.Network(torch.tensor([[3.0]]), f="relu", b=False), state.x, torch.ones(1), input=torch.ones(1)
    ).receipt
    assert receipt.error_estimate == torch.inf  # the steady state that Newton's step points at is none


def test_where_newtons_step_leads_nowhere_nothing_is_known():
    net, input = rg.Network(torch.tensor([[-3.0]], dtype=DTYPE), b=False), torch.tensor([0.5], dtype=DTYPE)
    x, one = torch.tensor([0.99], dtype=DTYPE), torch.ones(1, dtype=DTYPE)  # it jumps to and fro between 1 and -1
    receipt = rg.recurrent_backpropagation(net, x, one, input=input).receipt
    assert receipt.error_estimate == receipt.state_error == torch.inf


def test_a_correction_that_is_not_found_is_infinite():
    n = 1500  # a chain longer than any solve of a correction may take
    W = rg.Sparse.from_edges(torch.arange(n - 1), torch.arange(1, n), torch.full((n - 1,), 1.01, dtype=DTYPE), n)
    net, x, g = rg.Network(W, f="identity", b=False), torch.zeros(n, dtype=DTYPE), torch.eye(n, dtype=DTYPE)[-1]
    how = {"input": x, "adjoint": rg.FixedPoint(max_steps=5), "throw": False}
    assert rg.recurrent_backpropagation(net, x, g, **how).receipt.error_estimate == torch.inf


def test_a_solve_that_does_not_end_is_not_taken_for_an_answer():
    n = 120  # a chain, whose end GMRES does not see and iteration reaches late
    W = rg.Sparse.from_edges(torch.arange(n - 1), torch.arange(1, n), torch.full((n - 1,), 1.05, dtype=DTYPE), n)
    net, x, g = rg.Network(W, f="identity", b=False), torch.zeros(n, dtype=DTYPE), torch.eye(n, dtype=DTYPE)[-1]
    receipt = rg.recurrent_backpropagation(net, x, g, input=x).receipt
    assert receipt.converged and receipt.error_estimate < 1e-8
    receipt = rg.recurrent_backpropagation(net, x, g, input=x, adjoint=rg.Krylov(max_steps=60), throw=False).receipt
    assert not receipt.converged and receipt.error_estimate > 0.1


# --- the reward, corrected


@each_structure
def test_the_corrected_reward_is_wrong_by_the_square_of_the_residual(structure):
    W = STRUCTURES[structure]()
    x, b = manufactured(W, rg.Tanh(), 4)
    net, c, off = rg.Network(W, b=False), randn(4, 12), randn(4, 12, seed=5)

    def R(x):
        return (c * torch.sin(x + c)).sum(-1)

    wrong, corrected, residual = [], [], []
    for h in (1e-2, 1e-3, 1e-4):
        there = x + h * off
        found = rg.recurrent_backpropagation(net, there, c * torch.cos(there + c), input=b)
        wrong.append((R(there) - R(x)).abs())
        corrected.append((R(there) + found.receipt.reward_correction - R(x)).abs())
        residual.append(found.receipt.state_residual)
    assert found.receipt.reward_correction.shape == (4,)
    for k in (0, 1):
        assert ((residual[k] / residual[k + 1] - 10).abs() < 1).all()
        assert (wrong[k].sum() / wrong[k + 1].sum() - 10).abs() < 1
        assert (corrected[k].sum() / corrected[k + 1].sum() - 100).abs() < 10


def test_without_the_input_there_is_no_correction():
    net = rg.Network(not_normal(5), b=False)
    receipt = rg.recurrent_backpropagation(net, torch.tanh(randn(3, 5)), randn(3, 5)).receipt
    assert receipt.reward_correction is None and (receipt.state_error == 0).all()
    assert (receipt.error_estimate < 1e-13).all() and "correction" not in str(receipt)


# --- grad_rtol


@pytest.mark.parametrize("grad_rtol", [1e-2, 1e-4])
@pytest.mark.parametrize("curved", [False, True])
def test_the_gradient_is_as_right_as_asked(grad_rtol, curved):
    rows = list(looked_at(42, curved, grad_rtol=grad_rtol))
    met = [true <= grad_rtol for _, receipt, true in rows if receipt.converged]
    assert len(rows) > 25 and len(met) >= len(rows) - 2  # two are all but singular, and float32 allows no less
    assert np.mean(met) >= 0.99
    assert all((receipt.error_estimate <= grad_rtol) == receipt.converged for _, receipt, _ in rows)


@pytest.mark.parametrize("which", [6, 378])
def test_a_slow_mode_that_factors_leave_is_not_taken_for_none(which):
    ((_, receipt, true),) = looked_at(which + 1, True, first=which, grad_rtol=1e-4)
    assert receipt.converged and receipt.attempt == 1  # plain steps have led nowhere
    assert true <= 1e-4


def test_what_may_be_less_exact_takes_fewer_steps():
    net, input = rg.Network(0.9 * not_normal(40, norm=1)), randn(6, 40)
    steps = []
    for grad_rtol in (1e-1, 1e-3, 1e-5, 1e-7, None):
        state = net.steady_state(input, grad_rtol=grad_rtol)
        state.x.sum().backward()
        steps.append((state.steps.sum(), state.receipt.steps.sum()))
    for looser, tighter in itertools.pairwise(steps):
        assert looser[0] < tighter[0] and looser[1] < tighter[1]


@BOTH
def test_a_state_whose_error_is_amplified_is_solved_further(dtype):
    p = near_critical(1e-2, dtype)
    b = p.b.clone().requires_grad_()
    state = rg.steady_state(p.W, b, p.f, solver=rg.FixedPoint(max_steps=10000), grad_rtol=1e-2)
    assert (state.x - p.x[0]).norm() <= 1e-2 * p.x[0].norm() and state.residual < 1e-2 * state.tolerance
    state.x.sum().backward()
    assert state.receipt.converged and state.receipt.state_error < 1e-3


def test_float32_gives_up_no_digits_that_float64_residuals_could_save():
    lost = 0
    for gap, seed in itertools.product((1e-4, 1e-5), range(3, 9)):
        p = near_critical(gap, torch.float32)
        net, x = p.network, p.x[0]
        g = randn(4, seed=seed, dtype=torch.float32)
        _, s = truth("identity", p.W, p.b, x, lambda x, g=g: long(g))
        plain = rg.recurrent_backpropagation(net, x, g, throw=False)
        asked = rg.recurrent_backpropagation(net, x, g, grad_rtol=1e-6)
        lost += size(long(plain.s) - s) > 1e-6 * size(s)
        assert asked.receipt.converged and size(long(asked.s) - s) <= 1e-6 * size(s)
        assert (asked.receipt.steps > 0).all() and asked.s.dtype == torch.float32
    assert lost > 6


def slow_mode(n, gap, seed):
    """W, not normal, of which one eigenvalue is 1 - gap, and the others at most 0.6."""
    Q = torch.linalg.qr(randn(n, n, seed=seed))[0] + 0.2 * randn(n, n, seed=seed + 1)
    others = 1.2 * torch.rand(n - 1, generator=torch.Generator().manual_seed(seed), dtype=DTYPE) - 0.6
    return Q @ torch.diag(torch.cat([torch.tensor([1 - gap], dtype=DTYPE), others])) @ torch.linalg.inv(Q)


@pytest.mark.parametrize("adjoint", [None, rg.Direct(), rg.Krylov()], ids=repr)
@pytest.mark.parametrize("grad_rtol", [1e-2, 1e-3, 1e-4, 1e-6])
def test_a_slow_mode_hides_from_no_grad_rtol(grad_rtol, adjoint):
    """What is told by a few plain steps, or by a rough correction, where the slow mode is hardly excited."""
    n, worst = 12, 0.0
    for seed, gap in itertools.product(range(0, 12, 2), (1e-2, 1e-3, 1e-4, 1e-5)):
        W, g = slow_mode(n, gap, seed).float(), randn(n, seed=seed + 100).float()
        net = rg.Network(rg.Dense(W), "identity", b=False)
        s = torch.linalg.solve(torch.eye(n, dtype=DTYPE) - W.T.double(), g.double())
        found = rg.recurrent_backpropagation(net, torch.ones(n), g, adjoint=adjoint, grad_rtol=grad_rtol)
        worst = max(worst, float((found.s.double() - s).norm() / s.norm()))
    assert worst <= grad_rtol


@pytest.mark.parametrize("adjoint", [rg.FixedPoint(max_steps=3), rg.Krylov(), rg.Direct(), rg.Newton()], ids=repr)
def test_any_adjoint_is_refined_until_it_is_enough(adjoint):
    W, f = rg.Dense(not_normal(12, norm=0.95)), rg.Tanh()
    x, b = manufactured(W, f, 5)
    g = randn(5, 12)
    want = rg.recurrent_backpropagation(rg.Network(W, b=False), x, g).s
    found = rg.recurrent_backpropagation(rg.Network(W, b=False), x, g, input=b, adjoint=adjoint, grad_rtol=1e-6)
    assert found.receipt.converged.all()
    assert ((found.s - want).norm(dim=-1) <= 1e-6 * want.norm(dim=-1)).all()


@pytest.mark.parametrize(
    ("dtype", "grad_rtol", "times"),
    [(torch.float32, 1e-3, 1.6), (torch.float64, 1e-3, 1.6), (torch.float64, 1e-6, 1.4), (torch.float32, 1e-6, 2.4)],
)
def test_an_error_asked_for_costs_little_more_than_a_tolerance_tuned_by_hand(monkeypatch, dtype, grad_rtol, times):
    W, b, g = (each.to(dtype) for each in (0.9 / 10 * randn(100, 100), randn(4, 100, seed=1), randn(4, 100, seed=2)))
    W.requires_grad_(False)
    exact = [truth("tanh", W, b[k], torch.tanh(b[k].double()), lambda x, k=k: long(g[k])) for k in range(4)]
    count = count_products(monkeypatch, dtype)

    def taken(**how):
        count[0] = 0
        drive = b.clone().requires_grad_()
        state = rg.steady_state(W, drive, throw=False, **how)
        state.x.backward(g)
        return count[0], max(error(state.x[k], drive.grad[k], exact[k]) for k in range(4)), state.receipt

    solvers = [rg.FixedPoint(rtol=10**-e) for e in np.arange(1, 6.8 if dtype == torch.float32 else 8, 0.25)]
    tuned = [cost for cost, true, _ in (taken(solver=each, adjoint=each) for each in solvers) if true <= grad_rtol]
    cost, true, receipt = taken(grad_rtol=grad_rtol)
    assert true <= grad_rtol and receipt.converged.all()
    assert cost <= times * min(tuned)


@pytest.mark.parametrize("seed", range(4))
def test_a_state_in_float32_is_right_to_its_last_digit_where_the_gradient_needs_it(seed):
    W, b, g = 0.95 / 300**0.5 * randn(300, 300, seed=seed), randn(2, 300, seed=5), randn(2, 300, seed=6)
    W, b, g = W.float().to_sparse(), b.float(), g.float()
    net = rg.Network(rg.Sparse(W), b=False)
    state = net.steady_state(b, grad_rtol=1e-6)
    exact = rg.steady_state(W.double().to_dense(), b.double()).x
    assert ((state.x.double() - exact).norm(dim=-1) <= 1.5e-7 * exact.norm(dim=-1)).all()
    state.x.backward(g)
    assert state.receipt.converged.all()


@pytest.mark.parametrize("gap", [1e-2, 2e-3])
def test_a_slow_mode_that_faster_ones_hide_at_first_is_solved_all_the_same(gap):
    p = near_critical(gap)
    for grad_rtol in (1e-1, 1e-2, 1e-3):
        state = p.network.steady_state(grad_rtol=grad_rtol)
        state.x.sum().backward()
        assert (state.x - p.x[0]).norm() <= grad_rtol * p.x[0].norm() and state.receipt.converged


@pytest.mark.parametrize("by_hand", [False, True])
def test_near_the_rounding_of_float32_all_is_solved_in_float64_and_handed_over_in_float32(by_hand):
    M, b, g = not_normal(40, norm=0.97), randn(3, 40, seed=1), randn(3, 40, seed=2)
    M, b, g = (each.float().double() for each in (M, b, g))  # which float32 holds
    net, precise = rg.Network(M.float(), b=False), rg.Network(M, b=False)
    exact = precise.steady_state(b, solver=rg.Newton()).x.detach()
    s = dense_adjoint(precise.W, precise.f, exact, b, g)
    drive = b.float().requires_grad_()
    state = net.steady_state(drive, grad_rtol=2e-6)
    if by_hand:
        found = rg.recurrent_backpropagation(net, state.x.detach(), g.float(), input=drive.detach(), grad_rtol=2e-6)
        got, dW, receipt = found.s, found.dW[0], found.receipt
    else:
        got, dW = torch.autograd.grad((g.float() * state.x).sum(), (drive, net.W.weight))
        receipt = state.receipt
    assert state.x.dtype == got.dtype == dW.dtype == torch.float32 and receipt.residual.dtype == torch.float64
    assert receipt.converged.all() and (receipt.state_residual > 1e-9).all()  # x is told of as it was rounded
    assert (receipt.state_error > 1e-9).all() and (receipt.error_estimate <= 2e-6).all()
    assert ((got.double() - s).norm(dim=-1) <= 2e-6 * s.norm(dim=-1)).all()


def test_what_the_dtype_cannot_give_is_told():
    net, input = rg.Network(not_normal(6, dtype=torch.float32)), randn(3, 6, dtype=torch.float32)
    state = net.steady_state(input, grad_rtol=1e-8)
    with pytest.raises(
        rg.ConvergenceError, match=r"3 of 3 .* above grad_rtol=1e-08. float32 allows no less .* would do"
    ) as caught:
        state.x.sum().backward()
    assert (caught.value.result.receipt.status == rg.Status.INACCURATE).all() and net.b.grad is None
    state = net.steady_state(input, grad_rtol=1e-8, throw=False)
    state.x.sum().backward()
    assert not state.receipt.converged.any() and (state.receipt.error_estimate > 1e-8).all()
    assert "3 not accurate enough" in str(state.receipt)
    double = net.double().steady_state(input.double(), grad_rtol=1e-8)
    double.x.sum().backward()
    assert double.receipt.converged.all()


def test_grad_rtol_and_a_tolerance_of_ones_own_are_one_too_many():
    W, b = not_normal(5), randn(5)
    for name in ("solver", "adjoint"):
        for solver in (rg.FixedPoint(rtol=1e-3), rg.Cascade(rg.FixedPoint(), rg.Newton(rtol=1e-3))):
            with pytest.raises(ValueError, match=f"{name}: expected a solver without rtol"):
                rg.steady_state(W, b, grad_rtol=1e-3, **{name: solver})
    for bad, error in ((0, ValueError), (1.5, ValueError), ("1e-3", TypeError), (True, TypeError)):
        with pytest.raises(error, match="grad_rtol: expected"):
            rg.Network(W).steady_state(b, grad_rtol=bad)
        with pytest.raises(error, match="grad_rtol: expected"):
            rg.recurrent_backpropagation(rg.Network(W), b, b, grad_rtol=bad)


@BOTH
@pytest.mark.parametrize("structure", ["Dense", "Sparse", "LowRank"])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "softplus", "identity"])
def test_what_plain_steps_tell_takes_no_other(name, structure, dtype, monkeypatch):
    monkeypatch.setattr(targeting, "_mended", None)  # nothing is left to mend,
    monkeypatch.setattr(Evidence, "state_correction", None)
    monkeypatch.setattr(nearing, "approach", None)  # and the kernel takes the steps
    W, b, g = STRUCTURES[structure]().to(dtype), randn(5, 12, dtype=dtype), randn(5, 12, seed=2, dtype=dtype)
    M, adjoint = W.dense().detach(), rg.FixedPoint()  # by factors, as low ranks are, s leaves steps no error to tell
    for grad_rtol in (1e-1, 1e-3):
        drive = b.clone().requires_grad_()
        state = rg.steady_state(W, drive, name, adjoint=adjoint, grad_rtol=grad_rtol)
        dW, s = torch.autograd.grad(state.x, (W.weights[0], drive), g)
        exact = [truth(name, M, b[k], state.x[k], lambda x, k=k: long(g[k])) for k in range(5)]
        true = torch.tensor([error(state.x[k], s[k], exact[k]) for k in range(5)])
        told = state.receipt.error_estimate
        assert state.receipt.converged.all() and (told <= grad_rtol).all()
        assert (true <= grad_rtol).all() and (true <= WITHIN * told).all()
        assert_close(dW, W.outer(s, state.x.detach())[0], solved=False)


@BOTH
@pytest.mark.parametrize("sparse", [False, True])
def test_batch_mates_of_which_nothing_is_told_change_no_bit(sparse, dtype):
    W = not_normal(12, norm=0.9, dtype=dtype)
    net = rg.Network(W.to_sparse() if sparse else W, b=False)
    input, g = randn(6, 12, dtype=dtype), randn(6, 12, seed=2, dtype=dtype)
    input[1], g[2], g[3] = 0, 0, 1e-30 * g[3]  # where nothing moves, no rate tells anything
    input[4] *= 1e3

    def solve(rows):
        drive = input[rows].clone().requires_grad_()
        state = net.steady_state(drive, grad_rtol=1e-3, throw=False)
        (s,) = torch.autograd.grad(state.x, drive, g[rows])
        r = state.receipt
        return state.x.detach(), s, state.steps, r.steps, r.status, r.error_estimate, r.state_error

    together = solve(slice(0, 6))
    for k in (0, 5):
        assert all(torch.equal(a[k], b[0]) for a, b in zip(together, solve(slice(k, k + 1)), strict=True))
    assert (together[4] == rg.Status.CONVERGED).all()


@each_structure
def test_grad_rtol_in_every_structure_and_batch(structure):
    W = STRUCTURES[structure]()
    for batch in ((), (0,), (2, 3)):
        x, b = manufactured(W, rg.Tanh(), *batch)
        state = rg.steady_state(W, b.requires_grad_(), grad_rtol=1e-5)
        Reward(*batch, 12)(state.x).backward()
        s = rg.recurrent_backpropagation(rg.Network(W, b=False), x, Reward(*batch, 12).gradient(x)).s
        assert state.receipt.converged.shape == batch and state.receipt.converged.all()
        assert ((b.grad - s).norm(dim=-1) <= 1e-5 * s.norm(dim=-1)).all()


# --- how far it reaches


@BOTH
@pytest.mark.parametrize("n", [50, 51])
def test_one_neuron_more_is_no_other_method(n, dtype):
    W = rg.Dense(not_normal(n, norm=0.9, dtype=dtype))
    b = randn(3, n, dtype=dtype)
    state = rg.steady_state(W, b, adjoint=rg.Direct())
    Reward(3, n, dtype=dtype)(state.x).backward()
    other = rg.steady_state(W, b, adjoint=rg.Krylov())
    assert (state.receipt.error_estimate < 1e4 * torch.finfo(dtype).eps).all()
    assert (W.weight.grad != 0).any()
    grad, W.weight.grad = W.weight.grad, None
    Reward(3, n, dtype=dtype)(other.x).backward()
    assert_close(W.weight.grad, grad, conditioning=10)


@BOTH
@pytest.mark.parametrize("problem", [saturated, dead])
def test_where_all_units_are_flat_nothing_is_estimated_to_be_wrong(problem, dtype):
    for grad_rtol in (None, 1e-3):
        net = problem(dtype).network
        state = net.steady_state(grad_rtol=grad_rtol)
        state.x.sum().backward()
        assert state.receipt.converged and state.receipt.error_estimate == 0
        assert state.receipt.sigma_min == 1 and state.receipt.condition_number == 1
        assert (net.b.grad == 0).all()


def test_a_slope_that_float32_rounds_to_zero_is_told():
    W, b = torch.tensor([[0.1]]), torch.tensor([9.5], requires_grad=True)  # tanh is 1, and f' is 1e-8, not 0
    state = rg.steady_state(W, b)
    state.x.sum().backward()
    assert b.grad == 0 and state.receipt.error_estimate >= 1


@pytest.mark.parametrize(("f", "drive"), [("tanh", 19.0), ("tanh", 19.5), ("sigmoid", 36.0), ("sigmoid", 37.0)])
def test_a_gradient_of_no_error_at_flat_slopes_has_none_that_float64_could_tell(f, drive):
    b = torch.tensor([drive], requires_grad=True)
    state = rg.steady_state(torch.tensor([[0.0]]), b, f)
    state.x.sum().backward()
    slope = rg.nonlinearity.as_nonlinearity(f).slope_at(b.detach().double())
    assert b.grad == 0 and (state.receipt.error_estimate >= 1) == (slope > 0)


@pytest.mark.parametrize(("dtype", "drive"), [(torch.float32, 7.8), (torch.float32, 9.5), (torch.float64, 18.0)])
def test_grad_rtol_does_not_take_what_rounding_leaves_of_a_slope_for_the_slope(dtype, drive):
    W, b = torch.tensor([[-0.5]], dtype=dtype), torch.tensor([drive], dtype=dtype, requires_grad=True)
    state = rg.steady_state(W, b, grad_rtol=1e-3, throw=False)
    state.x.sum().backward()
    D = 1 / torch.cosh(b - 0.5).double() ** 2  # as tanh is 1 here, and f' is 1 - 1 and some rounding
    true = D / (1 + 0.5 * D)
    right = bool(((b.grad - true).abs() <= 1e-3 * true).all())
    assert right == bool(state.receipt.converged) == (dtype == torch.float32)


@BOTH
def test_the_estimate_does_not_depend_on_the_size_of_the_reward(dtype):
    net, input = rg.Network(not_normal(12, norm=0.9, dtype=dtype), b=False), randn(4, 12, dtype=dtype)
    x, g = net(input).detach(), randn(4, 12, seed=2, dtype=dtype)

    def told(scale, **how):
        return rg.recurrent_backpropagation(net, x, scale * g, input=input, **how)

    one, asked = told(1), told(1, grad_rtol=1e-4)
    for scale in (2.0**-27, 2.0**27):
        other = told(scale)
        assert torch.equal(other.receipt.error_estimate, one.receipt.error_estimate)
        assert torch.equal(other.receipt.reward_correction, scale * one.receipt.reward_correction)
        assert torch.equal(told(scale, grad_rtol=1e-4).s, scale * asked.s)
    for scale in (1e-8, 1e8):
        assert_close(told(scale, grad_rtol=1e-4).s, scale * asked.s, within=1e-4)
        ratio = told(scale).receipt.error_estimate / one.receipt.error_estimate
        assert ((ratio > 0.2) & (ratio < 5)).all()


def test_a_sample_does_not_depend_on_what_else_is_in_its_batch():
    net, input = rg.Network(not_normal(12, norm=0.95), b=False), randn(6, 12)
    others = input.clone()
    others[1:] *= torch.tensor([0.0, 1e-3, 10, 100, 3])[:, None]
    found = []
    for batch in (input, others):
        for grad_rtol in (None, 1e-4):
            state = net.steady_state(batch, grad_rtol=grad_rtol)
            state.x.sum().backward()
            r = state.receipt
            told = (r.error_estimate, r.state_error, r.sigma_min, r.condition_number, r.reward_correction, r.steps)
            found.append([state.x.detach()[0], *(each[0] for each in told)])
    for one, other in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- when it is computed, and from what


def test_nothing_costly_is_computed_before_it_is_asked_for(monkeypatch):
    def refuse(*_):
        raise AssertionError("too early")

    for name in ("correction", "spectrum", "reward_change"):
        monkeypatch.setattr(Evidence, name, refuse)
    state = rg.Network(not_normal(5)).steady_state(randn(3, 5))
    state.x.sum().backward()
    assert "3 of 3 adjoints converged" in repr(state.receipt)
    with pytest.raises(AssertionError, match="too early"):
        str(state.receipt)


def test_what_was_asked_for_stays_and_is_computed_once(monkeypatch):
    state = rg.Network(not_normal(5)).steady_state(randn(3, 5))
    state.x.sum().backward()
    receipt = state.receipt
    first = receipt.error_estimate
    receipt.forget()
    assert receipt.error_estimate is first
    with pytest.raises(RuntimeError, match="forget"):
        _ = receipt.sigma_min
    text = str(receipt)
    assert "error of the gradient" in text and "singular value" not in text and "forget" in text


def test_a_step_of_the_optimiser_ends_what_can_be_told():
    net = rg.Network(not_normal(5))
    state = net.steady_state(randn(3, 5))
    state.x.sum().backward()
    sigma = state.receipt.sigma_min
    with torch.no_grad():
        net.W.weight -= 0.1 * net.W.weight.grad
    with pytest.raises(RuntimeError, match="overwritten"):
        _ = state.receipt.error_estimate
    assert torch.equal(state.receipt.sigma_min, sigma) and "overwritten" in str(state.receipt)
    assert "overwritten" in state.receipt._repr_html_()


def test_a_receipt_of_a_gradient_in_inference_mode():
    net = rg.Network(not_normal(5), b=False)
    with torch.inference_mode():
        x = net(randn(3, 5))
        receipt = rg.recurrent_backpropagation(net, x, torch.ones_like(x), input=randn(3, 5)).receipt
    assert (receipt.error_estimate < 1e-12).all()


def test_a_receipt_keeps_no_copies_and_only_the_latest():
    net, input = rg.Network(not_normal(5)), randn(3, 5)
    state = net.steady_state(input)
    state.x.sum().backward(retain_graph=True)
    first = state.receipt
    state.x.sum().backward()
    assert state.receipt is not first and len(state._receipts) == 1
    assert state.receipt.evidence.net.W.weights[0].data_ptr() == net.W.weight.data_ptr()


@each_nonlinearity
def test_the_estimate_is_in_the_dtype_and_shape_of_the_batch(f):
    W = rg.Dense(not_normal(12))
    x, b = manufactured(W, f, 2, 3)
    receipt = rg.recurrent_backpropagation(rg.Network(W, f=f, b=False).float(), x.float(), randn(2, 3, 12).float(),
                                           input=b.float()).receipt  # fmt: skip
    for told in (receipt.error_estimate, receipt.state_error, receipt.sigma_min, receipt.reward_correction):
        assert told.shape == (2, 3) and told.dtype == torch.float32 and told.isfinite().all()
    assert (receipt.error_estimate < 1e-4).all()


# --- how it prints


def test_a_receipt_prints_as_one_table():
    net = rg.Network(not_normal(5))
    state = net.steady_state(randn(400, 5))
    state.x.sum().backward()
    text = str(state.receipt)
    assert "400 of 400 adjoints converged" in text and "Cascade(FixedPoint" in text and "the state by" in text
    assert len(text.splitlines()) < 20 and max(map(len, text.splitlines()[-10:])) < 80
    lines = {line[:26].strip(): line.split() for line in text.splitlines()}
    worst = int(lines["error of the gradient"][-1])
    assert worst == int(state.receipt.error_estimate.argmax())
    assert int(lines["smallest singular value"][-1]) == int(state.receipt.sigma_min.argmin())
    html = state.receipt._repr_html_()
    assert (
        html.startswith("<table>") and html.count("<tr>") == len(lines) - 3 + 1 - 1 and "error of the gradient" in html
    )
    assert "400 of 400 samples" in str(state) and "residual" in repr(state) and "<table>" in state._repr_html_()


def test_a_table_of_one_of_many_of_none_and_of_what_is_no_number():
    values = torch.tensor([[1.0, torch.nan], [2.0, 3.0]])
    text = as_text("title", [("a", values)])
    assert text.splitlines()[-1].split() == ["a", "2.5", "nan", "(0,", "1)"]
    assert as_text("title", [("a", torch.tensor(1.0))]) == "title\na         1"
    assert as_text("title", []) == "title" == as_text("title", [("a", torch.ones(0))])
    assert "&lt;b&gt;" in as_html("<b>", [("a", values)])


def test_a_cascade_says_which_solver_answered_each_sample():
    net = rg.Network(not_normal(6, norm=0.9), b=False)
    input = torch.stack([torch.zeros(6), torch.linspace(-2, 2, 6)]).to(net.W.weight)
    cascade = rg.Cascade(rg.FixedPoint(max_steps=3), rg.Newton())
    state = net.steady_state(input, solver=cascade, adjoint=rg.Cascade(rg.FixedPoint(max_steps=3), rg.Direct()))
    state.x.sin().sum().backward()
    assert state.attempt.tolist() == [0, 1] and state.receipt.attempt.tolist() == [1, 1]
    assert "1 by Newton" in repr(state) and "after FixedPoint failed" in repr(state)
    assert "2 by Direct" in repr(state.receipt) and "1 by FixedPoint" in repr(state)
    alone = net.steady_state(input, solver=rg.FixedPoint())
    assert alone.attempt is None and "by FixedPoint" in repr(alone)


def test_a_receipt_tells_the_verdict_on_its_state():
    net = rg.Network(not_normal(6), b=False)
    state = net.steady_state(torch.ones(2, 6, dtype=net.W.weight.dtype))
    state.x.sum().backward()
    receipt = state.receipt
    assert "stable" not in str(receipt)  # nobody asked
    assert receipt.verdict is state.verdict and "2 stable" in str(receipt)
    assert copy.copy(receipt).residual is receipt.residual
    code = state.verdict.code
    del state
    gc.collect()
    assert torch.equal(receipt.verdict.code, code) and "2 stable" in str(receipt)


def test_a_receipt_by_hand_tells_the_verdict_where_the_input_is_known():
    net, input = rg.Network(not_normal(6), leak=0.5), torch.ones(2, 6, dtype=torch.float64)
    x = net.steady_state(input).x.detach()
    told = rg.recurrent_backpropagation(net, x, torch.ones_like(x), input=input).receipt
    assert torch.equal(told.verdict.margin, net.steady_state(input).verdict.margin) and "2 stable" in str(told)
    for how in ({}, {"input": input}):
        receipt = rg.recurrent_backpropagation(net if not how else net.recurrence, x, torch.ones_like(x), **how).receipt
        with pytest.raises(RuntimeError, match="a Network and its input, of which this receipt has not both"):
            _ = receipt.verdict
    told.forget()
    assert torch.equal(told.verdict.code, net.steady_state(input).verdict.code)  # asked for before


def test_a_deep_copy_of_a_state_and_its_receipt_has_the_numbers_without_their_history():
    net = rg.Network(not_normal(6), b=False)
    state = net.steady_state(torch.ones(2, 6, dtype=torch.float64))
    state.x.sum().backward()
    state.receipt.error_estimate.sum()
    for twin in (copy.deepcopy(state), copy.deepcopy({"state": state})["state"]):
        assert torch.equal(twin.x, state.x) and not twin.x.requires_grad and twin.x is not state.x
        assert torch.equal(twin.verdict.code, state.verdict.code)
        assert torch.equal(twin.receipt.residual, state.receipt.residual) and twin.receipt is not state.receipt
        assert torch.equal(copy.deepcopy(state.receipt).error_estimate, state.receipt.error_estimate)


def test_the_receipt_of_a_low_rank_network_tells_its_rank():
    net = rg.Network(rg.LowRank(torch.randn(20, 3) / 10, torch.randn(20, 3) / 10))
    state = net.steady_state(torch.ones(20))
    state.x.sum().backward()
    assert "W of rank 3" in state.receipt.method and "on W of rank 3" in str(state.receipt)
