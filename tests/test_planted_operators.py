"""Whoever may create in a schema on the search_path runs nothing in the calls of others.

PostgreSQL takes an operator or a function with exactly the types of a call before one of pg_catalog for which it would
have to cast. So one is planted for every such case: for each operator and function that the sources name, with each
combination of types that pg_catalog serves by a cast or as a polymorphic type. Each warns and then does what
pg_catalog's does. Whatever is called here, none of them may be run: it needs a cast to the exact type, an
operator(pg_catalog.||) or a pg_catalog.unnest() where the warning says so.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import psycopg
import pytest
from calls import NEED_A_QUEUE
from conftest import Database, eventually
from psycopg.types.json import Jsonb

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTMAN = os.environ.get("PGMQ_TEST_PARTMAN", "").split()

# What occurs in the extension's statements, and what has a cast to or from it.
SCALARS = [
    "smallint", "integer", "bigint", "real", "double precision", "numeric", "interval", "text", "varchar", "name",
    '"char"', "oid", "regclass", "regproc", "regprocedure", "regnamespace", "regrole", "regtype", "jsonb", "tid", "xid",
    "xid8", "timestamptz", "timestamp", "date", "boolean", "bytea", "uuid", "pg_snapshot",
]  # fmt: skip
ARRAYS = ["jsonb[]", "text[]", "varchar[]", "name[]", "bigint[]", "integer[]", "tid[]", "oid[]"]
# Where several arguments can have any type.
FEW = ["text", "name", "regclass", "bigint"]
# What SQL makes of IN, CASE, BETWEEN, LIKE and IS DISTINCT FROM.
IMPLIED = {"=", "<>", "<=", ">=", "~~", "!~~"}


def sources() -> str:
    files = [*(ROOT / "plpy").glob("*.py"), *(path for path in (ROOT / "sql").glob("*.sql") if "pgmq" not in path.name)]
    return "\n".join(path.read_text() for path in files)


class Candidate(NamedTuple):
    """What could be planted: how pg_catalog's own would be called in its place, and the statements that plant it.

    It is planted only where that call is one; @result@ is its type then.
    """

    probe: str
    statements: str


def handed(call: str, types: Sequence[str]) -> str:
    """The call with arguments of these types."""
    return re.sub(r"\$(\d)", lambda found: f"null::{types[int(found.group(1)) - 1]}", call)


def function(name: str, types: Sequence[str], result: str, body: str) -> str:
    return (
        f'create function public."{name}"({", ".join(types)}) returns {result}\n'
        f"language plpgsql set search_path = pg_catalog as $body$ begin {body}; end $body$;\n"
    )


def operator(name: str, types: Sequence[str], call: str, is_known: bool = True) -> Candidate:
    sides = ["leftarg", "rightarg"] if len(types) == 2 else ["rightarg"]
    signature = f" {name} ".join(types) if len(types) == 2 else f"{name} {types[0]}"
    handler = f"planted {signature}"
    # A constant without a type is of a type here that it need not fit.
    does = f"raise warning 'planted: {signature}'; return {call}" if is_known else f"raise 'planted: {signature}'"
    arguments = ", ".join(f"{side} = {one}" for side, one in zip(sides, types, strict=True))
    return Candidate(
        handed(call, types),
        function(handler.replace('"', '""'), types, "@result@", does)
        + f"""create operator public.{name} (function = public."{handler.replace('"', '""')}", {arguments})""",
    )


