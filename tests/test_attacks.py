"""What one role prepares against the others: names of queues that are taken, rows, bindings, hints and locks.

Role b of these tests may create queues: it has CREATE on schema pgmq, and SELECT and INSERT on pgmq.meta. Whatever it
does, nothing of its own runs with another's rights, and what it spoils is its own or says whose it is.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from calls import ALL
from conftest import Database, call, error_of, eventually, unique
from psycopg import errors
from psycopg.types.json import Jsonb

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTMAN = os.environ.get("PGMQ_TEST_PARTMAN", "").split()
needs_partman = pytest.mark.skipif(not PARTMAN, reason="pg_partman is missing")

MakeRole = Callable[..., str]
SENDER = Jsonb({"x-pgmq-group": "g"})


def prepared(make_database: Callable[..., Database]) -> Database:
    """A database with pg_partman where there is one, and a table that notes as whom planted code has run."""
    database = make_database()
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("set client_min_messages = error")
        if PARTMAN:
            connection.execute("create schema parts")
            connection.execute(f"create extension pg_partman schema parts version '{PARTMAN[-1]}'")
        connection.execute("create table public.trace (role text)")
        connection.execute("grant insert on public.trace to public")
        connection.execute("create schema evil")
        connection.execute("grant usage, create on schema evil to public")
    return database


@pytest.fixture(scope="module")
def attacked_database(make_database: Callable[..., Database]) -> Database:
    return prepared(make_database)


@pytest.fixture
def database(attacked_database: Database) -> Iterator[Database]:
    yield attacked_database
    attacked_database.close()


@pytest.fixture
def own_database(make_database: Callable[..., Database]) -> Iterator[Database]:
    """For what harms all queues of a database where it succeeds."""
    database = prepared(make_database)
    yield database
    database.close()


@pytest.fixture
def b(db: psycopg.Connection, make_role: MakeRole) -> str:
    """A role that may create queues."""
    return may_create(db, make_role())


def may_create(db: psycopg.Connection, role: str) -> str:
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {role}")
    return role


def traced(db: psycopg.Connection) -> set[str]:
    """The roles as which planted code has run."""
    return {role for (role,) in db.execute("select role from public.trace")}


def owned(db: psycopg.Connection, role: str) -> set[tuple]:
    """What a role owns in schema pgmq, with who may use it."""
    query = """
        select 'relation', oid, relname, relacl::text from pg_class
        where relnamespace = 'pgmq'::regnamespace and relowner = %(role)s::regrole
        union all
        select 'function', oid, proname, proacl::text from pg_proc
        where pronamespace = 'pgmq'::regnamespace and proowner = %(role)s::regrole
        union all
        select 'type', oid, typname, typacl::text from pg_type
        where typnamespace = 'pgmq'::regnamespace and typowner = %(role)s::regrole
    """
    return set(db.execute(query, {"role": role}))


def belongs_to(role: str, name: str) -> contextlib.AbstractContextManager:
    """The error that names what another has put where a queue's parts are to be."""
    expected = error_of(errors.InsufficientPrivilege, f'pgmq."{name}" belongs to role')

    @contextlib.contextmanager
    def expectation() -> Iterator[None]:
        with expected:
            yield
        diagnostic = expected.info.value.diag
        assert role.strip('"') in diagnostic.message_primary
        assert diagnostic.message_hint

    return expectation()


NOTES = "insert into public.trace select current_user"
# What stands in the way of a queue's parts: each with the name that is taken.
PLANTS = {
    "function": ("q_{}$x", "create function pgmq.{}() returns void security definer language sql as '{notes}'"),
    "overload": ("q_{}$send_now", "create function pgmq.{}(integer) returns bigint language sql as 'select 1::bigint'"),
    "verb": ("q_{}$send_now", "create function pgmq.{}(jsonb) returns bigint language sql as 'select 1::bigint'"),
    "procedure": ("q_{}$x", "create procedure pgmq.{}() language sql as '{notes}'"),
    "aggregate": ("q_{}$x", "create aggregate pgmq.{}(integer) (sfunc = int4pl, stype = integer)"),
    "sequence": ("q_{}$head", "create sequence pgmq.{}; grant all on sequence pgmq.{} to public"),
    "template": ("q_{}$template", "create table pgmq.{} (msg_id bigint)"),
    "archive_template": ("q_{}$a_template", "create table pgmq.{} (msg_id bigint)"),
    "view": ("q_{}$x", "create view pgmq.{} as select 1 as one"),
    "index": ("q_{}$ready", "create table pgmq.innocent (a integer); create index {} on pgmq.innocent (a)"),
    "row_type": ("q_{}$x", "create type pgmq.{} as (a integer)"),
    "domain": ("q_{}$x", "create domain pgmq.{} as integer"),
    "archive": (
        "a_{}",
        """
        create table pgmq.{} (
            msg_id bigint, read_ct integer, enqueued_at timestamptz, last_read_at timestamptz,
            archived_at timestamptz default now(), vt timestamptz, message jsonb, headers jsonb
        );
        create function evil.note() returns trigger language plpgsql as 'begin {notes}; return new; end';
        create trigger t before insert on pgmq.{} for each row execute function evil.note()
        """,
    ),
}


def plant(database: Database, role: str, kind: str, queue: str) -> str:
    """Plant it as this role, and return the name that is taken."""
    name, statements = PLANTS[kind]
    name = name.format(queue)
    session = database.connect(role)
    session.execute(statements.replace("{notes}", NOTES).replace("{}", f'"{name}"'))
    return name


