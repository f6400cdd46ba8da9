"""What the solvers reach, counted: steady states found, and products and factorisations spent."""

import math

import pytest
import torch
from problems import DTYPE, STRUCTURES, each_nonlinearity, manufactured, not_normal, randn

import retrograde as rg
from retrograde.defaults import default_solver
from retrograde.feedback import state_problem
from retrograde.solvers.factors import Factors


def dense_residual(W, f, x, b):
    """|f(Wx + b) - x| / |x| in float64, from W as a full matrix."""
    M, x, b = W.detach().double(), x.detach().double(), b.double()
    return (f(x @ M.T + b) - x).norm(dim=-1) / x.norm(dim=-1)


def as_problem(W, f, b):
    """What a solver sees."""
    net = rg.Network(W, f=f, b=False)
    return state_problem(net.recurrence, b, Factors(b), torch.arange(len(b)))


class Counted(rg.Dense):
    """A full W that counts its products, a sample each."""

    def __init__(self, weight):
        super().__init__(weight)
        self.products = 0

    def product(self, x, *weights):
        self.products += len(x)
        return super().product(x, *weights)

    def transposed_product(self, s, *weights):
        self.products += len(s)
        return super().transposed_product(s, *weights)


def spent(W, call):
    """The products of W that the call takes, and what it gives."""
    W.products = 0
    answer = call()
    return W.products, answer


