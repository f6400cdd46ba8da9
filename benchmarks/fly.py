"""A synthetic connectome of the fly's size and spread of degrees, and what a gradient costs on it.

``python -m benchmarks.fly`` prints times as multiples of one sparse product of torch's, measured in turns with them,
and the gradient's error against float64.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.sparse.linalg
import torch

import retrograde as rg
from retrograde.connectome.eigenvalues import largest_real_eigenvalue
from retrograde.connectome.linear import adjoints

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


def compare(calls: dict[str, Callable[[], object]], repeats: int) -> None:
    """Print the least time of each, and in multiples of the first: in turns, for a machine that others use too."""
    for call in calls.values():
        call()
    least = dict.fromkeys(calls, np.inf)
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            least[name] = min(least[name], time.perf_counter() - start)
    product, *_ = least.values()
    for name, took in least.items():
        print(f"{name}: {1e3 * took:.1f} ms, {took / product:.1f} products")


def held(what: str) -> float:
    """GiB that the process holds, "VmRSS", or has held at most since Linux was told to forget, "VmHWM"."""
    found = re.search(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**20


@contextmanager
def at_the_peak(what: str) -> Iterator[None]:
    """Print how much more memory that takes at the peak."""
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of what was made so far
    yield
    print(f"memory: {before:.2f} GiB before, {held('VmHWM') - before:.2f} GiB more at the peak of {what}")


def main() -> None:
    """Time it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neurons", type=int, default=NEURONS)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--scale", type=float, default=0.99)
    parser.add_argument(
        "--drive", type=float, nargs="+", default=[1.0, 0.01], help="of 100 neurons: less, and slopes are nearer to 1"
    )
    parser.add_argument("--targets", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    solves(given)
    as_asked(given)


def solves(given: argparse.Namespace) -> None:
    """A state, its adjoint and the gradient, and influence by the solves alone, in float32."""
    n = given.neurons
    start = time.perf_counter()
    pre, post, weight = fly(n, given.connections)
    W = rg.Sparse.from_edges(pre, post, torch.from_numpy(weight).float(), n)
    del pre, post, weight
    print(f"{len(W.weight):,} connections after merging, made in {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    eigenvalue = largest_real_eigenvalue(W.bind())
    print(f"largest real part of an eigenvalue {eigenvalue:.6g}, found in {time.perf_counter() - start:.2f} s")
    with torch.no_grad():
        W.weight *= given.scale / eigenvalue
    matrix = torch.sparse_csr_tensor(W.row_starts, W.columns, W.weight.detach(), W.shape, check_invariants=False)
    x, nothing = torch.randn(n, 1), torch.zeros(n)
    driven = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:100]
    net, linear = rg.Network(W, f="tanh", b=False), rg.Network(W, f="identity", b=False).requires_grad_(False)
    net.W.weight.requires_grad_()
    exact = rg.Network(rg.Sparse(matrix.double()), f="tanh", b=False)

    def gradient(drive: float, net: rg.Network = net) -> tuple[rg.SteadyState, torch.Tensor]:
        b = nothing.to(net.W.weight.dtype)
        b[driven] = drive
        state = net.steady_state(b)
        return state, torch.autograd.grad(state.x[:1000].sum(), net.W.weights)[0]

    def influence(targets: int = 1) -> np.ndarray:
        return adjoints(linear.recurrence, torch.eye(targets, n))[0]

    calls: dict[str, Callable[[], object]] = {"a product of torch's, one sample": lambda: matrix @ x}
    for drive in given.drive:
        with at_the_peak(f"the gradient at a drive of {drive:g}"):
            state, found = gradient(drive)
        DW = scipy.sparse.diags(1 - state.x.detach().numpy() ** 2) @ scipy.sparse.csr_array(
            (W.weight.detach().numpy(), W.columns.numpy(), W.row_starts.numpy()), W.shape
        )
        radius = abs(scipy.sparse.linalg.eigs(DW, k=1, ncv=40, return_eigenvectors=False)[0])
        _, known = gradient(drive, exact)
        print(
            f"a drive of {drive:g}: spectral radius of DW {radius:.4f}, {int(state.steps.max())} steps to the state, "
            f"{int(state.receipt.steps.max())} to the adjoint, relative error of the gradient "
            f"{float((found - known).norm() / known.norm()):.1e}"
        )
        calls[f"state, adjoint and gradient, spectral radius of DW {radius:.2f}"] = partial(gradient, drive)
    receipt = rg.recurrent_backpropagation(linear, nothing, torch.eye(1, n)[0]).receipt
    print(f"{int(receipt.steps.max())} steps to the influence on a target")
    calls["influence on one target"] = influence
    calls[f"influence on {given.targets} targets"] = lambda: influence(given.targets)
    compare(calls, given.repeats)


def as_asked(given: argparse.Namespace) -> None:
    """The questions themselves, of a table with ids as FlyWire has them, in float64: with ranks and tables."""
    first_id, scale = 720_575_940_600_000_000, given.scale
    pre, post, weight = fly(given.neurons, given.connections)
    start = time.perf_counter()
    edges = pd.DataFrame({"pre": first_id + pre, "post": first_id + post, "weight": weight})
    c = rg.connectome.read(edges, weights="weight")
    print(f"as asked, in float64: {len(edges):,} rows read in {time.perf_counter() - start:.1f} s")
    matrix = torch.sparse_csr_tensor(
        c.W.row_starts, c.W.columns, c.W.weight.detach(), c.W.shape, check_invariants=False
    )
    x, target = torch.randn(len(c), 1, dtype=torch.float64), int(c.ids[5])
    driven = c.ids[100:110].tolist()
    start = time.perf_counter()
    with at_the_peak("the first influence"):
        rg.connectome.influence(c, target=target, scale=scale)
    print(f"the first influence on a target, W's eigenvalue too: {time.perf_counter() - start:.1f} s")
    with at_the_peak("importance"):
        found = rg.connectome.importance(c, driven, target, scale=scale)
    start = time.perf_counter()
    error = float(found.receipt.error_estimate)
    print(f"the error of its gradient, {error:.1e}, told in {time.perf_counter() - start:.1f} s")
    calls: dict[str, Callable[[], object]] = {
        "a product of torch's": lambda: matrix @ x,
        "influence on one target": lambda: rg.connectome.influence(c, target=target, scale=scale),
        "influence of one source": lambda: rg.connectome.influence(c, source=target, scale=scale),
        "importance of all for one target": lambda: rg.connectome.importance(c, driven, target, scale=scale),
        "influence on one target, around a state of tanh": lambda: rg.connectome.influence(
            c, target=target, scale=scale, f="tanh", drive=driven
        ),
    }
    compare(calls, given.repeats)


if __name__ == "__main__":
    main()
