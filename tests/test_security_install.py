"""What a role plants before an install or an update, or does to the extension's objects after it, gains it nothing.

Each attack proves by a sequence whether anything of the attacker's has run with a superuser's rights: what nextval did
stays done when the statement fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from conftest import Database, call, error_of, eventually, unique
from psycopg import errors
from test_release import described, from_reference
from test_sessions import SCRIPT, every_verb, psql
from test_takeover import UPDATE

MakeDatabase = Callable[..., Database]
MakeRole = Callable[..., str]

LISTS = ("meta", "topic_bindings", "topic_version", "notify_insert_throttle", "dispatch_lock")


@dataclasses.dataclass
class Attacker:
    """A role in a database with functions that count how often they have run with a superuser's rights."""

    role: str
    session: psycopg.Connection
    superuser: psycopg.Connection
    schema: str = "evil"

    def __post_init__(self) -> None:
        self.superuser.execute(f"create schema {self.schema} authorization {self.role}")
        self.superuser.execute(f"grant usage on schema {self.schema} to public")
        self.session.execute(f"""
            create sequence {self.schema}.ran;
            grant all on sequence {self.schema}.ran to public;
            create function {self.schema}.run(value integer) returns boolean immutable language plpgsql as $$
            begin
                if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
                    perform pg_catalog.nextval('{self.schema}.ran');
                end if;
                return true;
            end
            $$;
            create function {self.schema}.trigger() returns trigger language plpgsql as $$
            begin
                perform {self.schema}.run(1);
                return new;
            end
            $$
        """)

    def has_run(self) -> bool:
        return self.superuser.execute(f"select is_called from {self.schema}.ran").fetchone()[0]

    def tries(self, *statements: str) -> list[str]:
        """Goes on after a statement that is refused; which were is returned."""
        return [statement for statement in statements if refusal(self.session, statement)]


def refusal(session: psycopg.Connection, *statements: str) -> psycopg.Error | None:
    """The error of the first statement that fails. What the ones before it did has not been undone."""
    try:
        with contextlib.ExitStack() as stack:
            if session.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
                stack.enter_context(session.transaction())
            for statement in statements:
                session.execute(statement)
    except psycopg.Error as error:
        return error
    return None


def primary(error: psycopg.Error | None) -> str:
    return error.diag.message_primary if error else "no error"


def remedy(error: psycopg.Error | None) -> str:
    """The statement that the hint of a refusal gives."""
    return re.search(r"(?:Drop|Remove) it \((.+)\)(?:,| or)", error.diag.message_hint).group(1)


@pytest.fixture
def bare(make_database: MakeDatabase) -> Database:
    """A database with PL/Python and no more."""
    database = make_database(extension=False)
    database.connect().execute("create extension plpython3u")
    return database


@pytest.fixture
def attacker(bare: Database, make_role: MakeRole) -> Iterator[Attacker]:
    role = make_role()
    bare.connect().execute(f"grant create on database {bare.name} to {role}")
    yield Attacker(role, bare.connect(role), bare.connect())
    bare.close()


def test_the_proof_sees_what_runs_as_a_superuser(attacker: Attacker) -> None:
    attacker.session.execute("select evil.run(1)")
    assert not attacker.has_run()
    with pytest.raises(errors.DivisionByZero):
        attacker.superuser.execute("select evil.run(1), 1 / 0")
    assert attacker.has_run()


# CREATE EXTENSION


def test_only_a_superuser_creates_the_extension(attacker: Attacker) -> None:
    with pytest.raises(errors.InsufficientPrivilege, match="permission denied to create extension"):
        attacker.session.execute("create extension pgmq")


