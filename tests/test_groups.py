"""What behaviour is promised for message groups, one sentence a test, with and without the FIFO index."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import random
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest
import servers
from conftest import Database, error_of, unique
from psycopg import sql
from psycopg.types.json import Jsonb

FORMS = ("read_grouped", "read_grouped_rr", "read_grouped_head")
ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(params=["indexed", "scanned"])
def fifo(request: pytest.FixtureRequest, db: psycopg.Connection, queue: str) -> str:
    """A queue with the FIFO index, and one without."""
    if request.param == "indexed":
        db.execute("select pgmq.create_fifo_index(%s)", [queue])
    return queue


def send(db: psycopg.Connection, queue: str, groups: Sequence[str | None]) -> list[int]:
    """Sends one message for each group named, and returns the ids. None: without the header."""
    headers = [None if group is None else Jsonb({"x-pgmq-group": group}) for group in groups]
    rows = db.execute(
        "select pgmq.send_batch(%s, array_fill('{}'::jsonb, array[%s]), %s::jsonb[])", [queue, len(groups), headers]
    )
    return [row[0] for row in rows]


def take(db: psycopg.Connection, form: str, queue: str, vt: int, qty: int | None) -> list[int]:
    statement = sql.SQL("select msg_id from {}(%s, %s, %s)").format(sql.Identifier("pgmq", form))
    return [row[0] for row in db.execute(statement, [queue, vt, qty])]


def set_vt(db: psycopg.Connection, queue: str, ids: list[int], seconds: int) -> None:
    db.execute("select pgmq.set_vt(%s, %s::bigint[], %s)", [queue, ids, seconds])


def test_read_grouped_fills_the_batch_from_the_group_with_the_oldest_message_then_from_the_next(
    db: psycopg.Connection, fifo: str
) -> None:
    send(db, fifo, ["a", "b", "a", "c", "b", "a", "c"])
    assert sorted(take(db, "read_grouped", fifo, 30, 2)) == [1, 3]
    assert sorted(take(db, "read_grouped", fifo, 30, 3)) == [2, 4, 5]
    assert take(db, "read_grouped", fifo, 30, 9) == []


def test_read_grouped_rr_deals_one_message_of_each_group_in_turn_in_that_order(
    db: psycopg.Connection, fifo: str
) -> None:
    send(db, fifo, ["b", "b", "a", "b", "a", "c"])
    assert take(db, "read_grouped_rr", fifo, 0, 2) == [1, 3]
    assert take(db, "read_grouped_rr", fifo, 0, 4) == [1, 3, 6, 2]
    assert take(db, "read_grouped_rr", fifo, 30, 9) == [1, 3, 6, 2, 5, 4]


def test_read_grouped_head_gives_the_head_of_each_of_qty_groups(db: psycopg.Connection, fifo: str) -> None:
    send(db, fifo, ["b", "b", "a", "b", "a", "c"])
    assert take(db, "read_grouped_head", fifo, 30, 2) == [1, 3]
    assert take(db, "read_grouped_head", fifo, 30, 9) == [6]
    assert take(db, "read_grouped_head", fifo, 30, 9) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_read_counts_and_returns_the_row_as_it_is_now(db: psycopg.Connection, fifo: str, form: str) -> None:
    db.execute("""select pgmq.send(%s, '{"a": 1}', '{"x-pgmq-group": "g"}'::jsonb)""", [fifo])
    row = db.execute(
        f"""
        select msg_id, read_ct, vt - last_read_at = interval '30 seconds', message, headers,
            last_read_at between enqueued_at and clock_timestamp()
        from pgmq.{form}(%s, 30, 1)
        """,
        [fifo],
    ).fetchall()
    assert row == [(1, 1, True, {"a": 1}, {"x-pgmq-group": "g"}, True)]
    set_vt(db, fifo, [1], 0)
    assert db.execute(f"select msg_id, read_ct from pgmq.{form}(%s, 30, 1)", [fifo]).fetchall() == [(1, 2)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hide", ["delayed", "read", "set_vt"])
def test_a_group_with_an_invisible_message_before_its_first_visible_one_gives_nothing(
    db: psycopg.Connection, fifo: str, form: str, hide: str
) -> None:
    if hide == "delayed":
        db.execute("""select pgmq.send(%s, '{}', '{"x-pgmq-group": "a"}'::jsonb, 1000)""", [fifo])
    else:
        send(db, fifo, ["a"])
        if hide == "read":
            assert take(db, form, fifo, 1000, 1) == [1]
        else:
            set_vt(db, fifo, [1], 1000)
    send(db, fifo, ["a", "b", "a"])
    assert take(db, form, fifo, 1000, 9) == [3]
    db.execute("select pgmq.delete(%s, 1)", [fifo])
    assert take(db, form, fifo, 0, 1) == [2]


@pytest.mark.parametrize("form", FORMS)
def test_a_head_that_comes_back_is_the_head_again(db: psycopg.Connection, fifo: str, form: str) -> None:
    send(db, fifo, ["a", "b", "a"])
    assert take(db, form, fifo, 1000, 1) == [1]
    set_vt(db, fifo, [1], -1000)
    assert take(db, form, fifo, 1000, 1) == [1]
    set_vt(db, fifo, [1], 0)
    assert take(db, form, fifo, 0, 2)[:1] == [1]


@pytest.mark.parametrize("form", FORMS)
def test_set_vt_hides_no_older_message(db: psycopg.Connection, fifo: str, form: str) -> None:
    assert take(db, form, fifo, 0, 0) == []
    send(db, fifo, ["a", "b", "c"])
    set_vt(db, fifo, [3], -1000)
    assert take(db, form, fifo, 0, 9) == [1, 2, 3]


@pytest.mark.parametrize("form", FORMS)
def test_a_vt_of_0_leaves_the_messages_visible(db: psycopg.Connection, fifo: str, form: str) -> None:
    send(db, fifo, ["a", "b"])
    assert take(db, form, fifo, 0, 2) == [1, 2]
    assert take(db, form, fifo, 0, 2) == [1, 2]


@pytest.mark.parametrize("form", FORMS)
def test_messages_without_the_header_share_a_default_group(db: psycopg.Connection, fifo: str, form: str) -> None:
    db.execute(
        """
        select pgmq.send_batch(%s, array_fill('{}'::jsonb, array[8]),
            array[null, 'null', '[]', '["x-pgmq-group"]', '"x-pgmq-group"', '7', '{"other": 1}',
                '{"x-pgmq-group": null}']::jsonb[])
        """,
        [fifo],
    )
    assert take(db, form, fifo, 1000, 1) == [1]
    assert take(db, form, fifo, 1000, 9) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_group_is_the_text_of_the_header(db: psycopg.Connection, fifo: str, form: str) -> None:
    values = ['""', '" "', "1", '"1"', "true", '"true"', '{"a": 1}', "[1]", '"A"', '"a"', '"default"']
    db.execute(
        "select pgmq.send_batch(%s, array_fill('{}'::jsonb, array[%s]), %s::jsonb[])",
        [fifo, len(values), [f'{{"x-pgmq-group": {value}}}' for value in values]],
    )
    taken: list[int] = []
    while ids := take(db, form, fifo, 1000, 1):
        taken += ids
    assert taken == [1, 2, 3, 5, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("form", FORMS)
def test_a_qty_of_0_takes_nothing_and_null_takes_all(db: psycopg.Connection, fifo: str, form: str) -> None:
    send(db, fifo, ["a", "b", "a", *(f"g{number}" for number in range(300))])
    assert take(db, form, fifo, 30, 0) == []
    taken = take(db, form, fifo, 30, None)
    assert len(taken) == len(set(taken)) == (302 if form == "read_grouped_head" else 303)


@pytest.mark.parametrize("form", FORMS)
def test_every_group_is_found_behind_many_messages_of_groups_that_give_nothing(
    db: psycopg.Connection, fifo: str, form: str
) -> None:
    blocked = [f"blocked{number}" for number in range(5)]
    send(db, fifo, blocked)
    set_vt(db, fifo, [1, 2, 3, 4, 5], 1000)
    send(db, fifo, blocked * 1000)
    last = send(db, fifo, ["free", "other"])
    assert take(db, form, fifo, 30, 1) == last[:1]
    assert take(db, form, fifo, 30, 9) == last[1:]
    assert take(db, form, fifo, 30, 9) == []


@pytest.mark.parametrize("form", FORMS)
def test_every_group_is_found_where_many_messages_are_due_again(db: psycopg.Connection, fifo: str, form: str) -> None:
    ids = send(db, fifo, [f"g{number % 700}" for number in range(1400)])
    set_vt(db, fifo, ids, 1000)
    assert take(db, form, fifo, 0, 9) == []
    set_vt(db, fifo, ids, -1000)
    assert sorted(take(db, "read_grouped_head", fifo, 1000, 10)) == ids[:10]
    assert take(db, form, fifo, 0, 1) == ids[10:11]
    assert len(take(db, "read_grouped_head", fifo, 1000, None)) == 690


@pytest.mark.parametrize("form", FORMS)
def test_the_form_with_poll_waits_for_a_message(database: Database, fifo: str, form: str) -> None:
    reader, sender = database.connect(), database.connect()
    result: list[tuple] = []

    def poll() -> None:
        result.extend(reader.execute(f"select msg_id from pgmq.{form}_with_poll(%s, 30, 5, 60, 20)", [fifo]).fetchall())

    thread = threading.Thread(target=poll)
    thread.start()
    while (
        sender.execute(
            "select from pg_stat_activity where pid = %s and wait_event = 'PgSleep'", [reader.info.backend_pid]
        ).fetchone()
        is None
    ):
        assert thread.is_alive()
    send(sender, fifo, ["a"])
    thread.join(30)
    assert result == [(1,)]


@pytest.mark.parametrize("form", FORMS)
def test_the_form_with_poll_returns_nothing_when_the_time_is_up(db: psycopg.Connection, fifo: str, form: str) -> None:
    started = time.monotonic()
    assert db.execute(f"select * from pgmq.{form}_with_poll(%s, 30, 5, 1, 50)", [fifo]).fetchall() == []
    assert time.monotonic() - started >= 1
    send(db, fifo, ["a", "a", "b"])
    expected = [(1,), (3,)] if form == "read_grouped_head" else [(1,), (2,), (3,)]
    assert sorted(db.execute(f"select msg_id from pgmq.{form}_with_poll(%s, 30, 5)", [fifo]).fetchall()) == expected


@pytest.mark.parametrize("form", [*FORMS, *(f"{form}_with_poll" for form in FORMS)])
def test_grouped_reads_refuse_bad_arguments(db: psycopg.Connection, queue: str, form: str) -> None:
    with error_of(psycopg.errors.UndefinedTable, "does not exist", hint="pgmq.create"):
        db.execute(f"select pgmq.{form}('no such queue', 30, 1)")
    with error_of(psycopg.errors.RaiseException, "invalid characters"):
        db.execute(f"select pgmq.{form}('a;b', 30, 1)")
    with error_of(psycopg.errors.NullValueNotAllowed, "queue name must not be NULL"):
        db.execute(f"select pgmq.{form}(null, 30, 1)")
    with error_of(psycopg.errors.NullValueNotAllowed, "vt must not be NULL"):
        db.execute(f"select pgmq.{form}(%s, null, 1)", [queue])
    if form.endswith("_with_poll"):
        for times in ("null, 100", "1, null"):
            with error_of(psycopg.errors.NullValueNotAllowed, "must not be NULL"):
                db.execute(f"select pgmq.{form}(%s, 30, 1, {times})", [queue])


def indexes(db: psycopg.Connection, queue: str) -> set[str]:
    return {row[0] for row in db.execute("select indexname from pg_indexes where tablename = %s", [f"q_{queue}"])}


def test_create_fifo_index_adds_one_index_and_twice_is_no_error(db: psycopg.Connection, queue: str) -> None:
    before = indexes(db, queue)
    db.execute("select pgmq.create_fifo_index(%s)", [queue])
    with_index = indexes(db, queue)
    assert len(with_index - before) == 1
    db.execute("select pgmq.create_fifo_index(%s)", [queue])
    assert indexes(db, queue) == with_index


def test_create_fifo_index_refuses_an_unknown_queue(db: psycopg.Connection) -> None:
    with error_of(psycopg.errors.UndefinedTable, "does not exist", hint="pgmq.create"):
        db.execute("select pgmq.create_fifo_index('no such queue')")
    with error_of(psycopg.errors.RaiseException, "invalid characters"):
        db.execute("select pgmq.create_fifo_index('a$b')")
    with error_of(psycopg.errors.NullValueNotAllowed, "must not be NULL"):
        db.execute("select pgmq.create_fifo_index(null)")


def test_create_fifo_indexes_all_adds_it_to_every_queue(make_database: Callable[..., Database]) -> None:
    db = make_database().connect()
    names = ["plain", 'Odd "Name". Ünï', "already there", "x" * 47]
    for name in names:
        db.execute("select pgmq.create(%s)", [name])
    db.execute("select pgmq.create_fifo_index('already there')")
    db.execute("select pgmq.create_fifo_indexes_all()")
    for name in names:
        assert len([index for index in indexes(db, name.lower()) if index.endswith("$fifo")]) == 1
        send(db, name, ["a", "b", "a"])
        assert take(db, "read_grouped_rr", name, 30, 9) == [1, 2, 3]


@pytest.mark.parametrize("form", FORMS)
def test_a_session_takes_up_the_index_at_once(db: psycopg.Connection, queue: str, form: str) -> None:
    send(db, queue, ["a", "b", "a"])
    assert take(db, form, queue, 0, 1) == [1]
    db.execute("select pgmq.create_fifo_index(%s)", [queue])
    before = index_scans(db, queue)
    assert take(db, form, queue, 0, 1) == [1]
    assert index_scans(db, queue) > before


def index_scans(db: psycopg.Connection, queue: str) -> int:
    db.execute("set stats_fetch_consistency = none" if db.info.server_version >= 150000 else "select 1")
    db.execute("select pg_sleep(0)")
    # What this transaction counted is not yet in the cumulative figures; the sum of both is exact.
    with db.transaction():
        row = db.execute(
            """
            select pg_stat_get_numscans(i.oid) + pg_stat_get_xact_numscans(i.oid)
            from pg_class as i
            where i.oid = to_regclass('pgmq.' || quote_ident('q_' || %s || '$fifo'))
            """,
            [queue],
        ).fetchone()
    return row[0]


def own_functions(db: psycopg.Connection, queue: str) -> list[tuple[str, bool]]:
    """The grouped functions of a queue, with whether they belong to the owner of its table."""
    return db.execute(
        """
        select substr(p.oid::regprocedure::text, strpos(p.oid::regprocedure::text, '$')),
            p.proowner = q.relowner
        from pg_class as q
        join pg_proc as p
            on starts_with(p.proname, q.relname || '$')
            and strpos(p.proname, 'grouped') > 0
        where q.relname = 'q_' || %s
        """,
        [queue],
    ).fetchall()


def test_a_queue_has_one_grouped_function_and_only_with_the_index(db: psycopg.Connection, queue: str) -> None:
    assert own_functions(db, queue) == []
    db.execute("select pgmq.create_fifo_index(%s)", [queue])
    assert own_functions(db, queue) == [('$grouped"(integer,integer,text)', True)]
    db.execute("select pgmq.compile(%s)", [queue])
    assert len(own_functions(db, queue)) == 1
    send(db, queue, ["a", "b", "a"])
    for index in indexes(db, queue):
        if index.endswith("$fifo"):
            db.execute(sql.SQL("drop index pgmq.{}").format(sql.Identifier(index)))
    assert [take(db, form, queue, 0, 9) for form in FORMS] == [[1, 2, 3], [1, 2, 3], [1, 2]]
    db.execute("select pgmq.compile(%s)", [queue])
    assert own_functions(db, queue) == []
    assert [take(db, form, queue, 0, 9) for form in FORMS] == [[1, 2, 3], [1, 2, 3], [1, 2]]


@pytest.mark.parametrize(
    "name", ["plain", 'Odd "Name". \u00dcn\u00ef', "x" * 47, "\u00e9" * 47], ids=["plain", "odd", "long", "bytes"]
)
@pytest.mark.parametrize("is_indexed", [True, False], ids=["indexed", "scanned"])
def test_grouped_reads_of_queues_of_any_name(
    make_database: Callable[..., Database], db: psycopg.Connection, name: str, is_indexed: bool
) -> None:
    db.execute("select pgmq.create(%s)", [name])
    if is_indexed:
        db.execute("select pgmq.create_fifo_index(%s)", [name])
    send(db, name, ["a", "b", "a"])
    called = db.execute("select pgmq._grouped(%s)", [name]).fetchone()[0]
    assert ("_read_grouped_scanned" in called) != is_indexed
    for form, ids in zip(FORMS, ([1, 2, 3], [1, 2, 3], [1, 2]), strict=True):
        assert take(db, form, name.upper() if name.isascii() else name, 0, 9) == ids
    db.execute("select pgmq.drop_queue(%s)", [name])


def test_a_function_that_another_role_made_is_not_taken_for_the_queues_own(
    db: psycopg.Connection, queue: str, make_role: Callable[..., str]
) -> None:
    role = make_role()
    db.execute(f"grant create, usage on schema pgmq to {role}")
    db.execute(f"set role {role}")
    db.execute(
        f"""
        create function pgmq."q_{queue}$grouped"(integer, integer, text)
        returns setof pgmq.message_record
        language sql
        as $$ select 99::bigint, 0, now(), now(), now(), '1'::jsonb, null::jsonb $$
        """
    )
    db.execute("reset role")
    send(db, queue, ["a", "b"])
    for form in FORMS:
        assert take(db, form, queue, 0, 9) == [1, 2]
    db.execute(f'drop function pgmq."q_{queue}$grouped"')


# Readers and the locks they take.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("held_by", FORMS)
def test_readers_of_other_groups_do_not_wait_for_a_transaction_that_holds_a_group(
    database: Database, fifo: str, held_by: str, form: str
) -> None:
    reader = database.connect()
    with database.connect(autocommit=False) as holder:
        send(reader, fifo, ["a", "a", "b", "b", "c"])
        assert take(holder, held_by, fifo, 30, 1) == [1]
        # The shortest there is: any wait for a lock is an error.
        reader.execute("set lock_timeout = '1ms'")
        taken = sorted(take(reader, form, fifo, 30, 9))
        assert taken == ([3, 5] if form == "read_grouped_head" else [3, 4, 5])
        assert reader.execute("select pgmq.delete(%s, %s::bigint[])", [fifo, taken]).rowcount == len(taken)
        assert take(reader, form, fifo, 30, 9) == ([4] if form == "read_grouped_head" else [])
        holder.rollback()
        assert reader.execute(f"select msg_id, read_ct from pgmq.{form}(%s, 30, 1)", [fifo]).fetchall() == [(1, 1)]


@pytest.mark.parametrize("form", FORMS)
def test_a_group_stays_held_while_the_head_is_deleted_in_an_open_transaction(
    database: Database, fifo: str, form: str
) -> None:
    reader = database.connect()
    with database.connect(autocommit=False) as holder:
        send(reader, fifo, ["a", "a"])
        assert take(holder, form, fifo, 30, 1) == [1]
        holder.execute("select pgmq.delete(%s, 1)", [fifo])
        assert take(reader, form, fifo, 30, 9) == []
        holder.commit()
        assert take(reader, form, fifo, 30, 9) == [2]


# The whole history of many readers.


@dataclasses.dataclass
class Delivery:
    """What one read handed out. Times of the client are monotonic, those of the server are its clock's."""

    started: float
    finished: float
    moment: float
    messages: list[tuple[int, str, float]]
    rolled_back_at: float | None = None

    def of(self, group: str) -> list[tuple[int, str, float]]:
        return [message for message in self.messages if message[1] == group]


