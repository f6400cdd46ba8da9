"""What went wrong once where two features met."""

import pytest
import torch
from problems import DTYPE, not_normal, randn

import retrograde as rg


def chain(n, off=0):
    """n linear or ReLU neurons in a row, each driving the next, and neurons beside them that drive nobody."""
    pre = torch.arange(n - 1)
    W = rg.Sparse.from_edges(pre, pre + 1, torch.ones(n - 1, dtype=DTYPE), n + off)
    b = torch.cat([torch.ones(1), torch.zeros(n - 1), -torch.ones(off)]).to(DTYPE)
    return W, b


@pytest.mark.parametrize("solver", [None, rg.FixedPoint(damping=0.5), rg.Newton(), rg.Anderson()], ids=repr)
def test_a_relu_that_is_off_has_no_slope_whatever_the_solver_left_there(solver):
    W, b = torch.tensor([[-3.0, 0.0], [0.5, 0.0]], dtype=DTYPE), torch.tensor([-1.0, 1.0], dtype=DTYPE)
    state = rg.Network(W, f="relu", b=b).steady_state(x0=torch.ones(2, dtype=DTYPE), solver=solver)
    assert state.x[0] == 0 and abs(state.x[1] - 1) < 1e-13 and state.verdict.stable


def test_gradients_of_relu_networks_against_a_dense_solve_on_the_side_they_are_on():
    for seed in range(60):
        W = randn(3, 3, seed=seed) - 2 * torch.eye(3, dtype=DTYPE)
        b = randn(3, seed=seed + 1000).requires_grad_()
        state = rg.steady_state(W, b, "relu", throw=False)
        if not state.converged:
            continue
        (s,) = torch.autograd.grad(state.x.sum(), b)
        D = (W @ state.x.detach() + b.detach() > 0).to(DTYPE)
        exact = torch.linalg.solve(torch.eye(3, dtype=DTYPE) - D[:, None] * W.T, D)
        assert (s - exact).norm() <= 1e-9 * (1 + exact.norm())


def test_a_tangent_that_fails_says_so():
    net = rg.Network(torch.tensor([[1.0]]), f="identity", b=False)
    with pytest.raises(rg.ConvergenceError, match="tangent"):
        torch.func.jvp(net, (torch.zeros(1),), (torch.ones(1),))


def test_neurons_that_are_off_leave_the_levels_of_the_others():
    W, b = chain(900, off=900)
    leaf = b.clone().requires_grad_()
    state = rg.steady_state(W, leaf, "relu")
    (s,) = torch.autograd.grad(state.x[899], leaf)
    assert torch.equal(s[:900], torch.ones(900, dtype=DTYPE)) and not s[900:].any()


