"""The rivals of the benchmarks that are not driven by pgbench consume each message once.

Their workers check that themselves: what comes twice or changed is an error. Those in Python, RSMQ and RabbitMQ need
what only the benchmarks install.
"""

from __future__ import annotations

import os
import pathlib
import sys

import psycopg
import pytest
import servers

sys.path.insert(0, str(servers.ROOT))

from benchmarks.rivals import Place
from benchmarks.rivals.node import RIVALS, NodeLibrary


@pytest.mark.clients_npm
@pytest.mark.parametrize("library", RIVALS, ids=[library.name for library in RIVALS])
def test_each_message_is_consumed_once(library: type[NodeLibrary], tmp_path: pathlib.Path) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(os.environ["PGMQ_TEST_DSN"])
    installation = servers.Installation("0", pathlib.Path(os.environ["PGMQ_TEST_BIN"]), pathlib.Path(), pathlib.Path())
    cluster = servers.Cluster(installation, pathlib.Path(parts["host"]), int(parts["port"]), parts["user"])
    rival = library(Place(cluster, tmp_path))
    rival.install()
    rival.setup(payload=100)
    try:
        assert rival.send(count=30, batch=1, clients=2).messages == 30
        assert rival.send(count=250, batch=100, clients=1).messages == 250
        assert rival.consume(count=280, clients=4).messages == 280
        assert rival.cycle(clients=3, seconds=0.5).messages >= 3
    finally:
        rival.teardown()
        rival.close()
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute(psycopg.sql.SQL("drop database {}").format(psycopg.sql.Identifier(rival.name)))
