"""What roles may do: owners of queues, roles with grants on the tables, roles that make queues, roles with nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import psycopg
import pytest
from calls import NEED_A_QUEUE
from conftest import Database, call, eventually, unique
from psycopg import errors
from psycopg.types.json import Jsonb

MakeRole = Callable[..., str]

# What the comments of the functions say: privileges on the queue table, on its archive, on its sequence.
NEEDS = {
    "send": [("insert", "q"), ("select (msg_id)", "q")],
    "send_batch": [("insert", "q"), ("select (msg_id)", "q")],
    "read": [("select", "q"), ("update", "q")],
    "read_with_poll": [("select", "q"), ("update", "q")],
    "set_vt": [("select", "q"), ("update", "q")],
    "pop": [("select", "q"), ("update", "q"), ("delete", "q")],
    "delete": [("select", "q"), ("delete", "q")],
    "archive": [("select", "q"), ("delete", "q"), ("select", "a"), ("insert", "a")],
    "metrics": [("select", "q"), ("select", "sequence")],
    "purge_queue": [("delete", "q")],
}
CALLS = {signature: query for signature, query in NEED_A_QUEUE.items() if signature.partition("(")[0] in NEEDS}


def grant(db: psycopg.Connection, queue: str, role: str, *privileges: tuple[str, str]) -> None:
    db.execute(f"grant usage on schema pgmq to {role}")
    for privilege, kind in privileges:
        table = {"q": f"q_{queue}", "a": f"a_{queue}", "sequence": f"q_{queue}_msg_id_seq"}[kind]
        db.execute(f"grant {privilege} on pgmq.{table} to {role}")


@pytest.fixture
def messages(db: psycopg.Connection, queue: str) -> None:
    call(db, "send_batch", queue, [Jsonb(n) for n in range(10)])


@pytest.mark.parametrize("signature", CALLS)
def test_a_function_asks_for_the_privileges_that_its_comment_names_and_no_more(
    database: Database, db: psycopg.Connection, queue: str, messages: None, make_role: MakeRole, signature: str
) -> None:
    needed = NEEDS[signature.partition("(")[0]]
    role = make_role()
    session = database.connect(role)
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute(CALLS[signature], [queue])
    grant(db, queue, role, *needed)
    session.execute(CALLS[signature], [queue])
    for privilege, kind in needed:
        lacking = make_role()
        grant(db, queue, lacking, *(other for other in needed if other != (privilege, kind)))
        with pytest.raises(errors.InsufficientPrivilege):
            database.connect(lacking).execute(CALLS[signature], [queue])


@pytest.mark.parametrize("signature", CALLS)
def test_a_function_says_in_its_comment_what_it_asks_for(db: psycopg.Connection, signature: str) -> None:
    comment = db.execute("select obj_description(('pgmq.' || %s)::regprocedure, 'pg_proc')", [signature]).fetchone()[0]
    # A form of a function sends the reader to the first one.
    if "More: " in comment:
        first = comment.partition("More: ")[2].rstrip(".")
        comment = db.execute("select obj_description(('pgmq.' || %s)::regprocedure, 'pg_proc')", [first]).fetchone()[0]
    if "rivileges: as read" in comment or "privileges: as read" in comment:
        first = "read(text, integer, integer, jsonb)"
        comment = db.execute("select obj_description(('pgmq.' || %s)::regprocedure, 'pg_proc')", [first]).fetchone()[0]
    said = " ".join(comment.partition("Privileges: ")[2].split())
    needed = NEEDS[signature.partition("(")[0]]
    for table, where in (("q", "queue table"), ("a", "archive"), ("sequence", "sequence")):
        if any(kind == table for _, kind in needed):
            assert where in said
    for privilege, _ in needed:
        assert privilege.split()[0].upper() in said


@pytest.mark.parametrize("signature", NEED_A_QUEUE)
def test_a_role_with_nothing_is_refused(
    database: Database, db: psycopg.Connection, queue: str, messages: None, make_role: MakeRole, signature: str
) -> None:
    role = make_role()
    before = db.execute(f"select * from pgmq.q_{queue}").fetchall()
    with pytest.raises(errors.InsufficientPrivilege):
        database.connect(role).execute(NEED_A_QUEUE[signature], [queue])
    db.execute(f"grant usage on schema pgmq to {role}")
    with pytest.raises(errors.InsufficientPrivilege):
        database.connect(role).execute(NEED_A_QUEUE[signature], [queue])
    for query in ("select pgmq.create(%s)", "select pgmq.drop_queue(%s)"):
        with pytest.raises(errors.InsufficientPrivilege):
            database.connect(role).execute(query, [queue + "_new" if "create" in query else queue])
    assert db.execute(f"select * from pgmq.q_{queue}").fetchall() == before


def test_grants_as_deployments_of_the_reference_give_them_are_enough(
    database: Database, db: psycopg.Connection, queue: str, make_role: MakeRole
) -> None:
    """No function, no sequence of the queue needs a grant of its own."""
    sender, reader, archiver = make_role(), make_role(), make_role()
    grant(db, queue, sender, ("insert", "q"), ("select", "q"))
    grant(db, queue, reader, ("select, update, delete", "q"))
    grant(db, queue, archiver, ("select, update, delete", "q"), ("select, insert", "a"))
    sending, reading, archiving = database.connect(sender), database.connect(reader), database.connect(archiver)
    call(sending, "send_batch", queue, [Jsonb(n) for n in range(500)])
    call(sending, "send", queue, Jsonb("last"))
    seen = []
    while rows := call(reading, "read", queue, 3600, 40):
        seen += [row.msg_id for row in rows]
        call(reading, "delete", queue, [row.msg_id for row in rows[:20]])
        archiving.execute("select pgmq.archive(%s, %s::bigint[])", [queue, [row.msg_id for row in rows[20:-1]]])
        call(reading, "set_vt", queue, rows[-1].msg_id, 7200)
    assert seen == list(range(1, 502))
    assert len(call(reading, "set_vt", queue, [40, 80, 501], 0)) == 3
    assert [row.msg_id for row in call(reading, "pop", queue, 10)] == [40, 80, 501]
    with pytest.raises(errors.InsufficientPrivilege):
        call(sending, "read", queue, 30, 1)
    with pytest.raises(errors.InsufficientPrivilege):
        call(reading, "send", queue, Jsonb(1))
    with pytest.raises(errors.InsufficientPrivilege):
        call(reading, "archive", queue, 1)


def test_a_role_with_grants_only_keeps_the_hints_that_make_reading_fast(
    database: Database, db: psycopg.Connection, queue: str, make_role: MakeRole
) -> None:
    """While another session holds an old snapshot, dead index entries stay; a reader must not walk over them."""
    role = make_role()
    grant(db, queue, role, ("select, update, delete", "q"))
    call(db, "send_batch", queue, [Jsonb(None)] * 5000)
    holder = database.connect(autocommit=False)
    holder.execute("set transaction isolation level repeatable read")
    holder.execute("select txid_current()")
    reader = database.connect(role)
    while call(reader, "read", queue, 3600, 50)[-1].msg_id < 4950:
        pass

    def buffers() -> int:
        explained = reader.execute(f"explain (analyze, buffers, format json) select pgmq.read('{queue}', 3600, 1)")
        plan = explained.fetchone()[0][0]["Plan"]
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    assert min(buffers() for _ in range(5)) < 100


def test_the_owner_of_a_queue_needs_no_superuser(make_database: Callable[..., Database], make_role: MakeRole) -> None:
    """A role may create queues with these grants."""
    database = make_database()
    db = database.connect()
    owner = make_role()
    db.execute(f"grant usage, create on schema pgmq to {owner}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {owner}")
    session = database.connect(owner)
    for create in ("create", "create_unlogged"):
        call(session, create, "mine")
        assert db.execute(
            "select distinct relowner::regrole::text from pg_class where relname like '__mine%'"
        ).fetchall() == [(owner,)]
        for query in NEED_A_QUEUE.values():
            session.execute(query, ["mine"])
        assert call(session, "send", "mine", Jsonb(1))
        assert [row.message for row in call(session, "read", "mine", 30, 10)][-1] == 1
        assert [row.queue_name for row in call(session, "list_queues")] == ["mine"]
        assert [row.queue_name for row in call(session, "metrics_all")] == ["mine"]
        assert call(session, "drop_queue", "mine") == [(True,)]


@pytest.mark.parametrize(
    "lacking", ["usage on schema pgmq", "create on schema pgmq", "select on pgmq.meta", "insert on pgmq.meta"]
)
def test_a_role_that_creates_queues_needs_each_of_these_grants(
    make_role: MakeRole, database: Database, db: psycopg.Connection, lacking: str
) -> None:
    role = make_role()
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant select, insert on pgmq.meta to {role}")
    db.execute(f"revoke {lacking} from {role}")
    name = unique()
    with pytest.raises(errors.InsufficientPrivilege):
        call(database.connect(role), "create", name)
    assert db.execute("select count(*) from pgmq.meta where queue_name = %s", [name]).fetchone() == (0,)
    db.execute(f"grant {lacking} to {role}")
    call(database.connect(role), "create", name)
    with pytest.raises(errors.InsufficientPrivilege):
        call(database.connect(role), "drop_queue", name)
    assert call(db, "drop_queue", name) == [(True,)]


def test_a_role_that_may_create_queues_cannot_drop_or_purge_those_of_others(
    make_role: MakeRole, database: Database, db: psycopg.Connection, queue: str, messages: None
) -> None:
    role = make_role()
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {role}")
    session = database.connect(role)
    for query in ("drop_queue", "purge_queue", "compile"):
        with pytest.raises(errors.InsufficientPrivilege):
            call(session, query, queue)
    call(session, "create", queue)
    assert len(call(db, "read", queue, 30, 20)) == 10


def test_pg_monitor_may_see_the_figures_and_no_more(
    make_role: MakeRole, database: Database, db: psycopg.Connection, queue: str, messages: None
) -> None:
    session = database.connect(make_role("in role pg_monitor"))
    (row,) = call(session, "metrics", queue)
    assert (row.queue_length, row.total_messages) == (10, 10)
    assert queue in [row.queue_name for row in call(session, "metrics_all")]
    assert queue in [row.queue_name for row in call(session, "list_queues")]
    for query in ("select pgmq.read(%s, 0, 1)", "select pgmq.send(%s, '{}')", "select pgmq.delete(%s, 1)"):
        with pytest.raises(errors.InsufficientPrivilege):
            session.execute(query, [queue])


def test_the_owner_of_a_database_works_with_what_a_superuser_installs_and_grants(
    make_database: Callable[..., Database], make_role: MakeRole
) -> None:
    owner = make_role()
    database = make_database(extension=False, owner=owner)
    db, session = database.connect(), database.connect(owner)
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("create extension pgmq cascade")
    db.execute("create extension pgmq cascade")
    with pytest.raises(errors.InsufficientPrivilege):
        call(session, "create", "first")
    db.execute(f"grant usage, create on schema pgmq to {owner} with grant option")
    lists = "pgmq.meta, pgmq.topic_bindings, pgmq.notify_insert_throttle"
    db.execute(f"grant select, insert, update, delete on {lists} to {owner} with grant option")
    call(session, "create", "first")
    for query in NEED_A_QUEUE.values():
        session.execute(query, ["first"])
    assert [row.queue_name for row in call(session, "metrics_all")] == ["first"]
    # And lets others in.
    role = make_role()
    session.execute(f"grant usage on schema pgmq to {role}")
    session.execute(f"grant select, insert, update, delete on pgmq.q_first to {role}")
    other = database.connect(role)
    call(other, "send", "first", Jsonb("theirs"))
    assert [row.message for row in call(other, "read", "first", 30, 10)][-1] == "theirs"
    maker = make_role()
    session.execute(f"grant usage, create on schema pgmq to {maker}")
    session.execute(f"grant select, insert, delete on pgmq.meta to {maker}")
    made = database.connect(maker)
    call(made, "create", "second")
    assert call(made, "drop_queue", "second") == [(True,)]
    assert call(session, "drop_queue", "first") == [(True,)]
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("drop extension pgmq")


def test_a_role_without_rights_does_no_harm_through_a_queue_s_own_functions(
    make_role: MakeRole, database: Database, db: psycopg.Connection, queue: str
) -> None:
    call(db, "send_batch", queue, [Jsonb(None)] * 300)
    call(db, "read", queue, 3600, 100)

    def hints() -> list[tuple]:
        return db.execute(
            "select sequencename, last_value from pg_sequences where sequencename like %s order by 1", [f"q_{queue}$%"]
        ).fetchall()

    before = hints()
    assert len(before) == 3
    nobody, only_reads, only_sends = make_role(), make_role(), make_role()
    grant(db, queue, nobody)
    grant(db, queue, only_reads, ("select", "q"))
    grant(db, queue, only_sends, ("insert", "q"))
    functions = db.execute(
        """
        select oid::regprocedure::text, proname, (
            select string_agg('null::' || format_type(t.type, null), ', ' order by n)
            from unnest(proargtypes) with ordinality as t (type, n)
        )
        from pg_proc
        where starts_with(proname, %s)
        """,
        [f"q_{queue}$"],
    ).fetchall()
    assert {"read_one", "claim_due"} <= {name.partition("$")[2] for _, name, _ in functions}
    for role in (nobody, only_reads, only_sends):
        session = database.connect(role)
        table = f"'pgmq.q_{queue}'::regclass"
        far = 9000000000000000
        attempts = [
            *(
                f"select pgmq.{function}({table}, 'pgmq.\"q_{queue}${hint}\"', {far})"
                for function in ("_keep", "_keep_as_owner")
                for hint in ("head", "due", "sweep")
            ),
            f"select pgmq.\"q_{queue}$advance\"(now() + interval '1 day', 0, '-infinity', 1, {far})",
            f"select pgmq._sweep({table}, now() + interval '1 day')",
            f"select pgmq._unhide({table}, 1, now() - interval '1 day')",
            f"select setval('pgmq.\"q_{queue}$head\"', {far})",
            *(f'select pgmq."{name}"({arguments or ""})' for _, name, arguments in functions if "send" not in name),
        ]
        for attempt in attempts:
            with contextlib.suppress(errors.InsufficientPrivilege):
                session.execute(attempt)
        assert hints() == before
        with pytest.raises(errors.InsufficientPrivilege):
            session.execute(f'create or replace function pgmq."q_{queue}$pop_one"() returns record'
                            " language sql as 'select null::record'")  # fmt: skip
    assert len(call(db, "read", queue, 30, 500)) == 200


def test_set_role_to_a_reader_is_enough_to_read(
    make_role: MakeRole, database: Database, db: psycopg.Connection, queue: str, messages: None
) -> None:
    """A pooler connects as one role, which may become others."""
    reader = make_role()
    grant(db, queue, reader, ("select, update", "q"))
    session = database.connect(make_role(f"noinherit in role {reader}"))
    with pytest.raises(errors.InsufficientPrivilege):
        call(session, "read", queue, 30, 1)
    session.execute(f"set role {reader}")
    assert len(call(session, "read", queue, 30, 20)) == 10


@pytest.mark.parametrize("has_grants_only", [False, True])
def test_a_security_definer_wrapper_lets_a_role_without_grants_read(
    make_role: MakeRole, database: Database, db: psycopg.Connection, has_grants_only: bool
) -> None:
    owner, wrapper_owner, user = make_role(), make_role(), make_role()
    db.execute(f"grant usage, create on schema pgmq to {owner}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {owner}")
    queue = unique()
    session = database.connect(owner)
    call(session, "create", queue)
    if has_grants_only:
        grant(db, queue, wrapper_owner, ("select, update", "q"))
    else:
        wrapper_owner = owner
    schema = unique("schema")
    db.execute(f"create schema {schema} authorization {wrapper_owner}")
    db.execute(f"grant usage on schema {schema} to {user}")
    db.execute(f"set role {wrapper_owner}")
    db.execute(
        f"create function {schema}.take(qty integer) returns setof bigint language sql security definer"
        f" set search_path = pg_catalog, pg_temp"
        f" as $$ select msg_id from pgmq.read('{queue}', 3600, qty) $$"
    )
    db.execute("reset role")
    reader = database.connect(user)
    call(session, "send_batch", queue, [Jsonb(None)] * 400)
    # One message commits long after those behind it were read.
    late = database.connect(owner, autocommit=False)
    assert call(late, "send", queue, Jsonb("late")) == [(401,)]
    call(session, "send_batch", queue, [Jsonb(None)] * 1000)
    seen: list[int] = []
    while rows := reader.execute(f"select {schema}.take(50)").fetchall():
        seen += [row[0] for row in rows]
    assert seen == [*range(1, 401), *range(402, 1402)]
    late.commit()
    assert eventually(lambda: reader.execute(f"select {schema}.take(50)").fetchall(), 5) == [(401,)]
    with pytest.raises(errors.InsufficientPrivilege):
        call(reader, "read", queue, 30, 1)
    assert call(session, "drop_queue", queue) == [(True,)]


def test_a_wrapper_finds_what_the_hints_of_other_readers_hide(
    make_role: MakeRole, database: Database, db: psycopg.Connection, queue: str
) -> None:
    """The caller may not read the queue, so nobody keeps hints for it: it must do without those of others."""
    wrapper_owner, user = make_role(), make_role()
    grant(db, queue, wrapper_owner, ("select, update", "q"))
    schema = unique("schema")
    db.execute(f"create schema {schema} authorization {wrapper_owner}")
    db.execute(f"grant usage on schema {schema} to {user}")
    db.execute(f"set role {wrapper_owner}")
    db.execute(
        f"create function {schema}.take(qty integer) returns setof bigint language sql security definer"
        f" as $$ select msg_id from pgmq.read('{queue}', 3600, qty) $$"
    )
    db.execute("reset role")
    late = database.connect(autocommit=False)
    assert call(late, "send", queue, Jsonb("late")) == [(1,)]
    call(db, "send_batch", queue, [Jsonb(None)] * 1000)
    while call(db, "read", queue, 3600, 50):
        pass
    late.commit()
    reader = database.connect(user)
    assert eventually(lambda: reader.execute(f"select {schema}.take(50)").fetchall(), 5) == [(1,)]


def test_execute_that_is_no_longer_public_by_default_does_not_shut_out_who_has_grants(
    make_role: MakeRole, make_database: Callable[..., Database]
) -> None:
    database = make_database()
    db = database.connect()
    owner, reader = make_role(), make_role()
    db.execute(f"grant usage, create on schema pgmq to {owner}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {owner}")
    for role in (owner, "current_user"):
        db.execute(f"alter default privileges for role {role} revoke execute on functions from public")
    session = database.connect(owner)
    call(session, "create", "q")
    grant(db, "q", reader, ("select, insert, update, delete", "q"), ("select, insert", "a"))
    reading = database.connect(reader)
    for signature, query in CALLS.items():
        if "metrics" not in signature:
            reading.execute(query, ["q"])
    call(session, "compile", "q")
    for signature, query in CALLS.items():
        if "metrics" not in signature:
            reading.execute(query, ["q"])
    assert call(session, "drop_queue", "q") == [(True,)]


def test_a_queue_s_own_functions_run_with_the_rights_of_their_caller(db: psycopg.Connection, queue: str) -> None:
    definer = db.execute(
        "select proname::text, proconfig from pg_proc where pronamespace = 'pgmq'::regnamespace and prosecdef"
    ).fetchall()
    assert [name for name, _ in definer if name.startswith(f"q_{queue}$")] == []
    assert all(any(setting.startswith("search_path=") for setting in settings) for _, settings in definer)
