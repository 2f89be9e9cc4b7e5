"""What behaviour is promised for queues, one sentence a test."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from calls import ALL, NEED_A_QUEUE
from conftest import Database, call, error_of, unique
from psycopg import errors
from psycopg.types.json import Jsonb


def objects(db: psycopg.Connection, *, but: str = "") -> set[tuple[str, ...]]:
    """Every relation, function, type, constraint and queue there is."""
    query = """
        select 'relation', relnamespace::regnamespace::text, relname::text, relkind::text, relpersistence::text
        from pg_class
        where relnamespace not in ('pg_toast'::regnamespace, 'pg_catalog'::regnamespace)
        union all
        select 'function', pronamespace::regnamespace::text, proname::text, pg_get_function_identity_arguments(oid),
            prosecdef::text
        from pg_proc
        where pronamespace <> 'pg_catalog'::regnamespace
        union all
        select 'constraint', connamespace::regnamespace::text, conname::text, conrelid::regclass::text, contype::text
        from pg_constraint
        where connamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
        union all
        select 'queue', queue_name, is_partitioned::text, is_unlogged::text, ''
        from pgmq.meta
    """
    return {tuple(text.replace(but, "*") if but else text for text in row) for row in db.execute(query)}


def test_a_queue_is_a_table_and_an_archive(db: psycopg.Connection, queue: str) -> None:
    found = db.execute(
        "select relname::text from pg_class where relnamespace = 'pgmq'::regnamespace and relkind = 'r'"
        " and relname like %s order by 1",
        ["%\\_" + queue],
    ).fetchall()
    assert found == [("a_" + queue,), ("q_" + queue,)]


def test_the_table_name_is_lower_cased_and_meta_keeps_the_name_as_it_was_given(db: psycopg.Connection) -> None:
    name = unique("Mixed_CASE")
    call(db, "create", name)
    assert db.execute("select to_regclass(%s) is not null", [f'pgmq."q_{name.lower()}"']).fetchone() == (True,)
    assert name in [row.queue_name for row in call(db, "list_queues")]
    assert call(db, "format_table_name", name, "q") == [("q_" + name.lower(),)]
    assert call(db, "format_table_name", name, "a") == [("a_" + name.lower(),)]
    assert call(db, "drop_queue", name.upper()) == [(True,)]


def test_names_that_differ_only_in_case_are_one_queue(db: psycopg.Connection) -> None:
    name = unique("Q")
    call(db, "create", name)
    before = objects(db)
    call(db, "send", name, Jsonb(1))
    call(db, "create", name.lower())
    assert objects(db) == before
    assert [row.message for row in call(db, "read", name.lower(), 30, 1)] == [1]
    assert call(db, "drop_queue", name.lower()) == [(True,)]
    assert name not in [row.queue_name for row in call(db, "list_queues")]


def test_create_twice_is_no_error_and_changes_nothing(db: psycopg.Connection, queue: str) -> None:
    call(db, "send", queue, Jsonb(1))
    before = objects(db)
    for function in ("create", "create_non_partitioned", "create_unlogged", "create"):
        call(db, function, queue)
    assert objects(db) == before
    assert [row.message for row in call(db, "read", queue, 30, 1)] == [1]


def test_create_inside_a_transaction_that_rolls_back_leaves_nothing(db: psycopg.Connection) -> None:
    name = unique()
    before = objects(db)
    with db.transaction(force_rollback=True):
        call(db, "create", name)
        call(db, "send", name, Jsonb(1))
        assert [row.message for row in call(db, "read", name, 30, 1)] == [1]
    assert objects(db) == before
    with error_of(errors.UndefinedTable, f"queue {name} does not exist"):
        call(db, "send", name, Jsonb(1))


def test_create_unlogged_makes_the_queue_unlogged_and_its_archive_not(db: psycopg.Connection) -> None:
    name = unique()
    call(db, "create_unlogged", name)
    persistence = dict(
        db.execute(
            "select left(relname, 1), relpersistence::text from pg_class where relname = any (%s)",
            [["q_" + name, "a_" + name]],
        ).fetchall()
    )
    assert persistence == {"q": "u", "a": "p"}
    (row,) = [row for row in call(db, "list_queues") if row.queue_name == name]
    assert (row.is_unlogged, row.is_partitioned) == (True, False)
    call(db, "send", name, Jsonb(1))
    assert call(db, "archive", name, call(db, "read", name, 30, 1)[0].msg_id) == [(True,)]
    assert call(db, "drop_queue", name) == [(True,)]


def test_create_makes_what_create_non_partitioned_makes(db: psycopg.Connection) -> None:
    made = []
    for function in ("create", "create_non_partitioned"):
        name = unique()
        before = objects(db)
        call(db, function, name)
        made.append({tuple(text.replace(name, "*") for text in row) for row in objects(db) - before})
        call(db, "drop_queue", name)
    assert made[0] == made[1]
    assert ("queue", "*", "false", "false", "") in made[0]


def test_drop_queue_returns_true_and_leaves_nothing(db: psycopg.Connection) -> None:
    before = objects(db)
    for function in ("create", "create_unlogged"):
        name = unique()
        call(db, function, name)
        call(db, "send", name, Jsonb(1))
        call(db, "archive", name, 1)
        assert objects(db) > before
        assert call(db, "drop_queue", name) == [(True,)]
        assert objects(db) == before


def test_drop_queue_leaves_other_queues_alone(db: psycopg.Connection) -> None:
    base = unique()
    names = [base, base + "_", base + "x", base + "%", base + ".a", "x" + base]
    for name in names:
        call(db, "create", name)
        call(db, "send", name, Jsonb(name))
    for name in names:
        assert call(db, "drop_queue", name) == [(True,)]
        for other in names[names.index(name) + 1 :]:
            assert [row.message for row in call(db, "read", other, 0, 1)] == [other]


def test_drop_queue_returns_false_with_a_notice_where_there_is_no_such_queue(database: Database) -> None:
    db = database.connect()
    db.execute("set client_min_messages = notice")
    told: list[tuple[str, str]] = []
    db.add_notice_handler(lambda notice: told.append((notice.severity_nonlocalized, notice.message_primary)))
    name = unique()
    assert call(db, "drop_queue", name) == [(False,)]
    assert [(severity, name in text and "does not exist" in text) for severity, text in told] == [("NOTICE", True)]


@pytest.mark.parametrize("partitioned", [True, False])
def test_the_two_argument_form_of_drop_queue_only_adds_a_deprecation_warning(
    db: psycopg.Connection, partitioned: bool
) -> None:
    name = unique()
    call(db, "create", name)
    told: list[tuple[str, str]] = []
    db.add_notice_handler(lambda notice: told.append((notice.severity_nonlocalized, notice.message_primary)))
    assert call(db, "drop_queue", name, partitioned) == [(True,)]
    assert [(severity, "deprecated" in text) for severity, text in told] == [("WARNING", True)]
    assert call(db, "drop_queue", name, partitioned) == [(False,)]


def test_detach_archive_is_a_no_op_with_a_deprecation_warning(db: psycopg.Connection, queue: str) -> None:
    before = objects(db)
    told: list[tuple[str, str]] = []
    db.add_notice_handler(lambda notice: told.append((notice.severity_nonlocalized, notice.message_primary)))
    call(db, "detach_archive", queue)
    assert [(severity, "deprecated" in text) for severity, text in told] == [("WARNING", True)]
    assert objects(db) == before
    call(db, "send", queue, Jsonb(1))
    assert call(db, "archive", queue, 1) == [(True,)]


def test_purge_queue_returns_how_many_messages_it_removed(db: psycopg.Connection, queue: str) -> None:
    assert call(db, "purge_queue", queue) == [(0,)]
    call(db, "send_batch", queue, [Jsonb(n) for n in range(10)])
    call(db, "send", queue, Jsonb("delayed"), 3600)
    call(db, "read", queue, 3600, 3)
    call(db, "archive", queue, 10)
    assert call(db, "purge_queue", queue) == [(10,)]
    assert call(db, "read", queue, 30, 10) == []
    assert db.execute(f"select count(*) from pgmq.a_{queue}").fetchone() == (1,)


def test_a_purged_queue_goes_on_with_new_ids(db: psycopg.Connection, queue: str) -> None:
    call(db, "send_batch", queue, [Jsonb(n) for n in range(500)])
    while call(db, "read", queue, 3600, 50):
        pass
    call(db, "purge_queue", queue)
    assert call(db, "send", queue, Jsonb("next")) == [(501,)]
    assert [row.msg_id for row in call(db, "read", queue, 30, 10)] == [501]


def test_a_purge_that_rolls_back_removes_nothing(db: psycopg.Connection, queue: str) -> None:
    call(db, "send", queue, Jsonb(1))
    with db.transaction(force_rollback=True):
        assert call(db, "purge_queue", queue) == [(1,)]
        assert call(db, "read", queue, 30, 1) == []
    assert [row.message for row in call(db, "read", queue, 30, 1)] == [1]


def test_list_queues_returns_one_row_a_queue(make_database: Callable[..., Database]) -> None:
    db = make_database().connect()
    assert call(db, "list_queues") == []
    call(db, "create", "one")
    call(db, "create_unlogged", "Two")
    rows = {row.queue_name: row for row in call(db, "list_queues")}
    assert len(call(db, "list_queues")) == len(rows) == 2
    assert [(rows[n].is_partitioned, rows[n].is_unlogged) for n in ("one", "Two")] == [(False, False), (False, True)]
    created = db.execute("select min(created_at), max(created_at), now() from pgmq.meta").fetchone()
    assert created[0] <= created[1] <= created[2]
    call(db, "drop_queue", "one")
    assert [row.queue_name for row in call(db, "list_queues")] == ["Two"]


def test_tables_of_queues_do_not_belong_to_the_extension(db: psycopg.Connection, queue: str) -> None:
    members = db.execute(
        "select pg_describe_object(classid, objid, objsubid) from pg_depend"
        " where refobjid = (select oid from pg_extension where extname = 'pgmq') and deptype = 'e'"
    ).fetchall()
    assert members
    assert not [text for (text,) in members if queue in text]


def test_a_dump_carries_meta(db: psycopg.Connection) -> None:
    carried = db.execute(
        "select c.oid::regclass::text from pg_extension, unnest(extconfig) as c(oid) where extname = 'pgmq'"
    ).fetchall()
    assert ("pgmq.meta",) in carried


def test_compile_makes_the_functions_of_a_queue_anew(db: psycopg.Connection) -> None:
    """As for tables that the reference made, or that a dump restored: they have messages and lack everything else.

    With a space in its name it is a queue without direct calls, as one is that was never compiled.
    """
    queue = unique("not direct")
    call(db, "create", queue)
    before = objects(db)
    call(db, "send", queue, Jsonb(1))
    for (signature,) in db.execute(
        "select oid::regprocedure::text from pg_proc where starts_with(proname, %s)", [f"q_{queue}$"]
    ).fetchall():
        db.execute(f"drop function {signature}")
    for (sequence,) in db.execute(
        "select oid::regclass::text from pg_class where relkind = 'S' and starts_with(relname, %s)", [f"q_{queue}$"]
    ).fetchall():
        db.execute(f"drop sequence {sequence}")
    message = f'queue "{queue}" has no function for send'
    with error_of(errors.ObjectNotInPrerequisiteState, message, hint="pgmq.compile("):
        call(db, "send", queue, Jsonb(2))
    call(db, "compile", queue)
    assert objects(db) == before
    call(db, "send", queue, Jsonb(2))
    assert [row.message for row in call(db, "read", queue, 30, 10)] == [1, 2]
    call(db, "drop_queue", queue)


def test_compile_leaves_messages_and_what_is_in_flight(db: psycopg.Connection, queue: str) -> None:
    call(db, "send_batch", queue, [Jsonb(n) for n in range(3)])
    call(db, "read", queue, 3600, 1)
    before = objects(db)
    call(db, "compile", queue)
    call(db, "compile", queue)
    assert objects(db) == before
    assert [row.msg_id for row in call(db, "read", queue, 30, 10)] == [2, 3]


@pytest.mark.parametrize("signature", NEED_A_QUEUE)
@pytest.mark.parametrize("name", ["no_such_queue", 'No "such" queue'])
def test_a_queue_that_does_not_exist_is_named_with_a_hint_to_create_it(
    db: psycopg.Connection, signature: str, name: str
) -> None:
    quoted = db.execute("select format('%%I', %s::text), format('%%L', %s::text)", [name, name]).fetchone()
    with error_of(errors.UndefinedTable, f"queue {quoted[0]} does not exist", hint=f"select pgmq.create({quoted[1]})"):
        db.execute(NEED_A_QUEUE[signature], [name])


def test_the_calls_of_these_tests_are_all_functions_that_take_a_queue(db: psycopg.Connection) -> None:
    later = {"bind_topic", "unbind_topic", "list_topic_bindings"}
    query = """
        select proname || '(' || (
                select string_agg(format_type(t.oid, null), ', ' order by n)
                from unnest(proargtypes) with ordinality as t (oid, n)
            ) || ')'
        from pg_proc
        where pronamespace = 'pgmq'::regnamespace
            and 'queue_name' = any (proargnames[1:pronargs])
            and proname not like '\\_%%'
            and proname not like '%%notify%%'
            and proname not like '%%grouped%%'
            and proname not like '%%fifo%%'
            and proname <> 'create_partitioned'
            and proname <> all (%s)
    """
    assert {row[0] for row in db.execute(query, [list(later)])} == set(ALL)


def test_create_refuses_a_name_that_something_else_has_and_leaves_nothing(db: psycopg.Connection, queue: str) -> None:
    """A queue's own sequences and indexes stand beside the tables: x_msg_id_seq would need the name of one of x."""
    names = db.execute(
        "select distinct substr(relname, 3) from pg_class"
        " where relnamespace = 'pgmq'::regnamespace and relname like %s and relname !~ '[$]'",
        ["_\\_" + queue + "\\_%"],
    ).fetchall()
    assert set(names) == {(queue + "_msg_id_seq",), (queue + "_pkey",)}
    before = objects(db)
    for (name,) in names:
        with error_of(errors.DuplicateTable, f"pgmq.q_{name} is taken", hint="another name"):
            call(db, "create", name)
        assert objects(db) == before


def test_a_name_that_something_else_has_is_no_queue(db: psycopg.Connection, queue: str) -> None:
    name = queue + "_msg_id_seq"
    for call_ in NEED_A_QUEUE.values():
        with error_of(errors.UndefinedTable, f"queue {name} does not exist"):
            db.execute(call_, [name])
    assert call(db, "drop_queue", name) == [(False,)]


def test_a_queue_may_have_the_name_that_a_later_one_would_give_its_sequence(db: psycopg.Connection) -> None:
    name = unique()
    for queue in (name + "_msg_id_seq", name + "_pkey", name):
        call(db, "create", queue)
        call(db, "send", queue, Jsonb(queue))
    for queue in (name + "_msg_id_seq", name + "_pkey", name):
        assert [row.message for row in call(db, "read", queue, 30, 1)] == [queue]
        assert call(db, "metrics", queue)[0].total_messages == 1
        assert call(db, "drop_queue", queue) == [(True,)]
