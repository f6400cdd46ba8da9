"""What stands between an answer and its gradient: the one autograd Function, and the gradient by hand."""

import copy

import pytest
import torch
from helpers import assert_all_close, assert_close, conditioning, dense_adjoint, outer_sum, slopes
from problems import (
    DTYPE,
    STRUCTURES,
    Reward,
    each_nonlinearity,
    each_structure,
    manufactured,
    not_normal,
    randn,
)

import retrograde as rg


def steady(net, input):
    return net.steady_state(input).x


def path(net, input):
    return net.trajectory(input, steps=4).x


each_mode = pytest.mark.parametrize("mode", [steady, path])


@each_mode
def test_weights_overwritten_between_forward_and_backward_are_an_error(mode):
    for overwrite in (
        lambda net: net.W.weight.mul_(2),
        lambda net: net.load_state_dict(rg.Network(not_normal(5, seed=4)).state_dict()),
        lambda net: torch.optim.SGD([net.W.weight], lr=1.0).step() or net.W.weight.zero_(),
    ):
        net = rg.Network(not_normal(5))
        x = mode(net, randn(3, 5))
        with torch.no_grad():
            overwrite(net)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            x.sum().backward()


@each_mode
def test_an_answer_overwritten_before_the_backward_is_an_error(mode):
    net = rg.Network(not_normal(5))
    x = mode(net, randn(3, 5))
    with torch.no_grad():
        x.zero_()
    with pytest.raises(RuntimeError, match="modified inplace"):
        x.sum().backward()


@each_mode
def test_a_bias_or_input_overwritten_is_an_error_or_does_not_matter(mode):
    net, input = rg.Network(not_normal(5)), randn(3, 5)
    mode(net, input).square().sum().backward()
    wanted, net.b.grad = net.b.grad, None
    x = mode(net, input)
    with torch.no_grad():
        net.b += 1
        input.zero_()
    x.square().sum().backward()
    assert torch.equal(net.b.grad, wanted)


@each_mode
def test_no_grad_gives_no_graph_and_the_same_numbers(mode):
    net, input = rg.Network(not_normal(5)), randn(3, 5)
    with torch.no_grad():
        silent = mode(net, input)
    with torch.inference_mode():
        inferred = mode(net, input)
    assert not silent.requires_grad and silent.grad_fn is None and not inferred.requires_grad
    assert torch.equal(silent, mode(net, input)) and torch.equal(inferred.clone(), silent)


@each_mode
def test_nothing_that_requires_a_gradient_no_graph(mode):
    net = rg.Network(not_normal(5)).requires_grad_(False)
    assert not mode(net, randn(3, 5)).requires_grad


@each_mode
@each_structure
def test_a_frozen_W_still_gives_db(mode, structure):
    W = STRUCTURES[structure]()
    g = randn(12)
    free = rg.Network(W)
    (wanted,) = torch.autograd.grad(mode(free, randn(3, 12)), free.b, g.expand_as(mode(free, randn(3, 12))))
    W.requires_grad_(False)
    x = mode(free, randn(3, 12))
    x.backward(g.expand_as(x))
    assert torch.equal(free.b.grad, wanted)
    assert all(weight.grad is None for weight in W.parameters())


@each_mode
def test_one_frozen_weight_of_several(mode):
    W = STRUCTURES["LowRank"]()
    x = mode(rg.Network(W), randn(3, 12))
    (wanted,) = torch.autograd.grad(x.sum(), W.U)
    W.V.requires_grad_(False)
    mode(rg.Network(W), randn(3, 12)).sum().backward()
    assert torch.equal(W.U.grad, wanted) and W.V.grad is None


@each_mode
def test_two_backwards_add_up(mode):
    net = rg.Network(not_normal(5))
    x = mode(net, randn(3, 5))
    x.sum().backward(retain_graph=True)
    once = net.W.weight.grad.clone()
    x.sum().backward()
    assert torch.equal(net.W.weight.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        x.sum().backward()


def test_the_receipt_is_that_of_the_latest_backward():
    net = rg.Network(not_normal(5, norm=0.95))
    state = net.steady_state(randn(3, 5))
    assert state.receipt is None
    state.x.sum().backward(retain_graph=True)
    first = state.receipt
    state.x[:1].sum().backward()
    assert state.receipt is not first
    assert (first.steps > 0).all() and (state.receipt.residual[1:] == 0).all()


@each_mode
def test_the_same_bits_twice(mode):
    for structure in STRUCTURES.values():
        found = []
        for _ in range(2):
            net = rg.Network(structure())
            x = mode(net, randn(3, 12))
            found.append([x, *torch.autograd.grad(Reward(12)(x), list(net.parameters()))])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@each_mode
def test_eval_changes_nothing(mode):
    net, input = rg.Network(not_normal(5)), randn(3, 5)
    train = torch.autograd.grad(mode(net, input).sum(), list(net.parameters()))
    assert torch.equal(mode(net, input), mode(net.eval(), input))
    assert_all_close(torch.autograd.grad(mode(net, input).sum(), list(net.parameters())), train, within=0)


def test_a_gradient_reaches_an_encoder_and_a_second_network():
    encoder, first, second = torch.nn.Linear(4, 6), rg.Network(6), rg.Network(6, f="sigmoid")
    second(first(encoder(torch.randn(3, 4)))).square().sum().backward()
    for module in (encoder, first, second):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_gradcheck_through_the_batch():
    net = rg.Network(not_normal(4))
    input = randn(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: net.steady_state(z).x, (input,))
    assert torch.autograd.gradcheck(lambda z: net.trajectory(z, steps=3).x, (input,))


def test_threads_may_each_have_their_own_backward():
    from concurrent.futures import ThreadPoolExecutor

    net, inputs = rg.Network(not_normal(8)), [randn(3, 8, seed=i) for i in range(8)]

    def one(input):
        return torch.autograd.grad(net(input).sum(), net.W.weight)[0]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, inputs))
    assert_all_close(together, [one(input) for input in inputs])


