"""Eigenvalues, modes, margins and their gradients, each against dense linear algebra or differences."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import assert_close, gradient, slopes
from problems import DTYPE, NONLINEARITIES, STRUCTURES, each_structure, inputs_of_f, manufactured, not_normal, randn
from torch import nn

import retrograde as rg
from retrograde.spectrum import eigen, eigenvalues, extremes, leading_modes

NUMBERS = ("margin", "margin_discrete", "margin_continuous", "spectral_radius", "numerical_abscissa", "distance")


def network(W, f="tanh", leak=None, seed=1, batch=3):
    """A network, steady states of it, and their input."""
    net = rg.Network(W, f=f, b=False, leak=leak).double()
    x, b = manufactured(net.W, net.f, batch, seed=seed)
    return net, x, b


def jacobians(net, x, b):
    """DW, (samples, n, n), as numpy sees it."""
    return (slopes(net.W, net.f, x, b)[..., None] * net.W.dense().detach()).numpy()


@pytest.fixture
def by_products(monkeypatch):
    """Arnoldi's method for every network, however small."""
    monkeypatch.setattr(extremes, "SMALL", 0)
    monkeypatch.setattr(extremes, "TINY", 0)


# --- against dense linear algebra


@each_structure
def test_everything_is_what_dense_linear_algebra_says(structure):
    net, x, b = network(STRUCTURES[structure](), leak=0.3)
    found = rg.stability(net.requires_grad_(False), x, k=4)
    assert found.eigenvalues.shape == (3, 4) and found.modes.right.shape == (3, 4, 12)
    for i, M in enumerate(jacobians(net, x, b)):
        values = np.linalg.eigvals(M)
        own = np.linalg.eigvals(0.7 * np.eye(12) + 0.3 * M)
        wanted = {
            "spectral_radius": np.abs(values).max(),
            "margin_discrete": 1 - np.abs(values).max(),
            "margin_continuous": 1 - values.real.max(),
            "margin": 1 - np.abs(own).max(),
            "numerical_abscissa": np.linalg.eigvalsh((M + M.T) / 2 - np.eye(12)).max(),
            "distance": np.linalg.svd(np.eye(12) - M, compute_uv=False).min(),
        }
        for name, value in wanted.items():
            assert getattr(found, name)[i].item() == pytest.approx(value, rel=1e-10), name
        largest = np.sort(np.abs(values))[::-1][:4]
        assert np.abs(found.eigenvalues[i].abs().numpy() - largest).max() < 1e-10


@each_structure
def test_the_modes_are_those_of_DW_and_of_its_transpose(structure):
    net, x, b = network(STRUCTURES[structure]())
    modes = rg.stability(net, x, k=3).modes
    M = torch.from_numpy(jacobians(net, x, b)).to(torch.complex128)
    assert (modes.right @ M.mT - modes.values[..., None] * modes.right).abs().max() < 1e-12
    assert (modes.left @ M - modes.values[..., None] * modes.left).abs().max() < 1e-12
    assert_close(torch.linalg.vector_norm(modes.right, dim=-1), torch.ones(3, 3, dtype=DTYPE))
    assert (modes.residual < 1e-12).all() and modes.simple.all()


def test_a_complex_leading_pair_is_seen_where_a_rayleigh_quotient_is_not():
    W = torch.tensor([[0.0, -0.9, 0.3], [0.9, 0.0, 0.0], [0.0, 0.0, 0.5]], dtype=DTYPE)
    found = rg.stability(rg.Network(W, f="identity", b=False), torch.zeros(3, dtype=DTYPE))
    assert_close(found.spectral_radius.detach(), torch.tensor(0.9, dtype=DTYPE))
    assert rg.Bifurcation(int(found.near)) is rg.Bifurcation.HOPF
    v = randn(3)
    for _ in range(1000):
        v = W @ v / (W @ v).norm()
    assert abs(float(v @ W @ v)) < 0.5  # what a power iteration would have told


@pytest.mark.parametrize("leading", ["modulus", "real"])
def test_leading_modes_of_any_jacobian(leading):
    key = {"modulus": np.abs, "real": np.real}[leading]
    J = randn(2, 30, 30)
    full = leading_modes(J, 5, by=leading)
    for i in range(2):
        wanted = sorted(key(np.linalg.eigvals(J[i].numpy())))[::-1][:5]
        assert np.abs(key(full.values[i].numpy()) - wanted).max() < 1e-10
        searched = leading_modes(
            lambda v, i=i: J[i] @ v, 5, by=leading, transposed=lambda w, i=i: J[i].T @ w, like=J[0, 0]
        )
        assert np.abs(key(searched.values.numpy()) - wanted).max() < 1e-10
        assert (searched.residual < 1e-10).all()
        assert_close(searched.conditioning, full.conditioning[i], within=1e-6)
    alone = leading_modes(lambda v: J[0] @ v, 2, like=J[0, 0])
    assert alone.left.isnan().all() and not alone.simple.any() and not alone.values.isnan().any()


