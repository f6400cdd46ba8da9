"""Connectomes from tables, and influence against independent solutions and numbers that other tools compute."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest
import scipy.sparse
import torch
from typer.testing import CliRunner

import retrograde as rg
from retrograde.cli.app import app
from retrograde.connectome import eigenvalues, importance, influence, memory, read, tables
from retrograde.connectome.eigenvalues import largest_real_eigenvalue
from retrograde.connectome.linear import is_factored
from retrograde.connectome.packaged import files

DATA = Path(__file__).parents[2] / "shared" / "data"
WORM = DATA / "celegans_edgelist.csv", DATA / "celegans_meta.csv"
needs_worm = pytest.mark.skipif(not WORM[0].is_file(), reason=f"{WORM[0].name} is not there")


@pytest.fixture
def edges():
    """A small network, not symmetric, with feedback, an autapse, a repeated pair, and a neuron that receives alone."""
    return pd.DataFrame(
        {
            "pre": ["a", "a", "b", "b", "c", "c", "d", "d"],
            "post": ["b", "c", "c", "c", "a", "d", "d", "e"],
            "count": [4, 6, 1, 2, 5, 3, 2, 7],
        }
    )


@pytest.fixture
def neurons():
    return pd.DataFrame(
        {"root_id": ["e", "d", "c", "b", "a", "unknown"], "top_nt": ["", "GABA", "ACH", "gaba", None, "ACH"]}
    ).assign(cell_type=list("uvwxyz"))


def dense(c):
    return c.W.dense().detach().numpy()


def brute(M, b, scale, eigenvalue=None):
    """(I - αM)⁻¹ b."""
    alpha = scale / (np.linalg.eigvals(M).real.max() if eigenvalue is None else eigenvalue)
    return np.linalg.solve(np.eye(len(M)) - alpha * M, b)


def values(table, c):
    return table.set_index("id").loc[list(c.ids), "influence"].to_numpy()


def test_rows_of_one_pair_are_summed_before_the_threshold(edges):
    c = read(edges, threshold=3)
    assert list(c.ids) == list("abcde") and len(c.edges) == 6
    want = np.zeros((5, 5))
    for post, pre, count in ((1, 0, 4), (2, 0, 6), (2, 1, 3), (0, 2, 5), (3, 2, 3), (4, 3, 7)):
        want[post, pre] = count
    assert (dense(c) == want).all()
    assert dict(c.summary.itertuples(index=False))["connections dropped, count below 3"] == 1
    assert len(read(edges, threshold=6)) == 4  # b has no connection left


def test_the_fraction_is_of_what_is_left_after_the_threshold(edges):
    M = dense(read(edges, weights="fraction", threshold=3))
    received = M.sum(1)
    assert np.allclose(received[received > 0], 1) and np.isclose(M[2, 0], 6 / 9)


def test_signs_come_from_the_transmitter_of_the_neuron_that_sends(edges, neurons):
    c = read(edges, neurons, signs={"gaba": -1})
    M = dense(c)
    assert (M[:, 1] <= 0).all() and (M[:, 3] <= 0).all() and M[:, [0, 2]].min() == 0 and M[2, 1] == -3
    assert list(c.neurons["cell_type"]) == list("yxwvu")
    assert (dense(read(edges, neurons)) >= 0).all()
    shiu = dense(read(edges, neurons, signs="shiu-2024"))
    assert (shiu == M).all()


def test_signs_from_a_column_and_transmitters_from_the_edges(edges):
    signed = edges.assign(sign=[1, 1, -1, -1, 1, 1, 1, 1])
    assert dense(read(signed, signs="column"))[2, 1] == -3
    told = edges.assign(nt_type=["ACH", "ACH", "GABA", "GABA", "GLUT", "GLUT", "ACH", "ACH"])
    assert dense(read(told, signs={"gaba": -1, "glutamate": -1}))[0, 2] == -5
    disagree = edges.assign(sign=[1, 1, -1, 1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="different signs"):
        read(disagree, signs="column")


def test_excluded_and_silenced_neurons(edges, neurons):
    assert list(read(edges, exclude=["d"]).ids) == ["a", "b", "c"]
    silent = read(edges, silence=["c"])
    assert len(silent) == 5 and (dense(silent)[:, 2] == 0).all()
    assert (dense(read(edges, neurons, exclude_transmitters=["gaba"]))[:, 1] == 0).all()


def test_a_list_of_pairs_alone_counts_rows(tmp_path, edges):
    pairs = pd.concat([edges[["pre", "post"]]] * 2)[:11]
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    c = read(tmp_path / "pairs.csv", weights="rows", threshold=2)
    want = read(pairs.assign(count=1), threshold=2)
    pd.testing.assert_frame_equal(c.edges, want.edges)
    named = read(
        pairs.assign(count=7).rename(columns={"pre": "x", "post": "y"}),
        columns={"pre": "x", "post": "y"},
        weights="rows",
    )
    assert dense(named).sum() == len(pairs)


def test_a_fraction_is_of_what_is_left_and_a_norm_of_what_was_there_before_the_exclusion():
    """ConnectomeInfluenceCalculator's order: the threshold; count over the sum per post; transmitters dropped."""
    table = pd.DataFrame({"pre": list("abcda"), "post": list("eeeeb"), "count": [6, 3, 9, 2, 4]})
    about = pd.DataFrame({"root_id": list("abcde"), "top_nt": ["ach", "ach", "gaba", "ach", "ach"]})
    how = {"threshold": 3, "exclude_transmitters": "gaba"}
    of_e = {"a": 6, "b": 3, "c": 9}  # d is below the threshold
    norm, fraction = (read(table, about, weights=each, **how).edges.set_index("pre") for each in ("norm", "fraction"))
    norm, fraction = (each.loc[each["post"] == "e", "weight"].to_dict() for each in (norm, fraction))
    assert norm == {k: of_e[k] / 18 for k in "ab"} and fraction == {k: of_e[k] / 9 for k in "ab"}
    # As a column of it would be.
    as_column = table.assign(norm=[6 / 18, 3 / 18, 9 / 18, 0.0, 1.0])
    assert read(as_column, about, weights="norm", **how).edges["weight"].tolist() == pytest.approx([1, 6 / 18, 3 / 18])
    assert read(table, about, weights="norm", **how).edges["weight"].tolist() == pytest.approx([1, 6 / 18, 3 / 18])
    left = read(table, weights="norm", exclude=["c"], threshold=3).edges
    assert left.loc[left["post"] == "e", "weight"].tolist() == pytest.approx([6 / 18, 3 / 18])


