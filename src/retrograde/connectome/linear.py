"""The linear network x = αWx + b of a connectome: α, steady states and adjoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse.csgraph
import scipy.sparse.linalg
import torch
from torch import Tensor

from retrograde.adjoint import steady_gradients
from retrograde.connectivity import Operator
from retrograde.connectome.presets import Preset
from retrograde.connectome.threads import one_blas_thread
from retrograde.connectome.wiring import Connectome
from retrograde.nonlinearity import Identity, Nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.result import ONLY_S, ConvergenceError
from retrograde.solvers import Direct, Newton, Solver
from retrograde.steady import steady_state
from retrograde.transforms import precisely

SMALL = 2000  # neurons, for which eigenvalues and solutions are found by dense factorisations


def scaled(
    c: Connectome, scale: float | None, silenced: np.ndarray, how: Preset, f: Nonlinearity | None = None
) -> tuple[Recurrence, float, float]:
    """The network αW, without the outputs of the silenced neurons; the eigenvalue of W that α is by; and α."""
    (weight,) = (w.detach() for w in c.W.weights)
    _, pre = c.W.edges
    active = torch.where(torch.from_numpy(np.isin(pre.numpy(), silenced)), 0, weight)
    anew = how.rescale_after_silencing or not len(silenced)
    eigenvalue = _eigenvalue(c, active if anew else weight)
    alpha = 1.0 if scale is None else rescaled(eigenvalue, scale, how)
    if isinstance(f or Identity(), Identity) and (scale is None or (len(silenced) and bool((weight < 0).any()))):
        # Without the neurons that inhibit, the others may excite one another beyond all bounds.
        here = alpha * (eigenvalue if anew else _eigenvalue(c, active))
        if here >= 1:
            raise ValueError(
                f"scale: the linear network is unstable, for the largest real part of an eigenvalue of αW is {here:.3g}"
                + (" without the silenced neurons" if len(silenced) else "")
                + ", which has to be below 1"
            )
    return Recurrence(c.W.bind(alpha * active), f or Identity()), eigenvalue, alpha


def _eigenvalue(c: Connectome, weight: Tensor) -> float:
    """The largest of c with these weights, which is computed once for the same ones."""
    key = hashlib.blake2b(np.ascontiguousarray(weight.numpy()).data).digest()
    if key not in c._eigenvalues:
        c._eigenvalues[key] = largest_real_eigenvalue(c.W.bind(weight))
    return c._eigenvalues[key]


def largest_real_eigenvalue(W: Operator) -> float:
    """The largest real part of an eigenvalue of W, which are those of its strongly connected components.

    A neuron in no cycle gives the weight of its autapse, so that a network without cycles gives exactly 0. Taken whole,
    a large network of few cycles is so far from normal that Arnoldi's method returns its own rounding.
    """
    A = matrix(W)
    _, label = scipy.sparse.csgraph.connected_components(A, connection="strong")
    order, sizes = np.argsort(label, kind="stable"), np.bincount(label)
    ends = np.cumsum(sizes)
    largest = A.diagonal()[sizes[label] == 1].max(initial=-np.inf)
    A = A[order][:, order]
    for end, size in zip(ends[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        part = A[end - size : end, end - size : end]
        with one_blas_thread():
            values = _by_arnoldi(part) if size > SMALL else np.linalg.eigvals(part.toarray())
        largest = max(largest, values.real.max())
    return float(largest)


def matrix(W: Operator) -> scipy.sparse.csr_array:
    """W[post, pre] without the connections of weight 0."""
    post, pre, weight = (each.detach().numpy() for each in W.entries())
    A = scipy.sparse.csr_array((weight.astype(np.float64), (post, pre)), shape=W.shape)
    A.eliminate_zeros()
    return A


def _by_arnoldi(A: scipy.sparse.csr_array) -> np.ndarray:
    start = np.random.default_rng(0).random(A.shape[0])
    try:
        # 40 vectors take half the products that the usual 20 take, and more save none.
        return scipy.sparse.linalg.eigs(A, k=1, which="LR", v0=start, ncv=40, tol=1e-9, return_eigenvectors=False)
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        raise ConvergenceError(
            f"the largest eigenvalue of W, by Arnoldi's method: {error}", error.eigenvalues
        ) from None


def rescaled(eigenvalue: float, scale: float, how: Preset) -> float:
    """α, by which the eigenvalue becomes the scale."""
    if how.only_if_larger and eigenvalue <= scale:
        return 1.0
    if how.only_if_positive and eigenvalue <= 0:
        return 1.0
    if not eigenvalue > 1e-12:
        raise ValueError(
            f"scale: the largest real part of an eigenvalue of W is {eigenvalue:.3g}, which no factor makes {scale}: "
            "without feedback that excites there is nothing to scale; scale=None takes W as it is"
        )
    return scale / eigenvalue


def groups(c: Connectome, given: Any, what: str) -> dict[str, np.ndarray]:
    """Name -> places, of one group called "" or of several."""
    named = given if isinstance(given, Mapping) else {"": given}
    if not named:
        raise ValueError(f"{what}: expected at least one group of ids, got none")
    found = {str(name): c.index(ids, what) for name, ids in named.items()}
    for name, places in found.items():
        if not len(places):
            raise ValueError(f"{what}: expected at least one id{f' in {name!r}' if name else ''}, got none")
    return found


def indicators(c: Connectome, some: dict[str, np.ndarray]) -> Tensor:
    """(groups, n): 1 at a group's neurons."""
    (weight,) = c.W.weights
    ones = torch.zeros(len(some), len(c), dtype=weight.dtype)
    for row, places in zip(ones, some.values(), strict=True):
        row[torch.from_numpy(places)] = 1
    return ones


def reached(net: Recurrence, driven: Tensor, backwards: bool) -> np.ndarray:
    """(groups, n): whether a path of connections that are not 0 leads there from the group, or from there to it."""
    W = matrix(net.W.bind())
    post, pre = (W.T if backwards else W).nonzero()
    n, found = W.shape[0], np.zeros(driven.shape, bool)
    group, start = driven.numpy().nonzero()
    ends = (
        np.concatenate([pre, n + group]),
        np.concatenate([post, start]),
    )  # n + k leads to the group k, and nothing to it
    size = n + len(found)
    paths = scipy.sparse.csr_array((np.ones(len(ends[0])), ends), shape=(size, size))
    for k, row in enumerate(found):
        order = scipy.sparse.csgraph.breadth_first_order(paths, n + k, return_predecessors=False)
        row[order[1:]] = True
    return found


def solvers_for(net: Recurrence) -> tuple[Solver | None, Solver | None]:
    """For the states and for the adjoints of a linear network of few neurons a factorisation, else the defaults."""
    return (Newton(), Direct()) if net.W.shape[0] <= SMALL and isinstance(net.f, Identity) else (None, None)


def states(net: Recurrence, b: Tensor) -> tuple[np.ndarray, float]:
    """The steady states for the inputs b, (samples, n), and their largest residual."""
    state = steady_state(net.W, b, net.f, solver=solvers_for(net)[0])
    return state.x.detach().double().numpy(), float(state.residual.max())


@precisely
def adjoints(net: Recurrence, g: Tensor) -> tuple[np.ndarray, float]:
    """The adjoints of dR/dx = g, (samples, n), in a linear network, and their largest residual."""
    with torch.no_grad():
        gradient = steady_gradients(net, torch.zeros_like(g), None, g, solvers_for(net)[1], wants=ONLY_S)
    assert gradient.receipt is not None  # a steady state's gradient has one
    return gradient.s.double().numpy(), float(gradient.receipt.residual.max())
