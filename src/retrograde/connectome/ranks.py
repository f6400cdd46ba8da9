"""Influences as tables, the largest first, and the scores that are told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from retrograde.connectome.wiring import Connectome

_SHIFT = 24  # of the adjusted scores: ln of what counts as nothing, with its sign turned


def name_of(scale: float) -> str:
    """The column of a scale in a sweep: as short as tells it from all others."""
    short = f"{scale:g}"
    return short if float(short) == scale else repr(float(scale))


def swept(
    c: Connectome,
    answers: list[np.ndarray],
    scales: Sequence[float],
    sources: dict[str, np.ndarray] | None,
    targets: dict[str, np.ndarray] | None,
) -> pd.DataFrame:
    """A column for each scale, and the ranks between which each neuron moves."""
    table = pd.DataFrame({"id": c.ids})
    for each, found in zip(scales, answers, strict=True):
        table[name_of(each)] = found[0]
    ranks = pd.DataFrame(np.abs([found[0] for found in answers]).T).rank(ascending=False, method="min")
    table["best"], table["worst"] = ranks.min(axis=1).astype(int), ranks.max(axis=1).astype(int)
    what, looked_at = _looked_at(sources, targets)
    table[what] = np.isin(np.arange(len(c)), np.concatenate(list(looked_at.values())))
    table = pd.concat([table, c.neurons[[name for name in c.neurons if name not in table]]], axis=1)
    if sources is not None and targets is not None:
        table = table.iloc[np.sort(np.concatenate(list(sources.values())))]
    return table.sort_values(["best", "worst"], kind="stable", ignore_index=True)


def _looked_at(
    sources: dict[str, np.ndarray] | None, targets: dict[str, np.ndarray] | None
) -> tuple[str, dict[str, np.ndarray]]:
    """The column that marks them, and the targets, or the sources where there are no targets."""
    return ("is_target", targets) if targets is not None else ("is_source", sources or {})


def ranked(
    c: Connectome,
    found: np.ndarray,
    sources: dict[str, np.ndarray] | None,
    targets: dict[str, np.ndarray] | None,
    source: Any,
    target: Any,
) -> pd.DataFrame:
    """The answer as a table."""
    if sources is not None and targets is not None and isinstance(source, Mapping):
        # dR/db summed over a source group is the influence of driving all of it.
        rows = [[float(each[places].sum()) for each in found] for places in sources.values()]
        names = list(targets) if isinstance(target, Mapping) else ["influence"]
        return pd.DataFrame(rows, index=pd.Index(list(sources), name="source"), columns=names)
    what, looked_at = _looked_at(sources, targets)
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
    return table.iloc[order].reset_index(drop=True)


def normalise(table: pd.DataFrame) -> None:
    """ConnectomeInfluenceCalculator's scores per target, and per source and target; each neuron is a target there."""
    x, sources = table["influence"].to_numpy(), int(table["is_source"].sum())
    after = int(table.columns.get_indexer(["adjusted"])[0]) + 1
    table.insert(after, "adjusted_norm_by_targets", adjusted(x / len(x)))
    table.insert(after + 1, "adjusted_norm_by_sources_and_targets", adjusted(x / (sources * len(x))))


def adjusted(x: np.ndarray) -> np.ndarray:
    """sign(x) (ln max(|x|, e⁻²⁴) + 24): 0 for what counts as nothing."""
    return np.sign(x) * (np.log(np.maximum(np.abs(x), np.exp(-_SHIFT))) + _SHIFT)
