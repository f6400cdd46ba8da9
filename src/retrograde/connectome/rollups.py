"""Sums of what synapses carry, over the groups of those that send and receive, and over neuropils."""

from __future__ import annotations

import numpy as np
import pandas as pd

from retrograde.connectome.naming import column_of
from retrograde.connectome.neuropils import Neuropils
from retrograde.connectome.wiring import Connectome


def by_pair(c: Connectome, name: str, pre: np.ndarray, post: np.ndarray, importance: np.ndarray) -> pd.DataFrame:
    """A row for each pair of groups between which there are connections, of which the importance is given."""
    name = column_of(c.neurons, name, "column")
    code, names = _groups(c, name)
    told = (code[pre] >= 0) & (code[post] >= 0)
    pair, place = np.unique(code[pre[told]] * len(names) + code[post[told]], return_inverse=True)
    sender, receiver = np.divmod(pair, max(len(names), 1))
    ends = {f"pre_{name}": names[sender], f"post_{name}": names[receiver], "connections": np.bincount(place)}
    return _sorted(pd.DataFrame({**ends, **_sums(place, importance[told], len(pair))}))


def by_neuropil(c: Connectome, found: Neuropils, importance: np.ndarray, by: str | None) -> pd.DataFrame:
    """A row for each neuropil, or for each and group of neurons that send there."""
    part = found.part * importance[found.row]
    key, groups, synapses = found.neuropil.astype(np.int64), np.array([""]), found.synapses
    if by is not None:
        code, groups = _groups(c, by)
        _post, pre = (end.numpy() for end in c.W.edges)
        sender = code[pre[found.row]]
        told = sender >= 0
        key, part, synapses = key[told] * len(groups) + sender[told], part[told], synapses[told]
    pair, place = np.unique(key, return_inverse=True)
    neuropil, group = np.divmod(pair, max(len(groups), 1))
    table = {"neuropil": found.names[neuropil]} | ({} if by is None else {by: groups[group]})
    table |= {"count": np.bincount(place, synapses, len(pair)), **_sums(place, part, len(pair))}
    return _sorted(pd.DataFrame(table).sort_values("neuropil", kind="stable"))


def _groups(c: Connectome, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Each neuron's group, by its place among the names, -1 where there is none; and the names."""
    values = c.neurons[name]
    code, names = pd.factorize(values.where(values.astype(object).notna() & (values.astype(str) != "")), sort=True)
    return code.astype(np.int64), np.asarray(names)


def _sums(place: np.ndarray, importance: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Over what has each place."""
    return {
        "importance": np.bincount(place, importance, minlength=n),
        "magnitude": np.bincount(place, np.abs(importance), minlength=n),
    }


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("magnitude", ascending=False, kind="stable", ignore_index=True)