@pytest.fixture
def name(database: Database, db: psycopg.Connection) -> Iterator[str]:
    """A name of a queue to be. It has no other characters than a queue named without care."""
    name = unique("orders")
    yield name
    database.close(but=db)
    db.execute("drop schema evil cascade; create schema evil; grant usage, create on schema evil to public")
    db.execute("drop table if exists pgmq.innocent")
    db.execute("truncate public.trace")
    with contextlib.suppress(psycopg.Error):
        db.execute("select pgmq.drop_queue(%s)", [name])


CREATE = {
    "create": "select pgmq.create(%s)",
    "create_unlogged": "select pgmq.create_unlogged(%s)",
    "create_non_partitioned": "select pgmq.create_non_partitioned(%s)",
}
if PARTMAN:
    CREATE["create_partitioned"] = "select pgmq.create_partitioned(%s)"


@pytest.mark.parametrize(
    ("form", "kind"),
    [("create", kind) for kind in PLANTS]
    + [(form, kind) for form in CREATE if form != "create" for kind in ("function", "sequence", "template", "archive")],
)
def test_no_queue_is_made_of_what_another_has_planted(
    database: Database, db: psycopg.Connection, b: str, name: str, kind: str, form: str
) -> None:
    """Today's archive is tomorrow's trigger that runs as whoever archives."""
    taken = plant(database, b, kind, name)
    before = owned(db, b)
    relation = taken.startswith("a_")
    with belongs_to(b, taken) if not relation else error_of(errors.InsufficientPrivilege, f"pgmq.{taken} belongs to"):
        db.execute(CREATE[form], [name])
    assert owned(db, b) == before
    assert db.execute("select to_regclass(%s)", [f"pgmq.q_{name}"]).fetchone() == (None,)
    assert db.execute("select from pgmq.meta where queue_name = %s", [name]).fetchall() == []
    assert traced(db) == set()
    # With what was planted gone, it is made.
    db.execute(f"drop owned by {b} cascade")
    db.execute(CREATE[form], [name])


def test_a_table_of_another_does_not_become_a_queue_in_silence(
    database: Database, db: psycopg.Connection, b: str, name: str
) -> None:
    """Its owner stays who he was, and is named: in an error, or in a warning where the queue is taken over."""
    attacker = database.connect(b)
    attacker.execute(TABLE.format(name))
    before = owned(db, b)
    said: list[str] = []
    db.add_notice_handler(lambda diagnostic: said.append(diagnostic.message_primary or ""))
    try:
        call(db, "create", name)
    except errors.InsufficientPrivilege as refused:
        said.append(refused.diag.message_primary)
    assert any(b.strip('"') in text for text in said)
    assert before <= owned(db, b)
    assert db.execute("select relowner::regrole::text from pg_class where relname = %s", [f"q_{name}"]).fetchone() == (
        b,
    )


TABLE = """
    create table pgmq.q_{0} (
        msg_id bigint primary key generated always as identity, read_ct integer not null default 0,
        enqueued_at timestamptz not null default now(), last_read_at timestamptz, vt timestamptz not null,
        message jsonb, headers jsonb
    )
"""

BUILD = {
    "compile": "select pgmq.compile(%s)",
    "create_fifo_index": "select pgmq.create_fifo_index(%s)",
    "enable_notify_insert": "select pgmq.enable_notify_insert(%s)",
}
if PARTMAN:
    BUILD["convert_archive_partitioned"] = "select pgmq.convert_archive_partitioned(%s)"


@pytest.mark.parametrize("kind", ["function", "overload", "procedure", "template", "domain"])
@pytest.mark.parametrize("form", BUILD)
def test_nothing_is_built_beside_what_another_has_planted_since(
    database: Database, db: psycopg.Connection, b: str, name: str, form: str, kind: str
) -> None:
    call(db, "create", name)
    taken = plant(database, b, kind, name)
    before = owned(db, b)
    with belongs_to(b, taken):
        db.execute(BUILD[form], [name])
    assert owned(db, b) == before
    # It stops neither messages, nor the owner from dropping the queue, and stays as it was.
    assert call(db, "send", name, Jsonb(1)) == [(1,)]
    assert [row.msg_id for row in call(db, "read", name, 0, 1)] == [1]
    assert call(db, "drop_queue", name) == [(True,)]
    assert owned(db, b) == before
    assert traced(db) == set()


@needs_partman
def test_an_archive_is_not_partitioned_after_the_template_of_another(
    database: Database, db: psycopg.Connection, b: str, name: str
) -> None:
    """pg_partman gives each partition the indexes of its template, and an index may be a call of a function."""
    call(db, "create", name)
    plant(database, b, "archive_template", name)
    with belongs_to(b, f"q_{name}$a_template"):
        call(db, "convert_archive_partitioned", name)
    assert call(db, "archive", name, call(db, "send", name, Jsonb(1))[0][0]) == [(True,)]


def test_create_fifo_indexes_all_gives_nothing_planted_to_another(
    database: Database, db: psycopg.Connection, b: str, name: str
) -> None:
    call(db, "create", name)
    plant(database, b, "function", name)
    before = owned(db, b)
    with contextlib.suppress(errors.InsufficientPrivilege):
        call(db, "create_fifo_indexes_all")
    assert owned(db, b) == before


