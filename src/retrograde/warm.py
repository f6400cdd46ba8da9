"""Warm starts: each solve of a training run begins where the last ones point, the state's and the adjoint's."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor

from retrograde.remembered import Table
from retrograde.result import Status
from retrograde.solvers import Problem, Solution, Solver
from retrograde.solvers.base import check_number


class WarmStart:
    """Where the last steady states and adjoints ended: where the next begin.

    ``net.steady_state(input, warm=warm)`` starts x from the last states of the same samples, extrapolated, and its
    backward starts s likewise. Only the start changes: what is found has the same tolerance, and takes fewer steps. How
    many fewer depends on how far the weights move between two visits of a sample.

    For a full batch, one after the other, that is all. Where batches differ, say which samples they hold:
    ``warm=warm[indices]``, with their indices in the data set or any other integers from 0 that name them, such as
    neuron ids; or ``warm[32:64]``, for the next 32 of them. Keep one WarmStart for each network.

    The extrapolation is a polynomial in the number of visits, whose order, from 0 on, is that which would have foretold
    the sample's last state best. The adjoint's is then scaled so that its residual is least, whatever became of the
    reward's size or sign. A sample that fails from its warm start is tried from cold.

    Args:
        audit_every: after how many visits a sample is solved from cold too (from ``x0``): of several steady states a
            warm start may follow another than a cold one finds. Where they differ there is a warning, the cold answer
            is taken, and what was remembered is forgotten. None is never.
        memory: how many states and adjoints of each sample are held.

    Attributes:
        audits: how many samples were audited.
        disagreements: how many of them differed, by more than the square root of the tolerance.

    Raises:
        ValueError, TypeError: audit_every or memory less than 1, or not an integer.

    References:
        J. Kolafa, "Time-reversible always stable predictor-corrector method", J. Comput. Chem. 25 (2004), for the
        predictor.

    >>> import retrograde as rg
    >>> _ = torch.manual_seed(0)
    >>> net, input, warm = rg.Network(50), torch.randn(8, 50), WarmStart()
    >>> ascent = torch.optim.SGD(net.parameters(), lr=1e-3, maximize=True)
    >>> steps = []
    >>> for _ in range(6):
    ...     state = net.steady_state(input, warm=warm)
    ...     ascent.zero_grad()
    ...     (-(state.x - 0.1).square().mean()).backward()
    ...     ascent.step()
    ...     steps.append(int(state.steps.sum() + state.receipt.steps.sum()))
    >>> steps[-1] < steps[0] / 5
    True
    """

    def __init__(self, audit_every: int | None = 50, memory: int = 6):
        for name, value in (("audit_every", audit_every), ("memory", memory)):
            if value is None and name == "audit_every":
                continue
            if check_number(name, value, Integral) < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value}")
        self.audit_every, self.memory = audit_every, int(memory)
        self._shared = _Shared(self.memory)  # with every self[keys]
        self._keys: Any = None

    def __getitem__(self, keys: Any) -> Self:
        """The same memory, for the samples with these indices: one integer for each, in the shape of the batch.

        Of a slice that goes on beyond the last sample, as of the last batch of an epoch, the first are taken.
        """
        keyed = copy.copy(self)
        keyed._keys = keys
        return keyed

    def __repr__(self) -> str:
        return f"WarmStart(audit_every={self.audit_every}, memory={self.memory})"

    @property
    def audits(self) -> int:
        """How many samples were audited."""
        return self._shared.audits

    @property
    def disagreements(self) -> int:
        """How many of these had another steady state from cold."""
        return self._shared.disagreements

    def clear(self) -> None:
        """Forget every state and adjoint."""
        self._shared.clear()

    def state_dict(self) -> dict[str, Any]:
        """All that is remembered, as tensors and numbers: a run that loads it goes on with the same bits."""
        shared = self._shared
        tables = {name: (table.differences.clone(), table.visits.clone()) for name, table in shared.tables.items()}
        keys = torch.tensor(list(shared.rows), dtype=torch.int64)
        return {"tables": tables, "keys": keys, "audits": shared.audits, "disagreements": shared.disagreements}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is not the state of a WarmStart of this memory.
        """
        for name, (differences, visits) in state["tables"].items():
            if not isinstance(differences, Tensor) or not isinstance(visits, Tensor):
                raise TypeError(f"state: expected tensors in {name}, got {type(differences).__name__}")
            fits = differences.ndim == 3 and differences.shape[:2] == (self.memory, len(visits))
            if name not in self._shared.tables or not fits:
                raise ValueError(f"state: expected tables of memory {self.memory}, got {name} {differences.shape}")
        keys = state["keys"]
        if not isinstance(keys, Tensor) or keys.dtype != torch.int64 or keys.ndim != 1:
            raise TypeError("state: expected integer keys, one for each row of the tables by key")
        self._shared.rows = {key: row for row, key in enumerate(keys.tolist())}
        for name, (differences, visits) in state["tables"].items():
            table = self._shared.tables[name]
            table.differences, table.visits = differences.clone(), visits.clone()
        self._shared.audits, self._shared.disagreements = int(state["audits"]), int(state["disagreements"])

    def visit(self, batch: torch.Size, device: torch.device) -> Visit:
        """This visit of a batch of that shape."""
        if self._keys is None:
            rows, kind = torch.arange(batch.numel(), device=device), ""
        else:
            keys, kind = _checked_keys(self._keys, batch, device), " by key"
            rows = self._shared.rows_of(keys)
        return Visit(self, rows, bool(kind), *(self._shared.tables[name + kind] for name in ("x", "s")))


