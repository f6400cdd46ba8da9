"""z = step(z) by iteration, for a whole batch in one call; each sample stops by its own residual.

A few samples at a time share each load of the matrix. When one of them stops, the next that waits takes its place, so a
slow sample costs its own steps alone, and a sample's arithmetic is the same whatever else is in the batch.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from retrograde.kernels.cpu.functions import FAST, SLOPES, all_finite, apply, times_slope
from retrograde.kernels.cpu.structures import at_once, is_finite, multiply, outer_part, ready, room

WINDOW = 32
LEAST, MOST = 2.0**-10, 2.0**10
UNFIT, DONE, ALL_CONVERGED, ALL_TOLD = range(4)

# What one sample's residuals tell of its error; see `nearing`, whose rules these are.
NOISE, SLOWEST, TURNS = 32, 0.95, 30
NEAR = 30.0  # times rtol, from where on the direction of each step is kept
FARTHEST = 2.0**30  # from 1 the size of a reward may be, for its adjoint to be told of


@njit(parallel=True, error_model="numpy", fastmath=FAST, cache=True)
def iterate(M, transposed, c, D, kind, numbers, threads, whole, x, z, residual, steps, amplified, dW, told, bend):
    """z <- z + damping (step(z) - z), written to z (B, n), residual (B,) and steps (B,).

    step(z) = f(Mz + c) with f by its number, or D (Mz + c) with the slopes D (B, n). M is as `structures` has it,
    transposed; c is (B, n). The numbers are the damping, rtol, tiny, max_steps, floor and target: a residual below
    `floor` that has not fallen for WINDOW steps is left to rounding.

    As a `whole` it does, in the same call, what comes before and after. For a steady state it looks whether all that is
    given is finite. For an adjoint it begins at Dc, finds |z| / |Dc| of each sample, amplified (B,), and, for a full W,
    adds Σ_k z[k] x[k]ᵀ to dW, unless that is (0, 0).

    Given `told`, a sample goes on until its residuals, by how fast they shrink, tell an error of no more than the
    target. What is told of a sample, (B, 3), is the error of its state, the same as dR/dx carries it, and the error of
    s xᵀ; infinite where they tell nothing. A state's iteration writes the first two, and to bend (B, n) how its slopes
    may differ from the true ones, which the adjoint's reads. For a state the target is of its error as the adjoint
    will amplify it.

    Returns:
        UNFIT, and nothing was done, where what was looked at is not fit for it (see `_is_fit`); DONE; or, of a whole,
        ALL_CONVERGED, which no rounding hides; or, where there is something told, ALL_TOLD.
    """
    # Without anything to be told, all that is about it is not even compiled.
    if whole and kind == SLOPES:
        fit = _is_fit(D, c, z, amplified) if told is None else _admit(D, c, z, amplified, told)
        if not fit:
            return UNFIT
    elif whole and not (is_finite(M) and all_finite(c)):
        return UNFIT
    A, B = ready(M, transposed), len(z)
    for thread in prange(threads):
        first, last = B * thread // threads, B * (thread + 1) // threads
        if told is None:
            _iterate(A, c, D, kind, numbers, first, last, z, residual, steps, None, None)
        else:
            _iterate(A, c, D, kind, numbers, first, last, z, residual, steps, told, bend)
    if not whole:
        return DONE
    converged, all_told, (_, rtol, tiny, _, _, _) = True, told is not None, numbers
    for k in range(B):
        good = residual[k] <= rtol
        if kind == SLOPES:
            amplified[k] = norm(z[k]) / amplified[k] if amplified[k] > 0 else 1
            good &= amplified[k] <= 0.1 / math.sqrt(tiny)
        if told is not None:
            which = 2 if kind == SLOPES else 0
            if not good:
                told[k, which] = np.inf
            all_told &= told[k, which] < np.inf
        converged &= good
    if len(dW):
        for thread in prange(threads):
            outer_part(M, z, x, thread, threads, dW)
    return ALL_TOLD if all_told else ALL_CONVERGED if converged else DONE


@njit(error_model="numpy", fastmath=FAST)
def _iterate(A, c, D, kind, numbers, waiting, end, z, residual, steps, told, bend):
    """The samples from `waiting` to before `end`, on one thread."""
    damping, rtol, tiny, max_steps, floor, target = numbers
    n, eps = z.shape[1], math.sqrt(tiny)
    noise = NOISE * eps
    most, work = at_once(A), room(A, n)
    u, x = np.empty((most, n), z.dtype), np.zeros((most, n), z.dtype)
    sample = np.full(most, -1)
    count, mark = np.zeros(most, np.int64), np.zeros(most)
    way = np.empty((0 if told is None else most, n), z.dtype)  # of each lane's last step
    gaps, rates, near, turns = np.zeros(most), np.zeros(most), np.zeros(most, np.bool_), np.zeros(most, np.int64)
    lanes = 0
    while True:
        for lane in range(most):
            if sample[lane] < 0 and waiting < end:
                sample[lane], count[lane], mark[lane] = waiting, 0, np.inf
                gaps[lane], rates[lane], near[lane], turns[lane] = np.inf, np.inf, False, 0
                put(x[lane], z[waiting])
                waiting += 1
                lanes += 1
        if lanes == 0:
            break
        for lane in range(most):
            if sample[lane] >= 0:
                put(u[lane], c[sample[lane]])
        if lanes > 2:
            multiply(A, x, u, work)
        else:  # the same terms in the same order, and so the same bits
            for lane in range(most):
                if sample[lane] >= 0:
                    multiply(A, x[lane : lane + 1], u[lane : lane + 1], work)
        for lane in range(most):
            i = sample[lane]
            if i < 0:
                continue
            now, before = u[lane], x[lane]
            bent = 0.0
            if kind == SLOPES:
                if bend is not None and near[lane]:
                    bent = norm_of_product(bend[i], now)
                times_slope(kind, D[i], now)
            else:
                apply(kind, now)
            gap, size = distance(now, before)
            r = gap / max(size, tiny)
            stalled = False
            if count[lane] % WINDOW == 0:
                stalled = r < floor and r >= mark[lane]
                mark[lane] = r
            going = r > rtol and r < np.inf
            if told is not None:
                gain = np.inf
                if near[lane]:
                    gain = gain_of(gap, gaps[lane], rates[lane], along(now, before, way[lane]), size, noise)
                turns[lane] += r <= rtol
                if r <= rtol:
                    known = near[lane], rates[lane], turns[lane]
                    going = not is_over(kind, r, gain, known, size, tiny, n, bent, target, told[i])
                rates[lane] = gap / gaps[lane] if gaps[lane] < np.inf else np.inf
                gaps[lane], near[lane] = gap, r <= NEAR * rtol
                if near[lane] and going:
                    for j in range(n):
                        way[lane, j] = now[j] - before[j]
                elif kind != SLOPES and r <= rtol:
                    put(z[i], before)
                    slopes_apart(kind, now, before, way[lane], gain, eps, bend[i])
                    put(before, z[i])
            if going and count[lane] < max_steps and not stalled:
                count[lane] += 1
                for j in range(n):
                    before[j] += damping * (now[j] - before[j])
            else:
                residual[i], steps[i] = r, count[lane]
                put(z[i], before)
                sample[lane] = -1
                lanes -= 1


@njit(error_model="numpy", fastmath=FAST)
def _is_fit(D, c, z, amplified):
    """Whether the largest |c| of each sample, and |Dc|, are near 1: no limit of the dtype, nor of a tolerance, is met.

    z becomes Dc, and amplified |Dc|.
    """
    for k in range(len(z)):
        largest = 0.0
        for j in range(z.shape[1]):
            z[k, j] = D[k, j] * c[k, j]
            largest = max(largest, abs(c[k, j])) if c[k, j] - c[k, j] == 0 else np.inf
        amplified[k] = norm(z[k])
        if not (min(largest, amplified[k]) >= LEAST and max(largest, amplified[k]) <= MOST):
            return False
    return True


@njit(error_model="numpy", fastmath=FAST)
def _admit(D, c, z, amplified, told):
    """Begin at Dc, |Dc| in `amplified`; whether all of c is finite.

    A sample whose reward is so large or small that it may meet a limit of the dtype is told nothing of, whatever else
    is in its batch.
    """
    for k in range(len(z)):
        odd = largest = 0.0
        for j in range(z.shape[1]):
            z[k, j] = D[k, j] * c[k, j]
            odd += c[k, j] * 0
            largest = max(largest, abs(c[k, j]))
        if odd != 0:
            return False
        amplified[k] = norm(z[k])
        if not (min(largest, amplified[k]) >= 1 / FARTHEST and max(largest, amplified[k]) <= FARTHEST):
            told[k, 1] = np.inf
    return True


@njit(error_model="numpy", fastmath=FAST)
def gain_of(gap, gap_before, rate_before, aligned, size, noise):
    """An error in units of the last residual, infinite where the steps come no nearer, NaN where rounding hides it.

    Of residuals that shrink by ρ a step, and have a correlation c from one to the next, those still to come add up to κ
    times the last, κ² = (1 + ρc) / ((1 - ρc) (1 - ρ²)). A ρ that rises is taken to rise once more.
    """
    if not gap_before > noise * size:
        return np.nan
    rate = gap / gap_before
    rho = rate + max(rate - rate_before, 0.0)
    c = max(aligned / (gap * gap_before), 0.0) if gap > 0 else 0.0
    return math.sqrt((1 + rho * c) / ((1 - rho * c) * (1 - rho * rho))) if rho < SLOWEST else np.inf


@njit(error_model="numpy", fastmath=FAST)
def is_over(kind, r, gain, known, size, tiny, n, bent, target, told):
    """Whether a sample is near enough, or never will be seen to be; what is told of it is written to `told` (3,)."""
    near, rate_before, turns = known
    error, carried = gain * r, max(size / math.sqrt(n), 1.0)
    times = 10.0 if rate_before == np.inf else 1.0  # a first rate may mislead, though hardly tenfold
    # A rate that fluctuates may seem slow once.
    lost = turns > TURNS or gain != gain or (gain == np.inf and near and SLOWEST <= rate_before < np.inf)
    if kind == SLOPES:
        beside = gain * (bent / max(size, tiny) + told[1])
        enough = times * error + beside <= target
        told[2] = error + beside if enough else np.inf
        return enough or lost or told[1] == np.inf
    enough = times * error * gain * carried <= target
    told[0] = error if enough else np.inf
    told[1] = carried * error if enough else np.inf
    return enough or lost


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def along(now, before, way):
    """⟨now - before, way⟩."""
    total = 0.0
    for j in range(len(now)):
        total += (now[j] - before[j]) * way[j]
    return total


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def norm_of_product(bend, p):
    """|bend p|, entry by entry."""
    total = 0.0
    for j in range(len(p)):
        total += (bend[j] * p[j]) * (bend[j] * p[j])
    return math.sqrt(total)


@njit(error_model="numpy", fastmath=FAST)
def slopes_apart(kind, now, before, room, gain, eps, bend):
    """How far slopes may be from the true ones: by what one step changes, gain times, and by what rounding hides.

    What is in `now`, `before` and `room` is lost.
    """
    n = len(bend)
    bend[:] = 1
    times_slope(kind, now, bend)
    now[:] = 1
    times_slope(kind, before, now)
    for j in range(n):
        before[j] += eps * before[j]
    room[:] = 1
    times_slope(kind, before, room)
    for j in range(n):
        bend[j] = gain * abs(bend[j] - now[j]) + abs(room[j] - now[j])


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def norm(u):
    """|u|."""
    total = 0.0
    for j in range(len(u)):
        total += u[j] * u[j]
    return math.sqrt(total)


@njit(error_model="numpy", fastmath=FAST)
def put(row, values):
    """row[:] = values, in a tenth of the time to compile: without a message for shapes that do not fit."""
    for j in range(len(row)):
        row[j] = values[j]


@njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def distance(u, x):
    """|u - x| and |x|; where |x| overflows, nothing is small beside it, and |u - x| is infinite too."""
    gap = size = 0.0
    for j in range(len(u)):
        gap += (u[j] - x[j]) * (u[j] - x[j])
        size += x[j] * x[j]
    return (math.sqrt(gap), math.sqrt(size)) if size < np.inf else (np.inf, 1.0)
