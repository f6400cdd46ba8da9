"""What a function closes over, made its arguments: the tensors that a derivative may be asked in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_leaves

Slots = list[tuple[dict[str, Any], str, Tensor]]  # of a module, a dict of its tensors, the name there, the tensor


class Reading(TorchFunctionMode):
    """Within its ``with``, notes the tensors that are read, were not made there, and are not `known`.

    Attributes:
        found: those of them that a derivative is taken in, or that a ``vmap`` maps over. All others are constants.
        slots: where the modules that fn closes over, or that were called, hold their tensors, which
            ``torch.func.functional_call`` puts there for a while.
        nested: whether fn makes use of a transform itself, such as ``vmap``, which makes tensors out of sight: those
            `found` are then to be found `again`.

    Args:
        fn: what is to be called there.
        known: the tensors that it is given.

    Raises:
        ValueError: another such `with`, or a `Closed` function, is under way.
    """

    def __init__(self, fn: Callable[..., Any], known: Iterable[Any]):
        super().__init__()
        if any(isinstance(mode, Reading | _Swap) for mode in _get_current_function_mode_stack()):
            raise ValueError(
                "Equilibrium: expected no other one within its fn under torch.func and forward mode; "
                "torch.autograd.grad(..., create_graph=True) sees through both"
            )
        self._seen = {id(each): each for each in known}  # held, so that no other tensor gets the same id
        self._called: dict[nn.Module, None] = {}  # in order
        self._level = torch._C._functorch.maybe_current_level() or 0
        self.found: list[Tensor] = []
        self._handed: list[Tensor] = []  # to a gradient that fn itself takes, by which they are known
        self.nested = False
        self.slots = [slot for module in _modules_of(fn) for slot in _slots(module)]

    def __enter__(self) -> Reading:
        self._hook = register_module_forward_pre_hook(
            lambda module, _: self._called.update(dict.fromkeys(module.modules()))
        )
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hook.remove()
        super().__exit__(*error)
        called = [slot for module in self._called for slot in _slots(module)]
        self.slots += called
        met = {id(each) for each in self.found}
        held = {id(each): each for _, _, each in called if self._is_variable(each)}
        self.found += [each for place, each in held.items() if place not in met]
        self._seen.clear()

    def again(self, other: Reading) -> None:
        """Of what was found, keep what `other` has found too, of the same fn: what a call made, the next makes anew.

        Raises:
            ValueError: fn takes a derivative in a tensor that it closes over.
        """
        met = {id(each) for each in other.found}
        self.found = [each for each in self.found if id(each) in met]
        if {id(each) for each in self._handed} & {id(each) for each in other._handed}:
            raise ValueError(
                "fn: expected no derivative to be taken within it in a tensor that it closes over, under torch.func "
                "and forward mode; give that tensor as an input, or hand its .clone() to the function that takes it"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, Tensor) and id(each) not in self._seen:
                self._meet(each)
        answer = func(*args, **kwargs)
        for each in tree_leaves(answer):
            if isinstance(each, Tensor):
                self._seen[id(each)] = each
                self.nested |= torch._C._functorch.maybe_get_level(each) > self._level
        return answer

    def _meet(self, tensor: Tensor) -> None:
        self._seen[id(tensor)] = tensor
        inner, derived = tensor, False
        while torch._C._functorch.maybe_get_level(inner) > self._level:  # of a transform that fn itself makes use of
            self.nested = True
            derived |= not torch._C._functorch.is_batchedtensor(inner)
            inner = torch._C._functorch.get_unwrapped(inner)
        if id(inner) not in self._seen or inner is tensor:
            self._seen[id(inner)] = inner
            if self._is_variable(inner):
                self.found.append(inner)
        if derived and any(inner is each for each in self.found):
            self._handed.append(inner)

    def _is_variable(self, tensor: Tensor) -> bool:
        if torch._C._functorch.maybe_get_level(tensor) > 0:
            return True
        return tensor.requires_grad or has_tangent(tensor)


def _slots(module: nn.Module) -> Slots:
    """Of a module alone, without those that it holds."""
    return [
        (held, name, each)
        for held in (module._parameters, module._buffers)
        for name, each in held.items()
        if each is not None
    ]


def _modules_of(fn: Callable[..., Any]) -> list[nn.Module]:
    """The modules that fn is, is a method of, or closes over by name, with all that they hold."""
    held = [fn, getattr(fn, "__self__", None)]
    for cell in getattr(fn, "__closure__", None) or ():
        with suppress(ValueError):  # empty as yet
            held.append(cell.cell_contents)
    return [module for each in held if isinstance(each, nn.Module) for module in each.modules()]


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward mode, outside of torch.func, follows this tensor."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


class Closed:
    """fn, which closes over the tensors that were read, as a function of these too.

    Raises:
        RuntimeError: when it is called, if fn no longer reads one of them.
    """

    def __init__(self, fn: Callable[..., Any], read: Reading):
        self.fn, self.found = fn, tuple(read.found)
        self._slots = read.slots
        held = {id(each) for _, _, each in self._slots}
        self._bare = {id(each) for each in self.found if id(each) not in held}

    def __call__(self, x: Tensor, *arguments: Any) -> Any:
        """fn(x, *inputs), where the arguments are its inputs and then others in the place of those found."""
        inputs = len(arguments) - len(self.found)
        given = {id(old): new for old, new in zip(self.found, arguments[inputs:], strict=True)}
        with ExitStack() as after:
            for held, name, old in self._slots:
                after.callback(held.__setitem__, name, held[name])
                held[name] = given.get(id(old), old)
            with _Swap(given) as swap:
                y = self.fn(x, *arguments[:inputs])
        if self._bare - swap.met:
            raise RuntimeError(
                "fn: expected it to read the same tensors again. It closes over one that torch.func.functional_call "
                "put into a module for a while: let fn be that module, close over it, or call it"
            )
        return y


class _Swap(TorchFunctionMode):
    """Within its ``with``, other tensors in the place of those with some ids; `met` are the ids that were read."""

    def __init__(self, given: dict[int, Tensor]):
        super().__init__()
        self._given, self.met = given, set[int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: self._swapped(each) for name, each in kwargs.items()} if kwargs else {}
        return func(*map(self._swapped, args), **kwargs)

    def _swapped(self, each: Any) -> Any:
        if isinstance(each, Tensor):
            self.met.add(id(each))
            if id(each) not in self._given and torch._C._functorch.is_batchedtensor(each):
                return self._slice_swapped(each)
            return self._given.get(id(each), each)
        if type(each) in (list, tuple):
            return type(each)(map(self._swapped, each))
        return each

    def _slice_swapped(self, each: Tensor) -> Tensor:
        """A slice, in a ``vmap`` of fn's own, of what may have to be swapped."""
        whole = torch._C._functorch.get_unwrapped(each)
        other = self._swapped(whole)
        if other is whole:
            return each
        level, axis = torch._C._functorch.maybe_get_level(each), torch._C._functorch.maybe_get_bdim(each)
        return torch._C._functorch._add_batch_dim(other, axis, level)
