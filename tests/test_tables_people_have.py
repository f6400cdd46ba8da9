"""The files that people hold, with the columns and the gaps that they have, read as they are."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from typer.testing import CliRunner

from retrograde.cli.app import app
from retrograde.connectome import read

LONG = 720575940600000000  # what FlyWire's ids are above


MALE_CNS = {
    "edges": pd.DataFrame({"body_pre": [11, 12, 13], "body_post": [12, 13, 11], "weight": [5, 6, 7]}),
    "types": pd.DataFrame({"bodyId": [13, 12, 11], "type": ["R1", "Mi1", "T4a"], "somaSide": list("LRL")}),
    "nts": pd.DataFrame({"body": [11, 12, 13, 99], "consensus_nt": ["acetylcholine", "gaba", "histamine", "gaba"]}),
}


def dense(c):
    return c.W.dense().detach().numpy()


def summary(c):
    return dict(c.summary.itertuples(index=False))


@pytest.fixture
def M():
    """W[post, pre], which is not symmetric; its last row sends nothing."""
    return np.array([[0.0, 0.5, 0, 0], [0.25, 0, 0.125, 0], [1, 0, 0, 0], [0, 0.75, 0.5, 0]])


@pytest.fixture
def interpreted():
    """connectome_interpreter's neurons, whose `idx` is the row of the matrix, in another order than it."""
    root = [LONG + 7, LONG + 1, LONG + 5, LONG + 3]
    meta = {"idx": [0, 1, 2, 3], "root_id": root, "cell_type": list("ABCD"), "side": ["left"] * 4}
    return pd.DataFrame({**meta, "top_nt": ["acetylcholine", "gaba", "", "gaba"], "sign": [1, -1, np.nan, -1]}).iloc[
        [2, 0, 3, 1]
    ]


def test_connectome_interpreters_matrix_and_neurons(M, interpreted, tmp_path):
    scipy.sparse.save_npz(tmp_path / "inprop.npz", scipy.sparse.csr_array(M.T))
    interpreted.to_csv(tmp_path / "meta.csv", index=False)
    for meta in (interpreted, tmp_path / "meta.csv"):
        c = read(tmp_path / "inprop.npz", meta, orientation="pre_post", signs="column")
        order = np.argsort([LONG + 7, LONG + 1, LONG + 5, LONG + 3])  # ids are sorted
        assert c.ids.tolist() == [LONG + 1, LONG + 3, LONG + 5, LONG + 7] and list(c.neurons["cell_type"]) == list(
            "BDCA"
        )
        assert (dense(c) == (M * [1, -1, 1, -1])[order][:, order]).all()
        assert summary(c)["neurons without a sign, +1"] == 1 and summary(c)["neurons not in the neuron table"] == 0
    alone = read(M, interpreted.drop(columns="root_id"), orientation="post_pre")
    assert alone.ids.tolist() == [0, 1, 2, 3] and list(alone.neurons["cell_type"]) == list("ABCD")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.assign(idx=[0, 1, 2, 2]), "neurons, idx: expected each row of the matrix once, 0 to 3"),
        (lambda t: t[:3], "neurons, idx: expected each row of the matrix once, 0 to 3; got 3"),
        (lambda t: t.assign(sign=[1, 2, 1, 1]), "neurons, sign: 1 of 4 signs are neither"),
        (lambda t: t.drop(columns="sign"), "signs: expected a column of signs in the edges or in the neuron table"),
    ],
)
def test_rows_and_signs_that_are_wrong(M, interpreted, change, said):
    with pytest.raises(ValueError, match=said):
        read(M, change(interpreted), orientation="pre_post", signs="column")
    with pytest.raises(ValueError, match="signs: expected a column of signs"):
        read(M, orientation="pre_post", signs="column")


def test_a_square_table_and_full_matrices_in_files(M, tmp_path):
    names = ["d", "a", "c", "b"]
    square = pd.DataFrame(M, columns=names, index=names)
    np.save(tmp_path / "w.npy", M)
    np.savez(tmp_path / "w.npz", W=M)
    want = read(M, orientation="post_pre", ids=names)
    for given in (square, square.reset_index(drop=True)):
        assert (dense(read(given, orientation="post_pre")) == dense(want)).all()
        assert list(read(given, orientation="pre_post").ids) == list("abcd")
    for given in (tmp_path / "w.npy", str(tmp_path / "w.npz"), pd.DataFrame(M)):
        assert (dense(read(given, orientation="pre_post")) == M.T).all()
    for given in (square, tmp_path / "w.npy", tmp_path / "w.npz"):
        with pytest.raises(ValueError, match="orientation: expected 'post_pre'"):
            read(given)


