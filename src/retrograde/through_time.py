"""Backpropagation through time: s(t) = D(t) (Wᵀ s(t+1) + dR/dx(t)), substituted back from s(T+1) = 0.

It is the adjoint of a steady state with s(t+1) in the place of s, and so needs no solver.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from retrograde import kernels
from retrograde.checks import check_finite
from retrograde.connectivity import Operator
from retrograde.recurrence import Recurrence, adjoint_step
from retrograde.result import EVERYTHING, Gradients, Inputs, Wants

# Where s(t) itself is not asked for, it is found in pieces of about so many numbers, which stay in cache.
_PIECE = 2**20


def total_input(b: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """b + bias, of which one may be None, or both."""
    return bias if b is None else b if bias is None else b + bias


def substitute_back(
    W: Operator, D: Tensor, g: Tensor, at: np.ndarray, leak: float | Tensor | None, after: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor | None]:
    """s(t) = D(t) (Wᵀ s(t+1) + g(t)) for t = T..1; D and s are (T, ..., n).

    g(t) is ``g[at[t]]``, or 0 where ``at[t]`` is -1. With a leak a: l(t) = Wᵀ s(t+1) + g(t) + (1-a) l(t+1), and
    s(t) = a D(t) l(t). ``after`` is s(T+1) and l(T+1), None for 0.

    Returns:
        s, and with a leak l = dR/dx(t), the reward's whole dependence on x(t); None without.
    """
    s: list[Tensor] = []
    l: list[Tensor] = []
    nothing = torch.zeros_like(D[0])
    s_next, l_next = (nothing if z is None else z for z in after)
    for t in reversed(range(len(D))):
        g_t = g[at[t]] if at[t] >= 0 else nothing
        if leak is None:
            s_next = adjoint_step(W, D[t], s_next, g_t)
        else:
            l_next = W.T @ s_next + g_t + (1 - leak) * l_next
            s_next = leak * D[t] * l_next
            l.append(l_next)
        s.append(s_next)
    return torch.stack(s[::-1]), torch.stack(l[::-1]) if l else None


def swept_back(W: Operator, D: Tensor, g: Tensor, leak: float | Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`substitute_back` from the end, with a reward at each time; by a kernel where there is one."""
    at, after = np.arange(len(D)), (None, None)
    swept = kernels.substitute_back(W, None, D, g, at, leak, after)
    return substitute_back(W, D, g, at, leak, after) if swept is None else swept[:2]


def trajectory_gradients(
    net: Recurrence,
    path: Tensor,
    inputs: Inputs,
    g: Tensor,
    wants: Wants = EVERYTHING,
    at: np.ndarray | None = None,
) -> Gradients:
    """s(t) along the path x(0), ..., x(T), (T + 1, ..., n), and dR/dW = Σ s(t) x(t-1)ᵀ as one product.

    The input was b(t) + bias, of which b, (T, ..., n), or the bias may be None; without both, the slopes are read from
    the path. ``g`` is dR/dx(t) for t = 1..T; or, given `at`, g(t) is ``g[at[t - 1]]``, and 0 where that is -1.
    """
    W, T, bias = net.W.bind(), len(path) - 1, inputs.bias
    last = T if at is None else int(np.flatnonzero(at >= 0).max(initial=0)) + 1  # behind the last reward s is 0
    at = np.arange(T) if at is None else at
    length = last if wants.s else max(1, min(last, _PIECE // max(path[0].numel(), 1)))
    s = l = None
    sums: list[Tensor] = []
    # Of a bias of each sample's own, summed over time alone, and in an order that no piece changes.
    own = torch.zeros_like(path[0]) if wants.db and bias is not None and bias.shape == path[0].shape else None
    for first in range((last - 1) // length * length, -1, -length):
        piece = slice(first, min(first + length, last))
        before, x = path[piece], path[first + 1 : piece.stop + 1]
        after = (None if s is None else s[0], None if l is None else l[0])
        s, l, dW = _substitute_back(net, before, x, inputs, piece, g, at[piece], after, wants.dW)
        if not math.isfinite(s.sum()):
            check_finite("dR/dx", g)
        more = list(dW)
        if own is not None:
            kernels.add_backwards(s, own)
        elif wants.db:
            more.append(s.sum_to_size(path.shape[-1:] if bias is None else bias.shape))
        if l is not None and net.leak is not None:
            # x(t) = x(t-1) + a (y(t) - x(t-1)), so the reward grows by l(t) (y(t) - x(t-1)) with a.
            more.append((l * (x - before) / net.leak).sum_to_size(torch.as_tensor(net.leak).shape))
        sums = [a.add_(b) for a, b in zip(sums, more, strict=True)] if sums else more
    assert s is not None  # T is at least 1, and so there was a piece
    dx0 = W.T @ s[0] if wants.dx0 else None
    dleak = None
    if l is not None and net.leak is not None:
        dx0 = None if dx0 is None else dx0 + (1 - net.leak) * l[0]
        dleak = sums.pop()
    db = own if own is not None else sums.pop() if wants.db else None
    if wants.s and last < T:
        s = torch.cat([s, s.new_zeros(T - last, *s.shape[1:])])
    return Gradients(s, tuple(sums), db, dx0=dx0, dleak=dleak)


def _substitute_back(
    net: Recurrence,
    before: Tensor,
    x: Tensor,
    inputs: Inputs,
    piece: slice,
    g: Tensor,
    at: np.ndarray,
    after: tuple[Tensor | None, ...],
    with_dW: bool,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """s, l and dR/dW, by a kernel where there is one, which reads the slopes from x on the way where x tells them."""
    W, asked = net.W.bind(), before if with_dW else None
    f = net.f if net.leak is None and net.f.slope_from_output else None
    y = x if f else net.slopes(x, before, total_input(None if inputs.b is None else inputs.b[piece], inputs.bias))
    swept = kernels.substitute_back(W, f, y, g, at, net.leak, after, asked)
    if swept is not None:
        return swept
    s, l = substitute_back(W, f.slope(y) if f else y, g, at, net.leak, after)
    return s, l, kernels.outer(W, s, before) if with_dW else ()
