"""How many threads linear algebra takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One, for eigenvalues and singular values.

    Arnoldi's products with few long vectors wait for memory, and gain nothing from a second. Of a full matrix these are
    many small steps, each of which waits for all threads: where others work on the machine too, longer than it takes.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:  # it comes with scikit-learn
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield
