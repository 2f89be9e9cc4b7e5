"""Which queues a routing key reaches: the bindings of a session, kept as a trie."""

import re
from typing import Any, Dict, Iterable, List, Optional, Set

import plpy

from interface import Error, sql


class Node:
    """A place in the patterns: what has been read of them so far, and how they go on.

    The edges are what a pattern is made of: literal text, which may hold dots, a star, a hash.
    """

    __slots__ = ("hash", "lengths", "literals", "pattern", "queues", "star")

    def __init__(self) -> None:
        self.literals: Dict[str, Node] = {}
        # Of the literals, ascending.
        self.lengths: List[int] = []
        self.star: Optional[Node] = None
        self.hash: Optional[Node] = None
        # Where a pattern ends: the pattern, and the queues bound to it.
        self.pattern: Optional[str] = None
        self.queues: List[str] = []

    def literal(self, text: str) -> "Node":
        node = self.literals.get(text)
        if node is None:
            node = self.literals[text] = Node()
            if len(text) not in self.lengths:
                self.lengths = sorted([*self.lengths, len(text)])
        return node

    def add(self, pattern: str, queue_name: str) -> None:
        node = self
        for part in re.findall(r"[*#]|[^*#]+", pattern):
            if part == "*":
                node.star = node.star or Node()
                node = node.star
            elif part == "#":
                node.hash = node.hash or Node()
                node = node.hash
            else:
                node = node.literal(part)
        node.pattern = pattern
        node.queues.append(queue_name)

    def matching(self, key: str) -> List["Node"]:
        """The ends of the patterns that match the whole key.

        One walk along the key with all places in the patterns that fit so far, so that no pattern can make it more
        than the length of the key times the number of such places.
        """
        end = len(key)
        reached: List[List[Node]] = [[] for _ in range(end + 1)]
        reached[0].append(self)
        after_star: Set[Node] = set()
        after_hash: Set[Node] = set()
        here: List[Node] = []
        for at in range(end + 1):
            here = reached[at] + list(after_star) + list(after_hash)
            started: List[Node] = []
            # It grows while it is walked: a hash stands for nothing, too.
            for node in here:
                for length in node.lengths:
                    if at + length > end:
                        break
                    following = node.literals.get(key[at : at + length])
                    if following is not None:
                        reached[at + length].append(following)
                if node.star is not None:
                    started.append(node.star)
                if node.hash is not None and node.hash not in after_hash:
                    after_hash.add(node.hash)
                    here.append(node.hash)
            if at < end:
                if key[at] == ".":
                    after_star.clear()
                else:
                    after_star.update(started)
        return [node for node in here if node.pattern is not None]


def trie_of(bindings: Iterable[Dict[str, Any]]) -> Node:
    root = Node()
    for binding in bindings:
        root.add(binding["pattern"], binding["queue_name"])
    return root


class Kept:
    """What a session keeps: the trie, the version of the bindings it was built from, and the plan that asks for it."""

    plan: Optional["plpy.Plan"] = None
    version: Optional[str] = None
    trie: Node


# Equal versions prove equal bindings (docs/topics.md). The triggers are part of it: where one has been disabled, or a
# row security policy shows each role something else, nothing is kept.
VERSION = """
    select
        concat_ws(
            ',',
            (
                select string_agg(v.version::text, ',' order by v.version)
                from pgmq.topic_version as v
            ),
            string_agg(concat_ws(' ', t.oid, t.xmin, t.ctid), ',' order by t.oid)
        ) as version,
        count(*) = 5
        and not exists (
            select
            from pgmq.topic_version as v
            where v.is_open
        )
        and has_table_privilege('pgmq.topic_bindings', 'SELECT')
        and not row_security_active('pgmq.topic_bindings') as may_be_kept
    from pg_catalog.pg_trigger as t
    where t.tgrelid = 'pgmq.topic_bindings'::regclass
        and starts_with(t.tgname, 'version_')
        and t.tgenabled = 'A'
"""


def matching(key: str) -> List[Node]:
    """The ends of the patterns that match. What is longer than a routing key would take memory that nobody counts."""
    if len(key) > 255:
        raise Error("a routing key has at most 255 characters", sqlstate="22023")
    return bindings().matching(key)


def bindings() -> Node:
    """The trie of the bindings that the caller's snapshot shows.

    It runs in STABLE functions, whose queries all see that same snapshot.
    """
    if Kept.plan is None:
        Kept.plan = plpy.prepare(VERSION)
    seen = next(iter(plpy.execute(Kept.plan)))
    if seen["may_be_kept"] and seen["version"] == Kept.version:
        return Kept.trie
    trie = trie_of(plpy.execute("select pattern, queue_name from pgmq.topic_bindings"))
    if seen["may_be_kept"]:
        Kept.trie = trie
        Kept.version = seen["version"]
    return trie


@sql("_matching_queues(routing_key text) returns text[]", "stable")
def matching_queues(routing_key: str) -> List[str]:
    """Internal: the queues that a routing key reaches, each once, in the order of their names."""
    return sorted({queue_name for node in matching(routing_key) for queue_name in node.queues})


@sql("_matching_patterns(routing_key text) returns text[]", "stable")
def matching_patterns(routing_key: str) -> List[str]:
    """Internal: the patterns that a routing key matches."""
    return [str(node.pattern) for node in matching(routing_key)]
