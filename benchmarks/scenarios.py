"""The scenarios: what a rival is made to do, and what the issue's table wants of it.

Those of every rival run with durable commits (synchronous_commit on, the flush waited for), as an application would.
The others compare queues inside one server and commit asynchronously, so that what they show is the queue and not the
disk: the flush costs each commit the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.rivals import Rival, Sample
from benchmarks.rivals.sql import BATCH, Pgmq, SqlRival, array_literal

ASYNCHRONOUS = "-c synchronous_commit=off"
CROWD = (1, 4, 16, 64, 128, 256)
PAYLOADS = (20, 1_000, 64_000)
BINDINGS = (10, 1_000, 10_000)
QUANTITIES = (1, 10, 100)
GROUPED = ("read_grouped", "read_grouped_rr", "read_grouped_head")


@dataclasses.dataclass(frozen=True)
class Size:
    """How long and how much. The scenarios have the same names in all sizes; their titles say how much it was."""

    rounds: int
    seconds: float
    sent: int
    # Messages to read one at a time; more of them in batches.
    read: int
    delayed: int
    in_flight: int
    backlog: int
    held_consumed: int
    # A steady load under a held xmin, in messages a second, and what is compared of it: the first and the last part.
    held_rate: int
    held_seconds: int
    held_part: int
    released_seconds: int
    readers_seconds: int
    overload_seconds: int
    groups: tuple[tuple[str, int, int], ...]


TINY = Size(1, 1, 100, 100, 1_000, 1_000, 1_000, 1_000, 50, 2, 1, 1, 2, 1, (("small", 1_000, 10), ("large", 2_000, 20)))
QUICK = Size(
    rounds=2,
    seconds=1,
    sent=2_000,
    read=1_000,
    delayed=100_000,
    in_flight=100_000,
    backlog=100_000,
    held_consumed=20_000,
    held_rate=200,
    held_seconds=15,
    held_part=4,
    released_seconds=4,
    readers_seconds=5,
    overload_seconds=3,
    groups=(("small", 10_000, 100), ("large", 100_000, 1_000)),
)
FULL = Size(
    rounds=3,
    seconds=5,
    sent=20_000,
    read=5_000,
    delayed=1_000_000,
    in_flight=100_000,
    backlog=1_000_000,
    held_consumed=200_000,
    held_rate=400,
    held_seconds=240,
    held_part=60,
    released_seconds=60,
    readers_seconds=40,
    overload_seconds=30,
    groups=(("small", 100_000, 1_000), ("large", 1_000_000, 10_000)),
)


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    # What a rival must support to take part.
    kind: str
    run: Callable[[Rival], Sample]
    # For every rival, or for those that are SQL.
    is_open: bool = False
    clients: int = 1
    payload: int = 20
    # Takes so long that it is run in half of the rounds.
    is_long: bool = False

    def takes(self, rival: type[Rival] | Rival) -> bool:
        cls = rival if isinstance(rival, type) else type(rival)
        if not (self.is_open or issubclass(cls, SqlRival)):
            return False
        return self.kind in cls.supports and self.clients <= cls.most_clients

    def rounds(self, rounds: int) -> int:
        return -(-rounds // 2) if self.is_long else rounds


def sections(size: Size) -> dict[str, list[Scenario]]:
    """All of them, in the order in which they run, under the headings of the report."""
    return {
        "Every rival, durable": list(_open(size)),
        "One call, one client": list(_calls(size)),
        "Many clients": list(_crowd(size)),
        "Much in the queue": list(_depth(size)),
        "What goes on around the queue": list(_around(size)),
        "Groups, topics, notifications": list(_features(size)),
    }


# For every rival, durable.


def _open(size: Size) -> Iterator[Scenario]:
    yield Scenario(
        "durable_send", "send one by one, durable", "send", lambda rival: rival.send(size.sent, 1, 1), is_open=True
    )
    yield Scenario(
        "durable_send_batch",
        f"send in batches of {BATCH}, durable",
        "send_batch",
        lambda rival: rival.send(size.sent * 10, BATCH, 1),
        is_open=True,
    )
    for clients in (1, 4):
        yield Scenario(
            f"durable_consume_{clients}",
            f"receive and acknowledge one by one, {_clients(clients)}, durable",
            "consume",
            functools.partial(_consume, count=size.sent, clients=clients),
            is_open=True,
            clients=clients,
        )
    for clients in (1, 4, 16, 64):
        yield Scenario(
            f"durable_cycle_{clients}",
            f"full cycle, {_clients(clients)}, durable",
            "cycle",
            functools.partial(_durable_cycle, clients=clients, seconds=size.seconds),
            is_open=True,
            clients=clients,
        )
    for payload in PAYLOADS[1:]:
        yield Scenario(
            f"durable_payload_{payload}",
            f"full cycle, 1 client, {payload:,} bytes, durable",
            "cycle",
            functools.partial(_durable_cycle, clients=1, seconds=size.seconds),
            is_open=True,
            payload=payload,
        )


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"


def _consume(rival: Rival, count: int, clients: int) -> Sample:
    rival.send(count, BATCH, 1)
    return rival.consume(count, clients)


def _durable_cycle(rival: Rival, clients: int, seconds: float) -> Sample:
    return rival.cycle(clients, seconds)


# One call, one client.


def _calls(size: Size) -> Iterator[Scenario]:
    yield Scenario("send", "send, 1 message", "send", functools.partial(_send, seconds=size.seconds))
    yield Scenario(
        "send_batch", f"send_batch of {BATCH}", "send_batch", functools.partial(_send_batch, seconds=size.seconds)
    )
    for (verb, kind), quantity in itertools.product(
        (("delete", "read"), ("archive", "archive"), ("pop", "pop")), QUANTITIES
    ):
        how = f"pop {quantity}" if verb == "pop" else f"read {quantity} with {verb}"
        yield Scenario(
            f"{verb}_{quantity}", how, kind, functools.partial(_read, count=size.read, quantity=quantity, verb=verb)
        )
    for payload in PAYLOADS:
        yield Scenario(
            f"payload_{payload}",
            f"full cycle, 1 client, {payload:,} bytes",
            "payload",
            functools.partial(_cycle, clients=1, seconds=size.seconds),
            payload=payload,
        )


def _send(rival: SqlRival, seconds: float) -> Sample:
    return rival.bench(rival.send_script, seconds=seconds + 0.3, options=ASYNCHRONOUS).steady(0.2)


def _send_batch(rival: SqlRival, seconds: float) -> Sample:
    variables = {"payloads": array_literal([rival.payload] * BATCH)}
    outcome = rival.bench(rival.batch_script, variables, seconds=seconds + 0.3, options=ASYNCHRONOUS)
    return outcome.steady(0.2, BATCH)


def _read(rival: SqlRival, count: int, quantity: int, verb: str) -> Sample:
    # Ten times the messages at ten times a read take about three times as long.
    messages = count * quantity // {1: 1, 10: 3, 100: 6}[quantity]
    rival.fill(messages)
    script = rival.read_script(quantity, verb)
    outcome = rival.bench(script, transactions=-(-messages // quantity), options=ASYNCHRONOUS)
    _must_be_empty(rival)
    return outcome.steady(0.05, quantity)


def _must_be_empty(rival: SqlRival) -> None:
    left = rival.left()
    if left:
        raise RuntimeError(f"{rival.name}: {left} messages were not handed out")


# Many clients.


def _crowd(size: Size) -> Iterator[Scenario]:
    for clients in CROWD:
        yield Scenario(
            f"cycle_{clients}",
            f"full cycle, {_clients(clients)}",
            "cycle",
            functools.partial(_cycle, clients=clients, seconds=size.seconds + (clients > 16)),
            clients=clients,
        )


def _cycle(rival: SqlRival, clients: int, seconds: float) -> Sample:
    return rival.cycle(clients, seconds, ASYNCHRONOUS)


# Much in the queue.


def _depth(size: Size) -> Iterator[Scenario]:
    yield Scenario(
        "delayed",
        f"read 1 behind {size.delayed:,} delayed",
        "parked",
        functools.partial(_read_behind, parked=size.delayed, seconds=size.seconds),
        is_long=True,
    )
    yield Scenario(
        "in_flight",
        f"read 1 with {size.in_flight:,} in flight",
        "parked",
        functools.partial(_read_behind, parked=size.in_flight, seconds=size.seconds, is_read=True),
        is_long=True,
    )
    yield Scenario(
        "backlog",
        f"full cycle, 4 clients, backlog of {size.backlog:,}",
        "backlog",
        functools.partial(_backlog, backlog=size.backlog, seconds=size.seconds),
        clients=4,
        is_long=True,
    )


def _read_behind(rival: SqlRival, parked: int, seconds: float, is_read: bool = False) -> Sample:
    """Messages that none may have yet, with lower ids than those that are read."""
    rival.fill(parked, parked=True)
    if is_read:
        rival.connection.execute(f"update {rival.table} set read_ct = 1, last_read_at = now()")
        rival.connection.execute(f"vacuum (analyze) {rival.table}")
    visible = round(20_000 * seconds)
    rival.fill(visible)
    sample = rival.bench(rival.lease_script, seconds=seconds + 0.3, options=ASYNCHRONOUS).steady(0.1)
    if not rival.visible():
        raise RuntimeError(f"{rival.name}: {visible} messages were too few for the time")
    return sample


def _backlog(rival: SqlRival, backlog: int, seconds: float) -> Sample:
    rival.fill(backlog)
    return rival.cycle(4, seconds, ASYNCHRONOUS)


# What goes on around the queue.


def _around(size: Size) -> Iterator[Scenario]:
    yield Scenario(
        "held_xmin_read",
        f"read 1 with delete under a held xmin, after {size.held_consumed:,} consumed",
        "held_xmin",
        functools.partial(_held_read, consumed=size.held_consumed, seconds=size.seconds),
        is_long=True,
    )
    yield Scenario(
        "held_xmin",
        f"steady {size.held_rate} messages a second, xmin held for {size.held_seconds} s, then released",
        "held_xmin",
        functools.partial(_held_steady, size=size),
        clients=4,
        is_long=True,
    )
    yield Scenario(
        "readers",
        "full cycle, 4 clients, beside four REPEATABLE READ scanners of the queue's table",
        "readers",
        functools.partial(_readers, seconds=size.readers_seconds),
        clients=8,
        is_long=True,
    )
    yield Scenario(
        "overload",
        f"{size.overload_seconds} s of sends at 1.5 times what 4 clients manage, then recovery",
        "overload",
        functools.partial(_overload, seconds=size.overload_seconds),
        clients=8,
        is_long=True,
    )


def _held_read(rival: SqlRival, consumed: int, seconds: float) -> Sample:
    rival.fill(consumed + round(15_000 * seconds))
    with rival.held_xmin():
        rival.bench(rival.read_script(1_000, "delete"), transactions=consumed // 1_000, options=ASYNCHRONOUS)
        sample = rival.bench(rival.consume_script, seconds=seconds + 0.3, options=ASYNCHRONOUS).steady(0.2)
    if not rival.left():
        raise RuntimeError(f"{rival.name}: there were too few messages for the time")
    return sample


def _held_steady(rival: SqlRival, size: Size) -> Sample:
    """A steady load, held and released in its course. Flatness: CPU a message, the last part held to the first."""
    lead, total = 1.0, size.held_seconds + size.released_seconds
    interval = max(0.5, total / 60)
    with (
        rival.meter.watch(interval) as points,
        rival.background(
            rival.cycle_script, clients=4, seconds=lead + total, rate=size.held_rate, options=ASYNCHRONOUS
        ) as run,
    ):
        time.sleep(lead)
        held_from = time.time()
        with rival.held_xmin():
            time.sleep(size.held_seconds)
        held_until = time.time()
        outcome = rival.finish(run, points)
    held = [point for point in points if held_from <= point.time <= held_until]
    sample = outcome.between(held[0], held[-1])
    shown = [point for point in points if held_from <= point.time <= outcome.until]
    for before, after in itertools.pairwise(shown):
        part = outcome.between(before, after)
        if part.messages:
            sample.series.append(
                {
                    "seconds": round(after.time - held_from, 2),
                    "held": float(after.time <= held_until),
                    "rate": part.rate,
                    "cpu_us": part.cpu_us,
                    "p50_ms": part.p50_ms,
                    "p99_ms": part.p99_ms,
                }
            )
    first = outcome.between(held[0], next(p for p in held if p.time >= held[0].time + size.held_part))
    last = outcome.between(next(p for p in reversed(held) if p.time <= held[-1].time - size.held_part), held[-1])
    sample.figures["flatness"] = last.cpu_us / first.cpu_us
    sample.figures["latency_flatness"] = last.p50_ms / first.p50_ms
    return sample


def _readers(rival: SqlRival, seconds: float) -> Sample:
    """Each scanner keeps its snapshot over five scans, a fifth of a second or more apart.

    The clean rate is that before and after them, since a machine's mood changes within a minute.
    """
    before = rival.cycle(4, seconds, ASYNCHRONOUS)
    pause = max(200, round(seconds * 1000 / 20))
    scan = f"select count(*), max(read_ct) from {rival.table};\n\\sleep {pause} ms\n"
    script = f"\\set wait random(1, {pause * 5})\n\\sleep :wait ms\nbegin isolation level repeatable read;\n"
    script += scan * 5 + "commit;\n"
    with rival.background(script, clients=4, seconds=10 * seconds + 60):
        # The first snapshots are then as old as they get.
        time.sleep(pause * 5 / 1000)
        sample = rival.cycle(4, seconds, ASYNCHRONOUS)
    after = rival.cycle(4, seconds, ASYNCHRONOUS)
    sample.figures["clean_rate"] = (before.rate + after.rate) / 2
    sample.figures["kept"] = sample.rate / sample.figures["clean_rate"]
    return sample


def _overload(rival: SqlRival, seconds: float) -> Sample:
    """What is consumed meanwhile, how long the backlog then lasts, and what is managed after it."""
    before = rival.cycle(4, seconds, ASYNCHRONOUS)
    consumers = {"clients": 4, "options": ASYNCHRONOUS}
    with (
        rival.background(
            rival.send_script, clients=4, seconds=seconds, rate=1.5 * before.rate, options=ASYNCHRONOUS
        ) as sending,
        rival.meter.watch(0.2) as points,
        rival.background(rival.consume_script, seconds=10 * seconds + 60, **consumers),
    ):
        sent = len(rival.finish(sending, points).transactions)
        overloaded_until = time.monotonic()
        backlog = rival.left()
        while rival.left() and time.monotonic() < overloaded_until + 10 * seconds:
            time.sleep(0.05)
        drained = time.monotonic() - overloaded_until
    left = rival.left()
    after = rival.cycle(4, seconds, ASYNCHRONOUS)
    return dataclasses.replace(
        before,
        messages=sent - backlog,
        seconds=seconds,
        cpu_us=None,
        wal_bytes=None,
        figures={
            "before": before.rate,
            "sent": sent / seconds,
            "backlog": backlog,
            "drained_seconds": drained,
            "left": left,
            "recovered": after.rate / before.rate,
        },
    )


# What ours and the reference have besides.


def _features(size: Size) -> Iterator[Scenario]:
    for (label, messages, groups), function in itertools.product(size.groups, GROUPED):
        yield Scenario(
            f"{function}_{label}",
            f"{function} of 10 with delete, {messages:,} messages in {groups:,} groups",
            "groups",
            functools.partial(_grouped, messages=messages, groups=groups, function=function, seconds=size.seconds),
            is_long=True,
        )
    for bindings in BINDINGS:
        yield Scenario(
            f"topics_{bindings}",
            f"send_topic to 1 queue among {bindings:,} bindings",
            "topics",
            functools.partial(_topics, bindings=bindings, seconds=size.seconds),
        )
    for is_on in (False, True):
        yield Scenario(
            f"notify_{'on' if is_on else 'off'}",
            f"send, 4 clients, notifications {'on, at most every 250 ms' if is_on else 'off'}",
            "notify",
            functools.partial(_notify, is_on=is_on, seconds=size.seconds),
            clients=4,
        )


def _grouped(rival: Pgmq, messages: int, groups: int, function: str, seconds: float) -> Sample:
    rival.create_fifo_index()
    rival.fill(messages, groups=groups)
    script = rival.grouped_script(function, 10)
    probe = rival.bench(script, transactions=2, options=ASYNCHRONOUS)
    # As many calls as fit, but for at most half of the messages: a queue that runs empty is another scenario.
    fit = seconds * 1000 / min(transaction.ms for transaction in probe.transactions)
    before = rival.left()
    outcome = rival.bench(script, transactions=max(1, min(int(fit), messages // 20)), options=ASYNCHRONOUS)
    taken = before - rival.left()
    if not taken:
        raise RuntimeError(f"{rival.name}: no message was taken")
    return outcome.steady(0.05, taken / len(outcome.transactions))


def _topics(rival: Pgmq, bindings: int, seconds: float) -> Sample:
    rival.bind(bindings)
    script = "select pgmq.send_topic('orders.1.created', :payload);\n"
    return rival.bench(script, seconds=seconds + 0.3, options=ASYNCHRONOUS).steady(0.2)


def _notify(rival: Pgmq, is_on: bool, seconds: float) -> Sample:
    if is_on:
        rival.notify()
    return rival.bench(rival.send_script, clients=4, seconds=seconds + 0.3, options=ASYNCHRONOUS).steady(0.2)


def rounded(value: Any) -> Any:
    """Five significant digits; what is not a number is nothing."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def run_once(rival: Rival, scenario: Scenario) -> dict[str, Any]:
    """One run, on a queue of its own."""
    rival.setup(scenario.payload)
    try:
        sample = scenario.run(rival)
    finally:
        rival.teardown()
    return rounded({**dataclasses.asdict(sample), "rate": sample.rate})


