"""Databases in other encodings and locales, sessions with other settings: a name of their letters works everywhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from conftest import Database, eventually, unique
from psycopg import errors, sql
from psycopg.types.json import Jsonb

PARTMAN = os.environ.get("PGMQ_TEST_PARTMAN", "").split()

ASCII = ["orders", "Or ders", 'a"b', "a\\b", "a%sb", "INBOX"]
LOCALE = "lc_collate 'C' lc_ctype 'C'"
# How the database is made, and names that it can hold.
DATABASES = {
    "UTF8": (f"encoding 'UTF8' {LOCALE}", ["café", "漢字", "🐘", "Größe", "Ä" * 40]),
    "LATIN1": (f"encoding 'LATIN1' {LOCALE}", ["café", "Größe", "ÿ" * 47, "É\\é"]),
    "EUC_JP": (f"encoding 'EUC_JP' {LOCALE}", ["漢字", "カナ", "漢" * 40]),
    "SQL_ASCII": (f"encoding 'SQL_ASCII' {LOCALE}", ["café", "漢字", "🐘", "漢" * 15]),
    "Turkish": (
        f"encoding 'UTF8' locale_provider icu icu_locale 'tr-TR' {LOCALE}",
        ["TITLE", "İŞ", "\u0131l\u0131k", "Ii\u0131İ", "漢字"],
    ),
}
# What a session may have set.
SETTINGS = {
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "backslash_quote": "off",
    "transform_null_equals": "on",
    "DateStyle": "ISO, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Pacific/Kiritimati",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "xmloption": "document",
    "array_nulls": "off",
    "plpgsql.variable_conflict": "use_variable",
    "default_transaction_isolation": "serializable",
}


@pytest.fixture(scope="module")
def databases(admin: psycopg.Connection) -> Iterator[Callable[[str], Database]]:
    """The database of this kind, made when it is first asked for."""
    made: dict[str, Database] = {}

    def get(kind: str) -> Database:
        if kind not in made:
            options = DATABASES[kind][0]
            if "locale_provider" in options and admin.info.server_version < 150000:
                pytest.skip("databases have an ICU locale from PostgreSQL 15 on")
            database = Database(unique("database"))
            try:
                provider = " locale_provider libc" if admin.info.server_version >= 150000 else ""
                if "locale_provider" in options:
                    provider = ""
                admin.execute(f"create database {database.name} template template0 {options}{provider}")
            except errors.FeatureNotSupported:
                pytest.skip("a server without ICU")
            made[kind] = database
            with psycopg.connect(database.dsn, autocommit=True) as connection:
                connection.execute("set client_min_messages = error")
                connection.execute("create extension pgmq cascade")
                if PARTMAN:
                    connection.execute("create schema parts")
                    connection.execute(f"create extension pg_partman schema parts version '{PARTMAN[-1]}'")
        return made[kind]

    yield get
    for database in made.values():
        database.close()
        admin.execute(f"drop database {database.name} with (force)")


@contextlib.contextmanager
def sessions(database: Database, kind: str, name: str) -> Iterator[list[Session]]:
    """Two sessions, and no queue of this name when they are closed."""
    encoding = "SQL_ASCII" if kind == "SQL_ASCII" else "UTF8"
    try:
        yield [Session(database.connect(client_encoding=encoding)) for _ in range(2)]
    finally:
        database.close()
        last = Session(database.connect(client_encoding=encoding))
        with contextlib.suppress(psycopg.Error):
            last("drop_queue", name)
        database.close()


class Session:
    """Calls functions of pgmq, and gives texts as texts: in SQL_ASCII they are bytes to psycopg."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection

    def __call__(self, function: str, *arguments: object) -> list[tuple[Any, ...]]:
        marks = ", ".join(["%s"] * len(arguments))
        return self.query(f"select * from pgmq.{function}({marks})", *arguments)

    def query(self, query: str | sql.Composable, *arguments: object) -> list[tuple[Any, ...]]:
        rows = self.connection.execute(query, arguments or None).fetchall()
        return [tuple(value.decode() if isinstance(value, bytes) else value for value in row) for row in rows]

    def told(self, error: psycopg.Error) -> list[str]:
        """The message of an error and its hint."""
        fields = (psycopg.pq.DiagnosticField.MESSAGE_PRIMARY, psycopg.pq.DiagnosticField.MESSAGE_HINT)
        encoding = self.connection.info.encoding
        texts = [error.pgresult.error_field(field) or b"" for field in fields]
        return [text.decode("utf-8" if encoding == "ascii" else encoding) for text in texts]


