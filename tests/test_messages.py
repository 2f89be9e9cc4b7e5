"""What behaviour is promised for messages, one sentence a test."""

from __future__ import annotations

import datetime
import threading
import time

import psycopg
import pytest
from conftest import Database, call, error_of, eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import errors
from psycopg.types.json import Jsonb

HOUR = datetime.timedelta(hours=1)


def now(db: psycopg.Connection) -> datetime.datetime:
    return db.execute("select clock_timestamp()").fetchone()[0]


def ids(rows: list) -> list[int]:
    return [row[0] for row in rows]


def fill(db: psycopg.Connection, queue: str, count: int) -> None:
    db.execute("select pgmq.send_batch(%s, array(select to_jsonb(i) from generate_series(1, %s) as i))", [queue, count])


def stored(db: psycopg.Connection, queue: str, table: str = "q") -> list:
    query = f'select msg_id, message, headers from pgmq."{table}_{queue}" order by msg_id'
    return db.execute(query).fetchall()


# send


def test_send_returns_the_id(db: psycopg.Connection, queue: str) -> None:
    assert call(db, "send", queue, Jsonb({"a": 1})) == [(1,)]
    assert call(db, "send", queue, Jsonb({"a": 2})) == [(2,)]


def test_send_stores_the_message_unread_and_without_headers(db: psycopg.Connection, queue: str) -> None:
    before = now(db)
    call(db, "send", queue, Jsonb({"a": [1, None, "x"]}))
    row = db.execute(f"select read_ct, last_read_at, message, headers, enqueued_at, vt from pgmq.q_{queue}").fetchone()
    assert row[:4] == (0, None, {"a": [1, None, "x"]}, None)
    assert before <= row[4] <= now(db)
    assert row[5] == row[4]


@pytest.mark.parametrize("headers", [None, {"x": 1}])
@pytest.mark.parametrize("delay", [None, 0, 3600, -3600, HOUR, -HOUR, datetime.timedelta(0)])
@pytest.mark.parametrize("batch", [False, True])
def test_headers_and_delay_are_optional(
    db: psycopg.Connection, queue: str, headers: dict | None, delay: int | datetime.timedelta | None, batch: bool
) -> None:
    arguments: list[object] = [[Jsonb({"a": 1})] if batch else Jsonb({"a": 1})]
    if headers is not None:
        arguments.append([Jsonb(headers)] if batch else Jsonb(headers))
    seconds = delay.total_seconds() if isinstance(delay, datetime.timedelta) else delay or 0
    sent = now(db)
    if delay is not None:
        arguments.append(sent + delay if isinstance(delay, datetime.timedelta) else delay)
    assert call(db, "send_batch" if batch else "send", queue, *arguments) == [(1,)]
    assert stored(db, queue) == [(1, {"a": 1}, headers)]
    vt = db.execute(f"select vt from pgmq.q_{queue}").fetchone()[0]
    assert abs(vt - sent - datetime.timedelta(seconds=seconds)) < datetime.timedelta(seconds=5)
    assert ids(call(db, "read", queue, 30, 1)) == ([] if seconds > 0 else [1])


def test_a_delayed_message_becomes_visible_when_its_time_has_come(db: psycopg.Connection, queue: str) -> None:
    call(db, "send", queue, Jsonb({}), 1)
    sent = time.monotonic()
    assert call(db, "read", queue, 30, 1) == []
    assert ids(call(db, "read_with_poll", queue, 30, 1, 5, 10)) == [1]
    assert 0.9 < time.monotonic() - sent < 3


def test_a_null_message_is_legal(db: psycopg.Connection, queue: str) -> None:
    db.execute("select pgmq.send(%s, null)", [queue])
    db.execute("select pgmq.send_batch(%s, array[null, '1', null]::jsonb[])", [queue])
    assert [row.message for row in call(db, "read", queue, 30, 10)] == [None, None, 1, None]
    assert call(db, "archive", queue, 1) == [(True,)]
    assert stored(db, queue, "a") == [(1, None, None)]


def test_a_json_null_is_not_a_null_message(db: psycopg.Connection, queue: str) -> None:
    db.execute("select pgmq.send(%s, 'null')", [queue])
    assert db.execute(f"select message is null, message::text from pgmq.q_{queue}").fetchone() == (False, "null")


