"""The ways in which tables of a connectome are bad: one line that says so, exit code 2, and nothing left behind."""

import contextlib
import dataclasses
import gzip
import re
import sqlite3

import numpy as np
import pandas as pd
import pyarrow.feather
import pytest
import scipy.sparse
import torch
from typer.testing import CliRunner

from retrograde.cli.app import app
from retrograde.connectome import (
    example,
    importance,
    influence,
    matrices,
    memory,
    padding,
    read,
    simulate,
    stimulate,
    tables,
)
from retrograde.connectome.recordings import recordings_of
from retrograde.connectome.tables import Source


@pytest.fixture
def edges():
    return pd.DataFrame({"pre": list("aabbccd"), "post": list("bcacdae"), "count": [4, 6, 1, 2, 3, 5, 2]})


def said(*args):
    """What the command says of bad input, in one line."""
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "300"})
    assert done.exit_code == 2, (done.exit_code, done.output)
    assert "Traceback" not in done.output and done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error "), lines
    return lines[0]


def of_a_command(table, tmp_path, *args):
    table.to_csv(tmp_path / "edges.csv", index=False)
    return said("influence", tmp_path / "edges.csv", *(args or ("--source", "a")))


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        (lambda e: e.drop(columns="pre"), (), "ids found among post, count; name it by --column pre=..."),
        (
            lambda e: e.drop(columns="count"),
            (),
            "found among pre, post; --weights rows takes",
        ),
        (lambda e: e.rename(columns={"post": "pre"}), (), "columns that are there twice: pre"),
        (lambda e: e.assign(pre=[720575940600000000.5, 1, 2, 3, 4, 5, 6]), (), "ids in floating-point numbers"),
        (lambda e: e.assign(count=-e["count"]), (), "7 of 7 counts are negative"),
        (lambda e: e.assign(count=[1, 2, 3, 4, 5, 6, -7]), (), "1 of 7 counts are negative"),
        (lambda e: e.assign(count=[1, 2, 3, None, 5, 6, 7]), (), "1 of 7 numbers are missing"),
        (lambda e: e.assign(count=list("1234xyz")), (), "count: expected numbers"),
        (lambda e: e.iloc[:0], (), "edges.csv, pre: expected at least one row, got none"),
        (lambda e: e, ("--source", "a", "--threshold", "100"), "no connection is left at threshold 100"),
        (lambda e: e, ("--source", "aa"), "--source: 1 of 1 ids are not in the connectome: aa; did you mean a?"),
        (lambda e: e, ("--target", "a", "--silence", "q"), "--silence: 1 of 1 ids are not in the connectome"),
        (lambda e: e, ("--source", "a", "--scale", "1"), "the linear network is unstable from 1 on; got 1.0"),
        (lambda e: e, ("--source", "a", "--exclude", *"abcde"), "no connection is left"),
        (lambda e: e, ("--source", "a", "--exclude-transmitter", "gaba"), "no transmitter is told"),
        (lambda e: e, ("--source", "a", "--ids", "nothing.txt"), "nothing.txt: No such file"),
        (lambda e: e, ("--source", "a", "--out", "who.xlsx"), "--out: expected a name that ends in .csv or .parquet"),
        (lambda e: e, ("--source", "a", "--figure", "who.gif"), "--figure: expected a name that ends in .png or"),
        (lambda e: e, ("--source", "a", "--report", "who.pdf"), "--report: expected a name that ends in .html"),
        (lambda e: e, ("--source", "a", "--out", "no/such/who.csv"), "in a folder that is there"),
        (lambda e: e, ("--source", "a", "--example", "worm"), "EDGES, or --example, one of the two; got both"),
        (lambda e: e, ("--by", "colour"), "--by: expected a column of the neurons, id, transmitter; got"),
    ],
)
def test_bad_input_is_one_line(edges, tmp_path, change, args, message):
    assert message in of_a_command(change(edges), tmp_path, *args)
    assert {path.name for path in tmp_path.iterdir()} == {"edges.csv"}


def test_an_example_in_the_place_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "did you mean --example worm?" in said("influence", "worm", "--target", "AVAL")


def test_without_a_table():
    assert "got neither" in said("influence", "--source", "a")


def test_importance_says_the_same(edges, tmp_path):
    edges.to_csv(tmp_path / "edges.csv", index=False)
    here = "importance", tmp_path / "edges.csv", "--source", "a"
    assert "did you mean d?" in said(*here, "--target", "dd")
    assert "a number behind each =" in said(*here, "--target", "d=much")
    assert "--synapses: expected a name that ends in .parquet" in said(*here, "--target", "d", "--synapses", "x.txt")
    assert "unstable from 1 on" in said(*here, "--target", "d", "--scale", "1.5")
    assert "--target: d is there more than once" in said(*here, "--target", "d=1", "d=-1")


