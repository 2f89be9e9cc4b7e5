"""Partitioned queues and archives, with each pg_partman that can be had, by id and by time."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Iterator

import psycopg
import pytest
from conftest import Database, error_of, unique

VERSIONS = os.environ.get("PGMQ_TEST_PARTMAN", "").split()
BY_ID = ("10", "30")
BY_TIME = ("1 day", "7 days")

# Another than the documentation's: it is never assumed.
SCHEMA = "parts"


@pytest.fixture(scope="module", params=VERSIONS)
def partitioned_database(request: pytest.FixtureRequest, make_database: Callable[..., Database]) -> Database:
    database = make_database()
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("set client_min_messages = warning")
        connection.execute(f"create schema {SCHEMA}")
        connection.execute(f"create extension pg_partman schema {SCHEMA} version '{request.param}'")
    return database


@pytest.fixture
def database(partitioned_database: Database) -> Iterator[Database]:
    yield partitioned_database
    partitioned_database.close()


@pytest.fixture(params=[BY_ID, BY_TIME], ids=["by_id", "by_time"])
def queue(db: psycopg.Connection, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh partitioned queue, by id and by time."""
    name = unique("parted")
    create(db, name, *request.param)
    yield name
    db.execute("select pgmq.drop_queue(%s)", [name])


@pytest.fixture
def by_id(db: psycopg.Connection) -> Iterator[str]:
    name = unique("parted")
    create(db, name, *BY_ID)
    yield name
    db.execute("select pgmq.drop_queue(%s)", [name])


@pytest.fixture
def by_time(db: psycopg.Connection) -> Iterator[str]:
    name = unique("parted")
    create(db, name, *BY_TIME)
    yield name
    db.execute("select pgmq.drop_queue(%s)", [name])


@pytest.fixture
def plain(db: psycopg.Connection) -> Iterator[str]:
    name = unique("plain")
    db.execute("select pgmq.create(%s)", [name])
    yield name
    db.execute("select pgmq.drop_queue(%s)", [name])
    db.execute(f"drop table if exists pgmq.a_{name}_old")


def create(db: psycopg.Connection, name: str, interval: str, retention: str, premake: int = 4) -> None:
    db.execute("select pgmq.create_partitioned(%s, %s, %s, %s)", [name, interval, retention, premake])


def send(db: psycopg.Connection, name: str, count: int, groups: int = 1) -> list[int]:
    """Send messages 1, 2, ... dealt to so many groups."""
    return ids(
        db,
        """
        select *
        from pgmq.send_batch(
            %s,
            array(select to_jsonb(i) from generate_series(1, %s) as i),
            array(select jsonb_build_object('x-pgmq-group', i %% %s) from generate_series(1, %s) as i)
        )
        """,
        [name, count, groups, count],
    )


def ids(db: psycopg.Connection, query: str, values: list[object]) -> list[int]:
    return [row[0] for row in db.execute(query, values)]


def maintain(db: psycopg.Connection, table: str) -> None:
    db.execute(f"select {SCHEMA}.run_maintenance('pgmq.' || %s)", [table])


def table_of(db: psycopg.Connection, name: str, prefix: str = "q") -> str:
    """The table of a queue or an archive, quoted."""
    return db.execute("select 'pgmq.' || quote_ident(pgmq.format_table_name(%s, %s))", [name, prefix]).fetchone()[0]


def parent(db: psycopg.Connection, name: str, prefix: str = "q") -> str:
    """What pg_partman has for the table: its name, or that of the one partition that is partitioned in turn."""
    return db.execute(
        """
        select c.relname
        from pg_partition_tree(%s::regclass)
        join pg_class as c
            on c.oid = relid
        where not isleaf
        order by level desc
        limit 1
        """,
        [table_of(db, name, prefix)],
    ).fetchone()[0]


def partitions(db: psycopg.Connection, table: str) -> list[str]:
    return leaves(db, "pgmq." + table)


def leaves(db: psycopg.Connection, quoted: str) -> list[str]:
    return ids(
        db, "select relid::regclass::text from pg_partition_tree(%s::regclass) where isleaf order by 1", [quoted]
    )


def relations(db: psycopg.Connection, name: str) -> list[str]:
    return ids(
        db,
        """
        select oid::regclass::text
        from pg_class
        where relnamespace in ('pgmq'::regnamespace, %s::regnamespace)
            and strpos(relname, lower(%s)) > 0
        union all
        select oid::regprocedure::text from pg_proc where strpos(proname, lower(%s)) > 0
        order by 1
        """,
        [SCHEMA, name, name],
    )


def columns(db: psycopg.Connection, table: str) -> list[tuple[str, str, bool, str]]:
    return db.execute(
        """
        select attname, format_type(atttypid, atttypmod), attnotnull, attidentity::text
        from pg_attribute
        where attrelid = %s::regclass and attnum > 0
        order by attnum
        """,
        ["pgmq." + table],
    ).fetchall()


def test_its_tables_have_the_columns_of_a_plain_queue(db: psycopg.Connection, queue: str, plain: str) -> None:
    assert columns(db, "a_" + queue) == columns(db, "a_" + plain)
    (msg_id, *others), (plain_id, *plain_others) = columns(db, "q_" + queue), columns(db, "q_" + plain)
    assert others == plain_others
    # By default, not always: see the test of partition_data_proc.
    assert msg_id == (*plain_id[:3], "d")