def run_scenario(
    scenario: Scenario, rivals: list[Rival], rounds: int, tell: Callable[[str], object] = lambda text: None
) -> dict[str, Any]:
    """Interleaved rounds: in each all rivals take part, every time another one first."""
    taking = [rival for rival in rivals if scenario.takes(rival)]
    samples: dict[str, list[dict[str, Any] | None]] = {rival.name: [] for rival in taking}
    errors: dict[str, str] = {}
    for number in range(rounds):
        first = number % max(1, len(taking))
        for rival in taking[first:] + taking[:first]:
            if rival.name in errors:
                continue
            tell(f"{scenario.title}: {rival.name}, round {number + 1} of {rounds}")
            try:
                samples[rival.name].append(run_once(rival, scenario))
            except Exception as error:
                # Said in the report; the others go on.
                errors[rival.name] = (str(error) or repr(error)).splitlines()[0]
    return {"title": scenario.title, "samples": samples, "errors": errors}


@dataclasses.dataclass(frozen=True)
class Target:
    """A row of the table of what must be shown."""

    title: str
    scenario: str
    # "cpu" (the other's CPU time a message by ours), "rate" (ours by the other's), "wal" (ours by the other's), or a
    # figure of ours.
    measure: str
    bound: float
    against: str | None = "reference"
    is_upper: bool = False

    @property
    def wanted(self) -> str:
        return f"{'at most' if self.is_upper else 'at least'} {self.bound:g}"

    def is_met(self, reached: float) -> bool:
        return reached <= self.bound if self.is_upper else reached >= self.bound


