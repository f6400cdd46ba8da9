"""Influence in the linear network x = αWx + b: of sources on every neuron, and of every neuron on targets.

x = (I - αW)⁻¹ b is a steady state with f = identity; what a target depends on is its adjoint, s = αWᵀs + dR/dx. The
first takes one solve for a set of sources, the second one solve for a set of targets, however many neurons there are.
Around the steady state of another f it is the same with DW in the place of W: v = D (Wv + b), and s = D (Wᵀs + dR/dx).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from retrograde.connectome.advice import advising
from retrograde.connectome.amounts import at
from retrograde.connectome.ends import ends_of, silenced_of
from retrograde.connectome.linear import (
    adjoints,
    how_found,
    indicators,
    is_factored,
    rescaled,
    scaled,
    solvers_for,
    states,
)
from retrograde.connectome.memory import check_groups
from retrograde.connectome.paths import reached
from retrograde.connectome.presets import PRESETS, Preset, differences
from retrograde.connectome.ranks import normalise, ranked, swept
from retrograde.connectome.scales import check_scale
from retrograde.connectome.steadiness import linearised, stable_margin
from retrograde.connectome.wiring import Connectome
from retrograde.nonlinearity import Identity, Nonlinearity, as_nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.steady import steady_state


def influence(
    c: Connectome,
    source: Any = None,
    target: Any = None,
    *,
    scale: float | Sequence[float] | None = 0.99,
    silence: Iterable[Any] = (),
    preset: str | None = None,
    by: str | None = None,
    f: str | Nonlinearity = "identity",
    drive: Any = None,
) -> pd.DataFrame:
    """The influence of `source` on every neuron; or of every neuron on `target`, by one adjoint solve.

    x = αWx + b, where b is 1 at the sources: x_i is their influence on neuron i. With a target, the influence of
    neuron j is how much the target's activity grows with b_j: dR/db of R = Σ x over the target.

    Args:
        c: the connectome.
        source: ids of the neurons that are driven, or COLUMN:VALUE, all of a cell type, say: ``"cell_type:T4a"``.
            Several groups, as a mapping from name to ids, give a column each.
        target: ids of the neurons that are looked at, likewise. With a source as well, each source neuron's influence
            on the target; and with groups of both, a table of source groups by target groups.
        scale: the largest real part of an eigenvalue of αW, 0 < scale < 1. The nearer to 1, the more the network's
            slowest mode decides. Several give a sweep: a column for each, and ``best`` and ``worst``, the neuron's
            ranks among all. With another `f` it may exceed 1. None takes W as it is, in a network without cycles, say.
        silence: neurons whose outgoing connections are cut, by id; sources are exempt, if they are one group. α stays
            what it is for the whole network, so that what changes is the silencing alone.
        preset: "cic-2026", "banc-paper" or "influencer-R" computes α as these tools do: anew after silencing, and the
            latter two only where the largest eigenvalue exceeds the scale; of a network without cycles, α = 1. Their
            numbers come out where the connectome was read as they read it: with ``weights="count"`` and
            ``threshold=5``; "norm", 5 and no signs; or "norm", 3 and no signs. A note tells where it was not.
        by: a column of the neurons, such as "cell_type", whose groups `source` and `target` then name, in the place of
            ids; neither gives all groups by all groups.
        f: the nonlinearity. With any but "identity", influence is that of a small input, to first order, around the
            steady state x = f(αWx + b).
        drive: b of that state: ids, b = 1 there, or a mapping from id to b; None is rest.

    Returns:
        A row for each neuron, the largest influence first: ``id``, ``influence``, ``adjusted`` (sign times
        ln max(|influence|, e⁻²⁴) + 24), ``is_source`` or ``is_target``, and what the neuron table says. With
        ``preset="cic-2026"`` and sources there are its other two scores, ``adjusted_norm_by_targets`` and
        ``adjusted_norm_by_sources_and_targets``: those of the influence divided by the number of neurons in the
        table, and by that of the sources as well. ``.attrs`` holds ``eigenvalue``, that of W with the largest real
        part, ``alpha``, of the solve ``residual``, ``steps`` and ``solver``, and where `f` is not the identity of the
        state ``state_residual``, ``state_steps``, ``state_solver``, and ``margin``, 1 - the largest real part of an
        eigenvalue of DW (of a sweep, ``alpha`` at its largest scale, and the worst of the others); and ``note``, where
        no path leads to any other neuron or none to the target: these influences are exactly 0; or where the preset's
        tool reads, or scales, otherwise than was to be expected.

    Raises:
        ValueError: neither source nor target, ids or groups that are not there, a scale out of range, a network without
            feedback scaled up, one that is unstable as it is or without the silenced neurons, or an unstable steady
            state.
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
    nonlinearity = as_nonlinearity(f)
    scales = _scales(scale, nonlinearity)
    how = _preset(preset, nonlinearity)
    if drive is not None and isinstance(nonlinearity, Identity):
        raise ValueError("drive: expected None, for influence in a linear network depends on no state; or another f")
    ends = ends_of(c, source, target, by)
    if len(scales) > 1 and len(ends.looked_at) > 1:
        raise ValueError("scale: expected one, where there are several groups")
    check_groups(ends.what, len(ends.looked_at), len(c))
    silenced = silenced_of(c, silence, ends)
    b = None if drive is None else at(c, drive, "drive")

    numbers = [each for each in scales if each is not None]  # of a sweep, all
    largest = max(numbers, default=None)
    net, eigenvalue, alpha = scaled(c, largest, silenced, how, nonlinearity)
    driven = indicators(c, ends.looked_at)
    answers: list[np.ndarray] = []
    receipts: list[dict[str, Any]] = []
    for each in scales:
        here = alpha if each is None or each == largest else rescaled(eigenvalue, each, how)
        with advising(nonlinearity, *([] if isinstance(nonlinearity, Identity) else ["another drive"])):
            found, told = _answered(_times(here / alpha, net), driven, ends.backwards, b)
        answers.append(found)
        receipts.append(told)

    if len(scales) > 1:
        table = swept(c, answers, numbers, ends)
    else:
        table = ranked(c, answers[0], ends)
        if preset == "cic-2026" and not ends.backwards and "adjusted" in table:
            normalise(table)
    attrs = {"eigenvalue": eigenvalue, "alpha": alpha, "scale": largest, **_worst(receipts)}
    table.attrs = {name: value for name, value in attrs.items() if value is not None}
    # What is asked of: the sources, where there are targets too; else all but those that are looked at.
    others = ends.from_places if ends.backwards and ends.sources else ~(driven != 0).any(0).numpy()
    notes = [] if answers[0][:, others].any() else ["no path leads there: every influence is exactly 0"]
    if preset is not None:
        notes += differences(preset, c.reading.weights, c.reading.threshold, bool((c.edges["weight"] < 0).any()))
        if how.only_if_positive and eigenvalue <= 0:
            notes.append(f"no eigenvalue of W has a positive real part, and the preset {preset} takes W as it is then")
    if notes:
        table.attrs["note"] = "; ".join(notes)
    return table


