"""Derivatives of every kind and order: double backward, forward mode, the transforms of torch.func, torch.compile."""

import copy
import itertools
import shutil

import pytest
import torch
from helpers import assert_all_close, assert_close, difference
from problems import (
    DTYPE,
    NONLINEARITIES,
    STRUCTURES,
    Reward,
    dead,
    each_nonlinearity,
    each_structure,
    manufactured,
    manufactured_path,
    not_normal,
    randn,
    saturated,
    shrunk,
)
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import retrograde as rg
import retrograde.nn


def steady(W, f, leak=None, seed=1):
    """x as a function of b and the weights, and where to take it: away from kinks."""
    _, b = manufactured(W, f, 2, seed=seed)
    return lambda b, *weights: rg.steady_state(W.bind(*weights), b, f).x, _leaves(b, *W.weights)


def path(W, f, leak=None, seed=1):
    """x(1), ..., x(T) as a function of b, x(0), the leak where there is one, and the weights."""
    _, x0, b = manufactured_path(W, f, 3, 2, leak=leak, seed=seed)
    if leak is None:
        return lambda b, x0, *weights: rg.trajectory(W.bind(*weights), b, x0, f).x, _leaves(b, x0, *W.weights)
    a = torch.full((b.shape[-1],), leak, dtype=DTYPE)
    run = lambda b, x0, a, *weights: rg.trajectory(W.bind(*weights), b, x0, f, leak=a).x
    return run, _leaves(b, x0, a, *W.weights)


def leaky(W, f, seed=1):
    return path(W, f, 0.4, seed)


def _leaves(*tensors):
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


each_mode = pytest.mark.parametrize("mode", [steady, path, leaky])


def small():
    return rg.Dense(not_normal(4))


# --- against finite differences


def along(tensors, seed=0):
    """A direction in which all of them move."""
    return tuple(randn(*t.shape, seed=seed + i) for i, t in enumerate(tensors))


@each_mode
@each_structure
@each_nonlinearity
def test_a_hessian_vector_product_is_the_difference_of_gradients(mode, structure, f):
    function, where = mode(STRUCTURES[structure](), f)
    R, v = Reward(12), along(where)

    def slope(*tensors):
        """Of R along v."""
        with torch.enable_grad():
            leaves = _leaves(*tensors)
            gradient = torch.autograd.grad(R(function(*leaves)), leaves)
        return sum((g * d).sum() for g, d in zip(gradient, v, strict=True))

    gradient = torch.autograd.grad(R(function(*where)), where, create_graph=True)
    Hv = torch.autograd.grad(sum((g * d).sum() for g, d in zip(gradient, v, strict=True)), where)
    size = torch.cat([each.flatten() for each in Hv]).norm()
    assert size > 0.01
    u = tuple(each / size for each in Hv)
    assert_close(sum((a * b).sum() for a, b in zip(Hv, u, strict=True)), difference(slope, where, u), within=1e-7)


@each_mode
@each_structure
@each_nonlinearity
def test_forward_mode_is_the_difference_of_states(mode, structure, f):
    function, where = mode(STRUCTURES[structure](), f)
    v = along(where)
    x, moved = jvp(function, where, v)
    assert torch.equal(x, function(*where))
    assert_close(moved, difference(function, where, v), within=1e-7)


