"""The public checks pass for everything here, and catch what is wrong."""

from dataclasses import dataclass

import pytest
import torch
from problems import STRUCTURES, Ring

import retrograde as rg
from retrograde.testing import (
    NONLINEARITIES,
    check_connectivity,
    check_nonlinearity,
    check_solver,
    gradient_disagreements,
    structures,
)

RECTANGULAR = {
    "Dense": lambda: rg.Dense(torch.randn(3, 5)),
    "Sparse": lambda: rg.Sparse(torch.randn(3, 5).relu().to_sparse()),
    "Sparse, empty": lambda: rg.Sparse(torch.zeros(3, 5).to_sparse()),
    "LowRank": lambda: rg.LowRank(torch.randn(3, 2), torch.randn(5, 2)),
    "Convolution": lambda: rg.Convolution(torch.randn(2, 3, 3, 5), grid=(4, 5), padding="zeros"),
    "Sum": lambda: rg.Sum(rg.Dense(torch.randn(3, 5)), rg.LowRank(torch.randn(3, 1), torch.randn(5, 1))),
}


@pytest.mark.parametrize("name", structures())
def test_every_structure_conforms(name):
    check_connectivity(structures()[name])


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_of_the_tests_conforms(name):
    check_connectivity(STRUCTURES[name]())


@pytest.mark.parametrize("name", RECTANGULAR)
def test_every_structure_may_be_rectangular(name):
    torch.manual_seed(0)
    check_connectivity(RECTANGULAR[name]().double())


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_every_nonlinearity_conforms(name):
    check_nonlinearity(NONLINEARITIES[name])


SOLVERS = [
    rg.FixedPoint(),
    rg.FixedPoint(damping=0.5),
    rg.Anderson(),
    rg.Newton(),
    rg.NewtonKrylov(),
    rg.PseudoTransient(),
    rg.Homotopy(),
    rg.Multistart(rg.Newton()),
    rg.Neumann(),
    rg.Neumann(terms=3),
    rg.Direct(),
    rg.Krylov("gmres"),
    rg.Krylov("bicgstab"),
    rg.Krylov(restart=4),
    rg.Cascade(rg.FixedPoint(max_steps=5), rg.Newton()),
    rg.Cascade(rg.FixedPoint(max_steps=5), rg.Direct()),
]


@pytest.mark.parametrize("solver", SOLVERS[:-1], ids=repr)
def test_every_solver_conforms(solver):
    check_solver(solver)


def test_four_routes_to_every_gradient_agree():
    rows = list(gradient_disagreements())
    assert len(rows) == len(structures()) * len(NONLINEARITIES) * 3
    assert max(row.worst for row in rows) <= 1e-10


class WrongOuter(Ring):
    def outer_product(self, s, x, *weights):
        return ((2 * s * x).sum(0),)


class WrongTranspose(rg.Dense):
    def transposed_product(self, s, *weights):
        return s @ weights[0].T


class ForgetsTheBatch(rg.Dense):
    def outer_product(self, s, x, *weights):
        return (s[:1].T @ x[:1],)


class OuterForgetsX(rg.Dense):
    def outer_product(self, s, x, *weights):
        return (s.T @ x.detach(),)


class TransposeForgetsItsGraph(rg.Dense):
    def transposed_product(self, s, *weights):
        return (s @ weights[0]).detach()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (OuterForgetsX(torch.randn(4, 4)), "the derivative of outer in x"),
        (TransposeForgetsItsGraph(torch.randn(4, 4)), r"W\.T @ s is not differentiable"),
        (WrongOuter(torch.randn(4)), "outer"),
        (WrongTranspose(torch.randn(4, 4)), r"W\.T @ s"),
        (ForgetsTheBatch(torch.randn(4, 4)), "outer"),
    ],
)
def test_a_wrong_structure_is_caught(wrong, said):
    with pytest.raises(AssertionError, match=said):
        check_connectivity(wrong.double())


@dataclass(frozen=True)
class WrongSlope(rg.Tanh):
    def slope(self, x):
        return 1 - x


@dataclass(frozen=True)
class WrongInverse(rg.Sigmoid):
    def inverse(self, x):
        return -super().inverse(x)


@dataclass(frozen=True)
class StiffSlope(rg.Tanh):
    def slope(self, x):
        return super().slope(x).detach()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(WrongSlope(), "slope"), (WrongInverse(), "inverse"), (StiffSlope(), r"the derivative of slope_at\(u\)")],
)
def test_a_wrong_nonlinearity_is_caught(wrong, said):
    with pytest.raises(AssertionError, match=said):
        check_nonlinearity(wrong)


@dataclass(frozen=True)
class GivesUpEarly(rg.FixedPoint):
    """It calls anything converged."""

    def tolerance(self, dtype):
        return 0.5


def test_a_wrong_solver_is_caught():
    with pytest.raises(AssertionError, match="forward"):
        check_solver(GivesUpEarly())
