"""How often `grad_rtol` is said to be met and is not, where a slow mode hides: `python -m benchmarks.slow [networks]`.

Of each network, float32 and not normal, all modes but one end soon. Plain steps see the fast ones first.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import retrograde as rg

RTOLS = (1e-2, 1e-3, 1e-4, 1e-6)
ADJOINTS: tuple[rg.solvers.Solver | None, ...] = (None, rg.Direct(), rg.Krylov())


def networks(count: int) -> list[tuple[Tensor, str, Tensor, Tensor]]:
    """W, f, the state x and dR/dx: 3 to 24 neurons, the slow eigenvalue 1e-1 to 1e-5 below 1, the others within 0.6."""
    random, made = torch.Generator().manual_seed(0), []

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    for k in range(count):
        n = int(torch.randint(3, 25, (), generator=random))
        gap = 10 ** (-1 - 4 * float(torch.rand((), generator=random)))
        modes = torch.linalg.qr(normal(n, n))[0] + 0.2 * normal(n, n)
        values = 1.2 * torch.rand(n, generator=random, dtype=torch.float64) - 0.6
        values[0] = 1 - gap
        W = (modes @ torch.diag(values) @ torch.linalg.inv(modes)).float()
        made.append((W, ("tanh", "identity")[k % 2], (1e-3 * normal(n)).float(), normal(n).float()))
    return made


def error(W: Tensor, f: str, x: Tensor, g: Tensor, s: Tensor) -> float:
    """The relative error of s, beside a dense solve in float64."""
    D = 1 - x.double() ** 2 if f == "tanh" else torch.ones(len(x), dtype=torch.float64)
    true = torch.linalg.solve(torch.diag(1 / D) - W.double().T, g.double())
    return float((s.double() - true).norm() / true.norm())


def main(count: int = 700) -> None:
    """Print, for each adjoint and grad_rtol, how many are told to be met, and how many of these are not."""
    made = networks(count)
    for adjoint in ADJOINTS:
        for rtol in RTOLS:
            ratios = []
            for W, f, x, g in made:
                net = rg.Network(rg.Dense(W), f, b=False)
                found = rg.recurrent_backpropagation(net, x, g, adjoint=adjoint, throw=False, grad_rtol=rtol)
                if found.receipt.converged:
                    ratios.append(error(W, f, x, g, found.s) / rtol)
            false = sum(ratio > 1 for ratio in ratios)
            name = "default" if adjoint is None else type(adjoint).__name__
            print(f"{name}, {rtol:g}: {len(ratios)} of {count} met, of them {false} falsely, worst {max(ratios):.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
