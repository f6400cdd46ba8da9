"""Numba kernels for the CPU, compiled at their first call and kept on disk.

Numba looks at the file of a kernel alone to tell whether what it kept is still true, and not at the files of what that
kernel calls. So they are kept under a folder named for all of the sources.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba

# Numba fills `config` as it is imported, out of mypy's sight: hence what is ignored below.
_HERE = Path(__file__).parent


def _kept() -> str:
    """The folder for this version of the sources: where Numba would keep them, and within that by their hash."""
    sources = b"".join(path.read_bytes() for path in sorted(_HERE.glob("*.py")))
    nearby = _HERE / "__pycache__"
    private = Path.home() / ".cache" / "numba"
    base = numba.config.CACHE_DIR or (nearby if os.access(_HERE, os.W_OK) else private)  # type: ignore[attr-defined]  # set at its import
    return str(Path(base) / f"retrograde-{hashlib.sha256(sources).hexdigest()[:16]}")


_others, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _kept()  # type: ignore[attr-defined]  # set at its import
try:
    from retrograde.kernels.cpu import (
        anderson,
        few,
        fixed_point,
        lone,
        nearing,
        products,
        rows,
        sampled,
        strips,
        structures,
        sweeps,
        tiles,
    )
finally:
    numba.config.CACHE_DIR = _others  # type: ignore[attr-defined]  # set at its import

__all__ = [
    "anderson",
    "few",
    "fixed_point",
    "lone",
    "nearing",
    "products",
    "rows",
    "sampled",
    "strips",
    "structures",
    "sweeps",
    "tiles",
]
