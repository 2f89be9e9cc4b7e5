"""From the description of a queue to its SQL: the templates of sql/queue*.sql, filled in."""

import re
from typing import Dict, Iterable, List, Mapping, Match, NamedTuple, Optional, Tuple

from interface import ident, literal

TEMPLATES = "\n".join(
    (
        "@file:queue.sql@",
        "@file:queue_read.sql@",
        "@file:queue_groups.sql@",
        "@file:queue_notify.sql@",
    )
)

# The sequences that a queue has for its hints (sql/hints.sql), in the order in which a read touches them: a drop that
# takes them in another could wait for a reader that waits for it.
HINTS = ("sweep", "head", "due")

# Sequences can be unlogged since PostgreSQL 15. Before these minor versions one that a standby has seen being created,
# and no restartpoint since, is broken when the standby is promoted ("bad magic number in sequence"): so would be every
# read and, with notifications, every send.
SOUND = {15: 150020, 16: 160016, 17: 170012, 18: 180006}

# What "-- @each" can name.
LISTS = {"hints": HINTS, "notify_memory": ("notified", "notifier")}

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
    # Nothing of it is there yet.
    is_new: bool
    server_version: int
    # The role that all of it belongs to; not quoted.
    owner: str
    # The columns that new tables are partitioned by: none, the id or a time.
    queue_key: str = ""
    archive_key: str = ""
    # The sequence that ids come from, qualified and quoted; it is known once the table is there.
    identity: str = ""

    @property
    def flags(self) -> Dict[str, bool]:
        """What "-- @if" asks for."""
        return {
            "unlogged": self.is_unlogged,
            "partitioned": self.is_partitioned,
            "new": self.is_new,
            "sequence_persistence": self.server_version >= 150000,
            "unlogged_sequences": self.server_version >= SOUND.get(self.server_version // 10000, 190000),
        }


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


def with_directives(text: str, flags: Mapping[str, bool]) -> str:
    """The text as "-- @if", "-- @else", "-- @each" and "-- @end" have it for these flags."""
    lines = text.split("\n")

    def block(at: int, is_taken: bool) -> Tuple[List[str], int]:
        """The lines from here up to the end of the block, and where that is."""
        taken: List[str] = []
        while at < len(lines):
            word, *rest = lines[at].strip()[len("-- @") :].split() if lines[at].lstrip().startswith("-- @") else [""]
            if word in ("else", "end"):
                return taken, at
            if word == "if":
                inner, at = block(at + 1, is_taken and flags[rest[0]])
                taken += inner
                if lines[at].strip() == "-- @else":
                    inner, at = block(at + 1, is_taken and not flags[rest[0]])
                    taken += inner
            elif word == "each":
                inner, at = block(at + 1, is_taken)
                for name in LISTS[rest[2]]:
                    taken += [re.sub(r"(?<=:)%s(?=@)" % rest[0], name, line) for line in inner]
            elif is_taken:
                taken.append(lines[at])
            at += 1
        return taken, at

    return "\n".join(block(0, True)[0])


def section(name: str, flags: Mapping[str, bool]) -> str:
    return with_directives(with_fragments(TEMPLATE["section", name]), flags)


def statements(queue: Queue, parts: Iterable[str], more: Optional[Mapping[str, str]] = None) -> str:
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
        "identity": queue.identity,
        "queue_key": primary(queue.queue_key),
        "queue_partitioning": partitioning(queue.queue_key),
        "archive_key": primary(queue.archive_key),
        "archive_partitioning": partitioning(queue.archive_key),
        "template": own("template"),
        "archive_template": own("a_template"),
        "row_id": "msg_id" if queue.is_partitioned else "ctid",
        "row_type": "bigint" if queue.is_partitioned else "tid",
        "group": GROUP % "",
        "owner": ident(queue.owner),
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

    text = "".join(section(part, queue.flags) + "\n" for part in parts)
    # Half the indentation: a dump holds this text once per queue.
    text = re.sub("^ +", lambda found: found.group()[::2], text, flags=re.M)
    return re.sub(r"@(function:|sequence:|index:|literal:|group:)?(\w+)@", word, text)


def signatures(parts: Iterable[str], queue: Queue) -> List[str]:
    """The functions that these parts make, qualified and quoted, with their types."""
    text = "\n".join(section(part, queue.flags) for part in parts)
    found = re.findall(r"^create or replace function @function:(\w+)@\((.*?)\)\n", text, re.M | re.S)
    return [
        "pgmq.%s(%s)" % (ident(queue.stem + "$" + verb), re.sub(r"(^|, )\w+ ", r"\1", " ".join(arguments.split())))
        for verb, arguments in found
    ]
