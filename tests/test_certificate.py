"""Whatever is certified is so: against exact arithmetic, and against networks that have several steady states."""

from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from problems import DTYPE, STRUCTURES, Ring, bistable, each_structure, not_normal, oscillating, randn
from torch import nn

import retrograde as rg


def exact_bounds(W, v, d=1):
    """d max (|W|v)_i / v_i and d max (W_ii + Σ_{j≠i} |W_ij| v_j / v_i), in rational numbers."""
    W = [[Fraction(float(w)) for w in row] for row in W]
    v = [Fraction(float(each)) for each in v]
    n = range(len(v))
    off = [sum((abs(W[i][j]) * v[j] for j in n if j != i), Fraction(0)) / v[i] for i in n]
    d = Fraction(d)
    return d * max(abs(W[i][i]) + off[i] for i in n), d * max(W[i][i] + off[i] for i in n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("f", "d"), [("tanh", 1), ("relu", 1), ("softplus", 1), ("identity", 1), ("sigmoid", 0.25)])
@pytest.mark.parametrize("gain", [0.3, 0.8, 3.0])
def test_the_bounds_are_bounds_in_exact_arithmetic(f, d, gain, dtype):
    W = gain * not_normal(9, seed=int(10 * gain), dtype=dtype) - 2 * torch.eye(9, dtype=dtype) * (gain == 0.8)
    certificate = rg.uniqueness_certificate(rg.Network(W, f=f))
    norm, measure = exact_bounds(W, certificate.weights, d)
    if not (certificate.holds and certificate.norm >= 1):  # the weights are those of the condition that is used
        assert norm <= certificate.norm <= float(norm) * (1 + 1e-9)
    else:
        assert measure <= certificate.measure
        assert Fraction(certificate.damping) <= 1 / (
            1 + Fraction(d) * max(0, -min(map(Fraction, W.diagonal().tolist())))
        ) * (1 + Fraction(1, 10**12))
    assert certificate.holds == (certificate.norm < 1 or certificate.measure < 1)


def test_the_rounding_of_long_sums_is_allowed_for():
    n = 4000
    centre, others = torch.zeros(n, dtype=torch.int64), torch.arange(1, n + 1)
    for seed in range(8):  # each sum is as often rounded down as up
        weight = randn(n, seed=seed).abs() / n
        star = rg.Sparse.from_edges(
            torch.cat([others, centre]),
            torch.cat([centre, others]),
            torch.cat([weight, torch.ones_like(weight)]),
            n + 1,
        )
        certificate = rg.uniqueness_certificate(rg.Network(star))
        v0, *v = (Fraction(each) for each in certificate.weights.tolist())
        exact = max(sum(Fraction(w) * each for w, each in zip(weight.tolist(), v, strict=True)) / v0, v0 / min(v))
        assert exact <= Fraction(certificate.norm) <= exact * (1 + Fraction(1, 10**9))


def test_a_bound_of_exactly_one_is_not_below_one():
    for W in (torch.eye(3), torch.full((3, 3), 1 / 3, dtype=DTYPE), torch.tensor([[0.5, 0.5], [1.0, 0.0]])):
        certificate = rg.uniqueness_certificate(rg.Network(W))
        assert not certificate.holds and 1 <= certificate.norm < 1 + 1e-5
    assert rg.uniqueness_certificate(rg.Network(torch.full((3, 3), 0.333))).holds


def test_rows_that_sum_to_less_than_one_suffice_and_the_weights_do_better():
    W = randn(20, 20).abs()
    W /= W.sum(1, keepdim=True) / 0.95
    assert rg.uniqueness_certificate(rg.Network(W)).norm == pytest.approx(0.95)
    scale = torch.logspace(-3, 3, 20, dtype=DTYPE)
    badly_scaled = scale[:, None] * W / scale
    assert badly_scaled.sum(1).max() > 1000
    certificate = rg.uniqueness_certificate(rg.Network(badly_scaled))
    assert certificate.holds and certificate.norm == pytest.approx(0.95, rel=2e-3)
    spread = randn(30, 30).abs()
    spread *= 0.9 / torch.linalg.eigvals(spread).abs().max()
    assert rg.uniqueness_certificate(rg.Network(spread)).norm == pytest.approx(0.9, rel=2e-3)
    forward = torch.triu(3 * randn(12, 12), 1)  # a chain of layers: whatever its weights
    assert rg.uniqueness_certificate(rg.Network(forward)).holds


def test_inhibition_of_oneself_does_no_harm():
    W = torch.tensor([[-5.0, 0.4, 0.2], [0.5, -1.0, 0.1], [0.3, 0.3, 0.2]], dtype=DTYPE)
    net = rg.Network(W, b=randn(3))
    certificate = rg.uniqueness_certificate(net)
    assert (
        certificate.holds and certificate.norm > 1 > certificate.measure and certificate.damping == pytest.approx(1 / 6)
    )
    assert f"FixedPoint(damping={certificate.damping:.3g})" in str(certificate)
    state = net.steady_state(solver=rg.FixedPoint(damping=certificate.damping, max_steps=5000), x0=10 * randn(50, 3))
    assert (state.x - state.x[0]).abs().max() < 1e-12
    assert not net.steady_state(solver=rg.FixedPoint(), throw=False).converged  # undamped, it is another matter


