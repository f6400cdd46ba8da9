"""What a reward changes by, exactly, when the output of one neuron is taken away or turned: for a few of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.connectome.linear import solvers_for
from retrograde.connectome.steadiness import is_stable, linearised
from retrograde.connectome.wiring import Connectome
from retrograde.nonlinearity import Identity
from retrograde.recurrence import Recurrence
from retrograde.steady import steady_state

_AT_ONCE = 64  # neurons silenced in one solve
_PARTS = {"silencing_exact": 1.0, "flipping_exact": 2.0}  # of the output, that is taken away

Reward = Callable[[Tensor], Tensor]
Tell = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Solved:
    """The network as it is: x for the input b, the reward R with g = dR/dx, and its adjoint s.

    `reward` is R as a function of x, None where it is g·x.
    """

    connectome: Connectome
    net: Recurrence
    b: Tensor
    x: Tensor
    s: Tensor
    g: Tensor
    R: Tensor
    reward: Reward | None


def exact_effects(
    here: Solved, some: Tensor, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Tensor], list[float]]:
    """Both effects of each of these neurons, (n,), NaN for the others; and the residuals of the solves that told them.

    `progress` hears how many are known of all.
    """
    how = _by_rank_one if isinstance(here.net.f, Identity) and here.reward is None else _by_solving
    found: dict[str, Tensor] = {}
    residuals: list[float] = []
    for name, part in _PARTS.items():
        before = len(found) * len(some)

        def tell(done: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, len(_PARTS) * len(some))

        found[name] = torch.full_like(here.x, torch.nan)
        found[name][some], left = how(here, some, part, tell)
        residuals += left
    return found, residuals


def _by_rank_one(here: Solved, some: Tensor, part: float, tell: Tell) -> tuple[Tensor, list[float]]:
    """What R changes by when the output of neuron k is taken away (part 1), or turned (part 2), in a linear network.

    A = I - αW becomes A + p w eₖᵀ, where w = αW eₖ. By Sherman and Morrison, and as A⁻¹ w = (A⁻¹ - I) eₖ, R changes by
    -p (sₖ - gₖ) xₖ / (1 + p (Gₖₖ - 1)), where G = A⁻¹. The residuals are those of the columns of G.
    """
    solver, _adjoint = solvers_for(here.net)
    effect = -part * (here.s - here.g) * here.x
    changes: list[Tensor] = []
    residuals: list[float] = []
    for places in some.split(_AT_ONCE):
        row = torch.arange(len(places))
        ones = here.x.new_zeros(len(places), len(here.x))
        ones[row, places] = 1
        state = steady_state(here.net.W, ones, here.net.f, solver=solver)
        G = state.x.detach()[row, places]
        factor = 1 + part * (G - 1)  # of det(I - αW): the network is unstable where it is not positive
        changes.append(torch.where(factor > 0, effect[places] / factor, torch.nan))
        residuals += state.residual[factor > 0].tolist()
        tell(sum(map(len, changes)))
    return torch.cat(changes), residuals


def _by_solving(here: Solved, some: Tensor, part: float, tell: Tell) -> tuple[Tensor, list[float]]:
    """The same by solving without the neuron's output, or with it turned, from x on; NaN without a stable state."""
    W = here.net.W.bind()
    (weight,) = W.weights
    _, pre = here.connectome.W.edges
    solver, _adjoint = solvers_for(here.net)
    changes: list[Tensor] = []
    residuals: list[float] = []
    for k in some.tolist():
        changed = W.bind(torch.where(pre == k, (1 - part) * weight, weight))
        state = steady_state(changed, here.b, here.net.f, x0=here.x, solver=solver, throw=False)
        x = state.x.detach()
        if bool(state.converged) and is_stable(linearised(Recurrence(changed, here.net.f), x, here.b)[1]):
            changes.append((here.g @ x if here.reward is None else here.reward(x)) - here.R)
            residuals.append(float(state.residual))
        else:
            changes.append(torch.full_like(here.R, torch.nan))
        tell(len(changes))
    return torch.stack(changes), residuals
