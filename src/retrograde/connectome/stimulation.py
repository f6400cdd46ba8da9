"""The least input that brings some neurons to given activities, at a steady state or along a trajectory.

Where every neuron's activity is given, b = f⁻¹(x) - Wx is the one input there is. Where only those of some targets are,
there are many, and the least of them is looked for: the network is linearised, for which it takes one adjoint for each
target, and the convex problem that is left is solved to its optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from retrograde.connectome.advice import advising
from retrograde.connectome.amounts import per_neuron
from retrograde.connectome.driving import AlongTime, Steady
from retrograde.connectome.given import Targets, targets_of
from retrograde.connectome.interpreted import as_interpreted
from retrograde.connectome.layered import cell_options, layered
from retrograde.connectome.least import Box
from retrograde.connectome.linear import scaled
from retrograde.connectome.outcomes import met, of_search
from retrograde.connectome.presets import Preset
from retrograde.connectome.scales import check_scale
from retrograde.connectome.searching import Answer, bring, maximise, size_of
from retrograde.connectome.simulation import leak_of, network
from retrograde.connectome.wiring import Connectome
from retrograde.nonlinearity import Identity, Nonlinearity, ReLU, as_nonlinearity
from retrograde.recurrence import Recurrence

_ENTRIES = 5 * 10**7  # of the Jacobian of the targets
_ON = 0.1  # the first input to a network of ReLUs


def stimulate(
    c: Connectome,
    target: Any,
    *,
    allowed: Any = None,
    least: Literal["l1", "l2"] = "l1",
    lower: float = 0.0,
    upper: float = np.inf,
    steps: int | None = None,
    maximum: bool = False,
    budget: float = np.inf,
    f: str | Nonlinearity = "tanh",
    scale: float | None = 0.99,
    bias: Any = 0.0,
    tau: Any = None,
    silence: Iterable[Any] = (),
    turns: int = 200,
    preset: str | None = None,
    threshold: float | None = None,
    steepness: Any = None,
    seed: int = 0,
    told: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The least input b that brings the targets to given activities, where x = f(αWx + bias + b).

    With ``steps=T``, the least b(1), ..., b(T) that brings them there at given times along
    x(t) = (1 - a) x(t-1) + a f(αW x(t-1) + bias + b(t)), a = 1/τ, from x(0) = 0.

    Args:
        c: the connectome.
        target: what is wanted: a mapping from id to activity, or from (id, time) to activity; or a table, or a file of
            one, with the columns ``neuron`` and ``activity``, and ``time``, a whole step (else T). For a ``maximum``,
            ids, or their weights in place of the activities. Here and below there may be COLUMN:VALUE in the place of
            an id, all of a cell type, say: ``"cell_type:T4a"``.
        allowed: ids of the neurons that may have input; None for all.
        least: "l1", least Σ |b|, which few neurons bear; or "l2", least Σ b², which many do.
        lower, upper: lower <= b <= upper, for each neuron (and time). By default no input is negative.
        steps: T; None for the steady state.
        maximum: maximise the sum of the targets' activities instead, which takes an ``upper`` or a ``budget``.
        budget: for a maximum, Σ |b| at most.
        f: the nonlinearity; "identity" is the linear network, in which what is said of the answer is proved.
        scale: the largest real part of an eigenvalue of αW; None takes W as it is.
        bias: input that is always there: a number, a column of the neurons, or a mapping from ids.
        tau: likewise τ, in steps, at least 1; None is 1.
        silence: neurons whose outgoing connections are cut, by id.
        turns: how many linear problems are solved at most, or, with a preset, how many turns Adam takes.
        preset: "ci-2.9" or "ci-2.10": connectome_interpreter's network and its activation maximisation, from the same
            random input for the same ``seed``. Its layer 0 is time 1 here. ``upper``, ``f``, ``least`` and the like
            are its own then.
        threshold, steepness: of that network: below which drive a neuron is silent, by default 0.01; and by what its
            drive is multiplied, by default 5: a number, a column of the neurons, or a mapping from ids.
        told: called with the turns done and the turns in all.

    Returns:
        A row for each neuron (and time) with an input, or a target; for the steady state, for every neuron; the largest
        input first, or time by time: ``id``, ``input``, ``activity``, ``wanted`` (NaN where it is no target); and what
        the neuron table says. ``.attrs`` tells:

        - ``met``: whether every target is met to 1e-6; ``distance``: Σ |x - wanted| over the targets.
        - ``size``: Σ |b|, or Σ b² / 2. ``size_bound``: no input that meets the targets is less; and
          ``distance_bound``: none comes nearer than this, in terms of u = f⁻¹(x), or of x along a trajectory with a
          leak. Both follow from multipliers. They hold for certain where ``proved`` is true, as it is for f =
          identity; else for the network linearised at the answer. The one that says nothing, as the targets are met or
          are not, is NaN.
        - ``settled``: whether the search came to rest, and ``stopped``, why it ended; ``from_rest``: whether the
          network comes to this steady state by itself, by its leaky dynamics from x = 0; ``stable``: whether it would
          stay there; ``residual``, ``steps`` and ``solver``: how it was found, from the one before.
        - for a maximum, ``reward``, and ``gap``, by how much it may be surpassed: of the linearised network.

    Raises:
        ValueError: no target, ids that are not there, an activity outside the range of f, bounds the wrong way round,
            more targets than a Jacobian can be held of.
        ConvergenceError: a steady state did not converge.

    >>> import pandas as pd
    >>> from retrograde.connectome import read
    >>> c = read(pd.DataFrame({"pre": ["a", "b", "c"], "post": ["c", "c", "a"], "count": [2, 1, 1]}))
    >>> found = stimulate(c, {"c": 0.5}, allowed=["a", "b"], scale=0.5)
    >>> found[["id", "input", "activity", "wanted"]].round(3)
      id  input  activity  wanted
    0  a  0.716     0.713     NaN
    1  b  0.129     0.128     NaN
    2  c  0.000     0.500     0.5
    """
    _check_steps(steps, turns)
    targets = targets_of(c, target, steps)
    places = np.arange(len(c)) if allowed is None else np.unique(c.index(allowed, "allowed"))
    _check(places, lower, upper, least, maximum, budget)
    ticking = None if told is None else lambda turn: told(turn, turns)
    cut = c.index(silence, "silence")
    cell = cell_options(preset, threshold, steepness)
    if preset is not None:
        if steps is None:
            raise ValueError("steps: expected how many layers there are, for this preset")
        W = network(c, scale, cut, Identity()).W.bind()
        net = layered(c, preset, bias=bias, tau=tau, W=W, **cell)
        return as_interpreted(c, net, targets, places, steps, turns=turns, seed=seed, told=ticking)
    if tau is not None and steps is None:
        raise ValueError("tau: a steady state does not depend on it; give steps=T")
    nonlinearity = as_nonlinearity(f)
    interval = None if maximum else _interval(nonlinearity, targets.activity)
    driven = _driven(c, targets, places, steps, nonlinearity, scale, cut, bias, tau)
    search = _Search(
        targets, Box(*(np.full(driven.m, float(bound)) for bound in (lower, upper))), least, turns, ticking
    )
    with advising(nonlinearity, "another bias", "a smaller upper"):
        if interval is None:
            driven, b, attrs = _most(driven, search, float(budget))
        else:
            driven, b, attrs = _closed_form(driven, search, interval) or _least(driven, search, interval)
    return of_search(c, driven, b, places, targets, attrs, least, maximum)


