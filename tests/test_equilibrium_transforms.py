"""x = fn(x, *inputs) under torch.func and forward mode, held against a network and against the unrolled steps."""

import itertools

import pytest
import torch
from helpers import assert_all_close, assert_close
from problems import DTYPE, Reward, not_normal, randn
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import retrograde as rg

N, B = 4, 3
W, U = not_normal(N), randn(B, N, seed=1)
R = Reward(B, N)


class Cell(nn.Module):
    """tanh(Wx + b + u)."""

    def __init__(self, seed=0):
        super().__init__()
        self.W, self.b = nn.Parameter(not_normal(N, seed=seed)), nn.Parameter(randn(N, seed=seed + 7))

    def forward(self, x, u):
        return torch.tanh(x @ self.W.T + self.b + u)


def layer_and_network(seed=0, **options):
    """The same function twice: of a dict of W and b, and of the input."""
    eq = rg.Equilibrium(Cell(seed), **options)
    parameters = {name: p.detach().clone() for name, p in eq.named_parameters()}
    ours = lambda p, u: functional_call(eq, p, (u,))
    theirs = lambda p, u: rg.steady_state(p["fn.W"], p["fn.b"] + u).x
    return ours, theirs, parameters


def of_inputs(W, u, **options):
    """x of W and u, both given as inputs; an axis of 1 before W says that all samples share it."""
    return rg.Equilibrium(lambda x, u, W: torch.tanh(x @ W[0].T + u), **options)(u, W[None])


def closing_over(W, u, **options):
    """x of W, over which fn closes, and of u."""
    return rg.Equilibrium(lambda x, u: torch.tanh(x @ W.T + u), **options)(u)


def network(W, u):
    return rg.steady_state(W, u).x


each_way_in = pytest.mark.parametrize("x", [of_inputs, closing_over])


def leaves():
    return W.clone().requires_grad_(), U.clone().requires_grad_()


# --- functional_call


def test_a_gradient_in_the_parameters_of_a_functional_call():
    ours, theirs, p = layer_and_network()
    got, want = (grad(lambda p, u, x=x: R(x(p, u)), (0, 1))(p, U) for x in (ours, theirs))
    assert_all_close(got[0].values(), want[0].values())
    assert_close(got[1], want[1])
    assert all(each.abs().max() > 0.1 for each in got[0].values())


def test_a_gradient_for_each_sample():
    ours, theirs, p = layer_and_network()
    reward = Reward(1, N)
    per_sample = [vmap(grad(lambda p, u, x=x: reward(x(p, u[None]))), (None, 0))(p, U) for x in (ours, theirs)]
    assert_all_close(per_sample[0].values(), per_sample[1].values())
    assert per_sample[0]["fn.W"].shape == (B, N, N)


def test_an_ensemble_by_vmap_over_the_parameters():
    eqs = [rg.Equilibrium(Cell(seed)) for seed in range(3)]
    p, buffers = stack_module_state(eqs)
    got = vmap(lambda p: functional_call(eqs[0], (p, buffers), (U,)))(p)
    assert_close(got, torch.stack([eq(U) for eq in eqs]))
    per_member = vmap(grad(lambda p: R(functional_call(eqs[0], (p, buffers), (U,)))))(p)
    want = [torch.autograd.grad(R(eq(U)), list(eq.parameters())) for eq in eqs]
    assert_all_close(per_member.values(), [torch.stack(each) for each in zip(*want, strict=True)])


def test_vmap_inside_and_a_gradient_outside_of_it():
    ours, theirs, p = layer_and_network()
    us = randn(5, B, N, seed=3)
    got, want = (grad(lambda p, us, x=x: vmap(lambda u: R(x(p, u)))(us).sum(), (0, 1))(p, us) for x in (ours, theirs))
    assert_all_close(got[0].values(), want[0].values(), conditioning=10)
    assert_close(got[1], want[1])


def test_parameters_that_torch_trains_in_the_ordinary_way_through_a_vmap():
    cell = Cell()
    eq = rg.Equilibrium(cell)
    us = randn(5, B, N, seed=3)
    got = torch.autograd.grad(vmap(lambda u: R(eq(u)))(us).sum(), [cell.W, cell.b], create_graph=True)
    want = torch.autograd.grad(sum(R(eq(u)) for u in us), [cell.W, cell.b], create_graph=True)
    assert_all_close(got, want)
    got, want = (torch.autograd.grad(sum(d.square().sum() for d in each), [cell.W, cell.b]) for each in (got, want))
    assert_all_close(got, want, conditioning=10)


