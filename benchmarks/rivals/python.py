"""Queues in PostgreSQL whose clients are Python libraries, each driven as its documentation shows.

python -m benchmarks.rivals.python NAME is the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
from collections.abc import AsyncIterator
from typing import ClassVar
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.rivals import Unavailable, Worker, python
from benchmarks.rivals.worker import Handler, Queue, Send, main


class PythonLibrary(Worker):
    """A library of the benchmarks' environment."""

    package: ClassVar[str]
    supports = frozenset({"send", "send_batch", "consume", "cycle"})

    def install(self) -> None:
        super().install()
        try:
            self.version = importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise Unavailable(f"{self.package} is missing: make .venv-bench installs it") from None
        self.command = [python(), "-m", __name__, self.name]


class PgQueuer(PythonLibrary):
    name = "pgqueuer"
    package = "pgqueuer"
    promises = (
        "At least once: a job is claimed with SKIP LOCKED, by priority and then age, and one whose worker has "
        "sent no heartbeat for 30 s is claimed again. Delays, deduplication keys, limits of concurrency; as "
        "durable as the server; jobs are part of the caller's transaction."
    )
    lacks = (
        "A receive that a client asks for (handlers in Python only), a visibility timeout for each read, groups "
        "in order, topics, dead-letter queues. Finished jobs are acknowledged in bulk up to 0.1 s later, so more "
        "of them run again after a crash; a job that fails is deleted or held unless the handler asks for a "
        "retry."
    )
    better = (
        "Heartbeats keep a long job's lease without a guess at its length; a log and statistics of what ran, cron "
        "jobs, tracing, a dashboard; NOTIFY wakes the workers by itself."
    )


class Procrastinate(PythonLibrary):
    name = "procrastinate"
    package = "procrastinate"
    # A client's sends and its jobs have a connection each.
    most_clients = 128
    promises = (
        "A job is started once: it is claimed with SKIP LOCKED, by priority and then age. Jobs of the same lock "
        "run one after the other in their order; delays, retries, queueing locks against duplicates; as durable "
        "as the server."
    )
    lacks = (
        "A lease that ends by itself: a job whose worker died stays in progress until the application looks for "
        "stalled jobs and retries them. A fetch takes one job, a trigger writes each change of state into a table "
        "of events, handlers are in Python only; no topics, no dead-letter queues. A notification that comes "
        "while an empty fetch is under way is lost until the next poll, 5 s later by default, which is what one "
        "client meets in a full cycle."
    )
    better = (
        "Tasks with arguments, retry strategies, cron jobs, middleware, and Django; each job's history can be read."
    )


class Awa(PythonLibrary):
    name = "awa"
    package = "awa-pg"
    # A client's sends and its jobs have a connection each.
    most_clients = 128
    promises = (
        "At least once: jobs are claimed in the order of priority and age, heartbeats keep the lease and jobs of "
        "dead workers are rescued. Retries with backoff and then a dead-letter queue, delays, ordering keys, "
        "unique jobs; as durable as the server; jobs are part of the caller's transaction."
    )
    lacks = (
        "A receive that a client asks for from SQL (its runtime is in Rust, its handlers in Rust or Python), a "
        "visibility timeout for each read, topics. Its rings of tables need the maintenance that one of the "
        "workers leads."
    )
    better = (
        "It appends and truncates instead of updating, so that a held transaction leaves it little to walk over; "
        "sends by COPY, claims and acknowledgements in bulk; rate limits, progress that survives a retry, a web "
        "page."
    )


RIVALS = (PgQueuer, Procrastinate, Awa)


