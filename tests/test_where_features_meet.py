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


class Cell(torch.nn.Module):
    def __init__(self, W, *, dtype=torch.float32):
        super().__init__()
        self.W = torch.nn.Parameter(W.to(dtype))

    def forward(self, x, u):
        return torch.tanh(torch.nn.functional.linear(x, self.W) + u)


FROM_A_LAYER = {
    "steady_state": lambda W, u, x0: rg.steady_state(W, u, x0=x0).x,
    "Network.steady_state": lambda W, u, x0: rg.Network(W).steady_state(u, x0=x0).x,
    "trajectory": lambda W, u, x0: rg.trajectory(W, u, x0).x,
    "Network.trajectory": lambda W, u, x0: rg.Network(W).trajectory(u, x0).x,
    "a constant input": lambda W, u, x0: rg.Network(W).trajectory(u, x0, steps=3).x,
    "RNN": lambda W, u, x0: rg.nn.RNN(6, 6)(u, x0[None])[0],
    "RNN without hx": lambda W, u, x0: rg.nn.RNN(6, 6)(u)[0],
    "Equilibrium": lambda W, u, x0: rg.Equilibrium(Cell(W))(u, x0=x0.expand(u.shape)),
    "Equilibrium of a function": lambda W, u, x0: rg.Equilibrium(lambda x, u: torch.tanh(x @ W.T + u))(u),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("found", FROM_A_LAYER.values(), ids=FROM_A_LAYER)
def test_what_a_layer_gave_under_autocast_is_taken_there_and_refused_elsewhere(found, dtype):
    W = 0.8 * randn(6, 6, dtype=torch.float32) / 6**0.5
    u, x0 = (randn(*shape, seed=1, dtype=torch.float32).to(dtype).requires_grad_() for shape in ((5, 3, 6), (3, 6)))

    def gradient(u, x0):
        torch.manual_seed(0)
        x = found(W, u, x0)
        (d,) = torch.autograd.grad(x.sin().sum(), u)
        return x.detach(), d

    wide = [each.detach().float().requires_grad_() for each in (u, x0)]
    with torch.autocast("cpu", dtype=dtype):
        x, d = gradient(u, x0)
        again = gradient(*wide)
    assert x.dtype == torch.float32 and d.dtype == dtype
    assert torch.equal(x, again[0]) and torch.equal(d, again[1].to(dtype))
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    with pytest.raises((TypeError, RuntimeError, ValueError), match=r"dtype|expected m1 and m2|float"):
        found(W, u, x0)
    with torch.autocast("cpu", dtype=other), pytest.raises((TypeError, RuntimeError, ValueError)):
        rg.Network(W).steady_state(u)


def test_a_network_of_the_dtype_of_the_autocast_stays_in_it():
    net, u = rg.Network(0.1 * torch.eye(4, dtype=torch.bfloat16)), torch.ones(2, 4, dtype=torch.bfloat16)
    cell = rg.Equilibrium(Cell(0.1 * torch.eye(4), dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(u).dtype == cell(u).dtype == torch.bfloat16
        assert rg.Network(torch.eye(4).double() / 2)(u).dtype == torch.float64
        assert rg.Equilibrium(Cell(torch.eye(4) / 2, dtype=torch.float64))(u).dtype == torch.float64


def test_an_equilibrium_is_solved_for_as_exactly_under_autocast():
    W, u = 0.8 * randn(6, 6, dtype=torch.float32) / 6**0.5, randn(3, 6, seed=1, dtype=torch.float32)
    eq = rg.Equilibrium(Cell(W))
    want = eq(u).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = eq.steady_state(u)
        (d,) = torch.autograd.grad(state.x.sum(), eq.fn.W, create_graph=True)
    (again,) = torch.autograd.grad(d.square().sum(), eq.fn.W)
    assert torch.equal(state.x, want)
    (wanted,) = torch.autograd.grad(eq(u).sum(), eq.fn.W, create_graph=True)
    assert torch.equal(d, wanted)
    assert torch.equal(again, torch.autograd.grad(wanted.square().sum(), eq.fn.W)[0])


def test_what_is_said_of_steady_states_is_said_under_autocast_too():
    net, b = rg.Network(0.9 * randn(6, 6, dtype=torch.float32)), randn(3, 6, seed=1, dtype=torch.float32)

    def told():
        state = net.steady_state(b)
        return str(state.verdict), len(rg.find_steady_states(net, b[0])), str(rg.uniqueness_certificate(net))

    plain = told()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert told() == plain
