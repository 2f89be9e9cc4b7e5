"""Whatever text is given for the name of a queue: it works everywhere or is refused everywhere, and is never code."""

from __future__ import annotations

import re

import psycopg
import pytest
from calls import ALL, NEED_A_QUEUE
from conftest import call, error_of, unique
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import errors, sql
from psycopg.types.json import Jsonb
from test_queues import objects

PIECES = ['"', '""', "'", "$", "$$", "$function$", ";", "--", "/*", "*/", "\\", "%", "%s", "%I", "{", "}", "{0}", "$1",
          "@queue@", "@literal:queue@", "@fragment:claim@", "@", ".", "..", " ", "\n", "\t", "\r", "pgmq", "pgmq.meta",
          "q_", "a_", "_", "-", "(", ")", "select", "drop table pgmq.meta", "null", "ß", "Ä", "İ", "ǅ", "Σ", "\u0301",
          "漢", "🐘", "\u200b", "\ufeff", "x" * 40, "ä" * 24]  # fmt: skip
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
NAMES = st.one_of(
    st.text(CHARACTERS, max_size=60),
    st.lists(st.sampled_from(PIECES) | CHARACTERS, max_size=8).map("".join),
)
FIXED = [
    "", " ", 'a"b', '"', '""', '"a"', "a.b", ".", "a b", "Größe", "UPPER", "q", "a" * 47, "Ä" * 47, "🐘" * 47,
    "pg_x", "select", "1", "1e5", "0x", "null", "a\nb", "a\tb", "a\\b", "\\", "a%b", "%s%I%L%", "{signature}", "{}",
    "@queue@", "@archive@", "@function:send@", "@literal:queue@", "@fragment:claim@", "@persistence@", "-", "- -",
    'x" (vt) values (now()) /*', '" cascade', "a/*b", "*/", "a,b", "public.x", "q_a", "a_a", "\u0301", "\u200b", "a-b",
    "a" * 30 + "ä" * 17, "e\u0301", "İ", "ẞ",
]  # fmt: skip
INVALID, TOO_LONG = "invalid characters", "maximum length is 47 characters"
REFUSED = {
    "a$b": INVALID,
    "$": INVALID,
    "$1": INVALID,
    "a;b": INVALID,
    "a--b": INVALID,
    "--": INVALID,
    "it's": INVALID,
    "x'; drop table pgmq.meta; --": INVALID,
    "a" * 48: TOO_LONG,
    "a" * 1000: TOO_LONG,
    "🐘" * 48: TOO_LONG,
    "'" * 1000: TOO_LONG,
}


def is_legal(name: str) -> bool:
    return len(name) <= 47 and not any(refused in name for refused in ("$", ";", "--", "'"))


def assert_works(db: psycopg.Connection, name: str) -> None:
    """A queue of this name, from before it is made until after it is gone; nothing else in the database changes."""
    before = objects(db)
    for query in NEED_A_QUEUE.values():
        with error_of(errors.UndefinedTable, "does not exist", hint="pgmq.create"), db.transaction():
            db.execute(query, [name])
    assert call(db, "drop_queue", name) == [(False,)]

    call(db, "create", name)
    assert ("queue", name, "false", "false", "") in objects(db) - before
    (queue_table,), (archive_table,) = (call(db, "format_table_name", name, prefix)[0] for prefix in "qa")
    lowered = db.execute("select lower(%s)", [name]).fetchone()[0]
    for prefix, table in (("q", queue_table), ("a", archive_table)):
        whole = f"{prefix}_{lowered}"
        if len(whole.encode()) <= 63:
            assert table == whole
        else:
            assert re.fullmatch(re.escape(whole[:8]) + r"\$[0-9a-f]{16}", table)

    def rows(table: str) -> list[tuple]:
        query = sql.SQL("select msg_id, message from {} order by 1").format(sql.Identifier("pgmq", table))
        return db.execute(query).fetchall()

    assert call(db, "send", name, Jsonb(name)) == [(1,)]
    assert rows(queue_table) == [(1, name)]
    for signature, query in ALL.items():
        if not signature.startswith("drop_queue"):
            with db.transaction(force_rollback=True):
                db.execute(query, [name])
    assert rows(queue_table) == [(1, name)]
    assert [(row.msg_id, row.message) for row in call(db, "read", name, 30, 5)] == [(1, name)]
    assert call(db, "metrics", name)[0][:2] == (name, 1)
    assert name in [row.queue_name for row in call(db, "metrics_all")]
    assert call(db, "archive", name, 1) == [(True,)]
    assert rows(archive_table) == [(1, name)]
    assert call(db, "drop_queue", name) == [(True,)]
    assert objects(db) == before


def assert_refused(db: psycopg.Connection, name: str, message: str) -> None:
    before = objects(db)
    for signature, query in ALL.items():
        # What looks for a queue of that name finds none.
        is_unknown = message == TOO_LONG and signature in NEED_A_QUEUE
        with error_of(errors.UndefinedTable if is_unknown else errors.RaiseException, message), db.transaction():
            db.execute(query, [name])
    assert objects(db) == before


@pytest.mark.parametrize("name", FIXED, ids=ascii)
def test_a_legal_name_works_in_every_function(db: psycopg.Connection, name: str) -> None:
    with db.transaction(force_rollback=True):
        assert_works(db, name)


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: ascii(name)[:20])
def test_an_illegal_name_is_refused_by_every_function(db: psycopg.Connection, name: str) -> None:
    assert_refused(db, name, REFUSED[name])