@pytest.mark.parametrize("mode", [steady, path])
@pytest.mark.parametrize("f", NONLINEARITIES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_torch_s_own_checks_of_two_derivatives_each_way(mode, structure, f):
    function, where = mode(STRUCTURES[structure](), NONLINEARITIES[f])
    check = dict(fast_mode=True, check_undefined_grad=False, atol=1e-7, rtol=1e-6, eps=1e-5)
    assert torch.autograd.gradcheck(function, where, check_forward_ad=True, **check)
    assert torch.autograd.gradgradcheck(function, where, check_fwd_over_rev=True, **check)


@each_mode
def test_entry_by_entry_and_in_batches_of_gradients_too(mode):
    function, where = mode(rg.Dense(not_normal(3)), rg.Tanh())
    assert torch.autograd.gradcheck(
        function, where, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(function, where, check_batched_grad=True)


# --- against autograd through the steps


def unrolled(W, f, mode=steady):
    """The steady state as so many steps that nothing more changes."""

    def function(b, *weights):
        x = torch.zeros_like(b)
        for _ in range(40):
            x = f(W.bind(*weights) @ x + b)
        return x

    return function


@pytest.mark.parametrize("f", ["tanh", "softplus", "sin"])
def test_the_hessian_is_that_of_the_unrolled_steps(f):
    W, f = shrunk(rg.LowRank(randn(4, 2), randn(4, 2, seed=1)), 0.3), NONLINEARITIES[f]
    function, where = steady(W, f)
    R = Reward(4)
    wanted = torch.autograd.functional.hessian(lambda *t: R(unrolled(W, f)(*t)), where)
    found = torch.autograd.functional.hessian(lambda *t: R(function(*t)), where)
    mixed = hessian(lambda *t: R(function(*t)), argnums=tuple(range(len(where))))(*where)
    for i in range(len(where)):
        assert_all_close(found[i], wanted[i], conditioning=100)
        assert_all_close(mixed[i], wanted[i], conditioning=100)


@pytest.mark.parametrize(
    ("mode", "W"),
    [(steady, lambda: two()), (path, lambda: rg.Dense(not_normal(2, norm=0.3))), (leaky, lambda: two())],
    ids=["steady", "path", "leaky"],
)
def test_three_derivatives_taken_in_any_order_each_way(mode, W):
    function, where = mode(W(), rg.Tanh())
    R, of_steps = Reward(2), unrolled if mode is steady else stepped
    others, b = where[1:], where[0].detach()[..., :1, :]
    if mode is not steady:
        others = (others[0].detach()[:1], *others[1:])

    def third(x, first, second, last):
        return first(second(last(lambda b: R(x(b, *others)))))(b)

    wanted = third(of_steps(W(), rg.Tanh(), mode), jacrev, jacrev, jacrev)
    for order in itertools.product((jacrev, jacfwd), repeat=3):
        assert_close(third(function, *order), wanted, conditioning=1000)


def two():
    return rg.Sparse.from_edges([0, 1, 1], [1, 0, 1], torch.tensor([0.2, -0.3, 0.1], dtype=DTYPE), 2)


def stepped(W, f, mode):
    """A trajectory as torch differentiates it."""

    def function(b, x, *others):
        leak, weights = (1.0, others) if mode is path else (others[0], others[1:])
        found = []
        for b_t in b:
            x = (1 - leak) * x + leak * f(W.bind(*weights) @ x + b_t)
            found.append(x)
        return torch.stack(found)

    return function


# --- the routes agree


@each_mode
@each_structure
def test_the_tangent_is_the_transpose_of_the_adjoint(mode, structure):
    function, where = mode(STRUCTURES[structure](), rg.Softplus())
    x, pull = vjp(function, *where)
    u, v = randn(*x.shape, seed=5), along(where)
    _, Jv = jvp(function, where, v)
    by_rows = sum((a * b).sum() for a, b in zip(pull(u), v, strict=True))
    assert_close((u * Jv).sum(), by_rows, conditioning=100)
    eager = torch.autograd.grad(function(*where), where, u)
    assert_all_close(pull(u), eager, conditioning=10)


@each_mode
@each_structure
def test_jacobians_by_rows_and_by_columns(mode, structure):
    function, where = mode(STRUCTURES[structure](), rg.Sigmoid())
    every = tuple(range(len(where)))
    rows, columns = jacrev(function, every)(*where), jacfwd(function, every)(*where)
    assert_all_close(rows, columns, conditioning=100)
    assert_all_close(torch.autograd.functional.jacobian(function, where, vectorize=True), columns, conditioning=100)


@pytest.mark.parametrize(("mode", "structure"), [(steady, "Sparse"), (path, "Dense"), (leaky, "LowRank")])
def test_hessians_forward_over_backward_and_backward_over_backward(mode, structure):
    function, where = mode(STRUCTURES[structure](), rg.Tanh())
    R = Reward(12)

    def of_b(b):
        return R(function(b, *where[1:]))

    wanted = torch.autograd.functional.hessian(of_b, where[0])
    for route in (hessian(of_b), jacrev(jacrev(of_b)), jacfwd(jacfwd(of_b)), jacrev(jacfwd(of_b))):
        assert_close(route(where[0]), wanted, conditioning=100)


@each_mode
def test_dual_numbers(mode):
    function, where = mode(small(), rg.Tanh())
    v = along(where)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(where, v, strict=True)]
        x, moved = forward_ad.unpack_dual(function(*duals))
    assert torch.equal(x, function(*where))
    assert_close(moved, jvp(function, where, v)[1])


# --- vmap


@each_mode
@each_structure
def test_vmap_over_inputs_and_over_weights_is_the_loop(mode, structure):
    W, f = STRUCTURES[structure](), rg.Tanh()
    several = [mode(W, f, seed=seed) for seed in (1, 2, 3)]
    function, stacked = several[0][0], [torch.stack(each) for each in zip(*(w for _, w in several), strict=True)]
    with torch.no_grad():
        stacked = [t * (1 + 0.1 * torch.arange(3).reshape(-1, *[1] * (t.ndim - 1))) * 0.8 for t in stacked]
    for mapped in ((0,) + (None,) * (len(stacked) - 1), (None,) * (len(stacked) - 1) + (0,), (0,) * len(stacked)):
        given = [t if each == 0 else t[0] for t, each in zip(stacked, mapped, strict=True)]
        found = vmap(function, mapped)(*given)
        slices = [[t[i] if each == 0 else t for t, each in zip(given, mapped, strict=True)] for i in range(3)]
        assert_close(found, torch.stack([function(*each) for each in slices]))


@each_mode
def test_vmap_in_vmap_along_any_axis(mode):
    function, (b, *others) = mode(small(), rg.Tanh())
    many = randn(2, 3, *b.shape)
    inner = vmap(lambda b: function(b, *others), in_dims=1)
    found = vmap(inner, in_dims=-1, out_dims=1)(many.movedim(0, -1).movedim(0, 1))
    wanted = torch.stack([torch.stack([function(b, *others) for b in row]) for row in many], dim=1)
    assert_close(found, wanted)


@pytest.mark.parametrize("W", [lambda: not_normal(5), lambda: sparse_of_five()], ids=["full", "sparse"])
def test_gradients_of_each_sample_of_a_network_by_vmap(W):
    net, input, R = rg.Network(W()), randn(4, 5), Reward(5)
    parameters = dict(net.named_parameters())
    found = vmap(grad(lambda p, z: R(functional_call(net, p, (z,)))), (None, 0))(parameters, input)
    for i in range(4):
        wanted = torch.autograd.grad(R(net(input[i])), list(net.parameters()))
        assert_all_close([each[i] for each in found.values()], wanted, conditioning=10)


def sparse_of_five():
    return rg.Sparse.from_edges([0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 3], 0.5 * randn(6), 5)


def test_an_ensemble_of_networks_by_vmap():
    nets, input = [rg.Network(not_normal(5, seed=seed)) for seed in range(3)], randn(4, 5)
    parameters, buffers = torch.func.stack_module_state(nets)
    found = vmap(lambda p, z: functional_call(nets[0], (p, buffers), (z,)), (0, None))(parameters, input)
    assert_close(found, torch.stack([net(input) for net in nets]))


@pytest.mark.parametrize("f", ["sin", "gelu"])
def test_vmap_of_a_hessian_of_a_pointwise_function(f):
    f, W, b, R = NONLINEARITIES[f], not_normal(3), randn(2, 3), Reward(3)
    for x in (lambda b: rg.steady_state(W, b, f).x, lambda b: rg.trajectory(W, b, f=f, steps=3).x):
        found = vmap(hessian(lambda b, x=x: R(x(b))))(b)
        loop = [torch.autograd.functional.hessian(lambda b, x=x: R(x(b)), one) for one in b]
        assert_close(found, torch.stack(loop), conditioning=100)


@each_mode
def test_what_vmap_gave_may_be_differentiated_without_it(mode):
    function, where = mode(small(), rg.Tanh())
    several = randn(3, *where[0].shape).requires_grad_()
    R, inputs = Reward(4), (several, *where[1:])
    mapped = vmap(function, (0, *[None] * len(where[1:])))
    looped = lambda several, *others: torch.stack([function(b, *others) for b in several])
    both = []
    for x in (mapped, looped):
        first = torch.autograd.grad(R(x(*inputs)), inputs, create_graph=True)
        assert_all_close(torch.autograd.grad(R(x(*inputs)), inputs), first, conditioning=10)
        both.append([*first, *torch.autograd.grad(sum(d.square().sum() for d in first), inputs)])
    assert_all_close(*both, conditioning=100)


@each_mode
def test_a_batch_of_gradients_is_the_loop(mode):
    function, where = mode(small(), rg.Tanh())
    x = function(*where)
    u = randn(3, *x.shape, seed=5)
    found = torch.autograd.grad(x, where, u, is_grads_batched=True, retain_graph=True)
    loop = [torch.autograd.grad(x, where, each, retain_graph=True) for each in u]
    assert_all_close(found, [torch.stack(each) for each in zip(*loop, strict=True)], conditioning=10)


# --- solves are solves


class Watched(rg.solvers.base.Solver):
    """A solver that counts."""

    def __init__(self, solver):
        self.solver, self.solves = solver, 0

    def tolerance(self, dtype):
        return self.solver.tolerance(dtype)

    def solve(self, problem, z):
        self.solves += 1
        return self.solver.solve(problem, z)


@pytest.mark.parametrize(
    "derivative",
    [
        lambda x, b: torch.autograd.functional.hvp(lambda b: x(b).sin().sum(), b, torch.ones_like(b)),
        lambda x, b: jvp(x, (b,), (b,)),
        lambda x, b: jacrev(x)(b),
        lambda x, b: hessian(lambda b: x(b).sin().sum())(b),
        lambda x, b: vmap(grad(lambda b: x(b).sin().sum()))(b),
    ],
)
def test_the_adjoint_s_solver_solves_them_all(derivative):
    W, b = not_normal(4), randn(2, 4)
    adjoint = Watched(rg.Direct())
    derivative(lambda b: rg.steady_state(W, b, adjoint=adjoint).x, b)
    assert adjoint.solves > 0
    with pytest.raises(rg.ConvergenceError) as caught:
        derivative(lambda b: rg.steady_state(W, b, adjoint=rg.FixedPoint(max_steps=2)).x, b)
    assert isinstance(caught.value.result, rg.result.Gradients)
    derivative(lambda b: rg.steady_state(W, b, adjoint=rg.FixedPoint(max_steps=2), throw=False).x, b)


def test_a_second_solve_that_fails_where_the_first_did_not():
    class Once(Watched):
        def solve(self, problem, z):
            self.solves += 1
            return (rg.Direct() if self.solves == 1 else rg.FixedPoint(max_steps=1)).solve(problem, z)

    b = randn(2, 4).requires_grad_()
    x = rg.steady_state(not_normal(4), b, adjoint=Once(rg.Direct())).x
    (d,) = torch.autograd.grad(x.sum(), b, create_graph=True)
    with pytest.raises(rg.ConvergenceError, match="tangent of the steady state: 2 of 2 samples failed"):
        torch.autograd.grad(d.square().sum(), b)


@pytest.mark.parametrize(
    "derivative",
    [
        lambda x, b: torch.autograd.functional.hvp(lambda b: x(b).sin().sum(), b, torch.ones_like(b)),
        lambda x, b: jacrev(x)(b),
        lambda x, b: jacfwd(x)(b),
        lambda x, b: vmap(hessian(lambda b: x(b).sin().sum()))(b),
    ],
)
def test_one_factorisation_serves_every_derivative(derivative, monkeypatch):
    W, b = not_normal(4), randn(2, 4)
    counted, factor = [], torch.linalg.lu_factor_ex
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", lambda A: counted.append(len(A)) or factor(A))
    derivative(lambda b: rg.steady_state(W, b, adjoint=rg.Direct()).x, b)
    assert sum(counted) == 2  # one for each sample, whatever the number of right-hand sides


def test_each_slice_of_an_ensemble_keeps_its_own_factors(monkeypatch):
    W, b, R = torch.stack([not_normal(4, seed=seed) for seed in range(3)]), randn(2, 4), Reward(4)
    counted, factor = [], torch.linalg.lu_factor_ex
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", lambda A: counted.append(len(A)) or factor(A))
    vmap(lambda W: hessian(lambda b: R(rg.steady_state(W, b, adjoint=rg.Direct()).x))(b))(W)
    assert sum(counted) == 3 * 2


def test_a_factor_that_newton_left_serves_a_hessian_vector_product(monkeypatch):
    W, b = not_normal(4), randn(2, 4).requires_grad_()
    R = Reward(4)
    x = rg.steady_state(W, b, solver=rg.Newton(), adjoint=rg.Direct()).x
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", None)
    (d,) = torch.autograd.grad(R(x), b, create_graph=True)
    torch.autograd.grad(d.sum(), b)


def test_a_state_that_fails_under_a_transform_raises_and_leaves_torch_as_it_was():
    W, b = 3 * torch.eye(3, dtype=DTYPE), torch.ones(2, 3, dtype=DTYPE)

    def x(b, **how):
        return rg.steady_state(W, b, "relu", solver=rg.FixedPoint(max_steps=50), **how)

    for call in (vmap(lambda b: x(b).x), grad(lambda b: x(b).x.sum()), jacfwd(lambda b: x(b).x)):
        with pytest.raises(rg.ConvergenceError, match=r"steady state: \d of \d samples failed"):
            call(b)
        assert not rg.transforms.transformed()
    assert vmap(lambda b: x(b, throw=False).converged)(b).tolist() == [False, False]
    with pytest.raises(rg.ConvergenceError, match="2 of 2 samples became infinite"):
        vmap(lambda b: rg.trajectory(1e3 * W, b, steps=200, f="relu").x)(b)


@pytest.mark.parametrize("transform", [vmap, lambda x: grad(lambda b: x(b).sum())])
def test_bad_input_under_a_transform_is_named(transform):
    W, b, bad = not_normal(3), torch.ones(2, 3, dtype=DTYPE), torch.full((2, 3), torch.nan, dtype=DTYPE)
    with pytest.raises(ValueError, match=r"^b: expected finite numbers"):
        transform(lambda b: rg.steady_state(W, b).x)(bad)
    with pytest.raises(ValueError, match=r"^W: expected finite numbers"):
        transform(lambda b: rg.steady_state(W / 0, b).x)(b)
    with pytest.raises(ValueError, match=r"^b: expected finite numbers"):
        transform(lambda b: rg.trajectory(W, b, steps=3).x)(bad)
    with pytest.raises(ValueError, match=r"^leak: expected 0 < a"):
        transform(lambda b: rg.trajectory(W, b, steps=3, leak=b.sum()).x)(b)
    with pytest.raises(ValueError, match=r"^b: expected shape \(..., 3\)"):
        transform(lambda b: rg.steady_state(W, b).x)(randn(2, 4))


def test_the_receipt_of_a_double_backward_is_that_of_its_gradient():
    b = randn(2, 4).requires_grad_()
    state = rg.steady_state(not_normal(4), b)
    (d,) = torch.autograd.grad(state.x.sum(), b, create_graph=True)
    receipt = state.receipt
    assert receipt is not None and receipt.converged.all()
    again = rg.steady_state(not_normal(4), b)
    assert torch.equal(torch.autograd.grad(again.x.sum(), b)[0], d)
    assert torch.equal(again.receipt.residual, receipt.residual)


# --- kinks, and slopes of 0


def test_at_a_kink_every_route_takes_the_slope_0():
    W = torch.tensor([[0.0, 0.5], [-0.5, 0.0]], dtype=DTYPE)
    b = torch.tensor([1.0, 0.5], dtype=DTYPE)  # x = (1, 0), and the second neuron's input is 0 exactly
    inverse = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=DTYPE)  # (I - DW)⁻¹ D
    for x in (lambda b: rg.steady_state(W, b, "relu").x, lambda b: rg.trajectory(W, b, b * 2, "relu", steps=9).x[-1]):
        assert torch.equal(x(b), torch.tensor([1.0, 0.0], dtype=DTYPE))
        for route in (jacrev, jacfwd, lambda x: lambda b: torch.autograd.functional.jacobian(x, b)):
            assert torch.equal(route(x)(b), inverse)
        assert not jacrev(jacrev(x))(b).any()


