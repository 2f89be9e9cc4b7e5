"""What a read costs does not grow with what it need not look at. Measured in buffers touched, not in time."""

from __future__ import annotations

import json
import statistics

import psycopg
import pytest
from conftest import Database, unique

READS = 41
# Batches of one: one such read in 32 moves the hints, so that of 300 some do.
SINGLY = 1


def buffers(connection: psycopg.Connection, statement: str) -> int:
    """The buffers that a statement touches, with all that it calls."""
    text = connection.execute(f"explain (analyze, buffers, timing off, format json) {statement}").fetchone()[0]
    plan = (json.loads(text) if isinstance(text, str) else text)[0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


def cost_of_reads(connection: psycopg.Connection, queue: str, *, function: str = "read", quantity: int = 1) -> float:
    """The median of the buffers of a read: of those, that is, that happen not to sweep."""
    statement = f"select * from pgmq.{function}('{queue}', 600, {quantity})"
    return statistics.median(buffers(connection, statement) for _ in range(READS))


def fill(connection: psycopg.Connection, queue: str, count: int, delay: int = 0) -> None:
    connection.execute(
        "select count(*) from pgmq.send_batch(%s, array_fill('{\"n\": 1}'::jsonb, array[%s]), %s)",
        [queue, count, delay],
    )


@pytest.fixture
def fresh_cost(db: psycopg.Connection) -> float:
    """What a read costs on a queue of a few messages."""
    queue = unique()
    db.execute("select pgmq.create(%s)", [queue])
    fill(db, queue, 1000)
    cost_of_reads(db, queue)
    cost = cost_of_reads(db, queue)
    db.execute("select pgmq.drop_queue(%s)", [queue])
    return cost


def consume(connection: psycopg.Connection, queue: str, count: int, batch: int = 100) -> None:
    """Read and delete, in batches, each in a transaction of its own."""
    for _ in range(count // batch):
        connection.execute(
            "select count(*) from pgmq.delete(%s, array(select msg_id from pgmq.read(%s, 600, %s)))",
            [queue, queue, batch],
        )


def test_behind_100_000_delayed_messages(db: psycopg.Connection, queue: str, fresh_cost: float) -> None:
    fill(db, queue, 100_000, delay=3600)
    fill(db, queue, 1000)
    assert cost_of_reads(db, queue) <= 2 * fresh_cost


def test_with_50_000_messages_in_flight(db: psycopg.Connection, queue: str, fresh_cost: float) -> None:
    fill(db, queue, 51_000)
    for _ in range(50):
        db.execute("select count(*) from pgmq.read(%s, 600, 1000)", [queue])
    # The head stays four batches behind until one read in 32 moves it up: that of 300 none does is not to be expected.
    for _ in range(300):
        db.execute("select msg_id from pgmq.read(%s, 600, 1)", [queue])
    assert cost_of_reads(db, queue) <= 2 * fresh_cost


@pytest.mark.parametrize("holder", ["select pg_current_xact_id()", "select * from pgmq.read('{queue}', 600, 1)"])
def test_with_20_000_consumed_while_an_old_transaction_holds_the_xmin_horizon(
    database: Database, db: psycopg.Connection, queue: str, fresh_cost: float, holder: str
) -> None:
    fill(db, queue, 22_000)
    old = database.connect(autocommit=False)
    old.execute(holder.format(queue=queue))
    consume(db, queue, 20_000)
    consume(db, queue, 300, SINGLY)
    assert cost_of_reads(db, queue) <= 2 * fresh_cost
    old.rollback()


def test_an_empty_read_after_20_000_consumed_under_an_old_transaction(
    database: Database, db: psycopg.Connection, queue: str, fresh_cost: float
) -> None:
    fill(db, queue, 20_000)
    old = database.connect(autocommit=False)
    old.execute("select pg_current_xact_id()")
    consume(db, queue, 19_500)
    consume(db, queue, 500, SINGLY)
    assert cost_of_reads(db, queue) <= 2 * fresh_cost
    old.rollback()


def test_with_messages_that_came_due_and_were_consumed_under_an_old_transaction(
    database: Database, db: psycopg.Connection, queue: str
) -> None:
    def due_again(count: int) -> None:
        fill(db, queue, count)
        db.execute("select count(*) from pgmq.read(%s, 0, %s)", [queue, count])

    due_again(100)
    fresh_cost = cost_of_reads(db, queue)
    consume(db, queue, 100)
    old = database.connect(autocommit=False)
    old.execute("select pg_current_xact_id()")
    for _ in range(25):
        due_again(800)
        consume(db, queue, 800)
    fill(db, queue, 300)
    consume(db, queue, 300, SINGLY)
    due_again(100)
    # A little more than twice by chance: how far the hint is behind the last batch. It would be thousands without it.
    assert cost_of_reads(db, queue) <= 4 * fresh_cost
    old.rollback()


@pytest.mark.parametrize("in_the_way", ["delayed", "consumed"])
def test_with_thousands_that_came_due_at_once(
    database: Database, db: psycopg.Connection, queue: str, in_the_way: str
) -> None:
    def cost_of_due(name: str) -> float:
        fill(db, name, 3000)
        for _ in range(300):
            db.execute(
                "select count(*) from pgmq.set_vt(%s, array(select msg_id from pgmq.read(%s, 600, 10)), now())",
                [name, name],
            )
        # One read in 32 remembers how far it came.
        for _ in range(300):
            db.execute("select msg_id from pgmq.read(%s, 600, 1)", [name])
        return cost_of_reads(db, name)

    fresh = unique()
    db.execute("select pgmq.create(%s)", [fresh])
    fresh_cost = cost_of_due(fresh)
    db.execute("select pgmq.drop_queue(%s)", [fresh])
    old = database.connect(autocommit=False)
    old.execute("select pg_current_xact_id()")
    if in_the_way == "delayed":
        fill(db, queue, 20_000, delay=3600)
    else:
        fill(db, queue, 20_000)
        consume(db, queue, 20_000)
    assert cost_of_due(queue) <= 2 * fresh_cost
    old.rollback()


@pytest.mark.parametrize("messages", [5000, 200])
def test_in_a_crowd_that_holds_the_front_of_the_queue(
    database: Database, db: psycopg.Connection, queue: str, fresh_cost: float, messages: int
) -> None:
    """A read that began at the head would step over what each of them holds, as would one that began behind the end."""
    fill(db, queue, messages)
    crowd = [database.connect(autocommit=False) for _ in range(60)]
    for connection in crowd:
        connection.execute("select from pgmq.read(%s, 600, 1)", [queue])
    # One read in 32 sees that there is a crowd, and sees it again from then on.
    reader = database.connect(autocommit=False)
    costs = []
    for _ in range(300):
        costs.append(buffers(reader, f"select * from pgmq.read('{queue}', 600, 1)"))
        reader.rollback()
    assert statistics.median(costs[-READS:]) <= 2 * fresh_cost
    assert max(costs) > 3 * fresh_cost


def test_plans_made_on_the_empty_table_still_use_the_indexes(
    db: psycopg.Connection, queue: str, fresh_cost: float
) -> None:
    db.execute(f"vacuum analyze pgmq.q_{queue}")
    for statement in (
        f"select * from pgmq.read('{queue}', 600, 1)",
        f"select * from pgmq.pop('{queue}')",
        f"select pgmq.delete('{queue}', 1)",
        f"select pgmq.delete('{queue}', array[1, 2])",
        f"select pgmq.archive('{queue}', 1)",
        f"select pgmq.set_vt('{queue}', 1, 1)",
    ):
        for _ in range(10):
            db.execute(statement)
    db.execute(f"alter table pgmq.q_{queue} set (autovacuum_enabled = off)")
    fill(db, queue, 20_000)
    assert cost_of_reads(db, queue) <= 2 * fresh_cost
    table_pages = db.execute(f"select pg_relation_size('pgmq.q_{queue}') / 8192").fetchone()[0]
    for statement in (
        f"select pgmq.delete('{queue}', 19000)",
        f"select pgmq.delete('{queue}', array[19001, 19002])",
        f"select pgmq.archive('{queue}', 19003)",
        f"select pgmq.set_vt('{queue}', 19004, 10)",
        f"select pgmq.pop('{queue}')",
    ):
        assert buffers(db, statement) < table_pages / 2, statement
