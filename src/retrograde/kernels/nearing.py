"""The plain steps that tell an error, a whole batch in one call: see `retrograde.nearing`, which they stand in for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retrograde.connectivity import Operator
from retrograde.kernels.arrays import array, matrix, together
from retrograde.kernels.choice import cpu_kernels, is_lone, number, why_plain
from retrograde.kernels.threads import ask_for, share
from retrograde.nonlinearity import Nonlinearity


class Rules(NamedTuple):
    """By which plain steps are judged.

    Attributes:
        eps: of the dtype.
        noise: the relative residual that may be rounding.
        slowest: the rate from which on they tell nothing.
        misled: how many times as much as it tells an error may be, by a first rate alone.
        rest: the part of an error that is so little that further steps hardly change it.
        turns: the most steps.
        looks: the most steps of a state that is but looked at.
        target: the error to be told,
        allowed: and that to be told where further steps hardly change it.
    """

    eps: float
    noise: float
    slowest: float
    misled: float
    rest: float
    turns: int
    looks: int
    target: float
    allowed: float


class Steps(NamedTuple):
    """Where they lead, (samples, n), what they tell, and whether that is the target."""

    z: Tensor
    residual: Tensor
    gain: Tensor
    state_error: Tensor
    error: Tensor
    turns: Tensor
    enough: Tensor


def state_steps(W: Operator, f: Nonlinearity, b: Tensor, x: Tensor, rules: Rules) -> Steps | None:
    """Plain steps of x = f(Wx + b), b and x (samples, n), until the target is met; None without a kernel."""
    if why_plain(W, f) is not None or is_lone(W, len(x)):
        return None
    return _approach(W, f, b, x, b[:0], x, x, rules)


def adjoint_steps(
    W: Operator, f: Nonlinearity, b: Tensor | None, x: Tensor, g: Tensor, D: Tensor, s: Tensor, rules: Rules
) -> Steps | None:
    """Likewise of s = D (Wᵀs + g), after a look at x, which tells how far it is off, if b is known."""
    if why_plain(W, f) is not None or is_lone(W, len(x)):
        return None
    return _approach(W, f, x[:0] if b is None else b, x, g, D, s, rules)


def _approach(
    W: Operator, f: Nonlinearity, b: Tensor, x: Tensor, g: Tensor, D: Tensor, z: Tensor, rules: Rules
) -> Steps:
    samples, n = z.shape
    found, told, turns = array(z).copy(), np.empty((samples, 4)), np.empty(samples, np.int64)
    M = matrix(W)
    Mt = matrix(W, transposed=True) if len(g) else M
    threads = ask_for(share(samples, n, together(W))[1])
    about = array(b), (number(f), number(None)), array(x), array(g), array(D), rules, threads
    met = cpu_kernels().nearing.approach(*M, *Mt, *about, found, told, turns)
    return Steps(torch.from_numpy(found), *torch.from_numpy(told).unbind(1), *map(torch.from_numpy, (turns, met)))
