"""The connections of an edge list or of a matrix, and rows of one pair made one."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse
import torch

from retrograde.connectome.columns import EDGES, recognise, transmitter
from retrograde.connectome.ids import Ids, identities, of_one_kind, texts
from retrograde.connectome.naming import did_you_mean
from retrograde.connectome.tables import Source, numbers

WEIGHTS = ("count", "norm", "weight", "fraction", "rows")


def connections(
    edges: Any, given: Mapping[str, str], orientation: str | None, ids: Any, weights: str, signs: Any, ask: bool
) -> tuple[Ids, Ids, dict[str, np.ndarray], pd.Categorical | None, int]:
    """pre and post, the columns of numbers by role, the transmitters that an edge list may tell, if these are
    asked for, and how many rows of a matrix neither send nor receive. By "rows" the count of each row is 1."""
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
        names = np.arange(matrix.shape[0]) if ids is None else _of_rows(ids)
        if len(names) != matrix.shape[0]:
            raise ValueError(f"ids: expected {matrix.shape[0]}, one for each row, got {len(names)}")
        if matrix.dtype.kind not in "fiub":
            raise ValueError(f"edges: expected a matrix of real numbers, got {matrix.dtype}")
        counts = matrix.data.astype(np.float64)
        bad = int((~np.isfinite(counts)).sum())
        if bad:
            raise ValueError(f"edges: {bad} of {len(counts)} entries of the matrix are NaN or infinite")
        _check_weights(weights, {"count"}, "the matrix", ["count"])
        _check_counts(counts, weights, ("fraction", "norm"), "edges")
        alone = len(names) - len(np.union1d(pre, post))
        return Ids(names, pre), Ids(names, post), {"count": counts}, None, alone
    if orientation is not None:
        raise ValueError("orientation: expected None for an edge list, whose columns say which neuron sends")
    if ids is not None:
        raise ValueError("ids: expected None for an edge list, which has its own; they are those of a matrix's rows")
    source = Source(edges, "edges", ("edgelist_simple", "edgelist", "edges"))
    roles = recognise(source.names, EDGES, given, source.what)
    for role in ("pre", "post"):
        if role not in roles:
            raise ValueError(
                f"{source.what}: no column of {role}synaptic ids found among {', '.join(source.names)}; "
                f"name it by columns={{'{role}': ...}}"
            )
    needed = {"count", "norm", "weight", "sign"} & roles.keys()
    if weights == "rows":
        needed -= {"count", "norm", "weight"}
    elif not needed & {"count", "norm", "weight"}:
        raise ValueError(
            f"{source.what}: no column of counts or weights found among {', '.join(source.names)}; "
            "weights='rows' takes each row for one connection"
        )
    else:
        _check_weights(weights, needed - {"sign"}, source.what, source.names)
    if signs != "column":
        needed -= {"sign"}
    elif "sign" not in needed:
        raise ValueError(f"signs: expected a column of signs in {source.what}, found none")
    if weights != "weight" and roles.get("weight") == roles.get("count"):
        needed -= {"weight"}
    told = needed | ({"transmitter"} & roles.keys() if ask else set())
    ends = roles["pre"], roles["post"]
    table = source.read([*ends, *(roles[role] for role in sorted(told))], many=True, ids=ends)
    pre, post = (identities(table[roles[role]], f"{source.what}, {roles[role]}") for role in ("pre", "post"))
    pre, post = of_one_kind(pre, post, what=source.what)
    values = {role: numbers(table[roles[role]], f"{source.what}, {roles[role]}") for role in sorted(needed)}
    if weights == "rows":
        values["count"] = np.ones(len(pre))
    if "count" in values:
        _check_counts(values["count"], weights, ("count", "fraction", "norm"), source.what)
    odd = int((~np.isin(values["sign"], (1, -1))).sum()) if "sign" in values else 0
    if odd:
        raise ValueError(f"{source.what}, {roles['sign']}: {odd} of {len(pre)} signs are neither +1 nor -1")
    spoken = _transmitters(table[roles["transmitter"]]) if "transmitter" in told else None
    return pre, post, values, spoken, 0


def _check_weights(weights: str, there: set[str], what: str, names: list[str]) -> None:
    """ValueError unless the weights are a column that is there, or can be made from the counts."""
    if weights not in WEIGHTS:
        hint = did_you_mean(weights, WEIGHTS)
        raise ValueError(f"weights: expected one of {', '.join(WEIGHTS)}, got {weights!r}{hint}")
    if weights not in there and not (weights in ("fraction", "norm") and "count" in there):
        also = ", and no counts" if weights in ("fraction", "norm") else ""
        raise ValueError(f"weights: {what} has no column that is a {weights!r}{also}; it has {', '.join(names)}")


def _check_counts(counts: np.ndarray, weights: str, positive: tuple[str, ...], what: str) -> None:
    negative = int((counts < 0).sum())
    if negative and weights in positive:
        raise ValueError(f"{what}: {negative} of {len(counts)} counts are negative; signs= gives signs")


def _of_rows(ids: Any) -> np.ndarray:
    """The ids of a matrix's rows, looked at as those of a table are."""
    try:
        column = pa.chunked_array([pa.array(ids)])
    except pa.ArrowException as error:
        raise ValueError(f"ids: expected integers or text: {error}") from None
    names = of_one_kind(identities(column, "ids"), what="ids")[0].values
    repeated = len(names) - len(np.unique(names))
    if repeated:
        raise ValueError(f"ids: {repeated} of {len(names)} are there more than once")
    return names


def _transmitters(column: pa.ChunkedArray) -> pd.Categorical:
    """Each row's transmitter, in one spelling; blank where there is none."""
    labels, codes = texts(column.cast(pa.string()) if pa.types.is_null(column.type) else column)
    names = pd.Index([transmitter(str(name)) for name in labels], dtype="str")
    known = pd.Index(["", *names.unique().difference([""])])
    return pd.Categorical.from_codes(known.get_indexer(names)[codes], known)


def _matrix(edges: Any) -> scipy.sparse.coo_array | None:
    """The matrix that the edges are, if they are one."""
    if isinstance(edges, str | bytes) or hasattr(edges, "suffix"):
        if not str(edges).lower().endswith(".npz"):
            return None
        try:
            with open(edges, "rb") as file:
                return scipy.sparse.load_npz(file).tocoo()
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
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


def numbered(pre: Ids, post: Ids) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The ids that occur, sorted, and both ends by number."""
    known = np.union1d(pre.distinct, post.distinct)
    return known, (pre.among(known), post.among(known))


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
