"""Behind PgBouncer what docs/tuning.md says works does, and what it says does not, does not: in each of its modes, with
one that knows prepared statements and one that does not."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import psycopg
import pytest
import servers
from conftest import Database, call, eventually, unique
from psycopg.types.json import Jsonb

VERSIONS = list(servers.PGBOUNCER)
MANUAL = (servers.ROOT / "docs" / "tuning.md").read_text()
# Of the name of a socket alone.
PORT = 6432
MODES = ["session", "transaction", "statement"]


@dataclasses.dataclass(frozen=True)
class Pool:
    """A running PgBouncer with a pool for each mode: of two connections, and of one, which all clients share."""

    version: str
    directory: pathlib.Path

    def connect(self, stack: contextlib.ExitStack, database: str, **options: object) -> psycopg.Connection:
        """A client. It prepares no statements unless told otherwise."""
        connection = psycopg.connect(
            host=str(self.directory),
            port=PORT,
            user=servers.Cluster.superuser,
            dbname=database,
            **{"autocommit": True, "prepare_threshold": None, **options},
        )
        stack.callback(connection.close)
        return connection

    @contextlib.contextmanager
    def setting(self, name: str, value: object) -> Iterator[None]:
        """Another value for a while, for all clients."""
        with contextlib.ExitStack() as stack:
            console = self.connect(stack, "pgbouncer")
            settings = {row[0]: row[1] for row in console.execute("show config")}
            console.execute(f"set {name} = '{value}'")
            yield
            console.execute(f"set {name} = '{settings[name]}'")

    def waiting(self, database: str) -> int:
        """How many clients wait for a connection."""
        with contextlib.ExitStack() as stack:
            shown = self.connect(stack, "pgbouncer").execute("show pools")
            columns = [column.name for column in shown.description]
            pools = [dict(zip(columns, row, strict=True)) for row in shown]
        return next(int(pool["cl_waiting"]) for pool in pools if pool["database"] == database)


@pytest.fixture(scope="module", params=VERSIONS)
def pool(request: pytest.FixtureRequest, shared_database: Database) -> Iterator[Pool]:
    """Each connection is cleared by DISCARD ALL whenever a client gives it back."""
    try:
        command = servers.get_pgbouncer(request.param)
    except servers.Missing as missing:
        if request.config.option.major:
            raise
        pytest.skip(str(missing))
    server = psycopg.conninfo.conninfo_to_dict(shared_database.dsn)
    target = f"host={server['host']} port={server['port']} dbname={server['dbname']}"
    pools = [
        f"{mode}{suffix} = {target} pool_mode={mode} pool_size={size}"
        for mode in MODES
        for suffix, size in (("", 2), ("_one", 1))
    ]
    user = servers.Cluster.superuser
    # The path of a socket is short, and the pool's user must read it.
    directory = pathlib.Path(tempfile.mkdtemp(prefix="pgmq-pool-", dir="/tmp"))
    settings = {
        **dict(re.findall(r"^(\w+) = (.*)$", re.search(r"^```ini\n(.*?)^```$", MANUAL, re.M | re.S).group(1), re.M)),
        "listen_addr": "",
        "listen_port": PORT,
        "unix_socket_dir": directory,
        "auth_type": "trust",
        "auth_file": directory / "users",
        "admin_users": user,
        "server_reset_query": "discard all",
        "server_reset_query_always": 1,
    }
    lines = ["[databases]", *pools, "[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())]
    (directory / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
    (directory / "users").write_text(f'"{user}" ""\n')
    directory.chmod(0o777)
    with open(directory / "log", "w") as log:
        process = subprocess.Popen(
            [*command, directory / "pgbouncer.ini"], cwd=directory, stdout=log, stderr=log, **servers.unprivileged()
        )
    try:

        def is_up() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            return (directory / f".s.PGSQL.{PORT}").exists()

        eventually(is_up)
        yield Pool(request.param, directory)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def connect(pool: Pool, stack: contextlib.ExitStack) -> Callable[..., psycopg.Connection]:
    def connect(database: str, **options: object) -> psycopg.Connection:
        return pool.connect(stack, database, **options)

    return connect


def waits(db: psycopg.Connection) -> bool:
    """Whether somebody is in a read that waits."""
    active = "select from pg_stat_activity where state = 'active' and starts_with(query, 'select ') and query ~ %s"
    return db.execute(active, ["from pgmq[.]read_with_poll"]).fetchone() is not None


Connect = Callable[..., psycopg.Connection]


@pytest.mark.parametrize("mode", MODES)
def test_a_client_works(connect: Connect, queue: str, mode: str) -> None:
    client = connect(mode)
    assert [call(client, "send", queue, Jsonb(number))[0].send for number in range(3)] == [1, 2, 3]
    assert [row[0] for row in call(client, "send_batch", queue, [Jsonb(3), Jsonb(4)])] == [4, 5]
    assert [message.message for message in call(client, "read", queue, 30, 2)] == [0, 1]
    assert [message.message for message in call(client, "read_with_poll", queue, 30, 1, 5, 10)] == [2]
    assert [message.message for message in call(client, "pop", queue)] == [3]
    assert call(client, "delete", queue, 1) == [(True,)]
    assert call(client, "archive", queue, 2) == [(True,)]
    assert call(client, "set_vt", queue, 3, 0)[0].msg_id == 3
    assert call(client, "metrics", queue)[0].queue_length == 2
    assert queue in [row.queue_name for row in call(client, "metrics_all")]


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_python_in_the_server_outlives_what_clears_a_session(connect: Connect, mode: str) -> None:
    first, second = connect(mode + "_one"), connect(mode + "_one")
    first.execute("set application_name = 'first'; set work_mem = '1234kB'")
    pids = set()
    for number in range(4):
        for client in (first, second):
            name = unique()
            assert client.execute("show work_mem").fetchone()[0] != "1234kB"
            call(client, "create", name)
            call(client, "create_fifo_index", name)
            call(client, "bind_topic", f"pools.{name}", name)
            assert call(client, "send_topic", f"pools.{name}", Jsonb(number)) == [(1,)]
            assert [message.message for message in call(client, "read", name, 30, 1)] == [number]
            assert call(client, "drop_queue", name) == [(True,)]
            pids.add(client.execute("select pg_backend_pid()").fetchone()[0])
    assert len(pids) == 1


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_transaction_is_whole(connect: Connect, db: psycopg.Connection, queue: str, mode: str) -> None:
    client, other = connect(mode), connect(mode)
    with client.transaction(force_rollback=True):
        call(client, "send", queue, Jsonb("never"))
        call(client, "acquire_queue_lock", queue)
        assert call(other, "read", queue, 30, 1) == []
    with client.transaction():
        call(client, "send", queue, Jsonb("sent"))
    assert [message.message for message in call(other, "read", queue, 30, 10)] == ["sent"]


def test_in_statement_mode_there_are_no_transactions(connect: Connect, queue: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="statement pooling"):
        connect("statement").execute("begin")
    # What one statement does is a transaction still.
    client = connect("statement")
    with pytest.raises(psycopg.errors.DivisionByZero):
        client.execute("select pgmq.send(%s, '1'), 1 / (random() * 0)::integer", [queue])
    assert call(client, "read", queue, 30, 1) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_read_that_waits_holds_its_connection(
    pool: Pool, connect: Connect, db: psycopg.Connection, queue: str, mode: str
) -> None:
    waiting = connect(mode + "_one")
    waiting.pgconn.send_query(f"select message from pgmq.read_with_poll('{queue}', 30, 1, 60, 10)".encode())
    eventually(lambda: waits(db))
    # To connect does not take a connection of the pool's, to ask something does.
    other = connect(mode + "_one")
    other.pgconn.send_query(b"select 'answered'")
    eventually(lambda: pool.waiting(mode + "_one") == 1)
    call(db, "send", queue, Jsonb("sent"))
    assert waiting.pgconn.get_result().get_value(0, 0) == b'"sent"'
    assert waiting.pgconn.get_result() is None
    if mode == "session":
        waiting.close()
    assert other.pgconn.get_result().get_value(0, 0) == b"answered"


@pytest.mark.parametrize("mode", MODES)
def test_who_listens_hears_in_session_mode_alone(
    connect: Connect, database: Database, db: psycopg.Connection, queue: str, mode: str
) -> None:
    call(db, "enable_notify_insert", queue, 0)
    listen = f'listen "pgmq.q_{queue}.INSERT"'
    direct, pooled, sender = database.connect(), connect(mode), connect(mode)
    direct.execute(listen)
    pooled.execute(listen)
    call(sender, "send", queue, Jsonb(1))
    assert len(list(direct.notifies(timeout=10, stop_after=1))) == 1
    # What the server has sent to the one it has sent to the other.
    pooled.execute("select 1")
    heard = list(pooled.notifies(timeout=10 if mode == "session" else 0, stop_after=1))
    assert len(heard) == (mode == "session")


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_without_a_reset_whoever_holds_the_connection_hears(
    pool: Pool, connect: Connect, database: Database, db: psycopg.Connection, queue: str, mode: str
) -> None:
    call(db, "enable_notify_insert", queue, 0)
    listen = f'listen "pgmq.q_{queue}.INSERT"'
    direct, pooled, stranger = database.connect(), connect(mode + "_one"), connect(mode + "_one")
    direct.execute(listen)
    with pool.setting("server_reset_query_always", 0):
        pooled.execute(listen)
        # The notification comes while the stranger's statement runs.
        stranger.pgconn.send_query(f"select from pgmq.read_with_poll('{queue}', 30, 1, 60, 10)".encode())
        eventually(lambda: waits(db))
        call(db, "send", queue, Jsonb(1))
        assert len(list(direct.notifies(timeout=10, stop_after=1))) == 1
        while stranger.pgconn.get_result():
            pass
        assert stranger.pgconn.notifies() is not None
        pooled.execute("select 1")
        assert list(pooled.notifies(timeout=0)) == []
    # The connection listens no more: it is cleared again.
    pooled.execute("select 1")


def named_statements(connect: Connect, mode: str, queue: str) -> None:
    """Each of two clients has a statement of its own by the same name, and they use them by turns."""
    clients = [connect(mode) for _ in range(2)]
    for turn in range(3):
        for number, client in enumerate(clients):
            if turn == 0:
                result = client.pgconn.prepare(b"mine", f"select pgmq.send('{queue}', '{number}')".encode())
            if turn > 0 or not result.error_message:
                result = client.pgconn.exec_prepared(b"mine", [])
            if result.error_message:
                raise psycopg.errors.lookup(result.error_field(psycopg.pq.DiagnosticField.SQLSTATE).decode())


def statements_of_psycopg(connect: Connect, mode: str, queue: str) -> None:
    """It prepares what it has run five times, unless told otherwise."""
    clients = [connect(mode, prepare_threshold=5) for _ in range(2)]
    for number in range(8):
        for client in clients:
            call(client, "send", queue, Jsonb(number % 2))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use", [named_statements, statements_of_psycopg])
def test_prepared_statements(
    pool: Pool, connect: Connect, queue: str, mode: str, use: Callable[[Connect, str, str], None]
) -> None:
    fails = pytest.raises((psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName))
    if mode == "session":
        use(connect, mode, queue)
    elif pool.version == "1.18":
        with fails:
            use(connect, mode + "_one", queue)
    else:
        use(connect, mode + "_one", queue)
        assert {message.message for message in call(connect(mode), "read", queue, 30, 100)} == {0, 1}
        with pool.setting("max_prepared_statements", 0), fails:
            use(connect, mode + "_one", queue)
