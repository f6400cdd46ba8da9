import builtins
import itertools

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import SLACK, assert_close, tolerance
from problems import DTYPE, bistable, not_normal, randn
from torch import nn

import retrograde as rg
from retrograde.solvers import Problem
from retrograde.spectrum import find_steady_states
from retrograde.spectrum.cells import cell_of
from retrograde.spectrum.deflation import DeflatedNewton

UP = 0.9575040240772687  # x = tanh(2x), and so -UP and 0


def assert_same_set(got, want, slack=SLACK):
    """Each row of `want` is one of `got`, and there are as many."""
    assert got.shape == want.shape
    away = torch.cdist(got, want, compute_mode="donot_use_mm_for_euclid_dist")
    allowed = slack * tolerance(want.dtype)
    assert (away.amin(0) <= allowed).all() and (away.amin(1) <= allowed).all()


def grid(values, n):
    return torch.tensor(list(itertools.product(values, repeat=n)), dtype=DTYPE)


def gru(n=6, inputs=2, scale=1.0, seed=0):
    cell = nn.GRUCell(inputs, n).double()
    for i, weight in enumerate(cell.parameters()):
        weight.data.copy_(scale * randn(*weight.shape, seed=seed + i))
    return cell


# --- what is found


def test_the_three_states_of_the_bistable_problem():
    problem = bistable()
    found = find_steady_states(problem.network)
    assert_same_set(found.x, problem.x)
    assert found.dry and found.failed == 0 and found.coverage == 1 and found.isolated.all()
    assert found.stable.tolist() == [True, True, False] and abs(float(found.x[2, 0])) < 1e-12
    assert float(found.basin.sum()) == 1 and found.unsettled == 0 and float(found.basin[2]) == 0
    assert (found.residual <= tolerance(DTYPE)).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_all_of_the_states_of_uncoupled_bistable_neurons(k):
    found = find_steady_states(rg.Network(2 * torch.eye(k, dtype=DTYPE)))
    assert_same_set(found.x, grid((-UP, 0.0, UP), k))
    # The stable ones are those without a 0.
    assert torch.equal(found.stable, (found.x.abs() > 0.5).all(-1))
    assert int(found.stable.sum()) == 2**k and found.dry


def test_deflation_finds_what_newton_alone_does_not():
    net, start = rg.Network(2 * torch.eye(1, dtype=DTYPE)), torch.tensor([[1.0]], dtype=DTYPE)
    alone = find_steady_states(net, starts=start, rounds=0, settle=0)
    assert_same_set(alone.x, torch.tensor([[UP]], dtype=DTYPE))
    found = find_steady_states(net, starts=start, settle=0)  # the one start serves for all three
    assert_same_set(found.x, grid((-UP, 0.0, UP), 1))
    assert found.hits.sum() == 1 and not alone.dry and alone.rounds == 0


def test_the_deflated_direction_is_newtons_on_the_deflated_residual():
    W, known = not_normal(4, 2.0), randn(3, 4, seed=2)
    cell = cell_of(rg.Network(W))
    z = randn(1, 4, seed=3)

    def deflated(z):
        eta = (1 / (z - known).square().sum(-1) + 1).prod()
        return eta * (torch.tanh(z[0] @ W.T) - z[0])

    J = torch.autograd.functional.jacobian(deflated, z)[:, 0]
    want = -torch.linalg.solve(J, deflated(z))
    solver = DeflatedNewton(known=known)
    problem = cell.problem()
    with torch.no_grad():
        step = problem.step(z)
        moved, *_ = solver.turn(problem, z, step, torch.ones(1), solver.start(problem, z))
    assert_close(moved[0] - z[0], want, solved=False, conditioning=1e3)


