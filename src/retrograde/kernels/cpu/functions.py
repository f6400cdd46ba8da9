"""f and its slope for Numba, so that a loop over neurons becomes vector instructions.

exp, and with it tanh, sigmoid and softplus, is a polynomial, and they are within three units in the last place of exact
over the whole range: the library's scalar functions are not vectorised.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

# Fused multiply-adds; sums in the order written, NaN, infinity and division as they are.
FAST = {"contract", "nsz"}


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


class Precision(NamedTuple):
    """The numbers by which e^x is computed in one precision, and log(1 + e^x)."""

    number: Any
    ln2: tuple[float, float]  # whose sum it is, the first of so few digits that its multiples are exact
    exp: tuple[float, ...]  # the coefficients of (e^r - 1 - r) / r², |r| <= ln2/2, those of the highest powers first
    log1p: tuple[float, ...]  # and of (2 artanh(z) / z - 2) / z², in powers of z² <= 1/9
    range: tuple[float, float]  # of x, within which e^x has all of its digits
    one: float  # where tanh is 1


def _functions(of):
    """tanh, sigmoid, softplus and e^x - 1 in a precision, for Numba to write into the loops that call them."""
    inlined = njit(inline="always", error_model="numpy", fastmath=FAST)
    number = of.number
    zero, one, two, tanhs_one = map(number, (0, 1, 2, of.one))
    log2e, ln2_high, ln2_low = number(1 / math.log(2)), number(of.ln2[0]), number(of.ln2[1])
    to_whole = number(1.5 / np.finfo(number).eps)  # added and taken away again, it leaves a whole number
    least, most = number(of.range[0]), number(of.range[1])
    exp_first, *exp_others = map(number, of.exp)
    log1p_first, *log1p_others = map(number, of.log1p)
    exp_others, log1p_others = tuple(exp_others), tuple(log1p_others)

    @inlined
    def parts(x):
        """2^k and e^r - 1, |r| <= ln2/2, of which e^x = 2^k e^r."""
        k = (x * log2e + to_whole) - to_whole
        r = (x - k * ln2_high) - k * ln2_low
        p = exp_first
        for coefficient in exp_others:
            p = p * r + coefficient
        return _two_to(k), p * r * r + r

    @inlined
    def exp(x):
        scale, p = parts(x)
        return p * scale + scale

    @inlined
    def expm1(x):
        """To the last digit also where it is small."""
        scale, p = parts(x)
        return p * scale + (scale - one)

    @inlined
    def expm1_of_any(x):
        return expm1(min(max(x, least), most))

    @inlined
    def tanh(u):
        m = expm1(two * min(abs(u), tanhs_one))
        x = m / (m + two)
        return x if u >= 0 else -x

    @inlined
    def sigmoid(u):
        e = exp(-min(abs(u), -least))
        x = one / (one + e)
        return x if u >= 0 else e * x

    @inlined
    def softplus(u):
        e = exp(-min(abs(u), -least))
        z = e / (two + e)  # log(1 + e) = 2 artanh(z)
        w = z * z
        p = log1p_first
        for coefficient in log1p_others:
            p = p * w + coefficient
        return (u if u > 0 else zero) + (p * w * z + two * z)

    return tanh, sigmoid, softplus, expm1_of_any


_IN = {
    types.float32: _functions(
        Precision(
            np.float32,
            ln2=(0.693359375, -2.12194440e-4),
            exp=(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
            log1p=tuple(2 / (2 * k + 1) for k in range(7, 0, -1)),
            range=(-87.33, 88),
            one=10,
        )
    ),
    types.float64: _functions(
        Precision(
            np.float64,
            ln2=(0.693145751953125, 1.4286068203094173e-6),
            exp=tuple(1 / math.factorial(k) for k in range(13, 1, -1)),
            log1p=tuple(2 / (2 * k + 1) for k in range(15, 0, -1)),
            range=(-708.39, 709),
            one=20,
        )
    ),
}


# --- f by its number, over a row, in place. The branch is taken once a row, and each loop is vector instructions.

SLOPES, TANH, SIGMOID, RELU, SOFTPLUS, IDENTITY = range(-1, 5)


def _tanh(u): ...


def _sigmoid(u): ...


def _softplus(u): ...


def _expm1(u): ...


def _in_its_precision(stub, place):
    """Let Numba take for the stub the function of that place in the precision of what it is called with."""

    @overload(stub)
    def found(u):
        function = _IN[u][place]

        def called(u):
            return function(u)

        called.__qualname__ = f"in_its_precision.{stub.__name__}"  # by which the linker tells one from another
        return called


for _place, _stub in enumerate((_tanh, _sigmoid, _softplus, _expm1)):
    _in_its_precision(_stub, _place)


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
            u[j] = np.float32(0) if u[j] <= 0 else u[j]
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
