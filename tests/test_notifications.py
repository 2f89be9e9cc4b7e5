"""What is promised for notifications of inserts: when they come, when they do not, and that nobody waits for them."""

import pathlib
import re
import threading
import time
from collections.abc import Callable

import psycopg
import pytest
from conftest import Database, error_of, unique
from psycopg import sql

DOCS = pathlib.Path(__file__).parent.parent / "docs"
MINUTE = 60_000


def enable(connection: psycopg.Connection, queue: str, throttle: int) -> None:
    connection.execute("select pgmq.enable_notify_insert(%s, %s)", [queue, throttle])


def send(connection: psycopg.Connection, queue: str) -> None:
    connection.execute("select pgmq.send(%s, '{}')", [queue])


class Listener:
    """A session that listens, and tells what it has heard so far."""

    def __init__(self, database: Database, *queues: str) -> None:
        self.connection = database.connect()
        self.notifier = database.connect()
        self.end = unique("end")
        for channel in (self.end, *(f"pgmq.q_{queue}.INSERT" for queue in queues)):
            self.connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))

    def heard(self) -> list[str]:
        """The channels of what was committed before this call and not told yet: notifications come in order."""
        self.notifier.execute(f"notify {self.end}")
        channels: list[str] = []
        for notification in self.connection.notifies(timeout=20):
            if notification.channel == self.end:
                return channels
            assert notification.payload == ""
            channels.append(notification.channel)
        raise AssertionError("no notification came")

    def count(self) -> int:
        return len(self.heard())


@pytest.fixture
def listener(database: Database, queue: str) -> Listener:
    return Listener(database, queue)


@pytest.fixture
def sender(database: Database) -> psycopg.Connection:
    """A session whose transactions the test ends."""
    return database.connect(autocommit=False)


def test_an_insert_notifies_the_channel_of_the_queue(db: psycopg.Connection, queue: str, listener: Listener) -> None:
    send(db, queue)
    assert listener.heard() == []
    enable(db, queue, 0)
    send(db, queue)
    assert listener.heard() == [f"pgmq.q_{queue}.INSERT"]


def test_a_batch_notifies_once(db: psycopg.Connection, queue: str, listener: Listener) -> None:
    enable(db, queue, 0)
    db.execute("select pgmq.send_batch(%s, array_fill('{}'::jsonb, array[100]))", [queue])
    assert listener.count() == 1
    with db.transaction():
        send(db, queue)
        send(db, queue)
    assert listener.count() == 1


def test_without_a_throttle_every_insert_notifies(db: psycopg.Connection, queue: str, listener: Listener) -> None:
    enable(db, queue, 0)
    for _ in range(20):
        send(db, queue)
    assert listener.count() == 20


def test_within_the_throttle_only_the_first_insert_notifies(
    db: psycopg.Connection, queue: str, listener: Listener
) -> None:
    enable(db, queue, MINUTE)
    for _ in range(20):
        send(db, queue)
    assert listener.count() == 1


def test_the_default_throttle_is_250_milliseconds(db: psycopg.Connection, queue: str) -> None:
    db.execute("select pgmq.enable_notify_insert(%s)", [queue])
    listed = db.execute("select * from pgmq.list_notify_insert_throttles()").fetchall()
    assert [(name, throttle) for name, throttle, _ in listed] == [(queue, 250)]


def test_after_the_throttle_an_insert_notifies_again(db: psycopg.Connection, queue: str, listener: Listener) -> None:
    enable(db, queue, 50)
    for _ in range(3):
        send(db, queue)
        assert listener.count() == 1
        over = "select clock_timestamp() > last_notified_at + interval '51 ms' from pgmq.list_notify_insert_throttles()"
        while not db.execute(over).fetchone()[0]:
            pass


@pytest.mark.parametrize("level", list(psycopg.IsolationLevel))
def test_the_throttle_holds_at_every_isolation_level(
    db: psycopg.Connection, database: Database, queue: str, listener: Listener, level: psycopg.IsolationLevel
) -> None:
    enable(db, queue, MINUTE)
    db.isolation_level = level
    for _ in range(5):
        with db.transaction():
            send(db, queue)
            send(db, queue)
    assert listener.count() == 1


