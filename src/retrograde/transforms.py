"""Solving outside torch's transforms, as it is done outside autograd.

Under ``torch.func`` (grad, vmap, jvp, ...) and forward mode, tensors stand for more than their numbers: a kernel cannot
read them, and nothing may branch on them. What is solved for is solved for on the plain numbers underneath.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import _unwrap_for_grad, _wrap_for_grad
from torch._compile import _disable_dynamo  # torch.compiler.disable imports a compiler at once, this one when needed
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter, temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

P = ParamSpec("P")
R = TypeVar("R")


def transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward mode is under way."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def followed(*tensors: Tensor) -> bool:
    """Whether autograd or a transform follows what is done with them now."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return True
    return transformed() and any(forward_ad.unpack_dual(each).tangent is not None for each in tensors)


def untransformed() -> Any:
    """A context in which plain tensors stay plain, whatever transform is under way."""
    return temporarily_clear_interpreter_stack()


def opaque(
    solve: Callable[..., tuple[Tensor, ...]], samples: Sequence[Tensor | None], shared: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """``solve(*samples, *shared)`` on the plain numbers, of which no derivative is taken.

    All of `samples`, and of what is answered, have the same leading axes, one entry for each sample. Under ``vmap``
    there is one more of these axes; where what is `shared` is mapped over too, each slice is solved by itself.
    """
    apart = (None if tensor is None else tensor.detach() for tensor in (*samples, *shared))
    return _Opaque.apply(solve, len(samples), *apart)


_DEVICES = ("cpu", "cuda", "mps", "xpu")
_left: ContextVar[dict[str, torch.dtype]] = ContextVar("autocast that was left")  # the dtype of each device


def precisely(solve: Callable[P, R]) -> Callable[P, R]:
    """`solve` in the dtype it is given, whatever ``torch.autocast`` is under way.

    In bfloat16 products have three digits, and nothing converges to more. What layers before it gave in that dtype,
    `from_autocast` takes.
    """

    @wraps(solve)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch._C._is_any_autocast_enabled():
            return solve(*args, **kwargs)
        left = {device: torch.get_autocast_dtype(device) for device in _DEVICES if torch.is_autocast_enabled(device)}
        before = _left.set(left)
        try:
            with ExitStack() as off:
                for device in left:
                    off.enter_context(torch.autocast(device, enabled=False))
                return solve(*args, **kwargs)
        finally:
            _left.reset(before)

    return called


def from_autocast(given: Any, dtype: torch.dtype) -> Any:
    """`given` in that dtype, if it is a tensor in the dtype of the autocast that `precisely` left; else as it is."""
    if not isinstance(given, Tensor) or given.dtype == dtype:
        return given
    return given.to(dtype) if given.dtype == _left.get({}).get(given.device.type) else given


def uncompiled(solve: Callable[P, R]) -> Callable[P, R]:
    """`solve`, which ``torch.compile`` calls as it is, as what repeats until it converges is no graph; precisely."""
    solve = precisely(solve)
    as_it_is = _disable_dynamo(solve)

    @wraps(solve)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        return (as_it_is if torch.compiler.is_dynamo_compiling() else solve)(*args, **kwargs)

    return called


class _Opaque(torch.autograd.Function):
    """A call that torch hands down through its transforms until the tensors are plain."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        solve, _, *tensors = args
        return solve(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        solve, count, *tensors = args
        mapped = list(zip(tensors, in_dims[2:], strict=True))
        if any(dim is not None for _, dim in mapped[count:]):
            slices = (
                [tensor if dim is None else tensor.select(dim, i) for tensor, dim in mapped]
                for i in range(info.batch_size)
            )
            found = zip(*(_Opaque.apply(solve, count, *each) for each in slices), strict=True)
            answer = tuple(torch.stack(each) for each in found)
        else:
            first = [_mapped_first(tensor, dim, info.batch_size) for tensor, dim in mapped[:count]]
            answer = _Opaque.apply(solve, count, *first, *tensors[count:])
        return answer, (0,) * len(answer)


def _mapped_first(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def one_level_down(jvp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A Function's jvp, called as ``jvp(ctx, saved tensors, *tangents)`` underneath the transform that asked for it.

    Around a jvp torch switches forward mode off for the transforms underneath too, and a jvp of a jvp would lack terms
    without a word.
    """

    @wraps(jvp)
    def called(ctx: Any, *tangents: Any) -> Tensor:
        if not torch._C._are_functorch_transforms_active():
            return jvp(ctx, ctx.saved_tensors, *tangents)
        interpreter = retrieve_current_functorch_interpreter()
        level = interpreter.level()

        def below(tensor: Any) -> Any:
            return _unwrap_for_grad(tensor, level) if isinstance(tensor, Tensor) else tensor

        saved, moved = tuple(map(below, ctx.saved_tensors)), tuple(map(below, tangents))
        with forward_ad._set_fwd_grad_enabled(True), interpreter.lower():
            answer = jvp(ctx, saved, *moved)
        return _wrap_for_grad(answer, level)

    return called


def batched(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A Function's backward or jvp that takes ``is_grads_batched=True`` too, of ``torch.autograd.grad``, and its like.

    Torch hands in another kind of tensor there than under ``torch.func.vmap``, and to that it is taken over.
    """

    @wraps(rule)
    def takes_both(ctx: Any, *gradients: Any) -> Any:
        for g in gradients:
            if isinstance(g, Tensor) and torch._C._functorch.is_legacy_batchedtensor(g):
                return _taken_over(rule, ctx, gradients)
        return rule(ctx, *gradients)

    return takes_both


def _taken_over(rule: Callable[..., Any], ctx: Any, gradients: tuple[Any, ...]) -> Any:
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    mapped = [isinstance(g, Tensor) and torch._C._functorch.is_legacy_batchedtensor(g) for g in gradients]
    given: list[bool] = []  # where the rule answers with a tensor, as vmap takes no None

    def found(*some: Tensor) -> tuple[Tensor, ...]:
        left = iter(some)
        answer = rule(ctx, *(next(left) if each else g for each, g in zip(mapped, gradients, strict=True)))
        given.extend(each is not None for each in _as_tuple(answer))
        return tuple(each for each in _as_tuple(answer) if each is not None)

    plain = (torch._remove_batch_dim(g, level, 1, 0) for each, g in zip(mapped, gradients, strict=True) if each)
    answers = iter(torch.func.vmap(found)(*plain))
    answer = tuple(torch._add_batch_dim(next(answers).contiguous(), 0, level) if each else None for each in given)
    return answer if len(answer) > 1 else answer[0]


def _as_tuple(answer: Any) -> tuple[Any, ...]:
    return answer if isinstance(answer, tuple) else (answer,)
