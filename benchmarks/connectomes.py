"""Connectomes: Retrograde beside what their users run, on the worm and the fly's motion pathway.

``python -m benchmarks.connectomes FOLDER`` with the edge lists in FOLDER, beside connectome-interpreter. For
ConnectomeInfluenceCalculator, which solves x = αWx + b by GMRES, stands SciPy's GMRES: for the worm with an incomplete
LU factorisation, as there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.sparse.linalg
import torch

import retrograde as rg
from retrograde.connectome.eigenvalues import largest_real_eigenvalue
from retrograde.connectome.layered import Layered
from retrograde.connectome.linear import solvers_for

STEPS, SCALE, FEW = 10, 0.99, 10_000


def timed(call: Callable[[], object], repeats: int) -> str:
    """The median and the least of some repetitions, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return f"{1e3 * np.median(times):9.1f} ms (least {1e3 * min(times):9.1f})"


def motion_pathway(folder: Path) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """W, each cell's inputs scaled to 0.8 in all so that nothing reaches a clamp at 1; and the photoreceptors."""
    edges = pd.read_parquet(folder / "fly_visual_edges.parquet")
    cells = pd.read_parquet(folder / "fly_visual_neurons.parquet")
    n = len(cells)
    count, post = (edges["count"] * edges["sign"]).to_numpy(np.float64), edges["post"].to_numpy()
    total = np.maximum(np.bincount(post, np.abs(count), minlength=n), 1)
    W = scipy.sparse.csr_matrix((0.8 * count / total[post], (post, edges["pre"])), shape=(n, n))
    return W, np.flatnonzero(cells["cell_type"].isin([f"R{k}" for k in range(1, 9)]))


