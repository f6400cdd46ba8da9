"""A synthetic connectome of the fly's size and spread of degrees, and what a gradient costs on it.

``python -m benchmarks.fly`` prints times as multiples of one sparse product of torch's, measured in the same run.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

import retrograde as rg
from retrograde.connectome.linear import largest_real_eigenvalue

NEURONS, CONNECTIONS = 138_639, 15_091_983


def fly(neurons: int = NEURONS, connections: int = CONNECTIONS, seed: int = 0) -> tuple[np.ndarray, ...]:
    """pre, post and counts of the connections, before pairs are merged.

    Numbers of inputs and of outputs are log-normal and go together, as in the fly; counts are geometric, their mean
    about 4; one neuron in four is inhibitory, its counts negative.
    """
    random = np.random.default_rng(seed)
    common = random.normal(size=neurons)
    ends = []
    for own in random.normal(size=(2, neurons)):
        share = np.cumsum(np.exp(0.9 * (0.8 * common + 0.6 * own)))
        ends.append(np.searchsorted(share, random.random(connections) * share[-1]))
    pre, post = ends
    sign = np.where(random.random(neurons) < 0.25, -1.0, 1.0)
    return pre, post, random.geometric(0.25, connections) * sign[pre]


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The median of some repetitions, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Time it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neurons", type=int, default=NEURONS)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--scale", type=float, default=0.99)
    given = parser.parse_args()
    start = time.perf_counter()
    pre, post, weight = fly(given.neurons, given.connections)
    W = rg.Sparse.from_edges(pre, post, torch.from_numpy(weight).float(), given.neurons)
    print(f"{len(W.weight):,} connections after merging, made in {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    eigenvalue = largest_real_eigenvalue(W.bind())
    print(f"largest real part of an eigenvalue {eigenvalue:.6g}, found in {time.perf_counter() - start:.2f} s")
    with torch.no_grad():
        W.weight *= given.scale / eigenvalue
    matrix = torch.sparse_csr_tensor(W.row_starts, W.columns, W.weight.detach(), W.shape, check_invariants=False)
    x = torch.randn(given.neurons, 1)
    product = seconds(lambda: matrix @ x, 20)
    print(f"a product of torch's, one sample: {1e3 * product:.1f} ms")
    b = torch.zeros(given.neurons)
    b[torch.randperm(given.neurons, generator=torch.Generator().manual_seed(0))[:100]] = 1.0
    net = rg.Network(W, f="tanh", b=b)
    state = net.steady_state()
    state.x[:1000].sum().backward()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(net.steady_state().x[:1000].sum(), net.W.weights)[0]

    took = seconds(gradient, 3)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 2**20
    print(
        f"state, adjoint and gradient in all weights: {took:.3f} s, {took / product:.1f} products; {more:.2f} GiB more"
    )
    print(f"{int(state.steps.max())} steps to the state, {int(state.receipt.steps.max())} to the adjoint")


if __name__ == "__main__":
    main()
