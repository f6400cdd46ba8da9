"""Factorisations kept from a forward solve to its adjoint."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 8 * 2**30  # bytes


class Factors:
    """The LU factors of A = I - J for those samples of a batch that need them; A⁻¹ r and A⁻ᵀ r from them.

    Raises ValueError where the matrices held would take more than 8 GiB.
    """

    def __init__(self, samples: int, n: int):
        self._n = n
        self._place = torch.full((samples,), -1)  # of each sample's factors among those held
        self._lu: Tensor
        self._pivots: Tensor

    def put(self, rows: Tensor, A: Tensor) -> None:
        """Factor A (len(rows), n, n) for these samples."""
        self._place = self._place.to(rows.device)
        new = self.missing(rows)
        if len(new):
            self._make_room(rows[new], A)
        place = self._place[rows]
        self._lu[place], self._pivots[place], _ = torch.linalg.lu_factor_ex(A)

    def missing(self, rows: Tensor) -> Tensor:
        """Which of these samples have no factors yet, as positions in `rows`."""
        return (self._place.to(rows.device)[rows] < 0).nonzero()[:, 0]

    def solve(self, rows: Tensor, r: Tensor, transposed: bool = False) -> Tensor:
        """A⁻¹ r, or A⁻ᵀ r, for these samples; r (len(rows), n)."""
        place = self._place[rows]
        return torch.linalg.lu_solve(self._lu[place], self._pivots[place], r[:, :, None], adjoint=transposed)[:, :, 0]

    def _make_room(self, rows: Tensor, A: Tensor) -> None:
        n, held = self._n, int((self._place >= 0).sum())
        size = (held + len(rows)) * n * n * A.element_size()
        if size > _LARGEST:
            raise ValueError(
                f"solver: {held + len(rows)} matrices of {n} x {n} would take {size / 2**30:.1f} GiB; "
                "use FixedPoint forward and Krylov for the adjoint, or a smaller batch"
            )
        self._place[rows] = torch.arange(held, held + len(rows), device=rows.device)
        lu, pivots = A.new_empty(len(rows), n, n), torch.empty(len(rows), n, dtype=torch.int32, device=A.device)
        self._lu, self._pivots = (
            (torch.cat([self._lu, lu]), torch.cat([self._pivots, pivots])) if held else (lu, pivots)
        )
