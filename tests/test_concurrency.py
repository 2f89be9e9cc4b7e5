"""Many sessions at once: each message to one reader, nothing lost, nobody waits."""

from __future__ import annotations

import collections
import contextlib
import functools
import random
import re
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from conftest import Database, call, eventually, unique
from psycopg import errors
from psycopg.types.json import Jsonb

READERS = 8


def ids(rows: list) -> list[int]:
    return [row[0] for row in rows]


def fill(db: psycopg.Connection, queue: str, count: int) -> None:
    db.execute("select pgmq.send_batch(%s, array(select to_jsonb(i) from generate_series(1, %s) as i))", [queue, count])


def run(*tasks: Callable[[], object]) -> None:
    """Run tasks at once, each in a thread, and raise the first error of theirs."""
    problems: list[BaseException] = []
    barrier = threading.Barrier(len(tasks))

    def guarded(task: Callable[[], object]) -> None:
        try:
            barrier.wait(30)
            task()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=guarded, args=[task]) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if problems:
        raise problems[0]


@pytest.mark.parametrize("verb", ["read", "pop"])
def test_8_readers_give_each_of_10_000_messages_exactly_once(
    database: Database, db: psycopg.Connection, queue: str, verb: str
) -> None:
    fill(db, queue, 10_000)
    seen: list[int] = []

    def reader() -> None:
        session = database.connect()
        while rows := call(session, verb, queue, *((3600, 10) if verb == "read" else (10,))):
            found = ids(rows)
            assert found == sorted(found)
            seen.extend(found)

    run(*[reader] * READERS)
    # What one reader had locked when the others found nothing.
    eventually(lambda: not seen.extend(ids(call(db, verb, queue, *((3600, 10) if verb == "read" else (10,)))))
               and len(seen) >= 10_000)  # fmt: skip
    assert sorted(seen) == list(range(1, 10_001))
    if verb == "read":
        assert db.execute(f"select read_ct, count(*) from pgmq.q_{queue} group by 1").fetchall() == [(1, 10_000)]
    else:
        assert call(db, "metrics", queue)[0].queue_length == 0


def test_readers_that_delete_and_senders_at_once_lose_nothing(
    database: Database, db: psycopg.Connection, queue: str
) -> None:
    seen: collections.Counter[int] = collections.Counter()
    total = 4 * 1000

    def sender() -> None:
        session = database.connect()
        for n in range(1000):
            call(session, "send", queue, Jsonb(n))

    def reader() -> None:
        session = database.connect()
        deadline = time.monotonic() + 60
        while seen.total() < total and time.monotonic() < deadline:
            if rows := call(session, "read", queue, 3600, 7):
                seen.update(ids(rows))
                call(session, "delete", queue, ids(rows))

    run(*[sender] * 4, *[reader] * 4)
    assert seen == collections.Counter(range(1, total + 1))
    assert call(db, "metrics", queue)[0].queue_length == 0


@pytest.mark.parametrize("are_due_again", [False, True])
def test_readers_that_roll_back_one_time_in_ten_lose_nothing_and_get_nothing_twice(
    database: Database, db: psycopg.Connection, queue: str, are_due_again: bool
) -> None:
    total = 5000
    fill(db, queue, total)
    if are_due_again:
        call(db, "read", queue, 0, total)
    seen: collections.Counter[int] = collections.Counter()
    taken_back = collections.Counter[int]()

    def reader(seed: int) -> None:
        chance = random.Random(seed)
        session = database.connect(autocommit=False)
        deadline = time.monotonic() + 60
        while seen.total() < total and time.monotonic() < deadline:
            rows = call(session, "read", queue, 3600, 20)
            # Whoever rolls back leaves read_ct as it was.
            assert all(row.read_ct == 1 + are_due_again for row in rows)
            if chance.random() < 0.1:
                session.rollback()
                taken_back.update(ids(rows))
            else:
                session.commit()
                seen.update(ids(rows))

    run(*[lambda seed=seed: reader(seed) for seed in range(READERS)])
    assert seen == collections.Counter(range(1, total + 1))
    assert taken_back.total() > 0