# What is left of a file of each format. Half a CSV may be a whole one of fewer rows, which nothing tells; a row cut
# short is told.
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".parquet", ".feather", ".sqlite", ".npz"])
@pytest.mark.parametrize("left", [0.0, 0.5, 0.95])
def test_files_cut_short(tmp_path, suffix, left):
    n = 3000
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"pre": rng.integers(100, 999, n), "post": rng.integers(100, 999, n), "count": 7})
    path = tmp_path / f"edges{suffix}"
    if suffix in (".csv", ".tsv"):
        table.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    elif suffix == ".csv.gz":
        table.to_csv(path, index=False)
    elif suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".feather":
        pyarrow.feather.write_feather(table, path)
    elif suffix == ".sqlite":
        with sqlite3.connect(path) as data:
            table.to_sql("edges", data, index=False)
        data.close()
    else:
        scipy.sparse.save_npz(path, scipy.sparse.random_array((100, 100), density=0.1, rng=rng))
    whole = path.read_bytes()
    cut = int(left * len(whole))
    if suffix in (".csv", ".tsv") and left:
        cut = whole.index(b"\n", cut) + 5  # a row and no count
    path.write_bytes(whole[:cut])
    args = ("--orientation", "post_pre") if suffix == ".npz" else ()
    assert f"edges{suffix}" in said("influence", path, "--source", "100", *args)


def test_a_source_that_reaches_no_target(tmp_path):
    # d and e are driven, and lead nowhere else.
    table = pd.DataFrame({"pre": list("abcd"), "post": list("babe"), "count": 1})
    table.to_csv(tmp_path / "edges.csv", index=False)
    done = CliRunner().invoke(app, ["influence", str(tmp_path / "edges.csv"), "--source", "d", "--target", "a"])
    assert done.exit_code == 0 and "exactly 0" in done.stdout
    done = CliRunner().invoke(app, ["importance", str(tmp_path / "edges.csv"), "--source", "d", "--target", "a"])
    assert done.exit_code == 0 and "No path leads from the sources to the targets" in done.stdout


# --- ids of a text file


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_leading_zeros_are_kept_in_a_text_file(tmp_path, suffix):
    sep = "," if suffix == ".csv" else "\t"
    lines = ["pre,post,count", "007,12,3", "12,7,4", "7,007,5"]
    (tmp_path / f"edges{suffix}").write_text("\n".join(lines).replace(",", sep))
    (tmp_path / f"neurons{suffix}").write_text("\n".join(["id,type", "007,x", "12,y", "7,z"]).replace(",", sep))
    c = read(tmp_path / f"edges{suffix}", tmp_path / f"neurons{suffix}")
    assert list(c.ids) == ["007", "12", "7"] and list(c.neurons["cell_type"]) == ["x", "y", "z"]
    assert list(c.edges["count"][c.edges["post"] == "007"]) == [5]


def test_neurons_without_leading_zeros_meet_edges_with_some(tmp_path):
    (tmp_path / "edges.csv").write_text("pre,post,count\n007,12,3\n12,13,4\n")
    (tmp_path / "neurons.csv").write_text("id,type\n12,y\n13,z\n")
    assert list(read(tmp_path / "edges.csv", tmp_path / "neurons.csv").neurons["cell_type"].fillna("")) == [
        "",
        "y",
        "z",
    ]


def test_ids_of_digits_are_integers_and_zeros_elsewhere_do_no_harm(tmp_path):
    (tmp_path / "edges.csv").write_text("pre,post,count,day\n-7,720575940600000001,3,01\n720575940600000001,0,4,02\n")
    c = read(tmp_path / "edges.csv")
    assert list(c.ids) == [-7, 0, 720575940600000001] and c.ids.dtype == np.int64


def test_leading_zeros_are_seen_where_pieces_of_the_file_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(padding, "_PIECE", 3)
    for width in range(1, 8):  # wherever it comes to lie
        (tmp_path / "edges.csv").write_text(f"pre,post,count\n{'1' * width},2,3\n2,05,4\n")
        assert "05" in read(tmp_path / "edges.csv").ids


def test_names_after_a_block_of_numbers(tmp_path, monkeypatch):
    rows = "".join(f"{i},{i + 1},1\n" for i in range(5_000))
    monkeypatch.setattr(tables, "_BLOCK", 10_000)
    (tmp_path / "edges.csv").write_text(f"pre,post,count\n{rows}AVAL,1,1\n")
    c = read(tmp_path / "edges.csv")
    assert "AVAL" in c.ids and "4999" in c.ids


