"""A clock that jumps delays nothing for longer than two seconds once it is right again. The server's clock is that of
libfaketime; where it cannot be had, the hints are set as such a jump leaves them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest
import servers
from conftest import Database, call, unique, version_of_run
from psycopg.types.json import Jsonb
from standbys import standby_of, wait_for

DAY = 86400
WEEK = 7 * DAY
# What is promised, and some time for the machine.
SOON = 2.5


class Clock:
    """The clock of a server."""

    def __init__(self, cluster: servers.Cluster) -> None:
        self.file = cluster.directory / "clock"
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            # A jump is seen at once, and what is measured in the server is measured by the true clock.
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """Let it be ahead of the true one from now on, or behind."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.chmod(0o644)
        new.rename(self.file)


def library() -> str:
    try:
        return str(servers.get_faketime())
    except servers.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[servers.Cluster]:
    library()
    with servers.cluster(servers.get_major(version_of_run(request.config))) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def started(cluster: servers.Cluster) -> Clock:
    clock = Clock(cluster)
    cluster.control("stop", "-m", "fast")
    cluster.control("start", **clock.environment)
    with psycopg.connect(cluster.dsn(), autocommit=True) as db:
        db.execute("create extension pgmq cascade")
    return clock


@pytest.fixture
def clock(started: Clock) -> Iterator[Clock]:
    yield started
    started.set(0)


@pytest.fixture
def fakedb(cluster: servers.Cluster, clock: Clock) -> Iterator[psycopg.Connection]:
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute("set client_min_messages = warning")
        yield connection


def ids(rows: list) -> list[int]:
    return [row[0] for row in rows]


def work(db: psycopg.Connection, queue: str) -> None:
    """Send and consume, so that every hint is written by the clock as it is now."""
    for _ in range(40):
        sent = ids(call(db, "send_batch", queue, [Jsonb(None)] * 8))
        for _ in range(2):
            rows = call(db, "read", queue, 3600, 4)
            call(db, "delete", queue, ids(rows))
        # Retries, too.
        call(db, "read", queue, 0, 8)
        call(db, "delete", queue, sent)
    for _ in range(40):
        call(db, "read", queue, 3600, 1)


def collect(db: psycopg.Connection, queue: str, expected: set[int], seconds: float) -> None:
    """Read, one and ten in turn, until all that is expected has come, within the time and each once."""
    since, came = time.monotonic(), []
    while set(came) != expected:
        left = since + seconds - time.monotonic()
        for qty in (1, 10):
            came += ids(call(db, "read", queue, WEEK, qty))
        assert len(came) == len(set(came)), "handed out twice within its timeout"
        assert set(came) <= expected, "handed out within its timeout"
        assert left > 0 or set(came) == expected, f"missing after {seconds} s: {expected - set(came)}"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "jumps",
    [(DAY, 0), (DAY,), (-DAY,), (-DAY, 0), (30, 0), (-30, 0)],
    ids=lambda jumps: " ".join(f"{seconds:+d}" for seconds in jumps),
)
def test_after_a_jump_everything_comes_within_two_seconds(
    cluster: servers.Cluster, fakedb: psycopg.Connection, clock: Clock, jumps: tuple[int, ...]
) -> None:
    db, queue = fakedb, unique()
    call(db, "create", queue)
    # In flight for all the time, and a message whose transaction ends only after the jumps.
    held = ids(call(db, "send_batch", queue, [Jsonb("held")] * 3))
    assert ids(call(db, "read", queue, WEEK, 3)) == held
    with psycopg.connect(cluster.dsn()) as sender:
        late = ids(call(sender, "send", queue, Jsonb("late")))
        work(db, queue)
        for seconds in jumps:
            clock.set(seconds)
            if seconds < 0:
                # By a clock that is behind, its time would be tomorrow.
                sender.rollback()
                late = ids(call(sender, "send", queue, Jsonb("late")))
            work(db, queue)
        expected = set(ids(call(db, "send_batch", queue, [Jsonb("new")] * 3)))
        retried = ids(call(db, "read", queue, 1, 1))
        assert set(retried) <= expected, "a new message waits"
        expected |= set(ids(call(db, "send", queue, Jsonb("delayed"), 1)))
        sender.commit()
        collect(db, queue, expected | set(late), 1 + SOON)
    assert call(db, "delete", queue, held[0]) == [(True,)]
    call(db, "drop_queue", queue)


def test_what_was_sent_ahead_of_time_is_not_lost(fakedb: psycopg.Connection, clock: Clock) -> None:
    """Its time is tomorrow, and it can be called back."""
    db, queue = fakedb, unique()
    call(db, "create", queue)
    work(db, queue)
    clock.set(DAY)
    ahead = ids(call(db, "send_batch", queue, [Jsonb("ahead")] * 3))
    work_on = ids(call(db, "read", queue, 30, 1))
    work(db, queue)
    assert work_on == ahead[:1]
    clock.set(0)
    assert call(db, "read", queue, 30, 10) == []
    db.execute("select pgmq.set_vt(%s, %s::bigint[], 0)", [queue, ahead[1:]])
    remaining = set(ids(db.execute(f"select msg_id from pgmq.q_{queue}").fetchall()))
    collect(db, queue, remaining & set(ahead[1:]), SOON)
    call(db, "drop_queue", queue)


