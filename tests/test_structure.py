"""What the structure of W saves: exactly the same answers, and nothing n x n."""

import pytest
import torch
from helpers import assert_close, conditioning, dense_adjoint
from problems import DTYPE, Reward, each_nonlinearity, manufactured, randn

import retrograde as rg
from retrograde.solvers import Blockwise

# --- W = UVᵀ


def low_rank(n=40, r=3, norm=0.9, seed=0, dtype=DTYPE):
    U, V = randn(n, r, seed=seed), randn(n, r, seed=seed + 1)
    return rg.LowRank((norm * U / torch.linalg.matrix_norm(U @ V.T, 2)).to(dtype), V.to(dtype))


@each_nonlinearity
@pytest.mark.parametrize("samples", [1, 2, 7])  # fewer than the rank, and more
@pytest.mark.parametrize("adjoint", [None, rg.Direct(), rg.Newton()], ids=str)
def test_the_adjoint_of_a_low_rank_is_that_of_the_dense_matrix(f, samples, adjoint):
    W = low_rank()
    x, b = manufactured(W, f, samples)
    R = Reward(samples, 40)
    b.requires_grad_()
    state = rg.Network(W, f=f, b=False).steady_state(b, adjoint=adjoint)
    R(state.x).backward()
    amplified = conditioning(W, f, x, b.detach())
    assert_close(b.grad, dense_adjoint(W, f, x, b.detach(), R.gradient(x)), conditioning=amplified)
    assert state.receipt.steps.max() <= 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_newton_in_the_ranks_dimensions_finds_what_newton_on_the_dense_matrix_finds(dtype):
    W = low_rank(norm=3.0, dtype=dtype)
    b = randn(6, 40, seed=5, dtype=dtype)
    low = rg.Network(W, f="tanh", b=False).steady_state(b, solver=rg.Newton())
    full = rg.Network(W.dense(), f="tanh", b=False).steady_state(b, solver=rg.Newton())
    amplified = conditioning(W, rg.Tanh(), full.x.detach(), b)
    assert_close(low.x, full.x, conditioning=amplified)
    assert (low.steps - full.steps).abs().max() <= 1


def test_a_low_rank_of_many_neurons_is_solved_directly_and_nothing_n_by_n_is_made():
    n = 100_000  # n x n numbers would be 80 GB
    U, V = randn(n, 4), randn(n, 4, seed=1) / n**0.5
    W = rg.LowRank(2 * U / torch.linalg.matrix_norm(V.T @ U, 2), V)
    input = randn(3, n, seed=2)
    state = rg.Network(W, b=False).steady_state(input, solver=rg.Newton())
    R = Reward(3, n)
    R(state.x).backward()
    assert state.receipt.converged.all() and state.receipt.steps.max() <= 5
    x = state.x.detach()
    s = rg.recurrent_backpropagation(rg.Network(W, b=False), x, R.gradient(x)).s
    D = 1 - x * x
    assert_close(D * (W.T @ s + R.gradient(x)), s.detach())


@pytest.mark.parametrize("samples", [2, 20])
def test_sums_over_neurons_in_pieces_are_the_sums(samples, monkeypatch):
    from retrograde import structure

    W, D = low_rank(n=40, r=5), randn(samples, 40, seed=3)
    whole = structure.core(W.bind(), D)
    U, V = W.weights
    assert_close(whole, torch.eye(5, dtype=DTYPE) - torch.einsum("nr,sn,nq->srq", V, D, U), solved=False)
    monkeypatch.setattr(structure, "_PIECE", 64)
    assert_close(structure.core(W.bind(), D), whole, solved=False)


def test_more_columns_than_neurons_are_no_low_rank():
    W = rg.LowRank(0.1 * randn(6, 9), randn(6, 9, seed=1))
    b = randn(4, 6, seed=2).requires_grad_()
    state = rg.Network(W, b=False).steady_state(b, solver=rg.Newton(), adjoint=rg.Direct())
    R = Reward(4, 6)
    R(state.x).backward()
    x = state.x.detach()
    assert_close(b.grad, dense_adjoint(W, rg.Tanh(), x, b.detach(), R.gradient(x)), conditioning=10)


def test_a_nearly_singular_low_rank_is_still_right():
    """I - DW has an eigenvalue of 1e-6, where a fixed point would need a million steps."""
    u, v = randn(30, 1), randn(30, 1, seed=1)
    W = rg.LowRank(u * (1 - 1e-6) / (v.T @ u), v)
    g = randn(2, 30, seed=2)
    net = rg.Network(W, f="identity", b=False)
    s = rg.recurrent_backpropagation(net, randn(2, 30, seed=3), g).s
    dense = torch.linalg.solve(torch.eye(30, dtype=DTYPE) - W.dense().detach().T, g[..., None])[..., 0]
    assert_close(s.detach(), dense, conditioning=1e6)