@pytest.mark.parametrize("problem", [saturated, dead], ids=["saturated", "dead"])
def test_where_every_slope_is_0_every_derivative_is_0(problem):
    problem = problem()
    b = problem.b.clone().requires_grad_()
    x = rg.steady_state(problem.W, b, problem.f).x
    (d,) = torch.autograd.grad(x.sum(), b, create_graph=True)
    assert (d == 0).all()
    if d.requires_grad:
        assert (torch.autograd.grad(d.sum(), b)[0] == 0).all()
    assert (jvp(lambda b: rg.steady_state(problem.W, b, problem.f).x, (problem.b,), (problem.b,))[1] == 0).all()


# --- large and sparse


def test_a_second_derivative_of_a_large_sparse_network_makes_no_matrix():
    n = 100_000  # of which a full matrix would take 40 GB
    ends = torch.randint(n, (2, 3 * n), generator=torch.Generator().manual_seed(0))
    W = rg.Sparse.from_edges(ends[0], ends[1], randn(3 * n, dtype=torch.float32).mul_(0.1), n)
    b = randn(n, dtype=torch.float32).requires_grad_()
    weight = W.weight
    d = torch.autograd.grad(rg.steady_state(W, b).x.square().sum(), (b, weight), create_graph=True)
    Hv = torch.autograd.grad(sum(each.sum() for each in d), (b, weight))
    assert all(each.isfinite().all() and each.any() for each in Hv)