class InPostgres(Queue):
    """What the queues share: a connection to look at their tables."""

    # The schema of its objects, and a query that counts what is not acknowledged.
    schema: ClassVar[str]
    count: ClassVar[str]

    async def setup(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        await self.connection.execute(f"drop schema if exists {self.schema} cascade")
        await self.connection.execute("create schema if not exists public")

    async def unacknowledged(self) -> int:
        cursor = await self.connection.execute(self.count)
        return (await cursor.fetchone())[0]

    async def teardown(self) -> None:
        await self.connection.execute(f"drop schema {self.schema} cascade")
        await self.connection.close()


class PgQueuerQueue(InPostgres):
    schema = "public"
    count = "select count(*) from pgqueuer"

    async def connect(self, stack: contextlib.AsyncExitStack):
        import asyncpg
        from pgqueuer.db import AsyncpgDriver

        told = conninfo_to_dict(self.dsn)
        connection = await asyncpg.connect(
            host=told["host"], port=told["port"], user=told["user"], database=told["dbname"]
        )
        stack.push_async_callback(connection.close)
        return AsyncpgDriver(connection)

    async def setup(self, dsn: str) -> None:
        from pgqueuer.queries import Queries

        await super().setup(dsn)
        async with contextlib.AsyncExitStack() as stack:
            await Queries(await self.connect(stack)).install()

    @contextlib.asynccontextmanager
    async def producers(self, clients: int) -> AsyncIterator[list[Send]]:
        from pgqueuer.queries import Queries

        def sender(queries: Queries) -> Send:
            async def send(messages: list[str]) -> object:
                if len(messages) == 1:
                    return await queries.enqueue("bench", messages[0].encode())
                payloads = [message.encode() for message in messages]
                return await queries.enqueue(["bench"] * len(payloads), payloads, [0] * len(payloads))

            return send

        async with contextlib.AsyncExitStack() as stack:
            yield [sender(Queries(await self.connect(stack))) for _ in range(clients)]

    @contextlib.asynccontextmanager
    async def consumers(self, clients: int, handler: Handler) -> AsyncIterator[None]:
        """One worker that fetches as much at a time as there are clients.

        A worker for each would be slower by far: every one of them is notified of every job.
        """
        from pgqueuer import PgQueuer
        from pgqueuer.models import Job

        async with contextlib.AsyncExitStack() as stack:
            worker = PgQueuer(await self.connect(stack))

            @worker.entrypoint("bench")
            async def handle(job: Job) -> None:
                await handler(job.payload.decode())

            running = asyncio.create_task(worker.qm.run(batch_size=max(10, clients)))
            try:
                yield
            finally:
                worker.qm.shutdown.set()
                await running


class ProcrastinateQueue(InPostgres):
    schema = "public"
    count = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"
    envelope = len('{"m": ""}')

    async def setup(self, dsn: str) -> None:
        await super().setup(dsn)
        async with self.app(1).open_async() as app:
            await app.schema_manager.apply_schema_async()

    def app(self, clients: int):
        import procrastinate

        # A connection for each client, and for the worker one that listens and one for its heartbeats.
        size = clients + 2
        return procrastinate.App(
            connector=procrastinate.PsycopgConnector(conninfo=self.dsn, min_size=size, max_size=size)
        )

    @contextlib.asynccontextmanager
    async def producers(self, clients: int) -> AsyncIterator[list[Send]]:
        async with self.app(clients).open_async() as app:
            deferrer = app.configure_task("bench", queue="bench")

            async def send(messages: list[str]) -> object:
                if len(messages) == 1:
                    return await deferrer.defer_async(m=messages[0])
                return await deferrer.batch_defer_async(*({"m": message} for message in messages))

            yield [send] * clients

    @contextlib.asynccontextmanager
    async def consumers(self, clients: int, handler: Handler) -> AsyncIterator[None]:
        app = self.app(clients)

        @app.task(name="bench", queue="bench")
        async def handle(m: str) -> None:
            await handler(m)

        async with app.open_async():
            worker = asyncio.create_task(
                app.run_worker_async(
                    queues=["bench"], concurrency=clients, delete_jobs="always", install_signal_handlers=False
                )
            )
            try:
                yield
            finally:
                # How it is stopped without a signal.
                worker.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await worker


@dataclasses.dataclass
class Bench:
    """The arguments of awa's job."""

    m: str


class AwaQueue(InPostgres):
    schema = "awa"
    envelope = len('{"m":""}')

    @property
    def url(self) -> str:
        """Its driver takes a socket only beside a host."""
        told = conninfo_to_dict(self.dsn)
        user, database, host, port = (quote(str(told[key]), safe="") for key in ("user", "dbname", "host", "port"))
        return f"postgresql://{user}@localhost/{database}?host={host}&port={port}"

    async def setup(self, dsn: str) -> None:
        import awa

        await super().setup(dsn)
        self.sent = self.handled = 0
        async with awa.AsyncClient(self.url) as client:
            await client.migrate()
            # What its documentation calls the engine of fresh installations.
            await client.install_queue_storage()

    async def unacknowledged(self) -> int:
        # Its statistics take seconds to ask for under load; it acknowledges within milliseconds what was handled.
        return self.sent - self.handled

    @contextlib.asynccontextmanager
    async def producers(self, clients: int) -> AsyncIterator[list[Send]]:
        import awa

        async with awa.AsyncClient(self.url, clients) as client:

            async def send(messages: list[str]) -> object:
                self.sent += len(messages)
                if len(messages) == 1:
                    return await client.insert(Bench(messages[0]), queue="bench")
                return await client.enqueue_many_copy([Bench(message) for message in messages], queue="bench")

            yield [send] * clients

    @contextlib.asynccontextmanager
    async def consumers(self, clients: int, handler: Handler) -> AsyncIterator[None]:
        import awa

        client = awa.AsyncClient(self.url, clients + 10)

        @client.task(Bench, queue="bench")
        async def handle(job: awa.Job) -> None:
            await handler(job.args.m)
            self.handled += 1

        await client.start([("bench", clients)])
        try:
            yield
        finally:
            await client.shutdown()
            await client.close()


if __name__ == "__main__":
    main({"pgqueuer": PgQueuerQueue, "procrastinate": ProcrastinateQueue, "awa": AwaQueue})