class _Search(NamedTuple):
    """What is looked for, where, and for how long."""

    targets: Targets
    box: Box
    least: str
    turns: int
    told: Callable[[int], None] | None


_Net = Steady | AlongTime
_Found = tuple[_Net, np.ndarray, dict[str, Any]]  # the network at the input that was found, that input, what is told
_Interval = tuple[np.ndarray, np.ndarray]


def _driven(
    c: Connectome,
    targets: Targets,
    places: np.ndarray,
    steps: int | None,
    f: Nonlinearity,
    scale: float | None,
    cut: np.ndarray,
    bias: Any,
    tau: Any,
) -> _Net:
    """The network as a function of the input to these places."""
    net = _steady_network(c, scale, cut, f) if steps is None else network(c, scale, cut, f)
    like = net.W.bind().like
    b0 = torch.from_numpy(per_neuron(c, bias, "bias")).to(like)
    if steps is not None:
        return AlongTime(Recurrence(net.W, net.f, leak_of(c, tau, 1.0, like)), b0, places, targets, steps)
    return Steady(net, b0, places, targets)


def _most(driven: _Net, search: _Search, budget: float) -> _Found:
    """The input for which the targets' activity is largest."""
    driven = driven.by_activity()
    on = np.full(driven.m, _ON if np.isinf(budget) else min(_ON, budget / driven.m))
    start = on if driven.net.f.kinked else None
    most = maximise(driven, search.targets.activity, search.box, budget, search.turns, search.told, start)
    linear = isinstance(driven.net.f, Identity)
    return driven, most.b, {"reward": most.reward, "gap": most.gap, "proved": linear, "turns": most.turns}


