"""Runs pgbench, so that the client costs next to nothing, and takes the latencies from its log."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping

from benchmarks.measure import Meter, Point, percentile
from benchmarks.rivals import Place, Sample, Unavailable


@dataclasses.dataclass(frozen=True)
class Transaction:
    """One run of a script: by which client, when it ended, and how long it took since it really began."""

    client: int
    ended: float
    ms: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    transactions: list[Transaction]
    points: list[Point]

    @property
    def until(self) -> float:
        """When the first of the clients had nothing more to do."""
        return min({transaction.client: transaction.ended for transaction in self.transactions}.values())

    def between(self, start: Point, end: Point, each: float = 1) -> Sample:
        """What happened between two readings of the meters; a run of the script handles so many messages."""
        seen = [transaction for transaction in self.transactions if start.time < transaction.ended <= end.time]
        if not seen:
            return Sample(0, end.time - start.time)
        latencies = [transaction.ms for transaction in seen]
        messages = len(seen) * each
        return Sample(
            messages=messages,
            seconds=end.time - start.time,
            p50_ms=percentile(latencies, 0.5),
            p99_ms=percentile(latencies, 0.99),
            cpu_us=(end.cpu - start.cpu) / messages * 1e6,
            wal_bytes=(end.wal - start.wal) / messages,
        )

    def whole(self, each: float = 1) -> Sample:
        """The whole run, for a number of transactions given. The clock runs from the first of them to the last."""
        sample = self.between(self.points[0], self.points[-1], each)
        first = min(transaction.ended - transaction.ms / 1000 for transaction in self.transactions)
        return dataclasses.replace(sample, seconds=self.transactions[-1].ended - first)

    def steady(self, lead: float, each: float = 1) -> Sample:
        """What came after the sessions had begun, so many seconds, and before the first of them ended."""
        begun = self.transactions[0].ended + lead
        inside = [point for point in self.points if begun <= point.time <= self.until]
        if len(inside) >= 2:
            sample = self.between(inside[0], inside[-1], each)
            if sample.messages >= 10 * each:
                return sample
        # Calls so long that it would matter where the first and the last are cut.
        return self.whole(each)


def find() -> str:
    """The program itself, not the wrapper by which Debian picks one."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/pgbench"), key=lambda path: int(path.parts[4]))
    program = str(found[-1]) if found else shutil.which("pgbench")
    if program is None:
        raise Unavailable("pgbench is missing: install it (Debian: postgresql-15)")
    return program


@contextlib.contextmanager
def start(
    place: Place,
    database: str,
    script: str,
    *,
    clients: int = 1,
    seconds: float | None = None,
    transactions: int | None = None,
    rate: float | None = None,
    variables: Mapping[str, object] | None = None,
    protocol: str = "prepared",
    options: str = "",
) -> Iterator[tuple[subprocess.Popen[str], pathlib.Path]]:
    """Runs a script in a database; the block gets the process and the directory of its logs."""
    with tempfile.TemporaryDirectory(dir=place.directory) as name:
        directory = pathlib.Path(name)
        (directory / "script.sql").write_text(script)
        command = [find(), "--no-vacuum", f"--protocol={protocol}", f"--client={clients}", f"--jobs={min(clients, 2)}"]
        command += ["--log", f"--log-prefix={directory / 'log'}", f"--file={directory / 'script.sql'}"]
        command += [f"--time={math.ceil(seconds)}"] if seconds else [f"--transactions={transactions}"]
        command += [f"--rate={rate}"] if rate else []
        command += [f"--define={key}={value}" for key, value in (variables or {}).items()]
        environment = {**place.cluster.environment, "PGOPTIONS": f"-c client_min_messages=warning {options}"}
        process = subprocess.Popen(
            [*command, database], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            yield process, directory
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def finish(process: subprocess.Popen[str], directory: pathlib.Path) -> list[Transaction]:
    """Waits for a run to end, and reads its log."""
    _, told = process.communicate()
    errors = [line for line in told.splitlines() if "rror:" in line or "ERROR:" in line]
    if process.returncode or errors:
        # The first line alone: the context may hold the SQL of a rival.
        raise RuntimeError(f"pgbench: {(errors or ['no message'])[0]}")
    found = []
    for path in directory.glob("log.*"):
        with path.open() as lines:
            for line in lines:
                client, _, us, _, epoch, fraction, *lag = map(int, line.split())
                found.append(Transaction(client, epoch + fraction / 1e6, (us - sum(lag)) / 1000))
    if not found:
        raise RuntimeError("pgbench: no client was done once in the time given")
    return sorted(found, key=lambda transaction: transaction.ended)


def run(place: Place, database: str, script: str, meter: Meter, *, interval: float = 0.1, **options) -> Outcome:
    """Runs a script to its end, with the meters read all along."""
    with meter.watch(interval) as points, start(place, database, script, **options) as (process, directory):
        transactions = finish(process, directory)
    return Outcome(transactions, points)