CODEX = {"pre": "pre_root_id", "post": "post_root_id", "count": "syn_count"}
MALE_CNS = {"pre": "body_pre", "post": "body_post", "count": "weight"}
NEUPRINT = {"pre": "bodyId_pre", "post": "bodyId_post", "count": "weight"}
ZENODO = {"pre": "pre_pt_root_id", "post": "post_pt_root_id", "count": "syn_count"}
SHIU = {"pre": "Presynaptic_ID", "post": "Postsynaptic_ID", "count": "Connectivity"}


UPSTREAM = {"pre": "upstream_id", "post": "downstream_id", "count": "n_syn"}


@pytest.mark.parametrize("names", (CODEX, MALE_CNS, NEUPRINT, ZENODO, SHIU, UPSTREAM), ids=lambda names: names["pre"])
def test_column_names_that_are_recognised(edges, names):
    assert (dense(read(edges.rename(columns=names))) == dense(read(edges))).all()


def test_neuprints_table_of_neurons(edges):
    ids = sorted({*edges["pre"], *edges["post"]})
    exported = pd.DataFrame({"bodyId": ids[::-1], "type": [f"T{k}" for k in range(len(ids))][::-1], "instance": "T_R"})
    exported["somaSide"], exported["predictedNt"] = "R", "acetylcholine"
    c = read(edges.rename(columns=NEUPRINT), exported)
    told = c.neurons.set_index("id").loc[ids]
    assert told["cell_type"].tolist() == [f"T{k}" for k in range(len(ids))] and set(told["side"]) == {"R"}
    assert set(told["instance"]) == {"T_R"} and set(told["transmitter"]) == {"acetylcholine"}


def test_column_names_that_are_given(edges):
    odd = edges.rename(columns={"pre": "from", "post": "to", "count": "how many"})
    c = read(odd, columns={"pre": "from", "post": "to", "count": "how many"})
    assert (dense(c) == dense(read(edges))).all()


def test_every_format_reads_the_same(edges, neurons, tmp_path):
    want = dense(read(edges, neurons, signs="worm-gaba"))
    edges.to_csv(tmp_path / "e.csv", index=False)
    edges.to_csv(tmp_path / "e.tsv", index=False, sep="\t")
    edges.to_parquet(tmp_path / "e.parquet")
    pa.feather.write_feather(edges, tmp_path / "e.feather")
    with sqlite3.connect(tmp_path / "e.sqlite") as data:
        edges.to_sql("edgelist_simple", data, index=False)
        neurons.to_sql("meta", data, index=False)
    for name in ("e.csv", "e.tsv", "e.parquet", "e.feather", "e.sqlite"):
        table = tmp_path / name if name == "e.sqlite" else neurons
        assert (dense(read(tmp_path / name, table, signs="worm-gaba")) == want).all(), name
    assert (dense(read(pa.Table.from_pandas(edges), neurons, signs="worm-gaba")) == want).all()


def test_a_matrix_says_its_orientation(edges, tmp_path):
    c = read(edges)
    M = dense(c)
    scipy.sparse.save_npz(tmp_path / "w.npz", scipy.sparse.csr_array(M))
    for given in (M, scipy.sparse.csr_array(M), torch.from_numpy(M), tmp_path / "w.npz"):
        assert (dense(read(given, orientation="post_pre", ids=list("abcde"))) == M).all()
        assert (dense(read(given, orientation="pre_post")) == M.T).all()
        with pytest.raises(ValueError, match="orientation: expected 'post_pre'"):
            read(given)


@pytest.mark.parametrize("as_text", (False, True))
def test_long_ids_keep_all_their_digits(edges, as_text, tmp_path):
    long = {name: 720575940621039145 + k for k, name in enumerate("abcde")}
    table = edges.replace({"pre": long, "post": long})
    table.to_csv(tmp_path / "long.csv", index=False, quoting=2 if as_text else 0)
    if as_text:
        table = table.astype({"pre": str, "post": str})
    for given in (table, tmp_path / "long.csv"):
        c = read(given)
        assert c.ids.dtype == np.int64 and list(c.ids) == list(long.values())
        assert list(c.index(["720575940621039147", 720575940621039145])) == [2, 0]


ROWS = {"orientation": "post_pre"}


