"""A few samples of a sparse W of many connections, through time: side by side in a line of the cache, products shared.

Neurons lie along the rows, (n, lanes), from the first step to the last, and a thread takes some of them at a time from
the product to the answer, while they are in the cache nearest to its core. What comes in and goes out may lie in memory
as it likes: each such array is handed over without axes, as the numbers from its first to its last, and with its
strides over time, samples and neurons, of which one is 0 where the same numbers serve all.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.functions import FAST, apply, times_slope
from retrograde.kernels.cpu.structures import gather, part_of

_CHUNK = 64  # neurons


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def forward(A, b, bias, leak, kind, threads, T, samples, x, strides, states):
    """`sweeps.forward`, for x (T + 1, samples, n) with the strides of b, bias and x. An array of no numbers is none.

    `states` is room for two of them, (2, n, lanes).
    """
    starts, others, values = A
    n, lanes, odd = len(starts) - 1, states.shape[2], np.zeros(threads)
    of_b, of_bias, of_x = strides
    for thread in prange(threads):
        first, last = n * thread // threads, n * (thread + 1) // threads
        states[:, first:last] = 0
        _take(x, of_x, 0, first, last, samples, states[0, first:last])
    for t in range(T):
        for thread in prange(threads):
            first, last = part_of(A, n, thread, threads)
            given, found = states[t % 2], states[1 - t % 2]
            drive, more = np.zeros((_CHUNK, lanes), x.dtype), np.zeros((_CHUNK, lanes), x.dtype)
            for chunk in range((last - first + _CHUNK - 1) // _CHUNK):
                top = first + _CHUNK * chunk
                end = min(top + _CHUNK, last)
                if len(bias):
                    _take(bias, of_bias, 0, top, end, samples, drive)
                if len(b):
                    _take(b, of_b, t, top, end, samples, more)
                for i in range(top, end):
                    gather(others, values, given, found, i, starts[i], starts[i + 1])
                size = (end - top) * lanes
                now, before = found[top:end].reshape(size), given[top:end].reshape(size)
                constant, varying = drive.reshape(_CHUNK * lanes), more.reshape(_CHUNK * lanes)
                for j in range(size):
                    now[j] += varying[j] + constant[j]
                for j in range(size):
                    odd[thread] += now[j] * 0
                apply(kind, now)
                if len(leak):
                    for i in range(end - top):
                        a = leak[top + i]
                        for r in range(lanes):
                            k = i * lanes + r
                            now[k] = before[k] + a * (now[k] - before[k])
                _tell(found[top:end], samples, x, of_x, t + 1, top)
    return odd.sum() == 0


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def adjoint(A, y, g, at, leak, kind, threads, samples, s_next, l_next, s, l, strides, states):
    """`sweeps.adjoint`, for s (T, samples, n) with the strides of y, g, s_next, l_next, s and l."""
    starts, others, values = A
    n, lanes, T = len(starts) - 1, states.shape[2], len(at)
    of_y, of_g, of_s_next, of_l_next, of_s, of_l = strides
    kept = np.zeros((n if len(leak) else 0, lanes), s.dtype)
    for thread in prange(threads):
        first, last = n * thread // threads, n * (thread + 1) // threads
        states[:, first:last] = 0
        if len(s_next):
            _take(s_next, of_s_next, 0, first, last, samples, states[0, first:last])
        if len(l_next):
            _take(l_next, of_l_next, 0, first, last, samples, kept[first:last])
    for back in range(T):
        t = T - 1 - back
        for thread in prange(threads):
            first, last = part_of(A, n, thread, threads)
            given, found = states[back % 2], states[1 - back % 2]
            reward, slopes = np.zeros((_CHUNK, lanes), s.dtype), np.zeros((_CHUNK, lanes), s.dtype)
            for chunk in range((last - first + _CHUNK - 1) // _CHUNK):
                top = first + _CHUNK * chunk
                end = min(top + _CHUNK, last)
                size = (end - top) * lanes
                now = found[top:end].reshape(size)
                if back > 0 or len(s_next):
                    for i in range(top, end):
                        gather(others, values, given, found, i, starts[i], starts[i + 1])
                else:
                    now[:] = 0
                if at[t] >= 0:
                    _take(g, of_g, at[t], top, end, samples, reward)
                    added = reward.reshape(_CHUNK * lanes)
                    for j in range(size):
                        now[j] += added[j]
                if len(leak):
                    for i in range(end - top):
                        slopes[i] = leak[top + i]
                    before, a = kept[top:end].reshape(size), slopes.reshape(_CHUNK * lanes)
                    for j in range(size):  # a in a line, as in `sweeps`: the compiler rounds (1 - a) l otherwise else
                        now[j] += (1 - a[j]) * before[j]
                    for j in range(size):
                        before[j] = now[j]
                        now[j] *= a[j]
                    _tell(kept[top:end], samples, l, of_l, t, top)
                _take(y, of_y, t, top, end, samples, slopes)
                times_slope(kind, slopes.reshape(_CHUNK * lanes)[:size], now)
                _tell(found[top:end], samples, s, of_s, t, top)


@njit(error_model="numpy", fastmath=FAST)
def _take(given, strides, t, first, last, samples, lines):
    """lines[j, r] = what is given at t, of sample r and neuron first + j."""
    of_t, of_r, of_j = strides
    start, count = t * of_t + first * of_j, last - first
    if of_r == 1:
        for j in range(count):
            one, line = given[start + j * of_j : start + j * of_j + samples], lines[j]
            for r in range(samples):
                line[r] = one[r]
    elif of_j == 1:
        for r in range(samples):
            row = given[start + r * of_r : start + r * of_r + count]
            for j in range(count):
                lines[j, r] = row[j]
    else:
        for r in range(samples):
            for j in range(count):
                lines[j, r] = given[start + r * of_r + j * of_j]


@njit(error_model="numpy", fastmath=FAST)
def _tell(lines, samples, told, strides, t, first):
    """The way back, of which the strides are 1 for samples or for neurons."""
    of_t, of_r, of_j = strides
    start, count = t * of_t + first * of_j, len(lines)
    if of_r == 1:
        for j in range(count):
            one, line = told[start + j * of_j : start + j * of_j + samples], lines[j]
            for r in range(samples):
                one[r] = line[r]
    else:
        for r in range(samples):
            row = told[start + r * of_r : start + r * of_r + count]
            for j in range(count):
                row[j] = lines[j, r]
