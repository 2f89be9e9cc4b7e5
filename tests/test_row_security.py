"""Row security on the tables of a queue: what a policy hides stays as it is, and nobody's reading hides anything from
others. The set-ups are those of docs/row-security.md, made by its own statements."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
import servers
from conftest import Database, call, eventually, unique
from psycopg import errors
from psycopg.types.json import Jsonb

Session = Callable[..., psycopg.Connection]

MANUAL = (servers.ROOT / "docs" / "row-security.md").read_text()
ROLES = re.findall(r"^create role (\w+)", MANUAL, re.M)


@pytest.fixture(scope="module")
def manual(make_database: Callable[..., Database], admin: psycopg.Connection) -> Iterator[Database]:
    """A database in which all statements of the manual were run, in their order."""
    database = make_database()
    with psycopg.connect(database.dsn, autocommit=True) as db:
        db.execute("set client_min_messages = warning")
        for block in re.findall(r"^```sql\n(.*?)^```$", MANUAL, re.M | re.S):
            db.execute(block)
        db.execute("truncate pgmq.q_jobs")
    yield database
    database.close()
    with psycopg.connect(database.dsn, autocommit=True) as db:
        for role in ROLES:
            db.execute(f"drop owned by {role} cascade")
    for role in ROLES:
        admin.execute(f"drop role {role}")


@pytest.fixture
def session(manual: Database) -> Iterator[Session]:
    """Connects to the manual's database as a role, as a tenant where one is named."""

    def connect(role: str | None, tenant: str | None = None) -> psycopg.Connection:
        connection = manual.connect(role)
        if tenant is not None:
            connection.execute("select set_config('app.tenant', %s, false)", [tenant])
        return connection

    yield connect
    manual.close()
    with psycopg.connect(manual.dsn, autocommit=True) as db:
        db.execute("truncate pgmq.q_jobs, pgmq.a_jobs")
        # As new: no hint is left of this test.
        for sequence, _ in hints(db, "jobs"):
            db.execute("select setval(%s::regclass, 1, false)", [f'pgmq."{sequence}"'])


def ids(rows: list) -> list[int]:
    return [row[0] for row in rows]


def of(tenant: str, n: int = 0) -> Jsonb:
    return Jsonb({"tenant": tenant, "n": n})


def hints(db: psycopg.Connection, queue: str) -> list[tuple]:
    return db.execute(
        "select sequencename, last_value from pg_sequences"
        " where schemaname = 'pgmq' and starts_with(sequencename, %s) order by 1",
        [f"q_{queue}$"],
    ).fetchall()


# What one reader does, another is not delayed by.


@pytest.mark.parametrize("qty", [1, 10])
def test_a_tenant_that_reads_hides_no_message_of_another_that_is_ready(session: Session, qty: int) -> None:
    one, other = session("tenant", "one"), session("tenant", "other")
    first = ids(call(other, "send", "jobs", of("other")))
    for _ in range(6):
        call(one, "send_batch", "jobs", [of("one", n) for n in range(100)])
        while rows := call(one, "read", "jobs", 3600, 50):
            call(one, "delete", "jobs", ids(rows))
    for _ in range(10):
        assert call(one, "read", "jobs", 3600, qty) == []
    assert ids(call(other, "read", "jobs", 3600, qty)) == first


@pytest.mark.parametrize("qty", [1, 10])
def test_a_tenant_without_messages_hides_no_message_of_another_that_is_due_again(session: Session, qty: int) -> None:
    one, other = session("tenant", "one"), session("tenant", "other")
    sent = ids(call(other, "send_batch", "jobs", [of("other", n) for n in range(10)]))
    # Read without a timeout: due from now on.
    assert ids(call(other, "read", "jobs", 0, 10)) == sent
    deadline = time.monotonic() + 1.2
    while time.monotonic() < deadline:
        time.sleep(0.02)
        assert call(one, "read", "jobs", 3600, qty) == []
    assert ids(call(other, "read", "jobs", 3600, qty)) == sent[:qty]