@pytest.mark.parametrize(
    ("change", "how", "said"),
    [
        (lambda e: e.drop(columns="pre"), {}, "no column of presynaptic ids found among post, count"),
        (lambda e: e.drop(columns="count"), {}, "no column of counts or weights"),
        (lambda e: e, {"weights": "weight"}, "has no column that is a 'weight'"),
        (lambda e: e.assign(pre=np.arange(8.0)), {}, "ids in floating-point numbers"),
        (lambda e: e.assign(pre=["7.20e+17"] * 8), {}, "have lost digits"),
        (lambda e: e.assign(pre=[None, *"aabbccd"]), {}, "1 of 8 ids are missing"),
        (lambda e: e.assign(count=-e["count"]), {}, "8 of 8 counts are negative"),
        (lambda e: e.assign(count=np.nan), {}, "numbers are"),
        (lambda e: e.assign(count="many"), {}, "expected numbers"),
        (lambda e: e, {"threshold": 100}, "no connection is left at threshold 100"),
        (lambda e: e, {"weights": "norms"}, "weights: expected one of count.* did you mean norm?"),
        (lambda e: e, {"exclude": ["z"]}, "exclude: 1 of 1 ids are not in the connectome: z"),
        (lambda e: e, {"signs": {"gaba": -1}}, "no transmitter is told"),
        (lambda e: e, {"signs": "shiu"}, "signs: expected a mapping .* did you mean shiu-2024?"),
        (lambda e: e, {"columns": {"pre": "nothing"}}, "has no column 'nothing'"),
        (lambda e: e, {"columns": {"prae": "pre"}}, "expected roles among"),
        (lambda e: e, {"orientation": "post_pre"}, "orientation: expected None for an edge list"),
        (lambda e: e.assign(sign=1), {"weights": "sign", "signs": "column"}, "weights: expected one of count"),
        (lambda e: e.rename(columns={"count": "input_fraction"}), {"weights": "fraction"}, "and no counts"),
        (lambda e: e.assign(sign=[1, 1, -1, -1, 0, 2, 1, 1]), {"signs": "column"}, "2 of 8 signs are neither"),
        (lambda e: e.assign(pre=["", *"aabbccd"]), {}, "1 of 8 ids are empty"),
        (lambda e: e.assign(pre=["9" * 20] * 8, post="1"), {}, "no 64-bit integer holds"),
        (lambda e: e.assign(pre=np.uint64(2**63)), {}, "no 64-bit integer holds"),
        (lambda e: e.assign(pre=1, post=2), {"exclude": [2**63]}, "exclude: expected ids that 64-bit"),
        (lambda e: e, {"exclude_transmitters": "gaba"}, "exclude_transmitters: no transmitter is told"),
        (lambda e: e.assign(nt="ACH"), {"signs": {"GABBA": -1}}, "is 'GABBA'; there are acetylcholine"),
        (lambda e: e.assign(nt="ACH"), {"exclude_transmitters": "acetyl"}, "'acetyl'; .* did you mean acetylcholine?"),
        (lambda e: e, {"ids": ["a", "b"]}, "ids: expected None for an edge list"),
        (lambda e: -np.eye(2), {**ROWS, "weights": "fraction"}, "2 of 2 counts are negative"),
        (lambda e: -np.eye(2), {**ROWS, "weights": "norm"}, "2 of 2 counts are negative"),
        (lambda e: np.eye(2), {**ROWS, "weights": "weight"}, "the matrix has no column that is a 'weight'"),
        (lambda e: np.eye(2), {**ROWS, "ids": [1.0, 2.0]}, "ids in floating-point numbers"),
        (lambda e: np.eye(2), {**ROWS, "ids": ["a", "a"]}, "ids: 1 of 2 are there more than once"),
        (lambda e: np.eye(2), {**ROWS, "ids": ["a", 1]}, "ids: expected integers or text"),
        (lambda e: np.ones((2, 3)), {"orientation": "post_pre"}, "expected a square matrix"),
    ],
)
def test_bad_tables_are_said(edges, change, how, said):
    with pytest.raises(ValueError, match=said):
        read(change(edges), **how)


