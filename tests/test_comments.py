"""Every object of the extension says what it is, in the catalogs."""

from __future__ import annotations

import re

import psycopg
from conftest import unique


def functions(db: psycopg.Connection) -> dict[str, tuple[str, bool]]:
    """The comment of each function of the schema, by its signature, and whether it is public."""
    query = """
        select p.oid::regprocedure::text, coalesce(obj_description(p.oid, 'pg_proc'), ''),
            p.proname !~ '^_|[$]'
        from pg_proc as p
        where p.pronamespace = 'pgmq'::regnamespace
    """
    return {signature: (comment, is_public) for signature, comment, is_public in db.execute(query)}


def test_every_function_has_a_comment(db: psycopg.Connection, queue: str) -> None:
    commented = functions(db)
    assert any(f"q_{queue}$read" in signature for signature in commented)
    assert [signature for signature, (comment, _) in commented.items() if len(comment) < 20] == []


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


def test_comments_survive_any_name(db: psycopg.Connection) -> None:
    name = unique('a"b\\c %s {} ')
    with db.transaction(force_rollback=True):
        db.execute("select pgmq.create(%s)", [name])
        query = "select obj_description(oid, 'pg_proc') from pg_proc where starts_with(proname, %s)"
        comments = [row[0] for row in db.execute(query, [f"q_{name.lower()}$"])]
        quoted = db.execute("select quote_ident(%s)", [name]).fetchone()[0]
        assert comments
        assert all(f"queue {quoted}" in comment for comment in comments)
