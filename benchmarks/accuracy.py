"""Time to a gradient of a given error: ``python -m benchmarks.accuracy --help``. It writes ACCURACY.md.

x = tanh(Wx + b), R = sum of g x, dR/dW; W full for n = 100 and 1,000, and with 20 connections a neuron for n = 10,000.
Each peer takes float32 or float64, and the loosest tolerance, of 1 and 3 times the powers of ten, that holds the error
asked for: what is timed is always a right answer. A run that was interrupted goes on where it was: ``accuracy.jsonl``
has what is known, and to measure anew it is deleted.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import geometric_mean, median
from typing import Annotated, Any, ClassVar

import numpy as np
import typer
from scipy.sparse import csr_array

from benchmarks.peers import RETROGRADE, Peer
from benchmarks.results import PACKAGES, machine
from benchmarks.trajectories import Array
from benchmarks.workers import PeerError, Worker

TARGETS = (1e-3, 1e-6, 1e-9)
LADDER = tuple(10.0**-k for k in range(1, 14))
PATIENCE = 8.0  # seconds that one gradient may take, its compilation included
SLOW = 2.0  # from so many seconds on, one repetition is enough
CONNECTIONS, GAIN = 20, 0.9


@dataclass(frozen=True)
class Accuracy:
    """A cell: `batch` samples of n neurons; W is random, with eigenvalues up to about 0.9, and sparse if n > 1000."""

    kind: ClassVar[str] = "steady"  # the function of the peers' modules

    n: int
    batch: int
    dtype: str

    def __str__(self) -> str:
        return f"n {self.n:,}{' (sparse)' if self.sparse else ''}, batch {self.batch}"

    @property
    def sparse(self) -> bool:
        """Whether W is."""
        return self.n > 1000

    def arrays(self) -> tuple[Any, Array, Array]:
        """W, b and g (batch, n), the same numbers in float32 and in float64."""
        random = np.random.default_rng(0)
        if self.sparse:
            ends = random.integers(self.n, size=(self.n, CONNECTIONS))
            starts = np.arange(0, CONNECTIONS * self.n + 1, CONNECTIONS)
            weight = random.standard_normal(ends.size, np.float32) * np.float32(GAIN / CONNECTIONS**0.5)
            W: Any = csr_array((weight, ends.ravel(), starts), shape=(self.n, self.n))
            W.sum_duplicates()
        else:
            W = random.standard_normal((self.n, self.n), np.float32) * np.float32(GAIN / self.n**0.5)
        b, g = random.standard_normal((2, self.batch, self.n), np.float32)
        return W.astype(self.dtype), b.astype(self.dtype), g.astype(self.dtype)

    def exact(self) -> Array:
        """dR/dW in float64, of a sparse W at its connections: x, then s = D (Wᵀs + g), iterated to the last digit."""
        W, b, g = replace(self, dtype="float64").arrays()
        x = _settled(lambda x: np.tanh((W @ x.T).T + b), np.zeros_like(b))
        D, back = 1 - x**2, W.T.tocsr() if self.sparse else W.T
        s = _settled(lambda s: D * ((back @ s.T).T + g), np.zeros_like(g))
        if not self.sparse:
            return s.T @ x
        rows = np.repeat(np.arange(self.n), np.diff(W.indptr))
        return sum(s_k[rows] * x_k[W.indices] for s_k, x_k in zip(s, x, strict=True))


def _settled(step: Any, z: Array) -> Array:
    for _ in range(10_000):
        before, z = z, step(z)
        if np.linalg.norm(z - before) <= 1e-14 * np.linalg.norm(z):
            break
    return z


def _peer(name: str, framework: str, package: str, *options: Any, module: str = "", tuned: bool = True) -> Peer:
    return Peer(name, "steady", framework, package, module or package, options, tuned)


PEERS = (
    _peer(RETROGRADE, "torch", "retrograde", tuned=False),
    _peer("Retrograde, grad_rtol", "torch", "retrograde", None),
    _peer("Retrograde, rtol", "torch", "retrograde"),
    _peer("loop by hand", "torch", "torch", module="loop"),
    _peer("torchdeq, fixed point", "torch", "torchdeq", "fixed_point_iter", 1000),
    _peer("torchdeq, Anderson", "torch", "torchdeq", "anderson", 1000),
    _peer("torchdeq, Broyden", "torch", "torchdeq", "broyden", 200),
    _peer("xitorch, Anderson, BiCGSTAB", "torch", "xitorch", "anderson_acc", "bicgstab"),
    _peer("jaxopt, fixed point, BiCGSTAB", "jax", "jaxopt", "FixedPointIteration"),
    _peer("jaxopt, Anderson, BiCGSTAB", "jax", "jaxopt", "AndersonAcceleration"),
    _peer("optimistix, fixed point, GMRES", "jax", "optimistix", "gmres"),
    _peer("optimistix, fixed point, LU", "jax", "optimistix", "lu"),
    _peer("optimistix, Newton, LU", "jax", "optimistix", "newton"),
    _peer("SciPy, hybr, LU", "torch", "scipy", "hybr"),
    _peer("SciPy, Krylov, GMRES", "torch", "scipy", "krylov"),
)
PROMISED = "Retrograde, grad_rtol"  # it is given the error itself, and nothing is looked for
FULL_ONLY = ("optimistix, fixed point, LU", "optimistix, Newton, LU", "SciPy, hybr, LU")  # form an n x n matrix


@dataclass(frozen=True)
class Answer:
    """One peer, one cell, one error asked for: how it was met, and in what time; or why it was not."""

    n: int
    batch: int
    dtype: str
    target: float
    peer: str
    tolerance: float | None = None
    error: float | None = None
    seconds: tuple[float, ...] = ()
    note: str = ""

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)


class Team:
    """The workers: one for each framework and dtype, as JAX has one precision a process."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}

    def ask(self, method: str, problem: Accuracy, peer: Peer, tolerance: tuple[float, ...]) -> Any:
        """The answer of `Bench.method`. Starting a process, or anew after a failure, is not on the peer's time."""
        name = f"{peer.framework} {problem.dtype}"
        x64 = {"JAX_ENABLE_X64": str(int(problem.dtype == "float64"))}
        worker = self.workers.setdefault(name, Worker(PATIENCE, x64))
        if worker.process is None:
            worker.patience = 120
            for each in PEERS:
                if each.framework == peer.framework and each.package in ("retrograde", "jaxopt"):  # compile, import
                    for n in (16, 1000, 1001):  # a full W, one whose products the threads share, and a sparse one
                        worker.ask("first", Accuracy(n, 1, problem.dtype), each, (1e-3,) if each.tuned else ())
            worker.patience = PATIENCE
        return worker.ask(method, problem, replace(peer, name=f"{peer.name} {tolerance}"), tolerance)

    def stop(self) -> None:
        """End them all."""
        for worker in self.workers.values():
            worker.stop()