def test_bad_files_are_said(edges, tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing.csv")
    edges.to_parquet(tmp_path / "whole.parquet")
    (tmp_path / "short.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"short\.parquet: cannot be read"):
        read(tmp_path / "short.parquet")
    scipy.sparse.save_npz(tmp_path / "short.npz", scipy.sparse.eye_array(50, format="csr"))
    (tmp_path / "short.npz").write_bytes((tmp_path / "short.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"short\.npz: expected a sparse matrix"):
        read(tmp_path / "short.npz", orientation="post_pre")
    (tmp_path / "edges.xyz").write_text("pre,post\n")
    with pytest.raises(ValueError, match=r"expected \.csv"):
        read(tmp_path / "edges.xyz")
    (tmp_path / "twice.csv").write_text("pre,post,count,count\na,b,1,2\n")
    with pytest.raises(ValueError, match="there twice: count"):
        read(tmp_path / "twice.csv")
    with pytest.raises(TypeError, match="edges: expected"):
        read(3)


def test_bad_neuron_tables_are_said(edges, neurons):
    with pytest.raises(ValueError, match="cannot match"):
        read(edges, neurons.assign(root_id=range(6)))
    with pytest.raises(ValueError, match="1 of 6 ids are there more than once"):
        read(edges, neurons.assign(root_id=list("eecbax")))
    with pytest.raises(ValueError, match="no column of ids"):
        read(edges, neurons.rename(columns={"root_id": "name of it"}))
    with pytest.raises(ValueError, match="none of its 6 ids is among the 5 of the edges"):
        read(edges, neurons.assign(root_id=list("uvwxyz")))


def test_the_threshold_is_for_the_absolute_value():
    M = np.array([[0.0, -5.0], [2.0, 0.0]])
    assert (dense(read(M, orientation="post_pre", threshold=3)) == [[0, -5], [0, 0]]).all()


def test_one_transmitter_may_be_excluded_by_its_name(edges, neurons):
    one, several = (read(edges, neurons, exclude_transmitters=given) for given in ("GABA", ["gaba"]))
    assert (dense(one) == dense(several)).all() and len(one.edges) == 4


def test_the_summary_tells_who_is_in_one_table_alone(edges, neurons):
    c = read(edges, neurons[neurons["root_id"] != "b"], signs={"gaba": -1})
    told = dict(c.summary.itertuples(index=False))
    assert told["neurons not in the neuron table"] == 1
    assert told["rows of the neuron table without a connection"] == 1
    assert told["neurons without a transmitter"] == 3
    assert "neurons without a transmitter" not in set(read(edges, neurons).summary["what"])
    alone = dict(read(np.diag([1.0, 0, 0]), orientation="post_pre").summary.itertuples(index=False))
    assert alone["rows of the matrix without a connection"] == 2


def test_the_transmitters_that_edges_tell_are_voted_on_by_count(edges):
    told = edges.assign(nt_type=[None, "ACH", "GABA", "acetylcholine", "GABA", "ACH", "", " "])
    c = read(told, signs={"gaba": -1})
    assert list(c.neurons["transmitter"]) == ["acetylcholine", "acetylcholine", "gaba", "", ""]
    same = read(told.astype({"nt_type": "category"}), signs={"gaba": -1})
    assert list(same.neurons["transmitter"]) == list(c.neurons["transmitter"])


def test_neuron_tables_of_categories_and_with_two_columns_of_ids(edges, neurons):
    want = dense(read(edges, neurons, signs={"gaba": -1}))
    odd = neurons.astype({"top_nt": "category"}).assign(id=range(6))
    c = read(edges, odd, signs={"gaba": -1}, columns={"id": "root_id"})
    assert (dense(c) == want).all() and list(c.neurons["id"]) == list("abcde")


def test_a_role_of_both_tables_is_looked_for_in_each(edges, neurons):
    want = dense(read(edges, neurons, signs={"gaba": -1}))
    odd = neurons.rename(columns={"top_nt": "speaks"})
    assert (dense(read(edges, odd, signs={"gaba": -1}, columns={"transmitter": "speaks"})) == want).all()
    told = edges.assign(speaks=["ACH", "ACH", "GABA", "GABA", "ACH", "ACH", "GABA", "GABA"])
    named = {"transmitter": "speaks"}
    assert (dense(read(told, signs={"gaba": -1}, columns=named)) == want).all()
    with pytest.raises(ValueError, match="has no column 'nothing'"):
        read(edges, neurons, columns={"transmitter": "nothing"})


def test_ids_with_leading_zeros_stay_text(edges, neurons):
    some = {"a": "007", "b": "7", "c": "12", "d": "13", "e": "14"}
    c = read(edges.replace({"pre": some, "post": some}), neurons.replace({"root_id": some}), signs={"gaba": -1})
    assert set(c.ids) == set(some.values()) and c.index("007") != c.index("7")
    c = read(pd.DataFrame({"pre": ["1", "2"], "post": ["02", "1"], "count": 1}))
    assert list(c.ids) == ["02", "1", "2"]
    c = read(np.eye(2), orientation="post_pre", ids=["1", "2"])
    assert list(c.ids) == [1, 2]


def test_influence_of_sources_and_on_targets_against_a_dense_solve(edges, neurons):
    c = read(edges, neurons, signs={"gaba": -1})
    M = dense(c)
    b = np.array([1.0, 0, 0, 1, 0])
    assert np.allclose(values(influence(c, source=["a", "d"], scale=0.7), c), brute(M, b, 0.7), atol=1e-12)
    assert np.allclose(values(influence(c, target=["a", "d"], scale=0.7), c), brute(M.T, b, 0.7), atol=1e-12)
    both = influence(c, source=["a", "b"], target=["e"], scale=0.7)
    assert set(both["id"]) == {"a", "b"}
    whole = influence(c, target=["e"], scale=0.7).set_index("id")["influence"]
    assert all(np.isclose(row.influence, whole[row.id]) for row in both.itertuples())


def test_groups_of_sources_and_of_targets(edges):
    c = read(edges)
    M = dense(c)
    table = influence(c, source={"one": ["a", "b"], "two": ["d"]}, target={"x": ["c"], "y": ["e", "a"]}, scale=0.6)
    G = np.linalg.inv(np.eye(5) - 0.6 / np.linalg.eigvals(M).real.max() * M)
    assert np.allclose(table.loc["one"], [G[2, [0, 1]].sum(), G[[4, 0]][:, [0, 1]].sum()])
    assert np.allclose(table.loc["two"], [G[2, 3], G[[4, 0], 3].sum()])
    columns = influence(c, source={"one": ["a", "b"], "two": ["d"]}, scale=0.6).set_index("id")
    assert np.allclose(columns.loc[list("abcde"), "one"], G[:, [0, 1]].sum(1))


def test_silencing_holds_the_scale_unless_a_preset_computes_it_anew(edges):
    c = read(edges)
    M = dense(c)
    cut, b = M.copy(), np.eye(5)[0]
    cut[:, 1] = 0
    whole = np.linalg.eigvals(M).real.max()
    held = influence(c, source="a", silence=["b"], scale=0.9)
    assert np.allclose(values(held, c), brute(cut, b, 0.9, whole))
    anew = influence(c, source="a", silence=["b"], scale=0.9, preset="cic-2026")
    assert np.allclose(values(anew, c), brute(cut, b, 0.9)) and not np.allclose(values(anew, c), values(held, c))
    exempt = influence(c, source=["b"], silence=["b"], scale=0.9)
    assert np.allclose(values(exempt, c), brute(M, np.eye(5)[1], 0.9))


def test_old_presets_scale_only_what_is_too_large(edges):
    small = read(edges.assign(count=0.01 * edges["count"]))
    M = dense(small)
    assert influence(small, source="a", preset="influencer-R").attrs["alpha"] == 1
    assert np.allclose(values(influence(small, "a", preset="banc-paper"), small), brute(M, np.eye(5)[0], 1, 1))


def test_adjusted_scores_and_order(edges):
    c = read(edges)
    table = influence(c, source="d", scale=0.5)
    assert (table["influence"].abs().diff().dropna() <= 0).all()
    for row in table.itertuples():
        assert np.isclose(row.adjusted, (np.log(row.influence) + 24) if row.influence > 0 else 0)
    assert table["is_source"].sum() == 1 and (table["influence"] >= 0).all()
    assert set(table.loc[table["influence"] == 0, "id"]) == {"a", "b", "c"}  # d reaches none of them


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "got neither"),
        ({"source": []}, "source: expected at least one id"),
        ({"source": ["aa"]}, "not in the connectome: aa"),
        ({"source": "a", "scale": 1.0}, "scale: expected 0 < scale < 1"),
        ({"source": "a", "preset": "cic-1999"}, "preset: expected one of cic-2026"),
        ({"source": "a", "silence": ["q"]}, "silence: 1 of 1"),
        ({"source": {"one": "a", "two": "b"}, "silence": ["b"]}, "silence: expected none of the sources"),
        ({"source": {}}, "source: expected at least one group"),
    ],
)
def test_bad_questions_are_said(edges, how, said):
    with pytest.raises(ValueError, match=said):
        influence(read(edges), **how)


def test_a_network_without_feedback_is_not_scaled_up():
    with pytest.raises(ValueError, match="without feedback"):
        influence(read(pd.DataFrame({"pre": ["a", "b"], "post": ["b", "c"], "count": [1, 2]})), source="a")


def test_unknown_ids_are_told_with_the_nearest(edges):
    c = read(edges.replace({"a": "AVAL", "b": "AVAR"}))
    with pytest.raises(ValueError, match=r"did you mean AVA[LR]"):
        influence(c, source="AVAK")


@pytest.mark.parametrize("worm", [pytest.param(WORM, marks=needs_worm), files("worm")], ids=["its own", "ours"])
def test_the_numbers_of_the_method_of_the_calculator_for_the_worm(worm):
    c = read(*worm)
    found = influence(c, source=["ADAL", "ADAR"], scale=0.5)
    x = found.set_index("id")["influence"]
    assert abs(found.attrs["eigenvalue"] - 106.083430) < 1e-6
    want = {"ADAL": 1.02972185, "ADAR": 1.004604, "AVBR": 0.19890829, "AVAR": 0.12133068, "AVBL": 0.08618064}
    assert all(abs(x[name] - value) < 1e-6 for name, value in want.items())
    assert abs(x.sum() - 3.78386721) < 1e-6 and (x == 0).sum() == 30
    strong = read(*worm, threshold=5)
    assert len(strong) == 289 and len(strong.edges) == 1218
    for weights, eigenvalue in (("count", 93.712577), ("fraction", 1)):
        some = influence(read(*worm, threshold=5, weights=weights), source="ADAL", scale=0.5)
        assert abs(some.attrs["eigenvalue"] - eigenvalue) < 1e-6


@needs_worm
def test_the_numbers_of_the_calculators_own_transmitters_and_norms():
    signed = influence(read(*WORM, signs={"gaba": -1}), source=["ADAL", "ADAR"], scale=0.5)
    assert abs(signed.attrs["eigenvalue"] - 104.902183) < 1e-6
    assert abs(signed.set_index("id").loc["AVBR", "influence"] - 0.20161271) < 1e-6
    some = influence(read(*WORM, threshold=5, weights="norm"), source="ADAL", scale=0.5)
    assert abs(some.attrs["eigenvalue"] - 0.798995) < 1e-6


@pytest.mark.parametrize("loop", (0, 4))
def test_the_eigenvalue_of_a_large_network_that_leads_one_way(loop):
    rng = np.random.default_rng(0)
    n = 3000
    pre, post = np.sort(rng.choice(n, (2, 20 * n)), axis=0)
    forward = pd.DataFrame({"pre": pre, "post": post, "count": rng.integers(1, 30, 20 * n)})[pre < post]
    back = pd.DataFrame({"pre": [n, n + 1], "post": [n + 1, n], "count": loop})
    c = read(pd.concat([forward, back]))
    if loop:
        assert abs(largest_real_eigenvalue(c.W.bind()) - loop) < 1e-12
    else:
        assert largest_real_eigenvalue(c.W.bind()) == 0
        with pytest.raises(ValueError, match="without feedback"):
            influence(c, source=[pre.min()])


@pytest.mark.parametrize("small", (2000, 10))  # neurons of a component that is decomposed: all of them, or all but two
@pytest.mark.parametrize("leader", range(6))
def test_the_eigenvalue_is_that_of_the_whole_matrix(small, leader, monkeypatch):
    monkeypatch.setattr("retrograde.connectome.eigenvalues.SMALL", small)
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=(k, k)) for k in (1, 1, 4, 7, 42, 50)]
    parts[leader] += 20 * np.eye(len(parts[leader]))  # where the largest one is
    M = np.triu(rng.normal(size=(105, 105)), 1)
    where = np.cumsum([0, 1, 1, 4, 7, 42])
    for first, part in zip(where, parts, strict=True):
        M[first : first + len(part), first : first + len(part)] = part
    mixed = rng.permutation(105)
    c = read(signed_table(M[mixed][:, mixed]), weights="weight")
    assert largest_real_eigenvalue(c.W.bind()) == pytest.approx(np.linalg.eigvals(M).real.max(), rel=1e-8)