def test_a_large_network_that_is_not_full_is_searched_by_products_alone():
    n = 80
    M = 0.3 * not_normal(n)
    M[0, 0], M[1, 1] = 2.5, -3.0  # bistable; and by itself alternating, but for the leak
    W = rg.Sparse(scipy.sparse.csr_matrix(M.numpy()))
    assert cell_of(rg.Network(W)).full is None
    W, M = (rg.Network(each, leak=0.3) for each in (W, M))
    found, full = (find_steady_states(net, starts=4, settle=300) for net in (W, M))
    assert len(found) == 3
    assert_same_set(found.x, full.x, slack=1e4)
    assert found.stable.any() and not found.stable_discrete.any()
    for one in ("stable", "stable_discrete", "stable_continuous", "basin"):
        assert torch.equal(getattr(found, one), getattr(full, one))
    assert_close(found.eigenvalues[:, 0].abs(), full.eigenvalues[:, 0].abs(), within=1e-5)
    with pytest.raises(ValueError, match="J_xstar"):
        found.to_fixed_points()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_are_merged_in_each_dtype_up_to_a_fold_at_which_two_states_meet(dtype):
    # x = tanh(2x + b) has its fold at x = -1/√2; just before it two states lie 2e-2 apart.
    x = torch.tensor([-(0.5**0.5) - 1e-2], dtype=dtype)
    b = torch.atanh(x) - 2 * x
    found = find_steady_states(rg.Network(torch.tensor([[2.0]], dtype=dtype), b=b))
    assert len(found) == 3 and found.x.dtype == dtype
    assert (found.x - x).abs().min() <= 1e3 * tolerance(dtype)


def test_every_state_is_told_with_its_own_spectrum():
    W = randn(4, 4)
    found = find_steady_states(rg.Network(W, leak=0.3), modes=3)
    assert len(found) == 3
    for i in range(len(found)):
        D = 1 - torch.tanh(W @ found.x[i]) ** 2
        J = (D[:, None] * W).numpy()
        values = np.linalg.eigvals(J)
        own = np.linalg.eigvals(0.7 * np.eye(4) + 0.3 * J)
        assert bool(found.stable[i]) == bool((abs(own) < 1).all())
        assert bool(found.stable_discrete[i]) == bool((abs(values) < 1).all())
        assert bool(found.stable_continuous[i]) == bool((values.real < 1).all())
        assert_close(found.eigenvalues[i].abs(), torch.tensor(np.sort(abs(values))[::-1][:3].copy()), conditioning=1e4)
        for value, mode in zip(found.eigenvalues[i], found.modes[i], strict=True):
            image = torch.tensor(J).to(mode.dtype) @ mode
            assert_close(torch.view_as_real(image), torch.view_as_real(value * mode), conditioning=1e3)
    # The verdicts do differ here.
    assert (found.stable != found.stable_discrete).any()


def test_a_basin_is_the_share_of_starts_that_end_there_and_cycles_are_none():
    starts = torch.tensor([[0.1], [0.2], [3.0], [-0.1], [0.0]], dtype=DTYPE)
    found = find_steady_states(rg.Network(torch.tensor([[2.0]], dtype=DTYPE)), starts=starts)
    assert dict(zip(found.x[:, 0].round(decimals=4).abs().tolist(), [0.0] * 3, strict=True)).keys() == {0.9575, 0.0}
    basin = {
        round(float(x), 4) + 0.0: round(float(share), 4) for x, share in zip(found.x[:, 0], found.basin, strict=True)
    }
    assert basin == {0.9575: 0.6, -0.9575: 0.2, 0.0: 0.2}
    flips = find_steady_states(rg.Network(torch.tensor([[-3.0]], dtype=DTYPE)))
    assert len(flips) == 1 and flips.unsettled == 1 and not flips.stable[0] and flips.stable_continuous[0]


def test_a_state_of_a_continuum_is_not_isolated_and_one_at_a_pitchfork_is():
    identity = find_steady_states(rg.Network(torch.eye(2, dtype=DTYPE), f="identity"), starts=5, rounds=2)
    assert len(identity) and not identity.isolated.any()
    critical = find_steady_states(rg.Network(torch.eye(1, dtype=DTYPE)))
    assert len(critical) == 1 and critical.isolated.all() and critical.x.abs().max() < 1e-5


def test_a_network_without_a_steady_state_gives_none_and_says_that_all_starts_failed():
    net = rg.Network(torch.tensor([[2.0]], dtype=DTYPE), f="relu", b=torch.ones(1, dtype=DTYPE))
    found = find_steady_states(net, starts=16)
    assert len(found) == 0 and found.failed == 16 and found.unsettled == 1 and np.isnan(found.coverage)
    assert found.eigenvalues.shape[0] == 0 and len(found.table()) == 0 and found.to_fixed_points().n == 0
    assert "0 steady states" in str(found)


def test_the_coverage_tells_of_states_that_one_start_alone_found():
    few = find_steady_states(rg.Network(2 * torch.eye(4, dtype=DTYPE)), starts=24, rounds=0)
    hits = few.hits[few.hits > 0]
    assert few.coverage == 1 - int((hits == 1).sum()) / int(hits.sum()) < 0.9
    assert len(few) < 81 and not few.dry


