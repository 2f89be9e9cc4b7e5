"""Queues and archives in partitions: by id or by time, made and dropped by pg_partman."""

from typing import Dict, List, Optional, Tuple

import plpy

from compiler import Queue, statements
from interface import Error, ident, literal, number, pinned_path, rows, run, shown, sql
from partman import (
    LONGEST,
    Parted,
    check_partition_names,
    checked_premake,
    checked_spans,
    is_managed,
    make_earlier_partitions,
    make_partitions,
    names_of,
    parted,
    required_partman,
    shortened,
)
from queues import BUILDER, check_columns, check_names, create_queue, find


@sql(
    "create_partitioned(queue_name text, partition_interval text default '10000', "
    "retention_interval text default '100000', premake integer default 4) returns void",
    BUILDER,
    pinned=False,
)
@pinned_path()
def create_partitioned(
    queue_name: str, partition_interval: Optional[str], retention_interval: Optional[str], premake: Optional[int]
) -> None:
    """Creates a queue whose table and archive are partitioned: made and dropped by pg_partman 4.7 or 5.

    partition_interval is what one partition holds: a number of messages ('10000', partitions by msg_id) or a length of
    time ('1 day', by enqueued_at, and by archived_at in the archive). retention_interval, of the same kind, is how much
    is kept: pg_partman's maintenance drops a partition that is wholly older, WITH ITS MESSAGES, read or not. premake is
    how many partitions are made ahead. Nothing happens by itself: let run_maintenance of pg_partman run regularly.
    Creating a partitioned queue that exists is no error and changes nothing.
    Errors: as create; P0001 without pg_partman, for a partition_interval or premake that makes no sense, or where
    there is a queue of that name without partitions; 22023 a retention_interval that makes no sense or is of another
    kind, 22004 for NULL, 42P07 where the name of a partition is taken; 42501 for a superuser where pg_partman belongs
    to a role that is none.
    Privileges: as create, and on pg_partman: USAGE on its schema, SELECT, INSERT and UPDATE on its part_config and
    part_config_sub, EXECUTE on its functions; DELETE where part_config still has rows of a table that was dropped.
    """
    partman = required_partman()
    found = find(queue_name)
    spans = checked_spans(partition_interval, retention_interval)
    premake = checked_premake("premake", premake)
    queue = found.queue
    check_names(found)
    for name, kind in ((queue.queue_table, found.kind), (queue.archive_table, found.archive_kind)):
        if kind == "r":
            raise Error(
                "table pgmq.%s exists and is not partitioned" % shown(name),
                sqlstate="P0001",
                hint="Choose another name, or drop the queue first.",
            )
    tables = [
        parted(partman, queue.queue_table, queue.stem + "$template", spans[0], found.kind is None),
        parted(partman, queue.archive_table, queue.stem + "$a_template", spans[0], found.archive_kind is None),
    ]
    keys = ("enqueued_at", "archived_at") if spans[0].is_time else ("msg_id", "msg_id")
    kinds = (found.kind, found.archive_kind)

    def make_tables(queue: Queue) -> None:
        check_partition_names(partman, tables, spans[0])
        wanted = [part for part, kind in zip(("tables", "archive"), kinds) if kind is None]
        wanted += missing_templates(tables)
        run(statements(queue, wanted, template_words(*tables)))
        for table, key, kind in zip(tables, keys, kinds):
            if kind is None or not is_managed(partman, table):
                make_partitions(partman, table, key, spans, premake)

    queue = queue._replace(is_partitioned=True, queue_key=keys[0], archive_key=keys[1])
    create_queue(queue_name, found, queue, names_of(tables), make_tables)


