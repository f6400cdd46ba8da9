"""Whether a network stays at a steady state, by how much, and what happens where it ceases to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retrograde.checks import broadcast_shapes, check_finite, check_last_axis, check_like
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError
from retrograde.spectrum import pairs
from retrograde.spectrum.components import within_components
from retrograde.spectrum.eigen import Modes
from retrograde.spectrum.extremes import Found, decomposed, decomposes, decomposes_after_all, searched
from retrograde.spectrum.first_order import Linear, of_modes
from retrograde.spectrum.jacobians import cast_to, equations_of, jacobians
from retrograde.spectrum.normal_form import three_meet
from retrograde.spectrum.radius import Jacobians
from retrograde.tables import Readable, Row
from retrograde.transforms import precisely, transformed

if TYPE_CHECKING:
    from retrograde.network import Network


class Bifurcation(IntEnum):
    """What happens where the leading eigenvalue reaches the unit circle. Its ``message`` says it."""

    FOLD = 0
    HOPF = 1
    FLIP = 2
    PITCHFORK = 3

    @property
    def message(self) -> str:
        """The bifurcation in a few words."""
        return _BIFURCATIONS[self]


_BIFURCATIONS = {
    Bifurcation.FOLD: "a fold (or a transcritical point): an eigenvalue reaches 1, and two steady states meet",
    Bifurcation.HOPF: "a Hopf (in discrete time a Neimark-Sacker) bifurcation: a complex pair, and a cycle appears",
    Bifurcation.FLIP: "a flip: an eigenvalue reaches -1, and the activity alternates from step to step",
    Bifurcation.PITCHFORK: "a pitchfork, as with a symmetry: an eigenvalue reaches 1, and three steady states meet",
}


@dataclass(frozen=True, eq=False, repr=False)
class Stability(Readable):
    """The spectrum of DW at steady states; `...` is the batch.

    The network's own dynamics are x ← f(Wx + b), or with a leak a x ← (1-a) x + a f(Wx + b), whose Jacobian is
    (1-a) I + a DW. In continuous time, τ dx/dt = -x + f(Wx + b), the Jacobian is DW - I.

    Attributes:
        eigenvalues: (..., k) complex, of DW, the largest \\|λ\\| first.
        modes: their right and left vectors, with residuals and conditioning. No gradient passes through them. Of a
            sparse W of more than 64 neurons, each is confined to one strongly connected component.
        rightmost: (...,) complex, the eigenvalue of DW with the largest real part.
        multiplier: (...,) complex, the leading eigenvalue of the network's own dynamics: by how much the mode that
            decays slowest, or grows fastest, is multiplied at each step.
        direction: (..., n) complex, that mode; of length 1.
        numerical_abscissa: (...,) the largest eigenvalue of the symmetric part of DW - I. In continuous time |δx|
            grows at first, if only for a while, where it is positive.
        distance: (...,) the smallest singular value of I - DW: the least norm of a change of DW that makes it
            singular, whereupon the gradient is infinite. None where it would be costly: for what is not decomposed.
        three_meet: (...,) whether, along ``direction``, two other steady states are near rather than one: of use where
            ``multiplier`` is close to 1.
    """

    eigenvalues: Tensor
    modes: Modes
    rightmost: Tensor
    multiplier: Tensor
    direction: Tensor
    numerical_abscissa: Tensor
    distance: Tensor | None
    three_meet: Tensor
    _jacobians: Jacobians

    @property
    def spectral_radius(self) -> Tensor:
        """(...,) the largest \\|λ\\| of DW."""
        return self.eigenvalues[..., 0].abs()

    @property
    def margin(self) -> Tensor:
        """(...,) 1 - the modulus of ``multiplier``: positive where the network's own dynamics return."""
        return 1 - self.multiplier.abs()

    @property
    def margin_discrete(self) -> Tensor:
        """(...,) 1 - max \\|λ\\| of DW, for x ← f(Wx + b)."""
        return 1 - self.spectral_radius

    @property
    def margin_continuous(self) -> Tensor:
        """(...,) 1 - max Re λ of DW, for τ dx/dt = -x + f(Wx + b), in which perturbations decay at this rate over τ."""
        return 1 - self.rightmost.real

    @property
    def stable(self) -> Tensor:
        """(...,) whether the network's own dynamics return after a small perturbation."""
        return self.margin > 0

    @property
    def stable_discrete(self) -> Tensor:
        """(...,) whether x ← f(Wx + b) does: every \\|λ\\| < 1."""
        return self.margin_discrete > 0

    @property
    def stable_continuous(self) -> Tensor:
        """(...,) whether τ dx/dt = -x + f(Wx + b) does: every Re λ < 1."""
        return self.margin_continuous > 0

    def radius(self, continuous: bool = False) -> Tensor:
        """(...,) the stability radius: the least norm of a change of the Jacobian that leaves x unstable; 0 if it is.

        Of all complex changes of the Jacobian of the network's own dynamics, or of DW for τ dx/dt = -x + f(Wx + b): no
        smaller one takes an eigenvalue over the boundary. It is at most the margin, and far below it where eigenvalues
        feel much of a change. It takes a few eigenvalue decompositions of matrices of 2n rows for each sample, and is
        right to 1e-6 of itself; of some 1e-15 it is rounding. Differentiable once.

        Args:
            continuous: whether for τ dx/dt = -x + f(Wx + b).

        Raises:
            NotImplementedError: of more than 512 neurons.
            RuntimeError: W, in float64, was overwritten since; of float32 there is a copy.
            ConvergenceError: the search for the nearest point did not end; or, in a backward, two singular values
                coincide there, or the radius is 0 to rounding.

        References:
            D. Hinrichsen and A. J. Pritchard, Systems and Control Letters 7 (1986); R. Byers, SIAM J. Sci. Stat.
            Comput. 9 (1988); S. Boyd and V. Balakrishnan, Systems and Control Letters 15 (1990).

        >>> import retrograde as rg
        >>> net = rg.Network(torch.tensor([[-0.9, 0.0], [0.0, 0.2]]), f="identity")
        >>> found = stability(net, torch.zeros(2))
        >>> found.radius().detach(), found.radius(continuous=True).detach(), found.distance.detach()
        (tensor(0.1000), tensor(0.8000), tensor(0.8000))
        """
        stable = self.stable_continuous if continuous else self.stable
        return self._jacobians.radius(stable, continuous).to(self.margin.dtype)

    @property
    def near(self) -> Tensor:
        """(...,) the `Bifurcation` of the network's own dynamics to which ``multiplier`` leads.

        A fold is told from a pitchfork by how f bends at x. FOLD says that two states meet. Whether they vanish or pass
        through each other, transcritically, depends on what varies: `continue_steady_state` tells.
        """
        multiplier = self.multiplier.detach()
        meeting = torch.where(self.three_meet, int(Bifurcation.PITCHFORK), int(Bifurcation.FOLD))
        one_sided = torch.where(multiplier.real < 0, int(Bifurcation.FLIP), meeting)
        return torch.where(turns(multiplier), int(Bifurcation.HOPF), one_sided)

    def _title(self) -> str:
        return f"Stability: {self}"

    def _rows(self) -> list[Row]:
        rows = [
            ("margin", self.margin),
            ("margin, discrete", self.margin_discrete),
            ("margin, continuous", self.margin_continuous),
            ("spectral radius", self.spectral_radius),
            ("numerical abscissa", self.numerical_abscissa),
        ]
        rows = rows if self.distance is None else [*rows, ("distance", self.distance)]
        return rows if self.margin.numel() else []

    def __str__(self) -> str:
        """One line."""
        if not self.margin.numel():
            return "no samples"
        margin, radius = float(self.margin.detach().min()), float(self.spectral_radius.detach().max())
        return (
            f"{int(self.stable.sum())} of {self.stable.numel()} stable, margin at least {margin:.3g}, "
            f"spectral radius of DW at most {radius:.3g}"
        )


