"""A path from a problem without feedback to the problem itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from retrograde.solvers import gmres
from retrograde.solvers.base import Iteration, Problem

Inverse = Callable[[Tensor, float], Tensor]  # r -> (I - J)⁻¹ r, to within some part of |r|

# A try is given up after so many halvings of the step, and a corrector after so many turns.
_TRIES, _CORRECTIONS = 6, 3
# How far the corrector may move from where the predictor led, in parts of the step: aimed at, and at most.
_AIM, _MOST = 0.15, 0.5


@dataclass(frozen=True, kw_only=True)
class Homotopy(Iteration):
    """Follows the solution of z = step_t(z), whose feedback has the gain t, from t = 0, where z = step_0, to t = 1.

    For a network: x = f(t Wx + b), from x = f(b) on. The path may turn back in t, at folds; so it is followed by its
    length, (z, t) together: a step along the tangent, halved until a few chord corrections at right angles to it
    converge, with one factorisation a step (or, where the problem does not say that factors are cheap, GMRES).

    Where f is bounded and smooth with f' > 0, the path leads to t = 1 for almost every b: it cannot return to t = 0,
    where there is one solution, nor leave for infinity, nor end. It proves Brouwer's theorem by construction, and finds
    a steady state where all else fails. How long it is, nobody knows beforehand.

    It begins where feedback is absent, not where the caller starts.

    Args:
        rtol: the relative residual to reach; None takes it from the dtype.
        max_steps: how many steps along the path a sample may take.

    Raises:
        ValueError: at the solve, a problem that has no gain, such as an adjoint.

    References:
        Chow, Mallet-Paret and Yorke, "Finding zeroes of maps: homotopy methods that are constructive with probability
        one", Math. Comput. 32 (1978). Keller, "Numerical solution of bifurcation and nonlinear eigenvalue problems"
        (1977).
    """

    max_steps: int = 1000

    window: ClassVar[int] = 8

    def start(self, problem: Problem, z: Tensor) -> tuple[Tensor, ...]:
        """Of each sample: z and t of the path's last two points, the direction at the first, the length of a step."""
        if problem.at_gain is None:
            raise ValueError("solver: Homotopy needs a problem with a gain; an affine one, an adjoint, has none")
        t = z.new_zeros(len(z), 1)
        length = z.new_full((len(z), 1), 0.1)
        point = problem.at_gain(t).step(z)
        return point, t, point, t, torch.zeros_like(z), torch.ones_like(t), length

    def turn(
        self, problem: Problem, z: Tensor, step: Tensor, residual: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], int]:
        """One step along the path; at its end, where t = 1, chords of Newton's method."""
        point, t, last_point, last_t, last_direction, last_along, length = memory
        assert problem.at_gain is not None  # `start` has looked
        # The path's slope dz/dt: (I - J)⁻¹ d step_t/dt, and t d step_t/dt = J z.
        some = t.clamp(min=torch.finfo(z.dtype).eps ** 0.5)
        here = problem.at_gain(some)
        inverse = self._inverse(here, point)
        slope = inverse(here.linearised(point)(point) / some, 0.01)
        stretch = (slope.square().sum(-1, keepdim=True) + 1).sqrt()
        onward = (slope * last_direction).sum(-1, keepdim=True) + last_along
        along = torch.where(onward < 0, -1, 1) / stretch  # past a fold, t runs the other way
        direction = along * slope

        # The last corrections were by chords. One by the tangent, now that it is known, keeps their errors from adding
        # up; where it is large, or the path has turned sharply, the last step was too long.
        arrived = t == 1
        move, back = _at_right_angles(slope, inverse(here.step(point) - point, 0.1))
        on_path = _size(move, back) <= 3 * _close(point)
        used = _size(point - last_point, t - last_t)
        lost = ~arrived & ~(on_path & (onward.abs() >= 0.5 * stretch)) & (used > 1e-3 * _close(point))
        mended = on_path & ~arrived & (t + back < 1)
        point, t = torch.where(mended, point + move, point), torch.where(mended, t + back, t)
        point, t = torch.where(lost, last_point, point), torch.where(lost, last_t, t)
        direction, along = torch.where(lost, last_direction, direction), torch.where(lost, last_along, along)
        length = torch.where(lost, used / 3, length)

        end, at, length = self._advanced(problem, inverse, slope, (point, t), (direction, along), length, ~lost)
        # Where f is unbounded the path may leave for infinity, and z then counts as diverged.
        gone = end.abs().amax(-1, keepdim=True) > self._far(problem, z)
        return torch.where(gone, torch.inf, end), (end, at, point, t, direction, along, length), 1

    def _advanced(
        self,
        problem: Problem,
        inverse: Inverse,
        slope: Tensor,
        foot: tuple[Tensor, Tensor],
        tangent: tuple[Tensor, Tensor],
        length: Tensor,
        todo: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next z and t on the path, where `todo`, and the length of the step after; a step too long is halved."""
        (end, at), (direction, along) = foot, tangent
        arrived = at == 1
        for _ in range(_TRIES):
            if not todo.any():
                break
            reaches = arrived | ((along > 0) & (at + length * along >= 1))
            h = torch.where(reaches, (1 - at) / along, length)
            start = end + h * direction, torch.where(reaches, 1, (at + h * along).clamp(min=0))
            found, t, good, first = self._corrected(problem, inverse, slope, start, h, todo, reaches, arrived)
            end, at = torch.where(good, found, end), torch.where(good, t, at)
            change = (_AIM * h / first.clamp(min=torch.finfo(end.dtype).tiny)).clamp(0.5, 3)
            length = torch.where(good & ~reaches, length * change, torch.where(todo & ~good, length / 2, length))
            todo = todo & ~good & ~arrived
        return end, at, length

    def _corrected(
        self,
        problem: Problem,
        inverse: Inverse,
        slope: Tensor,
        start: tuple[Tensor, Tensor],
        h: Tensor,
        todo: Tensor,
        reaches: Tensor,
        arrived: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Back to the path by chords: z and t, whether they are on it, and how large the first correction was.

        At right angles to the tangent; at t = 1, where the step `reaches` it, with t held.
        """
        assert problem.at_gain is not None  # `start` has looked
        z, t = start
        good, first, last = todo, torch.zeros_like(h), torch.zeros_like(h)
        going = todo
        for k in range(_CORRECTIONS):
            r = problem.at_gain(t).step(z) - z
            move = inverse(torch.where(going, r, 0), 0.1)
            sideways, back = _at_right_angles(slope, move)
            move, back = torch.where(reaches, move, sideways), torch.where(reaches, 0, back)
            z, t = torch.where(going, z + move, z), torch.where(going, t + back, t)
            moved = _size(move, back)
            first = moved if k == 0 else first
            near = (moved <= (_MOST * h if k == 0 else 0.5 * last)) | (moved <= _close(z)) | arrived
            good = good & (near | ~going)
            last = torch.where(going, moved, last)
            # Those that are there stay, whatever their batch-mates need.
            going = going & good & (last > 1e-3 * _close(z))
            if not going.any():
                break
        # Beyond t = 1 is too far: half a step, and the end will be in reach.
        good = good & ((last <= _close(z)) | arrived) & (t <= 1) & z.isfinite().all(-1, keepdim=True)
        return z, t, good, first

    @staticmethod
    def _far(problem: Problem, z: Tensor) -> Tensor:
        """How large z may become: so much larger than step(0) that half of the digits of what drives it are lost."""
        drive = problem.step(torch.zeros_like(z)).abs().amax(-1, keepdim=True)
        return (1 + drive) / torch.finfo(z.dtype).eps ** 0.5

    @staticmethod
    def _inverse(problem: Problem, z: Tensor) -> Inverse:
        """r -> (I - J)⁻¹ r, to within a residual of some part of |r| where there are no factors."""
        if problem.factorable:
            solve = problem.factorise(z, anew=True)
            return lambda r, _: solve(r)
        return lambda r, part: gmres.solve(problem, z, r, part * torch.linalg.vector_norm(r, dim=-1))[0]


def _at_right_angles(slope: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """(move, 0) less a multiple of (slope, 1), so that it is at right angles to the tangent; in z and in t."""
    back = -(slope * move).sum(-1, keepdim=True) / (slope.square().sum(-1, keepdim=True) + 1)
    return move + back * slope, back


def _size(move: Tensor, back: Tensor) -> Tensor:
    """|(move, back)|."""
    return (move.square().sum(-1, keepdim=True) + back.square()).sqrt()


def _close(z: Tensor) -> Tensor:
    """How near to the path counts as on it."""
    return 1e-3 * torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp(min=1e-3)
