"""Recorded activities, and what drove the network meanwhile, from long tables: a row for each number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from retrograde.connectome.amounts import per_neuron
from retrograde.connectome.columns import NEURONS, recognise
from retrograde.connectome.ids import identities
from retrograde.connectome.naming import find
from retrograde.connectome.tables import Source, numbers
from retrograde.connectome.wiring import Connectome

# Role, then the names it goes by.
_NEURON = ("neuron", *(name for name in NEURONS["id"] if name != "neuron"))
_CONDITION = ("condition", "stimulus", "trial")
RECORDED = {
    "neuron": _NEURON,
    "condition": _CONDITION,
    "time": ("time", "t"),
    "activity": ("activity", "rate", "response", "value"),
    "sd": ("sd", "std", "error"),
}
DRIVE = {
    "neuron": _NEURON,
    "condition": _CONDITION,
    "start": ("start", "onset"),
    "stop": ("stop", "end"),
    "strength": ("strength", "drive", "input", "amplitude", "value"),
}


class Recordings(NamedTuple):
    """A row for each number that was recorded, `rows` of places, and the drive of each condition.

    `step` is the number of the time step, all 0 where there is no time; `sd` the noise's standard deviation, or None.
    The drive is (conditions, n), or (steps, conditions, n) where it changes with time.
    """

    conditions: list[str]
    condition: np.ndarray
    neuron: np.ndarray
    step: np.ndarray
    activity: np.ndarray
    sd: np.ndarray | None
    table: pd.DataFrame
    drive: Tensor

    @property
    def steps(self) -> int:
        """The last step that was recorded."""
        return int(self.step.max())


def recordings_of(c: Connectome, recorded: Any, drive: Any, dt: float | None) -> Recordings:
    """Both tables, looked over.

    Raises:
        ValueError: columns that are missing, ids that are not there, a number that is there twice or is not finite, a
            standard deviation that is not positive, times that are no multiples of dt, an interval that ends before it
            starts, a drive of no condition that was recorded.
        TypeError: no table.
    """
    columns = _read(recorded, "recorded", RECORDED, ("neuron", "activity"))
    if not len(columns["activity"]):
        raise ValueError("recorded: expected at least one row, got none")
    if dt is None and "time" in columns:
        raise ValueError("dt: expected the length of a step, as the activities are recorded over time")
    if dt is not None and not 0 < dt < np.inf:
        raise ValueError(f"dt: expected a finite length of a step > 0, got {dt}")
    if dt is not None and "time" not in columns:
        raise ValueError("recorded: expected a column of times, as dt was given; found none")
    neuron = find(c.ids, columns["neuron"].tolist(), "recorded")
    conditions, condition = np.unique(columns["condition"].astype(str), return_inverse=True)
    step = np.zeros(len(neuron), np.int64) if dt is None else _steps(columns["time"], dt)
    table = pd.DataFrame({"neuron": c.ids[neuron], "condition": conditions[condition]})
    if dt is not None:
        table["time"] = columns["time"]
    twice = table.duplicated().to_numpy()
    if twice.any():
        raise ValueError(f"recorded: {_told(table[twice].iloc[0])} is there more than once")
    sd = columns.get("sd")
    if sd is not None and not (sd > 0).all():
        raise ValueError(f"recorded, sd: expected numbers > 0, got {sd[~(sd > 0)][0]:g}")
    table["activity"] = columns["activity"]
    names = conditions.tolist()
    total = _driven(c, drive, names, None if dt is None else int(step.max()), dt)
    return Recordings(names, condition, neuron, step, columns["activity"], sd, table, total)


def _read(table: Any, what: str, roles: Mapping[str, tuple[str, ...]], needed: tuple[str, ...]) -> dict[str, Any]:
    """Role -> column; the condition is "" where none is told."""
    source = Source(table, what)
    found = recognise(source.names, roles, {}, source.what)
    missing = [role for role in needed if role not in found]
    if missing:
        raise ValueError(
            f"{source.what}: expected the columns {' and '.join(needed)}; {', '.join(missing)} not found among "
            f"{', '.join(source.names)}"
        )
    rows = source.read(list(found.values()), ids=(found["neuron"],))
    columns: dict[str, Any] = {"condition": np.full(len(rows), "")}
    for role, name in found.items():
        if role == "neuron":
            columns[role] = identities(rows[name], f"{source.what}, {name}").values
        elif role == "condition":
            columns[role] = _names(rows[name], f"{source.what}, {name}")
        else:
            columns[role] = numbers(rows[name], f"{source.what}, {name}")
    return columns


def _names(column: pa.ChunkedArray, what: str) -> np.ndarray:
    if column.null_count:
        raise ValueError(f"{what}: {column.null_count} of {len(column)} are missing")
    return column.to_pandas().astype(str).to_numpy()


def _steps(time: np.ndarray, dt: float) -> np.ndarray:
    step = np.rint(time / dt)
    bad = (np.abs(time / dt - step) > 1e-6 * np.maximum(np.abs(step), 1)) | (step < 1)
    if bad.any():
        raise ValueError(f"recorded, time: expected multiples of dt = {dt:g}, from dt on, got {time[bad][0]:g}")
    return step.astype(np.int64)


def _driven(c: Connectome, drive: Any, conditions: list[str], steps: int | None, dt: float | None) -> Tensor:
    """(conditions, n), or (steps, conditions, n) where intervals are told. Rows of one neuron add up.

    Step k, which leads to the activity at k dt, lasts from (k - 1) dt to k dt; what is told is the mean over it.
    """
    (weight,) = c.W.weights
    still = torch.zeros(len(conditions), len(c), dtype=weight.dtype)
    if drive is None:
        return still
    if isinstance(drive, Mapping):  # the same in all conditions
        return still + torch.from_numpy(per_neuron(c, drive, "drive")).to(weight.dtype)
    columns = _read(drive, "drive", DRIVE, ("neuron", "strength"))
    places, which = c.meant(columns["neuron"].tolist(), "drive")
    columns = {role: column[which] for role, column in columns.items()}
    neuron = torch.from_numpy(places)
    strength = torch.from_numpy(columns["strength"]).to(weight.dtype)
    place = {name: k for k, name in enumerate(conditions)}
    everywhere = (columns["condition"] == "").all()
    rows = [range(len(conditions)) if everywhere else [place.get(each, -1)] for each in columns["condition"]]
    if len(rows) and not everywhere and all(list(row) == [-1] for row in rows):
        raise ValueError(
            f"drive: none of its conditions, such as {columns['condition'][0]!r}, was recorded; "
            f"recorded were {', '.join(conditions[:5])}"
        )
    of_row = torch.tensor([k for k, row in enumerate(rows) for condition in row if condition >= 0])
    condition = torch.tensor([condition for row in rows for condition in row if condition >= 0])
    timed = {"start", "stop"} & columns.keys()
    if not timed:
        return still.index_put((condition, neuron[of_row]), strength[of_row], accumulate=True)
    if steps is None or dt is None:
        raise ValueError(f"drive: expected no column {min(timed)!r} at a steady state; give dt")
    start = columns.get("start", np.zeros(len(neuron)))
    stop = columns.get("stop", np.full(len(neuron), steps * dt))
    if (stop <= start).any():
        k = int(np.argmax(stop <= start))
        raise ValueError(f"drive: expected stop after start, got start {start[k]:g} and stop {stop[k]:g}")
    first = np.arange(steps)[:, None] * dt
    part = np.clip((np.minimum(stop, first + dt) - np.maximum(start, first)) / dt, 0, 1)
    given = (torch.from_numpy(part).to(weight.dtype) * strength)[:, of_row]
    moving = torch.zeros(steps, *still.shape, dtype=weight.dtype)
    return moving.index_put((torch.arange(steps)[:, None], condition, neuron[of_row]), given, accumulate=True)


def _told(row: pd.Series) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items() if value != "")


def held_out(of: Recordings, part: float, by: str, seed: int) -> np.ndarray:
    """Which rows are held out: all of some conditions, or of some neurons, chosen at random; of one condition, none.

    Raises:
        ValueError: a part that is none, or nothing left to fit.
    """
    if by not in ("condition", "neuron"):
        raise ValueError(f"hold_out_by: expected 'condition' or 'neuron', got {by!r}")
    if not 0 <= part < 1:
        raise ValueError(f"hold_out: expected a part, 0 <= hold_out < 1, got {part}")
    labels = of.condition if by == "condition" else of.neuron
    kinds = np.unique(labels)
    count = max(1, round(part * len(kinds))) if part else 0
    if by == "condition" and len(kinds) == 1:
        return np.zeros(len(labels), bool)
    if count >= len(kinds):
        other = "neuron" if by == "condition" else "condition"
        raise ValueError(
            f"hold_out: expected more than one {by} that was recorded, to hold some out; "
            f"give hold_out_by={other!r} or hold_out=0"
        )
    return np.isin(labels, np.random.default_rng(seed).choice(kinds, count, replace=False))
