"""`retrograde importance EDGES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from retrograde import connectome
from retrograde.cli.answering import check_name, question
from retrograde.cli.reading import WHO, Asked, Several, numbers_of
from retrograde.cli.scales import scaling
from retrograde.connectome import Connectome, Importance, neuropils
from retrograde.connectome.naming import column_of
from retrograde.connectome.writing import written
from retrograde.report import Answer, Figure, drawings, paths
from retrograde.training import InputError


def _rows(asked: Asked, c: Connectome, by: list[str], by_pair: str | None) -> Callable[[Importance], pd.DataFrame]:
    """Which rows are told, one for each neuron or sums; that they can be told is known before anything is solved."""
    if by and by_pair:
        raise InputError("--by-pair: expected no --by along with it")
    if by_pair:
        pair = column_of(c.neurons, by_pair, "by_pair")
        return lambda found: found.by_pair(pair)
    if not by:
        return lambda found: found.neurons
    columns = [column_of(c.neurons, each, "by", also=("neuropil",)) for each in by]
    groups = [each for each in columns if each != "neuropil" or each in c.neurons]
    if len(groups) == 1 and len(columns) == 1:
        return lambda found: found.by(groups[0])
    if len(columns) > 2 or len(groups) > 1:
        raise InputError(f"--by: expected one column of the neurons, neuropil, or both; got {', '.join(by)}")
    edges = asked.files[0]
    try:
        neuropils.looked_at(edges, asked.columns)
    except ValueError as error:
        raise InputError(f"--by neuropil: {error}") from None
    return lambda found: found.by_neuropil(edges, asked.columns, *groups)


@question
def importance(
    asked: Asked,
    source: Annotated[list[str], typer.Option(help=f"Neurons that are driven: {WHO}; or either with =INPUT.")],
    target: Annotated[
        list[str],
        typer.Option(
            help="Neurons whose activity is the reward, likewise; with =WEIGHT a weighted sum, such as the difference "
            "of two groups, side:left=1 side:right=-1."
        ),
    ],
    f: Annotated[
        str, typer.Option("--f", help="The nonlinearity: identity, tanh, relu, sigmoid, softplus.")
    ] = "identity",
    scale: Annotated[float | None, scaling("The largest real part of an eigenvalue, after scaling")] = 0.99,
    exact: Annotated[int, typer.Option(min=0, help="Silence so many neurons for true, too.")] = 0,
    by: Annotated[
        Several,
        typer.Option(
            help="Sum over a column of the neurons, such as cell_type, or by neuropil; or by both, --by cell_type "
            "neuropil."
        ),
    ] = None,
    by_pair: Annotated[
        str | None, typer.Option(help="Sum the synapses from each group to each, of a column of the neurons.")
    ] = None,
    synapses: Annotated[
        Path | None, typer.Option(help="Write every connection's importance, as Parquet or CSV.")
    ] = None,
) -> Answer:
    """Rank neurons and synapses by what a reward, the activity of some neurons, depends on.

    One steady state x = f(αWx + b) and one adjoint tell all of it: how the reward changes with each neuron's input,
    and, to first order, if its output is silenced or its transmitter's sign turned; and what each synapse carries.

    Examples:

    [bold]retrograde importance --example worm --source ADAL --target AVAL=1 AVAR=-1 --exact 10[/]

    [bold]retrograde importance --example worm --source ASHL --target cell_type:AVA=0.5 cell_type:AVB=-0.5[/]

    Any other reward is a function in Python: retrograde.connectome.importance(..., reward=).
    """
    check_name(synapses, "synapses", (".parquet", ".csv"))
    names = ["sums"] if by or by_pair else ["neurons", "synapses"]
    asked.check_table(*names)
    c = asked.connectome()
    rows = _rows(asked, c, by or [], by_pair)
    sources, targets = numbers_of(source, "--source"), numbers_of(target, "--target")
    asked.step("solving")
    found = connectome.importance(
        c,
        sources,
        targets,
        f=f,
        scale=scale,
        silence=asked.silence or (),
        exact=exact,
        progress=lambda done, total: asked.step("silencing for true", done, total),
    )
    table = rows(found)
    if synapses is not None:
        asked.step(f"writing {synapses}")
        with written(synapses) as path:
            found.write_synapses(path)
    title = f"what the reward, {found.reward:.6g}, depends on"
    every = asked.wants("synapses", names) and (asked.out is not None or asked.json)
    ranked = found.synapses(None if every else max(paths.LARGEST, asked.rows or 0))
    tables = dict(zip(names, (table, ranked if every else ranked.head(1000)), strict=False))
    if asked.report is not None:
        asked.step("estimating the error of the gradient")
        str(found.receipt)  # which computes what the page tells of it
    solved = {"reward": found.reward, **found.attrs}
    receipts = {"the state, x = f(αWx + b), and its adjoint": solved, "the gradient": found.receipt}
    residuals = f"residuals: state {found.attrs['residual']:.1e}, adjoint {found.attrs['adjoint_residual']:.1e}"
    if "exact_residual" in found.attrs:
        residuals += f", exact effects {found.attrs['exact_residual']:.1e}"
    notes = [residuals]
    if unknown := found.attrs.get("not_exact"):
        notes.append(
            f"{unknown} of the {2 * min(exact, len(c))} exact effects are left empty: without the neuron's output, or "
            "with it turned, no stable steady state was found."
        )
    if not found.neurons[["silencing"]].to_numpy().any() and found.reward == 0:
        notes.append("No path leads from the sources to the targets: nothing here changes the reward.")
    if "silencing" in table:
        exactly = table.get("silencing_exact")
        bars = drawings.bars(table.iloc[:, 0], table["silencing"], "change of the reward", exactly, "exactly")
        told = "Red: the reward rises without it; blue: it falls. To first order."
        figures = [Figure("If its output were silenced", bars, told)]
    else:
        groups = table.loc[:, : "connections" if by_pair else "count"].iloc[:, :-1].astype(str)
        bars = drawings.bars(groups.agg(" → ".join, axis=1), table["importance"], "importance")
        figures = [Figure("Where the synapses lie", bars, "Sums of what these synapses carry of the reward.")]
    driven, wanted = (list(c.ids[c.index(list(given))]) for given in (sources, targets))
    strongest = paths.strongest_paths(ranked, "importance", driven, wanted)
    if len(strongest):
        told = "A connection is as broad as its importance: what the reward loses, to first order, without it."
        figures.append(Figure("The strongest paths", paths.wiring(strongest, driven, wanted), told))
    figures.append(Figure("Activity", drawings.density(found.neurons["activity"], "activity at the steady state"), ""))
    return Answer(title, tables, figures, receipts, notes, c.summary)
