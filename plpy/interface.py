"""What every module shares: how a function says its SQL, asks the server, and how an error reaches the client."""

import contextlib
import re
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, TypeVar

import plpy

Function = TypeVar("Function", bound=Callable[..., Any])


class Error(plpy.Error):
    """An error of the extension. The server shows it as `pgmq: message`, with its SQLSTATE, detail and hint."""

    def __init__(self, message: str, sqlstate: str, detail: Optional[str] = None, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint


# The server prints the class of an uncaught error before its text.
Error.__module__ = "builtins"
Error.__qualname__ = Error.__name__ = "pgmq"

# The functions that SQL calls, by their Python names.
FUNCTIONS: Dict[str, Callable[..., Any]] = {}


def sql(signature: str, clauses: str = "", pinned: bool = True) -> Callable[[Function], Function]:
    """Make a function an SQL function of the extension.

    `signature` is what follows CREATE FUNCTION pgmq., `clauses` what stands beside LANGUAGE; both are read by
    sql/build.py, which takes the docstring for the comment. Whatever the caller's search_path is, names are looked up
    in pg_catalog alone; a function that is not pinned sees to it itself, with pinned_path. Errors of the statements
    that the function runs keep their SQLSTATE and read like its own.
    """

    def register(function: Function) -> Function:
        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except plpy.SPIError as error:
                _, detail, hint = (error.spidata or (None, None, None))[:3]
                message = str(error)
                if message.startswith("pgmq: "):
                    message = message[len("pgmq: ") :]
                raise Error(message, error.sqlstate, detail, hint) from None

        FUNCTIONS[function.__name__] = call
        return function

    return register


# PL/Python's own quote_ident and quote_literal are not used: they take UTF-8 whatever the server's encoding, and where
# they fail they leave the interpreter by a jump that damages the session.
def ident(name: str) -> str:
    """The name as an identifier in SQL, quoted where it must be."""
    return name if re.match(r"[qa]_[a-z0-9_]*\Z", name) else '"%s"' % name.replace('"', '""')


def shown(name: str) -> str:
    """The name as messages show it: quoted only where it has other characters than the plainest."""
    return name if re.match(r"[a-z_][a-z0-9_]*\Z", name) else ident(name)


def literal(text: str) -> str:
    """The text as a string constant, whatever standard_conforming_strings says."""
    quoted = "'%s'" % text.replace("'", "''")
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def rows(query: str, types: Sequence[str] = (), values: Sequence[Any] = ()) -> List[Dict[str, Any]]:
    """The rows of a query with parameters $1, $2, ... of these types.

    The query has ASCII characters only: PL/Python sends its text as UTF-8 whatever the server's encoding, but converts
    the values.
    """
    if not types:
        return list(plpy.execute(query))
    return list(plpy.execute(plpy.prepare(query, list(types)), list(values)))


def run(statements: str) -> None:
    """Run statements without parameters, in any encoding; in one go, since each call is a subtransaction."""
    rows("select pgmq._run($1)", ["text"], [statements])


def number(query: str) -> Optional[int]:
    """The one number that a query without parameters gives, in any encoding."""
    value = rows("select pgmq._number($1) as value", ["text"], [query])[0]["value"]
    return None if value is None else int(value)


@contextlib.contextmanager
def pinned_path() -> Iterator[None]:
    """Look names up in pg_catalog alone, and leave the caller's search_path as it was whatever is called meanwhile.

    pg_partman sets the path for the session, which outlives the SET clause of a function.
    """
    path = rows("select pg_catalog.current_setting('search_path'::text) as path")[0]["path"]
    rows("select pg_catalog.set_config('search_path'::text, 'pg_catalog, pg_temp'::text, true)")
    yield
    rows("select pg_catalog.set_config('search_path'::text, $1, false)", ["text"], [path])
