"""An invisible message hides the later ones of its group: histories, on every kind of queue, with and without index."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from conftest import Database, eventually, unique
from psycopg.rows import scalar_row
from test_groups import FORMS, send, set_vt, take

PARTMAN = os.environ.get("PGMQ_TEST_PARTMAN", "").split()
KINDS = ("indexed", "scanned", "unlogged", "partitioned indexed", "partitioned scanned")


@pytest.fixture(scope="module")
def database_of_all_kinds(make_database: Callable[..., Database]) -> Database:
    database = make_database()
    if PARTMAN:
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            connection.execute(f"create extension pg_partman version '{PARTMAN[-1]}'")
    return database


@pytest.fixture
def database(database_of_all_kinds: Database) -> Iterator[Database]:
    yield database_of_all_kinds
    database_of_all_kinds.close()


@pytest.fixture(params=KINDS)
def fifo(request: pytest.FixtureRequest, database: Database, db: psycopg.Connection) -> Iterator[str]:
    """A queue of each kind, with the index and without. Partitions are small, so that a group is in several."""
    name = unique()
    if request.param == "unlogged":
        db.execute("select pgmq.create_unlogged(%s)", [name])
    elif request.param.startswith("partitioned"):
        if not PARTMAN:
            pytest.skip("there is no pg_partman")
        db.execute("select pgmq.create_partitioned(%s, '3', '1000')", [name])
    else:
        db.execute("select pgmq.create(%s)", [name])
    if not request.param.endswith("scanned"):
        db.execute("select pgmq.create_fifo_index(%s)", [name])
    yield name
    database.close(but=db)
    db.execute("select pgmq.drop_queue(%s)", [name])


def given(db: psycopg.Connection, queue: str, qty: int | None = 9) -> dict[str, list[int]]:
    """What each of the three gives. They leave the messages visible."""
    return {form: take(db, form, queue, 0, qty) for form in FORMS}


def all_give(*ids: int) -> dict[str, list[int]]:
    """What each gives where these messages of one group can be had."""
    return dict(zip(FORMS, (list(ids), list(ids), list(ids[:1])), strict=True))


def expire(db: psycopg.Connection, queue: str, *ids: int) -> None:
    """As if the timeouts of these messages had passed."""
    set_vt(db, queue, list(ids), -1)


# What SQS was seen to do with foo, bar, baz.


@pytest.mark.parametrize(
    ("extended", "again"),
    [([2], [1]), ([3], [1, 2]), ([1], []), ([2, 3], [1]), ([], [1, 2, 3])],
    ids=["the second", "the third", "the first", "the second and the third", "none"],
)
def test_of_a_batch_of_which_some_are_extended_what_comes_before_them_comes_again(
    db: psycopg.Connection, fifo: str, extended: list[int], again: list[int]
) -> None:
    assert send(db, fifo, ["a", "a", "a"]) == [1, 2, 3]
    assert take(db, "read_grouped", fifo, 1000, 9) == [1, 2, 3]
    set_vt(db, fifo, extended, 4000)
    expire(db, fifo, *({1, 2, 3} - set(extended)))
    assert given(db, fifo) == all_give(*again)


def test_the_first_of_two_comes_again_alone_while_the_second_is_in_flight(db: psycopg.Connection, fifo: str) -> None:
    send(db, fifo, ["a", "a", "a"])
    assert take(db, "read_grouped", fifo, 1000, 2) == [1, 2]
    set_vt(db, fifo, [1], 0)
    assert given(db, fifo) == all_give(1)
    db.execute("select pgmq.delete(%s, 1)", [fifo])
    assert given(db, fifo) == all_give()
    db.execute("select pgmq.archive(%s, 2)", [fifo])
    assert given(db, fifo) == all_give(3)


def test_a_delayed_message_hides_those_sent_after_it(db: psycopg.Connection, fifo: str) -> None:
    send(db, fifo, ["a"])
    db.execute("""select pgmq.send(%s, '{}', '{"x-pgmq-group": "a"}'::jsonb, 1000)""", [fifo])
    send(db, fifo, ["a", "b"])
    assert given(db, fifo) == {form: [1, 4] for form in FORMS}
    db.execute("select pgmq.delete(%s, array[1, 4]::bigint[])", [fifo])
    assert given(db, fifo) == all_give()
    set_vt(db, fifo, [2], 0)
    assert given(db, fifo) == all_give(2, 3)


def test_a_group_whose_second_message_is_invisible_drops_out_of_the_deal(db: psycopg.Connection, fifo: str) -> None:
    send(db, fifo, ["a", "b", "a", "b", "a", "b", "c"])
    set_vt(db, fifo, [3], 1000)
    for qty, dealt in ((2, [1, 2]), (4, [1, 2, 7, 4]), (5, [1, 2, 7, 4, 6]), (None, [1, 2, 7, 4, 6])):
        assert take(db, "read_grouped_rr", fifo, 0, qty) == dealt
    set_vt(db, fifo, [6], 1000)
    assert take(db, "read_grouped_rr", fifo, 0, 9) == [1, 2, 7, 4]


def test_a_batch_is_filled_from_the_next_group_where_one_ends_early(db: psycopg.Connection, fifo: str) -> None:
    send(db, fifo, ["a", "a", "b", "a", "b", "c"])
    set_vt(db, fifo, [2], 1000)
    for qty, batch in ((2, [1, 3]), (3, [1, 3, 5]), (9, [1, 3, 5, 6])):
        assert take(db, "read_grouped", fifo, 0, qty) == batch


# Other transactions.

HOLDS = {
    "delete": "select pgmq.delete('{queue}', 2)",
    "archive": "select pgmq.archive('{queue}', 2)",
    "set_vt to later": "select pgmq.set_vt('{queue}', 2, 1000)",
    "set_vt to now": "select pgmq.set_vt('{queue}', 2, 0)",
    "lock": "select from pgmq.q_{queue} where msg_id = 2 for update",
}


@pytest.mark.parametrize("hold", HOLDS)
def test_a_message_that_another_transaction_holds_hides_the_later_ones(
    database: Database, db: psycopg.Connection, fifo: str, hold: str
) -> None:
    send(db, fifo, ["a", "a", "b", "a", "b", "b"])
    db.execute("set lock_timeout = '1ms'")
    holder = database.connect(autocommit=False)
    holder.execute(HOLDS[hold].format(queue=fifo))
    # The batch is filled from what others have.
    for qty in (9, 4, 3):
        batch = [1, 3, 5, 6][:qty]
        assert given(db, fifo, qty) == dict(zip(FORMS, (batch, batch, [1, 3]), strict=True))
    holder.rollback()
    assert take(db, "read_grouped", fifo, 0, 3) == [1, 2, 4]
    holder.execute(HOLDS[hold].format(queue=fifo))
    holder.commit()
    after = {"delete": [1, 4], "archive": [1, 4], "set_vt to later": [1]}.get(hold, [1, 2, 4])
    db.execute("select pgmq.delete(%s, array[3, 5, 6]::bigint[])", [fifo])
    assert given(db, fifo) == all_give(*after)


@pytest.mark.parametrize("commits", [True, False], ids=["committed", "rolled back"])
def test_a_group_is_held_while_the_head_is_deleted_in_an_open_transaction(
    database: Database, db: psycopg.Connection, fifo: str, commits: bool
) -> None:
    send(db, fifo, ["a", "a", "a"])
    holder = database.connect(autocommit=False)
    holder.execute("select pgmq.delete(%s, 1)", [fifo])
    assert given(db, fifo) == all_give()
    if commits:
        holder.commit()
        assert given(db, fifo) == all_give(2, 3)
    else:
        holder.rollback()
        assert given(db, fifo) == all_give(1, 2, 3)


def test_a_reader_that_rolls_back_gives_the_group_back_as_it_was(
    database: Database, db: psycopg.Connection, fifo: str
) -> None:
    send(db, fifo, ["a", "a", "a", "a"])
    set_vt(db, fifo, [3], 1000)
    reader = database.connect(autocommit=False)
    for form in FORMS:
        reader.execute("savepoint s")
        assert take(reader, form, fifo, 30, 9) == all_give(1, 2)[form]
        assert given(db, fifo) == all_give()
        reader.execute("rollback to s")
        assert given(db, fifo) == all_give(1, 2)
        reader.rollback()
    assert db.execute(f"select read_ct from pgmq.q_{fifo} order by msg_id").fetchall() == [(9,), (6,), (0,), (0,)]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_reader_with_an_old_snapshot_fails_or_gives_nothing_that_is_hidden_now(
    database: Database, db: psycopg.Connection, fifo: str, level: str
) -> None:
    send(db, fifo, ["a", "a", "a", "b", "b"])
    set_vt(db, fifo, [4], 1000)
    readers = {form: database.connect(autocommit=False) for form in FORMS}
    for reader in readers.values():
        reader.execute(f"set transaction isolation level {level}")
        reader.execute("select count(*) from pgmq.meta")
    # For the readers this one is still there, and still invisible.
    db.execute("select pgmq.delete(%s, 4)", [fifo])
    set_vt(db, fifo, [2], 1000)
    for form, reader in readers.items():
        if form == "read_grouped_head":
            assert take(reader, form, fifo, 0, 9) == [1]
        else:
            with pytest.raises(psycopg.errors.SerializationFailure):
                take(reader, form, fifo, 0, 9)
        reader.rollback()
    assert given(db, fifo) == {form: [1, 5] for form in FORMS}


# What another commits while a read runs, and what can be given then at most of the messages 1 to 4 of one group.
MEANWHILE = {
    "select pgmq.set_vt('{queue}', 1, 1000)": [],
    "select pgmq.set_vt('{queue}', 3, 1000)": [1, 2],
    "select pgmq.delete('{queue}', 1)": [2, 3, 4],
    "select pgmq.delete('{queue}', 2)": [1, 3, 4],
    "select pgmq.read_grouped('{queue}', 1000, 9)": [],
    "select pgmq.read('{queue}', 1000, 2), pgmq.set_vt('{queue}', 1, 0)": [],
}


@pytest.fixture
def slow_reader(
    database: Database, db: psycopg.Connection, make_role: Callable[..., str], fifo: str
) -> psycopg.Connection:
    """A reader that waits for an advisory lock when it looks at its nth row, where a policy is asked."""
    role = make_role()
    db.execute(
        f"""
        create sequence if not exists public.looks;
        grant usage on sequence public.looks to public;
        create or replace function public.look()
        returns boolean
        language plpgsql
        as $function$
        begin
            if nextval('public.looks') = current_setting('my.nth')::bigint then
                perform pg_advisory_xact_lock_shared(20);
            end if;
            return true;
        end
        $function$;
        grant usage on schema pgmq to {role};
        grant select, update on pgmq.q_{fifo} to {role};
        alter table pgmq.q_{fifo} enable row level security;
        create policy slow on pgmq.q_{fifo} using (public.look())
        """
    )
    return database.connect(role)


@pytest.mark.parametrize("fifo", [kind for kind in KINDS if kind != "unlogged"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_committed_while_a_read_runs_lets_nothing_overtake(
    database: Database, db: psycopg.Connection, fifo: str, slow_reader: psycopg.Connection, form: str
) -> None:
    other = database.connect()
    other.execute("set lock_timeout = '1ms'")
    waits = "select from pg_stat_activity where pid = %s and wait_event = 'advisory'"
    for statement, after in MEANWHILE.items():
        for nth in itertools.count(1):
            db.execute(f"delete from pgmq.q_{fifo}")
            db.execute(f"alter table pgmq.q_{fifo} alter msg_id restart")
            send(db, fifo, ["a", "a", "a", "a"])
            db.execute("select setval('public.looks', 1, false), pg_advisory_lock(20)")
            slow_reader.execute("select set_config('my.nth', %s::text, false)", [nth])
            got: list[int] = []
            thread = threading.Thread(target=lambda got=got: got.extend(take(slow_reader, form, fifo, 0, 9)))
            thread.start()
            try:
                pid = slow_reader.info.backend_pid
                is_waiting = eventually(
                    lambda thread=thread, pid=pid: (
                        (not thread.is_alive() and "no") or (db.execute(waits, [pid]).fetchone() is not None and "yes")
                    )
                )
                if is_waiting == "no":
                    break
                # Either this comes first, or the reader holds the message already.
                possible = [1, 2, 3, 4]
                with contextlib.suppress(psycopg.errors.LockNotAvailable):
                    if other.execute(statement.format(queue=fifo)).fetchall():
                        possible = after
            finally:
                db.execute("select pg_advisory_unlock(20)")
                thread.join()
            assert got == possible[: len(got)], (statement, nth, got)
        assert got == all_give(1, 2, 3, 4)[form]
        # Each was looked at more than once: when it was found and when it was locked.
        assert nth > 4


# Two transactions and whatever else happens beside them, against a model of what is promised.


@dataclasses.dataclass
class Model:
    """Every message with its group, whether it is visible to all, and what an open transaction has done to it."""

    groups: dict[int, str] = dataclasses.field(default_factory=dict)
    visible: dict[int, bool] = dataclasses.field(default_factory=dict)
    # By transaction: what it has made of messages. None: deleted.
    changes: dict[int, dict[int, bool | None]] = dataclasses.field(default_factory=lambda: {0: {}, 1: {}})

    def give(self, reader: int | None, form: str, qty: int) -> list[int]:
        """What a read gives, in its order."""
        free: dict[str, list[int]] = {}
        ended: set[str] = set()
        others = {msg_id for holder, changed in self.changes.items() if holder != reader for msg_id in changed}
        own = self.changes.get(reader, {}) if reader is not None else {}
        for msg_id, group in sorted(self.groups.items()):
            state = own.get(msg_id, self.visible[msg_id])
            if state is not None and group not in ended:
                if state and msg_id not in others:
                    free.setdefault(group, []).append(msg_id)
                else:
                    ended.add(group)
        if form == "read_grouped":
            return sorted(list(itertools.chain(*free.values()))[:qty])
        turns = list(itertools.zip_longest(*free.values()))[: 1 if form == "read_grouped_head" else None]
        return [msg_id for turn in turns for msg_id in turn if msg_id is not None][:qty]

    def change(self, who: int | None, ids: list[int], state: bool | None) -> None:
        for msg_id in ids:
            if who is not None:
                self.changes[who][msg_id] = state
            elif state is None:
                del self.groups[msg_id], self.visible[msg_id]
            else:
                self.visible[msg_id] = state

    def end(self, who: int, commits: bool) -> list[int]:
        """Ends a transaction and returns what a rollback gives back that is visible."""
        changed, self.changes[who] = self.changes[who], {}
        if not commits:
            return [msg_id for msg_id in changed if self.visible[msg_id]]
        for msg_id, state in changed.items():
            self.change(None, [msg_id], state)
        return []

    def untouched(self, who: int | None) -> list[int]:
        """The messages of groups that no other transaction has touched: a change of these waits for nobody."""
        touched = {self.groups[msg_id] for holder, ids in self.changes.items() if holder != who for msg_id in ids}
        own = self.changes.get(who, {}) if who is not None else {}
        return [
            msg_id
            for msg_id, group in sorted(self.groups.items())
            if group not in touched and own.get(msg_id, True) is not None
        ]


@pytest.mark.parametrize("seed", range(3))
def test_two_transactions_get_what_the_model_gives(
    database: Database, db: psycopg.Connection, fifo: str, seed: int
) -> None:
    chance = random.Random(seed)
    names = [f"g{number}" for number in range(5)]
    model = Model()
    connections: dict[int | None, psycopg.Connection] = {
        None: db,
        **{who: database.connect(autocommit=False) for who in model.changes},
    }
    for connection in connections.values():
        connection.execute("set lock_timeout = '1s'")
        if not connection.autocommit:
            connection.commit()
    cut = full = 0
    for _ in range(300):
        who = chance.choice([None, 0, 1])
        action = chance.choices(["send", "read", "remove", "hide", "show", "end"], [4, 6, 1, 1, 4, 5])[0]
        some = chance.sample(model.untouched(who), min(chance.randint(1, 3), len(model.untouched(who))))
        if action == "send" and len(model.groups) < 40:
            group, is_delayed = chance.choice(names), chance.random() < 0.2
            (msg_id,) = (
                db.cursor(row_factory=scalar_row)
                .execute(
                    "select pgmq.send(%s, '{}', jsonb_build_object('x-pgmq-group', %s::text), %s::integer)",
                    [fifo, group, 1000 if is_delayed else 0],
                )
                .fetchall()
            )
            model.groups[msg_id], model.visible[msg_id] = group, not is_delayed
        elif action == "read":
            form, qty = chance.choice(FORMS), chance.choice([1, 1, 2, 3, 50])
            # What is left visible by an open transaction would be found a second after its end only.
            vt = 0 if who is None and chance.random() < 0.5 else 1000
            ids = take(connections[who], form, fifo, vt, qty)
            assert ids == model.give(who, form, qty), (form, qty, model)
            model.change(who, ids, vt == 0)
            cut += 0 < len(ids) < qty
            full += len(ids) == qty
        elif action == "remove":
            verb = chance.choice(["delete", "archive"])
            connections[who].execute(f"select pgmq.{verb}(%s, %s::bigint[])", [fifo, some])
            model.change(who, some, None)
        elif action == "hide":
            set_vt(connections[who], fifo, some, 1000)
            model.change(who, some, False)
        elif action == "show":
            some = chance.sample(model.untouched(None), min(3, len(model.untouched(None))))
            set_vt(db, fifo, some, -1)
            model.change(None, some, True)
        elif action == "end" and who is not None:
            commits = chance.random() < 0.5
            connections[who].commit() if commits else connections[who].rollback()
            # A rollback is seen within two seconds; so at once.
            set_vt(db, fifo, model.end(who, commits), -1)
    assert cut > 10
    assert full > 10