def _least(driven: _Net, search: _Search, interval: _Interval) -> _Found:
    """The least input that brings the targets there, or as near as the search gets."""
    targets, box, least, turns, told = search
    f, linear = driven.net.f, isinstance(driven.net.f, Identity)
    if len(targets.place) * driven.m > _ENTRIES:
        raise ValueError(
            f"target: {len(targets.place):,} targets of {driven.m:,} inputs are more than a Jacobian can be held of; "
            "allow fewer neurons, or ask for fewer targets"
        )

    def searched(net: _Net, start: np.ndarray | None) -> Answer:
        low, high = interval if net.by_drive else (targets.activity, targets.activity)
        return bring(net, low, high, box, least, linear, turns, told, start)

    on = np.full(driven.m, _ON)
    # A ReLU that is off has no slope to tell the way: all are a little on, at first.
    found = searched(driven, on if f.kinked else None)
    if not (linear or f.kinked or met(driven, targets)):
        # Where rest is no stable state, nothing near it leads on.
        found = searched(driven, on)
    if driven.by_drive and not (linear or met(driven, targets)):
        # Out of reach: from here on it is x that has to come near, not u, which f may stretch without end.
        driven = driven.by_activity()
        found = searched(driven, found.b)
    attrs = {"settled": found.settled, "stopped": found.stopped, "proved": linear, "turns": found.turns}
    attrs |= {"size_bound": found.size_bound, "distance_bound": found.distance_bound}
    return driven, found.b, attrs


def _check_steps(steps: int | None, turns: int) -> None:
    for name, number in (("steps", steps), ("turns", turns)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1):
            raise ValueError(f"{name}: expected a whole number of at least 1, got {number!r}")


def _check(places: np.ndarray, lower: float, upper: float, least: str, maximum: bool, budget: float) -> None:
    if not len(places):
        raise ValueError("allowed: expected at least one id, got none")
    if least not in ("l1", "l2"):
        raise ValueError(f"least: expected l1 or l2, got {least!r}")
    if not lower <= upper or lower == np.inf or upper == -np.inf:
        raise ValueError(f"lower: expected lower <= upper, got {lower} and {upper}")
    if not maximum:
        return
    if not budget > 0:
        raise ValueError(f"budget: expected a budget above 0, got {budget}")
    if np.isinf(budget) and (np.isinf(upper) or np.isinf(lower)):
        raise ValueError("upper: expected finite bounds, or a budget, for a maximum: without them there is none")
    if np.isfinite(budget) and not lower <= 0 <= upper:
        raise ValueError(f"budget: expected lower <= 0 <= upper along with it, got {lower} and {upper}")


def _steady_network(c: Connectome, scale: float | None, cut: np.ndarray, f: Nonlinearity) -> Recurrence:
    """Of a linear network it is made sure that it is stable."""
    if isinstance(f, Identity):
        check_scale(scale, f)
        return scaled(c, scale, cut, Preset(), f)[0]
    return network(c, scale, cut, f)


def _interval(f: Nonlinearity, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between which u lies for x = f(u). A ReLU that is off has any u up to 0."""
    try:
        u = f.inverse(torch.from_numpy(x)).double().numpy()
    except ValueError as error:
        raise ValueError(f"target, {error}") from None
    return np.where(x == 0, -np.inf, u) if isinstance(f, ReLU) else u, u


def _closed_form(driven: _Net, search: _Search, interval: _Interval) -> _Found | None:
    """b = f⁻¹(x) - Wx - bias, where every neuron's x is given at a steady state; None where b may not be so."""
    if not isinstance(driven, Steady) or len(search.targets.place) != len(driven.bias):
        return None
    (low, high), box = interval, search.box
    x = driven.x_of_targets()
    with torch.no_grad():
        given = (driven.net.W @ x + driven.bias).double().numpy()
    order = np.argsort(driven.place.numpy())
    least, most = low[order] - given, high[order] - given
    allowed = driven.allowed.numpy()
    slack = 1e-12 * (1 + np.abs(most).max(initial=0.0))
    others = np.setdiff1d(np.arange(len(given)), allowed)
    b = np.clip(np.clip(0.0, box.lower, box.upper), least[allowed], most[allowed])
    inside = (b >= box.lower - slack) & (b <= box.upper + slack)
    if not inside.all() or (least[others] > slack).any() or (most[others] < -slack).any():
        return None
    b = box.clip(b)
    driven.x = x  # of several steady states that may be, this one
    driven.at(b)
    attrs = {"settled": True, "stopped": "it is the only one", "proved": True, "turns": 0}
    return driven, b, attrs | {"size_bound": size_of(b, search.least)}
