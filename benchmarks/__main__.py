"""``make bench``: this library and plain PyTorch side by side, interleaved, each time beside its gradient's error.

The error is that of dR/dW against the same gradient in float64 by another route: a dense solve at a steady state,
autograd through the unfolded network along a trajectory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import retrograde as rg

REPEATS = 7

Contestants = dict[str, Callable[[], Tensor]]


def compare(title: str, contestants: Contestants, exact: Tensor) -> None:
    """Time the contestants in turn, so that a slow spell of the machine hits all of them."""
    errors = {name: float((run().double() - exact).norm() / exact.norm()) for name, run in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(REPEATS):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    ours = statistics.median(times["retrograde"])
    for name, each in times.items():
        median = statistics.median(each)
        spread = f"{min(each):.2f}-{max(each):.2f}"
        print(f"| {title} | {name} | {median:.2f} | {spread} | {median / ours:.2f} | {errors[name]:.0e} |")


def steady(n: int, batch: int, gain: float) -> None:
    """A tanh network's steady states, their adjoint and dR/dW, R = sum sin(x)."""
    torch.manual_seed(0)
    W, b = torch.randn(n, n) * gain / n**0.5, torch.randn(batch, n)
    net = rg.Network(W, b=False)

    def retrograde() -> Tensor:
        return torch.autograd.grad(net.steady_state(b).x.sin().sum(), net.W.weight)[0]

    def loop() -> Tensor:
        """What one writes by hand: iterate without autograd to a tolerance of 1e-6, then the same for the adjoint."""
        with torch.no_grad():
            x, s = torch.zeros_like(b), torch.zeros_like(b)
            for _ in range(1000):
                before, x = x, torch.tanh(x @ W.T + b)
                if (x - before).norm() <= 1e-6 * x.norm():
                    break
            D, g = 1 - x * x, x.cos()
            for _ in range(1000):
                before, s = s, D * (s @ W + g)
                if (s - before).norm() <= 1e-6 * s.norm():
                    break
            return s.T @ x

    def unrolled() -> Tensor:
        """Autograd through fifty steps, its graph kept."""
        w = W.clone().requires_grad_()
        x = torch.zeros_like(b)
        for _ in range(50):
            x = torch.tanh(x @ w.T + b)
        return torch.autograd.grad(x.sin().sum(), w)[0]

    x = rg.Network(W.double(), b=False).steady_state(b.double()).x.detach()
    D = 1 - x * x
    M = torch.eye(n, dtype=torch.float64) - D[:, :, None] * W.double().T
    exact = torch.linalg.solve(M, D * x.cos()).T @ x
    title = f"steady state, n {n}, batch {batch}, gain {gain}"
    compare(title, {"retrograde": retrograde, "loop by hand": loop, "autograd, 50 steps": unrolled}, exact)


def trajectory(n: int, batch: int, T: int) -> None:
    """A tanh network's trajectories, their adjoint and dR/dW, R = sum sin(x(t))."""
    torch.manual_seed(0)
    W, b = torch.randn(n, n) * 0.9 / n**0.5, torch.randn(T, batch, n)
    net = rg.Network(W, b=False)
    rnn = torch.nn.RNN(n, n)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(W)
        rnn.weight_ih_l0.copy_(torch.eye(n))
        rnn.bias_ih_l0.zero_()
        rnn.bias_hh_l0.zero_()

    def retrograde() -> Tensor:
        return torch.autograd.grad(net.trajectory(b).x.sin().sum(), net.W.weight)[0]

    def torch_rnn() -> Tensor:
        return torch.autograd.grad(rnn(b)[0].sin().sum(), rnn.weight_hh_l0)[0]

    def unfolded() -> Tensor:
        return torch.autograd.grad(mlp.activities(torch.zeros(batch, n), b).sin().sum(), net.W.weight)[0]

    mlp = net.unfold(T)
    wide = rg.Network(W.double(), b=False)
    x = wide.unfold(T).activities(torch.zeros(batch, n, dtype=torch.float64), b.double())
    exact = torch.autograd.grad(x.sin().sum(), wide.W.weight)[0]
    title = f"trajectory, n {n}, batch {batch}, T {T}"
    compare(title, {"retrograde": retrograde, "torch.nn.RNN": torch_rnn, "autograd, unfolded": unfolded}, exact)


def main() -> None:
    """The tables."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, tanh; forward + adjoint + dR/dW.")
    print("nn.RNN also multiplies its input by W_ih, here the identity: what an external b(t) costs there.\n")
    print("| problem | by | ms, median | ms, range | times retrograde's | error of dR/dW |")
    print("|---|---|---|---|---|---|")
    for n, batch, gain in ((100, 64, 0.9), (256, 64, 0.9), (1000, 1, 0.9), (1000, 64, 0.9), (100, 64, 1.5)):
        steady(n, batch, gain)
    for n, batch, T in ((64, 1, 1000), (64, 32, 200), (128, 32, 200), (256, 64, 200)):
        trajectory(n, batch, T)


if __name__ == "__main__":
    main()
