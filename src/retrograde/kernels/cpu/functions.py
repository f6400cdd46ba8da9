"""f and its slope for Numba, so that a loop over neurons becomes vector instructions.

In float32 exp, and with it tanh, sigmoid and softplus, is a polynomial within about two units in the last place of the
exact value over the whole range; the library's scalar functions are not vectorised, and serve float64.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

# Fused multiply-adds; sums in the order written, NaN, infinity and division as they are.
FAST = {"contract", "nsz"}

f32 = np.float32
_LOG2E = f32(1.4426950408889634)
_ROUND = f32(1.5 * 2**23)  # added and taken away again, it leaves a whole number
_LN2_HIGH, _LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)


@intrinsic
def _two_to(typingctx, k):
    """2^k for a whole number k from -126 to 127, held as float32: its exponent bits, written."""
    if k != types.float32:
        raise TypingError("expected float32")

    def codegen(context, builder, signature, args):
        i32 = ir.IntType(32)
        exponent = builder.add(builder.fptosi(args[0], i32), ir.Constant(i32, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(i32, 23)), ir.FloatType())

    return types.float32(types.float32), codegen


@njit(inline="always", error_model="numpy", fastmath=FAST)
def _exp32(x):
    """e^x for -87 <= x <= 88: 2^k e^r, |r| <= ln2/2."""
    k = (x * _LOG2E + _ROUND) - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = (p * r * r + r) + f32(1.0)
    return p * _two_to(k)


@njit(inline="always", error_model="numpy", fastmath=FAST)
def tanh32(u):
    a = min(abs(u), f32(10.0))
    z = a * a
    p = f32(-5.70498872745e-3)
    p = p * z + f32(2.06390887954e-2)
    p = p * z + f32(-5.37397155531e-2)
    p = p * z + f32(1.33314422036e-1)
    p = p * z + f32(-3.33332819422e-1)
    near = p * z * a + a
    far = f32(1.0) - f32(2.0) / (_exp32(a + a) + f32(1.0))
    x = near if a < f32(0.625) else far
    return x if u >= 0 else -x


@njit(inline="always", error_model="numpy", fastmath=FAST)
def sigmoid32(u):
    e = _exp32(-min(abs(u), f32(87.33)))
    x = f32(1.0) / (f32(1.0) + e)
    return x if u >= 0 else e * x


@njit(inline="always", error_model="numpy", fastmath=FAST)
def softplus32(u):
    e = _exp32(-min(abs(u), f32(87.33)))
    z = e / (f32(2.0) + e)  # log(1 + e) = 2 artanh(z), z <= 1/3
    w = z * z
    p = f32(2.0 / 15)
    p = p * w + f32(2.0 / 13)
    p = p * w + f32(2.0 / 11)
    p = p * w + f32(2.0 / 9)
    p = p * w + f32(2.0 / 7)
    p = p * w + f32(2.0 / 5)
    p = p * w + f32(2.0 / 3)
    log1p = p * w * z + f32(2.0) * z
    return (u if u > 0 else f32(0.0)) + log1p


# --- f by its number, over a row, in place. The branch is taken once a row, and each loop is vector instructions.

SLOPES, TANH, SIGMOID, RELU, SOFTPLUS, IDENTITY = range(-1, 5)


def _tanh(u): ...


def _sigmoid(u): ...


def _softplus(u): ...


def _exp(u): ...


@overload(_tanh)
def _tanh_for(u):
    return (lambda u: tanh32(u)) if u == types.float32 else (lambda u: math.tanh(u))


@overload(_sigmoid)
def _sigmoid_for(u):
    if u == types.float32:
        return lambda u: sigmoid32(u)

    def sigmoid64(u):
        e = math.exp(-abs(u))
        return 1.0 / (1.0 + e) if u >= 0 else e / (1.0 + e)

    return sigmoid64


@overload(_softplus)
def _softplus_for(u):
    if u == types.float32:
        return lambda u: softplus32(u)
    return lambda u: max(u, 0.0) + math.log1p(math.exp(-abs(u)))


@overload(_exp)
def _exp_for(u):
    return (lambda u: _exp32(max(u, f32(-87.0)))) if u == types.float32 else (lambda u: math.exp(u))


@njit(error_model="numpy", fastmath=FAST)
def apply(kind, u):
    """Put f(u) in the place of u."""
    if kind == TANH:
        for j in range(len(u)):
            u[j] = _tanh(u[j])
    elif kind == SIGMOID:
        for j in range(len(u)):
            u[j] = _sigmoid(u[j])
    elif kind == RELU:
        for j in range(len(u)):
            u[j] = f32(0.0) if u[j] <= 0 else u[j]
    elif kind == SOFTPLUS:
        for j in range(len(u)):
            u[j] = _softplus(u[j])


@njit(error_model="numpy", fastmath=FAST)
def times_slope(kind, x, s):
    """Multiply s by f'(u), read from the output x = f(u); or by x, where that is the slope itself."""
    if kind == SLOPES:
        for j in range(len(s)):
            s[j] *= x[j]
    elif kind == TANH:
        for j in range(len(s)):
            s[j] *= 1 - x[j] * x[j]
    elif kind == SIGMOID:
        for j in range(len(s)):
            s[j] *= x[j] * (1 - x[j])
    elif kind == RELU:
        for j in range(len(s)):
            s[j] = s[j] if x[j] > 0 else s[j] * 0
    elif kind == SOFTPLUS:
        for j in range(len(s)):
            s[j] *= 1 - _exp(-x[j])


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def oddity(u):
    """0 where all of u is finite, else NaN."""
    total = u[:0].sum()
    for j in range(len(u)):
        total += u[j] * 0
    return total


@njit(error_model="numpy", fastmath=FAST)
def all_finite(u):
    """Whether all of u, (rows, columns), is finite."""
    odd = 0.0
    for k in range(len(u)):
        odd += oddity(u[k])
    return odd == 0