@pytest.mark.parametrize(
    "statement",
    [
        "select pgmq.create_fifo_index(%s)",
        "select pgmq.create_fifo_indexes_all()",
        "select pgmq.compile(%s)",
        "select pgmq.enable_notify_insert(%s, 0)",
        "select pgmq.create(%s)",
    ],
)
def test_what_a_superuser_builds_for_a_queue_belongs_to_its_owner(
    database: Database, db: psycopg.Connection, b: str, name: str, statement: str
) -> None:
    """A function that is SECURITY DEFINER and the superuser's would call those that the owner may replace."""
    owner = database.connect(b)
    db.execute(f"grant select, insert, update, delete on pgmq.notify_insert_throttle to {b}")
    call(owner, "create", name)
    call(owner, "enable_notify_insert", name, 0)
    owner.execute(f"drop trigger notify_insert on pgmq.q_{name}")
    functions = "select oid::regprocedure::text from pg_proc where starts_with(proname, %s)"
    for (function,) in owner.execute(functions, [f"q_{name}$"]).fetchall():
        owner.execute(f"drop function {function}")
    db.execute(statement, [name] if "%s" in statement else [])
    query = """
        select 'function', oid::regprocedure::text from pg_proc
        where starts_with(proname, %(stem)s) and proowner <> %(role)s::regrole
        union all
        select 'relation', oid::regclass::text from pg_class
        where starts_with(relname, %(stem)s) and relowner <> %(role)s::regrole
    """
    assert db.execute(query, {"stem": f"q_{name}", "role": b}).fetchall() == []
    db.execute(f"revoke all on pgmq.notify_insert_throttle from {b}")


def test_a_replaced_function_of_a_queue_runs_as_nobody_else_when_a_superuser_builds(
    database: Database, db: psycopg.Connection, b: str, name: str
) -> None:
    """Who owns a queue may replace its functions. To build the queue again calls none of them."""
    owner = database.connect(b)
    call(owner, "create", name)
    functions = "select pg_get_functiondef(oid) from pg_proc where starts_with(proname, %s)"
    for (definition,) in owner.execute(functions, [f"q_{name}$"]).fetchall():
        head = re.split(r"\nAS \$\w+\$", definition, maxsplit=1)[0]
        owner.execute(f"{head}\nas $replaced$ begin {NOTES}; raise 'replaced'; end $replaced$")
    for form in ("compile", "create_fifo_index", "metrics", "purge_queue", "drop_queue"):
        call(db, form, name)
    assert traced(db) == set()


LONG = ["10" + " " * 100, "0" * 100 + "10", "1 day" + " " * 100, "1" * 5000, "x" * 101, "x" * 1_000_000]


@needs_partman
@pytest.mark.parametrize("form", ["create_partitioned", "convert_archive_partitioned"])
@pytest.mark.parametrize("argument", ["partition_interval", "retention_interval"])
def test_a_span_of_more_than_100_characters_is_refused(
    db: psycopg.Connection, name: str, form: str, argument: str
) -> None:
    """Before anything is made of it, the message included."""
    if form == "convert_archive_partitioned":
        call(db, "create", name)
    for text in LONG:
        with pytest.raises(errors.InvalidParameterValue) as refused:
            call(db, form, name, *([text, "1000"] if argument == "partition_interval" else ["10", text]))
        message = refused.value.diag.message_primary
        assert message.startswith(f"pgmq: {argument} ")
        assert "too long" in message
        assert len(message) < 200
    tables = db.execute("select to_regclass(%s), to_regclass(%s)", [f"pgmq.a_{name}_old", f"pgmq.q_{name}$a_template"])
    assert tables.fetchone() == (None, None)


@needs_partman
def test_pg_partman_leaves_the_session_s_settings_as_they_were(
    database: Database, db: psycopg.Connection, name: str
) -> None:
    """It sets the search_path to what it finds, for the session: to the one with which it is called."""
    session = database.connect()
    call(session, "create", name)
    before = set(session.execute("select name, setting from pg_settings"))
    call(session, "convert_archive_partitioned", name)
    assert before - set(session.execute("select name, setting from pg_settings")) == set()
    call(session, "drop_queue", name)
    call(session, "create_partitioned", name)
    assert before - set(session.execute("select name, setting from pg_settings")) == set()
    session.execute("set search_path = evil, public")
    call(session, "drop_queue", name)
    call(session, "create_partitioned", name)
    assert session.execute("show search_path").fetchone() == ("evil, public",)


def test_python_does_not_quote_by_what_leaves_it_by_a_jump() -> None:
    """PL/Python's own functions damage the session where they fail, and take UTF-8 in every encoding."""
    sources = [*ROOT.glob("plpy/*.py"), *ROOT.glob("sql/*.sql")]
    assert len(sources) > 15
    assert [path.name for path in sources if re.search(r"plpy\s*\.\s*quote_", path.read_text())] == []


OVERLOADS = {
    "metrics": "metrics(varchar) returns pgmq.metrics_result",
    "format_table_name": "format_table_name(varchar, text) returns text",
    "_identifier": "_identifier(varchar, integer) returns text",
    "_stem": "_stem(varchar) returns text",
    "validate_queue_name": "validate_queue_name(varchar) returns void",
    "delete": "delete(text, integer) returns boolean",
    "send": "send(text, jsonb, jsonb, bigint) returns setof bigint",
    "_required": "_required(text, timestamptz) returns timestamptz",
    "_table_exists": "_table_exists(varchar) returns boolean",
}


@pytest.mark.parametrize("function", OVERLOADS)
def test_an_overload_is_not_run_by_the_functions_of_the_extension(
    database: Database, db: psycopg.Connection, b: str, name: str, function: str
) -> None:
    """They call each other by exact types. What is planted here fits a call that needs a cast better."""
    database.connect(b).execute(
        f"create function pgmq.{OVERLOADS[function]} language plpgsql as $$ begin {NOTES}; raise 'planted'; end $$"
    )
    for statement in (
        "select pgmq.create('{0}'::text)",
        "select pgmq.metrics('{0}'::text)",
        "select pgmq.metrics_all()",
        "select pgmq.send('{0}'::text, '1'::jsonb, 1::integer)",
        "select pgmq.send_batch('{0}'::text, array['1']::jsonb[], 1::integer)",
        "select pgmq.bind_topic('a'::text, '{0}'::text)",
        "select pgmq.send_topic('a'::text, '1'::jsonb)",
        "select pgmq.send_batch_topic('a'::text, array['1']::jsonb[])",
        "select pgmq.list_topic_bindings('{0}'::text)",
        "select pgmq.enable_notify_insert('{0}'::text, 100::integer)",
        "select pgmq.list_notify_insert_throttles()",
        "select pgmq.create_fifo_index('{0}'::text)",
        "select pgmq.create_fifo_indexes_all()",
        "select pgmq.compile('{0}'::text)",
        "select pgmq.purge_queue('{0}'::text)",
        "select pgmq.delete('{0}'::text, 1::bigint)",
    ):
        db.execute(statement.format(name))
    with pytest.raises(errors.NullValueNotAllowed):
        db.execute(f"select pgmq.send('{name}'::text, '1'::jsonb, null::timestamptz)")
    db.execute(f"select pgmq.drop_queue('{name}'::text)")
    assert traced(db) == set()


def test_an_overload_of_a_queue_s_function_stops_no_message(
    database: Database, db: psycopg.Connection, b: str, name: str
) -> None:
    call(db, "create", name)
    attacker = database.connect(b)
    query = "select proname from pg_proc where starts_with(proname, %s)"
    for (function,) in db.execute(query, [f"q_{name}$"]).fetchall():
        attacker.execute(f"create function pgmq.\"{function}\"(circle) returns void language sql as '{NOTES}'")
    for session in (db, database.connect()):
        call(session, "send", name, Jsonb(1))
        call(session, "send", name, Jsonb(2), SENDER)
        session.execute("select pgmq.send_batch(%s, array['3', '4']::jsonb[])", [name])
        assert len(call(session, "read", name, 0, 1)) == 1
        assert len(call(session, "read", name, 0, 10)) == 4
        for form in ("read_grouped", "read_grouped_rr", "read_grouped_head"):
            assert call(session, form, name, 0, 1)
        call(session, "set_vt", name, 1, 0)
        session.execute("select pgmq.delete(%s, 1::bigint), pgmq.archive(%s, 2::bigint)", [name, name])
        call(session, "pop", name)
        call(session, "pop", name, 5)
        call(session, "purge_queue", name)
    assert call(db, "drop_queue", name) == [(True,)]
    assert traced(db) == set()


def hints(db: psycopg.Connection, queue: str) -> dict[str, int | None]:
    """The values of a queue's hints by their names: those of its sequences but the one that gives the ids."""
    query = """
        select split_part(relname, '$', 2), pg_sequence_last_value(oid)
        from pg_class
        where relnamespace = 'pgmq'::regnamespace and relkind = 'S' and starts_with(relname, %s)
    """
    found = dict(db.execute(query, [f"q_{queue}$"]))
    assert {"head", "due", "sweep"} <= set(found)
    return found


def keep(session: psycopg.Connection, queue: str, hint: str, value: int, table: str | None = None) -> None:
    """Write a hint in the way that whoever is not the owner of the queue has; as if it were that of the table given."""
    with contextlib.suppress(errors.NumericValueOutOfRange, errors.InvalidParameterValue, errors.InsufficientPrivilege):
        session.execute(
            "select pgmq._keep_as_owner(%s::regclass, %s::regclass, %s::bigint)",
            [table or f"pgmq.q_{queue}", f'pgmq."q_{queue}${hint}"', value],
        )


LARGEST = 2**63 - 1
WRONG = [LARGEST, 2**62, -(2**63), 10**18, 4_000_000_000_000_000, 0, -1]


def all_of(db: psycopg.Connection, queue: str, expected: set[int], seconds: float) -> None:
    """All these messages are read within so many seconds, in reads of one and of many."""
    seen: set[int] = set()

    def is_there() -> bool:
        seen.update(row.msg_id for quantity in (1, 50) for row in call(db, "read", queue, 3600, quantity))
        return seen >= expected

    eventually(is_there, seconds)


def prepare_to_poison(db: psycopg.Connection, name: str, role: str) -> None:
    """A queue with two messages due again and three that are ready, on which the role has UPDATE and nothing else."""
    call(db, "create", name)
    for n in range(5):
        call(db, "send", name, Jsonb(n))
    assert [row.msg_id for row in call(db, "read", name, 0, 2)] == [1, 2]
    db.execute(f"grant update on pgmq.q_{name} to {role}")


