"""Reading a table of the fly's size into a ready connectome: seconds, and memory at the peak.

``python -m benchmarks.reading`` writes tables to a temporary folder, and reads each in a process of its own: ids as
integers, in every format; FlyWire's Codex, with a neuropil and a transmitter in each row; and ids as text.
"""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from benchmarks.fly import NEURONS, fly

TABLES = ("integers.csv", "integers.parquet", "integers.feather", "integers.sqlite", "codex.csv", "text.csv")


def write(folder: Path) -> None:
    """The tables."""
    pre, post, count = fly()
    ids = 720575940600000000 + 37 * np.random.default_rng(1).permutation(10**7)[:NEURONS]
    names = pa.array([f"n{each}" for each in ids])
    columns = {"pre_root_id": pa.array(ids[pre]), "post_root_id": pa.array(ids[post])}
    counts = pa.array(np.abs(count).astype(np.int64))
    integers = pa.table({**columns, "syn_count": counts})
    pa.csv.write_csv(integers, folder / "integers.csv")
    pa.parquet.write_table(integers, folder / "integers.parquet")
    pa.feather.write_feather(integers, folder / "integers.feather")
    with closing(sqlite3.connect(folder / "integers.sqlite")) as data, data:
        data.execute("create table edges (pre_root_id integer, post_root_id integer, syn_count integer)")
        data.executemany(
            "insert into edges values (?, ?, ?)", zip(*(each.to_pylist() for each in integers), strict=True)
        )
    regions = pa.array([f"ME_{k}" for k in range(75)]).take(pa.array(pre % 75))
    spoken = pa.array(["ACH", "GABA", "GLUT", "DA", "SER", "OCT"]).take(pa.array(pre % 6))
    pa.csv.write_csv(
        pa.table({**columns, "neuropil": regions, "syn_count": counts, "nt_type": spoken}), folder / "codex.csv"
    )
    texts = {"pre": names.take(pa.array(pre)), "post": names.take(pa.array(post)), "count": counts}
    pa.csv.write_csv(pa.table(texts), folder / "text.csv")


def read(path: Path) -> None:
    """Read one, and print what it took."""
    import retrograde as rg

    start = time.perf_counter()
    c = rg.connectome.read(path, signs={"gaba": -1, "glutamate": -1} if path.stem == "codex" else None)
    took, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    busy = time.process_time()
    size = path.stat().st_size / 1e9
    print(f"{path.name} ({size:.2f} GB): {took:.1f} s ({busy:.1f} s of processor), {peak:.2f} GiB at the peak; {c!r}")


def main() -> None:
    """Write the tables and read them."""
    if len(sys.argv) > 1:
        read(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for name in TABLES:
            subprocess.run([sys.executable, "-m", "benchmarks.reading", str(Path(folder) / name)], check=True)


if __name__ == "__main__":
    main()
