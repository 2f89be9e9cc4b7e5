"""PyPI's pgmq-sqlalchemy: sync, async, and what it can do with asyncpg. The PG_* variables name the database.

It reads a message by position, as tembo-pgmq-python does (see there): its `vt` is last_read_at and its `message` is vt.
With asyncpg it gives its arguments no types, so that the server cannot choose among the forms of send, send_batch and
set_vt. Both are the same with the reference.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from pgmq_sqlalchemy import PGMQueue, op
from sqlalchemy.ext.asyncio import create_async_engine
from steps import Client, refused, run, same

URL = "postgresql+{}://{PG_USERNAME}:{PG_PASSWORD}@{PG_HOST}:{PG_PORT}/{PG_DATABASE}"
DRIVERS = {"sync": "psycopg", "async": "psycopg", "asyncpg": "asyncpg"}


class Named(Client):
    """The methods of the async form have names of their own."""

    def __init__(self, client: Any, form: str) -> None:
        super().__init__(client)
        self.suffix = "" if form == "sync" else "_async"

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return super().__getattr__(name + self.suffix)


@contextlib.asynccontextmanager
async def connected(form: str) -> AsyncIterator[Named]:
    url = URL.format(DRIVERS[form], **os.environ)
    # Of the asynchronous drivers, the client knows asyncpg alone by its URL.
    queue = PGMQueue(engine=create_async_engine(url)) if form == "async" else PGMQueue(dsn=url)
    async with session_of(queue) as session:
        await Named(op, form).check_pgmq_ext(session=session)
    yield Named(queue, form)
    await Client(queue.engine).dispose()


@contextlib.asynccontextmanager
async def session_of(queue: PGMQueue) -> AsyncIterator[Any]:
    session = queue.session_maker()
    yield session
    await Client(session).close()


async def messages(form: str) -> None:
    """Create, send, delay, read, poll, set_vt, pop, delete, archive, metrics, purge, list, drop."""
    async with connected(form) as client:
        await client.create_queue("orders")
        await client.create_queue("fast", unlogged=True)
        same(sorted(await client.list_queues()), ["fast", "orders"])
        await client.validate_queue_name("orders")
        await refused(client.validate_queue_name("q" * 48), "47")

        same(await client.read("orders"), None)
        same(await client.read_batch("orders", 9) or [], [])
        same(await client.read_with_poll("orders", max_poll_seconds=1, poll_interval_ms=50) or [], [])
        same(await client.pop("orders"), None)
        same(await client.set_vt("orders", 99, 0), None)
        same(await client.send("orders", {"item": "tea", "quote": "'; --"}), 1)
        same(await client.send("orders", {"item": "cake"}, delay=3600), 2)
        same(await client.send_batch("orders", [{"n": 1}, {"n": 2}, {"n": 3}]), [3, 4, 5])
        same(await client.send_batch("orders", [{"n": 4}, {"n": 5}], delay=3600), [6, 7])

        now = datetime.datetime.now(datetime.UTC)
        first = await client.read("orders", 30)
        same((first.msg_id, first.read_ct), (1, 1))
        same(round((first.message - first.vt).total_seconds()), 30)
        same([message.msg_id for message in await client.read_batch("orders", batch_size=2, vt=30)], [3, 4])
        same([message.msg_id for message in await client.read_with_poll("orders", vt=30, qty=2)], [5])
        moved = await client.set_vt("orders", 1, 0)
        same((moved.msg_id, moved.vt), (1, first.vt))
        assert now - datetime.timedelta(seconds=30) <= moved.message < first.message
        same((await client.pop("orders")).msg_id, 1)

        metrics = await client.metrics("orders")
        same((metrics.queue_name, metrics.queue_length, metrics.total_messages), ("orders", 6, 7))
        same(sorted(each.queue_name for each in await client.metrics_all()), ["fast", "orders"])
        same([await client.delete("orders", 2), await client.delete("orders", 2)], [True, False])
        same([await client.archive("orders", 3), await client.archive("orders", 3)], [True, False])
        same(sorted(await client.delete_batch("orders", [4, 99])), [4])
        same(sorted(await client.archive_batch("orders", [5, 6, 99])), [5, 6])
        same(await client.purge("orders"), 1)
        same(await client.drop_queue("orders"), True)
        same(await client.list_queues(), ["fast"])


async def transactions(form: str) -> None:
    """The operations that take a session are part of its transaction."""
    async with connected(form) as client:
        calls = Named(op, form)
        async with session_of(client.client) as session:
            await calls.create_queue("both", session=session, commit=False)
            same(await calls.send("both", {"n": 1}, session=session, commit=False), 1)
            await Client(session).rollback()
        same(await client.list_queues(), [])
        async with session_of(client.client) as session:
            await calls.create_queue("both", session=session, commit=False)
            await calls.send("both", {"n": 1}, session=session, commit=False)
            await Client(session).commit()
        same((await client.metrics("both")).queue_length, 1)


async def without_types(form: str) -> None:
    """A consumer whose arguments have no types."""
    async with connected(form) as client, connected("sync") as sender:
        await client.create_queue("orders")
        await refused(client.send("orders", {}), "is not unique")
        await refused(client.send_batch("orders", [{}]), "is not unique")
        await refused(client.set_vt("orders", 1, 0), "is not unique")
        same(await sender.send_batch("orders", [{"n": number} for number in range(1, 9)]), list(range(1, 9)))
        same((await client.read("orders", 30)).msg_id, 1)
        same([message.msg_id for message in await client.read_batch("orders", batch_size=2, vt=30)], [2, 3])
        same([message.msg_id for message in await client.read_with_poll("orders", vt=30)], [4])
        same((await client.pop("orders")).msg_id, 5)
        same([await client.delete("orders", 1), await client.archive("orders", 2)], [True, True])
        same(await client.delete_batch("orders", [3]), [3])
        same(await client.archive_batch("orders", [4]), [4])
        same((await client.metrics("orders")).queue_length, 3)
        same(await client.purge("orders"), 3)
        same(await client.drop_queue("orders"), True)


if __name__ == "__main__":
    run({tour.__name__: tour for tour in (messages, transactions, without_types)})
