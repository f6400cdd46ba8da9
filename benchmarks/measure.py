"""One problem: each peer on its own first, for its error and its memory, then all of them in turn, for the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.peers import PEERS, Peer
from benchmarks.results import Result
from benchmarks.trajectories import Array
from benchmarks.workers import PeerError, Problem, Worker

LARGEST = 2**30  # bytes of states
TOLERANCES = (1e-5, 5e-6, 2e-6, 1e-6, 5e-7, 2e-7, 1e-7, 5e-8, 2e-8, 1e-8)  # from loose to tight


def measure(problem: Problem, repeats: int, workers: dict[str, Worker], say: Callable[[str], None]) -> list[Result]:
    """What each installed peer does on the problem; `workers` are those of the frameworks."""
    peers = [peer for peer in PEERS if peer.kind == problem.kind and peer.installed]
    if problem.size > LARGEST:
        return [Result(problem, peer.name, note=f"states of more than {LARGEST >> 20} MiB") for peer in peers]
    say("exact gradient")
    exact = problem.exact(*problem.arrays())
    results = {}
    for peer in peers:
        say(peer.name)
        results[peer] = _try(problem, peer, exact, workers[peer.framework])

    product = 0.0
    for turn in range(repeats):
        say(f"turn {turn + 1} of {repeats}")
        product = max(product, workers["torch"].ask("product"))
        for peer, result in results.items():
            if not result.note:
                results[peer] = _time(result, peer, workers[peer.framework])
    for worker in workers.values():
        worker.ask("forget")
    return [replace(result, product=product) for result in results.values()]


def _try(problem: Problem, peer: Peer, exact: Array, worker: Worker) -> Result:
    """Its error, with the loosest tolerance that keeps the error small enough, else with the best; and its memory."""
    result = Result(problem, peer.name)
    if problem.size > peer.largest:
        return replace(result, note=f"left out: states of more than {peer.largest >> 20} MiB")
    why = "NaN"
    for tolerance in [(t,) for t in TOLERANCES] if peer.tuned else [()]:
        try:
            first, dW = worker.ask("first", problem, peer, tolerance)
        except PeerError as error:  # with a tighter tolerance it would fail as well
            why = str(error)
            break
        error = float(np.linalg.norm(dW - exact) / np.linalg.norm(exact))
        if error < (np.inf if result.error is None else result.error):
            result = replace(result, tolerance=next(iter(tolerance), None), error=error, first=first)
        if error <= problem.largest_error:
            break
    if result.error is None:
        return replace(result, note=why)
    try:
        return replace(result, peak=worker.ask("peak", problem, peer, _tolerance(result)))
    except PeerError as error:
        return replace(result, note=str(error))


def _time(result: Result, peer: Peer, worker: Worker) -> Result:
    """The result with one more repetition."""
    try:
        seconds = worker.ask("seconds", result.problem, peer, _tolerance(result))
    except PeerError as error:
        return replace(result, note=str(error))
    return replace(result, seconds=(*result.seconds, seconds))


def _tolerance(result: Result) -> tuple[float, ...]:
    return () if result.tolerance is None else (result.tolerance,)
