"""A proof, from W and f alone, that there is one steady state for every input and that the dynamics reach it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from retrograde.connectivity import Connectivity, Dense, Operator, Sparse
from retrograde.connectivity.convolution import Convolution
from retrograde.connectivity.low_rank import LowRank
from retrograde.connectivity.sum import Sum
from retrograde.nonlinearity import Identity, Nonlinearity, ReLU, Sigmoid, Softplus, Tanh
from retrograde.recurrence import Recurrence
from retrograde.spectrum.jacobians import equations_of
from retrograde.transforms import precisely

if TYPE_CHECKING:
    from retrograde.network import Network

# The steepest slope of each f, all of whose slopes lie between 0 and that. For any other f nothing is proved.
STEEPEST: dict[type[Nonlinearity], float] = {Tanh: 1.0, Sigmoid: 0.25, ReLU: 1.0, Softplus: 1.0, Identity: 1.0}
# Products with |W| at most. The bound falls with each, as in a power iteration, until it is the spectral radius of |W|.
PRODUCTS = 100
# The least weight, relative to the largest: products of smaller ones might vanish from a sum.
_LEAST = 1e-100


@dataclass(frozen=True, eq=False)
class Certificate:
    """Whether it is proved that x = f(Wx + b) has exactly one solution, whatever b, and that iteration reaches it.

    Attributes:
        holds: True: it is proved. False: it is not known; there may be one steady state all the same.
        norm: at least the Lipschitz constant of x -> f(Wx + b) in the norm max |x_i| / weights_i.
        measure: at least d μ(W), d the steepest slope of f and μ the matrix measure of that norm.
        weights: (n,) positive, float64; None where nothing could be said.
        damping: with which x ← (1-c) x + c f(Wx + b), c at most this, contracts: `FixedPoint(damping=c)`, or a leak.
            NaN where it does not hold.
        rate: the factor by which each step with ``damping`` shrinks the distance between any two states, in that norm.
        reason: all this, as a sentence.
    """

    holds: bool
    norm: float
    measure: float
    weights: Tensor | None
    damping: float
    rate: float
    reason: str

    def __str__(self) -> str:
        """The reason."""
        return self.reason


@precisely
def uniqueness_certificate(net: Network | Recurrence) -> Certificate:
    """A proof, where one of two conditions holds, that there is one steady state for every b, and iteration finds it.

    With the slopes of f between 0 and d, in the norm max |x_i| / v_i, v > 0:

    - d max_i (|W| v)_i / v_i < 1: x ← f(Wx + b) contracts, and so it does with any damping or leak;
    - d max_i (W_ii + Σ_{j≠i} |W_ij| v_j / v_i) < 1: x ← (1-c) x + c f(Wx + b) contracts for c up to
      1 / (1 + d max(0, -min W_ii)), since 1 - c + c d W_ii is not negative. Inhibition of oneself does no harm.

    v comes from a power iteration on |W|, of at most 100 products, which cost what W x costs. The bounds are computed
    in float64 and rounded up, so that what is claimed of these weights is proved, not estimated. No claim is made of
    the opposite. The diagonal of a low-rank W is not used, and |UVᵀ| is taken to be as large as |U||V|ᵀ. Of an f or a
    structure of your own nothing is known, and so nothing is proved.

    Args:
        net: a Network or a Recurrence.

    References:
        L. Collatz, Math. Z. 48 (1942); S. Jafarpour, A. Davydov, A. V. Proskurnikov and F. Bullo, "Robust implicit
        networks via non-Euclidean contractions", arXiv 2106.03194 (2021).

    >>> import retrograde as rg
    >>> W = torch.tensor([[-3.0, 0.0], [50.0, 0.5]])
    >>> certificate = uniqueness_certificate(rg.Network(W))
    >>> certificate.holds, certificate.norm > 1, certificate.damping
    (True, True, 0.25)
    >>> uniqueness_certificate(rg.Network(torch.tensor([[2.0]]))).holds  # x = tanh(2x) has three solutions
    False
    """
    equations, _ = equations_of(net, None)
    d = STEEPEST.get(type(equations.f))
    if d is None:
        return _nothing(f"no bound on the slopes of {equations.f} is known")
    with torch.no_grad():
        W = equations.W.bind(*(weight.detach().double() for weight in equations.W.weights))
        split = _split(W)
        if split is None:
            return _nothing(f"no bound on |W| of a {type(W.structure).__name__} is known but by forming it")
        diagonal, rest = split
        norm, norm_weights = _smallest_bound(diagonal.abs(), rest, 0.0, W)
        shift = float((-diagonal).clamp(min=0).amax())  # makes every diagonal entry of W + shift I at least 0
        measure, measure_weights = _smallest_bound(diagonal + shift, rest, shift, W)
    norm, measure = _up(d * norm), _up(d * measure)
    if norm < 1:
        reason = (
            "There is one steady state for every input, and x ← f(Wx + b) reaches it from everywhere: each step leaves "
            f"at most {norm:.3g} of a distance, in a weighted maximum norm."
        )
        return Certificate(True, norm, measure, norm_weights, 1.0, norm, reason)
    damping = 1 / (1 + d * shift)
    rate = _up(1 - damping * (1 - max(measure, 0.0)))
    if rate < 1:
        reason = (
            f"There is one steady state for every input, and FixedPoint(damping={damping:.3g}) reaches it from "
            f"everywhere: each step leaves at most {rate:.3g} of a distance, in a weighted maximum norm."
        )
        return Certificate(True, norm, measure, measure_weights, damping, rate, reason)
    return Certificate(
        False,
        norm,
        measure,
        norm_weights,
        float("nan"),
        float("nan"),
        f"Nothing is proved: the best bounds found are {norm:.3g} and {measure:.3g}, and one would have to be below 1. "
        "There may be one steady state all the same, or several.",
    )


def _nothing(why: str) -> Certificate:
    nan = float("nan")
    return Certificate(False, nan, nan, None, nan, nan, f"Nothing is proved: {why}.")


def _split(W: Operator) -> tuple[Tensor, Callable[[Tensor], Tensor]] | None:
    """W = diag(c) + R: c (n,), and v -> at least |R| v, in the structure's own terms. None where they have none."""
    structure, n = W.structure, W.shape[0]
    if isinstance(structure, Sum):
        parts, weights = [], list(W.weights)
        for part in cast(list[Connectivity], list(structure.parts)):
            own, weights = weights[: len(part.weights)], weights[len(part.weights) :]
            parts.append(_split(part.bind(*own)))
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return torch.stack([c for c, _ in known]).sum(0), lambda v: sum((R(v) for _, R in known), torch.zeros_like(v))

    diagonal = W.like.new_zeros(n)
    magnitudes = [weight.abs() for weight in W.weights]
    if isinstance(structure, Dense):
        diagonal = W.weights[0].diagonal()
        magnitudes[0].fill_diagonal_(0)
    elif isinstance(structure, Sparse):
        post, pre, weight = W.entries()
        diagonal = diagonal.index_add(0, post, torch.where(post == pre, weight, 0))
        magnitudes[0][post == pre] = 0
    elif isinstance(structure, Convolution):
        (kernel,) = W.weights
        middle = kernel[0, 0].numel() // 2  # every width is odd
        diagonal = kernel.flatten(2)[..., middle].diagonal().repeat_interleave(n // len(kernel))
        magnitudes[0].flatten(2)[..., middle].fill_diagonal_(0)
    elif not isinstance(structure, LowRank):
        return None
    bound = W.bind(*magnitudes)
    return diagonal, lambda v: bound @ v


def _smallest_bound(
    diagonal: Tensor, rest: Callable[[Tensor], Tensor], minus: float, W: Operator
) -> tuple[float, Tensor]:
    """The least max_i (Av)_i / v_i found, A = diag(diagonal) + rest not negative, less `minus`, rounded up; and its v.

    For every v > 0 this is at least the spectral radius of A (Collatz). It cannot rise from one step to the next, as
    Av <= βv makes A(v + Av/β) <= β(v + Av/β); v itself is kept in, so that none of its entries comes to 0 at once.
    """
    eps = torch.finfo(diagonal.dtype).eps
    # No sum here has more terms, and whatever their order, each costs its terms half an eps at most.
    terms = 4 * max(*W.shape, *(size for weight in W.weights for size in weight.shape)) + 64
    v = best_v = torch.ones_like(diagonal)
    best = float("inf")
    for _ in range(PRODUCTS):
        growth = (diagonal * v + rest(v)) / v
        bound = float(growth.amax())
        if bound < best:
            best, best_v = bound, v
        if bound - float(growth.amin()) <= 1e-3 * bound:  # no v has a bound below the least growth of any
            break
        v = v * (1 + growth / bound)
        v = (v / v.amax()).clamp(min=_LEAST)
    best *= 1 + terms * eps
    return _up(best - minus) + eps * best, best_v


def _up(number: float) -> float:
    """A little more than `number`, by several times what rounding may have taken."""
    return number + 8 * torch.finfo(torch.float64).eps * max(abs(number), 1.0)
