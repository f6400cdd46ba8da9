"""Influence in the linear network x = αWx + b: of sources on every neuron, and of every neuron on targets.

x = (I - αW)⁻¹ b is a steady state with f = identity; what a target depends on is its adjoint, s = αWᵀs + dR/dx. The
first takes one solve for a set of sources, the second one solve for a set of targets, however many neurons there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from retrograde.connectome.linear import PRESETS, Preset, adjoints, groups, indicators, reached, scaled, states
from retrograde.connectome.wiring import Connectome

_SHIFT = 24  # of the adjusted scores: ln of what counts as nothing, with its sign turned


def influence(
    c: Connectome,
    source: Any = None,
    target: Any = None,
    *,
    scale: float = 0.99,
    silence: Iterable[Any] = (),
    preset: str | None = None,
) -> pd.DataFrame:
    """The influence of `source` on every neuron; or of every neuron on `target`, by one adjoint solve.

    x = αWx + b, where b is 1 at the sources: x_i is their influence on neuron i. With a target, the influence of
    neuron j is how much the target's activity grows with b_j: dR/db of R = Σ x over the target.

    Args:
        c: the connectome.
        source: ids of the neurons that are driven. Several groups, as a mapping from name to ids, give a column each.
        target: ids of the neurons that are looked at, likewise. With a source as well, each source neuron's influence
            on the target; and with groups of both, a table of source groups by target groups.
        scale: the largest real part of an eigenvalue of αW, 0 < scale < 1. The nearer to 1, the more the network's
            slowest mode decides.
        silence: neurons whose outgoing connections are cut, by id; sources are exempt, if they are one group. α stays
            what it is for the whole network, so that what changes is the silencing alone.
        preset: "cic-2026", "banc-paper" or "influencer-R" computes α as these tools do: anew after silencing, and the
            latter two only where the largest eigenvalue exceeds the scale.

    Returns:
        A row for each neuron, the largest influence first: ``id``, ``influence``, ``adjusted`` (sign times
        ln max(|influence|, e⁻²⁴) + 24), ``is_source`` or ``is_target``, and what the neuron table says. ``.attrs``
        holds ``eigenvalue``, that of W with the largest real part, ``alpha``, and ``residual``, the solve's.

    Raises:
        ValueError: neither source nor target, ids that are not there, a scale out of range, a network without feedback
            scaled up, one that is unstable without the silenced neurons.
        ConvergenceError: the solve did not converge.

    References:
        Bates et al., "Distributed control circuits across a brain-and-cord connectome" (2025), for the score.

    >>> import pandas as pd
    >>> from retrograde.connectome import read
    >>> c = read(pd.DataFrame({"pre": ["a", "b", "b"], "post": ["b", "a", "c"], "count": [1, 1, 2]}))
    >>> influence(c, source="a", scale=0.5)[["id", "influence"]].round(3)
      id  influence
    0  a      1.333
    1  b      0.667
    2  c      0.667
    >>> influence(c, target="c", scale=0.5)[["id", "influence"]].round(3)
      id  influence
    0  b      1.333
    1  c      1.000
    2  a      0.667
    """
    if source is None and target is None:
        raise ValueError("source: expected the ids of some neurons here, or as target; got neither")
    if not 0 < scale < 1:
        raise ValueError(f"scale: expected 0 < scale < 1, for the linear network is unstable from 1 on; got {scale}")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    sources = None if source is None else groups(c, source, "source")
    targets = None if target is None else groups(c, target, "target")

    exempt = np.concatenate(list(sources.values())) if sources else np.empty(0, np.int64)
    silenced = c.index(silence, "silence")
    if sources and len(sources) > 1 and np.isin(silenced, exempt).any():
        raise ValueError("silence: expected none of the sources where these are several groups: ask for one at a time")
    silenced = np.setdiff1d(silenced, exempt)
    net, eigenvalue, alpha = scaled(c, scale, silenced, PRESETS[preset] if preset else Preset())
    if targets is None:
        assert sources is not None
        driven = indicators(c, sources)
        found, residual = states(net, driven)
    else:
        driven = indicators(c, targets)
        found, residual = adjoints(net, driven)
    # What no path leads to is 0, whatever rounding or an iteration left there.
    found = np.where(reached(net, driven, backwards=targets is not None), found, 0.0)
    if not (c.edges["weight"] < 0).any():
        found = np.abs(found)  # rounding leaves nothing below 0
    attrs = {"eigenvalue": eigenvalue, "alpha": alpha, "residual": residual, "scale": scale}
    return _told(c, found, sources, targets, source, target, attrs)


def _told(
    c: Connectome,
    found: np.ndarray,
    sources: dict[str, np.ndarray] | None,
    targets: dict[str, np.ndarray] | None,
    source: Any,
    target: Any,
    attrs: dict[str, float],
) -> pd.DataFrame:
    """The answer as a table."""
    if sources is not None and targets is not None and isinstance(source, Mapping):
        # dR/db summed over a source group is the influence of driving all of it.
        rows = [[float(each[places].sum()) for each in found] for places in sources.values()]
        names = list(targets) if isinstance(target, Mapping) else ["influence"]
        table = pd.DataFrame(rows, index=pd.Index(list(sources), name="source"), columns=names)
        table.attrs = attrs
        return table
    looked_at = targets if targets is not None else sources
    assert looked_at is not None
    what = "is_target" if targets is not None else "is_source"
    table = pd.DataFrame({"id": c.ids})
    if list(looked_at) == [""]:
        table["influence"], table["adjusted"] = found[0], adjusted(found[0])
        order = np.argsort(-np.abs(found[0]), kind="stable")
    else:
        for name, each in zip(looked_at, found, strict=True):
            table[name] = each
        order = np.argsort(-np.abs(found).max(0), kind="stable")
    table[what] = np.isin(np.arange(len(c)), np.concatenate(list(looked_at.values())))
    table = pd.concat([table, c.neurons[[name for name in c.neurons if name not in table]]], axis=1)
    if sources is not None and targets is not None:
        here = np.concatenate(list(sources.values()))
        order = order[np.isin(order, here)]
    table = table.iloc[order].reset_index(drop=True)
    table.attrs = attrs
    return table


def adjusted(x: np.ndarray) -> np.ndarray:
    """sign(x) (ln max(|x|, e⁻²⁴) + 24): 0 for what counts as nothing."""
    return np.sign(x) * (np.log(np.maximum(np.abs(x), np.exp(-_SHIFT))) + _SHIFT)
