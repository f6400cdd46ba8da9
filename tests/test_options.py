"""The options of the commands on connectomes: each is the argument of the same name in Python."""

import json
import sqlite3

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import feather
from typer.testing import CliRunner

import retrograde as rg
from retrograde.cli.app import app
from retrograde.connectome.columns import SIGNS

WORM = "--example", "worm"


def rows(*args):
    done = CliRunner().invoke(app, [*map(str, args), "--json", "--top", "1000000"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return pd.DataFrame(json.loads(done.stdout))


def same(typed, found):
    """The numbers, and the words, of two tables."""
    assert len(typed) == len(found) and list(typed) == list(found)
    for name in found:
        if pd.api.types.is_float_dtype(found[name]):
            np.testing.assert_allclose(typed[name].astype(float), found[name], rtol=1e-9, atol=1e-12, err_msg=name)
        else:
            ours, want = (each[name].astype(object).where(each[name].notna(), None).tolist() for each in (typed, found))
            assert ours == want, name


@pytest.fixture(scope="module")
def worm():
    return rg.connectome.example("worm")


@pytest.fixture
def edges():
    random = np.random.default_rng(0)
    pairs = np.unique(random.integers(0, 12, (90, 2)), axis=0) + 720575940600000000
    table = pd.DataFrame({"pre": pairs[:, 0], "post": pairs[:, 1]})
    return table.assign(count=random.integers(1, 30, len(table)))


@pytest.mark.parametrize("suffix", (".csv", ".tsv", ".csv.gz", ".parquet", ".feather", ".sqlite"))
def test_edges_of_every_format(edges, suffix, tmp_path):
    path = tmp_path / f"edges{suffix}"
    if suffix == ".parquet":
        edges.to_parquet(path)
    elif suffix == ".feather":
        feather.write_feather(edges, path)
    elif suffix == ".sqlite":
        with sqlite3.connect(path) as data:
            edges.to_sql("edges", data, index=False)
        data.close()
    else:
        edges.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    who = int(edges["pre"][0])
    same(rows("influence", path, "--source", who), rg.connectome.influence(rg.connectome.read(edges), who))


@pytest.mark.parametrize("suffix", (".npy", ".npz"))
def test_a_matrix_and_its_ids(suffix, tmp_path):
    random = np.random.default_rng(0)
    M = np.where(random.random((9, 9)) < 0.4, random.integers(1, 9, (9, 9)), 0).astype(float)
    np.save(tmp_path / "W.npy", M)
    np.savez(tmp_path / "W.npz", W=M)
    ids = [f"cell {k}" for k in range(9)]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    typed = rows(
        "influence", tmp_path / f"W{suffix}", "--orientation", "post_pre", "--ids", tmp_path / "ids.txt",
        "--source", "cell 3",
    )  # fmt: skip
    c = rg.connectome.read(M, orientation="post_pre", ids=ids)
    same(typed, rg.connectome.influence(c, "cell 3"))


def test_columns_and_neurons_left_out(edges, tmp_path):
    odd = edges.rename(columns={"pre": "from", "post": "to", "count": "how many"})
    odd.to_csv(tmp_path / "odd.csv", index=False)
    who, others = int(edges["pre"][0]), sorted({*edges["pre"]} - {edges["pre"][0]})[:2]
    named = "--column", "pre=from", "--column", "post=to", "--column", "count=how many"
    typed = rows("influence", tmp_path / "odd.csv", *named, "--source", who, "--exclude", *others, "--threshold", 4)
    c = rg.connectome.read(edges, exclude=others, threshold=4)
    same(typed, rg.connectome.influence(c, who))
    assert not set(others) & set(typed["id"])


def test_the_options_of_a_stimulation(worm, tmp_path):
    pd.DataFrame({"neuron": ["AVAL", "AVAR"], "activity": [0.1, 0.05]}).to_csv(tmp_path / "wanted.csv", index=False)
    allowed = "--allowed", "super_class:sensory"
    for least in ("l1", "l2"):
        typed = rows(
            "stimulate", *WORM, "--targets", tmp_path / "wanted.csv", *allowed, "--scale", 0.8, "--least", least
        )
        how = {"allowed": ["super_class:sensory"], "scale": 0.8, "least": least}
        same(typed, rg.connectome.stimulate(worm, {"AVAL": 0.1, "AVAR": 0.05}, **how))
    typed = rows("stimulate", *WORM, "--target", "AVAL", *allowed, "--scale", 0.8, "--maximum", "--budget", 2)
    how = {"allowed": ["super_class:sensory"], "scale": 0.8, "maximum": True, "budget": 2.0}
    same(typed, rg.connectome.stimulate(worm, {"AVAL": 1.0}, **how))
    assert typed["input"].sum() == pytest.approx(2)


def test_the_options_of_a_simulation(worm, tmp_path):
    args = "--source", "ASHL=2", "--duration", 5, "--dt", 0.5, "--tau", 2, "--record", "AVAL", "AVAR", "--bias", 0.1
    typed = rows("simulate", *WORM, *args, "--form", "voltage", "--f", "relu", "--scale", 0.8)
    how = {"duration": 5, "dt": 0.5, "tau": 2, "record": ["AVAL", "AVAR"], "bias": 0.1}
    same(typed, rg.connectome.simulate(worm, {"ASHL": 2.0}, form="voltage", f="relu", scale=0.8, **how))
    assert set(typed["id"]) == {"AVAL", "AVAR"} and typed["time"].max() == 5


def test_numbers_of_some_neurons(worm):
    own = "--tau", "cell_type:AVA=3", "ASHL=2", "--bias", "ASHL=0.2", "AVAL=-0.1"
    typed = rows("simulate", *WORM, "--source", "ASHL", "--duration", 5, *own, "--scale", 0.8)
    how = {"tau": {"cell_type:AVA": 3, "ASHL": 2}, "bias": {"ASHL": 0.2, "AVAL": -0.1}}
    same(typed, rg.connectome.simulate(worm, {"ASHL": 1.0}, duration=5, scale=0.8, **how))
    brought = "--target", "AVAL@3=0.1", "--steps", 3, "--allowed", "ASHL", "ASHR", "--scale", 0.8
    typed = rows("stimulate", *WORM, *brought, *own)
    want = rg.connectome.stimulate(worm, {("AVAL", 3): 0.1}, steps=3, allowed=["ASHL", "ASHR"], scale=0.8, **how)
    same(typed, want)


def test_a_simulation_draws_means_by_type(tmp_path):
    rows("simulate", *WORM, "--source", "ASHL", "--duration", 5, "--report", tmp_path / "it.html")
    assert "Means by cell type" in (tmp_path / "it.html").read_text(encoding="utf-8")


def test_the_options_of_a_fit(worm, tmp_path):
    driven = [{"ASHL": 1.0}, {"PVDL": 1.0}, {"ADAL": 0.5}]
    parts = [
        rg.connectome.simulate(worm, each, scale=0.5, duration=200).query("time == 200").assign(condition=k)
        for k, each in enumerate(driven)
    ]
    recorded = pd.concat(parts).rename(columns={"id": "neuron"})[["neuron", "activity", "condition"]]
    drive = pd.DataFrame(
        [
            {"neuron": who, "strength": much, "condition": k}
            for k, each in enumerate(driven)
            for who, much in each.items()
        ]
    )
    recorded.to_csv(tmp_path / "recorded.csv", index=False)
    drive.to_csv(tmp_path / "drive.csv", index=False)
    args = "--tie", "super_class", "--parameters", "gain", "--scale", 0.5, "--hold-out", 0.3
    how = {"tie": "super_class", "parameters": ["gain"], "scale": 0.5, "hold_out": 0.3, "seed": 3}
    for more, others in (
        (("--hold-out-by", "neuron", "--no-uncertainty"), {"hold_out_by": "neuron", "uncertainty": False}),
        (("--method", "lbfgs"), {"method": "lbfgs"}),
        (("--start", "gain=0.9", "bias=0.05"), {"start": {"gain": 0.9, "bias": 0.05}}),
    ):
        files = "--recorded", tmp_path / "recorded.csv", "--drive", tmp_path / "drive.csv", "--seed", 3
        typed = rows("fit", *WORM, *args, *files, *more)
        same(typed, rg.connectome.fit(worm, recorded, drive, **how, **others).parameters)


def test_the_options_of_a_stability(tmp_path, worm):
    rows("stability", *WORM, "--scale", 0.8, "--modes", 3, "--time", "discrete", "--report", tmp_path / "it.html")
    found = rg.connectome.stability(worm, scale=0.8, k=3, time="discrete")
    typed = rows("stability", *WORM, "--scale", 0.8, "--modes", 3, "--time", "discrete")
    assert len(found.eigenvalues) == 3
    same(typed, found.synapses(1_000_000))


def test_threads_reach_every_library_and_the_seed_the_search(monkeypatch):
    import pyarrow

    before, known = pyarrow.cpu_count(), torch.get_num_threads()
    try:
        rows("influence", *WORM, "--source", "ASHL", "--threads", 1)
        assert torch.get_num_threads() == pyarrow.cpu_count() == 1
    finally:
        torch.set_num_threads(known)
        pyarrow.set_cpu_count(before)
    asked = []
    monkeypatch.setattr(
        "retrograde.connectome.stimulate", lambda *args, seed, **how: asked.append(seed) or rg.InputError
    )
    CliRunner().invoke(app, ["stimulate", *WORM, "--target", "AVAL=0.1", "--seed", "7"])
    assert asked == [7]


def test_the_presets_of_signs():
    negative = {name: sorted(each for each, sign in signs.items() if sign < 0) for name, signs in SIGNS.items()}
    four = ["gaba", "glutamate", "octopamine", "serotonin"]
    assert negative == {
        "shiu-2024": ["gaba", "glutamate"],
        "effectome-2024": four,
        "cic-fly": four,
        "worm-gaba": ["gaba"],
    }
    spoken = ["ach", "gaba", "glut", "oct", "ser", "da"]
    edges = pd.DataFrame({"pre": range(6), "post": 6, "count": 1})
    neurons = pd.DataFrame({"root_id": range(7), "top_nt": [*spoken, "ach"]})
    for name, those in negative.items():
        c = rg.connectome.read(edges, neurons, signs=name)
        full = ["acetylcholine", "gaba", "glutamate", "octopamine", "serotonin", "dopamine"]
        assert c.edges.sort_values("pre")["weight"].tolist() == [-1.0 if each in those else 1.0 for each in full]


def test_another_of_the_tables_is_written(worm, tmp_path):
    found = rg.connectome.stability(worm)
    same(rows("stability", *WORM, "--table", "Eigenvalues"), found.eigenvalues)
    drive = "--source", "ADAL", "--target", "AVAL"
    want = rg.connectome.importance(worm, "ADAL", "AVAL").synapses()
    same(rows("importance", *WORM, *drive, "--table", "synapses"), want)
    path = tmp_path / "synapses.csv"
    done = CliRunner().invoke(app, ["importance", *WORM, *drive, "--table", "synapses", "--out", str(path)])
    assert done.exit_code == 0 and f"all {len(want):,} rows" in done.output
    assert len(pd.read_csv(path)) == len(want) == len(worm.edges)
    shown = CliRunner().invoke(app, ["stability", *WORM, "--table", "mode"], env={"COLUMNS": "200"}).output
    assert shown.index("neurons in the leading mode") < shown.index("leading eigenvalues")


TITLES = {
    "influence --target a": "influence; got",
    "importance --source a --target b": "neurons; synapses",
    "importance --source a --target b --by side": "sums; got",
    "stimulate --target a=1": "input; got",
    "simulate --source a": "activity; the liveliest",
    "fit --recorded nothing.csv": "parameters; errors; what the data pin down worst; activities",
    "stability": "synapses that move the margin; leading eigenvalues",
}


@pytest.mark.parametrize("said", TITLES)
def test_a_table_that_no_answer_has_is_an_error_before_anything_is_read(said):
    command, *rest = said.split()
    done = CliRunner().invoke(app, [command, "nothing.csv", *rest, "--table", "unheard of"])
    message = " ".join(done.output.split())
    assert done.exit_code == 2 and f"among {TITLES[said]}" in message and "no such file" not in message


def test_json_leaves_what_was_read_on_the_standard_error():
    done = CliRunner().invoke(app, ["influence", *WORM, "--target", "AVAL", "--json"])
    assert done.exit_code == 0 and len(json.loads(done.stdout)) == 300
    assert "3,539  rows read" in done.stderr and "Cook" in done.stderr


def test_all_figures_are_drawn_into_a_folder(tmp_path):
    done = CliRunner().invoke(app, ["influence", *WORM, "--target", "AVAL", "--figure", str(tmp_path)])
    assert done.exit_code == 0 and (tmp_path / "the-strongest-paths.svg").is_file()
    for each in tmp_path.iterdir():
        each.unlink()
    done = CliRunner().invoke(app, ["stability", *WORM, "--figure", str(tmp_path)])
    names = ["if-a-synapse-were-cut.svg", "leading-eigenvalues.svg", "where-the-leading-mode-is.svg"]
    assert done.exit_code == 0 and f"3 figures in {tmp_path}" in done.output.replace("\n", "")
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    assert all("<svg" in (tmp_path / name).read_text() for name in names)


@pytest.mark.parametrize("part", ("nothing", "s"))
def test_a_table_that_is_not_told_from_others_is_an_error_with_their_titles(part):
    done = CliRunner().invoke(app, ["stability", *WORM, "--table", part])
    assert done.exit_code == 2 and "leading eigenvalues; neurons in the leading mode" in " ".join(done.output.split())
