"""Gains, biases, time constants and synaptic strengths of a connectome, fitted to recorded activities.

The network is x = f(g ∘ (Wx + h + b)): gains g, the given drive h, biases b; with time, τ dx/dt = -x + f(...), taken in
steps of dt: a leak dt/τ. A steady state or a trajectory is solved for at each θ, and its exact derivatives are those of
`steady_state` and `trajectory`: tangents or adjoints for the Jacobian of Gauss and Newton, one adjoint for a gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from retrograde.connectome.adjustable import Adjustable
from retrograde.connectome.certainty import Certainty, certainty
from retrograde.connectome.eigenvalues import SMALL
from retrograde.connectome.linear import scaled
from retrograde.connectome.misfit import Misfit, Progress
from retrograde.connectome.presets import Preset
from retrograde.connectome.printed import Printed
from retrograde.connectome.recordings import held_out, recordings_of
from retrograde.connectome.scales import check_scale
from retrograde.connectome.threads import one_blas_thread
from retrograde.connectome.tied import kinds_of
from retrograde.connectome.wiring import Connectome
from retrograde.nonlinearity import Nonlinearity, Tanh, as_nonlinearity
from retrograde.recurrence import Recurrence
from retrograde.result import ConvergenceError

FEW = 400  # parameters, up to which the Jacobian is computed at every step


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Printed):
    """A connectome's parameters, fitted, and how far they can be trusted.

    Attributes:
        parameters: a row for each: ``kind``, ``group`` (the pre group for a strength, whose post group is ``post``),
            ``value``, ``standard_error`` and ``low`` and ``high``, the ends of the 95% interval, which is that of the
            logarithm for all but biases. A standard error is infinite where the data do not pin the parameter down,
            whatever its ``value``; ``determined`` says so. It is NaN where it was not asked for or, as a note says,
            could not be told.
        combinations: those of θ, the logarithms (and biases), that the data pin down worst: eigenvectors of JᵀJ.
        errors: of the numbers that were fitted, and of those that were held out: ``number``, ``rmse``, ``r2``.
        activities: the recorded table with ``predicted`` and ``held_out``.
        converged: whether the fit is at a minimum.
        message: how it ended.
        rank: how many combinations of the parameters the data pin down; None where no standard errors are told.
        notes: what else there is to know.
        attrs: ``cost`` (half the sum of squares, in units of the noise where that was given), ``noise``,
            ``evaluations``, ``states_not_found``, ``margin`` (the least 1 - max Re λ of DW over the conditions, up to
            2000 neurons at steady states; else NaN), ``eigenvalue``, ``alpha``.
        network: the fitted network, as equations: its W holds gains and strengths; its leak is dt/τ.
        bias: (n,), g b, what the network's input has beside g h.
        gain: (n,), g.
    """

    parameters: pd.DataFrame
    combinations: pd.DataFrame
    errors: pd.DataFrame
    activities: pd.DataFrame
    converged: bool
    message: str
    rank: int | None
    notes: list[str]
    attrs: dict[str, float]
    network: Recurrence
    bias: Tensor
    gain: Tensor

    def _sentence(self) -> str:
        return "; ".join(["at a minimum" if self.converged else "not at a minimum", *self.notes])

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {"errors": self.errors, "parameters": self.parameters}


def fit(
    c: Connectome,
    recorded: Any,
    drive: Any = None,
    *,
    parameters: str | Iterable[str] = ("gain", "bias"),
    tie: str = "cell_type",
    f: str | Nonlinearity = "tanh",
    scale: float | None = 0.99,
    silence: Iterable[Any] = (),
    dt: float | None = None,
    start: Mapping[str, Any] | None = None,
    hold_out: float = 0.2,
    hold_out_by: Literal["condition", "neuron"] = "condition",
    seed: int = 0,
    method: Literal["gauss-newton", "lbfgs"] | None = None,
    uncertainty: bool = True,
    max_steps: int = 200,
    throw: bool = True,
    progress: Progress | None = None,
) -> Fit:
    """Parameters for which the network's activities are nearest to those recorded, by least squares.

    Args:
        c: the connectome.
        recorded: a table with the columns ``neuron`` and ``activity``, of some neurons or all; ``condition``, where
            there are several; ``time``, with `dt`; and ``sd``, the standard deviation of each number's noise, where it
            is known: else it is taken to be the same for all and estimated.
        drive: a table with the columns ``neuron`` and ``strength``, of what drives the network; ``condition``, else it
            is the same in all; ``start`` and ``stop``, with `dt`. Or a mapping from id to strength.
            ``cell_type:T4a`` in the place of an id is all of that type; a recording is of one neuron.
        parameters: which of "gain", "bias", "tau" (with `dt`) and "strength" are fitted.
        tie: the column of the neurons whose groups share a parameter; a strength is shared by the connections from one
            group to another. "id" ties nothing. What is of no group stays at its start.
        f: the nonlinearity.
        scale: the largest real part of an eigenvalue of αW, before the fit; None takes W as it is.
        silence: neurons whose outgoing connections are cut. α stays what it is for the whole network.
        dt: the length of a step; the activities are then those of the trajectory from x(0) = 0, x(k dt) after k steps.
            None: they are steady states.
        start: kind -> where it starts, a number or one for each group; what is not fitted stays there. By default 1, of
            biases 0, of tau 10 dt.
        hold_out: which part of the conditions, or neurons, is held out. 0 for none; none of a single condition.
        hold_out_by: "condition", or "neuron".
        seed: of what is held out.
        method: "gauss-newton", with the exact Jacobian, by default up to 400 parameters; or "lbfgs", with one adjoint
            a step.
        uncertainty: whether standard errors are computed, which take one Jacobian more.
        max_steps: evaluations at most.
        throw: whether a fit that has not converged raises.
        progress: called with the number of evaluations so far and the cost.

    Raises:
        ValueError: tables or options that do not fit together.
        ConvergenceError: no states at the start; or the fit has not converged: its ``result`` is the `Fit`.

    References:
        J. J. Moré, "The Levenberg-Marquardt algorithm" (1978); M. Beiran and A. Litwin-Kumar, "Prediction of neural
        activity in connectome-constrained recurrent networks" (2024), for gains and biases.

    >>> from retrograde.connectome import read
    >>> edges = pd.DataFrame({"pre": ["a", "b", "b"], "post": ["b", "a", "c"], "count": [2, 1, 3]})
    >>> c = read(edges, pd.DataFrame({"id": ["a", "b", "c"], "cell_type": ["S", "T", "T"]}))
    >>> recorded = pd.DataFrame({"neuron": ["b", "c"] * 2, "condition": [1, 1, 2, 2], "activity": [0.3, 0.4, 0.5, 0.5]})
    >>> drive = pd.DataFrame({"neuron": "a", "condition": [1, 2], "strength": [0.5, 1.0]})
    >>> found = fit(c, recorded, drive, parameters="strength", scale=0.5, hold_out=0)
    >>> found.parameters[["group", "post", "value", "standard_error", "determined"]].round(2)
      group post  value  standard_error  determined
    0     S    T   0.92            0.17        True
    1     T    S   0.68            1.47        True
    2     T    T   1.13            0.14        True
    """
    nonlinearity = as_nonlinearity(f)
    check_scale(scale)
    if method not in (None, "gauss-newton", "lbfgs"):
        raise ValueError(f"method: expected 'gauss-newton' or 'lbfgs', got {method!r}")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int | np.integer) or max_steps < 1:
        raise ValueError(f"max_steps: expected a number of evaluations, got {max_steps!r}")
    of = recordings_of(c, recorded, drive, dt)
    fitted = [parameters] if isinstance(parameters, str) else list(parameters)
    kinds, notes = kinds_of(c, fitted, tie, start or {}, dt)
    out = held_out(of, hold_out, hold_out_by, seed)
    if hold_out and not out.any():
        notes.append("one condition was recorded, so nothing is held out; hold_out_by='neuron' holds some neurons out")
    net, eigenvalue, alpha = scaled(c, scale, c.index(silence, "silence"), Preset(), Tanh())
    model = Adjustable(c, replace(net, f=nonlinearity), kinds, [k for k in kinds if k in fitted], of, dt)
    problem = Misfit(model, ~out, progress)
    few = method == "gauss-newton" or (method is None and len(model.theta) <= FEW)
    with one_blas_thread():  # for the Jacobian's singular values
        theta, converged, message = (problem.by_gauss_newton if few else problem.by_lbfgs)(int(max_steps))

    known: Certainty | None = None
    if uncertainty:
        try:
            J = problem.jacobian(theta)
            with one_blas_thread():
                known = certainty(J, problem.residual(theta), None if of.sd is None else 1.0)
        except ConvergenceError as error:
            notes.append(f"no standard errors could be told: {error.facts or error}")
    predicted = model.predicted(torch.from_numpy(theta))
    assert predicted is not None  # theta is one at which states were found
    notes += problem.notes(theta, known)
    margin = model.margin(theta)
    if beyond := _beyond(nonlinearity, of.activity):
        notes.append(beyond)
    if dt is None and np.isnan(margin):
        notes.append(f"whether the steady states are stable is not looked at, of more than {SMALL} neurons")
    if margin <= 0:
        notes.append(f"some steady state is unstable in continuous time: the least margin is {margin:.3g}")
    if not converged:
        notes.append(f"not converged: {message}")
    values = model.values(torch.from_numpy(theta))
    W, bias, leak = model.equations(values)
    found = Fit(
        parameters=model.table(theta, known),
        combinations=pd.DataFrame(
            known.told(model.labels, 10) if known else [], columns=["combination", "singular_value", "standard_error"]
        ),
        errors=_errors(of.activity, predicted.numpy(), out),
        activities=of.table.assign(predicted=predicted.numpy(), held_out=out),
        converged=converged,
        message=message,
        rank=None if known is None else known.rank,
        notes=notes,
        attrs={
            "cost": 0.5 * float(problem.residual(theta) @ problem.residual(theta)),
            "noise": float("nan") if known is None or of.sd is not None else known.noise,
            "evaluations": problem.evaluations,
            "states_not_found": problem.not_found,
            "margin": margin,
            "eigenvalue": eigenvalue,
            "alpha": alpha,
        },
        network=Recurrence(W, nonlinearity, leak),
        bias=bias,
        gain=values["gain"],
    )
    if throw and not converged:
        raise ConvergenceError(f"fit: {message} after {problem.evaluations} evaluations; try more max_steps", found)
    return found


def _beyond(f: Nonlinearity, activity: np.ndarray) -> str:
    """What is recorded that f does not give, whatever the parameters; nothing where its range is not known."""
    try:
        f.inverse(torch.from_numpy(activity))
    except ValueError as error:
        if "outside the range" in str(error):
            return f"recorded, {error}: no fit comes near them, and parameters go on growing towards them"
    return ""


def _errors(activity: np.ndarray, predicted: np.ndarray, out: np.ndarray) -> pd.DataFrame:
    rows = []
    for name, some in ("fitted", ~out), ("held out", out):
        if not some.any():
            continue
        wanted, error = activity[some], (predicted - activity)[some]
        spread = float(np.sum((wanted - wanted.mean()) ** 2))
        r2 = 1 - float(error @ error) / spread if spread > 0 else np.nan
        rows.append({"numbers": name, "number": int(some.sum()), "rmse": float(np.sqrt(np.mean(error**2))), "r2": r2})
    return pd.DataFrame(rows)
