"""Sessions that outlive what they have loaded, what survives the extension, and what a session need not load."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator

import psycopg
import pytest
import servers
from calls import NEED_A_QUEUE
from conftest import Database, call, error_of, unique
from psycopg import errors
from psycopg.types.json import Jsonb
from test_queues import objects

MakeDatabase = Callable[..., Database]
LATER = "99.0.0"


def every_verb(session: psycopg.Connection, queue: str, times: int = 1) -> None:
    """Use all that a queue has, on an empty queue, often enough for the session to keep plans."""
    for _ in range(times):
        first = call(session, "send", queue, Jsonb({"n": 1}))[0].send
        assert call(session, "send_batch", queue, [Jsonb(2), Jsonb(3)]) == [(first + 1,), (first + 2,)]
        assert [row.message for row in call(session, "read", queue, 3600, 1)] == [{"n": 1}]
        assert [row.message for row in call(session, "read", queue, 3600, 1, Jsonb(3))] == [3]
        assert [row.message for row in call(session, "pop", queue)] == [2]
        assert [row.msg_id for row in call(session, "set_vt", queue, first, 0)] == [first]
        assert [row.msg_id for row in call(session, "read", queue, 0, 5)] == [first]
        assert call(session, "metrics", queue)[0].queue_length == 2
        assert call(session, "archive", queue, first) == [(True,)]
        assert call(session, "delete", queue, first + 2) == [(True,)]
        assert call(session, "purge_queue", queue) == [(0,)]


def psql(database: Database, script: pathlib.Path) -> subprocess.CompletedProcess[str]:
    program = servers.find_psql(servers.newest())
    return subprocess.run(
        [program, "--no-psqlrc", "--quiet", "--dbname", database.dsn, "--file", script],
        env={**os.environ, "PGOPTIONS": "-c client_min_messages=warning"}, capture_output=True, text=True,
    )  # fmt: skip


SCRIPT = servers.ROOT / "sql" / "pgmq.sql"


@pytest.fixture
def own(make_database: MakeDatabase) -> Iterator[Database]:
    """A database of the test's own, since it does something to the extension."""
    database = make_database()
    yield database
    database.close()


# What a session keeps


def test_discard_all_does_no_harm(database: Database, queue: str) -> None:
    session = database.connect(prepare_threshold=None)
    for _ in range(3):
        every_verb(session, queue)
        session.execute("discard all")
    for what in ("plans", "sequences", "temporary"):
        session.execute(f"discard {what}")
        every_verb(session, queue)
    name = unique()
    call(session, "create", name)
    session.execute("discard all")
    assert call(session, "drop_queue", name) == [(True,)]


@pytest.mark.parametrize("again", ["create", "create_unlogged"])
def test_a_queue_that_another_session_drops_and_creates_again_works_on(
    database: Database, db: psycopg.Connection, again: str
) -> None:
    session = database.connect()
    name = unique()
    call(db, "create", name)
    every_verb(session, name, times=8)
    for _ in range(3):
        call(db, "drop_queue", name)
        with error_of(errors.UndefinedTable, f"queue {name} does not exist"):
            call(session, "send", name, Jsonb(1))
        call(db, again, name)
        assert call(session, "metrics", name)[0].total_messages == 0
        every_verb(session, name, times=3)
    assert call(session, "drop_queue", name) == [(True,)]


def test_a_queue_that_another_session_compiles_works_on(database: Database, db: psycopg.Connection, queue: str) -> None:
    session = database.connect()
    every_verb(session, queue, times=8)
    call(db, "compile", queue)
    every_verb(session, queue, times=8)


def test_a_session_outlives_drop_and_create_extension(own: Database) -> None:
    session, other = own.connect(), own.connect()
    call(session, "create", "q")
    every_verb(session, "q", times=8)
    for _ in range(2):
        other.execute("drop extension pgmq")
        with pytest.raises(errors.UndefinedFunction):
            call(session, "send", "q", Jsonb(1))
        other.execute("create extension pgmq")
        every_verb(session, "q", times=3)
        call(session, "create", "q")
        every_verb(session, "q", times=3)
        call(session, "create", "other")
        assert call(session, "drop_queue", "other") == [(True,)]


@pytest.fixture
def later_version() -> Iterator[str]:
    """A made-up later version beside this one; its Python says "absent" where this one says that there is no queue."""
    specification = importlib.util.spec_from_file_location("build", servers.ROOT / "sql" / "build.py")
    build = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(build)
    sources = "\n\n".join(build.module_source(name) for name in build.MODULES)
    changed = sources.replace('"queue %s does not exist"', '"queue %s is absent"')
    assert changed != sources
    key = f"pgmq {LATER}"
    script = build.loader(changed, key) + build.sql_functions(key)
    path = pathlib.Path(os.environ["PGMQ_TEST_EXTENSIONS"]) / f"pgmq--{build.version()}--{LATER}.sql"
    path.write_text(re.sub(r"^create function", "create or replace function", script, flags=re.M))
    path.chmod(0o644)
    yield LATER
    path.unlink()


