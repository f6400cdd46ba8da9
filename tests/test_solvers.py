from dataclasses import dataclass, replace

import pytest
import torch
from helpers import assert_close, tolerance
from problems import ADJOINTS, DTYPE, SOLVERS, STRUCTURES, each_adjoint, each_solver, manufactured, not_normal, randn

import retrograde as rg
from retrograde.defaults import default_adjoint
from retrograde.solvers import Problem, gmres, relative_residual
from retrograde.solvers.base import Iteration


def affine(A, c):
    """z = Az + c for each row of c, A one matrix for all."""

    def problem(c):
        def factorise(z, anew=False):
            lu = torch.linalg.lu_factor(torch.eye(len(A)).to(A) - A)
            return lambda r: torch.linalg.lu_solve(*lu, r.T).T

        return Problem(lambda z: z @ A.T + c, lambda some: problem(c[some]), factorise, affine=True)

    return problem(c)


@each_adjoint
@pytest.mark.parametrize("n", [1, 2, 12])
def test_a_solver_knows_nothing_of_networks(adjoint, n):
    A, c = not_normal(n, norm=0.8), randn(5, n)
    exact = torch.linalg.solve(torch.eye(n, dtype=DTYPE) - A, c.T).T
    solution = adjoint.solve(affine(A, c), torch.zeros_like(c))
    assert (solution.status == rg.Status.CONVERGED).all()
    assert_close(solution.value, exact, conditioning=10)
    again = relative_residual(affine(A, c).step(solution.value), solution.value)
    assert ((solution.residual - again).abs() <= tolerance(DTYPE, solved=False)).all()


@each_adjoint
def test_an_empty_problem_is_solved_at_once(adjoint):
    solution = adjoint.solve(affine(not_normal(3), torch.empty(0, 3, dtype=DTYPE)), torch.empty(0, 3, dtype=DTYPE))
    assert solution.value.shape == (0, 3) and solution.steps.shape == (0,)


@each_adjoint
def test_the_solution_itself_takes_no_steps(adjoint):
    A, c = not_normal(6), randn(2, 6)
    exact = torch.linalg.solve(torch.eye(6, dtype=DTYPE) - A, c.T).T
    solution = adjoint.solve(affine(A, c), exact)
    assert solution.steps.tolist() == [0, 0] and torch.equal(solution.value, exact)


@each_adjoint
def test_samples_do_not_mix(adjoint):
    A, c = not_normal(6), randn(4, 6) * torch.tensor([1e-8, 1, 0, 1e8], dtype=DTYPE)[:, None]
    whole = adjoint.solve(affine(A, c), torch.zeros_like(c))
    alone = [adjoint.solve(affine(A, row[None]), torch.zeros_like(row[None])) for row in c]
    assert whole.steps.tolist() == [int(one.steps) for one in alone]
    for row, one in zip(whole.value, alone, strict=True):
        assert_close(row, one.value[0], conditioning=10)
    assert (whole.value[2] == 0).all()


def test_newton_and_direct_solve_an_affine_problem_in_one_step():
    A, c = not_normal(6), randn(2, 6)
    for solver in (rg.Newton(), rg.Direct()):
        assert (solver.solve(affine(A, c), torch.zeros_like(c)).steps <= 2).all()


def affine_with_stale_factors(A, c):
    """As `affine`, but its factors are of the wrong sign until they are asked for anew: refinement leads away."""
    right = [False]

    def problem(c):
        def factorise(z, anew=False):
            right[0] |= anew
            B = torch.eye(len(A)).to(A) - A
            return lambda r: torch.linalg.solve(B if right[0] else -B, r.T).T

        return Problem(lambda z: z @ A.T + c, lambda some: problem(c[some]), factorise, affine=True)

    return problem(c)


@pytest.mark.parametrize("solver", [rg.Direct(), rg.Newton()], ids=repr)
def test_factors_of_another_matrix_are_made_anew(solver):
    A, c = not_normal(6), randn(2, 6)
    solution = solver.solve(affine_with_stale_factors(A, c), torch.zeros_like(c))
    assert (solution.status == rg.Status.CONVERGED).all() and (solution.steps <= 4).all()