def test_null_headers_are_no_headers(db: psycopg.Connection, queue: str) -> None:
    db.execute("select pgmq.send(%s, '1', null::jsonb)", [queue])
    db.execute("select pgmq.send(%s, '2', null, 0)", [queue])
    db.execute("select pgmq.send_batch(%s, array['3']::jsonb[], null::jsonb[])", [queue])
    db.execute("select pgmq.send_batch(%s, array['4']::jsonb[], array[null]::jsonb[])", [queue])
    assert stored(db, queue) == [(n, n, None) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("type", ["integer", "timestamptz"])
@pytest.mark.parametrize("arguments", ["'{}'", "'{}', '{}'"])
def test_a_null_delay_is_refused(db: psycopg.Connection, queue: str, arguments: str, type: str) -> None:
    with error_of(errors.NullValueNotAllowed, "delay must not be NULL"):
        db.execute(f"select pgmq.send(%s, {arguments}, null::{type})", [queue])
    arrays = arguments.replace("'{}'", "array['{}']::jsonb[]")
    with error_of(errors.NullValueNotAllowed, "delay must not be NULL"):
        db.execute(f"select pgmq.send_batch(%s, {arrays}, null::{type})", [queue])
    assert stored(db, queue) == []


def test_named_arguments_choose_a_form(db: psycopg.Connection, queue: str) -> None:
    db.execute("select pgmq.send(queue_name => %s, msg => '1', delay => 0)", [queue])
    db.execute("select pgmq.send(queue_name => %s, msg => '2', headers => '{\"h\": 1}')", [queue])
    db.execute("select pgmq.send_batch(queue_name => %s, msgs => array['3']::jsonb[], delay => 0)", [queue])
    assert stored(db, queue) == [(1, 1, None), (2, 2, {"h": 1}), (3, 3, None)]


# send_batch


def test_send_batch_returns_the_ids_in_the_order_of_the_messages(db: psycopg.Connection, queue: str) -> None:
    messages = [Jsonb({"n": n}) for n in range(1000)]
    headers = [Jsonb({"h": n}) if n % 3 else None for n in range(1000)]
    assert ids(call(db, "send_batch", queue, messages, headers)) == list(range(1, 1001))
    assert stored(db, queue) == [(n + 1, {"n": n}, {"h": n} if n % 3 else None) for n in range(1000)]


@pytest.mark.parametrize("rest", ["", ", 0", ", now()", ", array['{}']::jsonb[]", ", array['{}']::jsonb[], 0"])
def test_send_batch_refuses_a_null_or_empty_array(db: psycopg.Connection, queue: str, rest: str) -> None:
    with error_of(errors.RaiseException, "msgs cannot be NULL or empty"):
        db.execute(f"select pgmq.send_batch(%s, null::jsonb[]{rest})", [queue])
    with error_of(errors.RaiseException, "msgs cannot be NULL or empty"):
        db.execute(f"select pgmq.send_batch(%s, array[]::jsonb[]{rest})", [queue])
    assert call(db, "metrics", queue)[0].total_messages == 0


@pytest.mark.parametrize("headers", ["array[]", "array['1']", "array['1', '2', '3']"])
@pytest.mark.parametrize("delay", ["", ", 0", ", now()"])
def test_send_batch_refuses_headers_of_another_length_before_anything_is_inserted(
    db: psycopg.Connection, queue: str, headers: str, delay: str
) -> None:
    with error_of(errors.RaiseException, "must match msgs array length (2)", hint="NULL where it has no headers"):
        db.execute(f"select pgmq.send_batch(%s, array['1', '2']::jsonb[], {headers}::jsonb[]{delay})", [queue])
    # The sequence keeps what a failed insert has taken.
    assert call(db, "metrics", queue)[0].total_messages == 0


# read


def test_read_takes_up_to_qty_visible_messages_oldest_id_first(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 5)
    assert ids(call(db, "read", queue, 30, 2)) == [1, 2]
    assert ids(call(db, "read", queue, 30, 2)) == [3, 4]
    assert ids(call(db, "read", queue, 30, 2)) == [5]
    assert call(db, "read", queue, 30, 2) == []


def test_read_of_an_empty_queue_returns_nothing(db: psycopg.Connection, queue: str) -> None:
    assert call(db, "read", queue, 30, 10) == []


def test_read_makes_messages_invisible_for_vt_seconds(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 1)
    before = now(db)
    assert call(db, "read", queue, 1, 1)[0].vt - before < datetime.timedelta(seconds=2)
    assert call(db, "read", queue, 1, 1) == []
    again = call(db, "read_with_poll", queue, 1, 1, 5, 10)
    assert ids(again) == [1]
    assert again[0].last_read_at - before >= datetime.timedelta(seconds=1)


def test_read_adds_one_to_read_ct_and_sets_last_read_at(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 2)
    for count in (1, 2, 3):
        before = now(db)
        first, second = call(db, "read", queue, 0, 2)
        assert (first.read_ct, second.read_ct) == (count, count)
        assert before <= first.last_read_at == second.last_read_at <= now(db)
        kept = db.execute(f"select read_ct, last_read_at from pgmq.q_{queue} where msg_id = 1").fetchone()
        assert kept == (count, first.last_read_at)


def test_read_returns_the_message_as_it_was_sent(db: psycopg.Connection, queue: str) -> None:
    call(db, "send", queue, Jsonb({"a": {"b": [1, "ß", None]}}), Jsonb({"h": True}))
    enqueued_at = db.execute(f"select enqueued_at from pgmq.q_{queue}").fetchone()[0]
    (row,) = call(db, "read", queue, 30, 1)
    assert row._fields == ("msg_id", "read_ct", "enqueued_at", "last_read_at", "vt", "message", "headers")
    assert (row.message, row.headers, row.enqueued_at) == ({"a": {"b": [1, "ß", None]}}, {"h": True}, enqueued_at)


def test_vt_0_leaves_it_visible(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 3)
    for _ in range(50):
        assert ids(call(db, "read", queue, 0, 2)) == [1, 2]
    assert ids(call(db, "read", queue, 30, 3)) == [1, 2, 3]


def test_conditional_keeps_messages_whose_body_contains_it(db: psycopg.Connection, queue: str) -> None:
    for message in ({"a": 1}, {"a": 2}, {"a": 1, "b": {"c": [1, 2]}}, [1, 2], None, "a"):
        call(db, "send", queue, Jsonb(message))
    for condition, found in (
        ({"a": 1}, [1, 3]),
        ({"b": {"c": [2]}}, [3]),
        ([2], [4]),
        ("a", [6]),
        ({"a": 3}, []),
    ):
        assert ids(call(db, "read", queue, 0, 10, Jsonb(condition))) == found


def test_conditional_passes_over_what_was_read_before(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 400)
    for _ in range(4):
        call(db, "read", queue, 3600, 90)
    call(db, "set_vt", queue, 7, 0)
    assert ids(call(db, "read", queue, 30, 10, Jsonb(8))) == []
    assert ids(call(db, "read", queue, 30, 10, Jsonb(7))) == [7]
    assert ids(call(db, "read", queue, 30, 10, Jsonb(400))) == [400]


def test_an_empty_conditional_means_all(db: psycopg.Connection, queue: str) -> None:
    db.execute("select pgmq.send_batch(%s, array['1', '{\"a\": 1}', '[]', null]::jsonb[])", [queue])
    assert ids(call(db, "read", queue, 0, 10, Jsonb({}))) == [1, 2, 3, 4]
    assert ids(call(db, "read", queue, 0, 10)) == [1, 2, 3, 4]


def test_delayed_redelivered_and_fresh_messages_are_merged_in_the_order_of_ids(
    db: psycopg.Connection, queue: str
) -> None:
    fill(db, queue, 6)
    for _ in range(2):
        call(db, "send", queue, Jsonb("delayed"), 3600)
    fill(db, queue, 2)
    call(db, "read", queue, 3600, 4)
    call(db, "set_vt", queue, [7, 8, 2, 4], 0)
    assert ids(call(db, "read", queue, 0, 3)) == [2, 4, 5]
    assert ids(call(db, "read", queue, 30, 10)) == [2, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("due", [900, 900])
def test_many_messages_due_again_are_merged_in_the_order_of_ids(db: psycopg.Connection, queue: str, due: int) -> None:
    fill(db, queue, due + 10)
    call(db, "send", queue, Jsonb("delayed"), 3600)
    fill(db, queue, 10)
    assert len(call(db, "read", queue, 0, due)) == due
    # In the order of vt the first would be the last.
    call(db, "set_vt", queue, 1, 0)
    expected = [*range(1, due + 11), *range(due + 12, due + 22)]
    assert ids(call(db, "read", queue, 0, 5)) == expected[:5]
    assert ids(call(db, "read", queue, 30, due - 10)) == expected[: due - 10]
    assert ids(call(db, "read", queue, 30, due)) == expected[due - 10 :]


def test_thousands_that_are_due_come_in_the_order_in_which_they_came_due(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 3000)
    for first in (1001, 2001, 1):
        call(db, "set_vt", queue, [*range(first, first + 1000)], 0)
    fill(db, queue, 10)
    for first in (1001, 2001):
        for _ in range(10):
            batch = ids(call(db, "read", queue, 3600, 100))
            assert batch == sorted(batch)
            assert len(set(batch) & set(range(first, first + 1000))) == 100
    # With fewer than a thousand it is the order of ids again, with what was never read.
    call(db, "set_vt", queue, 1, 3600)
    assert ids(call(db, "read", queue, 3600, 2000)) == [*range(2, 1001), *range(3001, 3011)]


def test_a_qty_of_0_reads_nothing_and_null_reads_all(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 20)
    assert call(db, "read", queue, 30, 0) == []
    assert call(db, "pop", queue, 0) == []
    assert len(db.execute("select pgmq.read(%s, 0, null)", [queue]).fetchall()) == 20
    assert len(db.execute("select pgmq.pop(%s, null)", [queue]).fetchall()) == 20


def test_read_refuses_a_null_vt_and_a_negative_qty(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 1)
    with error_of(errors.NullValueNotAllowed, "vt must not be NULL"):
        db.execute("select pgmq.read(%s, null, 1)", [queue])
    with pytest.raises(errors.InvalidRowCountInLimitClause):
        call(db, "read", queue, 30, -1)
    with pytest.raises(errors.InvalidRowCountInLimitClause):
        call(db, "pop", queue, -1)
    assert call(db, "read", queue, 30, 1)[0].read_ct == 1


def test_a_message_is_handed_to_one_reader_within_its_timeout(database: Database, db: psycopg.Connection, queue: str):
    fill(db, queue, 2)
    other = database.connect()
    assert ids(call(db, "read", queue, 30, 1)) == [1]
    assert ids(call(other, "read", queue, 30, 5)) == [2]
    assert call(db, "read", queue, 30, 5) == []


OPERATIONS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 40), st.booleans()),
    st.tuples(st.just("read"), st.integers(1, 60), st.booleans()),
    st.tuples(st.just("pop"), st.integers(1, 5), st.just(False)),
    st.tuples(st.just("set_vt"), st.integers(1, 200), st.booleans()),
    st.tuples(st.sampled_from(["delete", "archive"]), st.integers(1, 200), st.just(False)),
    st.tuples(st.just("rollback"), st.integers(1, 60), st.booleans()),
    st.tuples(st.just("storm"), st.integers(100, 400), st.booleans()),
)