@pytest.mark.parametrize(
    ("spans", "keys"),
    [
        (BY_ID, {"q": ("RANGE (msg_id)", "(msg_id)"), "a": ("RANGE (msg_id)", "(msg_id)")}),
        (
            BY_TIME,
            {
                "q": ("RANGE (enqueued_at)", "(msg_id, enqueued_at)"),
                "a": ("RANGE (archived_at)", "(msg_id, archived_at)"),
            },
        ),
    ],
)
def test_a_number_partitions_by_id_and_an_interval_by_time(
    db: psycopg.Connection, spans: tuple[str, str], keys: dict[str, tuple[str, str]]
) -> None:
    name = unique("parted")
    create(db, name, *spans)
    for prefix, expected in keys.items():
        found = db.execute(
            """
            select pg_get_partkeydef(conrelid), replace(pg_get_constraintdef(oid), 'PRIMARY KEY ', '')
            from pg_constraint
            where conrelid = %s::regclass and contype = 'p'
            """,
            [f"pgmq.{prefix}_{name}"],
        ).fetchone()
        assert found == expected
    config = db.execute(
        f"""
        select retention, retention_keep_table, infinite_time_partitions, premake
        from {SCHEMA}.part_config
        where parent_table = any (%s)
        """,
        [[f"pgmq.q_{name}", f"pgmq.a_{name}"]],
    ).fetchall()
    assert config == [(spans[1], False, True, 4)] * 2
    assert db.execute("select is_partitioned from pgmq.meta where queue_name = %s", [name]).fetchone() == (True,)
    db.execute("select pgmq.drop_queue(%s)", [name])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["x", "10", "7 days", 4], psycopg.errors.InvalidParameterValue, "must be of one kind"),
        (["x", "1 day", "7", 4], psycopg.errors.InvalidParameterValue, "must be of one kind"),
        (["x", "often", "7 days", 4], psycopg.errors.RaiseException, "partition_interval is neither"),
        (["x", "1 day", "later", 4], psycopg.errors.InvalidParameterValue, "retention_interval is neither"),
        (["x", "", "7 days", 4], psycopg.errors.RaiseException, "partition_interval is neither"),
        (["x", "-10", "100", 4], psycopg.errors.RaiseException, "partition_interval is out of range"),
        (["x", "0", "100", 4], psycopg.errors.RaiseException, "partition_interval is out of range"),
        (["x", "1", "100", 4], psycopg.errors.RaiseException, "partition_interval is out of range"),
        (["x", "9" * 20, "100", 4], psycopg.errors.RaiseException, "partition_interval is out of range"),
        (["x", "10", "-1", 4], psycopg.errors.InvalidParameterValue, "retention_interval is out of range"),
        (["x", "-1 day", "7 days", 4], psycopg.errors.RaiseException, "partition_interval is out of range"),
        (["x", "1 day", "-7 days", 4], psycopg.errors.InvalidParameterValue, "retention_interval is out of range"),
        (["x", "0.5 seconds", "7 days", 4], psycopg.errors.RaiseException, "partition_interval is out of range"),
        (["x", "10", "100", 0], psycopg.errors.RaiseException, "premake must be at least 1"),
        (["x", "10", "100", None], psycopg.errors.NullValueNotAllowed, "premake must not be NULL"),
        (["x", None, "100", 4], psycopg.errors.NullValueNotAllowed, "partition_interval must not be NULL"),
        (["x", "10", None, 4], psycopg.errors.NullValueNotAllowed, "retention_interval must not be NULL"),
        (["x", "1" * 101, "100", 4], psycopg.errors.RaiseException, "partition_interval is too long"),
        (["x", "9" * 5000, "100", 4], psycopg.errors.RaiseException, "partition_interval is too long"),
        (["x", "10", "9" * 5000, 4], psycopg.errors.InvalidParameterValue, "retention_interval is too long"),
        (["x", "1 day", " " * 100 + "7 days", 4], psycopg.errors.InvalidParameterValue, "interval is too long"),
        (["x", "1 dayé" * 20, "7 days", 4], psycopg.errors.RaiseException, "partition_interval is too long"),
        (["x" * 48, "10", "100", 4], psycopg.errors.RaiseException, "too long"),
        (["x$", "10", "100", 4], psycopg.errors.RaiseException, "invalid characters"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    db: psycopg.Connection, arguments: list[object], error: type[psycopg.Error], message: str
) -> None:
    before = db.execute("select count(*) from pg_class where relnamespace = 'pgmq'::regnamespace").fetchone()
    with error_of(error, message):
        db.execute("select pgmq.create_partitioned(%s, %s, %s, %s)", arguments)
    assert db.execute("select count(*) from pg_class where relnamespace = 'pgmq'::regnamespace").fetchone() == before
    assert db.execute("select from pgmq.meta where queue_name = %s", arguments[:1]).fetchall() == []


def test_without_pg_partman_there_is_a_clear_error(shared_database: Database) -> None:
    db = shared_database.connect()
    name = unique()
    with error_of(psycopg.errors.RaiseException, "pg_partman is required", hint="create extension pg_partman"):
        create(db, name, *BY_ID)
    db.execute("select pgmq.create(%s)", [name])
    with error_of(psycopg.errors.RaiseException, "pg_partman is required"):
        db.execute("select pgmq.convert_archive_partitioned(%s)", [name])
    db.execute("select pgmq.drop_queue(%s)", [name])
    shared_database.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_pg_partman_may_be_in_a_schema_that_must_be_quoted(
    version: str, make_database: Callable[..., Database]
) -> None:
    with psycopg.connect(make_database().dsn, autocommit=True) as connection:
        connection.execute('create schema "Part man"')
        connection.execute(f"create extension pg_partman schema \"Part man\" version '{version}'")
        create(connection, "x", *BY_ID)
        send(connection, "x", 50)
        assert connection.execute("select pgmq.drop_queue('x')").fetchone() == (True,)
        assert connection.execute('select from "Part man".part_config').fetchall() == []


