import copy
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from helpers import assert_all_close, assert_close, conditioning, dense_adjoint, gradient, outer_sum, through_dense
from problems import (
    DTYPE,
    NONLINEARITIES,
    RECTANGULAR,
    STRUCTURES,
    Reward,
    each_structure,
    manufactured,
    not_normal,
    randn,
    sparse,
)
from torch.nn.utils import parametrize

import retrograde as rg

# --- what a Network is made of


def test_W_of_an_int_is_normal_with_standard_deviation_0_9_over_the_root_of_n():
    W = rg.Network(400).W.weight
    assert W.shape == (400, 400) and W.dtype == torch.float32 and W.requires_grad
    assert abs(float(W.detach().std()) * 20 - 0.9) < 0.01 and abs(float(W.detach().mean())) < 0.001


def test_a_tensor_is_copied_and_a_parameter_is_shared():
    M, c = not_normal(5), randn(5)
    net = rg.Network(M, b=c)
    with torch.no_grad():
        net.W.weight.zero_()
        net.b.zero_()
    assert M.any() and c.any()
    M, c = torch.nn.Parameter(M), torch.nn.Parameter(c)
    net = rg.Network(M, b=c)
    assert net.W.weight is M and net.b is c


@pytest.mark.parametrize("make", [scipy.sparse.csr_matrix, scipy.sparse.coo_array, scipy.sparse.csc_matrix])
def test_a_scipy_matrix_is_sparse(make):
    M = not_normal(6) * (randn(6, 6) > 0)
    net = rg.Network(make(M.numpy()))
    assert isinstance(net.W, rg.Sparse) and torch.equal(net.W.dense(), M)
    assert len(net.W.weight) == int((M != 0).sum())


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_a_torch_sparse_matrix_is_sparse_and_its_gradient_comes_back(layout):
    M = not_normal(6) * (randn(6, 6) > 0)
    W = M.to_sparse(layout=layout)
    assert torch.equal(rg.Network(W).W.dense(), M)
    b, R = randn(3, 6), Reward(3, 6)
    (wanted,) = gradient(lambda M: R(rg.steady_state(M, b).x), [M])
    leaf = M.clone().requires_grad_()
    R(rg.steady_state(leaf.to_sparse(layout=layout), b).x).backward()
    assert_close(leaf.grad, wanted * (M != 0))


def test_duplicate_connections_are_summed_and_zero_ones_kept():
    W = rg.Sparse.from_edges([1, 1, 0], [2, 2, 1], torch.tensor([1.0, 2.0, 0.0]), 3)
    assert W.weight.tolist() == [0.0, 3.0]
    assert [end.tolist() for end in W.edges] == [[1, 2], [0, 1]]
    rg.Network(W, f="identity")(torch.ones(3)).sum().backward()
    assert (W.weight.grad != 0).all()


def test_a_network_without_a_bias():
    net = rg.Network(not_normal(5), b=False)
    assert net.b is None and len(list(net.parameters())) == 1
    assert torch.equal(net(), torch.zeros(5, dtype=DTYPE))


def test_a_call_is_the_steady_state_and_the_function_the_same():
    net, input = rg.Network(not_normal(5), b=randn(5)), randn(3, 5)
    assert torch.equal(net(input), net.steady_state(input).x)
    assert torch.equal(net(input), rg.steady_state(net.W, net.b + input).x)
    assert torch.equal(net.trajectory(input, steps=3).x, rg.trajectory(net.W, net.b + input, steps=3).x)
    assert torch.equal(net(), net(torch.zeros(5, dtype=DTYPE)))


def test_state_dict_round_trip_without_pickled_code(tmp_path):
    for structure in STRUCTURES.values():
        net = rg.Network(structure(), b=randn(12), leak=torch.full((12,), 0.3, dtype=DTYPE))
        torch.save(net.state_dict(), tmp_path / "net.pt")
        other = rg.Network(structure(), leak=torch.ones(12, dtype=DTYPE))
        with torch.no_grad():
            for weight in other.W.parameters():
                weight.mul_(0.5)
        other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
        input = randn(3, 12)
        assert torch.equal(net(input), other(input))
        assert torch.equal(net.trajectory(input, steps=3).x, other.trajectory(input, steps=3).x)


