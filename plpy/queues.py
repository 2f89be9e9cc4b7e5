"""The life of a queue: create, compile, purge, drop."""

from typing import Any, Dict, NamedTuple, Optional

import plpy

from compiler import PARTS, Queue, statements
from dispatch import wait_to_drop
from interface import Error, ident, literal, number, rows, run, shown, sql
from partman import forget_partitions, partitioned_table_of

TABLE_KINDS = ("r", "p")


class Found(NamedTuple):
    """What the catalogs hold under a queue's name; the kinds are None where there is nothing of that name."""

    queue: Queue
    kind: Optional[str]
    archive_kind: Optional[str]


def find(queue_name: str) -> Found:
    """Look a queue up, holding the lock that create and drop take."""
    rows("select pgmq.acquire_queue_lock($1)", ["text"], [queue_name])
    row: Dict[str, Any] = rows(
        """
        select n.queue_table,
            n.archive_table,
            pgmq._stem($1) as stem,
            current_setting('server_version_num')::integer as server_version,
            case when q.relispartition then 'partition' else q.relkind::text end as kind,
            coalesce(q.relpersistence = 'u', false) as is_unlogged,
            coalesce(quote_ident(pg_get_userbyid(q.relowner)), 'current_user') as owner,
            case when a.relispartition then 'partition' else a.relkind::text end as archive_kind,
            to_regclass('pgmq.' || quote_ident(pgmq._stem($1) || '$fifo')) is not null as has_fifo_index
        from (
            select pgmq.format_table_name($1, 'q') as queue_table,
                pgmq.format_table_name($1, 'a') as archive_table
        ) as n
        left join pg_class as q on q.relname = n.queue_table and q.relnamespace = 'pgmq'::regnamespace
        left join pg_class as a on a.relname = n.archive_table and a.relnamespace = 'pgmq'::regnamespace
        """,
        ["text"],
        [queue_name],
    )[0]
    queue = Queue(
        queue_table=row["queue_table"],
        archive_table=row["archive_table"],
        stem=row["stem"],
        is_unlogged=row["is_unlogged"],
        is_partitioned=row["kind"] == "p",
        has_fifo_index=row["has_fifo_index"],
        server_version=row["server_version"],
        owner=row["owner"],
    )
    return Found(queue, row["kind"], row["archive_kind"])


def find_existing(queue_name: str) -> Found:
    """Look a queue up that must be there."""
    found = find(queue_name)
    if found.kind not in TABLE_KINDS:
        raise no_such_queue(queue_name)
    return found


def no_such_queue(queue_name: str) -> Error:
    return Error(
        "queue %s does not exist" % shown(queue_name),
        sqlstate="42P01",
        hint="Create it first: select pgmq.create(%s);" % literal(queue_name),
    )


def listed_name(queue: Queue) -> Optional[str]:
    """The name that pgmq.meta has for a queue."""
    listed = rows(
        "select queue_name from pgmq.meta where pgmq.format_table_name(queue_name, 'q') = $1",
        ["text"],
        [queue.queue_table],
    )
    return str(listed[0]["queue_name"]) if listed else None


def check_names(found: Found) -> None:
    """Refuse a new queue whose tables would have the names of something else."""
    for table, kind in (
        (found.queue.queue_table, found.kind),
        (found.queue.archive_table, found.archive_kind),
    ):
        if kind not in (None, *TABLE_KINDS):
            raise Error(
                "the name pgmq.%s is taken by something that cannot be a queue" % shown(table),
                sqlstate="42P07",
                hint="Choose another name for the queue.",
            )
        parent = partitioned_table_of(table) if kind is None else None
        if parent is not None:
            raise Error(
                "the name pgmq.%s is kept for a partition of pgmq.%s" % (shown(table), shown(parent)),
                sqlstate="42P07",
                hint="Choose another name for the queue.",
            )


def register(queue_name: str, queue: Queue) -> None:
    rows(
        "insert into pgmq.meta (queue_name, is_partitioned, is_unlogged) values ($1, $2, $3)",
        ["text", "boolean", "boolean"],
        [queue_name, queue.is_partitioned, queue.is_unlogged],
    )


