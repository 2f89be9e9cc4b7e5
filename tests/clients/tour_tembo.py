"""PyPI's tembo-pgmq-python: sync and async. The PG_* variables name the database.

It reads a message by position and knows five columns. Since the reference's 1.5 there is a sixth, last_read_at, in the
fourth place, so this client's `vt` is last_read_at and its `message` is vt; its async form takes that for JSON and
fails. It is the same with the reference, and that is what the tours hold on to.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator

from steps import Client, refused, run, same
from tembo_pgmq_python import PGMQueue
from tembo_pgmq_python.async_queue import PGMQueue as AsyncPGMQueue
from tembo_pgmq_python.decorators import async_transaction, transaction


@contextlib.asynccontextmanager
async def connected(form: str) -> AsyncIterator[Client]:
    queue = AsyncPGMQueue(pool_size=2) if form == "async" else PGMQueue()
    client = Client(queue)
    if form == "async":
        await client.init()
    yield client
    await Client(queue.pool).close()


async def messages(form: str) -> None:
    """Create, send, delay, delete, archive, metrics, purge, list, drop."""
    async with connected(form) as client:
        await client.create_queue("orders")
        await client.create_queue("fast", unlogged=True)
        same(sorted(await client.list_queues()), ["fast", "orders"])
        await client.validate_queue_name("orders")
        await refused(client.validate_queue_name("q" * 48), "47")

        hour = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        same(await client.send("orders", {"item": "tea"}), 1)
        same(await client.send("orders", {"item": "milk"}, delay=3600), 2)
        same(await client.send("orders", {"item": "cake"}, tz=hour), 3)
        same(await client.send_batch("orders", [{"n": 1}, {"n": 2}]), [4, 5])
        same(await client.send_batch("orders", [{"n": 3}, {"n": 4}], delay=3600), [6, 7])
        if form == "sync":  # the async form sends the timestamp as an integer
            same(await client.send_batch("orders", [{"n": 5}], tz=hour), [8])
        else:
            same(await client.send_batch("orders", [{"n": 5}]), [8])

        metrics = await client.metrics("orders")
        same((metrics.queue_name, metrics.queue_length, metrics.total_messages), ("orders", 8, 8))
        assert isinstance(metrics.scrape_time, datetime.datetime)
        same(metrics.newest_msg_age_sec <= metrics.oldest_msg_age_sec <= 60, True)
        same(sorted(each.queue_name for each in await client.metrics_all()), ["fast", "orders"])
        same([await client.delete("orders", 1), await client.delete("orders", 1)], [True, False])
        same([await client.archive("orders", 2), await client.archive("orders", 2)], [True, False])
        same(sorted(await client.delete_batch("orders", [3, 4, 99])), [3, 4])
        same(sorted(await client.archive_batch("orders", [5, 6, 99])), [5, 6])
        same(await client.purge("orders"), 2)
        await client.detach_archive("orders")
        same(await client.drop_queue("orders"), True)
        same(await client.list_queues(), ["fast"])


async def reads(form: str) -> None:
    """Read, poll, set_vt and pop hand over what the client has always made of them."""
    async with connected(form) as client:
        await client.create_queue("orders")
        same(await client.read("orders", vt=30), None)
        same(await client.read_batch("orders", vt=30, batch_size=9) or [], [])
        same(await client.read_with_poll("orders", max_poll_seconds=1, poll_interval_ms=50) or [], [])
        await client.send_batch("orders", [{"n": number} for number in range(1, 7)])
        if form == "async":
            for call in (
                client.read("orders", vt=30),
                client.read_batch("orders", vt=30),
                client.read_with_poll("orders", vt=30),
                client.pop("orders"),
            ):
                await refused(call, "Input must be bytes")
            # The arguments have no types, so the server cannot choose among the forms of set_vt.
            await refused(client.set_vt("orders", 5, 60), "is not unique")
            same((await client.metrics("orders")).queue_length, 6)
            return

        now = datetime.datetime.now(datetime.UTC)
        first = await client.read("orders", vt=30)
        same((first.msg_id, first.read_ct), (1, 1))
        same(round((first.message - first.vt).total_seconds()), 30)
        same([message.msg_id for message in await client.read_batch("orders", vt=30, batch_size=2)], [2, 3])
        same([message.msg_id for message in await client.read_with_poll("orders", vt=30, qty=2)], [4, 5])
        moved = await client.set_vt("orders", 1, 0)
        same((moved.msg_id, moved.vt), (1, first.vt))
        assert now <= moved.message < first.message
        same((await client.pop("orders")).msg_id, 1)
        same((await client.pop("orders")).msg_id, 6)


async def transactions(form: str) -> None:
    """What the client's decorator runs in one transaction is there as a whole or not at all."""
    async with connected(form) as client:
        if form == "async":

            @async_transaction
            async def work(queue: AsyncPGMQueue, fail: bool, conn: object = None) -> None:
                await queue.create_queue("both", conn=conn)
                await queue.send("both", {"n": 1}, conn=conn)
                if fail:
                    raise ValueError("on purpose")

            call = work
        else:

            @transaction
            def work(queue: PGMQueue, fail: bool, conn: object = None) -> None:
                queue.create_queue("both", conn=conn)
                queue.send("both", {"n": 1}, conn=conn)
                if fail:
                    raise ValueError("on purpose")

            async def call(queue: PGMQueue, fail: bool) -> None:
                work(queue, fail)

        await refused(call(client.client, True), "on purpose")
        same(await client.list_queues(), [])
        await call(client.client, False)
        same((await client.metrics("both")).queue_length, 1)


if __name__ == "__main__":
    run({tour.__name__: tour for tour in (messages, reads, transactions)})
