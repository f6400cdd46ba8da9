"""`retrograde stability EDGES`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from retrograde import connectome
from retrograde.cli.answering import question
from retrograde.cli.reading import WHO, Asked, Several, numbers_of
from retrograde.cli.scales import scaling
from retrograde.report import Answer, Figure, drawings
from retrograde.result import ConvergenceError

SYNAPSES, VALUES, NEURONS = "synapses that move the margin", "leading eigenvalues", "neurons in the leading mode"
LISTED = 1000  # synapses, where not all are written


class Time(StrEnum):
    """Whose margin is looked at."""

    continuous = "continuous"
    discrete = "discrete"


@question
def stability(
    asked: Asked,
    drive: Annotated[
        Several, typer.Option(help=f"Neurons that are driven: {WHO}; or with =INPUT. \\[default: none]")
    ] = None,
    f: Annotated[str, typer.Option("--f", help="The nonlinearity: identity, tanh, relu, sigmoid, softplus.")] = "tanh",
    scale: Annotated[float | None, scaling("The largest real part of an eigenvalue, after scaling")] = 0.99,
    time: Annotated[Time, typer.Option(help="τ dx/dt = -x + f(Wx + b), or x ← f(Wx + b).")] = Time.continuous,
    modes: Annotated[int, typer.Option(min=1, help="How many eigenvalues.")] = 6,
) -> Answer:
    """Tell how near a network is to instability, in which modes, and which synapses move the margin most.

    The eigenvalues are those of DW at the steady state x = f(αWx + b), at rest or driven. What each synapse would
    change if it were cut takes into account that it moves the state, too.

    Example: [bold]retrograde stability --example worm --drive ADAL ADAR --scale 1.5 --report page.html[/]
    """
    asked.check_table(SYNAPSES, VALUES, NEURONS)
    c = asked.connectome()
    asked.step("looking for the leading eigenvalues")
    found = connectome.stability(
        c,
        numbers_of(drive, "--drive") or None,
        f=f,
        scale=scale,
        silence=asked.silence or (),
        time=time.value,
        k=modes,
        progress=lambda products: asked.step(f"looking for the leading eigenvalues: {products:,} products with DW"),
    )
    title = f"stability, {found.margin_continuous:+.4g} in continuous and {found.margin_discrete:+.4g} in discrete time"
    values = found.eigenvalues["real"].to_numpy() + 1j * found.eigenvalues["imaginary"].to_numpy()
    figures = [Figure("Leading eigenvalues", drawings.spectrum(values), "Of DW at the steady state.")]
    notes = [
        f"the margin is {found.margin_continuous:.6g} in continuous time, τ dx/dt = -x + f(Wx + b), and "
        f"{found.margin_discrete:.6g} in discrete time, x ← f(Wx + b): "
        + ("stable" if found.stable_continuous else "unstable")
        + " and "
        + ("stable" if found.stable_discrete else "unstable")
    ]
    try:
        ranked = found.synapses(max(LISTED, asked.rows) if asked.rows and asked.out is None else None)
    except ConvergenceError as error:
        if asked.wants(SYNAPSES, (SYNAPSES, VALUES, NEURONS)):
            raise
        notes.append(f"no synapses are ranked: {error}")
        tables = {NEURONS: found.neurons, VALUES: found.eigenvalues}
    else:
        tables = {SYNAPSES: ranked, VALUES: found.eigenvalues, NEURONS: found.neurons}
        ends = [f"{pre} → {post}" for pre, post in zip(ranked["pre"], ranked["post"], strict=True)]
        figures.append(
            Figure(
                "If a synapse were cut",
                drawings.bars(ends, ranked["removal"], "change of the margin"),
                "Red: the network is farther from instability without it; blue: nearer. To first order.",
            )
        )
    where = "cell_type" if "cell_type" in found.neurons else "id"
    parts = found.by(where)
    figures.append(
        Figure("Where the leading mode is", drawings.bars(parts[where], parts["part"], "part of the mode"), "Σ|v|².")
    )
    receipts = {"the state, x = f(αWx + b), and its spectrum": found.attrs}
    return Answer(title, tables, figures, receipts, notes, c.summary)
