"""z = step(z) by Anderson acceleration, for a large sparse W: `solvers.anderson`, all turns in one call.

Neurons lie along the rows, (n, lanes), of one sample, or of as many side by side as fill a line of the cache, and the
threads share out the rows of each product. The neurons are numbered anew, those of most connections first, so that what
is asked for most often lies together in the caches nearest to the core.

The differences of residuals enter as their inner products, summed in float64: for float32 as exact as the QR
factorisation of the plain path, and a tenth of its cost.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.fixed_point import WINDOW
from retrograde.kernels.cpu.functions import FAST, SLOPES, apply, times_slope
from retrograde.kernels.cpu.structures import gather_onto

_CHUNK = 1024  # neurons, of which all that is remembered is met in one go


@njit(parallel=True, error_model="numpy", cache=True)
def to_lines(x, place, threads, lines):
    """lines[place[j]] = x[:, j], x (samples, n) and lines (n, lanes): the last sample again in lanes that are left."""
    (samples, n), lanes = x.shape, lines.shape[1]
    for thread in prange(threads):
        for j in range(n * thread // threads, n * (thread + 1) // threads):
            line = lines[place[j]]
            for k in range(lanes):
                line[k] = x[min(k, samples - 1), j]


@njit(parallel=True, error_model="numpy", cache=True)
def from_lines(lines, place, threads, x):
    """x[:, j] = lines[place[j]], the way back."""
    samples, n = x.shape
    for thread in prange(threads):
        for j in range(n * thread // threads, n * (thread + 1) // threads):
            line = lines[place[j]]
            for k in range(samples):
                x[k, j] = line[k]


@njit(parallel=True, error_model="numpy", fastmath=FAST | {"reassoc"}, cache=True)
def product(M, row_of, shares, scattered, x, room, u):
    """u = Mx, x and u (n, lanes) by the new numbers; or u = Mᵀx, one lane, if `scattered`.

    M is in compressed rows, whose `others` are new numbers already; `row_of` gives the new number of each, and
    `shares`, (strips, threads + 1), the first of each thread's. Of several lanes there may be several strips, and a
    row in pieces, one a strip (see `strips`). `room` is (threads, n), or (threads, 0) where nothing is scattered.
    """
    starts, others, values = M
    n, threads = len(u), len(room)
    if scattered:
        z, out = x[:, 0], u[:, 0]
        for thread in prange(threads):
            y = room[thread]
            y[:] = 0
            for i in range(shares[0, thread], shares[0, thread + 1]):
                one = z[row_of[i]]
                if one != 0:
                    for e in range(starts[i], starts[i + 1]):
                        y[others[e]] += values[e] * one
        for thread in prange(threads):
            for j in range(n * thread // threads, n * (thread + 1) // threads):
                total = room[0, j]
                for k in range(1, threads):
                    total += room[k, j]
                out[j] = total
    elif x.shape[1] == 1:
        z, out = x[:, 0], u[:, 0]
        for thread in prange(threads):
            for i in range(shares[0, thread], shares[0, thread + 1]):
                total = values[:0].sum()
                for e in range(starts[i], starts[i + 1]):
                    total += values[e] * z[others[e]]
                out[row_of[i]] = total
    else:
        for thread in prange(threads):
            u[n * thread // threads : n * (thread + 1) // threads] = 0
        for thread in prange(threads):
            for k in range(len(shares)):
                for i in range(shares[k, thread], shares[k, thread + 1]):
                    gather_onto(others, values, x, u, row_of[i], starts[i], starts[i + 1])


@njit(parallel=True, error_model="numpy", fastmath=FAST | {"reassoc"}, cache=True)
def iterate(M, row_of, shares, scattered, c, D, kind, memory, delay, rtol, tiny, max_steps, floor, ridge, work, z):
    """Take turns until each lane's residual has fallen to rtol, or the lane has failed: written to z (n, lanes).

    step(z) = f(Mz + c) with f by its number, or D (Mz + c) with the slopes D, (n, lanes), as are c and z: all of them
    by the neurons' new numbers; `work` is room for x, step(x) and what is remembered, (5 + 2 memory, n, lanes).
    Returns residual, steps, and whether the answer is where the dynamics lead, (lanes,): see `solvers.anderson`.
    """
    n, lanes = z.shape
    pieces = (n + _CHUNK - 1) // _CHUNK
    x, u, r_before, u_before, best = work[0], work[1], work[2], work[3], work[4]
    dR, dU = work[5 : 5 + memory], work[5 + memory :]  # the first turn's own difference is of no use
    room = np.empty((shares.shape[1] - 1, n if scattered else 0), z.dtype)
    x[:], r_before[:], u_before[:] = z, 0, 0
    inner = np.zeros((memory, memory, lanes))  # products of the differences of residuals,
    right = np.zeros((memory, lanes))  # and of these with r
    sums = np.empty((pieces, memory + 3, lanes))
    gamma, share = np.zeros((memory, lanes)), np.zeros((memory, lanes), z.dtype)
    residual, steps = np.full(lanes, np.inf), np.zeros(lanes, np.int64)
    mark, least, known = np.full(lanes, np.inf), np.full(lanes, np.inf), np.zeros(lanes, np.int64)
    going, worse, better = np.ones(lanes, np.bool_), np.zeros(lanes, np.bool_), np.zeros(lanes, np.bool_)
    marked = np.empty((2, n if delay else 0, lanes), z.dtype)  # x after the delay, and the plain step from there
    at_mark, stays = np.zeros(lanes), np.ones(lanes, np.bool_)
    count, head = 0, 0
    while True:
        product(M, row_of, shares, scattered, x, room, u)
        filled = min(count + 1, memory)
        # The step itself, what changed since the last, and its inner products with all that is remembered.
        for p in prange(pieces):
            top, end = _CHUNK * p, min(_CHUNK * (p + 1), n)
            now, before = u[top:end], x[top:end]
            flat, given = now.reshape((end - top) * lanes), c[top:end].reshape((end - top) * lanes)
            for j in range(len(flat)):
                flat[j] += given[j]
            if kind == SLOPES:
                times_slope(kind, D[top:end].reshape((end - top) * lanes), flat)
            else:
                apply(kind, flat)
            new_R, new_U = dR[head, top:end], dU[head, top:end]
            _differences(flat, before, r_before[top:end], u_before[top:end], new_R, new_U)
            sums[p] = 0
            for m in range(filled):
                _dots(dR[m, top:end], new_R, sums[p, m])
            r = r_before[top:end]
            _dots(r, new_R, sums[p, memory])
            _dots(r, r, sums[p, memory + 1])
            _dots(before, before, sums[p, memory + 2])
        total = sums[0].copy()
        for p in range(1, pieces):
            total += sums[p]
        some = False
        for k in range(lanes):
            gap, size = np.sqrt(total[memory + 1, k]), np.sqrt(total[memory + 2, k])
            better[k] = worse[k] = False
            gamma[:, k] = 0
            if not going[k]:
                continue
            # Where |x| overflows, nothing is small beside it.
            residual[k] = gap / max(size, tiny) if size < np.inf else np.inf
            if delay and count == delay:
                marked[0, :, k], marked[1, :, k], at_mark[k] = x[:, k], u[:, k], residual[k]
            stalled = False
            if count and count % WINDOW == 0:
                stalled = residual[k] < floor and residual[k] >= mark[k]
                mark[k] = residual[k]
            if not (residual[k] > rtol and residual[k] < np.inf and count < max_steps) or stalled:
                going[k], steps[k] = False, count
                for i in range(n):
                    z[i, k] = x[i, k]
                if delay and count > delay and residual[k] <= rtol and not _nearer(marked[1], marked[0], z, k):
                    stays[k], residual[k] = False, at_mark[k]
                    z[:, k] = marked[0, :, k]
                continue
            some = True
            inner[head, :, k] = inner[:, head, k] = total[:memory, k]
            right[:, k] += total[:memory, k]  # r itself has changed by the newest difference
            right[head, k] = total[memory, k]
            worse[k], better[k] = count >= delay and not gap <= 10 * least[k], gap < least[k]
            # A new beginning is measured against itself, lest a best far back hold every other up.
            if better[k]:
                least[k] = gap
            if worse[k] and count:
                least[k], known[k] = np.inf, 0
            else:
                worse[k] = False
                known[k] += 1
                if count >= delay:
                    _solve(inner[:, :, k], right[:, k], head, min(known[k] - 1, memory), ridge, gamma[:, k])
        if not some:
            return residual, steps, stays
        for m in range(memory):
            for k in range(lanes):
                share[m, k] = gamma[m, k]
        for p in prange(pieces):
            top, end = _CHUNK * p, min(_CHUNK * (p + 1), n)
            now, onward, kept = u[top:end], x[top:end], best[top:end]
            if lanes > 1:
                for i in range(end - top):
                    for k in range(lanes):
                        onward[i, k] = kept[i, k] if worse[k] else now[i, k]
                        kept[i, k] = now[i, k] if better[k] else kept[i, k]
            else:
                onward[:] = kept if worse[0] else now
                if better[0]:
                    kept[:] = now
            for m in range(filled):
                _subtract(onward, dU[m, top:end], share[m])
        count += 1
        head = (head + 1) % memory


@njit(error_model="numpy", fastmath=FAST)
def _nearer(a, b, z, k):
    """Whether in lane k |a - z| < |b - z|."""
    one = other = 0.0
    for i in range(len(z)):
        one += (a[i, k] - z[i, k]) ** 2
        other += (b[i, k] - z[i, k]) ** 2
    return one < other


@njit(error_model="numpy", fastmath=FAST)
def _differences(u, x, r, u_last, new_R, new_U):
    """The residual u - x, written to r, and what it and u have changed by; u is (rows * lanes,), else (rows, lanes)."""
    size = len(u)
    x, r, u_last, new_R, new_U = (
        x.reshape(size),
        r.reshape(size),
        u_last.reshape(size),
        new_R.reshape(size),
        new_U.reshape(size),
    )
    for j in range(size):
        gap = u[j] - x[j]
        new_R[j], new_U[j] = gap - r[j], u[j] - u_last[j]
        r[j], u_last[j] = gap, u[j]


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def _dots(a, b, out):
    """Add Σ_i a[i] b[i] to out, for each lane."""
    if a.shape[1] == 1:
        one, other, total = a[:, 0], b[:, 0], 0.0
        for i in range(len(one)):
            total += np.float64(one[i]) * np.float64(other[i])
        out[0] += total
    else:
        for i in range(len(a)):
            for k in range(a.shape[1]):
                out[k] += np.float64(a[i, k]) * np.float64(b[i, k])


@njit(error_model="numpy", fastmath=FAST)
def _subtract(x, difference, share):
    """Take share times the difference from x, for each lane."""
    if x.shape[1] == 1:
        one, other, by = x[:, 0], difference[:, 0], share[0]
        if by != 0:
            for i in range(len(one)):
                one[i] -= by * other[i]
    else:
        for i in range(len(x)):
            for k in range(x.shape[1]):
                x[i, k] -= share[k] * difference[i, k]


@njit(error_model="numpy")
def _solve(inner, right, head, count, ridge, gamma):
    """The γ for which |r - ΔR γ| is least, of the newest `count` differences, each column of ΔR scaled to length 1."""
    memory = len(inner)
    A, y, which = np.zeros((count, count)), np.zeros(count), np.zeros(count, np.int64)
    for a in range(count):
        which[a] = (head - a) % memory
    for a in range(count):
        length = np.sqrt(inner[which[a], which[a]])
        y[a] = right[which[a]] / length if length > 0 else 0.0
        for b in range(count):
            lengths = length * np.sqrt(inner[which[b], which[b]])
            A[a, b] = inner[which[a], which[b]] / lengths if lengths > 0 else 0.0
        A[a, a] = 1 + ridge
    for a in range(count):  # Cholesky's factor, in the lower half
        for b in range(a + 1):
            total = A[a, b]
            for j in range(b):
                total -= A[a, j] * A[b, j]
            A[a, b] = np.sqrt(max(total, ridge)) if a == b else total / A[b, b]
    for a in range(count):
        for j in range(a):
            y[a] -= A[a, j] * y[j]
        y[a] /= A[a, a]
    for a in range(count - 1, -1, -1):
        for j in range(a + 1, count):
            y[a] -= A[j, a] * y[j]
        y[a] /= A[a, a]
    for a in range(count):
        length = np.sqrt(inner[which[a], which[a]])
        gamma[which[a]] = y[a] / length if length > 0 else 0.0
