"""What holds for every network, batch and reward that can be drawn."""

import torch
from helpers import assert_all_close, assert_close, conditioning, dense_adjoint, gradient
from hypothesis import given
from hypothesis import strategies as st
from problems import NONLINEARITIES, Reward, inputs_of_f, manufactured, not_normal, randn

import retrograde as rg

sizes = st.integers(1, 9)
batches = st.lists(st.integers(0, 4), max_size=2).map(tuple)
seeds = st.integers(0, 2**16)
dtypes = st.sampled_from([torch.float32, torch.float64])
nonlinearities = st.sampled_from(list(NONLINEARITIES.values()))
leaks = st.none() | st.floats(0.1, 1.0)


@given(sizes, batches, nonlinearities, dtypes, seeds)
def test_a_steady_state_and_its_gradient_have_the_shape_dtype_and_value_that_they_should(n, batch, f, dtype, seed):
    W = rg.Dense(not_normal(n, seed=seed, dtype=dtype))
    x, b = manufactured(W, f, *batch, seed=seed)
    input = b.clone().requires_grad_()
    reward = Reward(n, dtype=dtype)
    state = rg.steady_state(W, input, f, x0=x)
    amplified = conditioning(W, f, x, b) if x.numel() else 1
    assert_close(state.x, x, conditioning=amplified)
    assert state.converged.shape == state.residual.shape == state.steps.shape == torch.Size(batch)
    reward(state.x).backward()
    assert_close(input.grad, dense_adjoint(W, f, x, b, reward.gradient(x)), conditioning=amplified**2)


@given(st.integers(2, 9), st.integers(2, 6), st.data())
def test_a_sample_does_not_know_its_batch(n, batch, data):
    W, f = rg.Dense(not_normal(n)), data.draw(nonlinearities)
    b = data.draw(st.floats(0.1, 4)) * randn(batch, n, seed=3)
    some = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4))
    whole, part = (rg.steady_state(W, inputs, f) for inputs in (b, b[some]))
    assert torch.equal(whole.steps[some], part.steps)
    assert_close(part.x, whole.x[some], solved=False)


@given(sizes, st.integers(1, 3), nonlinearities, st.integers(-120, 120), st.booleans(), seeds)
def test_a_reward_scaled_by_a_power_of_two_scales_its_gradient_by_just_that(n, batch, f, power, in_time, seed):
    W = rg.Dense(not_normal(n, seed=seed))
    _, b = manufactured(W, f, batch, seed=seed)
    reward, scale = Reward(n), 2.0**power

    def run(c):
        def R(weight, b):
            x = rg.trajectory(weight, b, f=f, steps=4).x if in_time else rg.steady_state(weight, b, f).x
            return c * reward(x)

        return gradient(R, [W.weight, b])

    for plain, scaled in zip(run(1.0), run(scale), strict=True):
        assert torch.equal(plain * scale, scaled)


@given(sizes, batches, st.integers(1, 6), nonlinearities, leaks, st.booleans(), dtypes, seeds)
def test_a_trajectory_and_its_gradients_are_those_of_its_unrolled_loop(n, batch, T, f, leak, constant, dtype, seed):
    W = not_normal(n, seed=seed, dtype=dtype)
    b = randn(*(() if constant else (T,)), *batch, n, seed=seed, dtype=dtype)
    x0, reward = 0.5 * randn(*batch, n, seed=seed + 1, dtype=dtype), Reward(n, dtype=dtype)

    def unrolled(W, b, x0):
        x, path = x0, []
        for t in range(T):
            y = f(x @ W.T + (b if constant else b[t]))
            x = y if leak is None else (1 - leak) * x + leak * y
            path.append(x)
        return torch.stack(path)

    def ours(W, b, x0):
        return rg.trajectory(W, b, x0, f, steps=T if constant else None, leak=leak).x

    assert_close(ours(W, b, x0), unrolled(W, b, x0), conditioning=2, solved=False)
    got, want = (gradient(lambda *leaves, run=run: reward(run(*leaves)), [W, b, x0]) for run in (ours, unrolled))
    # With a leak the slopes are read from a difference of states: where they are, W x + b is computed anew.
    assert_all_close(got, want, conditioning=20, solved=False)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 30), batches, seeds)
def test_a_table_of_connections_is_its_dense_sum(n_out, n_in, edges, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    post = torch.randint(n_out, (edges,), generator=generator)
    pre = torch.randint(n_in, (edges,), generator=generator)
    weight = randn(edges, seed=seed)
    W = rg.Sparse.from_edges(pre, post, weight, (n_out, n_in))
    M = torch.zeros(n_out, n_in, dtype=weight.dtype).index_put_((post, pre), weight, accumulate=True)
    x, s = randn(*batch, n_in, seed=seed), randn(*batch, n_out, seed=seed + 1)
    assert_close(W.dense(), M, solved=False)
    assert_close(W @ x, x @ M.T, solved=False)
    assert_close(W.T @ s, s @ M, solved=False)
    (dW,) = W.outer(s, x)
    assert_close(dW, (s.reshape(-1, n_out).T @ x.reshape(-1, n_in))[W.edges], conditioning=10, solved=False)


@given(sizes, batches, st.sampled_from(["tanh", "sigmoid", "softplus", "identity"]), seeds)
def test_the_input_that_makes_a_state_steady_does(n, batch, f, seed):
    net = rg.Network(3 * not_normal(n, seed=seed), f=f, b=randn(n, seed=seed))
    x = net.f(inputs_of_f(*batch, n, seed=seed))
    with torch.no_grad():
        assert_close(net.step(x, net.b + net.input_for(x)), x, conditioning=10, solved=False)


broken = st.sampled_from([float("nan"), float("inf"), -float("inf")])


@given(sizes, st.data())
def test_what_is_not_finite_or_does_not_fit_is_refused_and_named(n, data):
    """Whatever goes wrong, it is a ValueError or TypeError that names the argument, never something else."""
    given_ = {"W": not_normal(n), "b": randn(2, n), "x0": randn(2, n)}
    name = data.draw(st.sampled_from(list(given_)))
    tensor = given_[name]
    match data.draw(st.sampled_from(["not finite", "too long", "integers", "another dtype", "no tensor"])):
        case "not finite":
            tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = data.draw(broken)
        case "too long":
            given_[name] = torch.cat([tensor, tensor[..., :1]], -1)
        case "integers":
            given_[name] = tensor.long()
        case "another dtype":
            given_[name] = tensor.to(torch.float16)
        case "no tensor":
            given_[name] = "three"
    for run in (
        lambda: rg.steady_state(given_["W"], given_["b"], x0=given_["x0"]),
        lambda: rg.trajectory(given_["W"], given_["b"], given_["x0"], steps=2),
    ):
        try:
            run()
        except (ValueError, TypeError) as error:
            assert name in str(error) or (given_["W"].dtype == torch.float16 and "W" in str(error)), error
        else:
            raise AssertionError(f"a bad {name} was taken")
