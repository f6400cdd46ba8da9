"""What to try where a solve failed, in the terms of the question that was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from retrograde.nonlinearity import Identity, Nonlinearity, Sigmoid, Tanh
from retrograde.result import ConvergenceError


@contextmanager
def advising(f: Nonlinearity, *others: str) -> Iterator[None]:
    """Errors of solvers advise what a question takes, and not a solver's own arguments, which it does not.

    Args:
        f: the network's, which may have no steady state where it has no upper bound.
        others: what may be tried beside a smaller scale.
    """
    try:
        yield
    except ConvergenceError as error:
        if error.facts is None:
            raise
        advice = ["a smaller scale", *others]
        unbounded = not isinstance(f, Identity | Tanh | Sigmoid)
        if unbounded:
            advice.append("a bounded f, for one without an upper bound grows where W is large")
        *first, last = advice
        told = f"{', '.join(first)}, or {last}" if first else last
        raise ConvergenceError(f"{error.facts} Try {told}.", error.result) from error