@settings(max_examples=60)
@given(st.lists(OPERATIONS, min_size=5, max_size=40))
def test_whatever_one_session_does_a_read_gives_the_oldest_visible_messages(
    db: psycopg.Connection, queue: str, operations: list[tuple[str, int, bool]]
) -> None:
    """Held against a model: ids with whether they are visible, and how often they were read."""
    call(db, "purge_queue", queue)
    base = call(db, "metrics", queue)[0].total_messages
    last = base
    visible: dict[int, bool] = {}
    counts: dict[int, int] = {}

    def read(quantity: int, stays: bool, keep: bool = True) -> None:
        expected = sorted(i for i in visible if visible[i])[:quantity]
        rows = call(db, "read", queue, 0 if stays else 3600, quantity)
        assert [(row.msg_id, row.read_ct) for row in rows] == [(i, counts[i] + 1) for i in expected]
        for i in expected if keep else []:
            visible[i] = stays
            counts[i] += 1

    for verb, number, flag in [*operations, ("read", 10_000, False)]:
        if verb == "send":
            sent = ids(call(db, "send_batch", queue, [Jsonb(None)] * number, 3600 if flag else 0))
            assert sent == list(range(last + 1, last + number + 1))
            last += number
            visible.update(dict.fromkeys(sent, not flag))
            counts.update(dict.fromkeys(sent, 0))
        elif verb == "storm" and len(visible) + 2 * number < 1000:
            # Many that came due at once, among as many that did not; or all that there is.
            call(db, "send_batch", queue, [Jsonb(None)] * 2 * number, 3600)
            sent = list(range(last + 1, last + 2 * number + 1))
            last += 2 * number
            visible.update(dict.fromkeys(sent, False))
            counts.update(dict.fromkeys(sent, 0))
            due = sent[::2] if flag else list(visible)
            assert len(call(db, "set_vt", queue, due, 0)) == len(due)
            visible.update(dict.fromkeys(due, True))
        elif verb == "read":
            read(number, stays=flag)
        elif verb == "rollback":
            with db.transaction(force_rollback=True):
                read(number, stays=flag, keep=False)
        elif verb == "pop":
            expected = sorted(i for i in visible if visible[i])[:number]
            assert ids(call(db, "pop", queue, number)) == expected
            for i in expected:
                del visible[i]
        elif verb == "set_vt":
            changed = ids(call(db, "set_vt", queue, base + number, 3600 if flag else 0))
            assert changed == ([base + number] if base + number in visible else [])
            visible.update(dict.fromkeys(changed, not flag))
        elif verb in ("delete", "archive"):
            assert call(db, verb, queue, base + number) == [(base + number in visible,)]
            visible.pop(base + number, None)
    figures = call(db, "metrics", queue)[0]
    assert (figures.queue_length, figures.queue_visible_length) == (len(visible), sum(visible.values()))


