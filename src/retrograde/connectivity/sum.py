"""W = W1 + W2 + ..."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import cast

from torch import Tensor, nn

from retrograde.connectivity.base import Connectivity


class Sum(Connectivity):
    """The sum of connectivities of one shape: a sparse map and a low-rank one, say.

    Raises:
        TypeError: a part that is not a Connectivity.
        ValueError: no parts, or parts of different shapes or dtypes.

    >>> import torch
    >>> from retrograde import Dense, LowRank
    >>> W = Sum(Dense(torch.zeros(3, 3)), LowRank(torch.ones(3, 1), torch.ones(3, 1)))
    >>> len(W.weights)
    3
    """

    def __init__(self, *parts: Connectivity):
        super().__init__()
        if not parts:
            raise ValueError("parts: expected at least one Connectivity, got none")
        for part in parts:
            if not isinstance(part, Connectivity):
                raise TypeError(f"parts: expected Connectivity, got {type(part).__name__}")
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"parts: expected one shape, got {[part.shape for part in parts]}")
        if len({w.dtype for part in parts for w in part.weights}) > 1:
            raise ValueError(f"parts: expected one dtype, got {[part.weights[0].dtype for part in parts]}")
        self.parts = nn.ModuleList(parts)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in), that of every part."""
        return self._parts[0].shape

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The weights of the first part, then those of the second, ..."""
        return tuple(w for part in self._parts for w in part.weights)

    @property
    def _parts(self) -> list[Connectivity]:
        return cast(list[Connectivity], list(self.parts))

    def product(self, x: Tensor, *weights: Tensor) -> Tensor:
        """W1 x + W2 x + ..."""
        return reduce(add, (part.product(x, *own) for part, own in self._shared_out(weights)))

    def transposed_product(self, s: Tensor, *weights: Tensor) -> Tensor:
        """W1ᵀ s + W2ᵀ s + ..."""
        return reduce(add, (part.transposed_product(s, *own) for part, own in self._shared_out(weights)))

    def outer_product(self, s: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """Each part's own."""
        return tuple(d for part, own in self._shared_out(weights) for d in part.outer_product(s, x, *own))

    def _shared_out(self, weights: tuple[Tensor, ...]) -> Iterator[tuple[Connectivity, tuple[Tensor, ...]]]:
        start = 0
        for part in self._parts:
            stop = start + len(part.weights)
            yield part, weights[start:stop]
            start = stop