@pytest.mark.parametrize("query", ALL.values(), ids=ALL)
def test_a_null_name_is_refused_by_every_function(db: psycopg.Connection, query: str) -> None:
    with error_of(errors.NullValueNotAllowed, "queue name must not be NULL"):
        db.execute(query, [None])


@settings(max_examples=60)
@given(NAMES)
@example("'" + "a" * 46)
@example("\x01")
def test_every_text_works_as_a_name_or_is_refused_as_one(db: psycopg.Connection, name: str) -> None:
    with db.transaction(force_rollback=True):
        if is_legal(name):
            assert_works(db, name)
        else:
            assert_refused(db, name, TOO_LONG if len(name) > 47 else INVALID)


@settings(max_examples=60)
@given(NAMES.filter(is_legal), NAMES.filter(is_legal))
@example("a", "A")
@example("ä" * 31, "ä" * 32)
@example("a.b", 'a"."b')
def test_two_names_are_two_queues_or_one_in_two_spellings_or_the_second_is_refused(
    db: psycopg.Connection, one: str, other: str
) -> None:
    with db.transaction(force_rollback=True):
        call(db, "create", one)
        call(db, "send", one, Jsonb("one"))
        is_same, is_alike = db.execute(
            "select lower(%s) = lower(%s), pgmq.format_table_name(%s, 'q') = pgmq.format_table_name(%s, 'q')",
            [one, other, one, other],
        ).fetchone()
        if is_same:
            call(db, "create", other)
            assert [row.message for row in call(db, "read", other, 0, 5)] == ["one"]
        elif is_alike:
            with error_of(errors.DuplicateTable, "too much like", hint="shorter"), db.transaction():
                call(db, "create", other)
        else:
            call(db, "create", other)
            call(db, "send", other, Jsonb("other"))
            assert [row.message for row in call(db, "read", one, 0, 5)] == ["one"]
            assert [row.message for row in call(db, "read", other, 0, 5)] == ["other"]
            assert call(db, "drop_queue", other) == [(True,)]
            assert [row.message for row in call(db, "read", one, 0, 5)] == ["one"]


def test_a_name_whose_first_63_bytes_are_those_of_a_queue_does_nothing_to_that_queue(db: psycopg.Connection) -> None:
    queue, other = "Ä" * 40, "Ä" * 41
    with db.transaction(force_rollback=True):
        call(db, "create", queue)
        call(db, "send", queue, Jsonb(1))
        before = objects(db)
        for query in NEED_A_QUEUE.values():
            with error_of(errors.UndefinedTable, "does not exist"), db.transaction():
                db.execute(query, [other])
        assert call(db, "drop_queue", other) == [(False,)]
        assert objects(db) == before
        assert [row.message for row in call(db, "read", queue, 30, 5)] == [1]


def test_a_queue_s_own_functions_cannot_be_reached_through_a_name(db: psycopg.Connection) -> None:
    """Cut to 63 bytes, what is looked up for these texts would be a function of that queue."""
    with db.transaction(force_rollback=True):
        call(db, "create", "x" * 47)
        own = db.execute("select substr(proname, 3) from pg_proc where starts_with(proname, %s)", ["q_" + "x" * 47])
        for (name,) in own.fetchall():
            assert_refused(db, name + "🐘", TOO_LONG)


def test_a_queue_s_own_functions_are_its_own_whatever_the_length_of_its_name(db: psycopg.Connection) -> None:
    """Names of the catalogs have at most 63 bytes: those of long names are made with a digest."""
    names = [character * length for character, lengths in (("x", range(40, 48)), ("ä", range(20, 48)))
             for length in lengths]  # fmt: skip
    with db.transaction(force_rollback=True):
        for name in names:
            call(db, "create", name)
            call(db, "send", name, Jsonb(name))
        for name in names:
            assert [row.message for row in call(db, "pop", name, 5)] == [name]


@pytest.mark.parametrize("collation", ["C", "POSIX", "default"])
def test_the_collation_of_the_text_does_not_matter(db: psycopg.Connection, collation: str) -> None:
    """As when names come out of the catalogs, where text compares by bytes."""
    name = unique("GRÖSSE")
    with db.transaction(force_rollback=True):
        call(db, "create", name)
        before = objects(db)
        for query in ALL.values():
            if "drop_queue" not in query:
                with db.transaction(force_rollback=True):
                    db.execute(query.replace("%s", f'%s collate "{collation}"'), [name])
        assert objects(db) == before
        assert db.execute(f'select pgmq.drop_queue(%s collate "{collation}")', [name]).fetchone() == (True,)


def test_the_search_path_does_not_matter(db: psycopg.Connection) -> None:
    name = unique('"S"')
    with db.transaction(force_rollback=True):
        for path in ("''", "pgmq", "pg_temp, public", "pgmq, pg_catalog"):
            db.execute(f"set local search_path = {path}")
            assert_works(db, name)


def test_objects_that_shadow_those_of_the_catalogs_do_not_matter(db: psycopg.Connection) -> None:
    """Who may make a schema and put it first on its path gets no other queue for it."""
    name = unique()
    with db.transaction(force_rollback=True):
        db.execute("create schema shadow")
        db.execute("create table shadow.meta (queue_name text)")
        db.execute(f"create table shadow.q_{name} ()")
        db.execute("create function shadow.send(text, jsonb) returns bigint language sql return 13")
        db.execute("set local search_path = shadow, public")
        call(db, "create", name)
        assert call(db, "send", name, Jsonb(1)) == [(1,)]
        assert [row.message for row in call(db, "read", name, 30, 1)] == [1]
        assert call(db, "drop_queue", name) == [(True,)]