def test_default_privileges_give_nobody_a_trigger_on_what_privileged_functions_write(attacker: Attacker) -> None:
    db = attacker.superuser
    db.execute(f"alter default privileges grant all on tables to {attacker.role}")
    db.execute("create extension pgmq")
    db.execute(f"grant usage on schema pgmq to {attacker.role}")
    triggers = [
        f"create trigger t before insert or update or delete on pgmq.{table} execute function evil.trigger()"
        for table in LISTS
    ]
    refused = attacker.tries(*triggers)
    # Functions of the superuser's write them.
    for statement in (
        "insert into pgmq.meta values ('q', false, false)",
        "insert into pgmq.topic_bindings values ('a', 'q')",
        "insert into pgmq.notify_insert_throttle values ('q')",
        "update pgmq.meta set queue_name = 'r'",
        "delete from pgmq.meta",
    ):
        attacker.session.execute(statement)
    assert not attacker.has_run()
    assert refused == triggers
    # And nobody can lock what the direct calls are written under, or make a topic's version up.
    for statement in ("insert into pgmq.topic_version values (default, false)", "lock table pgmq.dispatch_lock"):
        with pytest.raises(errors.InsufficientPrivilege):
            attacker.session.execute(f"begin; {statement}")
        attacker.session.execute("rollback")


RENAME = (
    "alter schema pgmq rename to old",
    "create schema pgmq",
    """
    create function pgmq._load() returns void language plpgsql as
    $$begin perform evil.run(1); perform pg_catalog.set_config('search_path', 'old', false); end$$
    """,
    "create function pgmq.delete(text, bigint) returns boolean language sql as 'select evil.run(1)'",
    "create table pgmq.topic_version (version uuid default gen_random_uuid(), is_open boolean)",
    "create trigger t before insert on pgmq.topic_version for each row execute function evil.trigger()",
    "select old._dispatch()",
    "insert into old.meta values ('q', false, false)",
    "insert into old.topic_bindings values ('a', 'q')",
)


@pytest.mark.parametrize("after", ["create", "psql", "update"])
def test_the_former_owner_of_the_schema_cannot_put_another_in_its_place(
    attacker: Attacker, bare: Database, make_database: MakeDatabase, make_role: MakeRole, after: str
) -> None:
    db, friend = attacker.superuser, make_role()
    if after == "update":
        database = from_reference(make_database, role=attacker.role)
        db = database.connect()
        attacker = Attacker(attacker.role, database.connect(attacker.role), db)
        db.execute(UPDATE)
    else:
        attacker.session.execute("create schema pgmq")
        attacker.session.execute(f"grant all on schema pgmq to {friend}")
        if after == "create":
            db.execute("create extension pgmq")
        else:
            assert psql(bare, SCRIPT).returncode == 0
    may = "select p from unnest('{usage,create}'::text[]) as p where has_schema_privilege(%s, 'pgmq', p)"
    left = [[row[0] for row in db.execute(may, [role.strip('"')])] for role in (attacker.role, friend)]
    db.execute(f"grant usage on schema pgmq to {attacker.role}")
    db.execute(f"grant select, insert on pgmq.meta, pgmq.topic_bindings to {attacker.role}")
    refused = attacker.tries(*RENAME)
    assert not attacker.has_run()
    assert RENAME[0] in refused
    # The former owner of the extension goes on making queues; that of a mere schema has no more to say.
    assert left == ([["usage", "create"], []] if after == "update" else [[], ["usage"]])


def test_what_a_superuser_granted_on_the_schema_stays_when_the_extension_is_created_again(bare: Database) -> None:
    db = bare.connect()
    db.execute("create extension pgmq; grant create on schema pgmq to pg_monitor")
    db.execute("drop extension pgmq; create extension pgmq")
    assert db.execute("select has_schema_privilege('pg_monitor', 'pgmq', 'create')").fetchone() == (True,)


# What a role can make in a schema of its own, and how the refusal names it.
PLANTS = {
    "function pgmq.to_timestamp(integer)": """
        create function pgmq.to_timestamp(integer) returns timestamptz language sql
        as 'select case when evil.run($1) then pg_catalog.now() end'
    """,
    "function pgmq.delete(text,integer)": "create procedure pgmq.delete(text, integer) language sql as ''",
    'function pgmq."a$b"()': """create function pgmq."a$b"() returns void language sql as ''""",
    "function pgmq.length(text)": "create aggregate pgmq.length(text) (sfunc = textcat, stype = text)",
    "type pgmq.timestamptz": "create type pgmq.timestamptz as enum ('now')",
    "type pgmq.text": "create domain pgmq.text as pg_catalog.text check (evil.run(1))",
    "type pgmq.metrics_result": "create type pgmq.metrics_result as (queue_name text)",
    "operator pgmq.*(integer,integer)": """
        create operator pgmq.* (leftarg = integer, rightarg = integer, function = pg_catalog.int4mul)
    """,
    'collation pgmq."default"': 'create collation pgmq."default" from "C"',
    "conversion pgmq.c": "create conversion pgmq.c for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8",
    "text search configuration pgmq.simple": "create text search configuration pgmq.simple (copy = simple)",
    "text search dictionary pgmq.simple": "create text search dictionary pgmq.simple (template = simple)",
}


