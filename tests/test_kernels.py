"""Each kernel against the plain path that it stands in for."""

import gc
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch

import retrograde as rg
from retrograde import kernels
from retrograde.accuracy import Evidence
from retrograde.feedback import state_problem
from retrograde.kernels import accelerations, arrays, choice, iterations
from retrograde.nearing import adjoint_by_steps, state_by_steps
from retrograde.solvers.factors import Factors

NAMES = ("tanh", "sigmoid", "relu", "softplus", "identity")
DTYPES = (torch.float32, torch.float64)


@pytest.fixture
def plain(monkeypatch):
    """Call a function with the plain path forced."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setenv("RETROGRADE_PLAIN", "1")
            return function()

    return call


def close(a, b, steps=1):
    """To rounding: a few eps for each step of a contraction, relative to the largest entry."""
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        scale = max(1.0, float(y.detach().abs().max())) if y.numel() else 1.0
        assert float((x - y).detach().abs().max() if y.numel() else 0) <= 50 * steps * torch.finfo(y.dtype).eps * scale


def network(n, f, dtype, leak=None):
    generator = torch.Generator().manual_seed(n)
    W = 0.7 * torch.randn(n, n, generator=generator, dtype=dtype) / n**0.5
    return rg.Network(W, f=f, b=0.1 * torch.randn(n, generator=generator, dtype=dtype), leak=leak)


def sparse(n, f, dtype, leak=None):
    """With a neuron that receives from none and one that sends to none."""
    generator = torch.Generator().manual_seed(n)
    W = torch.randn(n, n, generator=generator, dtype=dtype) * (torch.rand(n, n, generator=generator) < 0.3)
    W[0], W[:, n - 1] = 0, 0
    return rg.Network((0.9 * W / n**0.5).to_sparse(), f=f, b=0.1 * torch.ones(n, dtype=dtype), leak=leak)


def low_rank(n, f, dtype, leak=None):
    generator = torch.Generator().manual_seed(n)
    U, V = torch.randn(2, n, 3, generator=generator, dtype=dtype) * n**-0.5
    return rg.Network(rg.LowRank(0.5 * U, V), f=f, b=0.1 * torch.ones(n, dtype=dtype), leak=leak)


each_network = pytest.mark.parametrize("make", (network, sparse, low_rank))


def trajectory_and_gradients(net, input, x0, steps=None):
    input, x0 = input.clone().requires_grad_(), x0.clone().requires_grad_()
    x = net.trajectory(input, x0, steps=steps).x
    leaves = [input, x0, *net.parameters()]
    return [
        x.detach(),
        *torch.autograd.grad(
            (x.sin() * torch.linspace(0.5, 1, len(x)).to(x)[(..., *[None] * (x.ndim - 1))]).sum(), leaves
        ),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("f", NAMES)
@pytest.mark.parametrize("leak", (None, 0.3, "each"), ids=str)
@each_network
def test_trajectories_and_their_gradients(make, f, leak, dtype, plain):
    n, T = 13, 6
    if leak == "each":
        leak = torch.nn.Parameter(torch.linspace(0.2, 1, n, dtype=dtype))
    net = make(n, f, dtype, leak)
    assert kernels.why_plain(net.W.bind(), net.f) is None
    for shape in ((n,), (1, n), (4, n), (7, n), (2, 3, n), (0, n)):
        x0 = torch.randn(shape, dtype=dtype)
        for input, steps in ((torch.randn(T, *shape, dtype=dtype), None), (torch.randn(shape, dtype=dtype), T)):
            ours = trajectory_and_gradients(net, input, x0, steps)
            close(ours, plain(lambda i=input, x=x0, s=steps: trajectory_and_gradients(net, i, x, s)), steps=20)


@pytest.mark.parametrize("n", (1, 2, 3, 4, 5, 8, 31, 64, 67))
@each_network
def test_any_number_of_neurons_and_samples(make, n, plain):
    net = make(n, "tanh", torch.float64)
    for samples in (1, 2, 3, 4, 5, 9, 35):
        input, x0 = torch.randn(5, samples, n).double(), torch.randn(samples, n).double()
        close(
            trajectory_and_gradients(net, input, x0),
            plain(lambda i=input, x=x0: trajectory_and_gradients(net, i, x)),
            20,
        )


def test_an_input_shared_by_the_batch_and_strided_arguments(plain):
    net = network(6, "tanh", torch.float64)
    x0 = torch.randn(6, 5).double().T
    for input in (
        torch.randn(4, 6).double(),
        torch.randn(4, 1, 6).double(),
        torch.randn(5, 4, 6).double().transpose(0, 1),
    ):
        close(trajectory_and_gradients(net, input, x0), plain(lambda i=input: trajectory_and_gradients(net, i, x0)), 20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("f", NAMES)
@each_network
def test_steps_that_tell_an_error(make, f, dtype, plain):
    net = make(11, f, dtype)
    input, g = torch.randn(9, 11, dtype=dtype), torch.randn(9, 11, dtype=dtype)
    x = net.steady_state(input, solver=rg.FixedPoint(rtol=1e-3)).x.detach()
    equations, b = net.recurrence, net.total(input)

    def state():
        return state_by_steps(equations, b, x, lambda: state_problem(equations, b, Factors(x), None), 1e-4)

    ours, theirs = state(), plain(state)
    assert isinstance(ours, kernels.Steps) and not isinstance(theirs, kernels.Steps)
    assert torch.equal(ours.turns, theirs.turns) and torch.equal(ours.enough, theirs.enough)
    close((ours.z,), (theirs.z,), steps=20)
    assert_told(ours, theirs, ("residual", "gain"), ours.enough)

    D = equations.slopes(x, x, b)
    s = equations.adjoint_step(g, x, D * g)
    for known in (b, None):  # without b, x is taken for steady
        for grad_rtol in (1e-1, 1e-2):
            evidence = Evidence(equations, x, known, 1e-20 * g, 1e-20 * s, factored=True)

            def adjoint(evidence=evidence, grad_rtol=grad_rtol):
                return adjoint_by_steps(evidence, grad_rtol)

            ours, theirs = adjoint(), plain(adjoint)
            told = ours.error <= grad_rtol
            assert torch.equal(told, theirs.error <= grad_rtol)
            told &= ours.turns == theirs.turns  # rounding may decide the last, in float32
            assert told.any() and (dtype == torch.float32 or (told == (ours.error <= grad_rtol)).all())
            close((1e20 * ours.s[told],), (1e20 * theirs.s[told],), steps=20)
            assert_told(ours, theirs, ("state_error", "error", "residual"), told)


def assert_told(ours, theirs, names, which):
    """The same numbers to rounding, of which a residual of 1e-5 or more has so many parts."""
    eps = torch.finfo(ours.z.dtype if hasattr(ours, "z") else ours.s.dtype).eps
    for name in names:
        one, other = (getattr(each, name)[which].double() for each in (ours, theirs))
        assert ((one - other).abs() <= 50 * eps * (1e5 * other.abs() + 1)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("f", NAMES)
@pytest.mark.parametrize("damping", (1.0, 0.6))
@each_network
def test_steady_states_and_their_gradients(make, f, dtype, damping, plain):
    net = make(11, f, dtype)
    input = torch.randn(9, 11, dtype=dtype)
    solver = rg.FixedPoint(damping=damping)

    def solve():
        state = net.steady_state(input, solver=solver, adjoint=solver)
        gradients = torch.autograd.grad(state.x.sin().sum(), list(net.parameters()))
        return state, gradients

    (ours, our_gradients), (theirs, their_gradients) = solve(), plain(solve)
    assert ours.converged.all() and ours.receipt.converged.all()
    assert (ours.steps - theirs.steps).abs().max() <= 1  # rounding decides the last
    close([ours.x], [theirs.x], steps=ours.tolerance / torch.finfo(dtype).eps)
    close(our_gradients, their_gradients, steps=10 * ours.tolerance / torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leak", (None, 0.3), ids=str)
@pytest.mark.parametrize(("make", "samples"), ((network, 3), (sparse, 3), (sparse, 19)))
def test_an_adjoint_in_pieces_of_time(make, samples, leak, dtype, plain, monkeypatch):
    net = make(9, "tanh", dtype, leak)
    monkeypatch.setattr("retrograde.through_time._PIECE", 2 * samples * 9)
    monkeypatch.setattr(choice, "LONE", 1)  # so that a sparse W goes by few
    input = torch.randn(9, 6, samples, dtype=dtype).permute(1, 2, 0)  # which lies by neurons

    def pieces():
        x = net.trajectory(input).at([2, 5])
        return torch.autograd.grad(x.sin().sum(), list(net.parameters()))

    close(pieces(), plain(pieces), steps=20)


def test_what_is_not_finite_is_found_along_a_trajectory():
    net, bad = network(9, "tanh", torch.float32, leak=0.3), torch.ones(6, 3, 9)
    bad[3, 1, 4] = -torch.inf
    with pytest.raises(ValueError, match="input: expected finite numbers, got 1 of 162"):
        net.trajectory(bad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "T"), ((16, 10), (16, 400), (70, 100), (200, 30)))
def test_kernels_and_the_plain_path_agree_to_the_bound_that_is_stated(n, T, dtype, plain):
    W = torch.randn(n, n, dtype=torch.float64)
    net = rg.Network((0.9 * W / torch.linalg.matrix_norm(W, 2)).to(dtype))
    input, c = torch.randn(2, T, 4, n, dtype=dtype)

    def path_and_gradients():
        x = net.trajectory(input).x
        return x.detach(), *torch.autograd.grad(x, list(net.parameters()), c)

    for ours, theirs in zip(path_and_gradients(), plain(path_and_gradients), strict=True):
        apart = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert apart <= torch.finfo(dtype).eps * (4 + n**0.5 / 4 + (4 * T) ** 0.5 / 6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize(
    "shape", ((0, 3, 5), (1, 1, 1), (1, 33, 65), (7, 4, 64), (127, 6, 66), (129, 65, 31), (300, 130, 7), (999, 33, 65))
)
def test_the_gradient_in_a_full_matrix(shape, threads, dtype):
    samples, n_out, n_in = shape
    torch.set_num_threads(threads)
    W = rg.Dense(torch.zeros(n_out, n_in, dtype=dtype)).bind()
    s, x = torch.randn(samples, n_out, dtype=dtype), torch.randn(n_in, samples, dtype=dtype).T
    with torch.no_grad():
        true = (s.double().T @ x.double()).to(dtype)
        (dW,) = kernels.outer(W, s, x)
        close((dW,), (true,), steps=5)
        assert dW.is_contiguous()
    tiled = torch.zeros_like(true)  # the kernel itself, as without AVX-512 torch takes what is large
    choice.cpu_kernels().products.outer(s.numpy(), x.contiguous().numpy(), threads, tiled.numpy())
    close((tiled,), (true,), steps=5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mate", ("small reward", "large reward", "no reward", "slow", "saturated"))
@each_network
def test_a_sample_is_the_same_in_one_call_and_in_many(make, mate, dtype, monkeypatch):
    """Whether the whole batch is answered by one call, or needs more than that, because of another sample in it."""
    net, b, g = make(13, "tanh", dtype), *torch.randn(2, 2, 13, dtype=dtype)
    g[1] *= {"small reward": 1e-8, "large reward": 1e8, "no reward": 0}.get(mate, 1)
    b[1] += 40 if mate == "saturated" else 0
    if mate == "slow":
        net, b[1] = rg.Network(torch.eye(13, dtype=dtype) + net.W.dense().detach() / 100), 0.01  # to a far state
    wholes = []
    monkeypatch.setattr(
        iterations, "_whole", lambda *a, whole=iterations._whole: wholes.append(whole(*a)) or wholes[-1]
    )

    def solve(rows):
        b_rows = b[rows].clone().requires_grad_()
        state = net.steady_state(b_rows)
        return state.x.detach(), *torch.autograd.grad(state.x, b_rows, g[rows])

    (x, s), (x_alone, s_alone) = solve(slice(0, 2)), solve(slice(0, 1))
    assert torch.equal(x[:1], x_alone) and torch.equal(s[:1], s_alone)
    if make is network:  # the other structures may begin with something else
        together, alone = wholes[:2], wholes[2:]
        assert all(each is not None and each.all_converged for each in alone)
        assert not all(each is not None and each.all_converged for each in together)


@pytest.mark.parametrize("f", NAMES)
@pytest.mark.parametrize("samples", (6, 1))
@pytest.mark.parametrize("left", ("nothing", "a slow state", "no reward", "a large reward"))
@each_network
def test_the_iteration_in_one_call_says_what_it_says_in_many(make, left, samples, f, monkeypatch):
    """Whatever is left to do after that call; of one sample, with threads that share each product."""
    torch.set_num_threads(2)
    monkeypatch.setattr(choice, "LONE", 1)
    net, input = make(13, f, torch.float64), torch.randn(samples, 13, dtype=torch.float64)
    few, how = rg.FixedPoint(max_steps=3), {}
    if left == "a slow state":
        how = {"solver": rg.Cascade(few, rg.Newton()), "adjoint": rg.Cascade(few, rg.Direct())}
    reward = {"no reward": 0.0, "a large reward": 1e9}.get(left, 1.0)

    def solve():
        state = net.steady_state(input, **how)
        (dW, *_) = torch.autograd.grad(reward * state.x.sin().sum(), list(net.W.parameters()))
        told = (getattr(state, name) for name in ("x", "status", "residual", "steps", "attempt"))
        receipt = (getattr(state.receipt, name) for name in ("status", "residual", "steps", "conditioning", "attempt"))
        return dW, *(each.detach() for each in (*told, *receipt))

    calls, made = [], iterations._whole
    monkeypatch.setattr(iterations, "_whole", lambda *a: calls.append(made(*a)) or calls[-1])
    whole = solve()
    if make is network and f == "tanh":  # others may begin with something else, or not converge by steps
        answered = [each is not None and each.all_converged for each in calls]
        assert answered == {"nothing": [True, True], "a slow state": [False, False]}.get(left, [True, False])
    monkeypatch.setattr(iterations, "_whole", lambda *_: None)
    for ours, theirs in zip(whole, solve(), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-14, atol=0, equal_nan=True)


@pytest.mark.parametrize("where", ("input", "W"))
@pytest.mark.parametrize("value", (torch.nan, torch.inf))
@each_network
def test_one_call_looks_at_the_numbers(make, value, where):
    net, input = make(13, "tanh", torch.float32), torch.zeros(2, 13)
    with torch.no_grad():
        (input if where == "input" else net.W.weights[0].data).view(-1)[5] = value
    with pytest.raises(ValueError, match=rf"{where}: expected finite"):
        net.steady_state(input)
    with pytest.raises(ValueError, match="dR/dx: expected finite"):
        x = make(13, "tanh", torch.float32).steady_state(torch.zeros(2, 13, requires_grad=True)).x
        x.backward(torch.full_like(x, value))


def in_blocks(A, transposed, threads):
    from retrograde.kernels.cpu.products import pack, shape_of_packed

    blocks = np.full(shape_of_packed(A, transposed), np.nan, A.dtype)
    pack(A, transposed, threads, blocks)
    return blocks


def test_what_is_packed_lies_where_another_matrix_lay(monkeypatch):
    for much in (arrays._MUCH, 1):
        monkeypatch.setattr(arrays, "_MUCH", much)
        for n, dtype in ((67, torch.float32), (40, torch.float32), (67, torch.float32), (31, torch.float64)):
            W = torch.randn(n, n, dtype=dtype)
            for transposed in (False, True):
                (blocks,) = arrays.packed(rg.Dense(W).bind(), transposed)
                assert np.array_equal(blocks, in_blocks(W.numpy(), not transposed, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", (1, 3, 4, 11, 12, 101))
@pytest.mark.parametrize("shape", ((1, 1), (5, 15), (63, 16), (64, 17), (65, 33), (130, 129), (70, 300)))
def test_products_with_a_packed_matrix(shape, rows, dtype):
    from retrograde.kernels.cpu.products import add_product

    m, n = shape
    A, x, u = (torch.randn(*size, dtype=dtype).numpy() for size in ((n, m), (rows, m), (rows + 1, n)))
    beyond, want = u[-1].copy(), u[:-1] + x @ A.T
    packed = in_blocks(A, True, 2)
    assert np.array_equal(packed, in_blocks(np.ascontiguousarray(A.T), False, 1))
    add_product(packed, x, u[:-1], 0, len(packed))
    close([torch.from_numpy(u[:-1])], [torch.from_numpy(want)], steps=5)
    assert np.array_equal(u[-1], beyond)  # nothing was written behind the last column


def test_no_two_compiled_functions_have_one_name():
    """The linker would take either for the other where one came from disk: silently wrong sums."""
    from numba.core.dispatcher import Dispatcher

    from retrograde.kernels.cpu import functions, tiles
    from retrograde.kernels.cpu.products import add_product

    A, x = in_blocks(np.eye(40, dtype=np.float32), True, 1), np.ones((11, 40), np.float32)
    add_product(A, x, x.copy(), 0, len(A))
    for dtype in (np.float32, np.float64):
        functions.apply(0, np.ones(3, dtype))
        functions.times_slope(3, np.ones(3, dtype), np.ones(3, dtype))
    named = {}
    for each in (one for one in gc.get_objects() if issubclass(type(one), Dispatcher)):
        function = each.py_func
        for types in each.overloads if "retrograde" in function.__module__ else ():
            # An overload may be made twice for the same types: the same code around the same values.
            around = tuple(cell.cell_contents for cell in function.__closure__ or ())
            name = function.__module__, function.__qualname__, types
            named.setdefault(name, set()).add((function.__code__, around))
    assert any(module == tiles.__name__ and "add" in name for module, name, _ in named)
    assert {"in_its_precision._tanh", "in_its_precision._expm1"} <= {name for _, name, _ in named}
    assert all(len(meanings) == 1 for meanings in named.values())


@pytest.mark.parametrize("lie", ("rows", "columns", "apart"))
@pytest.mark.parametrize("n", (3, 37, 600))  # 600: of two threads
def test_a_matrix_may_lie_in_memory_as_it_likes(n, lie):
    torch.manual_seed(n)
    W = 0.8 * torch.randn(n, n) / n**0.5
    stored = {"rows": W, "columns": W.T.contiguous().T, "apart": torch.stack([W, W], -1)[..., 0]}[lie]
    x, b = torch.randn(2, 2, n).unbind()

    def gradient(weight):
        leaf = weight.detach().requires_grad_()
        assert leaf.stride() == weight.stride()
        state, path = rg.steady_state(leaf, b), rg.trajectory(leaf, b, steps=5)
        return *torch.autograd.grad((state.x * x).sum() + (path.x * x).sum(), leaf), state.x.detach()

    for found, want in zip(gradient(stored), gradient(W), strict=True):
        assert torch.equal(found, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leak", (None, 0.3), ids=str)
@pytest.mark.parametrize("n", (2, 15, 16, 17, 40, 67))
@pytest.mark.parametrize("make", (network, sparse))
def test_one_sample_whose_product_the_threads_share(make, n, leak, dtype, plain, monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    torch.set_num_threads(2)
    net = make(n, "tanh", dtype, leak)
    input, x0 = torch.randn(6, 1, n, dtype=dtype), torch.randn(1, n, dtype=dtype)
    for drive, steps in ((input, None), (input[0], 6)):
        ours = trajectory_and_gradients(net, drive, x0, steps)
        close(ours, plain(lambda d=drive, s=steps: trajectory_and_gradients(net, d, x0, s)), steps=20)

    def solve():
        solver = rg.FixedPoint(damping=0.8)
        state = net.steady_state(input[0], solver=solver, adjoint=solver)
        return state, [state.x, *torch.autograd.grad(state.x.sin().sum(), list(net.parameters()))]

    (state, ours), (theirs, wanted) = solve(), plain(solve)
    assert state.converged.all() and (state.steps - theirs.steps).abs().max() <= 1
    close(ours, wanted, steps=10 * state.tolerance / torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", (2, 15, 17, 40, 67))
@pytest.mark.parametrize("make", (network, sparse))
def test_one_sample_has_the_bits_that_it_has_among_others(make, n, dtype, monkeypatch):
    torch.set_num_threads(2)
    net, input = make(n, "tanh", dtype), torch.randn(3, n, dtype=dtype)
    monkeypatch.setattr(choice, "LONE", 10**9)

    def solve(input):
        leaf = input.clone().requires_grad_()
        state = net.steady_state(leaf, solver=rg.FixedPoint(), adjoint=rg.FixedPoint())
        gradients = torch.autograd.grad(state.x.sin().sum(), (leaf, *net.parameters()))
        return state.x.detach(), state.steps, *gradients

    (x, steps, s, *_), apart = solve(input), [solve(one[None]) for one in input]
    for least in (1, 10**9):
        monkeypatch.setattr(choice, "LONE", least)
        for k, wanted in enumerate(apart):
            found = solve(input[k : k + 1])
            assert all(map(torch.equal, found, wanted))
            assert torch.equal(found[0][0], x[k]) and found[1] == steps[k] and torch.equal(found[2][0], s[k])


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_one_sample_whose_product_the_threads_share_is_looked_at_too(value, monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    torch.set_num_threads(2)
    net = network(40, "tanh", torch.float32)
    with pytest.raises(ValueError, match="input: expected finite"):
        net.steady_state(torch.zeros(1, 40).index_fill(1, torch.tensor([39]), value))
    x = net.steady_state(torch.zeros(1, 40, requires_grad=True)).x
    with pytest.raises(ValueError, match="dR/dx: expected finite"):
        x.backward(torch.full_like(x, value))
    for place in ((0, 0), (39, 39), (39, 0)):
        lost = network(40, "tanh", torch.float32)
        with torch.no_grad():
            lost.W.weight[place] = value
        with pytest.raises(ValueError, match="W: expected finite"):
            lost.steady_state(torch.zeros(1, 40))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leak", (None, 0.3), ids=str)
@pytest.mark.parametrize("n", (2, 17, 67, 600))
@pytest.mark.parametrize("samples", (1, 2, 5, 8, 16, 17, 33))
def test_a_few_samples_of_a_sparse_w_share_its_products_to_the_same_bits(samples, n, leak, dtype, plain, monkeypatch):
    torch.set_num_threads(2)
    net = sparse(n, "tanh", dtype, leak)
    torch.manual_seed(samples)
    input, x0 = torch.randn(6, samples, n, dtype=dtype), torch.randn(samples, n, dtype=dtype)
    for drive, steps in ((input, None), (input[:, :1], None), (input[0], 6)):
        found = {}
        for least in (1, 10**9):
            monkeypatch.setattr(choice, "LONE", least)
            found[least] = trajectory_and_gradients(net, drive, x0, steps)
        assert all(map(torch.equal, found[1], found[10**9]))
        close(found[1], plain(lambda d=drive, s=steps: trajectory_and_gradients(net, d, x0, s)), steps=20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leak", (None, 0.3), ids=str)
def test_the_input_of_a_few_samples_may_lie_in_memory_as_it_likes(leak, dtype, monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    n, T = 67, 6
    net = sparse(n, "tanh", dtype, leak)
    input = torch.randn(T, 3, 7, n, dtype=dtype)
    by_neurons = input.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    spread = torch.zeros(T, 3, 7, 2 * n, dtype=dtype)[..., ::2].copy_(input)
    x0 = torch.zeros(3, 7, n, dtype=dtype)
    wanted = trajectory_and_gradients(net, input, x0)
    for each in (by_neurons, spread, input.transpose(1, 2).contiguous().transpose(1, 2)):
        leaf = each.requires_grad_()
        x = net.trajectory(leaf, x0).x
        assert torch.equal(x, wanted[0])
        (dR_db,) = torch.autograd.grad((x.sin() * torch.linspace(0.5, 1, T).to(x)[:, None, None, None]).sum(), leaf)
        assert torch.equal(dR_db, wanted[1])
        if each is by_neurons:  # no copy turns the array about
            assert x.stride()[1:] == (7, 1, 21) and (leak or dR_db.stride() == by_neurons.stride())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", (1, 7, 19, 64, 133))
@each_network
def test_a_samples_bits_do_not_depend_on_its_batch(make, n, dtype):
    net = make(n, "tanh", dtype)
    input = torch.randn(10, n, dtype=dtype) * torch.logspace(-3, 1, 10, dtype=dtype)[:, None]
    together = net.steady_state(input, solver=rg.FixedPoint())
    for i in range(10):
        for rows in ([i], [i, 3], [i, 3, 8, 0, 5]):
            some = net.steady_state(input[rows], solver=rg.FixedPoint())
            assert torch.equal(some.x[0], together.x[i]) and some.steps[0] == together.steps[i]


def test_a_failure_is_told_sample_by_sample():
    net = rg.Network(torch.tensor([[2.0]]), f="relu", b=False)
    state = net.steady_state(torch.tensor([[0.0], [1.0], [-1.0]]), solver=rg.FixedPoint(), throw=False)
    assert state.status.tolist() == [rg.Status.CONVERGED, rg.Status.DIVERGED, rg.Status.CONVERGED]
    slow = net.steady_state(torch.tensor([[1.0]]), solver=rg.FixedPoint(max_steps=7), throw=False)
    assert slow.status.tolist() == [rg.Status.MAX_STEPS] and slow.steps.tolist() == [7]


def test_the_same_bits_from_run_to_run():
    net = network(40, "tanh", torch.float32)
    input, x0 = torch.randn(30, 12, 40), torch.randn(12, 40)
    first, second = (trajectory_and_gradients(net, input, x0) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def in_long_double(f, u):
    """tanh, sigmoid and softplus, by their numbers."""
    u = u.astype(np.longdouble)
    e = np.exp(-np.abs(u))
    return {0: np.tanh(u), 1: np.where(u < 0, e, 1) / (1 + e), 3: np.maximum(u, 0) + np.log1p(e)}[f]


WIDER = pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="nothing is wider than float64")
BOTH = pytest.mark.parametrize("dtype", (np.float32, pytest.param(np.float64, marks=WIDER)))


@BOTH
@pytest.mark.parametrize("f", (0, 1, 3), ids=NAMES[:2] + NAMES[3:4])
def test_functions_are_within_three_units_in_the_last_place(f, dtype):
    from retrograde.kernels.cpu.functions import apply

    end = 100 if dtype == np.float32 else 720  # beyond which exp is less than the smallest normal number
    wide = np.concatenate(
        [np.linspace(-end, end, 200001), np.linspace(-2, 2, 200001), 10.0 ** np.linspace(-30, 2, 20001)]
    )
    u = np.concatenate([wide, -wide]).astype(dtype)
    want, got = in_long_double(f, u), u.copy()
    apply(f, got)
    smallest = 1.02 * np.finfo(dtype).smallest_normal  # below about which they stay
    normal = np.abs(want) > smallest
    unit = np.spacing(np.abs(want[normal]).astype(dtype)).astype(np.longdouble)
    assert (np.abs(got[normal] - want[normal]) / unit).max() < 3
    assert np.abs(got - want)[~normal].max(initial=0) <= smallest
    ends = np.tile(np.array([np.nan, np.inf, -np.inf], dtype), 23)  # some in vectors, some one by one
    apply(f, ends)
    assert np.isnan(ends[::3]).all() and (ends[1::3] == (np.inf if f == 3 else 1)).all()
    assert (ends[2::3] == -1).all() if f == 0 else ((ends[2::3] >= 0) & (ends[2::3] <= smallest)).all()


@BOTH
def test_softplus_has_its_slope_to_the_last_digits_where_it_is_nearly_off(dtype):
    from retrograde.kernels.cpu.functions import times_slope

    x = (10.0 ** np.linspace(-30, 2.5, 5001)).astype(dtype)
    slopes = np.ones_like(x)
    times_slope(3, x, slopes)
    want = -np.expm1(-x.astype(np.longdouble))
    assert (np.abs(slopes - want) / np.spacing(want.astype(dtype))).max() < 3
    off = np.array([0.0, np.inf, np.nan] * 7, dtype)
    slopes = np.ones_like(off)
    times_slope(3, off, slopes)
    assert (slopes[::3] == 0).all() and (slopes[1::3] == 1).all() and np.isnan(slopes[2::3]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("samples", (0, 1, 3, 255, 256, 257, 600))
@pytest.mark.parametrize("edges", (0, 1, 40, 2000))
def test_the_gradient_on_a_pattern(edges, samples, dtype):
    shape = (90, 70)
    ends = [torch.randint(1, size - 1, (edges,)) for size in shape]  # the first and the last have no connection
    W = rg.Sparse.from_edges(ends[1], ends[0], torch.randn(edges, dtype=dtype), shape).bind()
    s, x = (torch.randn(samples, size, dtype=dtype) for size in shape)
    with torch.no_grad():
        close(kernels.outer(W, s, x), W.outer(s, x), steps=20)
        again = kernels.outer(W, s, x)
    assert torch.equal(kernels.outer(W, s, x)[0], again[0])


def test_explain_says_which_path_and_why(plain, monkeypatch):
    assert "fused" in kernels.explain(network(4, "tanh", torch.float32))
    assert "fused" in kernels.explain(rg.Network(torch.eye(3).to_sparse()))
    assert "no kernel for Convolution" in kernels.explain(rg.Network(rg.Convolution(torch.ones(1, 1, 3), grid=(5,))))
    assert "sin" in kernels.explain(rg.Network(3, f=rg.Pointwise(torch.sin)))
    assert "bfloat16" in kernels.explain(rg.Network(3).bfloat16())
    torch.set_num_threads(2)
    wide = rg.Network(torch.zeros(1024, 1024))
    assert "sharing" in kernels.explain(wide, 1)
    assert "own samples" in kernels.explain(wide)
    monkeypatch.setattr(choice, "LONE", 1)
    along, steady = kernels.explain(rg.Network(torch.eye(3).to_sparse())).split("\n")
    assert "the threads sharing each product" in along
    assert "each thread with its own samples for FixedPoint, the threads sharing each product for Anderson" in steady
    assert "RETROGRADE_PLAIN" in plain(lambda: kernels.explain(rg.Network(3)))


def test_a_weight_of_another_shape_never_reaches_a_kernel():
    net = rg.Network(4)
    net.W.weight = torch.nn.Parameter(torch.randn(64, 64))
    for run in (lambda: net(torch.ones(3, 4)), lambda: net.trajectory(torch.ones(5, 3, 4))):
        with pytest.raises(ValueError, match=r"W: expected shape \(4, 4\), as it was made, got \(64, 64\)"):
            run()


def test_what_is_kept_on_disk_is_kept_for_these_sources():
    import hashlib
    from pathlib import Path

    from retrograde.kernels import cpu

    sources = b"".join(path.read_bytes() for path in sorted(Path(cpu.__file__).parent.glob("*.py")))
    for kernel in (cpu.sweeps.forward, cpu.sweeps.adjoint, cpu.fixed_point.iterate, cpu.lone.iterate):
        assert hashlib.sha256(sources).hexdigest()[:16] in kernel.stats.cache_path


def test_a_forked_process_takes_the_plain_path():
    code = """