def test_a_poisoned_hint_delays_messages_until_the_next_sweep_and_no_new_one(
    database: Database, db: psycopg.Connection, make_role: MakeRole
) -> None:
    """It is written as if the last message, and what is due now, were the last that was found."""
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    poisoner = database.connect(role)
    poisoned = {(hint, value): unique("poisoned") for hint in ("head", "due") for value in WRONG}
    for (hint, value), name in poisoned.items():
        prepare_to_poison(db, name, role)
        keep(poisoner, name, hint, value)
        assert call(db, "send", name, Jsonb("new")) == [(6,)]
        db.execute("select pgmq.send(%s, '1', clock_timestamp() + interval '0.01 seconds')", [name])
        all_of(db, name, {6, 7}, 1)
    deadline = time.monotonic() + 4
    for name in poisoned.values():
        all_of(db, name, {1, 2, 3, 4, 5} - in_flight(db, name), max(deadline - time.monotonic(), 0))
        call(db, "drop_queue", name)


def in_flight(db: psycopg.Connection, name: str) -> set[int]:
    query = f"select msg_id from pgmq.q_{name} where vt > now() + interval '1 minute'"
    return {msg_id for (msg_id,) in db.execute(query)}


@pytest.mark.parametrize("value", WRONG)
def test_what_was_poisoned_is_mended_by_compile_and_hides_no_new_message(
    database: Database, db: psycopg.Connection, make_role: MakeRole, name: str, value: int
) -> None:
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    prepare_to_poison(db, name, role)
    poisoner = database.connect(role)
    for hint in hints(db, name):
        keep(poisoner, name, hint, value)
    assert call(db, "send", name, Jsonb("new")) == [(6,)]
    all_of(db, name, {6}, 1)
    db.execute(f"revoke all on pgmq.q_{name} from {role}")
    call(db, "compile", name)
    all_of(db, name, {1, 2, 3, 4, 5} - in_flight(db, name), 1)