def test_arnoldi_looks_at_one_component_alone():
    rng = np.random.default_rng(2)
    M = np.triu(rng.normal(size=(90, 90)))
    M[:40, :40], M[40:, 40:] = 5 + rng.normal(size=(40, 40)), rng.normal(size=(50, 50))
    A, first = scipy.sparse.csr_array(M), np.arange(90) < 40
    assert eigenvalues._by_arnoldi(A, first) == pytest.approx(np.linalg.eigvals(M[:40, :40]).real.max(), rel=1e-8)
    assert eigenvalues._by_arnoldi(A, ~first) == pytest.approx(np.linalg.eigvals(M[40:, 40:]).real.max(), rel=1e-8)


def test_an_eigenvalue_that_is_not_found_is_told(edges, monkeypatch):
    def fails(*args, **kwargs):
        raise scipy.sparse.linalg.ArpackNoConvergence("No convergence", np.empty(0), np.empty((5, 0)))

    monkeypatch.setattr("retrograde.connectome.eigenvalues.SMALL", 1)
    monkeypatch.setattr("scipy.sparse.linalg.eigs", fails)
    with pytest.raises(rg.ConvergenceError, match="Arnoldi"):
        influence(read(edges), "a")


def signed_table(M):
    post, pre = np.nonzero(M)
    return pd.DataFrame({"pre": pre, "post": post, "weight": M[post, pre]})


