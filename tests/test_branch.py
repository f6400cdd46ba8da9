import importlib.util
import math
from pathlib import Path

import pytest
import scipy.sparse
import torch
from helpers import assert_close, tolerance
from problems import DTYPE, bistable, not_normal, randn
from torch import nn

import retrograde as rg
from retrograde.spectrum import continue_steady_state
from retrograde.spectrum.cells import cell_of

ONE = torch.ones(1, dtype=DTYPE)
FOLD = math.sqrt(0.5)  # where tanh' = 1/2
AT_FOLD = math.atanh(FOLD) - 2 * FOLD


def one_neuron(w, b=0.0, dtype=DTYPE, **more):
    return rg.Network(torch.tensor([[w]], dtype=dtype), b=torch.tensor([b], dtype=dtype), **more)


def rotation(angle, **more):
    c, s = math.cos(angle), math.sin(angle)
    return rg.Network(torch.tensor([[c, -s], [s, c]], dtype=DTYPE), b=False, **more)


def kinds(branch):
    return [point.kind for point in branch.special]


def assert_at(point, parameter, x=None):
    """Located to the tolerance of a solve, and by no more off than it says."""
    assert abs(point.parameter - parameter) <= point.bracket + tolerance(point.x.dtype)
    assert point.bracket <= 1e-11 and point.residual <= tolerance(point.x.dtype) and point.defect <= 1e-11
    if x is not None:
        assert (point.x - torch.as_tensor(x, dtype=point.x.dtype)).abs().max() <= 100 * tolerance(point.x.dtype)


# --- folds


@pytest.mark.parametrize("start, stop, up", [(-1.0, 1.0, -1), (1.0, -1.0, 1)])
def test_the_folds_of_one_neuron(start, stop, up):
    # From below the branch goes up to the fold at x = -1/√2, back to that at 1/√2, and on.
    branch = continue_steady_state(one_neuron(2.0), ("input", ONE), (start, stop))
    assert kinds(branch) == ["fold", "fold"] and branch.ended == "left the range"
    assert_at(branch.special[0], up * AT_FOLD, [up * FOLD])
    assert_at(branch.special[1], -up * AT_FOLD, [-up * FOLD])
    t, x = branch.parameter, branch.x[:, 0]
    assert_close(torch.tanh(2 * x + t), x)
    assert float(t[0]) == start and float(t[-1]) == stop
    assert (branch.stable == (x.abs() > FOLD)).all()
    assert (branch.residual <= tolerance(DTYPE)).all()
    # Three states, and so three crossings, where b = 0.
    assert int((t[1:].sign() != t[:-1].sign()).sum()) == 3
    first, second = (point.index for point in branch.special)
    assert x[first - 1].abs() > FOLD > x[first].abs() and x[second - 1].abs() < FOLD < x[second].abs()


def test_a_branch_passes_all_three_states_of_the_bistable_problem():
    problem = bistable()
    branch = continue_steady_state(problem.network, ("input", torch.tensor([1.0, 0.0], dtype=DTYPE)), (-1.0, 1.0))
    for state in problem.x:
        assert torch.linalg.vector_norm(branch.x - state, dim=-1).min() < 0.05
    assert kinds(branch) == ["fold", "fold"]
    assert_at(branch.special[0], -AT_FOLD)
    assert_at(branch.special[1], AT_FOLD)


def test_a_fold_in_float32():
    branch = continue_steady_state(one_neuron(2.0, dtype=torch.float32), ("input", ONE.float()), (-1.0, 1.0))
    assert kinds(branch) == ["fold", "fold"] and branch.x.dtype == torch.float32
    assert abs(branch.special[0].parameter - -AT_FOLD) < 1e-6
    assert abs(float(branch.special[0].x) + FOLD) < 1e-3


def test_a_branch_that_turns_back_leaves_the_range_where_it_began():
    # F(x) = x where x² + t² = 1/4; x crosses 0 on the way.
    branch = continue_steady_state(
        None, lambda t: lambda x: x + 0.5 * (0.25 - t * t - x * x), (0.1, 2.0), x0=0.5 * ONE, step=0.05
    )
    assert branch.ended == "left the range" and kinds(branch) == ["fold"]
    assert_at(branch.special[0], 0.5, [0.0])
    assert float(branch.parameter[-1]) == 0.1
    assert_close(branch.x[-1], -branch.x[0])