def test_a_sweep_is_not_put_off_for_long(
    database: Database, db: psycopg.Connection, make_role: MakeRole, name: str
) -> None:
    """Whatever value is asked for, what is kept is the same at about the same time."""
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    prepare_to_poison(db, name, role)
    poisoner = database.connect(role)
    kept = []
    for value in (LARGEST, LARGEST // 2, 2**62 + 12345):
        keep(poisoner, name, "sweep", value)
        kept.append(hints(db, name)["sweep"] or 0)
    assert max(kept) < 2**62
    assert max(kept) - min(kept) < 2**62 // 1000


@pytest.mark.parametrize("privileges", ["select", "select, insert, delete", "select (msg_id), update (vt)"])
def test_a_hint_is_not_written_without_update_on_the_queue(
    database: Database, db: psycopg.Connection, make_role: MakeRole, name: str, privileges: str
) -> None:
    call(db, "create", name)
    call(db, "send", name, Jsonb(1))
    call(db, "read", name, 0, 1)
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    db.execute(f"grant {privileges} on pgmq.q_{name} to {role}")
    before = hints(db, name)
    session = database.connect(role)
    for hint in before:
        for value in WRONG:
            keep(session, name, hint, value)
    assert hints(db, name) == before


def test_a_hint_is_not_written_by_whom_row_security_hides_rows_from(
    database: Database, db: psycopg.Connection, make_role: MakeRole, name: str
) -> None:
    """What it does not see it would declare to be gone."""
    call(db, "create", name)
    call(db, "send", name, Jsonb(1))
    call(db, "read", name, 0, 1)
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    db.execute(f"grant select, update, delete on pgmq.q_{name} to {role}")
    db.execute(f"alter table pgmq.q_{name} enable row level security")
    before = hints(db, name)
    session = database.connect(role)
    for hint in before:
        keep(session, name, hint, 1)
        keep(session, name, hint, 2**62)
    assert hints(db, name) == before


def test_a_table_of_another_writes_no_hint_of_a_queue(
    database: Database, db: psycopg.Connection, b: str, name: str
) -> None:
    """Nor does UPDATE on a queue write any other sequence."""
    for queue in (name, f"{name}_other"):
        call(db, "create", queue)
        call(db, "send", queue, Jsonb(1))
        call(db, "read", queue, 0, 1)
    call(db, "enable_notify_insert", name, 1000)
    call(db, "send", name, Jsonb(2))
    sequences = """
        select relname, pg_sequence_last_value(oid)
        from pg_class
        where relkind = 'S' and relnamespace = 'pgmq'::regnamespace and relname ~ %s
    """
    before = dict(db.execute(sequences, [f"^q_{name}"]))
    assert len(before) == 4 + 2 + 4
    attacker = database.connect(b)
    attacker.execute(f"create table evil.q_{name} (msg_id bigint generated always as identity, vt timestamptz)")
    attacker.execute(f"create temp table q_{name} (msg_id bigint generated always as identity, vt timestamptz)")
    attacker.execute(f"create table pgmq.{name} (msg_id bigint generated always as identity, vt timestamptz)")
    db.execute(f"grant update on pgmq.q_{name}_other to {b}")
    tables = [f"evil.q_{name}", f"pg_temp.q_{name}", f"pgmq.{name}", f"pgmq.q_{name}_other"]
    for sequence in before:
        for table in tables:
            if not sequence.startswith(f"q_{name}_other$") or table != f"pgmq.q_{name}_other":
                with contextlib.suppress(psycopg.Error):
                    attacker.execute(
                        "select pgmq._keep_as_owner(%s::regclass, %s::regclass, 1)", [table, f'pgmq."{sequence}"']
                    )
    assert dict(db.execute(sequences, [f"^q_{name}"])) == before
    # Of its own queue it writes the hints alone.
    db.execute(f"grant update on pgmq.q_{name} to {b}")
    others = [sequence for sequence in before if sequence.rpartition("$")[2] not in ("head", "due", "sweep")]
    assert len(others) == 4
    for sequence in others:
        with contextlib.suppress(psycopg.Error):
            attacker.execute(
                "select pgmq._keep_as_owner(%s::regclass, %s::regclass, 1)", [f"pgmq.q_{name}", f'pgmq."{sequence}"']
            )
    assert dict(db.execute(sequences, [f"^q_{name}"])) == before
    call(db, "drop_queue", f"{name}_other")


ILLEGAL = ["a$b", "it's", "a--b", "a;b", "a" * 48, "a" * 5000]


@pytest.mark.parametrize("text", ILLEGAL, ids=lambda text: text[:5])
def test_the_list_of_queues_takes_no_name_that_no_queue_can_have(
    database: Database, db: psycopg.Connection, b: str, text: str
) -> None:
    session = database.connect(b)
    with (
        session.transaction(force_rollback=True),
        pytest.raises((errors.CheckViolation, errors.InvalidName, errors.NameTooLong, errors.RaiseException)),
    ):
        session.execute("insert into pgmq.meta values (%s, false, false)", [text])


def test_one_row_in_the_list_of_queues_stops_nobody(own_database: Database, make_role: MakeRole) -> None:
    db = own_database.connect()
    role = may_create(db, make_role())
    call(db, "create", "orders")
    attacker = own_database.connect(role)
    for text in [*ILLEGAL, "ghost", "", "Orders ", "ORDERS", "Ä" * 47, "\u0301", "ghost.2"]:
        with contextlib.suppress(psycopg.Error):
            attacker.execute("insert into pgmq.meta values (%s, true, true)", [text])
    # What else there is under these names is no queue.
    attacker.execute("create view pgmq.q_view as select 1 as one")
    attacker.execute("insert into pgmq.meta values ('view', false, false)")

    call(db, "create", "other")
    call(db, "enable_notify_insert", "other", 0)
    call(db, "create_fifo_index", "other")
    call(db, "create_fifo_indexes_all")
    fifo = "select count(*) from pg_class where relname in ('q_orders$fifo', 'q_other$fifo')"
    assert db.execute(fifo).fetchone() == (2,)
    call(db, "send", "orders", Jsonb(1))
    assert {"orders", "other"} <= {row.queue_name for row in call(db, "metrics_all")}
    assert {"orders", "other"} <= {row.queue_name for row in call(db, "list_queues")}
    call(db, "bind_topic", "a", "other")
    assert call(db, "send_topic", "a", Jsonb(1)) == [(1,)]
    call(db, "compile", "orders")
    # The row of no queue goes as a queue does.
    call(db, "drop_queue", "ghost")
    assert "ghost" not in [row.queue_name for row in call(db, "list_queues")]
    assert call(db, "drop_queue", "other") == [(True,)]


@needs_partman
def test_drop_queue_drops_no_table_that_pg_partman_s_configuration_names(
    own_database: Database, make_role: MakeRole
) -> None:
    """A role that makes partitioned queues may change that configuration."""
    db = own_database.connect()
    role = make_role()
    db.execute("create table public.payroll (salary integer)")
    call(db, "create", "other")
    db.execute(f"grant usage on schema parts to {role}")
    db.execute(f"grant select, update on parts.part_config to {role}")
    stranger = own_database.connect(role)
    for victim in ("public.payroll", "pgmq.q_other"):
        call(db, "create_partitioned", "orders")
        stranger.execute("update parts.part_config set template_table = %s", [victim])
        assert call(db, "drop_queue", "orders") == [(True,)]
        assert db.execute("select to_regclass(%s)", [victim]).fetchone() != (None,)
        left = "select relname from pg_class where relname ~ '^[qa]_orders'"
        assert db.execute(left).fetchall() == []


@pytest.fixture
def sender(database: Database, db: psycopg.Connection, make_role: MakeRole, name: str) -> psycopg.Connection:
    """A role that may only insert into a queue, of which nothing has been read but the first message."""
    call(db, "create", name)
    call(db, "send", name, Jsonb(1))
    assert len(call(db, "pop", name)) == 1
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    db.execute(f"grant insert on pgmq.q_{name} to {role}")
    return database.connect(role)


def insert(session: psycopg.Connection, queue: str, **values: object) -> None:
    """A row as no function of pgmq sends it."""
    columns = {"vt": "now()", "message": "'{\"a\": 1}'", **values}
    session.execute(
        f"insert into pgmq.q_{queue} ({', '.join(columns)}) overriding system value"
        f" values ({', '.join(map(str, columns.values()))})"
    )


READS = {
    "one": "select * from pgmq.read(%s, 0, 1)",
    "many": "select * from pgmq.read(%s, 0, 40)",
    "conditional": "select * from pgmq.read(%s, 0, 40, '{\"a\": 1}')",
    "grouped": "select * from pgmq.read_grouped(%s, 0, 40)",
    "grouped_rr": "select * from pgmq.read_grouped_rr(%s, 0, 40)",
    "grouped_head": "select * from pgmq.read_grouped_head(%s, 0, 40)",
}


@pytest.mark.parametrize("is_fifo", [False, True], ids=["plain", "fifo"])
@pytest.mark.parametrize("form", READS)
def test_a_message_that_was_read_as_often_as_can_be_counted_is_read_again(
    db: psycopg.Connection, sender: psycopg.Connection, name: str, form: str, is_fifo: bool
) -> None:
    if is_fifo:
        call(db, "create_fifo_index", name)
    insert(sender, name, read_ct=2147483647)
    call(db, "send", name, Jsonb({"a": 1}))
    for _ in range(3):
        rows = db.execute(READS[form], [name]).fetchall()
        assert rows[0][:2] == (2, 2147483647)
    assert call(db, "pop", name)[0].msg_id == 2


@pytest.mark.parametrize("form", [*READS, "pop"])
def test_the_largest_id_stops_no_read(db: psycopg.Connection, sender: psycopg.Connection, name: str, form: str) -> None:
    statement = READS.get(form, "select * from pgmq.pop(%s, 8)")
    # Often enough for what one read in many does.
    for _ in range(60):
        insert(sender, name, msg_id=LARGEST)
        assert [row[0] for row in db.execute(statement, [name])] == [LARGEST]
        db.execute(f"delete from pgmq.q_{name}")
    insert(sender, name, msg_id=LARGEST)
    for n in range(60):
        call(db, "send", name, Jsonb({"a": n}))
        db.execute(statement, [name])


@pytest.mark.parametrize(
    "values",
    [
        {"msg_id": 0},
        {"msg_id": -(2**63)},
        {"msg_id": -7, "vt": "now() - interval '1 hour'", "enqueued_at": "now() - interval '2 hours'"},
        {"vt": "'1960-01-01'", "enqueued_at": "'1950-01-01'"},
        {"vt": "'4000-01-01 BC'", "enqueued_at": "'-infinity'"},
        {"vt": "'-infinity'"},
        {"vt": "'-infinity'", "enqueued_at": "'-infinity'"},
    ],
    ids=str,
)
def test_a_message_with_an_id_or_a_time_that_no_send_gives_is_read(
    db: psycopg.Connection, sender: psycopg.Connection, name: str, values: dict[str, object]
) -> None:
    insert(sender, name, message="'\"odd\"'", **values)
    call(db, "send", name, Jsonb("even"))
    seen: set[str] = set()

    def is_there() -> bool:
        seen.update(message for (message,) in db.execute("select message from pgmq.read(%s, 3600, 2)", [name]))
        return seen == {"even", "odd"}

    eventually(is_there, 4)


TIMES = ["-infinity", "infinity", "4713-01-01 BC", "294276-01-01", "1950-01-01"]


@pytest.mark.parametrize("enqueued_at", TIMES)
@pytest.mark.parametrize("vt", TIMES)
def test_a_message_of_any_time_does_not_stop_the_figures(
    db: psycopg.Connection, sender: psycopg.Connection, name: str, enqueued_at: str, vt: str
) -> None:
    insert(sender, name, enqueued_at=f"'{enqueued_at}'", vt=f"'{vt}'")
    (row,) = call(db, "metrics", name)
    assert row.queue_length == 1
    expected = {"-infinity": None, "infinity": None, "4713-01-01 BC": 2147483647, "294276-01-01": -2147483648}
    if enqueued_at in expected:
        assert row.newest_msg_age_sec == row.oldest_msg_age_sec == expected[enqueued_at]
    assert name in [row.queue_name for row in call(db, "metrics_all")]


LOCKED = {
    "create": "select pgmq.create(%s)",
    "drop_queue": "select pgmq.drop_queue(%s)",
    "purge_queue": "select pgmq.purge_queue(%s)",
    "compile": "select pgmq.compile(%s)",
    "create_fifo_index": "select pgmq.create_fifo_index(%s)",
    "enable_notify_insert": "select pgmq.enable_notify_insert(%s)",
}


@pytest.mark.parametrize("form", LOCKED)
def test_who_holds_the_lock_of_a_queue_is_named_to_those_that_wait(
    database: Database, db: psycopg.Connection, make_role: MakeRole, name: str, form: str
) -> None:
    """Advisory locks are free for all: a role that may only connect can take any."""
    if form != "create":
        call(db, "create", name)
    stranger = database.connect(make_role())
    stranger.execute("select pg_advisory_lock(hashtextextended(%s, 0))", [f"pgmq.q_{name}"])
    db.execute("set lock_timeout = '200ms'")
    before = time.monotonic()
    with pytest.raises(errors.LockNotAvailable) as refused:
        db.execute(LOCKED[form], [name])
    assert time.monotonic() - before < 10
    diagnostic = refused.value.diag
    said = " ".join(filter(None, (diagnostic.message_primary, diagnostic.message_detail, diagnostic.message_hint)))
    assert diagnostic.message_primary.startswith("pgmq: ")
    assert str(stranger.info.backend_pid) in said
    # Messages go on meanwhile.
    if form != "create":
        call(db, "send", name, Jsonb(1))
        assert len(call(db, "read", name, 0, 1)) == 1
    stranger.close()
    db.execute(LOCKED[form], [name])


@pytest.mark.parametrize("form", ["create", "drop_queue"])
def test_a_stranger_s_lock_on_what_all_queues_share_stops_none_of_them(
    database: Database, db: psycopg.Connection, make_role: MakeRole, name: str, form: str
) -> None:
    if form == "drop_queue":
        call(db, "create", name)
    stranger = database.connect(make_role())
    stranger.execute("select pg_advisory_lock(hashtextextended('pgmq.$dispatch', 0))")
    db.execute("set lock_timeout = '2s'")
    call(db, form, name)


def test_metrics_run_no_cast_of_whom_a_queue_belongs_to(
    database: Database, db: psycopg.Connection, b: str, name: str
) -> None:
    """A table with columns of other types is no queue. It does not take the figures of others with it."""
    call(db, "create", name)
    database.connect(b).execute(
        f"""
        create type evil.moment as (t timestamptz);
        create function evil.moment(evil.moment) returns timestamptz language plpgsql as
        $$ begin {NOTES}; return $1.t; end $$;
        create cast (evil.moment as timestamptz) with function evil.moment(evil.moment) as implicit;
        create table pgmq.q_evil (
            msg_id bigint generated always as identity, read_ct integer, enqueued_at timestamptz,
            last_read_at timestamptz, vt evil.moment, message jsonb, headers jsonb
        );
        insert into pgmq.q_evil (enqueued_at, vt) values (now(), row(now()));
        insert into pgmq.meta values ('evil', false, false)
        """
    )
    try:
        with error_of(psycopg.Error, "evil"):
            call(db, "metrics", "evil")
        assert name in [row.queue_name for row in call(db, "metrics_all")]
        assert traced(db) == set()
    finally:
        db.execute("delete from pgmq.meta where queue_name = 'evil'")


def test_a_queue_that_a_binding_names_and_that_is_gone_is_passed_over(
    own_database: Database, make_role: MakeRole
) -> None:
    """What a dump turns off, others can turn off, and bind a pattern to what is no queue."""
    db = own_database.connect()
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    db.execute(f"grant insert on pgmq.topic_bindings to {role}")
    call(db, "create", "orders")
    call(db, "bind_topic", "a.*", "orders")
    stranger = own_database.connect(role)
    stranger.execute("set check_function_bodies = off")
    stranger.execute("insert into pgmq.topic_bindings (pattern, queue_name) values ('#', 'ghost'), ('#', 'a$b')")
    said: list[str] = []
    db.add_notice_handler(
        lambda diagnostic: said.append(f"{diagnostic.severity_nonlocalized} {diagnostic.message_primary}")
    )
    assert call(db, "send_topic", "a.b", Jsonb(1)) == [(1,)]
    assert any(text.startswith("WARNING pgmq: ") and "ghost" in text for text in said)
    assert [tuple(row) for row in call(db, "send_batch_topic", "a.b", [Jsonb(2), Jsonb(3)])] == [
        ("orders", 2),
        ("orders", 3),
    ]
    assert call(db, "send_topic", "nobody", Jsonb(1)) == [(0,)]
    assert len(call(db, "read", "orders", 0, 10)) == 3


@pytest.mark.parametrize("function", ["_matching_queues", "_matching_patterns"])
@pytest.mark.parametrize("length", [256, 1_000_000])
def test_a_key_that_is_none_is_not_matched(db: psycopg.Connection, function: str, length: int) -> None:
    """The work grows with its length, outside of the server's accounting."""
    with error_of(errors.InvalidParameterValue, "255 characters"):
        call(db, function, "a" * length)


@pytest.fixture
def collation(db: psycopg.Connection) -> Iterator[str]:
    if not db.execute("select exists (select from pg_collation where collprovider = 'i')").fetchone()[0]:
        pytest.skip("a server without ICU has no such collation")
    db.execute("create collation public.nondeterministic (provider = icu, locale = 'und', deterministic = false)")
    yield "public.nondeterministic"
    db.execute("drop collation public.nondeterministic")


MORE = {
    "enable_notify_insert": "select pgmq.enable_notify_insert(%s, 0)",
    "update_notify_insert": "select pgmq.update_notify_insert(%s, 0)",
    "disable_notify_insert": "select pgmq.disable_notify_insert(%s)",
    "create_fifo_index": "select pgmq.create_fifo_index(%s)",
    "bind_topic": "select pgmq.bind_topic('a', %s)",
    "unbind_topic": "select pgmq.unbind_topic('a', %s)",
    "list_topic_bindings": "select pgmq.list_topic_bindings(%s)",
    "validate_routing_key": "select pgmq.validate_routing_key(%s)",
    "validate_topic_pattern": "select pgmq.validate_topic_pattern(%s)",
    "test_routing": "select pgmq.test_routing(%s)",
    "send_topic": "select pgmq.send_topic(%s, '1')",
    "read_grouped": "select pgmq.read_grouped(%s, 0, 1)",
    "read_grouped_with_poll": "select pgmq.read_grouped_with_poll(%s, 0, 1, 0)",
}
if PARTMAN:
    MORE["create_partitioned"] = "select pgmq.create_partitioned(%s || 'p')"
    MORE["convert_archive_partitioned"] = "select pgmq.convert_archive_partitioned(%s)"


def test_a_name_with_a_nondeterministic_collation_is_a_name_as_any_other(
    db: psycopg.Connection, name: str, collation: str
) -> None:
    call(db, "create", name)
    call(db, "enable_notify_insert", name, 0)
    failed = {}
    for form, statement in {**ALL, **MORE}.items():
        for spelled in (name, name.upper()):
            try:
                with db.transaction(force_rollback=True):
                    db.execute(statement.replace("%s", f"%s collate {collation}"), [spelled])
            except psycopg.Error as error:
                failed[form] = str(error)
    assert failed == {}
