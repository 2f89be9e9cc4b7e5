"""`make release-check`: a database that was updated holds what one with a fresh install holds, by the catalogs."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import pgmq.install
import psycopg
import pytest
from conftest import Database, call

MakeDatabase = Callable[..., Database]

# Of the reference, whose objects its published package has for one version.
REFERENCE = "1.13.0"

# Privileges without those of the owner, who has them anyhow. Each row begins with what it is about.
ACL = """
    (
        select array_agg(
            concat_ws(' ', coalesce(nullif(a.grantee, 0)::regrole::text, 'public'), a.privilege_type, a.is_grantable)
            order by 1
        )::text
        from aclexplode({acl}) as a
        where a.grantee <> {owner}
    )
"""
MEMBER = """
    (
        select d.deptype::text
        from pg_depend as d
        where d.classid = '{catalog}'::regclass
            and d.objid = {oid}
            and d.refclassid = 'pg_extension'::regclass
            and d.deptype = 'e'
    )
"""
CATALOGS = {
    "extension": """
        select e.extname, e.extversion, e.extnamespace::regnamespace::text, c.name, c.condition
        from pg_extension as e
        left join lateral (
            select unnest(e.extconfig)::regclass::text as name, unnest(e.extcondition) as condition
        ) as c on true
        where e.extname = 'pgmq'
    """,
    "requirement": """
        select r.extname
        from pg_depend as d
        join pg_extension as e on e.oid = d.objid and e.extname = 'pgmq'
        join pg_extension as r on r.oid = d.refobjid
        where d.classid = 'pg_extension'::regclass
            and d.refclassid = 'pg_extension'::regclass
    """,
    "members": """
        select pg_describe_object(d.classid, d.objid, d.objsubid)
        from pg_depend as d
        join pg_extension as e on e.oid = d.refobjid and e.extname = 'pgmq'
        where d.refclassid = 'pg_extension'::regclass
            and d.deptype = 'e'
    """,
    "schema": f"""
        select n.nspname, pg_get_userbyid(n.nspowner)::text, {ACL.format(acl="n.nspacl", owner="n.nspowner")}
        from pg_namespace as n
        where n.nspname = 'pgmq'
    """,
    "default privileges": """
        select d.defaclobjtype::text, d.defaclacl::text
        from pg_default_acl as d
    """,
    "functions": f"""
        select p.oid::regprocedure::text, pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc'),
            pg_get_userbyid(p.proowner)::text,
            {ACL.format(acl="coalesce(p.proacl, acldefault('f', p.proowner))", owner="p.proowner")},
            {MEMBER.format(catalog="pg_proc", oid="p.oid")}
        from pg_proc as p
        where p.pronamespace = 'pgmq'::regnamespace
    """,
    "types": f"""
        select t.typname, t.typtype::text, pg_get_userbyid(t.typowner)::text, obj_description(t.oid, 'pg_type'),
            {ACL.format(acl="coalesce(t.typacl, acldefault('T', t.typowner))", owner="t.typowner")},
            {MEMBER.format(catalog="pg_type", oid="t.oid")}
        from pg_type as t
        where t.typnamespace = 'pgmq'::regnamespace
    """,
    "relations": f"""
        select c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text, c.relrowsecurity,
            c.reloptions::text, pg_get_userbyid(c.relowner)::text, obj_description(c.oid, 'pg_class'),
            {ACL.format(acl="c.relacl", owner="c.relowner")},
            {MEMBER.format(catalog="pg_class", oid="c.oid")}
        from pg_class as c
        where c.relnamespace = 'pgmq'::regnamespace
            and c.relkind <> 'i'
    """,
    "columns": """
        select c.relname, row_number() over (partition by c.oid order by a.attnum), a.attname,
            format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text, a.attgenerated::text,
            pg_get_expr(d.adbin, d.adrelid), a.attcollation::regcollation::text, a.attacl::text,
            col_description(c.oid, a.attnum)
        from pg_class as c
        join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        left join pg_attrdef as d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace = 'pgmq'::regnamespace
            and c.relkind <> 'i'
    """,
    "constraints": """
        select c.conrelid::regclass::text, c.conname, pg_get_constraintdef(c.oid), c.convalidated
        from pg_constraint as c
        where c.connamespace = 'pgmq'::regnamespace
    """,
    "indexes": """
        select i.indrelid::regclass::text, pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisprimary
        from pg_index as i
        join pg_class as c on c.oid = i.indrelid and c.relnamespace = 'pgmq'::regnamespace
    """,
    "triggers": """
        select t.tgrelid::regclass::text, pg_get_triggerdef(t.oid), t.tgenabled::text
        from pg_trigger as t
        join pg_class as c on c.oid = t.tgrelid and c.relnamespace = 'pgmq'::regnamespace
        where not t.tgisinternal
    """,
}


def described(db: psycopg.Connection) -> dict[str, set[tuple]]:
    return {what: set(db.execute(query)) for what, query in CATALOGS.items()}


def differences(fresh: psycopg.Connection, updated: psycopg.Connection) -> list[tuple]:
    expected, given = described(fresh), described(updated)
    return sorted(
        [("only fresh", what, *row) for what in CATALOGS for row in expected[what] - given[what]]
        + [("only updated", what, *row) for what in CATALOGS for row in given[what] - expected[what]],
        key=repr,
    )


def install_reference(version: str) -> None:
    """Put the objects of the reference beside ours for CREATE EXTENSION, labelled as this version.

    It needs no superuser. The files go with the server; another worker may be doing the same.
    """
    extensions = pathlib.Path(os.environ["PGMQ_TEST_EXTENSIONS"])
    for suffix, text in (
        ("sql", pgmq.install.get_embedded_install_sql()),
        ("control", "superuser = false\ntrusted = false\nrequires = ''\n"),
    ):
        new = extensions / f"{os.getpid()}.new"
        new.write_text(text)
        new.chmod(0o644)
        new.rename(extensions / f"pgmq--{version}.{suffix}")


def from_reference(
    make_database: MakeDatabase, version: str = REFERENCE, role: str | None = None, plpython: bool = True
) -> Database:
    """A database with the reference as an extension, made by a superuser or by a role, who owns the database then."""
    database = make_database(extension=False, owner=role)
    if plpython:
        database.connect().execute("create extension plpython3u")
    install_reference(version)
    database.connect(role).execute(f"create extension pgmq version '{version}'")
    return database


def make_queues(db: psycopg.Connection) -> None:
    call(db, "create", "plain")
    call(db, "create_unlogged", "Fast one")
    call(db, "create", "grouped")
    call(db, "create_fifo_index", "grouped")
    call(db, "create", "Notifying")
    call(db, "enable_notify_insert", "Notifying", 500)


def test_an_update_from_the_reference_gives_what_a_fresh_install_gives(make_database: MakeDatabase) -> None:
    fresh, updated = make_database().connect(), from_reference(make_database).connect()
    updated.execute("alter extension pgmq update to '2.0.0'")
    assert differences(fresh, updated) == []
    make_queues(fresh)
    make_queues(updated)
    assert differences(fresh, updated) == []


def test_the_queues_of_the_reference_have_what_fresh_queues_have(make_database: MakeDatabase) -> None:
    fresh, updated = make_database().connect(), from_reference(make_database).connect()
    make_queues(fresh)
    make_queues(updated)
    updated.execute("alter extension pgmq update to '2.0.0'")
    # The archive's index on its time keeps its name.
    archived = [row for row in differences(fresh, updated) if "(archived_at)" in str(row)]
    assert [row for row in differences(fresh, updated) if row not in archived] == []
    assert len(archived) == 2 * 4


@pytest.mark.parametrize(
    "what, change",
    [
        ("extension", "alter extension pgmq drop table pgmq.meta"),
        ("members", "alter extension pgmq drop function pgmq.metrics_all()"),
        ("schema", "grant create on schema pgmq to pg_monitor"),
        ("default privileges", "alter default privileges in schema pgmq grant select on tables to pg_monitor"),
        ("functions", "alter function pgmq.metrics_all() cost 7"),
        ("functions", "revoke execute on function pgmq.metrics_all() from public"),
        ("types", "comment on type pgmq.message_record is null"),
        ("relations", "grant delete on pgmq.meta to pg_monitor"),
        ("relations", "alter table pgmq.topic_version set unlogged"),
        ("columns", "alter table pgmq.meta alter created_at drop default"),
        ("constraints", "alter table pgmq.meta add check (is_unlogged is not null)"),
        ("indexes", "create index on pgmq.meta (created_at)"),
        ("triggers", "alter table pgmq.topic_bindings disable trigger version_open"),
    ],
)
def test_a_difference_in_what_the_catalogs_hold_is_seen(database: Database, what: str, change: str) -> None:
    db = database.connect(autocommit=False)
    before = described(db)
    db.execute(change)
    assert described(db)[what] != before[what]
    db.rollback()
