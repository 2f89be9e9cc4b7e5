"""What a run costs: CPU time of process trees, WAL, percentiles; and how runs are held against each other."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

TICK = os.sysconf("SC_CLK_TCK")


def _process(path: pathlib.Path) -> tuple[int, float, float]:
    """Of a process its parent, its own CPU seconds and those of its children that have ended."""
    # The name, in parentheses, may hold anything.
    fields = (path / "stat").read_text().rpartition(")")[2].split()
    user, system, ended_user, ended_system = map(int, fields[11:15])
    own = (user + system) / TICK
    if int(fields[17]) == 1:
        # One thread: the scheduler knows its time in nanoseconds, where stat is truncated to ticks.
        with contextlib.suppress(OSError, IndexError):
            own = int((path / "schedstat").read_text().split()[0]) / 1e9
    return int(fields[1]), own, (ended_user + ended_system) / TICK


def _processes(paths: Iterable[pathlib.Path]) -> dict[int, tuple[int, float, float]]:
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            found[int(path.name)] = _process(path)
    return found


def cpu_seconds(roots: Sequence[int]) -> float:
    """CPU seconds of these processes and all below them, living or ended."""
    while True:
        processes = _processes(pathlib.Path("/proc").glob("[0-9]*"))
        again = _processes(pathlib.Path(f"/proc/{pid}") for pid in roots)
        # Who ended meanwhile may have been counted twice or not at all.
        if all(again[pid][2] == processes[pid][2] for pid in again.keys() & processes.keys()):
            break
    tree, below = set[int](), set(roots)
    while below:
        tree |= below
        below = {pid for pid, (parent, *_) in processes.items() if parent in tree} - tree
    return sum(own + ended for pid, (_, own, ended) in processes.items() if pid in tree)


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values that at least this share of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclasses.dataclass(frozen=True)
class Point:
    """The meters at one time: they had been read by then, so that what lived at that time is in them."""

    time: float
    cpu: float
    wal: float


class Meter:
    """Reads the meters of a server: of some processes' trees, and of its WAL where it has one."""

    def __init__(self, roots: Sequence[int], wal: Callable[[], float] | None) -> None:
        self.roots = roots
        self.wal = wal

    def read(self) -> Point:
        cpu = cpu_seconds(self.roots)
        wal = self.wal() if self.wal else math.nan
        return Point(time.time(), cpu, wal)

    @contextlib.contextmanager
    def watch(self, interval: float) -> Iterator[list[Point]]:
        """Reads them at once, then every so many seconds, and at the end."""
        points = [self.read()]
        done = threading.Event()

        def look() -> None:
            while not done.wait(interval):
                points.append(self.read())

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield points
        finally:
            done.set()
            thread.join()
            points.append(self.read())


def median_ratio(numerators: Sequence[float | None], denominators: Sequence[float | None]) -> float | None:
    """The median of the ratios of each round. What drifts from round to round is the same in both, and falls out."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=False) if a is not None and b]
    return statistics.median(ratios) if ratios else None


def median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