def operators(db: psycopg.Connection, types: dict[str, int]) -> Iterator[Candidate]:
    named = set(re.findall(r"[-+*/<>=~!@#%^&|`?]+", sources())) | IMPLIED
    query = "select oprname, array_agg(array[oprleft, oprright]) from pg_operator where oprname = any (%s) group by 1"
    for name, pairs in db.execute(query, [list(named)]).fetchall():
        exact = {tuple(pair) for pair in pairs}
        for one, other in itertools.product(types, types):
            if (types[one], types[other]) not in exact:
                yield operator(name, [one, other], f"$1 operator(pg_catalog.{name}) $2")
        for one in types:
            if (0, types[one]) not in exact:
                yield operator(name, [one], f"operator(pg_catalog.{name}) $1")
        for one in types:
            # A constant without a type is taken for one of the other side's type, or else for text.
            for unknown in {one, "text"}:
                if (types[one], types[unknown]) not in exact:
                    yield operator(name, [one, unknown], f"$1 operator(pg_catalog.{name}) null", is_known=False)
                if (types[unknown], types[one]) not in exact:
                    yield operator(name, [unknown, one], f"null operator(pg_catalog.{name}) $2", is_known=False)


def functions(db: psycopg.Connection, types: dict[str, int]) -> Iterator[Candidate]:
    casts = set(db.execute("select castsource, casttarget from pg_cast where castcontext = 'i'"))
    shown = dict(db.execute("select oid, format_type(oid, null) from pg_type"))
    found = db.execute(
        """
        select p.proname::text, p.prokind = 'a', p.proretset, p.proargtypes::oid[], p.pronargdefaults, p.provariadic
        from pg_proc as p
        where p.pronamespace = 'pg_catalog'::regnamespace
            and p.proname = any (%s)
            and p.prokind in ('f', 'a')
        """,
        [list(set(re.findall(r"\b([a-z_0-9]+)\s*\(", sources())))],
    ).fetchall()
    exact = {(name, *arguments) for name, _, _, arguments, _, _ in found}

    def fitting(argument: int, is_one_of_many: bool) -> list[tuple[str, str]]:
        """The types that can stand for an argument, each with how it is handed over."""
        name = shown[argument]
        if name in ("anyarray", "anycompatiblearray"):
            return [(array, "") for array in ARRAYS]
        if name.strip('"').startswith("any"):
            return [(one, "") for one in (FEW if is_one_of_many else types)]
        fit = [(one, "") for one, oid in types.items() if oid == argument or (oid, argument) in casts]
        # A constant without a type is taken for text where it can be.
        return fit if ("text", "") in fit else [*fit, ("text", "::" + name)]

    for name, is_aggregate, is_set, arguments, defaults, variadic in found:
        forms = [arguments[:count] for count in range(len(arguments) - defaults, len(arguments) + 1)]
        if variadic:
            forms = [[*arguments[:-1], *[variadic] * count] for count in (1, 2, 3)]
        for form in forms:
            is_many = sum(shown[argument].strip('"').startswith("any") for argument in form) > 1
            for chosen in itertools.product(*(fitting(argument, is_many) for argument in form)):
                given = [one for one, _ in chosen]
                if not given or (name, *(types[one] for one in given)) in exact:
                    continue
                call = ", ".join(f"${number}{cast}" for number, (_, cast) in enumerate(chosen, 1))
                call = f'pg_catalog."{name}"({call})'
                signature = f"{name}({', '.join(given)})"
                if is_aggregate:
                    # Of the others the result is NULL, as of no rows.
                    value = "pg_catalog.array_append($1, $2)" if name == "array_agg" else "null"
                    does = f"raise warning 'planted: {signature}'; return {value}"
                    statements = function(f"planted {signature}", ["@result@", *given], "@result@", does)
                    statements += f"""create aggregate public."{name}"({", ".join(given)})
                        (sfunc = public."planted {signature}", stype = @result@)"""
                else:
                    does = f"raise warning 'planted: {signature}'; return {'query select ' if is_set else ''}{call}"
                    statements = function(name, given, "setof @result@" if is_set else "@result@", does)
                yield Candidate(handed(call, given), statements)


PLANT = """
do $do$
declare
    candidate record;
    result text;
begin
    for candidate in select * from candidates loop
        begin
            execute 'select format_type(pg_typeof((select ' || candidate.probe || ' where false)), null)'
            into result;
            execute replace(candidate.statements, '@result@', result);
        exception
            -- Not a call of pg_catalog's or none of NULLs, the same once more, or what cannot be a function's.
            when undefined_function or ambiguous_function or duplicate_function or indeterminate_datatype
                or datatype_mismatch or invalid_text_representation or undefined_object or feature_not_supported
                or wrong_object_type or syntax_error or invalid_function_definition or undefined_parameter
                or null_value_not_allowed
            then null;
        end;
    end loop;
end
$do$
"""


