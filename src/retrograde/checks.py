"""Bad input, said clearly: which argument, what was expected, what came."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from retrograde.transforms import transformed


def check_floating(name: str, value: Any) -> Tensor:
    """`value`, a real floating-point tensor; TypeError otherwise."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(
            f"{name}: expected a real floating-point tensor, got {value.dtype}; convert it with .to(torch.float32)"
        )
    return value


def check_like(name: str, value: Any, like: Tensor) -> Tensor:
    """`value`, a floating-point tensor of the dtype and on the device of W; TypeError or ValueError otherwise."""
    check_floating(name, value)
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a full tensor, got one of layout {value.layout}; use .to_dense()")
    if value.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype}, the dtype of W, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device}, the device of W, got one on {value.device}")
    return value


def check_last_axis(name: str, value: Tensor, n: int) -> Tensor:
    """`value`, whose last axis holds n neurons; ValueError otherwise."""
    if value.ndim == 0 or value.shape[-1] != n:
        raise ValueError(f"{name}: expected shape (..., {n}), neurons last, got {tuple(value.shape)}")
    return value


def check_finite(name: str, value: Tensor) -> Tensor:
    """`value`, without NaN or infinity; ValueError otherwise."""
    # Under a transform, what is looked at are the numbers that are solved with.
    return value if transformed() else check_numbers(name, value)


def check_real(name: str, value: Tensor) -> Tensor:
    """`value`, if it holds numbers; ValueError if it is on the device meta, where there are shapes alone."""
    if value.is_meta:
        raise ValueError(
            f"{name}: expected numbers, got a tensor on the device meta, which has none; use net.to_empty(device=...) "
            "and load its weights"
        )
    return value


def check_numbers(name: str, value: Tensor) -> Tensor:
    """The same for plain numbers, whatever transform is under way."""
    check_real(name, value)
    value = value.detach() if value.requires_grad else value
    # One cheap reduction settles nearly every case; only a suspicious sum is looked at entry by entry.
    if not math.isfinite(value.sum()):
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise ValueError(f"{name}: expected finite numbers, got {bad} of {value.numel()} entries NaN or infinite")
    return value


def broadcast_shapes(what: str, **shapes: torch.Size) -> torch.Size:
    """The common shape of the arguments named; ValueError naming them where there is none."""
    first, *others = shapes.values()
    if all(shape == first for shape in others):
        return first
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        told = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{what}: expected shapes that broadcast, got {told}") from None