# --- starts


def test_starts_may_be_given_or_be_the_states_of_a_trajectory():
    net = rg.Network(2 * torch.eye(2, dtype=DTYPE))
    path = net.trajectory(x0=randn(3, 2), steps=4)
    found = find_steady_states(net, starts=path)
    assert found.starts == 12 and found.rounds >= 2
    given = find_steady_states(net, starts=path.x.detach())
    assert torch.equal(found.x, given.x)


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_starts():
    net = rg.Network(3 * randn(5, 5, seed=1))
    one, same, other = (find_steady_states(net, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.x, same.x) and torch.equal(one.x_init, same.x_init)
    assert not torch.equal(one.x_init, other.x_init)


# --- any cell


@pytest.mark.parametrize("make", [lambda: nn.RNNCell(2, 6), lambda: nn.GRUCell(2, 6), lambda: nn.LSTMCell(2, 3)])
def test_a_torch_cell_stays_at_what_is_found(make):
    cell, input = make().double(), randn(2)
    found = find_steady_states(cell, input, starts=16)
    assert len(found) and found.stable[0] and found.basin[0] == 1
    x = found.x[:1]
    if isinstance(cell, nn.LSTMCell):
        again = torch.cat(cell(input[None], (x[:, :3], x[:, 3:])), -1)
    else:
        again = cell(input[None], x)
    assert_close(again.detach(), x)


def test_the_jacobians_of_a_cell_are_those_of_autograd_one_row_at_a_time():
    cell, input = gru(), randn(2)
    adapter = cell_of(cell, input)
    x, v = torch.tanh(randn(3, 6, seed=1)), randn(3, 6, seed=2)
    rows = [torch.autograd.functional.jacobian(lambda h: cell(input[None], h[None])[0], row) for row in x]
    assert_close(adapter.full(x), torch.stack(rows), solved=False)
    assert_close(adapter.tangent(x)(v), torch.einsum("kij,kj->ki", torch.stack(rows), v), solved=False)
    by_input = [torch.autograd.functional.jacobian(lambda u, row=row: cell(u[None], row[None])[0], input) for row in x]
    assert_close(adapter.of_input(x).detach(), torch.stack(by_input), solved=False)


def test_an_rnn_cell_has_the_states_of_the_network_that_it_is():
    W, input = 3 * randn(5, 5, seed=1), 0.1 * randn(3)
    cell = nn.RNNCell(3, 5).double()
    cell.weight_hh.data.copy_(W)
    b = (cell.weight_ih @ input + cell.bias_ih + cell.bias_hh).detach()
    found, want = find_steady_states(cell, input), find_steady_states(rg.Network(W, b=b))
    assert len(found) > 1
    assert_same_set(found.x, want.x, slack=1e4)
    function = find_steady_states(lambda x: torch.tanh(x @ W.T + b), n=5, x0=torch.zeros(5, dtype=DTYPE))
    assert_same_set(function.x, want.x, slack=1e4)


def test_a_saturated_gate_makes_no_state():
    # Far outside, the gate z rounds to 1, and a GRU seems to stay wherever it is.
    cell, far = gru(scale=3.0), 50 * torch.ones(1, 6, dtype=DTYPE)
    starts = torch.cat([far, -far, 20 * randn(20, 6)])
    found = find_steady_states(cell, randn(2, seed=9), starts=starts, rounds=1, settle=100)
    assert (found.x.abs() <= 1).all()
    # Of a function it is not known how far its states reach; they are listed, and told apart.
    as_function = find_steady_states(
        lambda x: cell(randn(2, seed=9).expand(len(x), 2), x), n=6, starts=starts, x0=far[0], rounds=1, settle=100
    )
    beyond = (as_function.x.abs() > 1).any(-1)
    assert beyond.any() and not as_function.isolated[beyond].any()


def test_a_state_near_0_of_a_function_that_rounds_is_found():
    found = find_steady_states(lambda x: 1 + torch.tanh(2 * x) - 1, x0=torch.zeros(1, dtype=DTYPE))
    assert_same_set(found.x, grid((-UP, 0.0, UP), 1), slack=1e3)


# --- the fields of the fixed-point-finder package, and the table


@pytest.mark.parametrize("leak", [None, 0.4])
def test_the_fields_of_fixed_points_are_what_their_names_say(leak):
    W, input = 2 * randn(4, 4), 0.1 * randn(4)
    net = rg.Network(W, leak=leak)
    found = find_steady_states(net, input)
    points = found.to_fixed_points()
    k, a = len(found), 1.0 if leak is None else leak
    assert k > 1 and points.n == k
    X = points.xstar
    D = 1 - np.tanh(X @ W.T.numpy() + input.numpy()) ** 2
    J = (1 - a) * np.eye(4) + a * D[:, :, None] * W.numpy()
    assert np.allclose(points.F_xstar, (1 - a) * X + a * np.tanh(X @ W.T.numpy() + input.numpy()))
    assert np.allclose(points.J_xstar, J)
    assert np.allclose(points.dFdu, a * D[:, :, None] * np.eye(4))
    assert np.allclose(points.qstar, 0.5 * ((points.F_xstar - X) ** 2).sum(-1), atol=0) and (points.qstar < 1e-28).all()
    assert points.dq.shape == (k,) and (points.dq >= 0).all()
    values, vectors = points.eigval_J_xstar, points.eigvec_J_xstar
    assert np.allclose(np.einsum("kij,kjm->kim", J, vectors), values[:, None] * vectors)
    assert (np.diff(abs(values), axis=1) <= 1e-12).all()
    assert (points.is_stable == (abs(np.linalg.eigvals(J)) < 1).all(-1)).all()
    assert points.x_init.shape == X.shape and (points.n_iters > 0).all() and (points.cond_id == 0).all()
    assert np.array_equal(points.inputs, np.tile(input.numpy(), (k, 1)))
    assert all(isinstance(value, np.ndarray) for value in vars(points).values())


def test_the_table_has_a_row_a_state():
    found = find_steady_states(bistable().network)
    table = found.table()
    assert len(table) == 3 and table["stable"].tolist() == found.stable.tolist()
    assert np.array_equal(table[["x[0]", "x[1]"]].to_numpy(), found.x.numpy())
    assert str(found).count("\n") == 3 and "basin" in str(found)


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    found, real = find_steady_states(bistable().network), builtins.__import__

    def without(name, *rest, **more):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"retrograde\[app\]"):
        found.table()