def test_a_session_outlives_an_upgrade_and_follows_it(own: Database, later_version: str) -> None:
    session, other = own.connect(), own.connect()
    call(session, "create", "q")
    every_verb(session, "q", times=8)
    with error_of(errors.UndefinedTable, "queue nothing does not exist"):
        call(session, "purge_queue", "nothing")
    other.execute(f"alter extension pgmq update to '{later_version}'")
    with error_of(errors.UndefinedTable, "queue nothing is absent"):
        call(session, "purge_queue", "nothing")
    every_verb(session, "q", times=8)
    call(session, "create", "other")
    every_verb(session, "other")
    with error_of(errors.UndefinedTable, "queue nothing is absent"):
        call(own.connect(), "purge_queue", "nothing")


def test_an_upgrade_in_an_open_transaction_of_another_session_is_not_seen_before_it_commits(
    own: Database, later_version: str
) -> None:
    session, other = own.connect(), own.connect(autocommit=False)
    other.execute(f"alter extension pgmq update to '{later_version}'")
    with error_of(errors.UndefinedTable, "queue nothing is absent"):
        call(other, "purge_queue", "nothing")
    other.rollback()
    with error_of(errors.UndefinedTable, "queue nothing does not exist"):
        call(other, "purge_queue", "nothing")
    with error_of(errors.UndefinedTable, "queue nothing does not exist"):
        call(session, "purge_queue", "nothing")


# What a database may be set to


@pytest.mark.parametrize(
    "setting",
    [
        "standard_conforming_strings = off",
        "quote_all_identifiers = on",
        "search_path = ''",
        "default_transaction_isolation = serializable",
        "datestyle = 'ISO, DMY'",
        "intervalstyle = iso_8601",
        "array_nulls = off",
        "transform_null_equals = on",
        "plan_cache_mode = force_custom_plan",
        "plpgsql.extra_errors = 'all'",
        "plpgsql.variable_conflict = use_variable",
    ],
)
def test_the_settings_of_a_database_change_nothing(make_database: MakeDatabase, setting: str) -> None:
    database = make_database(extension=False)
    with database.connect() as db:
        db.execute("create extension plpython3u")
        db.execute(f"alter database {database.name} set {setting}")
    with contextlib.closing(database):
        session = database.connect()
        session.execute("create extension pgmq")
        for name in ("orders", 'A \\ "B"'):
            call(session, "create", name)
            call(session, "bind_topic", "logs.*", name)
            every_verb(session, name, times=8)
            assert call(session, "send", name, Jsonb({"late": True}), 3600)
            call(session, "enable_notify_insert", name)
            call(session, "create_fifo_index", name)
        assert call(session, "send_topic", "logs.eu", Jsonb(1)) == [(2,)]
        assert call(session, "send_topic", "logs_eu", Jsonb(1)) == [(0,)]
        matching = "select count(*) from pgmq.topic_bindings where %s ~ compiled_regex"
        assert [session.execute(matching, [key]).fetchone() for key in ("logs.eu", "logs_eu")] == [(2,), (0,)]
        for row in call(session, "list_queues"):
            assert [message.message for message in call(session, "read", row.queue_name, 0, 5)] == [1]
            call(session, "compile", row.queue_name)
            assert call(session, "drop_queue", row.queue_name) == [(True,)]


# What survives the extension


def test_tables_survive_drop_extension_and_create_adopts_them_with_their_messages(own: Database) -> None:
    db = own.connect()
    names = ["plain", 'Gr"öße', "Ä" * 40]
    for name in names:
        call(db, "create", name)
        call(db, "send_batch", name, [Jsonb(n) for n in range(5)])
        call(db, "read", name, 3600, 1)
        call(db, "archive", name, 2)
    db.execute("drop extension pgmq")
    assert db.execute("select count(*) from pgmq.q_plain").fetchone() == (4,)
    assert db.execute("select count(*) from pgmq.a_plain").fetchone() == (1,)
    db.execute("create extension pgmq")
    assert call(db, "list_queues") == []
    for name in names:
        call(db, "create", name)
        figures = call(db, "metrics", name)[0]
        assert (figures.queue_length, figures.queue_visible_length, figures.total_messages) == (4, 3, 5)
        assert [(row.msg_id, row.message) for row in call(db, "read", name, 30, 5)] == [(3, 2), (4, 3), (5, 4)]
        assert call(db, "send", name, Jsonb(5)) == [(6,)]
        assert call(db, "archive", name, 3) == [(True,)]
        assert call(db, "drop_queue", name) == [(True,)]
    assert [name for _, schema, name, *_ in objects(db) if schema == "pgmq" and "$" in name] == []