def test_floats_among_names_that_have_leading_zeros(tmp_path):
    (tmp_path / "edges.csv").write_text("pre,post,count\n007,1.5,3\n12,2.5,4\n")
    with pytest.raises(ValueError, match="ids in floating-point numbers"):
        read(tmp_path / "edges.csv")


def test_ids_of_a_matrix_from_a_file(tmp_path):
    scipy.sparse.save_npz(tmp_path / "W.npz", scipy.sparse.csr_array(np.array([[0, 2.0], [3, 0]])))
    (tmp_path / "ids.txt").write_text("AVAL\nAVBL\n")
    pd.DataFrame({"name": ["AVAL", "AVBL"], "more": 1}).to_csv(tmp_path / "ids.csv", index=False)
    for ids in "ids.txt", "ids.csv":
        args = [tmp_path / "W.npz", "--ids", tmp_path / ids, "--orientation", "post_pre", "--target", "AVAL"]
        done = CliRunner().invoke(app, ["influence", *map(str, args), "--scale", "0.5", "--json"])
        assert done.exit_code == 0 and '"AVBL"' in done.stdout
    assert "expected 2, one for each row" in said(
        "influence", tmp_path / "W.npz", "--ids", _one(tmp_path), "--orientation", "post_pre", "--target", "a"
    )


def _one(tmp_path):
    (tmp_path / "one.txt").write_text("a\n")
    return tmp_path / "one.txt"


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_table_that_memory_would_not_hold(edges, tmp_path, monkeypatch, suffix):
    table = pd.concat([edges] * 1000)
    table.to_csv(tmp_path / "edges.csv", index=False)
    table.to_csv(tmp_path / "edges.csv.gz", index=False)
    table.to_parquet(tmp_path / "edges.parquet")
    monkeypatch.setattr(memory, "available", lambda: 1e6)
    line = said("influence", tmp_path / f"edges{suffix}", "--source", "a")
    assert re.search(r"about [67],\d{3} rows, to read which takes [\d.e+]+ GB of memory; 0.001 GB are free", line), line


def test_a_table_of_neurons_that_memory_would_not_hold(edges, monkeypatch):
    neurons = pd.DataFrame({"id": [f"n{k}" for k in range(50_000)], "type": "T"})
    monkeypatch.setattr(memory, "available", lambda: 1e6)
    with pytest.raises(ValueError, match="neurons: about 50,000 rows, to read which takes"):
        read(edges, neurons)


def test_groups_that_memory_would_not_hold(edges, monkeypatch):
    c = read(edges)
    influence(c, target={"one": ["a"], "other": ["b"]}, scale=0.5)
    monkeypatch.setattr(memory, "available", lambda: 1e2)
    with pytest.raises(ValueError, match=r"target: 2 groups, which with \d neurons take [\d.e-]+ GB of memory; 1e-07"):
        influence(c, target={"one": ["a"], "other": ["b"]}, scale=0.5)


@pytest.mark.parametrize("name", ("W.npz", "W.npy", "full.npz", "array", "sparse", "tensor", "frame"))
def test_a_matrix_that_memory_would_not_hold(name, tmp_path, monkeypatch):
    M = np.zeros((60, 60))
    M[:40, :40] = 1.0
    scipy.sparse.save_npz(tmp_path / "W.npz", scipy.sparse.csr_array(M))
    np.save(tmp_path / "W.npy", M)
    np.savez(tmp_path / "full.npz", W=M)
    given = {"array": M, "sparse": scipy.sparse.csr_array(M), "tensor": torch.from_numpy(M), "frame": pd.DataFrame(M)}
    edges = given.get(name, tmp_path / name)
    assert len(read(edges, orientation="post_pre").edges) == 1600
    monkeypatch.setattr(memory, "available", lambda: 2e5)
    with pytest.raises(ValueError, match=r"about 1,600 connections, to read which takes 0.00024 GB of memory; 0.0002"):
        read(edges, orientation="post_pre")
    if "." in name:
        assert "0.00024 GB" in said("influence", edges, "--orientation", "post_pre", "--source", "0")
    if name.endswith("npz"):
        monkeypatch.setattr(matrices, "available", lambda: 1e3)  # an archive is looked at before it is unpacked
        with pytest.raises(ValueError, match=r"it takes [\d.e-]+ GB of memory; 1e-06 GB are free"):
            read(edges, orientation="post_pre")


