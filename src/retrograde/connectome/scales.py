"""Which scales a network may be brought to."""

from __future__ import annotations

import numpy as np

from retrograde.nonlinearity import Identity, Nonlinearity


def check_scale(scale: float | None, f: Nonlinearity | None = None) -> None:
    """ValueError unless it is None or a finite scale > 0; below 1 where f is the identity, for a linear network.

    TypeError where it is no number.
    """
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float | np.number)):
        raise TypeError(f"scale: expected a number, or None, got {scale!r}")
    if scale is not None and isinstance(f, Identity) and not 0 < scale < 1:
        raise ValueError(f"scale: expected 0 < scale < 1, for the linear network is unstable from 1 on; got {scale}")
    if scale is not None and not 0 < scale < np.inf:
        raise ValueError(f"scale: expected a finite scale > 0, or None, got {scale}")
