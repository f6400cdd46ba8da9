"""Factorisations kept from a forward solve to its adjoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from retrograde.solvers.aligned import fill, filled

_LARGEST = 8 * 2**30  # bytes

# Beyond so many neurons LAPACK's sums take another order where the threads share a matrix, as they do if it is the only
# one. (Of one that is larger still it is worth more that they do.)
_SHARED, _WELL_SHARED = 128, 512


class Factors:
    """The LU factors of A = I - J for those samples of a batch that need them; A⁻¹ r and A⁻ᵀ r from them.

    Samples are told by their numbers, `rows`; None stands for all of them.

    Args:
        like: what has their dtype and device.
        samples: how many; None for one of each row of `like`.
        n: the size of a matrix; None for that of a row.

    Raises:
        ValueError: the matrices held would take more than 8 GiB.
    """

    def __init__(self, like: Tensor, samples: int | None = None, n: int | None = None):
        self._dtype, self._device, self._n = factored_in(like.dtype), like.device, like.shape[-1] if n is None else n
        self._samples = len(like) if samples is None else samples
        self._filled = filled(self._n, like)

    # Most solves need no factors, and so no room for them.

    @cached_property
    def _place(self) -> Tensor:
        """Of each sample's factors among those held, or -1."""
        return torch.full((self._samples,), -1, device=self._device)

    @cached_property
    def _lu(self) -> Tensor:
        """Transposed: LAPACK's matrices lie in memory column after column."""
        return torch.empty(0, self._filled, self._filled, dtype=self._dtype, device=self._device)

    @cached_property
    def _pivots(self) -> Tensor:
        return torch.empty(0, self._filled, dtype=torch.int32, device=self._device)

    @property
    def _all(self) -> Tensor:
        return torch.arange(len(self._place), device=self._device)

    def admit(self, samples: int) -> Tensor:
        """So many samples more, and their numbers."""
        known = len(self._place)
        self._place = torch.cat([self._place, self._place.new_full((samples,), -1)])
        return torch.arange(known, known + samples, device=self._place.device)

    def put(self, rows: Tensor | None, matrices: Callable[[], Tensor]) -> None:
        """Factor the matrices, (len(rows), n, n), for these samples. Too many are refused before they are made."""
        rows = self._all if rows is None else rows
        self._make_room(rows[self.missing(rows)])
        place = self._place[rows]
        A = matrices().to(self._dtype)
        if self._filled > self._n:
            A = fill(fill(A, self._filled).mT, self._filled).mT
            A.diagonal(dim1=-2, dim2=-1)[:, self._n :] = 1
        shared = A.device.type == "cpu" and torch.get_num_threads() > 1 and _SHARED < self._filled <= _WELL_SHARED
        if len(A) == 1 and shared:
            A = A.expand(2, -1, -1)  # a thread to each, as in any other batch
        LU, pivots, _ = torch.linalg.lu_factor_ex(A)
        self._lu[place], self._pivots[place] = LU.mT[: len(rows)], pivots[: len(rows)]

    def missing(self, rows: Tensor | None) -> Tensor:
        """Which of these samples have no factors yet, as positions in `rows`; one for a sample that is there twice."""
        rows = self._all if rows is None else rows
        absent = (self._place[rows] < 0).nonzero()[:, 0]
        if not len(absent):
            return absent
        samples, which = rows[absent].unique(return_inverse=True)
        place = torch.arange(len(which), device=which.device)
        return absent[which.new_empty(len(samples)).scatter_reduce(0, which, place, "amin", include_self=False)]

    def solve(self, rows: Tensor | None, r: Tensor, transposed: bool = False) -> Tensor:
        """A⁻¹ r, or A⁻ᵀ r, for these samples; r (len(rows), n)."""
        place = self._place if rows is None else self._place[rows]
        right, LU = fill(r.to(self._dtype), self._filled), self._lu[place].mT
        found = torch.linalg.lu_solve(LU, self._pivots[place], right[:, :, None], adjoint=transposed)
        return found[:, : self._n, 0].to(r)

    def _make_room(self, rows: Tensor) -> None:
        held, n, _ = self._lu.shape
        all_of_them = held + len(rows)
        size = all_of_them * n * n * self._lu.element_size()
        if size > _LARGEST:
            raise ValueError(
                f"solver: {all_of_them} matrices of {n} x {n} would take {size / 2**30:.1f} GiB; "
                "use FixedPoint forward and Krylov for the adjoint, or a smaller batch"
            )
        if len(rows):
            self._place[rows] = torch.arange(held, all_of_them, device=rows.device)
            self._lu = torch.cat([self._lu, self._lu.new_empty(len(rows), n, n)])
            self._pivots = torch.cat([self._pivots, self._pivots.new_empty(len(rows), n)])


def factored_in(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, which torch does not factor."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
