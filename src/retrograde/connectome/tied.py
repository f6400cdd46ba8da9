"""Numbers that many neurons or synapses share: a gain of each cell type, a strength of each pair of types.

All but biases are positive and held by their logarithm θ, so that a fit changes no sign: W_ij exp(θ) has that of W_ij.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde.connectome.naming import column_of, labels
from retrograde.connectome.wiring import Connectome

KINDS = ("gain", "bias", "tau", "strength")
NEUTRAL = {"gain": 1.0, "bias": 0.0, "strength": 1.0}


@dataclass(frozen=True, eq=False)
class Kind:
    """The parameters of one kind.

    Attributes:
        kind: its name.
        names: of each parameter: the group of its neurons; of a strength, (pre, post).
        place: for each neuron, or each connection, the number of its parameter; -1 where it has none.
        start: (parameters,) where they start.
        rest: the value of what has no parameter.
    """

    kind: str
    names: list[Any]
    place: Tensor
    start: np.ndarray
    rest: float

    @property
    def logarithmic(self) -> bool:
        """Whether θ is the logarithm of the value."""
        return self.kind != "bias"

    def theta(self) -> np.ndarray:
        """θ at the start."""
        return np.log(self.start) if self.logarithmic else self.start

    def value(self, theta: Tensor) -> Tensor:
        """The value of each parameter."""
        return theta.exp() if self.logarithmic else theta

    def spread(self, theta: Tensor) -> Tensor:
        """The value at each neuron or connection."""
        value = torch.cat([self.value(theta), theta.new_tensor([self.rest])])
        return value[self.place]  # -1 is the last

    def labels(self) -> list[str]:
        """``gain[T4]``, ``strength[T4→T5]``, ..."""
        named = ["→".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in self.names]
        return [f"{self.kind}[{name}]" for name in named]


def kinds_of(
    c: Connectome, fitted: Sequence[str], tie: str, start: Mapping[str, Any], dt: float | None
) -> tuple[dict[str, Kind], list[str]]:
    """What is fitted, and what is held at its start: kind -> its parameters; and notes.

    Raises:
        ValueError: a kind that is not known, or a time constant at a steady state; no such column; starts that are no
            numbers, not positive where they have to be, or of no group.
    """
    if not fitted:
        raise ValueError(f"parameters: expected some of {', '.join(KINDS)}, got none")
    for what, kinds in (("parameters", fitted), ("start", start)):
        for strange in kinds:
            if strange not in KINDS:
                raise ValueError(f"{what}: expected some of {', '.join(KINDS)}, got {strange!r}")
        if dt is None and "tau" in kinds:
            raise ValueError(f"{what}: tau decides on no steady state; give dt, and activities over time")
    tie = column_of(c.neurons, tie, "tie")
    groups = labels(c.neurons, tie)
    typed = groups != ""
    names, place = np.unique(groups[typed].astype(str), return_inverse=True)
    of_neuron = np.full(len(c), -1)
    of_neuron[typed] = place
    post, pre = (end.numpy() for end in c.W.edges)
    known = (of_neuron[post] >= 0) & (of_neuron[pre] >= 0)
    pairs, number = np.unique(np.stack([of_neuron[pre], of_neuron[post]])[:, known], axis=1, return_inverse=True)
    of_edge = np.full(len(post), -1)
    of_edge[known] = number.reshape(-1)

    found = {}
    for kind in KINDS if dt is not None else KINDS[:2] + KINDS[3:]:
        pairwise = kind == "strength"
        members = [(names[i], names[j]) for i, j in pairs.T] if pairwise else names.tolist()
        at, rest = _start(kind, members, start.get(kind), dt)
        places = torch.from_numpy(of_edge if pairwise else of_neuron)
        if kind not in fitted and not isinstance(start.get(kind), Mapping):
            places = torch.full_like(places, -1)
        found[kind] = Kind(kind, members, places, at, rest)
    untyped = int((~typed).sum())
    notes = [f"{untyped} neurons have no {tie}, and are not fitted"] if untyped else []
    return found, notes


def _start(kind: str, labels: list[Any], given: Any, dt: float | None) -> tuple[np.ndarray, float]:
    rest = 10 * dt if kind == "tau" and dt is not None else NEUTRAL.get(kind, 1.0)
    try:
        if not isinstance(given, Mapping):
            rest = rest if given is None else float(given)
            at = np.full(len(labels), rest)
        else:
            unknown = [name for name in given if name not in labels]
            if unknown:
                raise ValueError(f"start, {kind}: there is no group {unknown[0]!r}")
            at = np.array([float(given.get(name, rest)) for name in labels])
    except TypeError:
        raise ValueError(f"start, {kind}: expected a number, or one for each group, got {given!r}") from None
    least = dt if kind == "tau" and dt is not None else 0.0
    good = np.isfinite(at) & (at > least if kind in ("gain", "strength") else at >= least if kind == "tau" else True)
    if not good.all():
        limit = {"tau": f"numbers of at least dt = {least:g}", "bias": "finite numbers"}.get(kind, "numbers > 0")
        raise ValueError(f"start, {kind}: expected {limit}, got {at[~good][0]:g}")
    return at, rest
