"""One process for each framework. It runs a single call when told to, and sleeps otherwise.

So repetitions of all peers take turns on the same cores, and no framework's threads get in another's way.
"""

from __future__ import annotations

import ctypes
import os
import time
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import Peer
from benchmarks.steady import Steady
from benchmarks.trajectories import Array, Trajectory

THREADS = len(os.sched_getaffinity(0))
PATIENCE = 120  # seconds that one call may take
SHORTEST = 0.1  # seconds; a quicker call is repeated for as long, and the mean taken

Problem = Trajectory | Steady


class PeerError(Exception):
    """A peer did not answer, and why."""


class Worker:
    """A process, started when first asked, and anew after a failure that it did not survive.

    Args:
        patience: seconds that one call may take.
        environment: what it has in its environment beside this process's own.
    """

    def __init__(self, patience: float = PATIENCE, environment: dict[str, str] | None = None) -> None:
        self.process: Any = None
        self.patience, self._environment = patience, environment or {}

    def ask(self, method: str, *args: Any) -> Any:
        """The answer of `Bench.method(*args)` in the process.

        Raises:
            PeerError: an exception there, no answer in time, or the end of the process.
        """
        if self.process is None:
            self._start()
        try:
            self.pipe.send((method, args))
            if not self.pipe.poll(self.patience):
                raise PeerError(f"takes longer than {self.patience:g} s")
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.stop()
            raise PeerError("its process ended, most likely for want of memory") from None
        except PeerError:
            self.stop()
            raise
        if isinstance(answer, PeerError):
            raise answer
        return answer

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def _start(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), str(THREADS))
        os.environ.update(threads, MALLOC_ARENA_MAX="1")  # one heap, as only one can be trimmed
        os.environ["EQX_ON_ERROR"] = "nan"  # equinox: in place of a page of traceback
        os.environ.update(self._environment)
        self.process.start()
        theirs.close()


def _serve(pipe: Connection) -> None:
    bench = Bench()
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(bench, method)(*args)
        except Exception as error:
            answer = PeerError(f"{type(error).__name__}: {error}".split("\n")[0][:120])
        pipe.send(answer)


class Bench:
    """What a worker can be asked."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Give the memory of the last problem back."""
        self.problem: Problem | None = None
        self.arrays: tuple[Array, ...] = ()
        self.calls: dict[str, Any] = {}

    def first(self, problem: Problem, peer: Peer, tolerance: tuple[float, ...]) -> tuple[float, Array]:
        """The seconds of the first call, which compiles, and dR/dW."""
        if problem != self.problem:
            self.forget()
            self.problem, self.arrays = problem, problem.arrays()
        module = import_module(f"benchmarks.peers.{peer.module}")
        prepare = getattr(module, problem.kind)
        call = prepare(*_to(peer.framework, self.arrays), *peer.options, *tolerance)
        start = time.perf_counter()
        dW = call()
        seconds = time.perf_counter() - start
        self.calls[peer.name] = (problem, tolerance), call
        return seconds, np.asarray(dW)

    def seconds(self, problem: Problem, peer: Peer, tolerance: tuple[float, ...]) -> float:
        """The seconds of a call that is not the first."""
        call = self._call(problem, peer, tolerance)
        time.sleep(0.02)  # until the threads of the call before have gone to sleep
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SHORTEST or not count:
            call()
            count += 1
        return elapsed / count

    def peak(self, problem: Problem, peer: Peer, tolerance: tuple[float, ...]) -> int:
        """The bytes that a call holds at its peak beyond what there was before, its input among it. Linux only."""
        call = self._call(problem, peer, tolerance)
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that using it again counts
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _memory("VmRSS")
        call()
        return max(0, _memory("VmHWM") - before)

    def product(self) -> float:
        """The floating-point operations a second of a large product in float32."""
        import torch

        n, best = 2048, float("inf")
        a = torch.randn(n, n)
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - start)
        return 2 * n**3 / best

    def _call(self, problem: Problem, peer: Peer, tolerance: tuple[float, ...]) -> Any:
        known, call = self.calls.get(peer.name, (None, None))
        if known != (problem, tolerance):
            self.first(problem, peer, tolerance)
            call = self.calls[peer.name][1]
        return call


def _to(framework: str, arrays: tuple[Any, ...]) -> list[Any]:
    """The arrays as that framework's; a sparse matrix as it is."""
    if framework == "jax":
        from jax.numpy import asarray as convert
    else:
        from torch import from_numpy as convert
    return [convert(array) if isinstance(array, np.ndarray) else array for array in arrays]


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
