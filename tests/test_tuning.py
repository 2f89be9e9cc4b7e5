"""docs/tuning.md tells the truth: its settings start a server, its statements run there, and its query finds whoever
holds back the vacuum."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import psycopg
import pytest
import servers
from conftest import call, eventually, version_of_run

MANUAL = (servers.ROOT / "docs" / "tuning.md").read_text()
SETTINGS = dict(
    line.split(" = ")
    for block in re.findall(r"^```conf\n(.*?)^```$", MANUAL, re.M | re.S)
    for line in block.splitlines()
)
STATEMENTS = [
    statement.strip()
    for block in re.findall(r"^```sql\n(.*?)^```$", MANUAL, re.M | re.S)
    for statement in block.split(";\n")
    if statement.strip()
]
HOLDERS = next(statement for statement in STATEMENTS if "pg_prepared_xacts" in statement)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[servers.Cluster]:
    """A server with the settings of the manual, and what the tests need beside them."""
    more = {"wal_level": "logical", "max_prepared_transactions": 1, "wal_receiver_status_interval": "1s"}
    with servers.cluster(servers.get_major(version_of_run(request.config)), **SETTINGS, **more) as cluster:
        with connect(cluster.dsn()) as connection:
            connection.execute("create extension pgmq cascade")
            connection.execute("create database other")
        yield cluster


def connect(dsn: str, **options: object) -> psycopg.Connection:
    connection = psycopg.connect(dsn, **{"autocommit": True, **options})
    connection.execute("set client_min_messages = warning")
    if not connection.autocommit:
        connection.commit()
    return connection


@pytest.fixture
def db(cluster: servers.Cluster) -> Iterator[psycopg.Connection]:
    with connect(cluster.dsn()) as connection:
        yield connection


def test_a_server_takes_the_settings(db: psycopg.Connection) -> None:
    assert len(SETTINGS) >= 5
    for name, value in SETTINGS.items():
        shown = db.execute(f"show {name}").fetchone()[0]
        # What "on" compresses with has a name from 15 on.
        assert shown == value or (name, shown) == ("wal_compression", "pglz"), name


def test_every_statement_runs(db: psycopg.Connection) -> None:
    for statement in STATEMENTS:
        db.execute(statement)
    assert len(STATEMENTS) >= 10
    assert [row.throttle_interval_ms for row in call(db, "list_notify_insert_throttles")] == [250]
    assert call(db, "drop_queue", "orders") == [(True,)]


def test_the_table_tells_the_storage_settings_of_a_queue_and_compile_sets_them_again(db: psycopg.Connection) -> None:
    told = dict(re.findall(r"^\| `((?:autovacuum|fillfactor)\w*)` \| (\S+) \|", MANUAL, re.M))
    call(db, "create", "orders")
    options = "select unnest(reloptions) from pg_class where oid = 'pgmq.q_orders'::regclass"
    before = dict(row[0].split("=") for row in db.execute(options))
    assert before == told
    db.execute("alter table pgmq.q_orders set (autovacuum_vacuum_threshold = 5000)")
    call(db, "compile", "orders")
    assert dict(row[0].split("=") for row in db.execute(options)) == told
    call(db, "drop_queue", "orders")


class Queue:
    """A queue in which messages are consumed, and what the vacuum finds to remove."""

    def __init__(self, db: psycopg.Connection) -> None:
        self.db = db
        self.told: list[str] = []
        db.add_notice_handler(lambda notice: self.told.append(f"{notice.message_primary} {notice.message_detail}"))
        call(db, "create", "held")

    def consume(self) -> None:
        """Nobody else sees a message of these."""
        with self.db.transaction():
            self.db.execute("select pgmq.send_batch('held', array_fill('1'::jsonb, array[100]))")
            self.db.execute("select count(*) from pgmq.pop('held', 100)")

    def dead_rows(self) -> int:
        """As the vacuum counts them that cannot remove them yet."""
        self.told.clear()
        self.db.execute("set client_min_messages = info")
        self.db.execute("vacuum (verbose, truncate off) pgmq.q_held")
        self.db.execute("set client_min_messages = warning")
        return sum(map(int, re.findall(r"(\d+) (?:are dead|dead row versions cannot)", " ".join(self.told))))

    def is_free(self) -> bool:
        """Nothing is held back. (An automatic ANALYZE may hold it for a moment.)"""
        return self.holders() == [] and self.dead_rows() == 0

    def holders(self) -> list[tuple[str, str]]:
        return [row[:2] for row in self.db.execute(HOLDERS)]


@pytest.fixture
def queue(db: psycopg.Connection) -> Iterator[Queue]:
    queue = Queue(db)
    queue.consume()
    eventually(queue.is_free)
    yield queue
    call(db, "drop_queue", "held")


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_session_with_an_open_transaction_is_found(cluster: servers.Cluster, queue: Queue, isolation: str) -> None:
    with connect(cluster.dsn(), autocommit=False) as holder:
        holder.execute(f"set transaction isolation level {isolation}")
        holder.execute("create temporary table mine ()" if isolation == "read committed" else "select 1")
        queue.consume()
        assert queue.dead_rows() > 0
        assert ("session", str(holder.info.backend_pid)) in queue.holders()
        holder.rollback()
        eventually(queue.is_free)


def test_a_read_that_waits_is_found(cluster: servers.Cluster, queue: Queue) -> None:
    with connect(cluster.dsn()) as holder:
        pid = holder.info.backend_pid
        holder.pgconn.send_query(b"select * from pgmq.read_with_poll('held', 30, 1, 60, 50)")
        eventually(lambda: queue.holders() == [("session", str(pid))])
        queue.consume()
        assert queue.dead_rows() > 0
        call(queue.db, "send", "held", "1")
        while holder.pgconn.get_result():
            pass
    eventually(queue.is_free)


def test_a_prepared_transaction_is_found(cluster: servers.Cluster, queue: Queue) -> None:
    with connect(cluster.dsn()) as holder:
        holder.execute("begin; create table mine (); prepare transaction 'forgotten'")
    queue.consume()
    assert queue.dead_rows() > 0
    assert queue.holders() == [("prepared transaction", "forgotten")]
    queue.db.execute("rollback prepared 'forgotten'")
    eventually(queue.is_free)


def test_a_session_of_another_database_and_a_logical_slot_hold_nothing_back(
    cluster: servers.Cluster, queue: Queue
) -> None:
    queue.db.execute("select pg_create_logical_replication_slot('decoding', 'test_decoding')")
    try:
        with connect(cluster.dsn("other"), autocommit=False) as holder:
            holder.execute("set transaction isolation level repeatable read")
            holder.execute("create temporary table mine ()")
            queue.consume()
            eventually(queue.is_free)
    finally:
        queue.db.execute("select pg_drop_replication_slot('decoding')")


def copy_if_there(source: str, target: str) -> None:
    """Files of a running server may go."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