def test_an_unlogged_queue_survives_and_is_known_as_one(own: Database) -> None:
    db = own.connect()
    call(db, "create_unlogged", "fast")
    call(db, "send", "fast", Jsonb(1))
    db.execute("drop extension pgmq")
    db.execute("create extension pgmq")
    # Whatever create is told, the table is what it is.
    call(db, "create", "fast")
    assert [(row.queue_name, row.is_unlogged) for row in call(db, "list_queues")] == [("fast", True)]
    assert [row.message for row in call(db, "read", "fast", 30, 1)] == [1]


def test_drop_extension_leaves_nothing_where_there_are_no_queues(make_database: MakeDatabase) -> None:
    db = make_database(extension=False).connect()
    db.execute("create extension plpython3u")
    query = """
        select 'relation', relname::text from pg_class where relnamespace <> 'pg_toast'::regnamespace
        union all select 'function', oid::regprocedure::text from pg_proc
        union all select 'type', oid::regtype::text from pg_type where typnamespace <> 'pg_toast'::regnamespace
    """
    before = set(db.execute(query))
    db.execute("create extension pgmq")
    call(db, "create", "q")
    call(db, "drop_queue", "q")
    db.execute("drop extension pgmq")
    assert set(db.execute(query)) == before


# Without CREATE EXTENSION


def described(db: psycopg.Connection) -> set[tuple]:
    query = """
        select 'function', p.oid::regprocedure::text, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
            p.provolatile::text, p.prosecdef::text, p.proacl::text, p.prosrc, obj_description(p.oid, 'pg_proc')
        from pg_proc as p
        where p.pronamespace = 'pgmq'::regnamespace
        union all
        select 'relation', c.relname, c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod),
            a.attnotnull::text, a.attidentity::text, pg_get_expr(d.adbin, d.adrelid), obj_description(c.oid, 'pg_class')
        from pg_class as c
        join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
        left join pg_attrdef as d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace = 'pgmq'::regnamespace
    """
    return set(db.execute(query))


@pytest.fixture
def by_psql(make_database: MakeDatabase) -> Iterator[Database]:
    """A database with the objects of sql/pgmq.sql and without the extension."""
    database = make_database(extension=False)
    result = psql(database, SCRIPT)
    assert (result.returncode, result.stderr) == (0, "")
    yield database
    database.close()


def test_psql_installs_the_same_as_create_extension(own: Database, by_psql: Database) -> None:
    db, plain = own.connect(), by_psql.connect()
    assert plain.execute("select count(*) from pg_extension where extname = 'pgmq'").fetchone() == (0,)
    assert described(plain) == described(db)
    for session in (db, plain):
        call(session, "create", "q")
        call(session, "create_unlogged", "Größe")
        every_verb(session, "q", times=3)
        every_verb(session, "GRÖßE", times=3)
        for query in NEED_A_QUEUE.values():
            with error_of(errors.UndefinedTable, "does not exist", hint="pgmq.create"):
                session.execute(query, ["nothing"])
    assert described(plain) == described(db)
    for session in (db, plain):
        assert call(session, "drop_queue", "q") == call(session, "drop_queue", "größe") == [(True,)]


def test_psql_refuses_a_database_that_has_pgmq_and_changes_nothing(own: Database, by_psql: Database) -> None:
    for database in (own, by_psql):
        db = database.connect()
        call(db, "create", "q")
        before = objects(db)
        result = psql(database, SCRIPT)
        assert result.returncode != 0
        assert "this database has pgmq already" in result.stderr
        assert objects(db) == before


# Per message, no Python


def libraries(session: psycopg.Connection) -> set[str]:
    maps = pathlib.Path(f"/proc/{session.info.backend_pid}/maps").read_text()
    return {library for library in ("plpgsql", "plpython3", "libpython3") if library in maps}


def test_a_session_sends_reads_archives_and_deletes_without_loading_python(database: Database, queue: str) -> None:
    session = database.connect()
    for signature, query in NEED_A_QUEUE.items():
        if signature not in ("purge_queue(text)", "compile(text)"):
            session.execute(query, [queue])
            with pytest.raises(errors.UndefinedTable):
                session.execute(query, ["no such queue"])
    assert libraries(session) == {"plpgsql"}
    call(session, "purge_queue", queue)
    assert libraries(session) > {"plpgsql", "plpython3"}