@pytest.mark.parametrize(
    "name", ["Upper", "sp ace", "dot.dot", "hy-phen", 'quo"te', "Grün", "x" * 47, "Ü" * 47, "Ü" * 40 + "1234567"]
)
def test_any_queue_name_can_notify(db: psycopg.Connection, database: Database, name: str) -> None:
    db.execute("select pgmq.create(%s)", [name])
    try:
        listener = Listener(database, name)
        enable(db, name.swapcase(), MINUTE)
        send(db, name.lower())
        (channel,) = listener.heard()
        assert f"pgmq.q_{name}.INSERT".encode().startswith(channel.encode())
        assert len(channel.encode()) in (len(f"pgmq.q_{name}.INSERT".encode()), 62, 63)
        send(db, name.upper())
        assert listener.count() == 0
        db.execute("select pgmq.update_notify_insert(%s, 0)", [name.upper()])
        send(db, name)
        assert listener.count() == 1
        listed = db.execute("select queue_name, throttle_interval_ms from pgmq.list_notify_insert_throttles()")
        assert listed.fetchall() == [(name, 0)]
        db.execute("select pgmq.disable_notify_insert(%s)", [name.lower()])
        send(db, name)
        assert listener.count() == 0
    finally:
        assert db.execute("select pgmq.drop_queue(%s)", [name]).fetchone()[0] is True


# Rollbacks


def test_a_sender_that_rolled_back_silences_nobody(
    db: psycopg.Connection, queue: str, listener: Listener, sender: psycopg.Connection
) -> None:
    enable(db, queue, MINUTE)
    send(sender, queue)
    sender.rollback()
    assert listener.count() == 0
    send(db, queue)
    assert listener.count() == 1


def test_a_sender_that_is_not_done_silences_nobody_and_holds_up_nobody(
    db: psycopg.Connection, queue: str, listener: Listener, sender: psycopg.Connection
) -> None:
    enable(db, queue, MINUTE)
    send(sender, queue)
    db.execute("set lock_timeout = '1s'")
    send(db, queue)
    assert listener.count() == 1
    send(db, queue)
    assert listener.count() == 0
    sender.rollback()
    assert listener.count() == 0


def test_a_savepoint_that_rolled_back_silences_nobody(
    db: psycopg.Connection, queue: str, listener: Listener, sender: psycopg.Connection
) -> None:
    enable(db, queue, MINUTE)
    sender.execute("create temporary table t ()")
    with sender.transaction(force_rollback=True):
        send(sender, queue)
    sender.commit()
    assert listener.count() == 0
    with sender.transaction(), sender.transaction():
        with sender.transaction(force_rollback=True):
            send(sender, queue)
        send(sender, queue)
    sender.commit()
    assert listener.count() == 1
    send(db, queue)
    assert listener.count() == 0


def test_the_same_transaction_notifies_after_going_back_to_a_savepoint(
    db: psycopg.Connection, queue: str, listener: Listener, sender: psycopg.Connection
) -> None:
    enable(db, queue, MINUTE)
    with sender.transaction():
        with sender.transaction(force_rollback=True):
            send(sender, queue)
        send(sender, queue)
    assert listener.count() == 1


# Side by side


def test_eight_senders_with_open_transactions_wait_for_nothing(
    db: psycopg.Connection, database: Database, queue: str, listener: Listener
) -> None:
    for throttle in (0, 1, MINUTE):
        enable(db, queue, throttle)
        sessions = [database.connect(autocommit=False) for _ in range(8)]
        for session in sessions:
            session.execute("set lock_timeout = '1s'")
        for _ in range(3):
            for session in sessions:
                send(session, queue)
        assert listener.count() == 0
        waiting = db.execute(
            "select count(*) from pg_locks where not granted and pid = any (%s)",
            [[session.info.backend_pid for session in sessions]],
        )
        assert waiting.fetchone()[0] == 0
        for session in sessions:
            session.commit()
        assert 1 <= listener.count() <= 8


