"""The figures of queues where something is odd: times, types, rows of pgmq.meta, names. (Usual queues are in
test_messages.py, standbys in test_standby.py.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from conftest import Database, call, error_of, unique
from psycopg import errors
from psycopg.types.json import Jsonb

MAXIMUM, MINIMUM = 2147483647, -2147483648


@pytest.fixture
def own(make_database: Callable[..., Database]) -> Iterator[Database]:
    """A database whose list of queues the test may spoil."""
    database = make_database()
    yield database
    database.close()


@pytest.mark.parametrize(
    ("enqueued_at", "age"),
    [
        ("-infinity", None),
        ("infinity", None),
        ("4713-01-01 00:00:00+00 BC", MAXIMUM),
        ("1950-01-01 00:00:00+00", MAXIMUM),
        ("294276-12-31 23:59:59+00", MINIMUM),
    ],
)
def test_an_age_that_no_integer_can_hold(db: psycopg.Connection, queue: str, enqueued_at: str, age: int | None) -> None:
    call(db, "send", queue, Jsonb(1))
    db.execute(f"update pgmq.q_{queue} set enqueued_at = %s", [enqueued_at])
    (row,) = call(db, "metrics", queue)
    assert (row.newest_msg_age_sec, row.oldest_msg_age_sec, row.queue_length) == (age, age, 1)
    assert [row.oldest_msg_age_sec for row in call(db, "metrics_all") if row.queue_name == queue] == [age]
    # Of the newest and the oldest each has its own.
    call(db, "send", queue, Jsonb(2))
    (row,) = call(db, "metrics", queue)
    ages = (row.newest_msg_age_sec, row.oldest_msg_age_sec)
    assert sum(known in (0, 1) for known in ages) == 1
    assert age in ages


def test_metrics_all_leaves_out_what_is_no_queue(own: Database) -> None:
    db = own.connect()
    for queue in ("one", "Two", "gone"):
        call(db, "create", queue)
    call(db, "send", "Two", Jsonb(1))
    # As an owner's DROP TABLE leaves it, or somebody's INSERT.
    db.execute("drop table pgmq.q_gone")
    names = ["never", "", "view", "odd"]
    db.execute(
        "insert into pgmq.meta (queue_name, is_partitioned, is_unlogged) select unnest(%s::text[]), false, false",
        [names],
    )
    db.execute("create view pgmq.q_view as table pgmq.q_one")
    db.execute("create table pgmq.q_odd (msg_id bigint, enqueued_at text, vt timestamptz)")
    figures = {row.queue_name: row.queue_length for row in call(db, "metrics_all")}
    assert figures == {"one": 0, "Two": 1}
    for name in ("never", "gone", "view"):
        with error_of(errors.UndefinedTable, "does not exist"):
            call(db, "metrics", name)


@pytest.mark.parametrize("column", ["enqueued_at", "vt"])
@pytest.mark.parametrize("type", ["text", "timestamp", "own.moment", None])
def test_metrics_refuses_a_table_with_other_columns(
    db: psycopg.Connection, queue: str, column: str, type: str | None
) -> None:
    """What it would run is the other type's, as whoever asks."""
    db.execute("create schema own; create domain own.moment as timestamptz check (value is not null)")
    name = unique()
    try:
        db.execute(f"create table pgmq.q_{name} (like pgmq.q_{queue} including defaults including identity)")
        db.execute(
            f"alter table pgmq.q_{name} drop {column}"
            if type is None
            else f"alter table pgmq.q_{name} alter {column} drop default, alter {column} type {type}"
        )
        with error_of(errors.DatatypeMismatch, "is not the table of a queue", "types that pgmq.create gives"):
            call(db, "metrics", name)
    finally:
        db.execute(f"drop table if exists pgmq.q_{name}")
        db.execute("drop schema own cascade")


def test_metrics_without_a_sequence_of_ids_know_no_total(db: psycopg.Connection, queue: str) -> None:
    call(db, "send", queue, Jsonb(1))
    db.execute(f"alter table pgmq.q_{queue} alter msg_id drop identity")
    (row,) = call(db, "metrics", queue)
    assert (row.queue_length, row.total_messages) == (1, None)


@pytest.mark.parametrize("collation", ["nondeterministic", "turkish"])
def test_metrics_of_a_name_with_a_collation_of_its_own(db: psycopg.Connection, collation: str) -> None:
    options = {
        "nondeterministic": "provider = icu, locale = 'und-u-ks-level2', deterministic = false",
        "turkish": "provider = icu, locale = 'tr-TR'",
    }
    queue = unique("I")
    call(db, "create", queue)
    db.execute("create schema own")
    try:
        db.execute(f"create collation own.odd ({options[collation]})")
        db.execute(f"create table own.listed (name text collate own.odd); insert into own.listed values ('{queue}')")
        query = "select m.queue_name, m.queue_length from own.listed as l, pgmq.metrics(l.name) as m"
        assert db.execute(query).fetchall() == [(queue, 0)]
    finally:
        db.execute("drop schema own cascade")
        call(db, "drop_queue", queue)


def test_metrics_run_no_operator_of_the_caller_s_path(db: psycopg.Connection, queue: str) -> None:
    """One whose arguments fit better than those of PostgreSQL's own would be taken, wherever it stands in the path."""
    call(db, "send", queue, Jsonb(1))
    db.execute("create schema own")
    try:
        for left, operator, right in (
            ("oid", "=", "regclass"),
            ("oid", "=", "regnamespace"),
            ("bigint", "=", "integer"),
            ("name", "=", "varchar"),
            ("real", ">", "integer"),
            ("numeric", "*", "integer"),
            ("text", "||", "name"),
            ("varchar", "=", "text"),
        ):
            name = f"trap_{unique()}"
            result = left if operator in "*||" else "boolean"
            db.execute(
                f"create function own.{name}({left}, {right}) returns {result} language plpgsql"
                " as $$ begin raise exception 'trapped'; end $$"
            )
            db.execute(f"create operator own.{operator} (leftarg = {left}, rightarg = {right}, function = own.{name})")
        for signature in ("length(varchar)", "isfinite(interval)", "pg_get_serial_sequence(name, name)"):
            db.execute(
                f"create function own.{signature} returns integer language plpgsql"
                " as $$ begin raise exception 'trapped'; end $$"
            )
        db.execute("set search_path = own, public")
        assert call(db, "metrics", queue)[0].queue_length == 1
        assert (queue, 1) in [row[:2] for row in call(db, "metrics_all")]
    finally:
        db.execute("reset search_path")
        db.execute("drop schema own cascade")
