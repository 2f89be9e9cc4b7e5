"""What is promised for topics: patterns, sending by routing key, and bindings that are never stale."""

import os
import pathlib
import random
import re
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
import servers
from conftest import Database, error_of, unique
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

DOCS = pathlib.Path(__file__).parent.parent / "docs"


@pytest.fixture(autouse=True)
def no_bindings(db: psycopg.Connection) -> Iterator[None]:
    """Bindings are shared by all queues of a database."""
    # A test that fails with a transaction open is not to hold up the cleaning.
    db.execute("set lock_timeout = '10s'")
    db.execute("delete from pgmq.topic_bindings")
    yield
    db.execute("delete from pgmq.topic_bindings")


@pytest.fixture
def make_queues(db: psycopg.Connection) -> Iterator[Callable[[int], list[str]]]:
    made: list[str] = []

    def make(count: int) -> list[str]:
        names = sorted(unique("topic") for _ in range(count))
        for name in names:
            db.execute("select pgmq.create(%s)", [name])
            made.append(name)
        return names

    yield make
    for name in made:
        db.execute("select pgmq.drop_queue(%s)", [name])


def bind(connection: psycopg.Connection, pattern: str, queue: str) -> None:
    connection.execute("select pgmq.bind_topic(%s, %s)", [pattern, queue])


def reached(connection: psycopg.Connection, key: str) -> int:
    """How many queues a message reaches."""
    return connection.execute("select pgmq.send_topic(%s, '{}')", [key]).fetchone()[0]


def matching(connection: psycopg.Connection, key: str) -> list[str]:
    return [row[0] for row in connection.execute("select pattern from pgmq.test_routing(%s)", [key])]


def messages(connection: psycopg.Connection, queue: str) -> list[tuple]:
    return connection.execute(
        sql.SQL("select message, headers from {} order by msg_id").format(sql.Identifier("pgmq", f"q_{queue}".lower()))
    ).fetchall()


# Keys and patterns


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "cannot be NULL or empty"),
        ("a" * 256, "length cannot exceed 255 characters, got 256"),
        ("é", "invalid characters. Got: é"),
        ("a b", "invalid characters. Got: a b"),
        ("a\n", "invalid characters. Got: a\n"),
        ("a*", "invalid characters. Got: a*"),
        ("a#", "invalid characters. Got: a#"),
        (".a", "cannot start with a dot. Got: .a"),
        ("a.", "cannot end with a dot. Got: a."),
        ("a..b", "consecutive dots. Got: a..b"),
    ],
)
def test_each_breach_of_a_routing_key_has_an_error_of_its_own(db: psycopg.Connection, key: str, message: str) -> None:
    for call in (
        "select pgmq.validate_routing_key(%s)",
        "select pgmq.send_topic(%s, '{}')",
        "select pgmq.send_topic(%s, '{}', 1)",
        "select pgmq.send_topic(%s, '{}', '{}', 1)",
        "select pgmq.send_batch_topic(%s, array['{}']::jsonb[])",
        "select pgmq.test_routing(%s)",
    ):
        with error_of(psycopg.errors.RaiseException, message, "dots"):
            db.execute(call, [key])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "cannot be NULL or empty"),
        ("a" * 256, "length cannot exceed 255 characters, got 256"),
        ("é", "invalid characters. Got: é"),
        ("a?", "invalid characters. Got: a?"),
        (".a", "cannot start with a dot. Got: .a"),
        ("a.", "cannot end with a dot. Got: a."),
        ("a..b", "consecutive dots. Got: a..b"),
        ("a.**", "consecutive stars (**). Got: a.**"),
        ("a.##", "consecutive hashes (##). Got: a.##"),
        ("a.*#", "adjacent wildcards (*# or #*). Got: a.*#"),
        ("a.#*", "adjacent wildcards (*# or #*). Got: a.#*"),
    ],
)
def test_each_breach_of_a_pattern_has_an_error_of_its_own(
    db: psycopg.Connection, queue: str, pattern: str, message: str
) -> None:
    for call in (
        "select pgmq.validate_topic_pattern(%(pattern)s)",
        "select pgmq.bind_topic(%(pattern)s, %(queue)s)",
        "insert into pgmq.topic_bindings (pattern, queue_name) values (%(pattern)s, %(queue)s)",
    ):
        with error_of(psycopg.errors.RaiseException, message):
            db.execute(call, {"pattern": pattern, "queue": queue})