class _Shared:
    """What a WarmStart and its keyed views hold together."""

    def __init__(self, memory: int):
        self.tables = {name: Table(memory) for name in ("x", "s", "x by key", "s by key")}
        self.rows: dict[int, int] = {}  # of each key, in the tables by key
        self.audits = self.disagreements = 0

    def rows_of(self, keys: Tensor) -> Tensor:
        """The row of each key; one that was never seen gets the next."""
        rows = self.rows
        return torch.tensor([rows.setdefault(key, len(rows)) for key in keys.tolist()], device=keys.device).long()

    def clear(self) -> None:
        self.rows.clear()
        for table in self.tables.values():
            table.differences, table.visits = torch.empty(table.memory, 0, 0), torch.empty(0, dtype=torch.int64)


class Visit:
    """A batch of samples that a WarmStart is asked about: solves that begin from what it knows of them."""

    def __init__(self, warm: WarmStart, rows: Tensor, keyed: bool, x: Table, s: Table):
        self._warm, self._rows, self._keyed, self._x, self._s = warm, rows, keyed, x, s
        self._among: tuple[Tensor, int] | None = None

    def among(self, neurons: Tensor, n: int) -> Visit:
        """The same for adjoints of which these neurons alone, of n, are solved for; all others are 0."""
        visit = copy.copy(self)
        visit._among = neurons, n
        return visit

    def solve(self, solver: Solver, problem: Problem, cold: Tensor) -> Solution:
        """The steady states, from warm starts where there are any; audited, and remembered."""
        self._x.make_room(cold, self._rows, exactly=not self._keyed)
        visits = self._x.visits[self._rows]
        known = visits > 0
        if not known.any():
            found = solver.solve(problem, cold)
        else:
            found = solver.solve(problem, torch.where(known[:, None], self._x.predict(self._rows), cold))
            due = torch.zeros_like(known)
            if self._warm.audit_every is not None:
                # Samples with keys take turns, so that no batch is audited as a whole.
                due = (visits + self._keyed * self._rows) % self._warm.audit_every == 0
            self._again(solver, problem, cold, found, known & (due | (found.status != Status.CONVERGED)))
        self._x.put(self._rows, found.value, found.status == Status.CONVERGED, not self._keyed)
        return found

    def _again(self, solver: Solver, problem: Problem, cold: Tensor, found: Solution, some: Tensor) -> None:
        """Solve some samples from cold too, and keep that answer where it is another one."""
        rows = some.nonzero()[:, 0]
        if not len(rows):
            return
        again = solver.solve(problem.take(rows), cold[rows])
        warm = found.status[rows] == Status.CONVERGED
        size = torch.linalg.vector_norm(again.value, dim=-1)
        apart = torch.linalg.vector_norm(again.value - found.value[rows], dim=-1)
        other = apart > math.sqrt(solver.tolerance(cold.dtype)) * size.clamp(min=torch.finfo(size.dtype).eps ** 2)
        differ = warm & other & (again.status == Status.CONVERGED)
        take = differ | ~warm
        found.steps[rows[~take]] += again.steps[~take]
        found.adopt(rows[take], again.some(take))
        self._warm._shared.audits += int(warm.sum())
        if differ.any():
            count = int(differ.sum())
            self._warm._shared.disagreements += count
            for table in (self._x, self._s):
                table.forget(self._rows[rows[differ]])
            warnings.warn(
                f"warm: of {int(warm.sum())} samples audited, {count} have another steady state from cold than from "
                "their warm start; the cold one is taken. The network has several: start afresh with warm.clear(), or "
                "audit more often.",
                RuntimeWarning,
                stacklevel=5,
            )

    def solve_adjoint(self, solver: Solver, problem: Problem, drive: Tensor, size: Tensor) -> Solution:
        """The adjoints s = step(s), step(0) = `drive`, that a gradient of that size drives, (samples, 1); remembered.

        The start is a step from α times what is foretold, with the α for which that leaves the least residual: never
        more than the cold start, `drive`, does.
        """
        neurons, n = self._among or (slice(None), drive.shape[1])
        # There may have been another batch in between.
        self._s.make_room(drive.new_empty(len(drive), n), self._rows, exactly=not self._keyed)
        known = self._s.visits[self._rows] > 0
        start = drive
        if known.any():
            s = self._s.predict(self._rows)[:, neurons] * size
            fed_back = problem.step(s) - drive
            change = s - fed_back
            alpha = (change * drive).sum(-1, keepdim=True) / (change * change).sum(-1, keepdim=True)
            start = drive + torch.where(alpha.isfinite(), alpha * fed_back, 0)
        found = solver.solve(problem, start)
        if known.any():
            found = replace(found, steps=found.steps + known)  # the product that found α
        whole = drive.new_zeros(len(drive), n)
        whole[:, neurons] = found.value / size
        self._s.put(self._rows, whole, (found.status == Status.CONVERGED) & (size[:, 0] > 0), not self._keyed)
        return found


