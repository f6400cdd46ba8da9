"""What the structure of W saves: exactly the same answers, and nothing n x n."""

import pytest
import torch
from helpers import assert_close, conditioning, dense_adjoint
from problems import DTYPE, Reward, each_nonlinearity, manufactured, randn

import retrograde as rg

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
