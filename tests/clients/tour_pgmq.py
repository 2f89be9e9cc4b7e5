"""PyPI's pgmq: sync and async, each with and without SQLAlchemy. The PG_* variables name the database."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import threading
from collections.abc import AsyncIterator

import pgmq
import psycopg
from pgmq.notify_listener import AsyncNotificationListener, SyncNotificationListener
from steps import Client, refused, run, same, until

FORMS = {
    "sync": pgmq.SyncPGMQueue,
    "async": pgmq.AsyncPGMQueue,
    "sqlalchemy": pgmq.SQLAlchemyPGMQueue,
    "sqlalchemy_async": pgmq.SQLAlchemyAsyncPGMQueue,
}
TRANSACTIONS = {
    "sync": pgmq.transaction,
    "async": pgmq.async_transaction,
    "sqlalchemy": pgmq.sqlalchemy_transaction,
    "sqlalchemy_async": pgmq.sqlalchemy_async_transaction,
}


@contextlib.asynccontextmanager
async def connected(form: str) -> AsyncIterator[Client]:
    client = Client(FORMS[form](pool_size=2))
    if form.endswith("async"):
        await client.init()
    yield client
    await (client.close if hasattr(client.client, "close") else client.dispose)()


def ids(messages: list[pgmq.Message]) -> list[int]:
    return [message.msg_id for message in messages]


async def messages(form: str) -> None:
    """Create, send, delay, read, poll, set_vt, pop, delete, archive, metrics, purge, list, drop."""
    async with connected(form) as client:
        await client.create_queue("orders")
        await client.create_queue("orders")
        await client.create_queue("fast", unlogged=True)
        queues = await client.list_queues()
        same(
            sorted((queue.queue_name, queue.is_partitioned, queue.is_unlogged) for queue in queues),
            [("fast", False, True), ("orders", False, False)],
        )
        assert all(isinstance(queue.created_at, datetime.datetime) for queue in queues)
        same(await client.validate_queue_name("orders"), True)
        await refused(client.validate_queue_name("q" * 48), "47")

        hour = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        same(await client.send("orders", {"item": "tea"}), 1)
        same(await client.send("orders", {"item": "milk"}, headers={"priority": "high"}), 2)
        same(await client.send("orders", {"item": "cake"}, delay=3600), 3)
        same(await client.send("orders", {"item": "wine"}, delay=hour), 4)
        same(await client.send("orders", {"item": "beer"}, headers={"age": 18}, delay=hour), 5)
        same(await client.send_batch("orders", [{"n": 1}, {"n": 2}]), [6, 7])
        same(await client.send_batch("orders", [{"n": 3}, {"n": 4}], headers=[{"h": 3}, {"h": 4}]), [8, 9])
        same(await client.send_batch("orders", [{"n": 5}], delay=3600), [10])
        same(await client.send_batch("orders", [{"n": 6}], headers=[{"h": 6}], delay=hour), [11])
        await refused(client.send_batch("orders", [{"n": 7}, {"n": 8}], headers=[{}]), "length")

        tea = await client.read("orders", vt=30)
        same((tea.msg_id, tea.read_ct, tea.message, tea.headers), (1, 1, {"item": "tea"}, None))
        # The reference asks the clock twice.
        same(round((tea.vt - tea.last_read_at).total_seconds()), 30)
        assert tea.enqueued_at < tea.last_read_at
        milk = await client.read("orders", vt=30, conditional={"item": "milk"})
        same((milk.msg_id, milk.headers), (2, {"priority": "high"}))
        same(ids(await client.read("orders", vt=30, qty=2)), [6, 7])
        batch = await client.read_batch("orders", vt=30, batch_size=10)
        same([(message.msg_id, message.headers) for message in batch], [(8, {"h": 3}), (9, {"h": 4})])
        same(await client.read("orders", vt=30), None)
        same(await client.read_batch("orders", vt=30, batch_size=10), [])
        same(await client.read_with_poll("orders", vt=30, max_poll_seconds=1, poll_interval_ms=50), [])

        moved = await client.set_vt("orders", 6, 1)
        same((moved.msg_id, moved.read_ct), (6, 1))
        polled = await client.read_with_poll("orders", vt=30, qty=5, max_poll_seconds=30, poll_interval_ms=20)
        same([(message.msg_id, message.read_ct) for message in polled], [(6, 2)])
        same(sorted(ids(await client.set_vt("orders", [1, 2, 99], 0))), [1, 2])
        same((await client.set_vt("orders", 7, hour)).vt, hour)
        same(await client.set_vt("orders", 99, 0), None)

        popped = await client.pop("orders")
        same((popped.msg_id, popped.message), (1, {"item": "tea"}))
        await client.set_vt("orders", [6, 7, 8], 0)
        same(ids(await client.pop("orders", qty=2)), [2, 6])
        same([await client.delete("orders", 7), await client.delete("orders", 7)], [True, False])
        same([await client.archive("orders", 8), await client.archive("orders", 8)], [True, False])
        same(sorted(await client.delete_batch("orders", [3, 4, 99])), [3, 4])
        same(sorted(await client.archive_batch("orders", [5, 9, 99])), [5, 9])

        await client.send("orders", {"item": "last"})
        metrics = await client.metrics("orders")
        same(
            (metrics.queue_name, metrics.queue_length, metrics.queue_visible_length, metrics.total_messages),
            ("orders", 3, 1, 12),
        )
        same(metrics.newest_msg_age_sec <= metrics.oldest_msg_age_sec <= 60, True)
        same(sorted(each.queue_name for each in await client.metrics_all()), ["fast", "orders"])
        same((await client.metrics("fast")).newest_msg_age_sec, None)
        same(await client.purge("orders"), 3)
        same((await client.metrics("orders")).queue_length, 0)
        await client.detach_archive("orders")
        same([await client.drop_queue("orders"), await client.drop_queue("orders")], [True, False])
        await refused(client.send("orders", {}), "orders")


async def transactions(form: str) -> None:
    """What the client's decorator runs in one transaction is there as a whole or not at all."""

    async def work(client: object, fail: bool, conn: object = None) -> None:
        calls = Client(client)
        await calls.create_queue("both", conn=conn)
        await calls.send("both", {"n": 1}, conn=conn)
        if fail:
            raise ValueError("on purpose")

    def blocking(client: object, fail: bool, conn: object = None) -> None:
        client.create_queue("both", conn=conn)
        client.send("both", {"n": 1}, conn=conn)
        if fail:
            raise ValueError("on purpose")

    decorated = TRANSACTIONS[form](work if form.endswith("async") else blocking)
    async with connected(form) as client:

        async def call(fail: bool) -> None:
            if form.endswith("async"):
                await decorated(client.client, fail)
            else:
                decorated(client.client, fail)

        await refused(call(fail=True), "on purpose")
        same(await client.list_queues(), [])
        await call(fail=False)
        same((await client.metrics("both")).queue_length, 1)


