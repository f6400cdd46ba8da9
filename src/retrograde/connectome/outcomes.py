"""What an input brings about, as a table, and whether it is what was wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from retrograde.connectome.driving import AlongTime, Steady
from retrograde.connectome.given import Targets
from retrograde.connectome.searching import size_of
from retrograde.connectome.wiring import Connectome

ROUNDING = 1e-6  # by which an activity may miss its target and still be said to meet it


def met(net: Steady | AlongTime, targets: Targets) -> bool:
    """Whether every target is met, to `ROUNDING`."""
    return bool((np.abs(net.activity() - targets.activity) <= ROUNDING * (1 + np.abs(targets.activity))).all())


def of_search(
    c: Connectome,
    net: Steady | AlongTime,
    b: np.ndarray,
    places: np.ndarray,
    targets: Targets,
    attrs: dict[str, Any],
    least: str,
    maximum: bool,
) -> pd.DataFrame:
    """The answer as a table, and what is told of it."""
    attrs = {"size": size_of(b, least), **attrs}
    if not maximum:
        there = met(net, targets)
        attrs |= {"met": there, "distance": float(np.abs(net.activity() - targets.activity).sum())}
        attrs["distance_bound"] = float("nan") if there else attrs.get("distance_bound", float("nan"))
        attrs["size_bound"] = attrs["size_bound"] if there else float("nan")
    if isinstance(net, Steady):
        attrs |= {"from_rest": net.settles(1e-5), "stable": net.stays(), **net.found}
        x, input = net.states[None], np.zeros((1, len(c)))
        input[0, places] = b
    else:
        x, input = net.states, np.zeros((net.T + 1, len(c)))
        input[1:, places] = b.reshape(net.T, -1)
    return tabulated(c, x, input, None if maximum else targets, isinstance(net, Steady), attrs)


def tabulated(
    c: Connectome, x: np.ndarray, input: np.ndarray, targets: Targets | None, steady: bool, attrs: dict[str, Any]
) -> pd.DataFrame:
    """A row for each neuron and time with an input or a target; at a steady state, time 0 alone, for every neuron."""
    wanted = np.full(x.shape, np.nan)
    if targets is not None:
        wanted[targets.time, targets.place] = targets.activity
    shown = np.ones(x.shape, bool) if steady else (input != 0) | ~np.isnan(wanted)
    time, place = np.nonzero(shown)
    order = np.lexsort([-np.abs(input[time, place]), time])
    time, place = time[order], place[order]
    told: dict[str, Any] = {} if steady else {"time": time}
    told |= {"id": c.ids[place], "input": input[time, place], "activity": x[time, place], "wanted": wanted[time, place]}
    about = c.neurons[[name for name in c.neurons if name not in told]].iloc[place].reset_index(drop=True)
    table = pd.concat([pd.DataFrame(told), about], axis=1)
    table.attrs = attrs
    return table
