"""The connections of a matrix, which does not say by itself which way it goes, nor whose its rows are."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse
import torch

from retrograde.connectome.edges import Connections, check_counts, check_weights
from retrograde.connectome.ids import Ids, identities, of_one_kind
from retrograde.connectome.memory import available, check_room

_ENDS = {"pre", "post", "source", "target"}  # columns that a list of connections has, and no matrix


class Matrix(NamedTuple):
    """The entries, and the names that a table has for its rows; None where nothing names them."""

    entries: scipy.sparse.coo_array
    names: Any


def matrix_of(edges: Any, orientation: str | None) -> Matrix | None:
    """The matrix that the edges are, if they are one.

    A pandas table is one where an orientation is given and no column is called as those of a list of connections are,
    or where its rows are named as its columns are.

    Raises:
        ValueError: a file that holds none or is cut short, no orientation, what is not square or no numbers, so many
            connections that memory would not hold them.
    """
    names = None
    if isinstance(edges, str | Path) and str(edges).lower().endswith((".npz", ".npy")):
        found = _loaded(Path(edges))
    elif isinstance(edges, pd.DataFrame) and _is_square(edges, orientation):
        found, names = edges.to_numpy(), None if isinstance(edges.columns, pd.RangeIndex) else edges.columns
        if names is not None and not (isinstance(edges.index, pd.RangeIndex) or edges.index.equals(names)):
            raise ValueError("edges: expected a matrix whose rows are named as its columns are, in the same order")
    elif isinstance(edges, torch.Tensor):
        found = edges.detach().to_dense().numpy()
    elif isinstance(edges, np.ndarray) or scipy.sparse.issparse(edges):
        found = edges
    else:
        return None
    what = f"edges {edges}" if isinstance(edges, str | Path) else "edges"
    if found.ndim != 2:
        raise ValueError(f"{what}: expected a matrix of numbers, got shape {found.shape} {found.dtype}")
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{what}: expected a matrix of real numbers, got {found.dtype}")
    if orientation not in ("post_pre", "pre_post"):
        raise ValueError(
            f"orientation: expected 'post_pre' (rows receive) or 'pre_post' (rows send) for a matrix, "
            f"got {orientation!r}"
        )
    if found.shape[0] != found.shape[1]:
        raise ValueError(f"{what}: expected a square matrix, got shape {found.shape}")
    is_sparse = scipy.sparse.issparse(found)
    check_room(what, int(found.nnz if is_sparse else np.count_nonzero(found)), "connections")
    return Matrix(found.tocoo() if is_sparse else scipy.sparse.coo_array(found), names)


def of_matrix(matrix: Matrix, orientation: str, ids: Any, weights: str) -> Connections:
    """The entries that are not 0, each for a connection; `ids` has one for each row, or is None."""
    entries = matrix.entries
    rows, others = entries.row.astype(np.int64), entries.col.astype(np.int64)
    post, pre = (rows, others) if orientation == "post_pre" else (others, rows)
    ids = matrix.names if ids is None else ids
    names = np.arange(entries.shape[0]) if ids is None else _of_rows(ids)
    if len(names) != entries.shape[0]:
        raise ValueError(f"ids: expected {entries.shape[0]}, one for each row, got {len(names)}")
    counts = entries.data.astype(np.float64)
    bad = int((~np.isfinite(counts)).sum())
    if bad:
        raise ValueError(f"edges: {bad} of {len(counts)} entries of the matrix are NaN or infinite")
    check_weights(weights, {"count"}, "the matrix", ["count"])
    check_counts(counts, weights, ("fraction", "norm"), "edges")
    alone = len(names) - len(np.union1d(pre, post))
    return Connections(Ids(names, pre), Ids(names, post), {"count": counts}, None, alone)


def _is_square(table: pd.DataFrame, orientation: str | None) -> bool:
    names = {str(name).lower() for name in table.columns}
    if names & _ENDS or any(name.startswith(("pre", "post")) and "id" in name for name in names):
        return False
    named = len(table) > 0 and not isinstance(table.columns, pd.RangeIndex) and table.index.equals(table.columns)
    return orientation is not None or named


def _loaded(path: Path) -> Any:
    """A matrix as SciPy saves a sparse one, or as NumPy saves a full one: by itself, or alone in an archive."""
    said = f"edges {path}: expected a sparse matrix as SciPy saves it, or one full one as NumPy does"
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r")
        with open(path, "rb") as file:
            with zipfile.ZipFile(file) as archive:
                size = sum(each.file_size for each in archive.infolist())
            if size > available():
                raise MemoryError(f"it takes {size / 1e9:.2g} GB of memory; {available() / 1e9:.2g} GB are free")
            arrays = np.load(file)
            if "format" in arrays.files:
                file.seek(0)
                return scipy.sparse.load_npz(file)
            if len(arrays.files) != 1:
                raise ValueError(f"it holds {', '.join(arrays.files) or 'nothing'}")
            return arrays[arrays.files[0]]
    except (ValueError, KeyError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{said}: {error}") from None


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