def test_newton_goes_on_where_its_line_search_finds_nothing():
    def f(u):  # f(u) - u has a least value at 0, where I - J is singular, and its zero at ±100 √2
        return u + 1 + u**2 / (1 + u**2) - (u / 100) ** 2

    zero = torch.zeros(1, dtype=DTYPE)
    state = rg.steady_state(torch.ones(1, 1, dtype=DTYPE), zero, rg.Pointwise(f), solver=rg.Newton(max_steps=40))
    assert_close(state.x.abs(), torch.full_like(zero, 100 * 2**0.5), within=1e-4)


@dataclass(frozen=True, kw_only=True)
class Uneven(Iteration):
    """The dynamics, of which a step costs the first sample ten times what it costs the others."""

    def start(self, problem, z):
        return (torch.where(torch.arange(len(z)) == 0, 10, 1),)

    def turn(self, problem, z, step, residual, memory):
        return step, memory, memory[0]


def test_what_one_sample_spends_does_not_stop_the_others():
    A, c = 0.5 * torch.eye(1, dtype=DTYPE), torch.ones(3, 1, dtype=DTYPE)
    solution = Uneven(max_steps=60).solve(affine(A, c), torch.zeros_like(c))
    assert solution.status.tolist() == [rg.Status.MAX_STEPS, rg.Status.CONVERGED, rg.Status.CONVERGED]
    assert solution.steps[0] == 60 and (solution.steps[1:] < 60).all()


def test_a_hasty_iteration_leaves_a_linear_problem_that_would_take_too_long():
    A, c = torch.diag(torch.tensor([0.99, 0.3], dtype=DTYPE)), torch.eye(2, dtype=DTYPE)
    hasty, patient = rg.FixedPoint(max_steps=100, hasty=True), rg.FixedPoint(max_steps=100)
    found, slowly = (each.solve(affine(A, c), c) for each in (hasty, patient))
    assert found.status.tolist() == [rg.Status.MAX_STEPS, rg.Status.CONVERGED]
    assert found.steps[0] == hasty.window and slowly.steps[0] == 100
    assert torch.equal(found.value[1], slowly.value[1]) and found.steps[1] == slowly.steps[1]
    bent = replace(affine(A, c[:1]), affine=False)  # whose pace may change
    assert hasty.solve(bent, c[:1]).steps == 100
    # At the tolerance of its own dtype it would get there.
    few_digits = hasty.solve(affine(A.bfloat16(), c.bfloat16()), c.bfloat16())
    assert (few_digits.status == rg.Status.CONVERGED).all() and few_digits.steps[0] > hasty.window
    assert repr(hasty) == "FixedPoint(rtol=None, max_steps=100, damping=1.0, hasty=True)"
    with pytest.raises(TypeError, match="hasty"):
        rg.FixedPoint(hasty="no")


@pytest.mark.parametrize("n", (5, 800))  # 800: of which the threads share each product
def test_a_hasty_kernel_stops_where_the_plain_path_does(n, monkeypatch):
    W = 0.99 * torch.linalg.qr(randn(n, n))[0].float()
    b, g = torch.zeros(1, n, requires_grad=True), randn(1, n, seed=1).float()
    adjoint = rg.FixedPoint(max_steps=100, hasty=True)

    def gradient():
        state = rg.steady_state(W, b, adjoint=adjoint, throw=False)
        (s,) = torch.autograd.grad(state.x, b, g)
        return state.receipt.steps, s

    steps, s = gradient()
    monkeypatch.setenv("RETROGRADE_PLAIN", "1")
    plain_steps, plain_s = gradient()
    assert steps == plain_steps == adjoint.window
    assert_close(s, plain_s, within=1e-5)