def create_table_queue(queue_name: str, is_unlogged: bool) -> None:
    found = find(queue_name)
    check_names(found)
    # A table that is there, after DROP EXTENSION and CREATE EXTENSION, is taken over as it is.
    queue = found.queue if found.kind else found.queue._replace(is_unlogged=is_unlogged)
    if listed_name(queue) is None:
        register(queue_name, queue)
    elif found.kind is not None and has_functions(queue):
        return
    run(statements(queue))
    describe_functions(queue, queue_name)
    rows("select pgmq._dispatch()")


def has_functions(queue: Queue) -> bool:
    return bool(rows("select to_regproc($1) as f", ["text"], ["pgmq." + ident(queue.stem + "$send")])[0]["f"])


def own_functions(queue: Queue) -> str:
    """The functions of this queue, as a query that gives each with its quoted signature."""
    return """
        select p.oid::regprocedure::text as signature, substr(p.proname, %d) as verb
        from pg_proc as p
        where p.pronamespace = 'pgmq'::regnamespace
            and starts_with(p.proname, %s)
    """ % (len(queue.stem) + 2, literal(queue.stem + "$"))


def describe_functions(queue: Queue, queue_name: str) -> None:
    """Comment on a queue's own functions, and let everybody call them: what they may do the table decides.

    They belong to the owner of the table, whoever compiles: one that is SECURITY DEFINER must not run as a superuser.
    """
    run(
        "".join(
            "alter function {signature} owner to {owner};\n"
            "grant execute on function {signature} to public;\n"
            "comment on function {signature} is {text};\n".format(
                signature=row["signature"],
                owner=queue.owner,
                text=literal(
                    "The %s of queue %s, made by pgmq.create. Call the function of pgmq."
                    % (row["verb"], ident(queue_name))
                ),
            )
            for row in rows(own_functions(queue))
        )
    )


@sql("create(queue_name text) returns void", "set client_min_messages = warning")
def create(queue_name: str) -> None:
    """Creates a queue: the table pgmq.q_<name>, its archive pgmq.a_<name>, and the functions that serve them.

    Creating a queue that exists is no error and changes nothing. Names that differ only in case are one queue, and
    pgmq.meta keeps the first spelling.
    Errors: 22004 for NULL, 42622 too long, 42602 a character that is refused, 42P07 a name that something else has.
    Privileges: USAGE and CREATE on schema pgmq, SELECT and INSERT on pgmq.meta.
    """
    create_table_queue(queue_name, is_unlogged=False)


@sql("create_non_partitioned(queue_name text) returns void", "set client_min_messages = warning")
def create_non_partitioned(queue_name: str) -> None:
    """Creates a queue of one table, as create does. Errors and privileges: as create."""
    create_table_queue(queue_name, is_unlogged=False)


@sql("create_unlogged(queue_name text) returns void", "set client_min_messages = warning")
def create_unlogged(queue_name: str) -> None:
    """Creates a queue whose messages are not written to the WAL: faster, empty after a crash and on a standby.

    Its archive is an ordinary table. Errors and privileges: as create.
    """
    create_table_queue(queue_name, is_unlogged=True)


@sql("compile(queue_name text) returns void", "set client_min_messages = warning")
def compile_queue(queue_name: str) -> None:
    """Makes the functions, indexes and hints of an existing queue anew: after an upgrade, or for restored tables.

    Messages stay as they are. Errors: 42P01 no such queue. Privileges: owner of the queue table, CREATE on schema pgmq.
    """
    found = find_existing(queue_name)
    run(statements(found.queue, PARTS[2:]))
    describe_functions(found.queue, queue_name)
    rows("select pgmq._dispatch()")


def index_groups(queue_name: str) -> None:
    found = find_existing(queue_name)
    queue = found.queue._replace(has_fifo_index=True)
    run(statements(queue, ("fifo", "fifo_functions")))
    describe_functions(queue, queue_name)


