"""A number for each neuron, in the ways in which it may be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from retrograde.connectome.naming import column_of
from retrograde.connectome.wiring import Connectome


def per_neuron(c: Connectome, given: Any, what: str, otherwise: float = 0.0) -> np.ndarray:
    """(n,): one number for all; a column of the neurons, by name; or a mapping from ids or groups to numbers.

    Those that the mapping does not name have the number `otherwise`.

    Raises:
        ValueError: no such column, ids or groups that are not there, a neuron that is named twice with different
            numbers, numbers that are missing or not finite.
    """
    if isinstance(given, str):
        name = column_of(c.neurons, given, what)
        found, what = np.array(pd.to_numeric(c.neurons[name], errors="coerce"), dtype=np.float64), f"{what}, {given}"
    elif isinstance(given, Mapping):
        places, which = c.meant(list(given), what)
        number = values_of(given, what)[which]
        found = np.full(len(c), otherwise)
        found[places] = number
        unlike = found[places] != number
        if unlike.any():
            raise ValueError(f"{what}: {c.ids[places[np.argmax(unlike)]]} is named twice, with different numbers")
    else:
        found = np.full(len(c), float(given))
    check_numbers(found, what)
    return found


def at(c: Connectome, given: Any, what: str) -> Tensor:
    """(n,), as W's weights are: 1 at the ids and groups, or the numbers that a mapping has for them; 0 elsewhere.

    Raises:
        ValueError: nobody, or what `per_neuron` raises.
    """
    named = given if isinstance(given, Mapping) else {}
    places = c.index(list(named) if named else given, what)
    if not len(places):
        raise ValueError(f"{what}: expected at least one id, got none")
    ones = np.bincount(places, minlength=len(c)) > 0
    (weight,) = c.W.weights
    return torch.from_numpy(per_neuron(c, named, what) if named else ones).to(weight.dtype)


def values_of(given: Mapping[Any, Any], what: str) -> np.ndarray:
    """The numbers of a mapping, each of which has to be a finite one."""
    found = np.empty(len(given))
    for i, (name, value) in enumerate(given.items()):
        try:
            found[i] = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{what}: expected a number for {name!r}, got {value!r}") from None
    check_numbers(found, what)
    return found


def check_numbers(values: np.ndarray, what: str) -> None:
    """ValueError where some are missing, NaN or infinite."""
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{what}: {bad} of {len(values)} numbers are missing, NaN or infinite")