def listener_of(session: Session, channel: str) -> Callable[[], bool]:
    """Listens, and gives a function that says whether a notification of this channel has come."""
    encoding = "utf-8" if session.connection.info.encoding == "ascii" else session.connection.info.encoding
    quoted = channel.replace('"', '""')
    session.connection.execute(f'listen "{quoted}"'.encode(encoding))

    def has_come() -> bool:
        session.connection.pgconn.consume_input()
        note = session.connection.pgconn.notifies()
        return note is not None and note.relname.decode(encoding) == channel

    return has_come


def objects(session: Session) -> set[tuple]:
    query = """
        select 'relation', relname::text from pg_class where relnamespace = 'pgmq'::regnamespace
        union all
        select 'function', oid::regprocedure::text from pg_proc where pronamespace = 'pgmq'::regnamespace
        union all
        select 'queue', queue_name from pgmq.meta
        union all
        select 'binding', queue_name from pgmq.topic_bindings
        union all
        select 'throttle', queue_name from pgmq.notify_insert_throttle
    """
    return set(session.query(query))


def live(session: Session, listening: Session, name: str, create: str = "create") -> None:
    """The life of a queue, from before it is made until after it is dropped."""
    before = objects(session)
    assert_unknown(session, name)
    session(create, name)
    session(create, name)
    assert name in [row[0] for row in session("list_queues")]

    assert session("send", name, Jsonb({"name": "x"})) == [(1,)]
    assert session("send", name, Jsonb(2), 0) == [(2,)]
    assert session.query("select * from pgmq.send_batch(%s, array['3', '4']::jsonb[])", name) == [(3,), (4,)]
    assert [row[0] for row in session("read", name, 0, 1)] == [1]
    assert [row[0] for row in session("read", name, 0, 10)] == [1, 2, 3, 4]
    assert [row[0] for row in session("read", name, 0, 10, Jsonb({"name": "x"}))] == [1]
    assert [row[0] for row in session("read_with_poll", name, 30, 1, 1)] == [1]
    assert [row[0] for row in session("set_vt", name, 1, 0)] == [1]
    assert session("archive", name, 1) == [(True,)]
    assert session("delete", name, 2) == [(True,)]
    assert [row[0] for row in session("pop", name)] == [3]
    assert session("metrics", name)[0][:2] == (name, 1)
    assert name in [row[0] for row in session("metrics_all")]

    session("bind_topic", "a.*", name)
    assert (name,) in [row[1:2] for row in session("list_topic_bindings", name)]
    assert name in [row[1] for row in session("test_routing", "a.b")]
    assert session("send_topic", "a.b", Jsonb(5)) == [(1,)]
    rows = session.query("select * from pgmq.send_batch_topic('a.b', array['6', '7']::jsonb[])")
    assert [row[0] for row in rows] == [name, name]
    assert session("unbind_topic", "a.*", name) == [(True,)]

    ((channel,),) = session.query("select ('pgmq.q_' || %s::text || '.INSERT')::name::text", name)
    has_come = listener_of(listening, channel)
    session("enable_notify_insert", name, 0)
    session("update_notify_insert", name, 0)
    assert name in [row[0] for row in session("list_notify_insert_throttles")]
    session("send", name, Jsonb(8))
    eventually(has_come)

    session("create_fifo_index", name)
    for form in ("read_grouped", "read_grouped_rr", "read_grouped_head"):
        assert [row[0] for row in session(form, name, 0, 1)] == [4]
    session("create_fifo_indexes_all")
    session("compile", name)
    assert [row[0] for row in session("read", name, 0, 10)] == [4, 5, 6, 7, 8]
    session("disable_notify_insert", name)
    assert session("purge_queue", name) == [(5,)]
    assert session("drop_queue", name) == [(True,)]
    assert objects(session) == before