def _preset(name: str | None, f: Nonlinearity) -> Preset:
    if name is None:
        return Preset()
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    if not isinstance(f, Identity):
        raise ValueError("preset: expected None, for these tools' networks are linear; or f='identity'")
    return PRESETS[name]


def _times(factor: float, net: Recurrence) -> Recurrence:
    """The network with all weights times the factor."""
    W = net.W.bind()
    return net if factor == 1 else Recurrence(W.bind(*(factor * weight for weight in W.weights)), net.f)


def _worst(receipts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a sweep, the worst of each: the least margin, the most steps, the largest residual; and all solvers."""
    worst: dict[str, Any] = {}
    for name in receipts[0]:
        values = [told[name] for told in receipts]
        if name.endswith("solver"):
            worst[name] = "; ".join(dict.fromkeys(values))
        else:
            worst[name] = min(values) if name == "margin" else max(values)
    return worst


def _answered(
    net: Recurrence, driven: Tensor, backwards: bool, drive: Tensor | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Influences (groups, n) of the groups, or on them; and what the solves say."""
    attrs: dict[str, Any] = {}
    D = None
    if not isinstance(net.f, Identity):
        b = torch.zeros_like(driven[0]) if drive is None else drive
        state = steady_state(net.W, b, net.f, solver=solvers_for(net)[0])
        D, net = linearised(net, state.x.detach(), b)
        attrs = {"margin": stable_margin(net, "drive", "drive"), **how_found(state, "state_")}
        driven = driven if backwards else D * driven
    found, told = adjoints(net, driven) if backwards else states(net, driven)
    found = found + 0.0  # no -0
    if is_factored(net):  # what no path leads to is 0, whatever rounding left there; products leave exact zeros
        found = np.where(reached(net.W.bind(), driven, backwards=backwards), found, 0.0)
    if not any(bool((part < 0).any()) for part in (*net.W.bind().weights, driven)):
        found = np.abs(found)  # rounding leaves nothing below 0
    if D is not None and backwards:
        found = found * D.double().numpy()
    return found, {**attrs, **told}


def _scales(given: float | Sequence[float] | None, f: Nonlinearity) -> list[float | None]:
    scales: list[float | None] = []
    scales += [given] if given is None or isinstance(given, int | float | np.number | str) else list(given)
    if not scales:
        raise ValueError("scale: expected at least one, got none")
    for each in scales:
        check_scale(each, f)
        if each is None and len(scales) > 1:
            raise ValueError("scale: expected numbers in a sweep, got None")
        if scales.count(each) > 1:
            raise ValueError(f"scale: expected different ones in a sweep, got {each} twice")
    return scales
