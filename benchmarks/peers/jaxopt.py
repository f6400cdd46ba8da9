"""jaxopt, with implicit differentiation by BiCGSTAB: faster here, and more exact, than its default on normal equations.

Its tolerances are absolute and for the batch as one vector, so they are scaled by the size that a state can have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import jaxopt
from jax import Array
from jaxopt.linear_solve import solve_bicgstab

from benchmarks.peers.driven_jax import driven
from benchmarks.peers.scan import pulled

MAX_STEPS = 1000


def steady(W: Array, b: Array, g: Array, solver: str, rtol: float) -> Callable[[], Array]:
    """One of its fixed-point solvers."""
    w, drive = driven(W)
    found = getattr(jaxopt, solver)(
        lambda x, w, b: jnp.tanh(drive(w, x, b)),
        maxiter=MAX_STEPS,
        tol=rtol * b.size**0.5,
        implicit_diff_solve=partial(solve_bicgstab, tol=rtol, maxiter=MAX_STEPS),
    )
    return pulled(lambda w, b: found.run(jnp.zeros_like(b), w, b).params, w, b, g)