def test_from_inside_the_range_it_is_followed_both_ways():
    whole = continue_steady_state(one_neuron(2.0), ("input", ONE), (-1.0, 1.0))
    middle = continue_steady_state(one_neuron(2.0), ("input", ONE), (-1.0, 1.0), start=0.0, x0=0 * ONE)
    assert kinds(middle) == ["fold", "fold"] and middle.ended == "left the range"
    # In the middle t = 0, x = 0 the branch runs downwards, so that forwards is to the fold on the right.
    assert float(middle.parameter[0]) in (-1, 1) and float(middle.parameter[-1]) == -float(middle.parameter[0])
    assert_close(torch.tanh(2 * middle.x[:, 0] + middle.parameter), middle.x[:, 0])
    for point in middle.special:
        assert_at(point, AT_FOLD if point.parameter < 0 else -AT_FOLD)
        before, after = middle.stable[point.index - 1], middle.stable[point.index]
        assert before != after
    assert torch.equal(middle.stable, middle.x[:, 0].abs() > FOLD)
    assert len(middle.table()) == len(middle) and abs(len(whole) - len(middle)) < 20
    assert (middle.x[1:, 0] > middle.x[:-1, 0]).all() or (middle.x[1:, 0] < middle.x[:-1, 0]).all()


def test_an_isolated_loop_is_closed():
    # F(x) = x where x² + t² = 1/4.
    loop = continue_steady_state(
        None, lambda t: lambda x: x + 0.5 * (0.25 - t * t - x * x), (-1.0, 1.0), start=0.0, x0=0.5 * ONE
    )
    assert loop.ended == "closed" and kinds(loop) == ["fold", "fold"]
    assert_at(loop.special[0], 0.5, [0.0])
    assert_at(loop.special[1], -0.5, [0.0])
    assert_close(loop.x[-1], loop.x[0], within=1e-9)
    assert_close(loop.x[:, 0] ** 2 + loop.parameter**2, torch.full_like(loop.parameter, 0.25))


# --- branch points


@pytest.mark.parametrize("leak", [None, 0.3])
def test_the_pitchfork_of_one_neuron_and_its_branches(leak):
    branch = continue_steady_state(one_neuron(1.0, leak=leak), "gain", (0.5, 2.0), branches=True)
    assert kinds(branch) == ["pitchfork"] and branch.ended == "left the range"
    assert_at(branch.special[0], 1.0, [0.0])
    assert abs(branch.special[0].eigenvalue - 1) < 1e-12 and branch.special[0].multiplicity == 1
    assert (branch.x == 0).all()
    assert (branch.stable == (branch.parameter < 1)).all()
    up, down = sorted(branch.branches, key=lambda other: -float(other.x[-1]))
    assert_close(up.x, -down.x)
    assert float(up.x[0]) == 0 and float(up.parameter[0]) == branch.special[0].parameter
    assert_close(torch.tanh(up.parameter * up.x[:, 0]), up.x[:, 0])
    assert abs(float(up.x[-1]) - 0.9575040240772687) < 1e-12 and up.stable[1:].all() and not up.special


def test_a_pitchfork_met_from_the_side_is_one_too():
    # Along x = tanh(t x), x > 0, t turns at t = 1 without an eigenvalue that crosses.
    branch = continue_steady_state(one_neuron(1.0), "gain", (2.0, 0.5), x0=ONE)
    assert kinds(branch) == ["pitchfork"]
    assert abs(branch.special[0].parameter - 1) < 1e-10
    assert float(branch.x[-1]) < -0.9 and branch.ended == "left the range"


def test_a_transcritical_point_and_the_branch_that_crosses():
    # x = t x - x² + x: the branches x = 0 and x = t.
    branch = continue_steady_state(
        None, lambda t: lambda x: t * x - x * x + x, (-0.5, 0.5), x0=torch.zeros(1, dtype=DTYPE), branches=True
    )
    assert kinds(branch) == ["transcritical"] and len(branch.branches) == 2
    assert_at(branch.special[0], 0.0, [0.0])
    for other in branch.branches:
        assert (other.x[:, 0] - other.parameter).abs().max() <= 1e-12
        assert abs(float(other.parameter[-1])) == 0.5


def critical(n=5):
    """A W that is not normal, whose rightmost eigenvalue is 1, and its vectors: wᵀv = 1."""
    M = not_normal(n) + torch.full((n, n), 1 / n, dtype=DTYPE)
    values, vectors = torch.linalg.eig(M)
    j = values.real.argmax()
    assert values[j].imag == 0 and values[j].real > 0
    v, w = vectors[:, j].real, torch.linalg.inv(vectors)[j].real
    return M / values[j].real, v, w