def plant(db: psycopg.Connection) -> int:
    """Plant all that can be in schema public, and return how many operators and functions that were."""
    types = {name: db.execute("select %s::regtype::oid", [name]).fetchone()[0] for name in SCALARS + ARRAYS}
    # In their order: of two that are alike the first is planted.
    found = dict.fromkeys([*operators(db, types), *functions(db, types)])
    db.execute("create temp table candidates (probe text, statements text)")
    with db.cursor().copy("copy candidates from stdin") as copy:
        for candidate in found:
            copy.write_row(candidate)
    # Lest it run into its own traps.
    db.execute("set search_path = pg_catalog")
    db.execute(PLANT)
    query = """
        select (select count(*) from pg_operator where oprnamespace = n.oid)
            + (select count(*) from pg_proc where pronamespace = n.oid and not starts_with(proname, 'planted '))
        from pg_namespace as n
        where nspname = 'public'
    """
    return db.execute(query).fetchone()[0]


def told(error: psycopg.Error) -> str:
    """An error that no call has without what is planted, with where it is: a constant was read as of another type."""
    place = int(error.diag.internal_position or 1) - 1
    where = " ".join((error.diag.internal_query or "")[max(place - 40, 0) : place + 40].split())
    return f"error: {error.diag.message_primary} {where and f'at {where}'}".rstrip()


class Session:
    """A session in a database full of traps. It notes which of them were run by which statement."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.statement = ""
        self.run: dict[str, str] = {}
        connection.add_notice_handler(self.note)
        connection.execute("select pg_catalog.setseed(0.5)")

    def note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        found = re.match("planted: (.*)", diagnostic.message_primary or "")
        if found:
            self.run.setdefault(found.group(1), self.statement)

    def __call__(self, statement: str, *arguments: object, error: type[psycopg.Error] | None = None) -> list[tuple]:
        self.statement = statement
        if error is None:
            try:
                cursor = self.connection.execute(statement, arguments)
                return cursor.fetchall() if cursor.description else []
            except psycopg.Error as unexpected:
                self.run.setdefault(told(unexpected), statement)
                return []
        try:
            with pytest.raises(error):
                self.connection.execute(statement, arguments)
        except psycopg.Error as unexpected:
            self.run.setdefault(told(unexpected), statement)
        return []


@pytest.fixture(scope="module")
def trapped_database(make_database: Callable[..., Database]) -> Database:
    database = make_database()
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("set client_min_messages = error")
        if PARTMAN:
            connection.execute("create schema parts")
            connection.execute(f"create extension pg_partman schema parts version '{PARTMAN[-1]}'")
        connection.execute("grant create on schema public to public")
        for name in ("older", "other"):
            connection.execute("select pgmq.create(%s)", [name])
        connection.execute("select pgmq.enable_notify_insert('older', 0)")
        assert plant(connection) > 2000
        # Some of each kind, lest a change of this file go unnoticed.
        for planted in ("*(integer,interval)", "||(bigint[],bigint[])", "->>(jsonb,jsonb)", "=(varchar,text)"):
            assert connection.execute("select to_regoperator(%s)", [f"public.{planted}"]).fetchone() != (None,), planted
        for planted in (
            "setval(text, bigint)",
            "lower(varchar)",
            "unnest(jsonb[])",
            "array_agg(tid)",
            "format(text,name)",
        ):
            assert connection.execute("select to_regprocedure(%s)", [f"public.{planted}"]).fetchone() != (None,), (
                planted
            )
    return database


@pytest.fixture
def session(trapped_database: Database) -> Iterator[Session]:
    """A superuser's session. Nothing planted may be run in it."""
    session = Session(trapped_database.connect())
    yield session
    trapped_database.close()


