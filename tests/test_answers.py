"""What the commands on connectomes share: the worm, the options, the files they leave, the figures and the page."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation
from rich.console import Console
from typer.testing import CliRunner

import retrograde as rg
from retrograde import starting
from retrograde.cli import answering, progress
from retrograde.cli.app import app
from retrograde.cli.progress import Steps
from retrograde.connectome import importances
from retrograde.report import Answer, Figure, drawings, ink, paths

WORM = "--example", "worm"
BOTH = "--target", "AVAL", "AVAR"


def call(*args, code=0):
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert done.exit_code == code, (done.exit_code, done.output)
    return done


@pytest.fixture(scope="module")
def worm():
    return rg.connectome.example("worm", signs="worm-gaba")


# --- the worm


def test_the_worm_gives_the_numbers_of_the_calculators_worm():
    c = rg.connectome.example("worm")
    assert (len(c), len(c.edges), c.edges["count"].sum()) == (300, 3539, 20672)
    found = rg.connectome.influence(c, source=["ADAL", "ADAR"], scale=0.5)
    score = found.set_index("id")["influence"]
    want = {"ADAL": 1.02972185, "ADAR": 1.004604, "AVBR": 0.19890829, "AVAR": 0.12133068, "AVBL": 0.08618064}
    assert np.allclose(score[list(want)], list(want.values()), rtol=0, atol=1e-8)
    assert abs(found.attrs["eigenvalue"] - 106.083430) < 1e-6 and abs(score.sum() - 3.78386721) < 1e-8
    assert (score == 0).sum() == 30
    few = rg.connectome.example("worm", threshold=5)
    assert (len(few), len(few.edges)) == (289, 1218)


def test_the_worms_neurons_are_told():
    neurons = rg.connectome.example("worm").neurons.set_index("id")
    told = neurons.loc[["AVAL", "RMED", "VD10", "PQR", "SMDVR", "e3D"], ["cell_type", "side", "transmitter"]]
    assert told.to_numpy().tolist() == [
        ["AVA", "left", "acetylcholine"],
        ["RMED", "", "gaba"],
        ["VD", "", "gaba"],
        ["PQR", "", "glutamate"],
        ["SMDV", "right", "acetylcholine"],
        ["e3D", "", ""],
    ]
    assert neurons.loc["SMDVR", "other_transmitters"] == "gaba"
    with pytest.raises(ValueError, match="example: expected one of worm, got 'fly'"):
        rg.connectome.example("fly")


def test_a_wheel_has_the_worm_and_the_pages(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it is in the extra dev")
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=root, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    here = "retrograde/connectome/examples"
    assert {f"{here}/worm_edges.csv", f"{here}/worm_neurons.csv", f"{here}/README.md"} <= set(
        zipfile.ZipFile(wheel).namelist()
    )
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    args = ["influence", *WORM, *BOTH, "--json", "--report", str(tmp_path / "page.html")]
    code = f"import sys; sys.argv = ['retrograde', *{args}]; from retrograde.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True
    )
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 300, done.stderr
    assert (tmp_path / "page.html").is_file()


# --- options


@pytest.mark.parametrize(
    "args",
    [
        (*WORM, *BOTH),
        (*BOTH, *WORM),
        (*WORM, "--target", "AVAL", "--target", "AVAR"),
        (*WORM, "--target=AVAL", "AVAR"),
        (*WORM, "--target", "AVAL", "--threads", "1", "--target", "AVAR"),
    ],
)
def test_the_first_minute(args):
    done = call("influence", *args)
    assert "every neuron's on AVAL, AVAR" in done.stdout and "Cook et al." in done.stderr
    want = rg.connectome.influence(rg.connectome.example("worm"), target=["AVAL", "AVAR"])
    rows = json.loads(call("influence", *args, "--json", "--top", 5).stdout)
    assert [row["id"] for row in rows] == list(want["id"].head(5)) and rows[0]["is_target"] is False


def test_several_values_and_the_table_of_connections(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"pre": list("abc"), "post": list("bca"), "count": 1}).to_csv("edges.csv", index=False)
    want = call("influence", "edges.csv", "--source", "a", "--source", "b", "--json").stdout
    assert call("influence", "edges.csv", "--source", "a", "b", "--json").stdout == want
    assert call("influence", "--source", "a", "b", "edges.csv", "--json").stdout == want
    assert call("influence", "--json", "--source", "a", "b", "--", "edges.csv").stdout == want
    done = call("influence", "--source", "a", "b", "edges.cvs", code=2)  # which is taken for a neuron
    assert "got neither (EDGES comes before the options)" in done.stderr


def test_transmitters_may_be_left_out(tmp_path):
    call("influence", *WORM, *BOTH, "--exclude-transmitter", "gaba", "serotonin", "--out", tmp_path / "who.csv")
    c = rg.connectome.example("worm", exclude_transmitters=["gaba", "serotonin"])
    want = rg.connectome.influence(c, target=["AVAL", "AVAR"])
    assert np.allclose(pd.read_csv(tmp_path / "who.csv", keep_default_na=False)["influence"], want["influence"])


def test_seed_and_threads():
    before = torch.get_num_threads()
    try:
        call("influence", *WORM, *BOTH, "--seed", 7, "--threads", 1)
        assert torch.get_num_threads() == 1 and torch.initial_seed() == 7
    finally:
        answering.use_threads(before)
    assert call("influence", *WORM, *BOTH, "--threads", 0, code=2)


def test_groups_on_groups(tmp_path, worm):
    args = ("influence", *WORM, "--signs", "worm-gaba", "--by", "super_class", "--scale", 0.5)
    call(*args, "--out", tmp_path / "groups.csv", "--figure", tmp_path / "groups.png")
    found = pd.read_csv(tmp_path / "groups.csv", index_col="source")
    groups = {name: list(ids) for name, ids in worm.neurons.groupby("super_class")["id"]}
    want = rg.connectome.influence(worm, source=groups, target=groups, scale=0.5)
    assert list(found) == list(want) and np.allclose(found, want)
    rows = json.loads(call(*args, "--source", "sensory", "motor", "--target", "motor", "--json").stdout)
    assert [row["source"] for row in rows] == ["sensory", "motor"] and set(rows[0]) == {"source", "motor"}


# --- files


@pytest.mark.parametrize(
    ("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
@pytest.mark.parametrize("command", ["influence", "importance"])
def test_figures_by_suffix(tmp_path, command, suffix, begins):
    source = ("--source", "ADAL") if command == "importance" else ()
    call(command, *WORM, *source, *BOTH, "--figure", tmp_path / f"it{suffix}")
    (only,) = tmp_path.iterdir()
    assert only.read_bytes().startswith(begins) and only.stat().st_size > 4000


@pytest.mark.parametrize("option", ["--out", "--report", "--figure", "--synapses"])
def test_an_interrupt_leaves_what_was_there(tmp_path, monkeypatch, option):
    suffix = {"--out": ".csv", "--report": ".html", "--figure": ".png", "--synapses": ".parquet"}[option]
    path = tmp_path / f"it{suffix}"
    path.write_text("what was there")

    def interrupted(*args, **_):
        for each in args:
            if isinstance(each, Path):
                each.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", interrupted)
    monkeypatch.setattr(Path, "write_text", interrupted)
    monkeypatch.setattr("retrograde.report.ink.Sketch.save", interrupted)
    monkeypatch.setattr(importances.Importance, "write_synapses", interrupted)
    call("importance", *WORM, "--source", "ADAL", *BOTH, option, path, code=130)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(path.name, "what was there")]


def test_a_link_and_a_device_are_written_through(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "far" / "who.csv")
    call("influence", *WORM, *BOTH, "--out", tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink() and len(pd.read_csv(tmp_path / "far" / "who.csv")) == 300
    done = subprocess.run(
        [sys.executable, "-m", "retrograde", "influence", *WORM, *BOTH, "--out", "/dev/null"], capture_output=True
    )
    assert done.returncode == 0 and Path("/dev/null").is_char_device(), done.stderr


def test_a_progress_bar_is_seen_after_a_second(monkeypatch):
    steps = Steps()
    steps.step("solving", 2, 7)
    assert not list(steps._bar.get_renderables())
    monkeypatch.setattr(progress, "_SECONDS", 0.0)

    console = Console(width=100)
    with console.capture() as shown:
        for each in steps._bar.get_renderables():
            console.print(each)
    assert "solving" in shown.get() and "2/7" in shown.get()
    steps.step("writing")
    assert steps._bar.tasks[0].total is None


# --- the page


class Page(html.parser.HTMLParser):
    """Tags, their attributes, and whether each is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br", "path", "use", "image", "rect", "circle", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open[-1] == tag, (tag, self.open[-3:])
            self.open.pop()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "it is.html"
    args = ("importance", *WORM, "--source", "ASHL", "ASHR=2", "--target", "AVAL", "AVBL=-1", "--signs", "worm-gaba")
    call(*args, "--scale", 0.9, "--exact", 3, "--report", path)
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_but_itself(page):
    found = Page(page)
    assert not found.open
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", re.sub(r"url\(#[^)]*\)", "", page))
    assert all(not attrs.get("src") and not attrs.get("href", "#").startswith("http") for _, attrs in found.tags)
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_has_the_answer_the_receipts_the_command_and_the_versions(page):
    want = (
        "importance --source ASHL ASHR=2 --target AVAL AVBL=-1 --scale 0.9 --exact 3 --example worm --signs worm-gaba"
    )
    assert f"retrograde {want} --report" in page and "it is.html&#39;</pre>" in page
    for each in ("residual", "adjoint_residual", "eigenvalue", torch.__version__, np.__version__, "Cook et al."):
        assert each in page, each
    assert page.count("<svg") == 3 and page.count('<section class="sorted">') == 2
    assert ">rows read<" in page and "data-by" in page


class Tables(html.parser.HTMLParser):
    """What the page's script finds of its tables, and the script itself."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.script, self._inside, self._text = [], "", False, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("class") == "sorted":
            self.tables.append({"heads": [], "rows": [], "told": ""})
            self._inside = True
        here = self.tables[-1] if self._inside else None
        if tag == "script":
            self._text = ("script", None)
        elif here is not None and "aria-sort" in attrs:
            here["heads"].append({"name": "", "numeric": attrs.get("class") == "n"})
            self._text = ("name", here["heads"][-1])
        elif here is not None and attrs.get("class") == "count":
            self._text = ("told", here)
        elif here is not None and tag == "tr" and here["heads"]:
            here["rows"].append([])
        elif here is not None and tag == "td" and here["rows"]:
            here["rows"][-1].append({"shown": "", **({"by": attrs["data-by"]} if "data-by" in attrs else {})})
            self._text = ("shown", here["rows"][-1][-1])

    def handle_data(self, data):
        if self._text is not None:
            name, place = self._text
            if place is None:
                self.script += data
            else:
                place[name] += data

    def handle_endtag(self, tag):
        if tag in ("script", "th", "td", "span"):
            self._text = None
        elif tag == "section" and self._inside:
            self.tables[-1]["rows"] = [row for row in self.tables[-1]["rows"] if row]
            self._inside = False


# As much of a browser's document as the script asks for.
BROWSER = """
const sections = tables.map(table => {
  const listener = {}, listening = name => ({addEventListener: (_, call) => listener[name] = call});
  const heads = table.heads.map((head, i) => ({textContent: head.name, ariaSort: "none",
    firstElementChild: listening(i), classList: {contains: name => name === "n" && head.numeric}}));
  const rows = table.rows.map(cells => ({hidden: false, textContent: cells.map(cell => cell.shown).join(""),
    cells: cells.map(cell => ({textContent: cell.shown, dataset: "by" in cell ? {by: cell.by} : {}}))}));
  const body = {rows, append(...now) { this.now = now; }, now: rows}, count = {textContent: table.told};
  const parts = {tbody: body, ".count": count, input: listening("input")};
  return {listener, heads, body, count, querySelector: name => parts[name], querySelectorAll: () => heads};
});
const document = {querySelectorAll: () => sections};
"""
ANSWER = """
console.log(JSON.stringify(asked.map(([what, how]) => {
  const {listener, heads, body, count} = sections[0];
  what === "click" ? listener[how]() : listener.input({target: {value: how}});
  const seen = body.now.filter(row => !row.hidden).map(row => row.cells[0].textContent);
  return {seen, sorted: heads.map(head => head.ariaSort), count: count.textContent};
})));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script")
def test_the_tables_of_a_page_sort_and_filter():
    table = pd.DataFrame(
        {"id": ["n10", "n9", "N1", "x"], "value": [-2.0, 1e-12, 30.0, np.nan], "kind": ["Type", "other", "type", "b"]}
    )
    page = Tables(Answer("t", {"t": table, "another": table}, [], {}).page("command"))
    asked = [
        ("click", 1),  # numbers from the largest on, those that are missing last
        ("click", 1),
        ("click", 0),  # names from the first on, as numbers are counted
        ("click", 0),
        ("input", "type"),  # text, in whatever column and letters
        ("input", "value > 0"),
        ("input", "value >= -2, kind = TYPE"),
        ("input", "value<1 and kind=other"),
        ("input", "no such thing"),
        ("input", "  "),
    ]
    words = f"const tables = {json.dumps(page.tables)}, asked = {json.dumps(asked)};"
    words += BROWSER + page.script + ANSWER
    done = subprocess.run(["node", "-"], input=words, capture_output=True, text=True, timeout=60, check=True)
    answers = json.loads(done.stdout)
    assert [answer["seen"] for answer in answers] == [
        ["N1", "n9", "n10", "x"],
        ["n10", "n9", "N1", "x"],
        ["N1", "n9", "n10", "x"],
        ["x", "n10", "n9", "N1"],
        ["n10", "N1"],
        ["n9", "N1"],
        ["n10", "N1"],
        ["n9"],
        [],
        ["x", "n10", "n9", "N1"],
    ]
    turned = [["none", "descending", "none"], ["none", "ascending", "none"], ["ascending", "none", "none"]]
    assert [answer["sorted"] for answer in answers[:3]] == turned
    assert [answer["count"] for answer in answers[-3:]] == ["1 of 4 rows", "0 of 4 rows", "4 rows"]


def test_the_same_answer_gives_the_same_page(worm):
    def made():
        found = rg.connectome.influence(worm, target="AVAL")
        figure = Figure("f", drawings.bars(found["id"], found["influence"], "influence"))
        return Answer("t", {"t": found}, [figure], {"solve": found.attrs}).page("command")

    assert made() == made()


def test_what_users_write_is_escaped():
    evil = "<script>alert(1)</script>"
    table = pd.DataFrame({"id": [evil, "b"], evil: [1.0, 2.0]})
    paths_ = pd.DataFrame({"pre": [evil], "post": ["b"], "value": [1.0]})
    figures = [
        Figure(evil, drawings.bars(table["id"], table[evil], evil), evil),
        Figure(evil, paths.wiring(paths_, [evil], ["b"]), evil),
    ]
    answer = Answer(evil, {evil: table}, figures, {evil: {evil: evil}, "more": evil}, [evil], source=evil)
    assert "<script>alert" not in answer.page(evil)


def test_the_page_tells_of_every_solve_how_it_was_found(tmp_path):
    path = tmp_path / "it.html"
    call("importance", *WORM, "--source", "ADAL", "--target", "AVAL", "--f", "tanh", "--report", path)
    cells = re.findall(r'<th scope="row">(.*?)</th><td class="n">(.*?)</td>', path.read_text())
    table = dict(cells)
    assert float(table["residual"]) < 1e-9 and float(table["adjoint_residual"]) < 1e-9
    assert int(table["steps"]) > 1 and int(table["adjoint_steps"]) > 1
    assert "FixedPoint" in table["solver"] and "FixedPoint" in table["adjoint_solver"]
    assert "error of the gradient" in path.read_text()  # by its receipt


@pytest.mark.parametrize("ends", ({"source": "ADAL"}, {"target": "AVAL"}))
@pytest.mark.parametrize("f", ("identity", "tanh"))
def test_influence_tells_how_each_solve_was_found(ends, f):
    worm, how = rg.connectome.example("worm"), {**ends, "f": f, "drive": ["ASHL"] if f == "tanh" else None}
    told = rg.connectome.influence(worm, **how).attrs
    assert told["steps"] >= 1 and told["solver"].startswith(("by ", "1 by "))
    if f == "tanh":
        assert told["state_steps"] >= 1 and "FixedPoint" in told["state_solver"]
    scales = [0.9, 0.5, 0.8]
    each = [rg.connectome.influence(worm, **how, scale=scale).attrs for scale in scales]
    swept = rg.connectome.influence(worm, **how, scale=scales).attrs
    assert swept["steps"] == max(one["steps"] for one in each) and swept["solver"] == each[0]["solver"]


def test_a_receipt_prints_itself_and_what_is_missing_is_empty():
    net = rg.Network(torch.tensor([[0.0, 0.5], [0.2, 0.0]]).double())
    state = net.steady_state(torch.ones(2).double())
    state.x.sum().backward()
    table = pd.DataFrame({"id": ["a", "b"], "value": [1.5, np.nan], "on": [True, False], "none": [None, None]})
    page = Answer("t", {"t": table}, receipts={"solve": state.receipt}).page("c")
    assert "residual of the adjoint" in page and "none" not in re.findall(r"<button[^>]*>(\w+)", page)
    assert '<td class="n" data-by="1.5">1.5</td>' in page and '<td class="n" data-by="">—</td>' in page


def test_long_tables_say_how_much_is_left_out():
    page = Answer("t", {"t": pd.DataFrame({"value": np.arange(1234.0)})}).page("c")
    assert "1000 rows, the first of 1,234" in page and page.count("<tr>") < 1020


def test_ids_are_text_in_the_page_whatever_their_column():
    big = 720575940600000001
    ids = {name: [12345, 67890] for name in ("id", "neuron", "pre", "post", "source", "target", "root_id")}
    table = pd.DataFrame({**ids, "body": [big, big + 1], "grid": [1234, 5], "low": [-big, 0], "driven": [True, False]})
    page = Answer("a", {"a": table}).page("retrograde influence")
    assert page.count("<td>12345</td>") == 7 and "12,345" not in page
    assert f"<td>{big}</td>" in page and f"<td>{big + 1}</td>" in page and f"<td>{-big}</td>" in page
    assert '<td class="n" data-by="1234">1,234</td>' in page and "<td>True</td>" in page


# --- figures


def saved(sketch, tmp_path):
    sketch.save(tmp_path / "it.svg")
    return (tmp_path / "it.svg").read_text()


def test_figures_of_odd_data_are_drawn(tmp_path):
    T = np.linspace(0, 1, 5)
    for sketch in (
        drawings.bars([], [], "x"),
        drawings.bars(["a", "b"], [np.nan, np.inf], "x", [1.0, np.nan], "exactly"),
        drawings.groups(pd.DataFrame([[1.0, -2.0]], index=["a"], columns=["b", "c"]), "x"),
        drawings.groups(pd.DataFrame(np.zeros((3, 3))), "x"),
        drawings.groups(pd.DataFrame(np.random.default_rng(0).random((70, 70))), "x"),
        drawings.density([0.0, 0.0], "x", logarithmic=True),
        drawings.density({"a": [1.0], "b": [2.0, np.nan]}, "x"),
        drawings.traces(T, np.zeros((5, 1)), ["a"]),
        drawings.traces(T, np.random.default_rng(0).normal(size=(5, 40)), range(40), input=np.ones((5, 2))),
        drawings.spectrum([], "W"),
        drawings.spectrum([0.5, 2 + 1j, np.nan], "W"),
        paths.wiring(pd.DataFrame({"pre": [], "post": [], "value": []}), ["a"], ["b"]),
    ):
        assert "<svg" in sketch.inline() and "</svg>" in saved(sketch, tmp_path)


def drawn(sketch):
    """What matplotlib was told to draw, the axes' parts one by one."""
    with sketch._styled(ink._ON_WHITE):
        figure, _ = sketch._drawn()
    return figure.axes


def colours(*names):
    return [pytest.approx(to_rgb(name)) for name in names]


def test_bars_are_as_long_as_the_values_and_have_the_colour_of_their_sign():
    (axes,) = drawn(drawings.bars(["a", "b", "c"], [2.0, -1.5, 0.5], "x", beside=[1.0, -2.0, 0.0], of="exactly"))
    assert [bar.get_width() for bar in axes.patches] == [2.0, -1.5, 0.5]
    assert [bar.get_facecolor()[:3] for bar in axes.patches] == colours(ink.RED, ink.BLUE, ink.RED)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.collections[0].get_offsets().tolist() == [[1.0, 0.0], [-2.0, 1.0], [0.0, 2.0]]
    (many,) = drawn(drawings.bars(range(100), np.arange(100.0), "x"))
    assert len(many.patches) == drawings.BARS


def test_eigenvalues_lie_in_the_plane_and_the_unstable_are_marked():
    (axes,) = drawn(drawings.spectrum([0.5 + 0.2j, 0.5 - 0.2j, 1.5, -3.0], "W"))
    stable, unstable = axes.collections
    assert stable.get_offsets().tolist() == [[0.5, 0.2], [0.5, -0.2], [-3.0, 0.0]]  # of the flow, as the note says
    assert unstable.get_offsets().tolist() == [[1.5, 0.0]]
    assert [each.get_facecolor()[0, :3] for each in (stable, unstable)] == colours(ink.BLUE, ink.RED)
    assert all((circle.center, circle.radius) == ((0, 0), 1) for circle in axes.patches) and axes.get_aspect() == 1
    assert any(list(line.get_xdata()) == [1, 1] for line in axes.lines)
    low, high = axes.get_xlim()
    assert low < -3 and high > 3


def test_a_heat_map_has_the_values_of_the_groups_that_are_named_beside_it():
    rng = np.random.default_rng(0)
    names = [f"t{i}" for i in range(6)]
    table = pd.DataFrame(rng.normal(size=(6, 6)), index=names, columns=names)
    for values, colour_map in ((table, ink.SIGNED), (table.abs(), ink.AMOUNT)):
        axes = drawn(drawings.groups(values, "influence"))[0]
        down, across = ([label.get_text() for label in side()] for side in (axes.get_yticklabels, axes.get_xticklabels))
        assert sorted(down) == sorted(across) == names
        (image,) = axes.images
        assert np.array_equal(image.get_array(), values.loc[down, across]) and image.cmap is colour_map
        low, high = image.get_clim()
        assert low == (-high if colour_map is ink.SIGNED else 0)
    assert ink.SIGNED(0.0)[:3] == colours(ink.BLUE)[0] and ink.SIGNED(1.0)[:3] == colours(ink.RED)[0]
    assert ink.SIGNED(0.0)[3] == ink.SIGNED(1.0)[3] == 1 and ink.SIGNED(0.5)[3] < 0.01  # nothing is drawn at 0


def test_a_distribution_counts_every_value_once():
    (axes,) = drawn(drawings.density({"a": np.arange(10.0), "b": [2.0, np.nan, 3.0]}, "x"))
    a, b = [each.get_data().values for each in axes.patches[::2]]
    assert a.sum() == 10 and b.sum() == 2
    (axes,) = drawn(drawings.density([0.0, -1e-3, 10.0, 10.0], "x", logarithmic=True))
    assert axes.patches[0].get_data().values.sum() == 3 and axes.get_xscale() == "log"


def test_traces_and_the_raster_below_them_are_of_the_same_activity():
    time = np.linspace(0, 1, 9)
    activity = np.stack([np.roll(np.eye(9)[0] * size, at) for at, size in ((6, 1.0), (2, -3.0), (4, 2.0))], axis=1)
    given, above, below, *_ = drawn(drawings.traces(time, activity, ["a", "b", "c"], input=np.ones((9, 2))))
    lines = {line.get_label(): line.get_ydata() for line in above.lines}
    assert all(np.array_equal(lines[name], activity[:, k]) for k, name in enumerate("abc"))
    assert [label.get_text() for label in below.get_yticklabels()] == ["b", "c", "a"]  # by when they peak
    assert np.array_equal(below.images[0].get_array(), activity[:, [1, 2, 0]].T)
    assert given.get_ylabel() == "input" and given.collections[0].get_datalim(given.transData).y1 == 2


def test_a_wiring_diagram_has_the_names_and_an_arrow_of_the_sign_of_each_connection():
    edges = pd.DataFrame({"pre": ["s", "a", "s"], "post": ["a", "t", "t"], "value": [2.0, -1.0, 0.5]})
    (axes,) = drawn(paths.wiring(edges, ["s"], ["t"]))
    arrows = [text for text in axes.texts if isinstance(text, Annotation)]
    place = {text.get_text(): text.get_position() for text in axes.texts if text not in arrows}
    assert place["s"][0] < place["a"][0] < place["t"][0] and len(place) == 3
    name = {tuple(where): each for each, where in place.items()}
    found = {(name[arrow.xyann], name[arrow.xy]): arrow.arrow_patch for arrow in arrows}
    for pre, post, value in edges.itertuples(index=False):
        arrow = found.pop((pre, post))
        assert arrow.get_edgecolor()[:3] == pytest.approx(to_rgb(ink.RED if value > 0 else ink.BLUE))
        assert arrow.get_linewidth() == pytest.approx(0.6 + 2.6 * abs(value) / 2)
    assert not found


def test_a_file_has_the_colours_of_paper_and_a_page_its_own(tmp_path):
    sketch = drawings.bars(["a"], [1.0], "x")
    inline, file = sketch.inline(), saved(sketch, tmp_path)
    assert "var(--ink)" in inline and "#22262b" not in inline
    assert "#22262b" in file and "var(" not in file and "#010203" not in file


def test_groups_that_are_alike_are_neighbours():
    rng = np.random.default_rng(0)
    kinds = rng.permutation(np.repeat([0, 1, 2], 5))
    rows = np.eye(3)[kinds] + 0.01 * rng.random((15, 3))
    order = kinds[drawings.alike(rows)]
    assert (np.diff(order) != 0).sum() == 2


def brute_force(table, sources, targets):
    """Whether every connection is on a path from a source to a target, by walking."""

    def walk(start, following):
        found, now = set(start), list(start)
        while now:
            name = now.pop()
            for other in following.get(name, ()):
                if other not in found:
                    found.add(other)
                    now.append(other)
        return found

    ahead, back = {}, {}
    for pre, post in zip(table["pre"], table["post"], strict=True):
        ahead.setdefault(pre, []).append(post)
        back.setdefault(post, []).append(pre)
    after, before = walk(sources, ahead), walk(targets, back)
    return all(pre in after and post in before for pre, post in zip(table["pre"], table["post"], strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_the_strongest_paths_lead_from_sources_to_targets(seed):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.integers(0, 30, (200, 2)), columns=["pre", "post"]).drop_duplicates()
    table["value"] = rng.normal(size=len(table))
    found = paths.strongest_paths(table, "value", [0, 1], [28, 29], connections=12)
    assert 0 < len(found) <= 12 and brute_force(found, [0, 1], [28, 29])
    assert not found["post"].isin([0, 1]).any() and not found["pre"].isin([28, 29]).any()
    whole = table.set_index(["pre", "post"])["value"]
    assert (whole.loc[list(zip(found["pre"], found["post"], strict=True))].to_numpy() == found["value"]).all()


def test_the_strongest_path_is_found_and_loops_are_left_out():
    chain = pd.DataFrame({"pre": list("sabs"), "post": list("abtt"), "value": [3.0, -2.0, 3.0, 0.1]})
    loop = pd.DataFrame({"pre": ["b", "x"], "post": ["a", "t"], "value": [9.0, 9.0]})
    found = paths.strongest_paths(pd.concat([loop, chain]), "value", ["s"], ["t"], connections=3)
    assert sorted(zip(found["pre"], found["post"], strict=True)) == [("a", "b"), ("b", "t"), ("s", "a")]
    assert not len(paths.strongest_paths(loop, "value", ["s"], ["t"]))


def test_a_sweep_over_scales_and_influence_around_a_state(tmp_path, worm):
    args = ("influence", *WORM, "--signs", "worm-gaba", *BOTH)
    rows = json.loads(call(*args, "--scale", 0.1, 0.9, "--json", "--figure", tmp_path / "sweep.png").stdout)
    want = rg.connectome.influence(worm, target=["AVAL", "AVAR"], scale=[0.1, 0.9])
    assert [row["id"] for row in rows] == list(want["id"]) and {"0.1", "0.9", "best", "worst"} <= set(rows[0])
    around = ("--f", "tanh", "--drive", "ASHL", "ASHR=2", "--scale", 0.9)
    rows = json.loads(call(*args, *around, "--json", "--report", tmp_path / "it.html").stdout)
    want = rg.connectome.influence(worm, target=["AVAL", "AVAR"], scale=0.9, f="tanh", drive={"ASHL": 1, "ASHR": 2})
    assert [row["id"] for row in rows] == list(want["id"])
    assert "margin" in (tmp_path / "it.html").read_text()
    rows = json.loads(call("influence", *WORM, "--by", "class", "--source", "amphid", "touch", "--json").stdout)
    assert {"amphid", "touch"} <= set(rows[0])


def test_importance_by_neuropil(tmp_path):
    table = pd.DataFrame(
        {"pre": list("aabc"), "post": list("bbca"), "syn_count": [1, 3, 2, 1], "neuropil": ["X", "Y", "Y", "X"]}
    )
    table.to_csv(tmp_path / "edges.csv", index=False)
    args = ("importance", tmp_path / "edges.csv", "--source", "a", "--target", "c", "--by", "neuropil")
    rows = json.loads(call(*args, "--json", "--figure", tmp_path / "it.svg").stdout)
    found = rg.connectome.importance(rg.connectome.read(table), "a", "c").by_neuropil(table)
    assert [row["neuropil"] for row in rows] == list(found["neuropil"]) and (tmp_path / "it.svg").is_file()


@pytest.mark.parametrize(
    ("said", "told"),
    (
        (("--by", "neuropil"), "--by neuropil: edges .* neuropil not found among pre, post, syn_count"),
        (("--by", "colour"), "--by: expected a column of the neurons, .* got 'colour'"),
        (("--by-pair", "colour"), "--by-pair: expected a column of the neurons, .* got 'colour'"),
        (("--by", "id", "--by-pair", "id"), "--by-pair: expected no --by along with it"),
        (("--by", "id", "id"), "--by: expected one column of the neurons, neuropil, or both; got id, id"),
    ),
)
def test_sums_that_cannot_be_are_refused_before_anything_is_solved(said, told, tmp_path, monkeypatch):
    monkeypatch.setattr(rg.connectome, "importance", lambda *_, **__: pytest.fail("it was solved"))
    pd.DataFrame({"pre": list("ab"), "post": list("ba"), "syn_count": 1}).to_csv(tmp_path / "edges.csv", index=False)
    done = call("importance", tmp_path / "edges.csv", "--source", "a", "--target", "b", *said, code=2)
    assert re.search(told, done.stderr)


def test_paths_of_ids_that_are_numbers(tmp_path):
    table = pd.DataFrame({"pre": [11, 12, 13], "post": [12, 13, 11], "count": 1})
    table.to_csv(tmp_path / "edges.csv", index=False)
    for command, ends in (("importance", ("--source", 11, "--target", 13)), ("influence", ("--source", 11))):
        call(command, tmp_path / "edges.csv", *ends, "--report", tmp_path / "it.html")
        assert "The strongest paths" in (tmp_path / "it.html").read_text()


ASKED = {
    "influence": BOTH,
    "importance": ("--source", "ASHL", *BOTH),
    "stimulate": ("--target", "AVAL=0.1", "--allowed", "super_class:sensory", "--scale", 0.8),
    "simulate": ("--source", "ASHL", "ASHR", "--duration", 20, "--tau", 5, "--scale", 0.8),
    "fit": ("--tie", "super_class", "--parameters", "gain", "--scale", 0.5, "--hold-out", 0),
    "stability": ("--scale", 0.8),
}


@pytest.mark.parametrize("command", ASKED)
def test_all_six_questions_share_what_is_around_them(command, tmp_path, worm):
    here = tmp_path / "here"
    here.mkdir()
    args = [command, *WORM, "--signs", "worm-gaba", *ASKED[command]]
    if command == "fit":
        x = rg.connectome.simulate(worm, {"ASHL": 1.0}, f="tanh", scale=0.5, duration=200, wide=True).iloc[-1, 1:]
        recorded = pd.DataFrame({"neuron": x.index, "activity": x.to_numpy(float)})
        recorded.to_csv(tmp_path / "recorded.csv", index=False)
        pd.DataFrame({"neuron": ["ASHL"], "strength": [1.0]}).to_csv(tmp_path / "drive.csv", index=False)
        args += ["--recorded", tmp_path / "recorded.csv", "--drive", tmp_path / "drive.csv"]
    files = {"--out": here / "it.parquet", "--figure": here / "it.svg", "--report": here / "it.html"}
    named = [each for pair in files.items() for each in pair]
    done = call(*args, *named, "--seed", 1, "--threads", torch.get_num_threads(), "--top", 3)
    assert "Cook et al." in done.stderr and {path.name for path in here.iterdir()} == {
        path.name for path in files.values()
    }
    rows = json.loads(call(*args, "--json", "--top", 3).stdout)
    whole = pd.read_parquet(here / "it.parquet")
    assert len(rows) == min(3, len(whole)) and list(rows[0]) == list(whole)
    page = (here / "it.html").read_text(encoding="utf-8")
    assert not Page(page).open and f"retrograde {command} " in page and "<svg" in page and "Cook et al." in page
    assert not re.search(r"https?://", page)


@pytest.mark.parametrize("command", ASKED)
def test_an_interrupt_of_any_question_leaves_no_file(command, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    here = tmp_path / "here"
    here.mkdir()
    args = [command, *WORM, *ASKED[command]]
    if command == "fit":
        pd.DataFrame({"neuron": ["AVAL", "AVAR"], "activity": 0.1}).to_csv(tmp_path / "recorded.csv", index=False)
        args += ["--recorded", tmp_path / "recorded.csv"]
    monkeypatch.setattr(rg.connectome, command, interrupted)
    done = call(*args, "--out", here / "it.csv", "--figure", here / "it.svg", "--report", here / "it.html", code=130)
    assert done.stderr.endswith("interrupted\n") and not list(here.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_an_interrupt_in_the_middle_of_the_solves_is_one_line(tmp_path):
    code = """
import os, signal, sys
from retrograde.cli.main import main
from retrograde.connectome import importances

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
solve = importances.exact_effects

def interrupted(here, some, progress):
    def told(done, total):
        progress(done, total)
        if done == 5:
            print("five", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
    return solve(here, some, told)

importances.exact_effects = interrupted
sys.exit(main())
"""
    words = ["importance", *WORM, "--source", "ASHL", "--target", "AVAL", "--f", "tanh", "--exact", "300"]
    files = ["--out", tmp_path / "it.csv", "--report", tmp_path / "it.html"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, *files], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 130 and done.stdout == "five\n", done.stderr
    assert done.stderr.endswith("interrupted\n") and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_json_of_what_json_has_no_numbers_for():
    table = pd.DataFrame({"id": [np.int64(3), 4], "x": [np.inf, np.nan], "y": [-np.inf, 1.5], "on": [True, False]})
    assert json.loads(answering.as_json(table)) == [
        {"id": 3, "x": "inf", "y": "-inf", "on": True},
        {"id": 4, "x": None, "y": 1.5, "on": False},
    ]


def test_what_connections_are_ranked_by_is_shown_however_narrow_the_terminal_is():
    ids = {name: [720575940600000000 + k] for k, name in enumerate(("pre", "post"))}
    rows = pd.DataFrame({**ids, "count": [3], "weight": [3.0], "gradient": [0.25], "importance": [0.75]})
    table = answering.shown(rows, "t", 70)
    assert [each.header for each in table.columns] == ["pre", "post", "count", "importance"]
    assert table.caption == "not shown: weight, gradient"
    assert len(answering.shown(rows, "t", 200).columns) == 6


def test_a_narrow_terminal_shows_fewer_columns():
    rows = pd.DataFrame({"id": [720575940612453042], "influence": [0.25], "cell_type": ["x" * 30], "none": [""]})
    console = Console(width=50)
    for width, seen in (50, ["id", "influence"]), (80, ["id", "influence", "cell_type"]), (5, ["id", "influence"]):
        table = answering.shown(rows, "t", width)
        assert [column.header for column in table.columns] == seen
        assert (table.caption == "not shown: cell_type") == (len(seen) == 2)
    with console.capture() as text:
        console.print(answering.shown(rows, "t", 50))
    assert "720575940612453042" in text.get()
    assert not answering.shown(rows.iloc[:0], "t", 50).columns


# --- what --help tells


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("influence", ("count", "0", "0.99", "20, as JSON all")),
        ("importance", ("count", "0", "20, as JSON all")),
        ("stimulate", ("all", "0.99", "l1")),
        ("simulate", ("dt", "to the end of the stimulus", "as it is", "all")),
        ("fit", ("gain bias", "gauss-newton up to 400 parameters", "0.2")),
        ("stability", ("none", "0.99", "6")),
    ],
)
def test_help_tells_the_defaults(command, told):
    help = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "400", "TERM": "dumb"}).stdout
    for each in told:
        assert f"[default: {each}]" in help, each
    assert "\\[" not in help


