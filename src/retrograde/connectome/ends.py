"""Whose influence is asked for, and on whom."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from retrograde.connectome.linear import groups
from retrograde.connectome.naming import column_of, labels, of_groups
from retrograde.connectome.wiring import Connectome

Groups = dict[str, np.ndarray]
"""Name -> places; one group without a name is called ""."""


class Ends(NamedTuple):
    """Sources, or targets, or both; None where it is every neuron."""

    sources: Groups | None
    targets: Groups | None

    @property
    def backwards(self) -> bool:
        """Whether it is an adjoint that answers."""
        return self.targets is not None

    @property
    def looked_at(self) -> Groups:
        """The groups that there is a solve for: the targets, where there are some."""
        return (self.sources or {}) if self.targets is None else self.targets

    @property
    def what(self) -> str:
        """What these are."""
        return "source" if self.targets is None else "target"

    @property
    def of_groups(self) -> bool:
        """Whether groups of sources have an influence on targets each."""
        return self.targets is not None and self.sources is not None and not unnamed(self.sources)

    @property
    def from_places(self) -> np.ndarray:
        """All sources."""
        return places_of(self.sources or {})


def unnamed(some: Groups) -> bool:
    """Whether this is one group without a name."""
    return list(some) == [""]


def places_of(some: Groups) -> np.ndarray:
    """All who are in a group, as often as they are."""
    return np.concatenate([np.empty(0, np.int64), *some.values()])


def ends_of(c: Connectome, source: Any, target: Any, by: str | None) -> Ends:
    """Looked up, by a column of the neurons if one is named.

    Raises:
        ValueError: neither, ids or groups that are not there, or a group that is called as a column of the answer is.
    """
    if by is not None:
        source, target = _by_column(c, by, source, target)
    if source is None and target is None:
        raise ValueError("source: expected the ids of some neurons here, or as target; got neither")
    ends = Ends(
        None if source is None else groups(c, source, "source"),
        None if target is None else groups(c, target, "target"),
    )
    taken = {"source"} if ends.of_groups else {"id", f"is_{ends.what}", *map(str, c.neurons)}
    for name in ends.looked_at:
        if name in taken:
            raise ValueError(f"{ends.what}: expected a group's name that no other column has, got {name!r}")
    return ends


def _by_column(c: Connectome, by: str, source: Any, target: Any) -> tuple[Any, Any]:
    """Name -> ids of the groups that are named, of both kinds if neither is."""
    by = column_of(c.neurons, by, "by")

    def named(given: Any, what: str) -> Any:
        if given is None:
            return None
        names = [given] if isinstance(given, str | int | np.integer) else list(given)
        places = of_groups(c.neurons, by, names, what)
        return {str(name): c.ids[each] for name, each in zip(names, places, strict=True)}

    if source is None and target is None:
        source = target = sorted(set(labels(c.neurons, by).tolist()) - {""})
    return named(source, "source"), named(target, "target")


def silenced_of(c: Connectome, silence: Iterable[Any], ends: Ends) -> np.ndarray:
    """The places of the silenced neurons, of which one group of sources is exempt."""
    silenced = c.index(silence, "silence")
    if len(ends.sources or ()) > 1 and np.isin(silenced, ends.from_places).any():
        raise ValueError("silence: expected none of the sources where these are several groups: ask for one at a time")
    return np.setdiff1d(silenced, ends.from_places)