def assert_nothing_was_run(session: Session) -> None:
    if session.run:
        pytest.fail("\n".join(f"{planted}:  {statement}" for planted, statement in sorted(session.run.items())), False)


JSON = Jsonb({"a": 1})
GROUP = Jsonb({"x-pgmq-group": "g"})
FORMS = ("read_grouped", "read_grouped_rr", "read_grouped_head")


def use(session: Session, name: str) -> None:
    """Everything that one can do with a queue that is there, on all the ways through its functions."""
    for statement in NEED_A_QUEUE.values():
        session(statement, name)
    session("select pgmq.send_batch(%s, array_fill('1'::jsonb, array[60]))", name)
    session("select pgmq.send_batch(%s, array[%s, '2'], array[%s, null]::jsonb[])", name, JSON, GROUP)
    session("select pgmq.send(%s, %s, %s, 1)", name, JSON, GROUP)
    session("select pgmq.send(%s, %s, %s, now() + interval '1 day')", name, JSON, GROUP)
    for _ in range(2):
        # Often enough for what one read in many does.
        for _ in range(90):
            session("select pgmq.read(%s, 0, 1)", name)
        for quantity in (1, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 100):
            session("select pgmq.read(%s, 0, %s)", name, quantity)
        session("select pgmq.read(%s, 0, 3, '{\"a\": 1}')", name)
        session("select pgmq.read_with_poll(%s, 0, 3, 1, 10, '{\"a\": 1}')", name)
        for form in FORMS:
            session(f"select pgmq.{form}(%s, 0, 3)", name)
            session(f"select pgmq.{form}(%s, 0, null)", name)
            session(f"select pgmq.{form}_with_poll(%s, 0, 3, 1, 10)", name)
        for _ in range(12):
            session("select pgmq.pop(%s)", name)
        session("select pgmq.pop(%s, 3)", name)
        session("select pgmq.set_vt(%s, 40, -1)", name)
        session("select pgmq.set_vt(%s, 41, 100)", name)
        session("select pgmq.set_vt(%s, array[42, 43], now() - interval '1 day')", name)
        session("select pgmq.archive(%s, array[44, 45])", name)
        session("select pgmq.archive(%s, 46)", name)
        session("select pgmq.delete(%s, 47)", name)
        session("select pgmq.delete(%s, array[48, 49])", name)
        session("select pgmq.send_batch(%s, array_fill('3'::jsonb, array[60]))", name)
    session("select pgmq.create_fifo_index(%s)", name)
    session(
        "select pgmq.send_batch(%s, array_fill('4'::jsonb, array[20]), array_fill(%s::jsonb, array[20]))", name, GROUP
    )
    for form in FORMS:
        session(f"select pgmq.{form}(%s, 0, 3)", name)
        session(f"select pgmq.{form}(%s, 100, 2)", name)
    session("select pgmq.metrics(%s)", name)
    session("select pgmq.metrics_all()")
    session("select pgmq.purge_queue(%s)", name)
    # Nothing is there.
    session("select pgmq.read(%s, 0, 1)", name)
    session("select pgmq.pop(%s, 5)", name)
    for form in FORMS:
        session(f"select pgmq.{form}(%s, 0, 3)", name)


KINDS = {
    "plain": "select pgmq.create(%s)",
    "unlogged": "select pgmq.create_unlogged(%s)",
    "Ünlike x": "select pgmq.create_non_partitioned(%s)",
}
if PARTMAN:
    KINDS["by_id"] = "select pgmq.create_partitioned(%s, '100', '10000')"
    KINDS["by_time"] = "select pgmq.create_partitioned(%s, '1 day', '7 days')"


@pytest.mark.parametrize("name", KINDS)
def test_nothing_planted_is_run_in_the_life_of_a_queue(session: Session, name: str) -> None:
    session(KINDS[name], name)
    # pg_partman sets it.
    session("reset search_path")
    session("select pgmq.enable_notify_insert(%s, 0)", name)
    session("select pgmq.update_notify_insert(%s, 100)", name)
    use(session, name)
    session("select pgmq.compile(%s)", name)
    session("select pgmq.disable_notify_insert(%s)", name)
    session("select pgmq.drop_queue(%s)", name)
    assert_nothing_was_run(session)