# --- modules


class Model(torch.nn.Module):
    """A Network among other layers."""

    def __init__(self, along_time):
        super().__init__()
        self.encoder, self.net, self.along_time = torch.nn.Linear(4, 5).double(), rg.Network(not_normal(5)), along_time

    def forward(self, z):
        h = self.encoder(z).relu()
        x = self.net.trajectory(h, steps=4).x[-1] if self.along_time else self.net(h)
        return (2 * x).sin()


each_model = pytest.mark.parametrize("along_time", [False, True])


def gradient_of(model, z):
    return torch.autograd.grad(model(z).sum(), list(model.parameters()))


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++, which is not there")


@each_model
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_gives_the_same_numbers(along_time, backend):
    model, z = Model(along_time), randn(3, 4)
    compiled = torch.compile(model, backend=backend)
    for _ in range(2):
        assert_close(compiled(z), model(z))
        assert_all_close(gradient_of(compiled, z), gradient_of(model, z), conditioning=10)
    with torch.no_grad():
        model.net.W.weight.mul_(0.5)
    assert_close(compiled(z), model(z))
    assert_all_close(gradient_of(compiled.eval(), z), gradient_of(model, z), conditioning=10)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_equilibrium_of_a_bounded_convolution_gives_the_same_numbers():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 2, 3, padding=1).double()
    nn.utils.parametrize.register_parametrization(conv, "weight", rg.SpectralBall(0.8))
    model = rg.Equilibrium(Bent(conv))
    compiled, z = torch.compile(model, backend="aot_eager"), randn(2, 2, 4, 4)
    assert_close(compiled(z), model(z))
    assert_all_close(gradient_of(compiled, z), gradient_of(model, z), conditioning=10)


