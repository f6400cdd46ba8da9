"""The connections of an edge list, and rows of one pair made one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from retrograde.connectome.columns import EDGES, probabilities, recognise
from retrograde.connectome.ids import Ids, identities, of_one_kind
from retrograde.connectome.naming import did_you_mean
from retrograde.connectome.tables import Source, numbers
from retrograde.connectome.transmitters import Told, named, probable

WEIGHTS = ("count", "norm", "weight", "fraction", "rows")


class Connections(NamedTuple):
    """A row for each that was read.

    Attributes:
        pre, post: who sends and who receives.
        values: the columns of numbers by role: "count", "norm", "weight", "sign".
        told: what the rows tell of transmitters, where that was asked for.
        alone: how many rows of a matrix neither send nor receive.
    """

    pre: Ids
    post: Ids
    values: dict[str, np.ndarray]
    told: Told | None = None
    alone: int = 0


def of_list(edges: Any, given: Mapping[str, str], weights: str, by_column: bool, ask: bool) -> Connections:
    """The connections of an edge list, each with the numbers that the weights need; by "rows" the count of each is 1.

    Args:
        edges: the table.
        given: role -> column, where it is not recognised.
        weights: as of `read`.
        by_column: whether a column of signs is wanted, if there is one.
        ask: whether transmitters are wanted, if some are told.
    """
    source = Source(edges, "edges", ("edgelist_simple", "edgelist", "edges"))
    roles = recognise(source.names, EDGES, given, source.what)
    for role in ("pre", "post"):
        if role not in roles:
            raise ValueError(
                f"{source.what}: no column of {role}synaptic ids found among {', '.join(source.names)}; "
                f"name it by columns={{'{role}': ...}}"
            )
    needed = _numbers(roles, weights, by_column, source)
    likely = probabilities(source.names) if ask and "transmitter" not in roles else {}
    spoken = [roles["transmitter"]] if ask and "transmitter" in roles else list(likely)
    ends = roles["pre"], roles["post"]
    table = source.read([*ends, *(roles[role] for role in sorted(needed)), *spoken], many=True, ids=ends)
    pre, post = (identities(table[end], f"{source.what}, {end}") for end in ends)
    pre, post = of_one_kind(pre, post, what=source.what)
    values = {role: numbers(table[roles[role]], f"{source.what}, {roles[role]}") for role in sorted(needed)}
    if weights == "rows":
        values["count"] = np.ones(len(pre))
    if "count" in values:
        check_counts(values["count"], weights, ("count", "fraction", "norm"), source.what)
    if "sign" in values:
        check_signs(values["sign"], f"{source.what}, {roles['sign']}")
    told: Told | None = None
    if spoken:
        told = probable(table, likely, source.what) if likely else named(table[spoken[0]])
    return Connections(pre, post, values, told)


def _numbers(roles: Mapping[str, str], weights: str, by_column: bool, source: Source) -> set[str]:
    """The roles of the columns of numbers that are read."""
    needed = {"count", "norm", "weight"} & roles.keys()
    if weights == "rows":
        needed = set()
    elif not needed:
        raise ValueError(
            f"{source.what}: no column of counts or weights found among {', '.join(source.names)}; "
            "weights='rows' takes each row for one connection"
        )
    else:
        check_weights(weights, needed, source.what, source.names)
    if weights != "weight" and roles.get("weight") == roles.get("count"):
        needed -= {"weight"}
    return needed | ({"sign"} & roles.keys() if by_column else set())


def check_signs(signs: np.ndarray, what: str) -> None:
    """ValueError unless each is +1 or -1."""
    odd = int((~np.isin(signs, (1, -1))).sum())
    if odd:
        raise ValueError(f"{what}: {odd} of {len(signs)} signs are neither +1 nor -1")


def check_weights(weights: str, there: set[str], what: str, names: list[str]) -> None:
    """ValueError unless the weights are a column that is there, or can be made from the counts."""
    if weights not in WEIGHTS:
        hint = did_you_mean(weights, WEIGHTS)
        raise ValueError(f"weights: expected one of {', '.join(WEIGHTS)}, got {weights!r}{hint}")
    if weights not in there and not (weights in ("fraction", "norm") and "count" in there):
        also = ", and no counts" if weights in ("fraction", "norm") else ""
        raise ValueError(f"weights: {what} has no column that is a {weights!r}{also}; it has {', '.join(names)}")


def check_counts(counts: np.ndarray, weights: str, positive: tuple[str, ...], what: str) -> None:
    """ValueError where some are negative, and the weights are to be one of the `positive` ones."""
    negative = int((counts < 0).sum())
    if negative and weights in positive:
        raise ValueError(f"{what}: {negative} of {len(counts)} counts are negative; signs= gives signs")


def numbered(pre: Ids, post: Ids) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The ids that occur, sorted, and both ends by number."""
    known = np.union1d(pre.distinct, post.distinct)
    return known, (pre.among(known), post.among(known))


def merged(
    pre: np.ndarray, post: np.ndarray, values: dict[str, np.ndarray], n: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """One row for each pair, by post, then pre: counts and weights summed; of signs, which must agree, the first."""
    keys = post.astype(np.int64) * n + pre
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    one = {
        name: column[order][starts] if name == "sign" else np.add.reduceat(column[order], starts)
        for name, column in values.items()
    }
    if "sign" in values and (np.repeat(one["sign"], np.diff(starts, append=len(keys))) != values["sign"][order]).any():
        raise ValueError("signs: the rows of one connection have different signs")
    return keys[starts] % n, keys[starts] // n, one
