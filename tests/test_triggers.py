"""Triggers and statements of a queue's owner on its table: what they see of a call, and what a call makes of them."""

from __future__ import annotations

import time

import psycopg
import pytest
from conftest import call
from psycopg.types.json import Jsonb

# What a queue holds: messages never read, and messages that are due again.
STATES = {"empty": (0, 0), "only ready": (30, 0), "only due": (0, 30), "both": (15, 15)}
READS = {
    "read 1": "select msg_id from pgmq.read(%s, 3600, 1)",
    "read 10": "select msg_id from pgmq.read(%s, 3600, 10)",
    "read 10 of a kind": "select msg_id from pgmq.read(%s, 3600, 10, '{\"a\": 1}')",
    "pop 1": "select msg_id from pgmq.pop(%s)",
    "pop 10": "select msg_id from pgmq.pop(%s, 10)",
    "read_grouped": "select msg_id from pgmq.read_grouped(%s, 3600, 10)",
    "read_grouped_rr": "select msg_id from pgmq.read_grouped_rr(%s, 3600, 10)",
    "read_grouped_head": "select msg_id from pgmq.read_grouped_head(%s, 3600, 10)",
}


def ids(rows: list) -> list[int]:
    return [row[0] for row in rows]


@pytest.fixture
def fired(db: psycopg.Connection, queue: str) -> str:
    """A table with one row per statement that changed or removed messages."""
    db.execute(
        f"""
        create table fired_{queue} (operation text, rows bigint);
        create function fired_{queue}()
        returns trigger
        language plpgsql
        as $function$
        begin
            insert into fired_{queue}
            select tg_op, count(*)
            from old_rows;
            return null;
        end
        $function$;
        create trigger updated after update on pgmq.q_{queue}
        referencing old table as old_rows for each statement execute function fired_{queue}();
        create trigger deleted after delete on pgmq.q_{queue}
        referencing old table as old_rows for each statement execute function fired_{queue}();
        """
    )
    return f"fired_{queue}"


@pytest.mark.parametrize("kind", READS)
@pytest.mark.parametrize("state", STATES)
def test_a_statement_trigger_fires_once_for_a_call(
    db: psycopg.Connection, queue: str, fired: str, state: str, kind: str
) -> None:
    """Once where the call takes something, however it finds it; at most once where it finds nothing."""
    ready, due = STATES[state]
    for n in range(ready + due):
        call(db, "send", queue, Jsonb({"a": 1, "n": n}))
    if due:
        call(db, "read", queue, 0, due)
    db.execute(f"truncate {fired}")
    # Some reads also move the hints, and find their messages in another way: by chance, one in four of batches.
    for _ in range(8):
        with db.transaction(force_rollback=True):
            took = ids(db.execute(READS[kind], [queue]).fetchall())
            fires = db.execute(f"select operation, rows from {fired}").fetchall()
            assert bool(took) == bool(ready + due)
            if took:
                assert fires == [("DELETE" if kind.startswith("pop") else "UPDATE", len(took))]
            else:
                assert [rows for _, rows in fires] in ([], [0])


@pytest.mark.parametrize(
    "arguments",
    [
        "'{\"skip\": true}'",
        "'{\"skip\": true}', '{}'::jsonb",
        "'{\"skip\": true}', 0",
        "'{\"skip\": true}', now()",
        "'{\"skip\": true}', '{}', 1",
        "'{\"skip\": true}', '{}', now()",
    ],
)
def test_send_returns_nothing_for_a_message_that_a_trigger_skipped(
    db: psycopg.Connection, queue: str, skips: None, arguments: str
) -> None:
    assert db.execute(f"select * from pgmq.send('{queue}', {arguments})").fetchall() == []
    # The same by the call that goes by the queue's name.
    assert db.execute(f"select * from pgmq.send('{queue.upper()}', {arguments})").fetchall() == []
    assert db.execute(f"select count(*) from pgmq.q_{queue}").fetchone() == (0,)
    sent = db.execute(f"select * from pgmq.send('{queue}', {arguments.replace('true', 'false')})").fetchall()
    assert ids(sent) == ids(db.execute(f"select msg_id from pgmq.q_{queue}").fetchall())


def test_send_batch_returns_the_ids_of_what_was_not_skipped(db: psycopg.Connection, queue: str, skips: None) -> None:
    messages = [Jsonb({"n": n, "skip": n % 3 == 0}) for n in range(10)]
    sent = ids(call(db, "send_batch", queue, messages))
    stored = db.execute(f"select msg_id, message from pgmq.q_{queue} order by 1").fetchall()
    assert sent == ids(stored)
    assert [message["n"] for _, message in stored] == [1, 2, 4, 5, 7, 8]
    assert call(db, "send_batch", queue, messages[:1]) == []


@pytest.fixture
def skips(db: psycopg.Connection, queue: str) -> None:
    db.execute(
        f"""
        create function skip_{queue}()
        returns trigger
        language plpgsql
        as $function$
        begin
            return case when new.message ->> 'skip' = 'true' then null else new end;
        end
        $function$;
        create trigger skips before insert on pgmq.q_{queue} for each row execute function skip_{queue}();
        """
    )


@pytest.mark.parametrize("qty", [1, 10])
def test_a_direct_update_of_vt_into_the_past_is_seen_within_two_seconds(
    db: psycopg.Connection, queue: str, qty: int
) -> None:
    """The owner of a table may write to it; reads that are going on find the message."""
    call(db, "send_batch", queue, [Jsonb(n) for n in range(500)])
    while call(db, "read", queue, 3600, 20):
        pass
    # A reader that finds nothing, for more than a second: what it remembers is as of now.
    until = time.monotonic() + 1.1
    while time.monotonic() < until:
        assert call(db, "read", queue, 3600, qty) == []
        time.sleep(0.02)
    for message, vt in ((7, "clock_timestamp() - interval '1 minute'"), (8, "enqueued_at"), (9, "'-infinity'")):
        db.execute(f"update pgmq.q_{queue} set vt = {vt} where msg_id = {message}")
    came: list[int] = []
    since = time.monotonic()
    while len(came) < 3:
        came += ids(call(db, "read", queue, 3600, qty))
        assert time.monotonic() < since + 2.5, came
        time.sleep(0.01)
    assert sorted(came) == [7, 8, 9]
