"""Warm starts: the same answers from fewer products."""

import gc
import weakref

import pytest
import torch
from helpers import assert_close, count_products, dense_adjoint
from problems import DTYPE, NONLINEARITIES, STRUCTURES, Reward, bistable, each_structure, not_normal, randn
from torch import nn

import retrograde as rg


def problem(n=24, samples=16, dtype=DTYPE):
    """A network, its inputs, and what it shall learn."""
    net = rg.Network(not_normal(n, 0.7, dtype=dtype), f="tanh", b=0.1 * randn(n, seed=2, dtype=dtype))
    return net, randn(samples, n, seed=3, dtype=dtype), 0.5 * randn(samples, 4, seed=4, dtype=dtype)


def train(net, input, target, *, steps, warm=None, optimiser=None, batch=None, **how):
    """Training; how many products it took, those of x and of s, and the last state."""
    optimiser = optimiser(net.parameters())
    products, generator = 0, torch.Generator().manual_seed(0)
    for _ in range(steps):
        for rows in torch.randperm(len(input), generator=generator).split(batch or len(input)):
            if batch is None:
                rows = torch.arange(len(input))
            memory = None if warm is None else warm[rows] if batch else warm
            state = net.steady_state(input[rows], warm=memory, **how)
            loss = (state.x[:, :4] - target[rows]).square().sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            products += int(state.steps.sum() + state.receipt.steps.sum())
    return products, state


def sgd(rate, momentum=0.0):
    return lambda parameters: torch.optim.SGD(parameters, rate, momentum)


def adam(rate):
    return lambda parameters: torch.optim.Adam(parameters, rate)


@pytest.mark.parametrize(
    ("optimiser", "dtype", "times"),
    [
        (sgd(0.03), torch.float32, 3.0),
        (adam(3e-4), torch.float32, 3.0),
        (sgd(0.02), torch.float64, 2.0),
    ],
    ids=["sgd, float32", "adam, float32", "sgd, float64"],
)
def test_a_training_run_takes_a_fraction_of_the_products_and_ends_at_the_same_weights(optimiser, dtype, times):
    (cold_net, *data), (warm_net, *_) = problem(dtype=dtype), problem(dtype=dtype)
    warm = rg.WarmStart()
    cold, _ = train(cold_net, *data, steps=100, optimiser=optimiser)
    hot, last = train(warm_net, *data, steps=100, warm=warm, optimiser=optimiser)
    assert hot * times <= cold
    assert last.converged.all() and last.receipt.converged.all()
    assert warm.audits == len(data[0]) and warm.disagreements == 0
    assert_close(warm_net.W.weight, cold_net.W.weight, conditioning=10)
    assert_close(warm_net.b, cold_net.b, conditioning=10)


@pytest.mark.parametrize(("grad_rtol", "times"), [(1e-6, 3.0), (1e-3, 2.6)])
def test_what_the_gradient_does_not_need_a_warm_start_does_not_find_again(grad_rtol, times):
    (cold_net, *data), (warm_net, *_) = problem(), problem()
    cold, _ = train(cold_net, *data, steps=60, optimiser=sgd(0.02), grad_rtol=grad_rtol)
    hot, _ = train(warm_net, *data, steps=60, warm=rg.WarmStart(), optimiser=sgd(0.02), grad_rtol=grad_rtol)
    assert hot * times <= cold
    assert_close(warm_net.W.weight, cold_net.W.weight, within=grad_rtol)


def test_in_batches_too_what_the_gradient_does_not_need_is_not_paid_for(monkeypatch):
    count, ended = count_products(monkeypatch, DTYPE), []
    for how in ({}, {"warm": rg.WarmStart(), "grad_rtol": 1e-2}):
        net, *data = problem(n=48, samples=64)
        count[0] = 0
        train(net, *data, steps=12, optimiser=sgd(0.01), batch=16, **how)
        ended.append((count[0], net.W.weight))
    (cold, exact), (hot, found) = ended
    assert hot * 3 <= cold
    assert_close(found, exact, within=1e-3)


def test_samples_are_known_by_their_keys_however_they_are_shuffled():
    def run(warm):
        net, *data = problem(samples=32, dtype=torch.float32)
        return *train(net, *data, warm=warm, steps=15, optimiser=sgd(1e-3), batch=16), net

    cold, _, cold_net = run(None)
    warm = rg.WarmStart()
    hot, _, warm_net = run(warm)
    assert hot < cold / 1.5
    assert_close(warm_net.W.weight, cold_net.W.weight, conditioning=10)


