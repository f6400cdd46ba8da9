"""The strongest paths from some neurons to others, and a small wiring diagram of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from retrograde.report.drawings import short
from retrograde.report.ink import BLUE, FAINT, GREEN, INK, PURPLE, RED, sketch

LARGEST = 20_000  # connections, among which paths are looked for


def strongest_paths(
    synapses: pd.DataFrame, value: str, sources: Sequence[object], targets: Sequence[object], connections: int = 20
) -> pd.DataFrame:
    """The connections of the largest ``value`` that lie on paths from a source to a target: pre, post, value.

    The largest are taken in, one after another, until so many are on such paths. A connection that leads no further
    from the sources, back or round in a loop, is left out. There are no more than ``connections``, but for a path
    that is longer. Empty where no path is found among the `LARGEST`.
    """
    table = synapses[["pre", "post", value]].rename(columns={value: "value"})
    table = table[(table["value"] != 0) & (table["pre"] != table["post"])]
    table = table[~table["pre"].isin(list(targets)) & ~table["post"].isin(list(sources))]  # paths begin and end there
    table = table.sort_values("value", key=np.abs, ascending=False, kind="stable").head(LARGEST)
    few, many = 0, len(table)
    while few < many:  # how many of the largest have to be taken
        middle = (few + many) // 2
        enough = len(_forward(table.head(middle), sources, targets)) >= connections
        few, many = (few, middle) if enough else (middle + 1, many)
    found = _forward(table.head(few), sources, targets)
    if len(found) > connections:  # the one that closed the paths has brought many: one path stays whole
        path = _shortest(found, sources, targets)
        others = found.drop(path).head(max(connections - len(path), 0))
        found = _forward(found.loc[found.index.isin([*path, *others.index])], sources, targets)
    return found.reset_index(drop=True)


def _shortest(table: pd.DataFrame, sources: Sequence[object], targets: Sequence[object]) -> list[int]:
    """The rows of a path of the fewest steps from a source to a target, each the largest of those that lead on."""
    steps = _steps(zip(table["pre"], table["post"], strict=True), sources)
    name = min((each for each in targets if each in steps), key=lambda each: steps[each])
    rows: list[int] = []
    while steps[name]:
        before = table[(table["post"] == name) & (table["pre"].map(steps) == steps[name] - 1)]
        rows.append(before.index[0])
        name = before["pre"].iloc[0]
    return rows


def _forward(table: pd.DataFrame, sources: Sequence[object], targets: Sequence[object]) -> pd.DataFrame:
    """The rows on a path from a source to a target, each of which leads further from the sources, or to a target."""
    after = _steps(zip(table["pre"], table["post"], strict=True), sources)
    ahead = table["pre"].map(after) < table["post"].map(after)  # false where one is not reached
    table = table[ahead | (table["pre"].isin(list(after)) & table["post"].isin(list(targets)))]
    before = _steps(zip(table["post"], table["pre"], strict=True), targets)
    return table[table["post"].isin(list(before))]


def _steps(edges: Iterable[tuple[object, object]], start: Iterable[object]) -> dict[object, int]:
    """Neuron -> the least number of steps that leads to it."""
    following: dict[object, list[object]] = {}
    for pre, post in edges:
        following.setdefault(pre, []).append(post)
    steps: dict[object, int] = dict.fromkeys(start, 0)
    now = list(steps)
    while now:
        following_now = [(pre, post) for pre in now for post in following.get(pre, ())]
        now = []
        for pre, post in following_now:
            if post not in steps:
                steps[post] = steps[pre] + 1
                now.append(post)
    return steps


@sketch(6.4, 4.0)
def wiring(figure: Figure, edges: pd.DataFrame, sources: Sequence[object], targets: Sequence[object]) -> str:
    """The strongest paths, ``edges`` of pre, post and value, from the sources, left, to the targets, right.

    A connection is as broad as its value is large, red above 0 and blue below; a neuron stands as many steps from the
    sources as the shortest of these paths takes.
    """
    axes = figure.subplots()
    place = _layers(edges, sources, targets)
    most = float(edges["value"].abs().max()) if len(edges) else 1.0
    crowd = max(Counter(x for x, _ in place.values()).values(), default=1)
    across = max((x for x, _ in place.values()), default=1) or 1
    figure.set_figheight(float(np.clip(1.5 + 0.42 * crowd, 2.2, 7)))
    boxes = {}
    for name, (x, y) in place.items():
        colour = GREEN if name in set(sources) else PURPLE if name in set(targets) else FAINT
        axes.text(x, y, short(name), ha="center", va="center", fontsize=8, color=INK, zorder=4)
        box = axes.text(x, y, short(name), ha="center", va="center", fontsize=8, alpha=0, zorder=2)  # below its name
        box.set_bbox({"boxstyle": "round,pad=0.35", "color": colour, "alpha": 0.28})
        boxes[name] = box.get_bbox_patch()
    for pre, post, value in edges.sort_values("value", key=np.abs)[["pre", "post", "value"]].itertuples(index=False):
        (x0, y0), (x1, y1) = place[pre], place[post]
        bend = 0.0 if x1 == x0 + 1 else 0.22 if x1 > x0 else 0.35
        arrow = {
            "arrowstyle": "-|>" if value >= 0 else "|-|,widthA=0,widthB=0.25",
            "color": RED if value >= 0 else BLUE,
            "linewidth": 0.6 + 2.6 * abs(value) / most,
            "alpha": 0.35 + 0.5 * abs(value) / most,
            "mutation_scale": 9,
            "shrinkA": 1,
            "shrinkB": 1,
            "patchA": boxes[pre],
            "patchB": boxes[post],
            "connectionstyle": f"arc3,rad={-bend if y0 + y1 >= 0 else bend}",
        }
        axes.annotate("", xy=(x1, y1), xytext=(x0, y0), arrowprops=arrow)
    axes.set(xlim=(-0.4, across + 0.4), ylim=(-crowd / 2 - 0.15, crowd / 2 + 0.15))
    axes.axis("off")
    handles = [
        Patch(color=GREEN, alpha=0.4, label="source"),
        Patch(color=PURPLE, alpha=0.4, label="target"),
        Line2D([], [], color=RED, linewidth=2, label="raises"),
        Line2D([], [], color=BLUE, linewidth=2, label="lowers"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return f"wiring diagram of the {len(edges)} strongest connections between {len(place)} neurons"


def _layers(
    edges: pd.DataFrame, sources: Sequence[object], targets: Sequence[object]
) -> dict[object, tuple[float, float]]:
    """Neuron -> where it stands: across by steps from the sources, the targets last; down by its neighbours' mean."""
    pairs = list(zip(edges["pre"], edges["post"], strict=True))
    named = {name for pair in pairs for name in pair}
    depth = {name: d for name, d in _steps(pairs, [name for name in sources if name in named]).items()}
    last = max([d for name, d in depth.items() if name not in set(targets)] + [0]) + 1
    depth.update({name: last for name in targets if name in named and name not in set(sources)})
    place: dict[object, tuple[float, float]] = {}
    for i, d in enumerate(sorted(set(depth.values()))):
        here = [name for name in depth if depth[name] == d]
        drawn = {name: [place[pre][1] for pre, post in pairs if post == name and pre in place] for name in here}
        if i:
            here.sort(key=lambda name: -float(np.mean(drawn[name] or [0.0])))  # called here
        for k, name in enumerate(here):
            place[name] = (float(i), (len(here) - 1) / 2 - k)
    return place