UNSTABLE = {"pre": ["e", "e", "i"], "post": ["e", "i", "e"], "weight": [2.0, 2.0, -1.5]}


def test_linear_networks_that_are_unstable_are_refused():
    c = read(pd.DataFrame(UNSTABLE), weights="weight")
    assert influence(c, "e", scale=0.9).attrs["eigenvalue"] == pytest.approx(1)
    for call in (
        lambda: influence(c, "e", silence=["i"], scale=0.9),
        lambda: importance(c, "e", "e", silence=["i"], scale=0.9),
        lambda: importance(c, "e", "e", scale=None),
    ):
        with pytest.raises(ValueError, match="linear network is unstable"):
            call()
    assert importance(c, "e", "e", scale=None, f="tanh").reward > 0
    held = influence(c, "e", silence=["i"], scale=0.4).set_index("id")["influence"]
    assert held["e"] == pytest.approx(1 / (1 - 0.8))


def test_exact_effects_without_a_stable_state_are_nan():
    c = read(pd.DataFrame(UNSTABLE), weights="weight")
    table = importance(c, "e", "e", scale=0.9, exact=2).neurons.set_index("id")
    assert np.isnan(table.loc["i", "silencing_exact"]) and np.isnan(table.loc["i", "flipping_exact"])
    assert np.isfinite(table.loc["e", "silencing_exact"])


def test_one_adjoint_is_every_neurons_own_solve():
    c = read(*files("worm"))
    on = influence(c, target=["AVAL"], scale=0.9).set_index("id")["influence"]
    G = np.linalg.inv(np.eye(len(c)) - 0.9 / 106.08342967543872 * dense(c))
    (place,) = c.index("AVAL")
    assert np.abs(on.loc[list(c.ids)].to_numpy() - G[place]).max() < 1e-9


def test_large_networks_take_the_iterative_way(monkeypatch):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"pre": rng.integers(80, size=900), "post": rng.integers(80, size=900)}).assign(count=1.0)
    c = read(table)
    want = values(influence(c, source=[3], scale=0.8), c), values(influence(c, target=[3], scale=0.8), c)
    for where in ("eigenvalues", "linear"):
        monkeypatch.setattr(f"retrograde.connectome.{where}.SMALL", 10)
    c = read(table)  # whose eigenvalue is not known yet
    assert not is_factored(rg.Recurrence(c.W.bind(), "identity"))
    found = influence(c, source=[3], scale=0.8)
    assert np.allclose(values(found, c), want[0], rtol=1e-9)
    assert np.allclose(values(influence(c, target=[3], scale=0.8), c), want[1], rtol=1e-9)


@pytest.mark.parametrize("question", ("source", "target"))
def test_what_no_path_leads_to_is_exactly_0(edges, monkeypatch, question):
    c = read(edges, silence=["c"])
    noise = lambda net, b: (np.full(b.shape, 1e-17), {"residual": 0.0, "steps": 1, "solver": ""})
    monkeypatch.setattr("retrograde.connectome.influences.states", noise)
    monkeypatch.setattr("retrograde.connectome.influences.adjoints", noise)
    monkeypatch.setattr(
        "retrograde.connectome.influences.scaled", lambda c, *_: (rg.Network(c.W, "identity"), 1.0, 1.0)
    )
    reached = influence(c, **{question: ["b"]}).query("influence != 0")["id"]
    assert set(reached) == ({"b", "c"} if question == "source" else {"a", "b"})


def test_the_exact_effects_in_a_network_that_plain_iteration_does_not_solve():
    rng = np.random.default_rng(0)
    c = read(signed_table(-rng.random((12, 12)) * 2), weights="weight")
    found = importance(c, [0], [5], f="tanh", scale=None, exact=2)
    for row in found.neurons.head(2).itertuples():
        W = torch.from_numpy(silenced(dense(c), row.id))
        x = rg.steady_state(W, torch.eye(12, dtype=torch.float64)[0], "tanh").x
        assert row.silencing_exact == pytest.approx(float(x[5]) - found.reward, abs=1e-9)


def test_json_has_null_for_what_is_missing(edges, tmp_path):
    edges.to_csv(tmp_path / "edges.csv", index=False)
    args = ["importance", tmp_path / "edges.csv", "--source", "a", "--target", "e", "--exact", 1, "--json"]
    done = CliRunner().invoke(app, list(map(str, args)))

    def refuse(constant):
        raise AssertionError(constant)

    rows = json.loads(done.stdout, parse_constant=refuse)
    assert rows[0]["silencing_exact"] is not None and rows[1]["silencing_exact"] is None


def test_ids_are_shown_as_they_are(edges, tmp_path):
    edges.replace({"a": "[red]a[/x]"}).to_csv(tmp_path / "edges.csv", index=False)
    done = run(tmp_path / "edges.csv", "--source", "[red]a[/x]")
    assert done.exit_code == 0 and done.output.count("[red]a[/x]") == 2


def run(*args):
    return CliRunner().invoke(app, ["influence", *map(str, args)])


