"""The lecture, row by row. Each test fails where its equation is wrong."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    assert_all_close,
    assert_close,
    assert_slope_along,
    conditioning,
    dense_adjoint,
    gradient,
    outer_sum,
    slopes,
    through_dense,
)
from problems import (
    DTYPE,
    NONLINEARITIES,
    STRUCTURES,
    Reward,
    bistable,
    each_invertible,
    each_nonlinearity,
    each_structure,
    manufactured,
    manufactured_path,
    not_normal,
    randn,
)

import retrograde as rg

LEAKS = {"no leak": None, "one leak": 0.3, "a leak for each neuron": torch.linspace(0.2, 0.9, 12, dtype=DTYPE)}
each_leak = pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS.keys())


def run(W, f, b, x0, leak=None):
    """x(1), ..., x(T) by the definition, one step after another, with the dense matrix."""
    M, a, x, path = W.dense(), 1.0 if leak is None else leak, x0, []
    for input in b:
        x = (1 - a) * x + a * f(x @ M.T + input)
        path.append(x)
    return torch.stack(path)


# --- part one: steady states


@each_structure
@each_nonlinearity
def test_01_steady_state(structure, f):
    W = STRUCTURES[structure]()
    x, b = manufactured(W, f, 4)
    k = conditioning(W, f, x, b)
    for x0 in (None, randn(4, 12, seed=3), 3 * randn(12, seed=4), x):
        state = rg.Network(W, f=f, b=False).steady_state(b, x0=x0)
        assert state.converged.all()
        assert_close(state.x, x, conditioning=k)
        assert_close(f(state.x @ W.dense().T + b), state.x)
    assert state.steps.tolist() == [0] * 4  # from x itself


@pytest.mark.parametrize(
    "R, dR_dx",
    {
        "one neuron": (lambda x: x[..., 2].sum(), lambda x: F.one_hot(torch.tensor(2), 12).to(x).expand_as(x)),
        "quadratic": (lambda x: -0.5 * (x - 0.3).square().sum(), lambda x: 0.3 - x),
        "product of a sample": (lambda x: (2 + x).prod(-1).sum(), lambda x: (2 + x).prod(-1, keepdim=True) / (2 + x)),
        "log-probability": (lambda x: x.log_softmax(-1)[..., 0].sum(), lambda x: _one_hot_minus_softmax(x)),
        "across the batch": (lambda x: x.sum().square(), lambda x: 2 * x.sum().expand_as(x)),
        "largest": (lambda x: x.amax(-1).sum(), lambda x: F.one_hot(x.argmax(-1), 12).to(x)),
        "constant": (lambda x: (0 * x).sum() + 5, lambda x: torch.zeros_like(x)),
    }.values(),
)
def test_02_any_reward(R, dR_dx):
    W = STRUCTURES["Dense"]()
    x, b = manufactured(W, rg.Tanh(), 3)
    s = dense_adjoint(W, rg.Tanh(), x, b, dR_dx(x))
    k = conditioning(W, rg.Tanh(), x, b)
    dM, db = gradient(lambda M, b: R(rg.steady_state(M, b).x), [W.dense(), b])
    assert_close(db, s, conditioning=k)
    assert_close(dM, outer_sum(s, x), conditioning=k)
    by_hand = rg.recurrent_backpropagation(rg.Network(W, b=False), x, dR_dx(x))
    assert_close(by_hand.s, s, conditioning=k)


def _one_hot_minus_softmax(x):
    return F.one_hot(torch.tensor(0), 12).to(x) - x.softmax(-1)


@each_structure
@each_nonlinearity
def test_03_recurrent_backpropagation(structure, f):
    W = STRUCTURES[structure]()
    x, b = manufactured(W, f, 4)
    R, k = Reward(4, 12), conditioning(W, f, x, b)
    s = dense_adjoint(W, f, x, b, R.gradient(x))
    net = rg.Network(W, f=f, b=False)

    by_hand = rg.recurrent_backpropagation(net, x, R.gradient(x), input=b)
    assert_close(by_hand.s, s, conditioning=k)
    assert_close(by_hand.db, s.sum(0), conditioning=k)
    assert_all_close(by_hand.dW, through_dense(W, outer_sum(s, x)), conditioning=k)

    *dW, db = gradient(lambda *t: R(rg.steady_state(W.bind(*t[:-1]), t[-1], f).x), [*W.weights, b])
    assert_close(db, s, conditioning=k)
    assert_all_close(dW, through_dense(W, outer_sum(s, x)), conditioning=k)


def test_03_recurrent_backpropagation_as_the_lecture_writes_it(lecture):
    W = not_normal(7, norm=0.9)
    x, b = manufactured(rg.Dense(W), rg.Tanh())
    g = randn(7, seed=5)
    s, dW, db = lecture.recurrent_backpropagation(W.numpy(), b.numpy(), x.numpy(), g.numpy())
    found = rg.recurrent_backpropagation(rg.Network(W, b=b), x, g)
    assert_all_close((found.s, found.dW[0], found.db), map(torch.from_numpy, (s, dW, db)), conditioning=10)


@each_structure
def test_04_sensitivity_lemma(structure):
    W, f = STRUCTURES[structure](), rg.Tanh()
    _, b = manufactured(W, f, 2, 3)
    R = Reward(2, 3, 12)

    def reward(*tensors):
        return R(rg.steady_state(W.bind(*tensors[:-1]), tensors[-1], f).x)

    # The right side: dR/db_i x_j, summed over the batch, with dR/db measured by differences, entry by entry.
    x = rg.steady_state(W, b, f).x.detach()
    *dW, db = gradient(reward, [*W.weights, b])
    assert_slope_along(reward, [*W.weights, b], [*dW, db])
    assert_all_close(dW, through_dense(W, outer_sum(db, x)))  # the left side is the right side
    assert_all_close(W.outer(db, x), through_dense(W, outer_sum(db, x)))


def test_05_input_is_unique_though_output_is_not():
    p = bistable()
    net = p.network
    up, middle, down = p.x
    for solver in (rg.FixedPoint(), None):
        assert_close(net.steady_state(x0=p.x0, solver=solver).x, up, conditioning=10)
        assert_close(net.steady_state(x0=-p.x0, solver=solver).x, down, conditioning=10)
    assert_close(net.steady_state(x0=1e-3 * p.x0 + middle, solver=rg.Newton()).x, middle, conditioning=10)
    for x in p.x:  # three outputs, each with the one input: nothing beside the bias
        assert net.input_for(x).abs().max() < 10 * torch.finfo(DTYPE).eps
        assert_close(net.step(x, p.b), x, solved=False)
    assert_close(net.input_for(p.x), torch.stack([net.input_for(x) for x in p.x]), solved=False, within=1)
    x = torch.tanh(randn(5, 2))
    assert_close(net.step(x, net.b + net.input_for(x)), x, solved=False)  # any x will do


@each_invertible
@each_structure
def test_05_input_is_the_inverse_of_the_steady_state(structure, f):
    W = STRUCTURES[structure]()
    x, b = manufactured(W, f, 3)
    bias = randn(12, seed=8)
    found = rg.Network(W, f=f, b=bias).input_for(x)
    assert_close(found, f.inverse(x) - x @ W.dense().T - bias, solved=False)
    on = f.slope_at(b + x @ W.dense().T) > 0  # an off ReLU has many inputs, of which this is one
    assert_close((found + bias)[on], b[on], solved=False, conditioning=10)
    assert_close(f(x @ W.dense().T + found + bias), x, solved=False, conditioning=10)


@each_structure
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "identity"])
def test_06_jacobian(structure, name, lecture):
    W, f = STRUCTURES[structure](), NONLINEARITIES[name]
    x, _ = manufactured(W, f, 2)
    net = rg.Network(W, f=f)
    J = net.jacobian(x)
    for one, at in zip(J, x, strict=True):
        assert_close(one, torch.autograd.functional.jacobian(net.input_for, at), solved=False, conditioning=10)
        assert_close(one, torch.diag(1 / f.slope(at)) - W.dense(), solved=False)
    if name == "tanh":
        oracle = lecture.jacobian(W.dense().detach().numpy(), x[0].numpy())
        assert_close(J[0], torch.from_numpy(oracle), solved=False, conditioning=10)


@each_structure
def test_07_chain_rule(structure):
    W, f = STRUCTURES[structure](), rg.Tanh()
    x, b = manufactured(W, f, 3)
    k = conditioning(W, f, x, b)
    net, g = rg.Network(W, b=False), randn(3, 12, seed=5)
    s = rg.recurrent_backpropagation(net, x, g).s
    J = net.jacobian(x)
    assert_close(torch.einsum("bij,bi->bj", J, s), g, conditioning=k / f.slope(x).min())  # dR/dx from dR/db
    assert_close(torch.linalg.solve(J.mT, g), s, conditioning=k)  # dR/db from dR/dx
    assert_close(s / f.slope(x) - s @ W.dense(), g, conditioning=k / f.slope(x).min())
    assert_close(net.adjoint_step(s, x, g), s)  # s is steady under its own dynamics
    # The tangent: b moves by c, x moves by v = J⁻¹ c, and <g, v> = <s, c>.
    c = randn(3, 12, seed=6)
    v = torch.linalg.solve(J, c)
    assert_close(net.tangent_step(v, x, c), v, conditioning=k)
    assert_close((g * v).sum(), (s * c).sum(), conditioning=k * 10)


# --- part two: trajectories


@each_structure
@each_leak
def test_08_trajectory(structure, leak):
    W, f = STRUCTURES[structure](), rg.Tanh()
    x, x0, b = manufactured_path(W, f, 6, 3, leak=leak)
    net = rg.Network(W, b=False, leak=leak)
    assert_close(net.trajectory(b, x0).x, x, solved=False)
    constant = b[0]
    assert_close(net.trajectory(constant, x0, steps=6).x, run(W, f, constant.expand(6, -1, -1), x0, leak), solved=False)
    shared = b[:, 0]  # one input for all samples, another at each time
    assert_close(net.trajectory(shared, x0).x, run(W, f, shared[:, None].expand_as(b), x0, leak), solved=False)
    assert_close(net.trajectory(b).x, run(W, f, b, torch.zeros_like(x0), leak), solved=False)


@pytest.mark.parametrize("when", [[5], [0], [1, 3], range(6)], ids=["last", "first", "some", "all"])
def test_08_trajectory_with_a_reward_on_any_steps(when):
    W, f = STRUCTURES["Dense"](), rg.Tanh()
    _, x0, b = manufactured_path(W, f, 6, 3)
    R = Reward(len(when), 3, 12)
    found = gradient(lambda M, x0, b: R(rg.trajectory(M, b, x0).x[list(when)]), [W.dense(), x0, b])
    wanted = gradient(lambda M, x0, b: R(run(rg.Dense(M).bind(M), f, b, x0)[list(when)]), [W.dense(), x0, b])
    assert_all_close(found, wanted, solved=False)
    assert all((db == 0).all() for db in found[2][max(when) + 1 :])  # what comes after the reward does not matter to it


@each_structure
@each_leak
def test_09_unfolding(structure, leak):
    net = rg.Network(STRUCTURES[structure](), b=randn(12, seed=2), leak=leak)
    _, x0, input = manufactured_path(net.W, net.f, 5, 3, leak=leak)
    mlp = net.unfold(5)
    assert len(mlp) == 5
    assert all(layer.W is net.W and layer.b is net.b for layer in mlp)
    ours, theirs = dict(net.named_parameters()), dict(mlp.named_parameters())
    assert {id(p) for p in theirs.values()} == {
        id(p) for p in ours.values()
    }  # the same Parameters, nothing beside them

    path = net.trajectory(input, x0)
    assert_close(mlp.activities(x0, input), path.x, solved=False)
    assert_close(mlp(x0, input), path.x[-1], solved=False)
    assert_close(mlp(x0), net.trajectory(x0=x0, steps=5).x[-1], solved=False)

    R = Reward(5, 3, 12)
    parameters = list(net.parameters())
    one = torch.autograd.grad(R(path.x), parameters)
    other = torch.autograd.grad(R(mlp.activities(x0, input)), parameters)
    assert_all_close(one, other, solved=False)


@each_structure
@each_nonlinearity
def test_10_backpropagation_through_time(structure, f):
    W = STRUCTURES[structure]()
    x, x0, b = manufactured_path(W, f, 6, 3)
    net, g = rg.Network(W, f=f, b=False), randn(6, 3, 12, seed=5)
    found = rg.backpropagation_through_time(net, x, x0, g, input=b)

    M, before = W.dense().detach(), torch.cat([x0[None], x[:-1]])
    s, s_next = torch.empty_like(x), torch.zeros_like(x0)
    for t in reversed(range(6)):
        s[t] = s_next = f.slope_at(before[t] @ M.T + b[t]) * (s_next @ M + g[t])
    dM = sum(outer_sum(s[t], before[t]) for t in range(6))
    assert_close(found.s, s, solved=False)
    assert_all_close(found.dW, through_dense(W, dM), solved=False)
    assert_close(found.db, s.sum((0, 1)), solved=False)
    assert_close(found.dx0, s[0] @ M, solved=False)
    assert found.receipt is None and found.dleak is None

    *dW, dx0, db = gradient(
        lambda *t: (g * rg.trajectory(W.bind(*t[:-2]), t[-1], t[-2], f).x).sum(), [*W.weights, x0, b]
    )
    assert_close(db, s, solved=False)
    assert_close(dx0, s[0] @ M, solved=False)
    assert_all_close(dW, through_dense(W, dM), solved=False)


def test_10_backpropagation_through_time_as_the_lecture_writes_it(lecture):
    W = not_normal(7, norm=1.5)
    x, x0, b = manufactured_path(rg.Dense(W), rg.Tanh(), 5)
    g = randn(5, 7, seed=5)
    oracle = lecture.backpropagation_through_time(*(t.numpy() for t in (W, b, x0, x, g)))
    found = rg.backpropagation_through_time(rg.Network(W), x, x0, g)
    assert_all_close((found.s, found.dW[0], found.dx0), map(torch.from_numpy, oracle), solved=False)


@each_structure
@each_invertible
@each_leak
def test_11_input_for_trajectory(structure, f, leak):
    W, bias = STRUCTURES[structure](), randn(12, seed=8)
    x, x0, b = manufactured_path(W, f, 5, 3, leak=leak)
    net = rg.Network(W, f=f, b=bias, leak=leak)
    found = net.input_for_trajectory(x, x0) + bias
    assert_close(rg.trajectory(W, found, x0, f, leak=leak).x, x, solved=False)
    on = f.slope_at(b + torch.cat([x0[None], x[:-1]]) @ W.dense().T) > 0
    assert_close(found[on], b[on], solved=False, conditioning=10)


@each_structure
@each_leak
def test_12_jacobian_trajectory(structure, leak, lecture):
    W, f = STRUCTURES[structure](), rg.Tanh()
    x, x0, _ = manufactured_path(W, f, 4, leak=leak)
    net = rg.Network(W, leak=leak)
    J = net.jacobian_trajectory(x, x0)
    assert J.is_sparse and J.shape == (48, 48)
    wanted = torch.autograd.functional.jacobian(lambda x: net.input_for_trajectory(x, x0), x).reshape(48, 48)
    assert_close(J.to_dense(), wanted, solved=False)
    blocks = J.to_dense().reshape(4, 12, 4, 12).permute(0, 2, 1, 3)
    for t in range(4):
        for u in range(4):
            if u not in (t, t - 1):
                assert not blocks[t, u].any()
        assert not (blocks[t, t] - blocks[t, t].diag().diag()).any()
        if t and leak is None:
            assert_close(blocks[t, t - 1], -W.dense(), solved=False)
    assert J._nnz() <= 4 * 12 + 3 * 12 + 3 * len(W.bind().entries()[2])
    if leak is None:
        oracle = lecture.jacobian_trajectory(W.dense().detach().numpy(), x.numpy(), x0.numpy())
        assert_close(J.to_dense(), torch.from_numpy(oracle), solved=False, conditioning=10)


@each_structure
@each_leak
def test_13_chain_rule_trajectory(structure, leak):
    W, f = STRUCTURES[structure](), rg.Tanh()
    x, x0, b = manufactured_path(W, f, 4, leak=leak)
    net, g = rg.Network(W, b=False, leak=leak), randn(4, 12, seed=5)
    s = rg.backpropagation_through_time(net, x, x0, g).s
    J = net.jacobian_trajectory(x, x0)
    before = torch.cat([x0[None], x[:-1]])
    D = slopes(W, f, before, b)
    flat = 1 / D.min()
    assert_close((J.to_dense().T @ s.flatten()).reshape(4, 12), g, solved=False, conditioning=flat)
    assert_close(torch.linalg.solve(J.to_dense().T, g.flatten()).reshape(4, 12), s, solved=False, conditioning=flat)
    if leak is None:  # dR/dx(t) = D⁻¹(t) s(t) - Wᵀ s(t+1)
        s_next = torch.cat([s[1:], torch.zeros_like(s[:1])])
        assert_close(s / D - s_next @ W.dense(), g, solved=False, conditioning=flat)


@each_structure
@each_nonlinearity
@pytest.mark.parametrize("leak", [torch.tensor(0.3), torch.linspace(0.1, 0.9, 12)], ids=["one", "each"])
def test_14_leak(structure, f, leak):
    W, a = STRUCTURES[structure](), leak.to(DTYPE)
    x, x0, b = manufactured_path(W, f, 5, 3, leak=a)
    R = Reward(5, 3, 12)

    def ours(*t):
        *weights, a, x0, b = t
        return R(rg.trajectory(W.bind(*weights), b, x0, f, leak=a).x)

    def unrolled(*t):
        *weights, a, x0, b = t
        return R(run(W.bind(*weights), f, b, x0, a))

    assert_close(rg.trajectory(W, b, x0, f, leak=a).x, x, solved=False)
    tensors = [*W.weights, a, x0, b]
    found = gradient(ours, tensors)
    assert_all_close(found, gradient(unrolled, tensors), solved=False)
    assert_slope_along(ours, tensors, found)

    by_hand = rg.backpropagation_through_time(rg.Network(W, f=f, b=False, leak=a), x, x0, R.gradient(x), input=b)
    assert_all_close((*by_hand.dW, by_hand.dleak, by_hand.dx0, by_hand.s), found, solved=False)


def test_14_leak_of_one_is_no_leak_and_steady_states_do_not_depend_on_it():
    W = not_normal(12)
    x, x0, b = manufactured_path(rg.Dense(W), rg.Tanh(), 5, 3)
    assert_close(rg.trajectory(W, b, x0, leak=1.0).x, x, solved=False)
    g = randn(3, 12)
    plain, leaky = rg.Network(W, b=False), rg.Network(W, b=False, leak=0.2)
    assert torch.equal(plain(b[0]), leaky(b[0]))
    at = plain(b[0]).detach()
    one, other = (rg.recurrent_backpropagation(net, at, g, input=b[0]).s for net in (plain, leaky))
    assert torch.equal(one, other)
    settled = leaky.trajectory(b[0], steps=400).x[-1]
    assert_close(settled, at, conditioning=10)


def test_14_leak_as_the_lecture_writes_it(lecture):
    W = not_normal(7)
    x, x0, b = manufactured_path(rg.Dense(W), rg.Tanh(), 5, leak=0.3)
    g = randn(5, 7, seed=5)
    oracle = lecture.leaky_backpropagation_through_time(*(t.numpy() for t in (W, b, x0, x, g)), 0.3)
    found = rg.backpropagation_through_time(rg.Network(W, leak=0.3), x, x0, g)
    assert_all_close((found.s, found.dW[0], found.dx0), map(torch.from_numpy, oracle), solved=False, conditioning=10)


@pytest.mark.parametrize("leak", ["one", "each"])
def test_14_leak_is_trained_as_a_parameter(leak):
    a = torch.nn.Parameter(torch.tensor(0.3) if leak == "one" else torch.full((6,), 0.3))
    net = rg.Network(6, leak=a)
    assert any(p is a for p in net.parameters())
    net.trajectory(torch.ones(6), steps=4).x[-1].sum().backward()
    assert a.grad.shape == a.shape and (a.grad != 0).all()


def test_15_gradient_ascent(lecture):
    W, b = (torch.from_numpy(t) for t in lecture.example())
    target, eta = torch.tensor([0.2, 0.4, -0.1], dtype=DTYPE), 0.1
    _, _, oracle = lecture.gradient_ascent(W.numpy(), b.numpy(), target.numpy(), eta)

    net, rewards = rg.Network(W, b=b), []
    for _ in oracle:
        x = net().detach()
        rewards.append(-0.5 * float((x - target).square().sum()))
        found = rg.recurrent_backpropagation(net, x, target - x)
        with torch.no_grad():  # dW = η s xᵀ, db = η s
            net.W.weight += eta * torch.outer(found.s, x)
            net.b += eta * found.s
    assert np.all(np.diff(rewards) > 0)
    assert_close(torch.tensor(rewards, dtype=DTYPE), torch.tensor(oracle, dtype=DTYPE), conditioning=100)


@each_structure
def test_15_gradient_ascent_by_the_by_hand_gradient_in_every_structure(structure):
    net, target = rg.Network(STRUCTURES[structure]()), randn(3, 12, seed=7).tanh()
    input, rewards = randn(3, 12), []
    for _ in range(10):
        x = net(input).detach()
        rewards.append(-0.5 * float((x - target).square().sum()))
        found = rg.recurrent_backpropagation(net, x, target - x, input=input)
        with torch.no_grad():
            for weight, d in zip((*net.W.weights, net.b), (*found.dW, found.db), strict=True):
                weight += 0.01 * d
    assert np.all(np.diff(rewards) > 0)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.AdamW])
@pytest.mark.parametrize("mode", ["steady state", "trajectory"])
def test_15_gradient_ascent_by_any_optimiser(optimiser, mode):
    net, target = rg.Network(not_normal(12), leak=0.5), randn(3, 12, seed=7).tanh()
    input, rewards = randn(3, 12), []
    climb = optimiser(net.parameters(), lr=0.02 if optimiser is torch.optim.SGD else 0.003, maximize=True)
    for _ in range(10):
        climb.zero_grad()
        x = net(input) if mode == "steady state" else net.trajectory(input, steps=4).x[-1]
        reward = -0.5 * (x - target).square().sum()
        reward.backward()
        climb.step()
        rewards.append(float(reward.detach()))
    assert rewards[-1] > rewards[0]
