"""f and its slope for Numba, so that a loop over neurons becomes vector instructions.

exp, and with it tanh, sigmoid and softplus, is a polynomial, and they are within three units in the last place of exact
over the whole range: the library's scalar functions are not vectorised.
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
    """2^k for a whole number k, held as a float, from -126 to 127 or from -1022 to 1023: its exponent bits, written."""
    if k not in (types.float32, types.float64):
        raise TypingError("expected float32 or float64")
    bits, bias, shift = (32, 127, 23) if k == types.float32 else (64, 1023, 52)

    def codegen(context, builder, signature, args):
        word = ir.IntType(bits)
        whole = builder.fptosi(args[0], ir.IntType(32))  # of which there are vector instructions for both
        exponent = builder.add(whole if bits == 32 else builder.sext(whole, word), ir.Constant(word, bias))
        return builder.bitcast(builder.shl(exponent, ir.Constant(word, shift)), args[0].type)

    return k(k), codegen


@njit(inline="always", error_model="numpy", fastmath=FAST)
def _parts32(x):
    """2^k and e^r - 1, |r| <= ln2/2, of which e^x = 2^k e^r, for -87.33 <= x <= 88."""
    k = (x * _LOG2E + _ROUND) - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return _two_to(k), p * r * r + r


@njit(inline="always", error_model="numpy", fastmath=FAST)
def _exp32(x):
    scale, p = _parts32(x)
    return p * scale + scale


@njit(inline="always", error_model="numpy", fastmath=FAST)
def _expm1_32(x):
    """e^x - 1, to the last digit also where it is small."""
    scale, p = _parts32(x)
    return p * scale + (scale - f32(1.0))


@njit(inline="always", error_model="numpy", fastmath=FAST)
def tanh32(u):
    m = _expm1_32(f32(2.0) * min(abs(u), f32(10.0)))
    x = m / (m + f32(2.0))
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


# The same in float64.
_LOG2E_64, _ROUND_64 = 1 / math.log(2), 1.5 * 2.0**52
_LN2_HIGH_64, _LN2_LOW_64 = 0.693145751953125, 1.4286068203094173e-6
_EXP_64 = tuple(1 / math.factorial(k) for k in range(13, 1, -1))
_LOG1P_64 = tuple(2 / (2 * k + 1) for k in range(15, 0, -1))


@njit(inline="always", error_model="numpy", fastmath=FAST)
def _parts64(x):
    """2^k and e^r - 1, of which e^x = 2^k e^r, for -708.39 <= x <= 709: Taylor's series."""
    k = (x * _LOG2E_64 + _ROUND_64) - _ROUND_64
    r = (x - k * _LN2_HIGH_64) - k * _LN2_LOW_64
    p = 0.0
    for coefficient in _EXP_64:
        p = p * r + coefficient
    return _two_to(k), p * r * r + r


@njit(inline="always", error_model="numpy", fastmath=FAST)
def _exp64(x):
    scale, p = _parts64(x)
    return p * scale + scale


@njit(inline="always", error_model="numpy", fastmath=FAST)
def _expm1_64(x):
    scale, p = _parts64(x)
    return p * scale + (scale - 1.0)


@njit(inline="always", error_model="numpy", fastmath=FAST)
def tanh64(u):
    m = _expm1_64(2.0 * min(abs(u), 20.0))
    x = m / (m + 2.0)
    return x if u >= 0 else -x


@njit(inline="always", error_model="numpy", fastmath=FAST)
def sigmoid64(u):
    e = _exp64(-min(abs(u), 708.39))
    x = 1.0 / (1.0 + e)
    return x if u >= 0 else e * x


@njit(inline="always", error_model="numpy", fastmath=FAST)
def softplus64(u):
    e = _exp64(-min(abs(u), 708.39))
    z = e / (2.0 + e)
    w, p = z * z, 0.0
    for coefficient in _LOG1P_64:
        p = p * w + coefficient
    return (u if u > 0 else 0.0) + (p * w * z + 2.0 * z)


# --- f by its number, over a row, in place. The branch is taken once a row, and each loop is vector instructions.

SLOPES, TANH, SIGMOID, RELU, SOFTPLUS, IDENTITY = range(-1, 5)


def _tanh(u): ...


def _sigmoid(u): ...


def _softplus(u): ...


def _expm1(u): ...


@overload(_tanh)
def _tanh_for(u):
    return (lambda u: tanh32(u)) if u == types.float32 else (lambda u: tanh64(u))


@overload(_sigmoid)
def _sigmoid_for(u):
    return (lambda u: sigmoid32(u)) if u == types.float32 else (lambda u: sigmoid64(u))


@overload(_softplus)
def _softplus_for(u):
    return (lambda u: softplus32(u)) if u == types.float32 else (lambda u: softplus64(u))


@overload(_expm1)
def _expm1_for(u):
    if u == types.float32:
        return lambda u: _expm1_32(min(max(u, f32(-87.0)), f32(88.0)))
    return lambda u: _expm1_64(min(max(u, -708.0), 709.0))


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
            s[j] *= -_expm1(-x[j])


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