@dataclasses.dataclass
class History:
    sent: dict[int, str] = dataclasses.field(default_factory=dict)
    deliveries: list[Delivery] = dataclasses.field(default_factory=list)
    # When the client began to delete a message, and whether the server said that it was there.
    deletions: list[tuple[int, float, bool]] = dataclasses.field(default_factory=list)


def breaches(history: History) -> list[str]:
    """What in a history breaks the promises; only what no reordering within the bounds of the clocks can excuse."""
    found: list[str] = []
    deleted: dict[int, float] = {}
    for msg_id, began, was_there in history.deletions:
        if not was_there or msg_id in deleted:
            found.append(f"{msg_id} was handed out and gone before its reader deleted it")
        deleted[msg_id] = began

    def gone(msg_id: int, by: float) -> bool:
        return msg_id in deleted and deleted[msg_id] <= by

    def released(first: Delivery, second: Delivery, only: Callable[[tuple[int, str, float]], bool]) -> bool:
        """Whether the first reader may have lost these messages by the time the second took its own."""
        if first.started > second.finished:
            return False
        if first.rolled_back_at is not None:
            return first.rolled_back_at <= second.finished
        return all(
            visible_at <= second.moment or gone(msg_id, second.finished)
            for msg_id, group, visible_at in first.messages
            if only((msg_id, group, visible_at))
        )

    by_group: dict[str, list[Delivery]] = {}
    by_message: dict[int, list[Delivery]] = {}
    for delivery in history.deliveries:
        for group in {group for _, group, _ in delivery.messages}:
            by_group.setdefault(group, []).append(delivery)
            ids = [msg_id for msg_id, _, _ in delivery.of(group)]
            if ids != sorted(set(ids)):
                found.append(f"group {group} out of order within a batch: {ids}")
        for msg_id, _, _ in delivery.messages:
            by_message.setdefault(msg_id, []).append(delivery)

    for msg_id, holders in by_message.items():
        for one, other in itertools.combinations(holders, 2):
            if not any(
                released(*pair, lambda m, msg_id=msg_id: m[0] == msg_id) for pair in ((one, other), (other, one))
            ):
                found.append(f"{msg_id} was handed to two readers within its timeout")
    for group, holders in by_group.items():
        members = sorted(msg_id for msg_id, its_group in history.sent.items() if its_group == group)
        for one, other in itertools.combinations(holders, 2):
            # What the first reader still holds behind all that the second has does not count.
            pairs = [(first, second, second.of(group)[-1][0]) for first, second in ((one, other), (other, one))]
            if not any(
                released(first, second, lambda m, group=group, last=last: m[1] == group and m[0] <= last)
                for first, second, last in pairs
            ):
                found.append(f"group {group} was handed to a second reader while the first held it")
        for delivery in holders:
            ids = {msg_id for msg_id, _, _ in delivery.of(group)}
            for earlier in members:
                if earlier < max(ids) and earlier not in ids and not gone(earlier, delivery.finished):
                    found.append(f"{max(ids)} of group {group} was handed out before {earlier} was done")
    found += [f"{msg_id} was never handed out" for msg_id in history.sent if msg_id not in by_message]
    found += [f"{msg_id} was not deleted" for msg_id in history.sent if msg_id not in deleted]
    return found