def test_what_a_container_or_a_job_may_take_is_less_than_what_is_free(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))

    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert memory.available(tmp_path) == 8_192_000  # no groups
    write("proc/self/cgroup", "7:cpu,cpuacct:/job\n4:hugetlb,memory:/job/step\n0::/pod/box\n")
    assert memory.available(tmp_path) == 8_192_000  # none of memory
    for name, limit, used in (("pod/box", "max", 100), ("pod", 5_000_000, 1_500_000)):
        write(f"sys/fs/cgroup/{name}/memory.max", limit)
        write(f"sys/fs/cgroup/{name}/memory.current", used)
        write(f"sys/fs/cgroup/{name}/memory.stat", "anon 7\ninactive_file 300000\nactive_file 200000\n")
    assert memory.available(tmp_path) == 4_000_000  # the group around it, and the pages of files come back
    write("sys/fs/cgroup/hugetlb,memory/job/memory.limit_in_bytes", 2_000_000)
    write("sys/fs/cgroup/hugetlb,memory/job/memory.usage_in_bytes", 1_400_000)
    write("sys/fs/cgroup/hugetlb,memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 100000\n")
    assert memory.available(tmp_path) == 700_000
    write("sys/fs/cgroup/hugetlb,memory/job/memory.usage_in_bytes", 9_000_000)
    assert memory.available(tmp_path) == 0
    (tmp_path / "sys/fs/cgroup/hugetlb,memory/job/memory.usage_in_bytes").write_text("1_000_000")
    (tmp_path / "sys/fs/cgroup/hugetlb,memory/job/memory.stat").write_text("what is this")
    assert memory.available(tmp_path) == 1_000_000
    (tmp_path / "sys/fs/cgroup/hugetlb,memory/job/memory.limit_in_bytes").write_text("max")
    assert memory.available(tmp_path) == 4_000_000


def test_leading_zeros_are_kept_in_stimuli_targets_and_recordings(tmp_path):
    c = read(pd.DataFrame({"pre": ["007", "12", "7"], "post": ["12", "7", "007"], "count": 1}), weights="fraction")
    (tmp_path / "pulses.csv").write_text("neuron,start,stop,strength\n007,0,1,2\n")
    driven = simulate(c, tmp_path / "pulses.csv", f="identity", wide=True)
    assert driven.iloc[-1][["007", "7"]].tolist() == [2, 0]
    (tmp_path / "types.csv").write_text("cell_type,start,stop,strength\n01,0,1,2\n")
    typed = dataclasses.replace(c, neurons=c.neurons.assign(cell_type=["01", "1", "x"]))
    assert simulate(typed, tmp_path / "types.csv", f="identity", wide=True).iloc[-1][["007", "12"]].tolist() == [2, 0]
    (tmp_path / "recorded.csv").write_text("neuron,activity\n007,0.5\n7,0.25\n")
    (tmp_path / "drive.csv").write_text("neuron,strength\n007,0.5\n")
    recordings = recordings_of(c, tmp_path / "recorded.csv", tmp_path / "drive.csv", None)
    assert recordings.neuron.tolist() == c.index(["007", "7"]).tolist()
    assert recordings.drive[0].tolist() == [0.5, 0, 0]


def test_names_with_blanks_are_one_id_a_line(tmp_path):
    scipy.sparse.save_npz(tmp_path / "W.npz", scipy.sparse.csr_array(np.array([[0, 2.0], [3, 0]])))
    (tmp_path / "ids.txt").write_text("left cell\r\nright cell\n\n")
    args = ["influence", tmp_path / "W.npz", "--ids", tmp_path / "ids.txt", "--orientation", "post_pre", "--json"]
    done = CliRunner().invoke(app, [*map(str, args), "--target", "left cell"])
    assert done.exit_code == 0 and '"right cell"' in done.stdout


@pytest.mark.parametrize("bad", [np.nan, -1, "5", None])
def test_a_threshold_that_is_none(edges, bad):
    with pytest.raises(ValueError, match="threshold: expected a number of at least 0, got"):
        read(edges, threshold=bad)


@pytest.mark.parametrize("bad", ["--5", "²", "5-", "007", "", "1_0", 5.0, True])
def test_ids_that_are_no_integers(bad):
    c = read(pd.DataFrame({"pre": [5, 7], "post": [7, 5], "count": 1}))
    with pytest.raises(ValueError, match="ids: expected integer ids, got"):
        c.index([bad])
    assert c.index(["5", 7, np.int32(5)]).tolist() == [0, 1, 0]


def test_ids_in_another_case_are_suggested():
    c = example("worm")
    for name, meant in (("aval", "AVAL"), ("E3d", "e3D")):
        with pytest.raises(ValueError, match=f"did you mean {meant}"):
            c.index(name)