def test_gmres_solves_in_at_most_n_products_what_the_dynamics_leave():
    A, c = 5 * not_normal(8, norm=1), randn(3, 8)
    exact = torch.linalg.solve(torch.eye(8, dtype=DTYPE) - A, c.T).T
    solution = rg.Krylov().solve(affine(A, c), torch.zeros_like(c))
    assert_close(solution.value, exact, conditioning=torch.linalg.cond(torch.eye(8, dtype=DTYPE) - A))
    assert (solution.steps <= 8).all()
    assert (rg.FixedPoint(max_steps=200).solve(affine(A, c), c).status != rg.Status.CONVERGED).all()


def test_gmres_finds_the_solution_in_an_invariant_subspace_and_stops():
    A = torch.diag(torch.tensor([0.5, 0.5, 0.2, 0.9], dtype=DTYPE))
    c = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]], dtype=DTYPE)
    solution = rg.Krylov().solve(affine(A, c), c)
    assert solution.steps.tolist() == [1, 3]  # as many as there are different eigenvalues in c
    assert_close(solution.value, c / (1 - A.diag()))


def test_gmres_grows_its_cycles_where_restarts_would_stagnate():
    """J shifts round a ring: what GMRES has after fewer than n products tells nothing of the answer."""
    n = 50
    A = 1.1 * torch.eye(n, dtype=DTYPE).roll(1, 0)
    c = torch.eye(n, dtype=DTYPE)[:1]
    exact = torch.linalg.solve(torch.eye(n, dtype=DTYPE) - A, c.T).T
    short = rg.Krylov(restart=10, max_steps=300)
    solution = short.solve(affine(A, c), torch.zeros_like(c))
    assert solution.status == rg.Status.CONVERGED and n <= solution.steps <= 300
    assert_close(solution.value, exact, conditioning=50)


def test_bicgstab_goes_on_where_it_breaks_down():
    """I - J is skew: r is orthogonal to (I - J) r, and the method's first division is by zero."""
    S = randn(6, 6)
    A = torch.eye(6, dtype=DTYPE) - (S - S.T)
    c = randn(3, 6, seed=2)
    exact = torch.linalg.solve(torch.eye(6, dtype=DTYPE) - A, c.T).T
    solution = rg.Krylov("bicgstab").solve(affine(A, c), torch.zeros_like(c))
    assert (solution.status == rg.Status.CONVERGED).all()
    assert_close(solution.value, exact, conditioning=torch.linalg.cond(torch.eye(6, dtype=DTYPE) - A))


def test_anderson_is_gmres_where_its_memory_reaches():
    n = 8
    A, c = 3 * not_normal(n, norm=1), randn(4, n)  # the dynamics leave the solution
    exact = torch.linalg.solve(torch.eye(n, dtype=DTYPE) - A, c.T).T
    solution = rg.Anderson(memory=n).solve(affine(A, c), torch.zeros_like(c))
    assert (solution.steps <= 2 * n + 4).all()
    assert_close(solution.value, exact, conditioning=torch.linalg.cond(torch.eye(n, dtype=DTYPE) - A))


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_anderson_does_not_know_how_large_its_problem_is(scale):
    A, c = not_normal(20, norm=0.99), randn(3, 20)
    one = rg.Anderson().solve(affine(A, c), torch.zeros_like(c))
    other = rg.Anderson().solve(affine(A, scale * c), torch.zeros_like(c))
    assert (one.steps - other.steps).abs().max() <= 2
    powers = rg.FixedPoint().solve(affine(A, c), torch.zeros_like(c))
    assert (one.steps < powers.steps).all()


def test_anderson_may_begin_after_some_plain_steps():
    A, c = not_normal(20, norm=0.99), randn(3, 20)
    after = {}
    for steps in (4, 5, 8):
        plain = rg.FixedPoint(max_steps=steps).solve(affine(A, c), torch.zeros_like(c))
        delayed = rg.Anderson(delay=4, max_steps=steps).solve(affine(A, c), torch.zeros_like(c))
        after[steps] = float((plain.value - delayed.value).abs().max())
    assert after[4] == 0 < after[5] and after[8] > 0