def test_what_leading_modes_refuses():
    J = randn(30, 30)
    with pytest.raises(ValueError, match="k: expected at least 1"):
        leading_modes(J, 0)
    with pytest.raises(ValueError, match="like: expected a vector"):
        leading_modes(lambda v: J @ v, 2)
    with pytest.raises(ValueError, match="k: expected at most 26"):
        leading_modes(lambda v: J @ v, 27, like=J[0])
    assert leading_modes(J, 99).values.shape == (30,)


@pytest.mark.parametrize("structure", ["Dense", "Sparse", "LowRank", "Convolution on a ring", "Sum"])
@pytest.mark.parametrize("leak", [None, 0.2])
def test_arnoldi_is_the_decomposition(structure, leak, monkeypatch):
    net, x, _ = network(STRUCTURES[structure](), leak=leak, batch=2)
    dense = rg.stability(net, x, k=2)
    monkeypatch.setattr(extremes, "SMALL", 0)
    monkeypatch.setattr(extremes, "TINY", 0)
    found = rg.stability(net, x, k=2)
    for name in ("margin", "margin_discrete", "margin_continuous", "numerical_abscissa"):
        assert_close(getattr(found, name), getattr(dense, name), within=1e-9)
    assert_close(found.eigenvalues.abs(), dense.eigenvalues.abs(), within=1e-9)
    assert found.distance is None and (found.near == dense.near).all()


def test_arnoldi_on_what_has_no_spectrum_to_speak_of(by_products):
    W = rg.Sparse.from_edges(range(19), range(1, 20), torch.ones(19, dtype=DTYPE), 20)  # a chain: nilpotent
    dead = torch.zeros(20, dtype=DTYPE)
    found = rg.stability(rg.Network(W, f="relu", b=False), dead)  # D = 0
    assert found.margin == 1 and found.numerical_abscissa == -1
    chain = rg.stability(rg.Network(W, f="identity", b=False), dead)
    assert not chain.modes.simple.any()  # and says that it could not tell where they are


def test_a_ring_on_which_arnoldi_fails_is_decomposed_or_refused(by_products, monkeypatch):
    monkeypatch.setattr(eigen, "_RESTARTS", 2)
    n = 300
    ring = rg.Sparse.from_edges(range(n), [*range(1, n), 0], torch.full((n,), 0.9, dtype=DTYPE), n)
    x = torch.zeros(n, dtype=DTYPE)
    with pytest.raises(rg.ConvergenceError, match="Arnoldi's method found too few of 8"):
        rg.stability(rg.Network(ring, f="identity"), x)
    with monkeypatch.context() as small:
        small.setattr(extremes, "SMALL", n)
        found = rg.stability(rg.Network(ring, f="identity"), x)
        assert [found.spectral_radius.item(), found.rightmost.real.item()] == pytest.approx([0.9, 0.9])
        assert rg.verdict(rg.Network(ring, f="identity"), x).margin.item() == pytest.approx(0.1)
    found = rg.stability(rg.Network(ring.dense().detach(), f="identity"), x)
    assert found.spectral_radius.item() == pytest.approx(0.9)
    both = torch.stack([torch.ones(n), torch.zeros(n)]).double()  # all on, and all off, where it does not fail
    found = rg.stability(rg.Network(ring.dense().detach(), f="relu"), both, k=1)
    assert found.margin.tolist() == pytest.approx([0.1, 1.0]) and found.distance is None


@pytest.mark.parametrize("weight", [0.9, 3.0])
def test_a_long_chain_has_no_eigenvalue_but_zero(weight):
    n = 200  # products alone would find some 80 % of the weight
    chain = rg.Sparse.from_edges(range(n - 1), range(1, n), torch.full((n - 1,), weight, dtype=DTYPE), n)
    found = rg.stability(rg.Network(chain, f="identity"), torch.zeros(n, dtype=DTYPE))
    assert found.spectral_radius == 0 and found.stable and found.stable_continuous
    wanted = np.linalg.eigvalsh((chain.dense() + chain.dense().T).detach().numpy() / 2).max() - 1
    assert found.numerical_abscissa.item() == pytest.approx(wanted)


