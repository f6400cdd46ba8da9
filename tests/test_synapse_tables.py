"""What synapses carry, as files that are written a piece at a time, and as sums over groups at both of their ends."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from retrograde.cli.app import app
from retrograde.connectome import importance, importances, read

N = 8


@pytest.fixture
def rows():
    """Connections in two neuropils, a row for each; not symmetric."""
    rng = np.random.default_rng(5)
    post, pre = np.nonzero(rng.random((N, N)) < 0.6)
    table = pd.DataFrame({"pre": pre, "post": post, "syn_count": rng.integers(1, 9, len(pre)), "neuropil": "LO"})
    return pd.concat([table, table[::2].assign(neuropil="ME", syn_count=3)], ignore_index=True)


@pytest.fixture
def types():
    """Of a cell type each but the last."""
    return pd.DataFrame({"root_id": np.arange(N), "cell_type": [*"AABBBCC", None]})


@pytest.fixture
def found(rows, types):
    return importance(read(rows, types), {0: 1.0}, {5: 1.0, 6: -2.0}, f="tanh", scale=0.8)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_pieces_make_one_table(found, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(importances, "_ROWS", 7)
    whole = found.synapses().sort_values(["post", "pre"], ignore_index=True)
    assert len(whole) > 4 * 7 and len(whole) % 7
    path = tmp_path / f"synapses{suffix}"
    found.write_synapses(path)
    written = pd.read_parquet(path) if suffix == ".parquet" else pd.read_csv(path)
    pd.testing.assert_frame_equal(written, whole, check_dtype=False)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_interrupted_leaves_what_was_there(found, tmp_path, monkeypatch):
    (tmp_path / "synapses.csv").write_text("before")
    monkeypatch.setattr(importances, "_ROWS", 7)
    piece, calls = importances.Importance._piece, []

    def interrupted(self, rows, ends):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return piece(self, rows, ends)

    monkeypatch.setattr(importances.Importance, "_piece", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found.write_synapses(tmp_path / "synapses.csv")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("synapses.csv", "before")]
    with pytest.raises(
        ValueError, match=r"path: expected a name that ends in \.parquet or \.csv, got .*synapses\.xlsx"
    ):
        found.write_synapses(tmp_path / "synapses.xlsx")


def test_sums_from_type_to_type(found, types):
    table = found.by_pair("cell_type").set_index(["pre_cell_type", "post_cell_type"])
    of = types["cell_type"].to_dict()
    each = found.synapses().assign(pre=lambda t: t["pre"].map(of), post=lambda t: t["post"].map(of)).dropna()
    for (pre, post), some in each.groupby(["pre", "post"]):
        row = table.loc[(pre, post)]
        assert row["connections"] == len(some) and np.isclose(row["importance"], some["importance"].sum())
        assert np.isclose(row["magnitude"], some["importance"].abs().sum())
    assert len(table) == len(each.groupby(["pre", "post"])) and table["magnitude"].is_monotonic_decreasing
    with pytest.raises(ValueError, match=r"column: expected a column of the neurons, .*; got 'kind'"):
        found.by_pair("kind")


def test_sums_by_type_and_neuropil(found, rows, types):
    table = found.by_neuropil(rows, by="cell_type")
    assert list(table.columns) == ["neuropil", "cell_type", "count", "importance", "magnitude"]
    of = types["cell_type"].to_dict()
    total = rows.groupby(["pre", "post"])["syn_count"].transform("sum")
    carried = found.synapses().set_index(["pre", "post"])["importance"]
    part = rows["syn_count"] / total * carried.loc[pd.MultiIndex.from_frame(rows[["pre", "post"]])].to_numpy()
    want = rows.assign(part=part, cell_type=rows["pre"].map(of)).dropna().groupby(["neuropil", "cell_type"])
    got = table.set_index(["neuropil", "cell_type"]).sort_index()
    assert (got["count"] == want["syn_count"].sum()).all() and np.allclose(got["importance"], want["part"].sum())
    untold = rows["pre"].map(of).isna()
    assert np.isclose(table["importance"].sum() + part[untold].sum(), found.by_neuropil(rows)["importance"].sum())


def test_the_command_sums_so_too(found, rows, types, tmp_path):
    rows.to_csv(tmp_path / "edges.csv", index=False)
    types.to_csv(tmp_path / "types.csv", index=False)
    start = ["importance", str(tmp_path / "edges.csv"), "--neurons", str(tmp_path / "types.csv"), "--source", "0"]
    start += ["--target", "5=1", "6=-2", "--f", "tanh", "--scale", "0.8", "--json"]
    for args, want in (
        (["--by", "cell_type", "neuropil"], found.by_neuropil(rows, by="cell_type")),
        (["--by-pair", "cell_type"], found.by_pair("cell_type")),
        (["--by", "neuropil"], found.by_neuropil(rows)),
    ):
        figure = ["--figure", str(tmp_path / "it.png")]
        done = CliRunner().invoke(app, start + args + figure)
        assert done.exit_code == 0, done.output
        pd.testing.assert_frame_equal(pd.DataFrame(json.loads(done.stdout)), want)
    bad = CliRunner().invoke(app, [*start, "--by", "cell_type", "id"])
    assert bad.exit_code == 2 and "--by: expected one column of the neurons, neuropil, or both" in bad.stderr
