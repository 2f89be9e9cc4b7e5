"""What every module shares: how a function says its SQL, asks the server, and how an error reaches the client."""

from typing import Any, Callable, Dict, List, Optional, Sequence, TypeVar

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


def sql(signature: str, clauses: str = "") -> Callable[[Function], Function]:
    """Make a function an SQL function of the extension.

    `signature` is what follows CREATE FUNCTION pgmq., `clauses` what stands beside LANGUAGE; both are read by
    sql/build.py, which takes the docstring for the comment. Errors of the statements that the function runs
    keep their SQLSTATE and read like its own.
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


def rows(query: str, types: Sequence[str] = (), values: Sequence[Any] = ()) -> List[Dict[str, Any]]:
    """The rows of a query with parameters $1, $2, ... of these types."""
    if not types:
        return list(plpy.execute(query))
    return list(plpy.execute(plpy.prepare(query, list(types)), list(values)))


def run(statements: str) -> None:
    """Run statements without parameters: in one go, since each call of the server is a subtransaction."""
    plpy.execute(statements)
