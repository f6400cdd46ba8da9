import dataclasses
import functools
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest

from retrograde.report import activity, figures, page, render
from retrograde.report.ink import reach, thin
from retrograde.training.examination import Examination, Example

CONFIG = {"task": "digits", "seed": 0, "network": {"f": "tanh", "leak": None}}
METRICS = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "seconds": [0.5, 0.4, 0.4],
        "reward": [-2.0, np.nan, -0.5],
        "accuracy": [0.4, 0.7, 0.9],
        "test_accuracy": [0.4, 0.6, np.nan],
        "steps": [20, 21, 23],
    }
)


def examination(examples, n=12, **more):
    random = np.random.default_rng(0)
    weights = random.normal(size=(n, n)) / n
    health = {"converged": 1.0, "worst residual": 3.2e-7, "largest |eigenvalue| of DW": 0.5}
    return Examination(0.9725, health, np.linalg.eigvals(weights)[None], weights, examples, **more)


def digits():
    random = np.random.default_rng(1)
    examples = [
        Example(f"a {i}", np.tanh(random.normal(size=12)), picture=random.integers(0, 17, (8, 8))) for i in range(3)
    ]
    return examination(examples, confusion=pd.DataFrame(np.eye(3, dtype=int) * 5 + 1))


def attractors():
    random = np.random.default_rng(2)
    pattern = np.sign(random.normal(size=12))
    example = Example("pattern 1", 0.9 * pattern, pattern.reshape(3, 4) * [1, 1, 1, -1], pattern, 0.9 * pattern)
    return examination([example], recall=pd.DataFrame({"corruption": [0.0, 0.2, 0.4], "recall": [1.0, 0.9, 0.1]}))


def flipflop():
    random = np.random.default_rng(3)
    target = np.sign(random.normal(size=(20, 3)))
    return examination([Example("trial 1", np.tanh(random.normal(size=(20, 12))), None, target, target * 0.9)])


KINDS = {"digits": digits, "attractors": attractors, "flipflop": flipflop}


@functools.cache
def rendered(kind):
    return render("A run", CONFIG, METRICS, KINDS[kind]())


def titles(html):
    return re.findall(r"<h3>(.*?)</h3>", html)


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("digits", ["Solver steps", "Confusion matrix", "a 0", "a 1", "a 2"]),
        ("attractors", ["Solver steps", "Recall", "pattern 1"]),
        ("flipflop", ["trial 1"]),
    ],
)
def test_each_kind_of_examination_has_its_figures(kind, own):
    html = rendered(kind)
    shared = ["Reward", "Accuracy", "Eigenvalues of DW", "Weights"]
    assert sorted(titles(html)) == sorted(shared + own)
    assert html.count("<svg role") == len(shared + own)
    for said in ("97.2%", "3.2 × 10⁻⁷", "0.5", "1.3 s", "network.f", "tanh", "—"):
        assert said in html