def measure(
    problem: Accuracy, targets: dict[str, list[float]], repeats: int, known: list[Answer], team: Team
) -> list[Answer]:
    """What each installed peer takes for the targets it is asked for."""
    exact = problem.exact()
    answers = [
        answer
        for peer in PEERS
        if targets.get(peer.name) and (peer.installed or peer.module == "scipy")
        for answer in _tried(problem, peer, targets[peer.name], exact, known, team)
    ]
    for turn in range(repeats):
        answers = [_timed(problem, answer, turn, team) for answer in answers]
    for worker in team.workers.values():
        if worker.process is not None:
            worker.ask("forget")
    return answers


def _tried(
    problem: Accuracy, peer: Peer, targets: list[float], exact: Array, known: list[Answer], team: Team
) -> Iterator[Answer]:
    """For each target the loosest tolerance that meets it, not timed yet."""
    if problem.sparse and peer.name in FULL_ONLY:
        yield from (_answer(problem, peer, target, note="would form an n x n matrix") for target in targets)
        return
    smaller = [a for a in known if (a.n, a.peer, a.dtype) == (problem.n, peer.name, problem.dtype)]
    late = [a.batch for a in smaller if a.note.startswith("takes longer")]
    errors: dict[float | None, float] = {}
    why = f"takes longer than {PATIENCE:.0f} s already at batch {min(late)}" if late else ""

    def error_at(tolerance: float | None) -> float:
        nonlocal why
        if tolerance not in errors and not why:
            try:
                _, dW = team.ask("first", problem, peer, () if tolerance is None else (tolerance,))
                errors[tolerance] = float(np.linalg.norm(dW - exact) / np.linalg.norm(exact))
            except PeerError as failure:  # with a tighter tolerance it would fail as well
                why = str(failure)
        return errors.get(tolerance, math.inf)

    print(f"    {peer.name}", flush=True)
    for target in sorted(targets, reverse=True):
        before = [a.tolerance for a in smaller if a.target == target and a.tolerance is not None]
        rungs: Iterable[float | None] = (None,)
        if peer.name == PROMISED:
            rungs = (target,)
        elif peer.tuned:
            loosest = 10 * max(before) if before else 1e-1 if target > 1e-9 else 1e-7
            finest = 1e-8 if problem.dtype == "float32" else 1e-13
            rungs = [t for t in LADDER if 0.99 * finest <= t <= 1.01 * loosest]
        met = next((t for t in rungs if error_at(t) <= target), False)
        if met and peer.name != PROMISED and not why and error_at(3 * met) <= target:
            met = 3 * met
        if met is False:
            reached = [e for e in errors.values() if math.isfinite(e)]
            best = f"reaches {min(reached):.0e}" if reached else "NaN"
            yield _answer(problem, peer, target, note=why or best)
        else:
            yield _answer(problem, peer, target, tolerance=met, error=errors[met])


