"""How the activities that were recorded at steady states move with θ: the Jacobian of a fit.

With x held, θ moves u, of which x = f(u), by ∂u/∂θ. By how much x moves is a tangent, v = D (Wv + ∂u/∂θ), for each
parameter and condition; and dx_i/dθ = sᵀ ∂u/∂θ takes one adjoint, s = D (Wᵀs + eᵢ), for each activity that was
recorded. They are as exact: what takes less is solved for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from retrograde.connectome.adjustable import Adjustable
from retrograde.derivatives import Feedback
from retrograde.solvers.factors import Factors

_AT_ONCE = 2**24  # numbers in the tangents, or adjoints, that are solved for together
_ADJOINT = 2  # how many tangents take as long: on a fly's motion pathway 33 steps, and an adjoint 75


def jacobian(model: Adjustable, theta: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """d activity / dθ, (rows, parameters), at the steady states x, (conditions, n), of θ, for these of the rows."""
    condition, neuron = (torch.from_numpy(each)[rows] for each in (model.of.condition, model.of.neuron))
    some, place = condition.unique(return_inverse=True)  # the conditions that are needed
    with torch.no_grad():
        x, drive = x[some], model.of.drive[some]
        W = model.equations(model.values(theta))[0]
        D = model.net.f.slope_at(model.inputs(theta, x, drive))

        def solved(c: Tensor, at: Tensor, transposed: bool) -> Tensor:
            """z = D (Mz + c), (..., n), where M is Wᵀ or W, and D that of these conditions."""
            slopes, flat = D[at].expand_as(c).reshape(-1, c.shape[-1]), c.reshape(-1, c.shape[-1])
            z = Feedback(W.structure, None, Factors(flat), True, transposed)(None, slopes, flat, *W.weights)
            return z.reshape(c.shape)

        if _ADJOINT * len(rows) < len(theta) * len(some):
            return _by_adjoints(model, theta, x, drive, place, neuron, solved)
        return _by_tangents(model, theta, x, drive, place, neuron, solved)


Solved = Callable[[Tensor, Tensor, bool], Tensor]


def _by_tangents(
    model: Adjustable, theta: Tensor, x: Tensor, drive: Tensor, place: Tensor, neuron: Tensor, solved: Solved
) -> Tensor:
    inputs, found = partial(model.inputs, x=x, drive=drive), []
    for unit in torch.eye(len(theta), dtype=theta.dtype).split(_several(model, x)):
        c = torch.func.vmap(lambda v: torch.func.jvp(inputs, (theta,), (v,))[1])(unit)
        found.append(solved(c, torch.arange(len(x)), False)[:, place, neuron])
    return torch.cat(found).T.double()


def _by_adjoints(
    model: Adjustable, theta: Tensor, x: Tensor, drive: Tensor, place: Tensor, neuron: Tensor, solved: Solved
) -> Tensor:
    found = theta.new_empty(len(neuron), len(theta))
    for k in range(len(x)):
        pull = torch.func.vjp(partial(model.inputs, x=x[k], drive=drive[k]), theta)[1]
        for some in torch.nonzero(place == k)[:, 0].split(_several(model, x[k])):
            e = torch.zeros(len(some), x.shape[-1], dtype=x.dtype)
            e[torch.arange(len(some)), neuron[some]] = 1
            (found[some],) = torch.func.vmap(pull)(solved(e, place[some], True))
    return found


def _several(model: Adjustable, x: Tensor) -> int:
    """How many there may be at once, each of as many numbers as x, or as W where its strengths are fitted."""
    return max(1, _AT_ONCE // max(x.numel(), len(model.weight) if "strength" in model.fitted else 0))