def test_a_schema_that_holds_what_could_be_meant_instead_is_refused(attacker: Attacker) -> None:
    db = attacker.superuser
    db.execute(f"create schema pgmq authorization {attacker.role}")
    for what, plant in PLANTS.items():
        attacker.session.execute(plant)
        refused = refusal(db, "create extension pgmq")
        assert primary(refused) == f"pgmq: schema pgmq holds {what}, which belongs to role {attacker.role}"
        assert isinstance(refused, errors.ObjectNotInPrerequisiteState)
        db.execute(remedy(refused))
    db.execute("create extension pgmq")
    assert not attacker.has_run()


def test_an_install_resolves_no_name_in_a_schema_of_others(attacker: Attacker, bare: Database) -> None:
    """The script of psql, where everybody may create in public."""
    db = attacker.superuser
    db.execute("grant all on schema public to public")
    attacker.session.execute(PLANTS["function pgmq.to_timestamp(integer)"].replace("pgmq.", "public."))
    result = psql(bare, SCRIPT)
    assert result.returncode == 0, result.stderr
    call(db, "create", "q")
    call(db, "enable_notify_insert", "q")
    every_verb(db, "q")
    assert not attacker.has_run()
    foreign = db.execute("""
        select pg_describe_object(d.classid, d.objid, d.objsubid)
        from pg_depend as d
        join pg_proc as p on d.refclassid = 'pg_proc'::regclass and d.refobjid = p.oid
        join pg_roles as r on r.oid = p.proowner and not r.rolsuper
    """)
    assert foreign.fetchall() == []


def test_a_planted_default_does_not_run(attacker: Attacker) -> None:
    db = attacker.superuser
    attacker.session.execute("create schema pgmq")
    attacker.session.execute(PLANTS["function pgmq.to_timestamp(integer)"])
    with contextlib.suppress(errors.ObjectNotInPrerequisiteState):
        db.execute("create extension pgmq")
        call(db, "create", "q")
        call(db, "enable_notify_insert", "q")
    assert not attacker.has_run()


# ALTER EXTENSION UPDATE


@pytest.fixture
def reference(make_database: MakeDatabase, make_role: MakeRole) -> Iterator[tuple[Database, Attacker]]:
    """The reference, installed by the attacker, who owns it, its schema and its lists."""
    role = make_role()
    database = from_reference(make_database, role=role)
    attacker = Attacker(role, database.connect(role), database.connect())
    call(attacker.session, "create", "q")
    yield database, attacker
    database.close()


