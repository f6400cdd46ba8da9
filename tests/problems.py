"""Every problem of the tests, with its exact answer: the rows that they are parametrised by.

W is never symmetric, and never normal: both would hide a confusion of W with Wᵀ.
"""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retrograde as rg
from retrograde.testing.problems import structure, structures

DTYPE = torch.float64


def randn(*shape, seed=0, dtype=DTYPE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE).to(dtype)


def not_normal(n, norm=0.6, seed=0, dtype=DTYPE):
    """A random matrix of spectral norm `norm`, its upper triangle much heavier than its lower."""
    W = randn(n, n, seed=seed)
    W = torch.triu(W) + 0.2 * torch.tril(W, -1)
    return (norm * W / torch.linalg.matrix_norm(W, 2)).to(dtype)


# --- structures


def shrunk(W, norm=0.6):
    """W scaled to that spectral norm, through its first weight, in which it is linear."""
    with torch.no_grad():
        W.weights[0].mul_(norm / torch.linalg.matrix_norm(W.dense(), 2))
    return W


def sparse(n=12, edges=40, norm=0.6, seed=1):
    ends = torch.randint(n, (2, edges), generator=torch.Generator().manual_seed(seed))
    return shrunk(rg.Sparse.from_edges(ends[0], ends[1], randn(edges, seed=seed), n), norm)


class Ring(rg.Connectivity):
    """A structure as small as one can be, each neuron driving the next: the rest is automatic differentiation's."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    @property
    def shape(self):
        return len(self.weight), len(self.weight)

    @property
    def weights(self):
        return (self.weight,)

    def product(self, x, *weights):
        return (weights[0] * x).roll(1, -1)


# Those of the library by one row each, in its testing/problems.py, and one that is not of the library.
STRUCTURES = {name: partial(structure, name) for name in structures()} | {
    "Ring": lambda: shrunk(Ring(randn(12, seed=8)))
}

RECTANGULAR = {
    "Dense": lambda: rg.Dense(randn(5, 8)),
    "Sparse": lambda: rg.Sparse.from_edges([0, 7, 3, 3, 3], [4, 0, 2, 2, 1], randn(5), (5, 8)),
    "LowRank": lambda: rg.LowRank(randn(5, 2), randn(8, 2, seed=1)),
    "Convolution on a ring": lambda: rg.Convolution(randn(2, 3, 5), grid=(6,)),
    "Convolution on a plane": lambda: rg.Convolution(randn(1, 3, 3, 5), grid=(4, 3), padding="zeros"),
    "Convolution on a torus": lambda: rg.Convolution(randn(3, 2, 3, 3), grid=(2, 5)),
    "Sum": lambda: rg.Sum(rg.Dense(randn(5, 8)), rg.LowRank(randn(5, 2), randn(8, 2, seed=1))),
}

# --- nonlinearities

NONLINEARITIES = {
    "tanh": rg.Tanh(),
    "sigmoid": rg.Sigmoid(),
    "relu": rg.ReLU(),
    "softplus": rg.Softplus(),
    "identity": rg.Identity(),
    "sin": rg.Pointwise(torch.sin, torch.asin),
    "gelu": rg.Pointwise(F.gelu),
    "silu": rg.Pointwise(F.silu),
}

each_structure = pytest.mark.parametrize("structure", STRUCTURES)
each_nonlinearity = pytest.mark.parametrize("f", NONLINEARITIES.values(), ids=NONLINEARITIES.keys())
invertible = [name for name in NONLINEARITIES if name not in ("gelu", "silu")]
each_invertible = pytest.mark.parametrize("f", [NONLINEARITIES[name] for name in invertible], ids=invertible)

# --- solvers

SOLVERS = {
    "FixedPoint": rg.FixedPoint(),
    "FixedPoint, damped": rg.FixedPoint(damping=0.7),
    "Anderson": rg.Anderson(),
    "Newton": rg.Newton(),
    "NewtonKrylov": rg.NewtonKrylov(),
    "PseudoTransient": rg.PseudoTransient(),
    "Homotopy": rg.Homotopy(),
    "Multistart": rg.Multistart(rg.Newton()),
    "Cascade": rg.Cascade(rg.FixedPoint(max_steps=3), rg.Newton()),
}
ADJOINTS = {
    "FixedPoint": rg.FixedPoint(),
    "FixedPoint, damped": rg.FixedPoint(damping=0.7),
    "Anderson": rg.Anderson(),
    "Newton": rg.Newton(),
    "NewtonKrylov": rg.NewtonKrylov(),
    "PseudoTransient": rg.PseudoTransient(),
    "Direct": rg.Direct(),
    "Krylov": rg.Krylov("gmres"),
    "Krylov, BiCGSTAB": rg.Krylov("bicgstab"),
    "Krylov, restarted": rg.Krylov("gmres", restart=4),
    "Cascade": rg.Cascade(rg.FixedPoint(max_steps=3), rg.Krylov()),
}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
each_adjoint = pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS.keys())


# --- manufactured: choose u, whence x = f(u) and b = u - Wx


def inputs_of_f(*shape, seed=1, dtype=DTYPE):
    """What f shall see: away from kinks at 0, and within the branch on which sin has an inverse."""
    u = randn(*shape, seed=seed)
    return (0.05 * u.sign() + u.clamp(-1.4, 1.4)).to(dtype)


def manufactured(W, f, *batch, seed=1):
    """(x, b): steady states, exact, and the inputs that have them."""
    with torch.no_grad():
        M = W.dense()
        u = inputs_of_f(*batch, M.shape[0], seed=seed, dtype=M.dtype)
        x = f(u)
        return x, u - x @ M.T


def manufactured_path(W, f, T, *batch, leak=None, seed=1):
    """(x, x0, b): a trajectory, exact, its start, and its inputs."""
    with torch.no_grad():
        M = W.dense()
        u = inputs_of_f(T + 1, *batch, M.shape[0], seed=seed, dtype=M.dtype)
        path = [0.5 * u[0].sin()]
        b = torch.empty_like(u[1:])
        a = 1.0 if leak is None else leak
        for t in range(T):
            b[t] = u[t + 1] - path[-1] @ M.T
            path.append((1 - a) * path[-1] + a * f(u[t + 1]))
        return torch.stack(path[1:]), path[0], b


class Reward:
    """R(x) = Σ c sin(x + c), and its gradient by hand."""

    def __init__(self, *shape, seed=9, dtype=DTYPE):
        self.c = randn(*shape, seed=seed, dtype=dtype)

    def __call__(self, x):
        return (self.c * torch.sin(x + self.c)).sum()

    def gradient(self, x):
        return (self.c * torch.cos(x + self.c)).detach()


# --- by name


@dataclass(frozen=True)
class Steady:
    """W, b, f, and the exact steady states x (states, n), of which a network started at x0 finds the first."""

    W: Tensor
    b: Tensor
    f: rg.Nonlinearity
    x: Tensor
    x0: Tensor | None = None

    @property
    def network(self):
        return rg.Network(self.W, f=self.f, b=self.b)


def _steady(W, u, f, x0=None):
    x = f(u)
    return Steady(W, u - x @ W.T, f, x[None], x0)


def scalar(dtype=DTYPE):
    """One neuron: x = tanh(-0.7 x + b) at x = 0.5, where dR/db = f' / (1 + 0.7 f') for R = x."""
    x = torch.tensor([0.5], dtype=dtype)
    W = torch.tensor([[-0.7]], dtype=dtype)
    return Steady(W, torch.atanh(x) + 0.7 * x, rg.Tanh(), x[None])


def near_critical(gap=1e-4, dtype=DTYPE):
    """Four linear neurons, one of whose modes decays by only 1 - gap a step: (I - W)⁻¹ is about 1/gap."""
    W = torch.diag(torch.tensor([1 - gap, 0.3, -0.5, 0.1], dtype=DTYPE)) + torch.triu(randn(4, 4), 1) * 0.3
    return _steady(W.to(dtype), randn(4, seed=1, dtype=dtype), rg.Identity())


def saturated(dtype=DTYPE):
    """Every neuron of a tanh network at ±1 exactly, where f' is 0."""
    W, x = not_normal(6, dtype=dtype), torch.tensor([1, -1, 1, 1, -1, 1], dtype=dtype)
    return Steady(W, 200 * x, rg.Tanh(), x[None])