def test_nothing_planted_is_run_where_very_many_messages_are_due(session: Session) -> None:
    session("select pgmq.send_batch('other', array_fill('1'::jsonb, array[1100]))")
    session("select count(*) from pgmq.read('other', 0, 1100)")
    for quantity in (1, 5, 5, 2000):
        session("select count(*) from pgmq.read('other', 0, %s)", quantity)
        session("select count(*) from pgmq.read('other', 0, %s, '1')", quantity)
        session("select pgmq.read_grouped('other', 0, 3)")
    session("select pgmq.set_vt('other', array[1, 2], 0)")
    session("select pgmq.pop('other')")
    assert_nothing_was_run(session)


def test_nothing_planted_is_run_in_a_queue_that_is_older_than_it(session: Session) -> None:
    use(session, "older")
    session("select pgmq.create_fifo_indexes_all()")
    assert_nothing_was_run(session)


def test_nothing_planted_is_run_by_a_role_with_grants(
    trapped_database: Database, session: Session, make_role: Callable[..., str]
) -> None:
    """What it keeps for the readers to come, it keeps in another way than the owner does."""
    role = make_role()
    session("select pgmq.create('granted')")
    session(f"grant usage on schema pgmq to {role}")
    session(f"grant select, insert, update, delete on pgmq.q_granted to {role}")
    session(f"grant select, insert on pgmq.a_granted to {role}")
    granted = Session(trapped_database.connect(role))
    granted("select pgmq.send_batch('granted', array_fill('1'::jsonb, array[1000]))")
    for form in (
        "read('granted', 0, 8)",
        "read('granted', 0, 1)",
        "pop('granted', 8)",
        "read_grouped('granted', 0, 8)",
    ):
        for _ in range(40):
            granted(f"select pgmq.{form}")
    granted("select pgmq.archive('granted', 400)")
    granted("select pgmq.set_vt('granted', 401, 0)")
    granted("select pgmq.purge_queue('granted')")
    session("select pgmq.drop_queue('granted')")
    assert_nothing_was_run(session)
    assert_nothing_was_run(granted)


def test_nothing_planted_is_run_by_topics(session: Session) -> None:
    session("select pgmq.create('Bound')")
    session("select pgmq.bind_topic('a.*', 'bound')")
    session("select pgmq.bind_topic('a.#', 'BOUND')")
    session("select pgmq.bind_topic('a.b', 'older')")
    for _ in range(2):
        session("select pgmq.send_topic('a.b', %s)", JSON)
        session("select pgmq.send_topic('a.b', %s, 1)", JSON)
        session("select pgmq.send_topic('a.b', %s, %s, 1)", JSON, GROUP)
        for more in ("", ", 1", ", now()", ", array[%s]", ", array[%s], 1", ", array[%s], now()"):
            given = [GROUP] if "%s" in more else []
            session(f"select pgmq.send_batch_topic('a.b', array[%s]::jsonb[]{more})", JSON, *given)
        session("select pgmq.test_routing('a.b')")
        session("insert into pgmq.topic_bindings (pattern, queue_name) values ('x', 'older')")
        session("update pgmq.topic_bindings set pattern = 'y' where pattern operator(pg_catalog.=) 'x'::text")
        session("delete from pgmq.topic_bindings where pattern operator(pg_catalog.=) 'y'::text")
    session("select pgmq.list_topic_bindings()")
    session("select pgmq.list_topic_bindings('bound')")
    session("select pgmq.validate_topic_pattern('a.*')")
    session("select pgmq.validate_routing_key('a.b')")
    session("select pgmq.unbind_topic('a.b', 'OLDER')")
    session("update pgmq.meta set queue_name = 'BOUND' where queue_name::text operator(pg_catalog.=) 'Bound'::text")
    session("select pgmq.drop_queue('bound')")
    session("truncate pgmq.topic_bindings")
    assert_nothing_was_run(session)


