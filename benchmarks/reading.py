"""Reading a table of the fly's size into a ready connectome: seconds, and memory at the peak.

``python -m benchmarks.reading`` writes three tables to a temporary folder, and reads each in a process of its own: ids
as integers; FlyWire's Codex, with a neuropil and a transmitter in each row; and ids as text.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from benchmarks.fly import NEURONS, fly

TABLES = ("integers", "codex", "text")


def write(folder: Path) -> None:
    """The three tables."""
    pre, post, count = fly()
    ids = 720575940600000000 + 37 * np.random.default_rng(1).permutation(10**7)[:NEURONS]
    names = pa.array([f"n{each}" for each in ids])
    columns = {"pre_root_id": pa.array(ids[pre]), "post_root_id": pa.array(ids[post])}
    counts = pa.array(np.abs(count).astype(np.int64))
    pa.csv.write_csv(pa.table({**columns, "syn_count": counts}), folder / "integers.csv")
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
    print(f"{path.stem} ({size:.2f} GB): {took:.1f} s ({busy:.1f} s of processor), {peak:.2f} GiB at the peak; {c!r}")


def main() -> None:
    """Write the tables and read them."""
    if len(sys.argv) > 1:
        read(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for name in TABLES:
            path = Path(folder) / f"{name}.csv"
            subprocess.run([sys.executable, "-m", "benchmarks.reading", str(path)], check=True)


if __name__ == "__main__":
    main()
