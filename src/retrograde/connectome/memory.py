"""How much memory there is, and whether the connections of a table fit into it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_CONNECTION = 150  # bytes that one takes at the peak of its reading, with what is made of it
_INFLUENCE = 60  # bytes that one group's influence on one neuron takes, likewise
_INFINITE = float("inf")


def check_room(what: str, count: float, of: str = "rows") -> None:
    """ValueError where memory would not hold what is made of so many rows, or connections."""
    size, room = count * _CONNECTION, available()
    if size > room:
        raise ValueError(
            f"{what}: about {count:,.0f} {of}, to read which takes {size / 1e9:.2g} GB of memory; "
            f"{room / 1e9:.2g} GB are free"
        )


def check_groups(what: str, groups: int, neurons: int) -> None:
    """ValueError where memory would not hold the influences of so many groups, or on them."""
    size, room = float(groups * neurons * _INFLUENCE), available()
    if size > room:
        raise ValueError(
            f"{what}: {groups:,} groups, which with {neurons:,} neurons take {size / 1e9:.2g} GB of memory; "
            f"{room / 1e9:.2g} GB are free: ask for fewer at a time"
        )


def available(root: Path = Path("/")) -> float:
    """How many bytes may be taken: what is free, or what a container, a job or a limit of the process leaves of it."""
    return min(_free(root), _left_in_groups(root), _left_to_the_process(root))


def _free(root: Path) -> float:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        known = "SC_PHYS_PAGES" in os.sysconf_names
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if known else _INFINITE


def _left_to_the_process(root: Path) -> float:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return _INFINITE
    try:
        mapped = int((root / "proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        mapped = 0
    return max(most - mapped, 0)


def _left_in_groups(root: Path) -> float:
    """What the control groups that this process is in leave it, by which containers and batch systems share memory."""
    left = _INFINITE
    for group in _groups(root):
        for limit, used, total in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            try:
                room = int((group / limit).read_text()) - int((group / used).read_text())
            except (OSError, ValueError):  # there is no such file, or it says "max"
                continue
            left = min(left, max(room + _cached(group, total), 0))
    return left


def _cached(group: Path, total: str) -> int:
    """The pages of files, which are given up where memory is asked for."""
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return sum(int(stat.get(f"{total}{kind}_file", 0)) for kind in ("active", "inactive"))
    except (OSError, ValueError):
        return 0


def _groups(root: Path) -> Iterator[Path]:
    """The folders of these groups and of those around them, of both versions."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup" / controllers
            here = top / name.strip("/")
            yield from (each for each in (here, *here.parents) if each == top or top in each.parents)