import os, torch, retrograde as rg
torch.manual_seed(0)
net, input = rg.Network(6), torch.ones(4, 3, 6)
x = net.trajectory(input).x
if (child := os.fork()) == 0:
    assert "forked" in rg.kernels.explain(net)
    os._exit(0 if torch.allclose(net.trajectory(input).x, x) else 3)
assert os.waitpid(child, 0)[1] == 0
assert "fused" in rg.kernels.explain(net)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def one_slow_mode(n, f, dtype):
    """Sparse and not symmetric; one eigenvalue, of neurons far down the list, leads all the others by far."""
    generator = torch.Generator().manual_seed(n)
    W = torch.randn(n, n, generator=generator, dtype=torch.float64) * (torch.rand(n, n, generator=generator) < 0.3)
    W[0], W[:, n - 1] = 0, 0
    mode = torch.rand(2, n, generator=generator, dtype=torch.float64)
    W = 0.2 / (0.3 * n) ** 0.5 * W + 0.9 / (0.3 * mode.prod(0).sum()) * (mode[0, :, None] * mode[1]) * (W != 0)
    return rg.Network(W.to(dtype).to_sparse(), f=f, b=0.1 * torch.rand(n, generator=generator).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("f", NAMES)
@pytest.mark.parametrize("solver", (rg.Anderson(memory=2), rg.Anderson(delay=5)), ids=repr)
def test_anderson_of_a_large_sparse_w(f, dtype, solver, plain, monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    n = 1100
    net = one_slow_mode(n, f, dtype)
    exact = 3 * torch.finfo(dtype).eps ** 0.9 * 100  # what the slow mode makes of the tolerance
    for samples in (1, 3, 21):
        input = 0.02 * torch.randn(samples, n, dtype=dtype, generator=torch.Generator().manual_seed(samples))

        def solve(input=input):
            state = net.steady_state(input, solver=solver, adjoint=solver)
            gradients = torch.autograd.grad((state.x * torch.arange(n)).sum(), list(net.parameters()))
            return state, gradients

        state, gradients = solve()
        expected, others = plain(solve)
        assert (state.steps <= 3 + 1.4 * expected.steps).all()
        assert (state.receipt.steps <= 3 + 1.4 * expected.receipt.steps).all()
        for a, b in zip((state.x.detach(), *gradients), (expected.x.detach(), *others), strict=True):
            assert float((a - b).norm() / b.norm()) < exact
        again, same = solve()
        assert torch.equal(again.x, state.x) and all(map(torch.equal, same, gradients))


@pytest.fixture
def never_new(monkeypatch):
    """Memory that was used before: whoever reads what was not written there finds NaN."""
    made = accelerations.rooms
    monkeypatch.setattr(accelerations, "rooms", lambda *about: np.full_like(made(*about), np.nan))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("samples", (9, 21))
def test_rows_cut_into_strips_give_what_whole_rows_give(samples, dtype, never_new, monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    net = one_slow_mode(600, "tanh", dtype)
    input = 0.02 * torch.randn(samples, 600, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def solve():
        state = net.steady_state(input, solver=rg.Anderson(), adjoint=rg.Anderson())
        return [state.x.detach(), *torch.autograd.grad((state.x * torch.arange(600)).sum(), list(net.parameters()))]

    whole = solve()
    monkeypatch.setattr(accelerations, "STRIP", 2**5)
    cut = solve()
    assert not torch.equal(cut[0], whole[0])  # as sums are taken in another order
    close(cut, whole, steps=100)
    torch.set_num_threads(2)
    assert all(map(torch.equal, solve(), cut))


@pytest.mark.parametrize("memory", (1, 5))
@pytest.mark.parametrize("samples", (1, 5, 9))
def test_anderson_reads_what_it_has_written(samples, memory, never_new, plain, monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    net, b = one_slow_mode(300, "relu", torch.float64), torch.rand(samples, 300, dtype=torch.float64)
    for solver in (rg.Anderson(memory=memory), rg.Anderson(memory=memory, delay=5)):
        state = net.steady_state(b, solver=solver)
        close([state.x.detach()], [plain(lambda s=solver: net.steady_state(b, solver=s)).x.detach()], steps=100)


@pytest.mark.parametrize("threads", (1, 2, 3))
@pytest.mark.parametrize("n", (1, 16, 17, 100))
def test_a_piece_of_a_row_lies_in_one_strip(n, threads):
    random = np.random.default_rng(n)
    full = random.normal(size=(n, n)) * (random.random((n, n)) < 0.2)
    full[: n // 3] = 0
    M = scipy.sparse.csr_array(full)
    neurons = random.permutation(n)
    place = np.argsort(neurons).astype(np.uint32)
    Mt = scipy.sparse.csr_array(M.T)
    given = Mt.indptr.astype(np.uint32), place[Mt.indices], Mt.data, neurons, 4
    first, rooms = np.linspace(0, n, threads + 1).astype(int), (np.empty(M.nnz, np.uint32), np.empty(M.nnz))
    (starts, others, values), row_of, shares = choice.cpu_kernels().strips.cut(*given, first, *rooms)
    found, entries = np.zeros((n, n)), 0
    for strip, share in enumerate(shares):
        assert (np.diff(row_of[share[0] : share[-1]].astype(int)) > 0).all()
        for thread in range(threads):
            for piece in range(share[thread], share[thread + 1]):
                columns = others[starts[piece] : starts[piece + 1]]
                assert len(columns) and set(columns // 16) == {strip}
                assert first[thread] <= row_of[piece] < first[thread + 1]
                found[row_of[piece], columns] += values[starts[piece] : starts[piece + 1]]
                entries += len(columns)
    assert entries == M.nnz
    assert np.array_equal(found, full[neurons][:, neurons])


def test_anderson_is_what_a_large_sparse_w_gets_first(monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    net = one_slow_mode(300, "tanh", torch.float64)
    state = net.steady_state()
    settled = net.steady_state(solver=rg.FixedPoint())
    state.x.sum().backward()
    assert isinstance(state.solver.solvers[0], rg.Anderson) and int(state.attempt) == int(state.receipt.attempt) == 0
    assert 3 * int(state.steps) < int(settled.steps)
    close([state.x.detach()], [settled.x.detach()], steps=20)


def test_a_large_linear_network_of_many_slow_modes_goes_from_acceleration_to_gmres(monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    generator = torch.Generator().manual_seed(0)
    n, f64 = 200, {"dtype": torch.float64}
    V = torch.eye(n, **f64) + 0.02 * torch.randn(n, n, generator=generator, **f64)
    W = V @ torch.diag(torch.linspace(-1.8, 0.99, n, **f64)) @ torch.linalg.inv(V)  # from which its dynamics diverge
    net = rg.Network(W.to_sparse(), f="identity", b=torch.ones(n, **f64))
    state = net.steady_state()
    state.x.square().sum().backward()
    x = torch.linalg.solve(torch.eye(n, **f64) - W, torch.ones(n, **f64))
    s = torch.linalg.solve(torch.eye(n, **f64) - W.T, 2 * x)
    assert isinstance(state.solver.solvers[1], rg.Krylov) and int(state.attempt) == int(state.receipt.attempt) == 1
    close([state.x.detach(), net.b.grad], [x, s], steps=1000)


@pytest.mark.parametrize("gain", (1.2, 1.4, 2, 4))
@pytest.mark.parametrize("samples", (1, 7))
def test_the_default_of_a_large_sparse_w_goes_where_its_dynamics_go(gain, samples, plain, monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    small = one_slow_mode(300, "tanh", torch.float64)
    M = small.W.dense().detach()
    net = rg.Network((gain * M / torch.linalg.eigvals(M).abs().max()).to_sparse(), f="tanh", b=False)
    b = 0.02 * torch.rand(samples, 300, dtype=torch.float64)  # near 0 is a state that is unstable
    settled = net.steady_state(b, solver=rg.FixedPoint()).x.detach()
    without = net.steady_state(b, solver=rg.Anderson(), throw=False).x.detach()
    assert float((without - settled).norm()) > 0.1
    close([net.steady_state(b).x.detach()], [settled], steps=100)
    one = rg.Anderson(delay=5)
    state = net.steady_state(b, solver=one, throw=False)
    other = plain(lambda: net.steady_state(b, solver=one, throw=False))
    for found in (state, other):
        left = found.status == rg.Status.MAX_STEPS
        assert (left | found.converged).all()
        close([found.x.detach()[~left]], [settled[~left]], steps=100)
        assert (found.residual[left] > 1e-6).all()
        residual = (net.step(found.x, b) - found.x).norm(dim=-1) / found.x.norm(dim=-1)
        close([found.residual], [residual.detach()], steps=100)


def test_nothing_is_small_beside_what_overflows(monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    M = torch.rand(100, 100).double()
    net = rg.Network((1.2 * M / M.sum(1, keepdim=True)).to_sparse(), f="relu", b=torch.ones(100).double())
    x0 = torch.full((100,), 2e153, dtype=torch.float64)
    assert int(net.steady_state(x0=x0, solver=rg.Anderson(), throw=False).status) == rg.Status.DIVERGED


def test_a_kernel_leaves_torchs_threads_alone():
    code = """if 1:
    import torch, retrograde as rg
    torch.set_num_threads(1)
    net = rg.Network((torch.rand(50, 50) / 50).to_sparse(), b=False)
    rg.recurrent_backpropagation(net, torch.zeros(2, 50), torch.ones(2, 50))
    assert torch.get_num_threads() == 1
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_anderson_in_a_kernel_tells_what_failed(monkeypatch):
    monkeypatch.setattr(choice, "LONE", 1)
    net = one_slow_mode(300, "identity", torch.float64)
    few = net.steady_state(solver=rg.Anderson(max_steps=3), throw=False)
    assert few.status.item() == rg.Status.MAX_STEPS and int(few.steps) == 3
    W = net.W.dense().detach()
    x, b = few.x.detach(), net.b.detach()
    assert float(few.residual) == pytest.approx(float((W @ x + b - x).norm() / x.norm()), rel=1e-6)
    huge = rg.Network((1e200 * W).to_sparse(), f="identity", b=net.b.detach())
    lost = huge.steady_state(solver=rg.Anderson(), throw=False)
    assert not lost.converged
    # A sample that fails, or that is finished early, leaves those beside it alone.
    input = torch.zeros(9, 300, dtype=torch.float64)
    input[3], input[5] = 1e308, -net.b.detach()
    state = net.steady_state(input, solver=rg.Anderson(), throw=False)
    assert state.converged.tolist() == [k != 3 for k in range(9)]
    assert int(state.steps[5]) == 0
    assert torch.equal(state.x[0], state.x[8])
