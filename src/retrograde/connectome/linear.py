"""The linear network x = αWx + b of a connectome: α, steady states and adjoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde.adjoint import steady_gradients
from retrograde.connectome.eigenvalues import SMALL, without
from retrograde.connectome.presets import Preset
from retrograde.connectome.wiring import Connectome
from retrograde.nonlinearity import Identity, Nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.result import ONLY_S, Solved
from retrograde.solvers import Direct, Newton, Solver
from retrograde.steady import steady_state
from retrograde.transforms import precisely


def scaled(
    c: Connectome, scale: float | None, silenced: np.ndarray, how: Preset, f: Nonlinearity | None = None
) -> tuple[Recurrence, float, float]:
    """The network αW, without the outputs of the silenced neurons; the eigenvalue of W that α is by; and α."""
    (weight,) = (w.detach() for w in c.W.weights)
    W = c.W.bind(weight)
    (active,) = without(W, silenced).weights
    anew = how.rescale_after_silencing or not len(silenced)
    eigenvalue = c._eigenvalues.of(W, silenced if anew else silenced[:0])
    alpha = 1.0 if scale is None else rescaled(eigenvalue, scale, how)
    if isinstance(f or Identity(), Identity) and (scale is None or (len(silenced) and bool((weight < 0).any()))):
        # Without the neurons that inhibit, the others may excite one another beyond all bounds.
        here = alpha * (eigenvalue if anew else c._eigenvalues.of(W, silenced))
        if here >= 1:
            raise ValueError(
                f"scale: the linear network is unstable, for the largest real part of an eigenvalue of αW is {here:.3g}"
                + (" without the silenced neurons" if len(silenced) else "")
                + ", which has to be below 1"
            )
    return Recurrence(c.W.bind(alpha * active), f or Identity()), eigenvalue, alpha


def rescaled(eigenvalue: float, scale: float, how: Preset) -> float:
    """α, by which the eigenvalue becomes the scale."""
    if how.only_if_larger and eigenvalue <= scale:
        return 1.0
    if how.only_if_positive and eigenvalue <= 0:
        return 1.0
    if not eigenvalue > 1e-12:
        raise ValueError(
            f"scale: the largest real part of an eigenvalue of W is {eigenvalue:.3g}, which no factor makes {scale}: "
            "without feedback that excites there is nothing to scale; scale=None takes W as it is"
        )
    return scale / eigenvalue


def groups(c: Connectome, given: Any, what: str) -> dict[str, np.ndarray]:
    """Name -> places, of one group called "" or of several."""
    named = given if isinstance(given, Mapping) else {"": given}
    if not named:
        raise ValueError(f"{what}: expected at least one group of ids, got none")
    found = {str(name): c.index(ids, what) for name, ids in named.items()}
    for name, places in found.items():
        if not len(places):
            raise ValueError(f"{what}: expected at least one id{f' in {name!r}' if name else ''}, got none")
    return found


def indicators(c: Connectome, some: dict[str, np.ndarray]) -> Tensor:
    """(groups, n): 1 at a group's neurons."""
    (weight,) = c.W.weights
    ones = torch.zeros(len(some), len(c), dtype=weight.dtype)
    for row, places in zip(ones, some.values(), strict=True):
        row[torch.from_numpy(places)] = 1
    return ones


def is_factored(net: Recurrence) -> bool:
    """Whether a factorisation finds the states and adjoints: of a linear network of few neurons."""
    return net.W.shape[0] <= SMALL and isinstance(net.f, Identity)


def solvers_for(net: Recurrence) -> tuple[Solver | None, Solver | None]:
    """For the states and for the adjoints a factorisation, or else the defaults, of so many neurons products alone."""
    return (Newton(), Direct()) if is_factored(net) else (None, None)


def states(net: Recurrence, b: Tensor) -> tuple[np.ndarray, dict[str, Any]]:
    """The steady states for the inputs b, (samples, n), and how they were found."""
    state = steady_state(net.W, b, net.f, solver=solvers_for(net)[0])
    return state.x.detach().double().numpy(), how_found(state)


@precisely
def adjoints(net: Recurrence, g: Tensor) -> tuple[np.ndarray, dict[str, Any]]:
    """The adjoints of dR/dx = g, (samples, n), in a linear network, and how they were found."""
    with torch.no_grad():
        gradient = steady_gradients(net, torch.zeros_like(g), None, g, solvers_for(net)[1], wants=ONLY_S)
    assert gradient.receipt is not None  # a steady state's gradient has one
    return gradient.s.double().numpy(), how_found(gradient.receipt)


def how_found(solved: Solved, prefix: str = "") -> dict[str, Any]:
    """The largest residual, the most steps and the solvers, for the attrs of an answer."""
    return {
        f"{prefix}residual": float(solved.residual.max()),
        f"{prefix}steps": int(solved.steps.max()),
        f"{prefix}solver": "; ".join(solved.found_by),
    }
