import pytest
import torch
from helpers import (
    assert_all_close,
    assert_close,
    assert_slope_along,
    conditioning,
    dense_adjoint,
    gradient,
    outer_sum,
    through_dense,
    tolerance,
)
from problems import (
    DTYPE,
    STRUCTURES,
    Reward,
    bistable,
    dead,
    divergent,
    each_nonlinearity,
    each_solvable,
    each_solver,
    each_structure,
    inputs_of_f,
    manufactured,
    near_critical,
    not_normal,
    oscillating,
    randn,
    saturated,
    scalar,
)

import retrograde as rg
from retrograde.testing import gradient_disagreements


def undamped_residual(W, f, x, b):
    """|f(Wx + b) - x| / max(|x|, tiny), from the definition."""
    x, tiny = x.detach(), torch.finfo(x.dtype).eps ** 2
    return (f(x @ W.dense().detach().T + b) - x).norm(dim=-1) / x.norm(dim=-1).clamp(min=tiny)


# --- the gradient by four routes


@each_structure
@each_nonlinearity
def test_four_routes_to_the_gradient_agree(structure, f):
    W = STRUCTURES[structure]()
    x, b = manufactured(W, f, 4)
    k, R, tensors = conditioning(W, f, x, b), Reward(4, 12), [*W.weights, b]

    def solved(*t):
        return R(rg.steady_state(W.bind(*t[:-1]), t[-1], f).x)

    def unrolled(*t):
        M, x = W.bind(*t[:-1]).dense(), torch.zeros_like(b)
        for _ in range(120):
            x = f(x @ M.T + t[-1])
        return R(x)

    found = gradient(solved, tensors)
    s = dense_adjoint(W, f, x, b, R.gradient(x))
    assert_all_close(found, (*through_dense(W, outer_sum(s, x)), s), conditioning=k)
    assert_all_close(found, gradient(unrolled, tensors), conditioning=k)
    assert_slope_along(solved, tensors, found)


def test_four_routes_agree_as_the_public_check_sees_it():
    worst = max(gradient_disagreements(), key=lambda row: row.worst)
    assert max(worst.dense_solve, worst.unrolled) <= tolerance(DTYPE, conditioning=10), worst


@each_solvable
def test_every_named_problem_has_its_exact_state_and_gradient(problem):
    p = problem()
    net, x, R = p.network, p.x[0], Reward(p.x.shape[1])
    k = conditioning(net.W, p.f, x, p.b) ** 2  # an error of the state moves the slopes, which the adjoint amplifies
    state = net.steady_state(x0=p.x0)
    assert_close(state.x, x, conditioning=k)
    R(state.x).backward()
    s = dense_adjoint(net.W, p.f, x, p.b, R.gradient(x))
    assert_close(net.b.grad, s, conditioning=k)
    assert_close(net.W.weight.grad, torch.outer(s, x), conditioning=k)


def test_the_scalar_problem_by_hand():
    p = scalar()
    net = p.network
    net().sum().backward()
    slope = 1 - 0.5**2
    assert_close(net.b.grad, torch.tensor([slope / (1 + 0.7 * slope)], dtype=DTYPE))
    assert_close(net.W.weight.grad, 0.5 * net.b.grad[None])


# --- where it is hard


@pytest.mark.parametrize("gap", [1e-2, 1e-5, 1e-8])
def test_near_a_bifurcation_the_receipt_knows_how_near(gap):
    p = near_critical(gap)
    net, x, R = p.network, p.x[0], Reward(4)
    state = net.steady_state()
    R(state.x).backward()
    s = dense_adjoint(net.W, p.f, x, p.b, R.gradient(x))
    assert_close(net.b.grad, s, conditioning=10 / gap)
    assert state.receipt.conditioning > 0.01 / gap
    assert (net.b.grad - s).norm() <= 100 * state.receipt.error_estimate * s.norm() + tolerance(DTYPE) * s.norm()


@pytest.mark.parametrize("problem", [saturated, dead])
@pytest.mark.parametrize("adjoint", [None, rg.FixedPoint(), rg.Newton(), rg.Direct(), rg.Krylov()])
def test_where_every_slope_is_zero_the_gradient_is_exactly_zero(problem, adjoint):
    net = problem().network
    state = net.steady_state(adjoint=adjoint)
    Reward(6)(state.x).backward()
    assert state.receipt.converged and state.receipt.error_estimate == 0
    assert state.receipt.conditioning == 1
    assert (net.b.grad == 0).all() and (net.W.weight.grad == 0).all()