@pytest.mark.parametrize("reader", ["worker", None], ids=["bypassing", "owner"])
def test_a_role_that_sees_nothing_delays_no_retry_of_a_worker(session: Session, reader: str | None) -> None:
    """It has grants, and no policy that shows it a row."""
    blind, worker = session("tenant"), session(reader)
    sent = ids(call(worker, "send_batch", "jobs", [of("one", n) for n in range(5)]))
    assert ids(call(worker, "read", "jobs", 1, 5)) == sent
    due = time.monotonic() + 1
    came: list[int] = []
    while len(came) < 5:
        time.sleep(0.02)
        assert call(blind, "read", "jobs", 3600, 10) == []
        assert call(blind, "read", "jobs", 3600, 1) == []
        # The worker comes seldom, so that the blind one has all the time to note that there is nothing.
        if time.monotonic() > due + 1.2:
            came += ids(call(worker, "read", "jobs", 3600, 10))
            assert time.monotonic() < due + 2
    assert came == sent


def test_tenants_beside_a_worker_find_what_is_committed_late(session: Session, manual: Database) -> None:
    """The worker sees all, and what it knows of the queue serves the tenants too: late messages among them."""
    worker, tenant = session("worker"), session("tenant", "one")
    late = manual.connect("tenant", autocommit=False)
    late.execute("set app.tenant = 'one'")
    last = ids(call(late, "send", "jobs", of("one")))
    call(worker, "send_batch", "jobs", [of("other", n) for n in range(1000)])
    while rows := call(worker, "read", "jobs", 3600, 50):
        call(worker, "delete", "jobs", ids(rows))
        assert call(tenant, "read", "jobs", 3600, 10) == []
    late.commit()
    since = time.monotonic()
    assert eventually(lambda: ids(call(tenant, "read", "jobs", 3600, 10)), 5) == last
    assert time.monotonic() - since < 2.5


def test_a_tenant_finds_what_a_worker_that_is_gone_has_passed(session: Session, manual: Database) -> None:
    worker, tenant = session("worker"), session("tenant", "one")
    late = manual.connect("tenant", autocommit=False)
    late.execute("set app.tenant = 'one'")
    last = ids(call(late, "send", "jobs", of("one")))
    call(worker, "send_batch", "jobs", [of("other", n) for n in range(1000)])
    while call(worker, "read", "jobs", 3600, 50):
        pass
    late.commit()
    since = time.monotonic()
    assert eventually(lambda: ids(call(tenant, "read", "jobs", 3600, 1)), 5) == last
    assert time.monotonic() - since < 2.5


def test_a_tenant_beside_a_worker_reads_as_fast_as_that_one(session: Session, manual: Database) -> None:
    """While another session holds an old snapshot, dead index entries stay; the worker knows where they end."""
    worker, tenant = session("worker"), session("tenant", "one")
    sent = ids(call(worker, "send_batch", "jobs", [of("one")] * 10000))
    holder = manual.connect(autocommit=False)
    holder.execute("set transaction isolation level repeatable read")
    holder.execute("select txid_current()")
    while call(worker, "pop", "jobs", 50)[-1].msg_id < sent[9900]:
        pass

    def buffers() -> int:
        call(worker, "read", "jobs", 3600, 1)
        explained = tenant.execute("explain (analyze, buffers, format json) select pgmq.read('jobs', 3600, 1)")
        plan = explained.fetchone()[0][0]["Plan"]
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    assert min(buffers() for _ in range(5)) < 300


# Nobody under row security writes what is shared among readers.


def test_a_tenant_cannot_write_the_hints_through_any_function(session: Session) -> None:
    db, worker, tenant = session(None), session("worker"), session("tenant", "one")
    call(worker, "send_batch", "jobs", [of("other", n) for n in range(1000)])
    for _ in range(15):
        call(worker, "read", "jobs", 3600, 50)
    before = hints(db, "jobs")
    assert len(before) >= 3
    functions = db.execute(
        r"""
        select p.oid::regproc::text, array(
            select format_type(t.type, null)
            from unnest(p.proargtypes) with ordinality as t (type, place)
            order by t.place
        )
        from pg_proc as p
        where p.pronamespace = 'pgmq'::regnamespace
            and p.prokind = 'f'
            and p.prorettype <> 'trigger'::regtype
            and (p.proname like 'q\_jobs$%' or p.proname like '\_%')
        """
    ).fetchall()
    assert any(name.startswith("pgmq._keep") or "owner_hint" in name for name, _ in functions)
    values = {
        "regclass": ["'pgmq.q_jobs'"],
        "text": ["'head'", "'due'", "'sweep'", "'jobs'"],
        "bigint": ["0", "1", "4611686018427387904"],
        "timestamp with time zone": ["now() + interval '1 day'", "now()"],
        "integer": ["1", "100"],
        "jsonb": ["'{}'"],
    }
    for name, types in functions:
        for chosen in itertools.product(*(values.get(type, ["null"]) for type in sorted(set(types)))):
            value = dict(zip(sorted(set(types)), chosen, strict=True))
            arguments = [f"({value[type]})::{type}" for type in types]
            with contextlib.suppress(psycopg.Error), tenant.transaction(force_rollback=True):
                tenant.execute(f"select {name}({', '.join(arguments)})")
            assert hints(db, "jobs") == before, (name, arguments)
    for sequence, _ in before:
        with pytest.raises(errors.InsufficientPrivilege):
            tenant.execute("select setval(%s::regclass, 1)", [f'pgmq."{sequence}"'])