def test_a_deep_copy_is_its_own():
    for structure in STRUCTURES.values():
        net = rg.Network(structure(), f=rg.Pointwise(torch.sin))
        net(randn(3, 12)).sum().backward()
        other = copy.deepcopy(net)
        assert torch.equal(net(randn(3, 12)), other(randn(3, 12)))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert all(p.any() for p in net.W.parameters())


def test_modules_move_as_modules_do():
    net = rg.Network(sparse(), leak=torch.full((12,), 0.5, dtype=DTYPE)).float()
    assert net(torch.ones(12)).dtype == net.trajectory(torch.ones(12), steps=2).x.dtype == torch.float32
    assert net.double()(torch.ones(12, dtype=DTYPE)).dtype == DTYPE


def test_a_network_prints_what_it_is():
    text = str(rg.Network(sparse(), f="relu", leak=0.2))
    assert "ReLU" in text and "0.2" in text and "(12, 12)" in text and "connections" in text


def test_the_library_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    net = rg.Network(not_normal(5))
    (net(randn(3, 5)).sum() + net.trajectory(randn(3, 5), steps=3).x.sum()).backward()
    assert torch.equal(before, torch.get_rng_state())


def test_the_library_leaves_the_number_of_threads_alone():
    code = """
import torch, retrograde as rg
torch.set_num_threads(1)
net = rg.Network(8)
(net(torch.randn(3, 8)).sum() + net.trajectory(torch.randn(3, 8), steps=3).x.sum()).backward()
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- constraints upstream of W


class Dale(torch.nn.Module):
    """Column j has the sign of neuron j. It counts how often it is asked."""

    def __init__(self, signs):
        super().__init__()
        self.signs, self.calls = signs, 0

    def forward(self, weight):
        self.calls += 1
        return F.softplus(weight) * self.signs


@pytest.fixture
def constrained():
    W = rg.Dense(not_normal(6))
    dale = Dale(torch.tensor([1.0, 1, -1, 1, -1, -1], dtype=DTYPE) / 12)
    parametrize.register_parametrization(W, "weight", dale)
    return rg.Network(W), dale, W.parametrizations.weight.original


@pytest.mark.parametrize("kind", [torch.nn.Parameter, torch.Tensor.clone])
def test_to_moves_every_layer_of_an_unfolded_network(kind):
    net = rg.Network(not_normal(6), leak=kind(torch.tensor(0.3, dtype=DTYPE)))
    mlp, x0 = net.unfold(3), randn(6)
    assert all(layer.leak is net.leak and layer.b is net.b and layer.W is net.W for layer in mlp)
    wanted = mlp(x0)
    single = mlp.to(torch.float32)
    assert all(layer.leak.dtype == torch.float32 for layer in single)
    assert_close(single(x0.float()), wanted.float(), solved=False)


def test_a_count_may_be_an_integer_of_numpy():
    three = np.int64(3)
    net = rg.Network(three)
    assert net.W.shape == (3, 3) and all(type(size) is int for size in net.W.shape)
    assert len(net.trajectory(steps=three).x) == len(net.unfold(three)) == 3


@pytest.mark.parametrize("mode", ["steady state", "trajectory", "unfolded"])
def test_the_gradient_passes_through_a_parametrisation(constrained, mode):
    net, dale, original = constrained
    input, R = randn(3, 6), Reward(3, 6)

    def activity(W, input):
        if mode == "steady state":
            return rg.steady_state(W, input).x
        return rg.trajectory(W, input, steps=4).x[-1]

    x = {
        "steady state": lambda: net(input),
        "trajectory": lambda: net.trajectory(input, steps=4).x[-1],
        "unfolded": lambda: net.unfold(4)(torch.zeros(3, 6, dtype=DTYPE), input.expand(4, -1, -1)),
    }[mode]()
    R(x).backward()
    (wanted,) = gradient(lambda w: R(activity(F.softplus(w) * dale.signs, input)), [original])
    assert_close(original.grad, wanted)
    assert (net.W.dense() * dale.signs >= 0).all()


@pytest.mark.parametrize("mode", ["steady state", "trajectory"])
@pytest.mark.parametrize("solver", [None, rg.Newton()])
def test_a_parametrisation_is_computed_once_a_solve_and_not_again_backward(constrained, mode, solver):
    net, dale, original = constrained
    input, dale.calls = randn(3, 6), 0
    x = net.steady_state(input, solver=solver).x if mode == "steady state" else net.trajectory(input, steps=9).x
    assert dale.calls == 1
    x.sum().backward()
    assert dale.calls == 1 and original.grad is not None


@pytest.mark.parametrize("name, weight", [("Sparse", "weight"), ("LowRank", "U"), ("Convolution on a ring", "kernel")])
def test_any_structure_may_be_parametrised(name, weight):
    W = STRUCTURES[name]()
    plain = getattr(W, weight).detach().clone()
    halve = Dale(torch.tensor(0.5, dtype=DTYPE))
    halve.forward = lambda w: (setattr(halve, "calls", halve.calls + 1), 0.5 * w)[1]
    parametrize.register_parametrization(W, weight, halve)
    net, input = rg.Network(W), randn(3, 12)
    halve.calls = 0
    x = net(input)
    assert halve.calls == 1
    x.square().sum().backward()
    others = W.weights[1:]
    (wanted,) = gradient(lambda w: rg.steady_state(W.bind(0.5 * w, *others), input).x.square().sum(), [plain])
    assert_close(W.parametrizations[weight].original.grad, wanted)


def test_a_mask_keeps_what_it_masks_at_zero():
    mask = (randn(6, 6) > 0).to(DTYPE)
    W = rg.Dense(not_normal(6))
    parametrize.register_parametrization(W, "weight", _Masked(mask))
    net = rg.Network(W)
    climb = torch.optim.SGD(net.parameters(), lr=0.1, maximize=True)
    for _ in range(5):
        climb.zero_grad()
        net(randn(3, 6)).sum().backward()
        climb.step()
    assert (net.W.dense()[mask == 0] == 0).all() and (net.W.dense()[mask == 1] != 0).all()


class _Masked(torch.nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


# --- one weight in several places


@pytest.mark.parametrize("mode", ["steady state", "trajectory"])
def test_a_weight_shared_by_two_parts_of_a_sum_gets_both_gradients(mode):
    shared = torch.nn.Parameter(0.5 * not_normal(6))
    one = rg.Network(rg.Sum(rg.Dense(shared), rg.Dense(shared)))
    part = rg.Dense(0.5 * not_normal(6))
    two = rg.Network(rg.Sum(part, part))
    whole = rg.Network(not_normal(6))
    input = randn(3, 6)

    def activity(net):
        return net(input) if mode == "steady state" else net.trajectory(input, steps=4).x

    for net in (one, two, whole):
        activity(net).square().sum().backward()
    assert_close(shared.grad, 2 * whole.W.weight.grad, conditioning=10)
    assert_close(part.weight.grad, 2 * whole.W.weight.grad, conditioning=10)
    assert len(list(one.parameters())) == 2


def test_U_and_V_may_be_one():
    U = torch.nn.Parameter(0.4 * randn(6, 2))
    net, R = rg.Network(rg.LowRank(U, U)), Reward(3, 6)
    input = 0.3 * randn(3, 6)
    R(net(input)).backward()
    (wanted,) = gradient(lambda U: R(rg.steady_state(U @ U.T, input).x), [U])
    assert_close(U.grad, wanted, conditioning=10)


# --- f


@pytest.mark.parametrize("fn", [torch.sin, F.gelu, F.silu, torch.nn.ELU(), lambda u: u / (1 + u.abs())])
def test_any_elementwise_torch_function(fn):
    W, f = STRUCTURES["Dense"](), rg.Pointwise(fn)
    x, b = manufactured(W, f, 3)
    R, k = Reward(3, 12), conditioning(W, f, x, b)
    for solver in (None, rg.Newton()):
        found = gradient(lambda M, b, solver=solver: R(rg.steady_state(M, b, f, solver=solver).x), [W.dense(), b])
        s = dense_adjoint(W, f, x, b, R.gradient(x))
        assert_all_close(found, (outer_sum(s, x), s), conditioning=k)


def test_pointwise_tanh_is_tanh():
    net, other = rg.Network(not_normal(6)), rg.Network(not_normal(6), f=rg.Pointwise(torch.tanh, torch.atanh))
    input = randn(3, 6)
    assert_close(net(input), other(input))
    one, two = (torch.autograd.grad(n(input).sum(), n.W.weight)[0] for n in (net, other))
    assert_close(one, two, conditioning=10)
    x = net(input).detach()
    assert_close(net.input_for(x), other.input_for(x), solved=False)


def test_pointwise_with_a_gain_for_each_neuron_is_elementwise():
    gain = torch.linspace(0.2, 1, 6, dtype=DTYPE)
    W, f, R = not_normal(6), rg.Pointwise(lambda u: gain * torch.tanh(u)), Reward(3, 6)
    (found,) = gradient(lambda b: R(rg.steady_state(W, b, f).x), [randn(3, 6)])
    (wanted,) = gradient(lambda b: R(gain * rg.steady_state(W * gain, b).x), [randn(3, 6)])
    assert_close(found, wanted, conditioning=10)


def test_pointwise_that_is_undefined_somewhere_is_elementwise_all_the_same():
    f = rg.Pointwise(torch.sqrt, torch.square)
    x = rg.steady_state(0.1 * torch.ones(2, 2), torch.ones(2), f, x0=torch.ones(2)).x
    assert_close(torch.sqrt(0.2 * x + 1), x)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nonlinearities_are_values(name):
    f = NONLINEARITIES[name]
    assert f == copy.deepcopy(f) and hash(f) == hash(copy.copy(f))
    if not isinstance(f, rg.Pointwise):
        assert rg.Network(3, f=name).f == f


@pytest.mark.parametrize("f", [f for f in NONLINEARITIES.values() if f.slope_from_output], ids=repr)
def test_far_out_values_and_slopes_are_finite(f):
    for dtype in (torch.float32, torch.float64):
        u = torch.tensor([-1e30, -800.0, -50.0, 0.0, 50.0, 800.0, 1e30], dtype=dtype)
        assert f(u).isfinite().all() and f.slope(f(u)).isfinite().all() and f.slope_at(u).isfinite().all()
        assert (f.slope(f(u)) >= 0).all() and (f.slope(f(u)) <= 1).all()


# --- structures


class Doubled(rg.Dense):
    """2W, as a subclass that says so in its own products."""

    def product(self, x, *weights):
        return 2 * super().product(x, *weights)

    def transposed_product(self, s, *weights):
        return 2 * super().transposed_product(s, *weights)

    def outer_product(self, s, x, *weights):
        return tuple(2 * d for d in super().outer_product(s, x, *weights))


@pytest.mark.parametrize("mode", ["steady state", "trajectory"])
def test_a_subclass_of_dense_is_taken_at_its_word(mode):
    half, whole, input = rg.Network(Doubled(not_normal(6) / 2)), rg.Network(not_normal(6)), randn(3, 6)
    x, y = (net(input) if mode == "steady state" else net.trajectory(input, steps=4).x for net in (half, whole))
    assert_close(x, y)
    (one,), (two,) = (torch.autograd.grad(x.sum(), net.W.weight) for x, net in ((x, half), (y, whole)))
    assert_close(one, 2 * two, conditioning=10)


@pytest.mark.parametrize("name", RECTANGULAR)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
def test_a_rectangular_W_does_as_its_dense_matrix(name, batch):
    W = RECTANGULAR[name]()
    n_out, n_in = W.shape
    x, s = randn(*batch, n_in), randn(*batch, n_out, seed=1)
    M = W.dense().detach()
    assert M.shape == (n_out, n_in) == W.T.T.shape and W.T.shape == (n_in, n_out)
    assert_close(W @ x, x @ M.T, solved=False)
    assert_close(W.T @ s, s @ M, solved=False)
    assert_close(W.T.dense(), M.T, solved=False)
    assert_all_close(W.outer(s, x), through_dense(W, outer_sum(s, x)), solved=False)


@each_structure
def test_products_may_be_differentiated_twice(structure):
    W = STRUCTURES[structure]()
    weights = [w.detach().clone().requires_grad_() for w in W.weights]
    x = randn(2, 12).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *w: W.bind(*w) @ x, (x, *weights))
    assert torch.autograd.gradcheck(lambda x, *w: W.bind(*w).T @ x, (x, *weights))
    assert torch.autograd.gradgradcheck(lambda x, *w: W.bind(*w) @ x, (x, *weights))


@each_structure
def test_entries_are_the_matrix(structure):
    W = STRUCTURES[structure]()
    post, pre, weight = W.bind().entries()
    M = torch.zeros(12, 12, dtype=DTYPE).index_put((post, pre), weight.detach(), accumulate=True)
    assert_close(M, W.dense(), solved=False)


def test_a_convolution_is_torchs():
    kernel, x = randn(2, 3, 3, 5), randn(4, 3, 6, 7, seed=1)
    for padding, mode in (("circular", "circular"), ("zeros", "constant")):
        W = rg.Convolution(kernel, (6, 7), padding)
        wanted = F.conv2d(F.pad(x, (2, 2, 1, 1), mode=mode), kernel)
        assert_close((W @ x.flatten(1)).reshape(4, 2, 6, 7), wanted, solved=False)


def test_a_sparse_network_never_makes_a_matrix_of_n_by_n(monkeypatch):
    n = 30_000  # of which the square, in float32, is 3.6 GB
    ends = torch.randint(n, (2, 2 * n), generator=torch.Generator().manual_seed(0))
    net = rg.Network(rg.Sparse.from_edges(*ends, 0.2 * torch.randn(2 * n), n))
    monkeypatch.setattr(rg.Connectivity, "dense", None)
    largest = _largest_allocation(lambda: net(torch.randn(2, n)).sum().backward())
    assert largest < 100 * n * 4
    assert net.W.weight.grad.shape == net.W.weight.shape
    assert _largest_allocation(lambda: net.trajectory(torch.randn(2, n), steps=3).x.sum().backward()) < 100 * n * 4


def _largest_allocation(call):
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        call()
    return max(event.self_cpu_memory_usage for event in run.events())


# --- dtypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_structure
def test_one_dtype_in_the_same_out(structure, dtype):
    net = rg.Network(STRUCTURES[structure](), leak=0.5).to(dtype)
    input = randn(3, 12, dtype=dtype)
    state = net.steady_state(input)
    state.x.sum().backward()
    assert {state.x.dtype, state.residual.dtype, state.receipt.residual.dtype, net.b.grad.dtype} == {dtype}
    assert net.trajectory(input, steps=2).x.dtype == dtype
    assert all(weight.grad.dtype == dtype for weight in net.W.weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [None, rg.Newton(), rg.PseudoTransient(), rg.Anderson(), rg.NewtonKrylov()], ids=str)
def test_half_precision_is_factored_in_float32(method, dtype):
    W, input = not_normal(8), randn(3, 8)
    adjoint = {rg.Newton(): rg.Direct(), rg.NewtonKrylov(): rg.Krylov("gmres")}.get(method)
    net = rg.Network(W.to(dtype))
    state = net.steady_state(input.to(dtype), solver=method, adjoint=adjoint)
    assert_close(state.x, rg.steady_state(W, input).x.to(dtype), within=0.1)
    state.x.sum().backward()
    (wanted,) = gradient(lambda W: rg.steady_state(W, input).x.sum(), [W])
    assert_close(net.W.weight.grad, wanted.to(dtype), within=0.1)
    wild = rg.Network(5 * W.to(dtype)).steady_state(input.to(dtype), throw=False)  # beyond what plain steps find
    assert wild.converged.all()


@each_structure
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adjoint", [None, rg.Krylov("bicgstab")], ids=["default", "bicgstab"])
def test_half_precision_of_every_structure(structure, dtype, adjoint):
    W = STRUCTURES[structure]()
    input = randn(3, W.shape[0])
    net = rg.Network(W.to(dtype), b=False)
    exact = rg.Network(STRUCTURES[structure](), b=False)
    state, wanted = net.steady_state(input.to(dtype), adjoint=adjoint), exact.steady_state(input)
    assert state.x.dtype == dtype
    assert_close(state.x, wanted.x.to(dtype), within=0.1)
    state.x.sum().backward()
    wanted.x.sum().backward()
    for ours, theirs in zip(net.W.weights, exact.W.weights, strict=True):
        assert ours.grad.dtype == dtype
        assert_close(ours.grad, theirs.grad.to(dtype), within=0.1)
    path = net.trajectory(input.to(dtype), steps=4).x
    assert_close(path, exact.trajectory(input, steps=4).x.to(dtype), within=0.1)
    assert torch.autograd.grad(path.sum(), list(net.W.weights))[0].dtype == dtype


@pytest.mark.parametrize("f", ["tanh", "relu", "softplus"])
def test_bfloat16_as_far_as_torch_goes(f):
    W, input = 0.5 * not_normal(8), randn(3, 8)
    net = rg.Network(W.bfloat16(), f=f)
    state = net.steady_state(input.bfloat16(), solver=rg.FixedPoint(), adjoint=rg.FixedPoint())
    assert state.x.dtype == torch.bfloat16 and state.converged.all()
    exact = rg.steady_state(W, input, f).x
    assert_close(state.x, exact.bfloat16(), within=0.1)
    state.x.sum().backward()
    (wanted,) = gradient(lambda W: rg.steady_state(W, input, f).x.sum(), [W])
    assert_close(net.W.weight.grad, wanted.bfloat16(), within=0.1)
    path = net.trajectory(input.bfloat16(), steps=4).x
    assert_close(path, rg.trajectory(W, input, f=f, steps=4).x.bfloat16(), within=0.1)


def test_what_is_not_a_solver_and_a_network_without_numbers_are_named():
    net, z = rg.Network(4), torch.zeros(4)
    for call in (
        lambda **how: net.steady_state(z, **how),
        lambda **how: rg.steady_state(net.W, z, **how),
        lambda **how: rg.recurrent_backpropagation(net, z, z, **how),
    ):
        with pytest.raises(TypeError, match=r"adjoint: .* got the class Krylov: write Krylov\(\)"):
            call(adjoint=rg.Krylov)
        with pytest.raises(TypeError, match="throw: expected True or False, got 'no'"):
            call(throw="no")
    with pytest.raises(TypeError, match=r"solver: .* got the class Newton: write Newton\(\)"):
        net.steady_state(z, solver=rg.Newton)
    with pytest.raises(TypeError, match=r"solver: .* got str"):
        net.steady_state(z, solver="newton")
    net, z = net.to("meta"), z.to("meta")
    for call in (net.steady_state, lambda z: net.trajectory(z, steps=2), lambda z: rg.stability(net, z)):
        with pytest.raises(ValueError, match="expected numbers, got a tensor on the device meta"):
            call(z)