def test_a_neuron_that_is_off_neither_sends_nor_receives():
    W = not_normal(12)
    net = rg.Network(W, f="relu")
    input = randn(12)
    x = net(input)
    off = x == 0
    assert 0 < off.sum() < 12
    Reward(12)(x).backward()
    assert (net.b.grad[off] == 0).all() and (net.b.grad[~off] != 0).all()
    assert (net.W.weight.grad[:, off] == 0).all() and (net.W.weight.grad[off] == 0).all()


def test_a_state_of_zero_is_found_from_elsewhere():
    for W in (rg.Dense(not_normal(12)), STRUCTURES["Sparse"]()):
        state = rg.Network(W).steady_state(x0=randn(12))
        assert state.converged and state.x.norm() < tolerance(DTYPE)


def test_newton_finds_the_state_that_the_dynamics_leave():
    p = oscillating()
    net, x, R = p.network, p.x[0], Reward(2)
    k = conditioning(net.W, p.f, x, p.b)
    lost = net.steady_state(x0=x + 0.1, solver=rg.FixedPoint(), throw=False)
    assert not lost.converged and lost.status == rg.Status.MAX_STEPS and lost.residual > 0.1
    for solver in (rg.Newton(), None):
        state = net.steady_state(x0=x + 0.1, solver=solver)
        assert_close(state.x, x, conditioning=k)
        (found,) = torch.autograd.grad(R(state.x), net.b)
        assert_close(found, dense_adjoint(net.W, p.f, x, p.b, R.gradient(x)), conditioning=k)
    # A stable state that full steps overshoot, and damped ones reach.
    W = torch.tensor([[-1.5]], dtype=DTYPE)
    for damping, settles in ((1.0, False), (0.5, True)):
        state = rg.steady_state(
            W, torch.ones(1, dtype=DTYPE), "identity", solver=rg.FixedPoint(damping=damping), throw=False
        )
        assert bool(state.converged) is settles
    assert_close(state.x, torch.tensor([0.4], dtype=DTYPE))


def test_newton_takes_few_steps_on_a_strongly_nonlinear_problem():
    W, b = 4 * not_normal(12, norm=1), 3 * randn(20, 12, seed=5)
    state = rg.steady_state(W, b, solver=rg.Newton())
    assert (state.steps <= 10).all()  # it converges quadratically, so its slopes are those at Wx + b


@pytest.mark.parametrize("structure", [name for name in STRUCTURES if name not in ("Dense", "LowRank")])
def test_by_default_nothing_but_a_full_W_or_one_of_low_rank_is_factored_but_as_a_last_resort(structure):
    state = rg.Network(STRUCTURES[structure]()).steady_state(randn(12))
    state.x.sum().backward()
    before_the_last_resorts, *_ = state.method.partition("Homotopy")
    before_the_last, *_ = state.receipt.method.rpartition("Direct")
    assert "Newton(" not in before_the_last_resorts and "Krylov" in before_the_last and "Direct" not in before_the_last
    full = rg.Network(STRUCTURES["Dense"]()).steady_state(randn(12))
    full.x.sum().backward()
    assert "Newton" in full.method and "Direct" in full.receipt.method


def test_the_default_adjoint_follows_a_chain_to_its_end():
    n, weight = 300, 1.05
    W = rg.Sparse.from_edges(torch.arange(n - 1), torch.arange(1, n), torch.full((n - 1,), weight, dtype=DTYPE), n)
    net, x, g = rg.Network(W, f="identity", b=False), torch.zeros(n, dtype=DTYPE), torch.eye(n, dtype=DTYPE)[-1]
    found = rg.recurrent_backpropagation(net, x, g)
    assert found.receipt.converged
    assert_close(found.s, weight ** torch.arange(n, dtype=DTYPE).flip(0))
    # A cycle of 30 products sees 30 neurons of the chain: GMRES arrives as its cycles grow.
    restarted = rg.recurrent_backpropagation(net, x, g, adjoint=rg.Krylov(restart=30))
    assert restarted.receipt.steps > n
    assert_close(restarted.s, found.s)


