"""GMRES, one cycle of it, for a batch: each sample has a Krylov space of its own.

What a sample finds does not depend on how long the others' spaces become: sums over its own space are taken up to its
newest vector, and those at the end vector by vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrograde.solvers.aligned import fill, filled
from retrograde.solvers.base import Linear, Problem
from retrograde.solvers.factors import factored_in

# A sample's space holds at most so many vectors, and numbers, however often its cycles were too short.
_LONGEST, _LARGEST = 512, 2**24

# What is left of a vector, without its part along the basis, is orthogonal to it to rounding over this.
_LITTLE = 0.5**0.5


def longer(restart: Tensor, before: Tensor, now: Tensor, n: int) -> Tensor:
    """The length of each sample's next cycle: twice the last where that did not bring its residual down to a tenth.

    What a restart forgets is what a strongly non-normal problem needs. At a length of n nothing is forgotten.
    """
    most = restart.clamp(min=_most(n))
    return torch.where(now > 0.1 * before, torch.minimum(2 * restart, most), restart)


def _most(n: int) -> int:
    return min(_LONGEST, max(1, _LARGEST // n))


def cycle(A: Linear, r: Tensor, goal: Tensor, restart: Tensor) -> tuple[Tensor, Tensor]:
    """The z of the Krylov space of r for which |r - Az| is least, and how many products each sample took.

    A sample's space stops growing at its length `restart`, or when |r - Az| has come down to its goal, whatever the
    others still need.
    """
    samples, n = r.shape
    restart = restart.clamp(max=n)
    m = int(restart.max())
    width, rotated = filled(n, r), filled(m + 1, r)
    beta = torch.linalg.vector_norm(r, dim=-1)
    tiny = torch.finfo(r.dtype).tiny
    V = r.new_zeros(min(m, 32) + 1, samples, width)  # orthonormal basis
    R = r.new_zeros(m, samples, m)  # the columns of the Hessenberg matrix, made triangular by
    Q = torch.eye(m + 1, rotated, dtype=r.dtype, device=r.device).repeat(samples, 1, 1)  # the rotations so far
    V[0] = fill(r / beta.clamp(min=tiny)[:, None], width)
    size = torch.zeros(samples, dtype=torch.int64, device=r.device)  # of each sample's space
    growing = beta > goal
    for k in range(m):
        if not growing.any():
            break
        if k + 1 == len(V):
            V = torch.cat([V, V.new_zeros(min(k + 1, m - k), samples, width)])
        w = fill(A(V[k, :, :n]), width)
        basis = V[: k + 1].transpose(0, 1)
        h = r.new_zeros(samples, rotated)
        left = torch.linalg.vector_norm(w, dim=-1)
        again = torch.ones_like(growing)
        for _ in range(2):  # twice is enough to keep the basis orthogonal, and once where little was taken away
            # A row by a matrix, for each sample: einsum takes a matrix by a column, three to five times as long.
            along = torch.bmm(w[:, None], basis.mT)[:, 0] * again[:, None]
            w = w - torch.bmm(along[:, None], basis)[:, 0]
            h[:, : k + 1] += along
            before, left = left, torch.linalg.vector_norm(w, dim=-1)
            again = again & ~(left > _LITTLE * before)
            if not again.any():
                break
        h[:, k + 1] = left
        V[k + 1] = w / h[:, k + 1].clamp(min=tiny)[:, None]
        h = torch.bmm(h[:, None, : k + 2], Q[:, : k + 2, : k + 2].mT)[:, 0]
        a, b = h[:, k], h[:, k + 1]
        length = (a * a + b * b).sqrt()  # which torch's hypot may round otherwise in another place of a batch
        cos = torch.where(length > 0, a / length.clamp(min=tiny), 1.0)[:, None]
        sin = torch.where(length > 0, b / length.clamp(min=tiny), 0.0)[:, None]
        upper, lower = Q[:, k].clone(), Q[:, k + 1].clone()
        Q[:, k], Q[:, k + 1] = cos * upper + sin * lower, cos * lower - sin * upper
        R[k, :, :k] = torch.where(growing[:, None], h[:, :k], 0.0)
        R[k, :, k] = torch.where(growing & (length > 0), length, 1.0)
        size += growing
        growing = growing & ((beta * Q[:, k + 1, 0]).abs() > goal) & (size < restart)
    k = int(size.max()) if samples else 0
    used = torch.arange(k, device=r.device) < size[:, None]
    wide = factored_in(r.dtype)
    right, R, z = torch.where(used, beta[:, None] * Q[:, :k, 0], 0.0).to(wide), R.to(wide), torch.zeros_like(r)
    for last in reversed(range(k)):
        y = right[:, last : last + 1] / R[last, :, last : last + 1]
        right[:, :last] -= y * R[last, :, :last]
        z += y.to(r) * V[last, :, :n]
    return z, size


def solve(problem: Problem, z: Tensor, r: Tensor, goal: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """((1 + shift) I - J(z))⁻¹ r to within a residual of `goal` (samples,), and how many products each sample took.

    Each cycle may be as long as memory lets it: one that ends at its goal costs no more for that. Cycle follows cycle
    until each sample is there, or one has gained little.
    """
    found, cost = torch.zeros_like(r), torch.zeros(len(r), dtype=torch.int64, device=r.device)
    rows = torch.arange(len(r), device=r.device)
    restart = torch.full_like(rows, _most(r.shape[1]))
    left = torch.linalg.vector_norm(r, dim=-1)
    while True:
        going = left > goal[rows]
        if not going.all():
            rows, left, r = rows[going], left[going], r[going]
        if not len(rows):
            return found, cost
        J = problem.take(rows).linearised(z[rows])
        scale = 1 if shift is None else 1 + shift[rows]

        def A(v: Tensor, J: Linear = J, scale: Tensor | int = scale) -> Tensor:
            return scale * v - J(v)

        correction, spent = cycle(A, r, goal[rows], restart[rows])
        found[rows] += correction
        cost[rows] += spent + 2
        r = r - A(correction)
        before, left = left, torch.linalg.vector_norm(r, dim=-1)
        left = torch.where(left < 0.5 * before, left, 0)  # what more there is to gain costs too much
