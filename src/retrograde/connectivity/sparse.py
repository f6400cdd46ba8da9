"""W with few entries: a list of connections."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import scipy.sparse
import torch
from torch import Tensor, nn

from retrograde.checks import check_finite, check_floating
from retrograde.connectivity.base import Connectivity
from retrograde.connectivity.pattern import Pattern, multipliable, multiplied, sampled


class Sparse(Connectivity):
    """Compressed rows (CSR). The gradient lives on the connections alone, and nothing n x n is ever allocated.

    Connections of weight zero are kept: they are trained like the others. The weights are copied, a Parameter's too, as
    they are sorted by post, then pre, and duplicates are summed: what is trained is ``weight``.

    Args:
        matrix: a torch sparse tensor or a SciPy sparse matrix, W[i, j] from j to i.

    Raises:
        TypeError: not a sparse matrix of floating-point numbers.
        ValueError: not two-dimensional, or NaN or infinity in it.

    >>> W = Sparse.from_edges(pre=[0, 1, 1], post=[1, 2, 2], weight=torch.tensor([1.0, 2.0, 3.0]), n=3)
    >>> W.dense().detach()
    tensor([[0., 0., 0.],
            [1., 0., 0.],
            [0., 5., 0.]])
    """

    row_starts: Tensor
    columns: Tensor
    column_starts: Tensor
    rows_by_column: Tensor
    order: Tensor

    def __init__(self, matrix: Any):
        post, pre, weight, shape = _entries(matrix)
        self._build(post, pre, weight, shape)

    @classmethod
    def from_edges(cls, pre: Any, post: Any, weight: Tensor, n: int | tuple[int, int]) -> Sparse:
        """Connections from neurons `pre` to neurons `post`, given by their indices.

        Args:
            pre: (edges,) integers, tensor, array or list.
            post: likewise.
            weight: (edges,) floating-point tensor.
            n: how many neurons there are, or (n_out, n_in).

        Raises:
            TypeError: indices that are not integers, weights that are not floating-point.
            ValueError: lengths that differ, or an index out of range.
        """
        shape = n if isinstance(n, tuple) else (n, n)
        if len(shape) != 2 or any(isinstance(size, bool) or not isinstance(size, Integral) for size in shape):
            raise TypeError(f"n: expected an integer, or two as (n_out, n_in), got {n!r}")
        if min(shape) < 1:
            raise ValueError(f"n: expected at least one neuron, got {n}")
        shape = (int(shape[0]), int(shape[1]))
        check_floating("weight", weight)
        ends: list[Tensor] = []
        for name, index, size in (("post", post, shape[0]), ("pre", pre, shape[1])):
            try:
                index = torch.as_tensor(index, device=weight.device)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"{name}: expected integer indices, got {type(index).__name__}: {error}") from None
            if index.numel() and (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool):
                raise TypeError(f"{name}: expected integer indices, got {index.dtype}")
            if index.shape != weight.shape or index.ndim != 1:
                raise ValueError(
                    f"{name}: expected one axis, with an index for each weight, {tuple(weight.shape)}, "
                    f"got {tuple(index.shape)}"
                )
            index = index.long()
            if index.numel() and (int(index.min()) < 0 or int(index.max()) >= size):
                raise ValueError(
                    f"{name}: expected indices from 0 to {size - 1}, got {int(index.min())} to {int(index.max())}"
                )
            ends.append(index)
        W = cls.__new__(cls)
        W._build(ends[0], ends[1], weight, shape)
        return W

    def _build(self, post: Tensor, pre: Tensor, weight: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        check_finite("W", weight)
        # Sorted by row, then column; where there are duplicates their weights are summed.
        keys, place = torch.unique(post * shape[1] + pre, return_inverse=True)
        self.weight = nn.Parameter(weight.detach().new_zeros(len(keys)).index_add_(0, place, weight.detach()))
        rows, columns = keys // max(shape[1], 1), keys % max(shape[1], 1)
        self._lay_out(rows, columns, torch.argsort(columns, stable=True), shape)

    def _lay_out(self, rows: Tensor, columns: Tensor, order: Tensor, shape: tuple[int, int]) -> None:
        # `order` sorts the same connections by column, then row: the rows of Wᵀ.
        index = torch.int32 if max(len(rows), *shape) < 2**31 else torch.int64
        self._shape = shape
        self.register_buffer("row_starts", _starts(rows, shape[0]).to(index), persistent=False)
        self.register_buffer("columns", columns.to(index), persistent=False)
        self.register_buffer("column_starts", _starts(columns[order], shape[1]).to(index), persistent=False)
        self.register_buffer("rows_by_column", rows[order].to(index), persistent=False)
        self.register_buffer("order", order, persistent=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self._shape

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """One weight a connection, in the order of `edges`."""
        return (self.weight,)

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """(post, pre): the two ends of each connection, sorted by post, then pre."""
        return torch.repeat_interleave(self.row_starts.diff().long()), self.columns.long()

    @staticmethod
    def of_sorted(post: Tensor, pre: Tensor, order: Tensor, weight: Tensor, n: int) -> Sparse:
        """Connections of n neurons sorted by post, then pre, none there twice; `order` sorts them by pre, then post."""
        W = Sparse.__new__(Sparse)
        nn.Module.__init__(W)
        W.weight = nn.Parameter(weight, requires_grad=False)
        W._lay_out(post, pre, order, (n, n))
        return W

    def part(self, inside: Tensor) -> tuple[Sparse, Tensor]:
        """The connections among the neurons that `inside`, (n,) bool, marks, numbered anew; and which they are."""
        post, pre = self.edges
        kept = inside[post] & inside[pre]
        which, place, number = kept.nonzero()[:, 0], kept.cumsum(0) - 1, inside.cumsum(0) - 1
        order = place[self.order[kept[self.order]]]
        n = int(inside.sum())
        return Sparse.of_sorted(number[post[which]], number[pre[which]], order, self.weight.detach()[which], n), which

    def product(self, x: Tensor, *weights: Tensor) -> Tensor:
        """W x, a product by rows."""
        (weight,) = weights
        return multiplied(weight, x, self._pattern, False)

    def transposed_product(self, s: Tensor, *weights: Tensor) -> Tensor:
        """Wᵀ s, a product by columns."""
        (weight,) = weights
        return multiplied(weight, s, self._pattern, True)

    def transposed_products(self, *weights: Tensor) -> Callable[[Tensor], Tensor]:
        """The same for many s: the weights are put in the order of columns once."""
        (weight,) = weights
        matrix = self._pattern.matrix(weight, True)
        return lambda s: (matrix @ multipliable(s).T).T.to(s.dtype)

    def outer_product(self, s: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """s_i x_j summed over samples, where W has a connection and nowhere else."""
        return (sampled(s, x, self._pattern),)

    def entries(self, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(post, pre, weight) of each connection."""
        (weight,) = weights or self.weights
        return *self.edges, weight

    def extra_repr(self) -> str:
        """The shape and the number of connections, where a module prints."""
        return f"shape={self.shape}, connections={len(self.columns)}"

    @property
    def _pattern(self) -> Pattern:
        return Pattern(self.shape, self.row_starts, self.columns, self.column_starts, self.rows_by_column, self.order)


