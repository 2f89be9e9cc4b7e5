"""pg_partman, 4 or 5: where it is, what it can take, and how a table gets its partitions from it."""

import re
from typing import List, NamedTuple, Optional

import plpy

from interface import Error, literal, rows, shown

# What the name of a partition has after that of its table.
SUFFIX = "^_(p[0-9][0-9_]*|default)$"


class Partman(NamedTuple):
    """The installed pg_partman; its schema is quoted."""

    schema: str
    major: int


class Span(NamedTuple):
    """A number of messages or a length of time."""

    text: str
    is_time: bool


def installed_partman() -> Optional[Partman]:
    found = rows(
        """
        select quote_ident(n.nspname) as schema, split_part(e.extversion, '.', 1)::integer as major
        from pg_extension as e
        join pg_namespace as n
            on n.oid = e.extnamespace
        where e.extname = 'pg_partman'
        """
    )
    return Partman(found[0]["schema"], found[0]["major"]) if found else None


def required_partman() -> Partman:
    partman = installed_partman()
    if partman is None:
        raise Error(
            "pg_partman is required for partitioned queues",
            sqlstate="P0001",
            hint="Install pg_partman 4.7 or 5: create schema partman; create extension pg_partman schema partman;",
        )
    if partman.major < 4:
        raise Error(
            "pg_partman %d is too old for partitions" % partman.major,
            sqlstate="0A000",
            hint="Upgrade it to version 4.7 or 5.",
        )
    return partman


def checked_premake(argument: str, premake: Optional[int]) -> int:
    """How many partitions are made ahead, if it can be."""
    if premake is None:
        raise Error("%s must not be NULL" % argument, sqlstate="22004")
    if premake < 1:
        raise Error(
            "%s must be at least 1, got %d" % (argument, premake),
            sqlstate="P0001" if argument == "premake" else "22023",
            hint="It is the number of partitions that are made ahead of the newest message.",
        )
    return premake


def checked_span(argument: str, text: Optional[str], least: int) -> Span:
    """What the text means: at least so many messages, or so many seconds."""
    # pg_partman refuses bad intervals with P0001, and takes any retention.
    sqlstate = "P0001" if argument == "partition_interval" else "22023"
    if text is None:
        raise Error("%s must not be NULL" % argument, sqlstate="22004")
    text = text.strip()
    is_time = not re.match("[+-]?[0-9]+$", text)
    if is_time:
        try:
            fits = rows(
                "select isfinite($1::interval) and $1::interval >= $2 * interval '1 second' as fits",
                ["text", "integer"],
                [text, least],
            )[0]["fits"]
        except plpy.SPIError:
            raise Error(
                "%s is neither a number of messages nor a length of time: %s" % (argument, literal(text)),
                sqlstate,
                hint="Give a number such as '10000', or an interval such as '1 day'.",
            ) from None
    else:
        text = str(int(text))
        fits = least <= int(text) < 2**63
    if not fits:
        raise Error(
            "%s is out of range: %s" % (argument, literal(text)),
            sqlstate,
            hint="The least is %s." % ("%d seconds" % least if is_time else "%d messages" % least),
        )
    return Span(text, is_time)


def checked_spans(interval: Optional[str], retention: Optional[str]) -> List[Span]:
    """Interval and retention, both of messages or both of time. A partition holds two ids or one second at least."""
    is_number = interval is not None and re.match(" *[+-]?[0-9]+ *$", interval)
    spans = [
        checked_span("partition_interval", interval, 2 if is_number else 1),
        checked_span("retention_interval", retention, 0),
    ]
    if spans[0].is_time != spans[1].is_time:
        raise Error(
            "partition_interval and retention_interval must be of one kind: %s, %s"
            % (literal(spans[0].text), literal(spans[1].text)),
            sqlstate="22023",
            hint="Give a number of messages twice, such as '10000' and '100000', or a length of time twice, such as "
            "'1 day' and '7 days'.",
        )
    return spans