TARGETS = [
    Target("send, 1 message, 20 B", "send", "cpu", 1.8),
    Target("send_batch of 100", "send_batch", "cpu", 1.2),
    Target("cycle send-read-delete, 1 client", "cycle_1", "cpu", 1.6),
    Target("read 100 with deletes", "delete_100", "cpu", 3),
    Target("read 1 behind the delayed", "delayed", "cpu", 300),
    Target("read under a held xmin", "held_xmin_read", "cpu", 50),
    Target("held xmin, last part to first", "held_xmin", "flatness", 1.15, None, is_upper=True),
    *(
        Target(f"cycle with {clients} clients", f"cycle_{clients}", "rate", bound, against)
        for clients in (64, 128, 256)
        for bound, against in ((1.8, "reference"), (0.65, "bare table"))
    ),
    Target("active readers, to our own clean rate", "readers", "kept", 0.95, None),
    Target("read_grouped", "read_grouped_large", "cpu", 300),
    Target("read_grouped_rr", "read_grouped_rr_large", "cpu", 30),
    Target("read_grouped_head", "read_grouped_head_large", "cpu", 10),
    Target("send_topic, 10 000 bindings", "topics_10000", "cpu", 70),
    Target("WAL bytes a message, full cycle", "cycle_1", "wal", 1, is_upper=True),
    Target("cycle, 16 clients", "cycle_16", "rate", 0.7, "bare table"),
]