@pytest.fixture
def standby(cluster: servers.Cluster, db: psycopg.Connection) -> Iterator[Callable[[str], str]]:
    """Starts a standby with feedback, with or without a slot, and returns how to connect to it."""
    # The path of a socket is short, and the server's user must read it.
    directory = pathlib.Path(tempfile.mkdtemp(prefix="pgmq-standby-", dir="/tmp"))
    control = [cluster.installation.bin / "pg_ctl", "-D", directory / "data", "-w", "-l", directory / "log"]
    options = {"cwd": directory, "capture_output": True, "text": True, **servers.unprivileged()}

    def start(slot: str) -> str:
        if slot:
            db.execute("select pg_create_physical_replication_slot(%s)", [slot])
        start_backup, stop_backup = (
            ("pg_start_backup('copy', true, false)", "pg_stop_backup(false, false)")
            if db.info.server_version < 150000
            else ("pg_backup_start('copy', true)", "pg_backup_stop(false)")
        )
        db.execute(f"select {start_backup}")
        shutil.copytree(
            cluster.directory / "data",
            directory / "data",
            ignore=shutil.ignore_patterns("postmaster.*", "pg_replslot"),
            copy_function=copy_if_there,
        )
        label = db.execute(f"select labelfile from {stop_backup}").fetchone()[0]
        (directory / "data" / "pg_replslot").mkdir()
        (directory / "data" / "backup_label").write_text(label)
        (directory / "data" / "standby.signal").touch()
        with open(directory / "data" / "postgresql.auto.conf", "a") as file:
            file.write(f"primary_conninfo = 'host={cluster.directory} port={cluster.port} user={cluster.superuser}'\n")
            file.write(f"primary_slot_name = '{slot}'\nhot_standby_feedback = on\n")
            file.write(f"unix_socket_directories = '{directory}'\n")
        directory.chmod(0o755)
        (directory / "data").chmod(0o700)
        if servers.is_root():
            identity = servers.unprivileged()
            for path in [directory, *directory.rglob("*")]:
                os.chown(path, identity["user"], identity["group"])
        run = subprocess.run([*control, "start"], **options)
        assert run.returncode == 0, (directory / "log").read_text()
        return f"host={directory} port={cluster.port} user={cluster.superuser} dbname=postgres"

    yield start
    subprocess.run([*control, "-m", "immediate", "stop"], **options)
    shutil.rmtree(directory)
    eventually(lambda: db.execute("select from pg_replication_slots where active").fetchall() == [])
    db.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots")


@pytest.mark.parametrize("slot", ["", "away"])
def test_a_query_on_a_standby_with_feedback_is_found(queue: Queue, standby: Callable[[str], str], slot: str) -> None:
    db = queue.db
    call(db, "create_unlogged", "fast")
    call(db, "send", "held", "1")
    with connect(standby(slot), autocommit=False) as holder:
        holder.execute("set transaction isolation level repeatable read")
        assert call(holder, "metrics", "held")[0].queue_length == 1
        expected = ("replication slot", "away") if slot else ("standby", "walreceiver")
        eventually(lambda: queue.holders() == [expected], 30)
        queue.consume()
        assert queue.dead_rows() > 0
        holder.rollback()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            call(holder, "read", "held", 30, 1)
        holder.rollback()
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="unlogged"):
            holder.execute("select count(*) from pgmq.q_fast")
        holder.rollback()
        # With feedback it is always listed, by then without holding anything.
        eventually(lambda: queue.dead_rows() == 0, 30)
        assert queue.holders() == [expected]
    call(db, "drop_queue", "fast")