def assert_unknown(session: Session, name: str) -> None:
    """What there is not is named as it was given."""
    for function, arguments in {
        "send": [Jsonb(1)],
        "read": [0, 1],
        "metrics": [],
        "compile": [],
        "create_fifo_index": [],
        "enable_notify_insert": [],
        "purge_queue": [],
    }.items():
        with pytest.raises(errors.UndefinedTable) as refused:
            session(function, name, *arguments)
        message, hint = session.told(refused.value)
        quoted = name.replace('"', '""')
        assert message in (f"pgmq: queue {name} does not exist", f'pgmq: queue "{quoted}" does not exist')
        assert name in hint.replace("\\\\", "\\")
    assert session("drop_queue", name) == [(False,)]


NAMES = [(kind, name) for kind, (_, names) in DATABASES.items() for name in ASCII + names]


def identified(value: str) -> str:
    return ascii(value).strip("'")[:24]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=identified)
def test_a_queue_lives_under_a_name_of_the_database_s_letters(
    databases: Callable[[str], Database], kind: str, name: str
) -> None:
    with sessions(databases(kind), kind, name) as (session, listening):
        live(session, listening, name)


@pytest.mark.skipif(not PARTMAN, reason="pg_partman is missing")
@pytest.mark.parametrize("kind", DATABASES)
def test_a_queue_in_partitions_lives_under_such_a_name(databases: Callable[[str], Database], kind: str) -> None:
    name = DATABASES[kind][1][0]
    with sessions(databases(kind), kind, name) as (session, listening):
        live(session, listening, name, "create_partitioned")
        session("create", name)
        session("send", name, Jsonb(1))
        session("convert_archive_partitioned", name)
        assert session("archive", name, 1) == [(True,)]
        session("drop_queue", name)
        query = "select format('drop table pgmq.%%I', relname) from pg_class where relname = lower(%s)"
        ((drop,),) = session.query(query, f"a_{name}_old")
        session.connection.execute(drop.encode())


def test_bytes_that_are_no_text_of_python_work_or_are_refused_for_it(databases: Callable[[str], Database]) -> None:
    """A database in SQL_ASCII takes any bytes: here those of another encoding than UTF-8."""
    name = r"E'caf\xe9'"
    with sessions(databases("SQL_ASCII"), "SQL_ASCII", "after") as (session, _):
        before = objects(session)
        for function in ("create", "compile", "purge_queue", "enable_notify_insert", "create_fifo_index", "drop_queue"):
            try:
                session.connection.execute(f"select pgmq.{function}({name})")
            except errors.FeatureNotSupported as refused:
                assert session.told(refused)[0].startswith("pgmq: ")
            except (errors.CharacterNotInRepertoire, errors.UndefinedTable):
                pass
        session("create", "after")
        session("drop_queue", "after")
        assert objects(session) == before


@pytest.mark.parametrize("setting", [*SETTINGS, "all"])
def test_a_queue_lives_in_a_session_with_other_settings(databases: Callable[[str], Database], setting: str) -> None:
    name = 'Größe \\ "'
    with sessions(databases("UTF8"), "UTF8", name) as (session, listening):
        for known, value in SETTINGS.items():
            if setting in (known, "all"):
                session.connection.execute(f"set {known} = '{value}'")
        live(session, listening, name)


@pytest.mark.parametrize(("encoding", "name"), [("LATIN1", "café"), ("SJIS", "漢字"), ("GBK", "漢字")])
def test_a_client_has_another_encoding_than_the_database(
    databases: Callable[[str], Database], encoding: str, name: str
) -> None:
    """The server converts what comes and goes, and the messages of errors."""
    with sessions(databases("UTF8"), "UTF8", name) as (session, listening):
        session.connection.execute(f"set client_encoding = '{encoding}'")
        live(session, listening, name)
