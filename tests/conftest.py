"""One server a run, one database a worker with the extension in it, queues that a test has for itself."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import servers
from hypothesis import HealthCheck, settings
from psycopg.rows import namedtuple_row

# Before any test's module reads the environment.
servers.neutralize()

pytest_plugins = ["newcomer"]

SERVER = pytest.StashKey()

# The same examples in every run; an example that needs a fresh queue makes one.
settings.register_profile(
    "pgmq", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("pgmq")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--major", type=int, choices=servers.MAJORS, help="the server's major version (default: the newest found)"
    )


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    try:
        installation = servers.get_major(config.option.major) if config.option.major else servers.newest()
        # Some clients know TCP alone.
        reached = {"listen_addresses": "127.0.0.1", "port": servers.free_port()}
        context = servers.cluster(installation, max_connections=300, track_functions="all", **reached)
        cluster = context.__enter__()
        os.environ["PGMQ_TEST_PARTMAN"] = " ".join(install_partman(config, cluster.installation))
    except servers.Missing as missing:
        pytest.exit(str(missing), returncode=1)
    config.stash[SERVER] = context
    os.environ["PGMQ_TEST_DSN"] = cluster.dsn()
    os.environ["PGMQ_TEST_BIN"] = str(cluster.installation.bin)
    os.environ["PGMQ_TEST_EXTENSIONS"] = str(cluster.installation.share / "extension")


def version_of_run(config: pytest.Config) -> int:
    """The major version of the server that the tests run on."""
    return config.option.major or servers.newest().major


def install_partman(config: pytest.Config, installation: servers.Installation) -> list[str]:
    """The versions of pg_partman that can be had. The full matrix wants them all, a plain run tests what there is."""
    versions = []
    for version in servers.PARTMAN:
        try:
            servers.install_partman(installation, version)
            versions.append(version)
        except servers.Missing as missing:
            if config.option.major:
                raise
            print(f"partitions are not tested with this one: {missing}")
    return versions


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """What the machine lacks is told in its one line, without a traceback."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, servers.Missing):
        report.longrepr = str(call.excinfo.value)
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    context = config.stash.get(SERVER, None)
    if context is not None:
        context.__exit__(None, None, None)


def pytest_report_header(config: pytest.Config) -> str | None:
    if "PGMQ_TEST_DSN" not in os.environ:
        return None
    with psycopg.connect(os.environ["PGMQ_TEST_DSN"]) as connection:
        return "server: " + connection.execute("select version()").fetchone()[0]


class Database:
    """A database of the test server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.opened: list[psycopg.Connection] = []

    @property
    def dsn(self) -> str:
        return psycopg.conninfo.make_conninfo(os.environ["PGMQ_TEST_DSN"], dbname=self.name)

    def connect(self, role: str | None = None, **options: object) -> psycopg.Connection:
        """A connection that the test need not close, as a superuser or as the role given."""
        connection = psycopg.connect(self.dsn, **{"autocommit": True, **options})
        self.opened.append(connection)
        connection.execute("set client_min_messages = warning")
        if role is not None:
            connection.execute(f"set session authorization {role}")
        if not connection.autocommit:
            connection.commit()
        return connection

    def close(self, but: psycopg.Connection | None = None) -> None:
        for connection in self.opened:
            if connection is not but:
                connection.close()
        self.opened = [but] if but in self.opened else []


_numbers = itertools.count(1)


def unique(prefix: str = "queue") -> str:
    """A name that no other test of any worker uses."""
    return f"{prefix}_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{next(_numbers)}"


@pytest.fixture(scope="session")
def admin() -> Iterator[psycopg.Connection]:
    """A superuser's connection to the server's own database: to make databases and roles."""
    with psycopg.connect(os.environ["PGMQ_TEST_DSN"], autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def make_database(admin: psycopg.Connection) -> Iterator[Callable[..., Database]]:
    """Makes databases, with the extension unless told otherwise; they go when the run ends."""
    made: list[Database] = []

    def make(*, extension: bool = True, owner: str | None = None) -> Database:
        database = Database(unique("database"))
        admin.execute(f"create database {database.name} template template0 {f'owner {owner}' if owner else ''}")
        made.append(database)
        if extension:
            with psycopg.connect(database.dsn, autocommit=True) as connection:
                connection.execute("set client_min_messages = warning")
                connection.execute("create extension pgmq cascade")
        return database

    yield make
    for database in made:
        database.close()
        admin.execute(f"drop database {database.name} with (force)")


@pytest.fixture(scope="session")
def shared_database(make_database: Callable[..., Database]) -> Database:
    return make_database()


@pytest.fixture
def database(shared_database: Database) -> Iterator[Database]:
    """The worker's database. Connections that the test opens through it are closed for it."""
    yield shared_database
    shared_database.close()


@pytest.fixture
def db(database: Database) -> psycopg.Connection:
    """A superuser's connection in autocommit."""
    return database.connect()


@pytest.fixture
def queue(database: Database, db: psycopg.Connection) -> Iterator[str]:
    """The name of a fresh queue."""
    name = unique()
    db.execute("select pgmq.create(%s)", [name])
    yield name
    # Where a test fails, its open transactions would have the drop wait for ever.
    database.close(but=db)
    db.execute("select pgmq.drop_queue(%s)", [name])


@pytest.fixture
def make_role(admin: psycopg.Connection) -> Iterator[Callable[..., str]]:
    """Makes roles that may do nothing but what the test grants them; their names must be quoted, and are."""
    made: list[str] = []

    def make(options: str = "") -> str:
        role = f'"{unique("Role")}"'
        admin.execute(f"create role {role} login {options}")
        made.append(role)
        return role

    yield make
    # Only this worker's databases: another may be dropping its own.
    prefix = unique("database").rpartition("_")[0] + "_"
    databases = [
        row[0] for row in admin.execute("select datname from pg_database where starts_with(datname, %s)", [prefix])
    ]
    for role in made:
        for name in databases:
            with psycopg.connect(os.environ["PGMQ_TEST_DSN"], dbname=name, autocommit=True) as connection:
                connection.execute("set client_min_messages = warning")
                connection.execute(f"drop owned by {role} cascade")
                connection.execute(f"reassign owned by {role} to current_user")
        admin.execute(f"drop role {role}")


def call(connection: psycopg.Connection, function: str, *arguments: object) -> list[Any]:
    """The rows of select * from pgmq.function(arguments), with their columns as attributes."""
    marks = ", ".join(["%s"] * len(arguments))
    cursor = connection.cursor(row_factory=namedtuple_row)
    return cursor.execute(f"select * from pgmq.{function}({marks})", arguments).fetchall()


def eventually(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait until the condition holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while True:
        # Looked at once more after the deadline: the wait before may have been long.
        is_last = time.monotonic() > deadline
        found = condition()
        if found:
            return found
        assert not is_last, f"not within {seconds} seconds"
        time.sleep(0.01)


def error_of(error: type[psycopg.Error], message: str, hint: str | None = None):
    """Expects an error of the extension: its class, which stands for the SQLSTATE, the text, and what the hint says."""

    class Expectation:
        def __enter__(self) -> None:
            self.raises = pytest.raises(error)
            self.info = self.raises.__enter__()

        def __exit__(self, *arguments: object) -> bool:
            if not self.raises.__exit__(*arguments):
                return False
            diagnostic = self.info.value.diag
            assert diagnostic.message_primary.startswith("pgmq: "), diagnostic.message_primary
            assert message in diagnostic.message_primary
            if hint is not None:
                assert hint in (diagnostic.message_hint or "")
            return True

    return Expectation()
