"""Wx + b in JAX, for a full W and for a sparse one: by sums over segments, faster here than its BCOO matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Drive = Callable[[Array, Array, Array], Array]


def driven(W: Any) -> tuple[Array, Drive]:
    """The weights, and (weights, x, b) -> Wx + b for rows x or one x."""
    if isinstance(W, Array):
        return W, lambda w, x, b: x @ w.T + b
    n = W.shape[0]
    rows, columns = jnp.asarray(np.repeat(np.arange(n), np.diff(W.indptr))), jnp.asarray(W.indices)

    def drive(w: Array, x: Array, b: Array) -> Array:
        sent = w[:, None] * jnp.atleast_2d(x).T[columns]
        total = jax.ops.segment_sum(sent, rows, n, indices_are_sorted=True).T
        return total.reshape(x.shape) + b

    return jnp.asarray(W.data), drive