def quadratic(u):
    return u - u * u


def cubic(u):
    return u - u**3


def test_fold_pitchfork_and_transcritical_are_told_apart_at_one_and_the_same_state():
    # At x = 0 with b = 0, J = W has the eigenvalue 1. What happens there depends on f and on what varies.
    W, v, w = critical()
    nets = {f: rg.Network(W, f=rg.Pointwise(f), b=False) for f in (quadratic, cubic)}
    for f, kind in ((quadratic, "transcritical"), (cubic, "pitchfork")):
        branch = continue_steady_state(nets[f], "gain", (0.8, 1.2), branches=True)
        assert [point.kind for point in branch.special] == [kind] and len(branch.branches) == 2
        assert_at(branch.special[0], 1.0, torch.zeros(5))
        sides = [float((other.parameter - 1)[1:].mean().sign()) for other in branch.branches]
        assert sorted(sides) == ([-1, 1] if kind == "transcritical" else [1, 1])
    d = randn(5, seed=3)
    # Along the input, y moves by wᵀd t - (wᵀv²) y²: it exists on the side of t where y² is positive.
    side = float(((w @ d) * (w @ v**2)).sign())
    t = side * 0.02
    start = v * float(((w @ d) * t / (w @ v**2)) ** 0.5)
    branch = continue_steady_state(nets[quadratic], ("input", d), (t, -t), x0=start, step=0.01)
    assert kinds(branch) == ["fold"]
    assert_at(branch.special[0], 0.0, torch.zeros(5))
    assert not kinds(continue_steady_state(nets[cubic], ("input", d), (-0.02, 0.02), x0=-start))


@pytest.mark.parametrize("step", [0.005, 0.02, 0.05])
@pytest.mark.parametrize("range, x0", [((0.5, 1.5), -2.0), ((1.6, 0.4), 0.25)])
@pytest.mark.parametrize("W", [[[1.0]], [[0.5, 1.0], [0.25, 0.5]]])
def test_a_transcritical_point_met_along_the_branch_that_is_not_0_lies_within_its_bracket(W, range, x0, step):
    W = torch.tensor(W, dtype=DTYPE)
    net = rg.Network(W, f=rg.Pointwise(quadratic), b=False)  # along one neuron, x = (t - 1)/t²
    branch = continue_steady_state(net, "gain", range, x0=torch.full((len(W),), x0, dtype=DTYPE), step=step)
    (point,) = branch.special
    assert point.kind == "transcritical" and branch.ended == "left the range"
    assert abs(point.parameter - 1) <= point.bracket <= 1e-4
    if len(W) == 1:
        assert_close(branch.x[:, 0], (branch.parameter - 1) / branch.parameter**2, within=1e-10)
        assert abs(float(point.x) - (point.parameter - 1) / point.parameter**2) <= point.bracket


def test_several_eigenvalues_that_cross_together_are_one_branch_point():
    branch = continue_steady_state(rg.Network(torch.eye(3, dtype=DTYPE)), "gain", (0.5, 2.0), branches=True)
    assert kinds(branch) == ["branch point"] and branch.special[0].multiplicity == 3 and not branch.branches
    assert_at(branch.special[0], 1.0)


# --- where cycles appear


@pytest.mark.parametrize("angle, leak", [(1.0, None), (1.0, 0.3), (0.5, 0.1)])
def test_the_hopf_and_the_neimark_sacker_point_of_a_rotation(angle, leak):
    # W turns by the angle: λ = g exp(±i angle). Re λ = 1 at g = 1/cos; |1 - a + a λ| = 1 is a quadratic in g.
    a, c = leak or 1.0, math.cos(angle)
    linear, constant = 2 * a * (1 - a) * c, (1 - a) ** 2 - 1
    discrete = (-linear + math.sqrt(linear**2 - 4 * a * a * constant)) / (2 * a * a)
    branch = continue_steady_state(rotation(angle, leak=leak), "gain", (0.5, 2.5))
    found = {point.kind: point for point in branch.special}
    assert sorted(kinds(branch)) == ["hopf", "neimark-sacker"]
    assert_at(found["hopf"], 1 / c, [0.0, 0.0])
    assert_at(found["neimark-sacker"], discrete, [0.0, 0.0])
    assert abs(abs(found["hopf"].eigenvalue.imag) - math.tan(angle)) < 1e-10
    assert abs(abs(found["neimark-sacker"].eigenvalue) - 1) < 1e-10
    assert found["hopf"].multiplicity == found["neimark-sacker"].multiplicity == 1
    assert (branch.stable_continuous == (branch.parameter < 1 / c)).all()
    assert (branch.stable == (branch.parameter < discrete)).all()
    # The mode turns: (1, ∓i)/√2.
    mode = found["neimark-sacker"].mode
    assert abs(float(abs(mode[1] / mode[0]).item()) - 1) < 1e-8 and abs((mode[1] / mode[0]).real) < 1e-8


