"""Many samples of many neurons: one BLAS product a step, and all else in place: PyTorch without temporaries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retrograde.nonlinearity import Nonlinearity


def forward(
    W: Tensor, f: Nonlinearity, b: Tensor | None, bias: Tensor | None, leak: float | Tensor | None, x: Tensor
) -> bool:
    """`sweeps.forward`, with x (T + 1, B, n), b (T, B or 1, n) and bias (B or 1, n), of which one may be None."""
    A, nothing = W.T.contiguous(), x.new_zeros(1)
    odd = 0.0
    for t in range(len(x) - 1):
        before, now = x[t], x[t + 1]
        varying = nothing if b is None else b[t]
        torch.addmm(varying if bias is None else varying + bias, before, A, out=now)
        odd += float(now.sum()) * 0  # NaN, where anything is not finite
        now.copy_(f(now))
        if leak is not None:
            now.sub_(before).mul_(leak).add_(before)
    return odd == 0


def adjoint(
    W: Tensor,
    f: Nonlinearity | None,
    y: Tensor,
    g: Tensor,
    at: np.ndarray,
    leak: float | Tensor | None,
    after: tuple[Tensor | None, ...],
    s: Tensor,
    l: Tensor | None,
) -> None:
    """`sweeps.adjoint`, with y and s (T, B, n); where f is None, y is the slopes."""
    s_next, l_next = after
    for t in reversed(range(len(s))):
        now = s[t]
        if at[t] >= 0:
            now.copy_(g[at[t]])
        else:
            now.zero_()
        if s_next is not None:
            now.addmm_(s_next, W)
        if l is not None and leak is not None:
            if l_next is not None:
                now.add_((1 - leak) * l_next)
            l_next = l[t].copy_(now)
            now.mul_(leak)
        s_next = now.mul_(y[t] if f is None else f.slope(y[t]))
