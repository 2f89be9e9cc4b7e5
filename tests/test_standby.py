"""A standby, its promotion, and a crash: what can be asked in recovery, and that no id is given twice."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
from collections.abc import Iterator

import psycopg
import pytest
import servers
from conftest import call, eventually, unique, version_of_run
from psycopg import errors
from psycopg.types.json import Jsonb
from standbys import standby_of, wait_for


@pytest.fixture(scope="module")
def primary(request: pytest.FixtureRequest) -> Iterator[servers.Cluster]:
    with servers.cluster(servers.get_major(version_of_run(request.config))) as cluster:
        with connect(cluster) as db:
            db.execute("create extension pgmq cascade")
        yield cluster


@pytest.fixture(scope="module")
def standby(primary: servers.Cluster) -> Iterator[servers.Cluster]:
    with standby_of(primary) as cluster:
        yield cluster


def connect(cluster: servers.Cluster) -> psycopg.Connection:
    connection = psycopg.connect(cluster.dsn(), autocommit=True)
    connection.execute("set client_min_messages = warning")
    return connection


def ids(rows: list) -> list[int]:
    return [row[0] for row in rows]


def send(db: psycopg.Connection, queue: str, count: int) -> list[int]:
    return ids(call(db, "send_batch", queue, [Jsonb(n) for n in range(count)]))


def archive(db: psycopg.Connection, queue: str, messages: list[int]) -> list[int]:
    return ids(db.execute("select pgmq.archive(%s, %s::bigint[])", [queue, messages]).fetchall())


def children(process: int) -> list[int]:
    """The processes that a process has started, by what the kernel says."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(path.parent.name))
    return found


