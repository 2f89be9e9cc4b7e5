"""Queues whose clients are packages from npm, driven by node/*.mjs."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import shutil
import subprocess
from typing import ClassVar

from benchmarks.rivals import Unavailable, Worker

DIRECTORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = DIRECTORY / "node_modules"


def get_packages() -> None:
    """Install what package-lock.json pins, unless it is there."""
    lock = (DIRECTORY / "package-lock.json").read_text()
    made = PACKAGES / "made"
    if made.exists() and made.read_text() == lock:
        return
    if not shutil.which("npm"):
        raise Unavailable("npm is missing: install Node.js with npm")
    # The packages' own scripts are not needed. What asks for a newer Node.js gets the one among the packages.
    run = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=DIRECTORY, capture_output=True, text=True
    )
    if run.returncode:
        lines = run.stderr.strip().splitlines() or ["no message"]
        raise Unavailable(f"npm ci failed: {next((line for line in lines if 'error' in line), lines[-1])}")
    made.write_text(lock)


def node() -> str:
    """The Node.js of the packages, else the one on the PATH."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine())
    pinned = PACKAGES / f"node-linux-{machine}" / "bin" / "node"
    found = str(pinned) if os.access(pinned, os.X_OK) else shutil.which("node")
    if found is None:
        raise Unavailable("Node.js is missing: install version 22 or newer")
    return found


class NodeLibrary(Worker):
    """A package with a module in node/ of the same name."""

    package: ClassVar[str]
    supports = frozenset({"send", "send_batch", "consume", "cycle"})

    def install(self) -> None:
        super().install()
        get_packages()
        self.version = json.loads((PACKAGES / self.package / "package.json").read_text())["version"]
        self.command = [node(), DIRECTORY / "rivals" / "node" / "worker.mjs", self.package]


class PgBoss(NodeLibrary):
    name = "pg-boss"
    package = "pg-boss"
    promises = (
        "At least once: a job is claimed with SKIP LOCKED, by priority and then age, for 15 minutes by default, "
        "and retried with or without backoff. Dead-letter queues with redrive, delays, queues that keep one job a "
        "key or run a key's jobs in order, fan-out to the queues that subscribe; as durable as the server."
    )
    lacks = (
        "A lease that ends on time: who holds one too long is noticed by a job of maintenance that runs once a "
        "minute. A completed job is an update, and stays in the table for a week by default; no topics with "
        "wildcards. Its workers poll every 2 s unless notified, so it is measured with fetch and complete."
    )
    better = (
        "Cron and RRULE schedules, workflows of jobs that depend on each other, adapters to ORMs, traces and "
        "metrics, a dashboard."
    )


class GraphileWorker(NodeLibrary):
    name = "graphile-worker"
    package = "graphile-worker"
    # A client's sends and its jobs have a connection each.
    most_clients = 128
    promises = (
        "At least once: a job is claimed with SKIP LOCKED, by priority, time and age, and retried with "
        "exponential backoff, 25 times by default. Jobs of the same named queue run one after the other in their "
        "order; delays, job keys against duplicates; as durable as the server; jobs are part of the caller's "
        "transaction."
    )
    lacks = (
        "A short lease: jobs of a worker that died are taken up after 4 hours. A receive that a client asks for "
        "(handlers in JavaScript, or programs it starts), topics, dead-letter queues: what failed for good stays "
        "in the table."
    )
    better = (
        "A job starts within milliseconds of its commit, by NOTIFY; cron with backfill, jobs from any SQL; "
        "finished jobs are deleted at once."
    )


RIVALS = (PgBoss, GraphileWorker)