async def groups(form: str) -> None:
    """FIFO: messages of one group come in order, and no group is handed out twice."""
    async with connected(form) as client:
        await client.create_queue("fifo")
        await client.create_fifo_index("fifo")
        await client.create_fifo_indexes_all()
        sent = ["a", "a", "b", "a", "b", "c"]
        await client.send_batch("fifo", [{}] * len(sent), headers=[{"x-pgmq-group": group} for group in sent])
        same(ids(await client.read_grouped("fifo", vt=30, qty=2)), [1, 2])
        same(ids(await client.read_grouped("fifo", vt=30, qty=9)), [3, 5, 6])
        same(await client.read_grouped("fifo", vt=30, qty=9), [])
        same(await client.read_grouped_with_poll("fifo", vt=30, max_poll_seconds=1, poll_interval_ms=50), [])
        await client.set_vt("fifo", [1, 2, 3, 5, 6], 0)
        same(ids(await client.read_grouped_rr("fifo", vt=30, qty=5)), [1, 3, 6, 2, 5])
        await client.delete_batch("fifo", [1, 2])
        same(ids(await client.read_grouped_rr_with_poll("fifo", vt=30, max_poll_seconds=30)), [4])
        await client.set_vt("fifo", [3, 5], 0)
        same(ids(await client.read_grouped_with_poll("fifo", vt=30, qty=9, max_poll_seconds=30)), [3, 5])