def _answer(problem: Accuracy, peer: Peer, target: float, **what: Any) -> Answer:
    return Answer(problem.n, problem.batch, problem.dtype, target, peer.name, **what)


def _timed(problem: Accuracy, answer: Answer, turn: int, team: Team) -> Answer:
    """With one more repetition."""
    if answer.note or (turn and answer.seconds[0] > SLOW):
        return answer
    peer = next(peer for peer in PEERS if peer.name == answer.peer)
    try:
        seconds = team.ask("seconds", problem, peer, () if answer.tolerance is None else (answer.tolerance,))
    except PeerError as failure:
        return replace(answer, note=str(failure), seconds=())
    return replace(answer, seconds=(*answer.seconds, seconds))


# --- what is known


class Log:
    """Answers, a line of JSON each; the first line tells the machine."""

    def __init__(self, path: Path):
        self.path, self.answers = path, list[Answer]()
        self.machine = machine((*PACKAGES, "xitorch", "scipy"))
        if path.exists():
            first, *lines = path.read_text().splitlines()
            if json.loads(first) != self.machine:
                raise SystemExit(f"{path} comes from another machine or other versions: delete it, or choose --out.")
            self.answers = [
                Answer(**{**fields, "seconds": tuple(fields["seconds"])}) for fields in map(json.loads, lines)
            ]
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.machine) + "\n")

    def add(self, answers: Iterable[Answer]) -> None:
        """All of one cell in one dtype."""
        new = list(answers)
        with self.path.open("a") as file:
            file.writelines(json.dumps(asdict(answer)) + "\n" for answer in new)
        self.answers += new


# --- what is told