@precisely
def stability(net: Network | Recurrence, x: Tensor, *, input: Tensor | None = None, k: int = 6) -> Stability:
    """The leading eigenvalues of DW at steady states x, and what follows: stable or not, by what margin, near what.

    All of it is differentiable in x, W, b and the leak where eigenvalues are simple, by dλ = wᵀ d(DW) v / wᵀv, and
    again where DW is decomposed: a margin of ``net.steady_state(...).x`` can be a term of the reward.

    A full W or a convolution of up to 512 neurons is decomposed. For others Arnoldi's method needs products alone,
    sample by sample; where it fails, a full W, or any of up to 512 neurons, is decomposed after all. Everything is
    computed in float64.

    Args:
        net: a Network or a Recurrence.
        x: (..., n), steady states of it. At other points the answer is about D there.
        input: (..., n), what was added to the bias (of a Recurrence: b). Only a `Pointwise` nonlinearity needs it.
        k: how many eigenvalues; all, where n is less.

    Raises:
        ValueError, TypeError: an argument of the wrong shape or dtype, or not finite; k not an integer of at least 1,
            or too many for Arnoldi's method.
        ConvergenceError: Arnoldi's method did not converge; or, in a backward, an eigenvalue that the reward depends
            on is not simple.
        NotImplementedError: in a second derivative of what Arnoldi's method found; under a transform of torch.func, or
            in forward mode.

    References:
        L. N. Trefethen and M. Embree, "Spectra and Pseudospectra" (2005); J. R. Magnus, Econometric Theory 1 (1985).

    >>> import retrograde as rg
    >>> net = rg.Network(torch.tensor([[0.0, -2.0], [2.0, 0.0]]), f="identity", leak=0.1)
    >>> found = stability(net, torch.zeros(2))
    >>> found.eigenvalues.detach(), bool(found.stable_discrete), bool(found.stable_continuous)
    (tensor([0.+2.j, 0.-2.j]), False, True)
    >>> found.margin.detach(), Bifurcation(int(found.near)).name  # of 0.9 ± 0.2i
    (tensor(0.0780), 'HOPF')
    """
    if transformed():
        raise NotImplementedError(
            "stability: expected no transform of torch.func and no forward mode around it; torch.autograd.grad, with "
            "create_graph=True for what is to be differentiated again, takes its derivatives, and a batch the place of "
            "vmap"
        )
    return spectrum_at(net, x, input, k)