# --- each derivative, of what is given and of what is closed over


@each_way_in
def test_reverse_and_forward_are_the_network_s(x):
    tangents = randn(N, N, seed=5), randn(B, N, seed=6)
    both = [jvp(f, (W, U), tangents) for f in (x, network)]
    assert_all_close(both[0], both[1])
    c = randn(B, N, seed=8)
    assert_all_close(*(vjp(f, W, U)[1](c) for f in (x, network)))
    for jacobian in (jacrev, jacfwd):
        assert_all_close(*(jacobian(f, (0, 1))(W, U) for f in (x, network)), conditioning=10)


@each_way_in
def test_hessians_in_any_order(x):
    for outer, inner in itertools.product((jacrev, jacfwd), repeat=2):
        got, want = (outer(inner(lambda W, U, f=f: R(f(W, U)), (0, 1)), (0, 1))(W, U) for f in (x, network))
        for one, other in zip(got, want, strict=True):
            assert_all_close(one, other, conditioning=100)
    by_torch = hessian(lambda u: R(x(W, u)))(U)
    assert_close(by_torch, torch.autograd.functional.hessian(lambda u: R(x(W, u)), U), conditioning=10)


@each_way_in
def test_three_derivatives(x):
    w, u = torch.tensor([[0.4]], dtype=DTYPE), torch.tensor([[0.3]], dtype=DTYPE)

    def third(f, first, second, last):
        return first(second(last(lambda w: f(w, u).sum())))(w)

    want = third(network, jacrev, jacrev, jacrev)
    for order in itertools.product((jacrev, jacfwd), repeat=3):
        assert_close(third(x, *order), want, conditioning=1000)


