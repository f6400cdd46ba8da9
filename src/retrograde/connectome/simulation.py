"""Activity over time: a stimulus in, every neuron's activity out, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor

from retrograde.connectome.advice import advising
from retrograde.connectome.amounts import per_neuron
from retrograde.connectome.given import Stimulus, stimulus_of
from retrograde.connectome.layered import RELEASES, Layered, cell_options, layered
from retrograde.connectome.linear import scaled
from retrograde.connectome.naming import column_of
from retrograde.connectome.presets import Preset
from retrograde.connectome.scales import check_scale
from retrograde.connectome.steadiness import linearised, stable_margin
from retrograde.connectome.wiring import Connectome
from retrograde.nonlinearity import Nonlinearity, as_nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError
from retrograde.steady import steady_state
from retrograde.trajectories import trajectory

_NUMBERS = 2**22  # of a piece of a trajectory, in neurons times steps
_ROWS = 2 * 10**8  # of a table that still can be held
_TOLERANCE = 1e-9  # by which a duration may miss a multiple of dt, in steps


def simulate(
    c: Connectome,
    stimulus: Any,
    *,
    form: Literal["rate", "voltage"] = "rate",
    f: str | Nonlinearity = "tanh",
    dt: float = 1.0,
    tau: Any = None,
    bias: Any = 0.0,
    duration: float | None = None,
    start: Literal["rest", "steady"] = "rest",
    scale: float | None = None,
    silence: Iterable[Any] = (),
    record: Any = None,
    by: str | None = None,
    wide: bool = False,
    preset: str | None = None,
    threshold: float | None = None,
    steepness: Any = None,
    told: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The activity of every neuron over time, driven by a table of stimuli.

    ``form="rate"``: x(t) = (1 - a) x(t - dt) + a f(αW x(t - dt) + b(t)), a = dt/τ, which is `retrograde.trajectory`.
    ``form="voltage"``: τ dv/dt = -v + αW f(v) + b, the dynamics of flyvis, by Euler's method:
    v(t) = v(t - dt) + a (αW f(v(t - dt)) + b(t) - v(t - dt)). The activity is f(v).

    Args:
        c: the connectome.
        stimulus: a table, or a file of one, with the columns ``neuron`` (or ``cell_type``), ``start``, ``stop`` and
            ``strength``: what is added to the neuron's input from start to stop. Or a mapping from id to strength, for
            what is on all the time. Here and below there may be COLUMN:VALUE in the place of an id, all of a cell type,
            say: ``"cell_type:T4a"``. Times, ``dt`` and ``tau`` have one unit, say milliseconds; the strength has that
            of Wx. What overlaps is added, and what is on for a part of a step counts for that part.
        f: the nonlinearity; flyvis has "relu".
        dt: how long a step is.
        tau: τ, at least dt: a number, a column of the neurons, or a mapping from ids to numbers (others: dt). None
            is dt, so that x(t) = f(αW x(t - dt) + b(t)).
        bias: input that is always there, likewise; others: 0.
        duration: how long to go on; None for the end of the stimulus.
        start: "rest" from x(0) = 0, or from v(0) = bias as flyvis does; or "steady", from the steady state without the
            stimulus.
        scale: the largest real part of an eigenvalue of αW; None takes W as it is.
        silence: neurons whose outgoing connections are cut, by id.
        record: ids of the neurons that are told; None for all.
        by: a column of the neurons, "cell_type" say: means over these are told instead.
        wide: a column for each neuron, or type, instead of a row for each time and neuron. Of the voltage form, the
            activities.
        preset: "ci-2.9" or "ci-2.10" for the equations of connectome_interpreter's MultilayeredNetwork in these
            releases, with its threshold, steepness, clamp and, from 2.10 on, τ = 10: see
            `retrograde.connectome.layered`. Its f is its own, and its time is counted in steps.
        threshold, steepness: of that network: below which drive a neuron is silent, by default 0.01; and by what its
            drive is multiplied, by default 5: a number, a column of the neurons, or a mapping from ids.
        told: called with the steps done and the steps in all, now and then.

    Returns:
        Long: ``time``, from 0 to the duration, ``id`` (or the types, and how many ``neurons`` they have), the cell type
        where it is known, ``activity``, and in the voltage form ``voltage``. Wide: ``time``, and a column for each.

    Raises:
        ValueError: columns that are missing, ids that are not there, strengths that are no numbers, a stop before its
            start, a τ below dt, a steady state to start from that is unstable, a table too long to be held.
        ConvergenceError: the activity became infinite.

    References:
        Lappalainen et al., Nature 634 (2024), for the voltage form.

    >>> import pandas as pd
    >>> from retrograde.connectome import read
    >>> c = read(pd.DataFrame({"pre": ["a", "b"], "post": ["b", "a"], "count": [1, 1]}))
    >>> pulse = pd.DataFrame({"neuron": ["a"], "start": [0], "stop": [1], "strength": [1.0]})
    >>> simulate(c, pulse, f="identity", duration=3, wide=True)
       time    a    b
    0   0.0  0.0  0.0
    1   1.0  1.0  0.0
    2   2.0  0.0  1.0
    3   3.0  1.0  0.0
    """
    for name, given, among in (("form", form, ("rate", "voltage")), ("start", start, ("rest", "steady"))):
        if given not in among:
            raise ValueError(f"{name}: expected one of {', '.join(among)}, got {given!r}")
    cell = cell_options(preset, threshold, steepness)
    if preset is not None:
        if preset not in RELEASES:
            raise ValueError(f"preset: expected one of {', '.join(RELEASES)}, got {preset!r}")
        if (form, dt, start) != ("rate", 1.0, "rest"):
            raise ValueError("preset: its steps are 1 and start from rest; expected no other form, dt or start")
    if not 0 < dt < np.inf:
        raise ValueError(f"dt: expected a finite time above 0, got {dt}")
    drive = stimulus_of(c, stimulus, duration)
    end = float(drive.stop.max()) if duration is None else float(duration)
    steps = int(np.ceil(end / dt - _TOLERANCE)) if 0 < end < np.inf else 0
    if steps < 1:
        raise ValueError(f"duration: expected a finite time above 0, got {end:g}")
    places = np.arange(len(c)) if record is None else pd.unique(c.index(record, "record"))
    if not len(places):
        raise ValueError("record: expected at least one id, got none")
    telling = _Telling(c, places, by, form == "voltage")
    telling.check_size(steps, wide)

    nonlinearity = as_nonlinearity(f)
    net = network(c, scale, c.index(silence, "silence"), nonlinearity)
    like = net.W.bind().like
    if preset is None:
        b = torch.from_numpy(per_neuron(c, bias, "bias")).to(like)
        pieces = _pieces(c, net, drive, b, form, dt, leak_of(c, tau, dt, like), start, steps)
    else:
        layers = layered(c, preset, bias=bias, tau=tau, W=net.W.bind(), **cell)
        pieces = _layered_pieces(layers, drive, steps, like)
    done = 0
    for x, v in pieces:
        telling.take(x, v)
        done += len(x)
        if told is not None:
            told(min(done, steps), steps)
    table = telling.table(dt, wide)
    table.attrs = {"dt": dt, "steps": steps, "form": preset or form}
    return table