def test_components_one_after_another_have_the_eigenvalues_and_gradients_of_the_whole(by_products):
    M = torch.zeros(40, 40, dtype=DTYPE)
    M[:15, :15], M[15:30, 15:30], M[30:, :30] = not_normal(15), 0.8 * not_normal(15, seed=1), randn(10, 30)
    M[15:30, :15] = 3 * randn(15, 15, seed=2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    M = M[order][:, order]
    x = 0.3 * randn(40)
    sparse, dense = rg.Network(M.to_sparse_csr()), rg.Network(M)
    leading = rg.stability(sparse, x, k=1)
    leading.margin.backward()
    wanted = torch.linalg.eigvals((1 - x * x)[:, None] * dense.W.dense())
    (1 - wanted.abs().max()).backward()
    assert leading.margin.item() == pytest.approx(1 - wanted.abs().max().item())
    post, pre = sparse.W.edges
    assert_close(sparse.W.weight.grad, dense.W.weight.grad[post, pre], within=1e-9)


def test_half_precision_is_computed_in_full():
    net = rg.Network(not_normal(6).bfloat16(), leak=0.5)
    state = net.steady_state(randn(2, 6).bfloat16(), solver=rg.FixedPoint())
    assert state.verdict.stable.all() and state.verdict.margin.dtype == torch.float32
    found = rg.stability(net, state.x)
    assert found.margin.dtype == torch.float32 and found.eigenvalues.dtype == torch.complex64
    found.margin.sum().backward()
    assert net.W.weight.grad.dtype == torch.bfloat16


def test_a_large_sparse_network_never_makes_a_matrix(monkeypatch):
    n = 1500
    ends = torch.randint(n, (2, 3 * n), generator=torch.Generator().manual_seed(0))
    net = rg.Network(rg.Sparse.from_edges(*ends, (0.3 * randn(3 * n).abs()).float(), n), b=False)
    M = net.W.dense().detach().double()
    monkeypatch.setattr(rg.Connectivity, "dense", None)
    found = rg.stability(net, torch.zeros(n), k=1)
    found.margin.backward()
    assert net.W.weight.grad.isfinite().all() and net.W.weight.grad.abs().sum() > 0
    assert found.margin.dtype == torch.float32 and found.distance is None
    v = torch.ones(n, dtype=DTYPE)  # all weights are positive: plain powers and their growth are bounds (Collatz)
    for _ in range(200):
        v = v + M @ v
        v /= v.max()
    growth = (M @ v / v)[v > 1e-9]
    assert found.spectral_radius.item() == pytest.approx(float(growth[v[v > 1e-9].argmax()]), rel=1e-3)


# --- what it says of stability


def test_discrete_and_continuous_time_and_the_leak_between_them():
    W = torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=DTYPE)  # ± 2i
    x = torch.zeros(2, dtype=DTYPE)
    for leak, stable_ in ((None, False), (0.5, False), (0.3, True)):  # |1 - a ± 2ia| < 1 for a < 0.4
        found = rg.stability(rg.Network(W, b=False, leak=leak), x)
        assert not found.stable_discrete and found.stable_continuous and bool(found.stable) is stable_
        if leak:
            assert found.margin.item() == pytest.approx(1 - abs(1 - leak + 2j * leak))
    leaks = torch.tensor([0.3, 0.2], dtype=DTYPE)
    found = rg.stability(rg.Network(W, b=False, leak=leaks), x)
    M = torch.diag(1 - leaks) + leaks[:, None] * W
    assert found.margin.item() == pytest.approx(1 - np.abs(np.linalg.eigvals(M.numpy())).max())


@pytest.mark.parametrize(("weight", "bifurcation"), [(0.9, "PITCHFORK"), (-0.9, "FLIP")])
def test_which_bifurcation_is_near(weight, bifurcation):
    found = rg.stability(rg.Network(torch.tensor([[weight]])), torch.zeros(1))
    assert rg.Bifurcation(int(found.near)).name == bifurcation and rg.Bifurcation[bifurcation].message
    assert found.margin.item() == pytest.approx(0.1, rel=1e-5)


def near(net, x, input=None):
    return [rg.Bifurcation(each).name for each in rg.stability(net, x, input=input).near.flatten().tolist()]


