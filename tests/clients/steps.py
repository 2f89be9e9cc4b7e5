"""What the tours of the Python clients share. A tour is a program of its own, run by tests/test_clients.py."""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any


class Client:
    """A client whose methods can all be awaited, so that one tour serves the sync and the async form of it."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.client, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            return await result if inspect.isawaitable(result) else result

        return call


def same(got: object, wanted: object) -> None:
    """A bare assert does not say what it got."""
    if got != wanted:
        raise AssertionError(f"got {got!r}, wanted {wanted!r}")


async def refused(call: Awaitable[Any], text: str) -> None:
    """The call fails, and its error says the text."""
    try:
        result = await call
    except Exception as error:
        if text not in str(error):
            raise
    else:
        raise AssertionError(f"got {result!r}, wanted an error that says {text!r}")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what another session does."""
    end = time.monotonic() + 30
    while not await condition():
        if time.monotonic() > end:
            raise AssertionError("waited 30 seconds in vain")
        await asyncio.sleep(0.02)


def run(tours: dict[str, Callable[[str], Awaitable[None]]]) -> None:
    """The program: a tour and the form of the client that takes it are its arguments."""
    tour, form = sys.argv[1:]
    asyncio.run(tours[tour](form))
