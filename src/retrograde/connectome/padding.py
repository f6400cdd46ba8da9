"""Whether ids in a text file are padded: 007 is not 7, and is lost where a column of digits is taken for numbers."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

_PIECE = 2**24  # bytes of a file that are looked at at once


def padded(path: Path, delimiter: str) -> bool:
    """Whether any field of the file begins with a 0 and another digit; some milliseconds for each megabyte."""
    before = np.zeros(256, bool)
    before[[ord(each) for each in ("\n", "\r", '"', delimiter)]] = True
    with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
        last = b"\n"
        while piece := file.read(_PIECE):
            part = np.frombuffer(last + piece, np.uint8)
            zero = np.flatnonzero(part[1:-1] == ord("0"))
            zero = zero[before[part[zero]]]
            if ((part[zero + 2] >= ord("0")) & (part[zero + 2] <= ord("9"))).any():
                return True
            last = (last + piece)[-2:]
    return False
