"""x = fn(x, *inputs) for any fn: states, gradients to any order, and what is asked of fn."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_all_close, assert_close, gradient
from problems import DTYPE, Reward, not_normal, randn
from torch import nn
from torch.nn.utils import parametrize

import retrograde as rg

N, B = 6, 4
W, U = not_normal(N), randn(B, N, seed=1)
R = Reward(B, N)


def tanh_layer(W=W, **options):
    """x = tanh(xWᵀ + u)."""
    return rg.Equilibrium(lambda x, u: torch.tanh(x @ W.T + u), **options)


def of_inputs(W, u, **options):
    """The same, with W among the inputs: an axis of 1 before it says that all samples share it."""
    return rg.Equilibrium(lambda x, u, W: torch.tanh(x @ W[0].T + u), **options)(u, W[None])


def unrolled(fn, x, *inputs, steps=300):
    for _ in range(steps):
        x = fn(x, *inputs)
    return x


class Convolutional(nn.Module):
    """A layer of everything that fn may be: two convolutions, a norm, a skip connection."""

    def __init__(self, channels=3):
        super().__init__()
        self.inner = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, 2 * channels)
        self.outer = nn.Conv2d(2 * channels, channels, 3, padding=1)
        with torch.no_grad():
            self.outer.weight.mul_(0.5)

    def forward(self, x, u):
        return torch.tanh(self.outer(torch.relu(self.norm(self.inner(x)))) + u)


# --- states and first derivatives


def test_it_is_the_network_on_the_network_s_recurrence():
    net = rg.Network(W, b=False)
    layer = tanh_layer(net.W.weight)
    u, v = (U.clone().requires_grad_() for _ in range(2))
    one, other = net.steady_state(u), layer.steady_state(v)
    assert_close(other.x, one.x)
    want = torch.autograd.grad(R(one.x), [u, net.W.weight])
    got = torch.autograd.grad(R(other.x), [v, net.W.weight])
    assert_all_close(got, want)
    assert other.converged.shape == other.residual.shape == other.steps.shape == (B,)
    assert other.residual.max() <= other.tolerance
    receipt = other.receipt
    assert receipt.converged.all() and receipt.residual.max() <= other.tolerance
    assert torch.equal(receipt.state_residual, other.residual)


SOLVERS = {
    "default": (None, None),
    "FixedPoint": (rg.FixedPoint(), rg.FixedPoint()),
    "Newton, Direct": (rg.Newton(), rg.Direct()),
    "Newton, Newton": (rg.Newton(), rg.Newton()),
    "Krylov": (rg.FixedPoint(damping=0.8), rg.Krylov(restart=3)),
    "NewtonKrylov, BiCGSTAB": (rg.NewtonKrylov(), rg.Krylov("bicgstab")),
    "PseudoTransient": (rg.PseudoTransient(), rg.NewtonKrylov()),
    "Homotopy, Anderson": (rg.Homotopy(), rg.Anderson()),
    "Cascade": (
        rg.Cascade(rg.FixedPoint(max_steps=3), rg.Newton()),
        rg.Cascade(rg.FixedPoint(max_steps=3), rg.Direct()),
    ),
}
each_pair = pytest.mark.parametrize("solver, adjoint", SOLVERS.values(), ids=SOLVERS.keys())


@each_pair
def test_the_gradient_is_that_of_the_unrolled_loop_and_of_a_dense_solve(solver, adjoint):
    def ours(W, u):
        return R(of_inputs(W, u, solver=solver, adjoint=adjoint))

    got = gradient(ours, [W, U])
    assert_all_close(
        got, gradient(lambda W, u: R(unrolled(lambda x: torch.tanh(x @ W.T + u), torch.zeros_like(u))), [W, U])
    )
    x = tanh_layer()(U).detach()
    D, eye = 1 - x**2, torch.eye(N, dtype=DTYPE)
    s = torch.linalg.solve(eye - D[..., None] * W.T, D * R.gradient(x))
    assert_all_close(got, [s.T @ x, s])


@each_pair
def test_gradcheck_and_gradgradcheck(solver, adjoint):
    tensors = [W[:3, :3].clone().requires_grad_(), U[:2, :3].clone().requires_grad_()]

    def layer(W, u):
        return of_inputs(W, u, solver=solver, adjoint=adjoint)

    fast = solver is not None
    assert torch.autograd.gradcheck(layer, tensors, fast_mode=fast)
    assert torch.autograd.gradgradcheck(layer, tensors, fast_mode=fast)


def test_a_convolutional_model_of_modules():
    torch.manual_seed(0)
    model = Convolutional().double()
    layer = rg.Equilibrium(model)
    u = randn(3, 3, 4, 5).requires_grad_()
    tensors = [u, *model.parameters()]
    state = layer.steady_state(u)
    assert state.x.shape == u.shape and state.converged.shape == (3,)
    reward = Reward(*u.shape)
    got = torch.autograd.grad(reward(state.x), tensors)
    want = torch.autograd.grad(reward(unrolled(model, torch.zeros_like(u), u)), tensors)
    assert_all_close(got, want, conditioning=10)
    assert all(w.abs().max() > 0 for w in want)


def test_a_module_is_registered_and_trains():
    layer = rg.Equilibrium(Convolutional())
    assert set(layer.state_dict()) == {f"fn.{name}" for name in Convolutional().state_dict()}
    other = rg.Equilibrium(Convolutional())
    other.load_state_dict(layer.state_dict())
    u = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(u), other(u))
    before = layer(u).square().sum()
    before.backward()
    torch.optim.SGD(layer.parameters(), lr=1e-2).step()
    assert layer(u).square().sum() < before


def test_a_cell_whose_state_is_not_of_the_input_s_shape():
    torch.manual_seed(0)
    cell = nn.GRUCell(3, 5, dtype=DTYPE)
    u, x0 = randn(B, 3), torch.zeros(B, 5, dtype=DTYPE)
    layer = rg.Equilibrium(lambda x, u: cell(u, x))
    reward, tensors = Reward(B, 5), [cell.weight_hh, cell.bias_ih]
    got = torch.autograd.grad(reward(layer(u, x0=x0)), tensors)
    want = torch.autograd.grad(reward(unrolled(lambda x: cell(u, x), x0, steps=400)), tensors)
    assert_all_close(got, want, conditioning=10)


def test_one_number_a_sample_and_a_start_that_chooses_the_state():
    layer = rg.Equilibrium(lambda x: torch.tanh(2 * x))
    x = layer(x0=torch.tensor([0.3, -0.3, 0.0], dtype=DTYPE))
    up = 0.9575040240772687
    assert_close(x, torch.tensor([up, -up, 0.0], dtype=DTYPE))


def test_the_start_gets_no_gradient():
    x0 = torch.zeros(B, N, dtype=DTYPE, requires_grad=True)
    u = U.clone().requires_grad_()
    tanh_layer()(u, x0=x0).sum().backward()
    assert x0.grad is None and u.grad is not None


def test_the_gradient_scales_with_the_reward_exactly():
    u = U.clone().requires_grad_()
    x = tanh_layer()(u)
    (g,) = torch.autograd.grad(R(x), u, retain_graph=True)
    for power in (-60, 60):
        (scaled,) = torch.autograd.grad(R(x) * 2.0**power, u, retain_graph=True)
        assert torch.equal(scaled, g * 2.0**power)
    (none,) = torch.autograd.grad(0 * R(x), u)
    assert torch.equal(none, torch.zeros_like(g))


def test_eval_changes_nothing_about_gradients():
    torch.manual_seed(0)
    layer = rg.Equilibrium(Convolutional())
    u = torch.randn(2, 3, 4, 4, requires_grad=True)
    train = torch.autograd.grad(layer(u).square().sum(), [u, *layer.parameters()])
    layer.eval()
    assert all(map(torch.equal, train, torch.autograd.grad(layer(u).square().sum(), [u, *layer.parameters()])))


def test_no_grad_solves_and_keeps_no_graph():
    with torch.no_grad():
        state = tanh_layer(W.clone().requires_grad_()).steady_state(U)
    assert not state.x.requires_grad and state.converged.all()


# --- what fn closes over


def test_leaves_and_what_was_computed_from_them_beforehand_get_their_gradient():
    V, c = (each.clone().requires_grad_() for each in (W, U))

    def ours(V, c):
        made = V * 1.0  # a tensor with a history, closed over
        return R(rg.Equilibrium(lambda x, u: torch.tanh(x @ made.T + u * u))(c) + made.sum())

    def plain(V, c):
        return R(unrolled(lambda x: torch.tanh(x @ V.T + c * c), torch.zeros_like(c)) + V.sum())

    got, want = (torch.autograd.grad(each(V, c), [V, c], create_graph=True) for each in (ours, plain))
    assert_all_close(got, want)
    direction = [randn(*each.shape, seed=5) for each in (V, c)]
    got, want = (
        torch.autograd.grad(sum((a * d).sum() for a, d in zip(g, direction, strict=True)), [V, c]) for g in (got, want)
    )
    assert_all_close(got, want, conditioning=10)


def test_an_input_that_fn_closes_over_as_well_counts_both_times():
    w = torch.tensor([[0.3, 0.5]], dtype=DTYPE, requires_grad=True)
    layer = rg.Equilibrium(lambda x, u: torch.sin(w * x) + u)

    def plain(w):
        return unrolled(lambda x: torch.sin(w * x) + w * w, torch.zeros_like(w)).sum()

    (got,) = torch.autograd.grad(layer(w * w).sum(), w, create_graph=True)
    (want,) = torch.autograd.grad(plain(w), w, create_graph=True)
    assert_close(got, want)
    assert_close(torch.autograd.grad(got.sum(), w)[0], torch.autograd.grad(want.sum(), w)[0], conditioning=10)


def test_a_layer_within_a_layer():
    v = torch.tensor([[0.3, 0.4]], dtype=DTYPE, requires_grad=True)
    inner = rg.Equilibrium(lambda y, x: torch.tanh(v * y + x))
    outer = rg.Equilibrium(lambda x: 0.5 * torch.cos(inner(x)))

    def plain(v):
        def step(x):
            return 0.5 * torch.cos(unrolled(lambda y: torch.tanh(v * y + x), torch.zeros_like(x), steps=60))

        return unrolled(step, torch.zeros_like(v), steps=60).sum()

    (got,) = torch.autograd.grad(outer(x0=torch.zeros(1, 2, dtype=DTYPE)).sum(), v, create_graph=True)
    (want,) = torch.autograd.grad(plain(v), v, create_graph=True)
    assert_close(got, want, conditioning=10)
    assert_close(torch.autograd.grad(got.sum(), v)[0], torch.autograd.grad(want.sum(), v)[0], conditioning=100)


def test_a_parametrised_weight_is_made_once_and_trains_within_the_caller_s_cache_too():
    torch.manual_seed(0)
    linear = nn.Linear(N, N, dtype=DTYPE)
    made = []

    class Half(nn.Module):
        def forward(self, V):
            made.append(V)
            return V / 2

    parametrize.register_parametrization(linear, "weight", Half())
    V = linear.parametrizations.weight.original
    layer = rg.Equilibrium(lambda x, u: torch.tanh(linear(x) + u))
    made.clear()
    x = layer(U)
    assert len(made) == 1
    (alone,) = torch.autograd.grad(R(x), V)
    with parametrize.cached():
        within = torch.autograd.grad(R(layer(U)), V)[0]
        assert linear.weight.requires_grad
    assert torch.equal(alone, within) and alone.abs().max() > 0


# --- higher derivatives


def test_derivatives_of_any_order():
    w = torch.tensor(0.4, dtype=DTYPE, requires_grad=True)
    x0 = torch.zeros(1, dtype=DTYPE)
    got = rg.Equilibrium(lambda x: torch.tanh(w * x + 0.3))(x0=x0).sum()
    want = unrolled(lambda x: torch.tanh(w * x + 0.3), x0).sum()
    for order in range(1, 5):
        (got,) = torch.autograd.grad(got, w, create_graph=True)
        (want,) = torch.autograd.grad(want, w, create_graph=True)
        assert_close(got, want, conditioning=10**order)


def test_a_hessian_of_the_convolutional_model():
    torch.manual_seed(0)
    model = Convolutional(1).double()
    model.norm = nn.Identity()
    parameters = list(model.parameters())
    u = randn(2, 1, 3, 3)
    reward = Reward(*u.shape)

    def product(x):
        gradients = torch.autograd.grad(reward(x), parameters, create_graph=True)
        along = sum((g * randn(*g.shape, seed=7)).sum() for g in gradients)
        return torch.autograd.grad(along, parameters)

    assert_all_close(
        product(rg.Equilibrium(model)(u)), product(unrolled(model, torch.zeros_like(u), u, steps=100)), conditioning=100
    )


def test_a_second_derivative_is_refused_where_fn_has_changed_since():
    mode = {"scale": 0.3}
    u = U.clone().requires_grad_()
    x = rg.Equilibrium(lambda x, u: mode["scale"] * x.cos() + u)(u)
    mode["scale"] = 0.4
    with pytest.raises(RuntimeError, match="has changed"):
        torch.autograd.grad(x.sin().sum(), u, create_graph=True)


def test_a_weight_overwritten_since_is_refused():
    V = W.clone().requires_grad_()
    x = tanh_layer(V)(U)
    with torch.no_grad():
        V.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_batched_backwards_raise():
    u = U.clone().requires_grad_()
    x = tanh_layer()(u)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(x, u, torch.stack([torch.ones_like(x)] * 2), is_grads_batched=True)


# --- samples


def test_a_sample_s_answer_does_not_depend_on_its_batch():
    layer = tanh_layer()
    u = U.clone().requires_grad_()
    state = layer.steady_state(u)
    (g,) = torch.autograd.grad(R(state.x), u)
    for i in range(B):
        v = U[i : i + 1].clone().requires_grad_()
        alone = layer.steady_state(v)
        assert_close(alone.x, state.x[i : i + 1])
        assert alone.steps[0] == state.steps[i]
        (c,) = torch.autograd.grad((R.c[i] * torch.sin(alone.x + R.c[i])).sum(), v)
        assert_close(c, g[i : i + 1])


def test_samples_that_converged_cost_nothing_more_forward_and_back():
    seen = []

    def fn(x, w):
        seen.append(len(x))
        return torch.tanh(w * x + 0.5)

    w = torch.full((64, 1), 0.1, dtype=DTYPE)
    w[7] = 0.999  # one hard sample among easy ones
    w.requires_grad_()
    x = rg.Equilibrium(fn)(w, x0=torch.zeros(64, 1, dtype=DTYPE))
    calls = len(seen)
    x.sum().backward()
    assert seen.count(64) <= 16 and seen.count(1) > 10
    assert set(seen[calls:]) == {1}  # back, a graph for the hard one alone
    y = unrolled(lambda x: torch.tanh(w * x + 0.5), torch.zeros(64, 1, dtype=DTYPE), steps=2000)
    assert_close(w.grad, torch.autograd.grad(y.sum(), w)[0])


def test_one_sample_that_fails_is_told_and_the_others_are_right():
    w = torch.tensor([[0.5], [3.0], [0.7]], dtype=DTYPE, requires_grad=True)
    layer = rg.Equilibrium(lambda x, w: w * x + 1.0, solver=rg.FixedPoint(), adjoint=rg.FixedPoint())
    with pytest.raises(rg.ConvergenceError, match="1 of 3 samples failed") as caught:
        layer(w)
    state = caught.value.result
    assert state.status.tolist() == [rg.Status.CONVERGED, rg.Status.DIVERGED, rg.Status.CONVERGED]
    state = layer.steady_state(w, throw=False)
    good = torch.tensor([0, 2])
    assert_close(state.x[good], 1 / (1 - w[good]))
    (g,) = torch.autograd.grad(state.x[good].sum(), w)
    assert_close(g[good], (1 - w[good]) ** -2, conditioning=10)
    assert_close(layer.steady_state(w, solver=rg.Newton()).x, 1 / (1 - w))


def test_no_reward_has_no_adjoint_whatever_became_of_the_state():
    w = torch.tensor([[0.1], [3.0], [0.2]], dtype=DTYPE, requires_grad=True)
    v = torch.zeros(3, 1, dtype=DTYPE, requires_grad=True)
    layer = rg.Equilibrium(lambda x, w, v: w * x.exp() + v, solver=rg.FixedPoint(), adjoint=rg.FixedPoint())
    state = layer.steady_state(w, v, x0=torch.zeros_like(v), throw=False)
    assert state.status[1] == rg.Status.DIVERGED and state.x[1].exp() == torch.inf  # which is J
    good = torch.tensor([0, 2])
    gradient, dv = torch.autograd.grad(state.x[good].sum(), [w, v])
    assert dv[1] == 0 and state.receipt.converged.all() and state.receipt.residual[1] == 0
    x = state.x[good].detach()
    assert_close(gradient[good], x.exp() / (1 - x))


def test_direct_uses_what_newton_left_and_needs_few_refinements():
    strong = 3 * W
    u = U.clone().requires_grad_()
    state = tanh_layer(strong, solver=rg.Newton(), adjoint=rg.Direct()).steady_state(u)
    state.x.sum().backward()
    assert state.receipt.steps.max() <= 3


def test_an_adjoint_that_fails_raises_with_its_receipt():
    u = U.clone().requires_grad_()
    layer = tanh_layer(adjoint=rg.FixedPoint(max_steps=2))
    with pytest.raises(rg.ConvergenceError, match="adjoint of the equilibrium: 4 of 4") as caught:
        layer(u).sum().backward()
    assert caught.value.result.receipt.status.tolist() == [rg.Status.MAX_STEPS] * B
    state = layer.steady_state(u, throw=False)
    state.x.sum().backward()
    assert not state.receipt.converged.any()


def test_the_derivative_of_an_adjoint_that_fails_raises():
    u = torch.ones(1, 1, dtype=DTYPE, requires_grad=True)
    x = tanh_layer(torch.full((1, 1), 0.9, dtype=DTYPE), adjoint=rg.FixedPoint(max_steps=150, rtol=1e-10))(u)
    (g,) = torch.autograd.grad(x.sum(), u, create_graph=True)
    assert g.requires_grad
    stop = tanh_layer(torch.full((1, 1), 0.9, dtype=DTYPE), adjoint=rg.FixedPoint(max_steps=2))(u)
    with pytest.raises(rg.ConvergenceError):
        torch.autograd.grad(stop.sum(), u, create_graph=True)


@pytest.mark.parametrize("adjoint", [None, rg.Direct()], ids=["default", "Direct"])
def test_a_singular_adjoint_is_told(adjoint):
    layer = rg.Equilibrium(lambda x, u: x + u - u, adjoint=adjoint)  # every x is a fixed point
    u = torch.ones(2, 3, dtype=DTYPE, requires_grad=True)
    with pytest.raises(rg.ConvergenceError):
        layer(u).sum().backward()


def test_no_samples():
    u = torch.zeros(0, N, dtype=DTYPE, requires_grad=True)
    V = W.clone().requires_grad_()
    state = tanh_layer(V).steady_state(u)
    state.x.sum().backward()
    assert state.x.shape == (0, N) and state.converged.shape == (0,)
    assert torch.equal(V.grad, torch.zeros_like(V)) and u.grad.shape == (0, N)


def test_shared_inputs_and_those_of_each_sample():
    shared, own = randn(N, seed=2).requires_grad_(), randn(B, 1, seed=3).requires_grad_()
    number = 0.5

    def fn(x, u, shared, own, number, nothing):
        assert nothing is None and len(own) == len(u) == len(x)
        return torch.tanh(number * own * x.roll(1, -1) + shared + u)

    x = rg.Equilibrium(fn)(U, shared, own, number, None)
    tensors = [shared, own]
    want = unrolled(lambda x: fn(x, U, shared, own, number, None), torch.zeros_like(U))
    assert_all_close(torch.autograd.grad(R(x), tensors), torch.autograd.grad(R(want), tensors))


def test_integers_among_the_inputs():
    embedding = nn.Embedding(3, N, dtype=DTYPE)
    words = torch.tensor([2, 0, 2, 1])
    x = rg.Equilibrium(lambda x, words: torch.tanh(x @ W.T + embedding(words)))(words, x0=torch.zeros_like(U))
    assert_close(x, tanh_layer()(embedding(words)))
    x.sum().backward()
    assert embedding.weight.grad.abs().min() > 0


# --- samples that depend on one another


def centred(x, u):
    """Every sample sees the mean of the batch."""
    return torch.tanh(0.8 * (x - x.mean(0)) @ W.T + u)


def test_a_function_that_mixes_samples_is_refused_and_coupled_solves_it():
    u = U.clone().requires_grad_()
    with pytest.raises(ValueError, match="each sample to depend on itself alone"):
        rg.Equilibrium(centred)(u)
    state = rg.Equilibrium(centred, coupled=True).steady_state(u)
    assert state.converged.shape == (B,) and len(state.residual.unique()) == 1
    want = unrolled(centred, torch.zeros_like(u), u)
    assert_close(state.x, want)
    got = torch.autograd.grad(R(state.x), u, create_graph=True)[0]
    want = torch.autograd.grad(R(want), u, create_graph=True)[0]
    assert_close(got, want)
    assert state.receipt.converged.shape == (B,)
    assert_close(
        torch.autograd.grad(got.sin().sum(), u)[0], torch.autograd.grad(want.sin().sum(), u)[0], conditioning=10
    )


def test_a_mixing_that_shows_in_the_adjoint_alone_is_refused_or_harmless():
    # All samples start at the state and so stop at once, but their adjoints do not.
    u = U.clone().requires_grad_()
    x0 = unrolled(centred, torch.zeros_like(U), u)
    (want,) = torch.autograd.grad(x0[0].sum() + 1e-3 * x0[1].sum(), u)
    refused = 0
    for adjoint in (rg.FixedPoint(), rg.Krylov(), rg.Direct(), rg.Cascade(rg.FixedPoint(max_steps=3), rg.Krylov())):
        x = rg.Equilibrium(centred, solver=rg.FixedPoint(rtol=1e-12), adjoint=adjoint)(u, x0=x0)
        try:
            (got,) = torch.autograd.grad(x[0].sum() + 1e-3 * x[1].sum(), u)
            assert_close(got, want)
        except (ValueError, RuntimeError) as error:
            refused += "mixes samples" in str(error)
    assert refused


def test_a_mixing_that_only_the_adjoints_put_together_show_is_refused():
    # The first sample reads the other two. Its adjoint settles first, and then is missing in theirs.
    A = torch.tensor([[0.01, 0.5, 0.5], [0, 0.9, 0], [0, 0, 0.9]], dtype=DTYPE)
    u = torch.ones(3, 1, dtype=DTYPE, requires_grad=True)
    x0 = torch.linalg.solve(torch.eye(3, dtype=DTYPE) - A, u.detach())
    loose = rg.FixedPoint(rtol=1e-10)
    x = rg.Equilibrium(lambda x, u: A @ x + u, solver=loose, adjoint=loose)(u, x0=x0)
    with pytest.raises(ValueError, match="Of the adjoint, 2 of 3 samples"):
        x.sum().backward()


def test_a_shared_input_of_as_many_rows_as_samples_is_refused_unless_closed_over():
    b = randn(N, seed=4)  # shared, and there are N samples
    u = torch.linspace(0.1, 3, N, dtype=DTYPE)[:, None] * randn(N, N)
    layer = rg.Equilibrium(lambda x, u, b: torch.tanh(x @ W.T + u + b))
    with pytest.raises((ValueError, RuntimeError)):
        layer(u, b)
    assert_close(rg.Equilibrium(lambda x, u: torch.tanh(x @ W.T + u + b))(u), tanh_layer()(u + b))


def test_a_closure_over_what_is_each_sample_s_own_is_told_what_to_do():
    own = randn(B, 1, seed=4) * torch.tensor([[0.1], [0.2], [0.9], [0.8]])
    with pytest.raises(RuntimeError, match="must match") as caught:
        rg.Equilibrium(lambda x: torch.tanh(own * x + 0.5))(x0=torch.zeros_like(U))
    assert "must be an input" in caught.value.__notes__[0]


def test_batch_norm_in_training_is_refused_unless_coupled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(N, N), nn.BatchNorm1d(N), nn.Tanh()).double()

    class Fn(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, u):
            return 0.3 * self.model(x + u)

    with pytest.raises(ValueError, match=r"model\.1 is a BatchNorm1d in training"):
        rg.Equilibrium(Fn())(U)
    together = rg.Equilibrium(Fn(), coupled=True).steady_state(U)
    assert together.converged.all()
    assert rg.Equilibrium(Fn().eval())(U).shape == U.shape


def test_coupled_samples_have_no_matrix_of_their_own():
    with pytest.raises(ValueError, match="coupled samples have none"):
        rg.Equilibrium(centred, coupled=True, solver=rg.Newton())(U)


# --- bad input


def test_a_gradient_hidden_from_autograd_is_refused():
    u = U.clone().requires_grad_()
    with pytest.raises(ValueError, match="autograd does not see how"):
        rg.Equilibrium(lambda x, u: 0.5 * x.detach().cos() + u)(u)
    assert torch.equal(rg.Equilibrium(lambda x, u: u)(u), u)  # a constant is none of that


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: rg.Equilibrium(3), TypeError, "fn: expected a function or a module, got int"),
        (lambda: tanh_layer(solver="anderson"), TypeError, "solver: expected a solver"),
        (lambda: tanh_layer(adjoint=1), TypeError, "adjoint: expected a solver"),
        (lambda: tanh_layer(coupled=1), TypeError, "coupled: expected True or False"),
        (lambda: tanh_layer().steady_state(U, solver="x"), TypeError, "solver: expected a solver"),
        (
            lambda: tanh_layer(solver=rg.Krylov())(U),
            ValueError,
            "Krylov solves affine problems, .* FixedPoint for an Eq",
        ),
        (lambda: tanh_layer()(), ValueError, "x0: expected a start"),
        (lambda: tanh_layer()(3), ValueError, "x0: expected a start"),
        (lambda: tanh_layer()(U[:, :2]), ValueError, r"x0: expected a start, as fn does not map.*\(4, 2\)"),
        (lambda: tanh_layer()(U, x0=U.tolist()), TypeError, "x0: expected a torch tensor"),
        (lambda: tanh_layer()(U, x0=U.long()), TypeError, "x0: expected a real floating-point tensor"),
        (lambda: tanh_layer()(U, x0=U[0, 0]), ValueError, "x0: expected shape"),
        (lambda: tanh_layer()(U, x0=U.float()), (TypeError, RuntimeError), "dtype|float"),
        (lambda: tanh_layer()(U, x0=U * torch.nan), ValueError, "x0: expected finite numbers"),
        (lambda: tanh_layer()(U / 0), ValueError, r"inputs\[0\]: expected finite numbers"),
        (lambda: rg.Equilibrium(lambda x: x.float())(x0=U), TypeError, "fn: expected torch.float64"),
        (lambda: rg.Equilibrium(lambda x: x[:, :2])(x0=U), ValueError, r"fn: expected .* \(4, 6\), got \(4, 2\)"),
        (lambda: rg.Equilibrium(lambda x: (x,))(x0=U), TypeError, "fn: expected it to return a tensor, got tuple"),
        (lambda: rg.Equilibrium(lambda x: x + torch.inf)(x0=U), rg.ConvergenceError, "diverged"),
    ],
)
def test_bad_input_is_told(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_gradient_that_is_not_finite_is_refused():
    u = U.clone().requires_grad_()
    with pytest.raises(ValueError, match="dR/dx: expected finite"):
        (tanh_layer()(u).sum() * torch.inf).backward()


# --- beyond


def test_float32_and_a_compiled_fn():
    torch.manual_seed(0)
    weight = W.float().requires_grad_()

    def fn(x, u):
        return torch.tanh(x @ weight.T + u)

    u = U.float().requires_grad_()
    want = torch.autograd.grad(R(rg.Equilibrium(fn)(u)), [u, weight])
    got = torch.autograd.grad(R(rg.Equilibrium(torch.compile(fn, backend="aot_eager"))(u)), [u, weight])
    assert_all_close(got, want)
    assert_close(want[0].double(), gradient(lambda u: R(tanh_layer()(u)), [U])[0], within=1e-5)


def test_the_example_of_the_digits_runs(capsys):
    path = Path(__file__).parents[1] / "examples" / "equilibrium_digits.py"
    spec = importlib.util.spec_from_file_location("equilibrium_digits", path)
    example = importlib.util.module_from_spec(spec)
    sys.modules["equilibrium_digits"] = example
    spec.loader.exec_module(example)
    example.main(["--epochs", "1"])
    told = capsys.readouterr().out
    assert "360 of 360 converged" in told and "360 of 360 adjoints converged" in told
    assert float(told.split("test accuracy ")[1].split("%")[0]) > 70