def test_a_chain_longer_than_any_solver_is_patient_has_derivatives_of_every_kind():
    W, b = chain(1500)
    _, moved = torch.func.jvp(lambda b: rg.steady_state(W, b, "identity").x, (b,), (torch.eye(1500, dtype=DTYPE)[0],))
    assert torch.equal(moved, torch.ones(1500, dtype=DTYPE))
    leaf = b.clone().requires_grad_()
    x = rg.steady_state(W, leaf, "identity").x
    (s,) = torch.autograd.grad(x[-1].square(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(s[0], leaf)
    assert torch.equal(second, torch.full((1500,), 2.0, dtype=DTYPE))


def test_low_rank_in_half_precision_is_iterated():
    U, V = (0.1 * torch.randn(8, 2)).half(), torch.randn(8, 2).half()
    net = rg.Network(rg.LowRank(U, V))
    net.steady_state(torch.ones(8).half(), solver=rg.FixedPoint(rtol=1e-2)).x.sum().backward()
    assert net.W.U.grad.isfinite().all()


def test_a_start_that_nobody_receives_from_is_looked_at():
    W = rg.Sparse.from_edges([0], [1], torch.tensor([0.5]), 3)
    with pytest.raises(ValueError, match="x0: expected finite numbers"):
        rg.Network(W, leak=0.5).trajectory(torch.zeros(4, 3), torch.tensor([0.0, 0.0, torch.nan]))


@pytest.mark.parametrize("solver", [rg.Homotopy(), rg.FixedPoint()], ids=repr)
def test_a_diverged_sample_that_the_reward_leaves_out_poisons_nothing(solver):
    net = rg.Network(torch.tensor([[2.0]]), f="relu", b=False)
    state = net.steady_state(torch.tensor([[-1.0], [1.0]]), solver=solver, throw=False)
    state.x[state.converged].sum().backward()
    assert net.W.weight.grad.tolist() == [[0.0]]


def test_an_audit_says_who_found_the_cold_answer():
    net = rg.Network(torch.tensor([[2.0]], dtype=DTYPE), b=False)
    solver, warm = rg.Cascade(rg.FixedPoint(max_steps=2), rg.Newton()), rg.WarmStart(audit_every=1)
    net.steady_state(torch.tensor([0.0], dtype=DTYPE), x0=torch.tensor([0.9], dtype=DTYPE), solver=solver, warm=warm)
    input, x0 = torch.tensor([0.0], dtype=DTYPE), torch.tensor([-0.9], dtype=DTYPE)
    with pytest.warns(RuntimeWarning, match="another steady state"):
        state = net.steady_state(input, x0=x0, solver=solver, warm=warm)
    assert state.attempt == net.steady_state(input, x0=x0, solver=solver).attempt == 1 and state.x < 0


def test_a_diverged_adjoint_is_not_called_singular():
    net = rg.Network(torch.tensor([[-3.0]]), b=torch.tensor([0.5]))
    state = net.steady_state(adjoint=rg.FixedPoint(), throw=False)
    state.x.sum().backward()
    assert state.receipt.status == rg.Status.DIVERGED


def test_grad_rtol_looks_into_nested_solvers_and_refuses_an_approximation():
    net = rg.Network(not_normal(4))
    nested = rg.Cascade(rg.Cascade(rg.FixedPoint(rtol=1e-3)), rg.Newton())
    with pytest.raises(ValueError, match="solver: expected a solver without rtol"):
        net.steady_state(randn(4), solver=nested, grad_rtol=1e-2)
    with pytest.raises(ValueError, match="adjoint: expected a solver that can be exact"):
        net.steady_state(randn(4), adjoint=rg.Neumann(terms=1), grad_rtol=1e-2)


def test_a_warm_start_refuses_what_is_no_state_of_one():
    warm = rg.WarmStart()
    tables = {"x": (torch.zeros(6, 4, 3), torch.zeros(5, dtype=torch.int64))}
    with pytest.raises(ValueError, match="state: expected tables"):
        warm.load_state_dict({"tables": tables, "audits": 0, "disagreements": 0})
    with pytest.raises(TypeError, match="state: expected tensors"):
        warm.load_state_dict({"tables": {"x": (None, None)}, "audits": 0, "disagreements": 0})


@pytest.mark.parametrize("W", [rg.Dense, lambda M: rg.Sparse(M.to_sparse())], ids=["Dense", "Sparse"])
@pytest.mark.parametrize(
    "solver", [None, rg.Anderson(), rg.Newton(), rg.NewtonKrylov(), rg.PseudoTransient(), rg.Homotopy()], ids=repr
)
def test_autocast_changes_no_bit(W, solver):
    M = 0.9 * randn(12, 12, dtype=torch.float32) / 12**0.5
    b, g = randn(2, 3, 12, seed=1, dtype=torch.float32)

    def found(enabled):
        net = rg.Network(W(M))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            x = net.steady_state(b, solver=solver).x
            x.backward(g)
            by_hand = rg.recurrent_backpropagation(net, x.detach(), g)
            path = net.trajectory(b, x0=x.detach(), steps=3).x
        return x.detach(), net.W.weights[0].grad, net.b.grad, by_hand.s, path.detach()

    for plain, within in zip(found(False), found(True), strict=True):
        assert torch.equal(plain, within)


def test_what_is_said_of_steady_states_is_said_under_autocast_too():
    net, b = rg.Network(0.9 * randn(6, 6, dtype=torch.float32)), randn(3, 6, seed=1, dtype=torch.float32)

    def told():
        state = net.steady_state(b)
        return str(state.verdict), len(rg.find_steady_states(net, b[0])), str(rg.uniqueness_certificate(net))

    plain = told()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert told() == plain
