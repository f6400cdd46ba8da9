"""Numbers read from the spectrum of M = diag(c) + diag(d) W, given their derivatives.

An eigenvalue λ with Mv = λv and Mᵀw = λw moves by dλ = wᵀ dM v / wᵀv, as the largest eigenvalue of the symmetric part
moves by vᵀ dM v, and a singular value by uᵀ dM v. All are pᵀ dM v, and so their gradient in W is the sensitivity lemma
once more: dR/dW = s vᵀ with s = d ∘ p. Where p and v are known as functions of M in turn, as `pairs` gives them of a
matrix in full, that gradient can itself be differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from retrograde.connectivity import Operator
from retrograde.result import ConvergenceError
from retrograde.spectrum.eigen import Modes, Product, arpack
from retrograde.spectrum.pairs import Follow


@dataclass(frozen=True, eq=False)
class Linear:
    """M = diag(c) + diag(d) W for each sample, c and d (samples, n): DW, or with a leak (1-a) I + a DW."""

    W: Operator
    c: Tensor
    d: Tensor

    def product(self, v: Tensor) -> Tensor:
        """M v, v (samples, n)."""
        return self.c * v + self.d * (self.W @ v)

    def transposed_product(self, w: Tensor) -> Tensor:
        """Mᵀ w, w (samples, n)."""
        return self.c * w + self.W.T @ (self.d * w)

    def dense(self) -> Tensor:
        """(samples, n, n)."""
        return torch.diag_embed(self.c) + self.d[..., :, None] * self.W.dense()

    def rows(self, rows: Tensor) -> Linear:
        """That of some samples."""
        return Linear(self.W, self.c[rows], self.d[rows])

    def detached(self) -> Linear:
        """The same numbers without their history."""
        return Linear(self.W.bind(*(weight.detach() for weight in self.W.weights)), self.c.detach(), self.d.detach())


@dataclass(frozen=True, eq=False)
class Differential:
    """Numbers read from M, (samples, k), whose differentials are pᵀ dM v, p and v (samples, k, n), where `simple`."""

    values: Tensor
    p: Tensor
    v: Tensor
    simple: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its fields, in order."""
        return self.values, self.p, self.v, self.simple

    def attached(self, M: Linear, follow: Follow | None = None) -> Tensor:
        """The values as a function of M, differentiable once, or as often as is asked where `follow` is given.

        Raises:
            ConvergenceError: in a backward into a value that is not simple.
            NotImplementedError: in a backward that is to be differentiated again, without `follow`.
        """
        if not any(tensor.requires_grad for tensor in (M.c, M.d, *M.W.weights)):
            return self.values
        return _Attached.apply(*self.tensors, M.W.structure, follow, M.c, M.d, *M.W.weights)


def of_modes(modes: Modes) -> Differential:
    """Eigenvalues: dλ = wᵀ dM v / wᵀv."""
    overlap = (modes.left * modes.right).sum(-1, keepdim=True)
    return Differential(modes.values, modes.left / overlap, modes.right, modes.simple)


def largest_of_symmetric(S: Tensor | Product, like: Tensor | None = None) -> Differential:
    """The largest eigenvalue of the symmetric part S of M, (samples, n, n): dω = vᵀ dM v.

    S may be the function v -> Sv of one sample's vectors such as `like`, for Lanczos' method.
    """
    if isinstance(S, Tensor):
        values, vectors = torch.linalg.eigh(S)
    else:
        assert like is not None  # it comes with a function
        values, vectors = (part[None] for part in arpack(eigsh, S, like, 2, "LA"))
        order = values.argsort()
        values, vectors = values.gather(-1, order), vectors.gather(-1, order[:, None].expand(vectors.shape))
    v = vectors[..., -1:].mT
    resolved = torch.finfo(values.dtype).eps ** 0.6 * values.abs().amax(-1, keepdim=True)
    return Differential(values[..., -1:], v, v, _gap(values[..., -2:]) > resolved)


def least_singular(M: Tensor) -> Differential:
    """The smallest singular value of I - M, (samples, n, n): dσ = -uᵀ dM v."""
    U, values, Vh = torch.linalg.svd(torch.eye(M.shape[-1], dtype=M.dtype, device=M.device) - M)
    resolved = torch.finfo(values.dtype).eps ** 0.6 * values[..., :1]
    least = values[..., -1:]
    simple = (_gap(values[..., -2:]) > resolved) & (least > resolved)
    return Differential(least, -U[..., -1:].mT, Vh[..., -1:, :], simple)


def _gap(values: Tensor) -> Tensor:
    """(..., 1) how far two are apart; infinite where there is one."""
    return values.diff(dim=-1).abs() if values.shape[-1] == 2 else torch.full_like(values, torch.inf)


class _Attached(torch.autograd.Function):
    """Forward the identity, backward pᵀ dM v."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        p: Tensor,
        v: Tensor,
        simple: Tensor,
        structure: Any,
        follow: Follow | None,
        c: Tensor,
        d: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.structure, ctx.follow = structure, follow
        ctx.save_for_backward(values, p, v, simple, c, d, *weights)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        values, p, v, simple, c, d, *weights = ctx.saved_tensors
        wanted = g != 0
        if (wanted & ~simple).any():
            raise ConvergenceError(
                f"stability: of {int(wanted.sum())} eigenvalues or singular values that the reward depends on, "
                f"{int((wanted & ~simple).sum())} have no derivative, as they coincide with others to rounding",
                values,
            )
        W = ctx.structure.bind(*weights)
        if torch.is_grad_enabled():
            if ctx.follow is None:
                raise NotImplementedError(
                    "stability: a second derivative is known where DW is decomposed, and not where it was searched by "
                    "products alone; Dense(W.dense()) of up to 512 neurons is decomposed"
                )
            # An entry of g that is 0 here may change.
            wanted = simple if g.requires_grad else wanted
            p, v = _followed(ctx.follow, Linear(W, c, d), (values, p, v), wanted)
        # Where the reward does not depend on it, a mode that is not simple may hold anything.
        p = torch.where(wanted[..., None], g.conj()[..., None] * p, 0)
        v = torch.where(wanted[..., None], v, 0)
        Wv = _real_map(W, v)
        s = p * d[:, None]
        dc = (p * v).real.sum(1) if ctx.needs_input_grad[6] else None
        dd = (p * Wv).real.sum(1) if ctx.needs_input_grad[7] else None
        dW: tuple[Tensor | None, ...] = (None,) * len(weights)
        if any(ctx.needs_input_grad[8:]):
            # The real part of s vᵀ.
            dW = (
                W.outer(torch.stack([s.real, -s.imag]), torch.stack([v.real, v.imag]))
                if s.is_complex()
                else W.outer(s, v)
            )
        return None, None, None, None, None, None, dc, dd, *dW


def _followed(follow: Follow, M: Linear, known: tuple[Tensor, ...], wanted: Tensor) -> tuple[Tensor, Tensor]:
    """p and v as functions of M where `wanted`, (samples, k); elsewhere 0."""
    index = tuple(wanted.nonzero().T)
    full = M.dense()[index[0]]
    pair = follow(full, *(part.detach()[index] for part in known))
    p, v = (torch.zeros_like(old).index_put(index, new) for old, new in zip(known[1:], pair, strict=True))
    return p, v


def _real_map(W: Operator, v: Tensor) -> Tensor:
    return torch.complex(W @ v.real, W @ v.imag) if v.is_complex() else W @ v