def test_eight_busy_senders_never_wait_for_a_lock(
    db: psycopg.Connection, database: Database, queue: str, listener: Listener
) -> None:
    enable(db, queue, MINUTE)
    send(db, queue)
    connections = [database.connect() for _ in range(8)]
    processes = [connection.info.backend_pid for connection in connections]

    def work(connection: psycopg.Connection) -> None:
        for _ in range(100):
            send(connection, queue)

    threads = [threading.Thread(target=work, args=[connection]) for connection in connections]
    for thread in threads:
        thread.start()
    waits = set()
    while any(thread.is_alive() for thread in threads):
        waits |= set(
            db.execute(
                "select wait_event from pg_stat_activity where pid = any (%s) and wait_event_type = 'Lock'"
                " and wait_event <> 'extend'",
                [processes],
            ).fetchall()
        )
    assert waits == set()
    assert listener.count() == 1
    assert db.execute(f"select count(*) from pgmq.q_{queue}").fetchone()[0] == 801


# Turning it on and off


def test_update_starts_the_throttle_afresh(db: psycopg.Connection, queue: str, listener: Listener) -> None:
    enable(db, queue, MINUTE)
    send(db, queue)
    db.execute("select pgmq.update_notify_insert(%s, %s)", [queue, 2 * MINUTE])
    listed = "select throttle_interval_ms, last_notified_at = to_timestamp(0) from pgmq.list_notify_insert_throttles()"
    assert db.execute(listed).fetchall() == [(2 * MINUTE, True)]
    send(db, queue)
    send(db, queue)
    assert listener.count() == 2
    assert db.execute(listed).fetchall() == [(2 * MINUTE, False)]


def test_update_does_not_wait_for_senders(
    db: psycopg.Connection, queue: str, listener: Listener, sender: psycopg.Connection
) -> None:
    enable(db, queue, MINUTE)
    send(sender, queue)
    db.execute("set lock_timeout = '1s'")
    db.execute("select pgmq.update_notify_insert(%s, 0)", [queue])
    send(sender, queue)
    sender.commit()
    assert listener.count() == 1


@pytest.mark.parametrize("throttle", [0, MINUTE])
def test_the_list_tells_when_an_insert_last_notified(db: psycopg.Connection, queue: str, throttle: int) -> None:
    enable(db, queue, throttle)
    began = db.execute("select clock_timestamp()").fetchone()[0]
    send(db, queue)
    (first,) = db.execute("select last_notified_at from pgmq.list_notify_insert_throttles()").fetchone()
    send(db, queue)
    (second,) = db.execute("select last_notified_at from pgmq.list_notify_insert_throttles()").fetchone()
    assert began <= first <= second <= db.execute("select clock_timestamp()").fetchone()[0]
    assert (first == second) == (throttle > 0)


def test_enabling_twice_changes_the_throttle(db: psycopg.Connection, queue: str, listener: Listener) -> None:
    enable(db, queue, MINUTE)
    enable(db, queue.upper(), 0)
    for _ in range(3):
        send(db, queue)
    assert listener.count() == 3
    assert db.execute("select count(*) from pgmq.notify_insert_throttle").fetchone()[0] == 1


def test_disabling_where_nothing_is_enabled_is_no_error(db: psycopg.Connection, queue: str, listener: Listener) -> None:
    enable(db, queue, 0)
    for name in (queue, queue, "nowhere"):
        db.execute("select pgmq.disable_notify_insert(%s)", [name])
    send(db, queue)
    assert listener.count() == 0
    assert db.execute("select * from pgmq.list_notify_insert_throttles()").fetchall() == []
    left = "select proname from pg_proc where proname ~ %s union select relname from pg_class where relname ~ %s"
    assert db.execute(left, [rf"^q_{queue}\$notif"] * 2).fetchall() == []


def test_dropping_the_queue_removes_its_throttle(db: psycopg.Connection) -> None:
    name = unique()
    db.execute("select pgmq.create(%s)", [name])
    enable(db, name, 0)
    assert db.execute("select pgmq.drop_queue(%s)", [name]).fetchone()[0] is True
    assert db.execute("select * from pgmq.notify_insert_throttle").fetchall() == []