def test_a_flip():
    branch = continue_steady_state(one_neuron(-1.0), "gain", (0.5, 2.0))
    assert kinds(branch) == ["flip"]
    assert_at(branch.special[0], 1.0, [0.0])
    assert branch.stable_continuous.all() and abs(branch.special[0].eigenvalue + 1) < 1e-12


# --- the labels, against dense eigenvalues; other ways to say what varies


def test_the_labels_along_a_branch_are_those_of_dense_eigenvalues():
    W, direction = 2 * randn(8, 8) / 8**0.5, randn(8, seed=1)
    branch = continue_steady_state(rg.Network(W, leak=0.4), ("input", direction), (0.0, 2.0), input=randn(8, seed=2))
    assert_close(torch.tanh(branch.x @ W.T + randn(8, seed=2) + branch.parameter[:, None] * direction), branch.x)
    D = 1 - branch.x**2
    values = torch.linalg.eigvals(D[:, :, None] * W)
    assert torch.equal(branch.stable_continuous, (values.real < 1).all(-1))
    assert torch.equal(branch.stable_discrete, (values.abs() < 1).all(-1))
    assert torch.equal(branch.stable, ((0.6 + 0.4 * values).abs() < 1).all(-1))
    assert_close(branch.eigenvalues.abs(), values.abs().sort(descending=True).values[:, :6], conditioning=1e3)
    assert_close(branch.rightmost.real, values.real.amax(-1), conditioning=1e3)
    # A verdict changes where a special point says so, and nowhere else.
    changes = (branch.stable[1:] != branch.stable[:-1]).nonzero()[:, 0] + 1
    assert len(changes) and set(changes.tolist()) <= {point.index for point in branch.special}


@pytest.mark.parametrize("seed, n, gain", [(3, 4, 2.5), (5, 6, 2.0), (13, 10, 2.5), (14, 8, 3.0), (15, 10, 3.5)])
def test_of_a_random_network_every_turn_is_a_fold_and_every_change_of_verdict_is_told(seed, n, gain):
    W, d = gain * randn(n, n, seed=seed) / n**0.5, randn(n, seed=seed + 100)
    start = torch.tanh(-10 * d)
    branch = continue_steady_state(rg.Network(W, leak=0.5), ("input", d), (-2.0, 2.0), x0=start, step=0.05)
    along = branch.parameter.diff()
    assert int((along[1:] * along[:-1] < 0).sum()) == kinds(branch).count("fold")
    real = {"fold", "pitchfork", "transcritical", "branch point"}
    for verdict, others in ((branch.stable, {"neimark-sacker", "flip"}), (branch.stable_continuous, {"hopf"})):
        changes = (verdict[1:] != verdict[:-1]).nonzero()[:, 0] + 1
        assert set(changes.tolist()) <= {point.index for point in branch.special if point.kind in real | others}
    for point in branch.special:
        assert point.residual <= tolerance(DTYPE) and point.defect <= 1e-9 and point.bracket <= 1e-11


def test_a_family_of_networks_and_a_family_of_functions_are_followed_as_the_input_is():
    want = continue_steady_state(one_neuron(2.0), ("input", ONE), (-1.0, 1.0))
    networks = continue_steady_state(None, lambda t: one_neuron(2.0, t), (-1.0, 1.0), step=0.1)
    functions = continue_steady_state(None, lambda t: lambda x: torch.tanh(2 * x + t), (-1.0, 1.0), x0=-ONE, step=0.1)
    for other in (networks, functions):
        assert kinds(other) == kinds(want)
        for point, same in zip(other.special, want.special, strict=True):
            assert_at(point, same.parameter, same.x)


def test_a_torch_cell_along_its_input():
    cell, direction = nn.GRUCell(2, 3).double(), randn(2)
    for i, weight in enumerate(cell.parameters()):
        weight.data.copy_(randn(*weight.shape, seed=i))
    branch = continue_steady_state(cell, ("input", direction), (-1.0, 1.0), input=randn(2, seed=1), step=0.1)
    with torch.no_grad():
        again = cell(randn(2, seed=1) + branch.parameter[:, None] * direction, branch.x)
    assert_close(again, branch.x)
    assert not branch.lost and len(branch) > 10


