"""The penalty on a Jacobian, and the ball that weights are kept in."""

import pytest
import torch
from helpers import assert_close
from problems import DTYPE, not_normal, randn
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

import retrograde as rg

W = not_normal(5)


def tanh(x, u, W=W):
    return torch.tanh(x @ W.T + u)


def exact(x, u):
    """|J|² / n from the dense Jacobian."""
    D = 1 - tanh(x, u) ** 2
    return (D[..., None] * W).square().sum((-2, -1)) / x.shape[-1]


# --- the penalty


def test_the_penalty_is_an_unbiased_estimate_of_the_frobenius_norm():
    x, u = randn(3, 5), randn(3, 5, seed=1)
    draws = torch.stack([rg.jacobian_penalty(tanh, x, u, samples=2) for _ in range(300)])
    off = (draws.mean(0) - exact(x, u)).abs()
    assert (off < 4 * draws.std(0) / 300**0.5).all()
    assert (draws.std(0) > 0).all()  # an estimate, W being full


def test_the_penalty_is_exact_for_one_number_a_sample_and_so_is_its_derivative_in_how_the_state_moves():
    w = torch.tensor(0.7, dtype=DTYPE, requires_grad=True)
    layer = rg.Equilibrium(lambda x, u: torch.tanh(w * x + u))
    u = randn(4, 1)

    def penalty(x):
        return (w * (1 - torch.tanh(w * x + u) ** 2)).square()[:, 0]

    state = layer.steady_state(u)
    got = rg.jacobian_penalty(layer, state.x, u)
    x = torch.zeros_like(u)
    for _ in range(300):
        x = torch.tanh(w * x + u)
    assert_close(got, penalty(x))
    assert_close(
        torch.autograd.grad(got.sum(), w, retain_graph=True)[0],
        torch.autograd.grad(penalty(x).sum(), w)[0],
        conditioning=10,
    )
    fixed = rg.jacobian_penalty(layer, state.x.detach(), u)
    assert_close(torch.autograd.grad(fixed.sum(), w)[0], torch.autograd.grad(penalty(x.detach()).sum(), w)[0])


def test_the_penalty_shrinks_the_jacobian_it_is_trained_on():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 2, 3, padding=1)
    layer = rg.Equilibrium(lambda x, u: torch.tanh(conv(x) + u))
    u = torch.randn(4, 2, 5, 5)
    optimizer = torch.optim.SGD(conv.parameters(), lr=2.0)
    sizes = []
    for _ in range(5):
        state = layer.steady_state(u)
        penalty = rg.jacobian_penalty(layer, state.x, u)
        assert penalty.shape == (4,)
        optimizer.zero_grad()
        penalty.mean().backward()
        optimizer.step()
        sizes.append(float(penalty.detach().mean()))
    assert sizes[-1] < 0.5 * sizes[0]


def test_the_penalty_without_gradients_and_without_a_jacobian():
    with torch.no_grad():
        assert not rg.jacobian_penalty(tanh, randn(3, 5), randn(3, 5, seed=1)).requires_grad
    assert torch.equal(rg.jacobian_penalty(lambda x: torch.ones_like(x), randn(3, 5)), torch.zeros(3, dtype=DTYPE))
    assert rg.jacobian_penalty(tanh, randn(0, 5), randn(0, 5)).shape == (0,)