# read_with_poll


def test_read_with_poll_returns_as_soon_as_something_is_there(
    database: Database, db: psycopg.Connection, queue: str
) -> None:
    fill(db, queue, 1)
    begun = time.monotonic()
    assert ids(call(db, "read_with_poll", queue, 3600, 5, 30)) == [1]
    assert time.monotonic() - begun < 2
    reader = database.connect()
    found: list = []
    thread = threading.Thread(target=lambda: found.extend(call(reader, "read_with_poll", queue, 3600, 5, 30, 20)))
    thread.start()
    eventually(
        lambda: (
            db.execute(
                "select from pg_stat_activity where pid = %s and wait_event = 'PgSleep'", [reader.info.backend_pid]
            ).fetchone()
            is not None
        )
    )
    sent = time.monotonic()
    fill(db, queue, 2)
    thread.join(30)
    assert time.monotonic() - sent < 2
    assert ids(found) in ([2], [2, 3])


def test_read_with_poll_returns_nothing_after_max_poll_seconds(db: psycopg.Connection, queue: str) -> None:
    call(db, "send", queue, Jsonb({}), 3600)
    begun = time.monotonic()
    assert call(db, "read_with_poll", queue, 30, 5, 1, 400) == []
    assert 1 <= time.monotonic() - begun < 2.5