def test_the_command(edges, neurons, tmp_path):
    edges.to_csv(tmp_path / "edges.csv", index=False)
    neurons.to_parquet(tmp_path / "neurons.parquet")
    here = tmp_path / "edges.csv", "--neurons", tmp_path / "neurons.parquet", "--scale", 0.5
    done = run(*here, "--target", "c", "--signs", "gaba=-1", "--out", tmp_path / "who.csv")
    assert done.exit_code == 0 and "every neuron's on c" in done.output
    written = pd.read_csv(tmp_path / "who.csv")
    want = influence(read(edges, neurons, signs={"gaba": -1}), target="c", scale=0.5)
    assert list(written["id"]) == list(want["id"]) and np.allclose(written["influence"], want["influence"])
    done = run(*here, "--source", "a", "--json", "--top", 2)
    assert [row["id"] for row in json.loads(done.stdout)] == ["a", "c"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--source", "nobody"], "not in the connectome"),
        ([], "got neither"),
        (["--source", "a", "--out", "who.xlsx"], ".csv or .parquet"),
        (["--source", "a", "--signs", "gaba=minus"], "--signs"),
        (["--source", "a", "--column", "pre"], "--column: expected NAME=VALUE"),
    ],
)
def test_the_command_exits_2_on_bad_input(edges, tmp_path, args, said):
    edges.to_csv(tmp_path / "edges.csv", index=False)
    done = run(tmp_path / "edges.csv", *args)
    assert done.exit_code == 2 and said in done.output.replace("\n", " ")


def test_the_command_exits_2_without_a_file(tmp_path):
    assert run(tmp_path / "nothing.csv", "--source", "a").exit_code == 2


def test_the_command_of_importance(edges, neurons, tmp_path):
    edges.to_csv(tmp_path / "edges.csv", index=False)
    neurons.to_csv(tmp_path / "neurons.csv", index=False)
    options = ("--source", "a", "--target", "e", "--target", "c=-2", "--scale", "0.5", "--exact", "2")
    files = "--out", tmp_path / "who.parquet", "--synapses", tmp_path / "all.parquet"
    args = ["importance", tmp_path / "edges.csv", "--neurons", tmp_path / "neurons.csv", *options, *files]
    done = CliRunner().invoke(app, list(map(str, args)))
    assert done.exit_code == 0 and "synapses" in done.output
    want = importance(read(edges, neurons), "a", {"e": 1, "c": -2}, scale=0.5, exact=2)
    written = pd.read_parquet(tmp_path / "who.parquet")
    assert np.allclose(written["silencing"], want.neurons["silencing"])
    assert len(pd.read_parquet(tmp_path / "all.parquet")) == 7
    for bad, said in (("--target", "d=much"), "a number behind"), (("--by", "colour"), "colour"):
        done = CliRunner().invoke(app, [*map(str, args), *bad])
        assert done.exit_code == 2 and said in done.output.replace("\n", " ")


def test_connectome_is_there_by_attribute():
    assert rg.connectome.read is read
    with pytest.raises(AttributeError, match="nothing"):
        _ = rg.nothing


def silenced(M, k, part=1.0):
    return np.where(np.arange(len(M)) == k, (1 - part) * M, M)


def test_importance_in_the_linear_network_against_brute_force(edges, neurons):
    c = read(edges, neurons, signs={"gaba": -1})
    M = dense(c)
    found = importance(c, source={"a": 1.0, "d": -2.0}, target={"e": 1.0, "c": -3.0}, scale=0.7, exact=5)
    A, b, g = 0.7 / np.linalg.eigvals(M).real.max() * M, np.array([1.0, 0, 0, -2, 0]), np.array([0.0, 0, -3, 0, 1])
    x, s = np.linalg.solve(np.eye(5) - A, b), np.linalg.solve(np.eye(5) - A.T, g)
    assert np.isclose(found.reward, g @ x)
    table = found.neurons.set_index("id").loc[list(c.ids)]
    assert np.allclose(table["activity"], x) and np.allclose(table["sensitivity"], s)
    assert np.allclose(table["silencing"], -x * (A.T @ s))
    for name, part in (("silencing_exact", 1.0), ("flipping_exact", 2.0)):
        cut = [np.eye(5) - silenced(A, k, part) for k in range(5)]
        brutes = [g @ np.linalg.solve(B, b) - g @ x if np.linalg.det(B) > 0 else np.nan for B in cut]
        assert np.isfinite(brutes).sum() >= 4
        assert np.allclose(table[name], brutes, atol=1e-12, equal_nan=True)
    assert (found.neurons["silencing"].abs().diff().dropna() <= 0).all()


def test_importance_of_synapses_is_the_gradient_in_each_weight(edges, tmp_path):
    c = read(edges)
    found = importance(c, source="a", target="e", f="tanh", scale=1.5)
    alpha = found.attrs["alpha"]
    weight = (alpha * c.W.weight.detach()).requires_grad_()
    b = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)
    x = rg.steady_state(c.W.bind(weight), b, "tanh").x
    (want,) = torch.autograd.grad(x[4], weight)
    table = found.synapses()
    where = {(post, pre): e for e, (post, pre) in enumerate(zip(*(end.tolist() for end in c.W.edges), strict=True))}
    places = [where[c.index(row.post)[0], c.index(row.pre)[0]] for row in table.itertuples()]
    assert np.allclose(table["gradient"], want[places]) and np.allclose(
        table["importance"], (want * weight.detach())[places]
    )
    assert list(found.synapses(top=3)["importance"]) == list(table["importance"][:3])
    found.write_synapses(tmp_path / "synapses.parquet")
    written = pd.read_parquet(tmp_path / "synapses.parquet")
    assert len(written) == len(c.edges) and np.allclose(written["gradient"], want)