def grown(net, input, warm, visits, R=lambda x: x.sin().sum(), change=1e-3, **how):
    """Visits of one batch, the weights moving a little each time; the last state."""
    for _ in range(visits):
        state = net.steady_state(input, warm=warm, **how)
        R(state.x).backward()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(change * p.sin())
    return state


@each_structure
@pytest.mark.parametrize("f", ["tanh", "relu", "sin"])
def test_the_state_and_the_gradient_are_those_of_a_cold_start(structure, f):
    net = rg.Network(STRUCTURES[structure](), f=NONLINEARITIES[f], b=0.3 * randn(12, seed=1))
    input, R, warm = randn(2, 3, 12, seed=5), Reward(2, 3, 12), rg.WarmStart()
    grown(net, input, warm, 5, R)
    answers = []
    for memory in (None, warm):
        net.zero_grad()
        state = net.steady_state(input, warm=memory)
        R(state.x).backward()
        answers.append((state, [p.grad for p in net.parameters()]))
    (cold, cold_gradients), (hot, warm_gradients) = answers
    assert_close(hot.x, cold.x)
    for a, b in zip(warm_gradients, cold_gradients, strict=True):
        assert_close(a, b, conditioning=10)
    assert hot.steps.sum() < cold.steps.sum()
    if structure not in ("Ring", "LowRank"):  # a dead neuron ends the one's adjoint, and the other's is found directly
        assert hot.receipt.steps.sum() < cold.receipt.steps.sum()


def test_a_solve_again_of_what_did_not_change_costs_nothing_but_its_check():
    net, input, _ = problem()
    warm = rg.WarmStart()
    for _ in range(2):
        state = net.steady_state(input, warm=warm)
        state.x.sum().backward()
    assert state.steps.max() == 0
    assert state.receipt.steps.max() == 1  # the product that scales the start


@pytest.mark.parametrize("size", [1e8, 1e-8, -1.0, -1e-3])
def test_the_rewards_size_and_sign_may_change_between_visits(size):
    net, input, _ = problem()
    warm = rg.WarmStart()
    net.steady_state(input, warm=warm).x.sum().backward()
    state = net.steady_state(input, warm=warm)
    (size * state.x.sum()).backward()
    assert state.receipt.steps.max() == 1


def test_another_reward_costs_little_more_than_from_cold():
    net, input, _ = problem()
    warm, rewards = rg.WarmStart(), [Reward(*input.shape, seed=seed) for seed in (1, 2)]
    rewards[0](net.steady_state(input, warm=warm).x).backward()
    state = net.steady_state(input, warm=warm)
    g = rewards[1].gradient(state.x)
    b = input.clone().requires_grad_()
    state = net.steady_state(b, warm=warm)
    rewards[1](state.x).backward()
    assert_close(b.grad, dense_adjoint(net.W, net.f, state.x.detach(), (net.b + input).detach(), g), conditioning=10)
    cold = net.steady_state(input)
    rewards[1](cold.x).backward()
    assert (state.receipt.steps <= cold.receipt.steps + 2).all()


def test_without_a_reward_there_is_no_adjoint_and_none_is_remembered():
    net, input, _ = problem()
    warm = rg.WarmStart()
    mask = torch.ones(len(input), 1, dtype=DTYPE)
    mask[3] = 0
    (net.steady_state(input, warm=warm).x * mask).sum().backward()
    state = net.steady_state(input, warm=warm)
    net.zero_grad()
    state.x.sum().backward()
    cold = net.steady_state(input)
    cold.x.sum().backward()
    assert state.receipt.converged.all()
    assert state.receipt.steps[3] == cold.receipt.steps[3] and state.receipt.steps[2] == 1


# --- audits


def branches():
    """The bistable network, its three states, and a start that lies on the way to the first."""
    known = bistable()
    return known.network, known.x, known.x0


def test_an_audit_finds_the_other_branch_warns_and_takes_the_cold_answer():
    net, (up, _, down), start = branches()
    warm = rg.WarmStart(audit_every=2)
    for _ in range(2):
        state = net.steady_state(x0=-start, warm=warm, solver=rg.FixedPoint())
        assert_close(state.x, down)
    with pytest.warns(RuntimeWarning, match="1 have another steady state from cold"):
        state = net.steady_state(x0=start, warm=warm, solver=rg.FixedPoint())  # a cold start has come to lie elsewhere
    assert_close(state.x, up)
    assert (warm.audits, warm.disagreements) == (1, 1)
    assert_close(net.steady_state(x0=start, warm=warm, solver=rg.FixedPoint()).x, up)


