"""Tensors as the kernels want them: NumPy arrays, without a copy where they lie well."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator, Sparse
from retrograde.connectivity.low_rank import LowRank
from retrograde.kernels.choice import cpu_kernels
from retrograde.kernels.threads import ask_for, most

_DTYPES: dict[torch.dtype, np.dtype] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}

# So few numbers are copied before a second thread has woken up.
_SMALL_COPY = 2**18

# Room for so many numbers is not kept.
_MUCH = 2**22

_kept = threading.local()

Matrix = tuple[np.ndarray, ...]


def matrix(W: Operator, transposed: bool = False) -> tuple[Matrix, bool]:
    """M of x M, which is Wx, or Wᵀx, as `kernels.cpu.structures` wants it; and whether it is to be transposed yet."""
    structure = W.structure
    if isinstance(structure, Sparse):
        (weight,) = W.weights
        starts, others = structure.row_starts, structure.columns
        if transposed:
            ask_for(most())  # before the first of Numba's parallel calls, which sets those of torch
            weight = torch.from_numpy(cpu_kernels().sampled.taken(array(weight), array(structure.order)))
            starts, others = structure.column_starts, structure.rows_by_column
        return (unsigned(starts), unsigned(others), array(weight)), False
    if isinstance(structure, LowRank):
        U, V = map(array, W.weights)
        return ((U, V) if transposed else (V, U)), False
    (weight,) = W.weights
    if weight.is_contiguous() or not weight.T.is_contiguous():
        return (array(weight),), not transposed
    return (array(weight.T),), transposed


def packed(W: Operator, transposed: bool = False) -> Matrix:
    """`matrix`, packed by all threads where it is full, to last until the next call; a sparse one is ready as it is."""
    M, flipped = matrix(W, transposed)
    return M if len(M) == 3 else (in_blocks(M[0], flipped, _kept_room),)


def in_blocks(
    M: np.ndarray, flipped: bool, room: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty
) -> np.ndarray:
    """A full matrix, or its transpose if `flipped`, as `kernels.cpu.products` wants it: packed by all threads."""
    products = cpu_kernels().products
    blocks = room(products.shape_of_packed(M, flipped), M.dtype)
    products.pack(M, flipped, ask_for(most() if M.size > _SMALL_COPY else 1), blocks)
    return blocks


def _kept_room(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that is kept for the next call, unless it is much: to touch new pages takes longer than to pack W."""
    size = math.prod(shape)
    if size > _MUCH:
        return np.empty(shape, dtype)
    room = getattr(_kept, "room", None)
    if room is None or room.dtype != dtype or room.size < size:
        room = _kept.room = np.empty(size, dtype)
    return room[:size].reshape(shape)


def unsigned(index: Tensor) -> np.ndarray:
    """For Numba, which else allows for indices that count from the end."""
    return array(index).view(f"u{index.itemsize}")


def leaks(leak: float | Tensor | None, n: int, dtype: np.dtype) -> np.ndarray:
    """The leak of each neuron, or an empty array."""
    if leak is None:
        return np.empty(0, dtype)
    a = leak.detach().numpy() if isinstance(leak, Tensor) else leak
    return np.full(n, a, dtype)


def by_sample(
    b: Tensor | None, time: int, batch: torch.Size, otherwise: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """b with `time` axes of time, one of samples, B or 1, and one of neurons; or zeros of another shape."""
    if b is None:
        return np.zeros(otherwise, dtype)
    lead, own = b.shape[:time], b.shape[time:]
    if own != batch and own[:-1].numel() != 1:
        b, own = b.expand(*lead, *batch), batch
    return array(b) if len(own) == 2 else array(b).reshape(*lead, own[:-1].numel(), batch[-1])


def count(batch: torch.Size) -> tuple[int, int]:
    """How many samples, and of how many neurons."""
    return batch[:-1].numel(), batch[-1]


def dtype_of(like: Tensor) -> np.dtype:
    """NumPy's name for its dtype."""
    return _DTYPES[like.dtype]


def array(x: Tensor) -> np.ndarray:
    """Its numbers, row after row; a copy only where they lie otherwise."""
    x = x.detach() if x.requires_grad else x
    return (x if x.is_contiguous() else x.contiguous()).numpy()


def side_by_side(samples: int, itemsize: int) -> Iterator[slice]:
    """The samples, as many at a time as lie side by side."""
    lanes = cpu_kernels().structures.lanes_for(samples, itemsize)
    for first in range(0, samples, lanes):
        yield slice(first, min(first + lanes, samples))


def rooms(states: int, n: int, lanes: int, dtype: np.dtype) -> np.ndarray:
    """Room for so many states of n neurons, samples side by side, (states, n, lanes).

    It is made here, and not by a kernel: NumPy asks for huge pages from 4 MiB on, of which a product that takes a line
    here and a line there meets few.
    """
    return np.empty((states, n, lanes), dtype)


def together(W: Operator) -> int:
    """Of how many samples, which share each load of W, a thread's are best a multiple."""
    return 16 if isinstance(W.structure, Sparse) else 4