# What would run when a superuser reads or writes a list, and how the refusal names it.
ON_LISTS = {
    "index pgmq.i": "create index i on pgmq.meta (queue_name) where evil.run(1)",
    "index pgmq.j": "create index j on pgmq.topic_bindings ((evil.run(length(pattern))))",
    "index pgmq.k": "create unique index k on pgmq.meta (is_partitioned)",
    "trigger t of table pgmq.topic_bindings": """
        create trigger t before insert or update or delete on pgmq.topic_bindings
        for each row execute function evil.trigger()
    """,
    "trigger u of table pgmq.meta": """
        create constraint trigger u after insert or update or delete on pgmq.meta
        for each row execute function evil.trigger()
    """,
    "rule r of table pgmq.notify_insert_throttle": """
        create rule r as on delete to pgmq.notify_insert_throttle do also select evil.run(1)
    """,
    "constraint c of table pgmq.meta": "alter table pgmq.meta add constraint c check (evil.run(1))",
    "constraint x of table pgmq.meta": """
        alter table pgmq.meta add constraint x exclude (queue_name with =) where (evil.run(1))
    """,
    "constraint f of table evil.mine": """
        create table evil.mine (queue_name varchar, constraint f foreign key (queue_name)
        references pgmq.meta (queue_name) on delete cascade)
    """,
    "constraint g of table pgmq.topic_bindings": """
        create table evil.mine (pattern text primary key);
        alter table pgmq.topic_bindings add constraint g foreign key (pattern) references evil.mine not valid
    """,
    "policy p of table pgmq.meta": "create policy p on pgmq.meta using (evil.run(1))",
    "row level security of table pgmq.meta": "alter table pgmq.meta force row level security",
    "table evil.child, which inherits from table pgmq.meta": "create table evil.child () inherits (pgmq.meta)",
    "table pgmq.meta, which inherits from table evil.parent": """
        create table evil.parent (); alter table pgmq.meta inherit evil.parent
    """,
    "type evil.shape of table pgmq.meta": """
        create type evil.shape as (queue_name varchar, is_partitioned boolean, is_unlogged boolean,
            created_at timestamptz);
        alter table pgmq.meta of evil.shape
    """,
    "extended statistics s of table pgmq.meta": """
        create statistics evil.s on (evil.run(length(queue_name))), queue_name from pgmq.meta
    """,
    "value of column created_at of table pgmq.meta": """
        alter table pgmq.meta alter created_at set default case when evil.run(1) then now() end
    """,
    "value of column throttle_interval_ms of table pgmq.notify_insert_throttle": """
        alter table pgmq.notify_insert_throttle alter throttle_interval_ms drop default,
        alter throttle_interval_ms add generated always as identity
    """,
    "value of column compiled_regex of table pgmq.topic_bindings": """
        alter table pgmq.topic_bindings drop compiled_regex,
        add compiled_regex text generated always as (case when evil.run(1) then pattern end) stored
    """,
}


def test_what_hangs_on_the_lists_is_refused_before_they_are_read(reference: tuple[Database, Attacker]) -> None:
    _, attacker = reference
    db = attacker.superuser
    for what, plant in ON_LISTS.items():
        with db.transaction(force_rollback=True):
            db.execute(f"set local role {attacker.role}")
            db.execute(plant)
            db.execute("reset role")
            before = described(db)
            refused = refusal(db, UPDATE)
            assert not attacker.has_run(), what
            assert primary(refused) == f"pgmq: the {what} is unknown to this version"
            assert isinstance(refused, errors.ObjectNotInPrerequisiteState)
            assert described(db) == before
            # The hint leads on.
            db.execute(remedy(refused))
            db.execute(UPDATE)
            call(db, "enable_notify_insert", "q")
            call(db, "bind_topic", "a", "q")
            assert call(db, "drop_queue", "q") == [(True,)]
        assert not attacker.has_run(), what


def test_what_comes_while_the_update_waits_is_refused_too(reference: tuple[Database, Attacker]) -> None:
    database, attacker = reference
    holder, observer = database.connect(autocommit=False), database.connect()
    call(holder, "send", "q", psycopg.types.json.Jsonb(1))
    failures: list[psycopg.Error | None] = []
    thread = threading.Thread(target=lambda: failures.append(refusal(attacker.superuser, UPDATE)))
    thread.start()
    waiting = "select count(*) > 0 from pg_locks where not granted and relation = 'pgmq.q_q'::regclass"
    eventually(lambda: observer.execute(waiting).fetchone()[0])
    # It is let in while the update has let go of its locks.
    attacker.session.execute(ON_LISTS["index pgmq.i"])
    holder.commit()
    thread.join()
    assert not attacker.has_run()
    assert [primary(failure) for failure in failures] == ["pgmq: the index pgmq.i is unknown to this version"]


