"""What a queue costs does not grow with the number of queues. Counted in rows and memory, not in time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import psycopg
import pytest
import servers
from conftest import Database, call

QUEUES = 300
# Where queues leave rows.
CATALOGS = [
    "pg_attrdef",
    "pg_attribute",
    "pg_class",
    "pg_constraint",
    "pg_depend",
    "pg_description",
    "pg_index",
    "pg_proc",
    "pg_sequence",
    "pg_type",
    "meta",
]


@pytest.fixture(scope="module")
def full(make_database: Callable[..., Database]) -> Iterator[Database]:
    """A database with many queues."""
    database = make_database()
    db = database.connect()
    for number in range(QUEUES):
        call(db, "create", f"queue {number}" if number % 2 else f"queue_{number}")
    db.execute("analyze")
    yield database
    database.close()


@pytest.fixture
def session(full: Database) -> Iterator[psycopg.Connection]:
    """A session that has its plans, and what the extension keeps.

    A table of three pages, as meta has them, is read whole unless that is dear.
    """
    connection = full.connect()
    connection.execute("set seq_page_cost = 100")
    call(connection, "create", "first")
    call(connection, "drop_queue", "first")
    yield connection
    full.close()


@pytest.mark.parametrize("name", ["one more", "one_more"])
def test_to_create_and_to_drop_a_queue_reads_no_more_rows_than_belong_to_it(
    session: psycopg.Connection, name: str
) -> None:
    def rows_scanned() -> dict[str, int]:
        return dict(
            session.execute(
                """
                select relname::text, seq_tup_read
                from pg_stat_xact_all_tables
                where relname = any (%s)
                    and schemaname in ('pg_catalog', 'pgmq')
                    and seq_tup_read > 0
                """,
                [CATALOGS],
            )
        )

    for function in ("create", "compile", "create_fifo_index", "drop_queue"):
        with session.transaction():
            call(session, function, name)
            assert rows_scanned() == {}, function


def memory(connection: psycopg.Connection, name: str) -> int:
    return connection.execute(
        "select coalesce(sum(total_bytes), 0)::bigint from pg_backend_memory_contexts where name like %s", [name]
    ).fetchone()[0]


def test_a_session_that_creates_queues_keeps_nothing_of_them(session: psycopg.Connection) -> None:
    before = memory(session, "PL/pgSQL function")
    for number in range(50):
        call(session, "create", f"more {number}")
    assert memory(session, "PL/pgSQL function") - before < 64 * 1024
    for number in range(50):
        call(session, "drop_queue", f"more {number}")


def test_what_a_session_keeps_of_a_queue_that_it_uses(session: psycopg.Connection) -> None:
    def use(number: int) -> None:
        name = f"queue {2 * number + 1}"
        call(session, "send", name, psycopg.types.json.Jsonb(1))
        (message,) = call(session, "read", name, 30, 1)
        call(session, "delete", name, message.msg_id)

    for number in range(5):
        use(number)
    before = memory(session, "%")
    for number in range(5, 55):
        use(number)
    assert (memory(session, "%") - before) / 50 < 400_000


# What each row of the table in the manual stands for, with a queue's name for %s.
LOCKERS = {
    "`metrics_all()`": "select count(*) from pgmq.metrics_all()",
    "`send` to each": "select pgmq.send({}, '1')",
    "`send`, `read`, `delete` in each": (
        "select pgmq.send({0}, '1'); select pgmq.delete({0}, msg_id) from pgmq.read({0}, 0, 1)"
    ),
    "`purge_queue` of each": "select pgmq.purge_queue({})",
    "`create`": "select pgmq.create('new ' || {})",
    "`create_fifo_indexes_all()`": "select pgmq.create_fifo_index({})",
    "`drop_queue` of each": "select pgmq.drop_queue({})",
}


@pytest.mark.parametrize("row", LOCKERS)
def test_a_transaction_takes_no_more_locks_per_queue_than_the_manual_says(full: Database, row: str) -> None:
    told = dict(re.findall(r"^\| (.*?) +\| (\d+) \|$", (servers.ROOT / "docs" / "tuning.md").read_text(), re.M))
    watcher, worker = full.connect(), full.connect(autocommit=False)

    def work(queues: int) -> int:
        for number in range(queues):
            worker.execute(LOCKERS[row].format(f"'queue_{2 * number}'"), prepare=False)
        # The server keeps an object that is locked in several modes in one place.
        locks = watcher.execute(
            """
            select count(distinct row(locktype, database, relation, classid, objid, objsubid)::text)
            from pg_locks
            where pid = %s
            """,
            [worker.info.backend_pid],
        ).fetchone()[0]
        worker.rollback()
        return locks

    if row == "`metrics_all()`":
        measured = work(1) / QUEUES
        assert round(measured) == int(told[row])
    else:
        measured = (work(20) - work(10)) / 10
        assert int(told[row]) * 0.3 <= measured <= int(told[row])
    full.close()