@pytest.mark.parametrize("n", [1, 2, 50, 51])
@pytest.mark.parametrize("batch", [(), (1,), (0,), (3,), (2, 3), (2, 0, 3), (1, 1, 1)])
def test_any_size_and_any_batch(n, batch):
    W = rg.Dense(not_normal(n))
    x, b = manufactured(W, rg.Tanh(), *batch)
    R = Reward(*batch, n)
    state = rg.Network(W, b=False).steady_state(b.requires_grad_())
    for told in (state.converged, state.residual, state.steps, state.status):
        assert told.shape == batch
    if x.numel():
        k = conditioning(W, rg.Tanh(), x, b.detach())
        assert_close(state.x, x, conditioning=k)
        R(state.x).backward()
        s = dense_adjoint(W, rg.Tanh(), x, b.detach(), R.gradient(x))
        assert_close(b.grad, s, conditioning=k)
        assert_close(W.weight.grad, outer_sum(s, x), conditioning=k)
    else:
        R(state.x).backward()
        assert b.grad.shape == b.shape and (W.weight.grad == 0).all()
        assert state.receipt.converged.shape == batch and "no samples" in str(state.receipt)


@each_structure
@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_any_batch_in_every_structure(structure, batch):
    W = STRUCTURES[structure]()
    x, b = manufactured(W, rg.Tanh(), *batch)
    found = gradient(lambda *t: Reward(*batch, 12)(rg.steady_state(W.bind(*t[:-1]), t[-1]).x), [*W.weights, b])
    s = dense_adjoint(W, rg.Tanh(), x, b, Reward(*batch, 12).gradient(x)) if x.numel() else torch.zeros_like(b)
    assert_all_close(found, (*through_dense(W, outer_sum(s, x)), s), conditioning=10)


@each_structure
def test_inputs_that_are_not_contiguous_give_the_same(structure):
    W = STRUCTURES[structure]()
    x, b = manufactured(W, rg.Tanh(), 3, 4)
    strange = torch.empty(12, 4, 3, dtype=DTYPE).permute(2, 1, 0).copy_(b)
    assert not strange.is_contiguous()
    every_other = torch.stack([b, -b], dim=-1).flatten(-2)[..., ::2]
    g = randn(3, 4, 12)
    want = rg.steady_state(W, b).x
    for given in (strange, every_other):
        got = rg.steady_state(W, given, x0=torch.zeros_like(x).mT.contiguous().mT).x
        assert_close(got, want, solved=False)
        one, other = (torch.autograd.grad(x, W.weights, g.to(x), retain_graph=True) for x in (got, want))
        assert_all_close(one, other)
    assert_all_close(torch.autograd.grad(want, W.weights, g.mT.contiguous().mT), other, solved=False)


def test_a_transposed_view_as_W_is_no_different():
    M, b = not_normal(12), randn(12)
    assert_close(rg.steady_state(M.T.contiguous().T, b).x, rg.steady_state(M, b).x, solved=False)
    assert_close(rg.steady_state(M.T, b).x, rg.steady_state(M.T.contiguous(), b).x, solved=False)


def test_nothing_given_is_changed():
    W, b, x0 = not_normal(5), randn(3, 5), randn(3, 5, seed=2)
    given = [t.clone() for t in (W, b, x0)]
    state = rg.steady_state(W, b, x0=x0)
    rg.steady_state(W, b, x0=state.x.detach()).x.zero_()  # the answer is nobody's storage but its own
    for solver in (rg.FixedPoint(), rg.Newton()):
        rg.steady_state(W, b, "identity", x0=x0, solver=solver)
    assert all(torch.equal(was, now) for was, now in zip(given, (W, b, x0), strict=True))


# --- sample by sample


