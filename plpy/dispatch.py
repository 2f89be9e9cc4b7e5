"""Direct calls: the public functions know some queues by name, and need no dynamic statement for them.

Where the body of a function has

    -- @queues
    --     return next @send_now@(msg);
    --     return;
    -- @others

a search for the queue stands before the last line, with these statements for each of the queues. What follows serves
the others, by a dynamic call that costs a quarter of a send.
"""

import re
from typing import List, Match, NamedTuple, Optional, Tuple

import plpy

from interface import rows, run, sql

# Each more makes the functions longer, which every session compiles once: sixteen cost it 0.1 to 0.2 ms a function.
MOST = 16

REGION = re.compile(r"^( *)-- @queues\n((?: *--  .*\n)+)(?:(?! *-- @).*\n)*(?= *-- @others\n)", re.M)


def call(stem: str, verb: str) -> str:
    return "pgmq." + plpy.quote_ident(stem + "$" + verb)


class Known(NamedTuple):
    """A queue that is called directly."""

    name: str
    stem: str


def known_queues() -> List[Known]:
    """The queues that were made first, by name. One with other characters never becomes a part of a function."""
    known = [
        Known(row["queue_name"], row["stem"])
        for row in rows(
            r"""
            select m.queue_name, pgmq._stem(m.queue_name) as stem
            from pgmq.meta as m
            where m.queue_name ~ '^[A-Za-z0-9_.-]{1,47}$'
                and to_regproc('pgmq.' || quote_ident(pgmq._stem(m.queue_name) || '$send_now')) is not null
            order by m.created_at, m.queue_name
            limit %d
            """
            % MOST
        )
    ]
    return sorted(known, key=lambda queue: queue.name.encode())


def search(queues: List[Known], template: str) -> str:
    """Statements that find a queue by halves, since each comparison costs 2 000 instructions, and call its function."""
    if len(queues) == 1:
        name, stem = queues[0]
        calls = re.sub(r"@(\w+)@", lambda verb: call(stem, verb.group(1)), template)
        return 'if queue_name = %s collate "C" then\n%send if;\n' % (plpy.quote_literal(name), indented(calls))
    half = len(queues) // 2
    return 'if queue_name < %s collate "C" then\n%selse\n%send if;\n' % (
        plpy.quote_literal(queues[half].name),
        indented(search(queues[:half], template)),
        indented(search(queues[half:], template)),
    )


def indented(text: str, indent: str = "    ") -> str:
    return re.sub(r"^(?=.)", indent, text, flags=re.M)


def with_calls(body: str, queues: List[Known]) -> str:
    """The body of a function with the calls of these queues and no others."""

    def region(found: Match[str]) -> str:
        indent, comment = found.group(1), found.group(2)
        template = re.sub(r"^ *--     ", "", comment, flags=re.M)
        calls = indented(search(queues, template), indent) if queues else ""
        return indent + "-- @queues\n" + comment + calls

    return REGION.sub(region, body)


def definition_and_body(definition: str) -> Tuple[str, str]:
    """What pg_get_functiondef gives, as what stands before the body and the body."""
    head, quote, rest = re.split(r"\nAS (\$\w+\$)", definition, maxsplit=1)
    return head, rest[: rest.rindex(quote)]


def write_calls(queues: List[Known]) -> None:
    for row in rows(
        """
        select pg_get_functiondef(p.oid) as definition
        from pg_proc as p
        join pg_language as l
            on l.oid = p.prolang
        where p.pronamespace = 'pgmq'::regnamespace
            and l.lanname = 'plpgsql'
            and strpos(p.prosrc, '-- @queues') > 0
            and pg_has_role(p.proowner, 'usage')
        """
    ):
        head, body = definition_and_body(row["definition"])
        run("%s\nAS %s" % (head, plpy.quote_literal(with_calls(body, queues))))


# SECURITY DEFINER, since the functions belong to the owner of the extension and anybody may make a queue. The caller
# decides nothing but when: what comes into the functions are names of letters, digits and _ . - and of no more.
@sql(
    "_dispatch(dropped text default null) returns void",
    "security definer\nset search_path = pg_catalog, pg_temp\nset check_function_bodies = off",
)
def dispatch(dropped: Optional[str]) -> None:
    """Internal: writes the direct calls of the queues into the public functions, where they have changed.

    It waits for nobody: where another transaction is at it, a new queue is left to the dynamic call until the next
    time. But for a queue that is dropped, given by what the names of its functions begin with, it waits.
    """
    # One function tells for all: they are always written together.
    one = rows("select pg_get_functiondef('pgmq.delete(text, bigint)'::regprocedure) as definition")[0]["definition"]
    if dropped is not None and call(dropped, "delete") not in one:
        return
    _, body = definition_and_body(one)
    if with_calls(body, known_queues()) == body:
        return
    lock = "pg_try_advisory_xact_lock" if dropped is None else "pg_advisory_xact_lock"
    if rows("select %s(hashtextextended('pgmq.$dispatch', 0))::text as taken" % lock)[0]["taken"] == "false":
        return
    try:
        with plpy.subtransaction():
            write_calls(known_queues())
    except plpy.SPIError as error:
        # Queues work without: in the script of another extension, which may not touch this one's functions, and beside
        # a GRANT on them.
        if error.sqlstate not in ("55000", "XX000"):
            raise
