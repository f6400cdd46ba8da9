"""Matrix-free linear solves: GMRES."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from retrograde.solvers.base import Iteration, Linear, Problem, check_number


@dataclass(frozen=True)
class Krylov(Iteration):
    """Restarted GMRES on (I - J) z = c, for an affine problem z = Jz + c, such as an adjoint.

    Each sample has a Krylov space of its own; the products of a batch are taken together. Within one cycle its residual
    is the least that as many products can reach, FixedPoint's included; between cycles it forgets, and may stagnate.

    Args:
        method: "gmres".
        restart: how many products between restarts; as many vectors a sample are held.
        rtol: the relative residual to reach; None takes it from the dtype.
        max_steps: after how many products a sample is given up, at the end of a cycle.

    References:
        Saad and Schultz, "GMRES", SIAM J. Sci. Stat. Comput. 7 (1986).
    """

    method: str = "gmres"
    restart: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method != "gmres":
            raise ValueError(f"method: expected 'gmres', got {self.method!r}")
        if check_number("restart", self.restart, Integral) < 1:
            raise ValueError(f"restart: expected an integer of at least 1, got {self.restart}")

    def start(self, problem: Problem, z: Tensor) -> tuple[Tensor, ...]:
        """The constant c = step(0)."""
        if not problem.affine:
            raise ValueError(
                "solver: Krylov solves affine problems, such as an adjoint; forward, use Newton or FixedPoint"
            )
        return (problem.step(torch.zeros_like(z)),)

    def turn(
        self, problem: Problem, z: Tensor, step: Tensor, residual: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """One cycle of GMRES from z."""
        (c,) = memory
        goal = 0.5 * self.tolerance(z.dtype) * torch.linalg.vector_norm(z, dim=-1)
        correction, cost = self._cycle(lambda v: v - (problem.step(v) - c), step - z, goal)
        return z + correction, memory, cost

    def _cycle(self, A: Linear, r: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """The z of the Krylov space of r for which |r - Az| is least, and how many products each sample took.

        A sample's space stops growing when |r - Az| has come down to its goal, whatever the others still need.
        """
        m, samples = min(self.restart, r.shape[1]), len(r)
        beta = torch.linalg.vector_norm(r, dim=-1)
        tiny = torch.finfo(r.dtype).tiny
        V = r.new_zeros(m + 1, samples, r.shape[1])  # orthonormal basis
        R = r.new_zeros(samples, m + 1, m)  # the Hessenberg matrix, made triangular by
        Q = torch.eye(m + 1, dtype=r.dtype, device=r.device).repeat(samples, 1, 1)  # the rotations so far
        V[0] = r / beta.clamp(min=tiny)[:, None]
        size = torch.zeros(samples, dtype=torch.int64, device=r.device)  # of each sample's space
        growing = torch.ones_like(size, dtype=torch.bool)
        for k in range(m):
            w = A(V[k])
            basis = V[: k + 1]
            h = r.new_zeros(samples, m + 1)
            for _ in range(2):  # twice is enough to keep the basis orthogonal
                along = torch.einsum("ksn,sn->sk", basis, w)
                w = w - torch.einsum("ksn,sk->sn", basis, along)
                h[:, : k + 1] += along
            h[:, k + 1] = torch.linalg.vector_norm(w, dim=-1)
            V[k + 1] = w / h[:, k + 1].clamp(min=tiny)[:, None]
            h = (Q @ h[:, :, None])[:, :, 0]
            a, b = h[:, k], h[:, k + 1]
            length = torch.hypot(a, b)
            cos = torch.where(length > 0, a / length.clamp(min=tiny), 1.0)[:, None]
            sin = torch.where(length > 0, b / length.clamp(min=tiny), 0.0)[:, None]
            upper, lower = Q[:, k].clone(), Q[:, k + 1].clone()
            Q[:, k], Q[:, k + 1] = cos * upper + sin * lower, cos * lower - sin * upper
            R[:, :k, k] = torch.where(growing[:, None], h[:, :k], 0.0)
            R[:, k, k] = torch.where(growing & (length > 0), length, 1.0)
            size += growing
            growing &= (beta * Q[:, k + 1, 0]).abs() > goal
            if not growing.any():
                break
        k = int(size.max())
        used = torch.arange(k, device=r.device) < size[:, None]
        right = torch.where(used, beta[:, None] * Q[:, :k, 0], 0.0)
        y = torch.linalg.solve_triangular(R[:, :k, :k], right[:, :, None], upper=True)
        return torch.einsum("ksn,sk->sn", V[:k], y[:, :, 0]), size