def delivered(
    start: float, *ids: int, group: str = "a", vt: float = 100, rolled_back_at: float | None = None
) -> Delivery:
    """A delivery that takes a tenth of a second, on a server whose clock is the client's."""
    return Delivery(start, start + 0.1, start, [(msg_id, group, start + vt) for msg_id in ids], rolled_back_at)


def partly_extended(start: float, *ids: int) -> Delivery:
    """As delivered, with a timeout of one second, and 99 more for the last."""
    delivery = delivered(start, *ids, vt=1)
    msg_id, group, visible_at = delivery.messages[-1]
    delivery.messages[-1] = (msg_id, group, visible_at + 99)
    return delivery


GOOD = History(
    {1: "a", 2: "a", 3: "b"},
    [
        delivered(1, 1, 2, rolled_back_at=2),
        delivered(2, 1, vt=1),
        delivered(3.5, 1, 2),
        delivered(3.5, 3, group="b"),
    ],
    [(1, 4, True), (2, 5, True), (3, 5, True)],
)


def test_the_checker_accepts_a_good_history() -> None:
    assert breaches(GOOD) == []
    # The first comes again before the second, which is extended.
    again = [partly_extended(1, 1, 2), delivered(2.5, 1), delivered(5.5, 3, group="b")]
    assert breaches(dataclasses.replace(GOOD, deliveries=again)) == []


