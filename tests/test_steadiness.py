"""No question is answered at a steady state that the network would leave by itself."""

import numpy as np
import pandas as pd
import pytest

from retrograde import ConvergenceError
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


def test_what_may_help_where_an_f_without_a_bound_has_no_steady_state(c):
    for ask in (
        lambda: importance(c, "a", "b", f="relu", scale=1.5),
        lambda: influence(c, "c", f="relu", scale=1.5, drive="a"),
        lambda: simulate(c, {"c": 1.0}, start="steady", bias=1.0, f="relu", scale=1.5, duration=3),
    ):
        with pytest.raises(ConvergenceError, match="give a smaller scale, or a bounded f") as error:
            ask()
        assert error.value.result is not None


def test_scales_and_rewards_that_are_none(c):
    for ask in (
        lambda: influence(c, "c", scale="0.5"),
        lambda: influence(c, "c", scale=["0.5", "0.6"]),
        lambda: importance(c, "c", "d", scale="0.5"),
        lambda: stability(c, scale=True),
    ):
        with pytest.raises(TypeError, match=r"scale: expected a number, or None, got ('0.5'|True)"):
            ask()
    for reward, said in (
        (lambda x: x.numpy().sum(), "reward: expected a function of the tensor x in torch's operations; it raised: "),
        (lambda x: x.detach().sum(), "reward: expected a differentiable function of x"),
    ):
        with pytest.raises(ValueError, match=said):
            importance(c, "c", reward=reward)
