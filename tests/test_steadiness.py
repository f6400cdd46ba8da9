"""No question is answered at a steady state that the network would leave by itself."""

import numpy as np
import pandas as pd
import pytest

from retrograde.connectome import importance, influence, read, simulate, stability

UNSTABLE = (
    "{}: the steady state is unstable, for the largest real part of an eigenvalue of DW there is 2, which has to be "
    "below 1; try another {}, or a smaller scale"
)


@pytest.fixture
def c():
    """Two that excite each other, at rest an unstable state, and one that listens to nobody."""
    return read(pd.DataFrame({"pre": list("abc"), "post": list("bad"), "count": [2, 2, 1]}))


def test_neither_influence_nor_importance_nor_a_simulation_takes_an_unstable_state(c):
    how = {"f": "tanh", "scale": None}
    for ask, at, other in (
        (lambda: influence(c, "c", drive="c", **how), "drive", "drive"),
        (lambda: importance(c, "c", {"d": 1, "a": 1}, **how), "source", "source"),
        (lambda: simulate(c, {"c": 1.0}, start="steady", duration=3, **how), "start", "bias"),
        (lambda: simulate(c, {"c": 1.0}, start="steady", duration=3, f="identity"), "start", "bias"),
    ):
        with pytest.raises(ValueError) as error:
            ask()
        assert str(error.value) == UNSTABLE.format(at, other)


def test_a_stable_one_is_taken_and_its_margin_told(c):
    found = importance(c, {"a": 2.0, "c": 1.0}, "b", f="tanh", scale=None)
    margin = stability(c, {"a": 2.0, "c": 1.0}, scale=None).margin_continuous
    assert 0 < margin < 1 and np.isclose(found.attrs["margin"], margin)
    rest = simulate(c, {"c": 1.0}, start="steady", duration=3, scale=0.5, wide=True)
    assert (rest[["a", "b"]] == 0).all(axis=None)
    assert "margin" not in importance(c, "a", "b").attrs  # of a linear network the scale says it
