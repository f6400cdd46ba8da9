"""JAX: `lax.scan` and its reverse mode, compiled."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def pulled(states: Callable[[Array, Array], Array], W: Array, b: Array, g: Array) -> Callable[[], Array]:
    """The compiled map from g back to W, through states(W, b)."""

    @jax.jit
    def gradient(W: Array, b: Array, g: Array) -> Array:
        return jax.vjp(lambda W: states(W, b), W)[1](g)[0]

    return lambda: gradient(W, b, g).block_until_ready()


def trajectories(W: Array, b: Array, g: Array) -> Callable[[], Array]:
    """A scan over time."""

    def states(W: Array, b: Array) -> Array:
        def step(x: Array, b_t: Array) -> tuple[Array, Array]:
            x = jnp.tanh(x @ W.T + b_t)
            return x, x

        return jax.lax.scan(step, jnp.zeros_like(b[0]), b)[1]

    return pulled(states, W, b, g)