def test_reading_under_row_security_writes_no_hints(session: Session) -> None:
    db, tenant = session(None), session("tenant", "one")
    before = hints(db, "jobs")
    for _ in range(5):
        call(tenant, "send_batch", "jobs", [of("one", n) for n in range(200)])
        while rows := call(tenant, "read", "jobs", 3600, 25):
            call(tenant, "delete", "jobs", ids(rows[5:]))
            call(tenant, "set_vt", "jobs", ids(rows[:2]), 0)
            call(tenant, "pop", "jobs", 2)
    call(tenant, "read_grouped", "jobs", 0, 10)
    assert hints(db, "jobs") == before


# The manual: tenants on one queue.


def test_each_tenant_has_its_own_messages_and_no_others(session: Session) -> None:
    db, one, other = session(None), session("tenant", "one"), session("tenant", "other")
    sent = {tenant: [] for tenant in ("one", "other")}
    for n in range(40):
        for tenant, connection in (("one", one), ("other", other)):
            sent[tenant] += ids(call(connection, "send", "jobs", of(tenant, n)))
    theirs = "select * from pgmq.q_jobs where message ->> 'tenant' = 'other' order by msg_id"
    before = db.execute(theirs).fetchall()
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        call(one, "send", "jobs", of("other"))
    everything = sent["one"] + sent["other"]
    got: list[int] = []
    got += ids(call(one, "read", "jobs", 0, 1))
    got += ids(call(one, "read", "jobs", 0, 100))
    got += ids(one.execute("select * from pgmq.read('jobs', 0, 100, '{\"n\": 3}')").fetchall())
    got += ids(call(one, "read_with_poll", "jobs", 0, 100, 0))
    for function in ("read_grouped", "read_grouped_rr", "read_grouped_head"):
        got += ids(call(one, function, "jobs", 0, 100))
    got += ids(call(one, "set_vt", "jobs", sent["other"][0], 0))
    got += ids(one.execute("select * from pgmq.set_vt('jobs', %s::bigint[], 0)", [everything]).fetchall())
    assert set(got) == set(sent["one"])
    assert call(one, "delete", "jobs", sent["other"][0]) == [(False,)]
    assert call(one, "archive", "jobs", sent["other"][0]) == [(False,)]
    assert (
        ids(one.execute("select pgmq.archive('jobs', %s::bigint[])", [everything[:5] + everything[-5:]]))
        == (sent["one"][:5])
    )
    assert ids(call(one, "pop", "jobs", 5)) == sent["one"][5:10]
    assert ids(one.execute("select pgmq.delete('jobs', %s::bigint[])", [everything])) == sent["one"][10:]
    assert db.execute(theirs).fetchall() == before
    # The archive has the policy, too.
    assert one.execute("select count(*) from pgmq.a_jobs").fetchone() == (5,)
    assert other.execute("select count(*) from pgmq.a_jobs").fetchone() == (0,)


def test_without_a_tenant_nothing_is_seen_and_nothing_is_sent(session: Session) -> None:
    one, blind = session("tenant", "one"), session("tenant")
    call(one, "send", "jobs", of("one"))
    assert call(blind, "read", "jobs", 0, 10) == []
    with pytest.raises(errors.InsufficientPrivilege):
        call(blind, "send", "jobs", of("one"))


def test_metrics_count_what_the_caller_sees(session: Session) -> None:
    one, other, worker = session("tenant", "one"), session("tenant", "other"), session("worker")
    call(one, "send_batch", "jobs", [of("one")] * 3)
    call(other, "send_batch", "jobs", [of("other")] * 2)
    figures = {name: call(connection, "metrics", "jobs")[0] for name, connection in (("one", one), ("all", worker))}
    assert (figures["one"].queue_length, figures["all"].queue_length) == (3, 5)
    # But of the ids there is one count for all.
    assert figures["one"].total_messages == figures["all"].total_messages


