"""Queues and archives in partitions: by id or by time, made and dropped by pg_partman."""

from typing import List, Optional

import plpy

from compiler import Queue, statements
from interface import Error, ident, literal, number, rows, run, shown, sql
from partman import (
    check_partition_names,
    checked_premake,
    checked_spans,
    is_managed,
    make_earlier_partitions,
    make_partitions,
    required_partman,
)
from queues import check_names, describe_functions, find, has_functions, listed_name, register


@sql(
    "create_partitioned(queue_name text, partition_interval text default '10000', "
    "retention_interval text default '100000', premake integer default 4) returns void",
    "set client_min_messages = warning",
)
def create_partitioned(
    queue_name: str, partition_interval: Optional[str], retention_interval: Optional[str], premake: Optional[int]
) -> None:
    """Creates a queue whose table and archive are partitioned: made and dropped by pg_partman 4.7 or 5.

    partition_interval is what one partition holds: a number of messages ('10000', partitions by msg_id) or a length of
    time ('1 day', by enqueued_at, and by archived_at in the archive). retention_interval, of the same kind, is how much
    is kept: pg_partman's maintenance drops a partition that is wholly older, WITH ITS MESSAGES, read or not. premake is
    how many partitions are made ahead. Nothing happens by itself: let run_maintenance of pg_partman run regularly.
    Creating a partitioned queue that exists is no error and changes nothing.
    Errors: as create; 0A000 without pg_partman, 22023 an interval or premake that makes no sense, 22004 for NULL,
    42602 and 42622 a name that pg_partman cannot take, 42P07 a queue of that name without partitions.
    Privileges: as create, and on pg_partman: USAGE on its schema, SELECT, INSERT and UPDATE on its part_config and
    part_config_sub, EXECUTE on its functions.
    """
    found = find(queue_name)
    check_names(found)
    spans = checked_spans(partition_interval, retention_interval)
    premake = checked_premake("premake", premake)
    partman = required_partman()
    tables = [found.queue.queue_table, found.queue.archive_table]
    check_partition_names(tables, spans[0])
    for table, kind in zip(tables, (found.kind, found.archive_kind)):
        if kind == "r":
            raise Error(
                "table pgmq.%s exists and is not partitioned" % shown(table),
                sqlstate="42P07",
                hint="Choose another name, or drop the queue first.",
            )
    keys = ("enqueued_at", "archived_at") if spans[0].is_time else ("msg_id", "msg_id")
    queue = found.queue._replace(is_partitioned=True, queue_key=keys[0], archive_key=keys[1])
    if listed_name(queue) is None:
        register(queue_name, queue)
    elif found.kind is not None and has_functions(queue):
        return
    run(statements(queue, ("tables", "archive", "template", "archive_template")))
    for table, key, template in zip(tables, keys, ("template", "a_template")):
        if not is_managed(partman, table):
            make_partitions(partman, table, key, spans, premake, queue.stem + "$" + template)
    run(statements(queue, ("indexes", "settings", "hints", "privileges", "functions", "fifo_functions")))
    describe_functions(queue, queue_name)
    rows("select pgmq._dispatch()")


