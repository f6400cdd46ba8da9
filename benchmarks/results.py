"""What was measured: one line of JSON each, written as soon as it is known, so that an interrupted run can go on."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.steady import Steady
from benchmarks.trajectories import Trajectory
from benchmarks.workers import THREADS, Problem

PACKAGES = (
    "retrograde",
    "torch",
    "numpy",
    "numba",
    "jax",
    "jaxopt",
    "optimistix",
    "lineax",
    "torchdeq",
    "xitorch",
    "scipy",
)


@dataclass(frozen=True)
class Result:
    """One peer on one problem.

    Attributes:
        problem: the cell.
        peer: its name.
        tolerance: the one that was needed, if it takes any.
        error: of dR/dW against float64, relative, in the Frobenius norm.
        first: seconds of the first call.
        peak: bytes held at the peak, beyond the input.
        seconds: of each repetition; none where there was nothing to time.
        product: floating-point operations a second of a large product, measured beside it.
        note: why it was left out.
    """

    problem: Problem
    peer: str
    tolerance: float | None = None
    error: float | None = None
    first: float | None = None
    peak: int | None = None
    seconds: tuple[float, ...] = ()
    product: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)

    @property
    def counts(self) -> bool:
        """Whether it was timed, and its gradient is right."""
        return bool(self.seconds) and self.error is not None and self.error <= self.problem.largest_error


def machine(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """The processor, the threads and the versions."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"processor": _processor(), "threads": THREADS, "python": platform.python_version(), "versions": versions}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    vectors = [name for name in ("avx2", "avx512f") if name in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(vectors)})"


class Log:
    """The file. Its first line tells the machine; results of another machine, or of other versions, do not mix."""

    def __init__(self, path: Path):
        self.path, self.machine = path, machine()
        self.results: list[Result] = []
        if path.exists():
            first, *lines = path.read_text().splitlines()
            if json.loads(first) != self.machine:
                raise SystemExit(f"{path} comes from another machine or other versions: delete it, or choose --out.")
            self.results = [_read(line) for line in lines]
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.machine) + "\n")

    def add(self, results: Iterable[Result]) -> None:
        """All results of one problem."""
        new = list(results)
        with self.path.open("a") as file:
            file.writelines(json.dumps({"kind": result.problem.kind, **asdict(result)}) + "\n" for result in new)
        self.results += new

    def has(self, problem: Problem) -> bool:
        """Whether it has been measured."""
        return any(result.problem == problem for result in self.results)


def _read(line: str) -> Result:
    fields = json.loads(line)
    kind = {cls.kind: cls for cls in (Trajectory, Steady)}[fields.pop("kind")]
    return Result(**{**fields, "problem": kind(**fields["problem"]), "seconds": tuple(fields["seconds"])})