def test_anderson_begins_anew_where_things_get_worse():
    """From an iterate whose residual is a hundred times the best it goes back to the best step, and forgets."""
    A, c = not_normal(6), randn(1, 6)
    solver, problem, z = rg.Anderson(), affine(A, c), randn(1, 6, seed=3)
    memory, met = solver.start(problem, z), []
    for _ in range(3):
        step = problem.step(z)
        met.append((float((step - z).norm()), step))
        z, memory, _ = solver.turn(problem, z, step, (step - z).norm(dim=-1), memory)
    astray = z + 1000 * randn(1, 6, seed=4)
    z, memory, _ = solver.turn(problem, astray, problem.step(astray), torch.ones(1), memory)
    assert torch.equal(z, min(met, key=lambda one: one[0])[1])
    z_next, _, _ = solver.turn(problem, z, problem.step(z), torch.ones(1), memory)
    assert torch.equal(z_next, problem.step(z))  # with nothing to extrapolate from, the plain step


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_a_truncated_series_is_called_one(terms):
    net = rg.Network(not_normal(12), b=False)
    x, b = manufactured(net.W, net.f, 3)
    g = randn(3, 12)
    D = net.f.slope(x)
    s = term = D * g
    for _ in range(terms - 1):
        term = D * (net.W.T @ term)
        s = s + term
    found = rg.recurrent_backpropagation(net, x, g, adjoint=rg.Neumann(terms=terms))  # which does not raise
    assert_close(found.s, s, solved=False)
    receipt = found.receipt
    assert receipt.method == f"Neumann(terms={terms})" and (receipt.steps == terms).all()
    assert (receipt.status == rg.Status.TRUNCATED).all() and not receipt.converged.any() and not receipt.failed.any()
    gap = (net.adjoint_step(found.s, x, g) - found.s).norm(dim=-1) / found.s.norm(dim=-1)
    assert_close(receipt.residual, gap.detach(), conditioning=10, solved=False)
    exact = rg.recurrent_backpropagation(net, x, g).s
    error = (found.s - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert (receipt.residual > 1e-6).all() and (error < 10 * receipt.error_estimate).all()
    assert "approximation" in rg.Status.TRUNCATED.message
    state = net.steady_state(b, adjoint=rg.Neumann(terms=terms))
    state.x.backward(g)
    assert (state.receipt.status == rg.Status.TRUNCATED).all()


def test_a_series_that_ends_is_no_approximation():
    A = torch.triu(randn(3, 3), 1)  # A³ = 0
    c = randn(2, 3)
    solution = rg.Neumann(terms=3).solve(affine(A, c), c)
    assert (solution.status == rg.Status.CONVERGED).all()
    assert (rg.Neumann(terms=2).solve(affine(A, c), c).status == rg.Status.TRUNCATED).all()


def test_a_series_that_overflows_is_a_failure():
    net = rg.Network(1e200 * torch.ones(1, 1, dtype=DTYPE), f="identity", b=False)
    x = torch.zeros(1, dtype=DTYPE)
    with pytest.raises(rg.ConvergenceError, match="1 of 1"):
        rg.recurrent_backpropagation(net, x, torch.ones_like(x), adjoint=rg.Neumann(terms=3))


class Exactly(rg.NewtonKrylov):
    """Newton's method whose directions are found to a millionth, wherever it stands."""

    def towards(self, problem, z, r, drop):
        return gmres.solve(problem, z, r, 1e-6 * r.norm(dim=-1))


def test_newton_krylov_asks_for_no_more_than_it_needs():
    """Far from the solution its directions are rough; the same directions, found exactly, take more products."""
    W, b = 0.95 * randn(60, 60) / 60**0.5, randn(4, 60, seed=1)
    ours, newton, exactly = (
        rg.steady_state(W, b, solver=solver) for solver in (rg.NewtonKrylov(), rg.Newton(), Exactly())
    )
    assert_close(ours.x, newton.x, conditioning=100)
    assert_close(exactly.x, newton.x, conditioning=100)
    assert (1.3 * ours.steps < exactly.steps).all()


def test_pseudo_transient_starts_along_the_dynamics_and_ends_as_newton():
    A, c = not_normal(6), randn(2, 6)
    z = randn(2, 6, seed=3)
    solver = rg.PseudoTransient(delta=1e-5)
    problem = affine(A, c)
    memory = solver.start(problem, z)
    step = problem.step(z)
    onward, _, _ = solver.turn(problem, z, step, (step - z).norm(dim=-1), memory)
    assert_close((onward - z) / 1e-5, step - z, within=1e-4)
    assert (rg.PseudoTransient().solve(problem, z).steps <= 20).all()


def test_fixed_point_takes_the_steps_that_the_theory_says():
    A, c = torch.tensor([[0.5]], dtype=DTYPE), torch.ones(1, 1, dtype=DTYPE)
    for rtol in (1e-3, 1e-6, 1e-12):  # z_k = 2 - 2^(1-k), and the residual about 2^-(k+1)
        steps = int(rg.FixedPoint(rtol=rtol).solve(affine(A, c), torch.zeros_like(c)).steps)
        assert 2.0 ** -(steps + 1) <= rtol * (1 + 2.0**-steps) and 2.0**-steps > rtol


def test_damping_hides_nothing_from_the_residual():
    A, c = torch.tensor([[0.9]], dtype=DTYPE), torch.ones(1, 1, dtype=DTYPE)
    for damping in (1.0, 0.1, 0.01):
        solver = rg.FixedPoint(damping=damping, rtol=1e-6, max_steps=100_000)
        solution = solver.solve(affine(A, c), torch.zeros_like(c))
        assert solution.residual <= 1e-6
        assert_close(solution.value, 10 * c, conditioning=10, solver=solver)


@pytest.mark.parametrize("plain", ["0", "1"])
def test_beside_a_norm_that_overflows_nothing_is_small(plain, monkeypatch):
    monkeypatch.setenv("RETROGRADE_PLAIN", plain)
    # In float32 |x| is infinite from 1.8e19 on, and |step(x) - x| is not yet.
    W, b, x0 = 1.01 * torch.eye(64), torch.zeros(64), torch.full((64,), 1e19)
    for solver in (rg.FixedPoint(max_steps=1), rg.NewtonKrylov(max_steps=1), rg.Newton(max_steps=1)):
        state = rg.steady_state(W, b, "identity", x0=x0, solver=solver, throw=False)
        assert not state.converged or state.x.abs().max() < 1


def test_a_cascade_begins_where_the_one_before_was_left():
    A, c = not_normal(6), randn(3, 6)
    first, second = rg.FixedPoint(max_steps=4), rg.FixedPoint(max_steps=1000)
    both = rg.Cascade(first, second).solve(affine(A, c), torch.zeros_like(c))
    whole = second.solve(affine(A, c), torch.zeros_like(c))
    assert torch.equal(both.steps, whole.steps) and torch.equal(both.value, whole.value)


def test_a_cascade_begins_anew_where_the_one_before_diverged():
    W = torch.tensor([[20.0]], dtype=DTYPE)
    cascade = rg.Cascade(rg.FixedPoint(max_steps=1000), rg.Newton())
    state = rg.steady_state(W, torch.ones(1, dtype=DTYPE), "identity", solver=cascade)
    assert_close(state.x, torch.tensor([-1 / 19], dtype=DTYPE))


def test_a_diverged_iterate_is_no_place_to_start_from():
    # x = x²/5 + 1/10, from 6, which grows to where Newton would only halve it a step.
    W, b = torch.ones(1, 1, dtype=DTYPE), torch.zeros(1, dtype=DTYPE)
    f = rg.Pointwise(lambda u: u**2 / 5 + 0.1)
    x0 = torch.tensor([6.0], dtype=DTYPE)
    first = rg.steady_state(W, b, f, x0=x0, solver=rg.FixedPoint(), throw=False)
    assert first.status == rg.Status.DIVERGED
    lost = rg.steady_state(W, b, f, x0=first.x.detach(), solver=rg.Newton(), throw=False)
    assert not lost.converged
    state = rg.steady_state(W, b, f, x0=x0, solver=rg.Cascade(rg.FixedPoint(), rg.Newton()))
    assert_close(state.x, torch.tensor([2.5 + 2.5 * 0.92**0.5], dtype=DTYPE), conditioning=10)


def test_a_cascade_is_content_with_each_of_its_solvers():
    cascade = rg.Cascade(rg.FixedPoint(rtol=1e-3), rg.Newton(rtol=1e-9))
    assert cascade.tolerance(DTYPE) == 1e-3
    state = rg.steady_state(not_normal(6), randn(3, 6), solver=cascade)
    assert state.converged.all() and state.tolerance == 1e-3
    assert rg.Cascade(cascade, rg.Newton()).solvers[0] == cascade


@pytest.mark.parametrize("solver", [*SOLVERS.values(), *ADJOINTS.values()], ids=repr)
def test_solvers_are_values(solver):
    assert solver == eval(repr(solver), vars(rg) | {"__builtins__": {}})
    assert hash(solver) == hash(eval(repr(solver), vars(rg) | {"__builtins__": {}}))
    with pytest.raises(AttributeError):
        solver.rtol = 1.0


@each_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tolerance_may_be_chosen_or_left_to_the_dtype(solver, dtype):
    assert torch.finfo(dtype).eps < solver.tolerance(dtype) < torch.finfo(dtype).eps ** 0.75
    W, b = not_normal(6, dtype=dtype), randn(3, 6, dtype=dtype)
    tight = rg.steady_state(W, b, solver=solver)
    loose = rg.steady_state(W, b, solver=rg.FixedPoint(rtol=1e-2))
    assert (tight.residual <= solver.tolerance(dtype)).all() and (loose.residual <= 1e-2).all()
    assert (loose.steps < rg.steady_state(W, b, solver=rg.FixedPoint()).steps).all()


@pytest.mark.parametrize("structure", STRUCTURES)
@each_adjoint
def test_every_adjoint_in_every_structure(structure, adjoint):
    net = rg.Network(STRUCTURES[structure](), b=False)
    x, _ = manufactured(net.W, net.f, 3)
    g = randn(3, 12)
    exact = torch.linalg.solve(net.jacobian(x).mT, g)
    found = rg.recurrent_backpropagation(net, x, g, adjoint=adjoint)
    assert_close(found.s, exact, conditioning=10)
    assert found.receipt.converged.all() and (found.receipt.error_estimate < tolerance(DTYPE)).all()
    assert found.receipt.method == repr(adjoint)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_newton_leaves_its_factors_to_the_adjoint(structure, monkeypatch):
    made = []
    factor = torch.linalg.lu_factor_ex
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", lambda A: (made.append(len(A)), factor(A))[1])
    state = rg.Network(STRUCTURES[structure]()).steady_state(randn(3, 12), solver=rg.Newton(), adjoint=rg.Direct())
    forward = len(made)
    assert forward > 0
    state.x.sum().backward()
    assert len(made) == forward  # nothing was factored again
    assert (state.receipt.steps <= 5).all()


def test_more_than_8_gib_of_factors_is_refused_before_they_are_made():
    net = rg.Network(rg.Sparse.from_edges([0], [1], torch.ones(1), n=1100))
    with pytest.raises(ValueError, match=r"solver: 2000 matrices of 1100 x 1100 would take .* GiB"):
        net.steady_state(torch.ones(1, 1100).expand(2000, 1100), solver=rg.Newton())


def test_gmres_keeps_its_basis_orthogonal_where_a_vector_lies_almost_along_it():
    n, generator, f64 = 40, torch.Generator().manual_seed(0), {"dtype": torch.float64}
    sizes = torch.logspace(-6, 0, n, **f64)
    A = torch.diag(sizes) + 0.1 * torch.triu(torch.randn(n, n, generator=generator, **f64), 1) * sizes
    r = torch.ones(1, n, **f64)
    z, cost = gmres.cycle(lambda v: v @ A.T, r, torch.tensor([1e-14], **f64), torch.tensor([n]))
    assert cost.tolist() == [n]
    assert (r - z @ A.T).norm() <= 10 * torch.finfo(torch.float64).eps * z.norm() * A.norm()


@pytest.mark.parametrize("solver", [rg.Krylov(), rg.Krylov("bicgstab"), rg.Direct(), rg.Neumann(terms=300)], ids=repr)
def test_what_solves_adjoints_finds_the_state_of_a_linear_network_and_says_so_of_others(solver):
    W, b = not_normal(6), randn(3, 6)
    exact = torch.linalg.solve(torch.eye(6, dtype=DTYPE) - W, b.T).T
    assert_close(rg.steady_state(W, b, "identity", solver=solver).x, exact, conditioning=10)
    with pytest.raises(ValueError, match=r"affine problem.*, an adjoint or the state of a linear network"):
        rg.steady_state(W, b, solver=solver)


@pytest.mark.parametrize("plain", ["0", "1"])
@pytest.mark.parametrize("dtype, below, beyond", [(torch.float32, 1e18, 1e20), (torch.float64, 1e150, 1e160)])
@pytest.mark.parametrize("f", ["relu", "identity", "softplus"])
def test_a_large_state_is_right_or_told_to_overflow(f, dtype, below, beyond, plain, monkeypatch):
    monkeypatch.setenv("RETROGRADE_PLAIN", plain)
    W, u = not_normal(6, dtype=dtype), randn(3, 6, dtype=dtype)
    one = rg.steady_state(W, 1e4 * u, "relu" if f == "softplus" else f).x / 1e4
    assert_close(rg.steady_state(W, below * u, f).x / below, one, conditioning=10)
    state = rg.steady_state(W, beyond * u, f, throw=False)
    assert not state.converged.any()
    assert "squares" in rg.Status(int(state.status[0])).message


@pytest.mark.parametrize("seed", [5, 10, 21])
def test_a_cascade_goes_on_from_the_start_where_the_iterates_have_grown(seed):
    # To 1e18 and more, with a relative residual of 3, which that of the start exceeds: float32 has no way back.
    n, random = 24, torch.Generator().manual_seed(seed)
    W = torch.randn(n, n, generator=random, dtype=DTYPE) * (torch.rand(n, n, generator=random) < 0.34)
    W, g = (3.6 * n**0.5 * W / W.norm()).float(), torch.randn(4, n, generator=random)
    plain = rg.FixedPoint(max_steps=100, hasty=True)
    net, x = rg.Network(W, f="identity", b=False), torch.zeros(4, n)
    grown = rg.recurrent_backpropagation(net, x, g, adjoint=plain, throw=False)
    unseen = grown.receipt.status == rg.Status.MAX_STEPS
    assert ((grown.s.abs().amax(-1) > 1e15) & unseen & (grown.receipt.residual < 10)).any()
    found = rg.recurrent_backpropagation(net, x, g, adjoint=rg.Cascade(plain, rg.Krylov()))
    assert_close(found.s, torch.linalg.solve(torch.eye(n) - W.T, g.T).T, conditioning=100)


def test_the_default_adjoint_of_few_neurons_ends_with_factors():
    for W in (rg.Sparse.from_edges([0, 1, 2], [1, 2, 0], torch.ones(3), 3), rg.Convolution(torch.ones(1, 1, 3), (9,))):
        assert isinstance(default_adjoint(W.bind()).solvers[-1], rg.Direct)
    ends = torch.arange(600)
    large = default_adjoint(rg.Sparse.from_edges(ends, ends.roll(1), torch.ones(600), 600).bind())
    assert not any(isinstance(each, rg.Direct) for each in large.solvers)