@sql(
    "convert_archive_partitioned(table_name text, partition_interval text default '10000', "
    "retention_interval text default '100000', leading_partition integer default 10) returns void"
)
def convert_archive_partitioned(
    table_name: str,
    partition_interval: Optional[str],
    retention_interval: Optional[str],
    leading_partition: Optional[int],
) -> None:
    """Gives a queue a partitioned archive in place of its plain one, which stays as pgmq.a_<queue>_old with its rows.

    table_name is the name of the queue; intervals as in create_partitioned, by msg_id or by archived_at.
    leading_partition is how many partitions are made ahead. The new archive has the owner and the grants of the old.
    Only a notice where the archive is partitioned already, or where there is none.
    Errors: as create_partitioned; 42P07 where pgmq.a_<queue>_old is taken.
    Privileges: owner of the archive, CREATE on schema pgmq, and those of create_partitioned on pg_partman.
    """
    found = find(table_name)
    archive = found.queue.archive_table
    if found.archive_kind is None:
        plpy.notice("pgmq archive table %s does not exist" % shown(archive))
        return
    if found.archive_kind == "p":
        plpy.notice("pgmq archive table %s is already partitioned" % shown(archive))
        return
    check_names(found)
    spans = checked_spans(partition_interval, retention_interval)
    premake = checked_premake("leading_partition", leading_partition)
    partman = required_partman()
    check_partition_names([archive], spans[0])
    old = archive + "_old"
    if rows("select to_regclass($1) is not null as taken", ["text"], ["pgmq." + ident(old)])[0]["taken"]:
        raise Error(
            "the name pgmq.%s, which the old archive is to have, is taken" % shown(old),
            sqlstate="42P07",
            hint="Rename or drop that table first.",
        )
    queue = found.queue._replace(archive_key="archived_at" if spans[0].is_time else "msg_id")
    set_aside(queue, old)
    run(statements(queue, ("archive", "archive_template")))
    template = queue.stem + "$a_template"
    if spans[0].is_time:
        make_partitions(partman, archive, queue.archive_key, spans, premake, template)
    else:
        size = int(spans[0].text)
        first, last = unarchived_ids(queue, found.kind)
        start = last - last % size
        make_partitions(partman, archive, queue.archive_key, spans, premake, template, str(start))
        # For the messages that are in the queue now; few, should a very old one be among them.
        earlier = range(start - size, max(first - size, start - size * (premake + 1), -1), -size)
        if earlier:
            make_earlier_partitions(partman, archive, list(earlier))
    run(inherited_rights(old, archive) + inherited_owner(old, archive, template))


def set_aside(queue: Queue, old: str) -> None:
    """Rename the plain archive, and its index, whose name the new one is to have."""
    run("alter table pgmq.%s rename to %s" % (ident(queue.archive_table), ident(old)))
    index = queue.stem + "$archived"
    if rows("select to_regclass($1) as found", ["text"], ["pgmq." + ident(index)])[0]["found"]:
        run("alter index pgmq.%s rename to %s" % (ident(index), ident(index + "_old")))


def unarchived_ids(queue: Queue, kind: Optional[str]) -> List[int]:
    """The lowest id in the queue and the last id given, 0 where there was none."""
    if kind is None:
        return [0, 0]
    table = "pgmq." + ident(queue.queue_table)
    last = number("select pg_sequence_last_value(pg_get_serial_sequence(%s, 'msg_id')::regclass)" % literal(table)) or 0
    first = number("select min(msg_id) from " + table)
    return [last if first is None else first, last]


def inherited_rights(old: str, new: str) -> str:
    """The statements that grant on one table what is granted on another, or on its columns."""
    granted = rows(
        """
        select format(
            'grant %s%s on pgmq.%I to %s%s;',
            g.privilege_type,
            ' (' || quote_ident(g.column_name) || ')',
            $2,
            case when g.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end,
            case when g.is_grantable then ' with grant option' end
        ) as statement
        from (
            select null as column_name, a.privilege_type, a.grantee, a.is_grantable
            from pg_class as c
            cross join lateral aclexplode(c.relacl) as a
            where c.oid = $1::regclass
            union all
            select t.attname, a.privilege_type, a.grantee, a.is_grantable
            from pg_attribute as t
            cross join lateral aclexplode(t.attacl) as a
            where t.attrelid = $1::regclass
                and not t.attisdropped
        ) as g
        """,
        ["text", "text"],
        ["pgmq." + ident(old), new],
    )
    return "".join(row["statement"] + "\n" for row in granted)


def inherited_owner(old: str, new: str, template: str) -> str:
    """The statements that give a table, its partitions and its template to the owner of another."""
    owned = rows(
        """
        select format('alter table %s owner to %I;', t.relid, pg_get_userbyid(o.relowner)) as statement
        from pg_class as o
        cross join (
            select relid
            from pg_partition_tree($2::regclass)
            union all
            select $3::regclass
        ) as t
        join pg_class as c
            on c.oid = t.relid
        where o.oid = $1::regclass
            and c.relowner <> o.relowner
        """,
        ["text", "text", "text"],
        ["pgmq." + ident(name) for name in (old, new, template)],
    )
    return "".join(row["statement"] + "\n" for row in owned)