# --- by hand


@each_structure
@each_nonlinearity
def test_what_is_found_by_hand_satisfies_the_equation(structure, f):
    W = STRUCTURES[structure]()
    x, b = manufactured(W, f, 3)
    g = randn(3, 12)
    s = rg.recurrent_backpropagation(rg.Network(W, f=f, b=False), x, g, input=b).s
    assert_close(s, slopes(W, f, x, b) * (s @ W.dense() + g), conditioning=10)


def test_a_bare_recurrence_does_as_a_network():
    net = rg.Network(not_normal(5), b=randn(5))
    input, g = randn(3, 5), randn(3, 5)
    x = net(input).detach()
    one = rg.recurrent_backpropagation(net, x, g, input=input)
    other = rg.recurrent_backpropagation(net.recurrence, x, g, input=net.b + input)
    assert torch.equal(one.s, other.s) and torch.equal(one.dW[0], other.dW[0])
    assert torch.equal(one.receipt.state_residual, other.receipt.state_residual)
    one = rg.backpropagation_through_time(net, x[None], input, g[None])
    other = rg.backpropagation_through_time(net.recurrence, x[None], input, g[None])
    assert torch.equal(one.dx0, other.dx0)


def test_the_receipt_tells_how_steady_the_state_is_where_it_can():
    net, g, input = rg.Network(not_normal(5), b=False), randn(5), randn(5)
    x = net(input).detach()
    assert rg.recurrent_backpropagation(net, x, g).receipt.state_residual is None
    assert rg.recurrent_backpropagation(net, x, g, input=input).receipt.state_residual <= 1e-12
    off = rg.recurrent_backpropagation(net, 0.9 * x, g, input=input).receipt
    assert off.state_residual > 0.01 and off.error_estimate > 0.01


def test_the_error_estimate_is_of_the_order_of_the_error():
    W, f = rg.Dense(not_normal(12, norm=0.95)), rg.Tanh()
    x, b = manufactured(W, f, 20)
    g = randn(20, 12)
    s = dense_adjoint(W, f, x, b, g)
    net = rg.Network(W, b=False)
    for rtol in (1e-2, 1e-5, 1e-8):
        found = rg.recurrent_backpropagation(net, x, g, adjoint=rg.FixedPoint(rtol=rtol))
        error = (found.s - s).norm(dim=-1) / s.norm(dim=-1)
        assert (error <= 10 * found.receipt.error_estimate).all()
        assert (found.receipt.error_estimate <= 1000 * error).all()


def test_conditioning_is_a_lower_bound():
    W, f = rg.Dense(not_normal(12, norm=0.95)), rg.Tanh()
    x, b = manufactured(W, f, 5)
    receipt = rg.recurrent_backpropagation(rg.Network(W, b=False), x, randn(5, 12)).receipt
    assert (receipt.conditioning <= 1.001 * conditioning(W, f, x, b)).all() and (receipt.conditioning > 0.1).all()


def test_a_gradient_by_hand_holds_no_graph():
    net = rg.Network(not_normal(5))
    found = rg.recurrent_backpropagation(net, net(randn(3, 5)), randn(3, 5))
    assert not any(t.requires_grad for t in (found.s, found.db, *found.dW))


def test_the_batch_is_summed_not_averaged():
    net, g = rg.Network(not_normal(5), b=False), randn(2, 3, 5)
    x = torch.tanh(randn(2, 3, 5, seed=4))
    found = rg.recurrent_backpropagation(net, x, g)
    assert_close(found.dW[0], outer_sum(found.s, x), solved=False)
    assert_close(found.db, found.s.sum((0, 1)), solved=False)
    twice = rg.recurrent_backpropagation(net, torch.cat([x, x]), torch.cat([g, g]))
    assert_close(twice.dW[0], 2 * found.dW[0], solved=False)


def test_states_copy():
    net = rg.Network(not_normal(5))
    state = net.steady_state(randn(5))
    state.x.sum().backward()
    assert torch.equal(copy.copy(state).x, state.x) and copy.copy(state).receipt is state.receipt


def test_float64_by_default(float64_by_default):
    net = rg.Network(5, leak=torch.tensor(0.5))
    input = torch.randn(3, 5)
    assert net(input).dtype == DTYPE
    (net(input).sum() + net.trajectory(input, steps=3).x.sum()).backward()
    assert net.W.weight.grad.dtype == DTYPE
    single = rg.Network(not_normal(5, dtype=torch.float32))
    state = single.steady_state(input.float(), solver=rg.Newton(), adjoint=rg.Krylov())
    state.x.sum().backward()
    assert state.x.dtype == state.residual.dtype == single.W.weight.grad.dtype == torch.float32
    assert single.trajectory(input.float(), steps=3).x.dtype == torch.float32