def test_under_json_the_notes_go_to_the_standard_error():
    args = "--target", "AVAL=0.9", "--allowed", "ASHL", "--upper", 0.01
    done = call("stimulate", *WORM, *args, "--json")
    assert "the targets are not met" in done.stderr and json.loads(done.stdout)
    assert "eigenvalue" in call("influence", *WORM, *BOTH, "--json").stderr


def test_a_cutoff_and_a_steepness_of_a_preset_are_both_commands(worm):
    how = {"scale": 0.9, "preset": "ci-2.9", "threshold": 0.02, "steepness": 3.0}
    typed = *WORM, "--signs", "worm-gaba", "--scale", 0.9, "--preset", "ci-2.9", "--cutoff", 0.02, "--steepness", 3
    want = rg.connectome.simulate(worm, {"ASHL": 0.5}, duration=4, **how)["activity"]
    told = call("simulate", *typed, "--source", "ASHL=0.5", "--duration", 4, "--json", "--top", len(want)).stdout
    assert [row["activity"] for row in json.loads(told)] == list(want) and (want != 0).any()
    found = rg.connectome.stimulate(worm, {"AVAL": 0.1}, allowed=["ASHL"], steps=2, **how)
    told = call("stimulate", *typed, "--target", "AVAL=0.1", "--allowed", "ASHL", "--steps", 2, "--json").stdout
    assert [row["input"] for row in json.loads(told)] == list(found["input"])


@pytest.mark.parametrize(
    ("words", "given", "policy"),
    (
        (["retrograde", "influence", "edges.csv"], "", "PASSIVE"),
        (["retrograde", "--debug", "fit"], "", "PASSIVE"),
        (["retrograde", "influence"], "ACTIVE", "ACTIVE"),
        (["retrograde", "train", "digits"], "", ""),
        (["notebook.py", "influence"], "", ""),
    ),
)
def test_threads_of_a_question_sleep_while_they_wait(words, given, policy):
    code = f"import sys; sys.argv = {words}; import retrograde, os; print(os.environ.get('OMP_WAIT_POLICY', ''))"
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | ({"OMP_WAIT_POLICY": given} if given else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == policy


def test_every_question_is_one_whose_threads_sleep():
    commands = typer.main.get_command(app).commands
    assert {name for name, each in commands.items() if isinstance(each, answering.Question)} == starting.QUESTIONS