NAMES = ["a-b", "a b", 'a"b', "Ünï", "a%s%I", "a\\b", "x_p7", "x_default", "select", "x" * 47]
# These are nested.
NAMES += ["a.b", 'A.b"%s.', "é" * 24, "é" * 47]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_need_care_work_until_partitions_are_dropped(db: psycopg.Connection, name: str) -> None:
    create(db, name, "10", "10", 2)
    for _ in range(4):
        send(db, name, 11)
        maintain(db, parent(db, name))
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 100)", [name]) == list(range(30, 45))
    assert db.execute("select pgmq.drop_queue(%s)", [name]).fetchone() == (True,)
    assert db.execute(f"select parent_table from {SCHEMA}.part_config").fetchall() == []


@pytest.mark.parametrize(
    ("name", "interval"),
    [
        ("x" * 43, "1 hour"),
        ("y" * 47, "1 hour"),
        ("y" * 47, "30 seconds"),
        ("y" * 47, "1 day"),
        ("a.b.c", "1 day"),
        ('É"' * 23, "1 hour"),
    ],
)
def test_by_time_every_name_works_too(db: psycopg.Connection, name: str, interval: str) -> None:
    create(db, name, interval, interval)
    queue, archive = table_of(db, name), table_of(db, name, "a")
    before = leaves(db, queue)
    assert len(before) >= 9
    send(db, name, 12)
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 4)", [name]) == [1, 2, 3, 4]
    assert db.execute("select pgmq.archive(%s, 1)", [name]).fetchone() == (True,)
    assert db.execute("select pgmq.delete(%s, 2)", [name]).fetchone() == (True,)
    # One that is to come is gone, and comes again; those behind the retention go.
    latest = max(leaf for leaf in before if "default" not in leaf)
    db.execute(f"drop table {latest}")
    for prefix in "qa":
        maintain(db, parent(db, name, prefix))
    after = leaves(db, queue)
    assert latest in after
    assert len(after) < len(before)
    assert ids(db, f"select count(*) from {archive}", []) == [1]
    # Before all partitions.
    db.execute(f"insert into {queue} (vt, enqueued_at) select now(), '2000-01-01' from generate_series(1, 5)")
    for leaf in leaves(db, queue):
        db.execute(f"analyze {leaf}")
    assert db.execute("select queue_length, default_partition_length from pgmq.metrics(%s)", [name]).fetchone() == (
        15,
        5,
    )
    assert db.execute("select pgmq.purge_queue(%s)", [name]).fetchone() == (15,)
    assert db.execute("select pgmq.drop_queue(%s)", [name]).fetchone() == (True,)
    assert db.execute(f"select parent_table from {SCHEMA}.part_config").fetchall() == []
    assert relations(db, "$") == []


@pytest.mark.parametrize("spans", [BY_ID, ("1 hour", "1 day")], ids=["by_id", "by_time"])
@pytest.mark.parametrize("name", ["x" * 47, "a.b", "é" * 30])
def test_an_archive_of_any_name_can_be_converted(db: psycopg.Connection, name: str, spans: tuple[str, str]) -> None:
    db.execute("select pgmq.create(%s)", [name])
    send(db, name, 25)
    db.execute("select pgmq.archive(%s, 1)", [name])
    before = leaves(db, table_of(db, name))
    db.execute("select pgmq.convert_archive_partitioned(%s, %s, %s, 2)", [name, *spans])
    db.execute("select pgmq.archive(%s, 25)", [name])
    maintain(db, parent(db, name, "a"))
    archive = table_of(db, name, "a")
    assert ids(db, f"select msg_id from {archive}", []) == [25]
    assert leaves(db, table_of(db, name)) == before
    old = ids(db, "select oid::regclass::text from pg_class where relkind = 'r' and relname ~ '_old$'", [])
    assert len(old) == 1
    assert ids(db, f"select msg_id from {old[0]}", []) == [1]
    db.execute("select pgmq.drop_queue(%s)", [name])
    db.execute(f"drop table {old[0]}")
    assert db.execute(f"select parent_table from {SCHEMA}.part_config").fetchall() == []
    assert relations(db, "$") == []


def test_what_pg_partman_can_take_it_manages_under_its_own_name(db: psycopg.Connection) -> None:
    names = ["x" * 47, "y" * 42, "Ünï"]
    for name in names:
        create(db, name, "1 hour", "1 day")
        assert parent(db, name) == table_of(db, name).removeprefix("pgmq.").strip('"')
    for name in names:
        db.execute("select pgmq.drop_queue(%s)", [name])


def test_two_queues_whose_partitions_would_have_the_same_names_are_refused(db: psycopg.Connection) -> None:
    first, second = "x" * 46 + "1", "x" * 46 + "2"
    create(db, first, "1 hour", "1 day")
    before = relations(db, "")
    for call in ("create_partitioned(%s, '1 hour', '1 day')", "create_partitioned(%s, '30 minutes', '1 day')"):
        with pytest.raises(psycopg.errors.DuplicateTable) as caught:
            db.execute("select pgmq." + call, [second])
        assert f"q_{first}" in caught.value.diag.message_detail
        assert f"q_{second}" in caught.value.diag.message_primary
        assert "whose first 44 characters" in caught.value.diag.message_hint
    assert relations(db, "") == before
    assert db.execute("select queue_name from pgmq.meta").fetchall() == [(first,)]
    db.execute("select pgmq.create(%s)", [second])
    with error_of(psycopg.errors.DuplicateTable, f"a_{second}"):
        db.execute("select pgmq.convert_archive_partitioned(%s, '1 hour', '1 day')", [second])
    db.execute("select pgmq.drop_queue(%s)", [second])
    # Nothing is cut with these, so nothing is the same.
    for spans in (BY_ID, BY_TIME):
        create(db, second, *spans)
        db.execute("select pgmq.drop_queue(%s)", [second])
    # Twice is no error here either, and both are gone with the first.
    create(db, first, "1 hour", "1 day")
    db.execute("select pgmq.drop_queue(%s)", [first])
    create(db, second, "1 hour", "1 day")
    db.execute("select pgmq.drop_queue(%s)", [second])