def test_readers_while_the_clock_jumps_lose_nothing_and_get_nothing_twice(
    fakedb: psycopg.Connection, clock: Clock
) -> None:
    db, queue = fakedb, unique()
    call(db, "create", queue)
    sent: set[int] = set()
    came: list[int] = []
    for n in range(120):
        if n % 4 == 0:
            # Never further than the timeout, else a jump would end it by itself.
            clock.set((0, 25, -20, 30, 5)[n // 4 % 5])
        sent |= set(ids(call(db, "send_batch", queue, [Jsonb(n)] * 5)))
        came += ids(call(db, "read", queue, 3600, n % 7))
    clock.set(0)
    assert len(came) == len(set(came))
    # What was sent last at the most advanced clock is visible 30 seconds later; it is there.
    kept = set(ids(db.execute(f"select msg_id from pgmq.q_{queue}").fetchall()))
    assert kept == sent
    visible = db.execute(f"select msg_id from pgmq.q_{queue} where vt <= clock_timestamp()").fetchall()
    collect(db, queue, set(ids(visible)), SOON)
    clock.set(40)
    came += ids(visible)
    collect(db, queue, sent - set(came), SOON)
    call(db, "drop_queue", queue)


def test_a_promoted_standby_whose_clock_is_behind(
    cluster: servers.Cluster, fakedb: psycopg.Connection, clock: Clock
) -> None:
    db, queue = fakedb, unique()
    call(db, "create", queue)
    work(db, queue)
    held = ids(call(db, "send_batch", queue, [Jsonb("held")] * 3))
    assert ids(call(db, "read", queue, WEEK, 3)) == held
    sent = set(ids(call(db, "send_batch", queue, [Jsonb("sent")] * 3)))
    sent |= set(ids(call(db, "send", queue, Jsonb("delayed"), 1)))
    db.close()
    with standby_of(cluster, **clock.environment) as standby:
        behind = Clock(standby)
        behind.set(-60)
        standby.control("restart", **behind.environment)
        with psycopg.connect(standby.dsn(), autocommit=True) as session:
            with psycopg.connect(cluster.dsn(), autocommit=True) as primary:
                wait_for(session, primary)
            standby.control("promote")
            # By its own clock what was sent before is from the future; what is sent to it comes, and again.
            new = ids(call(session, "send", queue, Jsonb("new")))
            assert ids(call(session, "read", queue, 1, 10)) == new
            new += ids(call(session, "send", queue, Jsonb("new")))
            collect(session, queue, set(new), 1 + SOON)
            behind.set(0)
            collect(session, queue, sent, SOON)


# Without libfaketime.


def leave_hints(db: psycopg.Connection, queue: str, seconds: int) -> None:
    """Writes the times among the hints as readers did whose clock was ahead by so many seconds."""
    names = dict(
        db.execute(
            "select split_part(sequencename, '$', 2), format('pgmq.%%I', sequencename) from pg_sequences"
            " where schemaname = 'pgmq' and starts_with(sequencename, %s)",
            [f"q_{queue}$"],
        ).fetchall()
    )
    moment = db.execute("select extract(epoch from clock_timestamp())::double precision").fetchone()[0] + seconds
    # When the last sweep began, in milliseconds; the pause after it, in seconds; the spread.
    packed = (int(moment * 1000) << 16) | (1 << 10) | 1
    for hint, value in (("due", int(moment * 1_000_000) - 10_000), ("sweep", packed)):
        db.execute("select setval(%s::regclass, %s)", [names[hint], value])


@pytest.mark.parametrize("seconds", [DAY, 30, 3600 * DAY])
def test_hints_of_readers_whose_clock_was_ahead_delay_nothing_for_long(
    db: psycopg.Connection, database: Database, queue: str, seconds: int
) -> None:
    held = ids(call(db, "send_batch", queue, [Jsonb("held")] * 3))
    assert ids(call(db, "read", queue, WEEK, 3)) == held
    sender = database.connect(autocommit=False)
    late = ids(call(sender, "send", queue, Jsonb("late")))
    work(db, queue)
    leave_hints(db, queue, seconds)
    expected = set(ids(call(db, "send_batch", queue, [Jsonb("new")] * 3)))
    assert set(ids(call(db, "read", queue, 1, 1))) <= expected
    expected |= set(ids(call(db, "send", queue, Jsonb("delayed"), 1)))
    sender.commit()
    collect(db, queue, expected | set(late), 1 + SOON)
