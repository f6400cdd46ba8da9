import pytest
import torch
from helpers import SLACK, assert_all_close, assert_close, assert_slope_along, gradient, through_dense
from problems import (
    DTYPE,
    STRUCTURES,
    Reward,
    dead,
    each_nonlinearity,
    each_structure,
    inputs_of_f,
    manufactured_path,
    not_normal,
    randn,
    saturated,
)

import retrograde as rg


def unrolled(W, f, b, x0, leak=None):
    M, a, path = W.dense(), 1.0 if leak is None else leak, [x0]
    for input in b:
        path.append((1 - a) * path[-1] + a * f(path[-1] @ M.T + input))
    return torch.stack(path[1:])


# --- the gradient by four routes


@each_structure
@each_nonlinearity
def test_four_routes_to_the_gradient_agree(structure, f):
    W = STRUCTURES[structure]()
    x, x0, b = manufactured_path(W, f, 5, 3)
    R, tensors = Reward(5, 3, 12), [*W.weights, x0, b]

    def run(*t):
        return R(rg.trajectory(W.bind(*t[:-2]), t[-1], t[-2], f).x)

    found = gradient(run, tensors)
    assert_all_close(found, gradient(lambda *t: R(unrolled(W.bind(*t[:-2]), f, t[-1], t[-2])), tensors), solved=False)
    assert_slope_along(run, tensors, found)

    # All times at once, as one linear system of T n unknowns a sample: (I - D W̃ᵀ) s = D g, W̃ one block below.
    M, before = W.dense().detach(), torch.cat([x0[None], x[:-1]])
    D = f.slope_at(before @ M.T + b)
    big = torch.kron(torch.diag(torch.ones(4, dtype=DTYPE), -1), M.contiguous())
    d, g = (t.transpose(0, 1).reshape(3, 60) for t in (D, R.gradient(x)))
    s = torch.linalg.solve(torch.eye(60, dtype=DTYPE) - d[..., None] * big.T, d * g).reshape(3, 5, 12).transpose(0, 1)
    assert_close(found[-1], s, solved=False)
    assert_close(found[-2], s[0] @ M, solved=False)
    assert_all_close(found[:-2], through_dense(W, torch.einsum("tbi,tbj->ij", s, before)), solved=False)


@each_structure
@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 3)])
@pytest.mark.parametrize("T", [1, 2, 7])
def test_any_length_and_any_batch(structure, batch, T):
    W, f = STRUCTURES[structure](), rg.Tanh()
    x, x0, b = manufactured_path(W, f, T, *batch)
    R, tensors = Reward(T, *batch, 12), [*W.weights, x0, b]
    path = rg.trajectory(W, b, x0)
    assert path.x.shape == (T, *batch, 12) and path.x0.shape == (*batch, 12)
    assert_close(path.x, x, solved=False)
    found = gradient(lambda *t: R(rg.trajectory(W.bind(*t[:-2]), t[-1], t[-2]).x), tensors)
    assert_all_close(found, gradient(lambda *t: R(unrolled(W.bind(*t[:-2]), f, t[-1], t[-2])), tensors), solved=False)


SHAPES = {  # of b, of x0, and T where b is constant
    "b for each sample, one x0": ((4, 3, 12), (12,), None),
    "one b, x0 for each sample": ((4, 12), (3, 12), None),
    "a b of one sample, x0 for each": ((4, 1, 12), (3, 12), None),
    "constant b, x0 for each": ((12,), (3, 12), 4),
    "constant b for each, one x0": ((3, 12), (12,), 4),
    "constant b for each, x0 for others": ((2, 1, 12), (3, 12), 4),
    "as many samples as steps": ((3, 12), (3, 12), None),
    "as many samples as steps, constant": ((3, 12), (3, 12), 3),
    "b with more axes": ((4, 2, 3, 12), (3, 12), None),
    "x0 with more axes": ((4, 3, 12), (2, 3, 12), None),
}


