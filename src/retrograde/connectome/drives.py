"""What drives which neurons, as a vector over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retrograde.connectome.given import values_of
from retrograde.connectome.wiring import Connectome


def vector(c: Connectome, given: Any, what: str) -> Tensor:
    """(n,): 1 at the ids, or the numbers that a mapping has for them; 0 elsewhere.

    Raises:
        ValueError: no id, or ids that are not there, or what is no finite number.
    """
    (weight,) = c.W.weights
    found = torch.zeros(len(c), dtype=weight.dtype)
    places = torch.from_numpy(c.index(list(given) if isinstance(given, Mapping) else given, what))
    if not len(places):
        raise ValueError(f"{what}: expected at least one id, got none")
    found[places] = torch.from_numpy(values_of(given, what)).to(weight.dtype) if isinstance(given, Mapping) else 1.0
    return found