def dead(dtype=DTYPE):
    """Every neuron of a ReLU network off."""
    return Steady(not_normal(6, dtype=dtype), -torch.ones(6, dtype=dtype), rg.ReLU(), torch.zeros(1, 6, dtype=dtype))


def bistable(dtype=DTYPE):
    """Two neurons, the first of which excites itself, w = 2, and drives the second: three steady states for one b.

    The first has x = tanh(2x), that is ±0.95750402407709... and 0; the second then follows.
    """
    up = 0.9575040240772687
    first = torch.tensor([up, 0.0, -up], dtype=DTYPE)
    x = torch.stack([first, torch.tanh(0.8 * first + 0.1)], dim=-1).to(dtype)
    W = torch.tensor([[2.0, 0.0], [0.8, 0.0]], dtype=dtype)
    return Steady(W, torch.tensor([0.0, 0.1], dtype=dtype), rg.Tanh(), x, x0=torch.tensor([0.3, 0.0], dtype=dtype))


def divergent(dtype=DTYPE):
    """ReLU neurons that triple a step, without limit; their one steady state would be negative."""
    W = torch.tensor([[3.0, 0.5], [0.0, 3.0]], dtype=dtype)
    return Steady(W, torch.ones(2, dtype=dtype), rg.ReLU(), torch.empty(0, 2, dtype=dtype))


def oscillating(dtype=DTYPE):
    """Two neurons that turn round a steady state which their dynamics leave, and Newton finds."""
    W = torch.tensor([[0.3, -3.0], [2.0, 0.1]], dtype=dtype)
    return _steady(W, torch.tensor([0.2, -0.1], dtype=dtype), rg.Tanh())


SOLVABLE = (scalar, near_critical, saturated, dead, bistable)
each_solvable = pytest.mark.parametrize("problem", SOLVABLE, ids=lambda problem: problem.__name__)