def test_null_is_neither_key_nor_pattern_nor_queue(db: psycopg.Connection, queue: str) -> None:
    for call in (
        "pgmq.validate_routing_key(null)",
        "pgmq.validate_topic_pattern(null)",
        "pgmq.send_topic(null, '{}')",
        "pgmq.send_batch_topic(null, array['{}']::jsonb[])",
        "pgmq.test_routing(null)",
        f"pgmq.bind_topic(null, '{queue}')",
        f"pgmq.unbind_topic(null, '{queue}')",
        "pgmq.bind_topic('a', null)",
        "pgmq.unbind_topic('a', null)",
        f"pgmq.unbind_topic('', '{queue}')",
        "pgmq.bind_topic('a', '')",
        "pgmq.unbind_topic('a', '')",
    ):
        with error_of(psycopg.errors.RaiseException, "cannot be NULL or empty"):
            db.execute(f"select {call}")
    with error_of(psycopg.errors.NullValueNotAllowed, "must not be NULL"):
        db.execute("select pgmq.list_topic_bindings(null)")


def test_keys_and_patterns_of_255_characters_are_legal(db: psycopg.Connection, queue: str) -> None:
    key = "a." * 127 + "b"
    bind(db, key, queue)
    bind(db, "#" + key[1:], queue)
    assert matching(db, key) == ["#" + key[1:], key]
    assert reached(db, key) == 1


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("logs.*", ["logs.a", "logs.a-b_C9"], ["logs", "logs.a.b", "xlogs.a"]),
        ("logs.#", ["logs.a", "logs.a.b"], ["logs", "logsa"]),
        ("#", ["a", "a.b.c"], []),
        ("*", ["a", "a-b"], ["a.b"]),
        ("a*b.c", ["axb.c", "abb.c"], ["ab.c", "a.b.c", "axb.d"]),
        ("a#b", ["ab", "a.b", "axxb", "a.x.b"], ["a", "b", "abc"]),
        ("#.b", ["a.b", "a.c.b"], ["b", "a.bc"]),
        ("a.#.b", ["a.x.b", "a.x.y.b"], ["a.b"]),
        ("*.*", ["a.b"], ["a", "a.b.c"]),
        ("*a*", ["bab", "aaa"], ["ab", "ba", "b.ab"]),
    ],
)
def test_a_pattern_matches_the_whole_key(
    db: psycopg.Connection, queue: str, pattern: str, matches: list[str], others: list[str]
) -> None:
    bind(db, pattern, queue)
    for key in matches:
        assert (key, reached(db, key)) == (key, 1)
    for key in others:
        assert (key, reached(db, key)) == (key, 0)


# Few letters, so that keys and patterns often agree for a while.
segments = st.text("ab-", min_size=1, max_size=4)
keys = st.lists(segments, min_size=1, max_size=5).map(".".join)
pattern_texts = st.text("ab.*#", min_size=1, max_size=10)


def is_pattern(text: str) -> bool:
    return not re.search(r"^\.|\.$|\.\.|[*#]{2}", text)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(pattern_texts.filter(is_pattern), min_size=1, max_size=25), st.lists(keys, min_size=1, max_size=10))
@example({"#a#a#a#a", "#a*a#b", "*a.#a", "a#.#", "#.#.#"}, ["aaaa", "a.a.a.a", "aaa.ba", "a.b.a"])
def test_trie_and_regular_expression_agree(
    db: psycopg.Connection, queue: str, patterns: set[str], keys: list[str]
) -> None:
    db.execute("truncate pgmq.topic_bindings")
    db.execute(
        "insert into pgmq.topic_bindings (pattern, queue_name) select unnest(%s::text[]), %s", [list(patterns), queue]
    )
    for key in keys:
        expected = db.execute(
            "select array_agg(pattern order by pattern) from pgmq.topic_bindings where %s ~ compiled_regex", [key]
        ).fetchone()[0]
        assert matching(db, key) == (expected or [])
        assert reached(db, key) == (1 if expected else 0)