@each_solver
def test_a_sample_does_not_depend_on_its_batch(solver):
    W, f = rg.Dense(not_normal(12, norm=0.95)), rg.Tanh()
    _, b = manufactured(W, f, 6)
    b = b * torch.tensor([1e-3, 0.1, 1, 10, 100, 0])[:, None]  # some slow, some fast, one at 0
    net = rg.Network(W, b=False)
    whole = net.steady_state(b, solver=solver)
    alone = [net.steady_state(row, solver=solver) for row in b]
    assert_close(whole.x, torch.stack([a.x for a in alone]), conditioning=20)
    assert whole.steps.tolist() == [int(a.steps) for a in alone]
    assert len(set(whole.steps.tolist())) > 1
    g = randn(6, 12)
    found = torch.autograd.grad(whole.x, net.W.weights, g)[0]
    parts = sum(torch.autograd.grad(a.x, net.W.weights, row)[0] for a, row in zip(alone, g, strict=True))
    assert_close(found, parts, conditioning=20)


def test_a_sample_that_fails_changes_nothing_for_the_others():
    W = rg.Dense(torch.tensor([[0.5, 0.2], [0.0, 3.0]], dtype=DTYPE))
    b = torch.tensor([[1.0, -1.0], [1.0, 1.0], [2.0, -1.0]], dtype=DTYPE)  # the second grows without limit
    solver = rg.FixedPoint(max_steps=2000)
    state = rg.steady_state(W, b, "relu", solver=solver, throw=False)
    without = rg.steady_state(W, b[[0, 2]], "relu", solver=solver)
    assert state.converged.tolist() == [True, False, True]
    assert state.status.tolist() == [rg.Status.CONVERGED, rg.Status.DIVERGED, rg.Status.CONVERGED]
    assert torch.equal(state.x[[0, 2]], without.x)
    assert torch.equal(state.steps[[0, 2]], without.steps)
    assert torch.equal(state.residual[[0, 2]], without.residual)


@each_solver
@each_structure
def test_the_residual_told_is_the_undamped_one(solver, structure):
    W, f = STRUCTURES[structure](), rg.Tanh()
    _, b = manufactured(W, f, 4)
    for loose in (solver, rg.FixedPoint(damping=0.1, rtol=1e-3), rg.FixedPoint(damping=0.3, max_steps=3)):
        state = rg.steady_state(W, b, f, solver=loose, throw=False)
        residual = undamped_residual(W, f, state.x, b)
        assert ((state.residual - residual).abs() <= tolerance(DTYPE, solved=False)).all()
        assert torch.equal(state.converged, state.residual <= state.tolerance)


@pytest.mark.parametrize("plain", ["0", "1"])
@each_solver
def test_a_small_state_meets_the_relative_tolerance_too(solver, plain, monkeypatch):
    monkeypatch.setenv("RETROGRADE_PLAIN", plain)
    W, f = rg.Dense(not_normal(12, norm=0.95)), rg.Tanh()
    b = 1e-6 * randn(4, 12)
    state = rg.steady_state(W, b, f, solver=solver)
    residual = undamped_residual(W, f, state.x.detach(), b)
    assert (residual <= state.tolerance + tolerance(DTYPE, solved=False)).all()
    assert ((state.residual - residual).abs() <= tolerance(DTYPE, solved=False)).all()


# --- the scale of the reward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 2.0**-40, 2.0**40, 1e8, 1e30])
@each_structure
def test_scaling_the_reward_scales_the_gradient_by_exactly_that(structure, scale, dtype):
    net = rg.Network(STRUCTURES[structure](), f="tanh").to(dtype)
    input, R = randn(4, 12, dtype=dtype), Reward(4, 12, dtype=dtype)
    one = torch.autograd.grad(R(net(input)), list(net.parameters()))
    other = torch.autograd.grad(scale * R(net(input)), list(net.parameters()))
    exact = (torch.tensor(scale).log2() % 1 == 0).item()
    for a, b in zip(one, other, strict=True):
        assert torch.equal(scale * a, b) if exact else True
        assert_close(b, scale * a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-30, -11, -10, -9, 9, 10, 11, 30])
def test_powers_of_two_change_no_bit_of_a_saturated_neurons_adjoint(power, dtype):
    net = rg.Network(not_normal(6, dtype=dtype), f="sigmoid", b=False)
    x = torch.full((2, 6), 0.5, dtype=dtype)
    x[:, 0] = 1e-12 if dtype == torch.float32 else 1e-25  # whose slope is next to nothing
    g = torch.zeros(2, 6, dtype=dtype)
    g[:, 0] = 1.3
    one = rg.recurrent_backpropagation(net, x, g).s
    g[0] *= 2.0**power
    other = rg.recurrent_backpropagation(net, x, g).s
    assert torch.equal(other[0], one[0] * 2.0**power)
    assert torch.equal(other[1], one[1])