def test_read_with_poll_for_0_seconds_looks_once(db: psycopg.Connection, queue: str) -> None:
    begun = time.monotonic()
    assert call(db, "read_with_poll", queue, 30, 5, 0, 60_000) == []
    assert time.monotonic() - begun < 2
    fill(db, queue, 1)
    assert ids(call(db, "read_with_poll", queue, 30, 5, 0)) == [1]


def test_read_with_poll_waits_for_what_the_condition_asks(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 3)
    assert call(db, "read_with_poll", queue, 30, 5, 0, 10, Jsonb(4)) == []
    assert ids(call(db, "read_with_poll", queue, 30, 5, 5, 10, Jsonb(2))) == [2]


def test_read_with_poll_refuses_null_times(db: psycopg.Connection, queue: str) -> None:
    for arguments, name in (
        ("null, 1", "vt"),
        ("1, 1, null", "max_poll_seconds"),
        ("1, 1, 1, null", "poll_interval_ms"),
    ):
        with error_of(errors.NullValueNotAllowed, name + " must not be NULL"):
            db.execute(f"select pgmq.read_with_poll(%s, {arguments})", [queue])


# pop


def test_pop_removes_what_it_returns(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 5)
    (row,) = call(db, "pop", queue)
    assert (row.msg_id, row.message, row.read_ct, row.last_read_at) == (1, 1, 0, None)
    assert ids(call(db, "pop", queue, 3)) == [2, 3, 4]
    assert ids(stored(db, queue)) == [5]
    assert ids(stored(db, queue, "a")) == []
    assert ids(call(db, "pop", queue, 3)) == [5]
    assert call(db, "pop", queue, 3) == []


