"""Where in the brain the synapses of a connection lie: tables of connections with a row for each pair and neuropil."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from retrograde.connectome.columns import EDGES, recognise
from retrograde.connectome.ids import Ids, identities, of_one_kind, texts
from retrograde.connectome.tables import Source, numbers
from retrograde.connectome.wiring import Connectome


class Neuropils(NamedTuple):
    """Of each row whose connection is in the connectome: the place of the connection, the neuropil, as its place among
    the `names`, how many synapses there are, and what part that is of all the connection's synapses."""

    names: np.ndarray
    row: np.ndarray
    neuropil: np.ndarray
    synapses: np.ndarray
    part: np.ndarray


def looked_at(edges: Any, columns: Mapping[str, str]) -> tuple[Source, dict[str, str]]:
    """The table, of which no row is read yet, and role -> column.

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
    return source, roles


def by_connection(c: Connectome, edges: Any, columns: Mapping[str, str]) -> Neuropils:
    """The rows of a table of connections, of which text is held once for all that say the same.

    Raises:
        ValueError: no column of neuropils, of counts or of ids; a table that memory would not hold.
    """
    source, roles = looked_at(edges, columns)
    needed = [roles[role] for role in ("pre", "post", "count", "neuropil")]
    rows = source.read(needed, many=True, ids=needed[:2])
    pre, post = (
        _places(c, identities(rows[roles[end]], f"{source.what}, {end}"), source.what) for end in ("pre", "post")
    )
    post_of, pre_of = (end.numpy() for end in c.W.edges)
    known = post_of * len(c) + pre_of  # sorted, as W has them
    wanted = post * len(c) + pre
    row = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    there = (pre >= 0) & (post >= 0) & (known[row] == wanted)
    count = numbers(rows[roles["count"]], f"{source.what}, count")[there]
    column = rows[roles["neuropil"]]
    names, code = texts(column if _is_text(column) else column.cast(pa.string()))
    row, code = row[there], code[there]
    total = np.bincount(row, count, minlength=len(known))[row]
    part = np.divide(count, total, out=np.zeros_like(count), where=total > 0)
    return Neuropils(names, row, code, count, part)


def _places(c: Connectome, ids: Ids, what: str) -> np.ndarray:
    known, ids = of_one_kind(Ids(c.ids), ids, what=what)
    return ids.among(known.labels)


def _is_text(column: pa.ChunkedArray) -> bool:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