@each_structure
def test_every_structure_in_its_own_terms(structure):
    W = STRUCTURES[structure]()
    certificate = rg.uniqueness_certificate(rg.Network(W, f="sigmoid"))
    if structure == "Ring":
        assert not certificate.holds and certificate.weights is None and "Ring" in certificate.reason
        return
    norm, _ = exact_bounds(W.dense().detach(), certificate.weights, 0.25)
    assert certificate.holds and certificate.norm < 1
    assert norm <= certificate.norm
    if "LowRank" not in structure and "Sum" not in structure:
        assert certificate.norm == pytest.approx(float(norm))
        dense = rg.uniqueness_certificate(rg.Network(W.dense().detach(), f="sigmoid"))
        assert certificate.measure == pytest.approx(dense.measure, rel=1e-6)


def test_a_kernel_that_wraps_onto_itself_is_still_bounded():
    for kernel, grid in ((randn(2, 2, 5), (2,)), (randn(1, 1, 3, 3), (1, 2)), (-randn(1, 1, 3).abs(), (1,))):
        W = rg.Convolution(0.1 * kernel, grid)
        certificate = rg.uniqueness_certificate(rg.Network(W))
        norm, measure = exact_bounds(W.dense().detach(), certificate.weights)
        assert norm <= certificate.norm and measure <= certificate.measure * (1 + 1e-9)


def test_a_large_sparse_network_never_makes_a_matrix(monkeypatch):
    n = 20_000
    ends = torch.randint(n, (2, 3 * n), generator=torch.Generator().manual_seed(0))
    net = rg.Network(
        rg.Sum(rg.Sparse.from_edges(*ends, 0.2 * randn(3 * n), n), rg.LowRank(randn(n, 2), randn(n, 2) / n / 99))
    )
    monkeypatch.setattr(rg.Connectivity, "dense", None)
    assert rg.uniqueness_certificate(net).holds


@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(0.1, 3.0), st.sampled_from(["tanh", "sigmoid", "relu"]))
def test_where_it_holds_every_start_comes_to_one_state_at_the_rate_told(n, seed, gain, f):
    W = gain * randn(n, n, seed=seed) - gain * torch.eye(n, dtype=DTYPE) * (seed % 3)
    net = rg.Network(W, f=f, b=3 * randn(n, seed=seed + 1))
    certificate = rg.uniqueness_certificate(net)
    assert (certificate.rate < 1) == certificate.holds
    if not certificate.holds:
        return
    x, y = (30 * randn(100, n, seed=seed + k) for k in (2, 3))
    with torch.no_grad():
        for _ in range(5):
            before = ((x - y).abs() / certificate.weights).amax(-1)
            x, y = (z + certificate.damping * (net.step(z, net.b) - z) for z in (x, y))
            assert (
                ((x - y).abs() / certificate.weights).amax(-1)
                <= certificate.rate * before * (1 + 1e-9) + 1e-9 / certificate.weights.min()
            ).all()


@given(st.integers(2, 8), st.integers(0, 10**6), st.floats(0.5, 4.0))
def test_it_never_holds_where_two_steady_states_were_found(n, seed, gain):
    net = rg.Network(
        gain * randn(n, n, seed=seed) / n**0.5 + 0.5 * torch.eye(n, dtype=DTYPE), b=0.3 * randn(n, seed=seed)
    )
    state = net.steady_state(x0=2 * randn(30, n, seed=seed + 1), solver=rg.Newton(), throw=False)
    x = state.x[state.converged]
    several = len(x) > 1 and bool((x - x[:1]).abs().max() > 1e-6)
    assert not (several and rg.uniqueness_certificate(net).holds)


def test_what_it_cannot_tell_it_says():
    for network in (bistable().network, oscillating().network):
        certificate = rg.uniqueness_certificate(network)
        assert not certificate.holds and certificate.rate != certificate.rate
        assert "Nothing is proved" in str(certificate) and "or several" in str(certificate)
    certificate = rg.uniqueness_certificate(rg.Network(0.1 * not_normal(4), f=rg.Pointwise(torch.sin)))
    assert not certificate.holds and certificate.weights is None and "slopes" in certificate.reason
    with pytest.raises(TypeError, match="net: expected a Network"):
        rg.uniqueness_certificate(torch.eye(2))


def test_it_sees_a_parametrised_weight_and_leaves_weights_alone():
    class Half(nn.Module):
        def forward(self, V):
            return V / 2

    W = torch.full((2, 2), 0.8)
    net = rg.Network(W)
    torch.nn.utils.parametrize.register_parametrization(net.W, "weight", Half())
    assert rg.uniqueness_certificate(net).norm == pytest.approx(0.8)
    assert torch.equal(net.W.parametrizations.weight.original, W)
    ring = rg.Network(Ring(randn(3)))
    assert not rg.uniqueness_certificate(ring).holds
    sparse = rg.Network(rg.Sparse.from_edges([0, 1], [0, 0], torch.tensor([-0.5, 0.2]), 2))
    assert rg.uniqueness_certificate(sparse).holds and sparse.W.weight.tolist() == pytest.approx([-0.5, 0.2])
