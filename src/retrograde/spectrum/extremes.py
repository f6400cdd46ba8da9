"""The eigenvalues and singular values of DW that stability is told from: by decomposition, or by products alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from retrograde.connectivity import Dense, Operator
from retrograde.connectivity.convolution import Convolution
from retrograde.spectrum.eigen import Leading, Modes, leading_modes
from retrograde.spectrum.first_order import Differential, Linear, largest_of_symmetric, least_singular

# Up to this many neurons a full W is decomposed: beyond, Arnoldi's method is several times faster. And so is a
# convolution, whose eigenvalues lie along curves, which that method cannot resolve.
SMALL = 512
# And any W, as a matrix of this size is no larger than the basis of Arnoldi's method would be.
TINY = 64


@dataclass(frozen=True, eq=False)
class Found:
    """What was computed for some samples: of DW, of the network's own dynamics, of the symmetric part, of I - DW."""

    modes: Modes
    rightmost: Modes
    own: Modes
    abscissa: Differential
    distance: Differential | None


def decomposed(DW: Linear, own: Linear, k: int) -> Found:
    """By decompositions of full matrices."""
    M = DW.dense()
    modes = leading_modes(M, M.shape[-1])
    return Found(
        modes=modes.take(torch.arange(min(k, M.shape[-1]), device=M.device).expand(len(M), -1)),
        rightmost=modes.take(modes.values.real.argmax(-1, keepdim=True)),
        own=_leader(modes) if own is DW else leading_modes(own.dense(), 1),
        abscissa=largest_of_symmetric((M + M.mT) / 2),
        distance=least_singular(M),
    )


def decomposes(W: Operator) -> bool:
    """Whether DW is formed and decomposed."""
    return W.shape[0] <= (SMALL if isinstance(W.structure, Dense | Convolution) else TINY)


def decomposes_after_all(W: Operator) -> bool:
    """Whether that is done where the search by products failed."""
    return isinstance(W.structure, Dense) or W.shape[0] <= SMALL


def searched_modes(M: Linear, loops: Operator, k: int, by: Leading, rtol: float | None = None) -> Modes:
    """Those of one sample, by Arnoldi's method; the left ones too, unless an rtol tells that values are all."""
    M = replace(M, W=loops)
    found = leading_modes(
        lambda v: M.product(v[None])[0],
        k,
        by=by,
        transposed=None if rtol else lambda w: M.transposed_product(w[None])[0],
        like=M.d[0],
        rtol=rtol,
    )
    return found.each(lambda part: part[None])


def searched(DW: Linear, own: Linear, k: int, loops: Operator) -> Found:
    """By products alone, for one sample: ARPACK takes no more at once. `loops` is W as far as eigenvalues need it."""
    found = searched_modes(DW, loops, k, "modulus")
    return Found(
        modes=found,
        rightmost=searched_modes(DW, loops, 1, "real"),
        own=_leader(found) if own is DW else searched_modes(own, loops, 1, "modulus"),
        abscissa=largest_of_symmetric(lambda v: (DW.product(v[None]) + DW.transposed_product(v[None]))[0] / 2, DW.d[0]),
        distance=None,
    )


def _leader(modes: Modes) -> Modes:
    return modes.each(lambda part: part[:, :1])