def test_a_function_added_to_the_extension_while_it_is_updated_is_not_adopted(
    reference: tuple[Database, Attacker],
) -> None:
    database, attacker = reference
    session, observer = database.connect(attacker.role, autocommit=False), database.connect()
    session.execute("create function pgmq.late() returns boolean security definer language sql as 'select evil.run(1)'")
    session.execute("alter extension pgmq add function pgmq.late()")
    # Has the update wait where it makes this table, after it has dropped the functions that it does not know.
    session.execute("create table pgmq.topic_version ()")
    failures: list[psycopg.Error | None] = []
    thread = threading.Thread(target=lambda: failures.append(refusal(attacker.superuser, UPDATE)))
    thread.start()
    waiting = "select count(*) > 0 from pg_locks where not granted and pid = %s"
    pid = attacker.superuser.info.backend_pid
    eventually(lambda: failures or observer.execute(waiting, [pid]).fetchone()[0])
    session.execute("drop table pgmq.topic_version")
    session.commit()
    thread.join()
    attacker.tries("select pgmq.late()")
    assert not attacker.has_run()
    # The latest servers have the update wait before it begins, and then it drops the function as any that is not known.
    refused = f"pgmq: function pgmq.late() belongs to role {attacker.role}"
    assert primary(failures[0]) in (refused, "no error")
    if failures[0]:
        attacker.superuser.execute(UPDATE)
    assert observer.execute("select to_regprocedure('pgmq.late()')").fetchone() == (None,)


def test_a_member_whose_name_differs_in_case_is_not_taken_for_ours(reference: tuple[Database, Attacker]) -> None:
    _, attacker = reference
    attacker.session.execute("""
        create function pgmq."SEND"(queue_name text, msg jsonb) returns setof bigint security definer language sql
        as 'select evil.run(1)::integer::bigint'
    """)
    attacker.session.execute('alter extension pgmq add function pgmq."SEND"(text, jsonb)')
    own = refusal(attacker.session, UPDATE)
    if own is not None:
        attacker.superuser.execute(UPDATE)
    gone = refusal(attacker.session, """select pgmq."SEND"('q', '1')""")
    assert not attacker.has_run()
    assert isinstance(own, errors.InsufficientPrivilege)
    assert isinstance(gone, errors.UndefinedFunction)


@pytest.fixture
def shared(make_database: MakeDatabase, make_role: MakeRole) -> Iterator[tuple[Database, Attacker]]:
    """The reference, installed by a superuser, where the attacker may create queues."""
    database, role = from_reference(make_database), make_role()
    db = database.connect()
    call(db, "create", "orders")
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant select, insert on pgmq.meta to {role}")
    db.execute(f"grant select, insert on pgmq.topic_bindings to {role}")
    yield database, Attacker(role, database.connect(role), db)
    database.close()


# Before the update, in schema pgmq: how the refusal names it.
BESIDE_QUEUES = {
    'function pgmq."q_orders$x"()': """
        create function pgmq."q_orders$x"() returns boolean security definer language sql as 'select evil.run(1)'
    """,
    'procedure pgmq."q_orders$read"(integer)': """
        create procedure pgmq."q_orders$read"(integer) language sql as 'select evil.run(1)'
    """,
    'sequence pgmq."q_orders$head"': 'create sequence pgmq."q_orders$head"',
    'table pgmq."q_orders$template"': 'create table pgmq."q_orders$template" ()',
    'view pgmq."q_orders$due"': 'create view pgmq."q_orders$due" as select evil.run(1)',
    'type pgmq."q_orders$sweep"': """create type pgmq."q_orders$sweep" as enum ('a')""",
}


def test_what_is_planted_under_the_names_of_a_queue_is_refused(shared: tuple[Database, Attacker]) -> None:
    _, attacker = shared
    db = attacker.superuser
    for what, plant in BESIDE_QUEUES.items():
        attacker.session.execute(plant)
        before = described(db)
        refused = refusal(db, UPDATE)
        attacker.tries('select pgmq."q_orders$x"()')
        assert not attacker.has_run()
        name = what.partition(" ")[2].partition("(")[0]
        assert primary(refused) == f"pgmq: {name} belongs to role {attacker.role}"
        assert isinstance(refused, errors.InsufficientPrivilege)
        assert described(db) == before
        attacker.session.execute(remedy(refused))
    db.execute(UPDATE)
    every_verb(db, "orders")


NAMES_OF_OURS = {
    "table pgmq.topic_version": """
        create table pgmq.topic_version (version uuid primary key default gen_random_uuid(), is_open boolean);
        create trigger t before insert on pgmq.topic_version for each row execute function evil.trigger();
        grant all on pgmq.topic_version to public
    """,
    "function pgmq.delete(text,integer)": """
        create function pgmq.delete(text, integer) returns boolean language sql as 'select evil.run(1)'
    """,
    "function pgmq._load(integer)": """
        create function pgmq._load(integer default 1) returns boolean language sql as 'select evil.run(1)'
    """,
}


