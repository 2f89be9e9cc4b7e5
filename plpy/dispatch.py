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
from typing import List, Match, Tuple

import plpy

from interface import Error, ident, literal, rows, run, sql

# Each more makes the functions longer, which every session compiles once: sixteen cost it 0.1 to 0.2 ms a function.
MOST = 16

REGION = re.compile(r"^( *)-- @queues\n((?: *--  .*\n)+)(?:(?! *-- @).*\n)*(?= *-- @others\n)", re.M)


def call(queue_name: str, verb: str) -> str:
    return "pgmq." + ident("q_" + queue_name + "$" + verb)


def known_queues(body: str) -> List[str]:
    """The names of the queues that were made first, in order; none that has other characters or is too long to fit.

    Where the body of a function knows as many as it may, and they are all there, they are these.
    """
    named = sorted(set(re.findall(r"queue_name = '([a-z0-9_.-]+)' collate \"C\" then", body)))
    if len(named) == MOST and not rows(
        "select from unnest($1::text[]) as f (signature) where to_regprocedure(f.signature) is null",
        ["text[]"],
        [[call(name, "send_now") + "(jsonb)" for name in named]],
    ):
        return named
    known = rows(
        r"""
        select substr(c.relname::text, 3) as name
        from pg_class as c
        where c.relnamespace = 'pgmq'::regnamespace
            and c.relkind in ('r', 'p')
            and c.relname ~ '^q_[a-z0-9_.-]{1,47}$'
            and to_regprocedure('pgmq.' || quote_ident(c.relname || '$send_now') || '(jsonb)') is not null
        order by c.oid
        limit %d
        """
        % MOST
    )
    return sorted(row["name"] for row in known)


def search(queues: List[str], template: str) -> str:
    """Statements that find a queue by halves, since each comparison costs 2 000 instructions, and call its function."""
    if len(queues) == 1:
        calls = re.sub(r"@(\w+)@", lambda verb: call(queues[0], verb.group(1)), template)
        return 'if queue_name = %s collate "C" then\n%send if;\n' % (literal(queues[0]), indented(calls))
    half = len(queues) // 2
    return 'if queue_name < %s collate "C" then\n%selse\n%send if;\n' % (
        literal(queues[half]),
        indented(search(queues[:half], template)),
        indented(search(queues[half:], template)),
    )


def indented(text: str, indent: str = "    ") -> str:
    return re.sub(r"^(?=.)", indent, text, flags=re.M)


def with_calls(body: str, queues: List[str]) -> str:
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


def write_calls(queues: List[str]) -> None:
    for row in rows(
        """
        select pg_get_functiondef(p.oid) as definition
        from pg_proc as p
        join pg_language as l
            on l.oid = p.prolang
        where p.pronamespace = 'pgmq'::regnamespace
            and pg_get_userbyid(p.proowner) = current_user
            and l.lanname = 'plpgsql'
            and strpos(p.prosrc, '-- @queues') > 0
        """
    ):
        head, body = definition_and_body(row["definition"])
        run("%s\nAS %s" % (head, literal(with_calls(body, queues))))


# One function stands for all: they are always written together.
ONE = "select pg_get_functiondef('pgmq.delete(text, bigint)'::regprocedure) as definition"


def dispatch_without(queue_name: str) -> None:
    """After a queue was dropped: have its direct calls taken out, which only one transaction at a time can do."""
    for _ in range(int(rows("select pgmq._patience() as seconds")[0]["seconds"] * 20) + 1):
        rows("select pgmq._dispatch()")
        if call(queue_name.lower(), "delete") not in rows(ONE)[0]["definition"]:
            return
        rows("select pg_sleep(0.05)")
    raise Error(
        "another transaction is creating or dropping queues",
        sqlstate="55P03",
        hint="Try again when it has ended: pg_locks shows who holds a lock on pgmq.dispatch_lock.",
    )


# SECURITY DEFINER, since the functions belong to whom the extension's do and anybody may make a queue. The caller gives
# nothing and the catalogs only names of letters, digits and _ . -. No table is read: a queue's may be another's, who
# could make of it what runs code of his. The lock is one that nobody else can take.
@sql(
    "_dispatch() returns void",
    "security definer\nset check_function_bodies = off",
)
def dispatch() -> None:
    """Internal: writes the direct calls of the queues that there are into the public functions.

    It waits for no other transaction that is at it: a new queue is then left to the dynamic call until the next time.
    """
    _, body = definition_and_body(rows(ONE)[0]["definition"])
    queues = known_queues(body)
    if with_calls(body, queues) == body:
        return
    try:
        with plpy.subtransaction():
            run("lock table pgmq.dispatch_lock in exclusive mode nowait")
            write_calls(queues)
    except plpy.SPIError as error:
        # Queues work without: beside another transaction that is at it, in the script of another extension, which may
        # not touch this one's functions, and beside a GRANT on them.
        if error.sqlstate not in ("55P03", "55000", "XX000"):
            raise
