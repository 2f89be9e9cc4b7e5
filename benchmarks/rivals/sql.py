"""Queues that are SQL: ours, the reference, the bare table that is the limit, and PgQ. All are driven by pgbench.

Clients keep prepared statements, as psycopg, pgx and JDBC do; --protocol extended parses ours and the reference's at
each call.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import pathlib
import random
import string
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import pgmq.install
import psycopg
import servers
from psycopg import sql

from benchmarks import pgbench
from benchmarks.measure import Point, percentile
from benchmarks.rivals import Place, Rival, Sample, Unavailable

QUEUE = "bench"
BATCH = 100
# What can be asked of a table of messages.
TABLE_KINDS = frozenset(
    (
        "send",
        "send_batch",
        "consume",
        "read",
        "cycle",
        "payload",
        "parked",
        "backlog",
        "held_xmin",
        "readers",
        "overload",
    )
)


def payload_of(size: int) -> str:
    """A JSON object of so many bytes, which does not compress well."""
    letters = random.Random(size).choices(string.ascii_letters + string.digits, k=max(1, size - len('{"data": ""}')))
    return json.dumps({"data": "".join(letters)})


def array_literal(texts: list[str]) -> str:
    quoted = ('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return "{" + ",".join(quoted) + "}"


class SqlRival(Rival):
    """What runs inside the server. A script is what a client repeats; its variables are the statements' parameters."""

    database: ClassVar[str]
    table: ClassVar[str]
    send_script: ClassVar[str]
    batch_script: ClassVar[str]
    # A read of one message, which nothing follows.
    lease_script: ClassVar[str]
    # One transaction that takes one message and is done with it.
    consume_script: str
    # The same for several, with delete, archive or pop.
    read_script: Callable[[int, str], str]

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.payload = payload_of(20)

    def install(self) -> None:
        self.dsn = self.place.make_database(self.database)
        self.connection = psycopg.connect(self.dsn, autocommit=True)
        self.connection.execute("set client_min_messages = warning")

    def close(self) -> None:
        self.connection.close()

    @property
    def protocol(self) -> str:
        return self.place.protocol

    @property
    def variables(self) -> dict[str, object]:
        return {"queue": QUEUE, "payload": self.payload}

    def bench(self, script: str, variables: Mapping[str, object] | None = None, **options) -> pgbench.Outcome:
        variables = {**self.variables, **(variables or {})}
        return pgbench.run(
            self.place, self.database, script, self.meter, protocol=self.protocol, variables=variables, **options
        )

    def background(self, script: str, **options) -> contextlib.AbstractContextManager:
        """A script that runs while something else is measured."""
        return pgbench.start(
            self.place, self.database, script, protocol=self.protocol, variables=self.variables, **options
        )

    @staticmethod
    def finish(started: tuple[subprocess.Popen[str], pathlib.Path], points: list[Point]) -> pgbench.Outcome:
        return pgbench.Outcome(pgbench.finish(*started), points)

    def setup(self, payload: int) -> None:
        self.payload = payload_of(payload)
        self.create()

    def create(self) -> None:
        raise NotImplementedError

    def fill(self, count: int, *, parked: bool = False, groups: int = 0) -> None:
        """Put messages into the queue's table, invisible for an hour where parked, then do as autovacuum would."""
        self.connection.execute(
            f"""
            insert into {self.table} (vt, message, headers)
            select
                now() + make_interval(hours => %(hours)s),
                %(payload)s,
                case when %(groups)s > 0 then jsonb_build_object('x-pgmq-group', 'group ' || i %% %(groups)s) end
            from generate_series(1, %(count)s) i
            """,
            {"hours": int(parked), "payload": self.payload, "groups": groups, "count": count},
        )
        self.connection.execute(f"vacuum (analyze) {self.table}")

    def left(self) -> int:
        return self.connection.execute(f"select count(*) from {self.table}").fetchone()[0]

    def visible(self) -> int:
        return self.connection.execute(f"select count(*) from {self.table} where vt <= clock_timestamp()").fetchone()[0]

    @contextlib.contextmanager
    def held_xmin(self) -> Iterator[None]:
        """Another session with an open transaction that has an id."""
        with psycopg.connect(self.dsn) as holder:
            holder.execute("select pg_current_xact_id()")
            yield
            holder.rollback()

    def send(self, count: int, batch: int, clients: int) -> Sample:
        if batch == 1:
            return self.bench(self.send_script, clients=clients, transactions=count // clients).whole()
        script, variables = self.batch_script, {"payloads": array_literal([self.payload] * batch)}
        return self.bench(script, variables, clients=clients, transactions=count // batch // clients).whole(batch)

    def consume(self, count: int, clients: int) -> Sample:
        return self.bench(self.consume_script, clients=clients, transactions=count // clients).whole()

    @property
    def cycle_script(self) -> str:
        return self.send_script + self.consume_script

    def cycle(self, clients: int, seconds: float, options: str = "") -> Sample:
        # To plan the functions, and to connect before: pgbench's time runs from when it begins to.
        lead, connecting = 0.3 + clients / 128, clients / 128
        before = self.left()
        outcome = self.bench(self.cycle_script, clients=clients, seconds=connecting + lead + seconds, options=options)
        sample = outcome.steady(lead)
        # A read that came back empty has left a message.
        missed = max(0, self.left() - before) / len(outcome.transactions)
        sample.figures["missed"] = missed
        sample.messages = round(sample.messages * (1 - missed))
        return sample


class Pgmq(SqlRival):
    """The interface that ours and the reference share."""

    table = f"pgmq.q_{QUEUE}"
    supports = TABLE_KINDS | {"archive", "pop", "groups", "topics", "notify"}
    send_script = "select * from pgmq.send(:queue, :payload);\n"
    batch_script = "select * from pgmq.send_batch(:queue, :payloads);\n"
    lease_script = "select * from pgmq.read(:queue, 30, 1);\n"

    @staticmethod
    def read_script(quantity: int, verb: str) -> str:
        """Take messages and be done with them. pgbench keeps one row: the ids of several are put together for it."""
        if verb == "pop":
            return f"select * from pgmq.pop(:queue, {quantity});\n"
        if quantity == 1:
            # Without a message, none is deleted.
            return (
                "\\set msg_id 0\nbegin;\n"
                "select * from pgmq.read(:queue, 30, 1) \\aset\n"
                f"select pgmq.{verb}(:queue, :msg_id::bigint);\ncommit;\n"
            )
        return (
            f"begin;\nselect coalesce(array_agg(msg_id), '{{}}') as ids from pgmq.read(:queue, 30, {quantity}) \\gset\n"
            f"select * from pgmq.{verb}(:queue, :ids::bigint[]);\ncommit;\n"
        )

    consume_script = read_script(1, "delete")

    @staticmethod
    def grouped_script(function: str, quantity: int) -> str:
        return (
            "begin;\n"
            f"select coalesce(array_agg(msg_id), '{{}}') as ids from pgmq.{function}(:queue, 30, {quantity}) \\gset\n"
            "select * from pgmq.delete(:queue, :ids::bigint[]);\ncommit;\n"
        )

    def create(self) -> None:
        self.connection.execute("select pgmq.create(%s)", [QUEUE])

    def teardown(self) -> None:
        self.connection.execute("select pgmq.drop_queue(%s)", [QUEUE])

    def create_fifo_index(self) -> None:
        self.connection.execute("select pgmq.create_fifo_index(%s)", [QUEUE])

    def bind(self, bindings: int) -> None:
        """Bind so many patterns, of which one matches orders.1.created."""
        self.connection.execute(
            "select count(pgmq.bind_topic('orders.' || i || '.*', %s)::text) from generate_series(1, %s) i",
            [QUEUE, bindings],
        )
        self.connection.execute("vacuum (analyze) pgmq.topic_bindings")

    def notify(self) -> None:
        self.connection.execute("select pgmq.enable_notify_insert(%s)", [QUEUE])


class Ours(Pgmq):
    name = "pgmq"
    database = "ours"
    promises = (
        "At least once, a visibility timeout for each message, oldest first, readers that never wait for one another;"
        " as durable as the server; sends and deletes are part of the caller's transaction."
    )
    lacks = "Order among several readers, but for message groups; anything but polling and NOTIFY to wake a consumer."
    better = "This is the one."

    def install(self) -> None:
        super().install()
        self.connection.execute("create extension pgmq cascade")
        row = self.connection.execute("select extversion from pg_extension where extname = 'pgmq'").fetchone()
        self.version = row[0]


class Reference(Pgmq):
    name = "reference"
    database = "reference"
    promises = "The same as pgmq."
    lacks = "The same as pgmq."
    better = "It needs no PL/Python; hosting services offer it; years of use."

    def install(self) -> None:
        super().install()
        self.connection.execute(pgmq.install.get_embedded_install_sql())
        self.version = f"SQL 1.13.0, as PyPI's pgmq {importlib.metadata.version('pgmq')} ships it"


class BareTable(SqlRival):
    """The limit: the same rows and index entries written by statements on one table, with no function between."""

    name = "bare table"
    database = "bare"
    table = QUEUE
    promises = (
        "A lease by FOR UPDATE SKIP LOCKED and the same three writes (insert, update, delete) to a table with the same"
        " indexes."
    )
    lacks = (
        "Everything else: a read walks over delayed and leased messages and dead rows; no functions, archive, groups,"
        " topics."
    )
    better = "It is the least that these writes can cost."
    supports = TABLE_KINDS
    send_script = f"insert into {QUEUE} (vt, message) values (now(), :payload) returning msg_id;\n"
    batch_script = (
        f"insert into {QUEUE} (vt, message) select now(), message from unnest(:payloads::jsonb[]) message"
        " returning msg_id;\n"
    )

    claim = f"select ctid from {QUEUE} where vt <= now() order by msg_id for update skip locked limit"
    lease = (
        f"update {QUEUE} set vt = clock_timestamp() + interval '30 seconds', read_ct = read_ct + 1,"
        " last_read_at = clock_timestamp() where ctid"
    )
    lease_script = f"{lease} = ({claim} 1) returning *;\n"

    @classmethod
    def read_script(cls, quantity: int, verb: str) -> str:
        assert verb == "delete"
        if quantity == 1:
            return (
                f"\\set msg_id 0\nbegin;\n{cls.lease} = ({cls.claim} 1) returning * \\aset\n"
                f"delete from {QUEUE} where msg_id = :msg_id;\ncommit;\n"
            )
        return (
            f"begin;\nwith taken as ({cls.lease} = any (array({cls.claim} {quantity})) returning msg_id)"
            " select coalesce(array_agg(msg_id), '{}') as ids from taken \\gset\n"
            f"delete from {QUEUE} where msg_id = any (:ids::bigint[]) returning msg_id;\ncommit;\n"
        )

    protocol = "prepared"

    @property
    def consume_script(self) -> str:
        return self.read_script(1, "delete")

    def install(self) -> None:
        super().install()
        self.version = "prepared statements"

    def create(self) -> None:
        self.connection.execute(
            sql.SQL(
                """
                create table {0} (
                    msg_id bigint generated always as identity primary key,
                    read_ct integer not null default 0,
                    enqueued_at timestamptz not null default now(),
                    last_read_at timestamptz,
                    vt timestamptz not null,
                    message jsonb,
                    headers jsonb
                );
                create index on {0} (msg_id) where vt <= enqueued_at;
                create index on {0} (vt) where vt > enqueued_at
                """
            ).format(sql.Identifier(QUEUE))
        )

    def teardown(self) -> None:
        self.connection.execute(sql.SQL("drop table {}").format(sql.Identifier(QUEUE)))


class PgQ(SqlRival):
    name = "PgQ"
    database = "pgq"
    promises = (
        "Every event once for each registered consumer, in batches between two ticks, in the order of commits that the"
        " snapshots give; as durable as the server."
    )
    lacks = (
        "Several readers that share one consumer's work, a visibility timeout, acknowledgement of single messages,"
        " delay; nothing is seen before the next tick, for which a daemon must run."
    )
    better = "Reads write no row at all, and tables are rotated and truncated: nothing is left to vacuum."
    supports = frozenset(("send", "send_batch", "consume"))
    # One consumer takes each batch.
    most_clients = 1
    send_script = "select pgq.insert_event(:queue, 'message', :payload);\n"
    batch_script = "select pgq.insert_event(:queue, 'message', payload) from unnest(:payloads::text[]) payload;\n"

    def install(self) -> None:
        installation = self.place.cluster.installation
        # The cluster runs on a mirror of its installation, made before the package came.
        for directory, pattern in ((installation.share / "extension", "pgq*"), (installation.package_lib, "pgq*.so")):
            for path in self.packaged(installation, directory.name, pattern):
                target = directory / path.name
                if not target.exists():
                    target.symlink_to(path)
        super().install()
        self.connection.execute("create extension pgq")
        self.version = self.connection.execute("select pgq.version()").fetchone()[0]

    @staticmethod
    def packaged(installation: servers.Installation, directory: str, pattern: str) -> list[pathlib.Path]:
        """The files of Debian's package, which is installed first if it is for this server."""
        major = installation.major
        places = {
            "extension": pathlib.Path(f"/usr/share/postgresql/{major}/extension"),
            "lib": pathlib.Path(f"/usr/lib/postgresql/{major}/lib"),
        }
        package = f"postgresql-{major}-pgq3"
        if not (places["extension"] / "pgq.control").exists():
            if not pathlib.Path(f"/usr/lib/postgresql/{major}/bin/postgres").exists():
                raise Unavailable(f"PgQ is C for Debian's own server, and this PostgreSQL {major} is not Debian's")
            if not servers.has_apt():
                raise Unavailable(f"PgQ is missing: install {package}")
            try:
                servers.apt_install(package)
            except servers.Missing as missing:
                raise Unavailable(str(missing)) from missing
        return list(places[directory].glob(pattern))

    def create(self) -> None:
        self.connection.execute("select pgq.create_queue(%s)", [QUEUE])
        self.connection.execute("select pgq.register_consumer(%s, 'consumer')", [QUEUE])

    def consume(self, count: int, clients: int) -> Sample:
        """One consumer takes what there is, batch after batch, after a tick that the daemon would make."""
        self.connection.execute("select pgq.force_tick(%s)", [QUEUE])
        self.connection.execute("select pgq.ticker()")
        latencies, messages = [], 0
        meter = self.meter
        with meter.watch(0.2) as points, psycopg.connect(self.dsn, autocommit=True) as consumer:
            begun = time.perf_counter()
            while True:
                since = time.perf_counter()
                batch = consumer.execute("select pgq.next_batch(%s, 'consumer')", [QUEUE]).fetchone()[0]
                if batch is None:
                    break
                messages += len(consumer.execute("select * from pgq.get_batch_events(%s)", [batch]).fetchall())
                consumer.execute("select pgq.finish_batch(%s)", [batch])
                latencies.append((time.perf_counter() - since) * 1000)
            seconds = time.perf_counter() - begun
        if messages != count:
            raise RuntimeError(f"PgQ: {messages} events came of {count}")
        return Sample(
            messages,
            seconds,
            percentile(latencies, 0.5),
            percentile(latencies, 0.99),
            (points[-1].cpu - points[0].cpu) / messages * 1e6,
            (points[-1].wal - points[0].wal) / messages,
        )

    def teardown(self) -> None:
        self.connection.execute("select pgq.unregister_consumer(%s, 'consumer')", [QUEUE])
        self.connection.execute("select pgq.drop_queue(%s)", [QUEUE])


RIVALS = (Ours, Reference, BareTable, PgQ)
