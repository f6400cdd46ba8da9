"""What receipts say of a thousand random networks, beside the truth: `python -m benchmarks.receipts [networks]`.

The truth is computed in extended precision: Newton's method from the state found, its residuals in np.longdouble, its
corrections by a float64 LU; then the adjoint likewise.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

import retrograde as rg

Array = np.ndarray
Function = Callable[[Array], Array]


def _sigmoid(u: Array) -> Array:
    return 1 / (1 + np.exp(-u))


# f, the same in NumPy, and its slope.
FUNCTIONS: dict[str, tuple[Any, Function, Function]] = {
    "tanh": (rg.Tanh(), np.tanh, lambda u: 1 / np.cosh(u) ** 2),
    "sigmoid": (rg.Sigmoid(), _sigmoid, lambda u: _sigmoid(u) * _sigmoid(-u)),
    "relu": (rg.ReLU(), lambda u: np.maximum(u, 0), lambda u: (u > 0).astype(u.dtype)),
    "softplus": (rg.Softplus(), lambda u: np.logaddexp(u, 0), _sigmoid),
    "identity": (rg.Identity(), lambda u: u, np.ones_like),
    "sin": (rg.Pointwise(torch.sin), np.sin, np.cos),
    "silu": (
        rg.Pointwise(torch.nn.functional.silu),
        lambda u: u * _sigmoid(u),
        lambda u: _sigmoid(u) * (1 + u * _sigmoid(-u)),
    ),
}


@dataclass(frozen=True)
class Problem:
    """A network, an input, and a reward R = g·x, or R = Σ c sin(x + c)."""

    name: str
    gain: float
    W: Tensor
    b: Tensor
    c: Tensor
    curved: bool

    @property
    def f(self) -> Any:
        return FUNCTIONS[self.name][0]

    def reward(self, x: Tensor) -> Tensor:
        return (self.c * torch.sin(x + self.c)).sum() if self.curved else (self.c * x).sum()

    def slope_of_reward(self, x: Array) -> Array:
        c = _long(self.c)
        return c * np.cos(x + c) if self.curved else c


def problems(curved: bool = False) -> Iterator[Problem]:
    """Gains 0.1 to 3, 2 to 100 neurons, every f, float32 and float64 in turn."""
    random = torch.Generator().manual_seed(0)
    for k in count():
        n = int(torch.randint(2, 101, (), generator=random))
        gain = 0.1 + 2.9 * float(torch.rand((), generator=random))
        W = gain / n**0.5 * torch.randn(n, n, generator=random, dtype=torch.float64)
        b, c = torch.randn(2, n, generator=random, dtype=torch.float64)
        dtype = (torch.float32, torch.float64)[k % 2]
        yield Problem(list(FUNCTIONS)[k // 2 % len(FUNCTIONS)], gain, W.to(dtype), b.to(dtype), c.to(dtype), curved)


@dataclass(frozen=True)
class Truth:
    x: Array
    s: Array
    singular: Array

    def errors(self, x: Tensor, s: Tensor) -> tuple[float, float]:
        """The relative errors of s and of s xᵀ."""
        of_s = _size(_long(s) - self.s) / _size(self.s)
        of_x = _size(_long(x) - self.x) / _size(self.x)
        dW = np.outer(_long(s), _long(x)) - np.outer(self.s, self.x)
        return float(of_s), float(_size(dW) / (_size(self.s) * _size(self.x))) if self.s.any() else float(of_x)


def truth(problem: Problem, x: Tensor) -> Truth | None:
    """The steady state near x and its adjoint; None where Newton's method does not settle near."""
    _, f, slope = FUNCTIONS[problem.name]
    W, b, found = _long(problem.W), _long(problem.b), _long(x)
    eye = np.eye(len(b))
    x_true = found
    for _ in range(30):
        u = W @ x_true + b
        step = np.linalg.solve((eye - slope(u)[:, None] * W).astype(float), (f(u) - x_true).astype(float))
        x_true = x_true + step
        if _size(step) <= 1e-18 * _size(x_true):
            break
    else:
        if _size(step) > 1e-16 * _size(x_true):
            return None
    D, g = slope(W @ x_true + b), problem.slope_of_reward(x_true)
    A = eye - D[:, None] * W
    s = np.zeros_like(g)
    for _ in range(10):
        r = D * (W.T @ s + g) - s
        s = s + r + D * np.linalg.solve(A.T.astype(float), (W.T @ r).astype(float))
    return Truth(x_true, s, np.linalg.svd(A.astype(float), compute_uv=False))


def _long(t: Tensor) -> Array:
    return t.detach().double().numpy().astype(np.longdouble)


def _size(z: Array) -> Any:
    return np.sqrt((z * z).sum())


@dataclass(frozen=True)
class Row:
    """One network: the estimates, and what is true."""

    problem: Problem
    estimate: float
    of_s: float
    of_dW: float
    sigma: float
    sigma_true: float
    condition: float
    condition_true: float
    steps: int
    failed: bool