def test_a_name_that_a_partition_will_have_once_it_is_cut_is_kept(db: psycopg.Connection) -> None:
    # As pg_partman 5 manages it where the reference made it.
    long = "é" * 26
    db.execute(f"create table pgmq.q_{long} (msg_id bigint) partition by range (msg_id)")
    with error_of(psycopg.errors.DuplicateTable, f'is kept for a partition of pgmq."q_{long}"'):
        db.execute("select pgmq.create(%s)", ["é" * 22 + "_p20990101_000000"])
    for free in ("é" * 22 + "_p20990101", "é" * 21 + "_p20990101_000000", "é" * 22 + "_q20990101_000000"):
        db.execute("select pgmq.create(%s)", [free])
        db.execute("select pgmq.drop_queue(%s)", [free])
    db.execute(f"drop table pgmq.q_{long}")


def test_the_table_inside_a_nested_queue_is_not_taken_from_another(db: psycopg.Connection) -> None:
    create(db, "a.b", *BY_ID)
    inner = parent(db, "a.b")
    db.execute("select pgmq.drop_queue('a.b')")
    db.execute(f'create table pgmq."{inner}" ()')
    with error_of(psycopg.errors.DuplicateTable, inner):
        create(db, "a.b", *BY_ID)
    db.execute(f'drop table pgmq."{inner}"')
    assert db.execute("select from pgmq.meta where queue_name = 'a.b'").fetchall() == []


def test_templates_and_old_archives_of_another_role_are_not_adopted(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    role = make_role()
    db.execute(f"grant usage, create on schema pgmq to {role}")
    planter = database.connect(role=role)
    create(db, "n.n", *BY_ID)
    nested = f"{parent(db, 'n.n')}$template"
    db.execute("select pgmq.drop_queue('n.n')")
    db.execute("select pgmq.create('plain')")
    convert = "convert_archive_partitioned('plain')"
    for planted, call in (
        ("q_x$template", "create_partitioned('x')"),
        ("q_x$a_template", "create_partitioned('x')"),
        (nested, "create_partitioned('n.n')"),
        ("q_plain$a_template", convert),
        ("a_plain_old", convert),
        ("q_plain$archived_old", convert),
    ):
        planter.execute(f'create table pgmq."{planted}" ()')
        with error_of(psycopg.errors.InsufficientPrivilege, f"belongs to role {role}"):
            db.execute("select pgmq." + call)
        planter.execute(f'drop table pgmq."{planted}"')
    db.execute("select pgmq.drop_queue('plain')")
    assert db.execute("select from pgmq.meta").fetchall() == []


def test_what_the_configuration_has_for_a_table_that_is_not_there_is_replaced(db: psycopg.Connection) -> None:
    create(db, "other", *BY_ID)
    for name, prefix in (("left", "q"), ("l.e.f.t", "a")):
        create(db, name, *BY_ID)
        row = db.execute(
            f"select * from {SCHEMA}.part_config where parent_table = %s", ["pgmq." + parent(db, name, prefix)]
        ).fetchone()
        db.execute("select pgmq.drop_queue(%s)", [name])
        marks = ", ".join(["%s"] * len(row))
        planted = ["pgmq.q_other$template" if str(value).startswith('pgmq."q') else value for value in row]
        db.execute(f"insert into {SCHEMA}.part_config values ({marks})", planted)
        create(db, name, *BY_TIME)
        assert len(leaves(db, table_of(db, name))) >= 9
        assert len(leaves(db, table_of(db, name, "a"))) >= 9
        configured = db.execute(
            f"select retention, template_table ~ 'template$' and template_table !~ 'other' from {SCHEMA}.part_config "
            "where parent_table !~ '_other$'"
        ).fetchall()
        assert configured == [("7 days", True)] * 2
        db.execute("select pgmq.drop_queue(%s)", [name])
    db.execute("select pgmq.drop_queue('other')")


def test_twice_is_no_error_and_a_plain_queue_is_refused(db: psycopg.Connection, by_id: str, plain: str) -> None:
    before = relations(db, by_id)
    create(db, by_id, *BY_TIME)
    create(db, by_id.upper(), *BY_ID)
    db.execute("select pgmq.create(%s)", [by_id])
    assert relations(db, by_id) == before
    with error_of(psycopg.errors.RaiseException, "exists and is not partitioned"):
        create(db, plain, *BY_ID)


def test_no_queue_takes_the_table_of_a_partition_and_no_partition_that_of_a_queue(
    db: psycopg.Connection, by_id: str
) -> None:
    for call in ("create(%s)", "create_partitioned(%s)"):
        for suffix, message in (("_p10", "is taken"), ("_p1000000", "is kept for a partition")):
            with error_of(psycopg.errors.DuplicateTable, message):
                db.execute("select pgmq." + call, [by_id + suffix])
    name = unique("parted")
    db.execute("select pgmq.create(%s)", [name + "_p20"])
    with error_of(psycopg.errors.DuplicateTable, f"q_{name}_p20"):
        create(db, name, *BY_ID)
    db.execute("select pgmq.drop_queue(%s)", [name + "_p20"])


def test_every_message_function_works_across_partitions(db: psycopg.Connection, queue: str) -> None:
    assert send(db, queue, 45) == list(range(1, 46))
    assert ids(db, "select * from pgmq.send(%s, '{\"a\": 1}', 3600)", [queue]) == [46]
    # Rows of several partitions have one ctid: what is claimed must be one message each.
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 1)", [queue]) == [1]
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 12)", [queue]) == list(range(2, 14))
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 5, '15')", [queue]) == [15]
    assert ids(db, "select msg_id from pgmq.pop(%s, 2)", [queue]) == [14, 16]
    assert ids(db, "select msg_id from pgmq.set_vt(%s, array[1, 12, 99]::bigint[], 0)", [queue]) == [1, 12]
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 3)", [queue]) == [1, 12, 17]
    assert db.execute("select pgmq.delete(%s, 1)", [queue]).fetchone() == (True,)
    assert ids(db, "select pgmq.delete(%s, array[2, 20, 99]::bigint[])", [queue]) == [2, 20]
    assert db.execute("select pgmq.archive(%s, 3)", [queue]).fetchone() == (True,)
    assert sorted(ids(db, "select pgmq.archive(%s, array[4, 33, 3]::bigint[])", [queue])) == [4, 33]
    assert ids(db, f"select msg_id from pgmq.a_{queue} order by msg_id", []) == [3, 4, 33]
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 100)", [queue]) == [
        i for i in range(18, 46) if i not in (20, 33)
    ]
    metrics = db.execute(
        "select queue_length, queue_visible_length, total_messages from pgmq.metrics(%s)", [queue]
    ).fetchone()
    assert metrics == (38, 0, 46)
    assert db.execute("select pgmq.purge_queue(%s)", [queue]).fetchone() == (38,)
    assert ids(db, "select msg_id from pgmq.read_with_poll(%s, 30, 1, 1, 10)", [queue]) == []