def test_importance_of_any_reward_in_a_nonlinear_network(edges, neurons):
    c = read(edges, neurons)
    found = importance(c, "a", reward=lambda x: (x[2] - x[4]).square(), f="tanh", scale=0.8, exact=2)
    A = found.attrs["alpha"] * dense(c)
    b = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)
    for k, row in enumerate(found.neurons.itertuples()):
        (place,) = c.index(row.id)
        x = rg.steady_state(torch.from_numpy(silenced(A, place)), b, "tanh").x
        assert np.isnan(row.silencing_exact) == (k >= 2)
        if k < 2:
            assert abs(row.silencing_exact - (float((x[2] - x[4]).square()) - found.reward)) < 1e-12
    types = found.by("cell_type")
    assert types["neurons"].sum() == 5 and np.isclose(types["silencing"].sum(), found.neurons["silencing"].sum())
    with pytest.raises(ValueError, match="column: expected a column of the neurons"):
        found.by("colour")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "a target or a reward"),
        ({"target": "a", "reward": torch.sum}, "a target or a reward"),
        ({"target": "zz"}, "target: 1 of 1 ids"),
        ({"target": []}, "target: expected at least one id"),
        ({"target": "a", "scale": 2.0}, "scale: expected 0 < scale < 1"),
        ({"target": "a", "scale": -1.0, "f": "tanh"}, "scale: expected a finite scale > 0"),
        ({"target": "a", "scale": np.inf, "f": "tanh"}, "scale: expected a finite scale > 0"),
        ({"target": "a", "scale": np.nan}, "scale: expected 0 < scale < 1"),
        ({"target": "a", "exact": -1}, "exact: expected a number"),
        ({"reward": lambda x: x}, "reward: expected a function that gives one number"),
    ],
)
def test_bad_rewards_are_said(edges, how, said):
    with pytest.raises(ValueError, match=said):
        importance(read(edges), "a", **how)


def test_rank_one_silencing_of_every_neuron_of_the_worm():
    c = read(*files("worm"))
    found = importance(c, source=["ADAL", "ADAR"], target=["AVAL"], scale=0.5, exact=300)
    A, (place,) = found.attrs["alpha"] * dense(c), c.index("AVAL")
    b = np.isin(c.ids, ["ADAL", "ADAR"]).astype(float)
    table = found.neurons.set_index("id").loc[list(c.ids), "silencing_exact"].to_numpy()
    brutes = [np.linalg.solve(np.eye(300) - silenced(A, k), b)[place] - found.reward for k in range(300)]
    assert np.abs(table - brutes).max() < 1e-10


@pytest.mark.parametrize("name", ("e.csv", "e.parquet", "e.sqlite", "frame", "categories"))
def test_text_ids_in_many_pieces(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_BLOCK", 200)  # bytes: each piece of the file has a dictionary of its own
    random = np.random.default_rng(0)
    pre, post = (np.array([f"cell {k}" for k in random.integers(0, 40, 500)]) for _ in range(2))
    spoken = np.where(random.random(500) < 0.3, None, "ACH")
    edges = pd.DataFrame({"pre": pre, "post": post, "count": random.integers(1, 9, 500), "nt_type": spoken})
    where = edges if name == "frame" else tmp_path / name
    if name == "e.csv":
        edges.to_csv(where, index=False)
    elif name == "e.parquet":
        edges.to_parquet(where, row_group_size=50)
    elif name == "e.sqlite":
        with sqlite3.connect(where) as data:
            edges.to_sql("edges", data, index=False)
    elif name == "categories":
        where = edges.astype({"pre": pd.CategoricalDtype(["of nobody", *sorted(set(pre))]), "post": "category"})
    c = read(where, signs={"acetylcholine": -1})
    assert c.ids.tolist() == sorted(set(pre) | set(post))
    expected = edges.groupby(["post", "pre"], as_index=False)["count"].sum()
    assert c.edges["pre"].tolist() == expected["pre"].tolist() and c.edges["post"].tolist() == expected["post"].tolist()
    assert (-c.edges["weight"]).tolist() == expected["count"].tolist()
    assert c.edges["pre"].dtype == "str"
    W = np.zeros((len(c), len(c)))
    W[np.searchsorted(c.ids, expected["post"]), np.searchsorted(c.ids, expected["pre"])] = -expected["count"]
    assert (dense(c) == W).all() and (c.W.T.dense().detach().numpy() == W.T).all()
    c.W.weight.detach().zero_()
    assert (c.edges["weight"] < 0).all()  # the table is no view of W


@pytest.mark.parametrize("name", ("e.csv", "e.tsv", "e.parquet", "e.feather", "e.sqlite", "frame"))
def test_a_table_too_large_for_memory_is_refused_with_the_size_it_takes(edges, name, tmp_path, monkeypatch):
    many = pd.concat([edges] * 1000, ignore_index=True)
    where = many if name == "frame" else tmp_path / name
    if name.endswith("sv"):
        many.to_csv(where, sep="\t" if name == "e.tsv" else ",", index=False)
    elif name == "e.parquet":
        many.to_parquet(where)
    elif name == "e.feather":
        many.to_feather(where)
    elif name == "e.sqlite":
        with sqlite3.connect(where) as data:
            many.to_sql("edges", data, index=False)
    assert len(read(where).edges) == 7
    monkeypatch.setattr(memory, "available", lambda: 1e6)
    with pytest.raises(ValueError, match=r"about 8,0\d\d rows, to read which takes 0.0012 GB of memory; 0.001 GB are"):
        read(where)
    if name == "e.csv":
        result = CliRunner().invoke(app, ["influence", str(where), "--source", "a"])
        assert result.exit_code == 2 and "0.0012 GB" in result.output.replace("\n", " ")


def test_how_much_memory_is_free_is_known():
    assert 1e6 < memory.available() < 1e15