@pytest.mark.parametrize("leak", [None, 0.3])
@pytest.mark.parametrize("f", [rg.Tanh(), rg.Pointwise(torch.tanh)], ids=["from x", "from u"])
def test_a_fold_is_told_from_a_pitchfork(f, leak):
    # x = tanh(wx): at w = 1 the state 0 splits into three. x = tanh(2x + t): at t = T, x = -√½, two meet.
    b = torch.zeros(1, dtype=DTYPE)
    for w in (0.99, 1.0, 1.01):
        assert near(rg.Network(torch.tensor([[w]], dtype=DTYPE), f, False, leak), b, b) == ["PITCHFORK"]
    for outer in (0.05, -0.1):
        x = torch.tensor([outer], dtype=DTYPE)
        assert near(rg.Network((torch.atanh(x) / x)[None], f, False, leak), x, b) == ["PITCHFORK"]
    fold = rg.Network(torch.tensor([[2.0]], dtype=DTYPE), f, False, leak)
    x = -math.sqrt(0.5) + torch.tensor([[-0.003], [0.0], [0.003]], dtype=DTYPE)
    assert near(fold, x, torch.atanh(x) - 2 * x) == ["FOLD"] * 3


def test_a_symmetry_between_neurons_makes_a_pitchfork_and_a_broken_one_a_fold():
    # Two that inhibit each other, x = sigmoid(b - w x'): both at 1/2 where b = w/2; λ = w/4 of their difference.
    w = 3.97
    W = torch.tensor([[0, -w], [-w, 0]], dtype=DTYPE)
    even = torch.full((2,), 0.5, dtype=DTYPE)
    for x, told in ((even, "PITCHFORK"), (even + torch.tensor([-0.15, 0.05], dtype=DTYPE), "FOLD")):
        net = rg.Network(1.05 * W if told == "FOLD" else W, "sigmoid", False)
        assert near(net, x, net.input_for(x)) == [told]
    assert near(rg.Network(torch.tensor([[0.995]]), "identity", False), torch.zeros(1)) == ["FOLD"]
    assert near(rg.Network(torch.tensor([[0.995]]), "relu", False), torch.ones(1)) == ["FOLD"]


@pytest.mark.parametrize("f", NONLINEARITIES.values(), ids=NONLINEARITIES.keys())
def test_perturbations_grow_as_the_multiplier_says(f):
    net = rg.Network(1.5 * not_normal(8, seed=3), f=f, b=False, leak=0.7)
    u = inputs_of_f(8)
    x = f(u)
    b = (u - net.W @ x).detach()
    found = rg.stability(net, x, input=b)
    v = found.direction.real.detach()
    h = 1e-6 * v
    moved = (net.recurrence.advance(x + h, b) - net.recurrence.advance(x - h, b)) / 2e-6
    assert_close(moved.detach(), (found.multiplier * found.direction).real.detach(), within=1e-5)


# --- gradients

# Of a central difference of sixth order. An eigenvalue is analytic as far as to the next one, and no further, so the
# step is smaller than that of the helpers, and rounding is larger.
STEP, ALLOWED = 1e-4, 1e-9


def assert_gradient(R, tensors, gradients):
    """The derivative along a random direction and along the gradient itself."""
    size = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    random = [randn(*t.shape, seed=i) for i, t in enumerate(tensors)]
    length = math.sqrt(sum(float(d.square().sum()) for d in random))
    for directions in ([d / length for d in random], [g / size for g in gradients]):

        def moved(k, directions=directions):
            return R(*(t.detach() + k * STEP * d for t, d in zip(tensors, directions, strict=True)))

        with torch.no_grad():
            slope = sum(c * (moved(k) - moved(-k)) for k, c in ((1, 45), (2, -9), (3, 1))) / (60 * STEP)
        told = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        assert abs(float(told - slope)) <= ALLOWED * size


def told(net, x, b, name):
    number = getattr(rg.stability(net, x, input=b), name)
    return (number * torch.linspace(1, 2, len(number), dtype=number.dtype)).sum()


@pytest.mark.parametrize("name", NUMBERS)
@each_structure
def test_the_gradient_in_the_weights_and_the_state(structure, name):
    W = STRUCTURES[structure]()

    def R(x, leak, *weights):
        equations = rg.Recurrence(W.bind(*weights), rg.Tanh(), leak)
        return told(equations, x, None, name)

    tensors = [manufactured(W, rg.Tanh(), 2)[0], torch.tensor([0.4], dtype=DTYPE), *W.weights]
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    found = torch.autograd.grad(R(*leaves), leaves, materialize_grads=True, allow_unused=True)
    assert_gradient(R, tensors, found)


@pytest.mark.parametrize("f", ["tanh", "sigmoid", "softplus", "sin"])
def test_a_margin_as_a_reward_is_recurrent_backpropagation(f):
    f = NONLINEARITIES[f]

    def R(W, b):
        state = rg.steady_state(W, b, f)
        net = rg.Recurrence(rg.connectivity.as_operator(W), f)
        return told(net, state.x, b, "margin") + told(net, state.x, b, "distance")

    tensors = [not_normal(7), manufactured(rg.Dense(not_normal(7)), f, 3)[1]]
    assert_gradient(R, tensors, gradient(R, tensors))