def check_partition_names(tables: List[str], interval: Span) -> None:
    """Refuse tables whose partitions pg_partman could not name.

    It splits names at dots, cuts a name that would be too long with its suffix (_p2026_01_01_000000, _p1000000000000),
    and takes a partition for made where a table has its name.
    """
    longest = 44 if interval.is_time else 49
    for table in tables:
        if "." in table:
            raise Error(
                "pg_partman takes no name with a dot: %s" % shown(table),
                sqlstate="42602",
                hint="Choose a name without dots for a queue with partitions.",
            )
        if len(table.encode()) > longest:
            raise Error(
                "the name %s is too long for partitions" % shown(table),
                sqlstate="42622",
                detail="It has %d bytes, and partitions leave room for %d." % (len(table.encode()), longest),
                hint="Choose a shorter name for a queue with partitions.",
            )
        taken = rows(
            """
            select relname
            from pg_class
            where relnamespace = 'pgmq'::regnamespace
                and starts_with(relname, $1)
                and substr(relname, length($1) + 1) ~ $2
                and not relispartition
            """,
            ["text", "text"],
            [table, SUFFIX],
        )
        if taken:
            raise Error(
                "the name pgmq.%s, which a partition is to have, is taken" % shown(taken[0]["relname"]),
                sqlstate="42P07",
                hint="Choose another name for the queue, or drop what has that name.",
            )


def partitioned_table_of(name: str) -> Optional[str]:
    """The partitioned table that will want this name for a partition."""
    found = rows(
        """
        select relname
        from pg_class
        where relnamespace = 'pgmq'::regnamespace
            and relkind = 'p'
            and starts_with($1, relname)
            and substr($1, length(relname) + 1) ~ $2
        """,
        ["text", "text"],
        [name, SUFFIX],
    )
    return str(found[0]["relname"]) if found else None


def is_managed(partman: Partman, table: str) -> bool:
    return bool(
        rows(
            "select from %s.part_config where parent_table = $1" % partman.schema,
            ["text"],
            ["pgmq." + table],
        )
    )


def make_partitions(
    partman: Partman,
    table: str,
    key: str,
    spans: List[Span],
    premake: int,
    template: str,
    start: Optional[str] = None,
) -> None:
    """Hand a partitioned table to pg_partman, which makes the first partitions and drops them by the retention."""
    parent = "pgmq." + table
    rows(
        """
        select %s.create_parent(
            p_parent_table := $1,
            p_control := $2,
            p_interval := $3,
            p_type := $4,
            p_premake := $5,
            p_template_table := $6,
            p_start_partition := $7
        )
        """
        % partman.schema,
        ["text", "text", "text", "text", "integer", "text", "text"],
        [parent, key, spans[0].text, "native" if partman.major == 4 else "range", premake, "pgmq." + template, start],
    )
    # A queue that was idle for long has its partition for now all the same.
    rows(
        """
        update %s.part_config
        set retention = $2,
            retention_keep_table = false,
            infinite_time_partitions = true
        where parent_table = $1
        """
        % partman.schema,
        ["text", "text"],
        [parent, spans[1].text],
    )


def make_earlier_partitions(partman: Partman, table: str, starts: List[int]) -> None:
    """Make partitions by id below the first."""
    rows("select %s.create_partition_id($1, $2)" % partman.schema, ["text", "bigint[]"], ["pgmq." + table, starts])


def forget_partitions(tables: List[str]) -> List[str]:
    """Take tables out of pg_partman's configuration. Returns the template tables that nothing else uses, quoted."""
    partman = installed_partman()
    if partman is None:
        return []
    forgotten = rows(
        "delete from %s.part_config where parent_table = any ($1) returning template_table" % partman.schema,
        ["text[]"],
        [["pgmq." + table for table in tables]],
    )
    return [
        row["template"]
        for row in rows(
            """
            select format('%%I.%%I', n.nspname, c.relname) as template
            from pg_class as c
            join pg_namespace as n
                on n.oid = c.relnamespace
            where n.nspname || '.' || c.relname = any ($1)
                and not exists (
                    select
                    from %s.part_config as p
                    where p.template_table = n.nspname || '.' || c.relname
                )
            """
            % partman.schema,
            ["text[]"],
            [[row["template_table"] for row in forgotten]],
        )
    ]