@sql("create_fifo_index(queue_name text) returns void", "set client_min_messages = warning")
def create_fifo_index(queue_name: str) -> None:
    """Adds to a queue the index on message groups that makes the grouped reads fast; twice is no error.

    Sends wait while it is built, and pay for one more index from then on.
    Errors: 42P01 no such queue. Privileges: owner of the queue table, CREATE on schema pgmq.
    """
    index_groups(queue_name)


@sql("create_fifo_indexes_all() returns void", "set client_min_messages = warning")
def create_fifo_indexes_all() -> None:
    """Adds the index on message groups to every queue. Errors and privileges: as create_fifo_index."""
    for row in rows("select queue_name from pgmq.meta order by queue_name"):
        index_groups(row["queue_name"])


@sql("purge_queue(queue_name text) returns bigint")
def purge_queue(queue_name: str) -> int:
    """Removes all messages of a queue, visible or not, and returns how many there were. The archive stays.

    With the privilege to truncate the table it does so, and waits for whoever uses the queue; else it deletes.
    Errors: 42P01 no such queue. Privileges: DELETE, or SELECT and TRUNCATE, on the queue table.
    """
    found = find_existing(queue_name)
    table = "pgmq." + ident(found.queue.queue_table)
    if rows("select has_table_privilege($1, 'TRUNCATE') as allowed", ["text"], [table])[0]["allowed"]:
        # Locked first: what is counted is what is removed.
        run("lock table %s in access exclusive mode" % table)
        count = number("select count(*) from " + table)
        run("truncate " + table)
    else:
        count = number("with gone as (delete from %s returning 1) select count(*) from gone" % table)
    return count or 0


@sql("drop_queue(queue_name text) returns boolean")
def drop_queue(queue_name: str) -> bool:
    """Drops a queue with its messages, its archive and all that belongs to it.

    Returns true, or false with a notice where there is no such queue. It waits for transactions that use the queue, and
    may wait for one that creates or drops another.
    Errors: 22004, 42602 and 42622 for a text that is no queue name. Privileges: owner of the queue's tables, SELECT and
    DELETE on pgmq.meta; for a partitioned one also SELECT and DELETE on part_config of pg_partman.
    """
    found = find(queue_name)
    name = listed_name(found.queue)
    if name is None:
        plpy.notice("pgmq queue %s does not exist" % shown(queue_name))
        return False
    rows("delete from pgmq.meta where queue_name = $1", ["text"], [name])
    wait_to_drop(queue_name)
    templates = []
    if "p" in (found.kind, found.archive_kind):
        templates = forget_partitions([found.queue.queue_table, found.queue.archive_table])
    # Readers touch the sequences before the table: dropped in that order, the two do not wait for each other in a ring.
    # The functions come last, since a trigger of the table may depend on one.
    functions = rows(own_functions(found.queue))
    run(
        "".join(
            "drop sequence if exists pgmq.%s;\n" % ident(found.queue.stem + "$" + hint)
            for hint in ("sweep", "head", "due", "spread", "walk", "walked")
        )
        + "drop table if exists pgmq.%s;\n" % ident(found.queue.queue_table)
        + "drop table if exists pgmq.%s;\n" % ident(found.queue.archive_table)
        + "".join("drop table if exists %s;\n" % template for template in templates)
        + "".join("drop function %s;\n" % row["signature"] for row in functions)
    )
    rows("select pgmq._dispatch()")
    return True


@sql("drop_queue(queue_name text, partitioned boolean) returns boolean")
def drop_queue_partitioned(queue_name: str, partitioned: bool) -> bool:
    """Deprecated: as drop_queue(queue_name), with a warning. The second argument is not looked at.

    Errors and privileges: as drop_queue(queue_name).
    """
    plpy.warning("drop_queue(queue_name, partitioned) is deprecated, use drop_queue(queue_name)")
    return drop_queue(queue_name)


@sql("detach_archive(queue_name text) returns void")
def detach_archive(queue_name: str) -> None:
    """Deprecated: does nothing, with a warning. Archives do not belong to the extension.

    Errors: as validate_queue_name. Privileges: none.
    """
    rows("select pgmq.validate_queue_name($1)", ["text"], [queue_name])
    plpy.warning("detach_archive(queue_name) is deprecated and does nothing: archives do not belong to the extension")