def test_a_name_of_ours_that_another_role_has_is_refused(shared: tuple[Database, Attacker]) -> None:
    _, attacker = shared
    db = attacker.superuser
    for what, plant in NAMES_OF_OURS.items():
        attacker.session.execute(plant)
        # Where it is not refused, what follows shows why it must be.
        refused = refusal(db, UPDATE, "select pgmq.bind_topic('a', 'orders')")
        assert not attacker.has_run(), what
        assert primary(refused) == f"pgmq: {what} belongs to role {attacker.role}, and not to the extension"
        assert isinstance(refused, errors.InsufficientPrivilege)
        attacker.session.execute(remedy(refused))
    db.execute(UPDATE)
    call(db, "bind_topic", "a", "orders")
    every_verb(db, "orders")


def test_a_list_or_type_that_is_no_member_is_refused(shared: tuple[Database, Attacker]) -> None:
    _, attacker = shared
    db = attacker.superuser
    for what in ("table pgmq.notify_insert_throttle", "type pgmq.metrics_result"):
        with db.transaction(force_rollback=True):
            db.execute(f"alter extension pgmq drop {what}")
            with error_of(errors.InsufficientPrivilege, " belongs to role", hint=f"drop {what}"), db.transaction():
                db.execute(UPDATE)


def test_a_superusers_own_overloads_and_foreign_keys_stay(shared: tuple[Database, Attacker]) -> None:
    _, attacker = shared
    db = attacker.superuser
    db.execute("create function pgmq.send(text, text) returns setof bigint language sql as 'select 1::bigint'")
    db.execute("create table public.jobs (queue_name varchar references pgmq.meta (queue_name))")
    db.execute(UPDATE)
    assert db.execute("select pgmq.send('orders'::text, 'text'::text)").fetchone() == (1,)
    with pytest.raises(errors.ForeignKeyViolation):
        db.execute("insert into public.jobs values ('none')")


# Afterwards: what runs with other rights than its caller's


@dataclasses.dataclass
class Privileged:
    """A SECURITY DEFINER function: of whom, which tables its SQL writes, and why it is one."""

    owner: str
    why: str
    writes: frozenset[str] = frozenset()


# Of the extension by their signatures, of a queue by what follows "$".
PRIVILEGED = {
    "pgmq._dispatch()": Privileged(
        "extension", "writes the direct calls of queues into the extension's functions; reads the catalogs alone"
    ),
    "pgmq._check_queue()": Privileged(
        "extension", "bindings and throttles need their queue's row; their writers need not be able to read pgmq.meta"
    ),
    "pgmq._follow_queue()": Privileged(
        "extension",
        "bindings and throttles go with their queue, which its owner drops without a privilege on them",
        frozenset({"pgmq.topic_bindings", "pgmq.notify_insert_throttle"}),
    ),
    "pgmq._change_topic_version()": Privileged(
        "extension",
        "a wrong version would break the routing of others, so nobody else may write it",
        frozenset({"pgmq.topic_version"}),
    ),
    "pgmq._keep_as_owner(regclass,regclass,bigint)": Privileged(
        "extension",
        "readers share hints, and need no privilege on their sequences; it writes a sequence that the queue table "
        "owns, for a role that may update the queue and sees all of it, and nothing but what is possible",
    ),
    "$notify": Privileged("queue", "senders share the time of the last notification, and could silence others with it"),
}


@pytest.fixture
def owned_queue(database: Database, db: psycopg.Connection, make_role: MakeRole) -> Iterator[tuple[str, str]]:
    """A queue that notifies, of a role that is no superuser."""
    role, name = make_role(), unique()
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {role}")
    db.execute(f"grant select, insert, update, delete on pgmq.notify_insert_throttle to {role}")
    session = database.connect(role)
    call(session, "create", name)
    call(session, "enable_notify_insert", name)
    yield name, role
    call(db, "drop_queue", name)


