"""Trajectories x(t) = f(W x(t-1) + b(t)): run, then their adjoint attached."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrograde import kernels
from retrograde.adjoint import trajectory_gradients
from retrograde.autograd import attach
from retrograde.checks import broadcast_shapes, check_finite, check_last_axis, check_like
from retrograde.connectivity import as_operator
from retrograde.nonlinearity import Nonlinearity, as_nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError, Trajectory


def trajectory(
    W: Any,
    b: Tensor,
    x0: Tensor | None = None,
    f: str | Nonlinearity = "tanh",
    *,
    steps: int | None = None,
    leak: float | Tensor | None = None,
) -> Trajectory:
    """x(t) = f(W x(t-1) + b(t)), t = 1..T, differentiable in W, b, x(0) and the leak by backpropagation through time.

    With a leak a: x(t) = (1-a) x(t-1) + a f(W x(t-1) + b(t)).

    Args:
        W: (n, n), a tensor, a sparse matrix or a Connectivity.
        b: (T, ..., n), the total input at each time; or, with ``steps``, (..., n), the same at all times.
        x0: (..., n), x(0); None is 0.
        f: the name of a nonlinearity, or a Nonlinearity.
        steps: T, where b is constant.
        leak: a = dt/τ, 0 < a <= 1, a number, or a tensor of one or of n entries; None is 1.

    Returns:
        A `Trajectory`, of which ``x`` is (T, ..., n): x(1), ..., x(T).

    Raises:
        ValueError, TypeError: an argument of the wrong shape or dtype, or not finite.
        ConvergenceError: the activity became infinite.

    References:
        H. S. Seung, "Backprop for recurrent networks"; P. J. Werbos, Proc. IEEE 78 (1990).

    >>> x0 = torch.tensor([1.0, 0.0], requires_grad=True)
    >>> path = trajectory(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.zeros(2), x0, "identity", steps=3)
    >>> path.x  # a quarter turn a step
    tensor([[ 0.,  1.],
            [-1.,  0.],
            [ 0., -1.]], grad_fn=...)
    >>> path.x[-1, 1].backward()
    >>> x0.grad
    tensor([-1., 0.])
    """
    net = Recurrence(as_operator(W), as_nonlinearity(f), check_leak(leak))
    b, x0, T = _checked(net, b, x0, steps)
    with torch.no_grad():
        x = kernels.forward_sweep(net.W.bind(), net.f, net.leak, b, x0, T)
        if x is None:
            x = forward_sweep(net, b if steps is None else b.expand(T, *b.shape), x0)

    def gradients(net: Recurrence, x: Tensor, b: Tensor, x0: Tensor, g: Tensor, wants_dW: bool) -> Any:
        return trajectory_gradients(net, x, x0, b, g, wants_dW)

    path = Trajectory(attach(x, gradients, net, b, x0), x0)
    if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
        bad = ~torch.isfinite(x).all(-1)
        first = int(bad.reshape(T, -1).any(1).nonzero()[0]) + 1
        samples = int(bad.any(0).sum())
        raise ConvergenceError(
            f"trajectory: {samples} of {bad[0].numel()} samples became infinite or NaN, first at t = {first} of {T}. "
            "An f without an upper bound grows where W is large: scale W down, or use a bounded f.",
            path,
        )
    return path


def forward_sweep(net: Recurrence, b: Tensor, x0: Tensor) -> Tensor:
    """x(1), ..., x(T), one step after another; b is (T, ..., n)."""
    x = x0.new_empty(len(b), *x0.shape)
    now = x0
    for t in range(len(b)):
        x[t] = now = net.advance(now, b[t])
    return x


def check_leak_fits(leak: float | Tensor | None, n: int, like: Tensor) -> None:
    """Raise ValueError or TypeError where the leak is not one for n neurons of the dtype of W."""
    if isinstance(leak, Tensor):
        check_like("leak", leak, like)
        if leak.ndim == 1 and len(leak) not in (1, n):
            raise ValueError(f"leak: expected one number or {n}, got {len(leak)}")


def check_leak(leak: float | Tensor | None) -> float | Tensor | None:
    """The leak a as it was given, 0 < a <= 1; ValueError or TypeError otherwise."""
    if leak is None:
        return None
    if isinstance(leak, Tensor):
        inside = leak.is_floating_point() and leak.ndim <= 1 and bool(((leak > 0) & (leak <= 1)).all())
    elif isinstance(leak, int | float) and not isinstance(leak, bool):
        inside = 0 < leak <= 1
    else:
        raise TypeError(f"leak: expected a number or a tensor, got {type(leak).__name__}")
    if not inside:
        raise ValueError(f"leak: expected 0 < a <= 1, one number or one for each neuron, got {leak}")
    return leak


def _checked(net: Recurrence, b: Tensor, x0: Tensor | None, steps: int | None) -> tuple[Tensor, Tensor, int]:
    """b, x0 and T, looked over: x0 has the whole batch's shape, and b broadcasts against (T, *x0.shape)."""
    W = net.W.bind()
    n = W.shape[0]
    check_last_axis("b", check_like("b", b, W.like), n)
    if steps is None:
        if b.ndim < 2:
            raise ValueError(
                f"b: expected shape (T, ..., {n}), time first, got {tuple(b.shape)}; for a constant b give steps=T"
            )
        T, each = len(b), b.shape[1:]
    else:
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"steps: expected an integer, got {type(steps).__name__}")
        T, each = steps, b.shape
    if T < 1:
        raise ValueError(f"steps: expected a trajectory of at least one step, got T = {T}")
    if x0 is None:
        x0 = torch.zeros(n, dtype=b.dtype, device=b.device)
    check_last_axis("x0", check_like("x0", x0, W.like), n)
    check_leak_fits(net.leak, n, W.like)
    for name, tensor in (("b", b), ("x0", x0), *(("W", weight) for weight in W.weights)):
        check_finite(name, tensor)
    net.f.check_elementwise(n, W.like)
    x0 = x0.expand(broadcast_shapes("b and x0", b=each, x0=x0.shape))
    if steps is None:  # so that b[t] broadcasts against x(t)
        b = b.reshape(T, *(1,) * (x0.ndim - len(each)), *each)
    return b, x0, T