def test_pop_leaves_what_is_invisible(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 3)
    call(db, "send", queue, Jsonb("delayed"), 3600)
    call(db, "read", queue, 3600, 1)
    assert ids(call(db, "pop", queue, 10)) == [2, 3]
    assert ids(stored(db, queue)) == [1, 4]


# delete and archive


@pytest.mark.parametrize("verb", ["delete", "archive"])
def test_delete_and_archive_return_true_or_false_for_one_id(db: psycopg.Connection, queue: str, verb: str) -> None:
    fill(db, queue, 2)
    assert call(db, verb, queue, 2) == [(True,)]
    assert call(db, verb, queue, 2) == [(False,)]
    assert call(db, verb, queue, 99) == [(False,)]
    assert db.execute(f"select pgmq.{verb}(%s, null::bigint)", [queue]).fetchall() == [(False,)]
    assert ids(stored(db, queue)) == [1]
    assert ids(stored(db, queue, "a")) == ([2] if verb == "archive" else [])


@pytest.mark.parametrize("verb", ["delete", "archive"])
def test_delete_and_archive_return_for_an_array_the_ids_that_were_there(
    db: psycopg.Connection, queue: str, verb: str
) -> None:
    fill(db, queue, 6)
    assert sorted(ids(call(db, verb, queue, [5, 99, 2, 2, -1]))) == [2, 5]
    assert call(db, verb, queue, [5, 2]) == []
    assert db.execute(f"select pgmq.{verb}(%s, array[]::bigint[])", [queue]).fetchall() == []
    assert db.execute(f"select pgmq.{verb}(%s, null::bigint[])", [queue]).fetchall() == []
    assert sorted(ids(db.execute(f"select pgmq.{verb}(%s, array[null, 1])", [queue]).fetchall())) == [1]
    assert ids(stored(db, queue)) == [3, 4, 6]
    assert ids(stored(db, queue, "a")) == ([1, 2, 5] if verb == "archive" else [])


@pytest.mark.parametrize("verb", ["delete", "archive"])
def test_delete_and_archive_take_invisible_messages_too(db: psycopg.Connection, queue: str, verb: str) -> None:
    fill(db, queue, 1)
    call(db, "send", queue, Jsonb("delayed"), 3600)
    call(db, "read", queue, 3600, 1)
    assert call(db, verb, queue, 1) == [(True,)]
    assert ids(call(db, verb, queue, [2])) == [2]
    assert stored(db, queue) == []


def test_archive_keeps_ids_counts_and_times_and_adds_archived_at(db: psycopg.Connection, queue: str) -> None:
    db.execute("select pgmq.send_batch(%s, array['1', '2', '3']::jsonb[], array['{}', null, '[1]']::jsonb[])", [queue])
    call(db, "read", queue, 0, 2)
    call(db, "read", queue, 30, 1)
    columns = "msg_id, read_ct, enqueued_at, last_read_at, vt, message, headers"
    before = db.execute(f"select {columns} from pgmq.q_{queue} order by msg_id").fetchall()
    begun = now(db)
    call(db, "archive", queue, 1)
    call(db, "archive", queue, [2, 3])
    assert db.execute(f"select {columns} from pgmq.a_{queue} order by msg_id").fetchall() == before
    times = [row[0] for row in db.execute(f"select archived_at from pgmq.a_{queue} order by msg_id")]
    assert begun <= times[0] <= times[1] == times[2] <= now(db)
    assert stored(db, queue) == []