@pytest.mark.parametrize("indexed", [False, True], ids=["scanned", "indexed"])
@pytest.mark.parametrize("function", ["read_grouped", "read_grouped_rr", "read_grouped_head"])
def test_grouped_reads_give_what_they_give_of_a_plain_queue(
    db: psycopg.Connection, queue: str, plain: str, function: str, indexed: bool
) -> None:
    got: dict[str, list[list[int]]] = {}
    for name in (queue, plain):
        if indexed:
            db.execute("select pgmq.create_fifo_index(%s)", [name])
        send(db, name, 60, groups=7)
        got[name] = []
        for quantity in (1, 5, 20):
            batch = ids(db, f"select msg_id from pgmq.{function}(%s, 60, %s)", [name, quantity])
            db.execute("select pgmq.delete(%s, %s::bigint[])", [name, batch[::2]])
            got[name].append(batch)
    assert got[queue] == got[plain]
    assert len(got[queue][0]) == 1


def test_nothing_scans_a_partition_from_end_to_end(database: Database, queue: str) -> None:
    db = database.connect()
    db.execute("select pgmq.create_fifo_index(%s)", [queue])
    send(db, queue, 45, groups=5)
    query = """
        select sum(s.seq_scan)
        from pg_partition_tree(%s::regclass) as p
        join pg_stat_xact_user_tables as s
            using (relid)
    """
    with db.transaction():
        before = db.execute(query, ["pgmq.q_" + queue]).fetchone()
        for call in (
            "read(%s, 0, 3)",
            "read(%s, 30, 3)",
            "read(%s, 30, 3)",
            "pop(%s, 2)",
            "read_grouped(%s, 30, 3)",
            "read_grouped_rr(%s, 0, 3)",
            "read_grouped_head(%s, 0, 3)",
            "set_vt(%s, array[2, 3]::bigint[], 0)",
            "delete(%s, array[2, 3]::bigint[])",
            "delete(%s, 40)",
            "archive(%s, array[12, 13]::bigint[])",
            "send(%s, '1')",
        ):
            db.execute("select pgmq." + call, [queue])
        assert db.execute(query, ["pgmq.q_" + queue]).fetchone() == before
        db.execute(f"select count(*) from pgmq.q_{queue}")
        assert db.execute(query, ["pgmq.q_" + queue]).fetchone() > before


def test_two_readers_never_hold_one_message_and_a_rollback_gives_it_back(database: Database, queue: str) -> None:
    first, second = database.connect(autocommit=False), database.connect()
    send(second, queue, 45)
    held = ids(first, "select msg_id from pgmq.read(%s, 30, 22)", [queue])
    assert held == list(range(1, 23))
    assert ids(second, "select msg_id from pgmq.read(%s, 30, 22)", [queue]) == list(range(23, 45))
    first.rollback()
    # Within a second or so, when the next reader sweeps.
    found = ids(second, "select msg_id from pgmq.read_with_poll(%s, 30, 45, 10, 10)", [queue])
    while len(found) < 23:
        more = ids(second, "select msg_id from pgmq.read_with_poll(%s, 30, 45, 10, 10)", [queue])
        assert more, found
        found += more
    assert sorted(found) == [*held, 45]


def test_a_role_with_grants_on_the_tables_alone_can_use_it(
    database: Database, db: psycopg.Connection, queue: str, make_role: Callable[..., str]
) -> None:
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    db.execute(f"grant select, insert, update, delete on pgmq.q_{queue} to {role}")
    db.execute(f"grant insert, select on pgmq.a_{queue} to {role}")
    user = database.connect(role=role)
    send(user, queue, 25)
    assert ids(user, "select msg_id from pgmq.read(%s, 30, 15)", [queue]) == list(range(1, 16))
    assert user.execute("select pgmq.archive(%s, 12)", [queue]).fetchone() == (True,)


@pytest.mark.parametrize("suffix", ["", ".x"])
def test_an_owner_who_is_no_superuser_can_create_maintain_and_drop(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str], suffix: str
) -> None:
    role = make_role()
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {role}")
    db.execute(f"grant usage on schema {SCHEMA} to {role}")
    db.execute(f"grant select, insert, update, delete on all tables in schema {SCHEMA} to {role}")
    db.execute(f"grant execute on all functions in schema {SCHEMA} to {role}")
    owner = database.connect(role=role)
    name = unique("parted") + suffix
    create(owner, name, "10", "10", 2)
    for _ in range(4):
        send(owner, name, 11)
        maintain(owner, parent(db, name))
    assert ids(owner, "select msg_id from pgmq.read(%s, 30, 1)", [name]) == [30]
    assert owner.execute("select pgmq.drop_queue(%s)", [name]).fetchone() == (True,)
    assert relations(db, name) == []