def random_networks(count, structures=("Dense", "LowRank", "Sparse", "Dense", "LowRank", "Dense")):
    """(W, f, b) with gains 0 to 5, for several structures, every bounded f, and both dtypes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=DTYPE)

    for i in range(count):
        n = int(2 + 30 * torch.rand((), generator=generator) ** 2)
        gain = 5 * float(torch.rand((), generator=generator))
        structure, f = structures[i % len(structures)], (rg.Tanh(), rg.Sigmoid(), rg.Pointwise(torch.sin))[i // 6 % 3]
        ends = torch.randint(n, (2, 5 * n), generator=generator)
        W = {
            "Dense": lambda n=n: rg.Dense(normal(n, n)),
            "Sparse": lambda n=n, ends=ends: rg.Sparse.from_edges(ends[0], ends[1], normal(5 * n), n),
            "LowRank": lambda n=n: rg.LowRank(normal(n, 2), normal(n, 2)),
        }[structure]()
        with torch.no_grad():
            W.weights[0].mul_(gain * math.sqrt(n) / W.dense().norm())
        dtype = (torch.float64, torch.float32)[i // 18 % 2]
        yield W.to(dtype), f, normal(6, n).to(dtype)


@torch.no_grad()
def test_of_hundreds_of_random_networks_no_answer_is_silently_wrong_and_every_bounded_one_is_found():
    found = total = before = 0
    for W, f, b in random_networks(36):
        with torch.no_grad():
            state = rg.steady_state(W, b, f, throw=False)
            residual = dense_residual(W.dense(), f, state.x, b)
            allowed = 8 * state.tolerance + 16 * torch.finfo(b.dtype).eps * float(W.dense().norm())
            assert (residual[state.converged] <= allowed).all(), "claimed, and wrong"
            assert (residual <= max(1e-5, allowed)).all() or not state.converged.all()
            settles = rg.steady_state(W, b, f, solver=rg.FixedPoint(), throw=False)
        found, total = found + int(state.converged.sum()), total + len(b)
        before += int(settles.converged.sum())
    assert total == 216 and before < 0.8 * total  # many of them are hard
    assert found == total


# --- paths


def test_a_path_leads_round_its_folds_to_a_state():
    """The path of this network turns back in t: a search that only ever raises t would end there."""
    W, b = 5 * randn(5, 5, seed=3) / 5**0.5, randn(1, 5, seed=103)
    problem = as_problem(W, rg.Tanh(), b)
    solver, z = rg.Homotopy(), torch.zeros_like(b)
    along = []
    with torch.no_grad():
        memory = solver.start(problem, z)
        for _ in range(200):
            step = problem.step(z)
            if (step - z).norm() < 1e-12:
                break
            z, memory, _ = solver.turn(problem, z, step, (step - z).norm(dim=-1), memory)
            along.append(float(memory[5]))
            t = memory[1]
            if 0 < t < 1:  # every point that is accepted lies on the path
                assert (problem.at_gain(t).step(z) - z).norm() < 1e-2
    assert min(along) < 0 < max(along)
    assert dense_residual(W, torch.tanh, rg.steady_state(W, b, solver=solver).x, b) < 1e-12


@pytest.mark.parametrize("n", [20, 60])
def test_the_path_finds_what_newton_and_the_dynamics_do_not(n):
    lost = 0
    for seed in range(6):
        W, b = 4 * randn(n, n, seed=seed) / n**0.5, randn(2, n, seed=100 + seed)
        state = rg.steady_state(W, b, solver=rg.Homotopy())
        assert state.converged.all() and (dense_residual(W, torch.tanh, state.x, b) < 1e-13).all()
        plain = rg.steady_state(W, b, solver=rg.Cascade(rg.FixedPoint(), rg.Newton()), throw=False)
        lost += int((~plain.converged).sum())
    assert lost > 0


def test_the_path_needs_no_factors():
    W, b = 3 * randn(12, 12) / 12**0.5, randn(2, 12, seed=1)
    problem = as_problem(W, rg.Tanh(), b)
    assert problem.factorable

    def without(problem):
        def refuse(*_, **__):
            raise AssertionError("factorised")

        return type(problem)(
            problem.step,
            lambda some: without(problem.take(some)),
            refuse,
            tangent=problem.tangent,
            at_gain=lambda t: without(problem.at_gain(t)),
        )

    for solver in (rg.Homotopy(), rg.PseudoTransient(), rg.NewtonKrylov()):
        solution = solver.solve(without(problem), torch.zeros_like(b))
        assert (solution.status == rg.Status.CONVERGED).all(), solver
        assert (dense_residual(W, torch.tanh, solution.value, b) < 1e-13).all()


def test_a_path_that_leaves_for_infinity_is_told():
    W, b = torch.tensor([[2.0]], dtype=DTYPE), torch.ones(1, dtype=DTYPE)  # x = max(2x + 1, 0) has no solution
    state = rg.steady_state(W, b, "relu", solver=rg.Homotopy(), throw=False)
    assert state.status == rg.Status.DIVERGED and state.steps < 100
    assert not rg.steady_state(W, b, "relu", throw=False).converged


def relu_states(M, b):
    """How many steady states x = max(Mx + b, 0) has, by trial of every set of neurons that may be on."""
    n = len(M)
    on = (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).to(M)
    x = torch.linalg.solve(torch.eye(n, dtype=DTYPE) - on[:, :, None] * M, on * b)
    return int((dense_residual(M, torch.relu, x, b).nan_to_num(0) < 1e-9).sum())


def test_nearly_all_relu_networks_that_have_a_steady_state_are_found():
    every = found = by_other_starts = 0
    for seed in range(40):
        n = 2 + seed % 7
        gain, b = 5 * torch.rand((), generator=torch.Generator().manual_seed(seed)), randn(4, n, seed=seed)
        M = gain * randn(n, n, seed=100 + seed) / n**0.5
        exist = torch.tensor([relu_states(M, each) > 0 for each in b])
        state = rg.steady_state(M, b, "relu", throw=False)
        assert (exist | ~state.converged).all()
        assert (dense_residual(M, torch.relu, state.x, b).nan_to_num(0) < 1e-12)[state.converged].all()
        every, found = every + int(exist.sum()), found + int(state.converged.sum())
        last = len(state.solver.solvers) - 1
        by_other_starts += int((state.converged & (state.attempt == last)).sum())
    assert found > 0.98 * every > 100 and by_other_starts > 0.04 * every


def test_the_starts_are_the_same_in_any_batch_and_an_affine_problem_gets_the_callers():
    W, b = rg.Dense(randn(8, 8)), randn(8, 8)
    solver = rg.Multistart(rg.Newton(max_steps=6), starts=2)
    together = rg.steady_state(W, b, "relu", solver=solver, throw=False)
    assert 0 < together.converged.sum() < len(b) and together.steps.max() > 4
    for k in range(len(b)):
        alone = rg.steady_state(W, b[k], "relu", solver=solver, throw=False)
        assert alone.converged == together.converged[k] and alone.steps == together.steps[k]
        assert torch.allclose(alone.x, together.x[k], rtol=1e-9)
    few = 0.1 * W.dense().detach()
    at_once = rg.steady_state(few, b, "identity", solver=rg.Multistart(rg.FixedPoint()))
    assert torch.equal(at_once.x, rg.steady_state(few, b, "identity", solver=rg.FixedPoint()).x)


def test_a_problem_without_a_gain_has_no_path():
    net = rg.Network(not_normal(3), b=False)
    with pytest.raises(ValueError, match="gain"):
        rg.recurrent_backpropagation(
            net, torch.zeros(3, dtype=DTYPE), torch.ones(3, dtype=DTYPE), adjoint=rg.Homotopy()
        )


@pytest.mark.parametrize("structure", STRUCTURES)
@each_nonlinearity
def test_tangents_are_exact(structure, f):
    W = STRUCTURES[structure]()
    x, b = manufactured(W, f, 2)
    v, t = randn(2, 12, seed=3), torch.tensor([[0.3], [0.8]], dtype=DTYPE)
    problem = as_problem(W, f, b)
    for each in (problem, problem.at_gain(t), problem.at_gain(t).take(torch.tensor([0, 1]))):
        exact = torch.autograd.functional.jvp(each.step, x, v)[1]
        assert (each.tangent(x)(v) - exact).abs().max() < 1e-13
    at_zero = problem.at_gain(torch.zeros_like(t))
    assert (at_zero.step(x) - f(b)).abs().max() < 1e-15


# --- what it costs


def slow_modes(n, gain, seed=0):
    """W of which five eigenvalues are slow, at most `gain`, and the others fill a disc of radius 0.3; not normal."""
    U = torch.linalg.qr(randn(n, 5, seed=seed))[0]
    V = U + 0.3 * torch.linalg.qr(randn(n, 5, seed=seed + 1))[0]
    onto = U @ torch.linalg.solve(V.T @ U, V.T)
    rest = torch.eye(n, dtype=DTYPE) - onto
    slow = torch.diag(gain * torch.tensor([1, 0.97, 0.9, 0.8, 0.7], dtype=DTYPE))
    return rest @ (0.3 * randn(n, n, seed=seed + 2) / n**0.5) @ rest + U @ slow @ torch.linalg.solve(V.T @ U, V.T)


@pytest.mark.parametrize("gain", [0.99, 0.999])
def test_at_a_gain_near_1_ten_times_fewer_products_than_the_dynamics(gain):
    n = 80
    W, b, g = Counted(slow_modes(n, gain)), randn(1, n, seed=7), randn(1, n, seed=8)
    net, A = rg.Network(W, f="identity", b=False), torch.eye(n, dtype=DTYPE) - W.weight.detach()
    x, s = torch.linalg.solve(A, b.T).T, torch.linalg.solve(A.T, g.T).T
    powers = rg.FixedPoint(max_steps=100_000, rtol=1e-5 if gain > 0.99 else None)  # at 0.999 even to so little
    many, _ = spent(W, lambda: net.steady_state(b, solver=powers))
    for solver in (rg.NewtonKrylov(), rg.Anderson(memory=10)):
        few, state = spent(W, lambda solver=solver: net.steady_state(b, solver=solver))
        assert 10 * few <= many
        assert (state.x - x).norm() < 1e-9 * x.norm()
    many, _ = spent(W, lambda: rg.recurrent_backpropagation(net, x, g, adjoint=powers))
    for adjoint in (rg.Krylov("gmres"), rg.Krylov("bicgstab"), None):
        few, found = spent(W, lambda adjoint=adjoint: rg.recurrent_backpropagation(net, x, g, adjoint=adjoint))
        assert 10 * few <= many
        assert (found.s - s).norm() < 1e-9 * s.norm()


def test_one_hard_sample_among_256_costs_little_more_than_the_others(monkeypatch):
    n = 40
    W = Counted(1.5 * randn(n, n) / n**0.5)
    factored, factor = [], torch.linalg.lu_factor_ex
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", lambda A: (factored.append(len(A)), factor(A))[1])
    many = 4 * randn(600, n, seed=1)
    easy = rg.steady_state(W, many, solver=rg.FixedPoint(max_steps=100), throw=False)
    b = many[easy.converged][:255]
    hard = 0.1 * randn(1, n, seed=2)
    assert len(b) == 255 and not rg.steady_state(W, hard, solver=rg.FixedPoint(), throw=False).converged

    def cost(b):
        factored.clear()
        products, state = spent(W, lambda: rg.steady_state(W, b))
        assert state.converged.all()
        return products + sum(factored) * n / 3  # what a factorisation costs, in products

    assert cost(torch.cat([b, hard])) <= 1.3 * cost(b)
    assert cost(hard) > 3 * cost(b) / 255


# --- the cascade


def test_a_cascade_tells_which_solver_answered_and_asks_no_other():
    n = 40
    W = 3 * randn(n, n) / n**0.5
    b = torch.cat([500 * randn(4, n, seed=1), randn(6, n, seed=2)])
    solver = default_solver(rg.Network(W).W.bind(), rg.Tanh())
    solution = solver.solve(as_problem(W, rg.Tanh(), b), torch.zeros_like(b))
    assert (solution.status == rg.Status.CONVERGED).all()
    assert (solution.method[:4] == 0).all() and (solution.method > 0).any()
    # What is told is so: the solvers before it fail on that sample, from where the one before left it.
    for index in range(1, int(solution.method.max()) + 1):
        rows = (solution.method >= index).nonzero()[:, 0]
        part = rg.Cascade(*solver.solvers[:index]).solve(as_problem(W, rg.Tanh(), b), torch.zeros_like(b))
        assert (part.status[rows] != rg.Status.CONVERGED).all()
        assert (part.status[solution.method < index] == rg.Status.CONVERGED).all()
    assert len(solution.method.unique()) > 2
    # The sample that the first solver has settled costs no factorisation.
    only = rg.Cascade(rg.FixedPoint(max_steps=100)).solve(as_problem(W, rg.Tanh(), b), torch.zeros_like(b))
    assert torch.equal(only.value[:4], solution.value[:4]) and torch.equal(only.steps[:4], solution.steps[:4])


def test_of_a_sample_on_which_all_fail_the_best_answer_is_kept():
    W, b = torch.tensor([[-3.0]], dtype=DTYPE), torch.full((1, 1), 0.5, dtype=DTYPE)
    near, worse = rg.FixedPoint(damping=0.3, max_steps=5), rg.FixedPoint(max_steps=50)  # the second leaves the state
    problem, z = as_problem(W, rg.Tanh(), b), torch.zeros_like(b)
    solution, first = rg.Cascade(near, worse).solve(problem, z), near.solve(problem, z)
    assert worse.solve(problem, first.value).residual > 10 * first.residual
    assert torch.equal(solution.value, first.value) and torch.equal(solution.residual, first.residual)
    assert solution.steps == 55 and solution.method == 0


# --- rounding


@pytest.mark.parametrize("plain", ["0", "1"])
@pytest.mark.parametrize("n", [60, 800])
def test_what_rounding_holds_up_is_told_and_not_spun_for(plain, n, monkeypatch):
    monkeypatch.setenv("RETROGRADE_PLAIN", plain)
    W, b = 0.9 * randn(n, n, seed=3, dtype=torch.float32) / n**0.5, randn(n, dtype=torch.float32)
    solver = rg.FixedPoint(rtol=1e-9)
    state = rg.steady_state(W, b, "tanh", solver=solver, throw=False)
    assert state.status == rg.Status.STALLED and not state.converged
    assert state.steps < 400 and state.residual > 1e-9
    with pytest.raises(rg.ConvergenceError, match=r"stalled.*float64, or a looser rtol"):
        rg.steady_state(W, b, "tanh", solver=solver)
    newton = rg.steady_state(W, b, "tanh", solver=rg.Newton(rtol=1e-9), throw=False)
    assert newton.status == rg.Status.STALLED and newton.steps <= 40


@pytest.mark.parametrize("plain", ["0", "1"])
def test_what_is_slow_is_not_taken_for_rounding(plain, monkeypatch):
    monkeypatch.setenv("RETROGRADE_PLAIN", plain)
    W, b = torch.tensor([[0.998]]), torch.ones(1)
    state = rg.steady_state(W, b, "identity", solver=rg.FixedPoint(rtol=3e-6, max_steps=20_000))
    assert state.converged and state.steps > 2000
