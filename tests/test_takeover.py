"""ALTER EXTENSION pgmq UPDATE from the reference implementation: what stays, what comes, and what is refused.

The reference's objects come from its published package, which has one version of them, 1.13.0. The scripts from other
versions are tested with the same objects under those versions' names.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable

import pgmq.install
import psycopg
import pytest
import servers
from conftest import Database, call, error_of, eventually
from psycopg import errors
from psycopg.types.json import Jsonb
from test_release import described, from_reference, install_reference
from test_sessions import SCRIPT, every_verb, psql

MakeDatabase = Callable[..., Database]
MakeRole = Callable[..., str]

VERSIONS = re.search(r"^REFERENCE = (.+)$", (servers.ROOT / "Makefile").read_text(), re.M).group(1).split()
PARTMAN = os.environ.get("PGMQ_TEST_PARTMAN", "").split()
UPDATE = "alter extension pgmq update to '2.0.0'"
LONG = "ä" * 40

OWN = "relnamespace = 'pgmq'::regnamespace and strpos(relname, '$') > 0"


def version_of(db: psycopg.Connection) -> str:
    return db.execute("select extversion from pg_extension where extname = 'pgmq'").fetchone()[0]


def members(db: psycopg.Connection) -> list[str]:
    return [
        row[0]
        for row in db.execute("""
            select pg_describe_object(d.classid, d.objid, 0)
            from pg_depend as d
            join pg_extension as e on e.oid = d.refobjid and e.extname = 'pgmq'
            where d.deptype = 'e'
        """)
    ]


@pytest.fixture
def reference(make_database: MakeDatabase) -> Database:
    return from_reference(make_database)


# What stays


@pytest.mark.parametrize("version", VERSIONS)
def test_messages_archives_bindings_and_throttles_stay(make_database: MakeDatabase, version: str) -> None:
    database = from_reference(make_database, version)
    db = database.connect()
    names = ["plain", "Upper Case", "hyphen-ated", 'dou"ble', "dot.ted", LONG]
    for name in names:
        call(db, "create", name)
        call(db, "send_batch", name, [Jsonb(n) for n in range(6)])
        call(db, "read", name, 3600, 2)
        call(db, "archive", name, 1)
        call(db, "delete", name, 3)
    call(db, "create_unlogged", "fast")
    call(db, "send", "fast", Jsonb({"k": 1}), Jsonb({"h": 2}), 3600)
    call(db, "bind_topic", "logs.*", "plain")
    call(db, "bind_topic", "logs.#", "Upper Case")
    call(db, "enable_notify_insert", "plain", 500)
    lists = ["table pgmq.meta", "select pattern, queue_name, bound_at from pgmq.topic_bindings"]
    lists += ["table pgmq.notify_insert_throttle", "select oid from pg_proc where proname = 'send'"]
    lists += ['table pgmq."q_fast"', "table pgmq.q_plain", "table pgmq.a_plain"]
    before = [sorted(db.execute(query).fetchall()) for query in lists]
    db.execute(UPDATE)
    assert version_of(db) == "2.0.0"
    assert [sorted(db.execute(query).fetchall()) for query in lists] == before
    for name in names:
        figures = call(db, "metrics", name)[0]
        assert (figures.queue_length, figures.queue_visible_length, figures.total_messages) == (4, 3, 6)
        assert call(db, "send", name, Jsonb(6)) == [(7,)]
        assert [(row.msg_id, row.read_ct) for row in call(db, "read", name, 30, 10)] == [(4, 1), (5, 1), (6, 1), (7, 1)]
        assert [(row.msg_id, row.read_ct) for row in call(db, "set_vt", name, 2, 0)] == [(2, 1)]
        assert [(row.msg_id, row.read_ct) for row in call(db, "read", name, 30, 10)] == [(2, 2)]
    assert call(db, "read", "fast", 30, 1) == []
    assert [(row.message, row.headers) for row in call(db, "set_vt", "fast", 1, 0)] == [({"k": 1}, {"h": 2})]
    assert {row.queue_name for row in call(db, "send_batch_topic", "logs.a", [Jsonb(1)])} == {"plain", "Upper Case"}
    throttles = call(db, "list_notify_insert_throttles")
    assert [(row.queue_name, row.throttle_interval_ms) for row in throttles] == [("plain", 500)]


def test_a_queue_taken_over_is_dropped_with_all_that_it_has(reference: Database) -> None:
    db = reference.connect()
    for name in ("plain", "Upper Case", LONG):
        call(db, "create", name)
        call(db, "create_fifo_index", name)
        # The reference does not find a queue whose table's name it has cut.
        if name != LONG:
            call(db, "enable_notify_insert", name)
    db.execute(UPDATE)
    for name in ("plain", "Upper Case", LONG):
        every_verb(db, name)
        assert call(db, "drop_queue", name) == [(True,)]
    assert call(db, "list_queues") == call(db, "list_notify_insert_throttles") == []
    assert db.execute(f"select relname from pg_class where {OWN} or relname ~ '^[qa]_'").fetchall() == []
    assert db.execute("select proname from pg_proc where strpos(proname, '$') > 0").fetchall() == []


def test_queues_are_no_members_of_the_extension_and_survive_it(reference: Database) -> None:
    db = reference.connect()
    call(db, "create", "plain")
    call(db, "enable_notify_insert", "plain")
    call(db, "send", "plain", Jsonb(1))
    # As in versions before the extension let them go.
    for table in ("table pgmq.q_plain", "table pgmq.a_plain", "sequence pgmq.q_plain_msg_id_seq"):
        db.execute(f"alter extension pgmq add {table}")
    db.execute(UPDATE)
    assert [member for member in members(db) if "$" in member or "q_plain" in member or "a_plain" in member] == []
    db.execute("drop extension pgmq")
    db.execute("create extension pgmq")
    call(db, "create", "plain")
    assert [row.message for row in call(db, "read", "plain", 30, 1)] == [1]


def test_functions_of_ones_own_privileges_on_functions_and_what_depends_on_them_stay(
    reference: Database, make_role: MakeRole
) -> None:
    db, role = reference.connect(), make_role()
    call(db, "create", "plain")
    call(db, "send", "plain", Jsonb(1))
    db.execute("""
        create function public.take() returns setof pgmq.message_record
        language sql begin atomic select * from pgmq.read('plain', 30, 1); end
    """)
    db.execute("create view public.queues as select * from pgmq.list_queues()")
    db.execute("create view public.listed as select queue_name from pgmq.meta")
    db.execute("revoke execute on function pgmq.drop_queue(text) from public")
    db.execute(UPDATE)
    assert db.execute("select message from public.take()").fetchall() == [(1,)]
    assert db.execute("select queue_name from public.queues").fetchall() == [("plain",)]
    may = f"select has_function_privilege('{role}'::regrole, 'pgmq.drop_queue(text)', 'execute')"
    assert db.execute(may).fetchone() == (False,)


def test_roles_with_grants_need_no_new_ones_and_dumps_keep_them(reference: Database, make_role: MakeRole) -> None:
    db, role = reference.connect(), make_role()
    call(db, "create", "plain")
    call(db, "enable_notify_insert", "plain")
    call(db, "bind_topic", "a", "plain")
    db.execute(f"grant usage on schema pgmq to {role}")
    db.execute(f"grant select on pgmq.meta, pgmq.topic_bindings to {role}")
    # What the trigger of the reference needs.
    db.execute(f"grant select, update on pgmq.notify_insert_throttle to {role}")
    db.execute(f"grant select, insert, update, delete on pgmq.q_plain, pgmq.a_plain to {role}")
    db.execute(f"grant select on sequence pgmq.q_plain_msg_id_seq to {role}")
    every_verb_of_a_role(reference.connect(role))
    # What a dump leaves out, since CREATE EXTENSION is thought to bring it.
    of_the_extension = """
        select pg_describe_object(classoid, objoid, objsubid), initprivs::text
        from pg_init_privs
        where privtype = 'e'
            and pg_describe_object(classoid, objoid, objsubid) not in (
                'table pgmq.topic_version', 'table pgmq.dispatch_lock'
            )
            and classoid <> 'pg_proc'::regclass
    """
    before = set(db.execute(of_the_extension))
    db.execute(UPDATE)
    assert set(db.execute(of_the_extension)) == before
    every_verb_of_a_role(reference.connect(role))


def every_verb_of_a_role(session: psycopg.Connection) -> None:
    first = call(session, "send", "plain", Jsonb(1))[0].send
    assert [row.msg_id for row in call(session, "read", "plain", 0, 1)] == [first]
    assert [row.msg_id for row in call(session, "set_vt", "plain", first, 0)] == [first]
    assert call(session, "archive", "plain", first) == [(True,)]
    assert call(session, "send_topic", "a", Jsonb(2)) == [(1,)]
    assert [row.msg_id for row in call(session, "pop", "plain")] == [first + 1]
    assert call(session, "metrics", "plain")[0].queue_length == 0


def test_a_queue_belongs_with_all_its_own_to_the_owner_of_its_table(reference: Database, make_role: MakeRole) -> None:
    db, role = reference.connect(), make_role()
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant all on pgmq.meta, pgmq.notify_insert_throttle to {role}")
    owner = reference.connect(role)
    call(owner, "create", "mine")
    call(owner, "enable_notify_insert", "mine")
    db.execute(UPDATE)
    owners = set(db.execute(f"select relowner::regrole::text from pg_class where {OWN}"))
    owners |= set(db.execute("select proowner::regrole::text from pg_proc where strpos(proname, '$') > 0"))
    assert owners == {(role,)}
    every_verb(owner, "mine")
    call(owner, "compile", "mine")
    call(owner, "disable_notify_insert", "mine")
    assert call(owner, "drop_queue", "mine") == [(True,)]


def test_the_order_of_columns_in_tables_of_early_versions_does_not_matter(reference: Database) -> None:
    db = reference.connect()
    call(db, "create", "old")
    for column in ("last_read_at timestamptz", "headers jsonb"):
        name = column.split()[0]
        for table in ("q_old", "a_old"):
            db.execute(f"alter table pgmq.{table} drop column {name}, add column {column}")
    call(db, "send", "old", Jsonb(1), Jsonb({"h": 1}))
    db.execute(UPDATE)
    assert [(row.message, row.headers) for row in call(db, "read", "old", 0, 1)] == [(1, {"h": 1})]
    assert call(db, "archive", "old", 1) == [(True,)]
    assert db.execute("select msg_id, read_ct, message, headers from pgmq.a_old").fetchall() == [(1, 1, 1, {"h": 1})]
    every_verb(db, "old")


def test_lists_and_types_that_an_earlier_version_has_not_are_made(reference: Database) -> None:
    db = reference.connect()
    call(db, "create", "plain")
    for table in ("topic_bindings", "notify_insert_throttle"):
        db.execute(f"alter extension pgmq drop table pgmq.{table}")
        db.execute(f"drop table pgmq.{table}")
    db.execute("alter type pgmq.metrics_result drop attribute default_partition_length cascade")
    db.execute(UPDATE)
    assert {"table pgmq.topic_bindings", "table pgmq.notify_insert_throttle"} <= set(members(db))
    every_verb(db, "plain")
    call(db, "bind_topic", "a", "plain")
    assert call(db, "send_topic", "a", Jsonb(1)) == [(1,)]
    call(db, "enable_notify_insert", "plain")


def test_what_ours_left_under_the_reference_is_no_obstacle(make_database: MakeDatabase) -> None:
    db = make_database().connect()
    call(db, "create", "plain")
    call(db, "send", "plain", Jsonb(1))
    db.execute("drop extension pgmq")
    install_reference("1.13.0")
    db.execute("create extension pgmq version '1.13.0'")
    db.execute("insert into pgmq.meta values ('plain', false, false)")
    db.execute(UPDATE)
    assert [member for member in members(db) if "$" in member] == []
    assert [row.message for row in call(db, "read", "plain", 0, 1)] == [1]


@pytest.mark.parametrize("interval, retention", [("10", "1000"), ("1 day", "7 days")], ids=["by_id", "by_time"])
@pytest.mark.parametrize("partman", PARTMAN)
def test_partitioned_queues_go_on(reference: Database, partman: str, interval: str, retention: str) -> None:
    db = reference.connect()
    db.execute(f"create schema partman; create extension pg_partman schema partman version '{partman}'")
    call(db, "create_partitioned", "parted", interval, retention)
    call(db, "create", "plain")
    call(db, "convert_archive_partitioned", "plain", interval, retention)
    call(db, "send_batch", "parted", [Jsonb(n) for n in range(25)])
    call(db, "read", "parted", 3600, 3)
    call(db, "archive", "parted", 1)
    configuration = "select * from partman.part_config order by parent_table"
    before = db.execute(configuration).fetchall()
    partitions = "select relid::regclass::text from pg_partition_tree('pgmq.q_parted') order by 1"
    tables = db.execute(partitions).fetchall()
    db.execute(UPDATE)
    assert db.execute(configuration).fetchall() == before
    assert db.execute(partitions).fetchall() == tables
    figures = call(db, "metrics", "parted")[0]
    assert (figures.queue_length, figures.queue_visible_length, figures.total_messages) == (24, 22, 25)
    assert [row.msg_id for row in call(db, "read", "parted", 30, 30)] == list(range(4, 26))
    assert call(db, "send", "parted", Jsonb(26)) == [(26,)]
    assert call(db, "archive", "parted", 26) == [(True,)]
    call(db, "purge_queue", "parted")
    every_verb(db, "parted", times=3)
    every_verb(db, "plain")
    db.execute("select partman.run_maintenance()")
    assert call(db, "drop_queue", "parted") == call(db, "drop_queue", "plain") == [(True,)]
    # The archive from before it was partitioned.
    assert db.execute("select relname from pg_class where relname ~ '^[qa]_' and relkind in ('r', 'p')").fetchall() == [
        ("a_plain_old",)
    ]
    assert db.execute("select relname from pg_class where relname ~ '^template_pgmq'").fetchall() == []
    assert db.execute(configuration).fetchall() == []


# What comes


def test_each_queue_has_its_indexes_and_those_of_the_reference_go(reference: Database) -> None:
    db = reference.connect()
    call(db, "create", "plain")
    call(db, "create", "grouped")
    call(db, "create_fifo_index", "grouped")
    db.execute("create index mine on pgmq.q_plain (enqueued_at)")
    db.execute(UPDATE)
    indexes = {
        table: {
            row[0]
            for row in db.execute(
                "select c.relname from pg_index join pg_class as c on c.oid = indexrelid where indrelid = %s::regclass",
                [f"pgmq.{table}"],
            )
        }
        for table in ("q_plain", "q_grouped")
    }
    assert indexes["q_plain"] == {"q_plain_pkey", "q_plain$ready", "q_plain$parked", "mine"}
    assert indexes["q_grouped"] == {"q_grouped_pkey", "q_grouped$ready", "q_grouped$parked", "q_grouped$fifo"}


def test_queues_that_notify_go_on_with_their_throttle(reference: Database) -> None:
    db, listener = reference.connect(), reference.connect()
    for name, throttle in (("every", 0), ("seldom", 3_600_000)):
        call(db, "create", name)
        call(db, "enable_notify_insert", name, throttle)
        listener.execute(f'listen "pgmq.q_{name}.INSERT"')
    db.execute(UPDATE)
    for _ in range(3):
        call(db, "send", "every", Jsonb(1))
        call(db, "send", "seldom", Jsonb(1))
    db.execute("notify finished")
    listener.execute("listen finished")
    db.execute("notify finished")
    heard = []
    for notification in listener.notifies(timeout=20):
        if notification.channel == "finished":
            break
        heard.append(notification.channel)
    assert sorted(heard) == ["pgmq.q_every.INSERT"] * 3 + ["pgmq.q_seldom.INSERT"]
    call(db, "disable_notify_insert", "every")
    assert db.execute(
        "select tgrelid::regclass::text from pg_trigger where not tgisinternal and tgrelid::regclass::text ~ '^pgmq.q_'"
    ).fetchall() == [("pgmq.q_seldom",)]


# Clients


def test_sessions_that_have_used_the_reference_go_on_with_ours(reference: Database) -> None:
    db, session = reference.connect(), reference.connect()
    call(session, "create", "plain")
    for _ in range(8):
        first = call(session, "send", "plain", Jsonb(1))[0].send
        assert [row.msg_id for row in call(session, "read", "plain", 30, 1)] == [first]
        assert call(session, "delete", "plain", first) == [(True,)]
    db.execute(UPDATE)
    every_verb(session, "plain", times=3)
    call(session, "create", "other")
    every_verb(session, "other")


def test_clients_wait_while_the_update_runs_and_lose_nothing(reference: Database) -> None:
    """Senders, readers and transactions that use two queues, one way and the other, from before until after it."""
    db = reference.connect()
    for name in ("one", "two"):
        call(db, "create", name)
    stop = threading.Event()
    sent: list[tuple[str, int]] = []
    taken: list[tuple[str, int]] = []
    done = {"one": 0, "two": 0}
    failures: list[BaseException] = []

    def client(first: str, second: str) -> None:
        try:
            session = reference.connect()
            while not stop.is_set():
                with session.transaction():
                    given = [(name, call(session, "send", name, Jsonb(1))[0].send) for name in (first, second)]
                sent.extend(given)
                for row in call(session, "read", first, 600, 1):
                    assert call(session, "delete", first, row.msg_id) == [(True,)]
                    taken.append((first, row.msg_id))
                done[first] += 1
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=client, args=pair) for pair in (("one", "two"), ("two", "one"))]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: min(done.values()) > 20 or failures)
        db.execute(UPDATE)
        after = dict(done)
        eventually(lambda: all(done[name] > after[name] + 20 for name in done) or failures)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    for name in ("one", "two"):
        taken += [(name, row.msg_id) for row in call(db, "read", name, 600, 1_000_000)]
    assert sorted(taken) == sorted(sent)


def test_a_transaction_that_holds_one_queue_and_wants_another_is_not_made_to_fail(reference: Database) -> None:
    db, session = reference.connect(), reference.connect(autocommit=False)
    call(db, "create", "a")
    call(db, "create", "b")
    # The update takes its locks in the order of names, so it would hold the first when it waits for the second.
    call(session, "send", "b", Jsonb(1))
    failures: list[BaseException] = []

    def update() -> None:
        try:
            db.execute(UPDATE)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=update)
    thread.start()
    observer = reference.connect()
    waiting = "select count(*) > 0 from pg_locks where not granted and relation = 'pgmq.q_b'::regclass"
    eventually(lambda: observer.execute(waiting).fetchone()[0])
    call(session, "send", "a", Jsonb(1))
    session.commit()
    thread.join()
    assert failures == []
    assert version_of(db) == "2.0.0"
    assert [len(call(db, "read", name, 30, 5)) for name in ("a", "b")] == [1, 1]


def test_an_update_that_does_not_get_its_locks_gives_up_and_changes_nothing(reference: Database) -> None:
    db, session = reference.connect(), reference.connect(autocommit=False)
    call(db, "create", "a")
    before = described(db)
    call(session, "send", "a", Jsonb(1))
    db.execute("set lock_timeout = '600ms'")
    began = time.monotonic()
    with error_of(errors.LockNotAvailable, "table pgmq.q_a is in use", hint="pg_locks"):
        db.execute(UPDATE)
    assert time.monotonic() - began > 0.6
    assert described(db) == before
    assert db.execute("show lock_timeout").fetchone() == ("600ms",)
    session.rollback()
    db.execute(UPDATE)
    assert db.execute("show lock_timeout").fetchone() == ("600ms",)


# Who may


def test_only_a_superuser_updates(make_database: MakeDatabase, make_role: MakeRole, admin: psycopg.Connection) -> None:
    owner, member = make_role(), make_role()
    database = from_reference(make_database, role=owner)
    db = database.connect()
    before = described(db)
    with pytest.raises(errors.InsufficientPrivilege, match="permission denied to update extension"):
        database.connect(owner).execute(UPDATE)
    superuser = f'"{admin.info.user}"'
    admin.execute(f"grant {superuser} to {member}")
    session = database.connect(member)
    session.execute(f"set role {superuser}")
    with error_of(errors.InsufficientPrivilege, "only a superuser can update", hint="Connect as a superuser"):
        session.execute(UPDATE)
    assert described(db) == before
    assert version_of(db) == "1.13.0"


OWNERS = """
    select pg_describe_object(o.classid, o.oid, 0), pg_get_userbyid(o.owner)
    from (
        select 'pg_extension'::regclass, oid, extowner
        from pg_extension
        where extname = 'pgmq'
        union all
        select 'pg_namespace'::regclass, oid, nspowner
        from pg_namespace
        where nspname = 'pgmq'
        union all
        select 'pg_class'::regclass, oid, relowner
        from pg_class
        where relnamespace = 'pgmq'::regnamespace and relname !~ '^[qa]_' and relkind <> 'i'
        union all
        select 'pg_type'::regclass, oid, typowner
        from pg_type
        where typnamespace = 'pgmq'::regnamespace and typname !~ '^_?[qa]_'
        union all
        select 'pg_proc'::regclass, oid, proowner
        from pg_proc
        where pronamespace = 'pgmq'::regnamespace and strpos(proname, '$') = 0
    ) as o (classid, oid, owner)