@pytest.mark.parametrize("b, x0, steps", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("f", [rg.Tanh(), rg.Pointwise(torch.sin)])
@pytest.mark.parametrize("leak", [None, 0.4])
def test_inputs_and_starts_broadcast(b, x0, steps, f, leak):
    W = rg.Dense(not_normal(12))
    T, each = (steps, b[:-1]) if steps else (b[0], b[1:-1])
    batch = torch.broadcast_shapes(each, x0[:-1])
    b, x0 = inputs_of_f(*b), randn(*x0, seed=3).tanh()
    R = Reward(T, *batch, 12)

    def whole(b, x0):
        b = b.expand(T, *batch, 12) if steps else b.reshape(T, *(1,) * (len(batch) - len(each)), *each, 12)
        return b.expand(T, *batch, 12), x0.expand(*batch, 12)

    def ours(M, b, x0):
        return R(rg.trajectory(M, b, x0, f, steps=steps, leak=leak).x)

    def theirs(M, b, x0):
        b, x0 = whole(b, x0)
        return R(unrolled(rg.Dense(M).bind(M), f, b, x0, leak))

    tensors = [W.dense().detach(), b, x0]
    assert_close(ours(*tensors), theirs(*tensors), solved=False)
    assert_all_close(gradient(ours, tensors), gradient(theirs, tensors), solved=False)


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("leak", [None, 0.4])
@each_nonlinearity
def test_the_gradient_by_hand_takes_the_inputs_that_the_trajectory_took(f, steps, leak):
    net = rg.Network(not_normal(12), f=f, leak=leak)
    input = inputs_of_f(3, 12) if steps else inputs_of_f(4, 12)  # one for each sample, or one for each time
    x0, R = randn(3, 12, seed=3).tanh(), Reward(4, 3, 12)
    path = net.trajectory(input, x0, steps=steps)
    R(path.x).backward()
    found = rg.backpropagation_through_time(net, path.x.detach(), x0, R.gradient(path.x), input=input)
    assert_close(found.dW[0], net.W.weight.grad, solved=False)
    assert_close(found.db, net.b.grad, solved=False)


def test_the_gradient_by_hand_refuses_an_input_that_may_be_over_time_or_over_samples():
    net = rg.Network(not_normal(12), f=rg.Pointwise(torch.sin))
    x, g, x0 = randn(3, 3, 12), randn(3, 3, 12), randn(3, 12)
    with pytest.raises(ValueError, match="same T as batch"):
        rg.backpropagation_through_time(net, x, x0, g, input=randn(3, 12))
    for clear in (randn(3, 1, 12), randn(1, 3, 12), randn(12), randn(3, 3, 12)):
        rg.backpropagation_through_time(net, x, x0, g, input=clear)


@pytest.mark.parametrize("name", ["relu", "tanh", "softplus"])
def test_the_gradient_by_hand_with_a_leak_knows_which_neurons_are_off(name):
    # y(t) = (x(t) - (1-a) x(t-1)) / a is 0 up to its rounding for a ReLU that is off.
    net = rg.Network(not_normal(50), f=name, leak=0.3)
    input, x0 = randn(20, 4, 50), torch.zeros(4, 50, dtype=DTYPE)
    x, g = net.trajectory(input, x0).x.detach(), randn(20, 4, 50, seed=5)
    told = rg.backpropagation_through_time(net, x, x0, g, input=input)
    read = rg.backpropagation_through_time(net, x, x0, g)
    assert_close(read.s, told.s, conditioning=1 / 0.3, solved=False)
    assert_close(read.dW[0], told.dW[0], conditioning=1 / 0.3, solved=False)
    again = net.trajectory(net.input_for_trajectory(x, x0), x0).x
    assert_close(again, x, conditioning=1 / 0.3, solved=False)


def test_the_gradient_reaches_an_encoder_and_x0():
    encoder, start = torch.nn.Linear(4, 6), torch.nn.Linear(4, 6)
    net, u = rg.Network(6), torch.randn(5, 3, 4)
    net.trajectory(encoder(u), start(u[0])).x.square().sum().backward()
    for parameter in (*encoder.parameters(), *start.parameters(), *net.parameters()):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_x0_of_none_is_zero_and_has_no_gradient():
    net, input = rg.Network(not_normal(6)), randn(5, 3, 6)
    assert torch.equal(net.trajectory(input).x, net.trajectory(input, torch.zeros(6, dtype=DTYPE)).x)
    assert (net.trajectory(input).x0 == 0).all()


def test_a_long_trajectory_keeps_one_node_and_settles_at_the_steady_state():
    net, input = rg.Network(not_normal(6)), randn(3, 6)
    path = net.trajectory(input, steps=2000)
    nodes, todo = set(), [path.x.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [parent for parent, _ in node.next_functions]
    assert len(nodes) < 10
    assert_close(path.x[-1], net(input), conditioning=10)
    # Constant input, reward at the end: the trajectory's gradient is the steady state's.
    g = randn(3, 6)
    long = torch.autograd.grad(path.x[-1], list(net.parameters()), g)
    assert_all_close(long, torch.autograd.grad(net(input), list(net.parameters()), g), conditioning=10)


@pytest.mark.parametrize("problem", [saturated, dead])
def test_where_every_slope_is_zero_the_gradient_is_exactly_zero(problem):
    p = problem()
    net = p.network
    x0 = p.x[0].clone().requires_grad_()
    Reward(4, 6)(net.trajectory(x0=x0, steps=4).x).backward()
    assert (net.b.grad == 0).all() and (net.W.weight.grad == 0).all() and (x0.grad == 0).all()


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40, 1e-8, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_structure
def test_scaling_the_reward_scales_the_gradient_by_exactly_that(structure, scale, dtype):
    net = rg.Network(STRUCTURES[structure](), leak=0.3).to(dtype)
    x = net.trajectory(randn(4, 3, 12, dtype=dtype)).x
    g = randn(4, 3, 12, dtype=dtype)
    one = torch.autograd.grad(x, list(net.parameters()), g, retain_graph=True)
    other = torch.autograd.grad(x, list(net.parameters()), scale * g)
    for a, b in zip(one, other, strict=True):
        if scale in (2.0**-40, 2.0**40):
            assert torch.equal(scale * a, b)
        assert_close(b, scale * a, solved=False)


def test_activity_that_becomes_infinite_is_told():
    net = rg.Network(2e30 * torch.eye(3), f="relu")
    with pytest.raises(
        rg.ConvergenceError, match=r"1 of 2 samples became infinite or NaN, first at t = 3 of 9"
    ) as caught:
        net.trajectory(torch.tensor([[0.0, 0, 0], [1, 0, 0]]), steps=9)
    assert isinstance(caught.value.result, rg.Trajectory)
    x = caught.value.result.x
    assert x.shape == (9, 2, 3) and x[:, 0].isfinite().all() and not x[2, 1].isfinite().all()


def test_a_sample_does_not_depend_on_its_batch():
    net, input, g = rg.Network(not_normal(12)), randn(5, 4, 12), randn(5, 4, 12, seed=2)
    whole = net.trajectory(input).x
    found = torch.autograd.grad(whole, net.W.weight, g)[0]
    parts = 0
    for i in range(4):
        alone = net.trajectory(input[:, i]).x
        assert_close(whole[:, i], alone, solved=False)
        parts = parts + torch.autograd.grad(alone, net.W.weight, g[:, i])[0]
    assert_close(found, parts, solved=False)


@each_structure
def test_inputs_that_are_not_contiguous_give_the_same(structure):
    W = STRUCTURES[structure]()
    _, x0, b = manufactured_path(W, rg.Tanh(), 5, 3)
    strange = torch.empty(12, 3, 5, dtype=DTYPE).permute(2, 1, 0).copy_(b)
    one, other = rg.trajectory(W, b, x0).x, rg.trajectory(W, strange, x0.T.contiguous().T).x
    assert_close(one, other, solved=False)
    g = randn(5, 3, 12)
    wanted = torch.autograd.grad(one, W.weights, g)
    assert_all_close(torch.autograd.grad(other, W.weights, g.mT.contiguous().mT), wanted, solved=False)


@each_structure
def test_float32_is_as_good_as_float32(structure):
    W = STRUCTURES[structure]()
    _, x0, b = manufactured_path(W, rg.Tanh(), 6, 3)
    tensors = [*(w.detach() for w in W.weights), x0, b]

    def run(*t):
        return Reward(6, 3, 12, dtype=t[-1].dtype)(rg.trajectory(W.bind(*t[:-2]), t[-1], t[-2]).x)

    single = gradient(run, [t.float() for t in tensors])
    assert_all_close(single, [d.float() for d in gradient(run, tensors)], solved=False)


def test_unfold_is_an_ordinary_perceptron_that_may_be_differentiated_twice():
    net = rg.Network(not_normal(4))
    x0 = randn(4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x0: net.unfold(3)(x0), (x0,))


def test_unfold_without_a_bias_and_with_a_frozen_one():
    x0 = randn(2, 4)
    for net in (rg.Network(not_normal(4), b=False), rg.Network(not_normal(4), b=randn(4)).requires_grad_(False)):
        assert_close(net.unfold(3)(x0), net.trajectory(x0=x0, steps=3).x[-1], solved=False)


def test_jacobian_of_a_trajectory_of_a_sparse_network_stays_sparse():
    n, T = 400, 5
    ends = torch.randint(n, (2, 1000), generator=torch.Generator().manual_seed(0))
    net = rg.Network(rg.Sparse.from_edges(*ends, 0.1 * randn(1000), n))
    x = net.trajectory(randn(n), steps=T).x.detach()
    J = net.jacobian_trajectory(x, torch.zeros(n, dtype=DTYPE))
    assert J._nnz() <= T * n + (T - 1) * (1000 + n)


# --- in pieces of time, and at some times alone


@pytest.mark.parametrize("plain", ("0", "1"), ids=("kernel", "plain"))
@pytest.mark.parametrize("leak", (None, 0.4), ids=str)
@pytest.mark.parametrize("length", (1, 2, 3, 7, 8))
def test_an_adjoint_taken_in_pieces_of_time_is_the_adjoint(length, leak, plain, monkeypatch):
    monkeypatch.setenv("RETROGRADE_PLAIN", plain)
    T, B, n = 7, 3, 5
    trained = None if leak is None else torch.nn.Parameter(torch.tensor(leak, dtype=torch.float64))
    net = rg.Network(not_normal(n), b=randn(n), leak=trained)
    input, reward = randn(T, B, n, seed=1), Reward(n)

    def gradients(input):
        x0 = randn(B, n, seed=2).requires_grad_()
        leaves = [x0, *net.parameters()]
        return torch.autograd.grad(reward(net.trajectory(input, x0).x), leaves)

    whole = gradients(input.requires_grad_())  # dR/db(t) is asked for: one piece
    monkeypatch.setattr("retrograde.through_time._PIECE", length * B * n)
    assert_all_close(gradients(input.detach()), whole, conditioning=4, solved=False)


@pytest.mark.parametrize("plain", ("0", "1"), ids=("kernel", "plain"))
@pytest.mark.parametrize("leak", (None, 0.4), ids=str)
@pytest.mark.parametrize("t", (1, 4, -1, [2], [5, 2, -2], [3, 3, 1], []), ids=str)
def test_a_reward_at_some_times_alone(t, leak, plain, monkeypatch):
    monkeypatch.setenv("RETROGRADE_PLAIN", plain)
    net = rg.Network(not_normal(5), b=randn(5), leak=leak)
    leaves = [randn(6, 3, 5, seed=1).requires_grad_(), randn(3, 5, seed=2).requires_grad_(), *net.parameters()]
    path, reward = net.trajectory(*leaves[:2]), Reward(5)
    rows = [i - 1 if i > 0 else i for i in ([t] if isinstance(t, int) else t)]
    wanted = path.x[rows[0]] if isinstance(t, int) else path.x[rows]
    assert torch.equal(path.at(t), wanted)
    got, want = (torch.autograd.grad(reward(x), leaves, retain_graph=True) for x in (path.at(t), wanted))
    assert_all_close(got, want, conditioning=4, solved=False)


def test_a_reward_at_one_time_is_handed_back_as_one(monkeypatch):
    seen = []
    whole = rg.derivatives.trajectory_gradients
    monkeypatch.setattr(
        rg.derivatives, "trajectory_gradients", lambda *a, **k: seen.append(a[3].shape) or whole(*a, **k)
    )
    path = rg.Network(4).trajectory(torch.randn(9, 2, 4))
    path.at(3).sum().backward()
    assert seen == [(1, 2, 4)]


@pytest.mark.parametrize(
    ("t", "error"),
    [
        (0, ValueError),
        (7, ValueError),
        (-7, ValueError),
        ([1, 0], ValueError),
        (True, TypeError),
        (1.0, TypeError),
        (["1"], TypeError),
    ],
    ids=str,
)
def test_no_such_time(t, error):
    with pytest.raises(error, match=r"^t: expected"):
        rg.Network(4).trajectory(steps=6).at(t)


@pytest.mark.parametrize(
    "leak", [torch.tensor(0.1), torch.tensor([0.1]), torch.full((6,), 0.1)], ids=["()", "(1,)", "(n,)"]
)
def test_a_leak_s_gradient_at_a_long_trajectory_s_end_is_no_worse_in_float32_than_autograd_s(leak):
    net, x0, c = rg.Network(not_normal(6), b=randn(6)), randn(3, 6, seed=1), randn(3, 6, seed=2)

    def slope(dtype, end):
        W, b, a, start = (each.detach().to(dtype) for each in (net.W.dense(), net.b, leak, x0))
        a.requires_grad_()
        return torch.autograd.grad((end(W, b, start, a) * c.to(dtype)).sum(), a)[0].double()

    def ours(W, b, x0, a):
        return rg.trajectory(W, b, x0, steps=60, leak=a).at(60)

    def stepped(W, b, x0, a):
        return unrolled(rg.Dense(W).bind(W), rg.Tanh(), b.expand(60, 3, 6), x0, a)[-1]

    true = slope(torch.float64, stepped)
    assert_close(slope(torch.float64, ours), true, conditioning=100)
    allowed = SLACK * float(
        (slope(torch.float32, stepped) - true).norm() + torch.finfo(torch.float32).eps * true.norm()
    )
    assert float((slope(torch.float32, ours) - true).norm()) <= allowed
