"""What an Equilibrium shares with a Network: every solver, verdicts, estimates on receipts, warm starts."""

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import assert_all_close, assert_close
from problems import DTYPE, Reward, bistable, near_critical, not_normal, oscillating, randn
from test_equilibrium import Convolutional, unrolled
from test_receipts import WITHIN, long, networks, size, truth
from torch import nn

import retrograde as rg
from retrograde.equation import Equation
from retrograde.equation_graph import Graph, NoTangent

N, B = 6, 4
W, U = not_normal(N), randn(B, N, seed=1)
R = Reward(B, N)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def tanh(x, u):
    return torch.tanh(x @ W.T + u)


def of(problem, **options):
    """A problem's network as a layer, and its input."""
    net = problem.network
    return rg.Equilibrium(lambda x, u: net.step(x, u), **options), net.total(None).detach()[None]


class Normed(nn.Module):
    """A convolution and a batch norm, which evaluation leaves to each sample."""

    def __init__(self, channels=2):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        with torch.no_grad():
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.running_mean.normal_()

    def forward(self, x, u):
        return torch.tanh(self.norm(self.conv(x)) + u)


class Once(torch.autograd.Function):
    """sin, with forward mode, and a backward of which torch takes no derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos()

    @staticmethod
    def jvp(ctx, v):
        (x,) = ctx.saved_tensors
        return v * x.cos()


class Backward(torch.autograd.Function):
    """sin, with a backward alone."""

    forward = Once.forward
    backward = Once.backward


# --- products with the Jacobian, and the solvers that need them


def test_products_are_those_of_the_jacobian():
    model = Normed().double().eval()
    x, u = randn(3, 2, 3, 4), randn(3, 2, 3, 4, seed=2)
    J = torch.stack(
        [torch.func.jacrev(lambda x, u=u: model(x[None], u[None])[0])(x) for x, u in zip(x, u, strict=True)]
    )
    J = J.reshape(3, 24, 24)
    assert (J - J.mT).abs().max() > 0.1 * J.abs().max()
    equation, v = Equation(model, (u,), (True,)), randn(3, 24, seed=3)
    graph = Graph(equation, x)
    for got, want in (
        (graph.moved(v), torch.einsum("sij,sj->si", J, v)),
        (graph.transposed(v), torch.einsum("sij,si->sj", J, v)),
        (equation.rows(equation.pushed(x, v.reshape(x.shape))[1]), torch.einsum("sij,sj->si", J, v)),
        (equation.jacobian(x), J),
        (graph.jacobian(), J),
    ):
        assert_close(got.detach(), want.detach(), solved=False)


@pytest.mark.parametrize("solver", [rg.NewtonKrylov(), rg.PseudoTransient(), rg.Homotopy()], ids=repr)
@dtypes
def test_modules_whose_state_is_a_picture(solver, dtype):
    torch.manual_seed(0)
    model = Normed().to(dtype).eval()
    u = randn(3, 2, 4, 5, dtype=dtype).requires_grad_()
    tensors, reward = [u, *model.parameters()], Reward(*u.shape, dtype=dtype)
    state = rg.Equilibrium(model, solver=solver, adjoint=rg.Krylov("bicgstab")).steady_state(u)
    got = torch.autograd.grad(reward(state.x), tensors)
    want = torch.autograd.grad(reward(unrolled(model, torch.zeros_like(u), u)), tensors)
    assert_all_close(got, want, conditioning=10)
    alone = rg.Equilibrium(model, solver=solver).steady_state(u[1:2])
    assert alone.steps[0] == state.steps[1]
    assert_close(alone.x.detach(), state.x[1:2].detach())


@pytest.mark.parametrize("solver", [rg.NewtonKrylov(), rg.PseudoTransient(), rg.Newton(), rg.Homotopy()], ids=repr)
def test_states_that_the_dynamics_leave(solver):
    problem = oscillating()
    layer, u = of(problem, solver=solver)
    assert_close(layer(u).detach(), problem.x, conditioning=10)


def test_coupled_samples_are_solved_without_a_matrix():
    def fn(x, u):
        return torch.tanh(2 * (x - x.mean(0)) @ W.T + u)

    u = U.clone().requires_grad_()
    state = rg.Equilibrium(fn, coupled=True, solver=rg.NewtonKrylov()).steady_state(u)
    J = torch.func.jacrev(lambda x: fn(x, U))(state.x.detach()).reshape(B * N, B * N)
    (got,) = torch.autograd.grad(R(state.x), u)
    l = torch.linalg.solve(torch.eye(B * N).to(J) - J.T, R.gradient(state.x.detach()).flatten())
    D = 1 - state.x.detach() ** 2
    assert_close(got, D * l.reshape(B, N), conditioning=10)
    A = torch.eye(B * N).to(J) - J
    assert_close(state.receipt.sigma_min, torch.linalg.svdvals(A)[-1].expand(B), within=0.1)
    margin = 1 - torch.linalg.eigvals(J).abs().max()
    assert_close(state.verdict.margin, margin.expand(B), conditioning=10)


def test_the_default_goes_on_and_tells_who_answered():
    layer = rg.Equilibrium(lambda x, w: torch.tanh(w * x + 0.5))
    w = torch.tensor([[0.5], [-3.0], [0.1]], dtype=DTYPE).expand(3, 2).clone().requires_grad_()
    state = layer.steady_state(w)
    assert state.attempt.tolist() == [0, 1, 0]
    assert "2 by FixedPoint" in str(state) and "1 by Newton" in str(state) and "after FixedPoint failed" in str(state)
    state.x.sum().backward()
    receipt = state.receipt
    assert receipt.attempt.tolist() == [0, 1, 0]
    assert torch.equal(receipt.state_steps, state.steps) and receipt.state_solver is state.solver
    w = torch.tensor([[0.5], [-3.0]], dtype=DTYPE).expand(2, 300).clone()
    state = layer.steady_state(w)
    assert state.attempt[0] == 0 and state.attempt[1] > 0 and state.converged.all()


def test_what_fails_is_told_what_else_there_is():
    layer = rg.Equilibrium(lambda x: x + 1, solver=rg.FixedPoint(max_steps=20))
    x0 = torch.zeros(2, 3, dtype=DTYPE)
    with pytest.raises(rg.ConvergenceError, match=r"Try FixedPoint\(damping=0.5\), NewtonKrylov\(\), Homotopy\(\)"):
        layer(x0=x0)
    state = rg.Equilibrium(lambda x: x.square() + 1).steady_state(x0=x0, throw=False)
    assert not state.converged.any()


def test_forward_mode_where_there_are_no_second_derivatives():
    u = U.clone().requires_grad_()
    want, got = (
        rg.Equilibrium(lambda x, u, f=f: f(x @ W.T) + u, solver=rg.NewtonKrylov()).steady_state(u)
        for f in (torch.sin, Once.apply)
    )
    assert_close(got.x, want.x)
    with pytest.raises(RuntimeError, match="has no second derivatives"):
        torch.autograd.grad(got.x.sum(), u, create_graph=True)
    got.x.sum().backward()
    assert got.receipt.error_estimate.isfinite().all() and got.verdict.margin.isfinite().all()


def test_an_fn_of_first_derivatives_alone_says_so():
    u = U.clone().requires_grad_()
    layer = rg.Equilibrium(lambda x, u: 0.3 * Backward.apply(x) + u)
    with pytest.raises(NoTangent, match="expected products Jv"):
        layer.steady_state(u, solver=rg.NewtonKrylov())
    state = layer.steady_state(u)
    state.x.sum().backward()
    assert "no more is told: fn: expected products Jv" in str(state.receipt)
    with pytest.raises(RuntimeError, match="expected products Jv"):
        _ = state.receipt.error_estimate
    assert layer.steady_state(u, solver=rg.Newton()).converged.all()


@pytest.mark.parametrize("solver", [rg.NewtonKrylov(), rg.Homotopy()], ids=repr)
def test_under_torch_func_too(solver):
    def ours(W, u):
        return R(rg.Equilibrium(lambda x, u: torch.tanh(2 * x @ W.T + u), solver=solver)(u))

    got = torch.func.grad(ours, (0, 1))(W, U)
    leaves = W.clone().requires_grad_(), U.clone().requires_grad_()
    assert_all_close(got, torch.autograd.grad(ours(*leaves), leaves), conditioning=10)
    rows = torch.func.vmap(lambda u: rg.Equilibrium(tanh, solver=solver)(u))(torch.stack([U, 2 * U]))
    assert_close(rows[1], rg.Equilibrium(tanh)(2 * U))


# --- verdicts


@pytest.mark.parametrize("problem", [bistable, oscillating, near_critical])
def test_the_verdict_is_that_of_the_network(problem):
    problem = problem()
    for solver in (rg.Newton(), rg.FixedPoint(max_steps=60)):
        layer, u = of(problem, solver=solver)
        state = layer.steady_state(u, x0=None if problem.x0 is None else problem.x0[None], throw=False)
        want = rg.verdict(problem.network, state, x0=problem.x0)
        got = state.verdict
        assert got.sentences == want.sentences
        assert torch.equal(got.code, want.code) and torch.equal(got.fate, want.fate)
        assert torch.allclose(got.margin_continuous, want.margin_continuous, equal_nan=True)


def test_a_large_state_is_judged_by_products():
    torch.manual_seed(0)
    model = Convolutional().double()
    u = randn(1, 3, 10, 10)
    state = rg.Equilibrium(model).steady_state(u)
    J = torch.func.jacrev(lambda x: model(x, u))(state.x.detach()).reshape(300, 300)
    assert_close(state.verdict.margin, 1 - torch.linalg.eigvals(J).abs().max()[None].detach(), within=1e-3)


def test_a_verdict_too_late():
    weight = W.clone().requires_grad_()
    state = rg.Equilibrium(lambda x, u: torch.tanh(x @ weight.T + u)).steady_state(U)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(ValueError, match="none of fn as it is now"):
        _ = state.verdict


# --- receipts


FUNCTIONS = {  # torch's softplus is not the exact one
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "identity": lambda u: 1 * u,
    "sin": torch.sin,
    "silu": nn.functional.silu,
}


def looked_at(count, **how):
    """For each network that settles, as a layer: its dtype, the receipt, the true error of dR/dW."""
    for name, M, b, c in networks(count):
        if name not in FUNCTIONS:
            continue
        f, M = FUNCTIONS[name], M.requires_grad_()
        state = rg.Equilibrium(lambda x, b, f=f, M=M: f(x @ M.T + b)).steady_state(b[None], throw=False, **how)
        if not state.converged.all():
            continue
        (c * torch.sin(state.x + c)).sum().backward()
        k = long(c)
        exact = truth(name, M, b, state.x[0], lambda x, k=k: k * np.cos(x + k))
        if exact is not None:
            dW = np.outer(exact[1], exact[0])
            yield M.dtype, state.receipt, float(size(long(M.grad) - dW) / size(dW))


def test_the_estimate_bounds_the_true_error_and_is_not_empty():
    rows = [(float(r.error_estimate), true, torch.finfo(dtype).eps) for dtype, r, true in looked_at(42)]
    estimates, true, eps = np.array(rows).T
    assert len(rows) > 25 and np.mean(true <= WITHIN * estimates) >= 0.99
    assert np.mean(estimates <= WITHIN * np.maximum(true, eps)) >= 0.7
    assert np.median(estimates / np.maximum(true, eps)) < 5


def test_the_estimate_follows_a_loose_solve():
    loose = {"solver": rg.FixedPoint(rtol=1e-4), "adjoint": rg.FixedPoint(rtol=1e-4)}
    rows = [(float(r.error_estimate), true) for _, r, true in looked_at(42, **loose) if r.converged.all()]
    estimates, true = np.array(rows).T
    assert len(rows) > 12 and np.median(true) > 1e-6
    assert (true <= WITHIN * estimates).all() and np.median(estimates / true) < 5


@dtypes
def test_singular_values_and_the_correction_of_the_reward(dtype):
    M = 1.4 * W.to(dtype)
    layer = rg.Equilibrium(lambda x, u: torch.tanh(x @ M.T + u))
    exact = layer.steady_state(U.to(dtype)).x.detach()
    D = 1 - exact**2
    values = torch.linalg.svdvals(torch.eye(N).to(M) - D[..., None] * M)
    u = U.to(dtype).requires_grad_()
    loose = layer.steady_state(u, solver=rg.FixedPoint(rtol=1e-3))
    reward = Reward(B, N, dtype=dtype)
    reward(loose.x).backward()
    receipt = loose.receipt
    assert_close(receipt.sigma_min, values[:, -1], within=0.05)
    assert_close(receipt.condition_number, values[:, 0] / values[:, -1], within=0.1)
    before, after = reward(loose.x) - reward(exact), reward(loose.x) + receipt.reward_correction.sum() - reward(exact)
    assert abs(after) < 0.02 * abs(before)
    error = (loose.x.detach() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert_close(receipt.state_error, error, within=0.02)


def test_an_estimate_does_not_depend_on_the_batch_nor_on_the_size_of_the_reward():
    model = Normed().double().eval()
    u = randn(3, 2, 3, 3).requires_grad_()
    loose = {"solver": rg.FixedPoint(rtol=1e-6), "adjoint": rg.FixedPoint(rtol=1e-6)}
    state = rg.Equilibrium(model, **loose).steady_state(u)
    alone = rg.Equilibrium(model, **loose).steady_state(u[1:2].detach().requires_grad_())
    (state.x.sin().sum()).backward()
    (2.0**60 * alone.x.sin().sum()).backward()
    for name in ("error_estimate", "state_error", "sigma_min", "condition_number"):
        one, other = (getattr(each.receipt, name) for each in (alone, state))
        assert other.shape == (3,) and one.item() == pytest.approx(float(other[1]), rel=1e-3)


def test_a_receipt_prints_keeps_what_was_asked_and_knows_when_it_is_too_late():
    weight, u = W.clone().requires_grad_(), U.clone().requires_grad_()
    state = rg.Equilibrium(lambda x, u: torch.tanh(x @ weight.T + u)).steady_state(u)
    state.x.sum().backward()
    told = str(state.receipt)
    for row in ("steps to the state", "smallest singular value", "error of the gradient", "correction of R"):
        assert row in told
    with torch.no_grad():
        weight.mul_(1)
    assert state.receipt.error_estimate.max() < 1e-12  # was printed
    state = rg.Equilibrium(lambda x, u: torch.tanh(x @ weight.T + u)).steady_state(u)
    state.x.sum().backward()
    with torch.no_grad():
        weight.mul_(1)
    with pytest.raises(RuntimeError, match="overwritten since"):
        _ = state.receipt.sigma_min
    assert "no more is told" in str(state.receipt)
    state.receipt.forget()
    with pytest.raises(RuntimeError, match="not held"):
        _ = state.receipt.sigma_min


def test_a_receipt_is_copied_and_stored():
    u = U.clone().requires_grad_()
    state = rg.Equilibrium(tanh).steady_state(u)
    state.x.sum().backward()
    copied, stored = copy.deepcopy(state.receipt), pickle.loads(pickle.dumps(state.receipt))
    assert torch.equal(copied.error_estimate, state.receipt.error_estimate)
    assert torch.equal(stored.residual, state.receipt.residual) and "not held" in str(stored)


def test_near_a_fold_the_receipt_says_so():
    x0 = torch.zeros(1, 1, dtype=DTYPE)
    w = torch.tensor([[1 - 1e-6]], dtype=DTYPE, requires_grad=True)
    state = rg.Equilibrium(lambda x, w: torch.tanh(w * x)).steady_state(w, x0=x0 + 0.1, throw=False)
    state.x.sum().backward()
    assert state.receipt.sigma_min.item() < 1e-3


# --- warm starts


def trained(warm, batch=None, **how):
    torch.manual_seed(0)
    linear = nn.Linear(N, N, dtype=DTYPE)
    with torch.no_grad():
        linear.weight.copy_(1.6 * not_normal(N))
    layer = rg.Equilibrium(lambda x, u: torch.tanh(linear(x) + u), **how)
    ascent, steps = torch.optim.SGD(linear.parameters(), 3e-4), 0
    u, generator = randn(12, N, seed=4), torch.Generator().manual_seed(0)
    for _ in range(30):
        for rows in torch.randperm(12, generator=generator).split(batch or 12):
            rows = rows if batch else torch.arange(12)
            state = layer.steady_state(u[rows], warm=warm and (warm[rows] if batch else warm))
            ascent.zero_grad()
            (state.x - 0.2).square().sum().backward()
            ascent.step()
            steps += int(state.steps.sum() + state.receipt.steps.sum())
    return linear.weight.detach(), steps


@pytest.mark.parametrize(("batch", "times"), [(None, 1.5), (5, 1.1)])
def test_warm_starts_take_fewer_steps_to_the_same_weights(batch, times):
    (cold, many), (warm, few) = trained(None, batch), trained(rg.WarmStart(), batch)
    assert few < many / times
    assert_close(warm, cold, conditioning=10)


def test_warm_starts_of_samples_that_depend_on_one_another():
    def fn(x, u):
        return torch.tanh(0.8 * (x - x.mean(0)) @ W.T + u)

    layer, warm, u = rg.Equilibrium(fn, coupled=True), rg.WarmStart(), U.clone().requires_grad_()
    states = [layer.steady_state(u, warm=warm) for _ in range(2)]
    assert states[1].steps.max() < states[0].steps.max() / 2
    assert_close(states[1].x, states[0].x)
    for state in states:
        state.x.sum().backward()
    assert states[1].receipt.steps.max() < 3


def test_what_is_no_warm_start_is_refused():
    layer = rg.Equilibrium(tanh)
    with pytest.raises(TypeError, match="warm: expected a WarmStart, got bool"):
        layer.steady_state(U, warm=True)
    with pytest.raises(ValueError, match=r"warm: expected None under the transforms"):
        torch.func.grad(lambda u: layer.steady_state(u, warm=rg.WarmStart()).x.sum())(U)
    with pytest.raises(ValueError, match="warm: expected an index for each sample"):
        layer.steady_state(U, warm=rg.WarmStart()[torch.arange(B + 1)])


def test_second_derivatives_from_a_warm_start():
    layer, warm = rg.Equilibrium(tanh), rg.WarmStart()
    answers = []
    for memory in (None, warm, warm):
        u = U.clone().requires_grad_()
        (g,) = torch.autograd.grad(R(layer.steady_state(u, warm=memory).x), u, create_graph=True)
        answers.append(torch.autograd.grad(g.sin().sum(), u)[0])
    assert_all_close(answers[1:], answers[:1] * 2, conditioning=10)


# --- printing


def test_a_state_tells_its_shape():
    def head(x):
        return repr(rg.Equilibrium(lambda x: 0.5 * x.cos()).steady_state(x0=x)).splitlines()[0]

    assert head(torch.zeros(2, 4, 6, 6)).startswith("SteadyState of shape (4, 6, 6): 2 of 2")
    assert head(torch.zeros(2, 5)).startswith("SteadyState of 5 neurons: 2 of 2")
    assert head(torch.zeros(2)).startswith("SteadyState of shape (): 2 of 2")
