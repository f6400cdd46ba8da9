"""Real connectomes: a worm's, against the dense route, and a fly's visual system, which no dense matrix would hold."""

import csv
from pathlib import Path

import pytest
import torch

import retrograde as rg

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the connectomes are not beside the project, in {DATA.name}/"
)


@needs_data
def test_a_worms_gradient_against_a_dense_solve():
    with open(DATA / "celegans_edgelist.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ids = {name: i for i, name in enumerate(sorted({row[end] for row in rows for end in ("pre", "post")}))}
    pre, post = ([ids[row[end]] for row in rows] for end in ("pre", "post"))
    weight = torch.tensor([0.8 * float(row["norm"]) for row in rows], dtype=torch.float64)
    n = len(ids)
    assert (n, len(rows)) == (300, 3539)
    W = rg.Sparse.from_edges(pre, post, weight, n)
    net = rg.Network(W, b=False)
    input = torch.zeros(2, n, dtype=torch.float64)
    input[0, :10], input[1, 10:30] = 1.0, -0.5
    state = net.steady_state(input)
    state.x[:, -1].sum().backward()

    x, M = state.x.detach(), W.dense().detach()
    D, g = 1 - x * x, torch.zeros_like(x)
    g[:, -1] = 1
    s = torch.linalg.solve(torch.eye(n).double() - D[:, :, None] * M.T, D * g)
    ends = W.edges
    exact = (s.T @ x)[ends[0], ends[1]]
    assert (W.weight.grad - exact).norm() <= 1e-10 * exact.norm()


@needs_data
def test_a_flys_gradient_has_the_size_of_its_connections():
    pandas = pytest.importorskip("pandas")
    edges = pandas.read_parquet(DATA / "fly_visual_edges.parquet")
    n = len(pandas.read_parquet(DATA / "fly_visual_neurons.parquet"))
    pre, post = (torch.tensor(edges[end].to_numpy()) for end in ("pre", "post"))
    count = torch.tensor((edges["count"] * edges["sign"]).to_numpy(), dtype=torch.float32)
    # Each cell's inputs are scaled to 0.8 in all, so that activity settles.
    total = torch.zeros(n).index_add_(0, post, count.abs()).clamp(min=1)
    W = rg.Sparse.from_edges(pre, post, 0.8 * count / total[post], n)
    assert (n, len(W.weight)) == (45_669, 1_513_231)
    net = rg.Network(W, f="relu")
    input = torch.rand(3, n, generator=torch.Generator().manual_seed(0))
    state = net.steady_state(input)  # n x n in float32 would take 8 GB, and three of them 25
    state.x[:, -1].sum().backward()
    assert state.converged.all() and state.receipt.converged.all()
    assert W.weight.grad.shape == W.weight.shape and W.weight.grad.abs().sum() > 0
    s, x = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = (s * (W @ x)).double().sum(), ((W.T @ s) * x).double().sum()
    assert abs(a - b) <= 1e-4 * (s.norm() * (W @ x).norm())
