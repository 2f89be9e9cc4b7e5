"""The direct calls: which queues the public functions know by name, and that nothing else depends on it."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
from collections.abc import Callable, Iterator

import psycopg
import pytest
from calls import NEED_A_QUEUE
from conftest import Database, call, error_of, eventually, unique
from psycopg import errors, sql
from psycopg.types.json import Jsonb

MOST = 16


@pytest.fixture
def database(make_database: Callable[..., Database]) -> Iterator[Database]:
    """A database of the test's own, since which queues are known depends on all there are."""
    database = make_database()
    yield database
    database.close()


@pytest.fixture
def db(database: Database) -> psycopg.Connection:
    return database.connect()


def functions(db: psycopg.Connection) -> dict[str, str]:
    """The functions with direct calls, by signature."""
    return dict(
        db.execute(
            "select oid::regprocedure::text, prosrc from pg_proc"
            " where pronamespace = 'pgmq'::regnamespace and prosrc like '%-- @queues%' and proname <> '_load'"
        )
    )


def known(db: psycopg.Connection) -> set[str]:
    """The queues that every one of these functions calls directly."""
    listed = [name for (name,) in db.execute("select queue_name from pgmq.meta")]
    sources = functions(db).values()
    found = [{name for name in listed if f"queue_name = '{name}' " in source} for source in sources]
    assert all(names == found[0] for names in found)
    return found[0]


def test_every_function_that_moves_messages_has_direct_calls(db: psycopg.Connection) -> None:
    verbs = {signature.partition("(")[0] for signature in functions(db)}
    assert verbs == {f"pgmq.{verb}" for verb in ("send", "send_batch", "read", "pop", "delete", "archive", "set_vt")}


def test_a_queue_is_called_directly_from_when_it_is_created_until_it_is_dropped(db: psycopg.Connection) -> None:
    before = functions(db)
    call(db, "create", "orders")
    assert known(db) == {"orders"}
    assert call(db, "send", "orders", Jsonb(1)) == [(1,)]
    call(db, "drop_queue", "orders")
    assert functions(db) == before
    with error_of(errors.UndefinedTable, "queue orders does not exist", hint="pgmq.create"):
        call(db, "send", "orders", Jsonb(1))


@pytest.mark.parametrize("signature", NEED_A_QUEUE)
def test_a_call_gives_the_same_directly_or_not(db: psycopg.Connection, signature: str) -> None:
    """Names that begin with a space are never called directly."""
    outcomes = []
    for name in ("orders", " orders"):
        call(db, "create", name)
        call(db, "send_batch", name, [Jsonb({"n": n}) for n in range(3)])
        try:
            rows = db.execute(NEED_A_QUEUE[signature], [name]).fetchall()
            outcomes.append(re.sub(r"\d+-\d+-\d+ [\d:.+]+", "a time", str([list(map(str, row)) for row in rows])))
        except psycopg.Error as error:
            outcomes.append(error.sqlstate)
    assert known(db) == {"orders"}
    assert outcomes[0] == outcomes[1].replace('" orders"', "orders")


def test_a_rollback_leaves_the_functions_as_they_were(database: Database, db: psycopg.Connection) -> None:
    call(db, "create", "orders")
    before = functions(db)
    with database.connect(autocommit=False) as other:
        call(other, "create", "invoices")
        call(other, "send", "invoices", Jsonb(1))
        call(other, "drop_queue", "orders")
        assert known(other) == {"invoices"}
        other.rollback()
    assert functions(db) == before
    assert call(db, "send", "orders", Jsonb(1)) == [(1,)]


def test_the_queues_that_were_made_first_are_known_and_another_takes_the_place_of_one_that_goes(
    db: psycopg.Connection,
) -> None:
    names = [f"queue_{number}" for number in range(MOST + 2)]
    for name in names:
        call(db, "create", name)
    assert known(db) == set(names[:MOST])
    for name in names:
        assert call(db, "send", name, Jsonb(name)) == [(1,)]
        assert [message.message for message in call(db, "read", name, 30, 1)] == [name]
    call(db, "drop_queue", names[3])
    assert known(db) == {*names[:3], *names[4 : MOST + 1]}


def test_a_session_follows_a_queue_that_is_dropped_and_created_again(
    database: Database, db: psycopg.Connection
) -> None:
    session = database.connect()
    for _ in range(3):
        call(db, "create", "orders")
        assert call(session, "send", "orders", Jsonb(1)) == [(1,)]
        assert call(session, "delete", "orders", 1) == [(True,)]
        call(db, "drop_queue", "orders")
        with error_of(errors.UndefinedTable, "queue orders does not exist"):
            call(session, "send", "orders", Jsonb(1))


def test_a_create_does_not_wait_for_another(database: Database, db: psycopg.Connection) -> None:
    with database.connect(autocommit=False) as other:
        call(other, "create", "orders")
        db.execute("set lock_timeout = '2s'")
        call(db, "create", "invoices")
        assert call(db, "send", "invoices", Jsonb(1)) == [(1,)]
        other.commit()
    assert known(db) == {"orders"}
    call(db, "compile", "invoices")
    assert known(db) == {"orders", "invoices"}


def test_only_the_drop_of_a_known_queue_waits_for_a_create(database: Database, db: psycopg.Connection) -> None:
    call(db, "create", "orders")
    call(db, "create", " unknown")
    with database.connect(autocommit=False) as other:
        call(other, "create", "invoices")
        db.execute("set lock_timeout = '1s'")
        call(db, "drop_queue", " unknown")
        with pytest.raises(errors.LockNotAvailable):
            call(db, "drop_queue", "orders")
        assert call(db, "send", "orders", Jsonb(1)) == [(1,)]
        other.commit()
    call(db, "drop_queue", "orders")
    assert known(db) == {"invoices"}


