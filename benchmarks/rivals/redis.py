"""RSMQ on a Redis of its own, which writes its log to the disk at every write or every second."""

from __future__ import annotations

import pathlib
import shutil
import socket
import subprocess
import tempfile
from typing import ClassVar

from benchmarks.rivals.node import NodeLibrary
from benchmarks.rivals.service import Service, get_program


class Rsmq(NodeLibrary):
    package = "rsmq"
    in_postgres = False
    appendfsync: ClassVar[str]
    promises = (
        "At least once: a message is hidden for a visibility timeout and then delivered again; first in, first "
        "out to the millisecond; delays, counts of deliveries."
    )
    lacks = (
        "Transactions with other data, batches (a batch is sent here without waiting for each reply), reads of "
        "more than one message, groups, topics, dead-letter queues, an archive. All messages are in memory and "
        "one thread serves all queues. Its last release is of 2024."
    )

    def install(self) -> None:
        super().install()
        program = get_program("redis-server", "redis-server")
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        self.version += " on Redis " + told.partition("v=")[2].split()[0]
        # A socket's path has at most 107 bytes.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="pgmq-redis-", dir="/tmp"))
        self.dsn = str(self.directory / "socket")
        self.service = Service(
            self.directory,
            [program, "--port", "0", "--unixsocket", self.dsn, "--dir", self.directory, "--save", "",
             "--appendonly", "yes", "--appendfsync", self.appendfsync],
        )  # fmt: skip
        try:
            self.service.wait(self.is_ready)
        except BaseException:
            self.close()
            raise

    def is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(self.dsn)
            except OSError:
                return False
            client.sendall(b"PING\r\n")
            return client.recv(16) == b"+PONG\r\n"

    def processes(self) -> list[int]:
        return [self.service.process.pid]

    def close(self) -> None:
        self.service.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class RsmqAlways(Rsmq):
    name = "rsmq-always"
    appendfsync = "always"
    promises = f"{Rsmq.promises} A reply means that the disk has the change."
    better = "A queue where there is a Redis but no PostgreSQL; little work a message, and no vacuum."


class RsmqEverySecond(Rsmq):
    name = "rsmq-everysec"
    appendfsync = "everysec"
    lacks = f"{Rsmq.lacks} A crash of the machine loses up to a second of messages that clients were told are stored."
    better = "The rates of memory, where losing a second is allowed."


RIVALS = (RsmqAlways, RsmqEverySecond)
