"""What a search, a branch, a spectrum and verdicts print as: a few lines, and a table in a notebook."""

import pytest
import torch
from problems import not_normal, randn

import retrograde as rg


def shown():
    net = rg.Network(torch.tensor([[2.0, 0.0], [0.0, -3.0]]).double())
    state = net.steady_state(randn(3, 2))
    few = rg.Network(not_normal(4), b=False)
    return {
        "SteadyStates": (rg.find_steady_states(net, starts=16), "basin"),
        "SteadyBranch": (rg.continue_steady_state(few, "gain", (0.1, 1), max_points=5, throw=False), "residual"),
        "Stability": (rg.stability(net, state.x.detach()), "spectral radius"),
        "Verdicts": (state.verdict, "margin"),
        "of none": (rg.stability(net, state.x[:0].detach()), "no samples"),
    }


@pytest.mark.parametrize("kind", ["SteadyStates", "SteadyBranch", "Stability", "Verdicts", "of none"])
def test_each_prints_as_a_table_and_as_html(kind):
    each, told = shown()[kind]
    text, html = repr(each), each._repr_html_()
    assert text.startswith(type(each).__name__) and told in text and "tensor(" not in text
    assert len(text.splitlines()) < 12
    assert html.startswith("<table>") and told in html and "tensor(" not in html