def test_a_create_beside_a_grant_waits_for_it_and_leaves_the_queue_to_the_dynamic_call(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    with database.connect(autocommit=False) as other, concurrent.futures.ThreadPoolExecutor() as pool:
        other.execute(f"grant execute on all functions in schema pgmq to {make_role()}")
        waiting = pool.submit(call, db, "create", "orders")
        eventually(lambda: other.execute("select from pg_locks where not granted").fetchall())
        other.commit()
        waiting.result()
    assert call(db, "send", "orders", Jsonb(1)) == [(1,)]
    call(db, "compile", "orders")
    assert known(db) == {"orders"}


def test_the_script_of_another_extension_creates_and_drops_queues(db: psycopg.Connection) -> None:
    directory, name = pathlib.Path(os.environ["PGMQ_TEST_EXTENSIONS"]), unique("pgmq_user")
    control, script = directory / f"{name}.control", directory / f"{name}--1.sql"
    call(db, "create", "orders")
    try:
        control.write_text("default_version = '1'\nrelocatable = false\n")
        script.write_text(
            "select pgmq.create('invoices'); select pgmq.send('invoices', '1');"
            " select pgmq.create('parcels'); select pgmq.drop_queue('parcels');"
        )
        db.execute(f"create extension {name}")
    finally:
        control.unlink(missing_ok=True)
        script.unlink(missing_ok=True)
    assert call(db, "send", "invoices", Jsonb(1)) == [(2,)]
    call(db, "create", "parcels")
    assert known(db) == {"orders", "invoices", "parcels"}
    db.execute(f"drop extension {name}")


def test_a_transaction_with_an_old_snapshot_loses_no_queue(database: Database, db: psycopg.Connection) -> None:
    with database.connect(autocommit=False) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("select 1")
        call(db, "create", "orders")
        call(old, "create", "invoices")
        assert call(old, "send", "invoices", Jsonb(1)) == [(1,)]
        old.commit()
    for name in ("orders", "invoices"):
        call(db, "send", name, Jsonb(1))
    call(db, "create", "parcels")
    assert known(db) == {"orders", "invoices", "parcels"}


@pytest.mark.parametrize("name", ["a b", 'a"b', "é", "a\n-- @others\nb", "$(x)", "it's", "a$function$; select 1; --"])
def test_only_plain_names_become_a_part_of_a_function(db: psycopg.Connection, name: str) -> None:
    """Names that are no queue's, too: whoever may make tables and functions may name them as he likes."""
    call(db, "create", "orders")
    db.execute(sql.SQL("create table pgmq.{} (like pgmq.q_orders)").format(sql.Identifier(f"q_{name}")))
    for verb, arguments in (("send_now", "jsonb"), ("delete", "bigint")):
        db.execute(
            sql.SQL("create function pgmq.{}({}) returns bigint language sql as 'select 1::bigint'").format(
                sql.Identifier(f"q_{name}${verb}"), sql.SQL(arguments)
            )
        )
    call(db, "create", "invoices")
    assert known(db) == {"orders", "invoices"}
    for source in functions(db).values():
        assert source.count("queue_name = '") == 2 * source.count("-- @queues")


def test_nothing_but_the_extensions_own_functions_is_written(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    role = make_role()
    db.execute(f"grant usage, create on schema pgmq to {role}")
    body = "begin\n    -- @queues\n    --     return;\n    -- @others\nend"
    database.connect(role).execute(
        f"create function pgmq.send(queue_name text) returns void language plpgsql as '{body}'"
    )
    call(db, "create", "orders")
    assert functions(db)["pgmq.send(text)"] == body


def test_the_owner_of_the_list_of_queues_runs_nothing_with_the_rights_of_a_superuser(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    """Where the extension took over, the list may be another's, who could make a view of it."""
    role = make_role()
    call(db, "create", "orders")
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"alter table pgmq.meta owner to {role}")
    session = database.connect(role)
    for statement in (
        "create table pgmq.seen (who text)",
        "create function pgmq.spy() returns text language sql as 'insert into pgmq.seen select user returning who'",
        "alter table pgmq.meta rename to real_meta",
        "create view pgmq.meta as select *, pgmq.spy() from pgmq.real_meta",
    ):
        session.execute(statement)
    db.execute('drop function pgmq."q_orders$send_now"(jsonb)')
    session.execute("select pgmq._dispatch()")
    assert not any("'orders'" in source for source in functions(db).values())
    assert db.execute("select count(*) from pgmq.seen").fetchone() == (0,)
    db.execute("alter table pgmq.real_meta owner to current_user")


def test_whoever_makes_a_queue_the_functions_keep_their_owner_and_privileges(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    described = """
        select oid::regprocedure::text, proowner, proacl, prosecdef, proconfig, obj_description(oid, 'pg_proc')
        from pg_proc
        where pronamespace = 'pgmq'::regnamespace and strpos(proname, '$') = 0
        order by 1
    """
    role = make_role()
    db.execute("revoke execute on function pgmq.pop(text, integer) from public")
    db.execute("alter function pgmq.send(text, jsonb) set work_mem = '5MB'")
    before = db.execute(described).fetchall()
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {role}")
    session = database.connect(role)
    name = unique()
    call(session, "create", name)
    assert known(db) == {name}
    assert call(session, "send", name, Jsonb(1)) == [(1,)]
    with pytest.raises(errors.InsufficientPrivilege):
        call(session, "pop", name)
    assert db.execute(described).fetchall() == before
    call(session, "drop_queue", name)
    assert known(db) == set()


def test_a_role_with_nothing_changes_nothing(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    call(db, "create", "orders")
    before = functions(db)
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    session = database.connect(role)
    session.execute("select pgmq._dispatch()")
    assert functions(db) == before
