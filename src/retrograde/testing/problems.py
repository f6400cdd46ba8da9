"""One small problem of each structure and nonlinearity: the rows of the tests, and of ``retrograde check``.

No W is symmetric, and none is normal: both would hide a confusion of W with Wᵀ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import retrograde as rg

Random = Callable[..., Tensor]


def _dense(random: Random) -> rg.Connectivity:
    W = random(12, 12)
    return _shrunk(rg.Dense(torch.triu(W) + 0.2 * torch.tril(W, -1)))


def _sparse(random: Random, norm: float = 0.6) -> rg.Connectivity:
    post, pre = (random(2, 40) * 1e6).long() % 12
    return _shrunk(rg.Sparse.from_edges(pre, post, random(40), 12), norm)


def _low_rank(random: Random, rank: int = 3, norm: float = 0.6) -> rg.Connectivity:
    return _shrunk(rg.LowRank(random(12, rank), random(12, rank)), norm)


def _shrunk(W: rg.Connectivity, norm: float = 0.6) -> rg.Connectivity:
    """W scaled to that spectral norm, through its first weight, in which it must be linear."""
    with torch.no_grad():
        W.weights[0].mul_(norm / torch.linalg.matrix_norm(W.dense(), 2))
    return W


STRUCTURES: dict[str, Callable[[Random], rg.Connectivity]] = {
    "Dense": _dense,
    "Sparse": _sparse,
    "LowRank": _low_rank,
    "Convolution on a ring": lambda random: _shrunk(rg.Convolution(random(2, 2, 3), grid=(6,))),
    "Convolution on a plane": lambda random: _shrunk(rg.Convolution(random(2, 2, 3, 1), (3, 2), padding="zeros")),
    "Sum": lambda random: rg.Sum(_sparse(random, 0.3), _low_rank(random, 1, 0.3)),
}

NONLINEARITIES: dict[str, rg.Nonlinearity] = {
    "tanh": rg.Tanh(),
    "sigmoid": rg.Sigmoid(),
    "relu": rg.ReLU(),
    "softplus": rg.Softplus(),
    "identity": rg.Identity(),
    "Pointwise(sin)": rg.Pointwise(torch.sin, torch.asin),
}


def structure(name: str, seed: int = 0) -> rg.Connectivity:
    """The one of that name, new: n = 12, float64, of norm at most 0.6."""
    generator = torch.Generator().manual_seed(seed)
    return STRUCTURES[name](lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64))


def structures(seed: int = 0) -> dict[str, rg.Connectivity]:
    """One small square connectivity of each structure: n = 12, float64, not normal, of norm at most 0.6."""
    return {name: structure(name, seed) for name in STRUCTURES}