def test_bad_input_is_refused(db: psycopg.Connection, queue: str) -> None:
    for function in ("enable_notify_insert", "update_notify_insert"):
        for name, throttle, error, message in (
            ("nowhere", 1, psycopg.errors.RaiseException, "does not exist"),
            ("no$where", 1, psycopg.errors.RaiseException, "invalid characters"),
            (None, 1, psycopg.errors.RaiseException, "does not exist"),
            (queue, -1, psycopg.errors.RaiseException, "must be non-negative, got: -1"),
            (queue, None, psycopg.errors.NullValueNotAllowed, "must not be NULL"),
        ):
            with error_of(error, message):
                db.execute(f"select pgmq.{function}(%s, %s::integer)", [name, throttle])
    with error_of(psycopg.errors.RaiseException, "not enabled", "pgmq.enable_notify_insert"):
        db.execute("select pgmq.update_notify_insert(%s, 1)", [queue])
    with error_of(psycopg.errors.NullValueNotAllowed, "must not be NULL"):
        db.execute("select pgmq.disable_notify_insert(null)")
    assert db.execute("select * from pgmq.list_notify_insert_throttles()").fetchall() == []


# Who may


def test_a_role_that_may_only_insert_notifies(
    db: psycopg.Connection, database: Database, make_role: Callable[..., str], queue: str, listener: Listener
) -> None:
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    db.execute(f"grant insert on pgmq.q_{queue} to {role}")
    enable(db, queue, MINUTE)
    stranger = database.connect(role)
    for _ in range(2):
        stranger.execute(f"insert into pgmq.q_{queue} (vt, message) values (now(), '1')")
    assert listener.count() == 1
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        stranger.execute(f"""select setval('pgmq."q_{queue}$notified"', 1)""")


def test_a_trigger_on_another_table_cannot_silence_the_queue(
    db: psycopg.Connection, database: Database, make_role: Callable[..., str], queue: str, listener: Listener
) -> None:
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    enable(db, queue, MINUTE)
    stranger = database.connect(role)
    stranger.execute("create temporary table t (x integer)")
    stranger.execute(
        f'create trigger t after insert on t for each statement execute function pgmq."q_{queue}$notify"()'
    )
    stranger.execute("insert into t values (1)")
    stranger.execute("drop table t")
    assert listener.count() == 0
    send(db, queue)
    assert listener.count() == 1


def test_what_a_superuser_enables_runs_as_the_owner_of_the_queue(
    db: psycopg.Connection, database: Database, make_role: Callable[..., str]
) -> None:
    role, name = make_role(), unique()
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {role}")
    db.execute(f"grant select, insert, update, delete on pgmq.notify_insert_throttle to {role}")
    owner = database.connect(role)
    owner.execute("select pgmq.create(%s)", [name])
    enable(db, name, MINUTE)
    assert db.execute(
        "select proowner::regrole::text from pg_proc where proname = %s", [f"q_{name}$notify"]
    ).fetchall() == [(role,)]
    listener = Listener(database, name)
    send(owner, name)
    send(db, name)
    assert listener.count() == 1
    owner.execute("select pgmq.update_notify_insert(%s, 0)", [name])
    send(owner, name)
    assert listener.count() == 1
    owner.execute("select pgmq.disable_notify_insert(%s)", [name])
    owner.execute("select pgmq.enable_notify_insert(%s)", [name])
    owner.execute("select pgmq.drop_queue(%s)", [name])


# Tables that come from elsewhere, or stay behind


def test_messages_restored_with_their_ids_notify_and_raise_no_error(
    db: psycopg.Connection, database: Database, queue: str, listener: Listener
) -> None:
    enable(db, queue, MINUTE)
    restoring = database.connect()
    with restoring.cursor().copy(f"copy pgmq.q_{queue} (msg_id, vt, message) from stdin") as copy:
        copy.write_row([7, "now", "{}"])
    assert listener.count() == 1


def test_the_extension_can_be_dropped_and_what_stays_still_notifies(make_database: Callable[..., Database]) -> None:
    database = make_database()
    connection = database.connect()
    connection.execute("select pgmq.create('stays')")
    enable(connection, "stays", 0)
    connection.execute("drop extension pgmq")
    listener = Listener(database, "stays")
    connection.execute("insert into pgmq.q_stays (vt) values (now())")
    assert listener.count() == 1


