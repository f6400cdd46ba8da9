from dataclasses import dataclass

import pytest
import torch
from helpers import assert_close, tolerance
from problems import ADJOINTS, DTYPE, SOLVERS, STRUCTURES, each_adjoint, each_solver, manufactured, not_normal, randn

import retrograde as rg
from retrograde.solvers import Problem, relative_residual
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