@pytest.mark.parametrize("parameter", ["gain", "input"])
def test_the_slopes_in_the_parameter_are_exact(parameter):
    from retrograde.spectrum.families import family_of

    net, d = rg.Network(not_normal(4), b=randn(4, seed=5)), randn(4, seed=6)
    family = family_of(net, "gain" if parameter == "gain" else ("input", d), randn(4, seed=7), None)
    x, t = randn(2, 4), torch.tensor(0.7, dtype=DTYPE)

    def step(t):
        b = net.b.detach() + randn(4, seed=7)
        u = t * (x @ net.W.weight.detach().T) + b if parameter == "gain" else x @ net.W.weight.detach().T + b + t * d
        return torch.tanh(u)

    want = torch.autograd.functional.jacobian(step, t)
    with torch.no_grad():
        assert_close(family.slope(x, 0.7), want, solved=False)
        assert_close(family.at(0.7).step(x), step(t), solved=False)


def test_a_large_network_that_is_not_full_is_followed_by_products_alone():
    n = 70
    M = 0.3 * not_normal(n)
    M[0, 0] = 2.0
    W = rg.Sparse(scipy.sparse.csr_matrix(M.numpy()))
    assert cell_of(rg.Network(W)).full is None
    d = torch.zeros(n, dtype=DTYPE)
    d[0] = 1
    branch, full = (
        continue_steady_state(rg.Network(each), ("input", d), (0.45, 0.6), x0=-d, step=0.2) for each in (W, M)
    )
    assert kinds(branch) == kinds(full) and "fold" in kinds(full)
    assert abs(branch.special[0].parameter - full.special[0].parameter) < 1e-10
    assert torch.equal(branch.stable, full.stable)


# --- failures


def test_a_kink_of_relu_is_stepped_over():
    W = torch.tensor([[0.0, -0.8], [0.6, 0.0]], dtype=DTYPE)
    net = rg.Network(W, f="relu")
    branch = continue_steady_state(net, ("input", torch.tensor([1.0, 0.3], dtype=DTYPE)), (-1.0, 1.0))
    assert branch.ended == "left the range" and not branch.special
    off, on = branch.x[0], branch.x[-1]  # both off; both on, where x = (I - W)⁻¹ b
    assert (off == 0).all()
    b = torch.tensor([1.0, 0.3], dtype=DTYPE)
    assert_close(on, torch.linalg.solve(torch.eye(2, dtype=DTYPE) - W, b))


def test_a_branch_that_is_lost_raises_and_holds_what_was_found():
    with pytest.raises(rg.ConvergenceError, match="max_points") as error:
        continue_steady_state(one_neuron(2.0), ("input", ONE), (-1.0, 1.0), max_points=5)
    assert len(error.value.result) == 5 and error.value.result.lost
    told = continue_steady_state(one_neuron(2.0), ("input", ONE), (-1.0, 1.0), max_points=5, throw=False)
    assert told.ended == "max_points" and torch.equal(told.x, error.value.result.x)


def test_a_branch_that_ends_is_lost_where_it_ends():
    def ends(t):
        return lambda x: 0.5 * x + t + (torch.nan if t > 1 else 0)

    lost = continue_steady_state(None, ends, (0.0, 2.0), x0=0 * ONE, throw=False)
    assert lost.ended == "step too small" and lost.lost and 0.99 < float(lost.parameter[-1]) <= 1
    assert lost.x.isfinite().all()


def test_no_state_to_begin_with_raises():
    net = rg.Network(torch.tensor([[2.0]], dtype=DTYPE), f="relu", b=ONE)
    with pytest.raises(rg.ConvergenceError, match="to begin with"):
        continue_steady_state(net, ("input", ONE), (0.0, 1.0))


