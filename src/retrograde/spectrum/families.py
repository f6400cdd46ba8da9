"""Cells that depend on one parameter t: x ← F(x, t), with dF/dt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.checks import check_finite, check_last_axis, check_like
from retrograde.recurrence import Recurrence
from retrograde.spectrum.cells import Cell, cell_of, equations, matrix_of, of_network

Parameter = Any  # "gain", ("input", direction), or a function of t


@dataclass(frozen=True, eq=False)
class Family:
    """A cell for each t, and (x, t) -> dF/dt, both (samples, n)."""

    name: str
    at: Callable[[float], Cell]
    slope: Callable[[Tensor, float], Tensor]


def family_of(net: Any, parameter: Parameter, input: Tensor | None, x0: Tensor | None) -> Family:
    """The family that a parameter makes of a network, a torch cell or nothing but a function of t.

    Raises:
        ValueError, TypeError: a parameter that is none of these, or that this net has not.
    """
    network = isinstance(net, Recurrence) or isinstance(getattr(net, "recurrence", None), Recurrence)
    if isinstance(parameter, str) and parameter == "gain":
        if not network:
            raise ValueError(f"parameter: 'gain' scales the W of a Network, which {type(net).__name__} is not")
        recurrence, b = equations(net, input)
        W, M = recurrence.W, matrix_of(recurrence)

        def slope(x: Tensor, t: float) -> Tensor:
            Wx = W @ x
            return recurrence.f.slope_at(t * Wx + b) * Wx

        return Family("gain", lambda t: of_network(recurrence, b, t, M), slope)
    if isinstance(parameter, tuple) and len(parameter) == 2 and parameter[0] == "input":
        return _along_input(net, parameter[1], input, network)
    if callable(parameter):
        return _by_differences(parameter, input, x0)
    raise ValueError(f"parameter: expected 'gain', ('input', direction) or a function of t, got {parameter!r:.60}")


def _along_input(net: Any, direction: Any, input: Tensor | None, network: bool) -> Family:
    """F with the input u + t d, u the input given; exact: dF/dt = dF/du d."""
    if not network and not isinstance(net, nn.RNNCellBase):
        raise ValueError(f"parameter: 'input' needs a Network or a torch cell, got {type(net).__name__}")
    cell = cell_of(net, input)
    base = cell.input
    assert base is not None  # a network and a torch cell have one
    check_finite("direction", check_last_axis("direction", check_like("direction", direction, base), len(base)))
    if direction.ndim != 1:
        raise ValueError(f"direction: expected shape ({len(base)},), got {tuple(direction.shape)}")
    direction = direction.detach()
    if network:
        recurrence, b = equations(net, input)
        M = matrix_of(recurrence)

        def slope(x: Tensor, t: float) -> Tensor:
            return recurrence.f.slope_at(recurrence.W @ x + b + t * direction) * direction

        return Family("input", lambda t: of_network(recurrence, b + t * direction, 1.0, M), slope)

    @lru_cache(maxsize=8)
    def at(t: float) -> Cell:
        return cell_of(net, base + t * direction)

    def slope_of_cell(x: Tensor, t: float) -> Tensor:
        of_input = at(t).of_input
        assert of_input is not None  # a torch cell has one
        return (of_input(x) @ direction).detach()

    return Family("input", at, slope_of_cell)


def _by_differences(build: Callable[[float], Any], input: Tensor | None, x0: Tensor | None) -> Family:
    """t -> a network, a torch cell or a function. dF/dt is a central difference of fourth order.

    It steers the steps along the branch; the states themselves, J and what is located by it are as exact as ever.
    """

    @lru_cache(maxsize=8)
    def at(t: float) -> Cell:
        return cell_of(build(t), input, x0=x0)

    def slope(x: Tensor, t: float) -> Tensor:
        h = torch.finfo(x.dtype).eps ** 0.2 * max(1.0, abs(t))
        moved = [at(t + k * h).step(x) for k in (-2, -1, 1, 2)]
        return (moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / (12 * h)

    return Family("parameter", at, slope)
