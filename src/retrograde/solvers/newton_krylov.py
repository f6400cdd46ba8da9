"""Newton's method without a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.solvers import gmres
from retrograde.solvers.base import Problem
from retrograde.solvers.newton import Newton


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(Newton):
    """`Newton`, whose direction (I - J)⁻¹ (step(z) - z) GMRES finds, from exact products J v: for large or sparse W.

    The direction is found the more exactly the faster the residual falls (Eisenstat and Walker's second choice), so
    that far from the solution a step costs a few products, and near it convergence is fast. Its steps are counted in
    products.

    Args:
        rtol: the relative residual to reach; None takes it from the dtype.
        max_steps: after how many products a sample is given up.

    References:
        Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method", SIAM J. Sci. Comput. 17 (1996).
        Knoll and Keyes, "Jacobian-free Newton-Krylov methods", J. Comput. Phys. 193 (2004).
    """

    max_steps: int = 2000

    def towards(self, problem: Problem, z: Tensor, r: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
        """(I - J)⁻¹ r to within 0.9 drop² of |r|: no more exactly than what the last step gained lets expect."""
        forcing = torch.where(drop > 0, 0.9 * drop**2, 0.3).clamp(1e-4, 0.5)[:, 0]
        size = torch.linalg.vector_norm(r, dim=-1)
        # What the tolerance does not ask for is not worth a product.
        enough = 0.3 * self.tolerance(z.dtype) * torch.maximum(torch.linalg.vector_norm(z, dim=-1), size)
        if problem.affine:
            return gmres.solve(problem, z, r, enough)
        return gmres.solve(problem, z, r, torch.maximum(forcing * size, enough))
