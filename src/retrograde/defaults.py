"""Which solvers find a steady state and its adjoint where none was asked for: the cheapest first, then the surer."""

from __future__ import annotations

import torch

from retrograde import kernels
from retrograde.blocks import blocks_of
from retrograde.connectivity import Dense, Operator
from retrograde.nonlinearity import Identity, Nonlinearity
from retrograde.solvers import (
    Anderson,
    Blockwise,
    Cascade,
    Direct,
    FixedPoint,
    Homotopy,
    Krylov,
    Multistart,
    Newton,
    NewtonKrylov,
    PseudoTransient,
    Solver,
)
from retrograde.structure import SMALL, factor_size, is_low_rank

# The last resorts factor I - DW of any structure of so few neurons: a Krylov space that solves what they ask holds as
# many vectors, and so no fewer numbers.
_FEW = 512

# Up to this rank a factorisation was never slower, for 200 to 10,000 neurons, 1 and 64 samples.
_LOW = 64

# From so many levels on, a pass over them takes longer than a few dozen steps, which may be enough.
_FEW_LEVELS = 32


def is_small(W: Operator) -> bool:
    """Whether I - DW may be factored wherever that helps: of a small full matrix, or one of low rank."""
    return (isinstance(W.structure, Dense) or is_low_rank(W)) and factor_size(W) <= SMALL


def is_factorable(W: Operator) -> bool:
    """Whether I - DW may be factored at all."""
    return is_small(W) or W.shape[0] <= _FEW


def is_accelerated(W: Operator) -> bool:
    """Whether acceleration comes first: of a sparse W of very many connections one mode is often far slower."""
    return kernels.is_large(W)


_SETTLE = FixedPoint(max_steps=100)

_AHEAD = Anderson(max_steps=100, delay=5)
_LINEAR = Cascade(_AHEAD, Krylov(), FixedPoint(), PseudoTransient(max_steps=50))
_LAST_RESORTS = Homotopy(max_steps=500), Multistart(Newton(max_steps=10))
_BY_FACTORS = Cascade(_SETTLE, Newton(max_steps=20), PseudoTransient(max_steps=50), *_LAST_RESORTS)
_OF_MANY = Cascade(_SETTLE, NewtonKrylov(max_steps=1000), PseudoTransient(max_steps=50))
_BY_PRODUCTS = Cascade(*_OF_MANY.solvers, *_LAST_RESORTS)


def default_solver(W: Operator, f: Nonlinearity) -> Solver:
    """The network's own dynamics; where they do not settle, Newton's method, then what does not need luck.

    Newton's method by factors for a small full W or one of low rank, without a matrix for any other. Of a network too
    large to be factored no path is followed: nobody knows how long it is. A W in levels is solved by these. Of a sparse
    W of very many connections, one mode is often far slower than all others, and acceleration comes first.
    """
    settle = _BY_FACTORS if is_small(W) else _BY_PRODUCTS if is_factorable(W) else _OF_MANY
    blocks = blocks_of(W)
    if blocks is None:
        ahead = is_accelerated(W) and kernels.why_plain(W, f) is None
        if ahead and isinstance(f, Identity):  # one state, however it is found
            return _LINEAR
        return Cascade(_AHEAD, *settle.solvers) if ahead else settle
    by_levels = Blockwise(settle)
    return by_levels if len(blocks.levels) <= _FEW_LEVELS else Cascade(_SETTLE, by_levels)


_ANY_EQUATION = Cascade(_SETTLE, Anderson(max_steps=100), *_OF_MANY.solvers[1:])
EQUATION_ADJOINT = Cascade(FixedPoint(max_steps=30), Krylov(), FixedPoint())


def equation_solver(factorable: bool) -> Solver:
    """Likewise for x = fn(x), of any function; whether I - J, which takes a product for each number of x, is made."""
    return _BY_FACTORS if factorable else _ANY_EQUATION


_SOON = FixedPoint(max_steps=100, hasty=True)
_FACTOR_OR_SETTLE = Cascade(Direct(), FixedPoint(), Krylov())
_SETTLE_OR_FACTOR = Cascade(_SOON, Direct())
_SETTLE_OR_SEARCH = Cascade(_SOON, Krylov(), FixedPoint())
_SETTLE_SEARCH_OR_FACTOR = Cascade(_SOON, Krylov(), Direct())
# Where acceleration fails the dynamics need longer still, if they settle at all.
_ACCELERATE_OR_SEARCH = Cascade(Anderson(max_steps=100), Krylov(), FixedPoint())
_BY_LEVELS, _OF_FEW_BY_LEVELS = Blockwise(_SETTLE_OR_SEARCH), Blockwise(_SETTLE_SEARCH_OR_FACTOR)


def default_adjoint(W: Operator) -> Solver:
    """The network's own dynamics first; where they do not converge, a factorisation for a small full W.

    For any other W, GMRES, and then a factorisation if there are few neurons, else the dynamics again: what passes
    along a chain of neurons arrives after as many steps, which a restarted GMRES may not see. Of a low rank, the
    factorisation is the cheapest, and comes first; of a sparse W of very many connections, acceleration, as for the
    state.
    """
    if is_low_rank(W) and factor_size(W) <= _LOW and W.like.dtype in (torch.float32, torch.float64):
        return _FACTOR_OR_SETTLE
    blocks = blocks_of(W)
    if blocks is not None:
        by_levels = _OF_FEW_BY_LEVELS if is_factorable(W) else _BY_LEVELS
        return by_levels if len(blocks.levels) <= _FEW_LEVELS else Cascade(_SETTLE, by_levels)
    if is_small(W):
        return _SETTLE_OR_FACTOR
    if is_factorable(W):
        return _SETTLE_SEARCH_OR_FACTOR
    return _ACCELERATE_OR_SEARCH if is_accelerated(W) else _SETTLE_OR_SEARCH
