"""The answer for a sample does not depend on what else is in its batch: bit for bit, where it is promised."""

import pytest
import torch
from problems import randn

import retrograde as rg

N, B = 45, 12  # a length that no vector is filled by
# Alone, with one, and the whole batch backwards.
SOME = ([7], [3, 7], list(reversed(range(B))))


def dense(dtype):
    return rg.Dense((1.6 * randn(N, N, seed=1) / N**0.5).to(dtype))


def sparse(dtype):
    ends = torch.randint(N, (2, 8 * N), generator=torch.Generator().manual_seed(1))
    return rg.Sparse.from_edges(*ends, (1.6 * randn(8 * N, seed=2) / 8**0.5).to(dtype), N)


def low_rank(dtype):
    return rg.LowRank((1.6 * randn(N, 7, seed=1) / 7**0.5).to(dtype), (randn(N, 7, seed=2) / N**0.5).to(dtype))


STRUCTURES = {"Dense": dense, "Sparse": sparse, "LowRank": low_rank}
SOLVERS = {
    "FixedPoint": rg.FixedPoint(),
    "damped": rg.FixedPoint(damping=0.7),
    "Anderson": rg.Anderson(),
    "Newton": rg.Newton(),
    "PseudoTransient": rg.PseudoTransient(),
    "Homotopy": rg.Homotopy(),
    "Multistart": rg.Multistart(rg.Newton(max_steps=4)),
    "NewtonKrylov": rg.NewtonKrylov(),
}
ADJOINTS = {
    "FixedPoint": rg.FixedPoint(max_steps=50),
    "Anderson": rg.Anderson(memory=3),
    "Newton": rg.Newton(),
    "Direct": rg.Direct(),
    "GMRES": rg.Krylov(restart=10),
    "BiCGSTAB": rg.Krylov("bicgstab"),
    "NewtonKrylov": rg.NewtonKrylov(),
}


def mixed(dtype, seed=3):
    """Samples that are slow and fast to solve, and one that is 0."""
    input = randn(B, N, seed=seed) * torch.logspace(-3, 1, B, dtype=torch.float64)[:, None]
    input[5] = 0
    return input.to(dtype)


def differing(tell):
    """The names of what is told of some samples otherwise than in the whole batch."""
    whole = tell(list(range(B)))
    return {
        (name, str(rows))
        for rows in SOME
        for name, value in tell(rows).items()
        if not torch.equal(value.nan_to_num(-1), whole[name][rows].nan_to_num(-1))
    }


def told(prefix, record):
    return {prefix + name: getattr(record, name) for name in ("status", "residual", "steps")}


def both_ways(net, dtype, **how):
    """What is told of the state and the adjoint of those rows of a batch."""
    input, c = mixed(dtype), randn(B, N, seed=5).to(dtype)

    def tell(rows):
        leaf = input[rows].clone().requires_grad_()
        state = net.steady_state(leaf, throw=False, **how)
        given = told("", state)
        (s,) = torch.autograd.grad((c[rows] * state.x.sin()).nan_to_num(0, 0, 0).sum(), leaf)
        return {"x": state.x.detach(), "s": s, **given, **told("adjoint ", state.receipt)}

    return tell


@pytest.mark.parametrize(
    "structure, f, dtype",
    [("Dense", "tanh", torch.float32), ("Dense", "sigmoid", torch.float64), ("Sparse", "softplus", torch.float32)],
    ids=str,
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_each_solver(structure, f, dtype, solver):
    net = rg.Network(STRUCTURES[structure](dtype), f=f, b=False)
    assert not differing(both_ways(net, dtype, solver=SOLVERS[solver], adjoint=rg.Direct()))


@pytest.mark.parametrize("solver", ("FixedPoint", "damped", "Anderson", "NewtonKrylov"))
@pytest.mark.parametrize("adjoint", ("GMRES", "BiCGSTAB"))
def test_a_low_rank_of_which_nothing_is_factored(solver, adjoint):
    net = rg.Network(low_rank(torch.float32), b=False)
    assert not differing(both_ways(net, torch.float32, solver=SOLVERS[solver], adjoint=ADJOINTS[adjoint]))


@pytest.mark.parametrize("structure, f", [("Dense", "tanh"), ("Sparse", "relu")])
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_what_is_taken_where_nothing_is_asked_for(structure, f, dtype):
    assert not differing(both_ways(rg.Network(STRUCTURES[structure](dtype), f=f, b=False), dtype))


@pytest.mark.parametrize("far", (1.0, 1e8), ids=("near 1", "one far from 1"))
@pytest.mark.parametrize("structure, dtype", [("Dense", torch.float64), ("Sparse", torch.float32)], ids=str)
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_each_adjoint(structure, dtype, adjoint, far):
    net = rg.Network(STRUCTURES[structure](dtype), b=False)
    x, g = torch.tanh(mixed(dtype)), randn(B, N, seed=5).to(dtype)
    g[4], g[3] = 0, far * g[3]

    def tell(rows):
        found = rg.recurrent_backpropagation(net, x[rows], g[rows], adjoint=ADJOINTS[adjoint], throw=False)
        return {"s": found.s, **told("", found.receipt)}

    assert not differing(tell)


def test_factors_of_more_neurons_than_are_factored_together():
    n = 150
    net = rg.Network(rg.Dense(1.2 * randn(n, n, seed=1) / n**0.5), b=False)
    input = randn(3, n, seed=2)

    def tell(rows):
        return {"x": net.steady_state(input[rows], solver=rg.Newton()).x.detach()}

    whole = tell([0, 1, 2])["x"]
    for rows in ([1], [2, 1]):
        assert torch.equal(tell(rows)["x"], whole[rows])


@pytest.mark.parametrize("adjoint", ("GMRES", "BiCGSTAB", "Anderson"))
def test_products_of_many_neurons(adjoint):
    n = 1001
    ends = torch.randint(n, (2, 8 * n), generator=torch.Generator().manual_seed(1))
    W = rg.Sparse.from_edges(*ends, (randn(8 * n, seed=2) / 8**0.5).float(), n)
    x, g = torch.tanh(randn(4, n, seed=3)).float(), randn(4, n, seed=4).float()

    def s(rows):
        return rg.recurrent_backpropagation(rg.Network(W, b=False), x[rows], g[rows], adjoint=ADJOINTS[adjoint]).s

    whole = s([0, 1, 2, 3])
    for rows in ([1], [3, 2, 1]):
        assert torch.equal(s(rows), whole[rows])


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("T", (9, 2000))  # the second in pieces, where the batch is whole
def test_a_bias_along_a_trajectory(dtype, T):
    net = rg.Network((0.9 * randn(N, N, seed=1) / N**0.5).to(dtype), b=False)
    input, c = mixed(dtype), randn(B, N, seed=5).to(dtype)

    def tell(rows):
        leaf = input[rows].clone().requires_grad_()
        path = net.trajectory(leaf, steps=T)
        (db,) = torch.autograd.grad((c[rows] * path.x.sin()).sum(), leaf)
        return {"x": path.x.detach().movedim(1, 0), "db": db}

    assert not differing(tell)
