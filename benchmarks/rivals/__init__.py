"""What a rival is: what it promises and lacks, and how it sends and consumes.

A rival belongs to a module of its family, whose RIVALS lists its classes. It may drive pgbench (sql.py), or be a
worker: a process in any language that reads one JSON object a line and answers one a line.

    {"op": "setup", "dsn": ..., "payload": bytes}           an empty queue
    {"op": "send", "count": N, "batch": B, "clients": C}    send N messages
    {"op": "consume", "count": N, "clients": C}             receive and acknowledge N messages that were sent before
    {"op": "cycle", "clients": C, "seconds": S}             each client sends one, receives one, acknowledges it
    {"op": "teardown"}                                      the queue goes

Setup and teardown are answered by {"ok": true}, the others by {"messages": N, "seconds": S, "latency_ms": {"p50": ...,
"p99": ...}}, and what goes wrong by {"error": "one line"}. A latency is that of a batch in send, of one message in
consume, of a whole round in cycle. Clients connect before the clock runs. CPU time and WAL are measured from outside.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, ClassVar

import psycopg
import psycopg.sql
import servers

from benchmarks.measure import Meter

MODULES = ("sql", "python", "node", "redis", "rabbitmq")


class Unavailable(Exception):
    """Why a rival cannot run here, in one line."""


@dataclasses.dataclass
class Sample:
    """What one run of one scenario gave. Times are of one message, but for the latencies, which are of one call."""

    messages: float
    seconds: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_us: float | None = None
    wal_bytes: float | None = None
    # What a scenario measures besides, and how it went over time.
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    series: list[dict[str, float | None]] = dataclasses.field(default_factory=list)

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds


@dataclasses.dataclass(frozen=True)
class Place:
    """Where rivals run: the cluster that they share, and a directory for their files."""

    cluster: servers.Cluster
    directory: pathlib.Path
    # How pgbench sends the statements of ours and of the reference.
    protocol: str = "prepared"

    @functools.cached_property
    def observer(self) -> psycopg.Connection:
        return psycopg.connect(self.cluster.dsn(), autocommit=True)

    def wal(self) -> float:
        """How many bytes of WAL the server has ever written."""
        return float(self.observer.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()[0])

    @property
    def postmaster(self) -> int:
        return int((self.cluster.directory / "data" / "postmaster.pid").read_text().split()[0])

    def make_database(self, name: str) -> str:
        """Make an empty database, and return how to connect to it."""
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as connection:
            identifier = psycopg.sql.Identifier(name)
            connection.execute(psycopg.sql.SQL("drop database if exists {} with (force)").format(identifier))
            connection.execute(psycopg.sql.SQL("create database {} template template0").format(identifier))
        return self.cluster.dsn(name)


class Rival(abc.ABC):
    """One queue. Calls come in this order: install, then any number of setup, ..., teardown, and at last close."""

    name: ClassVar[str]
    # What a user may rely on, what they may not, and what it does better than pgmq: a sentence each.
    promises: ClassVar[str]
    lacks: ClassVar[str]
    better: ClassVar[str]
    # The kinds of scenarios it can take part in, see scenarios.py. A worker's: send, send_batch, consume, cycle.
    supports: ClassVar[frozenset[str]]
    most_clients: ClassVar[int] = 256
    # Whether its messages are in the PostgreSQL server, so that WAL can be counted.
    in_postgres: ClassVar[bool] = True

    def __init__(self, place: Place) -> None:
        self.place = place
        self.version = "unknown"

    @abc.abstractmethod
    def install(self) -> None:
        """Get it and set version, or raise Unavailable."""

    def processes(self) -> list[int]:
        """The processes whose trees do its server's work."""
        return [self.place.postmaster]

    @property
    def meter(self) -> Meter:
        return Meter(self.processes(), self.place.wal if self.in_postgres else None)

    @abc.abstractmethod
    def setup(self, payload: int) -> None:
        """Make an empty queue, for messages of so many bytes."""

    @abc.abstractmethod
    def send(self, count: int, batch: int, clients: int) -> Sample: ...

    @abc.abstractmethod
    def consume(self, count: int, clients: int) -> Sample: ...

    @abc.abstractmethod
    def cycle(self, clients: int, seconds: float) -> Sample: ...

    @abc.abstractmethod
    def teardown(self) -> None:
        """Remove the queue."""

    def close(self) -> None:  # noqa: B027  most have nothing to stop
        """Stop what install has started."""


class Worker(Rival):
    """A rival in a process of its own. It must set command (and dsn, if not the database made for it) in install."""

    command: list[str | os.PathLike[str]]
    dsn: str
    environment: ClassVar[dict[str, str]] = {}

    def install(self) -> None:
        if self.in_postgres:
            self.dsn = self.place.make_database(self.name)

    def setup(self, payload: int) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **self.environment},
            )
        self.ask(op="setup", dsn=self.dsn, payload=payload)

    @property
    def log(self) -> pathlib.Path:
        return self.place.directory / f"{self.name}.log"

    def ask(self, **request: object) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        last = (self.log.read_text().splitlines() or ["no message"])[-1]
        answer = json.loads(line) if line else {"error": f"its worker ended: {last}"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {request['op']}: {answer['error']}")
        return answer

    def sample(self, **request: object) -> Sample:
        meter = self.meter
        before = meter.read()
        answer = self.ask(**request)
        after = meter.read()
        messages, latency = answer["messages"], answer.get("latency_ms", {})
        return Sample(
            messages,
            answer["seconds"],
            latency.get("p50"),
            latency.get("p99"),
            (after.cpu - before.cpu) / messages * 1e6,
            (after.wal - before.wal) / messages if self.in_postgres else None,
        )

    def send(self, count: int, batch: int, clients: int) -> Sample:
        return self.sample(op="send", count=count, batch=batch, clients=clients)

    def consume(self, count: int, clients: int) -> Sample:
        return self.sample(op="consume", count=count, clients=clients)

    def cycle(self, clients: int, seconds: float) -> Sample:
        return self.sample(op="cycle", clients=clients, seconds=seconds)

    def teardown(self) -> None:
        try:
            self.ask(op="teardown")
        finally:
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def all_rivals() -> dict[str, type[Rival]]:
    """The classes of all rivals by their names."""
    found: dict[str, type[Rival]] = {}
    for module in MODULES:
        found |= {rival.name: rival for rival in importlib.import_module(f"{__name__}.{module}").RIVALS}
    return found


def python() -> str:
    """The interpreter of the benchmarks' environment, for workers in Python."""
    return sys.executable