# --- bad input


def test_bad_input_is_named():
    net = rg.Network(not_normal(3))
    for error, match, call in [
        (TypeError, "net: expected a Network", lambda: find_steady_states(3)),
        (ValueError, "n: expected how many", lambda: find_steady_states(torch.tanh)),
        (ValueError, "input: a function", lambda: find_steady_states(torch.tanh, randn(3), n=3)),
        (ValueError, "input: expected one", lambda: find_steady_states(net, randn(2, 3))),
        (ValueError, "input: expected shape", lambda: find_steady_states(net, randn(4))),
        (ValueError, "input: expected one", lambda: find_steady_states(gru(), randn(2, 2))),
        (ValueError, "input", lambda: find_steady_states(net, torch.full((3,), torch.nan, dtype=DTYPE))),
        (ValueError, "n: expected 3", lambda: find_steady_states(net, n=4)),
        (ValueError, "starts: expected shape", lambda: find_steady_states(net, starts=randn(5, 4))),
        (TypeError, "starts: expected torch.float64", lambda: find_steady_states(net, starts=randn(5, 3).float())),
        (TypeError, "starts: expected an integer", lambda: find_steady_states(net, starts="many")),
        (ValueError, "starts: expected an integer of at least 1", lambda: find_steady_states(net, starts=0)),
        (ValueError, "rounds", lambda: find_steady_states(net, rounds=-1)),
        (TypeError, "settle", lambda: find_steady_states(net, settle=1.5)),
        (ValueError, "modes", lambda: find_steady_states(net, modes=0)),
        (ValueError, "keeps shape and dtype", lambda: find_steady_states(lambda x: x[:, :2], n=3)),
        (ValueError, "each row by itself", lambda: find_steady_states(lambda x: x - x.mean(0), n=3)),
    ]:
        with pytest.raises(error, match=match):
            call()


def test_nothing_is_left_on_the_parameters_and_no_graph_is_kept():
    net = rg.Network(not_normal(3))
    found = find_steady_states(net)
    assert not found.x.requires_grad and net.W.weight.grad is None and net.W.weight.requires_grad
    assert isinstance(cell_of(net).problem(), Problem)


def test_a_layer_that_takes_sequences_is_told_from_its_cell():
    with pytest.raises(TypeError, match=r"net: expected a torch cell such as GRUCell.*got GRU, which takes a whole"):
        rg.find_steady_states(torch.nn.GRU(2, 3), torch.zeros(2))
