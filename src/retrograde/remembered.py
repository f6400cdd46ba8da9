"""The last vectors of each sample, and where they point: what a warm start is made of."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 8 * 2**30  # bytes of one table


class Table:
    """The last vectors z of each sample, as backward differences ∇⁰z = z, ∇ʲz = ∇ʲ⁻¹z - (∇ʲ⁻¹z one visit before).

    The polynomial of order m through the last m + 1 foretells ∇⁰z + ... + ∇ᵐz, and is then wrong by the next ∇ᵐ⁺¹z.
    """

    def __init__(self, memory: int):
        self.memory = memory
        self.differences = torch.empty(memory, 0, 0)  # (memory, samples, n)
        self.visits = torch.empty(0, dtype=torch.int64)  # of each sample since it was last forgotten

    def make_room(self, like: Tensor, rows: Tensor, exactly: bool) -> None:
        """Room for these rows; what is there stays if it is of the same kind, and, if asked, of the same number."""
        held, n = self.differences.shape[1:]
        wanted = int(rows.max()) + 1 if len(rows) else 0
        if n != like.shape[1] or self.differences.dtype != like.dtype or self.differences.device != like.device:
            held = 0
        elif held == wanted or (held > wanted and not exactly):
            return
        if exactly:
            held = 0
        size = wanted if exactly or not held else max(wanted, 2 * held)
        needed = self.memory * wanted * like.shape[1] * like.element_size()
        if needed > _LARGEST:
            raise ValueError(
                f"warm: {self.memory} vectors of each of {wanted} samples would take {needed / 2**30:.1f} GiB; "
                "use WarmStart(memory=1), or warm starts for some of them alone"
            )
        differences = like.new_zeros(self.memory, size, like.shape[1])
        visits = torch.zeros(size, dtype=torch.int64, device=like.device)
        if held:
            differences[:, :held], visits[:held] = self.differences, self.visits
        self.differences, self.visits = differences, visits

    def predict(self, rows: Tensor) -> Tensor:
        """Where these samples are expected next, (rows, n); zeros where nothing is known."""
        differences = self.differences[:, rows]
        if self.memory == 1:
            return differences[0]
        wrong = torch.linalg.vector_norm(differences[1:], dim=-1)
        orders = torch.arange(1, self.memory, device=rows.device)[:, None]
        wrong = torch.where(orders < self.visits[rows], wrong, torch.inf)
        order = wrong.argmin(0)
        counted = torch.arange(self.memory, device=rows.device)[:, None] <= order
        return torch.where(counted[:, :, None], differences, 0).sum(0)

    def put(self, rows: Tensor, z: Tensor, good: Tensor, distinct: bool) -> None:
        """Remember z; forget the samples where it is not good. Of a sample that is there twice, the first is taken."""
        if not distinct:
            order = torch.argsort(rows, stable=True)
            first = torch.ones_like(good)
            first[1:] = rows[order[1:]] != rows[order[:-1]]
            order = order[first]
            rows, z, good = rows[order], z[order], good[order]
        before = self.differences[:, rows]
        now = torch.empty_like(before)
        now[0] = z.detach()
        for j in range(1, self.memory):
            torch.sub(now[j - 1], before[j - 1], out=now[j])
        if not good.all():
            now = torch.where(good[:, None], now, 0)
        self.differences[:, rows] = now
        self.visits[rows] = torch.where(good, self.visits[rows] + 1, 0)

    def forget(self, rows: Tensor) -> None:
        """As if these samples had never been here."""
        self.visits[rows[rows < len(self.visits)]] = 0