def test_without_audits_the_warm_branch_is_followed():
    net, (_, _, down), start = branches()
    warm = rg.WarmStart(audit_every=None)
    net.steady_state(x0=-start, warm=warm)
    assert_close(net.steady_state(x0=start, warm=warm).x, down)
    assert warm.audits == 0


def test_only_the_sample_that_differs_is_changed_and_forgotten():
    net, (up, _, _), start = branches()
    warm, starts = rg.WarmStart(audit_every=1), torch.stack([start, -start])
    net.steady_state(torch.zeros(2, 2, dtype=DTYPE), x0=starts, warm=warm).x.sum().backward()
    with pytest.warns(RuntimeWarning, match="of 2 samples audited, 1 have"):
        state = net.steady_state(torch.zeros(2, 2, dtype=DTYPE), x0=torch.stack([start, start]), warm=warm)
    assert_close(state.x, torch.stack([up, up]))
    tables = warm._shared.tables
    assert tables["x"].visits.tolist() == [2, 1] and tables["s"].visits.tolist() == [1, 0]
    state.x.sum().backward()
    assert state.receipt.steps[0] == 1 < state.receipt.steps[1]


def test_an_audit_costs_its_steps_and_they_are_told():
    net, input, _ = problem()
    warm = rg.WarmStart(audit_every=1)
    cold = net.steady_state(input, warm=warm)
    assert torch.equal(net.steady_state(input, warm=warm).steps, cold.steps)
    assert warm.audits == len(input)


def test_samples_with_keys_are_audited_in_turn():
    net, input, _ = problem(samples=12)
    warm = rg.WarmStart(audit_every=4)
    audited = []
    for _ in range(5):
        before = warm.audits
        net.steady_state(input, warm=warm[range(12)])
        audited.append(warm.audits - before)
    assert audited == [0, 3, 3, 3, 3]


def test_a_sample_that_fails_from_its_warm_start_is_solved_from_cold():
    W = torch.tensor([[2.0]], dtype=DTYPE)
    net = rg.Network(W, f="relu", b=torch.tensor([-1.0], dtype=DTYPE))  # steady at 0, and, unstable, at 1
    solver, warm = rg.FixedPoint(max_steps=50), rg.WarmStart()
    net.steady_state(torch.ones(1, dtype=DTYPE), x0=None, warm=warm, solver=rg.FixedPoint())
    warm._shared.tables["x"].differences[0] = 3.0  # from where it grows for ever
    state = net.steady_state(warm=warm, solver=solver)
    assert state.converged and state.x == 0 and state.steps == 50
    assert warm.audits == 0


def test_what_failed_is_not_remembered():
    net, input, _ = problem()
    warm = rg.WarmStart()
    state = net.steady_state(input, warm=warm, solver=rg.FixedPoint(max_steps=1), throw=False)
    assert not state.converged.any()
    assert torch.equal(net.steady_state(input, warm=warm).steps, net.steady_state(input).steps)


# --- what is held


def test_nothing_of_the_callers_is_held_or_handed_out():
    net, input, _ = problem()
    warm = rg.WarmStart()
    state = net.steady_state(input, warm=warm)
    loss = state.x.sum()
    loss.backward()
    with torch.no_grad():
        state.x.fill_(torch.nan)
    held = weakref.ref(state)
    del state, loss
    gc.collect()
    assert held() is None
    assert net.steady_state(input, warm=warm).steps.max() == 0
    table = warm._shared.tables["x"].differences
    assert not table.requires_grad and table.shape == (warm.memory, *input.shape)


def test_memory_is_bounded_by_the_samples_and_too_much_is_refused(monkeypatch):
    net, input, _ = problem()
    warm = rg.WarmStart(memory=2)
    for first in (0, 30, 60):
        net.steady_state(input, warm=warm[range(first, first + 16)])
    assert 48 <= warm._shared.tables["x by key"].differences.shape[1] <= 2 * 48
    monkeypatch.setattr(rg.remembered, "_LARGEST", 100)
    with pytest.raises(ValueError, match=r"warm: 2 vectors of each of .* would take .* GiB"):
        net.steady_state(input[:1], warm=rg.WarmStart(memory=2)[[10**9]])


def test_of_one_sample_twice_in_a_batch_the_first_is_remembered():
    net, input, _ = problem()
    warm = rg.WarmStart()
    net.steady_state(input[:3], warm=warm[[4, 4, 2]]).x.sum().backward()
    state = net.steady_state(input[:3], warm=warm[[4, 1, 2]])
    assert state.steps[0] == 0 and state.steps[2] == 0 and state.steps[1] > 0