@sql(
    "convert_archive_partitioned(table_name text, partition_interval text default '10000', "
    "retention_interval text default '100000', leading_partition integer default 10) returns void",
    pinned=False,
)
@pinned_path()
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
    Errors: as create_partitioned; 22023 a leading_partition below 1, 42P07 where pgmq.a_<queue>_old is taken.
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
    partman = required_partman()
    check_columns(found)
    spans = checked_spans(partition_interval, retention_interval)
    premake = checked_premake("leading_partition", leading_partition)
    table = parted(partman, archive, found.queue.stem + "$a_template", spans[0], is_new=True)
    renamed = names_set_aside(found.queue)
    check_names(found, [*names_of([table]), *(new_name for _, new_name in renamed)])
    check_partition_names(partman, [table], spans[0])
    for name, new_name in renamed:
        if exists(name) and exists(new_name):
            raise Error(
                "the name pgmq.%s, which the old archive is to have, is taken" % shown(new_name),
                sqlstate="42P07",
                hint="Rename or drop what has that name first.",
            )
    queue = found.queue._replace(archive_key="archived_at" if spans[0].is_time else "msg_id")
    run(
        "".join(
            "alter %s pgmq.%s rename to %s;\n" % (kind, ident(name), ident(new_name))
            for kind, (name, new_name) in zip(("table", "index"), renamed)
            if exists(name)
        )
    )
    wanted = ["archive"] + (["archive_template"] if not exists(table.template) else [])
    run(statements(queue, wanted, template_words(table, table)))
    if spans[0].is_time:
        make_partitions(partman, table, queue.archive_key, spans, premake)
    else:
        size = int(spans[0].text)
        first, last = unarchived_ids(queue, found.kind)
        start = last - last % size
        make_partitions(partman, table, queue.archive_key, spans, premake, str(start))
        # For the messages that are in the queue now; few, should a very old one be among them.
        earlier = range(start - size, max(first - size, start - size * (premake + 1), -1), -size)
        if earlier:
            make_earlier_partitions(partman, table, list(earlier))
    old = renamed[0][1]
    run(inherited_rights(old, archive) + inherited_owner(old, archive, table.template))


def missing_templates(tables: List[Parted]) -> List[str]:
    """The sections for the templates that are not there yet, as they are after a restore."""
    sections = ("template", "archive_template")
    return [section for section, table in zip(sections, tables) if not exists(table.template)]


def template_words(queue: Parted, archive: Parted) -> Dict[str, str]:
    """The words of the templates for the tables that pg_partman takes as models."""
    return {"template": "pgmq." + ident(queue.template), "archive_template": "pgmq." + ident(archive.template)}


def names_set_aside(queue: Queue) -> List[Tuple[str, str]]:
    """The names that the new archive takes, and those that the old one and its index have from then on."""
    return [
        (name, shortened(name, LONGEST - len("_old")) + "_old")
        for name in (queue.archive_table, queue.stem + "$archived")
    ]


def exists(name: str) -> bool:
    """Whether schema pgmq has a relation of this name."""
    return bool(rows("select to_regclass($1) is not null as found", ["text"], ["pgmq." + ident(name)])[0]["found"])


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
            ' (' || quote_ident(g.column_name::text) || ')',
            $2,
            case when g.grantee = 0::oid then 'public' else quote_ident(pg_get_userbyid(g.grantee)::text) end,
            case when g.is_grantable then ' with grant option' end
        ) as statement
        from (
            select null::name as column_name, a.privilege_type, a.grantee, a.is_grantable
            from pg_class as c
            cross join lateral aclexplode(c.relacl) as a
            where c.oid = $1::regclass::oid
            union all
            select t.attname, a.privilege_type, a.grantee, a.is_grantable
            from pg_attribute as t
            cross join lateral aclexplode(t.attacl) as a
            where t.attrelid = $1::regclass::oid
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
            on c.oid = t.relid::oid
        where o.oid = $1::regclass::oid
            and c.relowner <> o.relowner
        """,
        ["text", "text", "text"],
        ["pgmq." + ident(name) for name in (old, new, template)],
    )
    return "".join(row["statement"] + "\n" for row in owned)