@pytest.mark.parametrize("samples, error", [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_how_many_draws_is_looked_over(samples, error):
    with pytest.raises(error, match="samples"):
        rg.jacobian_penalty(tanh, randn(3, 5), randn(3, 5), samples=samples)


# --- the ball


def operator(conv, *grid):
    """The matrix of a convolution on a grid."""
    eye = torch.eye(conv.in_channels * grid[0] * grid[1], dtype=conv.weight.dtype)
    with torch.no_grad():
        return conv(eye.reshape(-1, conv.in_channels, *grid)).flatten(1).T


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("shape", [(20, 20), (3, 40), (40, 3), (1, 1), (150, 150)])
def test_a_matrix_comes_to_lie_on_the_ball_or_is_left_within(shape, dtype):
    V = randn(*shape, dtype=dtype)
    norm = torch.linalg.matrix_norm(V, 2)
    ball = rg.SpectralBall(0.5 * float(norm))
    scaled = torch.linalg.matrix_norm(ball(V), 2)
    rounding = 64 * torch.finfo(dtype).eps
    assert (1 - 0.006) * ball.radius <= scaled <= (1 + rounding) * ball.radius
    assert torch.equal(rg.SpectralBall(1.1 * float(norm))(V), V)


def test_equal_singular_values_are_the_worst_case_of_the_bound():
    scaled = rg.SpectralBall(0.9)(torch.eye(300, dtype=DTYPE))
    assert 0.9 * 300 ** (-1 / 2048) * (1 - 1e-12) <= scaled[0, 0] < 0.9


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_sizes_at_the_ends_of_the_range(size):
    V = (size * randn(4, 4, dtype=torch.float32)).requires_grad_()
    scaled = rg.SpectralBall(0.9)(V)
    (g,) = torch.autograd.grad(scaled.sum(), V)
    assert g.isfinite().all() and torch.linalg.matrix_norm(scaled, 2) <= 0.9 * (1 + 1e-5)


CONVOLUTIONS = {
    "zeros": dict(padding=1),
    "wrapped": dict(padding=1, padding_mode="circular"),
    "stride": dict(padding=1, stride=2),
    "dilation": dict(padding=2, dilation=2, padding_mode="circular"),
    "groups": dict(padding=1, groups=2),
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("grid", [(3, 5), (11, 10)])
def test_a_convolution_keeps_to_the_ball_on_any_grid(options, grid):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, bias=False, dtype=DTYPE, **options)
    with torch.no_grad():
        conv.weight.mul_(10)
    register_parametrization(conv, "weight", rg.SpectralBall(0.9))
    norm = torch.linalg.matrix_norm(operator(conv, *grid), 2)
    assert norm <= 0.9
    if options is CONVOLUTIONS["wrapped"] and grid == (11, 10):
        assert norm > 0.9 * 0.9


def test_the_bound_holds_between_the_frequencies_that_are_looked_at():
    """A kernel that turns two channels, loudest in the middle between two of the 8 (k-1) frequencies of the grid."""
    steps = torch.arange(3, dtype=DTYPE)
    turn = steps * torch.pi / 16
    kernel = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).reshape(2, 2, 3)
    kernel = rg.SpectralBall(0.9)(kernel).to(torch.complex128)
    waves = torch.exp(-1j * torch.arange(4096, dtype=DTYPE)[:, None] * 2 * torch.pi / 4096 * steps)
    loudest = torch.linalg.matrix_norm(torch.einsum("ijk,wk->wij", kernel, waves), 2).max()
    assert 0.98 * 0.9 < loudest <= 0.9


def test_the_parametrisation_is_differentiable_twice():
    for shape in ((3, 4), (2, 3, 3, 2)):
        V = randn(*shape).requires_grad_()
        assert torch.autograd.gradcheck(rg.SpectralBall(0.5), V, fast_mode=True)
        assert torch.autograd.gradgradcheck(rg.SpectralBall(0.5), V, fast_mode=True)


def test_the_certificate_one_state_reached_from_anywhere_and_a_tame_adjoint():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1, dtype=DTYPE)
    with torch.no_grad():
        conv.weight.mul_(30)
    register_parametrization(conv, "weight", rg.SpectralBall(0.8))
    u = randn(2, 3, 4, 4).requires_grad_()
    layer = rg.Equilibrium(lambda x, u: torch.relu(conv(x) + u), solver=rg.FixedPoint(), adjoint=rg.FixedPoint())
    state = layer.steady_state(u)
    far = layer.steady_state(u, x0=100 * randn(2, 3, 4, 4, seed=3))
    assert_close(far.x, state.x)
    steps = torch.log(torch.tensor(state.tolerance)) / torch.log(torch.tensor(0.8))
    assert state.steps.max() <= steps + 20
    state.x.sum().backward()
    assert state.receipt.conditioning.max() <= 1 / (1 - 0.8)


def test_a_weight_within_the_ball_is_left_as_it_is_and_can_be_assigned():
    layer = nn.Linear(5, 5, bias=False, dtype=DTYPE)
    register_parametrization(layer, "weight", rg.SpectralBall(0.9))
    layer.weight = W
    assert torch.equal(layer.weight, W)
    assert "0.9" in repr(layer)


@pytest.mark.parametrize(
    "radius, error", [(0, ValueError), (-1.0, ValueError), (float("inf"), ValueError), ("1", TypeError)]
)
def test_the_radius_is_looked_over(radius, error):
    with pytest.raises(error, match="radius"):
        rg.SpectralBall(radius)


def test_a_vector_has_no_norm_as_a_map():
    with pytest.raises(ValueError, match="weight: expected a matrix or a kernel"):
        rg.SpectralBall(1.0)(torch.ones(3))