async def topics(form: str) -> None:
    """Bind patterns, see what a key would match, send to all that match."""
    async with connected(form) as client:
        for queue in ("all", "errors", "web"):
            await client.create_queue(queue)
        await client.bind_topic("logs.#", "all")
        await client.bind_topic("logs.#", "all")
        await client.bind_topic("logs.*.error", "errors")
        await client.bind_topic("logs.web.*", "web")
        await refused(client.bind_topic("logs.#", "nowhere"), "nowhere")
        await refused(client.bind_topic("logs..error", "all"), "dots")

        bindings = await client.list_topic_bindings()
        same(
            sorted((binding.pattern, binding.queue_name) for binding in bindings),
            [("logs.#", "all"), ("logs.*.error", "errors"), ("logs.web.*", "web")],
        )
        (binding,) = await client.list_topic_bindings("errors")
        same((binding.pattern, binding.compiled_regex), ("logs.*.error", r"^logs\.[^.]+\.error$"))
        assert isinstance(binding.bound_at, datetime.datetime)
        matches = await client.test_routing("logs.web.error")
        same(
            sorted((match.pattern, match.queue_name) for match in matches),
            [("logs.#", "all"), ("logs.*.error", "errors"), ("logs.web.*", "web")],
        )
        same(await client.test_routing("logs"), [])
        same(await client.validate_routing_key("logs.web.error"), True)
        same(await client.validate_routing_key("logs..error"), False)
        same(await client.validate_topic_pattern("logs.*"), True)
        same(await client.validate_topic_pattern("logs.**"), False)

        same(await client.send_topic("logs.web.error", {"n": 1}), 3)
        # With headers and no delay the client calls a form that the interface has not.
        same(await client.send_topic("logs.web.info", {"n": 2}, headers={"h": 2}, delay=0), 2)
        same(await client.send_topic("logs.db.info", {"n": 3}, delay=3600), 1)
        same(await client.send_topic("metrics.cpu", {"n": 4}), 0)
        message = await client.read("web", vt=30, conditional={"n": 2})
        same((message.message, message.headers), ({"n": 2}, {"h": 2}))
        same(ids(await client.read_batch("all", vt=30, batch_size=9)), [1, 2])
        batch = await client.send_batch_topic("logs.db.error", [{"n": 5}, {"n": 6}])
        same(
            sorted((result.queue_name, result.msg_id) for result in batch),
            [("all", 4), ("all", 5), ("errors", 2), ("errors", 3)],
        )
        headed = await client.send_batch_topic("logs.web.info", [{"n": 7}], headers=[{"h": 7}], delay=3600)
        same(sorted((result.queue_name, result.msg_id) for result in headed), [("all", 6), ("web", 3)])

        same(await client.unbind_topic("logs.web.*", "web"), True)
        same(await client.unbind_topic("logs.web.*", "web"), False)
        same(await client.send_topic("logs.web.info", {"n": 8}), 1)
        await client.drop_queue("errors")
        same([binding.queue_name for binding in await client.list_topic_bindings()], ["all"])


async def throttles(form: str) -> None:
    """Switch notifications of a queue on and off, and change how often they come."""
    async with connected(form) as client:
        await client.create_queue("orders")
        await client.enable_notify("orders")
        await refused(client.enable_notify("nowhere"), "nowhere")
        await refused(client.enable_notify("orders", throttle_interval_ms=-1), "negative")
        (throttle,) = await client.list_notify_throttles()
        same((throttle.queue_name, throttle.throttle_interval_ms), ("orders", 250))
        assert isinstance(throttle.last_notified_at, datetime.datetime)
        await client.update_notify("orders", 500)
        same([each.throttle_interval_ms for each in await client.list_notify_throttles()], [500])
        await client.disable_notify("orders")
        same(await client.list_notify_throttles(), [])


async def listen(form: str, queue: str) -> None:
    """The client's listener is called once for what is sent after it listens."""
    calls: asyncio.Queue[dict] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    async with connected(form) as client, await psycopg.AsyncConnection.connect(
        client.client.config.dsn, autocommit=True
    ) as watcher:  # fmt: skip

        async def listening() -> bool:
            statement = f'LISTEN "pgmq.q_{queue}.INSERT"%'
            cursor = await watcher.execute(
                "select 1 from pg_stat_activity where query like %s and state = 'idle'", [statement]
            )
            return await cursor.fetchone() is not None

        await client.create_queue(queue)
        await client.enable_notify(queue, throttle_interval_ms=0)
        if form.endswith("async"):
            listener = AsyncNotificationListener(client.client)
            task = asyncio.create_task(listener.listen(queue, calls.put))
        else:
            listener = SyncNotificationListener(client.client)

            def callback(payload: dict) -> None:
                loop.call_soon_threadsafe(calls.put_nowait, payload)

            thread = threading.Thread(target=listener.listen, args=(queue, callback), daemon=True)
            thread.start()
        await until(listening)
        await client.send(queue, {"n": 1})
        payload = await asyncio.wait_for(calls.get(), 30)
        same(payload, {"event": "insert", "payload_empty": True})
        same((await client.read(queue, vt=30)).message, {"n": 1})
        listener.stop()
        if form.endswith("async"):
            await task
        same(calls.qsize(), 0)


async def notifications(form: str) -> None:
    await listen(form, "orders")


async def notifications_of_an_upper_case_name(form: str) -> None:
    await listen(form, "Orders")


if __name__ == "__main__":
    tours = (
        messages, transactions, groups, topics, throttles, notifications, notifications_of_an_upper_case_name,
    )  # fmt: skip
    run({tour.__name__: tour for tour in tours})