def _checked_keys(keys: Any, batch: torch.Size, device: torch.device) -> Tensor:
    """The keys on one axis."""
    if isinstance(keys, slice):
        keys = _sliced(keys, batch)
    try:
        rows = torch.as_tensor(keys, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"warm: expected integer indices of the samples, got {type(keys).__name__}: {error}") from None
    if rows.dtype == torch.bool or rows.is_floating_point() or rows.is_complex():
        raise TypeError(f"warm: expected integer indices of the samples, got {rows.dtype}")
    if rows.shape != batch:
        raise ValueError(f"warm: expected an index for each sample, shape {tuple(batch)}, got {tuple(rows.shape)}")
    if rows.numel() and int(rows.min()) < 0:
        raise ValueError(f"warm: expected indices from 0, got {int(rows.min())}")
    return rows.reshape(-1).long()


def _sliced(keys: slice, batch: torch.Size) -> range:
    """The indices that a slice names, as many as there are samples at most."""
    start, stop, step = keys.start or 0, keys.stop, keys.step or 1
    if any(isinstance(each, bool) or not isinstance(each, Integral) for each in (start, stop or 0, step)):
        raise TypeError(f"warm: expected integers in the slice, got {keys}")
    if start < 0 or step < 1 or (stop is not None and stop < 0):
        raise ValueError(f"warm: expected a slice of indices from 0, in order, got {keys}")
    end = start + step * batch.numel()
    return range(start, end if stop is None else min(stop, end), step)
