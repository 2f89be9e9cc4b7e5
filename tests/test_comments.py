"""Every object of the extension says what it is, in the catalogs."""

from __future__ import annotations

import re

import psycopg


def functions(db: psycopg.Connection) -> dict[str, tuple[str, bool]]:
    """The comment of each function of the schema, by its signature, and whether it is public."""
    query = """
        select p.oid::regprocedure::text, coalesce(obj_description(p.oid, 'pg_proc'), ''),
            p.proname !~ '^_|[$]'
        from pg_proc as p
        where p.pronamespace = 'pgmq'::regnamespace
    """
    return {signature: (comment, is_public) for signature, comment, is_public in db.execute(query)}


def test_every_function_has_a_comment(db: psycopg.Connection) -> None:
    """Except for those that each queue has of its own: their text would be in every dump, once per queue."""
    lacking = [signature for signature, (comment, _) in functions(db).items() if len(comment) < 20]
    assert [signature for signature in lacking if "$" not in signature] == []


def test_the_tables_of_a_queue_say_what_they_are(db: psycopg.Connection, queue: str) -> None:
    for prefix, text in (("q", "pgmq.send"), ("a", "pgmq.archive")):
        query = "select obj_description(to_regclass(%s), 'pg_class')"
        assert text in db.execute(query, [f"pgmq.{prefix}_{queue}"]).fetchone()[0]


def test_the_comment_of_every_public_function_names_its_privileges(db: psycopg.Connection) -> None:
    public = {signature: comment for signature, (comment, is_public) in functions(db).items() if is_public}
    # A form of a function sends the reader to another: "More: send(text, jsonb)", "Errors and privileges: as read".
    lacking = []
    for signature, comment in public.items():
        referred = re.search(r"More: (.+\))\.", comment)
        if referred:
            comment = public[f"pgmq.{referred.group(1).replace(', ', ',')}"]
        if not re.search(r"[Pp]rivileges: ", comment):
            lacking.append(signature)
    assert lacking == []


def test_every_table_and_type_has_a_comment(db: psycopg.Connection) -> None:
    query = """
        select c.relname::text
        from pg_class as c
        join pg_depend as d on d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
        left join pg_type as t on t.typrelid = c.oid and c.relkind = 'c'
        where c.relkind in ('r', 'v', 'c')
            and coalesce(obj_description(c.oid, 'pg_class'), obj_description(t.oid, 'pg_type')) is null
    """
    assert db.execute(query).fetchall() == []
