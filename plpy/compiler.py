"""From the description of a queue to its SQL: the templates of sql/queue.sql, filled in."""

import re
from typing import Dict, Iterable, Mapping, Match, NamedTuple, Optional, Tuple

from interface import ident, literal

TEMPLATES = "\n".join(
    (
        "@file:queue.sql@",
        "@file:queue_read.sql@",
        "@file:queue_groups.sql@",
        "@file:queue_notify.sql@",
    )
)

# What create makes, in this order; compile makes all but the two tables.
PARTS = ("tables", "archive", "indexes", "settings", "hints", "privileges", "functions", "fifo_functions")

# A group as a number: small in the index, whatever the header's length. Messages without the header share the group 0;
# should two groups ever have one number, they are read as one.
# It stands in sql/groups.sql, too. The types are exact: the index must not depend on the search_path.
GROUP = "coalesce(hashtextextended(%sheaders ->> 'x-pgmq-group'::text, 0::bigint), 0::bigint)"


class Queue(NamedTuple):
    """All that the templates depend on."""

    queue_table: str
    archive_table: str
    stem: str
    is_unlogged: bool
    is_partitioned: bool
    has_fifo_index: bool
    server_version: int
    # Of the queue table, quoted.
    owner: str
    # The columns that new tables are partitioned by: none, the id or a time.
    queue_key: str = ""
    archive_key: str = ""


def parts_of(templates: str) -> Dict[Tuple[str, str], str]:
    """Fragments and sections by kind and name; sections of one name are one. A comment before a name is that name's."""
    parts: Dict[Tuple[str, str], str] = {}
    _, *found = re.split(r"^(?:--(?! @)[^\n]*\n)*-- @(fragment|section) (\w+)\n", templates, flags=re.M)
    for kind, name, text in zip(found[::3], found[1::3], found[2::3]):
        known = parts.get((kind, name))
        parts[kind, name] = "\n\n".join(([known] if known else []) + [text.rstrip("\n")])
    return parts


TEMPLATE = parts_of(TEMPLATES)


def with_fragments(text: str) -> str:
    """The text with its fragments, each indented as the place where it is named."""

    def fragment(found: Match[str]) -> str:
        lines = with_fragments(TEMPLATE["fragment", found.group(2)]).split("\n")
        return "\n".join(found.group(1) + line if line else line for line in lines)

    return re.sub(r"^( *)@fragment:(\w+)@", fragment, text, flags=re.M)


def statements(queue: Queue, parts: Iterable[str] = PARTS, more: Optional[Mapping[str, str]] = None) -> str:
    """The SQL that makes these parts of a queue; `more` are words that only these parts have."""

    def own(name: str) -> str:
        return "pgmq." + ident(queue.stem + "$" + name)

    def primary(key: str) -> str:
        return "msg_id" if key in ("", "msg_id") else "msg_id, " + key

    def partitioning(key: str) -> str:
        return "partition by range (%s)" % key if key else ""

    words: Dict[str, str] = {
        "queue": "pgmq." + ident(queue.queue_table),
        "archive": "pgmq." + ident(queue.archive_table),
        "persistence": "unlogged" if queue.is_unlogged else "",
        "unlogged": "unlogged" if queue.server_version >= 150000 else "",
        "identity": "by default" if queue.queue_key else "always",
        "queue_key": primary(queue.queue_key),
        "queue_partitioning": partitioning(queue.queue_key),
        "archive_key": primary(queue.archive_key),
        "archive_partitioning": partitioning(queue.archive_key),
        "template": own("template"),
        "archive_template": own("a_template"),
        "row_id": "msg_id" if queue.is_partitioned else "ctid",
        "row_type": "bigint" if queue.is_partitioned else "tid",
        "group": GROUP % "",
        "owner": queue.owner,
        "literal:queue": literal("pgmq." + ident(queue.queue_table)),
    }
    words.update(more or {})

    def word(found: Match[str]) -> str:
        kind, name = found.group(1), found.group(2)
        if kind is None or kind + name in words:
            return words[(kind or "") + name]
        if kind == "literal:":
            return literal(own(name))
        if kind == "group:":
            return GROUP % (name + ".")
        if kind == "index:":
            return ident(queue.stem + "$" + name)
        return own(name)

    variants = {"settings": "partition_settings"} if queue.is_partitioned else {}
    if not queue.has_fifo_index:
        variants["fifo_functions"] = "fifo_functions_dropped"
    text = "\n".join(with_fragments(TEMPLATE["section", variants.get(part, part)]) for part in parts)
    return re.sub(r"@(function:|sequence:|index:|literal:|group:)?(\w+)@", word, text)