def test_maintenance_drops_what_is_past_retention_and_reading_goes_on(db: psycopg.Connection, by_id: str) -> None:
    for _ in range(5):
        send(db, by_id, 20)
        assert len(ids(db, "select msg_id from pgmq.read(%s, 300, 7)", [by_id])) == 7
        maintain(db, "q_" + by_id)
    # The last id is 100, and what ends 30 ids behind it or earlier is gone: all before 70. Four partitions are ahead.
    assert partitions(db, "q_" + by_id) == sorted(
        [f"pgmq.q_{by_id}_p{start}" for start in range(70, 150, 10)] + [f"pgmq.q_{by_id}_default"]
    )
    assert ids(db, f"select min(msg_id) from pgmq.q_{by_id}", []) == [70]
    left = ids(db, f"select msg_id from pgmq.q_{by_id} where vt <= clock_timestamp() order by 1", [])
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 100)", [by_id]) == left
    assert send(db, by_id, 2) == [101, 102]
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 100)", [by_id]) == [101, 102]


def test_maintenance_drops_the_archive_past_retention_too(db: psycopg.Connection, by_id: str) -> None:
    for _ in range(4):
        send(db, by_id, 20)
        db.execute(f"select pgmq.archive(%s, array(select msg_id from pgmq.q_{by_id}))", [by_id])
        maintain(db, "a_" + by_id)
    assert ids(db, f"select min(msg_id) from pgmq.a_{by_id}", []) == [50]


def test_maintenance_drops_days_past_retention(db: psycopg.Connection, by_time: str) -> None:
    db.execute(
        f"select {SCHEMA}.create_partition_time(%s, array[now() - interval '9 days', now() - interval '6 days'])",
        ["pgmq.q_" + by_time],
    )
    db.execute(
        f"""
        insert into pgmq.q_{by_time} (enqueued_at, vt, message)
        select t, t, '1'
        from unnest(array[now() - interval '9 days', now() - interval '6 days', now()]) as t
        """
    )
    before = partitions(db, "q_" + by_time)
    maintain(db, "q_" + by_time)
    assert len(set(before) - set(partitions(db, "q_" + by_time))) == 1
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 100)", [by_time]) == [2, 3]


def test_partitions_by_time_are_made_for_an_idle_queue_too(db: psycopg.Connection, by_time: str) -> None:
    before = partitions(db, "q_" + by_time)
    latest = [partition for partition in before if "default" not in partition][-1]
    db.execute(f"drop table {latest}")
    maintain(db, "q_" + by_time)
    assert latest in partitions(db, "q_" + by_time)


@pytest.mark.parametrize(
    ("spans", "enqueued_at"),
    [(("10", "1000"), "now()"), (("1 day", "70 days"), "now() + i * interval '3 hours'")],
    ids=["by_id", "by_time"],
)
def test_what_fell_into_the_default_partition_can_be_moved(
    db: psycopg.Connection, spans: tuple[str, str], enqueued_at: str
) -> None:
    name = unique("parted")
    create(db, name, *spans)
    db.execute(
        f"insert into pgmq.q_{name} (vt, enqueued_at) select now(), {enqueued_at} from generate_series(1, 77) as i"
    )
    assert ids(db, f"select count(*) > 0 from pgmq.q_{name}_default", []) == [True]
    db.execute(f"call {SCHEMA}.partition_data_proc(%s)", ["pgmq.q_" + name])
    assert ids(db, f"select count(*) from pgmq.q_{name}_default", []) == [0]
    maintain(db, "q_" + name)
    assert ids(db, "select queue_length from pgmq.metrics(%s)", [name]) == [77]
    assert send(db, name, 1) == [78]
    db.execute("select pgmq.drop_queue(%s)", [name])


def test_new_partitions_have_the_indexes_and_the_storage_settings(db: psycopg.Connection, by_id: str) -> None:
    db.execute("select pgmq.create_fifo_index(%s)", [by_id])
    first = partitions(db, "q_" + by_id)
    send(db, by_id, 25)
    maintain(db, "q_" + by_id)
    leaves = partitions(db, "q_" + by_id)
    assert len(leaves) > len(first)
    found = db.execute(
        """
        select distinct array(
                select regexp_replace(pg_get_indexdef(indexrelid), '^.* USING', '')
                from pg_index
                where indrelid = c.oid
                order by 1
            ),
            array_to_string(reloptions, ' ')
        from unnest(%s::regclass[]) as leaf
        join pg_class as c
            on c.oid = leaf
        """,
        [leaves],
    ).fetchall()
    assert len(found) == 1, found
    assert len(found[0][0]) == 4
    assert "fillfactor=70" in found[0][1]


def test_drop_queue_takes_tables_templates_and_configuration_along(db: psycopg.Connection) -> None:
    name = unique("parted")
    kept = unique("parted")
    for queue_name in (name, kept):
        create(db, queue_name, *BY_ID)
    assert db.execute("select pgmq.drop_queue(%s, true)", [name]).fetchone() == (True,)
    assert relations(db, name) == []
    assert ids(db, f"select parent_table from {SCHEMA}.part_config order by 1", []) == [
        f"pgmq.a_{kept}",
        f"pgmq.q_{kept}",
    ]
    assert ids(db, "select queue_name from pgmq.meta", []) == [kept]
    create(db, name, *BY_TIME)
    for queue_name in (name, kept):
        db.execute("select pgmq.drop_queue(%s)", [queue_name])


