"""Factorisations kept from a forward solve to its adjoint."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 8 * 2**30  # bytes


class Factors:
    """The LU factors of A = I - J for each sample of a batch, as they come; A⁻¹ r and A⁻ᵀ r from them.

    Nothing is allocated before the first factorisation, which raises ValueError where the batch's matrices would take
    more than 8 GiB.
    """

    def __init__(self, samples: int, n: int):
        self._shape = (samples, n, n)
        self._held = torch.zeros(samples, dtype=torch.bool)

    def put(self, rows: Tensor, A: Tensor) -> None:
        """Factor A (len(rows), n, n) for these samples."""
        if not self._held.any():
            samples, n, _ = self._shape
            size = samples * n * n * A.element_size()
            if size > _LARGEST:
                raise ValueError(
                    f"solver: {samples} matrices of {n} x {n} would take {size / 2**30:.0f} GiB; "
                    "use FixedPoint forward and Krylov for the adjoint, or a smaller batch"
                )
            self._lu = A.new_empty(self._shape)
            self._pivots = torch.empty(self._shape[:2], dtype=torch.int32, device=A.device)
            self._held = self._held.to(A.device)
        self._lu[rows], self._pivots[rows], _ = torch.linalg.lu_factor_ex(A)
        self._held[rows] = True

    def missing(self, rows: Tensor) -> Tensor:
        """Which of these samples have no factors yet, as positions in `rows`."""
        return (~self._held.to(rows.device)[rows]).nonzero()[:, 0]

    def solve(self, rows: Tensor, r: Tensor, transposed: bool = False) -> Tensor:
        """A⁻¹ r, or A⁻ᵀ r, for these samples; r (len(rows), n)."""
        return torch.linalg.lu_solve(self._lu[rows], self._pivots[rows], r[:, :, None], adjoint=transposed)[:, :, 0]