@pytest.mark.parametrize("name", ["margin", "margin_continuous", "numerical_abscissa"])
def test_the_gradient_is_the_same_by_products(name, by_products):
    W = STRUCTURES["Sparse"]()

    def R(x, weight):
        return told(rg.Recurrence(W.bind(weight), rg.Tanh(), 0.5), x, None, name)

    tensors = [manufactured(W, rg.Tanh(), 2)[0], W.weight]
    assert_gradient(R, tensors, gradient(R, tensors))


@pytest.mark.parametrize(
    "W",
    [torch.diag(torch.tensor([0.8, 0.8, 0.1])), torch.tensor([[0.8, 1.0, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 0.1]])],
    ids=["twice", "defective"],
)
def test_an_eigenvalue_that_is_not_simple_has_no_gradient_and_says_so(W):
    S = randn(3, 3)
    W = S @ W.double() @ torch.linalg.inv(S)
    net = rg.Network(W, f="identity", b=False)
    found = rg.stability(net, torch.zeros(3, dtype=DTYPE))
    assert found.modes.simple.tolist() == [False, False, True]
    assert abs(found.spectral_radius.item() - 0.8) < 1e-6
    with pytest.raises(rg.ConvergenceError, match="have no derivative") as raised:
        found.margin.backward()
    assert abs(raised.value.result.abs().item() - 0.8) < 1e-6
    found = rg.stability(net, torch.zeros(3, dtype=DTYPE))
    found.eigenvalues[2].abs().backward()  # the simple one has its own
    assert net.W.weight.grad.isfinite().all() and net.W.weight.grad.abs().sum() > 0
    net.zero_grad()
    (0 * rg.stability(net, torch.zeros(3, dtype=DTYPE)).margin).backward()  # a hinge that is off asks for none
    assert (net.W.weight.grad == 0).all()


@pytest.mark.parametrize("name", NUMBERS)
@each_structure
def test_the_second_derivative_in_the_weights_and_the_state(structure, name):
    W = STRUCTURES[structure]()

    def R(x, leak, *weights):
        return told(rg.Recurrence(W.bind(*weights), rg.Tanh(), leak), x, None, name).square()

    tensors = [manufactured(W, rg.Tanh(), 2)[0], torch.tensor([0.4], dtype=DTYPE), *W.weights]

    def slope(*tensors):
        leaves = [t if t.requires_grad else t.detach().requires_grad_() for t in tensors]
        found = torch.autograd.grad(R(*leaves), leaves, create_graph=True, materialize_grads=True, allow_unused=True)
        return sum((g * randn(*g.shape, seed=i)).sum() for i, g in enumerate(found))

    def value(*tensors):
        with torch.enable_grad():
            return slope(*tensors).detach()

    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    found = torch.autograd.grad(slope(*leaves), leaves, materialize_grads=True, allow_unused=True)
    assert_gradient(value, tensors, found)


def test_a_derivative_of_a_number_that_is_zero_is_seen():
    W = torch.diag(torch.tensor([1.0, 0.3, 0.1], dtype=DTYPE)).requires_grad_()  # a margin of 0: its square is flat
    R = rg.stability(rg.Recurrence(rg.connectivity.as_operator(W), rg.Identity()), torch.zeros(3).double())
    (d,) = torch.autograd.grad(R.margin.square(), W, create_graph=True)
    (again,) = torch.autograd.grad(d[0, 0], W)
    assert d[0, 0] == 0 and again[0, 0].item() == pytest.approx(2)


def test_the_hessian_of_a_margin_through_the_steady_state():
    net = rg.Network(not_normal(5)).double()

    def R(input, W=None):
        W = net.W.weight if W is None else W
        x = rg.steady_state(W, input).x
        return rg.stability(rg.Recurrence(rg.connectivity.as_operator(W), rg.Tanh()), x).margin

    input = randn(5)
    told = torch.autograd.functional.hessian(R, input)
    for i, direction in enumerate(torch.eye(5, dtype=DTYPE)):

        def slope(z, i=i):
            with torch.enable_grad():
                return gradient(R, [z])[0][i]

        assert_gradient(slope, [input], [told[i]])
        _, product = torch.autograd.functional.hvp(R, input, direction)
        assert_close(product, told[i], within=ALLOWED)
    third = torch.autograd.functional.hessian(lambda z: gradient_of(R, z)[0], input)
    with torch.no_grad():
        moved = [torch.autograd.functional.hessian(R, input + k * STEP * input)[0] for k in (1, -1)]
    assert_close(third @ input, (moved[0] - moved[1]) / (2 * STEP), within=1e-5)