def look(problem: Problem, **how: Any) -> Row | str:
    """The row of a network, or why there is none."""
    W = rg.Dense(problem.W)
    b = problem.b.clone().requires_grad_()
    state = rg.steady_state(W, b, problem.f, throw=False, **how)
    if not state.converged:
        return "no state found"
    problem.reward(state.x).backward()
    receipt, s = state.receipt, b.grad
    assert receipt is not None and s is not None
    exact = truth(problem, state.x)
    if exact is None:
        return "truth does not settle"
    of_s, of_dW = exact.errors(state.x, s)
    smallest, largest = exact.singular[-1], exact.singular[0]
    return Row(
        problem,
        float(receipt.error_estimate),
        of_s,
        of_dW,
        float(receipt.sigma_min),
        float(smallest),
        float(receipt.condition_number),
        float(largest / smallest),
        int(state.steps + receipt.steps),
        not bool(receipt.converged),
    )


def summary(title: str, rows: list[Row]) -> str:
    """Shares of bounded and of sharp estimates, and medians, where nothing is said to have failed."""
    failed, rows = sum(r.failed for r in rows), [r for r in rows if not r.failed]
    true, estimate = np.array([r.of_dW for r in rows]), np.array([r.estimate for r in rows])
    floor = np.array([torch.finfo(r.problem.W.dtype).eps for r in rows])
    of_s = np.array([r.of_s for r in rows])
    sigma = np.array([r.sigma / r.sigma_true for r in rows])
    condition = np.array([r.condition_true / r.condition for r in rows])
    ratio = estimate / np.maximum(true, floor)
    return (
        f"{title:<18}{len(rows):>6}"
        f"{np.mean(true <= 10 * estimate):>9.2%}{np.mean(of_s <= 10 * estimate):>9.2%}{np.mean(ratio <= 10):>9.2%}"
        f"{np.median(true):>9.1e}{np.median(estimate):>9.1e}{np.median(ratio):>8.2f}"
        f"{np.max(sigma):>8.2f}{np.max(condition):>8.2f}{np.mean([r.steps for r in rows]):>8.1f}"
        f"{failed:>7}"
    )


HEAD = (
    f"{'':<18}{'count':>6}{'bounded':>9}{'s too':>9}{'sharp':>9}{'true':>9}{'told':>9}{'ratio':>8}"
    f"{'sigma':>8}{'cond.':>8}{'steps':>8}{'failed':>7}"
)


def main(networks: int = 1000) -> None:
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    print(
        f"{networks} networks. bounded: true error of s xᵀ at most 10 x told. sharp: told at most 10 x max(true, eps)."
    )
    print("failed: of these the receipt says that the adjoint did not converge; they are not counted elsewhere.")
    print("sigma and cond.: the worst factor by which they are off. Medians, but for the steps, a mean.")
    for name, how, curved in (
        ("default", {}, False),
        ("curved reward", {}, True),
        ("rtol 1e-3", {"solver": rg.FixedPoint(rtol=1e-3), "adjoint": rg.FixedPoint(rtol=1e-3)}, False),
        ("same, curved", {"solver": rg.FixedPoint(rtol=1e-3), "adjoint": rg.FixedPoint(rtol=1e-3)}, True),
    ):
        _table(name, networks, how, curved)
    for grad_rtol in (1e-2, 1e-3, 1e-4, 1e-5):
        _met(networks, grad_rtol)


def _table(name: str, networks: int, how: dict[str, Any], curved: bool) -> None:
    rows, why = _rows(networks, how, curved)
    print(f"\n{name}" + (f" (left out: {why})" if why else ""), HEAD, summary("all", rows), sep="\n")
    if how or curved:
        return
    for dtype in (torch.float32, torch.float64):
        print(summary(str(dtype)[6:], [row for row in rows if row.problem.W.dtype == dtype]))
    for f in FUNCTIONS:
        print(summary(f, [row for row in rows if row.problem.name == f]))
    for low, high in ((0.1, 1.0), (1.0, 2.0), (2.0, 3.0)):
        print(summary(f"gain {low} to {high}", [row for row in rows if low <= row.problem.gain < high]))


def _met(networks: int, grad_rtol: float) -> None:
    for curved in (False, True):
        rows, _ = _rows(networks, {"grad_rtol": grad_rtol}, curved)
        told = [row for row in rows if not row.failed]
        met = np.mean([row.of_dW <= grad_rtol for row in told])
        print(
            f"grad_rtol {grad_rtol:g}{', curved' if curved else '':<8}: {len(told)} of {len(rows)} said to be met, "
            f"{met:.2%} of them truly; median true error {np.median([row.of_dW for row in told]):.1e}, "
            f"{np.mean([row.steps for row in rows]):.1f} steps"
        )


def _rows(networks: int, how: dict[str, Any], curved: bool) -> tuple[list[Row], str]:
    """So many networks of which a state was found, and how many others there were, and why."""
    rows: list[Row] = []
    why: Counter[str] = Counter()
    for problem in problems(curved):
        row = look(problem, **how)
        if isinstance(row, Row):
            rows.append(row)
        else:
            why[row] += 1
        if len(rows) == networks:
            break
    return rows, ", ".join(f"{times} {reason}" for reason, times in why.items())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