# set_vt


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_set_vt_returns_the_changed_rows(db: psycopg.Connection, queue: str, array: bool, absolute: bool) -> None:
    fill(db, queue, 3)
    before = now(db)
    rows = call(db, "set_vt", queue, [3, 99, 1] if array else 1, before + HOUR if absolute else 3600)
    assert [(row.msg_id, row.message, row.read_ct) for row in rows] == (
        [(1, 1, 0), (3, 3, 0)] if array else [(1, 1, 0)]
    )
    assert all(HOUR <= row.vt - before < HOUR + datetime.timedelta(seconds=5) for row in rows)
    kept = db.execute(f"select vt from pgmq.q_{queue} where msg_id = 1").fetchone()[0]
    assert kept == rows[0].vt
    assert ids(call(db, "read", queue, 30, 3)) == ([2] if array else [2, 3])


def test_set_vt_of_a_message_that_is_not_there_changes_nothing(db: psycopg.Connection, queue: str) -> None:
    assert call(db, "set_vt", queue, 1, 30) == []
    assert call(db, "set_vt", queue, [1, 2], 30) == []
    assert db.execute("select pgmq.set_vt(%s, null::bigint[], 30)", [queue]).fetchall() == []


def test_set_vt_to_the_past_makes_a_message_visible_at_once(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 1000)
    while call(db, "read", queue, 3600, 50):
        pass
    for vt in (0, -3600, now(db) - HOUR, datetime.datetime(1900, 1, 1, tzinfo=datetime.UTC)):
        assert ids(call(db, "set_vt", queue, [5, 700], vt)) == [5, 700]
        assert ids(call(db, "read", queue, 3600, 50)) == [5, 700]


def test_set_vt_lengthens_and_shortens_a_timeout(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 1)
    call(db, "read", queue, 0, 1)
    call(db, "set_vt", queue, 1, 3600)
    assert call(db, "read", queue, 0, 1) == []
    call(db, "set_vt", queue, 1, 0)
    assert call(db, "read", queue, 0, 1)[0].read_ct == 2


@pytest.mark.parametrize("ids_", ["1", "array[1]"])
@pytest.mark.parametrize("type", ["integer", "timestamptz"])
def test_set_vt_refuses_a_null_vt(db: psycopg.Connection, queue: str, ids_: str, type: str) -> None:
    with error_of(errors.NullValueNotAllowed, "vt must not be NULL"):
        db.execute(f"select pgmq.set_vt(%s, {ids_}, null::{type})", [queue])


# metrics


def test_metrics_of_a_queue_that_was_never_used(db: psycopg.Connection, queue: str) -> None:
    (row,) = call(db, "metrics", queue)
    assert (row.queue_name, row.queue_length, row.queue_visible_length, row.total_messages) == (queue, 0, 0, 0)
    assert row.newest_msg_age_sec is row.oldest_msg_age_sec is row.default_partition_length is None


def test_metrics_count_all_and_visible_messages_and_all_ever_sent(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 5)
    call(db, "send", queue, Jsonb({}), 3600)
    call(db, "read", queue, 3600, 2)
    call(db, "delete", queue, 1)
    call(db, "archive", queue, 3)
    before = now(db)
    (row,) = call(db, "metrics", queue)
    assert (row.queue_length, row.queue_visible_length, row.total_messages) == (4, 2, 6)
    assert before <= row.scrape_time <= now(db)
    call(db, "purge_queue", queue)
    (row,) = call(db, "metrics", queue)
    assert (row.queue_length, row.queue_visible_length, row.total_messages) == (0, 0, 6)


def test_metrics_tell_the_ages_of_the_newest_and_the_oldest_message(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 3)
    db.execute(f"update pgmq.q_{queue} set enqueued_at = enqueued_at - msg_id * interval '100 seconds'")
    (row,) = call(db, "metrics", queue)
    assert row.newest_msg_age_sec in (100, 101)
    assert row.oldest_msg_age_sec in (300, 301)


def test_metrics_all_gives_the_figures_of_every_queue(db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 3)
    rows = {row.queue_name: row for row in call(db, "metrics_all")}
    assert set(rows) == {row.queue_name for row in call(db, "list_queues")}
    one = call(db, "metrics", queue)[0]
    assert rows[queue]._replace(scrape_time=None) == one._replace(scrape_time=None)
