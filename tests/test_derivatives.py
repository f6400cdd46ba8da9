"""Derivatives of every kind and order: double backward, forward mode, the transforms of torch.func, torch.compile."""

import copy

import pytest
import torch
from helpers import assert_all_close, assert_close, difference, difference_tolerance
from problems import (
    DTYPE,
    NONLINEARITIES,
    STRUCTURES,
    Reward,
    each_nonlinearity,
    each_structure,
    manufactured,
    manufactured_path,
    not_normal,
    randn,
)
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import retrograde as rg

# torch.func.jvp's own
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def steady(W, f, leak=None, seed=1):
    """x as a function of b and the weights, and where to take it: away from kinks."""
    _, b = manufactured(W, f, 2, seed=seed)
    return lambda b, *weights: rg.steady_state(W.bind(*weights), b, f).x, _leaves(b, *W.weights)


def path(W, f, leak=None, seed=1):
    """x(1), ..., x(T) as a function of b, x(0), the leak where there is one, and the weights."""
    _, x0, b = manufactured_path(W, f, 3, 2, leak=leak, seed=seed)
    if leak is None:
        return lambda b, x0, *weights: rg.trajectory(W.bind(*weights), b, x0, f).x, _leaves(b, x0, *W.weights)
    a = torch.full((b.shape[-1],), leak, dtype=DTYPE)
    run = lambda b, x0, a, *weights: rg.trajectory(W.bind(*weights), b, x0, f, leak=a).x  # noqa: E731
    return run, _leaves(b, x0, a, *W.weights)


def leaky(W, f, seed=1):
    return path(W, f, 0.4, seed)


def _leaves(*tensors):
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


each_mode = pytest.mark.parametrize("mode", [steady, path, leaky])


def small():
    return rg.Dense(not_normal(4))


# --- against finite differences


@each_mode
@each_structure
@each_nonlinearity
def test_two_derivatives_each_way_are_those_of_finite_differences(mode, structure, f):
    function, where = mode(STRUCTURES[structure](), f)
    check = dict(fast_mode=True, eps=1e-5, atol=1e-7, rtol=1e-6)
    assert torch.autograd.gradcheck(function, where, check_forward_ad=True, **check)
    assert torch.autograd.gradgradcheck(function, where, check_fwd_over_rev=True, **check)


@each_mode
def test_entry_by_entry_and_in_batches_of_gradients_too(mode):
    function, where = mode(small(), rg.Tanh())
    assert torch.autograd.gradcheck(
        function, where, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(function, where, check_batched_grad=True)
