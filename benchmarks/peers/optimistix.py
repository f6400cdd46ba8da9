"""optimistix, with its implicit adjoint.

GMRES takes the batch as one vector. LU, its default, would then factor a matrix of (batch n)², so there each sample is
solved on its own under `vmap`. lineax's BiCGStab breaks down on these problems.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax
import optimistix
from jax import Array

from benchmarks.peers.driven_jax import driven
from benchmarks.peers.scan import pulled

MAX_STEPS = 1000


def steady(W: Array, b: Array, g: Array, method: str, rtol: float) -> Callable[[], Array]:
    """Fixed-point iteration or Newton's method; the adjoint by GMRES or LU."""
    solver = (optimistix.Newton if method == "newton" else optimistix.FixedPointIteration)(rtol=rtol, atol=rtol)
    linear = (
        lineax.GMRES(rtol=rtol, atol=rtol, restart=50, stagnation_iters=50)
        if method == "gmres"
        else lineax.AutoLinearSolver(well_posed=True)
    )

    w, drive = driven(W)

    def states(w: Array, b: Array) -> Array:
        return optimistix.fixed_point(
            lambda x, w: jnp.tanh(drive(w, x, b)),
            solver,
            jnp.zeros_like(b),
            w,
            max_steps=MAX_STEPS,
            adjoint=optimistix.ImplicitAdjoint(linear_solver=linear),
            throw=False,
        ).value

    return pulled(states if method == "gmres" else jax.vmap(states, in_axes=(None, 0)), w, b, g)
