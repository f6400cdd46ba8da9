"""The tools whose influence scores are met: how each reads a table, and how it scales W. All is told here alone."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """How a tool reads and scales; without arguments, how Retrograde does.

    Attributes:
        weights, threshold: those of `read` that the tool has, where nothing else is asked of it.
        rescale_after_silencing: whether α is computed anew without the silenced neurons.
        only_if_larger: whether W is scaled only where its largest eigenvalue exceeds the scale.
        only_if_positive: whether W is scaled only where its largest eigenvalue is above 0: without cycles it is not.
        unsigned: why signs have no part in its W, where they have none.
    """

    weights: str = "count"
    threshold: float = 0
    rescale_after_silencing: bool = False
    only_if_larger: bool = False
    only_if_positive: bool = False
    unsigned: str = ""


PRESETS = {
    "cic-2026": Preset("count", 5, rescale_after_silencing=True, only_if_positive=True),
    "banc-paper": Preset(
        "norm",
        5,
        rescale_after_silencing=True,
        only_if_larger=True,
        unsigned="its option `signed` turned the counts, of which its W was not made",
    ),
    "influencer-R": Preset(
        "norm",
        3,
        rescale_after_silencing=True,
        only_if_larger=True,
        unsigned="its option `signed` turns the counts, of which its W is not made, and it tells |x|",
    ),
}
"""ConnectomeInfluenceCalculator as it is, as it was for the BANC paper (up to v0.4), and natverse's influencer."""


def as_it_reads(preset: str) -> str:
    """What a tool reads, in words."""
    how = PRESETS[preset]
    return f"{how.weights}, threshold {how.threshold:g}" + (", no signs" if how.unsigned else "")


def differences(preset: str, weights: str, threshold: float, signed: bool) -> list[str]:
    """In what a connectome was read otherwise than the tool reads it, a sentence each."""
    how, told = PRESETS[preset], []
    if (weights, threshold) != (how.weights, how.threshold):
        told.append(
            f"the preset {preset} reads weights={how.weights!r}, threshold={how.threshold:g}; this connectome was read "
            f"with weights={weights!r}, threshold={threshold:g}"
        )
    if signed and how.unsigned:
        told.append(f"the preset {preset} has no signs, for {how.unsigned}; this connectome has negative weights")
    return told