def test_a_purge_removes_what_the_caller_sees(session: Session) -> None:
    db, one, other = session(None), session("tenant", "one"), session("tenant", "other")
    call(one, "send_batch", "jobs", [of("one")] * 3)
    sent = ids(call(other, "send_batch", "jobs", [of("other")] * 2))
    # Whoever may truncate a table is not asked for policies.
    db.execute("grant truncate on pgmq.q_jobs to tenant")
    try:
        assert call(one, "purge_queue", "jobs") == [(3,)]
    finally:
        db.execute("revoke truncate on pgmq.q_jobs from tenant")
    assert ids(call(other, "read", "jobs", 0, 10)) == sent


def test_notifications_come_for_every_tenant(session: Session) -> None:
    db, one = session(None), session("tenant", "one")
    call(db, "enable_notify_insert", "jobs", 0)
    try:
        db.execute('listen "pgmq.q_jobs.INSERT"')
        call(one, "send", "jobs", of("one"))
        assert len(list(db.notifies(timeout=10, stop_after=1))) == 1
    finally:
        call(db, "disable_notify_insert", "jobs")


def test_what_a_reader_may_see_and_not_update_is_not_handed_out(session: Session) -> None:
    db, one, other = session(None), session("tenant", "one"), session("tenant", "other")
    sent = ids(call(one, "send_batch", "jobs", [of("one")] * 3))
    theirs = ids(call(other, "send_batch", "jobs", [of("other")] * 2))
    db.execute("create policy seen on pgmq.q_jobs for select to tenant using (true)")
    try:
        assert one.execute("select count(*) from pgmq.q_jobs").fetchone() == (5,)
        assert ids(call(one, "read", "jobs", 3600, 10)) == sent
        assert call(one, "read", "jobs", 3600, 1) == call(one, "pop", "jobs", 5) == []
        assert ids(other.execute("select * from pgmq.set_vt('jobs', %s::bigint[], 0)", [sent + theirs])) == theirs
        assert ids(other.execute("select pgmq.delete('jobs', %s::bigint[])", [sent + theirs])) == theirs
    finally:
        db.execute("drop policy seen on pgmq.q_jobs")


def test_a_message_that_is_hidden_does_not_hold_up_its_group(session: Session) -> None:
    one, other = session("tenant", "one"), session("tenant", "other")
    header = Jsonb({"x-pgmq-group": "shared"})
    call(one, "send", "jobs", of("one"), header)
    (sent,) = ids(call(other, "send", "jobs", of("other"), header))
    assert len(call(one, "read_grouped", "jobs", 3600, 10)) == 1
    assert ids(call(other, "read_grouped", "jobs", 3600, 10)) == [sent]


def test_who_wants_no_filter_is_refused(session: Session) -> None:
    one = session("tenant", "one")
    call(one, "send", "jobs", of("one"))
    one.execute("set row_security = off")
    for query in ("select pgmq.read('jobs', 0, 10)", "select pgmq.metrics('jobs')", "table pgmq.q_jobs"):
        with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
            one.execute(query)


def test_policies_of_a_partitioned_queue_hold_in_its_partitions(
    make_database: Callable[..., Database], make_role: Callable[..., str]
) -> None:
    versions = os.environ["PGMQ_TEST_PARTMAN"].split()
    if not versions:
        pytest.skip("pg_partman cannot be had")
    database, role = make_database(), make_role()
    db = database.connect()
    db.execute(f"create schema partman; create extension pg_partman schema partman version '{versions[0]}'")
    call(db, "create_partitioned", "parted", "10", "1000")
    db.execute(
        f"""
        grant usage on schema pgmq to {role};
        grant select, insert, update, delete on pgmq.q_parted, pgmq.a_parted to {role};
        alter table pgmq.q_parted enable row level security;
        alter table pgmq.a_parted enable row level security;
        create policy own on pgmq.q_parted using (message ->> 'tenant' = 'one');
        create policy own on pgmq.a_parted using (message ->> 'tenant' = 'one');
        """
    )
    one = database.connect(role)
    call(db, "send_batch", "parted", [of("other", n) for n in range(15)])
    sent = ids(call(one, "send_batch", "parted", [of("one", n) for n in range(15)]))
    before = hints(db, "parted")
    for _ in range(20):
        assert ids(call(one, "read", "parted", 0, 30)) == sent
        assert ids(call(one, "read", "parted", 0, 1)) == sent[:1]
    assert hints(db, "parted") == before
    assert ids(one.execute("select pgmq.archive('parted', %s::bigint[])", [sent])) == sent
    assert call(db, "metrics", "parted")[0].queue_length == 15
    for (partition,) in db.execute(
        "select relid::regclass::text from pg_partition_tree('pgmq.q_parted') where isleaf"
    ).fetchall():
        with pytest.raises(errors.InsufficientPrivilege):
            one.execute(f"select from {partition}")