def test_no_pattern_makes_matching_exponential(db: psycopg.Connection, queue: str) -> None:
    bind(db, "#a" * 127 + "b", queue)
    bind(db, "*a" * 127 + "b", queue)
    db.execute("set statement_timeout = '20s'")
    began = time.monotonic()
    assert reached(db, "a" * 255) == 0
    # What a pattern that is retried from every place would take is not seconds but ages.
    assert time.monotonic() - began < 10


# Bindings


def test_binding_an_unknown_queue_is_refused(db: psycopg.Connection) -> None:
    with error_of(psycopg.errors.RaiseException, "does not exist", "pgmq.create('nowhere')"):
        bind(db, "a", "nowhere")
    with error_of(psycopg.errors.RaiseException, "invalid characters"):
        bind(db, "a", "no$where")


def test_binding_twice_changes_nothing(db: psycopg.Connection, queue: str) -> None:
    bind(db, "a", queue)
    first = db.execute("select * from pgmq.topic_bindings").fetchall()
    bind(db, "a", queue)
    assert db.execute("select * from pgmq.topic_bindings").fetchall() == first


def test_unbind_says_whether_there_was_a_binding(db: psycopg.Connection, queue: str) -> None:
    bind(db, "a", queue)
    answers = [
        db.execute("select pgmq.unbind_topic(%s, %s)", [pattern, name]).fetchone()[0]
        for pattern, name in (("b", queue), ("a", "nowhere"), ("a", queue), ("a", queue))
    ]
    assert answers == [False, False, True, False]
    assert reached(db, "a") == 0


@pytest.mark.parametrize("name", ["Upper Case", 'a"b.c-d', "ÄÖ-grün", "x" * 47])
def test_any_queue_name_can_be_bound_in_any_case(db: psycopg.Connection, name: str) -> None:
    db.execute("select pgmq.create(%s)", [name])
    try:
        bind(db, "a", name.swapcase())
        assert db.execute("select pattern, queue_name from pgmq.list_topic_bindings()").fetchall() == [("a", name)]
        listed = db.execute("select queue_name from pgmq.list_topic_bindings(%s)", [name.upper()]).fetchall()
        assert listed == [(name,)]
        assert reached(db, "a") == 1
        assert db.execute("select queue_name, msg_id from pgmq.send_batch_topic('a', '{1}')").fetchall() == [(name, 2)]
        assert db.execute("select pgmq.unbind_topic('a', %s)", [name.lower()]).fetchone()[0] is True
    finally:
        db.execute("select pgmq.drop_queue(%s)", [name])


def test_list_shows_the_newest_first(db: psycopg.Connection, make_queues: Callable[[int], list[str]]) -> None:
    first, second = make_queues(2)
    for pattern, name in (("b", first), ("a", second), ("c.#", first)):
        bind(db, pattern, name)
    listed = db.execute("select pattern, queue_name, compiled_regex from pgmq.list_topic_bindings()").fetchall()
    assert listed == [("c.#", first, r"^c\..*$"), ("a", second, "^a$"), ("b", first, "^b$")]
    listed = db.execute("select pattern from pgmq.list_topic_bindings(%s)", [first]).fetchall()
    assert listed == [("c.#",), ("b",)]
    assert db.execute("select * from pgmq.list_topic_bindings('nowhere')").fetchall() == []


def test_dropping_a_queue_removes_its_bindings(db: psycopg.Connection, make_queues: Callable[[int], list[str]]) -> None:
    first, second = make_queues(2)
    bind(db, "a", first)
    bind(db, "a", second)
    assert reached(db, "a") == 2
    db.execute("select pgmq.drop_queue(%s)", [first])
    assert reached(db, "a") == 1
    assert db.execute("select queue_name from pgmq.topic_bindings").fetchall() == [(second,)]


# Sending


def test_a_queue_gets_a_message_once_however_many_patterns_match(
    db: psycopg.Connection, make_queues: Callable[[int], list[str]]
) -> None:
    first, second = make_queues(2)
    for pattern in ("#", "a.*", "a.b"):
        bind(db, pattern, first)
    bind(db, "a.#", second)
    bind(db, "x", second)
    sent = db.execute("""select pgmq.send_topic('a.b', '{"x": 1.10}', '{"h": 1}', 0)""").fetchone()[0]
    assert sent == 2
    for name in (first, second):
        assert messages(db, name) == [({"x": 1.10}, {"h": 1})]
    # Not by way of another type.
    text = db.execute(f"select message::text from pgmq.q_{first}").fetchone()[0]
    assert text == '{"x": 1.10}'


def test_a_delay_hides_the_message(db: psycopg.Connection, queue: str) -> None:
    bind(db, "a", queue)
    db.execute("select pgmq.send_topic('a', '1', 60)")
    db.execute("select pgmq.send_topic('a', '2', null, 60)")
    db.execute("select pgmq.send_batch_topic('a', '{3}', 60)")
    db.execute("select pgmq.send_batch_topic('a', '{4}', '{null}'::jsonb[], 60)")
    db.execute("select pgmq.send_batch_topic('a', '{5}', now() + interval '60 s')")
    db.execute("select pgmq.send_batch_topic('a', '{6}', '{null}'::jsonb[], now() + interval '60 s')")
    delays = db.execute(f"select message, extract(epoch from vt - enqueued_at)::integer from pgmq.q_{queue}").fetchall()
    assert delays == [(number, 60) for number in range(1, 7)]
    assert db.execute("select * from pgmq.read(%s, 0, 10)", [queue]).fetchall() == []


def test_send_topic_refuses_a_negative_delay_and_null(db: psycopg.Connection, queue: str) -> None:
    bind(db, "a", queue)
    for key in ("a", "reaches.nothing"):
        with error_of(psycopg.errors.RaiseException, "delay cannot be negative, got: -1", "seconds"):
            db.execute("select pgmq.send_topic(%s, '{}', -1)", [key])
        with error_of(psycopg.errors.RaiseException, "msg cannot be NULL"):
            db.execute("select pgmq.send_topic(%s, null)", [key])
        with error_of(psycopg.errors.NullValueNotAllowed, "delay must not be NULL"):
            db.execute("select pgmq.send_topic(%s, '{}', null::integer)", [key])
    assert messages(db, queue) == []


def test_send_batch_topic_returns_queue_and_id_of_every_message(
    db: psycopg.Connection, make_queues: Callable[[int], list[str]]
) -> None:
    first, second = make_queues(2)
    bind(db, "a.*", second)
    bind(db, "a.#", first)
    bind(db, "a.b", first)
    sent = db.execute("""select * from pgmq.send_batch_topic('a.b', '{1,2}', array['{"h": 1}', null]::jsonb[])""")
    assert sent.fetchall() == [(first, 1), (first, 2), (second, 1), (second, 2)]
    assert messages(db, second) == [(1, {"h": 1}), (2, None)]
    assert db.execute("select * from pgmq.send_batch_topic('b', '{1}')").fetchall() == []


def test_send_batch_topic_refuses_what_send_batch_refuses(db: psycopg.Connection, queue: str) -> None:
    bind(db, "a", queue)
    for key in ("a", "reaches.nothing"):
        for arguments, error, message in (
            ("null", psycopg.errors.RaiseException, "NULL or empty"),
            ("'{}'", psycopg.errors.RaiseException, "NULL or empty"),
            ("'{1}', '{null,null}'::jsonb[]", psycopg.errors.RaiseException, "must match"),
            ("'{1}', null::integer", psycopg.errors.NullValueNotAllowed, "delay must not be NULL"),
            ("'{1}', null::timestamptz", psycopg.errors.NullValueNotAllowed, "delay must not be NULL"),
        ):
            with error_of(error, message):
                db.execute(f"select pgmq.send_batch_topic('{key}', {arguments})")
    assert messages(db, queue) == []


def test_all_queues_get_the_message_or_none(db: psycopg.Connection, make_queues: Callable[[int], list[str]]) -> None:
    first, second = make_queues(2)
    bind(db, "a", first)
    bind(db, "a", second)
    db.execute(f"alter table pgmq.q_{second} add check (message is null)")
    for call in ("pgmq.send_topic('a', '{}')", "pgmq.send_batch_topic('a', '{1}')"):
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute(f"select {call}")
    assert messages(db, first) == []


# Bindings are never stale


# The state of the triggers as they are installed.
ENABLE = (
    "alter table pgmq.topic_bindings enable trigger check_queue, enable replica trigger version_replicated"
    + "".join(f", enable always trigger version_{name}" for name in ("open", "insert", "update", "delete", "truncate"))
)


def scans(connection: psycopg.Connection) -> int:
    """How often this transaction has read the bindings as a whole."""
    return connection.execute(
        "select seq_scan from pg_stat_xact_user_tables where relid = 'pgmq.topic_bindings'::regclass"
    ).fetchone()[0]


def test_a_session_reads_the_bindings_again_only_when_they_have_changed(
    db: psycopg.Connection, database: Database, make_queues: Callable[[int], list[str]]
) -> None:
    first, second = make_queues(2)
    bind(db, "a", first)
    sender = database.connect()
    assert reached(sender, "a") == 1
    with sender.transaction():
        before = scans(sender)
        # Neither a binding that is there, nor one that is not there to be removed, nor another queue that goes.
        bind(db, "a", first)
        db.execute("select pgmq.unbind_topic('b', %s)", [first])
        db.execute("select pgmq.drop_queue(%s)", [second])
        assert reached(sender, "a") == 1
        assert scans(sender) == before
        bind(db, "b", first)
        assert reached(sender, "a") == 1
        assert scans(sender) == before + 1


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        ("select pgmq.bind_topic('a', '{other}')", 1, 2),
        ("select pgmq.unbind_topic('a', '{queue}')", 1, 0),
        ("insert into pgmq.topic_bindings (pattern, queue_name) values ('a', '{other}')", 1, 2),
        ("update pgmq.topic_bindings set pattern = 'b'", 1, 0),
        ("delete from pgmq.topic_bindings", 1, 0),
        ("truncate pgmq.topic_bindings", 1, 0),
        ("merge", 1, 0),
        ("copy", 1, 2),
        ("select pgmq.drop_queue('{queue}')", 1, 0),
        ("set local session_replication_role = replica; delete from pgmq.topic_bindings", 1, 0),
        (f"alter table pgmq.topic_bindings disable trigger user; truncate pgmq.topic_bindings; {ENABLE}", 1, 0),
    ],
)
def test_a_change_counts_when_it_is_committed_and_not_before(
    db: psycopg.Connection,
    database: Database,
    make_queues: Callable[[int], list[str]],
    change: str,
    before: int,
    after: int,
) -> None:
    queue, other = make_queues(2)
    bind(db, "a", queue)
    editor, sender = database.connect(autocommit=False), database.connect()
    repeatable = database.connect(autocommit=False)
    repeatable.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

    def edit() -> None:
        if change == "copy":
            with editor.cursor().copy("copy pgmq.topic_bindings (pattern, queue_name) from stdin") as copy:
                copy.write_row(["a", other])
        elif change == "merge" and editor.info.server_version >= 150000:
            editor.execute(
                "merge into pgmq.topic_bindings as b using (values ('a')) as v (p) on b.pattern = v.p"
                " when matched then delete"
            )
        elif change == "merge":
            editor.execute("delete from pgmq.topic_bindings where pattern = 'a'")
        else:
            editor.execute(change.format(queue=queue, other=other))

    locks_table = "truncate" in change or "alter table" in change or "drop_queue" in change
    assert reached(sender, "a") == before
    edit()
    assert reached(editor, "a") == after
    if not locks_table:
        assert reached(sender, "a") == before
    editor.rollback()
    assert reached(sender, "a") == before
    assert reached(editor, "a") == before
    editor.rollback()

    edit()
    assert reached(editor, "a") == after
    if not locks_table:
        assert len(matching(repeatable, "a")) == before
    editor.commit()
    assert reached(sender, "a") == after
    if not locks_table:
        assert len(matching(repeatable, "a")) == before
        repeatable.rollback()
    assert len(matching(repeatable, "a")) == after


def test_a_savepoint_gives_back_the_bindings_it_had(db: psycopg.Connection, make_queues: Callable) -> None:
    first, second = make_queues(2)
    bind(db, "a", first)
    with db.transaction():
        for _ in range(2):
            with db.transaction(force_rollback=True):
                bind(db, "a", second)
                assert reached(db, "a") == 2
            assert reached(db, "a") == 1
        with db.transaction(force_rollback=True):
            db.execute("delete from pgmq.topic_bindings")
            assert reached(db, "a") == 0
            with db.transaction(force_rollback=True):
                bind(db, "a", second)
                assert reached(db, "a") == 1
            assert reached(db, "a") == 0
        assert reached(db, "a") == 1


def test_a_change_rolled_back_and_another_made_in_its_place_are_not_the_same(
    db: psycopg.Connection, database: Database, make_queues: Callable[[int], list[str]]
) -> None:
    first, second = make_queues(2)
    editor, sender = database.connect(autocommit=False), database.connect()
    for name, commits in ((first, False), (second, True)):
        bind(editor, f"to.{name}", name)
        assert [reached(editor, f"to.{queue}") for queue in (first, second)] == [name == first, name == second]
        if commits:
            editor.commit()
        else:
            editor.rollback()
        assert [reached(sender, f"to.{queue}") for queue in (first, second)] == [False, commits and name == second]
        sender.execute(f"truncate pgmq.q_{first}, pgmq.q_{second}")


def test_a_statement_that_binds_and_sends_sees_its_own_bindings(
    db: psycopg.Connection, make_queues: Callable[[int], list[str]]
) -> None:
    first, second = make_queues(2)
    bind(db, "a", first)
    assert reached(db, "a") == 1
    query = """
        with bound as (
            insert into pgmq.topic_bindings (pattern, queue_name)
            select unnest(array['a', 'b']), %s
            returning pattern
        )
        select pgmq.send_topic('a', '{}'), pgmq.send_topic('b', '{}')
        from bound
    """
    with db.transaction(force_rollback=True):
        assert db.execute(query, [second]).fetchall() == [(2, 0), (2, 1)]
        assert [reached(db, "a"), reached(db, "b")] == [2, 1]
    assert [reached(db, "a"), reached(db, "b")] == [1, 0]


def test_an_old_snapshot_is_not_served_from_new_bindings(
    db: psycopg.Connection, database: Database, make_queues: Callable[[int], list[str]]
) -> None:
    first, second = make_queues(2)
    bind(db, "a", first)
    for level in (psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE):
        sender = database.connect(autocommit=False)
        sender.isolation_level = level
        assert reached(sender, "a") == 1
        bind(db, "a", second)
        assert reached(sender, "a") == 1
        sender.commit()
        assert reached(sender, "a") == 2
        sender.commit()
        db.execute("select pgmq.unbind_topic('a', %s)", [second])


def test_a_cursor_keeps_the_bindings_it_was_opened_with(
    db: psycopg.Connection, make_queues: Callable[[int], list[str]]
) -> None:
    first, second = make_queues(2)
    bind(db, "a", first)
    with db.transaction():
        db.execute(
            "declare c cursor for select (select count(*) from pgmq.test_routing('a')) from generate_series(1, 3)"
        )
        assert db.execute("fetch c").fetchall() == [(1,)]
        bind(db, "a", second)
        assert len(matching(db, "a")) == 2
        assert db.execute("fetch c").fetchall() == [(1,)]
        assert len(matching(db, "a")) == 2


def test_random_histories_of_changes_in_three_sessions(
    db: psycopg.Connection, database: Database, make_queues: Callable[[int], list[str]]
) -> None:
    queues = make_queues(3)
    choose = random.Random(20)
    sessions = [database.connect(autocommit=False) for _ in range(3)]
    sessions[2].isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    depth = [0, 0, 0]
    for session in sessions:
        session.execute("set lock_timeout = '10ms'")
        session.commit()
    for _ in range(600):
        number = choose.randrange(3)
        session, queue = sessions[number], choose.choice(queues)
        action = choose.choice(["bind", "unbind", "savepoint", "back", "commit", "rollback", "look", "look", "look"])
        try:
            if action == "bind":
                bind(session, choose.choice("ab"), queue)
            elif action == "unbind":
                session.execute("select pgmq.unbind_topic(%s, %s)", [choose.choice("ab"), queue])
            elif action == "savepoint":
                session.execute("savepoint s")
                depth[number] += 1
            elif action == "back" and depth[number]:
                session.execute("rollback to s")
            elif action in ("commit", "rollback"):
                getattr(session, action)()
                depth[number] = 0
            else:
                pairs = session.execute("""
                    select (select array_agg((b.pattern, b.queue_name)::text order by b.pattern, b.queue_name)
                            from pgmq.topic_bindings as b where k.key ~ b.compiled_regex),
                        (select array_agg((r.pattern, r.queue_name)::text order by r.pattern, r.queue_name)
                            from pgmq.test_routing(k.key) as r)
                    from (values ('a'), ('b')) as k (key)
                """).fetchall()
                assert all(expected == found for expected, found in pairs)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.SerializationFailure):
            # The same binding by two, which the primary key lets wait.
            session.rollback()
            depth[number] = 0
    for session in sessions:
        session.rollback()


def test_bindings_of_an_extension_that_is_dropped_and_made_anew_are_gone(
    make_database: Callable[..., Database],
) -> None:
    database = make_database()
    connection = database.connect()
    for _ in range(2):
        connection.execute("select pgmq.create('again')")
        assert reached(connection, "a") == 0
        bind(connection, "a", "again")
        assert reached(connection, "a") == 1
        connection.execute("drop extension pgmq cascade")
        connection.execute("drop table if exists pgmq.q_again, pgmq.a_again cascade")
        connection.execute("create extension pgmq")
    assert reached(connection, "a") == 0


def test_triggers_that_were_disabled_for_a_restore_leave_nothing_stale(
    make_database: Callable[..., Database],
) -> None:
    database = make_database()
    editor, sender = database.connect(), database.connect()
    editor.execute("select pgmq.create('q')")
    bind(editor, "a", "q")
    for state in ("disable trigger all", "enable trigger all"):
        # The second is another state than at first: these triggers do not fire for a replica.
        editor.execute(f"alter table pgmq.topic_bindings {state}")
        editor.execute("set session_replication_role = replica")
        for expected in (0, 1):
            if expected:
                editor.execute("insert into pgmq.topic_bindings values ('a', 'q')")
            else:
                editor.execute("delete from pgmq.topic_bindings")
            assert reached(sender, "a") == expected
        editor.execute("reset session_replication_role")
    editor.execute(ENABLE)
    assert reached(sender, "a") == 1
    with sender.transaction():
        before = scans(sender)
        assert reached(sender, "a") == 1
        assert scans(sender) == before


def test_a_subscriber_notices_what_logical_replication_brings() -> None:
    with psycopg.connect(os.environ["PGMQ_TEST_DSN"]) as connection:
        installation = servers.get_major(connection.info.server_version // 10000)
    with servers.cluster(installation, wal_level="logical") as cluster:
        options = {"autocommit": True}
        with psycopg.connect(cluster.dsn(), **options) as publisher:
            publisher.execute("create database subscriber")
            with psycopg.connect(cluster.dsn("subscriber"), **options) as subscriber:
                for connection in (publisher, subscriber):
                    connection.execute("set client_min_messages = warning")
                    connection.execute("create extension pgmq cascade")
                    connection.execute("select pgmq.create('q')")
                publisher.execute("create publication p for table pgmq.topic_bindings")
                publisher.execute("select pg_create_logical_replication_slot('s', 'pgoutput')")
                subscriber.execute(
                    sql.SQL("create subscription s connection {} publication p with (create_slot = false)").format(
                        sql.Literal(cluster.dsn())
                    )
                )
                for change, expected in (
                    ("insert into pgmq.topic_bindings values ('a', 'q'), ('b', 'q')", ["a"]),
                    ("update pgmq.topic_bindings set pattern = '*' where pattern = 'a'", ["*"]),
                    ("delete from pgmq.topic_bindings where pattern = '*'", []),
                ):
                    publisher.execute(change)
                    deadline = time.monotonic() + 30
                    while matching(subscriber, "a") != expected:
                        assert time.monotonic() < deadline, change
                        time.sleep(0.01)
                subscriber.execute("drop subscription s")


# Binding side by side


def test_sessions_that_bind_do_not_wait_for_one_another(
    db: psycopg.Connection, database: Database, make_queues: Callable[[int], list[str]]
) -> None:
    queues = make_queues(3)
    sessions = [database.connect(autocommit=False) for _ in queues]
    for rounds in range(2):
        for session, queue in zip(sessions, queues, strict=True):
            session.execute("set local lock_timeout = '1s'")
            bind(session, f"r{rounds}", queue)
            session.execute("select pgmq.unbind_topic('x', %s)", [queue])
        for session in sessions:
            session.commit()
        assert reached(db, f"r{rounds}") == 3
    bind(db, "last", queues[0])
    assert db.execute("select count(*) from pgmq.topic_version").fetchone()[0] == 1


def test_versions_do_not_pile_up_in_repeatable_read(db: psycopg.Connection, database: Database, queue: str) -> None:
    session = database.connect()
    session.execute("set default_transaction_isolation = 'repeatable read'")
    for number in range(250):
        bind(session, f"p{number}", queue)
    assert db.execute("select count(*) from pgmq.topic_version").fetchone()[0] <= 101


# Privileges


def test_who_may_read_the_bindings_and_insert_into_the_queues_may_send(
    db: psycopg.Connection, database: Database, make_role: Callable[..., str], queue: str
) -> None:
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    db.execute(f"grant select on pgmq.topic_bindings to {role}")
    db.execute(f"grant insert, select on pgmq.q_{queue} to {role}")
    bind(db, "a", queue)
    sender = database.connect(role)
    assert reached(sender, "a") == 1
    assert sender.execute("select queue_name from pgmq.send_batch_topic('a', '{1}')").fetchall() == [(queue,)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        bind(sender, "b", queue)


def test_who_may_edit_the_bindings_needs_nothing_more(
    db: psycopg.Connection, database: Database, make_role: Callable[..., str], queue: str
) -> None:
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    db.execute(f"grant select on pgmq.meta to {role}")
    db.execute(f"grant select, insert, delete on pgmq.topic_bindings to {role}")
    binder = database.connect(role)
    bind(binder, "a", queue)
    assert reached(db, "a") == 1
    assert binder.execute("select pgmq.unbind_topic('a', %s)", [queue]).fetchone()[0] is True
    assert reached(db, "a") == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        binder.execute("delete from pgmq.topic_version")


def test_a_role_is_not_served_from_what_another_role_of_the_session_has_read(
    db: psycopg.Connection, make_role: Callable[..., str], queue: str
) -> None:
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    bind(db, "a", queue)
    assert matching(db, "a") == ["a"]
    db.execute(f"set role {role}")
    try:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute("select pgmq._matching_queues('a')")
    finally:
        db.execute("reset role")


def test_row_level_security_shows_each_role_its_own_bindings(
    db: psycopg.Connection, make_role: Callable[..., str], queue: str
) -> None:
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    db.execute(f"grant select on pgmq.topic_bindings to {role}")
    db.execute(f"create policy own on pgmq.topic_bindings to {role} using (pattern = 'a.*')")
    db.execute("alter table pgmq.topic_bindings enable row level security")
    try:
        bind(db, "a.*", queue)
        bind(db, "a.b", queue)
        patterns = "select array(select unnest(pgmq._matching_patterns('a.b')) order by 1)"
        for _ in range(2):
            assert db.execute(patterns).fetchone()[0] == ["a.*", "a.b"]
            db.execute(f"set role {role}")
            assert db.execute(patterns).fetchone()[0] == ["a.*"]
            db.execute("reset role")
    finally:
        db.execute("alter table pgmq.topic_bindings disable row level security")
        db.execute("drop policy own on pgmq.topic_bindings")


def test_the_trigger_function_cannot_be_put_on_another_table(
    db: psycopg.Connection, database: Database, make_role: Callable[..., str]
) -> None:
    role = make_role()
    db.execute(f"grant usage on schema pgmq to {role}")
    stranger = database.connect(role)
    stranger.execute("create temporary table t (x integer)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        stranger.execute(
            "create trigger t before insert on t for each statement execute function pgmq._change_topic_version()"
        )


# The page


def test_examples_of_the_page(make_database: Callable[..., Database]) -> None:
    connection = make_database().connect()
    blocks = re.findall(r"^ *```sql\n(.*?)^ *```", (DOCS / "topics.md").read_text(), re.M | re.S)
    checked = 0
    for statement, shown in re.findall(r"(.+?;)\n((?:-- [^\n]*\n)*)", "".join(blocks), re.S):
        cursor = connection.execute(statement)
        if shown:
            rows = [" | ".join(str(value) for value in row) for row in cursor.fetchall()]
            assert rows == [line.removeprefix("-- ") for line in shown.splitlines()], statement
            checked += 1
    assert checked >= 9