def gradient_of(R, z):
    return torch.autograd.grad(R(z), z, create_graph=True)[0]


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("name", ["margin", "margin_continuous", "numerical_abscissa", "spectral_radius"])
def test_a_second_derivative_by_products_is_refused_by_every_route(name, by_products):
    net = rg.Network(STRUCTURES["Sparse"](), b=False)

    def R(x):
        return getattr(rg.stability(net, x), name)

    x = randn(12).requires_grad_()
    for route in (
        lambda: R(x).backward(create_graph=True),
        lambda: torch.autograd.grad(R(x), x, create_graph=True),
        lambda: torch.autograd.grad(R(x), list(net.parameters()), create_graph=True),
        lambda: torch.autograd.functional.hessian(R, x.detach()),
        lambda: torch.autograd.functional.hvp(R, x.detach(), x.detach()),
    ):
        with pytest.raises(NotImplementedError, match="a second derivative is known where DW is decomposed"):
            route()
    R(x).backward()


def test_a_margin_can_be_kept_by_training():
    net = rg.Network(nn.Parameter(0.4 * randn(10, 10, seed=4)))
    net = net.double()
    input = 0.1 * randn(4, 10)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)

    def margin():
        return rg.stability(net, net.steady_state(input).x).margin

    before = margin().min()
    for _ in range(30):
        optimiser.zero_grad()
        (0.3 - margin()).clamp(min=0).sum().backward()
        optimiser.step()
    assert before < 0.1 and margin().min() > 0.29


def test_a_transform_of_torch_func_is_refused_in_our_words():
    net, x, _ = network(not_normal(5))

    def R(x):
        return rg.stability(net, x).margin

    for route in (
        lambda: torch.func.grad(R)(x[0]),
        lambda: torch.func.vmap(R)(x),
        lambda: torch.func.jvp(R, (x[0],), (x[1],)),
    ):
        with pytest.raises(NotImplementedError, match="stability: expected no transform of torch"):
            route()


# --- shapes, dtypes, and what is refused


def test_shapes_batches_and_dtypes():
    net, x, _ = network(not_normal(6), batch=6)
    found = rg.stability(net, x.reshape(2, 3, 6), k=2)
    assert found.eigenvalues.shape == (2, 3, 2) and found.margin.shape == (2, 3) and found.direction.shape == (2, 3, 6)
    alone = rg.stability(net, x[4], k=99)
    assert alone.eigenvalues.shape == (6,) and alone.margin.shape == ()
    assert torch.equal(alone.margin, found.margin[1, 1]) and torch.equal(alone.distance, found.distance[1, 1])
    none = rg.stability(net, x[:0])
    assert none.margin.shape == (0,) and str(none) == "no samples"
    assert str(found).startswith("6 of 6 stable, margin at least 0.")
    single = rg.stability(rg.Network(net.W.weight.float(), b=False), x.float())
    assert single.margin.dtype == torch.float32 and single.eigenvalues.dtype == torch.complex64
    assert_close(single.margin.double(), found.margin.reshape(-1), within=1e-5)
    one = rg.stability(rg.Network(torch.tensor([[0.5]])), torch.zeros(1))
    assert one.distance == 0.5 and one.numerical_abscissa == -0.5


def test_a_samples_answer_does_not_depend_on_the_others(by_products):
    net, x, _ = network(STRUCTURES["Sparse"]())
    together, alone = rg.stability(net, x, k=2), rg.stability(net, x[1], k=2)
    assert torch.equal(together.eigenvalues[1], alone.eigenvalues)


def test_bad_input_is_named():
    net, x, _ = network(not_normal(5))
    for wrong, error, match in (
        (x[:, :4], ValueError, "x: expected shape"),
        (x.float(), TypeError, "x: expected torch.float64"),
        (x * math.nan, ValueError, "x: expected finite"),
    ):
        with pytest.raises(error, match=match):
            rg.stability(net, wrong)
    with pytest.raises(TypeError, match="net: expected a Network"):
        rg.stability(net.W, x)
    with pytest.raises(TypeError, match="k: expected an integer"):
        rg.stability(net, x, k=2.0)
    with pytest.raises(ValueError, match="k: expected at least 1"):
        rg.stability(net, x, k=0)
    with pytest.raises(ValueError, match="input: expected the input of the state"):
        rg.stability(rg.Network(not_normal(5), f=rg.Pointwise(torch.sin)), x)


def test_eigenvalues_of_all_are_those_of_numpy():
    W, D = randn(5, 5), torch.rand(3, 5, dtype=DTYPE)
    found = eigenvalues(rg.Dense(W), D)
    for d, values in zip(D, found, strict=True):
        exact = np.linalg.eigvals(torch.diag(d).numpy() @ W.numpy())
        assert np.abs(np.sort_complex(values.numpy()) - np.sort_complex(exact)).max() < 1e-12


