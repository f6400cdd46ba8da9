"""To keep x = fn(x, *inputs) solvable while fn is trained: a penalty on its Jacobian, and a bound on its weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.checks import check_floating
from retrograde.equation import Equation
from retrograde.equilibrium import Equilibrium
from retrograde.solvers.base import check_number

_SQUARINGS = 10  # of a Gram matrix: the bound exceeds the norm by a factor of at most rank ** (1 / 2048)


def jacobian_penalty(fn: Equilibrium | Callable[..., Tensor], x: Tensor, *inputs: Any, samples: int = 1) -> Tensor:
    """|J|² / n for each sample, J = d fn/dx at x and n what a sample holds: Hutchinson's estimate of it.

    For ε of random signs, E |Jᵀε|² is the sum of the squares of J's entries, |J|². Taken off the reward, it keeps the
    fixed point quick to find, and its adjoint. It is differentiable in whatever fn depends on; given ``state.x`` as
    x, and not ``state.x.detach()``, in how the state moves, too.

    Args:
        fn: an Equilibrium, or its fn.
        x: (samples, ...).
        inputs: what fn is given beside x.
        samples: how many ε to average over.

    Returns:
        (samples,) the estimates.

    Raises:
        ValueError, TypeError: samples is not an integer of at least 1; fn changes the shape or dtype of x.

    References:
        Hutchinson, Commun. Stat. Simul. Comput. 19 (1990); Bai, Koltun and Kolter, "Stabilizing equilibrium models by
        Jacobian regularization", ICML (2021).

    >>> A = torch.tensor([[0.0, 0.5], [0.0, 0.0]])
    >>> jacobian_penalty(lambda x: x @ A.T, torch.ones(3, 2))
    tensor([0.1250, 0.1250, 0.1250])
    """
    if check_number("samples", samples, Integral) < 1:
        raise ValueError(f"samples: expected an integer of at least 1, got {samples}")
    fn = fn.fn if isinstance(fn, Equilibrium) else fn
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = check_floating("x", x)
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        y = Equation(fn, inputs, ())(x)
        total = x.new_zeros(len(x))
        for _ in range(samples if y.requires_grad else 0):
            sign = torch.randint(2, y.shape, device=y.device).to(y.dtype) * 2 - 1
            (Je,) = torch.autograd.grad(
                y, x, sign, retain_graph=True, create_graph=keep, allow_unused=True, materialize_grads=True
            )
            total = total + Je.square().flatten(1).sum(-1)
    total = total / (samples * max(1, math.prod(x.shape[1:])))
    return total if keep else total.detach()


class SpectralBall(nn.Module):
    """A weight scaled down until its norm as a linear map is at most the radius: a parametrisation.

    If |f'| <= 1 and the radius is less than 1, x = f(Wx + u) has exactly one solution for each u, the plain iteration
    comes closer to it by at least that factor a step, and |(I - J)⁻¹| is at most 1 / (1 - radius).

    A matrix keeps to the radius up to rounding, and one that is scaled comes within 0.6 % of it, up to a rank of 10⁵.
    The kernel of a convolution, (out, in, ...), keeps to it too, on a grid of any size, with zeros or wrapped at its
    edges, with any stride, dilation or groups; in two dimensions it comes within 5 % of it on a large grid. Padding
    that repeats or mirrors the edge may exceed it.

    Args:
        radius: the largest norm.

    Raises:
        ValueError, TypeError: the radius is not a positive number; a weight of fewer than two axes.

    References:
        Delattre et al., "Efficient bound of Lipschitz constant for convolutional layers by Gram iteration", ICML
        (2023). Ehlich and Zeller, Math. Z. 86 (1964), for a trigonometric polynomial between the points of a grid.

    >>> _ = torch.manual_seed(0)
    >>> layer = nn.utils.parametrize.register_parametrization(nn.Linear(20, 20), "weight", SpectralBall(0.5))
    >>> bool(torch.linalg.matrix_norm(layer.weight, 2) <= 0.5)
    True
    """

    def __init__(self, radius: float):
        super().__init__()
        if not 0 < check_number("radius", radius) < math.inf:
            raise ValueError(f"radius: expected a positive number, got {radius}")
        self.radius = radius

    def forward(self, V: Tensor) -> Tensor:
        """The weight, from any V of the same shape."""
        return V / (_norm(V) / self.radius).clamp(min=1)

    def right_inverse(self, W: Tensor) -> Tensor:
        """W itself, which is left as it is if its norm allows."""
        return W

    def extra_repr(self) -> str:
        """The radius, where a module prints."""
        return f"{self.radius}"


def _norm(W: Tensor) -> Tensor:
    """The norm of a matrix, or of a convolution on a grid of any size: from above, and barely.

    On an endless grid, a convolution is a multiplication by the matrix Ŵ(ω) at each frequency ω, and its norm is the
    largest of theirs. We look at N frequencies along each axis. Between them, uᵀŴ(ω)v is a trigonometric polynomial of
    degree (k-1)/2, for a kernel of k, and so at most 1/cos(π(k-1)/2N) times as large. A finite grid is a part of the
    endless one.
    """
    if W.ndim < 2:
        raise ValueError(f"weight: expected a matrix or a kernel (out, in, ...), got shape {tuple(W.shape)}")
    slack, kernel = 1.0, W.shape[2:]
    if kernel:
        points = [max(1, 8 * (k - 1)) for k in kernel]
        slack = math.prod(1 / math.cos(math.pi * (k - 1) / (2 * N)) for k, N in zip(kernel, points, strict=True))
        axes = tuple(range(2, W.ndim))
        W = torch.fft.rfftn(W, points, axes).flatten(2).permute(2, 0, 1).contiguous()
        with torch.no_grad():
            loudest = _matrix_norm(W).argmax()
        W = W[loudest]  # the derivative of a maximum is that of the largest
    return slack * _matrix_norm(W)


def _matrix_norm(M: Tensor) -> Tensor:
    """The spectral norm of M (..., p, q): (tr Gᴺ)^(1/2N) for G = MMᴴ and a large N, which is never less."""
    M = M if M.shape[-2] <= M.shape[-1] else M.mH
    tiny = torch.finfo(M.dtype).tiny
    # Any factor may be taken out, its derivative too: the norm scales with M.
    size = M.detach().abs().amax((-2, -1), keepdim=True).clamp(min=tiny)
    G = (M / size) @ (M / size).mH
    log = torch.zeros_like(size)
    for k in range(_SQUARINGS + 1):
        if k:
            G = G @ G
        r = G.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None].clamp(min=tiny)
        G, log = G / r, log + r.log() / 2**k
    return (size * torch.exp(log / 2)).squeeze((-2, -1))
