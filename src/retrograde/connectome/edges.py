"""The connections of an edge list or of a matrix, and rows of one pair made one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch

from retrograde.connectome.columns import EDGES, recognise
from retrograde.connectome.tables import Source, identities, numbers


def connections(
    edges: Any, given: Mapping[str, str], orientation: str | None, ids: Any, weights: str, signs: Any
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], np.ndarray | None]:
    """pre and post (ids), the columns of numbers by role, and the transmitter that an edge list may tell."""
    matrix = _matrix(edges)
    if matrix is not None:
        if orientation not in ("post_pre", "pre_post"):
            raise ValueError(
                f"orientation: expected 'post_pre' (rows receive) or 'pre_post' (rows send) for a matrix, "
                f"got {orientation!r}"
            )
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"edges: expected a square matrix, got shape {matrix.shape}")
        rows, others = matrix.row.astype(np.int64), matrix.col.astype(np.int64)
        post, pre = (rows, others) if orientation == "post_pre" else (others, rows)
        names = np.arange(matrix.shape[0]) if ids is None else np.asarray(ids)
        if len(names) != matrix.shape[0]:
            raise ValueError(f"ids: expected {matrix.shape[0]}, one for each row, got {len(names)}")
        return names[pre], names[post], {"count": matrix.data.astype(np.float64)}, None
    if orientation is not None:
        raise ValueError("orientation: expected None for an edge list, whose columns say which neuron sends")
    source = Source(edges, "edges", ("edgelist_simple", "edgelist", "edges"))
    roles = recognise(source.names, EDGES, given, source.what)
    for role in ("pre", "post"):
        if role not in roles:
            raise ValueError(
                f"{source.what}: no column of {role}synaptic ids found among {', '.join(source.names)}; "
                f"name it by columns={{'{role}': ...}}"
            )
    needed = {"count", "norm", "weight", "sign"} & roles.keys()
    if not needed & {"count", "norm", "weight"}:
        raise ValueError(f"{source.what}: no column of counts or weights found among {', '.join(source.names)}")
    if weights not in ("fraction", "norm") and weights not in needed:
        raise ValueError(
            f"weights: {source.what} has no column that is a {weights!r}; it has {', '.join(source.names)}"
        )
    if weights == "fraction" and "count" not in needed:
        raise ValueError(f"weights: expected a column of counts in {source.what} for 'fraction', found none")
    if signs != "column":
        needed -= {"sign"}
    elif "sign" not in needed:
        raise ValueError(f"signs: expected a column of signs in {source.what}, found none")
    if weights != "weight" and roles.get("weight") == roles.get("count"):
        needed -= {"weight"}
    told = needed | ({"transmitter"} & roles.keys())
    table = source.read([roles[role] for role in ("pre", "post", *sorted(told))])
    pre, post = (identities(table[roles[role]], f"{source.what}, {roles[role]}") for role in ("pre", "post"))
    if pre.dtype.kind != post.dtype.kind:
        pre, post = pre.astype(str), post.astype(str)
    values = {role: numbers(table[roles[role]], f"{source.what}, {roles[role]}") for role in sorted(needed)}
    for role in {"count"} & values.keys():
        negative = int((values[role] < 0).sum())
        if negative and weights in ("count", "fraction", "norm"):
            raise ValueError(f"{source.what}: {negative} of {len(pre)} counts are negative; signs= gives signs")
    spoken = None
    if "transmitter" in told:
        spoken = table[roles["transmitter"]].to_pandas().fillna("").astype(str).to_numpy()
    return pre, post, values, spoken


def _matrix(edges: Any) -> scipy.sparse.coo_array | None:
    """The matrix that the edges are, if they are one."""
    if isinstance(edges, str | bytes) or hasattr(edges, "suffix"):
        if not str(edges).lower().endswith(".npz"):
            return None
        try:
            return scipy.sparse.load_npz(edges).tocoo()
        except (ValueError, KeyError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"edges {edges}: expected a sparse matrix as SciPy saves it: {error}") from None
    if scipy.sparse.issparse(edges):
        return edges.tocoo()
    if isinstance(edges, torch.Tensor):
        edges = edges.detach().to_dense().numpy()
    if isinstance(edges, np.ndarray):
        if edges.ndim != 2 or edges.dtype.kind not in "fiu":
            raise ValueError(f"edges: expected a matrix of numbers, got shape {edges.shape} {edges.dtype}")
        return scipy.sparse.coo_array(edges)
    return None


def numbered(pre: np.ndarray, post: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The ids that occur, sorted, and both ends by number."""
    known = np.union1d(pd.unique(pre), pd.unique(post))
    where = pd.Index(known)
    return known, (where.get_indexer(pre), where.get_indexer(post))


def merged(
    pre: np.ndarray, post: np.ndarray, values: dict[str, np.ndarray], n: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """One row for each pair, by post, then pre: counts and weights summed; of signs, which must agree, the first."""
    keys = post.astype(np.int64) * n + pre
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    one = {
        name: column[order][starts] if name == "sign" else np.add.reduceat(column[order], starts)
        for name, column in values.items()
    }
    if "sign" in values and (np.repeat(one["sign"], np.diff(starts, append=len(keys))) != values["sign"][order]).any():
        raise ValueError("signs: the rows of one connection have different signs")
    return keys[starts] % n, keys[starts] // n, one