def test_a_batch_of_another_shape_dtype_or_size_starts_anew():
    net, input, _ = problem()
    warm = rg.WarmStart()
    state = net.steady_state(input, warm=warm)
    other = net.steady_state(input[:5], warm=warm)
    assert other.steps.min() > 0
    state.x.sum().backward()
    other.x.sum().backward()  # with a memory of the other in between
    assert other.receipt.converged.all()
    single = rg.Network(3, f="tanh")
    assert single.steady_state(torch.ones(2, 3), warm=warm).converged.all()
    assert net.steady_state(input[:0], warm=warm).x.shape == (0, 24)


def test_clear_forgets():
    net, input, _ = problem()
    warm = rg.WarmStart()
    net.steady_state(input, warm=warm)
    warm.clear()
    assert net.steady_state(input, warm=warm).steps.min() > 0


def test_what_is_remembered_can_be_saved():
    net, input, _ = problem()
    warm = rg.WarmStart()
    grown(net, input, warm, 4)
    saved, again = warm.state_dict(), rg.WarmStart()
    again.load_state_dict(saved)
    first, second = (net.steady_state(input, warm=each) for each in (warm, again))
    assert torch.equal(first.x, second.x) and torch.equal(first.steps, second.steps)
    third = rg.WarmStart()
    third.load_state_dict(saved)
    assert torch.equal(net.steady_state(input, warm=third).x, first.x)  # nor was it changed since
    with pytest.raises(ValueError, match="tables of memory 3"):
        rg.WarmStart(memory=3).load_state_dict(saved)


def test_as_part_of_a_larger_model():
    net, input, target = problem()
    encoder, warm = nn.Linear(24, 24).double(), rg.WarmStart()
    for _ in range(3):
        state = net.steady_state(encoder(input), warm=warm)
        (state.x[:, :4] - target).square().sum().backward()
    assert encoder.weight.grad is not None and state.steps.max() == 0


# --- bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rg.WarmStart(audit_every=0), ValueError, "audit_every"),
        (lambda: rg.WarmStart(memory=0), ValueError, "memory"),
        (lambda: rg.WarmStart(memory=1.5), TypeError, "memory"),
        (lambda: rg.WarmStart(audit_every=True), TypeError, "audit_every"),
    ],
)
def test_what_a_warm_start_cannot_be(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("warm", "error", "message"),
    [
        (lambda: True, TypeError, "warm: expected a WarmStart, got bool"),
        (lambda: rg.WarmStart()[[0, 1]], ValueError, r"shape \(3,\), got \(2,\)"),
        (lambda: rg.WarmStart()[[0.5, 1, 2]], TypeError, "integer indices"),
        (lambda: rg.WarmStart()["abc"], TypeError, "integer indices"),
        (lambda: rg.WarmStart()[[0, 1, -1]], ValueError, "from 0, got -1"),
    ],
)
def test_what_steady_state_does_not_take_for_one(warm, error, message):
    net, input, _ = problem()
    with pytest.raises(error, match=message):
        net.steady_state(input[:3], warm=warm())


def test_any_integers_and_slices_name_samples():
    net, input = rg.Network(not_normal(6)), randn(4, 6)
    ids = torch.tensor([720575940623374121, 3, 720575940618780781, 2**63 - 1])  # as large as those of neurons
    by_id, by_place, by_slice = rg.WarmStart(), rg.WarmStart(), rg.WarmStart()
    for rows in ([0, 1], [2, 3], [1, 0], [3, 2], [0, 3]):
        found = [
            net.steady_state(input[rows], warm=by_id[ids[rows]]),
            net.steady_state(input[rows], warm=by_place[rows]),
        ]
        assert torch.equal(found[0].x, found[1].x) and torch.equal(found[0].steps, found[1].steps)
    assert found[0].steps.sum() < net.steady_state(input[[0, 3]]).steps.sum()
    again = rg.WarmStart()
    again.load_state_dict(by_id.state_dict())
    one, other = (net.steady_state(input[2:3], warm=warm[ids[2:3]]) for warm in (by_id, again))
    assert torch.equal(one.x, other.x) and torch.equal(one.steps, other.steps)
    for _ in range(2):
        for start in (0, 3):  # the last is shorter than its slice
            state = net.steady_state(input[start : start + 3], warm=by_slice[start : start + 3])
    assert state.steps < net.steady_state(input[3]).steps
    net.steady_state(input[:2], warm=by_slice[2:])
    for wrong, error in ((slice(-2, None), ValueError), (slice(0, 1.5), TypeError), (slice(0, 1), ValueError)):
        with pytest.raises(error, match="warm: expected"):
            net.steady_state(input[:2], warm=by_slice[wrong])
