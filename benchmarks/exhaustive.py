"""How many of the steady states that exist are found: ``python -m benchmarks.exhaustive [networks]``.

Of a relu network x = max(Wx + b, 0) of few neurons all steady states are known: each set of neurons that may be on is
tried. 2 to 9 neurons, gains 0 to 5, four inputs each; beside the default the peers of `benchmarks.robustness`.
"""

from __future__ import annotations

import sys
from collections import Counter

import torch
from torch import Tensor

import retrograde as rg
from benchmarks.robustness import BELIEVED, PEERS, answer_of
from retrograde.defaults import default_solver


def residual(M: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """|max(Mx + b, 0) - x| / |x|, 0 for an x of 0 that is one."""
    gap = (torch.relu(x @ M.T + b) - x).norm(dim=-1)
    return torch.where(gap == 0, 0, gap / x.norm(dim=-1)).nan_to_num(torch.inf)


def has_one(M: Tensor, b: Tensor) -> bool:
    """Whether some set of neurons that are on gives a steady state."""
    n = len(M)
    on = (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).to(M)
    x, _ = torch.linalg.solve_ex(torch.eye(n).to(M) - on[:, :, None] * M, (on * b)[..., None])
    x = x[..., 0]
    return bool((residual(M, b, x) < 1e-9).any())


def main(networks: int = 60) -> None:
    """Print how many exist, and how many each finds."""
    random, found = torch.Generator().manual_seed(0), Counter[str]()
    for _ in range(networks):
        n = int(torch.randint(2, 10, (), generator=random))
        gain = 5 * float(torch.rand((), generator=random))
        M = gain * torch.randn(n, n, generator=random, dtype=torch.float64) / n**0.5
        b = torch.randn(4, n, generator=random, dtype=torch.float64) * torch.tensor([[0.1], [0.3], [1], [3]]).to(M)
        default = default_solver(rg.Dense(M).bind(), rg.ReLU())
        assert isinstance(default, rg.Cascade)
        before = rg.Cascade(*default.solvers[:-1])
        with torch.no_grad():
            states = {
                name: rg.steady_state(M, b, "relu", solver=solver, throw=False)
                for name, solver in (("Retrograde", default), ("without Multistart", before))
            }
        for each in states.values():
            assert (residual(M, b, each.x)[each.converged] <= BELIEVED).all(), "claimed, and wrong"
        for k in range(len(b)):
            if has_one(M, b[k]):
                found["exist"] += 1
                found.update(name for name, state in states.items() if state.converged[k])
                found.update(
                    name for name in PEERS if residual(M, b[k], answer_of(name, rg.ReLU(), M, b[k])) <= BELIEVED
                )
    for name, number in found.most_common():
        print(f"{name:<30}{number:>6}{number / found['exist']:>8.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
