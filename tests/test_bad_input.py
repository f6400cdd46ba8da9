"""Bad input is a ValueError or a TypeError that names the argument, what was expected and what came."""

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from problems import DTYPE, not_normal, randn

import retrograde as rg

n = 5
M, NAN, INF = not_normal(n), float("nan"), float("inf")
B = randn(3, n)
X, G = B.tanh(), randn(3, n, seed=4)


def net(**kwargs):
    return rg.Network(M, **kwargs)


def filled(value, *shape):
    return torch.full(shape, value, dtype=DTYPE)


def refused(call, *parts):
    """It raises ValueError or TypeError, from within the library, and its message has these parts."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    told = str(caught.value)
    assert not isinstance(caught.value, rg.ConvergenceError)
    for part in parts:
        assert part in told, f"{part!r} is not in {told!r}"


def rows(**cases):
    return pytest.mark.parametrize("call, parts", [(call, parts) for call, *parts in cases.values()], ids=cases.keys())


@rows(
    boolean=(lambda: rg.Network(True), "W", "bool"),
    zero=(lambda: rg.Network(0), "W", "at least one neuron", "0"),
    negative=(lambda: rg.Network(-3), "W", "-3"),
    real=(lambda: rg.Network(5.0), "W", "float"),
    a_list=(lambda: rg.Network([[1.0]]), "W", "list"),
    an_array=(lambda: rg.Network(np.eye(3)), "W", "ndarray"),
    nothing=(lambda: rg.Network(None), "W", "NoneType"),
    rectangular=(lambda: rg.Network(torch.zeros(4, 5)), "W", "square", "(4, 5)"),
    rectangular_sparse=(lambda: rg.Network(scipy.sparse.csr_matrix((4, 5))), "W", "square", "(4, 5)"),
    rectangular_structure=(lambda: rg.Network(rg.LowRank(torch.zeros(4, 1), torch.zeros(5, 1))), "W", "(4, 5)"),
    a_vector=(lambda: rg.Network(torch.zeros(4)), "expected a matrix", "(4,)"),
    three_axes=(lambda: rg.Network(torch.zeros(4, 4, 4)), "expected a matrix", "(4, 4, 4)"),
    empty=(lambda: rg.Network(torch.zeros(0, 0)), "W", "at least one neuron"),
    integers=(lambda: rg.Network(torch.ones(3, 3, dtype=torch.int64)), "floating-point", "torch.int64"),
    booleans=(lambda: rg.Network(torch.ones(3, 3, dtype=torch.bool)), "floating-point", "torch.bool"),
    complex=(lambda: rg.Network(torch.ones(3, 3, dtype=torch.complex64)), "real floating-point", "complex64"),
    not_a_number=(lambda: rg.Network(filled(NAN, 3, 3)), "finite", "9 of 9"),
    infinite=(lambda: rg.Network(filled(-INF, 3, 3)), "finite", "9 of 9"),
    function_not_a_number=(lambda: rg.steady_state(filled(NAN, n, n), B), "finite", "25 of 25"),
    function_integers=(lambda: rg.steady_state(torch.ones(n, n, dtype=torch.int64), B), "torch.int64"),
    sparse_integers=(lambda: rg.Network(scipy.sparse.eye(4, dtype=int)), "matrix", "int64"),
    sparse_not_a_number=(lambda: rg.Network(scipy.sparse.csr_matrix(np.full((2, 2), np.nan))), "W", "4 of 4"),
    sparse_long=(lambda: rg.Network(scipy.sparse.csr_matrix(np.ones((2, 2), np.longdouble))), "matrix", "expected"),
    sparse_three_axes=(lambda: rg.Network(torch.zeros(2, 2, 2).to_sparse()), "matrix", "two axes", "(2, 2, 2)"),
    sparse_one_axis=(lambda: rg.Network(scipy.sparse.coo_array(np.ones(4))), "matrix", "two axes"),
    full_as_sparse=(lambda: rg.Sparse(M), "matrix", "Dense"),
    sparse_as_full=(lambda: rg.Dense(M.to_sparse()), "weight", "layout"),
)
def test_W(call, parts):
    refused(call, *parts)


@rows(
    pre_too_large=(lambda: rg.Sparse.from_edges([3], [0], torch.ones(1), 3), "pre", "0 to 2", "3"),
    post_negative=(lambda: rg.Sparse.from_edges([0], [-1], torch.ones(1), 3), "post", "-1"),
    pre_real=(lambda: rg.Sparse.from_edges([0.5], [1], torch.ones(1), 3), "pre", "integer"),
    pre_boolean=(lambda: rg.Sparse.from_edges([True], [1], torch.ones(1), 3), "pre", "integer"),
    pre_words=(lambda: rg.Sparse.from_edges(["a"], [1], torch.ones(1), 3), "pre", "integer"),
    pre_nothing=(lambda: rg.Sparse.from_edges(None, [1], torch.ones(1), 3), "pre", "integer", "None"),
    lengths=(lambda: rg.Sparse.from_edges([0, 1], [1], torch.ones(1), 3), "pre", "(1,)", "(2,)"),
    two_axes=(lambda: rg.Sparse.from_edges([[0]], [[1]], torch.ones(1, 1), 3), "post", "one axis"),
    weight_a_list=(lambda: rg.Sparse.from_edges([0], [1], [1.0], 3), "weight", "list"),
    weight_integers=(lambda: rg.Sparse.from_edges([0], [1], torch.tensor([1]), 3), "weight", "int64"),
    weight_not_a_number=(lambda: rg.Sparse.from_edges([0], [1], torch.tensor([NAN]), 3), "W", "1 of 1"),
    n_real=(lambda: rg.Sparse.from_edges([0], [1], torch.ones(1), 3.0), "n", "3.0"),
    n_nothing=(lambda: rg.Sparse.from_edges([0], [1], torch.ones(1), None), "n", "None"),
    n_of_one=(lambda: rg.Sparse.from_edges([0], [1], torch.ones(1), (3,)), "n", "(3,)"),
    n_boolean=(lambda: rg.Sparse.from_edges([0], [0], torch.ones(1), True), "n", "True"),
    n_negative=(lambda: rg.Sparse.from_edges([], [], torch.ones(0), -3), "n", "-3"),
    ranks=(lambda: rg.LowRank(torch.ones(4, 2), torch.ones(4, 3)), "U and V", "(4, 2)", "(4, 3)"),
    vectors=(lambda: rg.LowRank(torch.ones(4), torch.ones(4)), "U and V", "(4,)"),
    dtypes=(lambda: rg.LowRank(torch.ones(4, 2), torch.ones(4, 2).double()), "V", "float32", "float64"),
    U_not_a_number=(lambda: rg.LowRank(filled(NAN, 4, 2), filled(1, 4, 2)), "U", "8 of 8"),
    even=(lambda: rg.Convolution(torch.ones(1, 1, 2), (4,)), "kernel", "odd", "(2,)"),
    too_wide=(lambda: rg.Convolution(torch.ones(1, 1, 9), (3,)), "kernel", "(9,)"),
    axes=(lambda: rg.Convolution(torch.ones(1, 1, 3), (4, 4)), "kernel", "(1, 1, 3)"),
    grid=(lambda: rg.Convolution(torch.ones(1, 1, 3), (4, 4, 4)), "grid", "(4, 4, 4)"),
    grid_empty=(lambda: rg.Convolution(torch.ones(1, 1), ()), "grid", "()"),
    grid_zero=(lambda: rg.Convolution(torch.ones(1, 1, 1), (0,)), "grid", "(0,)"),
    padding=(lambda: rg.Convolution(torch.ones(1, 1, 3), (4,), "same"), "padding", "'same'"),
    kernel_a_list=(lambda: rg.Convolution([1.0], (4,)), "kernel", "list"),
    no_parts=(lambda: rg.Sum(), "parts", "none"),
    parts_tensors=(lambda: rg.Sum(M), "parts", "Connectivity", "Tensor"),
    parts_shapes=(lambda: rg.Sum(rg.Dense(M), rg.Dense(M[:2])), "parts", "(2, 5)"),
    parts_dtypes=(lambda: rg.Sum(rg.Dense(M), rg.Dense(M.float())), "parts", "float32"),
)
def test_structures(call, parts):
    refused(call, *parts)


@rows(
    too_many=(lambda: net().W @ filled(1, 7), "x", "(..., 5)", "(7,)"),
    a_number=(lambda: net().W @ torch.tensor(1.0, dtype=DTYPE), "x", "()"),
    a_list=(lambda: net().W @ ([1.0] * 5), "x", "list"),
    integers=(lambda: net().W @ torch.ones(5, dtype=torch.int64), "x", "int64"),
    another_dtype=(lambda: net().W @ torch.ones(5), "x", "float64", "float32"),
    sparse=(lambda: net().W @ B.to_sparse(), "x", "to_dense"),
    transposed=(lambda: net().W.T @ filled(1, 7), "s", "(..., 5)", "(7,)"),
    batches=(lambda: net().W.outer(B, B[:2]), "s and x", "(3, 5)", "(2, 5)"),
    outer=(lambda: net().W.outer(B[:, :2], B), "s", "(3, 2)"),
)
def test_products(call, parts):
    refused(call, *parts)


@rows(
    unknown=(lambda: net(f="gelu"), "f", "tanh, sigmoid, relu, softplus, identity", "'gelu'"),
    capital=(lambda: net(f="Tanh"), "f", "'Tanh'"),
    a_function=(lambda: net(f=torch.tanh), "f", "Pointwise"),
    a_module=(lambda: net(f=torch.nn.Tanh()), "f", "Pointwise", "Tanh"),
    a_class=(lambda: net(f=rg.Tanh), "f", "Nonlinearity"),
    nothing=(lambda: net(f=None), "f", "NoneType"),
    function_unknown=(lambda: rg.steady_state(M, B, "gelu"), "f", "'gelu'"),
    mixes=(lambda: net(f=rg.Pointwise(lambda u: torch.softmax(u, -1))), "f", "elementwise"),
    mixes_means=(lambda: net(f=rg.Pointwise(lambda u: u - u.mean(-1, keepdim=True))), "f", "elementwise"),
    mixes_shift=(lambda: net(f=rg.Pointwise(lambda u: torch.roll(u, 2, -1))), "f", "elementwise"),
    mixes_even=(lambda: net(f=rg.Pointwise(lambda u: u - u[..., :1])), "f", "elementwise"),
    mixes_odd=(lambda: net(f=rg.Pointwise(lambda u: u - u[..., 1:2])), "f", "elementwise"),
    random=(lambda: net(f=rg.Pointwise(F.dropout)), "f", "elementwise"),
    trains=(lambda: net(f=rg.Pointwise(torch.nn.PReLU(dtype=DTYPE))), "f", "PReLU", "require a gradient"),
    shortens=(lambda: net(f=rg.Pointwise(lambda u: u[..., :2])), "f", "shape", "(5,)", "(2,)"),
    casts=(lambda: net(f=rg.Pointwise(lambda u: u.float())), "f", "dtype", "float32"),
    answers_a_number=(lambda: net(f=rg.Pointwise(lambda u: 3.0)), "f", "float"),
    function_mixes=(lambda: rg.steady_state(M, B, rg.Pointwise(lambda u: u.cumsum(-1))), "f", "elementwise"),
    path_trains=(lambda: rg.trajectory(M, B, f=rg.Pointwise(torch.nn.PReLU(dtype=DTYPE))), "f", "gradient"),
    no_inverse=(lambda: net(f=rg.Pointwise(F.gelu)).input_for(X), "f", "inverse_fn", "gelu"),
    wrong_inverse=(lambda: net(f=rg.Pointwise(torch.sin, torch.acos)).input_for(X), "x", "15 of 15", "sin"),
    no_slope=(lambda: net(f=rg.Pointwise(torch.sin)).jacobian(X), "f", "slope", "sin"),
    no_input=(lambda: rg.recurrent_backpropagation(net(f=rg.Pointwise(torch.sin)), X, G), "input", "sin"),
    no_input_path=(
        lambda: rg.backpropagation_through_time(net(f=rg.Pointwise(torch.sin)), X[None], X, G[None]),
        "input",
        "sin",
    ),
)
def test_f(call, parts):
    refused(call, *parts)


@rows(
    shape=(lambda: net(b=filled(0, 3)), "b", "(5,)", "(3,)"),
    batch=(lambda: net(b=filled(0, 3, n)), "b", "(5,)", "(3, 5)", "input"),
    dtype=(lambda: net(b=torch.zeros(n)), "b", "float64", "float32"),
    not_a_number=(lambda: net(b=filled(NAN, n)), "b", "5 of 5"),
    nothing=(lambda: net(b=None), "b", "NoneType"),
    a_number=(lambda: net(b=1), "b", "int"),
    function_nothing=(lambda: rg.steady_state(M, None), "b", "NoneType"),
    function_integers=(lambda: rg.steady_state(M, torch.ones(n, dtype=torch.int32)), "b", "int32"),
    function_shape=(lambda: rg.steady_state(M, filled(1, 4)), "b", "(..., 5)", "(4,)"),
    function_dtype=(lambda: rg.steady_state(M, B.float()), "b", "float64", "float32"),
    function_infinite=(lambda: rg.steady_state(M, filled(INF, 2, n)), "b", "10 of 10"),
)
def test_b(call, parts):
    refused(call, *parts)


@rows(
    shape=(lambda input, x0: net().steady_state(filled(1, 7), x0=x0), "input", "(..., 5)", "(7,)"),
    a_number=(lambda input, x0: net()(torch.tensor(1.0, dtype=DTYPE)), "input", "()"),
    a_list=(lambda input, x0: net()([1.0] * n), "input", "list"),
    integers=(lambda input, x0: net()(torch.ones(n, dtype=torch.int64)), "input", "int64"),
    dtype=(lambda input, x0: net()(input.float()), "input", "float64", "float32"),
    not_a_number=(lambda input, x0: net()(filled(NAN, 3, n)), "input", "15 of 15"),
    sparse=(lambda input, x0: net()(input.to_sparse()), "input", "to_dense"),
    x0_shape=(lambda input, x0: net().steady_state(input, x0=filled(0, 7)), "x0", "(7,)"),
    x0_batch=(lambda input, x0: net().steady_state(input, x0=x0[:2]), "x0", "(3, 5)", "(2, 5)"),
    x0_dtype=(lambda input, x0: net().steady_state(input, x0=x0.float()), "x0", "float32"),
    x0_infinite=(lambda input, x0: net().steady_state(input, x0=filled(INF, n)), "x0", "5 of 5"),
    x0_array=(lambda input, x0: net().steady_state(input, x0=x0.numpy()), "x0", "ndarray"),
    solver_word=(lambda input, x0: net().steady_state(input, solver="newton"), "solver", "str"),
    solver_class=(lambda input, x0: net().steady_state(input, solver=rg.Newton), "solver", "FixedPoint()"),
    adjoint_word=(lambda input, x0: net().steady_state(input, adjoint="direct"), "adjoint", "str"),
    krylov_forward=(lambda input, x0: net().steady_state(input, solver=rg.Krylov()), "solver", "affine", "Newton"),
    neumann_forward=(
        lambda input, x0: net().steady_state(input, solver=rg.Neumann()),
        "solver",
        "affine",
        "FixedPoint",
    ),
    homotopy_backward=(
        lambda input, x0: net().steady_state(input, adjoint=rg.Homotopy()).x.sum().backward(),
        "solver",
        "affine",
        "gain",
    ),
    direct_forward=(lambda input, x0: net().steady_state(input, solver=rg.Direct()), "solver", "affine", "Newton"),
)
def test_a_steady_state(call, parts):
    refused(lambda: call(B, X), *parts)


@rows(
    no_length=(lambda: net().trajectory(), "steps", "T"),
    one_axis=(lambda: net().trajectory(B[0]), "(T, ..., 5)", "(5,)", "steps"),
    empty=(lambda: net().trajectory(filled(0, 0, 3, n)), "steps", "at least one", "0"),
    zero=(lambda: net().trajectory(B, steps=0), "steps", "at least one", "0"),
    negative=(lambda: net().trajectory(B, steps=-1), "steps", "-1"),
    real=(lambda: net().trajectory(B, steps=2.0), "steps", "integer", "float"),
    boolean=(lambda: net().trajectory(B, steps=True), "steps", "integer", "bool"),
    shape=(lambda: net().trajectory(filled(1, 3, 7)), "input", "(..., 5)", "(3, 7)"),
    not_a_number=(lambda: net().trajectory(filled(NAN, 3, n)), "input", "15 of 15"),
    x0_shape=(lambda: net().trajectory(B, filled(0, 7), steps=3), "x0", "(7,)"),
    x0_batch=(lambda: net().trajectory(B, X[:2], steps=3), "x0", "(3, 5)", "(2, 5)"),
    x0_dtype=(lambda: net().trajectory(B, X.float(), steps=3), "x0", "float32"),
    x0_not_a_number=(lambda: net().trajectory(B, filled(NAN, n), steps=3), "x0", "5 of 5"),
    adjoint=(lambda: net().trajectory(B, adjoint=rg.Direct()), "adjoint", "exactly", "Direct"),
    leak_zero=(lambda: net(leak=0), "leak", "0 < a <= 1", "0"),
    leak_large=(lambda: net(leak=1.5), "leak", "1.5"),
    leak_not_a_number=(lambda: net(leak=NAN), "leak", "nan"),
    leak_boolean=(lambda: net(leak=True), "leak", "bool"),
    leak_word=(lambda: net(leak="0.2"), "leak", "str"),
    leak_dtype=(lambda: net(leak=torch.tensor(0.2)), "leak", "float64", "float32"),
    leak_integer=(lambda: net(leak=torch.tensor(1)), "leak"),
    leak_length=(lambda: net(leak=filled(0.2, 3)), "leak", "5", "3"),
    leak_axes=(lambda: net(leak=filled(0.2, n, n)), "leak"),
    leak_of_one_neuron=(lambda: net(leak=torch.tensor([0.1, 0.1, 0.1, 0.1, 0.0], dtype=DTYPE)), "leak", "0 < a"),
    function_leak=(lambda: rg.trajectory(M, B, leak=2.0), "leak", "2.0"),
    function_leak_length=(lambda: rg.trajectory(M, B, leak=filled(0.2, 3)), "leak", "5", "3"),
)
def test_a_trajectory(call, parts):
    refused(call, *parts)


@rows(
    outside=(lambda: net().input_for(filled(1.5, 3, n)), "x", "15 of 15", "tanh", "(-1, 1)"),
    at_the_end=(lambda: net().input_for(torch.tensor([1.0, 0, 0, 0, -1], dtype=DTYPE)), "x", "2 of 5"),
    sigmoid=(lambda: net(f="sigmoid").input_for(filled(-0.1, n)), "x", "5 of 5", "(0, 1)"),
    relu=(lambda: net(f="relu").input_for(filled(-0.1, n)), "x", "5 of 5", "[0, ∞)"),
    softplus=(lambda: net(f="softplus").input_for(filled(0, n)), "x", "5 of 5", "(0, ∞)"),
    not_a_number=(lambda: net().input_for(filled(NAN, n)), "x", "finite"),
    shape=(lambda: net().input_for(filled(0.5, 3, 2)), "x", "(..., 5)", "(3, 2)"),
    too_fast=(lambda: net(leak=0.1).input_for_trajectory(filled(0.9, 2, n), filled(-0.9, n)), "x", "5 of 10"),
    path_x0=(lambda: net().input_for_trajectory(X[None], X[:2]), "x0", "(2, 5)"),
    path_x0_more=(lambda: net().input_for_trajectory(X, B), "x0", "(5,)", "(3, 5)"),
    path_flat=(lambda: net().input_for_trajectory(X[0], X[0]), "x", "(T, ..., 5)"),
    flat=(lambda: net().jacobian(filled(1, n)), "x", "5 of 5", "D⁻¹"),
    jacobian_shape=(lambda: net().jacobian(filled(0, 3)), "x", "(3,)"),
    path_jacobian_batch=(lambda: net().jacobian_trajectory(X[None], X), "x", "one trajectory", "(1, 3, 5)"),
    path_jacobian_x0=(lambda: net().jacobian_trajectory(X, X), "x0", "(5,)", "(3, 5)"),
    path_jacobian_flat=(lambda: net().jacobian_trajectory(filled(1, 2, n), X[0]), "x", "D⁻¹"),
    unfold_zero=(lambda: net().unfold(0), "T", "0"),
    unfold_boolean=(lambda: net().unfold(True), "T", "True"),
    unfold_real=(lambda: net().unfold(1.5), "T", "1.5"),
    unfold_word=(lambda: net().unfold("3"), "T", "'3'"),
    unfolded_x0=(lambda: net().unfold(2)(filled(0, 7)), "x0", "(7,)"),
    unfolded_x0_dtype=(lambda: net().unfold(2)(torch.zeros(n)), "x0", "float32"),
    unfolded_length=(lambda: net().unfold(2)(X, filled(0, 3, n)), "input", "(2, ..., n)", "(3, 5)"),
    unfolded_shape=(lambda: net().unfold(2)(X, filled(0, 2, 7)), "input", "(2, 7)"),
    unfolded_batch=(lambda: net().unfold(2)(X, filled(0, 2, 2, n)), "input", "(2, 5)", "(3, 5)"),
    unfolded_dtype=(lambda: net().unfold(2)(X, torch.zeros(2, n)), "input", "float32"),
    unfolded_list=(lambda: net().unfold(2)(X, [1, 2]), "input", "list"),
)
def test_the_other_methods(call, parts):
    refused(call, *parts)


@rows(
    net=(lambda: rg.recurrent_backpropagation(M, X, G), "net", "Network", "Tensor"),
    x=(lambda: rg.recurrent_backpropagation(net(), X[:, :3], G[:, :3]), "x", "(..., 5)", "(3, 3)"),
    x_not_a_number=(lambda: rg.recurrent_backpropagation(net(), NAN * X, G), "x", "15 of 15"),
    x_array=(lambda: rg.recurrent_backpropagation(net(), X.numpy(), G), "x", "ndarray"),
    g_shape=(lambda: rg.recurrent_backpropagation(net(), X, G[0]), "dR_dx", "(3, 5)", "(5,)"),
    g_not_a_number=(lambda: rg.recurrent_backpropagation(net(), X, NAN * G), "dR_dx", "15 of 15"),
    g_dtype=(lambda: rg.recurrent_backpropagation(net(), X, G.float()), "dR_dx", "float32"),
    adjoint=(lambda: rg.recurrent_backpropagation(net(), X, G, adjoint="direct"), "adjoint", "str"),
    input=(lambda: rg.recurrent_backpropagation(net(), X, G, input=filled(1, 7)), "input", "(7,)"),
    input_batch=(lambda: rg.recurrent_backpropagation(net(), X, G, input=B[:2]), "input", "(2, 5)"),
    input_more=(lambda: rg.recurrent_backpropagation(net(), X[0], G[0], input=B), "input", "(5,)", "(3, 5)"),
    input_of_equations=(lambda: rg.recurrent_backpropagation(net().recurrence, X, G, input=filled(1, 7)), "input"),
    input_dtype=(lambda: rg.recurrent_backpropagation(net().recurrence, X, G, input=B.float()), "input", "float32"),
    input_nan=(lambda: rg.recurrent_backpropagation(net().recurrence, X, G, input=NAN * B), "input", "15 of 15"),
    path_net=(lambda: rg.backpropagation_through_time(M, X[None], X, G[None]), "net", "Tensor"),
    path_flat=(lambda: rg.backpropagation_through_time(net(), X[0], X[0], G[0]), "x", "(T, ..., 5)", "(5,)"),
    path_empty=(lambda: rg.backpropagation_through_time(net(), X[None][:0], X, G[None][:0]), "x", "(0, 3, 5)"),
    path_x0=(lambda: rg.backpropagation_through_time(net(), X[None], X[:2], G[None]), "x0", "(2, 5)"),
    path_x0_more=(lambda: rg.backpropagation_through_time(net(), X, X, G), "x0", "(5,)", "(3, 5)"),
    path_g=(lambda: rg.backpropagation_through_time(net(), X[None], X, G), "dR_dx", "(1, 3, 5)", "(3, 5)"),
    path_input=(lambda: rg.backpropagation_through_time(net(), X[None], X, G[None], input=B[:2]), "input", "(2, 5)"),
    path_input_n=(lambda: rg.backpropagation_through_time(net(), X[None], X, G[None], input=B[:, :2]), "input"),
)
def test_by_hand(call, parts):
    refused(call, *parts)


@rows(
    damping_negative=(lambda: rg.FixedPoint(damping=-0.5), "damping", "0 < damping <= 1", "-0.5"),
    damping_zero=(lambda: rg.FixedPoint(damping=0), "damping", "0"),
    damping_large=(lambda: rg.FixedPoint(damping=1.5), "damping", "1.5"),
    damping_not_a_number=(lambda: rg.FixedPoint(damping=NAN), "damping", "nan"),
    damping_word=(lambda: rg.FixedPoint(damping="0.5"), "damping", "'0.5'"),
    damping_nothing=(lambda: rg.FixedPoint(damping=None), "damping", "None"),
    damping_boolean=(lambda: rg.FixedPoint(damping=True), "damping", "True"),
    rtol_zero=(lambda: rg.FixedPoint(rtol=0.0), "rtol", "0.0"),
    rtol_one=(lambda: rg.Newton(rtol=1), "rtol", "1"),
    rtol_word=(lambda: rg.Direct(rtol="1e-3"), "rtol", "'1e-3'"),
    rtol_not_a_number=(lambda: rg.Krylov(rtol=NAN), "rtol", "nan"),
    max_steps_zero=(lambda: rg.FixedPoint(max_steps=0), "max_steps", "at least 1", "0"),
    max_steps_negative=(lambda: rg.Newton(max_steps=-1), "max_steps", "-1"),
    max_steps_real=(lambda: rg.Krylov(max_steps=1.5), "max_steps", "integer", "1.5"),
    max_steps_boolean=(lambda: rg.FixedPoint(max_steps=True), "max_steps", "integer", "True"),
    max_steps_nothing=(lambda: rg.Direct(max_steps=None), "max_steps", "integer", "None"),
    method=(lambda: rg.Krylov("cg"), "method", "gmres", "'cg'"),
    restart=(lambda: rg.Krylov(restart=0), "restart", "0"),
    restart_real=(lambda: rg.Krylov(restart=2.5), "restart", "integer", "2.5"),
    memory=(lambda: rg.Anderson(memory=0), "memory", "at least 1", "0"),
    delay=(lambda: rg.Anderson(delay=-1), "delay", "at least 0", "-1"),
    memory_real=(lambda: rg.Anderson(memory=5.0), "memory", "integer", "5.0"),
    terms=(lambda: rg.Neumann(terms=0), "terms", "at least 1", "0"),
    terms_word=(lambda: rg.Neumann(terms="1"), "terms", "integer", "'1'"),
    delta=(lambda: rg.PseudoTransient(delta=0), "delta", "greater than 0", "0"),
    delta_infinite=(lambda: rg.PseudoTransient(delta=INF), "delta", "inf"),
    cascade_empty=(lambda: rg.Cascade(), "solvers", "none"),
    cascade_word=(lambda: rg.Cascade("newton"), "solvers", "str"),
    multistart_of_none=(lambda: rg.Multistart(rg.Newton(), starts=0), "starts", "0"),
    multistart_word=(lambda: rg.Multistart("newton"), "solver", "str"),
    cascade_class=(lambda: rg.Cascade(rg.Newton), "solvers", "FixedPoint()"),
)
def test_solvers(call, parts):
    refused(call, *parts)


def test_what_becomes_bad_later_is_told_too():
    broken = net()
    with torch.no_grad():
        broken.W.weight[0, 0] = NAN
    refused(lambda: broken(B), "W", "1 of 25")
    refused(lambda: broken.trajectory(B), "W", "1 of 25")
    broken = net(leak=torch.nn.Parameter(filled(0.5)))
    with torch.no_grad():
        broken.leak.fill_(2.0)
    refused(lambda: broken.trajectory(B), "leak", "0 < a <= 1")
    broken = net()
    with torch.no_grad():
        broken.b[1] = INF
    refused(lambda: broken(B), "b", "of 15")


@pytest.mark.parametrize("mode", ["steady state", "trajectory"])
def test_a_reward_that_is_not_finite_is_told_in_the_backward(mode):
    x = net()(B) if mode == "steady state" else net().trajectory(B).x
    refused(lambda: (NAN * x.sum()).backward(), "dR/dx", f"{x.numel()} of {x.numel()}")
    refused(lambda: (1 / (0 * x)).sum().backward(), "dR/dx")


@pytest.mark.parametrize("steps", [None, 4])
def test_a_bias_that_is_not_finite_is_not_blamed_on_the_input(steps):
    net = rg.Network(3)
    with torch.no_grad():
        net.b[1] = torch.nan
    with pytest.raises(ValueError, match=r"^b: expected finite"):
        net.trajectory(torch.zeros(4, 3), steps=steps)
    with pytest.raises(ValueError, match=r"^b: expected finite"):
        torch.func.grad(lambda u: net.trajectory(u, steps=steps).x.sum())(torch.zeros(4, 3))


@pytest.mark.parametrize("bad", ("input", "W"))
def test_forward_mode_names_what_is_not_finite(bad):
    W, b = torch.zeros(3, 3), torch.zeros(3)
    (b if bad == "input" else W).view(-1)[1] = torch.nan
    one = torch.ones(3)
    for x in (lambda b: rg.steady_state(W, b).x, lambda b: rg.trajectory(W, b, steps=2).x):
        with pytest.raises(ValueError, match=rf"^{'b' if bad == 'input' else 'W'}: expected finite numbers, got 1 of"):
            torch.func.jvp(x, (b,), (one,))


def test_large_numbers_whose_sum_overflows_are_not_taken_for_infinite():
    big = torch.tensor([3e38, 3e38, -3e38])
    x = rg.trajectory(torch.zeros(3, 3), big, f="identity", steps=2).x
    assert torch.equal(x[1], big)


def test_a_bias_that_no_longer_fits_its_network():
    """Modules let their parts be replaced, and a kernel must not be handed what does not fit."""
    double = rg.Network(8)
    double.W.double()
    refused(double.steady_state, "b: expected torch.float64", "torch.float32")
    for b in (5, 11):
        short = rg.Network(8)
        short.b = torch.nn.Parameter(torch.zeros(b))
        refused(short.steady_state, "b: expected shape (..., 8)", f"({b},)")
    larger = rg.Network(8)
    larger.W = rg.Dense(torch.zeros(9, 9))
    refused(larger.steady_state, "b: expected shape (..., 9)", "(8,)")