"""


def test_what_a_role_had_becomes_the_superusers_and_the_role_goes_on_working(
    make_database: MakeDatabase, make_role: MakeRole, admin: psycopg.Connection
) -> None:
    role, other = make_role(), make_role()
    database = from_reference(make_database, role=role)
    owner, db = database.connect(role), database.connect()
    call(owner, "create", "plain")
    call(owner, "bind_topic", "a.*", "plain")
    call(owner, "enable_notify_insert", "plain")
    owner.execute(f"grant usage on schema pgmq to {other}; grant all on pgmq.meta, pgmq.topic_bindings to {other}")
    owner.execute(f"grant references (queue_name) on pgmq.notify_insert_throttle to {other}")
    # Nothing of these is looked up.
    owner.execute("create function pgmq.format(text, text) returns text language plpgsql as $$begin raise 'run'; end$$")
    owner.execute("create function pgmq.lower(text) returns text language plpgsql as $$begin raise 'run'; end$$")
    db.execute(UPDATE)
    owned = dict(db.execute(OWNERS).fetchall())
    assert owned.pop("function pgmq.format(text,text)") == owned.pop("function pgmq.lower(text)") == role.strip('"')
    assert len(owned) > 80
    assert {what: of for what, of in owned.items() if of != admin.info.user} == {}
    owner.execute("drop function pgmq.format, pgmq.lower")
    every_verb(owner, "plain")
    call(owner, "create", "second")
    assert call(owner, "send_topic", "a.b", Jsonb(1)) == [(1,)]
    owner.execute(f"grant select, insert on pgmq.meta to {other}; grant usage on schema pgmq to {other}")
    db.execute("create schema side; grant all on schema side to public")
    owner.execute("create function pgmq.mine() returns void language sql as ''")
    refused = ["alter schema pgmq rename to mine", "alter extension pgmq add function pgmq.mine()"]
    for table in ("meta", "topic_bindings", "notify_insert_throttle", "topic_version", "dispatch_lock"):
        refused.append(f"create trigger t after delete on pgmq.{table} execute function tsvector_update_trigger()")
    for table, columns in (("meta", "queue_name"), ("notify_insert_throttle", "queue_name")):
        refused.append(f"create table side.mine (name varchar references pgmq.{table} ({columns}))")
    for session in (owner, database.connect(other)):
        for statement in refused:
            with pytest.raises(errors.InsufficientPrivilege):
                session.execute(statement)
    assert call(owner, "drop_queue", "plain") == call(owner, "drop_queue", "second") == [(True,)]
    # What the role has now is to be in dumps: it is not what CREATE EXTENSION gives.
    of_the_extension = """
        select pg_describe_object(i.classoid, i.objoid, i.objsubid)
        from pg_init_privs as i
        cross join lateral aclexplode(i.initprivs) as a
        where %s::regrole in (a.grantee, a.grantor)
    """
    assert db.execute(of_the_extension, [role]).fetchall() == []
    # And the role can go.
    owner.close()
    db.execute(f"drop owned by {role}; drop owned by {other}")
    assert db.execute("select count(*) from pg_extension where extname = 'pgmq'").fetchone() == (1,)
    with db.transaction(force_rollback=True):
        db.execute(f"alter database {database.name} owner to current_user")
        db.execute(f"drop role {role}")


def test_a_superuser_who_compiles_anothers_queue_keeps_no_function_of_it(
    make_database: MakeDatabase, make_role: MakeRole
) -> None:
    database, role = make_database(), make_role()
    db = database.connect()
    db.execute(f"grant usage, create on schema pgmq to {role}; grant all on pgmq.meta to {role}")
    owner = database.connect(role)
    call(owner, "create", "mine")
    for function in ("owner_hint", "sweep"):
        for row in db.execute("select oid::regprocedure from pg_proc where proname = %s", [f"q_mine${function}"]):
            owner.execute(f"drop function {row[0]}")
    owner.execute('drop sequence pgmq."q_mine$due"')
    call(db, "compile", "mine")
    owners = set(db.execute(f"select relowner::regrole::text from pg_class where {OWN}"))
    owners |= set(db.execute("select proowner::regrole::text from pg_proc where strpos(proname, '$') > 0"))
    assert owners == {(role,)}
    every_verb(owner, "mine")


# What is refused


REFUSALS = {
    "two queues of one table": (
        "select pgmq.create('Orders'), pgmq.create('orders')",
        errors.ObjectNotInPrerequisiteState,
        "the queues 'Orders' and 'orders' are one table, pgmq.q_orders",
    ),
    "a queue without its table": (
        "drop table pgmq.q_plain",
        errors.UndefinedTable,
        "queue plain has no table pgmq.q_plain",
    ),
    "a queue without its archive": (
        "drop table pgmq.a_plain",
        errors.UndefinedTable,
        "queue plain has no table pgmq.a_plain",
    ),
    "a view in the place of a queue": (
        "alter table pgmq.q_plain rename to elsewhere; create view pgmq.q_plain as table pgmq.elsewhere",
        errors.UndefinedTable,
        "queue plain has no table pgmq.q_plain",
    ),
    "a column that is missing": (
        "alter table pgmq.q_plain drop column headers",
        errors.UndefinedColumn,
        "table pgmq.q_plain of queue plain has no column headers of type jsonb",
    ),
    "a column of another type": (
        "alter table pgmq.a_plain alter column read_ct type bigint",
        errors.UndefinedColumn,
        "table pgmq.a_plain of queue plain has no column read_ct of type integer",
    ),
    "ids that draw from nothing": (
        "alter table pgmq.q_plain alter column msg_id drop identity",
        errors.ObjectNotInPrerequisiteState,
        "column msg_id of table pgmq.q_plain draws from no sequence",
    ),
    "a list with other columns": (
        "alter table pgmq.meta add column comment text",
        errors.ObjectNotInPrerequisiteState,
        "pgmq.meta is not the table",
    ),
    "a list that is a view": (
        "alter table pgmq.meta rename to elsewhere; create view pgmq.meta as table pgmq.elsewhere",
        errors.ObjectNotInPrerequisiteState,
        "pgmq.meta is not the table",
    ),
    "a member that is not known": (
        "create table pgmq.more (); alter extension pgmq add table pgmq.more",
        errors.ObjectNotInPrerequisiteState,
        "the extension has a member that this version does not know: table pgmq.more",
    ),
    "a view on a function that goes": (
        "create view public.v as select pgmq._extension_exists('x')",
        errors.DependentObjectsStillExist,
        "function pgmq._extension_exists(text) goes, and view public.v depends on it",
    ),
    "a name that no queue can have": (
        "insert into pgmq.meta values ('a$b', false, false)",
        errors.InvalidName,
        'queue "a$b" has a name that no queue can have',
    ),
    "a pattern that is none": (
        "insert into pgmq.topic_bindings (pattern, queue_name) values ('a..b', 'plain')",
        errors.InvalidParameterValue,
        "must not contain two dots together",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_is_not_as_expected_is_refused_and_nothing_changes(reference: Database, what: str) -> None:
    prepare, error, message = REFUSALS[what]
    db = reference.connect()
    call(db, "create", "plain")
    call(db, "enable_notify_insert", "plain")
    db.execute(prepare)
    before = described(db)
    with error_of(error, message):
        db.execute(UPDATE)
    assert version_of(db) == "1.13.0"
    assert described(db) == before


def test_a_function_of_ones_own_under_a_name_of_ours_is_refused(reference: Database) -> None:
    db = reference.connect()
    db.execute("create function pgmq._stem(queue_name text) returns text language sql as 'select null::text'")
    before = described(db)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="_stem"):
        db.execute(UPDATE)
    assert described(db) == before


def test_without_plpython_the_update_says_so_and_changes_nothing(make_database: MakeDatabase) -> None:
    db = from_reference(make_database, plpython=False).connect()
    call(db, "create", "plain")
    before = described(db)
    with pytest.raises(errors.UndefinedObject, match='required extension "plpython3u" is not installed'):
        db.execute(UPDATE)
    assert described(db) == before
    db.execute("create extension plpython3u")
    db.execute(UPDATE)
    every_verb(db, "plain")


def test_the_hints_of_the_refusals_lead_on(reference: Database) -> None:
    db = reference.connect()
    for name in ("Orders", "orders", "gone"):
        call(db, "create", name)
    call(db, "send", "orders", Jsonb(1))
    db.execute("drop table pgmq.q_gone, pgmq.a_gone")
    with error_of(errors.ObjectNotInPrerequisiteState, "are one table", hint="delete the other from pgmq.meta"):
        db.execute(UPDATE)
    db.execute("delete from pgmq.meta where queue_name = 'Orders'")
    with error_of(errors.UndefinedTable, "queue gone has no table", hint="delete the queue from pgmq.meta"):
        db.execute(UPDATE)
    db.execute("delete from pgmq.meta where queue_name = 'gone'")
    db.execute(UPDATE)
    assert [row.message for row in call(db, "read", "ORDERS", 30, 1)] == [1]


def test_psql_over_the_objects_of_the_reference_refuses_and_changes_nothing(make_database: MakeDatabase) -> None:
    database = make_database(extension=False)
    db = database.connect()
    db.execute(pgmq.install.get_embedded_install_sql())
    call(db, "create", "plain")
    before = described(db)
    result = psql(database, SCRIPT)
    assert result.returncode != 0
    assert "this database has pgmq already" in result.stderr
    assert described(db) == before


def test_queues_made_without_an_extension_move_as_the_manual_says(make_database: MakeDatabase) -> None:
    database = make_database(extension=False)
    db = database.connect()
    db.execute(pgmq.install.get_embedded_install_sql())
    for name in ("plain", "Upper Case", LONG):
        call(db, "create", name)
        call(db, "send_batch", name, [Jsonb(n) for n in range(4)])
        call(db, "read", name, 3600, 1)
        call(db, "archive", name, 2)
    call(db, "create_unlogged", "fast")
    call(db, "bind_topic", "a.*", "plain")
    call(db, "enable_notify_insert", "plain", 500)
    lists = ["table pgmq.meta", "select pattern, queue_name, bound_at from pgmq.topic_bindings"]
    before = [sorted(db.execute(query).fetchall()) for query in lists]
    manual = (servers.ROOT / "docs" / "upgrading.md").read_text()
    db.execute(re.search(r"```sql\n(begin;.*?)```", manual, re.S).group(1))
    assert [sorted(db.execute(query).fetchall()) for query in lists] == before
    for name in ("plain", "Upper Case", LONG):
        assert [(row.msg_id, row.read_ct) for row in call(db, "read", name, 0, 10)] == [(3, 1), (4, 1)]
        assert [row.msg_id for row in call(db, "set_vt", name, 1, 0)] == [1]
        assert call(db, "archive", name, 1) == [(True,)]
        call(db, "purge_queue", name)
    throttles = call(db, "list_notify_insert_throttles")
    assert [(row.queue_name, row.throttle_interval_ms) for row in throttles] == [("plain", 500)]
    assert call(db, "send_topic", "a.b", Jsonb(1)) == [(1,)]
    call(db, "purge_queue", "plain")
    for name in ("plain", "Upper Case", LONG, "fast"):
        every_verb(db, name)
        assert call(db, "drop_queue", name) == [(True,)]
    assert db.execute("select relname from pg_class where relname ~ '^[qa]_'").fetchall() == []