def report(answers: list[Answer], machine: dict[str, Any]) -> str:
    """The page."""
    rows: dict[tuple[int, int, float], list[Answer]] = defaultdict(list)
    for answer in answers:
        rows[answer.n, answer.batch, answer.target].append(answer)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    summary, details, ratios = [], [], {}
    for (n, batch, target), given in sorted(rows.items(), key=lambda row: (row[0][0], row[0][1], -row[0][2])):
        right = _best_of_each(answer for answer in given if answer.seconds)
        ours, peers = ([a for a in right if a.peer.startswith(RETROGRADE) == own] for own in (True, False))
        where = f"| {Accuracy(n, batch, '')} | {target:.0e} "
        if ours and peers:
            ratio = peers[0].median / ours[0].median
            ratios[n, batch, target] = ratio
            summary.append(f"{where}| {_told(ours[0])} | {_told(peers[0])} | {ratio:.2f} |")
        missing = {a.peer: a.note for a in given if a.note and a.peer not in {each.peer for each in right}}
        details += [f"{where}| {_told(a)} | {a.dtype}, {_at(a)} | {a.error:.0e} |" for a in right]
        details += [f"{where}| {peer} | – | {note} |" for peer, note in missing.items()]
    first = sum(ratio >= 1 for ratio in ratios.values())
    mean = geometric_mean(ratios.values()) if ratios else math.nan
    return "\n".join(
        [
            "# Time to a gradient of a given error\n",
            "Written by `python -m benchmarks.accuracy`. " + " ".join((__doc__ or "").split("\n\n")[1].split()) + "\n",
            f"A gradient that takes longer than {PATIENCE:.0f} s, its compilation included, is left out. The error is "
            "that of dR/dW against float64, relative, in the Frobenius norm.\n",
            f"{machine['processor']}, {machine['threads']} threads. Python {machine['python']}, {versions}.\n",
            f"Retrograde is first in {first} of {len(ratios)} rows; the best peer's time over its own has a geometric "
            f"mean of {mean:.2f}.\n",
            "| cell | error | Retrograde | best peer | ratio |\n|---|---|---|---|---|",
            *summary,
            "\n## All\n\n| cell | error | by | with | its error |\n|---|---|---|---|---|",
            *details,
            "",
        ]
    )


def _best_of_each(answers: Iterable[Answer]) -> list[Answer]:
    """The fastest of each peer's, in float32 or float64; the fastest peer first."""
    best: dict[str, Answer] = {}
    for answer in answers:
        if answer.peer not in best or answer.median < best[answer.peer].median:
            best[answer.peer] = answer
    return sorted(best.values(), key=lambda answer: answer.median)


def _told(answer: Answer) -> str:
    return f"{answer.peer}: {1e3 * answer.median:.3g} ms"


def _at(answer: Answer) -> str:
    return "as it comes" if answer.tolerance is None else f"{answer.tolerance:.0e}"


def main(
    n: Annotated[list[int] | None, typer.Option(help="Only so many neurons: 100, 1000, 10000.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Only so many samples: 1, 32, 256.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions of each.")] = 3,
    out: Annotated[Path, typer.Option(help="The folder of the results.")] = Path(__file__).parent,
) -> None:
    """Time gradients to errors of 1e-3, 1e-6 and 1e-9; write ACCURACY.md and accuracy.jsonl."""
    log, team = Log(out / "accuracy.jsonl"), Team()
    try:
        for cell in product(n or (100, 1000, 10_000), batch or (1, 32, 256)):
            for dtype in ("float32", "float64"):
                problem, done = Accuracy(*cell, dtype), [a for a in log.answers if (a.n, a.batch) == cell]
                if any(answer.dtype == dtype for answer in done):
                    continue
                # What float32 does not reach is left to float64.
                met = {(answer.peer, answer.target) for answer in done if answer.seconds}
                wanted = TARGETS[:2] if dtype == "float32" else TARGETS
                targets = {p.name: [t for t in wanted if (p.name, t) not in met] for p in PEERS}
                print(problem, dtype, flush=True)
                log.add(measure(problem, targets, repeats, log.answers, team))
                (out / "ACCURACY.md").write_text(report(log.answers, log.machine))
    finally:
        team.stop()


if __name__ == "__main__":
    typer.run(main)