def test_forced_row_security_holds_for_the_owner_too(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    role, queue = make_role(), unique()
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {role}")
    owner = database.connect(role)
    call(owner, "create", queue)
    sent = ids(call(owner, "send_batch", queue, [of("one")] * 3))
    owner.execute(f"alter table pgmq.q_{queue} enable row level security")
    assert ids(call(owner, "read", queue, 0, 10)) == sent
    owner.execute(f"alter table pgmq.q_{queue} force row level security")
    before = hints(db, queue)
    for _ in range(40):
        assert call(owner, "read", queue, 0, 10) == []
    assert hints(db, queue) == before
    assert ids(call(db, "read", queue, 0, 10)) == sent
    assert call(owner, "drop_queue", queue) == [(True,)]


# The manual: a role that may only send.


def test_a_producer_sends_and_sees_nothing_but_ids(session: Session) -> None:
    producer, worker = session("producer"), session("worker")
    sent = ids(call(producer, "send", "jobs", of("one", 1)))
    sent += ids(call(producer, "send_batch", "jobs", [of("one", 2), of("other", 3)]))
    for query in (
        "select message from pgmq.q_jobs",
        "select pgmq.read('jobs', 30, 1)",
        "select pgmq.pop('jobs')",
        "delete from pgmq.q_jobs",
        "select pgmq.metrics('jobs')",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            producer.execute(query)
    assert ids(producer.execute("select msg_id from pgmq.q_jobs order by 1").fetchall()) == sent
    assert ids(call(worker, "read", "jobs", 0, 10)) == sent


def test_without_a_policy_to_see_the_id_a_producer_cannot_send(session: Session) -> None:
    db, producer = session(None), session("producer")
    db.execute("alter policy producer_ids on pgmq.q_jobs using (false)")
    try:
        with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
            call(producer, "send", "jobs", of("one"))
    finally:
        db.execute("alter policy producer_ids on pgmq.q_jobs using (true)")
    call(producer, "send", "jobs", of("one"))


# The manual: wrappers.


def test_an_invoker_wrapper_has_the_policies_of_its_caller(session: Session) -> None:
    one, other, visitor = session("tenant", "one"), session("tenant", "other"), session("visitor")
    sent = ids(one.execute("select api.send('jobs', %s)", [of("one")]).fetchall())
    assert ids(other.execute("select * from api.read('jobs', 0, 10)").fetchall()) == []
    assert ids(one.execute("select * from api.read('jobs', 0, 10)").fetchall()) == sent
    assert one.execute("select api.archive('jobs', %s)", [sent[0]]).fetchone() == (True,)
    with pytest.raises(errors.InsufficientPrivilege):
        visitor.execute("select api.send('jobs', %s)", [of("one")])


def test_a_definer_wrapper_needs_no_grants_of_its_caller(session: Session) -> None:
    visitor, worker = session("visitor"), session("worker")
    sent = ids(visitor.execute("select forms.submit('one', 'Hello')").fetchall())
    for query in ("select pgmq.send('jobs', '{}')", "select pgmq.read('jobs', 30, 1)", "table pgmq.q_jobs"):
        with pytest.raises(errors.InsufficientPrivilege):
            visitor.execute(query)
    (row,) = call(worker, "read", "jobs", 0, 10)
    assert ([row.msg_id], row.message) == (sent, {"tenant": "one", "text": "Hello"})


def test_a_definer_wrapper_that_reads_keeps_to_its_policy_and_is_not_delayed(session: Session) -> None:
    visitor, one, worker = session("visitor"), session("tenant", "one"), session("worker")
    bill = ids(call(worker, "send", "jobs", of("billing")))
    call(one, "send_batch", "jobs", [of("one", n) for n in range(400)])
    while call(one, "read", "jobs", 3600, 50):
        pass
    assert ids(visitor.execute("select * from forms.next_bill()").fetchall()) == bill
