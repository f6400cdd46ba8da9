"""Trajectories x(t) = f(W x(t-1) + b(t)): run, then their adjoint attached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrograde import kernels
from retrograde.autograd import attach
from retrograde.checks import broadcast_shapes, check_last_axis, check_like, check_numbers
from retrograde.connectivity import as_operator
from retrograde.derivatives import TrajectoryRule
from retrograde.nonlinearity import Nonlinearity, as_nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError, Trajectory
from retrograde.through_time import total_input
from retrograde.transforms import from_autocast, opaque, transformed, uncompiled


@uncompiled
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
    net = Recurrence(as_operator(W), as_nonlinearity(f), leak)
    return run(net, b, None, x0, None) if steps is None else run(net, None, b, x0, steps)


def run(
    net: Recurrence, b: Tensor | None, bias: Tensor | None, x0: Tensor | None, steps: int | None, name: str = "b"
) -> Trajectory:
    """The trajectory for the input b(t) + bias: b has an axis of time and bias has none, and one of them may be None.

    `name` is what errors call b, or the bias where there is no b; of a bias that is not finite they speak as b.
    """
    W = net.W.bind()
    b, bias, x0 = (from_autocast(each, W.like.dtype) for each in (b, bias, x0))
    looked_at = (name, b), ("b", bias), ("x0", x0)
    b, x0, T = _checked(net, b, bias, x0, steps, name)
    trained = net.leak if isinstance(net.leak, Tensor) else None
    rule = TrajectoryRule(Recurrence(W.structure, net.f, None if trained is not None else net.leak))
    inputs = (b, bias, x0, trained, *W.weights)

    def x_at(times: list[int]) -> Tensor:
        rows = np.full(T, -1)
        rows[times] = np.arange(len(times))
        return attach(path, replace(rule, at=rows), inputs, path[1:][times])

    if transformed():
        path, finite = _found_apart(net, b, bias, x0, T, name), True
    else:
        with torch.no_grad():
            path, finite = _found(net, b, bias, x0, T, looked_at)
    trajectory = Trajectory(attach(path, rule, inputs, path[1:]), x0, x_at)
    if not finite:
        _check_path(path, trajectory)
    return trajectory


def _found(
    net: Recurrence, b: Tensor | None, bias: Tensor | None, x0: Tensor, T: int, looked_at: Iterable[tuple[str, Any]]
) -> tuple[Tensor, bool]:
    """x(0), ..., x(T), and whether all of it is known to be finite; ValueError for what was given and is not."""
    W = net.W.bind()
    path, finite = kernels.forward_sweep(W, net.f, net.leak, b, bias, x0, T) or (None, False)
    if not finite:
        for told, tensor in (*looked_at, *(("W", weight) for weight in W.weights)):
            if tensor is not None:
                check_numbers(told, tensor)
    return (forward_sweep(net, b, bias, x0, T) if path is None else path), finite


def _found_apart(net: Recurrence, b: Tensor | None, bias: Tensor | None, x0: Tensor, T: int, name: str) -> Tensor:
    """x(0), ..., x(T), found on the plain numbers under torch's transforms. These see samples first, time after."""
    W, leak = net.W.bind(), net.leak
    b = None if b is None else b.expand(T, *x0.shape).movedim(0, -2)
    bias = None if bias is None else bias.expand(x0.shape)

    def find(
        x0: Tensor, b: Tensor | None, bias: Tensor | None, a: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        plain = replace(net, W=W.bind(*weights), leak=leak if a is None else check_leak(a))
        b = None if b is None else b.movedim(-2, 0)
        path, finite = _found(plain, b, bias, x0, T, ((name, b), ("b", bias), ("x0", x0)))
        if not finite:
            _check_path(path, path)
        return (path.movedim(0, -2),)

    (path,) = opaque(find, (x0, b, bias), (leak if isinstance(leak, Tensor) else None, *W.weights))
    return path.movedim(-2, 0)


def _check_path(path: Tensor, found: Any) -> None:
    """ConvergenceError, with what was found, where the activity became infinite."""
    if torch.isfinite(path).all():
        return
    bad = ~torch.isfinite(path[1:]).all(-1)
    first = int(bad.reshape(len(bad), -1).any(1).nonzero()[0]) + 1
    samples = int(bad.any(0).sum())
    raise ConvergenceError(
        f"trajectory: {samples} of {bad[0].numel()} samples became infinite or NaN, first at t = {first} of "
        f"{len(bad)}. An f without an upper bound grows where W is large: scale W down, or use a bounded f.",
        found,
    )


def forward_sweep(net: Recurrence, b: Tensor | None, bias: Tensor | None, x0: Tensor, T: int) -> Tensor:
    """x(0), ..., x(T), one step after another."""
    path = x0.new_empty(T + 1, *x0.shape)
    path[0] = now = x0
    for t in range(T):
        b_t = total_input(None if b is None else b[t], bias)
        assert b_t is not None  # one of the two is given
        path[t + 1] = now = net.advance(now, b_t)
    return path


def hold_leak(module: torch.nn.Module, leak: float | Tensor | None, n: int, like: Tensor, persistent: bool) -> None:
    """``module.leak``: a Parameter is trained, another tensor becomes a buffer, so that `to` moves it.

    Raises ValueError or TypeError where it is no leak for n neurons of the dtype of W.
    """
    check_leak_fits(check_leak(leak), n, like)
    if isinstance(leak, Tensor) and not isinstance(leak, torch.nn.Parameter):
        module.register_buffer("leak", leak.detach().clone(), persistent)
    else:
        module.leak = leak  # type: ignore[assignment]  # a number, or None


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
        inside = leak.is_floating_point() and leak.ndim <= 1
        inside = inside and (transformed() or bool(((leak > 0) & (leak <= 1)).all()))
    elif isinstance(leak, int | float) and not isinstance(leak, bool):
        inside = 0 < leak <= 1
    else:
        raise TypeError(f"leak: expected a number or a tensor, got {type(leak).__name__}")
    if not inside:
        raise ValueError(f"leak: expected 0 < a <= 1, one number or one for each neuron, got {leak}")
    return leak


def _checked(
    net: Recurrence, b: Tensor | None, bias: Tensor | None, x0: Tensor | None, steps: int | None, name: str
) -> tuple[Tensor | None, Tensor, int]:
    """b, x0 and T, looked over: x0 has the whole batch's shape, and b broadcasts against (T, *x0.shape)."""
    W = net.W.bind()
    n, given = W.shape[0], bias if b is None else b
    assert given is not None  # one of the two is
    check_last_axis(name, check_like(name, given, W.like), n)
    if b is not None:
        if b.ndim < 2:
            raise ValueError(
                f"{name}: expected shape (T, ..., {n}), time first, got {tuple(b.shape)}; "
                f"for a constant {name} give steps=T"
            )
        T, each = len(b), b.shape[1:]
    else:
        if isinstance(steps, bool) or not isinstance(steps, Integral):
            raise TypeError(f"steps: expected an integer, got {type(steps).__name__}")
        T, each = int(steps), given.shape
    if T < 1:
        raise ValueError(f"steps: expected a trajectory of at least one step, got T = {T}")
    if net.leak is not None:
        check_leak_fits(check_leak(net.leak), n, W.like)
    net.f.check_elementwise(n, W.like)
    if x0 is None:
        return b, given.new_zeros(each), T
    check_last_axis("x0", check_like("x0", x0, W.like), n)
    if x0.shape != each:
        x0 = x0.expand(broadcast_shapes(f"{name} and x0", **{name: each}, x0=x0.shape))
        if b is not None:  # so that b[t] broadcasts against x(t)
            b = b.reshape(T, *(1,) * (x0.ndim - len(each)), *each)
    return b, x0, T