def test_of_thousands_that_are_due_what_others_hold_or_give_back_is_passed_over_and_found(
    database: Database, db: psycopg.Connection, queue: str
) -> None:
    fill(db, queue, 5000)
    assert len(call(db, "read", queue, 0, 5000)) == 5000

    def take(quantity: int, session: psycopg.Connection = db) -> list[int]:
        return ids(call(session, "read", queue, 3600, quantity))

    seen: list[int] = []
    with database.connect(autocommit=False) as other:
        held = take(1500, other)
        assert len(held) == 1500
        for _ in range(30):
            seen += take(10)
        other.rollback()
    assert len(set(seen)) == 300 and not set(seen) & set(held)
    # They were left behind: a sweep finds them.
    eventually(lambda: seen.extend(take(10)) or set(seen) & set(held))
    while found := take(500):
        seen += found
    assert sorted(seen) == [*range(1, 5001)]


def hint(db: psycopg.Connection, queue: str, name: str) -> int:
    return db.execute("select pg_sequence_last_value(%s::regclass)", [f'pgmq."q_{queue}${name}"']).fetchone()[0]


def test_a_reader_that_rolls_back_gives_its_message_back_at_the_next_read_with_its_read_ct(
    database: Database, db: psycopg.Connection, queue: str
) -> None:
    fill(db, queue, 2)
    call(db, "read", queue, 0, 1)
    session = database.connect(autocommit=False)
    assert [(row.msg_id, row.read_ct) for row in call(session, "read", queue, 3600, 1)] == [(1, 2)]
    assert ids(call(db, "read", queue, 0, 5)) == [2]
    session.rollback()
    assert [(row.msg_id, row.read_ct) for row in call(db, "read", queue, 3600, 5)] == [(1, 2), (2, 2)]


def test_a_reader_whose_session_ends_gives_its_message_back(
    database: Database, db: psycopg.Connection, queue: str
) -> None:
    fill(db, queue, 1)
    session = database.connect(autocommit=False)
    assert ids(call(session, "read", queue, 3600, 1)) == [1]
    assert call(db, "read", queue, 3600, 1) == []
    db.execute("select pg_terminate_backend(%s)", [session.info.backend_pid])
    assert [row.read_ct for row in eventually(lambda: call(db, "read", queue, 3600, 1))] == [1]


@contextlib.contextmanager
def held(
    database: Database, queue: str, sessions: int, messages: int = 1, ending: str = "commit"
) -> Iterator[set[int]]:
    """While sessions have each read some messages, whose ids this gives, and not committed yet."""
    holders = [database.connect(autocommit=False) for _ in range(sessions)]
    try:
        taken = {row.msg_id for holder in holders for row in call(holder, "read", queue, 3600, messages)}
        assert len(taken) == sessions * messages
        yield taken
    finally:
        for holder in holders:
            getattr(holder, ending)()
            holder.close()


@pytest.mark.parametrize("verb", ["read", "pop"])
def test_in_a_crowd_readers_of_one_message_begin_at_different_places_and_miss_none(
    database: Database, db: psycopg.Connection, queue: str, verb: str
) -> None:
    total = 2000
    fill(db, queue, total)

    def one() -> list[int]:
        return ids(call(db, verb, queue, *((3600, 1) if verb == "read" else (1,))))

    # One read in 32 looks around: 500 that do not are not to be expected in the life of this test.
    with held(database, queue, 10) as taken:
        seen = [one()[0] for _ in range(500)]
    assert seen != sorted(seen)
    assert max(seen) < 510 + 128 + 16 * 10

    # The crowd is gone, and with it the disorder: what was passed over comes first.
    while found := one():
        seen += found
    assert seen[1000:] == sorted(seen[1000:])
    # The last of the ten may have begun elsewhere themselves.
    assert sorted([*seen, *taken]) == [*range(1, total + 1)]


@pytest.mark.parametrize("sessions, messages", [(1, 100), (7, 10)])
def test_a_few_readers_that_hold_messages_do_not_disturb_the_order_of_another(
    database: Database, db: psycopg.Connection, queue: str, sessions: int, messages: int
) -> None:
    fill(db, queue, 1000)
    first = sessions * messages + 1
    with held(database, queue, sessions, messages):
        assert [ids(call(db, "read", queue, 3600, 1))[0] for _ in range(500)] == [*range(first, first + 500)]


def test_readers_that_rolled_back_are_no_crowd(database: Database, db: psycopg.Connection, queue: str) -> None:
    fill(db, queue, 600)
    with held(database, queue, 1):
        with held(database, queue, 12, ending="rollback"):
            pass
        db.execute(f"select setval('pgmq.\"q_{queue}$sweep\"', last_value - (last_value & 1023) + 1)"
                   f' from pgmq."q_{queue}$sweep"')  # fmt: skip
        assert [ids(call(db, "read", queue, 3600, 1))[0] for _ in range(500)] == [*range(2, 502)]


