"""When which neurons are driven, and what their activities should be, as tables tell it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from retrograde.connectome.amounts import check_numbers, per_neuron, values_of
from retrograde.connectome.columns import NEURONS, recognise
from retrograde.connectome.ids import identities
from retrograde.connectome.naming import column_of, of_groups
from retrograde.connectome.tables import Source, numbers
from retrograde.connectome.wiring import Connectome

# Role, then the names it goes by, in a table of stimuli and in one of targets.
_NEURON = ("neuron", *(name for name in NEURONS["id"] if name != "neuron"))
STIMULUS = {
    "neuron": _NEURON,
    "cell_type": NEURONS["cell_type"],
    "start": ("start", "onset", "begin"),
    "stop": ("stop", "end", "until"),
    "strength": ("strength", "amplitude", "input", "value"),
}
TARGET = {"neuron": _NEURON, "time": ("time", "step"), "activity": ("activity", "value", "target")}


class Stimulus(NamedTuple):
    """A row for each neuron and interval: its place, and the input `strength` from `start` to `stop`."""

    place: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    strength: np.ndarray

    def over(self, first: int, steps: int, dt: float, n: int, like: Tensor) -> Tensor:
        """(steps, n), the input of steps first, first + 1, ...; step k lasts from k dt to (k + 1) dt.

        It is the mean over the step, so that an interval that is no multiple of dt has its whole effect.
        """
        start = (first + np.arange(steps)[:, None]) * dt
        inside = np.minimum(self.stop, start + dt) - np.maximum(self.start, start)
        part = np.clip(inside / dt, 0.0, 1.0) * self.strength
        found = like.new_zeros(n, steps)
        found.index_add_(0, torch.from_numpy(self.place), torch.from_numpy(part.T.copy()).to(like))
        return found.T.contiguous()


def stimulus_of(c: Connectome, given: Any, duration: float | None) -> Stimulus:
    """The stimulus that a table tells, or a mapping from id to what is on all the time.

    Raises:
        ValueError: columns that are missing, ids that are not there, a neuron that a mapping names twice with different
            numbers, numbers that are missing or not finite, an interval that ends before it starts, or starts before 0.
        TypeError: no table.
    """
    if isinstance(given, Mapping):
        if duration is None:
            raise ValueError("duration: expected how long the simulation lasts, as the stimulus does not tell")
        place = c.index(list(given), "stimulus")  # each once, or it would be driven by the sum
        strength = per_neuron(c, given, "stimulus, strength")[place]
        return Stimulus(place, np.zeros(len(place)), np.full(len(place), float(duration)), strength)
    source = Source(given, "stimulus")
    roles = recognise(source.names, STIMULUS, {}, source.what)
    who = "neuron" if "neuron" in roles else "cell_type"
    missing = [role for role in (who, "start", "stop", "strength") if role not in roles]
    if missing:
        missing = ["neuron" if role == "cell_type" else role for role in missing]
        raise ValueError(
            f"{source.what}: expected the columns neuron (or cell_type), start, stop and strength; "
            f"{', '.join(missing)} not found among {', '.join(source.names)}"
        )
    rows = source.read([roles[role] for role in (who, "start", "stop", "strength")], ids=(roles[who],))
    start, stop, strength = (
        numbers(rows[roles[role]], f"{source.what}, {role}") for role in ("start", "stop", "strength")
    )
    if not len(start):
        raise ValueError(f"{source.what}: expected at least one row, got none")
    names = identities(rows[roles[who]], f"{source.what}, {who}").values
    for told, bad in (("stop after start", stop <= start), ("start of at least 0", start < 0)):
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"{source.what}: expected {told}, got start {start[row]:g} and stop {stop[row]:g} for {names[row]} "
                f"(row {row + 1})"
            )
    if who == "neuron":
        places, which = c.meant(names, source.what)
    else:
        column_of(c.neurons, who, source.what)
        by_type = of_groups(c.neurons, who, names, source.what)
        places = np.concatenate(by_type)
        which = np.repeat(np.arange(len(names)), [len(each) for each in by_type])
    return Stimulus(places, start[which], stop[which], strength[which])


class Targets(NamedTuple):
    """A row for each target: its place, the step at which it is looked at (0 at a steady state), what is wanted."""

    place: np.ndarray
    time: np.ndarray
    activity: np.ndarray


def targets_of(c: Connectome, given: Any, steps: int | None) -> Targets:
    """The targets that a table tells, a mapping from id, or (id, time), to activity, or ids alone, of which each is 1.

    Raises:
        ValueError: no target, one that is there twice with different activities, ids that are not there, columns that
            are missing, activities that are no numbers, times that are no steps.
        TypeError: no table.
    """
    last = steps or 0
    if isinstance(given, Mapping):
        pairs = [key if isinstance(key, tuple) else (key, last) for key in given]
        ids, times = [key for key, _ in pairs], np.array([float(time) for _, time in pairs])
        activity = values_of(given, "target, activity")
    elif _is_table(given):
        source = Source(given, "target")
        roles = recognise(source.names, TARGET, {}, source.what)
        missing = [role for role in ("neuron", "activity") if role not in roles]
        if missing:
            raise ValueError(
                f"{source.what}: expected the columns neuron and activity, and time along a trajectory; "
                f"{', '.join(missing)} not found among {', '.join(source.names)}"
            )
        rows = source.read(list(roles.values()), ids=(roles["neuron"],))
        ids = identities(rows[roles["neuron"]], f"{source.what}, neuron").values.tolist()
        activity = numbers(rows[roles["activity"]], f"{source.what}, activity")
        times = numbers(rows[roles["time"]], f"{source.what}, time") if "time" in roles else np.full(len(ids), last)
    else:
        ids = [given] if isinstance(given, str | int | np.integer) else list(given)
        activity, times = np.ones(len(ids)), np.full(len(ids), last)
    if not len(ids):
        raise ValueError("target: expected at least one, got none")
    check_numbers(activity, "target, activity")
    wrong = (times != np.floor(times)) | (times < (0 if steps is None else 1)) | (times > last)
    if wrong.any():
        row = int(np.argmax(wrong))
        expected = f"whole steps from 1 to {steps}" if steps else "no time at a steady state; give steps=T"
        raise ValueError(f"target: expected {expected}, got time {times[row]:g} for {ids[row]}")
    place, which = c.meant(ids, "target")
    wanted: dict[tuple[int, int], float] = {}
    for each in zip(place.tolist(), times.astype(np.int64)[which].tolist(), activity[which].tolist(), strict=True):
        if wanted.setdefault(each[:2], each[2]) != each[2]:
            raise ValueError(f"target: {c.ids[each[0]]} is there more than once at one time, with different activities")
    places, steps_of = np.array(list(wanted), np.int64).T
    return Targets(places, steps_of, np.array(list(wanted.values())))


def _is_table(given: Any) -> bool:
    return isinstance(given, pd.DataFrame | pa.Table | Path) or (
        isinstance(given, str)
        and Path(given.lower().removesuffix(".gz")).suffix in (".csv", ".tsv", ".txt", ".parquet", ".feather")
    )
