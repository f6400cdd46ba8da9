"""The largest real part of W's eigenvalues, by which a connectome is scaled."""

from __future__ import annotations

import numpy as np
import scipy.sparse.csgraph
import scipy.sparse.linalg
import torch
from torch import Tensor

from retrograde.connectivity import Operator, Sparse
from retrograde.connectome.threads import one_blas_thread
from retrograde.result import ConvergenceError

SMALL = 2000  # neurons, for which eigenvalues and solutions are found by dense factorisations


def without(W: Operator, silenced: np.ndarray) -> Operator:
    """A sparse W with weights of 0 for what the silenced neurons, by their places, send."""
    structure, (weight,) = W.structure, W.weights
    assert isinstance(structure, Sparse)  # as a connectome's is
    if not len(silenced):
        return W
    cut = torch.zeros(W.shape[1], dtype=torch.bool)
    cut[torch.from_numpy(silenced)] = True
    return W.bind(torch.where(cut[structure.columns], 0, weight))


class Eigenvalues:
    """The largest of a connectome, each found once: by who is silenced, for as long as the weights stay what they are.

    To compare fifteen million weights with a copy takes a tenth of the time that a digest of them takes.
    """

    def __init__(self) -> None:
        self._known: tuple[Tensor, dict[bytes, float]] = torch.empty(0), {}

    def of(self, W: Operator, silenced: np.ndarray) -> float:
        """That of W without what the silenced neurons send."""
        (weight,) = W.weights
        of_these, found = self._known
        if weight.dtype != of_these.dtype or not torch.equal(weight, of_these):
            found = {}
            self._known = weight.detach().clone(), found
        key = np.sort(silenced).tobytes()
        if key not in found:
            found[key] = largest_real_eigenvalue(without(W, silenced))
        return found[key]


def largest_real_eigenvalue(W: Operator) -> float:
    """The largest real part of an eigenvalue of W, which are those of its strongly connected components.

    A neuron in no cycle gives the weight of its autapse, so that a network without cycles gives exactly 0. Taken whole,
    a large network of few cycles is so far from normal that Arnoldi's method returns its own rounding.
    """
    A = matrix(W)
    _, label = scipy.sparse.csgraph.connected_components(A, connection="strong")
    sizes = np.bincount(label)
    size = sizes[label]
    largest = A.diagonal()[size == 1].max(initial=-np.inf)
    few = np.flatnonzero((size > 1) & (size <= SMALL))
    few = few[np.argsort(label[few], kind="stable")]
    blocks, end = A[few][:, few], 0
    with one_blas_thread():
        for many in sizes[(sizes > 1) & (sizes <= SMALL)].tolist():
            end += many
            block = blocks[end - many : end, end - many : end]
            largest = max(largest, np.linalg.eigvals(block.toarray()).real.max())
        for component in np.flatnonzero(sizes > SMALL):
            largest = max(largest, _by_arnoldi(A, label == component))
    return float(largest)


def matrix(W: Operator) -> scipy.sparse.csr_array:
    """W[post, pre] without the connections of weight 0."""
    structure, (weight,) = W.structure, W.weights
    assert isinstance(structure, Sparse)  # as a connectome's is: its rows are those of the array, and are shared
    rows = structure.columns.numpy(), structure.row_starts.numpy()
    A = scipy.sparse.csr_array((weight.detach().double().numpy(), *rows), shape=W.shape)
    if not A.data.all():
        A = A.copy()
        A.eliminate_zeros()
    return A


def _by_arnoldi(A: scipy.sparse.csr_array, inside: np.ndarray) -> float:
    """The largest real part, of the component of these neurons alone.

    The others are cut off where they are: to take them out of the array takes longer than half of the search. Its
    products are SciPy's, on one thread: those of two wait for one another.
    """
    if not inside.all():
        here = np.repeat(inside, np.diff(A.indptr)) & inside[A.indices]
        A = scipy.sparse.csr_array((np.where(here, A.data, 0), A.indices, A.indptr), shape=A.shape)
    start = np.where(inside, np.random.default_rng(0).random(A.shape[0]), 0)
    try:
        # 40 vectors take half the products that the usual 20 take, and more save none.
        values = scipy.sparse.linalg.eigs(A, k=1, which="LR", v0=start, ncv=40, tol=1e-9, return_eigenvectors=False)
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        raise ConvergenceError(
            f"the largest eigenvalue of W, by Arnoldi's method: {error}", error.eigenvalues
        ) from None
    return values.real.max()