def is_running(process: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(cluster: servers.Cluster) -> None:
    """End all processes of a server at once, as a dead machine does."""
    postmaster = int((cluster.directory / "data" / "postmaster.pid").read_text().splitlines()[0])
    # Stopped first, so that it starts no other in place of those that end.
    os.kill(postmaster, signal.SIGSTOP)
    processes = [*children(postmaster), postmaster]
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    eventually(lambda: not any(map(is_running, processes)))
    # Where nobody buries a process its number is not free, and the files would keep the next server from starting.
    (cluster.directory / "data" / "postmaster.pid").unlink()
    (cluster.directory / f".s.PGSQL.{cluster.port}.lock").unlink()


def test_in_recovery_all_that_only_looks_works(primary: servers.Cluster, standby: servers.Cluster) -> None:
    with connect(primary) as db, connect(standby) as session:
        logged, unlogged = unique(), unique()
        call(db, "create", logged)
        call(db, "create_unlogged", unlogged)
        for queue in (logged, unlogged):
            call(db, "send_batch", queue, [Jsonb(n) for n in range(5)])
            call(db, "read", queue, 3600, 2)
            call(db, "bind_topic", "orders.*", queue)
            call(db, "enable_notify_insert", queue, 250)
        wait_for(session, db)

        figures = {row.queue_name: row for row in call(session, "metrics_all")}
        assert figures.keys() == {row.queue_name for row in call(db, "metrics_all")}
        # The standby knows the sequence as it will be after a crash, up to 32 ids ahead.
        assert 5 <= figures[logged].total_messages <= 37
        assert (figures[logged].queue_length, figures[logged].queue_visible_length) == (5, 3)
        assert call(session, "metrics", logged)[0]._replace(
            scrape_time=None, newest_msg_age_sec=None, oldest_msg_age_sec=None
        ) == figures[logged]._replace(scrape_time=None, newest_msg_age_sec=None, oldest_msg_age_sec=None)
        for row in (figures[unlogged], *call(session, "metrics", unlogged)):
            assert row.scrape_time is not None
            assert row._replace(scrape_time=None) == (unlogged, *[None] * 7)

        assert call(session, "list_queues") == call(db, "list_queues")
        assert [row.queue_name for row in call(session, "list_queues") if row.is_unlogged] == [unlogged]
        assert call(session, "list_topic_bindings") == call(db, "list_topic_bindings")
        assert call(session, "list_topic_bindings", logged) == call(db, "list_topic_bindings", logged)
        assert {row.queue_name for row in call(session, "test_routing", "orders.new")} == {logged, unlogged}
        throttles = call(session, "list_notify_insert_throttles")
        assert {(row.queue_name, row.throttle_interval_ms) for row in throttles} == {(logged, 250), (unlogged, 250)}
        call(session, "validate_queue_name", "orders")
        call(session, "validate_routing_key", "orders.new")
        call(session, "validate_topic_pattern", "orders.*")
        assert call(session, "format_table_name", "Orders", "q") == [("q_orders",)]
        with pytest.raises(errors.UndefinedTable):
            call(session, "metrics", unique())
        assert session.execute(f"select count(*) from pgmq.a_{unlogged}").fetchone() == (0,)

        for query in (
            "select pgmq.send(%s, '1')",
            "select pgmq.send_batch(%s, array['1', '2']::jsonb[])",
            "select pgmq.read(%s, 30, 1)",
            "select pgmq.read(%s, 30, 10)",
            "select pgmq.pop(%s)",
            "select pgmq.pop(%s, 10)",
            "select pgmq.read_grouped(%s, 30, 10)",
            "select pgmq.set_vt(%s, 1, 30)",
            "select pgmq.delete(%s, 1)",
            "select pgmq.archive(%s, 1)",
            "select pgmq.purge_queue(%s)",
            "select pgmq.create(%s || 'x')",
        ):
            with pytest.raises(errors.ReadOnlySqlTransaction):
                session.execute(query, [logged])
        for queue in (logged, unlogged):
            call(db, "drop_queue", queue)


def test_after_a_promotion_queues_go_on_and_no_id_is_given_twice(
    primary: servers.Cluster, standby: servers.Cluster
) -> None:
    logged, unlogged = unique(), unique()
    with connect(primary) as db:
        call(db, "create", logged)
        call(db, "create_unlogged", unlogged)
        given = {
            queue: ids(call(db, "send_batch", queue, [Jsonb(n) for n in range(300)])) for queue in (logged, unlogged)
        }
        for queue in (logged, unlogged):
            # The hints stand far from the beginning.
            while ids(call(db, "read", queue, 3600, 50))[-1] < 250:
                pass
            call(db, "delete", queue, list(range(1, 100)))
            archive(db, queue, [100, 101])
        call(db, "set_vt", logged, 102, 0)
        call(db, "enable_notify_insert", logged, 250)
        with connect(standby) as session:
            wait_for(session, db)
    standby.control("promote")
    with connect(standby) as session:
        session.execute(f'listen "pgmq.q_{logged}.INSERT"')
        assert ids(call(session, "read", logged, 30, 10)) == [102, *range(251, 260)]
        assert call(session, "read", unlogged, 30, 10) == []
        assert call(session, "metrics", unlogged)[0].queue_length == 0
        for queue in (logged, unlogged):
            again = send(session, queue, 300)
            assert min(again) > max(given[queue])
            assert archive(session, queue, again) == again
        assert len(list(session.notifies(timeout=10, stop_after=1))) == 1


def test_after_a_crash_no_id_is_given_twice(primary: servers.Cluster) -> None:
    logged, unlogged = unique(), unique()
    with connect(primary) as db:
        call(db, "create", logged)
        call(db, "create_unlogged", unlogged)
        given = {queue: send(db, queue, 40) for queue in (logged, unlogged)}
        for queue in (logged, unlogged):
            archive(db, queue, [1, 2, 40])
        kill(primary)
    primary.control("start")
    with connect(primary) as db:
        assert call(db, "metrics", logged)[0].queue_length == 37
        assert call(db, "metrics", unlogged)[0].queue_length == 0
        for queue in (logged, unlogged):
            again = send(db, queue, 40)
            assert min(again) > max(given[queue])
            assert archive(db, queue, again) == again
            call(db, "drop_queue", queue)


def test_compile_has_an_unlogged_queue_keep_its_ids(primary: servers.Cluster) -> None:
    """Queues of the reference, and of PostgreSQL 15 and later, have an identity that a crash sets back."""
    queue = unique()
    with connect(primary) as db:
        if db.info.server_version < 150000:
            pytest.skip("sequences are always logged")
        call(db, "create_unlogged", queue)

        def persistence() -> str:
            name = db.execute("select pg_get_serial_sequence(%s, 'msg_id')", [f"pgmq.q_{queue}"]).fetchone()[0]
            return db.execute("select relpersistence::text from pg_class where oid = %s::regclass", [name]).fetchone()[
                0
            ]

        assert persistence() == "p"
        db.execute(f"alter sequence pgmq.q_{queue}_msg_id_seq set unlogged")
        assert ids(call(db, "send", queue, Jsonb(1))) == [1]
        call(db, "compile", queue)
        assert persistence() == "p"
        assert ids(call(db, "send", queue, Jsonb(1))) == [2]
        assert ids(call(db, "read", queue, 30, 10)) == [1, 2]
        call(db, "drop_queue", queue)
