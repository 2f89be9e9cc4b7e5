"""The life of a queue: create, compile, purge, drop."""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import plpy

from compiler import HINTS, Queue, signatures, statements
from dispatch import dispatch_without
from interface import Error, ident, literal, number, rows, run, shown, sql
from partman import forget_partitions, partitioned_table_of

TABLE_KINDS = ("r", "p")

# The columns that queue and archive must have; others may stand beside them.
COLUMNS = (
    ("msg_id", "bigint"),
    ("read_ct", "integer"),
    ("enqueued_at", "timestamp with time zone"),
    ("last_read_at", "timestamp with time zone"),
    ("vt", "timestamp with time zone"),
    ("message", "jsonb"),
    ("headers", "jsonb"),
)
ARCHIVE_COLUMNS = (*COLUMNS, ("archived_at", "timestamp with time zone"))


class Found(NamedTuple):
    """What the catalogs hold under a queue's name; the kinds are None where there is nothing of that name."""

    queue: Queue
    kind: Optional[str]
    archive_kind: Optional[str]
    current_user: str


def find(queue_name: str) -> Found:
    """Look a queue up, holding the lock that create and drop take."""
    rows("select pgmq.acquire_queue_lock($1)", ["text"], [queue_name])
    row: Dict[str, Any] = rows(
        """
        select n.queue_table,
            n.archive_table,
            n.stem,
            current_setting('server_version_num')::integer as server_version,
            current_user::text as current_user,
            case when q.relispartition then 'partition' else q.relkind::text end as kind,
            coalesce(q.relpersistence = 'u', false) as is_unlogged,
            pg_get_userbyid(q.relowner)::text as owner,
            case when a.relispartition then 'partition' else a.relkind::text end as archive_kind,
            exists (
                select
                from pg_index as i
                join pg_class as c
                    on c.oid = i.indexrelid
                where i.indrelid = q.oid
                    and c.relname = n.stem || '$fifo'
            ) as has_fifo_index,
            coalesce(q.oid, a.oid) is null
            and not exists (
                select
                from pg_class as c
                where c.relnamespace = 'pgmq'::regnamespace
                    and c.relname >= (n.stem || '$')::name
                    and c.relname < (n.stem || '%')::name
            ) as is_new
        from (
            select pgmq.format_table_name($1, 'q'::text) as queue_table,
                pgmq.format_table_name($1, 'a'::text) as archive_table,
                pgmq._stem($1) as stem
        ) as n
        left join pg_class as q
            on q.relname = n.queue_table
            and q.relnamespace = 'pgmq'::regnamespace
        left join pg_class as a
            on a.relname = n.archive_table
            and a.relnamespace = 'pgmq'::regnamespace
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
        is_new=row["is_new"],
        server_version=row["server_version"],
        owner=row["owner"] or row["current_user"],
    )
    return Found(queue, row["kind"], row["archive_kind"], row["current_user"])


def find_existing(queue_name: str) -> Found:
    """Look a queue up that must be there."""
    rows("select pgmq._sought_table($1)", ["text"], [queue_name])
    found = find(queue_name)
    if found.kind not in TABLE_KINDS:
        raise no_such_queue(queue_name)
    return found


def no_such_queue(queue_name: str, sqlstate: str = "42P01") -> Error:
    return Error(
        "queue %s does not exist" % shown(queue_name),
        sqlstate,
        hint="Create it first: select pgmq.create(%s);" % literal(queue_name),
    )


def listed_name(queue_name: str) -> Optional[str]:
    """The name that pgmq.meta has for a queue."""
    listed = rows(
        "select queue_name from pgmq.meta where lower(queue_name::text) = lower($1)",
        ["text"],
        [queue_name],
    )
    return str(listed[0]["queue_name"]) if listed else None


def check_names(found: Found, more: Sequence[str] = ()) -> None:
    """Refuse to build what would take, or adopt, a name of something else; `more` are names beside those of any queue.

    Whoever may create in schema pgmq can have a relation, a function or a type there before the queue is made. Under a
    queue's names all must belong to the queue's owner: whoever is to own it, where it is new.
    """
    queue = found.queue
    for table, kind in ((queue.queue_table, found.kind), (queue.archive_table, found.archive_kind)):
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
    foreign = rows(
        """
        select o.name, pg_get_userbyid(o.owner)::text as owner, o.kind
        from (
            select relname as name, relowner as owner, 'table' as kind
            from pg_class
            where relnamespace = 'pgmq'::regnamespace
                and relname = any ($1::name[])
            union all
            select relname, relowner, case relkind when 'S' then 'sequence' else 'table' end
            from pg_class
            where relnamespace = 'pgmq'::regnamespace
                and relname >= $2::name
                and relname < $3::name
            union all
            select proname, proowner, 'function'
            from pg_proc
            where pronamespace = 'pgmq'::regnamespace
                and proname >= $2::name
                and proname < $3::name
            union all
            select typname, typowner, 'type'
            from pg_type
            where typnamespace = 'pgmq'::regnamespace
                and (typname = any ($1::name[]) or typname >= $2::name and typname < $3::name)
        ) as o
        where pg_get_userbyid(o.owner) <> $4::name
        order by o.kind = 'type', o.name
        limit 1
        """,
        ["text[]", "text", "text", "text"],
        [[queue.queue_table, queue.archive_table, *more], queue.stem + "$", queue.stem + "%", queue.owner],
    )
    if foreign:
        raise not_ours(foreign[0]["name"], foreign[0]["owner"], queue.owner)


def not_ours(name: str, owner: str, queue_owner: str) -> Error:
    return Error(
        "pgmq.%s belongs to role %s" % (shown(name), shown(owner)),
        sqlstate="42501",
        detail="All that has a name of this queue must belong to its owner, %s." % shown(queue_owner),
        hint="Drop it, or have it given to %s, where nobody else may need it." % shown(queue_owner),
    )


def check_columns(found: Found) -> None:
    """Refuse tables that are there and have other columns than those of a queue."""
    for table, kind, columns in (
        (found.queue.queue_table, found.kind, COLUMNS),
        (found.queue.archive_table, found.archive_kind, ARCHIVE_COLUMNS),
    ):
        if kind is None:
            continue
        missing = rows(
            """
            select c.name, c.type
            from unnest($2::text[], $3::text[]) as c (name, type)
            left join pg_attribute as a
                on a.attrelid = $1::regclass
                and a.attname = c.name
                and not a.attisdropped
            where a.atttypid is distinct from c.type::regtype
            limit 1
            """,
            ["text", "text[]", "text[]"],
            ["pgmq." + ident(table), [name for name, _ in columns], [type_ for _, type_ in columns]],
        )
        if missing:
            raise Error(
                "table pgmq.%s has no column %s of type %s" % (shown(table), missing[0]["name"], missing[0]["type"]),
                sqlstate="55000",
                hint="It is not the table of a queue. Rename it, or give it the columns of one.",
            )


def has_functions(queue: Queue) -> bool:
    return bool(
        rows(
            "select to_regprocedure($1) as f",
            ["text"],
            ["pgmq.%s(jsonb)" % ident(queue.stem + "$send_now")],
        )[0]["f"]
    )


# What else belongs to a queue, and is made again with it: each takes the queue and its name.
BUILD_HOOKS: List[Callable[[Queue, str], None]] = []


def build(found: Found, queue_name: str) -> None:
    """Make all of a queue but its tables: what is there already is made again. The names have been checked."""
    queue = found.queue
    table = rows(
        """
        select pg_get_serial_sequence($1, 'msg_id') as identity,
            obj_description($1::regclass::oid, 'pg_class') as comment
        """,
        ["text"],
        ["pgmq." + ident(queue.queue_table)],
    )[0]
    identity = table["identity"]
    if identity is None:
        raise Error(
            "column msg_id of table pgmq.%s draws from no sequence" % shown(queue.queue_table),
            sqlstate="55000",
            hint="Make it an identity column.",
        )
    queue = queue._replace(identity=identity)
    parts = ["indexes", "hints", "privileges", *function_parts(queue)]
    if table["comment"] is None:
        parts.append("comments")
    if queue.is_partitioned or not queue.is_new:
        parts.append("settings")
    if queue.has_fifo_index:
        parts.append("fifo")
    run(statements(queue, parts) + given_functions(queue, found.current_user))
    for hook in BUILD_HOOKS:
        hook(queue, queue_name)
    rows("select pgmq._dispatch()")


def own_functions(queue: Queue, but: Sequence[str] = ()) -> List[str]:
    """The functions, and procedures, that the owner of a queue has under its names, except those given."""
    return [
        row["signature"]
        for row in rows(
            """
            select oid::regprocedure::text as signature
            from pg_proc
            where pronamespace = 'pgmq'::regnamespace
                and proname >= $1::name
                and proname < $2::name
                and pg_get_userbyid(proowner) = $3::name
                and oid <> all (
                    array(
                        select to_regprocedure(b.signature)::oid
                        from unnest($4::text[]) as b (signature)
                        where to_regprocedure(b.signature) is not null
                    )
                )
            """,
            ["text", "text", "text", "text[]"],
            [queue.stem + "$", queue.stem + "%", queue.owner, list(but)],
        )
    ]


def function_parts(queue: Queue) -> List[str]:
    """The sections with the functions of a queue."""
    return ["functions", "fifo_functions"] if queue.has_fifo_index else ["functions"]


def given_functions(queue: Queue, current_user: str) -> str:
    """The SQL that gives the functions of a queue to its owner, and lets everybody call them.

    What they may do the table decides. They belong to the owner of the table, whoever compiles.
    """
    made = signatures(function_parts(queue), queue)
    text = ""
    if rows("select exists (select from pg_default_acl where defaclobjtype = 'f') as changed")[0]["changed"]:
        text += "".join("grant execute on function %s to public;\n" % function for function in made)
    if queue.owner != current_user:
        text += "".join("alter function %s owner to %s;\n" % (function, ident(queue.owner)) for function in made)
    return text


def register(queue_name: str, queue: Queue) -> None:
    rows(
        "insert into pgmq.meta (queue_name, is_partitioned, is_unlogged) values ($1, $2, $3)",
        ["text", "boolean", "boolean"],
        [queue_name, queue.is_partitioned, queue.is_unlogged],
    )


def create_queue(
    queue_name: str, found: Found, queue: Queue, more: Sequence[str], make_tables: Callable[[Queue], None]
) -> None:
    """Create a queue as described, unless it is there. What is there of it must be the current user's own."""
    is_listed = listed_name(queue_name) is not None
    if is_listed and found.kind in TABLE_KINDS and has_functions(queue):
        return
    check_names(found._replace(queue=queue), more)
    if not is_listed and found.current_user != queue.owner:
        raise not_ours(queue.queue_table, queue.owner, found.current_user)
    check_columns(found)
    if not is_listed:
        register(queue_name, queue)
    make_tables(queue)
    build(found._replace(queue=queue), queue_name)


def create_table_queue(queue_name: str, is_unlogged: bool) -> None:
    found = find(queue_name)
    # A table that is there, as after a restore of the tables alone, is taken over as it is.
    queue = found.queue if found.kind else found.queue._replace(is_unlogged=is_unlogged)

    def make_tables(queue: Queue) -> None:
        kinds = (("tables", found.kind), ("archive", found.archive_kind))
        run(statements(queue, [part for part, kind in kinds if kind is None]))

    create_queue(queue_name, found, queue, (), make_tables)


# The bodies of the functions that are made are not checked: that compiles each, and keeps it in the session.
BUILDER = "set client_min_messages = warning\nset check_function_bodies = off"


@sql("create(queue_name text) returns void", BUILDER)
def create(queue_name: str) -> None:
    """Creates a queue: the table pgmq.q_<name>, its archive pgmq.a_<name>, and the functions that serve them.

    Creating a queue that exists is no error and changes nothing. Names that differ only in case are one queue, and
    pgmq.meta keeps the first spelling.
    Errors: as validate_queue_name; 42P07 a name that something else has, 42501 a name that another role has something
    under, 55P03 another session has held the queue's lock for a minute, or for lock_timeout.
    Privileges: USAGE and CREATE on schema pgmq, SELECT and INSERT on pgmq.meta.
    """
    create_table_queue(queue_name, is_unlogged=False)


@sql("create_non_partitioned(queue_name text) returns void", BUILDER)
def create_non_partitioned(queue_name: str) -> None:
    """Creates a queue of one table, as create does. Errors and privileges: as create."""
    create_table_queue(queue_name, is_unlogged=False)


@sql("create_unlogged(queue_name text) returns void", BUILDER)
def create_unlogged(queue_name: str) -> None:
    """Creates a queue whose messages are not written to the WAL: faster, empty after a crash and on a standby.

    Its archive is an ordinary table, and ids go on after a crash. Errors and privileges: as create.
    """
    create_table_queue(queue_name, is_unlogged=True)


@sql("compile(queue_name text) returns void", BUILDER)
def compile_queue(queue_name: str) -> None:
    """Rebuilds all of an existing queue but its tables: after an upgrade, or for tables that were restored alone.

    That is its functions, indexes, hints (which are reset), storage settings, and notifications where they are on.
    Messages stay as they are.
    Errors: 42P01 no such queue, 42501 a name that another role has something under, 55000 a table with other columns,
    55P03 as create. Privileges: owner of the queue table, CREATE on schema pgmq.
    """
    found = find_existing(queue_name)
    check_names(found)
    check_columns(found)
    made = signatures(function_parts(found.queue), found.queue)
    stale = own_functions(found.queue, [*made, "pgmq.%s()" % ident(found.queue.stem + "$notify")])
    run("".join("drop routine %s;\n" % function for function in stale))
    build(found, queue_name)


def index_groups(found: Found, queue_name: str) -> None:
    check_names(found)
    check_columns(found)
    build(found._replace(queue=found.queue._replace(has_fifo_index=True)), queue_name)


@sql("create_fifo_index(queue_name text) returns void", BUILDER)
def create_fifo_index(queue_name: str) -> None:
    """Adds to a queue the index on message groups that makes the grouped reads fast; twice is no error.

    Sends wait while it is built, and pay for one more index from then on.
    Errors: as compile. Privileges: owner of the queue table, CREATE on schema pgmq.
    """
    index_groups(find_existing(queue_name), queue_name)


@sql("create_fifo_indexes_all() returns void", BUILDER)
def create_fifo_indexes_all() -> None:
    """Adds the index on message groups to every queue. Errors and privileges: as create_fifo_index.

    A row of pgmq.meta whose queue has no table is passed over.
    """
    for row in rows("select queue_name::text as name from pgmq.meta order by queue_name"):
        found = find(row["name"])
        if found.kind in TABLE_KINDS:
            index_groups(found, row["name"])


@sql("purge_queue(queue_name text) returns bigint")
def purge_queue(queue_name: str) -> int:
    """Removes all messages of a queue, visible or not, and returns how many there were. The archive stays.

    With the privilege to truncate the table it does so, and waits for whoever uses the queue; else, and under row
    security, it deletes what the caller sees.
    Errors: 42P01 no such queue, 55P03 as create. Privileges: DELETE, or SELECT and TRUNCATE, on the queue table.
    """
    found = find_existing(queue_name)
    table = "pgmq." + ident(found.queue.queue_table)
    # Truncating asks no policy.
    may_truncate = "has_table_privilege($1, 'TRUNCATE') and not row_security_active($1)"
    if rows("select %s as allowed" % may_truncate, ["text"], [table])[0]["allowed"]:
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
    may wait for one that creates or drops another, for a minute at most, or for lock_timeout.
    Errors: as validate_queue_name; 55P03 where it has waited in vain.
    Privileges: owner of the queue's tables, SELECT and DELETE on pgmq.meta; for a partitioned one also SELECT and
    DELETE on part_config of pg_partman.
    """
    found = find(queue_name)
    name = listed_name(queue_name)
    if name is None:
        plpy.notice("pgmq queue %s does not exist" % shown(queue_name))
        return False
    queue = found.queue
    rows("delete from pgmq.meta where queue_name::text = $1", ["text"], [name])
    templates: List[str] = []
    if "p" in (found.kind, found.archive_kind):
        templates = forget_partitions(
            [queue.queue_table, queue.archive_table], [queue.stem + "$template", queue.stem + "$a_template"]
        )
    # Readers touch the sequences before the table: dropped in that order, the two do not wait for each other in a ring.
    # The functions come last, since a trigger of the table may depend on one. What others have planted is left to them.
    run(
        "".join("drop sequence if exists pgmq.%s;\n" % ident(queue.stem + "$" + hint) for hint in HINTS)
        + "drop table if exists pgmq.%s;\n" % ident(queue.queue_table)
        + "drop table if exists pgmq.%s;\n" % ident(queue.archive_table)
        + "".join("drop table if exists %s;\n" % template for template in templates)
        + "".join("drop routine %s;\n" % function for function in own_functions(queue))
    )
    dispatch_without(queue_name)
    return True


@sql("drop_queue(queue_name text, partitioned boolean) returns boolean")
def drop_queue_partitioned(queue_name: str, partitioned: bool) -> bool:
    """Deprecated: as drop_queue(queue_name), with a warning. The second argument is ignored.

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