def test_nothing_planted_is_run_by_the_rest(trapped_database: Database, session: Session) -> None:
    session("select pgmq.create('rest')")
    session("select pgmq.list_queues()")
    session("select pgmq.enable_notify_insert('rest', 1000)")
    session("select pgmq.list_notify_insert_throttles()")
    listener = trapped_database.connect()
    listener.execute('listen "pgmq.q_rest.INSERT"')
    session("select pgmq.send('rest', '1')")
    session("insert into pgmq.q_rest (vt, message) select now(), '2'")
    eventually(lambda: list(listener.notifies(timeout=0.01, stop_after=1)))
    session(
        "create trigger old after insert on pgmq.q_rest for each row execute function pgmq.notify_queue_listeners()"
    )
    session("insert into pgmq.q_rest (vt, message) select now(), '3'")
    session("select pgmq.enable_notify_insert('rest', 0)")
    session("select pgmq.detach_archive('rest')")
    session("select pgmq.acquire_queue_lock('rest')")
    session("select pgmq.validate_queue_name('rest')")
    session("select pgmq.format_table_name('rest', 'q')")
    session("select pgmq.create('rest')")
    if PARTMAN:
        session("select pgmq.archive('rest', 1)")
        session("select pgmq.convert_archive_partitioned('rest', '10', '100')")
        session("select pgmq.convert_archive_partitioned('rest', '10', '100')")
        session("select pgmq.archive('rest', 2)")
    session("select pgmq.drop_queue('rest', true)")
    session("select pgmq.drop_queue('rest')")
    assert_nothing_was_run(session)


def test_nothing_planted_is_run_by_what_is_refused(session: Session) -> None:
    for statement in NEED_A_QUEUE.values():
        session(statement, "nowhere", error=psycopg.Error)
        session(statement, "a;b", error=psycopg.Error)
        session(statement, "a" * 48, error=psycopg.Error)
        session(statement, None, error=psycopg.Error)
    for statement in (
        "select pgmq.send('older', '1', null::integer)",
        "select pgmq.send('older', '1', null::timestamptz)",
        "select pgmq.send_batch('older', null)",
        "select pgmq.send_batch('older', '{}')",
        "select pgmq.send_batch('older', array['1']::jsonb[], '{}'::jsonb[])",
        "select pgmq.read('older', null, 1)",
        "select pgmq.read('older', 1, -1)",
        "select pgmq.pop('older', -1)",
        "select pgmq.set_vt('older', 1, null::integer)",
        "select pgmq.bind_topic('a..b', 'older')",
        "select pgmq.bind_topic('**', 'older')",
        "select pgmq.bind_topic('a', 'nowhere')",
        "select pgmq.bind_topic(repeat('a', 256), 'older')",
        "select pgmq.validate_routing_key(null)",
        "select pgmq.unbind_topic(null, 'older')",
        "select pgmq.send_topic('a.*', '1')",
        "select pgmq.send_topic('a', null)",
        "select pgmq.send_topic('a', '1', -1)",
        "select pgmq.enable_notify_insert('nowhere')",
        "select pgmq.enable_notify_insert('older', -1)",
        "select pgmq.update_notify_insert('other', 1)",
        "select pgmq.create_partitioned('new', 'x', 'y')",
        "insert into pgmq.topic_bindings (pattern, queue_name) values ('x', 'nowhere')",
    ):
        session(statement, error=psycopg.Error)
    assert_nothing_was_run(session)


def test_every_public_function_is_called_here(db: psycopg.Connection) -> None:
    text = "\n".join([pathlib.Path(__file__).read_text(), *NEED_A_QUEUE.values()])
    called = set(re.findall(r"pgmq\.(\w+)\(", text)) | {form + end for form in FORMS for end in ("", "_with_poll")}
    public = db.execute(
        "select distinct proname::text from pg_proc where pronamespace = 'pgmq'::regnamespace and proname !~ '^_|[$]'"
    )
    assert {name for (name,) in public} - called == set()