def test_matrices_that_are_none(M, tmp_path):
    names = list("abcd")
    np.savez(tmp_path / "two.npz", W=M, x=M[0])
    np.save(tmp_path / "things.npy", np.array([{}, []], dtype=object))
    np.save(tmp_path / "short.npy", M)
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-20])
    for given, said in (
        (tmp_path / "two.npz", r"two\.npz: expected a sparse matrix .*: it holds W, x"),
        (tmp_path / "things.npy", r"things\.npy: expected a sparse matrix"),
        (tmp_path / "short.npy", r"short\.npy: expected a sparse matrix"),
        (pd.DataFrame(M, columns=names, index=names[::-1]), "rows are named as its columns are"),
        (pd.DataFrame(M[:3], columns=names), r"expected a square matrix, got shape \(3, 4\)"),
        (pd.DataFrame([["x", "y"], ["z", "w"]]), "expected a matrix of real numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            read(given, orientation="post_pre")


def test_banc_with_its_own_columns_and_its_gaps(tmp_path):
    """One column of ids for each data set that a neuron was matched to, blank where it was not."""
    ids = [LONG + k for k in range(4)]
    edges = pd.DataFrame({"pre": ids[:3], "post": ids[1:], "count": [9, 7, 8], "norm": [0.5, 0.25, 0.1]})
    edges = edges.assign(total_input=[18, 28, 80])
    text = [str(each) for each in ids]
    meta = pd.DataFrame(
        {
            "fafb_783_id": ["", str(LONG + 99), "", "", str(LONG + 3)],  # one of which is another's in BANC
            "banc_746_id": [*text, None],
            "manc_v1.2.1_id": ["10001", "10002", "", "10004", "10005"],
            "super_class": ["sensory", "ascending", "motor", "motor", "motor"],
            "cell_type": list("ABCCD"),
            "neurotransmitter_predicted": ["acetylcholine", "gaba", "glutamate", "", ""],
        }
    )
    edges.to_feather(tmp_path / "edges.feather")
    meta.to_feather(tmp_path / "meta.feather")
    for table in (meta, tmp_path / "meta.feather"):
        c = read(tmp_path / "edges.feather", table, signs={"gaba": -1}, weights="norm")
        assert list(c.neurons["cell_type"]) == list("ABCC") and dense(c)[2, 1] == -0.25
        assert summary(c)["rows of the neuron table without a banc_746_id"] == 1
        assert list(c.neurons["manc_v1.2.1_id"]) == ["10001", "10002", "", "10004"]
    other = pd.DataFrame({"pre": [10001, 10002], "post": [10004, 10005], "count": 5})
    assert list(read(other, meta).neurons["cell_type"]) == list("ABCD")  # MANC's own
    blank = meta.assign(banc_746_id=None)
    with pytest.raises(ValueError, match="neurons: none of its 2 ids is among the 4 of the edges"):
        read(edges.assign(pre=edges["pre"] + 50, post=edges["post"] + 50), blank)


def test_flywires_probabilities_of_each_transmitter():
    """Its Zenodo tables: a row for each neuropil; a neuron's is that of the largest mean over its synapses."""
    table = pd.DataFrame(
        {
            "pre_pt_root_id": [1, 1, 2, 3],
            "post_pt_root_id": [2, 2, 3, 1],
            "neuropil": ["X", "Y", "X", "X"],
            "syn_count": [10, 1, 4, 3],
            "gaba_avg": [0.4, 0.9, 0.1, np.nan],
            "ach_avg": [0.5, 0.0, 0.2, np.nan],
            "glut_avg": [0.1, 0.1, 0.7, np.nan],
        }
    )  # of neuron 1: gaba 4.9, ach 5.0
    c = read(table, signs={"glutamate": -1})
    assert list(c.neurons["transmitter"]) == ["acetylcholine", "glutamate", ""]
    assert dense(c).min() == dense(c)[2, 1] == -4
    assert summary(c)["transmitters, each the most probable one"] == 2
    assert summary(c)["+1, not named in signs: acetylcholine"] == 1
    about = pd.DataFrame({"root_id": [1, 2, 3], "gaba_avg": [0.9, 0.1, 0.0], "ach_avg": [0.1, 0.8, 0.0]})
    c = read(table.iloc[:, :4], about, signs={"gaba": -1})
    assert list(c.neurons["transmitter"]) == ["gaba", "acetylcholine", ""] and dense(c)[1, 0] == -11
    assert list(read(table, about.assign(top_nt="gaba")).neurons["transmitter"]) == ["gaba"] * 3


def test_male_cns_in_three_tables_and_what_no_sign_was_given_for():
    weights, types, nts = MALE_CNS.values()
    c = read(weights, [types, nts], signs={"gaba": -1})
    assert list(c.neurons["cell_type"]) == ["T4a", "Mi1", "R1"] and list(c.neurons["side"]) == list("LRL")
    assert c.edges.set_index("pre")["weight"].to_dict() == {11: 5, 12: -6, 13: 7}
    told = summary(c)
    assert (
        told["+1, not named in signs: acetylcholine, histamine"] == 2 and told["neurons not in the neuron table"] == 0
    )
    signed = read(weights, [types, nts], signs={"gaba": -1, "histamine": -1})
    assert signed.edges.set_index("pre")["weight"].to_dict() == {11: 5, 12: -6, 13: -7}
    assert list(read(weights, (nts, types), columns={"side": "somaSide"}).neurons["side"]) == list("LRL")


def test_signs_may_name_a_transmitter_that_no_neuron_here_has():
    edges = pd.DataFrame({"pre": ["a", "b"], "post": ["b", "a"], "count": [1, 2]})
    neurons = pd.DataFrame({"id": ["a", "b"], "transmitter": ["gaba", "acetylcholine"]})
    c = read(edges, neurons, signs={"gaba": -1, "glut": -1, "dopamine": -1})
    assert c.edges.set_index("pre")["weight"].to_dict() == {"a": -1, "b": 2}
    assert summary(c)["neurons of a transmitter named in signs: dopamine, glutamate"] == 0
    assert read(edges, neurons, exclude_transmitters=["glutamate"]).edges["weight"].sum() == 3
    with pytest.raises(ValueError, match="no neuron's transmitter is 'glutamat'; there are acetylcholine, gaba"):
        read(edges, neurons, signs={"gaba": -1, "glutamat": -1})


def test_the_command_takes_several_neuron_tables(tmp_path):
    for name, table in MALE_CNS.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    args = [
        "influence",
        tmp_path / "edges.csv",
        "--source",
        "cell_type:R1",
        "--signs",
        "gaba=-1,histamine=-1",
        "--json",
    ]
    done = CliRunner().invoke(
        app, [*map(str, args), "--neurons", *(str(tmp_path / f"{n}.csv") for n in ("types", "nts"))]
    )
    assert done.exit_code == 0, done.output
    found = pd.DataFrame(json.loads(done.stdout)).set_index("id")
    assert (
        found.loc[13, "is_source"]
        and found.loc[11, "influence"] < 0
        and found.loc[11, "transmitter"] == "acetylcholine"
    )


def test_fields_that_something_else_separates(tmp_path):
    (tmp_path / "e.csv").write_text("pre;post;count\na;b;3\n")
    (tmp_path / "e.tsv").write_text("pre,post,count\na,b,3\n")
    with pytest.raises(ValueError, match=r"e\.csv: one column, 'pre;post;count': .* separated by ';', where .* by ','"):
        read(tmp_path / "e.csv")
    with pytest.raises(ValueError, match=r"e\.tsv: one column, .* separated by ','"):
        read(tmp_path / "e.tsv")


def test_columns_that_are_there_twice_are_told_of_the_table_that_has_them():
    edges = pd.DataFrame({"pre": ["a", "b"], "post": ["b", "a"], "count": 1})
    twice = pd.DataFrame([["a", 1, 2], ["b", 1, 2]], columns=["id", "side", "side"])
    with pytest.raises(ValueError, match="neurons: columns that are there twice: side"):
        read(edges, twice)
