"""Notifications of inserts: turned on, changed, turned off."""

from typing import NamedTuple, Optional, Sequence

from compiler import Queue, statements
from interface import Error, ident, literal, rows, run, shown, sql
from queues import BUILD_HOOKS, TABLE_KINDS, Found, check_names, find, listed_name, no_such_queue


class Listed(NamedTuple):
    """A queue with its name as pgmq.meta has it, of which the channel is made."""

    found: Found
    name: str

    @property
    def queue(self) -> Queue:
        return self.found.queue


def find_listed(queue_name: str) -> Optional[Listed]:
    found = find(queue_name)
    name = listed_name(queue_name)
    return Listed(found, name) if name is not None and found.kind in TABLE_KINDS else None


def queue_that_exists(queue_name: Optional[str]) -> Listed:
    if queue_name is None:
        raise Error("queue NULL does not exist", sqlstate="P0001")
    listed = find_listed(queue_name)
    if listed is None:
        raise no_such_queue(queue_name, sqlstate="P0001")
    check_names(listed.found)
    return listed


def check_throttle(throttle_interval_ms: Optional[int]) -> None:
    if throttle_interval_ms is None:
        raise Error("throttle_interval_ms must not be NULL", sqlstate="22004")
    if throttle_interval_ms < 0:
        raise Error(
            "throttle_interval_ms must be non-negative, got: %d" % throttle_interval_ms,
            sqlstate="P0001",
            hint="It is in milliseconds; 0 means that every insert notifies.",
        )


def table_of(queue: Queue) -> str:
    return "pgmq." + ident(queue.queue_table)


def make(queue: Queue, name: str, parts: Sequence[str], throttle_interval_ms: int) -> None:
    """Make these parts of the queue; "notify" is the trigger function, which remembers no notification then."""
    # A channel has at most 63 bytes, and LISTEN cuts a longer name in the same way.
    row = rows("select ('pgmq.q_' || $1 || '.INSERT')::name::text as channel", ["text"], [name])[0]
    more = {"literal:channel": literal(row["channel"]), "throttle": str(throttle_interval_ms)}
    run(statements(queue, parts, more))


def drop_other_triggers(queue: Queue) -> str:
    """The SQL that drops the triggers of another version."""
    return "".join(
        "drop trigger %s on %s;\n" % (ident(row["name"]), table_of(queue))
        for row in rows(
            """
            select tgname as name
            from pg_trigger
            where tgrelid = $1::regclass
                and tgfoid = 'pgmq.notify_queue_listeners()'::regprocedure
                and tgparentid = 0
            """,
            ["text"],
            [table_of(queue)],
        )
    )


def turn_on(queue: Queue, name: str, throttle_interval_ms: int) -> None:
    is_on = rows(
        "select from pg_trigger where tgrelid = $1::regclass and tgname = 'notify_insert'", ["text"], [table_of(queue)]
    )
    parts = ["notify_memory", "notify"] if is_on else ["notify_memory", "notify", "notify_trigger"]
    make(queue, name, parts, throttle_interval_ms)
    run(drop_other_triggers(queue))


def rebuild(queue: Queue, queue_name: str) -> None:
    """Make what notifies of inserts into a queue, as pgmq.notify_insert_throttle has it, if it has it."""
    if not rows("select has_table_privilege('pgmq.notify_insert_throttle', 'SELECT') as allowed")[0]["allowed"]:
        return
    for row in rows(
        """
        select queue_name::text as name, throttle_interval_ms
        from pgmq.notify_insert_throttle
        where lower(queue_name::text) = lower($1)
        """,
        ["text"],
        [queue_name],
    ):
        turn_on(queue, row["name"], row["throttle_interval_ms"])


BUILD_HOOKS.append(rebuild)


@sql(
    "enable_notify_insert(queue_name text, throttle_interval_ms integer default 250) returns void",
    "set client_min_messages = warning",
)
def enable_notify_insert(queue_name: str, throttle_interval_ms: int) -> None:
    """Makes inserts into a queue notify the channel pgmq.q_<name>.INSERT, the name spelled as pgmq.meta has it.

    A statement that inserts notifies once, when its transaction commits, and not if another did so less than
    throttle_interval_ms milliseconds before, 0 for always; docs/notifications.md says what a listener can rely on. The
    name of a channel has at most 63 bytes, so that of a long queue name is cut there, as LISTEN does by itself.
    Where it is on already, the throttle is changed. It waits for transactions that have sent to the queue.
    Errors: P0001 no such queue or a negative throttle, 22004 a NULL throttle. Privileges: owner of the queue table,
    CREATE on schema pgmq, SELECT on pgmq.meta, SELECT, INSERT and UPDATE on pgmq.notify_insert_throttle.
    """
    check_throttle(throttle_interval_ms)
    found = queue_that_exists(queue_name)
    rows(
        """
        insert into pgmq.notify_insert_throttle (queue_name, throttle_interval_ms)
        values ($1, $2)
        on conflict (queue_name) do update set throttle_interval_ms = excluded.throttle_interval_ms
        """,
        ["text", "integer"],
        [found.name, throttle_interval_ms],
    )
    turn_on(found.queue, found.name, throttle_interval_ms)


@sql(
    "update_notify_insert(queue_name text, throttle_interval_ms integer) returns void",
    "set client_min_messages = warning",
)
def update_notify_insert(queue_name: str, throttle_interval_ms: int) -> None:
    """Changes the throttle of a queue that notifies of inserts, in milliseconds, and starts it afresh.

    Errors: P0001 no such queue, a queue that does not notify or a negative throttle, 22004 a NULL throttle.
    Privileges: as enable_notify_insert.
    """
    check_throttle(throttle_interval_ms)
    found = queue_that_exists(queue_name)
    if not rows(
        "update pgmq.notify_insert_throttle set throttle_interval_ms = $2 where queue_name = $1 returning queue_name",
        ["text", "integer"],
        [found.name, throttle_interval_ms],
    ):
        raise Error(
            "notifications are not enabled for queue %s: it does not have notify_insert enabled" % shown(found.name),
            sqlstate="P0001",
            hint="Enable it first: select pgmq.enable_notify_insert(%s);" % literal(found.name),
        )
    make(found.queue, found.name, ["notify"], throttle_interval_ms)


@sql("disable_notify_insert(queue_name text) returns void", "set client_min_messages = warning")
def disable_notify_insert(queue_name: str) -> None:
    """Makes inserts into a queue notify no more. Where they did not, or there is no such queue, nothing is done.

    Errors: as validate_queue_name. Privileges: owner of the queue table, SELECT on pgmq.meta, SELECT and DELETE on
    pgmq.notify_insert_throttle.
    """
    found = find_listed(queue_name)
    if found is None:
        return
    rows("delete from pgmq.notify_insert_throttle where queue_name = $1", ["text"], [found.name])
    notify, *memory = ["pgmq." + ident(found.queue.stem + "$" + name) for name in ("notify", "notified", "notifier")]
    run(
        drop_other_triggers(found.queue)
        + "drop trigger if exists notify_insert on %s;\n" % table_of(found.queue)
        + "drop function if exists %s();\n" % notify
        + "drop sequence if exists %s;\n" % ", ".join(memory)
    )