def read_all(db: psycopg.Connection, queue: str) -> list[int]:
    seen: list[int] = []
    while rows := call(db, "read", queue, 3600, 50):
        seen += ids(rows)
    return seen


def late_send(session: psycopg.Connection, queue: str) -> None:
    assert call(session, "send", queue, Jsonb("late")) == [(1,)]


def late_send_with_delay(session: psycopg.Connection, queue: str) -> None:
    assert session.execute("select pgmq.send(%s, '1', clock_timestamp() + '1 ms')", [queue]).fetchall() == [(1,)]


def late_read(session: psycopg.Connection, queue: str) -> None:
    call(session, "send", queue, Jsonb("late"))
    session.commit()
    assert ids(call(session, "read", queue, 0, 1)) == [1]


def late_set_vt(session: psycopg.Connection, queue: str) -> None:
    call(session, "send", queue, Jsonb("late"), 3600)
    session.commit()
    assert ids(call(session, "set_vt", queue, 1, 0)) == [1]


def taken_back(session: psycopg.Connection, queue: str) -> None:
    call(session, "send", queue, Jsonb("late"))
    session.commit()
    assert ids(call(session, "read", queue, 3600, 1)) == [1]


@pytest.mark.parametrize("happens", [late_send, late_send_with_delay, late_read, late_set_vt, taken_back])
def test_a_message_whose_transaction_ends_late_is_delivered_within_two_seconds(
    database: Database, db: psycopg.Connection, queue: str, happens: Callable[[psycopg.Connection, str], None]
) -> None:
    """Its id and its time are lower than what has been read since."""
    session = database.connect(autocommit=False)
    happens(session, queue)
    fill(db, queue, 2000)
    assert read_all(db, queue) == list(range(2, 2002))
    if happens is taken_back:
        session.rollback()
    else:
        session.commit()
    ended = time.monotonic()
    assert eventually(lambda: ids(call(db, "read", queue, 3600, 50))) == [1]
    assert time.monotonic() - ended < 2


def test_late_messages_are_delivered_while_new_ones_keep_the_readers_busy(
    database: Database, db: psycopg.Connection, queue: str
) -> None:
    late = [database.connect(autocommit=False) for _ in range(10)]
    for session in late:
        call(session, "send_batch", queue, [Jsonb("late")] * 20)
    fill(db, queue, 1000)
    read_all(db, queue)
    for session in late:
        session.commit()
    ended = time.monotonic()
    missing = set(range(1, 201))
    while missing:
        fill(db, queue, 100)
        missing -= set(ids(call(db, "read", queue, 3600, 50)))
        assert time.monotonic() - ended < 10
    assert time.monotonic() - ended < 3


@pytest.mark.parametrize("state", ["fresh", "due", "many due"])
@pytest.mark.parametrize("verb", ["read", "read with a condition", "pop"])
def test_readers_never_wait_for_one_another(
    database: Database, db: psycopg.Connection, queue: str, state: str, verb: str
) -> None:
    total = 1200 if state == "many due" else 6
    fill(db, queue, total)
    if state != "fresh":
        call(db, "read", queue, 0, total)

    def take(session: psycopg.Connection, quantity: int) -> list[int]:
        if verb == "pop":
            return ids(call(session, "pop", queue, quantity))
        return ids(call(session, "read", queue, 3600, quantity, *([] if verb == "read" else [Jsonb(3)])))

    one, other = database.connect(autocommit=False), database.connect()
    other.execute("set statement_timeout = '10s'")
    if verb == "read with a condition":
        assert take(one, 2) == [3]
        assert take(other, 2) == []
        one.rollback()
        assert take(other, 2) == [3]
    else:
        assert take(one, 2) == [1, 2]
        assert take(other, 2) == [3, 4]
        one.rollback()
        assert take(other, 2) == [1, 2]


def test_senders_never_wait_for_one_another(database: Database, queue: str) -> None:
    one, other = database.connect(autocommit=False), database.connect()
    other.execute("set statement_timeout = '10s'")
    assert call(one, "send", queue, Jsonb(1)) == [(1,)]
    assert call(other, "send", queue, Jsonb(2)) == [(2,)]
    assert ids(call(other, "read", queue, 30, 5)) == [2]
    one.commit()
    assert ids(call(other, "read", queue, 30, 5)) == [1]