def test_an_input_that_does_not_fit_the_states_is_refused():
    with pytest.raises(ValueError, match=r"input: expected shape \(5,\) or one that broadcasts to it, got \(3, 5\)"):
        rg.stability(rg.Network(5), torch.zeros(5), input=torch.randn(3, 5))


# --- the stability radius


def least_on_the_boundary(J, continuous):
    """The least singular value of zI - J, looked for at very many points."""
    t = np.linspace(0, 3 * np.linalg.norm(J, 2) if continuous else np.pi, 20001)
    z = 1 + 1j * t if continuous else np.exp(1j * t)
    return np.linalg.svd(z[:, None, None] * np.eye(len(J)) - J, compute_uv=False)[:, -1].min()


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("leak", [None, 0.3])
@pytest.mark.parametrize("norm", [0.9, 2.5])
def test_the_radius_is_the_least_on_the_boundary_and_at_most_the_margin(norm, leak, continuous):
    net, x, b = network(not_normal(6, norm), leak=leak, batch=8)
    found = rg.stability(net, x)
    radius = found.radius(continuous)
    stable, margin = (found.stable_continuous, found.margin_continuous) if continuous else (found.stable, found.margin)
    assert radius.shape == (8,) and stable.any() and ((radius > 0) == stable).all()
    assert (radius <= margin.clamp(min=0) * (1 + 1e-9)).all()
    for i, J in enumerate(jacobians(net, x, b)):
        J = J if leak is None or continuous else (1 - leak) * np.eye(6) + leak * J
        if stable[i]:
            assert radius[i].item() == pytest.approx(least_on_the_boundary(J, continuous), rel=1e-4)


def normal_matrix(pairs):
    """A normal matrix with the eigenvalues a ± ib of these pairs."""
    J = np.kron(np.diag([a for a, _ in pairs]), np.eye(2)) + np.kron(np.diag([b for _, b in pairs]), [[0, -1], [1, 0]])
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal(J.shape))[0]
    return torch.from_numpy(Q @ J @ Q.T)


@pytest.mark.parametrize("angle", [0.0, 1.2345, 2.0, math.pi])
@pytest.mark.parametrize("continuous", [False, True])
def test_a_radius_at_a_narrow_place_of_the_boundary_is_found(angle, continuous):
    # Others are near all along it, and one is a thousand times nearer.
    others = np.linspace(0, math.pi, 19)
    if continuous:
        pairs = [(0.9, 10 * each) for each in others] + [(0.9999, 10 * angle)]
    else:
        pairs = [(r * math.cos(a), r * math.sin(a)) for r, a in [*((0.9, each) for each in others), (0.9999, angle)]]
    net = rg.Network(normal_matrix(pairs), f="identity", b=False)
    assert rg.stability(net, torch.zeros(40, dtype=DTYPE)).radius(continuous).item() == pytest.approx(1e-4, rel=1e-6)


def hidden(continuous):
    """Of many eigenvalues that are near to the boundary none tells where σ is least: a chain of fainter ones does."""
    near = [(0.9, 10 * a) if continuous else (0.9 * math.cos(a), 0.9 * math.sin(a)) for a in np.linspace(0.3, 0.7, 6)]
    a, b = (0.5, 20.0) if continuous else (0.5 * math.cos(2), 0.5 * math.sin(2))
    chain = np.kron(np.eye(4), [[a, -b], [b, a]]) + np.kron(np.diag([0.8] * 3, 1), np.eye(2))
    return scipy.linalg.block_diag(normal_matrix(near).numpy(), chain)


@pytest.mark.parametrize("continuous", [False, True])
def test_a_radius_far_from_the_leading_eigenvalues_is_found(continuous):
    J = hidden(continuous)
    net = rg.Network(torch.from_numpy(J), f="identity", b=False)
    found = rg.stability(net, torch.zeros(len(J), dtype=DTYPE)).radius(continuous).item()
    assert found == pytest.approx(least_on_the_boundary(J, continuous), rel=1e-3) and found < 0.08


