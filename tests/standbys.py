"""A streaming standby of a throwaway cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import psycopg
import servers
from conftest import eventually


@contextlib.contextmanager
def standby_of(primary: servers.Cluster, **environment: str) -> Iterator[servers.Cluster]:
    """Copies a cluster and starts the copy as its standby. The cluster, stopped meanwhile, gets the environment."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="pgmq-standby-", dir="/tmp"))
    standby = dataclasses.replace(primary, directory=directory)
    try:
        primary.control("stop", "-m", "fast")
        shutil.copytree(primary.directory / "data", directory / "data")
        primary.control("start", **environment)
        (directory / "data" / "standby.signal").touch()
        with open(directory / "data" / "postgresql.auto.conf", "a") as file:
            file.write(f"primary_conninfo = 'host={primary.directory} port={primary.port} user={primary.superuser}'\n")
            file.write(f"unix_socket_directories = '{directory}'\n")
        directory.chmod(0o755)
        if servers.is_root():
            identity = servers.unprivileged()
            for path in [directory, *directory.rglob("*")]:
                os.chown(path, identity["user"], identity["group"])
        standby.control("start")
        try:
            yield standby
        finally:
            standby.control("stop", "-m", "immediate")
    finally:
        shutil.rmtree(directory)


def wait_for(standby: psycopg.Connection, primary: psycopg.Connection) -> None:
    """Wait until the standby has all that is committed at the primary now."""
    (place,) = primary.execute("select pg_current_wal_flush_lsn()").fetchone()
    eventually(lambda: standby.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [place]).fetchone()[0], 30)