class Bent(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, u):
        return torch.tanh(self.conv(x) + u)


@each_model
def test_eval_a_copy_and_a_second_backward_change_nothing(along_time):
    model, z = Model(along_time), randn(3, 4)
    wanted = gradient_of(model, z)
    assert_all_close(gradient_of(copy.deepcopy(model), z), wanted, within=0)
    assert_all_close(gradient_of(copy.deepcopy(model).eval(), z), wanted, within=0)
    R = model(z).sum()
    for _ in range(2):
        assert_all_close(torch.autograd.grad(R, list(model.parameters()), retain_graph=True), wanted, within=0)
    again = torch.autograd.grad(R, list(model.parameters()), create_graph=True)
    assert_all_close(again, wanted, conditioning=10)
    twice = torch.autograd.grad(sum(d.square().sum() for d in again), list(model.parameters()))
    assert all(d.abs().sum() > 0 for d in twice)


@each_model
def test_hooks_see_the_gradient_and_may_change_it(along_time):
    model, z = Model(along_time), randn(3, 4)
    wanted = gradient_of(model, z)
    seen = []
    model.net.register_full_backward_hook(lambda module, given, taken: seen.append(taken[0].shape))
    model.net.W.weight.register_hook(lambda d: 2 * d)
    found = gradient_of(model, z)
    assert_close(found[-2] if found[-2].ndim == 2 else found[-1], 2 * next(d for d in wanted if d.shape == (5, 5)))
    assert seen == ([] if along_time else [(3, 5)])  # a hook of a module is one of its forward