# --- W in levels


def edges(post, pre, n, scale=1.0, seed=0, dtype=DTYPE):
    weight = scale * (0.5 + randn(len(post), seed=seed).abs()) * randn(len(post), seed=seed + 1).sign()
    return rg.Sparse.from_edges(pre, post, weight.to(dtype), n)


def acyclic(n=60, count=200, seed=0):
    """Connections from lower to higher numbers, the neurons then shuffled."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(n, (2, count), generator=generator).sort(0).values
    ends = torch.randperm(n, generator=generator)[ends[:, ends[0] != ends[1]]]
    return edges(ends[1], ends[0], n, seed=seed)


def modules(count=6, size=5, seed=0):
    """Rings of neurons, each ring driving all later ones, the neurons then shuffled; some neurons on their own."""
    generator = torch.Generator().manual_seed(seed)
    n = count * size
    ring = torch.arange(n)
    within = torch.stack([ring, ring // size * size + (ring + 1) % size])
    between = torch.randint(n, (2, 12 * n), generator=generator).sort(0).values
    between = between[:, between[0] // size < between[1] // size]
    ends = torch.cat([within, between], 1)[:, torch.randperm(n + between.shape[1], generator=generator)]
    name = torch.randperm(n + 3, generator=generator)
    W = edges(name[ends[1]], name[ends[0]], n + 3, scale=0.3, seed=seed)
    return W


def levels_of(W):
    from retrograde.blocks import blocks_of

    return blocks_of(W.bind())


IN_LEVELS = {"acyclic": acyclic, "modules": modules}
each_in_levels = pytest.mark.parametrize("make", IN_LEVELS.values(), ids=IN_LEVELS.keys())


@each_in_levels
def test_each_neuron_comes_after_those_that_drive_it(make):
    W = make()
    blocks = levels_of(W)
    n = W.shape[0]
    assert torch.equal(blocks.order.sort().values, torch.arange(n))
    level = torch.empty(n, dtype=torch.long)
    for at, each in enumerate(blocks.levels):
        level[blocks.order[each.first : each.last]] = at
    post, pre = W.edges
    inside = torch.zeros(len(post), dtype=torch.bool)
    inside[torch.cat([each.edges for each in blocks.levels])] = True
    assert (level[post] > level[pre])[~inside].all() and (level[post] == level[pre])[inside].all()
    M = torch.zeros(n, n, dtype=torch.float64)
    M[post, pre] = 1
    reach = torch.linalg.matrix_power(M + torch.eye(n), n) > 0
    assert torch.equal(inside, reach[pre, post] & reach[post, pre])


@each_in_levels
@each_nonlinearity
def test_the_state_and_the_adjoint_in_levels_are_those_of_the_dense_matrix(make, f):
    W = make()
    x, b = manufactured(W, f, 3)
    b.requires_grad_()
    R = Reward(*x.shape)
    state = rg.Network(W, f=f, b=False).steady_state(b, x0=x + 1e-3 * randn(*x.shape, seed=7))
    assert "Blockwise" in state.method
    amplified = conditioning(W, f, x, b.detach())
    assert_close(state.x, x, conditioning=amplified)
    R(state.x).backward()
    assert "Blockwise" in state.receipt.method
    assert "level by level" in str(state.receipt) and "level by level" in str(state)
    assert_close(b.grad, dense_adjoint(W, f, x, b.detach(), R.gradient(x)), conditioning=amplified)
    plain = rg.Network(W, f=f, b=False).steady_state(b.detach(), x0=x, adjoint=rg.Direct())
    assert_close(state.x, plain.x, conditioning=amplified)


class Fails(rg.FixedPoint):
    """Leaves every sample to the next solver."""

    def solve(self, problem, z):
        found = super().solve(problem, z)
        found.status.fill_(int(rg.Status.MAX_STEPS))
        return found


@each_in_levels
def test_an_error_may_be_asked_for_whichever_solver_ends_in_levels(make):
    W, f = make(), rg.Tanh()
    x, b = manufactured(W, f, 3)
    b.requires_grad_()
    R, adjoint = Reward(*x.shape), Blockwise(rg.Cascade(Fails(), rg.Krylov()))
    state = rg.Network(W, f=f, b=False).steady_state(b, adjoint=adjoint, grad_rtol=1e-4)
    R(state.x).backward()
    assert (state.receipt.attempt == 1).all() and state.receipt.converged.all()
    assert_close(b.grad, dense_adjoint(W, f, x, b.detach(), R.gradient(x)), within=1e-4)


def test_what_feeds_forward_is_solved_in_one_pass():
    W, input = acyclic(), randn(4, 60, seed=3)
    net = rg.Network(W, f="tanh", b=False)
    state, plain = net.steady_state(input), net.steady_state(input, solver=rg.FixedPoint())
    state.x.sum().backward()
    assert (state.steps == 1).all() and (state.receipt.steps == 1).all()
    assert plain.steps.min() >= len(levels_of(W).levels) - 1
    assert_close(state.x, plain.x)


def test_a_long_chain_is_settled_or_else_passed_through_once():
    """Two thousand neurons, each of which hands on what it gets: a step at a time, it takes as many steps."""
    n = 2000
    W = rg.Sparse.from_edges(torch.arange(n - 1), torch.arange(1, n), torch.ones(n - 1, dtype=DTYPE), n)
    b = torch.zeros(n, dtype=DTYPE)
    b[0] = 1.0
    b.requires_grad_()
    state = rg.Network(W, f="identity", b=False).steady_state(b)
    assert_close(state.x, torch.ones(n, dtype=DTYPE))
    state.x[-1].backward()
    assert_close(b.grad, torch.ones(n, dtype=DTYPE))
    assert state.steps <= 101 and state.receipt.steps <= 101
    with pytest.raises(rg.ConvergenceError):
        rg.Network(W, f="identity", b=False).steady_state(b, solver=rg.FixedPoint())


def test_a_short_chain_of_weak_links_needs_no_levels():
    n = 200
    W = rg.Sparse.from_edges(torch.arange(n - 1), torch.arange(1, n), torch.full((n - 1,), 0.1), n)
    state = rg.Network(W, b=False).steady_state(torch.ones(n))
    assert state.steps < 20


def test_levels_are_found_once_and_forgotten_with_their_structure():
    from retrograde import blocks

    W = acyclic(seed=4)
    found = levels_of(W)
    assert levels_of(W) is found
    with torch.no_grad():
        W.weight.mul_(2)
    assert levels_of(W) is found
    held = len(blocks._found)
    del W, found
    import gc

    gc.collect()
    assert len(blocks._found) < held


def test_the_weights_are_those_of_now_and_get_their_gradient():
    W, input = modules(), randn(4, 33, seed=3)
    R = Reward(4, 33)
    net = rg.Network(W, b=False)
    net.steady_state(input)
    with torch.no_grad():
        W.weight.mul_(0.5)
    R(net.steady_state(input).x).backward()
    got = W.weight.grad
    dense = rg.Network(W.dense().detach(), b=False)
    R(dense.steady_state(input).x).backward()
    post, pre = W.edges
    assert_close(got, dense.W.weight.grad[post, pre])


class Halved(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("make", [modules, lambda: random_sparse()], ids=["levels", "active part"])
def test_a_parametrised_weight_is_used_as_it_is_made(make):
    from torch.nn.utils import parametrize

    W = make()
    n = W.shape[0]
    halves = rg.Sparse.from_edges(W.edges[1], W.edges[0], W.weight.detach() / 2, n)
    parametrize.register_parametrization(W, "weight", Halved())
    b, grads = mostly_off(W, 2, 0.3), []
    for each in (W, halves):
        state = rg.Network(each, f="relu", b=False).steady_state(b)
        state.x.sin().sum().backward()
        assert "Blockwise" in state.receipt.method or "neurons" in state.receipt.method
        grads.append(next(each.parameters()).grad)
    assert_close(2 * grads[0], grads[1])


def test_no_levels_where_all_neurons_reach_each_other():
    n = 30
    ends = torch.randint(n, (2, 300), generator=torch.Generator().manual_seed(0))
    assert levels_of(edges(ends[0], ends[1], n)) is None
    assert levels_of(rg.Dense(torch.zeros(3, 3))) is None
    assert levels_of(rg.Sparse.from_edges([], [], torch.empty(0), 3)) is None


def test_a_level_that_fails_is_told():
    """The second of three levels is a ReLU that doubles itself without end."""
    W = rg.Sparse.from_edges([0, 1, 1, 0], [1, 1, 2, 2], torch.tensor([1.0, 2.0, 1.0, 1.0], dtype=DTYPE), 3)
    net = rg.Network(W, f="relu", b=False)
    assert levels_of(W) is not None
    state = net.steady_state(torch.ones(3, dtype=DTYPE), throw=False)
    assert not state.converged
    assert net.steady_state(-torch.ones(3, dtype=DTYPE)).converged


def test_a_sample_that_fails_in_parts_is_solved_as_a_whole():
    """z = max(2z - 1, 0) is reached from 0, and left for ever from 3, where the parts put the second sample."""
    from retrograde.solvers import Blockwise, Problem

    def problem(rows):
        return Problem(
            step=lambda z: torch.relu(2 * z - 1),
            take=lambda some: problem(rows[some]),
            factorise=None,
            substitute=lambda z, solver: (torch.tensor([[0.0], [3.0]]), torch.tensor([1, 1])),
        )

    found = Blockwise(rg.FixedPoint(max_steps=20)).solve(problem(torch.arange(2)), torch.zeros(2, 1))
    assert found.status.tolist() == [rg.Status.CONVERGED] * 2 and (found.value == 0).all()
    assert found.steps.tolist() == [1, 21]


def test_a_batch_in_levels_is_each_of_its_samples():
    net, input = rg.Network(modules(), b=False), randn(5, 33, seed=3)
    whole = net.steady_state(input)
    for k in range(5):
        assert_close(whole.x[k], net.steady_state(input[k]).x)
    assert net.steady_state(input[:0]).x.shape == (0, 33)


# --- neurons whose slope is 0


def mostly_off(W, samples, share, seed=0):
    """Inputs under which about that share of a ReLU network is on, the same neurons in every sample."""
    n = W.shape[0]
    on = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: int(share * n)]
    b = -5 - randn(samples, n, seed=seed).abs()
    b[:, on] = 1 + randn(samples, len(on), seed=seed + 1).abs()
    return b.to(W.weights[0].dtype)


def random_sparse(n=300, per_neuron=20, dtype=DTYPE):
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(n, (2, per_neuron * n), generator=generator)
    return rg.Sparse.from_edges(ends[0], ends[1], (0.6 / per_neuron**0.5 * randn(ends.shape[1])).to(dtype), n)


FULL_AND_SPARSE = {"full": lambda: rg.Dense(0.6 / 300**0.5 * randn(300, 300)), "sparse": random_sparse}


@pytest.mark.parametrize("make", FULL_AND_SPARSE.values(), ids=FULL_AND_SPARSE.keys())
@pytest.mark.parametrize("samples", [1, 4])
def test_the_adjoint_among_active_neurons_is_the_whole_adjoint(make, samples):
    W = make()
    b = mostly_off(W, samples, 0.3).requires_grad_()
    net, R = rg.Network(W, f="relu", b=False), Reward(samples, 300)
    answers = []
    for adjoint in (None, rg.FixedPoint()):
        b.grad = None
        net.zero_grad()
        state = net.steady_state(b, adjoint=adjoint)
        R(state.x).backward()
        answers.append((b.grad, W.weights[0].grad, state.receipt))
    (part, dW, told), (whole, dW_whole, plain) = answers
    x = state.x.detach()
    count = int((x > 0).any(0).sum())
    assert f"on {count} of 300 neurons" in told.method and "neurons" not in plain.method
    assert_close(part, dense_adjoint(W, net.f, x, b.detach(), R.gradient(x)), conditioning=10)
    assert_close(part, whole)
    assert_close(dW, dW_whole)
    assert torch.equal(part == 0, x == 0)
    assert_close(told.conditioning, plain.conditioning, conditioning=10)


@pytest.mark.parametrize("make", FULL_AND_SPARSE.values(), ids=FULL_AND_SPARSE.keys())
def test_all_neurons_take_part_where_most_are_active_and_where_none_is(make):
    W = make()
    net = rg.Network(W, f="relu", b=False)
    for b in (mostly_off(W, 2, 0.9), -5 - randn(2, 300).abs()):
        state = net.steady_state(b)
        state.x.sum().backward()
        assert "neurons" not in state.receipt.method and state.receipt.converged.all()


@pytest.mark.parametrize("inside", [[0, 3, 4, 9], [], list(range(10))], ids=str)
def test_a_part_of_a_sparse_matrix_is_that_of_the_dense_one(inside):
    W = random_sparse(n=10, per_neuron=4)
    mask = torch.zeros(10, dtype=torch.bool)
    mask[inside] = True
    part, which = W.part(mask)
    weight = W.weight.detach()[which]
    assert torch.equal(part.bind(weight).dense(), W.dense().detach()[mask][:, mask])
    if inside:
        s = randn(3, len(inside))
        assert_close(part.bind(weight).T @ s, s @ W.dense().detach()[mask][:, mask], solved=False)


def test_a_warm_start_knows_neurons_that_come_and_go():
    W = FULL_AND_SPARSE["full"]()
    net, warm = rg.Network(W, f="relu", b=False), rg.WarmStart(memory=1)
    for share in (0.3, 0.4, 0.9, 0.3):
        b = mostly_off(W, 3, share)
        for _ in range(2):
            state = net.steady_state(b, warm=warm)
            state.x.sum().backward()
        assert state.receipt.steps.max() <= 1
