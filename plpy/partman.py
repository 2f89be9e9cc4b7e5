"""pg_partman, 4 or 5: where it is, what it can take, and how a table gets its partitions from it."""

import re
from typing import Iterable, List, NamedTuple, Optional

import plpy

from interface import Error, ident, literal, rows, run, shown

# What the name of a partition has after that of its table.
SUFFIX = "_(p[0-9][0-9_]*|default)"

# The longest name that the server takes, in bytes.
LONGEST = 63

# No interval needs more characters.
LONGEST_SPAN = 100
SPAN_HINT = "Give a number such as '10000', or an interval such as '1 day'."


class Partman(NamedTuple):
    """The installed pg_partman; its schema is quoted."""

    schema: str
    major: int


class Span(NamedTuple):
    """A number of messages or a length of time."""

    text: str
    is_time: bool


class Parted(NamedTuple):
    """A table of a queue that is to have partitions.

    The parent is what pg_partman knows: the table itself, or where it could not take that name, the one partition of
    the table, which holds all and is partitioned in turn. The template has what new partitions are to have.
    """

    table: str
    parent: str
    template: str

    @property
    def is_nested(self) -> bool:
        return self.parent != self.table


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
    refuse_planted(partman)
    return partman


def refuse_planted(partman: Partman) -> None:
    """Refuse to run as a superuser what another role can change: pg_partman's functions, or triggers on its tables.

    Since version 5 a role that may create a schema can create the extension, and owns its functions.
    """
    found = rows(
        """
        with extension as (
            select oid, extowner, extnamespace
            from pg_extension
            where extname = 'pg_partman'::name
        )
        select o.object, pg_get_userbyid(o.owner)::text as owner
        from (
            select 'extension pg_partman', e.extowner
            from extension as e
            union all
            select 'function ' || p.oid::regprocedure::text, p.proowner
            from extension as e
            join pg_depend as d
                on d.refclassid = 'pg_extension'::regclass::oid
                and d.refobjid = e.oid
                and d.classid = 'pg_proc'::regclass::oid
            join pg_proc as m
                on m.oid = d.objid
            join pg_proc as p
                on p.proname = m.proname
                and p.pronamespace = e.extnamespace
            union all
            select format('trigger %I of table %s', t.tgname, t.tgrelid::regclass::text), p.proowner
            from pg_trigger as t
            join pg_proc as p
                on p.oid = t.tgfoid
            where t.tgrelid in (to_regclass($1)::oid, to_regclass($2)::oid)
                and not t.tgisinternal
        ) as o (object, owner)
        join pg_roles as r
            on r.oid = o.owner
        where not r.rolsuper
            and exists (
                select
                from pg_roles as c
                where c.rolname = current_user
                    and c.rolsuper
            )
        limit 1
        """,
        ["text", "text"],
        [partman.schema + ".part_config", partman.schema + ".part_config_sub"],
    )
    if found:
        raise Error(
            "%s belongs to role %s, and a superuser would run what that role puts there"
            % (found[0]["object"], shown(found[0]["owner"])),
            sqlstate="42501",
            hint="Let pg_partman and all that is in its schema belong to a superuser, or call this as that role.",
        )


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
    # Before anything is done with it.
    if len(text) > LONGEST_SPAN:
        raise Error(
            "%s is too long" % argument,
            sqlstate,
            detail="It has %d characters; the limit is %d." % (len(text), LONGEST_SPAN),
            hint=SPAN_HINT,
        )
    text = text.strip()
    is_time = not is_number(text)
    if is_time:
        try:
            fits = rows(
                """
                select isfinite($1::interval) and $1::interval >= $2::double precision * interval '1 second' as fits
                """,
                ["text", "integer"],
                [text, least],
            )[0]["fits"]
        except plpy.SPIError:
            raise Error(
                "%s is neither a number of messages nor a length of time: %s" % (argument, literal(text)),
                sqlstate,
                hint=SPAN_HINT,
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


def is_number(text: str) -> bool:
    return re.match(r"[+-]?[0-9]+\Z", text) is not None


def checked_spans(interval: Optional[str], retention: Optional[str]) -> List[Span]:
    """Interval and retention, both of messages or both of time. A partition holds two ids or one second at least."""
    least = 2 if interval is not None and len(interval) <= LONGEST_SPAN and is_number(interval.strip()) else 1
    spans = [
        checked_span("partition_interval", interval, least),
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


def suffix_bytes(partman: Partman, interval: Span) -> int:
    """How long what pg_partman appends to the name of a table becomes: _p999999999999, _p20260101, _p2026_01_01_000000.

    By id there is room for a million million messages; after that pg_partman cuts the longest names.
    """
    if not interval.is_time:
        return 14
    length = rows(
        "select $1::interval >= interval '1 day' as days, $1::interval >= interval '1 minute' as minutes",
        ["text"],
        [interval.text],
    )[0]
    if partman.major >= 5:
        return 10 if length["days"] else 17
    return 12 if length["days"] else 17 if length["minutes"] else 19


def shortened(name: str, size: int) -> str:
    """The name as the server cuts it at so many bytes."""
    return name.encode()[:size].decode(errors="ignore")


def nested_parent(table: str) -> str:
    """What stands in for a table whose name pg_partman cannot take.

    Like no queue's name, since it has a "$", nor like the beginning of what belongs to a queue.
    """
    digest = rows("select left(encode(sha256(convert_to($1, 'UTF8')), 'hex'), 16) as digest", ["text"], [table])[0][
        "digest"
    ]
    return "%s$%s$%s" % (table[0], re.sub("[^a-z0-9_]", "_", table[2:])[:23], digest)


def parted(partman: Partman, table: str, template: str, interval: Span, is_new: bool) -> Parted:
    """How a table gets its partitions.

    pg_partman splits names at dots. Names that would be too long with the suffix of a partition it cuts, and version 4
    counts characters where the server counts bytes.
    """
    size = len(table.encode())
    is_refused = "." in table or (size > len(table) and size + suffix_bytes(partman, interval) > LONGEST)
    parent = nested_parent(table)
    if (is_new and is_refused) or is_partition(parent, table):
        return Parted(table, parent, parent + "$template")
    return Parted(table, table, template)


def is_partition(name: str, table: str) -> bool:
    return bool(
        rows(
            "select from pg_inherits where inhrelid = to_regclass($1)::oid and inhparent = to_regclass($2)::oid",
            ["text", "text"],
            ["pgmq." + ident(name), "pgmq." + ident(table)],
        )
    )


def names_of(tables: Iterable[Parted]) -> List[str]:
    """The names of relations in schema pgmq that these take besides their tables' and their partitions'."""
    return [name for table in tables for name in ([table.parent] if table.is_nested else []) + [table.template]]


def check_partition_names(partman: Partman, tables: Iterable[Parted], interval: Span) -> None:
    """Refuse tables for whose partitions a name is taken: by a table, or by a partition of a table that is cut alike.

    pg_partman takes a partition for made where there is a relation of its name.
    """
    for table in tables:
        if table.is_nested and not is_partition(table.parent, table.table):
            refuse_taken(table, table.parent)
        prefix = shortened(table.parent, LONGEST - suffix_bytes(partman, interval))
        # Where the name is cut, there are no shorter ones.
        refuse_taken(table, prefix + "_p", "[0-9][0-9_]*", LONGEST if prefix != table.parent else 0)
        refuse_taken(table, shortened(table.parent, LONGEST - len("_default")) + "_default")


def refuse_taken(table: Parted, begin: str, rest: str = "", least: int = 0) -> None:
    """Refuse a table where something has a name that begins so, and is none of the table's partitions.

    `rest` is a regular expression, `least` how many bytes the name must have.
    """
    # LIKE on a column of type name, with a pattern that is known when it is planned, is a range of the index.
    found = rows(
        """
        select c.relname::text as name,
            case when c.relispartition then r.relname::text end as other
        from pg_class as c
        left join pg_class as r
            on r.oid = pg_partition_root(c.oid::regclass)::oid
        where c.relname ~~ $1
            and c.relnamespace = 'pgmq'::regnamespace::oid
            and substr(c.relname::text, $2) ~ $3
            and octet_length(c.relname::text) >= $4
            and not exists (
                select
                from pg_inherits as i
                where i.inhrelid = c.oid
                    and i.inhparent = to_regclass($5)::oid
            )
        limit 1
        """,
        ["text", "integer", "text", "integer", "text"],
        [
            like(begin) + ("%" if rest else ""),
            len(begin) + 1,
            "^%s$" % rest,
            least,
            "pgmq." + ident(table.parent),
        ],
    )
    if found:
        other = found[0]["other"]
        raise Error(
            "the name pgmq.%s, which a partition of pgmq.%s is to have, is taken"
            % (shown(found[0]["name"]), shown(table.table)),
            sqlstate="42P07",
            detail=other and "It is a partition of pgmq.%s." % shown(other),
            hint="pg_partman shortens the names of these partitions: choose a queue name whose first %d characters are "
            "its own." % (len(begin) - len("q__p"))
            if least
            else "Choose another name for the queue, or drop what has that name.",
        )


def like(text: str) -> str:
    """A pattern of LIKE that matches this text."""
    return re.sub(r"([\\%_])", r"\\\1", text)


def partitioned_table_of(name: str) -> Optional[str]:
    """The partitioned table that will want this name for a partition."""
    found = re.match("(.*)(%s)\\Z" % SUFFIX, name, re.S)
    if found is None:
        return None
    prefix, suffix = found.group(1, 2)
    # Only a name that is as long as can be, but for a last character that did not fit, may begin with part of another.
    may_be_cut = len(name.encode()) > LONGEST - 4
    parents = rows(
        """
        select relname::text as name
        from pg_class
        where relname ~~ $1
            and relnamespace = 'pgmq'::regnamespace::oid
            and relkind = 'p'::"char"
        """,
        ["text"],
        [like(prefix) + ("%" if may_be_cut else "")],
    )
    for parent in parents:
        if prefix in (parent["name"], shortened(parent["name"], LONGEST - len(suffix))):
            return str(parent["name"])
    return None


def is_managed(partman: Partman, table: Parted) -> bool:
    """Whether pg_partman has the table in its configuration."""
    return bool(
        rows(
            "select from %s.part_config where parent_table = any ($1)" % partman.schema,
            ["text[]"],
            [["pgmq." + table.table, "pgmq." + table.parent]],
        )
    )


def make_partitions(
    partman: Partman,
    table: Parted,
    key: str,
    spans: List[Span],
    premake: int,
    start: Optional[str] = None,
) -> None:
    """Hand a partitioned table to pg_partman, which makes the first partitions and drops them by the retention."""
    parent = "pgmq." + table.parent
    # What is left of a table that was dropped, or was put there beforehand, says nothing of this one.
    if is_managed(partman, table):
        forget(partman, [table.table, table.parent])
    if table.is_nested:
        run(
            "create table if not exists pgmq.%s partition of pgmq.%s\n"
            "for values from (minvalue) to (maxvalue) partition by range (%s)"
            % (ident(table.parent), ident(table.table), key)
        )
    resolve_in_catalog()
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
        [
            parent,
            key,
            spans[0].text,
            "native" if partman.major == 4 else "range",
            premake,
            "pgmq." + table.template,
            start,
        ],
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


def make_earlier_partitions(partman: Partman, table: Parted, starts: List[int]) -> None:
    """Make partitions by id below the first."""
    resolve_in_catalog()
    rows(
        "select %s.create_partition_id(p_parent_table := $1, p_partition_ids := $2)" % partman.schema,
        ["text", "bigint[]"],
        ["pgmq." + table.parent, starts],
    )


def resolve_in_catalog() -> None:
    """Let pg_partman, which puts its own schema before all that the path names, find the system's objects first.

    They come first where the path does not name pg_catalog. The functions of the extension restore the path.
    """
    rows("select set_config('search_path', 'pg_temp', true)")


def forget(partman: Partman, tables: Iterable[str]) -> None:
    """Take tables out of pg_partman's configuration."""
    rows(
        "delete from %s.part_config where parent_table = any ($1)" % partman.schema,
        ["text[]"],
        [["pgmq." + table for table in tables]],
    )


def forget_partitions(tables: List[str], templates: List[str]) -> List[str]:
    """Take the tables of a queue out of pg_partman's configuration. Returns the template tables to drop, quoted.

    They are those that create_partitioned made for the queue, under the given names, and those that pg_partman made for
    it. What the configuration names as its template is looked at by nobody: it may be any table.
    """
    parents = [nested_parent(table) for table in tables]
    partman = installed_partman()
    if partman is None:
        of_partman = "select null::name, null::name where false"
    else:
        refuse_planted(partman)
        forget(partman, tables + parents)
        # Names that pg_partman cut may have one template together.
        of_partman = """
            select n.nspname, m.name
            from pg_extension as e
            join pg_namespace as n
                on n.oid = e.extnamespace
            cross join lateral (
                select ('template_pgmq_' || t.name)::name
                from unnest($2) as t (name)
            ) as m (name)
            where e.extname = 'pg_partman'::name
                and not exists (
                    select
                    from {schema}.part_config as p
                    where p.template_table = n.nspname::text || '.' || m.name::text
                )
        """.format(schema=partman.schema)
    return [
        str(row["template"])
        for row in rows(
            """
            select format('%I.%I', n.nspname, c.relname) as template
            from (
                select 'pgmq'::name, t.name::name
                from unnest($1) as t (name)
                union all
                {of_partman}
            ) as m (schema, name)
            join pg_namespace as n
                on n.nspname = m.schema
            join pg_class as c
                on c.relnamespace = n.oid
                and c.relname = m.name
            where c.relkind = 'r'::"char"
                and not c.relispartition
                and (
                    pg_get_userbyid(c.relowner) = current_user
                    or c.relowner in (
                        select q.relowner
                        from unnest($2) as t (name)
                        join pg_class as q
                            on q.relname = t.name::name
                            and q.relnamespace = 'pgmq'::regnamespace::oid
                    )
                )
            """.format(of_partman=of_partman),
            ["text[]", "text[]"],
            [templates + [parent + "$template" for parent in parents], tables],
        )
    ]