def test_a_trigger_of_another_version_notifies_until_it_is_replaced(
    db: psycopg.Connection, queue: str, listener: Listener
) -> None:
    create = (
        f"create constraint trigger theirs after insert on pgmq.q_{queue} deferrable for each row"
        " execute function pgmq.notify_queue_listeners()"
    )
    db.execute(create)
    send(db, queue)
    assert listener.heard() == [f"pgmq.q_{queue}.INSERT"]
    enable(db, queue, MINUTE)
    send(db, queue)
    send(db, queue)
    assert listener.count() == 1
    db.execute(create)
    db.execute("select pgmq.disable_notify_insert(%s)", [queue])
    send(db, queue)
    assert listener.count() == 0


def test_a_notification_does_not_read_through_the_queue(
    db: psycopg.Connection, sender: psycopg.Connection, queue: str
) -> None:
    # A throttle of one millisecond has each of these look up what it has just inserted; the first plans that while the
    # table is empty.
    enable(db, queue, 1)
    send(sender, queue)
    db.execute("select pgmq.send_batch(%s, array_fill('1'::jsonb, array[2000]))", [queue])
    time.sleep(0.002)
    send(sender, queue)
    read = sender.execute(
        "select sum(seq_tup_read)::int from pg_stat_xact_user_tables where relname = %s", [f"q_{queue}"]
    ).fetchone()
    sender.rollback()
    assert read == (0,)


def test_a_topic_notifies_each_queue(db: psycopg.Connection, database: Database, queue: str) -> None:
    other = unique()
    db.execute("select pgmq.create(%s)", [other])
    try:
        listener = Listener(database, queue, other)
        for name in (queue, other):
            enable(db, name, 0)
            db.execute("select pgmq.bind_topic('notified.#', %s)", [name])
        db.execute("select pgmq.send_topic('notified.x', '{}')")
        assert sorted(listener.heard()) == sorted(f"pgmq.q_{name}.INSERT" for name in (queue, other))
    finally:
        db.execute("select pgmq.drop_queue(%s)", [other])


# The page


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / "notifications.md").read_text(), re.M | re.S)


def test_statements_of_the_page(make_database: Callable[..., Database]) -> None:
    connection = make_database().connect()
    for block in blocks("sql"):
        connection.execute(block)
    assert connection.execute("select count(*) from pgmq.meta").fetchone()[0] == 1


class Done(Exception):
    """What ends the consumer."""


@pytest.mark.parametrize("throttle", [0, 50])
def test_the_consumer_of_the_page_gets_every_message_and_does_not_poll(
    db: psycopg.Connection, database: Database, queue: str, throttle: int
) -> None:
    (program,) = blocks("python")
    namespace: dict[str, Callable[..., None]] = {}
    exec(program, namespace)
    enable(db, queue, throttle)
    handled: list[int] = []

    def handle(message: int) -> None:
        handled.append(message)
        if message == -1:
            raise Done

    def consume() -> None:
        with pytest.raises(Done):
            namespace["consume"](f"{database.dsn} application_name={queue}", queue, throttle / 1000, handle)

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.01)

    def sleeps() -> bool:
        """Has the consumer asked nothing for ten times its pause?"""
        return db.execute(
            """
            select count(*) = 1
            from pg_stat_activity
            where application_name = %s
                and state = 'idle'
                and clock_timestamp() - state_change > interval '1 s'
            """,
            [queue],
        ).fetchone()[0]

    consumer = threading.Thread(target=consume)
    consumer.start()

    def work(first: int) -> None:
        with psycopg.connect(database.dsn) as connection:
            for number in range(first, first + 50):
                connection.execute("select pgmq.send(%s, %s::text::jsonb)", [queue, number])
                if number % 5 == 0:
                    connection.rollback()
                connection.commit()

    senders = [threading.Thread(target=work, args=[first]) for first in range(1000, 5000, 1000)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    expected = sorted(n for first in range(1000, 5000, 1000) for n in range(first, first + 50) if n % 5)
    try:
        wait_for(lambda: len(handled) == len(expected))
        assert sorted(handled) == expected
        wait_for(sleeps)
        # Two in the time of the throttle: the second has no notification of its own.
        for number in (1, 2):
            db.execute("select pgmq.send(%s, %s::text::jsonb)", [queue, number])
        wait_for(lambda: handled[-2:] == [1, 2])
        wait_for(sleeps)
    finally:
        db.execute("select pgmq.send(%s, '-1')", [queue])
        consumer.join(30)
    assert not consumer.is_alive()