@each_way_in
def test_torch_s_own_checks(x):
    W3, u = W[:3, :3].clone().requires_grad_(), U[:2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(x, (W3, u), check_forward_ad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradgradcheck(x, (W3, u), check_fwd_over_rev=True)


@each_way_in
def test_dual_numbers(x):
    tangents = randn(N, N, seed=5), randn(B, N, seed=6)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip((W, U), tangents, strict=True)]
        value, moved = forward_ad.unpack_dual(x(*duals))
    assert_close(value, network(W, U))
    assert_close(moved, jvp(network, (W, U), tangents)[1])


@each_way_in
def test_vmap_is_the_loop(x):
    Ws, us = torch.stack([W, 0.5 * W, -W]), randn(3, B, N, seed=2)
    for dims in ((0, None), (None, 0), (0, 0)):
        given = [each if dim == 0 else each[0] for each, dim in zip((Ws, us), dims, strict=True)]
        slices = [[each[i] if dim == 0 else each for each, dim in zip(given, dims, strict=True)] for i in range(3)]
        assert_close(vmap(x, dims)(*given), torch.stack([network(*each) for each in slices]))
    twice = vmap(vmap(x, (None, 0)), (0, None), out_dims=1)(Ws, us)
    assert_close(twice, torch.stack([torch.stack([network(V, u) for V in Ws]) for u in us]))


SOLVERS = {
    "Newton, Direct": (rg.Newton(), rg.Direct()),
    "Cascade": (
        rg.Cascade(rg.FixedPoint(max_steps=3), rg.Newton()),
        rg.Cascade(rg.FixedPoint(max_steps=3), rg.Krylov()),
    ),
}


@pytest.mark.parametrize("solver, adjoint", SOLVERS.values(), ids=SOLVERS)
def test_any_solver_serves(solver, adjoint):
    how = {"solver": solver, "adjoint": adjoint}
    us, strong = randn(2, B, N, seed=2), 3 * W  # so strong that factors of the transpose would not serve
    theirs = lambda W, u: rg.steady_state(W, u, solver=solver).x
    per_slice = vmap(jacrev(lambda W, u: closing_over(W, u, **how)), (None, 0))(strong, us)
    assert_close(per_slice, torch.stack([jacrev(theirs)(strong, u) for u in us]), conditioning=100)
    columns = jacfwd(lambda u: of_inputs(strong, u, **how))(U)
    assert_close(columns, jacfwd(lambda u: theirs(strong, u))(U), conditioning=100)


# --- what fn may be


def test_a_convolution_with_a_norm_against_the_unrolled_steps():
    torch.manual_seed(0)

    class Convolutional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(1, 4)
            self.outer = nn.Conv2d(4, 2, 3, padding=1)
            with torch.no_grad():
                self.outer.weight.mul_(0.3)

        def forward(self, x, u):
            return torch.tanh(self.outer(torch.relu(self.norm(self.inner(x)))) + u)

    model = Convolutional().double()
    eq, u, reward = rg.Equilibrium(model), randn(2, 2, 3, 3), Reward(1, 2, 3, 3)
    p = {name: each.detach() for name, each in eq.named_parameters()}

    def unrolled(p, u):
        x, inner = torch.zeros_like(u), {name.removeprefix("fn."): each for name, each in p.items()}
        for _ in range(60):
            x = functional_call(model, inner, (x, u))
        return x

    ours = lambda p, u: functional_call(eq, p, (u,))
    got, want = (vmap(grad(lambda p, u, x=x: reward(x(p, u[None]))), (None, 0))(p, u) for x in (ours, unrolled))
    assert_all_close(got.values(), want.values(), conditioning=10)
    along = {name: randn(*each.shape, seed=3) for name, each in p.items()}
    assert_close(*(jvp(lambda p, x=x: x(p, u), (p,), (along,))[1] for x in (ours, unrolled)), conditioning=10)


def test_coupled_samples_and_one_batch_for_each_slice():
    def centred(x, u):
        return torch.tanh(0.8 * (x - x.mean(0)) @ W.T + u)

    def unrolled(u):
        x = torch.zeros_like(u)
        for _ in range(100):
            x = centred(x, u)
        return x

    eq, us = rg.Equilibrium(centred, coupled=True), randn(2, B, N, seed=2)
    assert_close(jacrev(eq)(U), jacrev(unrolled)(U), conditioning=10)
    assert_close(vmap(jacfwd(eq))(us), vmap(jacfwd(unrolled))(us), conditioning=10)
    assert vmap(lambda u: eq.steady_state(u).residual)(us).shape == (2, B)
    with pytest.raises(ValueError, match="each sample to depend on itself alone"):
        grad(lambda u: rg.Equilibrium(centred)(u).sum())(U)


def test_integers_that_vmap_maps_over_and_arguments_that_are_no_tensors():
    embedding, words = nn.Embedding(3, N, dtype=DTYPE), torch.tensor([[2, 0], [1, 1], [0, 1]])
    eq = rg.Equilibrium(lambda x, words, gain, nothing: torch.tanh(gain * x @ W.T + embedding(words)))
    x0 = torch.zeros(2, N, dtype=DTYPE)
    got = vmap(lambda w: eq(w, 0.5, None, x0=x0))(words)
    assert_close(got, torch.stack([network(0.5 * W, embedding(w)) for w in words]))
    assert_close(
        torch.autograd.grad(got.sin().sum(), embedding.weight)[0],
        torch.autograd.grad(sum(network(0.5 * W, embedding(w)).sin().sum() for w in words), embedding.weight)[0],
    )


def test_what_is_closed_over_twice_or_made_within_or_is_a_constant_counts_once_each():
    ones = torch.ones(N, dtype=DTYPE)

    def x(V, u):
        made = V * 1.0

        def fn(x, u):
            return torch.tanh(torch.stack([x @ made.T, x @ V.T]).sum(0) / 2 + u * ones + torch.zeros(N, dtype=DTYPE))

        return rg.Equilibrium(fn)(u)

    assert_all_close(*(grad(lambda V, u, f=f: R(f(V, u)), (0, 1))(W, U) for f in (x, network)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no batching rule for the cell
def test_a_cell_of_torch_s_own():
    torch.manual_seed(0)
    cell = nn.GRUCell(3, N, dtype=DTYPE)
    eq, x0 = rg.Equilibrium(lambda x, u: cell(u, x)), torch.zeros(B, N, dtype=DTYPE)
    u = randn(B, 3)
    assert_close(jacrev(lambda u: eq(u, x0=x0))(u), jacfwd(lambda u: eq(u, x0=x0))(u), conditioning=10)
    by_rows = torch.autograd.functional.jacobian(lambda u: eq(u, x0=x0), u)
    assert_close(jacrev(lambda u: eq(u, x0=x0))(u), by_rows, conditioning=10)


# --- fn that makes use of a transform itself


def by_rows(x, u, W):
    return torch.tanh(vmap(lambda w: x @ w, out_dims=1)(W) + u)


def by_columns(x, u, W):
    return torch.tanh(vmap(lambda w, x: x[:, None] * w, (1, 1))(W, x).sum(0) + u)


def by_samples(x, u, W):
    return vmap(lambda x, u: torch.tanh(W @ x + u))(x, u)


def by_entries(x, u, W):
    return torch.tanh(vmap(vmap(torch.mul), (None, 0))(x.T, W).sum(1).T + u)


def by_an_energy(x, u, W):
    return torch.tanh(grad(lambda y: (y * (x @ W.T + u)).sum())(x))


def by_a_copy(x, u, W):
    return torch.tanh(x @ grad(lambda w: w.square().sum() / 2)(W.clone()).T + u)


def by_a_tangent(x, u, W):
    return torch.tanh(jvp(lambda x: x @ W.T, (x,), (x,))[1] + u)


@pytest.mark.parametrize(
    "fn", [by_rows, by_columns, by_samples, by_entries, by_an_energy, by_a_copy, by_a_tangent], ids=lambda f: f.__name__
)
def test_a_transform_within_fn_of_what_it_closes_over(fn):
    def x(W, u):
        return rg.Equilibrium(lambda x, u: fn(x, u, W))(u)

    Ws = torch.stack([W, 0.5 * W])
    for asked in (
        lambda x: grad(lambda W, u: R(x(W, u)), (0, 1))(W, U),
        lambda x: jacfwd(x, (0, 1))(W, U),
        lambda x: vmap(grad(lambda W, u: R(x(W, u)), (0, 1)), (0, None))(Ws, U),
    ):
        assert_all_close(asked(x), asked(network))


def test_a_derivative_within_fn_in_what_it_closes_over_is_refused_by_name():
    def x(W, u):
        return rg.Equilibrium(lambda x, u: torch.tanh(grad(lambda w: (x @ w.T).cos().sum())(W).mean(0) / 9 + u))(u)

    with pytest.raises(ValueError, match=r"a tensor that it closes over.* its \.clone\(\)"):
        grad(lambda W: x(W, U).sum())(W)


# --- what cannot be, said


class Doubled(torch.autograd.Function):
    """2w, by a Function of one's own, which no torch function shows."""

    @staticmethod
    def forward(w):
        return 2 * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 2 * g

    @staticmethod
    def jvp(ctx, d):
        return 2 * d


def test_a_tensor_that_is_hidden_is_told_and_never_left_out():
    w = torch.full((N,), 0.2, dtype=DTYPE)
    x = lambda w, u: rg.Equilibrium(lambda x, u: torch.tanh(Doubled.apply(w) * x + u))(u)
    visible = lambda w, u: rg.Equilibrium(lambda x, u: torch.tanh(2 * w * x + u))(u)
    for asked in (grad(lambda w: R(x(w, U))), jacrev(grad(lambda w: R(x(w, U))))):
        with pytest.raises(ValueError, match="a tensor is hidden"):
            asked(w)
    leaf = w.clone().requires_grad_()
    with pytest.raises(ValueError, match="a tensor is hidden"):
        grad(lambda u: R(x(leaf, u)))(U)
    assert_close(*(jvp(lambda w, f=f: f(w, U), (w,), (w,))[1] for f in (x, visible)))  # here torch shows it
    with forward_ad.dual_level(), pytest.raises(ValueError, match="a tensor is hidden"):
        x(forward_ad.make_dual(w, torch.ones_like(w)), U)
    assert_close(grad(lambda u: R(x(w, u)))(U), grad(lambda u: R(visible(w, u)))(U))


def test_a_network_within_it_and_functions_of_one_s_own_in_a_module():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.w = rg.Network(W), nn.Parameter(torch.full((N,), 0.2, dtype=DTYPE))

        def forward(self, x, u):
            return torch.tanh(0.5 * self.net(x) + Doubled.apply(self.w) + u)

    eq = rg.Equilibrium(Both())
    p = {name: each.detach().clone() for name, each in eq.named_parameters()}
    got = grad(lambda p, u: R(functional_call(eq, p, (u,))), (0, 1))(p, U)
    u = U.clone().requires_grad_()
    want = torch.autograd.grad(R(eq(u)), [u, *eq.parameters()])
    assert_all_close([got[1], *got[0].values()], want)
    assert all(each.abs().max() > 0 for each in want)
    tangents = {name: torch.ones_like(each) for name, each in p.items()}
    moved = jvp(lambda p: R(functional_call(eq, p, (U,))), (p,), (tangents,))[1]
    assert_close(moved, sum(each.sum() for each in want[1:]))
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(each, tangents[name]) for name, each in p.items()}
        assert_close(forward_ad.unpack_dual(R(functional_call(eq, duals, (U,)))).tangent, moved)


def test_what_a_functional_call_puts_into_a_module_that_fn_closes_over_and_never_calls():
    class Model(nn.Module):
        def __init__(self, hide):
            super().__init__()
            self.W, self.hidden = nn.Parameter(W.clone(), requires_grad=False), [self] if hide else []

        def forward(self, u):
            if self.hidden:
                return rg.Equilibrium(lambda x, u, held=self.hidden: torch.tanh(x @ held[0].W.T + u))(u)
            return rg.Equilibrium(lambda x, u: torch.tanh(x @ self.W.T + u))(u)

    def gradient(hide, V):
        return grad(lambda V: R(functional_call(Model(hide), {"W": V}, (U,))))(V)

    for V in (W, 0.5 * W):
        assert_close(gradient(False, V), grad(lambda V: R(network(V, U)))(V))
        with pytest.raises(RuntimeError, match="read the same tensors again"):
            gradient(True, V)


def test_a_layer_within_a_layer_is_refused():
    inner = rg.Equilibrium(lambda y, x: torch.tanh(0.3 * y + x))
    outer = rg.Equilibrium(lambda x, u: 0.5 * torch.cos(inner(x)) + u)
    with pytest.raises(ValueError, match="no other one within its fn"):
        grad(lambda u: outer(u).sum())(U)


def test_what_is_asked_of_fn_is_asked_under_a_transform_too():
    for fn, told in (
        (lambda x, u: 0.5 * x.detach().cos() + u, "autograd does not see how"),
        (lambda x, u: x[:, :2], "expected it to return the shape of x"),
    ):
        with pytest.raises(ValueError, match=told):
            grad(lambda u, fn=fn: rg.Equilibrium(fn)(u).sum())(U)
    for bad, name in ((U / 0, r"inputs\[0\]"), (U * torch.nan, r"inputs\[0\]")):
        with pytest.raises(ValueError, match=rf"{name}: expected finite"):
            vmap(lambda u: closing_over(W, u[None]))(bad)
    with torch.nn.utils.parametrize.cached(), pytest.raises(ValueError, match=r"no parametrize\.cached"):
        grad(lambda u: closing_over(W, u).sum())(U)


def test_a_fn_that_changed_between_forward_and_backward_is_refused():
    mode = {"gain": 0.3}
    x, pull = vjp(lambda u: rg.Equilibrium(lambda x, u: mode["gain"] * x.cos() + u)(u), U)
    mode["gain"] = 0.4
    with pytest.raises(RuntimeError, match="has changed"):
        pull(x)


def test_a_solve_that_fails_raises_and_leaves_torch_as_it_was():
    strong = 3 * torch.eye(N, dtype=DTYPE)
    fixed = rg.Equilibrium(lambda x, u: x @ strong + u + 1, solver=rg.FixedPoint(max_steps=20))
    for asked in (grad(lambda u: fixed(u).sum()), vmap(fixed), jacfwd(fixed)):
        with pytest.raises(rg.ConvergenceError, match=r"equilibrium: .* samples failed"):
            asked(randn(2, B, N) if asked is not None and asked.__name__ == "wrapped" else U)
        assert not rg.transforms.transformed()
    assert vmap(lambda u: fixed.steady_state(u, throw=False).converged)(randn(2, B, N)).tolist() == [[False] * B] * 2
    short = {"adjoint": rg.FixedPoint(max_steps=1)}
    with pytest.raises(rg.ConvergenceError, match="adjoint of the equilibrium"):
        grad(lambda u: R(closing_over(W, u, **short)))(U)
    with pytest.raises(rg.ConvergenceError, match="tangent of the equilibrium"):
        jacfwd(lambda u: closing_over(W, u, **short))(U)