def interpreter(
    W: scipy.sparse.csr_matrix, sensory: np.ndarray, dtype: torch.dtype, **how: Any
) -> Callable[..., torch.Tensor]:
    """The gradient in the input by connectome-interpreter: z(t) = tanh(W z(t-1)) + input(t) at the photoreceptors."""
    from connectome_interpreter.activation_maximisation import MultilayeredNetwork

    coo, values = W.tocoo(), torch.from_numpy(W.data).to(dtype)
    weights = torch.sparse_coo_tensor(np.array([coo.row, coo.col]), values, W.shape, check_invariants=True).coalesce()
    net = MultilayeredNetwork(weights, sensory.tolist(), STEPS, **how, device=torch.device("cpu"))

    def gradient(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        given = input.to(dtype).permute(1, 2, 0).clone().requires_grad_()  # (batch, sensory, time)
        torch.set_default_dtype(dtype)  # in which it makes its zeros
        (net(given)[..., -1] @ target.to(dtype)).sum().backward()
        torch.set_default_dtype(torch.float32)
        assert given.grad is not None
        return given.grad.permute(2, 0, 1)

    return gradient


def retrograde(W: scipy.sparse.csr_matrix, sensory: np.ndarray, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """The same by Retrograde: x = tanh(W z) has the input W input(t-1), as z = x + input."""
    net = rg.Network(rg.Sparse(W.astype(str(dtype)[6:])), f="tanh", b=False).requires_grad_(False)
    senses = rg.Sparse(W[:, sensory].astype(str(dtype)[6:])).requires_grad_(False)

    def gradient(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        given = input.to(dtype).clone().requires_grad_()  # (time, batch, sensory)
        x = net.trajectory(senses @ given).at(-1)
        (x @ target.to(dtype)).sum().backward()
        assert given.grad is not None
        return given.grad

    return gradient


def as_released(W: scipy.sparse.csr_matrix, sensory: np.ndarray, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """Its own equations, with its threshold, steepness and clamp, by the preset "ci-2.9"."""
    rows, columns = (
        torch.sparse_csr_tensor(*map(torch.from_numpy, (A.indptr, A.indices, A.data)), A.shape, check_invariants=False)
        for A in (5.0 * W, (5.0 * W).T.tocsr())
    )
    net = Layered(rows.to(dtype), columns.to(dtype), 0.01, torch.tensor(0.0), torch.tensor(1.0), "input")
    driven = torch.from_numpy(sensory)

    def gradient(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        given = input.to(dtype).permute(0, 2, 1).clone().requires_grad_()  # (time, sensory, batch)
        (target.to(dtype) @ net(given, driven)[-1]).sum().backward()
        assert given.grad is not None
        return given.grad.permute(0, 2, 1)

    return gradient


PLAIN = {"threshold": 0.0, "activation_function": torch.tanh}


def through_time(folder: Path) -> None:
    """Ten steps of backpropagation through time in the input, one sample and sixteen."""
    W, sensory = motion_pathway(folder)
    random = torch.Generator().manual_seed(0)
    target = (torch.rand(W.shape[0], generator=random) < 0.01).double()
    print(f"\n{STEPS} steps through {W.nnz:,} connections, gradient in the input of {len(sensory):,} photoreceptors")
    for what, ours, how in (("tanh", retrograde, PLAIN), ("its threshold, steepness and clamp", as_released, {})):
        made = {
            "retrograde": (ours(W, sensory, torch.float32), 9),
            "connectome-interpreter": (interpreter(W, sensory, torch.float32, **how), 3),
        }
        exact = interpreter(W, sensory, torch.float64, **how)
        print(what)
        for batch in (1, 16):
            input = 0.2 * torch.rand(STEPS, batch, len(sensory), generator=random)
            known = exact(input, target)
            for name, (call, repeats) in made.items():
                error = float((call(input, target).double() - known).norm() / known.norm())
                took = timed(lambda call=call, input=input: call(input, target), repeats)  # type: ignore[misc]
                print(f"{name:24} batch {batch:2}: {took}, relative error of the gradient {error:.0e}")


def influence(name: str, W: scipy.sparse.csr_matrix, sources: np.ndarray) -> None:
    """x = αWx + b of some sources, and of every neuron on a target, α by the eigenvalue with the largest real part."""
    n, b = W.shape[0], np.zeros(W.shape[0])
    b[sources] = 1
    print(f"\ninfluence, {name}: {n:,} neurons, {W.nnz:,} connections, scale {SCALE}, float64")
    start = time.perf_counter()
    eigenvalue = largest_real_eigenvalue(rg.Sparse(W).bind())  # of each component: of a few cells it escapes Arnoldi
    print(f"{'eigenvalue':34}: {1e3 * (time.perf_counter() - start):9.1f} ms, {eigenvalue:.6g}")
    alpha = SCALE / eigenvalue
    A = (scipy.sparse.identity(n) - alpha * W).tocsc()
    net = rg.Network(rg.Sparse(alpha * W), f="identity", b=False).requires_grad_(False)
    drive = torch.from_numpy(b)
    solver, adjoint = solvers_for(net.recurrence)

    def forward() -> np.ndarray:
        return net.steady_state(drive, solver=solver).x.numpy()

    def backward() -> np.ndarray:
        return rg.recurrent_backpropagation(net, torch.zeros_like(drive), drive, adjoint=adjoint).s.numpy()

    def report(
        what: str, call: Callable[[], np.ndarray], matrix: scipy.sparse.csc_matrix = A, repeats: int = 3
    ) -> None:
        took, x = timed(call, repeats), call()
        print(f"{what:34}: {took}, residual {np.linalg.norm(matrix @ x - b) / np.linalg.norm(b):.0e}")

    report("retrograde, sources to all", forward)
    report("retrograde, all to a target", backward, A.T)

    M = None
    if n < FEW:  # of a large graph SuperLU's incomplete factors take minutes, however few they may be
        start = time.perf_counter()
        M = scipy.sparse.linalg.LinearOperator(A.shape, scipy.sparse.linalg.spilu(A, drop_tol=1e-4).solve)
        print(f"{'SciPy, ILU':34}: {1e3 * (time.perf_counter() - start):9.1f} ms, once for each graph and scale")
    what = "SciPy, GMRES + ILU" if M else "SciPy, GMRES"
    report(f"{what}, sources to all", lambda: scipy.sparse.linalg.gmres(A, b, rtol=1e-10, M=M)[0])


def main() -> None:
    """All of it."""
    folder = Path(sys.argv[1])
    if os.getloadavg()[0] > 0.5:
        print(f"The machine is busy, its load {os.getloadavg()[0]:.1f}: times are longer than they need be.")
    through_time(folder)
    edges = pd.read_csv(folder / "celegans_edgelist.csv")
    ids = pd.Index(sorted({*edges["pre"], *edges["post"]}))
    post, pre = ids.get_indexer(edges["post"]), ids.get_indexer(edges["pre"])
    worm = scipy.sparse.csr_matrix((edges["count"].astype(float), (post, pre)), shape=(len(ids), len(ids)))
    influence("worm", worm, ids.get_indexer(["ADAL", "ADAR"]))
    W, sensory = motion_pathway(folder)
    influence("motion pathway", W, sensory[:721])


if __name__ == "__main__":
    main()