@pytest.mark.parametrize("bad", ["x", None, [1, 2], np.nan, np.inf])
def test_what_is_given_of_neurons_is_numbers(edges, bad):
    c = read(edges, weights="fraction")
    recorded = pd.DataFrame({"neuron": ["a"], "activity": [0.5]})
    for ask in (
        lambda: importance(c, {"a": bad}, "b"),
        lambda: importance(c, "a", {"b": bad}),
        lambda: simulate(c, {"a": bad}, duration=1),
        lambda: simulate(c, {"a": 1}, duration=1, bias={"a": bad}),
        lambda: stimulate(c, {"a": bad}),
        lambda: recordings_of(c, recorded, {"a": bad}, None),
    ):
        with pytest.raises(
            ValueError, match=r"expected a number for '[ab]', got|1 of [17] numbers are missing, NaN or"
        ):
            ask()


@pytest.mark.parametrize(("name", "sep"), [("edges.csv.gz", ","), ("edges.TSV.GZ", "\t"), ("edges.txt.gz", "\t")])
def test_a_compressed_text_file(tmp_path, name, sep):
    text = "pre,post,count\n007,12,3\n12,7,4\n7,007,5\n".replace(",", sep).encode()
    (tmp_path / name).write_bytes(gzip.compress(text[:20]) + gzip.compress(text[20:]))  # in pieces, as bgzip's are
    c = read(tmp_path / name)
    assert list(c.ids) == ["007", "12", "7"] and c.edges["count"].tolist() == [5, 3, 4]
    assert Source(tmp_path / name, "edges").untyped
    numbers = gzip.compress(text.replace(b"007", b"9"))
    (tmp_path / name).write_bytes(numbers)
    assert read(tmp_path / name).ids.tolist() == [7, 9, 12]


def test_rows_of_a_compressed_text_file_are_estimated(tmp_path):
    rows = "".join(f"{i},{i * 7919 % 100_000},{i % 13}\n" for i in range(300_000))
    path = tmp_path / "edges.csv.gz"
    path.write_bytes(gzip.compress(f"pre,post,count\n{rows}".encode()))
    assert abs(Source(path, "edges")._rows() / 300_000 - 1) < 0.1


@pytest.mark.parametrize("name", ["edges.parquet.gz", "edges.gz"])
def test_what_else_is_compressed_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"pre,post,count\n1,2,3\n"))
    assert "expected .csv or .tsv (.gz too), .parquet" in said("influence", tmp_path / name, "--source", "1")


@pytest.mark.parametrize(
    "data",
    [b"pre,post,count\n1,2,3\n", gzip.compress(b"pre", mtime=0)[:10] + b"nonsense, and more of it"],
    ids=["not at all", "not beyond its head"],
)
def test_what_is_not_compressed_as_it_says(tmp_path, data):
    (tmp_path / "edges.csv.gz").write_bytes(data)
    assert "edges.csv.gz: cannot be read" in said("influence", tmp_path / "edges.csv.gz", "--source", "1")


# --- databases and matrices


@pytest.mark.parametrize("name", ["a#b.sqlite", "a?b.sqlite", "a%20b.db", "a b.sqlite3"])
def test_a_database_of_any_name(edges, tmp_path, name):
    with contextlib.closing(sqlite3.connect(tmp_path / name)) as data:
        edges.to_sql("edges", data, index=False)
    assert len(read(tmp_path / name).edges) == 7
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array, torch.tensor])
def test_a_matrix_that_is_not_finite(bad, kind):
    with pytest.raises(ValueError, match="edges: 1 of 2 entries of the matrix are NaN or infinite"):
        read(kind([[0.0, bad], [1.0, 0.0]]), orientation="post_pre")


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array, torch.tensor])
def test_a_complex_matrix(kind):
    with pytest.raises(ValueError, match="edges: expected a matrix of"):
        read(kind([[0, 1j], [1, 0]]), orientation="post_pre")


def test_a_complex_matrix_in_a_file(tmp_path):
    scipy.sparse.save_npz(tmp_path / "W.npz", scipy.sparse.csr_array(np.array([[0, 1j], [1, 0]])))
    line = said("influence", tmp_path / "W.npz", "--orientation", "post_pre", "--source", "0")
    assert "expected a matrix of real numbers, got complex128" in line


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "edges.csv").write_bytes("pre,post,count\nMüller,b,1\n".encode("latin-1"))
    assert "edges.csv, pre: expected ids as integers or text in UTF-8" in said(
        "influence", tmp_path / "edges.csv", "--source", "b"
    )
