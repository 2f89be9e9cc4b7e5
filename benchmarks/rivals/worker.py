"""The worker of a rival whose client is in Python: the loop around it, and what is measured of it.

These clients call a handler for each message. A consumer of pgmq asks for one instead, so in a cycle the handler waits
for a client that asks, gives it the message and returns, whereupon the library acknowledges. The clock stops when the
server has the last acknowledgement.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
import json
import random
import statistics
import string
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

Send = Callable[[list[str]], Awaitable[object]]
Handler = Callable[[str], Awaitable[None]]


class Queue(abc.ABC):
    """A queue as its own documentation has it used. A message is a text that begins with its number."""

    # What the client puts around a message's text, in bytes.
    envelope = 0

    @abc.abstractmethod
    async def setup(self, dsn: str) -> None:
        """Make an empty queue."""

    @abc.abstractmethod
    def producers(self, clients: int) -> contextlib.AbstractAsyncContextManager[list[Send]]:
        """For each client what sends a batch in one call and returns when the server has it."""

    @abc.abstractmethod
    def consumers(self, clients: int, handler: Handler) -> contextlib.AbstractAsyncContextManager[object]:
        """Give each message to the handler, to so many at a time, and acknowledge it when the handler returns."""

    @abc.abstractmethod
    async def unacknowledged(self) -> int:
        """How many messages the server has that were not acknowledged."""

    @abc.abstractmethod
    async def teardown(self) -> None: ...


class Work:
    """The operations on a queue."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.numbers = itertools.count()
        self.seen: set[int] = set()

    async def setup(self, dsn: str, payload: int) -> dict[str, Any]:
        size = max(0, payload - self.queue.envelope - 12)
        # Text that does not compress.
        self.filling = "".join(random.Random(0).choices(string.ascii_letters + string.digits, k=size))
        await self.queue.setup(dsn)
        return {"ok": True}

    def message(self) -> str:
        return f"{next(self.numbers):012d}{self.filling}"

    def check(self, message: str) -> None:
        number = int(message[:12])
        if number in self.seen:
            raise RuntimeError(f"message {number} came twice")
        if message[12:] != self.filling:
            raise RuntimeError(f"message {number} came changed")
        self.seen.add(number)

    async def settle(self, left: int) -> None:
        """Wait until no more than so many messages are unacknowledged."""
        limit = time.monotonic() + 60
        while (unacknowledged := await self.queue.unacknowledged()) > left:
            if time.monotonic() > limit:
                raise RuntimeError(f"{unacknowledged - left} messages were not acknowledged within a minute")
            await asyncio.sleep(0.005)

    async def send(self, count: int, batch: int, clients: int) -> dict[str, Any]:
        sizes = iter([batch] * (count // batch) + [count % batch] * bool(count % batch))
        latencies: list[float] = []

        async def client(send: Send) -> None:
            for size in sizes:
                messages = [self.message() for _ in range(size)]
                start = time.perf_counter()
                await send(messages)
                latencies.append(time.perf_counter() - start)

        async with self.queue.producers(clients) as sends:
            start = time.perf_counter()
            await asyncio.gather(*map(client, sends))
            seconds = time.perf_counter() - start
        return answer(count, seconds, latencies)

    async def consume(self, count: int, clients: int) -> dict[str, Any]:
        # A message has no latency here: the libraries fetch ahead.
        start = 0.0
        handled = 0
        done = asyncio.get_running_loop().create_future()
        before = await self.queue.unacknowledged()

        async def handler(message: str) -> None:
            nonlocal handled, start
            start = start or time.perf_counter()
            handled += 1
            try:
                self.check(message)
            except RuntimeError as error:
                if not done.done():
                    done.set_exception(error)
            if handled >= count and not done.done():
                done.set_result(None)

        async with self.queue.consumers(clients, handler):
            await asyncio.wait_for(done, 600)
            await self.settle(before - count)
            seconds = time.perf_counter() - start
        return answer(handled, seconds, [])

    async def cycle(self, clients: int, seconds: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        asking: asyncio.Queue[asyncio.Future[str]] = asyncio.Queue()
        latencies: list[float] = []

        async def handler(message: str) -> None:
            (await asking.get()).set_result(message)

        async def receive() -> None:
            future: asyncio.Future[str] = loop.create_future()
            asking.put_nowait(future)
            self.check(await future)

        async def client(send: Send) -> None:
            while (start := time.perf_counter()) < end:
                await send([self.message()])
                await receive()
                latencies.append(time.perf_counter() - start)

        async def empty() -> None:
            while True:
                await receive()

        before = await self.queue.unacknowledged()
        async with self.queue.producers(clients) as sends, self.queue.consumers(clients, handler):
            # A library that has yet to listen would notice the first message late.
            await sends[0]([self.message()])
            await asyncio.wait_for(receive(), 60)
            start = time.perf_counter()
            end = start + seconds
            await asyncio.wait_for(asyncio.gather(*map(client, sends)), seconds + 60)
            await self.settle(before)
            seconds = time.perf_counter() - start
            # What the library has fetched ahead of a backlog has to go for it to stop.
            emptying = asyncio.create_task(empty())
        emptying.cancel()
        return answer(len(latencies), seconds, latencies)

    async def teardown(self) -> dict[str, Any]:
        await self.queue.teardown()
        return {"ok": True}


def answer(messages: int, seconds: float, latencies: list[float]) -> dict[str, Any]:
    told: dict[str, Any] = {"messages": messages, "seconds": seconds}
    if latencies:
        cuts = statistics.quantiles(latencies, n=100, method="inclusive") if len(latencies) > 1 else latencies * 99
        told["latency_ms"] = {"p50": cuts[49] * 1000, "p99": cuts[98] * 1000}
    return told


async def serve(queue: Queue) -> None:
    """Answer requests until standard input ends."""
    work = Work(queue)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        try:
            told = await getattr(work, request.pop("op"))(**request)
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(told), flush=True)


def main(queues: dict[str, type[Queue]]) -> None:
    """Serve the queue that the command line names."""
    uvloop.run(serve(queues[sys.argv[1]]()))