def test_several_sessions_that_create_the_same_queue_at_once_all_succeed(
    database: Database, db: psycopg.Connection
) -> None:
    sessions = [database.connect() for _ in range(4)]
    for _ in range(8):
        name = unique("Race")
        spellings = [name, name.lower(), name.upper(), name]
        pairs = zip(sessions, spellings, strict=True)
        run(*[functools.partial(call, session, "create", spelling) for session, spelling in pairs])
        assert len([row for row in call(db, "list_queues") if row.queue_name.lower() == name.lower()]) == 1
        assert call(sessions[0], "send", name, Jsonb(1)) == [(1,)]
        assert call(db, "drop_queue", name) == [(True,)]


def test_a_second_creator_waits_for_the_first_and_sees_what_became_of_it(database: Database) -> None:
    first, second, watcher = database.connect(autocommit=False), database.connect(), database.connect()
    for ending in ("commit", "rollback"):
        name = unique()
        call(first, "create", name)
        call(first, "send", name, Jsonb("first"))
        thread = threading.Thread(target=call, args=[second, "create", name])
        thread.start()
        eventually(lambda: watcher.execute("select pg_blocking_pids(%s)", [second.info.backend_pid]).fetchone()[0]
                   == [first.info.backend_pid])  # fmt: skip
        getattr(first, ending)()
        thread.join(30)
        assert [row.message for row in call(second, "read", name, 30, 5)] == (["first"] if ending == "commit" else [])
        assert call(second, "drop_queue", name) == [(True,)]


def test_creating_and_dropping_one_queue_in_many_sessions_never_fails(
    database: Database, db: psycopg.Connection
) -> None:
    name = unique()
    outcomes: list[bool] = []

    def creator() -> None:
        session = database.connect()
        for n in range(10):
            call(session, ("create", "create_unlogged")[n % 2], name)

    def dropper() -> None:
        session = database.connect()
        for _ in range(10):
            outcomes.append(call(session, "drop_queue", name)[0][0])

    run(creator, creator, dropper, dropper)
    assert True in outcomes
    call(db, "create", name)
    assert call(db, "send", name, Jsonb(1))
    assert ids(call(db, "read", name, 30, 1))
    call(db, "drop_queue", name)


def test_sessions_go_on_when_a_queue_that_they_use_is_dropped_and_made_again_under_them(
    database: Database, db: psycopg.Connection
) -> None:
    name = unique()
    call(db, "create", name)
    done = threading.Event()
    calls = (("send", Jsonb(1)), ("read", 0, 1), ("pop",), ("delete", 1), ("metrics",))

    def churn() -> None:
        session = database.connect()
        try:
            for _ in range(15):
                call(session, "drop_queue", name)
                call(session, "create", name)
        finally:
            done.set()

    def user() -> None:
        session = database.connect()
        while not done.is_set():
            for verb, *arguments in calls:
                try:
                    call(session, verb, name, *arguments)
                except (errors.UndefinedTable, errors.UndefinedFunction, errors.ObjectNotInPrerequisiteState):
                    continue
                except errors.InternalError_ as error:
                    # What the server says where an object goes between its being looked up and its being locked.
                    assert re.search("could not open relation|cache lookup failed", str(error))
        for verb, *arguments in calls:
            call(session, verb, name, *arguments)

    run(churn, user, user)
    call(db, "drop_queue", name)


def test_dropping_a_queue_waits_for_who_reads_it(database: Database, db: psycopg.Connection) -> None:
    name = unique()
    call(db, "create", name)
    fill(db, name, 1)
    reader, dropper = database.connect(autocommit=False), database.connect()
    assert ids(call(reader, "read", name, 30, 1)) == [1]
    results: list = []
    thread = threading.Thread(target=lambda: results.extend(call(dropper, "drop_queue", name)))
    thread.start()
    eventually(lambda: db.execute("select pg_blocking_pids(%s)", [dropper.info.backend_pid]).fetchone()[0]
               == [reader.info.backend_pid])  # fmt: skip
    assert call(reader, "archive", name, [1, 2]) == [(1,)]
    reader.commit()
    thread.join(30)
    assert results == [(True,)]