def test_a_constrained_weight_has_second_derivatives_upstream():
    net = rg.Network(not_normal(4))
    torch.nn.utils.parametrize.register_parametrization(net.W, "weight", Squared())
    R, raw = Reward(4), net.W.parametrizations.weight.original
    input = 0.1 * randn(2, 4)
    (d,) = torch.autograd.grad(R(net(input)), raw, create_graph=True)
    v = randn(4, 4)
    (Hv,) = torch.autograd.grad((d * v).sum(), raw)

    def slope(z):
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            x = rg.steady_state(Squared()(z), net.b.detach() + input).x
            return (torch.autograd.grad(R(x), z)[0] * v).sum()

    assert_close((Hv * v).sum(), difference(slope, (raw,), (v,)), within=1e-6)


class Squared(torch.nn.Module):
    def forward(self, z):
        return z.square()


def test_the_rnn_has_them_too():
    rnn, z = rg.nn.RNN(3, 4).double(), randn(5, 2, 3)
    theirs = torch.nn.RNN(3, 4).double()
    theirs.load_state_dict(rnn.state_dict())
    R = Reward(4)
    ours, wanted = (torch.autograd.functional.hessian(lambda z, m=m: R(m(z)[0]), z) for m in (rnn, theirs))
    assert_close(ours, wanted, conditioning=10)
    assert_close(vmap(lambda z: rnn(z)[0], 1, 1)(z), theirs(z)[0], conditioning=10)


def test_the_times_of_a_trajectory_have_them_too():
    W, b = not_normal(4), randn(6, 2, 4)
    R = Reward(2, 2, 4)

    def whole(b):
        return R(rg.trajectory(W, b).x[[1, 4]])

    def some(b):
        return R(rg.trajectory(W, b).at([2, 5]))

    assert_close(torch.autograd.functional.hessian(some, b), torch.autograd.functional.hessian(whole, b))
    assert_close(hessian(some)(b), hessian(whole)(b))
    assert_close(jacfwd(some)(b), jacrev(whole)(b))
