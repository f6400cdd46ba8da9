"""How many threads linear algebra takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One, for Arnoldi's method: its products with few long vectors wait for memory, and gain nothing from a second.

    Where others work on the machine too, the threads wait for one another longer than they compute.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:  # it comes with scikit-learn
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield
