"""Ours and the reference implementation, given the same random calls, answer the same but for clock times.

The reference comes from its published package and stays a black box. What differs on purpose is told in
docs/compatibility.md, and the end of this file holds it true.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pgmq.install
import psycopg
import pytest
from conftest import Database
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

REFUSED = "refused"

# All legal; no two that differ only in case, which is a difference on purpose.
NAMES = ["plain", "Upper Case", "dot.ted", "hyphen-ated", 'double"quote', "ünïcode", "back\\slash", "x" * 47]
FAR = 100_000
PAST, FUTURE = "2001-02-03 04:05:06+00", "2999-02-03 04:05:06+00"

messages = st.one_of(st.none(), st.sampled_from(['{"a": 1}', '{"a": 1, "b": [2]}', "[]", '"text"', "null", "7"]))
headers = st.sampled_from(
    [
        None,
        '{"x-pgmq-group": "a"}',
        '{"x-pgmq-group": "b"}',
        '{"x-pgmq-group": "c", "other": true}',
        '{"x-pgmq-group": ""}',
        '{"x-pgmq-group": 1}',
        '{"x-pgmq-group": null}',
        '{"other": 1}',
        "[]",
        '"x-pgmq-group"',
    ]
)
conditions = st.sampled_from([None, "{}", '{"a": 1}', '{"b": [2]}', "[]", '"text"', '{"none": 0}'])
delays = st.sampled_from(["0", f"{FAR}", f"-{FAR}", f"timestamptz '{PAST}'", f"timestamptz '{FUTURE}'"])
# Visible at once or not in this test: nothing waits for a clock.
timeouts = st.sampled_from([0, 0, FAR])
quantities = st.integers(0, 6)
ids = st.integers(0, 12)
names = st.sampled_from(NAMES)

MESSAGE = "msg_id, read_ct, message, headers, last_read_at is not null, vt > clock_timestamp()"


def call(connection: psycopg.Connection, statement: str, values: Sequence[Any], *, ordered: bool) -> Any:
    try:
        rows = connection.execute(statement, values).fetchall()
    except psycopg.Error:
        return REFUSED
    return rows if ordered else sorted(rows, key=repr)


class Pair:
    """The reference and ours, a database each."""

    def __init__(self, reference: psycopg.Connection, ours: psycopg.Connection) -> None:
        self.reference = reference
        self.ours = ours

    def same(self, statement: str, *values: Any, ordered: bool = True) -> Any:
        """Runs a statement in both and returns what both gave."""
        expected = call(self.reference, statement, values, ordered=ordered)
        given = call(self.ours, statement, values, ordered=ordered)
        assert given == expected, f"{statement} {values}: ours {given}, the reference {expected}"
        return given

    def same_messages(self, statement: str, *values: Any) -> None:
        """As same, for messages: ours come in the order of their ids, the reference's as they lie in the table."""
        expected = call(self.reference, statement, values, ordered=False)
        given = call(self.ours, statement, values, ordered=True)
        if given != REFUSED:
            assert [row[0] for row in given] == sorted(row[0] for row in given)
            given = sorted(given, key=repr)
        assert given == expected, f"{statement} {values}: ours {given}, the reference {expected}"

    def clear(self) -> None:
        for connection in (self.reference, self.ours):
            for (name,) in connection.execute("select queue_name from pgmq.list_queues()").fetchall():
                connection.execute("select pgmq.drop_queue(%s)", [name])


@pytest.fixture(scope="module")
def pair_of_databases(make_database: Callable[..., Database]) -> Iterator[Pair]:
    reference = make_database(extension=False).connect()
    reference.execute(pgmq.install.get_embedded_install_sql())
    yield Pair(reference, make_database().connect())


@pytest.fixture
def pair(pair_of_databases: Pair) -> Iterator[Pair]:
    pair_of_databases.clear()
    yield pair_of_databases
    pair_of_databases.clear()


class Machine(RuleBasedStateMachine):
    """Calls with random arguments. Each subject has a class with its rules, and Everything puts them together."""

    pair: Pair

    def __init__(self) -> None:
        super().__init__()
        self.queues: set[str] = set()

    def teardown(self) -> None:
        self.pair.clear()

    def pick(self, name: str) -> str:
        """Mostly a queue that is there."""
        return name if name in self.queues or not self.queues else sorted(self.queues)[len(name) % len(self.queues)]

    @invariant()
    def the_tables_hold_the_same(self) -> None:
        for name in self.queues:
            for prefix in ("q", "a"):
                table = f"pgmq.{_quoted(f'{prefix}_{name}'.lower())}"
                self.pair.same(f"select {MESSAGE} from {table} order by msg_id".replace("%", "%%"))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class Queues(Machine):
    @initialize(name=names)
    def begin(self, name: str) -> None:
        self.create(name, "create")

    @rule(name=names, form=st.sampled_from(["create", "create_non_partitioned", "create_unlogged"]))
    def create(self, name: str, form: str) -> None:
        if name not in self.queues or form != "create_unlogged":
            self.pair.same(f"select pgmq.{form}(%s)::text", name)
            self.queues.add(name)

    @precondition(lambda self: len(self.queues) > 1)
    @rule(name=names)
    def drop(self, name: str) -> None:
        self.pair.same("select pgmq.drop_queue(%s)", name)
        self.queues.discard(name)

    @rule(name=names)
    def purge(self, name: str) -> None:
        self.pair.same("select pgmq.purge_queue(%s)", self.pick(name))

    @rule()
    def list_queues(self) -> None:
        self.pair.same("select queue_name, is_partitioned, is_unlogged from pgmq.list_queues()", ordered=False)

    @rule(name=names)
    def metrics(self, name: str) -> None:
        columns = """
            queue_name, queue_length, queue_visible_length, total_messages, newest_msg_age_sec is null,
            oldest_msg_age_sec is null, default_partition_length
        """
        self.pair.same(f"select {columns} from pgmq.metrics(%s)", name)
        self.pair.same(f"select {columns} from pgmq.metrics_all()", ordered=False)


class Messages(Machine):
    @rule(name=names, message=messages, header=headers, with_headers=st.booleans(), delay=st.none() | delays)
    def send(self, name: str, message: str | None, header: str | None, with_headers: bool, delay: str | None) -> None:
        arguments = "%s, %s::jsonb" + (", %s::jsonb" if with_headers else "") + (f", {delay}" if delay else "")
        values = [self.pick(name), message, *([header] if with_headers else [])]
        self.pair.same(f"select * from pgmq.send({arguments})", *values)

    @rule(
        name=names,
        batch=st.none() | st.lists(st.tuples(messages, headers), max_size=6),
        with_headers=st.booleans(),
        missing=st.sampled_from([0, 0, 0, 0, 1]),
        delay=st.none() | delays,
    )
    def send_batch(
        self,
        name: str,
        batch: list[tuple[str | None, str | None]] | None,
        with_headers: bool,
        missing: int,
        delay: str | None,
    ) -> None:
        arguments = "%s, %s::jsonb[]" + (", %s::jsonb[]" if with_headers else "") + (f", {delay}" if delay else "")
        values: list[Any] = [self.pick(name), None if batch is None else [message for message, _ in batch]]
        if with_headers:
            values.append([header for _, header in batch or []][missing:])
        self.pair.same(f"select * from pgmq.send_batch({arguments})", *values)

    @rule(name=names, vt=timeouts, qty=quantities, condition=conditions)
    def read(self, name: str, vt: int, qty: int, condition: str | None) -> None:
        if condition is None:
            self.pair.same_messages(f"select {MESSAGE} from pgmq.read(%s, %s, %s)", self.pick(name), vt, qty)
        else:
            values = [self.pick(name), vt, qty, condition]
            self.pair.same_messages(f"select {MESSAGE} from pgmq.read(%s, %s, %s, %s::jsonb)", *values)

    @rule(name=names, vt=timeouts, qty=st.integers(1, 6))
    def read_with_poll(self, name: str, vt: int, qty: int) -> None:
        # A message is there, so that nobody waits.
        self.pair.same("select * from pgmq.send(%s, '{}')", self.pick(name))
        self.pair.same_messages(
            f"select {MESSAGE} from pgmq.read_with_poll(%s, %s, %s, 5, 100)", self.pick(name), vt, qty
        )

    @rule(name=names, qty=quantities)
    def pop(self, name: str, qty: int) -> None:
        self.pair.same_messages(f"select {MESSAGE} from pgmq.pop(%s, %s)", self.pick(name), qty)

    @rule(name=names, chosen=ids | st.lists(ids, max_size=4), verb=st.sampled_from(["delete", "archive"]))
    def remove(self, name: str, chosen: int | list[int], verb: str) -> None:
        kind = "bigint[]" if isinstance(chosen, list) else "bigint"
        self.pair.same(f"select * from pgmq.{verb}(%s, %s::{kind})", self.pick(name), chosen, ordered=False)

    @rule(name=names, chosen=ids | st.lists(ids, max_size=4), vt=delays)
    def set_vt(self, name: str, chosen: int | list[int], vt: str) -> None:
        kind = "bigint[]" if isinstance(chosen, list) else "bigint"
        statement = f"select {MESSAGE} from pgmq.set_vt(%s, %s::{kind}, {vt})"
        self.pair.same_messages(statement, self.pick(name), chosen)


class Groups(Machine):
    forms = st.sampled_from(["read_grouped", "read_grouped_rr", "read_grouped_head"])

    def show_what_hides_others(self, name: str, form: str) -> None:
        """Makes visible in both what is invisible behind a visible head: the reference reads past it, ours does not.

        Where only heads are read that makes no difference.
        """
        if form != "read_grouped_head":
            table = f"pgmq.{_quoted(f'q_{name}'.lower())}".replace("%", "%%")
            self.pair.same_messages(
                f"""
                select {MESSAGE}
                from pgmq.set_vt(
                    %s,
                    array(
                        select m.msg_id
                        from (
                            select msg_id,
                                vt > clock_timestamp() as is_hidden,
                                first_value(vt) over (partition by headers ->> 'x-pgmq-group' order by msg_id)
                                    <= clock_timestamp() as has_visible_head
                            from {table}
                        ) as m
                        where m.is_hidden
                            and m.has_visible_head
                    ),
                    0
                )
                """,
                name,
            )

    @rule(name=names, form=forms, vt=timeouts, qty=quantities)
    def read_grouped(self, name: str, form: str, vt: int, qty: int) -> None:
        self.show_what_hides_others(self.pick(name), form)
        statement = f"select {MESSAGE} from pgmq.{form}(%s, %s, %s)"
        # Round-robin promises the order in which it deals.
        same = self.pair.same if form == "read_grouped_rr" else self.pair.same_messages
        same(statement, self.pick(name), vt, qty)

    @rule(name=names, form=forms, vt=timeouts, qty=st.integers(1, 6), group=st.uuids())
    def read_grouped_with_poll(self, name: str, form: str, vt: int, qty: int, group: uuid.UUID) -> None:
        # A message of a group of its own is there, so that nobody waits.
        self.pair.same(
            "select * from pgmq.send(%s, '{}', jsonb_build_object('x-pgmq-group', %s::text))",
            self.pick(name),
            str(group),
        )
        self.show_what_hides_others(self.pick(name), form)
        statement = f"select {MESSAGE} from pgmq.{form}_with_poll(%s, %s, %s, 5, 100)"
        # Round-robin promises the order in which it deals.
        same = self.pair.same if form == "read_grouped_rr" else self.pair.same_messages
        same(statement, self.pick(name), vt, qty)

    @rule(name=names)
    def create_fifo_index(self, name: str) -> None:
        self.pair.same("select pgmq.create_fifo_index(%s)::text", self.pick(name))


class Topics(Machine):
    # Legal and illegal.
    patterns = st.sampled_from(
        [
            "#",
            "*",
            "a",
            "a.b",
            "a.*",
            "*.b",
            "a.#",
            "#.b",
            "a*.b",
            "*-*",
            "A.b",
            "a..b",
            ".a",
            "a.",
            "**",
            "#*",
            "a b",
            "",
        ]
    )
    keys = st.sampled_from(["a", "a.b", "a.b.c", "ab.b", "x-y", "A.b", "a_1.b", "*", "a.#", "a..b", ".a", "", "ü"])

    @rule(pattern=patterns, name=names)
    def bind_topic(self, pattern: str, name: str) -> None:
        self.pair.same("select pgmq.bind_topic(%s, %s)::text", pattern, self.pick(name))

    @rule(pattern=patterns, name=names)
    def unbind_topic(self, pattern: str, name: str) -> None:
        if pattern:  # Refused by the reference, while ours only says that there was none.
            self.pair.same("select pgmq.unbind_topic(%s, %s)", pattern, self.pick(name))

    @rule(name=names)
    def list_topic_bindings(self, name: str) -> None:
        columns = "pattern, queue_name"
        self.pair.same(f"select {columns} from pgmq.list_topic_bindings()", ordered=False)
        self.pair.same(f"select {columns} from pgmq.list_topic_bindings(%s)", self.pick(name), ordered=False)

    @rule(key=keys)
    def test_routing(self, key: str) -> None:
        self.pair.same("select pattern, queue_name from pgmq.test_routing(%s)", key, ordered=False)

    @rule(text=patterns | keys, form=st.sampled_from(["validate_routing_key", "validate_topic_pattern"]))
    def validate(self, text: str, form: str) -> None:
        self.pair.same(f"select pgmq.{form}(%s)", text)

    @rule(key=keys, message=messages, header=headers, delay=st.sampled_from([None, 0, FAR, -1]), form=st.integers(0, 2))
    def send_topic(self, key: str, message: str | None, header: str | None, delay: int | None, form: int) -> None:
        if form == 0:
            self.pair.same("select pgmq.send_topic(%s, %s::jsonb)", key, message)
        elif form == 1:
            self.pair.same("select pgmq.send_topic(%s, %s::jsonb, %s::integer)", key, message, delay or 0)
        else:
            statement = "select pgmq.send_topic(%s, %s::jsonb, %s::jsonb, %s::integer)"
            self.pair.same(statement, key, message, header, delay or 0)

    @rule(
        key=keys,
        batch=st.lists(st.tuples(messages, headers), max_size=3),
        with_headers=st.booleans(),
        delay=st.none() | delays,
    )
    def send_batch_topic(
        self, key: str, batch: list[tuple[str | None, str | None]], with_headers: bool, delay: str | None
    ) -> None:
        arguments = "%s, %s::jsonb[]" + (", %s::jsonb[]" if with_headers else "") + (f", {delay}" if delay else "")
        values: list[Any] = [key, [message for message, _ in batch]]
        if with_headers:
            values.append([header for _, header in batch])
        self.pair.same(f"select * from pgmq.send_batch_topic({arguments})", *values, ordered=False)


class Everything(Queues, Messages, Groups, Topics):
    pass


def test_the_same_calls_give_the_same_results(pair: Pair) -> None:
    # Derandomized, so that a run in CI means the same tomorrow; PGMQ_EXAMPLES asks for as many random ones, and shrinks
    # what fails, which takes minutes.
    random_examples = os.environ.get("PGMQ_EXAMPLES")
    Everything.pair = pair
    run_state_machine_as_test(
        Everything,
        settings=settings(
            max_examples=int(random_examples or 30),
            stateful_step_count=50,
            derandomize=random_examples is None,
            database=None,
            phases=[Phase.generate, *([Phase.shrink] if random_examples else [])],
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


BAD_NAMES = ["a$b", "a;b", "a--b", "a'b", "x" * 48, None]
CALLS = [
    "create(%s)",
    "create_unlogged(%s)",
    "create_non_partitioned(%s)",
    "drop_queue(%s)",
    "purge_queue(%s)",
    "metrics(%s)",
    "send(%s, '{}')",
    "send(%s, '{}', 5)",
    "send(%s, '{}', '{}'::jsonb)",
    "send_batch(%s, array['{}']::jsonb[])",
    "read(%s, 30, 1)",
    "read_with_poll(%s, 30, 1, 1, 100)",
    "read_grouped(%s, 30, 1)",
    "read_grouped_rr(%s, 30, 1)",
    "read_grouped_head(%s, 30, 1)",
    "pop(%s)",
    "delete(%s, 1)",
    "delete(%s, array[1])",
    "archive(%s, 1)",
    "archive(%s, array[1])",
    "set_vt(%s, 1, 30)",
    "create_fifo_index(%s)",
    "validate_queue_name(%s)",
]


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize("name", BAD_NAMES)
def test_both_refuse_what_is_no_queue_name(pair: Pair, function: str, name: str | None) -> None:
    assert call(pair.ours, f"select * from pgmq.{function}", [name], ordered=True) == REFUSED
    # The reference's own validate_queue_name looks at the length alone, and drop_queue and others do not look at it.
    if name is not None and len(name) < 48 and not function.startswith("validate"):
        assert call(pair.reference, f"select * from pgmq.{function}", [name], ordered=True) == REFUSED


@pytest.mark.parametrize(
    "function", [text for text in CALLS if not text.startswith(("create(", "create_un", "create_non", "drop", "valid"))]
)
def test_both_refuse_an_unknown_queue_with_the_same_sqlstate(pair: Pair, function: str) -> None:
    for connection in (pair.reference, pair.ours):
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute(f"select * from pgmq.{function}", ["unknown"])


def outcome(connection: psycopg.Connection, statement: str) -> Any:
    """The result, or the SQLSTATE."""
    try:
        return connection.execute(statement).fetchall()
    except psycopg.Error as error:
        return error.sqlstate


@pytest.mark.parametrize(
    ("statement", "reference", "ours"),
    [
        ("select pgmq.drop_queue('unknown', true)", [(True,)], [(False,)]),
        ("select pgmq.drop_queue(null)", [(False,)], "22004"),
        (f"select pgmq.drop_queue('{'x' * 48}')", [(False,)], "42622"),
        ("select pgmq.validate_queue_name('a;b')::text", [("",)], "42602"),
        ("select pgmq.create('a;b')", "P0001", "42602"),
        (f"select pgmq.create('{'x' * 48}')", "P0001", "42622"),
        (f"select pgmq.send('{'x' * 48}', '{{}}')", "42P01", "42622"),
        ("select pgmq.send_batch('q', null)", "P0001", "22004"),
        ("select pgmq.send_batch('q', '{}'::jsonb[])", "P0001", "22023"),
        ("select pgmq.send_batch('q', array['1']::jsonb[], '{}'::jsonb[])", "P0001", "22023"),
        ("select pgmq.send('q', '{}', null::integer)", "23502", "22004"),
        ("select msg_id from pgmq.read('q', null, 1)", "23502", "22004"),
        ("select msg_id from pgmq.set_vt('q', 1, null::integer)", "23502", "22004"),
        ("select msg_id from pgmq.set_vt('q', 99, null::integer)", [], "22004"),
        ("select msg_id from pgmq.read_with_poll('q', 0, 1, 0)", [], [(1,)]),
        ("select msg_id from pgmq.read_with_poll('q', 0, 1, null)", [(1,)], "22004"),
        ("select msg_id from pgmq.read_with_poll('q', 0, 1, 1, null)", [(1,)], "22004"),
        ("select msg_id from pgmq.read_grouped('q', null, 1)", "23502", "22004"),
        ("select msg_id from pgmq.read_grouped('q', 0, null)", [], [(1,), (2,), (3,)]),
        ("select msg_id from pgmq.read_grouped_rr('q', 0, null)", [], [(1,), (2,), (3,)]),
        ("select msg_id from pgmq.read_grouped_rr('q', 0, -1)", [], "2201W"),
        ("select msg_id from pgmq.read_grouped_head('q', 0, 9)", [(1,), (2,)], [(1,), (2,), (3,)]),
    ],
)
def test_what_differs_on_purpose(pair: Pair, statement: str, reference: Any, ours: Any) -> None:
    for connection in (pair.reference, pair.ours):
        connection.execute("select pgmq.create('q')")
        # Of these three the second has a group of its own, and for the reference the third shares that of the first.
        connection.execute(
            """
            select pgmq.send_batch('q', array['1', '2', '3']::jsonb[],
                array[null, '{"x-pgmq-group": "b"}', '{"x-pgmq-group": "_default_fifo_group"}']::jsonb[])
            """
        )
    assert outcome(pair.reference, statement) == reference
    assert outcome(pair.ours, statement) == ours


def test_an_invisible_message_hides_the_later_ones_of_its_group_here(pair: Pair) -> None:
    for connection in (pair.reference, pair.ours):
        connection.execute("select pgmq.create('q')")
        connection.execute("select pgmq.send_batch('q', array['1', '2', '3']::jsonb[])")
        connection.execute("select pgmq.set_vt('q', 2, 1000)")
    for form in ("read_grouped", "read_grouped_rr"):
        pair_of_results = [
            outcome(c, f"select msg_id from pgmq.{form}('q', 0, 9)") for c in (pair.reference, pair.ours)
        ]
        assert pair_of_results == [[(1,), (3,)], [(1,)]]


def test_names_that_differ_only_in_case_are_one_queue_here(pair: Pair) -> None:
    for connection, left in ((pair.reference, ["Orders", "orders"]), (pair.ours, ["Orders"])):
        for name in ("Orders", "orders"):
            connection.execute("select pgmq.create(%s)", [name])
        rows = connection.execute('select queue_name from pgmq.list_queues() order by queue_name collate "C"')
        assert [row[0] for row in rows] == left
    # What the reference cannot drop by a call.
    pair.reference.execute("delete from pgmq.meta where queue_name = 'orders'")


def test_names_of_more_than_63_bytes_work_in_all_functions_here(pair: Pair) -> None:
    name = "é" * 47
    for connection in (pair.reference, pair.ours):
        connection.execute("select pgmq.create(%s)", [name])
        assert connection.execute("select pgmq.send(%s, '{}')", [name]).fetchone() == (1,)
    assert pair.ours.execute("select queue_length from pgmq.metrics(%s)", [name]).fetchone() == (1,)
    assert pair.ours.execute("select pgmq.drop_queue(%s)", [name]).fetchone() == (True,)
    with pytest.raises(psycopg.errors.UndefinedColumn):
        pair.reference.execute("select pgmq.metrics(%s)", [name])
    assert pair.reference.execute("select pgmq.drop_queue(%s)", [name]).fetchone() == (False,)
    pair.reference.execute("delete from pgmq.meta where queue_name = %s", [name])
