"""What a search, a branch, a spectrum and verdicts print as: a few lines, and a table in a notebook."""

import pandas as pd
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


@pytest.fixture(scope="module")
def answers():
    table = pd.DataFrame({"pre": ["a", "b", "b", "<c>"], "post": ["b", "a", "<c>", "b"], "count": [1, 3, 2, 1]})
    c = rg.connectome.read(table, pd.DataFrame({"id": ["a", "b", "<c>"], "cell_type": ["x", "y", "x"]}))
    recorded = pd.DataFrame({"neuron": ["a", "b", "<c>"], "activity": [0.1, 0.2, 0.3]})
    ways = {"parameters": ["gain"], "hold_out": 0, "throw": False}
    return {
        "Importance": (rg.connectome.importance(c, "a", "<c>", scale=0.5), [".neurons", ".synapses()", "silencing"]),
        "ConnectomeStability": (rg.connectome.stability(c), [".eigenvalues", ".neurons", "margin of 0.01"]),
        "Fit": (rg.connectome.fit(c, recorded, {"a": 1.0}, **ways), [".errors", ".parameters", "at a minimum"]),
    }


@pytest.mark.parametrize("kind", ["Importance", "ConnectomeStability", "Fit"])
def test_an_answer_prints_its_tables_and_nothing_else(answers, kind):
    each, told = answers[kind]
    text, html = repr(each), each._repr_html_()
    assert text.startswith(f"{kind}: ") and all(word in text and word in html for word in told)
    assert "array(" not in text + html and "Connectome of" not in text + html
    assert html.count("<table") == html.count("</table>") == 2 and "<c>" not in html
    assert ("<c>" in text) == ("&lt;c&gt;" in html)


def test_of_a_long_table_the_first_rows_are_printed_and_all_are_counted():
    found = rg.connectome.importance(rg.connectome.example("worm"), "ADAL", "AVAL")
    assert ".neurons, the first 10 of 300" in repr(found) and len(repr(found).splitlines()) < 30
    assert found.neurons["id"][9] in repr(found) and found.neurons["id"][10] not in repr(found).split(".synapses")[0]