@pytest.mark.parametrize("kind", KINDS)
def test_same_input_same_bytes(kind):
    assert render("A run", CONFIG, METRICS, KINDS[kind]()) == rendered(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_page_needs_nothing_but_itself(kind):
    html = rendered(kind)
    assert "http:" not in html and "https:" not in html
    assert "<script" not in html and "<link" not in html and "@import" not in html
    references = re.findall(r"""(?:href|src)=["']([^"']*)|url\(([^)]*)\)""", html)
    assert references
    for reference in (a or b for a, b in references):
        assert reference.startswith(("#", "data:image/png;base64,"))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_unique_and_all_references_lead_somewhere(kind):
    html = rendered(kind)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', html)) | set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)


def test_what_users_write_is_escaped():
    evil = "<script>alert('$x_')</script>"
    told = digits()
    confusion = pd.DataFrame([[1, 0], [0, 1]], index=["<b>$", "漢字"], columns=["<b>$", "漢字"])
    told = dataclasses.replace(
        told,
        health={evil: 1.0},
        examples=[dataclasses.replace(told.examples[0], title=evil)],
        confusion=confusion,
    )
    html = render(evil, {evil: evil, "nested": {evil: [evil]}}, METRICS, told)
    assert "<script" not in html and "<b>" not in html
    assert html.count("&lt;script&gt;") >= 7
    assert "漢字" in html


def test_a_run_stopped_before_its_first_epoch():
    html = render("A run", {}, pd.DataFrame(), digits())
    assert "Nothing was trained" in html
    assert "Reward" not in titles(html) and "Weights" in titles(html)
    columns = pd.DataFrame(columns=["epoch", "reward", "accuracy"])
    assert titles(render("A run", {}, columns, digits())) == titles(html)


def test_one_epoch_is_a_visible_point():
    html = render("A run", CONFIG, METRICS[:1], digits())
    assert {"Reward", "Accuracy", "Solver steps"} <= set(titles(html))


def test_a_column_without_numbers_is_left_out():
    html = render("A run", CONFIG, METRICS.assign(reward=np.nan, steps=None), digits())
    assert "Reward" not in titles(html) and "Solver steps" not in titles(html) and "Accuracy" in titles(html)


def test_one_accuracy_of_two():
    assert "Accuracy" in titles(render("A run", CONFIG, METRICS.drop(columns="accuracy"), digits()))


def test_an_examination_with_nothing_in_it():
    told = Examination(np.nan, {}, np.empty((0, 0), complex), np.empty((0, 0)), [])
    html = render("A run", {}, pd.DataFrame(), told)
    assert not titles(html) and "—" in html


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1e300])
@pytest.mark.parametrize("shape", [(12,), (300,), (5, 12), (1, 12)])
def test_values_that_cannot_be_drawn_do_no_harm(value, shape):
    picture = np.full((3, 4), value)
    output = np.full(shape, value)
    told = examination([Example("odd", output, picture, output, output), Example("alone", output)])
    told = dataclasses.replace(
        told,
        accuracy=value,
        health={"converged": value, "largest |eigenvalue| of DW": value},
        eigenvalues=np.full((2, 3), value + 0j),
        weights=np.full((3, 3), value),
        confusion=pd.DataFrame([[value, 0], [0, 0]]),
        recall=pd.DataFrame({"corruption": [0.0, 1.0], "recall": [value, 0.5]}),
    )
    html = render("odd", {}, pd.DataFrame({"reward": [value, 1.0], "accuracy": [value, 1.0]}), told)
    assert {"odd", "alone", "Weights", "Recall"} <= set(titles(html))


def test_output_and_target_that_do_not_match_are_not_compared():
    path = np.zeros((5, 3))
    for output, target in ((np.zeros((5, 2)), np.zeros((5, 1))), (np.zeros((4, 2)), None), (None, np.zeros((5, 2)))):
        assert activity.moving(Example("x", path, None, target, output), 1.0)


def test_only_the_first_examples_are_shown():
    html = render("A run", CONFIG, METRICS, examination([Example(f"example {i}", np.ones(12)) for i in range(40)]))
    assert sum(title.startswith("example") for title in titles(html)) == page.EXAMPLES
    assert "the first 12 of 40" in html


def test_a_large_network_is_thinned():
    n = 1500
    weights = np.zeros((n, n))
    weights[700, 900] = -1.0
    values = np.random.default_rng(0).normal(size=(6, n)) + 0j
    told = Examination(1.0, {}, values, weights, [Example("still", np.ones(n)), Example("moving", np.ones((400, n)))])
    html = render("large", {}, pd.DataFrame(), told)
    assert len(html) < 1_000_000
    assert "2,000 of 9,000 are drawn" in html and "largest of a block" in html


def test_thin_keeps_a_lone_value():
    matrix = np.zeros((1001, 700))
    matrix[1000, 3], matrix[5, 699] = -2.0, 1.0
    small = thin(matrix, 100)
    assert small.shape == (100, 100)
    assert small.min() == -2 and small.max() == 1 and np.count_nonzero(small) == 2
    assert thin(matrix, 2000) is matrix


def test_the_largest_eigenvalues_are_always_drawn():
    values = np.linspace(0, 1, 10_000) * 1j
    drawn = figures.some(values)
    assert len(drawn) == figures.POINTS and drawn[0] == 1j and drawn[-1] == 0


def test_reach_ignores_rare_outliers_but_not_a_lone_weight():
    assert reach(np.array([])) == reach(np.zeros(3)) == 1
    assert reach(np.append(np.ones(10_000), 1e6)) == 1
    assert reach(np.append(np.zeros(10_000), 3.0)) == 3


def test_instability_is_a_warning_at_a_steady_state_only():
    for told, warned in ((digits(), True), (flipflop(), False)):
        told = dataclasses.replace(told, health={"largest |eigenvalue| of DW": 1.2})
        assert ('class="warning"' in render("A run", {}, METRICS, told)) == warned
    assert 'class="warning"' not in render("A run", {}, METRICS, digits())


def test_settings_of_matplotlib_are_neither_used_nor_changed():
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert render("A run", CONFIG, METRICS, digits()) == rendered("digits")
        assert matplotlib.rcParams["font.size"] == 30