def test_rewards_in_half_precision():
    net = rg.Network(not_normal(6, dtype=torch.float16), b=False)
    g = torch.full((4, 6), 2.0**10, dtype=torch.float16)
    receipt = rg.recurrent_backpropagation(net, torch.zeros(4, 6, dtype=torch.float16), g).receipt
    assert receipt.converged.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_reward_near_the_ends_of_the_dtype_has_a_finite_gradient(dtype):
    net = rg.Network(not_normal(6, dtype=dtype), b=False)
    info, x = torch.finfo(dtype), torch.zeros(6, dtype=dtype)
    g = randn(6, dtype=dtype).sign()
    one = rg.recurrent_backpropagation(net, x, g).s
    for size in (0.3 * info.max, 0.1 * info.max, info.tiny, info.tiny * 2.0**-8):
        scaled = rg.recurrent_backpropagation(net, x, g * size).s
        assert scaled.isfinite().all()
        assert_close(scaled / size, one, within=2.0**-8 if size <= info.tiny else None)


def test_no_reward_no_gradient():
    net = rg.Network(not_normal(6))
    state = net.steady_state(randn(3, 6))
    (0 * state.x).sum().backward()
    assert (net.W.weight.grad == 0).all() and (net.b.grad == 0).all()
    assert state.receipt.converged.all() and (state.receipt.residual == 0).all()


def test_no_reward_no_gradient_even_of_a_state_that_diverged():
    state = rg.steady_state(
        torch.ones(1, 1, dtype=DTYPE, requires_grad=True),
        torch.zeros(1, dtype=DTYPE, requires_grad=True),
        rg.Pointwise(lambda u: u**3),
        x0=torch.tensor([1e200], dtype=DTYPE),  # where the slope is infinite, and 0 times it no number
        solver=rg.FixedPoint(),
        throw=False,
    )
    assert state.status == rg.Status.DIVERGED
    state.x.backward(torch.zeros(1, dtype=DTYPE))
    assert state.receipt.converged and state.receipt.residual == 0


# --- failures


def failure(call):
    with pytest.raises(rg.ConvergenceError) as caught:
        call()
    return caught.value


def test_a_failure_says_what_why_and_what_to_try():
    net = divergent().network
    error = failure(lambda: net.steady_state(torch.zeros(3, 2, dtype=DTYPE), solver=rg.FixedPoint(max_steps=50)))
    told = str(error)
    for part in ("steady state", "3 of 3 samples", "FixedPoint", "max_steps", "residual", "tolerance", "50 steps"):
        assert part in told
    assert f"{error.result.tolerance:.2e}" in told and f"{float(error.result.residual.max()):.2e}" in told
    assert "Try" in told and "throw=False" in told
    assert isinstance(error.result, rg.SteadyState) and error.result.x.shape == (3, 2)
    assert not error.result.converged.any()
    assert isinstance(error, RuntimeError)


def test_what_a_failure_advises_was_not_tried_and_can_be_done():
    def told(solver, n=2):
        ends = torch.arange(n)
        W = rg.Sparse.from_edges(ends, ends, torch.full((n,), 3.0), n)
        return str(failure(lambda: rg.steady_state(W, torch.ones(n), "relu", solver=solver))).split("Try ")[1]

    brief, damped, newton = rg.FixedPoint(max_steps=9), rg.FixedPoint(max_steps=9, damping=0.5), rg.Newton(max_steps=9)
    path = rg.Homotopy(max_steps=2)
    assert told(brief).startswith("FixedPoint(damping=0.5), Newton(), Homotopy(), Multistart(Newton()) or another x0;")
    assert told(brief, n=2000).startswith(
        "FixedPoint(damping=0.5), NewtonKrylov() or another x0;"
    )  # too many to factor
    tried = rg.Cascade(brief, rg.Cascade(damped, newton, path))
    others = rg.Multistart(newton)
    assert told(tried).startswith("Homotopy(max_steps=5000), Multistart(Newton()) or another x0;")
    assert told(rg.Cascade(brief, others)).startswith("FixedPoint(damping=0.5), Homotopy() or another x0;")
    assert told(rg.Cascade(tried, others)).startswith("Homotopy(max_steps=5000) or another x0;")


