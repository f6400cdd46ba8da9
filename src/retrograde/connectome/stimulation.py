"""The least input that brings some neurons to given activities, at a steady state or along a trajectory.

Where every neuron's activity is given, b = f⁻¹(x) - Wx is the one input there is. Where only those of some targets are,
there are many, and the least of them is looked for: the network is linearised, for which it takes one adjoint for each
target, and the convex problem that is left is solved to its optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from retrograde.connectome.amounts import per_neuron
from retrograde.connectome.driving import AlongTime, Steady
from retrograde.connectome.given import Targets, targets_of
from retrograde.connectome.layered import activation_maximisation, layered
from retrograde.connectome.least import Box
from retrograde.connectome.linear import scaled
from retrograde.connectome.outcomes import ROUNDING, met, of_search, tabulated
from retrograde.connectome.presets import Preset
from retrograde.connectome.scales import check_scale
from retrograde.connectome.searching import bring, maximise, size_of
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
        - ``settled``: whether the search came to an end; ``from_rest``: whether the network comes to this steady state
          by itself, by its leaky dynamics from x = 0.
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
    wanted = None if maximum else targets.activity
    places = np.arange(len(c)) if allowed is None else np.unique(c.index(allowed, "allowed"))
    _check(places, lower, upper, least, maximum, budget)
    if preset is not None:
        return _by_preset(c, targets, places, steps, preset, bias, tau, scale, silence, turns, seed, told)
    nonlinearity = as_nonlinearity(f)
    low, high = _interval(nonlinearity, np.zeros(0) if wanted is None else wanted)
    cut = c.index(silence, "silence")
    net = _steady_network(c, scale, cut, nonlinearity) if steps is None else network(c, scale, cut, nonlinearity)
    like = net.W.bind().like
    b0 = torch.from_numpy(per_neuron(c, bias, "bias")).to(like)
    if steps is not None:
        net = Recurrence(net.W, net.f, leak_of(c, tau, 1.0, like))
    elif tau is not None:
        raise ValueError("tau: a steady state does not depend on it; give steps=T")
    m = len(places) * (steps or 1)
    box = Box(np.full(m, float(lower)), np.full(m, float(upper)))
    driven = Steady(net, b0, places, targets) if steps is None else AlongTime(net, b0, places, targets, steps)
    linear = isinstance(net.f, Identity)
    ticking = None if told is None else lambda turn: told(turn, turns)

    if maximum:
        start = np.full(m, _ON if np.isinf(budget) else min(_ON, budget / m)) if net.f.kinked else None
        most = maximise(driven, targets.activity, box, float(budget), turns, ticking, start)
        b, attrs = most.b, {"reward": most.reward, "gap": most.gap, "proved": linear, "turns": most.turns}
    else:
        if isinstance(driven, Steady) and len(targets.place) == len(c):
            whole = _closed_form(driven, box, low, high)
            if whole is not None:
                driven.x = driven.x_of_targets()  # of several steady states that may be, this one
                driven.at(whole)
                attrs = {"settled": True, "proved": True, "turns": 0, "size_bound": size_of(whole, least)}
                return of_search(c, driven, whole, places, targets, attrs, least, maximum)
        if len(targets.place) * m > _ENTRIES:
            raise ValueError(
                f"target: {len(targets.place):,} targets of {m:,} inputs are more than a Jacobian can be held of; "
                "allow fewer neurons, or ask for fewer targets"
            )
        if not driven.by_drive:
            low = high = targets.activity
        # A ReLU that is off has no slope to tell the way: all are a little on, at first.
        start = np.full(m, _ON) if net.f.kinked else None
        found = bring(driven, low, high, box, least, linear, turns, ticking, start)
        if not linear and start is None and not met(driven, targets):
            # Where rest is no stable state, nothing near it leads on.
            found = bring(driven, low, high, box, least, linear, turns, ticking, np.full(m, _ON))
        if not linear and driven.by_drive and not met(driven, targets):
            # Out of reach: from here on it is x that has to come near, not u, which f may stretch without end.
            driven.by_drive = False
            near = targets.activity
            found = bring(driven, near, near, box, least, linear, turns, ticking, start=found.b)
        b = found.b
        attrs = {"settled": found.settled, "proved": linear, "turns": found.turns}
        attrs |= {"size_bound": found.size_bound, "distance_bound": found.distance_bound}
    return of_search(c, driven, b, places, targets, attrs, least, maximum)


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


def _closed_form(net: Steady, box: Box, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """b = f⁻¹(x) - Wx - bias, where every neuron's x is given; None where b may not be so."""
    x = net.x_of_targets()
    with torch.no_grad():
        given = (net.net.W @ x + net.bias).double().numpy()
    order = np.argsort(net.place.numpy())
    least, most = low[order] - given, high[order] - given
    allowed = net.allowed.numpy()
    slack = 1e-12 * (1 + np.abs(most).max(initial=0.0))
    others = np.setdiff1d(np.arange(len(given)), allowed)
    b = np.clip(np.clip(0.0, box.lower, box.upper), least[allowed], most[allowed])
    inside = (b >= box.lower - slack) & (b <= box.upper + slack)
    if not inside.all() or (least[others] > slack).any() or (most[others] < -slack).any():
        return None
    return box.clip(b)


def _by_preset(
    c: Connectome,
    targets: Targets,
    places: np.ndarray,
    steps: int | None,
    preset: str,
    bias: Any,
    tau: Any,
    scale: float | None,
    silence: Iterable[Any],
    turns: int,
    seed: int,
    told: Callable[[int, int], None] | None,
) -> pd.DataFrame:
    """connectome_interpreter's own search."""
    if steps is None:
        raise ValueError("steps: expected how many layers there are, for this preset")
    W = network(c, scale, c.index(silence, "silence"), Identity()).W.bind()
    cell = layered(c, preset, bias=bias, tau=tau, W=W)
    some = tuple(torch.from_numpy(each) for each in (targets.time, targets.place, targets.activity))
    ticking = None if told is None else lambda turn: told(turn, turns)
    u, x, losses = activation_maximisation(
        cell,
        torch.from_numpy(places),
        (some[0], some[1], some[2].to(W.like)),
        steps,
        seed=seed,
        turns=turns,
        told=ticking,
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
