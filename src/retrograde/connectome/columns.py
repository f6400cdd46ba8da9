"""The names that columns have in the tables people hold, and presets of signs, each named for where it is from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Role, then the names it goes by: FlyWire's Codex and its Zenodo tables, BANC, MaleCNS, neuPrint's exports,
# ConnectomeInfluenceCalculator, connectome_interpreter, the leaky integrate-and-fire fly of Shiu et al.
EDGES: dict[str, tuple[str, ...]] = {
    "pre": ("pre", "pre_root_id", "pre_pt_root_id", "bodyid_pre", "body_pre", "presynaptic_id", "source",
            "upstream_id"),
    "post": ("post", "post_root_id", "post_pt_root_id", "bodyid_post", "body_post", "postsynaptic_id", "target",
             "downstream_id"),
    "count": ("count", "syn_count", "synapses", "n_syn", "n_synapses", "connectivity", "weight"),
    "norm": ("norm", "input_fraction"),
    "weight": ("weight",),
    "sign": ("sign", "excitatory"),
    "transmitter": ("nt_type", "top_nt", "nt", "neurotransmitter"),
    "neuropil": ("neuropil", "roi"),
}  # fmt: skip

NEURONS: dict[str, tuple[str, ...]] = {
    "id": ("id", "root_id", "pt_root_id", "bodyid", "body", "skid", "neuron_id", "neuron", "idx"),
    "transmitter": ("top_nt", "nt_type", "consensus_nt", "consensusnt", "neurotransmitter_predicted", "predicted_nt",
                    "predictednt", "nt", "neurotransmitter"),
    "cell_type": ("cell_type", "type", "primary_type", "neuron_class"),
    "class": ("cell_class", "class"),
    "super_class": ("super_class", "superclass"),
    "side": ("side", "somaside", "soma_side"),
    "sign": ("sign",),
    "idx": ("idx",),
}  # fmt: skip

_DATA_SET_ID = re.compile(r"[a-z]+_v?\d+(\.\d+)*_id")  # banc_626_id, fafb_783_id, manc_v1.2.1_id, ...

# Of FlyWire's tables: the mean, over some synapses, of the probability that their transmitter is this one.
_PROBABLE = {"gaba_avg": "gaba", "ach_avg": "acetylcholine", "glut_avg": "glutamate", "oct_avg": "octopamine",
             "ser_avg": "serotonin", "da_avg": "dopamine"}  # fmt: skip

SIGNS: dict[str, dict[str, int]] = {
    "shiu-2024": {"gaba": -1, "glutamate": -1},
    "effectome-2024": {"gaba": -1, "glutamate": -1, "octopamine": -1, "serotonin": -1},
    "cic-fly": {"gaba": -1, "glutamate": -1, "octopamine": -1, "serotonin": -1},
    "worm-gaba": {"gaba": -1},
}
"""Transmitter -> sign; what is not named is +1. Shiu et al., Nature 634 (2024); Pospisil et al., Nature 634 (2024);
the fly and the worm of ConnectomeInfluenceCalculator."""

_SHORT = {"ach": "acetylcholine", "glut": "glutamate", "glu": "glutamate", "oct": "octopamine", "oa": "octopamine",
          "ser": "serotonin", "5ht": "serotonin", "5-ht": "serotonin", "da": "dopamine",
          "his": "histamine"}  # fmt: skip

TRANSMITTERS = frozenset(_SHORT.values()) | {"gaba", "tyramine"}
"""Those that connectomes have, whether a table has neurons of each or not."""


def transmitter(name: str) -> str:
    """A transmitter's name in one spelling: lower case, and in full."""
    name = name.strip().lower()
    return _SHORT.get(name, name)


def recognise(
    names: Iterable[str], known: Mapping[str, tuple[str, ...]], given: Mapping[str, str], table: str
) -> dict[str, str]:
    """Role -> column for the columns of a table that are recognised, or that are `given` by role.

    Raises:
        ValueError: a column given that is not there.
    """
    names = list(names)
    missing = [column for column in given.values() if column not in names]
    if missing:
        raise ValueError(f"columns: {table} has no column {missing[0]!r}; it has {', '.join(names)}")
    lowered = {name.lower(): name for name in reversed(names)}
    found = {}
    for role, aliases in known.items():
        column: str | None = given.get(role) or next((lowered[alias] for alias in aliases if alias in lowered), None)
        if column is not None:
            found[role] = column
    return found


def data_set_ids(names: Iterable[str]) -> list[str]:
    """The columns that are named for a data set, as BANC's neuron table has one for each that it was matched to."""
    return [name for name in names if _DATA_SET_ID.fullmatch(name.lower())]


def probabilities(names: Iterable[str]) -> dict[str, str]:
    """Column -> transmitter, for those of the probability of each; none where there is but one."""
    found = {name: _PROBABLE[name.lower()] for name in names if name.lower() in _PROBABLE}
    return found if len(found) > 1 else {}