@pytest.mark.parametrize("continuous", [False, True])
def test_no_smaller_change_makes_it_unstable_and_one_of_this_size_does(continuous):
    J = not_normal(8, 1.5).numpy()
    J = J * 0.9 / np.abs(np.linalg.eigvals(J)).max()
    found = rg.stability(rg.Network(torch.from_numpy(J), f="identity", b=False), torch.zeros(8, dtype=DTYPE))
    r, random = found.radius(continuous).item(), np.random.default_rng(0)

    def beyond(E):
        values = np.linalg.eigvals(J + E)
        return (values.real if continuous else np.abs(values)).max() - 1

    for _ in range(200):
        u, v = random.standard_normal((2, 8, 2)) @ [1, 1j]
        assert beyond(0.999 * r * np.outer(u, v) / np.linalg.norm(u) / np.linalg.norm(v)) < 0
    t = np.linspace(-3 if continuous else -np.pi, 3 if continuous else np.pi, 40001)
    z = 1 + 1j * t if continuous else np.exp(1j * t)
    s = np.linalg.svd(z[:, None, None] * np.eye(8) - J, compute_uv=False)[:, -1]
    U, _, Vh = np.linalg.svd(z[s.argmin()] * np.eye(8) - J)
    assert beyond(1.001 * r * np.outer(U[:, -1], Vh[-1])) > 0


def turning():
    """A W whose σ is least where z is complex."""
    return 0.5 * normal_matrix([(0.3, 1.2), (0.1, 0.4)]) + not_normal(4, 0.4)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("structure", ["Dense", "Sparse", "LowRank", "turning"])
def test_the_gradient_of_the_radius(structure, continuous):
    net, x, _ = network(turning() if structure == "turning" else STRUCTURES[structure](), leak=0.4, batch=2)
    g = torch.tensor([0.7, -1.3], dtype=DTYPE)

    def R(x, leak, *weights):
        bound = rg.Recurrence(net.W.bind(*weights), net.f, leak)
        return (g * rg.stability(bound, x).radius(continuous)).sum()

    given = [x, torch.tensor(0.4, dtype=DTYPE), *(weight.detach() for weight in net.W.weights)]
    given = [each.clone().requires_grad_() for each in given]
    assert torch.autograd.gradcheck(R, given, eps=1e-5, atol=1e-6, rtol=1e-5)


def test_a_radius_of_an_unstable_state_is_zero_and_what_is_not_known_is_refused():
    W = torch.tensor([[0.2, -0.9], [0.9, 0.2]])
    stays, leaves = rg.Network(W, f="identity"), rg.Network(2 * W, f="identity")
    found, beyond = rg.stability(stays, torch.zeros(3, 2)), rg.stability(leaves, torch.zeros(3, 2))
    assert found.radius().dtype == torch.float32 and (found.radius() > 0.05).all()
    assert (beyond.radius() == 0).all() and (beyond.radius(continuous=True) > 0.5).all()
    assert (torch.autograd.grad(beyond.radius().sum(), leaves.W.weight)[0] == 0).all()
    with pytest.raises(NotImplementedError, match="differentiated once"):
        torch.autograd.grad(found.radius().sum(), stays.W.weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="at most 512 neurons, got 513"):
        rg.stability(rg.Network(0.01 * torch.eye(513)), torch.zeros(513), k=1).radius()
    assert rg.stability(rg.Network(2), torch.zeros(0, 2)).radius().shape == (0,)


@pytest.mark.parametrize("continuous", [False, True])
def test_a_radius_that_is_the_same_all_along_the_boundary(continuous):
    still = rg.stability(rg.Network(torch.zeros(30, 30, dtype=DTYPE), f="identity", b=False), torch.zeros(30).double())
    assert still.radius(continuous).item() == pytest.approx(1)
    Q = torch.linalg.qr(randn(60, 60)).Q
    turning = rg.stability(rg.Network(0.99 * Q, f="identity", b=False), torch.zeros(60, dtype=DTYPE))
    wanted = (turning.margin_continuous if continuous else turning.margin).item()
    assert turning.radius(continuous).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("weight", [0.5, 0.9, 3.0])
def test_the_radius_of_a_chain_tells_what_its_eigenvalues_do_not(weight):
    n = 80  # stable, by a margin of 1: and of weight 3 all but unstable
    chain = rg.Sparse.from_edges(range(n - 1), range(1, n), torch.full((n - 1,), weight, dtype=DTYPE), n)
    found = rg.stability(rg.Network(chain, f="identity", b=False), torch.zeros(n, dtype=DTYPE))
    J = chain.dense().detach().numpy()
    least = np.linalg.svd(np.eye(n) - J, compute_uv=False)[-1]  # at every z of the circle the same
    assert found.margin == 1 and found.radius().item() == pytest.approx(least, rel=1e-5, abs=1e-14)


def test_a_radius_asked_for_after_the_weights_have_moved_is_refused():
    net, x, _ = network(STRUCTURES["Dense"]())
    found = rg.stability(net, x)
    with torch.no_grad():
        net.W.weight.mul_(0.5)
    with pytest.raises(RuntimeError, match="overwritten since"):
        found.radius()