def _starts(sorted_rows: Tensor, n: int) -> Tensor:
    """Where each row begins."""
    counts = torch.bincount(sorted_rows, minlength=n)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _entries(matrix: Any) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """(post, pre, weight, shape) of a torch or SciPy sparse matrix."""
    if scipy.sparse.issparse(matrix):
        coo = matrix.tocoo()
        if coo.ndim != 2:
            raise ValueError(f"matrix: expected two axes, got shape {coo.shape}")
        if coo.dtype not in ("float16", "float32", "float64"):
            raise TypeError(f"matrix: expected floating-point numbers that torch has, got {coo.dtype}")
        weight = torch.from_numpy(coo.data.copy())
        return torch.from_numpy(coo.row.astype("int64")), torch.from_numpy(coo.col.astype("int64")), weight, coo.shape
    if isinstance(matrix, Tensor) and matrix.layout != torch.strided:
        check_floating("matrix", matrix)
        if matrix.ndim != 2:
            raise ValueError(f"matrix: expected two axes, got shape {tuple(matrix.shape)}")
        if matrix.dense_dim():
            raise ValueError(f"matrix: expected two sparse axes, got {matrix.dense_dim()} dense ones")
        coo = matrix.detach().to_sparse_coo()
        post, pre = coo._indices()
        return post, pre, coo._values(), (matrix.shape[0], matrix.shape[1])
    raise TypeError(
        f"matrix: expected a torch or SciPy sparse matrix, got {type(matrix).__name__}; wrap a full one as Dense"
    )