@pytest.mark.parametrize(
    ("deliveries", "deletions", "breach"),
    [
        ([delivered(1, 1), delivered(2, 1), delivered(6, 2)], None, "two readers"),
        ([delivered(1, 1, 2, rolled_back_at=3), delivered(2, 1, 2)], None, "two readers"),
        ([delivered(1, 1, vt=1), delivered(1.5, 1), delivered(6, 2)], None, "two readers"),
        ([delivered(1, 1), delivered(2, 2)], None, "while the first held it"),
        ([partly_extended(1, 1, 2), delivered(2.5, 1, 2)], None, "while the first held it"),
        ([delivered(1, 1, rolled_back_at=3), delivered(2, 2), delivered(4.5, 1)], None, "while the first held it"),
        ([delivered(1, 2, 1)], None, "out of order within a batch"),
        ([delivered(1, 2), delivered(5.5, 1)], [(2, 5, True), (1, 6, True), (3, 5, True)], "2 of group a"),
        ([delivered(1, 1)], None, "2 was never"),
        ([delivered(1, 1, 2)], [(1, 4, True), (3, 5, True)], "2 was not deleted"),
        ([delivered(1, 1, 2)], [(1, 4, False), (2, 5, True), (3, 5, True)], "1 was handed out and gone"),
    ],
)
def test_the_checker_finds_a_breach(
    deliveries: list[Delivery], deletions: list[tuple[int, float, bool]] | None, breach: str
) -> None:
    broken = dataclasses.replace(GOOD, deliveries=[*deliveries, delivered(3.5, 3, group="b")])
    if deletions is not None:
        broken.deletions = deletions
    assert any(breach in text for text in breaches(broken)), breaches(broken)