def test_the_functions_that_run_with_other_rights_are_these(
    db: psycopg.Connection, owned_queue: tuple[str, str]
) -> None:
    name, role = owned_queue
    owner_of = {"queue": role.strip('"')}
    (owner_of["extension"],) = db.execute(
        "select rolname from pg_extension join pg_roles as r on r.oid = extowner where extname = 'pgmq' and rolsuper"
    ).fetchone()
    found = {}
    for signature, function, owner, settings, source in db.execute("""
        select oid::regprocedure::text, proname, pg_get_userbyid(proowner), proconfig, prosrc
        from pg_proc
        where pronamespace = 'pgmq'::regnamespace
            and prosecdef
    """):
        # Other queues of this database are others'.
        if "$" not in function:
            key = signature
        elif function.startswith(f"q_{name}$"):
            key = "$" + function.partition("$")[2]
        else:
            continue
        writes = re.findall(r"\b(?:insert into|update|delete from|truncate|merge into)\s+(pgmq\.\w+)", source)
        found[key] = (owner, {s for s in settings if s.startswith("search_path")}, set(writes))
    assert found == {
        key: (owner_of[function.owner], {"search_path=pg_catalog, pg_temp"}, function.writes)
        for key, function in PRIVILEGED.items()
    }
    assert all(len(function.why) > 40 for function in PRIVILEGED.values())


def test_nobody_but_the_owner_attaches_anything_to_what_they_write(
    db: psycopg.Connection, owned_queue: tuple[str, str]
) -> None:
    written = {f"pgmq.{name}" for name in LISTS}
    assert set().union(*(function.writes for function in PRIVILEGED.values())) <= written
    for table in written:
        others = db.execute(
            """
            select r.rolname
            from pg_roles as r
            join pg_class as c on c.oid = %s::regclass
            where not r.rolsuper
                and (
                    pg_has_role(r.oid, c.relowner, 'member')
                    or has_table_privilege(r.oid, c.oid, 'trigger')
                    or has_any_column_privilege(r.oid, c.oid, 'references')
                )
            """,
            [table],
        ).fetchall()
        assert others == [], table
        foreign = db.execute(
            """
            select t.tgname, p.oid::regprocedure::text
            from pg_trigger as t
            join pg_proc as p on p.oid = t.tgfoid
            join pg_class as c on c.oid = t.tgrelid
            where t.tgrelid = %s::regclass
                and p.proowner <> c.relowner
            """,
            [table],
        ).fetchall()
        assert foreign == [], table
    owners = db.execute(
        """
        select distinct extowner = nspowner and extowner = relowner
        from pg_extension, pg_namespace, pg_class as c
        where extname = 'pgmq' and nspname = 'pgmq' and c.oid = any (%s::regclass[])
        """,
        [sorted(written)],
    ).fetchall()
    assert owners == [(True,)]


# The names in pgmq.meta


@pytest.mark.parametrize("name", ["", "a" * 47, "ä" * 47, 'dou"ble', "dot.ted", "hyphen-ated", "back\\slash", "a - b"])
def test_meta_takes_every_name_that_a_queue_can_have(db: psycopg.Connection, name: str) -> None:
    call(db, "validate_queue_name", name)
    with db.transaction(force_rollback=True):
        db.execute("insert into pgmq.meta values (%s, false, false)", [name])


@pytest.mark.parametrize("name", ["a" * 48, "a$b", "a;b", "a'b", "a--b", "$", "--"])
def test_meta_takes_no_other_name(db: psycopg.Connection, name: str) -> None:
    with pytest.raises((errors.InvalidName, errors.NameTooLong)):
        call(db, "validate_queue_name", name)
    with pytest.raises(errors.CheckViolation, match="meta_queue_name_check"):
        db.execute("insert into pgmq.meta values (%s, false, false)", [name])


def test_meta_has_one_row_for_names_that_differ_in_case_and_finds_it_by_index(
    db: psycopg.Connection, queue: str
) -> None:
    with pytest.raises(errors.UniqueViolation, match="meta_lower_queue_name"):
        db.execute("insert into pgmq.meta values (upper(%s), false, false)", [queue])
    with db.transaction(force_rollback=True):
        db.execute("set local enable_seqscan = off")
        for value in ("queue_name::text", 'queue_name::text collate "default"'):
            query = f"explain select from pgmq.meta where lower({value}) = lower('{queue}'::text)"
            plan = "\n".join(row[0] for row in db.execute(query))
            assert "meta_lower_queue_name" in plan