def test_divergence_is_told_from_slowness():
    net = divergent().network
    assert failure(lambda: net.steady_state(solver=rg.FixedPoint(max_steps=5000))).result.status == rg.Status.DIVERGED
    assert net.steady_state(solver=rg.FixedPoint(max_steps=50), throw=False).status == rg.Status.MAX_STEPS
    assert "diverged" in str(failure(lambda: net.steady_state(solver=rg.FixedPoint(max_steps=5000))))


def test_without_throw_the_failure_is_in_the_result():
    state = divergent().network.steady_state(solver=rg.FixedPoint(max_steps=50), throw=False)
    assert not state.converged and state.steps == 50
    assert state.residual > state.tolerance


@pytest.mark.parametrize("solver", [rg.FixedPoint(), rg.Newton(), None])
def test_steps_never_pass_max_steps(solver):
    state = oscillating().network.steady_state(x0=randn(4, 2), solver=solver, throw=False)
    most = {rg.FixedPoint(): 1000, rg.Newton(): 100, None: 100 + 20 + 50 + 500}[solver]
    assert (state.steps <= most).all()


def test_an_adjoint_that_fails_raises_inside_the_backward():
    p = near_critical(1e-6)
    net = p.network
    weak = rg.FixedPoint(max_steps=10)
    state = net.steady_state(adjoint=weak)
    error = failure(lambda: state.x.sum().backward())
    assert "adjoint" in str(error) and "FixedPoint" in str(error) and "Direct()" in str(error)
    assert isinstance(error.result, rg.Gradients) and not error.result.receipt.converged
    assert net.b.grad is None and net.W.weight.grad is None

    state = net.steady_state(adjoint=weak, throw=False)
    state.x.sum().backward()
    assert not state.receipt.converged and state.receipt.status == rg.Status.MAX_STEPS
    assert state.receipt.residual > weak.tolerance(DTYPE)
    assert "0 of 1 adjoints converged" in str(state.receipt)


@pytest.mark.parametrize("adjoint", [None, rg.FixedPoint(), rg.Direct(), rg.Newton(), rg.Krylov()], ids=repr)
def test_a_singular_adjoint_is_told(adjoint):
    net = rg.Network(torch.eye(3, dtype=DTYPE), b=False)
    x, g = torch.zeros(3, dtype=DTYPE), torch.ones(3, dtype=DTYPE)  # where f' = 1, and I - DW is 0
    assert "adjoint" in str(failure(lambda: rg.recurrent_backpropagation(net, x, g, adjoint=adjoint)))
    assert not rg.recurrent_backpropagation(net, x, g, adjoint=adjoint, throw=False).receipt.converged


def test_only_the_samples_that_fail_are_counted():
    net = rg.Network(torch.eye(1, dtype=DTYPE), b=False)
    x = torch.tensor([[0.0], [0.5]], dtype=DTYPE)
    error = failure(lambda: rg.recurrent_backpropagation(net, x, torch.ones_like(x)))
    assert "1 of 2 samples" in str(error)
    assert error.result.receipt.converged.tolist() == [False, True]


def test_several_steady_states_and_where_the_search_starts():
    p = bistable()
    x = p.network.steady_state(torch.zeros(2, 2, dtype=DTYPE), x0=torch.stack([p.x0, -p.x0])).x
    assert_close(x, p.x[[0, 2]], conditioning=10)
    state = p.network.steady_state(x0=p.x0.requires_grad_())
    state.x.sum().backward()
    assert p.x0.grad is None  # the state does not depend on it


@each_nonlinearity
def test_float32_is_as_good_as_float32(f):
    W = rg.Dense(not_normal(12))
    x, b = manufactured(W, f, 4)
    R = Reward(4, 12)
    k = conditioning(W, f, x, b)
    single = gradient(
        lambda M, b: Reward(4, 12, dtype=M.dtype)(rg.steady_state(M, b, f).x), [W.dense().float(), b.float()]
    )
    s = dense_adjoint(W, f, x, b, R.gradient(x))
    assert_all_close(single, (outer_sum(s, x).float(), s.float()), conditioning=k)


def test_inputs_of_f_keep_off_the_kink():
    assert inputs_of_f(1000).abs().min() >= 0.05