def test_no_promise_breaks_among_readers_that_fail_expire_and_finish(database: Database, fifo: str) -> None:
    groups = [f"g{number}" for number in range(30)]
    copies, senders, readers = 20, 2, 8
    history = History()
    total = len(groups) * copies
    done: set[int] = set()
    lock = threading.Lock()
    deadline = time.monotonic() + 100
    failures: list[BaseException] = []

    def guarded(work: Callable[[psycopg.Connection, random.Random], None], seed: int) -> threading.Thread:
        def run() -> None:
            try:
                with psycopg.connect(database.dsn) as connection:
                    work(connection, random.Random(seed))
            except BaseException as error:
                failures.append(error)

        return threading.Thread(target=run)

    def send_some(own: list[str]) -> Callable[[psycopg.Connection, random.Random], None]:
        # A group has one sender, so its ids become visible in their order.
        def work(connection: psycopg.Connection, chance: random.Random) -> None:
            pending = own * copies
            chance.shuffle(pending)
            while pending:
                batch = [pending.pop() for _ in range(min(len(pending), chance.randint(1, 8)))]
                ids = send(connection, fifo, batch)
                with lock:
                    history.sent.update(zip(ids, batch, strict=True))
                connection.commit()

        return work

    def read_some(connection: psycopg.Connection, chance: random.Random) -> None:
        while len(done) < total and not failures and time.monotonic() < deadline:
            expires = chance.random() < 0.05
            fails = chance.random() < 0.15
            form = chance.choice(FORMS)
            started = time.monotonic()
            rows = connection.execute(
                f"""
                select msg_id, headers ->> 'x-pgmq-group', extract(epoch from vt)::float8,
                    extract(epoch from last_read_at)::float8
                from pgmq.{form}(%s, %s, %s)
                """,
                [fifo, 1 if expires else 600, chance.choice([5, 20] if expires else [1, 2, 5, 20])],
            ).fetchall()
            delivery = Delivery(started, time.monotonic(), rows[0][3] if rows else 0, [row[:3] for row in rows])
            ids = [row[0] for row in rows]
            deletions: list[tuple[int, float, bool]] = []
            if fails:
                delivery.rolled_back_at = time.monotonic()
                connection.rollback()
            elif expires:
                if len(rows) > 1:
                    # One of them stays invisible a little longer than the others.
                    place = chance.randrange(len(rows))
                    statement = "select extract(epoch from vt)::float8 from pgmq.set_vt(%s, %s::bigint, 2)"
                    (visible_at,) = connection.execute(statement, [fifo, ids[place]]).fetchone()
                    delivery.messages[place] = (*rows[place][:2], visible_at)
                connection.commit()
            else:
                # Some delete in the transaction that reads, some after it, one by one.
                if chance.random() < 0.5:
                    connection.commit()
                chance.shuffle(ids)
                for msg_id in ids:
                    began = time.monotonic()
                    (was_there,) = connection.execute("select pgmq.delete(%s, %s::bigint)", [fifo, msg_id]).fetchone()
                    deletions.append((msg_id, began, was_there))
                connection.commit()
            with lock:
                if rows:
                    history.deliveries.append(delivery)
                history.deletions.extend(deletions)
                done.update(msg_id for msg_id, _, _ in deletions)

    threads = [guarded(send_some(groups[number::senders]), number) for number in range(senders)]
    threads += [guarded(read_some, 100 + number) for number in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(history.sent) == total
    assert breaches(history) == []
    # The test has tried what it is about.
    assert any(delivery.rolled_back_at for delivery in history.deliveries)
    assert any(len({visible_at for *_, visible_at in delivery.messages}) > 1 for delivery in history.deliveries)
    assert len(history.deliveries) - sum(1 for d in history.deliveries if d.rolled_back_at) > total / 20
    assert len(done) == total
    assert database.connect().execute("select queue_length from pgmq.metrics(%s)", [fifo]).fetchone() == (0,)


# What a read costs with the index, in pages touched: the same on every machine.

MESSAGES, GROUPS = 100_000, 1_000


def buffers(db: psycopg.Connection, form: str, queue: str, qty: int) -> int:
    """Pages that a read touched, in all the statements inside it, and the rows it gave."""
    plan = db.execute(
        f"explain (analyze, buffers, format json) select * from pgmq.{form}(%s, 600, %s)", [queue, qty]
    ).fetchone()[0][0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


@pytest.fixture(scope="module")
def big_queue(shared_database: Database) -> Iterator[tuple[psycopg.Connection, str]]:
    """A queue whose FIFO index and plans were made while it was empty, with 100 000 messages in 1 000 groups."""
    name = unique()
    with psycopg.connect(shared_database.dsn, autocommit=True) as db:
        db.execute("select pgmq.create(%s)", [name])
        db.execute("select pgmq.create_fifo_index(%s)", [name])
        # No statistics but those of the empty table.
        db.execute(sql.SQL("alter table pgmq.{} set (autovacuum_enabled = off)").format(sql.Identifier(f"q_{name}")))
        for form in FORMS:
            for _ in range(3):
                assert take(db, form, name, 0, 10) == []
        db.execute(
            """
            select pgmq.send_batch(%s, array_agg('{}'::jsonb),
                array_agg(jsonb_build_object('x-pgmq-group', 'group ' || n %% %s)))
            from generate_series(1, %s) as n
            """,
            [name, GROUPS, MESSAGES],
        )
        yield db, name
        db.execute("select pgmq.drop_queue(%s)", [name])


@pytest.mark.parametrize("form", FORMS)
def test_a_read_touches_pages_by_what_it_takes_and_not_by_the_length_of_the_queue(
    big_queue: tuple[psycopg.Connection, str], form: str
) -> None:
    db, queue = big_queue
    with db.transaction(force_rollback=True):
        # 100 groups are in flight, and at most 100 more: steady state. Of each of the 10 messages asked for: some ten
        # pages to find its head in the index, lock and update it with five index entries. Beside that, at most 1 000
        # messages walked by id to find free groups, and their groups asked for: three levels of the index and a page
        # of the table each. One pass over the index or the table by id would be more than 100 000.
        assert len(take(db, "read_grouped_head", queue, 600, 100)) == 100
        touched = [buffers(db, form, queue, 10) for _ in range(10)]
        assert max(touched) < 5_000, touched
        assert statistics.median(touched) < 200, touched


@pytest.mark.parametrize("form", FORMS)
def test_a_read_that_finds_every_group_held_touches_pages_by_the_number_of_groups(
    big_queue: tuple[psycopg.Connection, str], form: str
) -> None:
    db, queue = big_queue
    with db.transaction(force_rollback=True):
        assert len(take(db, "read_grouped_head", queue, 600, None)) == GROUPS
        # From group to group in the index: three levels and a page of the table each, after a look at 2 500 messages.
        touched = buffers(db, form, queue, 10)
        assert touched < 5 * GROUPS + 5 * 2_500, touched


# docs/groups.md


def test_the_examples_of_the_manual_give_the_results_that_it_shows(make_database: Callable[..., Database]) -> None:
    text = (ROOT / "docs" / "groups.md").read_text()
    examples = re.findall(r"^```sql\n(.*?)^```\n```\n(.*?)^```$", text, re.M | re.S)
    installation = servers.Installation("", pathlib.Path(os.environ["PGMQ_TEST_BIN"]), pathlib.Path(), pathlib.Path())
    psql = subprocess.run(
        [servers.find_psql(installation), "-X", "--pset=pager=off", make_database().dsn],
        input="".join(statements for statements, _ in examples),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    assert len(examples) == text.count("```sql\n")
    assert psql.stdout == "".join(result for _, result in examples)
