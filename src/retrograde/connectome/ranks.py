"""Influences as tables, the largest first, and the scores that are told of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from retrograde.connectome.ends import Ends, places_of, unnamed
from retrograde.connectome.wiring import Connectome

_SHIFT = 24  # of the adjusted scores: ln of what counts as nothing, with its sign turned


def name_of(scale: float) -> str:
    """The column of a scale in a sweep: as short as tells it from all others."""
    short = f"{scale:g}"
    return short if float(short) == scale else repr(float(scale))


def swept(c: Connectome, answers: list[np.ndarray], scales: Sequence[float], ends: Ends) -> pd.DataFrame:
    """A column for each scale, and the ranks between which each neuron moves."""
    table = pd.DataFrame({"id": c.ids})
    for each, found in zip(scales, answers, strict=True):
        table[name_of(each)] = found[0]
    ranks = pd.DataFrame(np.abs([found[0] for found in answers]).T).rank(ascending=False, method="min")
    table["best"], table["worst"] = ranks.min(axis=1).astype(int), ranks.max(axis=1).astype(int)
    table = _of_whom(c, table, ends).sort_values(["best", "worst"], kind="stable", ignore_index=True)
    return _sources_alone(c, table, ends)


def ranked(c: Connectome, found: np.ndarray, ends: Ends) -> pd.DataFrame:
    """A column for each group that is looked at, or one with its score; or groups on groups."""
    looked_at = ends.looked_at
    if ends.of_groups and ends.sources is not None:
        # dR/db summed over a source group is the influence of driving all of it.
        rows = [[float(each[places].sum()) for each in found] for places in ends.sources.values()]
        names = ["influence"] if unnamed(looked_at) else list(looked_at)
        return pd.DataFrame(rows, index=pd.Index(list(ends.sources), name="source"), columns=names)
    told = {"id": c.ids, **dict(zip(looked_at, found, strict=True))}
    if unnamed(looked_at):
        told = {"id": c.ids, "influence": found[0], "adjusted": adjusted(found[0])}
    order = np.argsort(-np.abs(found).max(0), kind="stable")
    table = _of_whom(c, pd.DataFrame(told), ends).iloc[order].reset_index(drop=True)
    return _sources_alone(c, table, ends)


def _of_whom(c: Connectome, table: pd.DataFrame, ends: Ends) -> pd.DataFrame:
    """With what is told of each neuron, and whether it is one that is looked at; in the order of the ids."""
    table[f"is_{ends.what}"] = np.isin(np.arange(len(c)), places_of(ends.looked_at))
    return pd.concat([table, c.neurons[[name for name in c.neurons if name not in table]]], axis=1)


def _sources_alone(c: Connectome, table: pd.DataFrame, ends: Ends) -> pd.DataFrame:
    """Of sources on targets, a row for each source."""
    if not ends.backwards or ends.sources is None:
        return table
    return table[table["id"].isin(c.ids[ends.from_places])].reset_index(drop=True)


def normalise(table: pd.DataFrame) -> None:
    """ConnectomeInfluenceCalculator's scores per target, and per source and target; each neuron is a target there."""
    x, sources = table["influence"].to_numpy(), int(table["is_source"].sum())
    after = int(table.columns.get_indexer(["adjusted"])[0]) + 1
    table.insert(after, "adjusted_norm_by_targets", adjusted(x / len(x)))
    table.insert(after + 1, "adjusted_norm_by_sources_and_targets", adjusted(x / (sources * len(x))))


def adjusted(x: np.ndarray) -> np.ndarray:
    """sign(x) (ln max(|x|, e⁻²⁴) + 24): 0 for what counts as nothing."""
    return np.sign(x) * (np.log(np.maximum(np.abs(x), np.exp(-_SHIFT))) + _SHIFT)