def spectrum_at(net: Network | Recurrence, x: Tensor, input: Tensor | None, k: int) -> Stability:
    """`stability` of plain numbers."""
    equations, b = equations_of(net, input)
    if isinstance(k, bool) or not isinstance(k, Integral):
        raise TypeError(f"k: expected an integer, got {k!r}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    W = equations.W.bind()
    n = W.shape[0]
    check_finite("x", check_last_axis("x", check_like("x", x, W.like), n))
    if b is not None and broadcast_shapes("x and input", x=x.shape, input=b.shape) != x.shape:
        raise ValueError(f"input: expected shape {tuple(x.shape)} or one that broadcasts to it, got {tuple(b.shape)}")
    equations, x, b = cast_to(torch.float64, equations, x, b)
    batch = x.shape[:-1]
    DW, own = jacobians(equations, x, b)
    D = DW.d
    dense = decomposes(W) or not len(D)
    with torch.no_grad():
        plain, own_plain = DW.detached(), own.detached()
        loops = plain.W if dense else within_components(plain.W)
        found = []
        for rows in torch.arange(len(D), device=D.device).split(max(1, 2**22 // n**2) if dense else 1):
            some = plain.rows(rows)
            own_some = some if own is DW else own_plain.rows(rows)
            try:
                found.append(decomposed(some, own_some, int(k)) if dense else searched(some, own_some, int(k), loops))
            except ConvergenceError:
                if not decomposes_after_all(W):
                    raise
                found.append(decomposed(some, own_some, int(k)))
        b = None if b is None else b.detach().expand(x.shape).reshape(-1, n)
        x = x.detach().reshape(-1, n)
        leader = _together([each.own for each in found])
        plain_net = replace(equations, W=plain.W)
        meet = three_meet(
            plain_net, x, b, (1 - leader.values[:, 0]).real, leader.right[:, 0].real, leader.left[:, 0].real
        )
    return _told(found, DW, own, batch, W.like.dtype, meet)


def turns(multiplier: Tensor) -> Tensor:
    """Whether it is one of a complex pair."""
    return multiplier.imag.abs() > torch.finfo(multiplier.dtype).eps ** 0.6 * multiplier.abs()


def _together(parts: list[Any]) -> Any:
    """What was found for some samples each, for all."""
    return type(parts[0])(*(torch.cat(rows) for rows in zip(*(part.tensors for part in parts), strict=True)))


def _told(
    found: list[Found], DW: Linear, own: Linear, batch: torch.Size, dtype: torch.dtype, meet: Tensor
) -> Stability:
    """All samples together, attached to what they were computed from."""
    real, complex_ = (torch.float64, torch.complex128) if dtype == torch.float64 else (torch.float32, torch.complex64)

    modes = _together([each.modes for each in found])
    leader = _together([each.own for each in found])
    rightmost = _together([each.rightmost for each in found])
    abscissa = _together([each.abscissa for each in found])
    distances = [each.distance for each in found]
    distance = None if None in distances else _together(distances)
    decomposed = distance is not None  # and so M may be formed again, for its derivatives
    by_eigenvalue = pairs.of_eigenvalues if decomposed else None

    def one(value: Tensor, dtype: torch.dtype) -> Tensor:
        return value[:, 0].reshape(batch).to(dtype)

    return Stability(
        eigenvalues=of_modes(modes).attached(DW, by_eigenvalue).reshape(*batch, *modes.values.shape[1:]).to(complex_),
        modes=modes.each(lambda part: part.reshape(*batch, *part.shape[1:])),
        rightmost=one(of_modes(rightmost).attached(DW, by_eigenvalue), complex_),
        multiplier=one(of_modes(leader).attached(own, by_eigenvalue), complex_),
        direction=leader.right[:, 0].reshape(*batch, *leader.right.shape[2:]).to(complex_),
        numerical_abscissa=one(abscissa.attached(DW, pairs.of_symmetric if decomposed else None), real) - 1,
        distance=None if distance is None else one(distance.attached(DW, pairs.of_singular), real),
        three_meet=meet.reshape(batch),
        _jacobians=Jacobians(DW, own),
    )