def test_bad_input_is_named():
    net, gru = one_neuron(2.0), nn.GRUCell(2, 3).double()
    for error, match, call in [
        (ValueError, "parameter: expected 'gain'", lambda: continue_steady_state(net, "loss", (0, 1))),
        (ValueError, "parameter: 'gain'", lambda: continue_steady_state(gru, "gain", (0, 1))),
        (ValueError, "parameter: 'input'", lambda: continue_steady_state(None, ("input", ONE), (0, 1))),
        (ValueError, "direction: expected shape", lambda: continue_steady_state(net, ("input", randn(2)), (0, 1))),
        (TypeError, "direction: expected a torch", lambda: continue_steady_state(net, ("input", 1.0), (0, 1))),
        (ValueError, "range", lambda: continue_steady_state(net, "gain", (1, 1))),
        (ValueError, "range", lambda: continue_steady_state(net, "gain", (0, math.inf))),
        (ValueError, "range", lambda: continue_steady_state(net, "gain", 3)),
        (ValueError, "start", lambda: continue_steady_state(net, "gain", (0, 1), start=2)),
        (TypeError, "start", lambda: continue_steady_state(net, "gain", (0, 1), start="0")),
        (ValueError, "step", lambda: continue_steady_state(net, "gain", (0, 1), step=0)),
        (ValueError, "max_points", lambda: continue_steady_state(net, "gain", (0, 1), max_points=0)),
        (TypeError, "modes", lambda: continue_steady_state(net, "gain", (0, 1), modes=1.5)),
        (ValueError, "x0: expected shape", lambda: continue_steady_state(net, "gain", (0, 1), x0=randn(2))),
        (ValueError, "x0: expected shape", lambda: continue_steady_state(net, "gain", (0, 1), x0=randn(2, 1))),
        (ValueError, "n: expected how many", lambda: continue_steady_state(None, lambda t: torch.tanh, (0, 1))),
    ]:
        with pytest.raises(error, match=match):
            call()


# --- the table and the diagram


def test_the_table_has_a_row_a_point():
    branch = continue_steady_state(one_neuron(2.0), ("input", ONE), (-1.0, 1.0))
    table = branch.table()
    assert len(table) == len(branch) and table["special"].value_counts()["fold"] == 2
    assert (table["stable"].to_numpy() == branch.stable.numpy()).all()
    assert (table["input"].to_numpy() == branch.parameter.numpy()).all()


def test_the_diagram_is_solid_where_stable_dashed_where_not_and_marked():
    branch = continue_steady_state(one_neuron(2.0), ("input", ONE), (-1.0, 1.0))
    ax = branch.plot(component=0)
    solid, dashed = ([line for line in ax.lines if line.get_linestyle() == style] for style in ("-", "--"))
    marks = [line for line in ax.lines if line.get_marker() not in ("None", None, "")]
    assert len(solid) == 2 and len(dashed) == 1 and len(marks) == 2
    assert all((abs(line.get_ydata()) >= FOLD - 1e-9).all() for line in solid)
    assert (abs(dashed[0].get_ydata()) <= FOLD + 1e-9).all()
    # Together they are the whole branch: a piece ends where the next begins.
    assert sum(len(line.get_xdata()) - 1 for line in solid + dashed) == len(branch) + 1
    assert ax.get_xlabel() == "input" and ax.get_ylabel() == "x[0]"
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(named) == ["fold", "stable", "unstable"]
    norm = branch.plot()
    assert all((line.get_ydata() >= 0).all() for line in norm.lines)
    assert branch.plot(measure=lambda x: x[:, 0] ** 2).lines[0].get_ydata()[0] > 0.9
    with pytest.raises(ValueError, match="measure"):
        branch.plot(component=0, measure=torch.sum)


def test_a_special_point_prints_as_a_line():
    branch = continue_steady_state(one_neuron(1.0), "gain", (0.5, 2.0))
    assert str(branch.special[0]).startswith("pitchfork at 1 (within ")


def test_the_example_follows_all_nine_states_of_its_pair(tmp_path, capsys):
    path = Path(__file__).parents[1] / "examples" / "bifurcation.py"
    spec = importlib.util.spec_from_file_location("bifurcation", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    branches = example.main(str(tmp_path / "diagram.png"))
    assert (tmp_path / "diagram.png").stat().st_size > 5000
    crossings = sum(int((b.parameter[1:].sign() != b.parameter[:-1].sign()).sum()) for b in branches)
    assert crossings >= 9 and "fold" in capsys.readouterr().out
    folds = sorted(point.parameter for branch in branches for point in branch.special)
    assert len(folds) == 8
    assert all(abs(a + b) < 1e-10 for a, b in zip(folds, folds[::-1], strict=True))  # x -> -x with t -> -t


def test_a_branch_begins_where_many_starts_find_what_one_does_not():
    torch.manual_seed(5)
    cell = torch.nn.GRUCell(2, 6).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(8)
    branch = rg.continue_steady_state(cell, ("input", torch.randn(2).double()), (-3, 3), throw=False, max_points=3)
    assert len(branch) == 3 and (branch.residual < 1e-8).all()