def test_drop_queue_drops_templates_by_their_own_names_alone(
    db: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    role = make_role()
    db.execute("create schema if not exists wages")
    db.execute("create table wages.payroll ()")
    db.execute(f"create table {SCHEMA}.template_pgmq_q_a_b ()")
    db.execute(f"create table {SCHEMA}.template_pgmq_a_other ()")
    name = unique("parted")
    for queue_name in (name, "a.b"):
        create(db, queue_name, *BY_ID)
    # What pg_partman itself makes for a table that comes without a template.
    db.execute(f"create table {SCHEMA}.template_pgmq_q_{name} ()")
    db.execute(f"create table {SCHEMA}.template_pgmq_a_{name} ()")
    db.execute(f"alter table {SCHEMA}.template_pgmq_a_{name} owner to {role}")
    db.execute(f"update {SCHEMA}.part_config set template_table = 'wages.payroll' where parent_table = 'pgmq.q_{name}'")
    for queue_name in (name, "a.b"):
        assert db.execute("select pgmq.drop_queue(%s)", [queue_name]).fetchone() == (True,)
    left = ids(
        db,
        """
        select oid::regclass::text
        from pg_class
        where relname ~ '^template_pgmq|[$](a_)?template$|payroll'
        order by relname
        """,
        [],
    )
    assert left == [
        "wages.payroll",
        f"{SCHEMA}.template_pgmq_a_other",
        # It is neither the caller's nor the queue's owner's.
        f"{SCHEMA}.template_pgmq_a_{name}",
        f"{SCHEMA}.template_pgmq_q_a_b",
    ]
    for table in left:
        db.execute(f"drop table {table}")


def test_a_superuser_does_not_run_the_pg_partman_of_another_role(
    make_database: Callable[..., Database], admin: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    role = make_role()
    database = make_database()
    db = database.connect()
    if not db.execute(
        "select bool_or(not superuser) from pg_available_extension_versions where name = 'pg_partman'"
    ).fetchone()[0]:
        pytest.skip("pg_partman 4 is created by superusers alone")
    db.execute(f"grant create on database {database.name} to {role}")
    db.execute(f"grant usage, create on schema pgmq to {role}")
    db.execute(f"grant select, insert, delete on pgmq.meta to {role}")
    owner = database.connect(role=role)
    owner.execute(f"create schema {SCHEMA}")
    owner.execute(f"create extension pg_partman schema {SCHEMA}")
    create(owner, "theirs", *BY_ID)
    for call in ("create_partitioned('ours', '10', '100')", "drop_queue('theirs')"):
        with error_of(psycopg.errors.InsufficientPrivilege, f"pg_partman belongs to role {role}", hint="superuser"):
            db.execute("select pgmq." + call)
    assert owner.execute("select pgmq.drop_queue('theirs')").fetchone() == (True,)
    database.close()


def test_a_superuser_does_not_run_the_triggers_and_overloads_of_another_role(
    database: Database, db: psycopg.Connection, by_id: str, make_role: Callable[..., str]
) -> None:
    role = make_role()
    db.execute(f"grant usage, create on schema {SCHEMA} to {role}")
    db.execute(f"grant all on {SCHEMA}.part_config, {SCHEMA}.part_config_sub to {role}")
    planter = database.connect(role=role)
    planter.execute(
        f"create function {SCHEMA}.mine() returns trigger language plpgsql as "
        "$$ begin raise exception 'planted code runs'; end $$"
    )
    trigger = f"create trigger mine before insert or update or delete on {SCHEMA}"
    overload = (
        f"create function {SCHEMA}.create_partition_id(p_parent_table text, p_partition_ids bigint[]) "
        "returns boolean language plpgsql as $$ begin raise exception 'planted code runs'; end $$"
    )
    for plant, unplant, what in (
        (f"{trigger}.part_config execute function {SCHEMA}.mine()", "trigger mine on {}.part_config", "trigger mine"),
        (
            f"{trigger}.part_config_sub execute function {SCHEMA}.mine()",
            "trigger mine on {}.part_config_sub",
            "trigger mine",
        ),
        (overload, "function {}.create_partition_id(text, bigint[])", "create_partition_id(text,bigint[])"),
    ):
        planter.execute(plant)
        for call in ("create_partitioned('ours', '10', '100')", f"drop_queue('{by_id}')"):
            with error_of(psycopg.errors.InsufficientPrivilege, what):
                db.execute("select pgmq." + call)
        db.execute("drop " + unplant.format(SCHEMA))
    # pg_partman puts its schema before the rest of the path.
    planter.execute(
        f"create function {SCHEMA}.split_part(text, text, integer) returns text language plpgsql as "
        "$$ begin raise exception 'planted code runs'; end $$"
    )
    name = unique("parted")
    create(db, name, *BY_ID)
    assert db.execute("select pgmq.drop_queue(%s)", [name]).fetchone() == (True,)
    db.execute(f"drop function {SCHEMA}.split_part(text, text, integer), {SCHEMA}.mine()")
    db.execute(f"revoke all on schema {SCHEMA} from {role}")


def test_compile_makes_functions_indexes_and_settings_anew(db: psycopg.Connection, queue: str) -> None:
    send(db, queue, 25)
    before = relations(db, queue)
    db.execute(f'drop function pgmq."q_{queue}$read"')
    db.execute(f'drop index pgmq."q_{queue}$ready"')
    db.execute("select pgmq.compile(%s)", [queue])
    assert relations(db, queue) == before
    assert ids(db, "select msg_id from pgmq.read(%s, 30, 12)", [queue]) == list(range(1, 13))


def test_metrics_estimate_the_rows_of_the_default_partitions(db: psycopg.Connection, by_id: str, plain: str) -> None:
    def estimate(name: str) -> int | None:
        return db.execute("select default_partition_length from pgmq.metrics(%s)", [name]).fetchone()[0]

    assert estimate(by_id) == 0
    assert estimate(plain) is None
    send(db, by_id, 60)
    db.execute("select pgmq.archive(%s, array[1, 55, 56]::bigint[])", [by_id])
    db.execute(f"analyze pgmq.q_{by_id}_default, pgmq.a_{by_id}_default")
    # Five partitions hold 0 to 49: 50 to 60 are in the default ones, two of them archived.
    assert estimate(by_id) == 11


@pytest.mark.parametrize("spans", [BY_ID, BY_TIME], ids=["by_id", "by_time"])
def test_a_converted_archive_keeps_the_old_messages_and_takes_the_new(
    db: psycopg.Connection, plain: str, spans: tuple[str, str]
) -> None:
    send(db, plain, 77)
    db.execute("select pgmq.archive(%s, array[1, 2, 40]::bigint[])", [plain])
    db.execute("select pgmq.delete(%s, array(select generate_series(3, 60)))", [plain])
    db.execute("select pgmq.convert_archive_partitioned(%s, %s, %s, 2)", [plain, *spans])
    assert columns(db, "a_" + plain) == columns(db, f"a_{plain}_old")
    assert ids(db, f"select msg_id from pgmq.a_{plain}_old order by 1", []) == [1, 2, 40]
    # In the session that has archived before, which keeps plans.
    db.execute("select pgmq.archive(%s, array[61, 77]::bigint[])", [plain])
    send(db, plain, 2)
    db.execute("select pgmq.archive(%s, 79)", [plain])
    assert ids(db, f"select msg_id from pgmq.a_{plain} order by 1", []) == [61, 77, 79]
    assert ids(db, f"select count(*) from pgmq.a_{plain}_default", []) == [0]
    assert db.execute("select is_partitioned from pgmq.meta where queue_name = %s", [plain]).fetchone() == (False,)
    assert db.execute("select default_partition_length from pgmq.metrics(%s)", [plain]).fetchone() == (None,)


def test_a_converted_archive_has_the_owner_and_the_grants_of_the_old(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str]
) -> None:
    owner, reader, clerk = make_role(), make_role(), make_role()
    db.execute(f"grant usage, create on schema pgmq to {owner}")
    db.execute(f"grant select, insert on pgmq.meta to {owner}")
    plain = unique("plain")
    database.connect(role=owner).execute("select pgmq.create(%s)", [plain])
    db.execute(f"grant select on pgmq.a_{plain} to {reader} with grant option")
    db.execute(f"grant insert, select (msg_id) on pgmq.a_{plain} to {clerk}")
    query = """
        select array(select a::text from unnest(c.relacl) as a order by 1), c.relowner::regrole::text, t.attacl::text
        from pg_class as c
        join pg_attribute as t
            on t.attrelid = c.oid and t.attname = 'msg_id'
        where c.oid = %s::regclass
    """
    before = db.execute(query, ["pgmq.a_" + plain]).fetchone()
    assert any(clerk.strip('"') in grant for grant in before[0])
    db.execute("select pgmq.convert_archive_partitioned(%s)", [plain])
    assert db.execute(query, ["pgmq.a_" + plain]).fetchone() == before
    owners = ids(
        db,
        """
        select distinct c.relowner::regrole::text
        from pg_partition_tree(%s::regclass)
        join pg_class as c
            on c.oid = relid
        """,
        ["pgmq.a_" + plain],
    )
    assert owners == [owner]
    db.execute("select pgmq.drop_queue(%s)", [plain])
    db.execute(f"drop table pgmq.a_{plain}_old")


def test_converting_again_or_nothing_gives_a_notice(db: psycopg.Connection, plain: str) -> None:
    notices: list[str] = []
    db.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
    db.execute("set client_min_messages = notice")
    db.execute("select pgmq.convert_archive_partitioned(%s)", [plain])
    assert notices == []
    before = relations(db, plain)
    db.execute("select pgmq.convert_archive_partitioned(%s)", [plain])
    db.execute("select pgmq.convert_archive_partitioned('nowhere')")
    assert len(notices) == 2
    assert "already partitioned" in notices[0]
    assert "does not exist" in notices[1]
    assert relations(db, plain) == before


def test_an_archive_is_not_converted_over_another_table(db: psycopg.Connection, plain: str) -> None:
    db.execute("select pgmq.create(%s)", [plain + "_old"])
    with error_of(psycopg.errors.DuplicateTable, f"a_{plain}_old"):
        db.execute("select pgmq.convert_archive_partitioned(%s)", [plain])
    with error_of(psycopg.errors.InvalidParameterValue, "leading_partition must be at least 1"):
        db.execute("select pgmq.convert_archive_partitioned(%s, '10', '100', 0)", [plain])
    db.execute("select pgmq.drop_queue(%s)", [plain + "_old"])


def test_drop_queue_takes_the_configuration_of_a_converted_archive_along(db: psycopg.Connection) -> None:
    name = unique("plain")
    db.execute("select pgmq.create(%s)", [name])
    db.execute("select pgmq.convert_archive_partitioned(%s)", [name])
    db.execute("select pgmq.drop_queue(%s)", [name])
    assert set(relations(db, name)) == {f"pgmq.a_{name}_old", f"pgmq.a_{name}_pkey", f'pgmq."q_{name}$archived_old"'}
    assert db.execute(f"select from {SCHEMA}.part_config where parent_table = %s", ["pgmq.a_" + name]).fetchall() == []
    db.execute(f"drop table pgmq.a_{name}_old")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_examples_of_the_documentation_run(version: str, make_database: Callable[..., Database]) -> None:
    text = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "partitions.md").read_text()
    blocks = re.findall(r"^```sql\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) >= 4
    database = make_database(extension=False)
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("set client_min_messages = warning")
        connection.execute("create extension pgmq cascade")
        for block in blocks:
            connection.execute(block.replace("pg_partman schema", f"pg_partman version '{version}' schema"))
        assert connection.execute("select queue_name from pgmq.meta").fetchall() == [("plain",)]
