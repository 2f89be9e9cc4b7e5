"""Queues inside the caller's transactions: isolation levels, savepoints, what commits and what rolls back."""

from __future__ import annotations

import psycopg
import pytest
from conftest import Database, call, unique
from psycopg import IsolationLevel, errors
from psycopg.types.json import Jsonb

LEVELS = [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
every_level = pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
frozen = pytest.mark.parametrize("level", LEVELS[1:], ids=lambda level: level.name)


def begin(database: Database, level: IsolationLevel) -> psycopg.Connection:
    session = database.connect()
    session.isolation_level = level
    session.autocommit = False
    return session


def ids(rows: list) -> list[int]:
    return [row[0] for row in rows]


@every_level
def test_every_function_works_in_a_transaction_that_commits(database: Database, level: IsolationLevel) -> None:
    session = begin(database, level)
    name = unique()
    call(session, "create", name)
    call(session, "send_batch", name, [Jsonb(n) for n in range(200)])
    assert ids(call(session, "read", name, 3600, 50)) == list(range(1, 51))
    assert ids(call(session, "read", name, 3600, 50)) == list(range(51, 101))
    assert ids(call(session, "set_vt", name, [7, 70], 0)) == [7, 70]
    assert ids(call(session, "read", name, 3600, 2)) == [7, 70]
    assert ids(call(session, "pop", name, 2)) == [101, 102]
    assert call(session, "delete", name, 103) == [(True,)]
    assert call(session, "archive", name, 104) == [(True,)]
    session.commit()
    assert ids(call(session, "read", name, 3600, 3)) == [105, 106, 107]
    figures = call(session, "metrics", name)[0]
    assert (figures.queue_length, figures.queue_visible_length, figures.total_messages) == (196, 93, 200)
    assert call(session, "purge_queue", name) == [(196,)]
    assert call(session, "drop_queue", name) == [(True,)]
    session.commit()


@every_level
def test_what_rolls_back_leaves_the_queue_as_it_was(
    database: Database, db: psycopg.Connection, queue: str, level: IsolationLevel
) -> None:
    call(db, "send_batch", queue, [Jsonb(n) for n in range(10)])
    call(db, "read", queue, 0, 10)
    everything = f"select * from pgmq.q_{queue} order by msg_id"
    before = db.execute(everything).fetchall()
    session = begin(database, level)
    call(session, "send", queue, Jsonb("sent"))
    call(session, "read", queue, 3600, 2)
    call(session, "pop", queue, 2)
    call(session, "delete", queue, 5)
    call(session, "archive", queue, 6)
    call(session, "set_vt", queue, 7, 3600)
    session.rollback()
    assert db.execute(everything).fetchall() == before
    assert db.execute(f"select count(*) from pgmq.a_{queue}").fetchone() == (0,)
    assert [row.read_ct for row in call(session, "read", queue, 30, 20)] == [2] * 10
    session.commit()


@every_level
def test_two_open_transactions_read_different_messages(
    database: Database, db: psycopg.Connection, queue: str, level: IsolationLevel
) -> None:
    call(db, "send_batch", queue, [Jsonb(n) for n in range(6)])
    one, other = begin(database, level), begin(database, level)
    other.execute("set lock_timeout = '5s'")
    assert ids(call(one, "read", queue, 3600, 2)) == [1, 2]
    assert ids(call(other, "read", queue, 3600, 2)) == [3, 4]
    assert ids(call(one, "pop", queue)) == [5]
    assert ids(call(other, "pop", queue)) == [6]
    assert call(one, "read", queue, 3600, 2) == []
    one.commit()
    given_back = []
    try:
        other.commit()
    except errors.SerializationFailure:
        # SERIALIZABLE may refuse one of two that looked at the same place; its messages are there for the next.
        assert level is IsolationLevel.SERIALIZABLE
        given_back = [3, 4, 6]
    assert ids(call(db, "read", queue, 30, 10)) == given_back


@every_level
def test_a_message_is_seen_once_it_is_committed(
    database: Database, db: psycopg.Connection, queue: str, level: IsolationLevel
) -> None:
    sender = begin(database, level)
    call(sender, "send", queue, Jsonb(1))
    assert call(db, "read", queue, 30, 1) == []
    sender.commit()
    assert ids(call(db, "read", queue, 30, 1)) == [1]


@frozen
def test_a_frozen_snapshot_sees_nothing_new(
    database: Database, db: psycopg.Connection, queue: str, level: IsolationLevel
) -> None:
    session = begin(database, level)
    session.execute("select count(*) from pgmq.meta")
    call(db, "send", queue, Jsonb(1))
    assert call(session, "read", queue, 30, 1) == []
    session.commit()
    assert ids(call(session, "read", queue, 30, 1)) == [1]
    session.commit()


@frozen
def test_a_message_that_another_reader_took_since_the_snapshot_is_not_handed_out_again(
    database: Database, db: psycopg.Connection, queue: str, level: IsolationLevel
) -> None:
    """The server refuses it as it refuses every such update: the transaction is to be tried again."""
    call(db, "send_batch", queue, [Jsonb(n) for n in range(2)])
    session = begin(database, level)
    session.execute("select count(*) from pgmq.meta")
    assert ids(call(db, "read", queue, 3600, 1)) == [1]
    with pytest.raises(errors.SerializationFailure):
        call(session, "read", queue, 3600, 1)
    session.rollback()
    assert ids(call(session, "read", queue, 3600, 1)) == [2]
    session.commit()


@every_level
def test_a_read_that_a_savepoint_takes_back_gives_its_messages_back(
    database: Database, db: psycopg.Connection, queue: str, level: IsolationLevel
) -> None:
    call(db, "send_batch", queue, [Jsonb(n) for n in range(200)])
    session = begin(database, level)
    for _ in range(5):
        with session.transaction(force_rollback=True):
            assert [(row.msg_id, row.read_ct) for row in call(session, "read", queue, 3600, 50)] == [
                (n, 1) for n in range(1, 51)
            ]
            assert ids(call(session, "pop", queue, 2)) == [51, 52]
            call(session, "delete", queue, 100)
    with session.transaction():
        assert ids(call(session, "read", queue, 3600, 2)) == [1, 2]
    with session.transaction(force_rollback=True):
        call(session, "send", queue, Jsonb("gone"))
    session.commit()
    assert [row.read_ct for row in call(db, "read", queue, 30, 300)] == [1] * 198


@every_level
def test_a_queue_that_a_savepoint_takes_back_can_be_created_again(database: Database, level: IsolationLevel) -> None:
    session = begin(database, level)
    name = unique()
    for _ in range(3):
        with session.transaction(force_rollback=True):
            call(session, "create", name)
            call(session, "send", name, Jsonb(1))
            assert ids(call(session, "read", name, 3600, 2)) == [1]
        with pytest.raises(errors.UndefinedTable), session.transaction():
            call(session, "send", name, Jsonb(1))
    call(session, "create", name)
    call(session, "send", name, Jsonb(1))
    with session.transaction(force_rollback=True):
        assert call(session, "drop_queue", name) == [(True,)]
        call(session, "create", name)
        assert call(session, "read", name, 3600, 2) == []
    assert ids(call(session, "read", name, 3600, 2)) == [1]
    assert call(session, "drop_queue", name) == [(True,)]
    session.commit()


def test_an_error_leaves_the_transaction_usable_after_a_savepoint(
    database: Database, db: psycopg.Connection, queue: str
) -> None:
    session = begin(database, LEVELS[0])
    call(session, "send", queue, Jsonb(1))
    for function, *arguments in (
        ("send", "no such queue", Jsonb(1)),
        ("purge_queue", "no such queue"),
        ("create", "a$b"),
    ):
        with pytest.raises(psycopg.Error), session.transaction():
            call(session, function, *arguments)
    call(session, "send", queue, Jsonb(2))
    session.commit()
    assert ids(call(db, "read", queue, 30, 10)) == [1, 2]


def test_sending_and_reading_take_no_transaction_id_but_the_caller_s_own(database: Database, queue: str) -> None:
    """A subtransaction with an id of its own for every message would overflow the snapshots of everybody."""
    session = begin(database, LEVELS[0])
    for n in range(100):
        call(session, "send", queue, Jsonb(n))
        message = call(session, "read", queue, 3600, 1)[0].msg_id
        call(session, "set_vt", queue, message, 3600)
        if n % 2:
            call(session, "archive", queue, message)
    writers = session.execute(
        f"select xmin::text from pgmq.q_{queue} union select xmin::text from pgmq.a_{queue}"
    ).fetchall()
    assert writers == session.execute("select pg_current_xact_id()::xid::text").fetchall()
    session.commit()


def test_a_trigger_of_the_caller_may_send(db: psycopg.Connection, queue: str) -> None:
    """The outbox pattern: the message goes out with the change that it tells of, or not at all."""
    table = unique("orders")
    db.execute(f"create table {table} (id integer primary key)")
    db.execute(
        f"create function {table}_told() returns trigger language plpgsql as"
        f" $$ begin perform pgmq.send('{queue}', to_jsonb(new)); return null; end $$"
    )
    db.execute(f"create trigger told after insert on {table} for each row execute function {table}_told()")
    with pytest.raises(errors.UniqueViolation):
        db.execute(f"insert into {table} values (1), (2), (1)")
    db.execute(f"insert into {table} values (3), (4)")
    assert [row.message for row in call(db, "read", queue, 30, 10)] == [{"id": 3}, {"id": 4}]
    db.execute(f"drop table {table}")
    db.execute(f"drop function {table}_told()")
