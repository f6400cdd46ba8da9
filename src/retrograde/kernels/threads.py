"""How many threads Numba is given, and what each of them takes."""

from __future__ import annotations

import os
import threading
from functools import cache

import numpy as np
import torch

# The threads of OpenMP do not come along into a forked process, such as a DataLoader's worker, which dies if it asks
# for them.
_started = _forked = False

# How many threads Numba was given by each of Python's.
_numbas = threading.local()

# So few multiplications are done before a second thread has woken up.
_SMALL = 2**20


def _after_fork() -> None:
    global _forked
    _forked = _started


os.register_at_fork(after_in_child=_after_fork)


def in_a_fork() -> bool:
    """Whether this process was forked from one that had started threads."""
    return _forked


@cache
def _numbas_most() -> int:
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]  # set at its import


def most() -> int:
    """How many threads there may be: as many as PyTorch has."""
    return min(torch.get_num_threads(), _numbas_most())


def ask_for(*threads: int) -> int:
    """Let Numba have so many threads, the most of these, and no more than there is work for."""
    global _started
    _started = True
    torchs, asked = torch.get_num_threads(), max(threads)
    if getattr(_numbas, "threads", None) != asked:  # as setting it takes a lock
        import numba

        numba.set_num_threads(asked)
        _numbas.threads = asked
    if torch.get_num_threads() != torchs:  # Numba's first call sets the OpenMP that the two share
        torch.set_num_threads(torchs)
    return asked


def share(samples: int, n: int, together: int) -> tuple[int, int]:
    """How many samples a thread takes through time together, and how many threads there are.

    The samples are each thread's part, or as many as leave room in its cache for W. `together` of them share each load
    of W.
    """
    threads = max(1, min(most(), samples))
    rounds = -(-samples // (threads * max(4, 2**16 // n)))
    each = max(1, -(-samples // max(1, threads * rounds)))
    return each if each <= together // 2 else -(-each // together) * together, threads


def is_much(numbers: int, columns: int) -> bool:
    """Whether dR/dW of so many columns, summed over so many numbers of s, is worth a second thread."""
    return numbers * columns > _SMALL


def sharers(numbers: int, dW: np.ndarray) -> int:
    """How many threads share the rows of dR/dW, summed over so many numbers of s."""
    rows, columns = dW.shape
    return max(1, min(most(), -(-rows // 4))) if is_much(numbers, columns) else 1
