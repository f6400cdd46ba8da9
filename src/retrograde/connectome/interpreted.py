"""connectome_interpreter's own search for an input, told as the others are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from retrograde.connectome.given import Targets
from retrograde.connectome.layered import Layered, activation_maximisation
from retrograde.connectome.outcomes import ROUNDING, tabulated
from retrograde.connectome.wiring import Connectome


def as_interpreted(
    c: Connectome,
    net: Layered,
    targets: Targets,
    places: np.ndarray,
    steps: int,
    *,
    turns: int,
    seed: int,
    told: Callable[[int], None] | None,
) -> pd.DataFrame:
    """The input to these places that activation maximisation comes to, and what it brings about."""
    time, place, activity = (torch.from_numpy(each) for each in (targets.time, targets.place, targets.activity))
    some = time, place, activity.to(net.W.dtype)
    u, x, losses = activation_maximisation(
        net, torch.from_numpy(places), some, steps, seed=seed, turns=turns, told=told
    )
    input, states = np.zeros((steps + 1, len(c))), np.zeros((steps + 1, len(c)))
    input[:-1, places], states[1:] = u.double().numpy(), x.double().numpy()
    states[0] = input[0]
    off = np.abs(states[targets.time, targets.place] - targets.activity)
    attrs = {
        "size": float(np.abs(input).sum()),
        "met": bool((off <= ROUNDING * (1 + np.abs(targets.activity))).all()),
        "distance": float(off.sum()),
        "loss": float(losses[-1]),
        "turns": len(losses),
        "proved": False,
    }
    return tabulated(c, states, input, targets, False, attrs)
