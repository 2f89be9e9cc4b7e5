"""Every public function with arguments that nobody thinks of: what it refuses, it refuses as its comment says.

The calls are the same in every run. Each is rolled back, and when all have been made the database is as it was.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator

import psycopg
import pytest
from conftest import Database, call
from psycopg import sql
from psycopg.types.json import Jsonb
from test_queues import objects

PARTMAN = os.environ.get("PGMQ_TEST_PARTMAN", "").split()

QUEUES = ["plain", "fifo", "Größe 漢", "notifying", "unlogged"]
TEXTS = [
    None, "", " ", "x", "new", 'a"b', "a'b", "a$b", "a;b", "a--b", "\\", "a\\'b", "%s %I {} {0}", "@queue@", "\n\t\r",
    "🐘", "\u0301", "İ", "a" * 47, "a" * 48, "Ä" * 47, "漢" * 30, "x" * 100_000, "null", "pgmq", "plain$send",
]  # fmt: skip
TOPICS = [
    None, "", "a", "a.b", "a.*", "#", "*.#", "**", "a..b", ".a", "a.", "a" * 255, "a" * 256, "ä", "a b", "a.b" * 33_000,
    ".".join("*" * 100), ".".join("#" * 60), "a\n", "\\", "%",
]  # fmt: skip
SPANS = [
    None, "", "10", "1", "0", "-1", "1 day", "1 second", "1 millisecond", "-1 day", "infinity", "1e3", "x", "9" * 18,
    "9" * 30, "9" * 5000, "1 day" + " " * 200, "x" * 100_000, "\u0661\u0660", "10\n", "1 year 1 day", "178000000 years",
    "P1D",
]  # fmt: skip
INTEGERS = [None, 0, 1, -1, 2, 3, 7, 100, 1000, 2**31 - 1, -(2**31)]
# What would only take long.
SHORT = [None, 0, -1, 1, 2, -(2**31)]
BIGINTS = [None, 0, 1, -1, 2, 3, 5, 2**31, 2**63 - 1, -(2**63)]
TIMES = [None, "now", "infinity", "-infinity", "4713-01-01 BC", "294276-12-31", "epoch", "2000-01-01", "tomorrow"]
JSON = [
    None, "null", "{}", "[]", "1", '"x"', "true", "-0", "1e131071", '{"x-pgmq-group": "g"}', '{"x-pgmq-group": null}',
    '{"x-pgmq-group": {"a": [1]}}', json.dumps({"x-pgmq-group": "g" * 100_000}), '{"a": "\\u0000"}',
    json.dumps({"'\\$": "'\\$"}), "[" * 2000 + "]" * 2000, json.dumps("x" * 100_000), '{"": 1}', '{"a": 1, "a": 2}',
]  # fmt: skip
ARRAYS = [
    "{}",
    "{NULL}",
    "{1}",
    "{1,2,3}",
    "{NULL,1,NULL}",
    "{{1,2},{3,4}}",
    "[0:1]={1,2}",
    "[-5:-3]={1,2,3}",
    "{{{1}}}",
]
JSON_ARRAYS = [None, *ARRAYS, "{" + "1," * 999 + "1}", '{"{}"}', '{"{}","[]","null"}']
ID_ARRAYS = [
    None, *ARRAYS, "{3,2,1,1}", "{0,-1,9223372036854775807,-9223372036854775808}", "{" + "7," * 4999 + "2}"
]  # fmt: skip
BY_NAME = {
    "pattern": TOPICS,
    "routing_key": TOPICS,
    "partition_interval": SPANS,
    "retention_interval": SPANS,
    "max_poll_seconds": [None, 0, -1, -(2**31)],
    "premake": SHORT,
    "leading_partition": SHORT,
    "prefix": [None, "q", "a", "", "x'", "Ä" * 40, "q" * 100_000],
}
BY_TYPE = {
    "text": TEXTS,
    "integer": INTEGERS,
    "bigint": BIGINTS,
    "timestamp with time zone": TIMES,
    "jsonb": JSON,
    "jsonb[]": JSON_ARRAYS,
    "bigint[]": ID_ARRAYS,
    "boolean": [None, True, False],
}
# What nobody refuses.
GOOD = {
    "queue_name": QUEUES,
    "table_name": QUEUES,
    "pattern": ["a.*", "#"],
    "routing_key": ["a.b", "a.c"],
    "partition_interval": ["10"],
    "retention_interval": ["100"],
    "prefix": ["q", "a"],
    "max_poll_seconds": [0],
    "integer": [1, 2],
    "bigint": [1, 2],
    "timestamp with time zone": ["now"],
    "jsonb": ["1", "{}"],
    "jsonb[]": ["{1,2}"],
    "bigint[]": ["{1,2}"],
    "boolean": [True],
}
# How often these are called, beside 1.
RARE = {"create_fifo_indexes_all": 0.1, "metrics_all": 0.3}

# What the server says of arguments before a function has them, or when it counts with them: a number or a time that is
# out of range, a JSON text that no jsonb can hold.
GENERAL = {"22003", "22008", "22P02", "22P05"}


class Function:
    """A public function: its arguments, and the errors that its comment names."""

    def __init__(
        self, signature: str, name: str, names: list[str], types: list[str], defaults: int, comment: str
    ) -> None:
        self.signature = signature
        self.name = name
        self.arguments = list(zip(names, types, strict=True))
        self.defaults = defaults
        self.comment = comment

    def call(self, choose: random.Random, is_good: bool) -> tuple[str, list[object]]:
        count = len(self.arguments) - choose.randint(0, self.defaults)
        marks, values = [], []
        for name, type_name in self.arguments[:count]:
            pool = BY_NAME.get(name, BY_TYPE[type_name])
            # Most calls name a queue that is there: else all would fail at once.
            if is_good or (name in ("queue_name", "table_name") and choose.random() < 0.6):
                pool = GOOD.get(name, GOOD.get(type_name, pool))
            if is_good and self.name == "create_partitioned" and name == "queue_name":
                pool = ["new"]
            marks.append(f"%s::{type_name}")
            values.append(choose.choice(pool))
        return f"select t::text from pgmq.{self.name}({', '.join(marks)}) as t", values


def public_functions(db: psycopg.Connection) -> list[Function]:
    query = """
        select p.oid::regprocedure::text, p.proname::text,
            coalesce(p.proargnames[1:p.pronargs], '{}'),
            array(select format_type(t, null) from unnest(p.proargtypes) as t),
            p.pronargdefaults, obj_description(p.oid, 'pg_proc')
        from pg_proc as p
        where p.pronamespace = 'pgmq'::regnamespace
            and p.proname !~ '^_|[$]'
            and p.prorettype <> 'trigger'::regtype
        order by 1
    """
    return [Function(*row) for row in db.execute(query)]


def documented(functions: list[Function]) -> dict[str, set[str]]:
    """The SQLSTATEs that each function's comment names, itself or by sending the reader to another's."""
    comments: dict[str, str] = defaultdict(str)
    for function in functions:
        comments[function.name] += function.comment + "\n"
        # Its comment says so for all that take a name.
        if any(argument in ("queue_name", "table_name") for argument, _ in function.arguments):
            comments[function.name] += "as validate_queue_name\n"

    def of(name: str, seen: set[str]) -> set[str]:
        states = set(re.findall(r"\b[0-9P][0-9A-Z]{4}\b", comments[name]))
        for other in re.findall(r"\b(?:[Aa]s|and|of|More:) ([a-z_]+)\b", comments[name]):
            if other in comments and other not in seen:
                states |= of(other, seen | {other})
        return states

    return {name: of(name, {name}) for name in list(comments)}


@pytest.fixture(scope="module")
def fuzzed_database(make_database: Callable[..., Database]) -> Database:
    database = make_database()
    with psycopg.connect(database.dsn, autocommit=True) as db:
        db.execute("set client_min_messages = error")
        if PARTMAN:
            db.execute("create schema parts")
            db.execute(f"create extension pg_partman schema parts version '{PARTMAN[-1]}'")
        for name in QUEUES:
            call(db, "create_unlogged" if name == "unlogged" else "create", name)
            for n in range(6):
                call(db, "send", name, Jsonb({"a": n}), Jsonb({"x-pgmq-group": str(n % 2)}))
            call(db, "read", name, 0, 2)
            call(db, "archive", name, 1)
            call(db, "bind_topic", "a.*", name)
        call(db, "create_fifo_index", "fifo")
        for name in ("notifying", "fifo", "unlogged"):
            call(db, "enable_notify_insert", name, 0)
    return database


@pytest.fixture
def database(fuzzed_database: Database) -> Iterator[Database]:
    yield fuzzed_database
    fuzzed_database.close()


def state(db: psycopg.Connection) -> list[object]:
    """All that the calls could have left: objects, rows, locks, settings."""
    tables = db.execute(
        """
        select c.oid::regclass::text from pg_class as c
        where c.relkind in ('r', 'p')
            and c.relnamespace::regnamespace::text in ('pgmq', 'parts')
        order by 1
        """
    ).fetchall()
    query = "select {}, count(*), md5(string_agg(t::text, ',' order by t::text)) from {} as t"
    rows = [db.execute(sql.SQL(query).format(name, sql.SQL(name))).fetchall() for (name,) in tables]
    catalogs = db.execute(
        """
        select 'function', oid::regprocedure::text, concat_ws(' ', md5(prosrc), proowner, proacl, prosecdef, proconfig)
        from pg_proc
        where pronamespace = 'pgmq'::regnamespace
        union all
        select 'relation', oid::regclass::text, concat_ws(' ', relkind, relowner, relacl, reloptions) from pg_class
        where relnamespace <> 'pg_toast'::regnamespace
        union all
        select 'trigger', tgname::text, tgrelid::regclass::text from pg_trigger
        union all
        select 'type', oid::regtype::text, '' from pg_type
        order by 1, 2, 3
        """
    ).fetchall()
    locks = db.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchall()
    return [objects(db), rows, catalogs, locks]


def run(session: psycopg.Connection, functions: list[Function], seed: int, count: int) -> dict[str, dict[str, int]]:
    """Make so many calls, and count for each function how they ended.

    By SQLSTATE, 00000 where it worked; beside that, "wrote" where it did and had written something.
    """
    choose = random.Random(seed)
    weights = [RARE.get(function.name, 1) for function in functions]
    known = documented(functions)
    ends: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    unexpected: dict[tuple[str, str], str] = {}
    # Each has some good calls first.
    for number, function in enumerate(functions * 4 + choose.choices(functions, weights, k=count)):
        statement, values = function.call(choose, is_good=number < len(functions) * 4 or choose.random() < 0.2)
        end = "00000"
        try:
            with session.transaction(force_rollback=True):
                session.execute(statement, values).fetchall()
                (wrote,) = session.execute("select pg_current_xact_id_if_assigned() is not null").fetchone()
                ends[function.signature]["wrote"] += wrote
        except psycopg.Error as error:
            end = error.sqlstate or type(error).__name__
            if end not in known[function.name] | GENERAL:
                shown = [value if len(repr(value)) < 60 else repr(value)[:60] for value in values]
                text = f"{end} {str(error).splitlines()[0][:200]}: {statement} {shown}"
                unexpected.setdefault((end, function.name), text)
        ends[function.signature][end] += 1
    if unexpected:
        pytest.fail("\n".join(["not as documented:", *sorted(unexpected.values())]), pytrace=False)
    return ends


@pytest.mark.parametrize("seed", [1, 2])
def test_no_call_fails_but_as_the_comment_says_and_none_leaves_anything(
    database: Database, db: psycopg.Connection, seed: int
) -> None:
    functions = public_functions(db)
    assert len(functions) > 60
    before = state(db)
    session = database.connect()
    session.execute("set statement_timeout = '20s'")
    settings = set(session.execute("select name, setting from pg_settings"))
    ends = run(session, functions, seed, 1000)
    assert settings - set(session.execute("select name, setting from pg_settings")) == set()
    assert state(db) == before
    # The session is as good as new.
    with session.transaction(force_rollback=True):
        assert call(session, "send_topic", "a.b", Jsonb(1)) == [(len(QUEUES),)]
        assert call(session, "create", "another") == [("",)]
        assert call(session, "drop_queue", "another") == [(True,)]
    # What is never done is not tested.
    never = {function.signature for function in functions if not ends[function.signature]["00000"]}
    assert {signature for signature in never if PARTMAN or "_partitioned" not in signature} == set()


def test_a_role_with_usage_alone_writes_nothing_whatever_it_calls(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    functions = public_functions(db)
    for function in functions:
        function.comment += " 42501"
    before = state(db)
    session = database.connect(role)
    session.execute("set statement_timeout = '20s'")
    ends = run(session, functions, 3, 1000)
    assert sum(counts["42501"] for counts in ends.values()) > 200
    assert {signature for signature, counts in ends.items() if counts["wrote"]} == set()
    assert state(db) == before