def network(c: Connectome, scale: float | None, silenced: np.ndarray, f: Nonlinearity) -> Recurrence:
    """The network αW, which may well be unstable for a while."""
    check_scale(scale)
    if scale is not None:
        return scaled(c, scale, silenced, Preset(), f)[0]
    (weight,) = (w.detach() for w in c.W.weights)
    _, pre = c.W.edges
    return Recurrence(c.W.bind(torch.where(torch.from_numpy(np.isin(pre.numpy(), silenced)), 0, weight)), f)


def leak_of(c: Connectome, tau: Any, dt: float, like: Tensor) -> float | Tensor | None:
    """a = dt/τ, or None where it is 1."""
    if tau is None:
        return None
    found = per_neuron(c, tau, "tau", dt)
    if found.min() < dt * (1 - 1e-12):
        raise ValueError(
            f"tau: expected at least dt = {dt:g}, for a step has to be shorter than τ; got {found.min():g}"
        )
    a = np.minimum(dt / found, 1.0)
    return float(a[0]) if np.ptp(a) == 0 else torch.from_numpy(a).to(like)


Piece = tuple[Tensor, Tensor | None]  # x and, in the voltage form, v, at some times, (times, n)


def _pieces(
    c: Connectome,
    net: Recurrence,
    drive: Stimulus,
    bias: Tensor,
    form: str,
    dt: float,
    leak: float | Tensor | None,
    start: str,
    steps: int,
) -> Iterator[Piece]:
    """The first state, and then what follows, some steps at a time."""
    now = torch.zeros_like(bias) if form == "rate" else bias.clone()
    if start == "steady":
        with advising(net.f, "another bias", "start='rest'"):
            x = steady_state(net.W, bias, net.f).x.detach()
        stable_margin(linearised(net, x, bias)[1], "start", "bias")
        now = x if form == "rate" else net.W @ x + bias
    yield (now[None], None) if form == "rate" else (net.f(now)[None], now[None])
    several = max(1, _NUMBERS // len(bias))
    with torch.no_grad():
        for first in range(0, steps, several):
            b = bias + drive.over(first, min(several, steps - first), dt, len(bias), bias)
            if form == "rate":
                try:
                    x, v = trajectory(net.W, b, now, net.f, leak=leak).x, None
                except ConvergenceError as error:
                    raise _infinite(first, len(b), dt, error.result) from None
                now = x[-1]
            else:
                v = _voltages(net, b, now, leak)
                if not torch.isfinite(v).all():
                    raise _infinite(first, len(b), dt, v)
                x, now = net.f(v), v[-1]
            yield x, v


def _voltages(net: Recurrence, b: Tensor, v: Tensor, leak: float | Tensor | None) -> Tensor:
    """v(t) = v(t-1) + a (W f(v(t-1)) + b(t) - v(t-1)) for t = 1..T, (T, n)."""
    path = torch.empty_like(b)
    for t in range(len(b)):
        drive = net.W @ net.f(v) + b[t]
        path[t] = v = drive if leak is None else v + leak * (drive - v)
    return path


def _infinite(first: int, steps: int, dt: float, found: Any) -> ConvergenceError:
    return ConvergenceError(
        f"simulate: the activity became infinite between the times {first * dt:g} and {(first + steps) * dt:g}. An f "
        "without an upper bound grows where W is large: scale W down, or use a bounded f.",
        found,
    )


def _layered_pieces(cell: Layered, drive: Stimulus, steps: int, like: Tensor) -> Iterator[Piece]:
    """x(0) = u(0), and the layers behind it, in one piece."""
    driven = np.unique(drive.place)
    u = drive.over(0, steps, 1.0, cell.W.shape[0], like)[:, driven, None]
    with torch.no_grad():
        path = cell(u, torch.from_numpy(driven))[..., 0]
    x = torch.zeros_like(path[:1])
    x[0, torch.from_numpy(driven)] = u[0, :, 0]
    yield torch.cat([x, path]), None


class _Telling:
    """What is kept of the states as they pass, and the table that is made of it."""

    def __init__(self, c: Connectome, places: np.ndarray, by: str | None, voltage: bool):
        self.by = by = None if by is None else column_of(c.neurons, by, "by")
        self.voltage = voltage
        self.places = places
        self.means: scipy.sparse.csr_array | None = None
        if by is None:
            self.names = c.ids[places]
            self.about = {"cell_type": c.neurons["cell_type"].to_numpy()[places]} if "cell_type" in c.neurons else {}
        else:
            codes, names = pd.factorize(c.neurons[by].iloc[places], sort=True)
            told = codes >= 0  # those of no type are left out
            if not told.any():
                raise ValueError(f"by: no neuron has a {by!r}")
            sizes = np.bincount(codes[told], minlength=len(names))
            self.places, self.names = places[told], np.asarray(names)
            self.about = {"neurons": sizes}
            where = codes[told], np.arange(told.sum())
            self.means = scipy.sparse.csr_array((1 / sizes[codes[told]], where), shape=(len(names), told.sum()))
        self.kept: list[list[np.ndarray]] = [[], []]

    def check_size(self, steps: int, wide: bool) -> None:
        rows = (steps + 1) * len(self.names)
        if rows > _ROWS:
            raise ValueError(
                f"record: expected fewer than {_ROWS:,} numbers, got {rows:,}: {steps + 1:,} times of "
                f"{len(self.names):,}; name the neurons to record, or take means by='cell_type'"
            )

    def take(self, x: Tensor, v: Tensor | None) -> None:
        for kept, z in zip(self.kept, (x, v), strict=True):
            if z is None:
                continue
            values = z.numpy()[:, self.places].astype(np.float64)
            kept.append(values if self.means is None else (self.means @ values.T).T)

    def table(self, dt: float, wide: bool) -> pd.DataFrame:
        x = np.concatenate(self.kept[0])
        time = np.arange(len(x)) * float(dt)
        if wide:
            return pd.concat(
                [pd.Series(time, name="time"), pd.DataFrame(x, columns=[str(name) for name in self.names])], axis=1
            )
        told: dict[str, Any] = {"time": np.repeat(time, x.shape[1]), self.by or "id": np.tile(self.names, len(x))}
        told |= {name: np.tile(values, len(x)) for name, values in self.about.items()}
        told["activity"] = x.ravel()
        if self.voltage:
            told["voltage"] = np.concatenate(self.kept[1]).ravel()
        return pd.DataFrame(told)
