"""Where in the brain the synapses of a connection lie: tables of connections with a row for each pair and neuropil."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from retrograde.connectome.columns import EDGES, recognise
from retrograde.connectome.tables import Source, identities, numbers
from retrograde.connectome.wiring import Connectome


def by_connection(
    c: Connectome, edges: Any, columns: Mapping[str, str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each row whose connection is in the connectome: the place of the connection, the neuropil, the count, and
    what part that is of all the connection's synapses.

    Raises:
        ValueError: no column of neuropils, of counts or of ids.
    """
    source = Source(edges, "edges")
    roles = recognise(source.names, EDGES, columns, source.what)
    missing = [role for role in ("pre", "post", "count", "neuropil") if role not in roles]
    if missing:
        raise ValueError(
            f"{source.what}: expected the columns pre, post, count and neuropil; {', '.join(missing)} not found among "
            f"{', '.join(source.names)}"
        )
    needed = [roles[role] for role in ("pre", "post", "count", "neuropil")]
    rows = source.read(needed, ids=needed[:2])
    known = pd.Index(c.ids.astype(str))
    pre, post = (
        known.get_indexer(identities(rows[roles[role]], f"{source.what}, {role}").values.astype(str))
        for role in ("pre", "post")
    )
    count = numbers(rows[roles["count"]], f"{source.what}, count")
    neuropil = rows[roles["neuropil"]].to_pandas().astype(object).fillna("").astype(str).to_numpy()
    post_of, pre_of = (end.numpy() for end in c.W.edges)
    keys = pd.Index(post_of * len(c) + pre_of)
    row = np.where((pre >= 0) & (post >= 0), keys.get_indexer(post * len(c) + pre), -1)
    there = row >= 0
    row, neuropil, count = row[there], neuropil[there], count[there]
    total = np.bincount(row, count, minlength=len(keys))[row]
    return row, neuropil, count, np.divide(count, total, out=np.zeros_like(count), where=total > 0)
