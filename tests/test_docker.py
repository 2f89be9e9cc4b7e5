"""The image as somebody meets it who has Docker alone: built, run, used, restarted. Run by `make test-docker`.

The engine is the one that `docker` reaches, else, as root on Debian, one of our own that needs neither a bridge nor
iptables. The base is a stand-in for the official image, or what DOCKER_BASE names: `DOCKER_BASE=postgres
DOCKER_MAJORS=16` tests postgres:16.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pty
import shutil
import subprocess
import tempfile
import termios
import time
import uuid
from collections.abc import Callable, Iterator

import demo
import psycopg
import pytest
import servers
from newcomer import documented

servers.neutralize()  # no conftest.py does it here

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

# The majors whose server Debian has, and the suite that has it.
SUITES = {"15": "bookworm", "17": "trixie", "18": "forky"}
MAJORS = os.environ.get("DOCKER_MAJORS", " ".join(SUITES)).split()
PASSWORD = "secret"


def docker(*arguments: str | os.PathLike, check: bool = True, **options: object) -> str:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    run = subprocess.run(["docker", *arguments], **options)
    if check and run.returncode:
        pytest.fail(f"docker {arguments[0]} failed:\n{run.stdout}", pytrace=False)
    return run.stdout.strip()


def wait(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def engine_answers() -> bool:
    found = shutil.which("docker")
    return bool(found) and subprocess.run([found, "version"], capture_output=True).returncode == 0


@pytest.fixture(scope="session", autouse=True)
def engine() -> Iterator[None]:
    """An engine that `docker` reaches."""
    if engine_answers():
        yield
        return
    if not servers.has_apt():
        pytest.fail("no Docker engine: start one, or run this as root on Debian", pytrace=False)
    if not shutil.which("dockerd"):
        servers.apt_install("docker.io")
    directory = pathlib.Path(tempfile.mkdtemp(prefix="pgmq-docker-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        # dockerd leaves this mounted, and what is mounted cannot be removed.
        stack.callback(subprocess.run, ["umount", directory / "exec" / "netns" / "default"], capture_output=True)
        # It ends with this process, however this process ends.
        command = ["setpriv", "--pdeathsig", "TERM", "dockerd", "--host", f"unix://{directory}/socket"]
        command += [
            "--data-root",
            directory / "data",
            "--exec-root",
            directory / "exec",
            "--pidfile",
            directory / "pid",
        ]
        command += ["--storage-driver", "vfs", "--bridge", "none", "--iptables=false", "--ip6tables=false"]
        command += ["--ip-forward=false", "--ip-masq=false"]
        with open(directory / "log", "w") as log:
            daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("DOCKER_HOST", f"unix://{directory}/socket")
        # Debian's own client, which has BuildKit built in.
        patch.setenv("PATH", "/usr/bin", prepend=os.pathsep)
        patch.setenv("DOCKER_BUILDKIT", "1")
        with contextlib.suppress(AssertionError):
            wait(lambda: daemon.poll() is not None or engine_answers(), "dockerd answers", 60)
        if not engine_answers():
            lines = (directory / "log").read_text().splitlines()
            pytest.fail("dockerd does not start:\n" + "\n".join(lines[-5:]), pytrace=False)
        yield


def make_stand_in(major: str) -> str:
    """Debian with its own PostgreSQL, from the mirror that this machine uses."""
    name = f"pgmq-test-postgres:{major}"
    if not shutil.which("debootstrap"):
        servers.apt_install("debootstrap")
    lists = ("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian")
    mirror = servers.output(*lists).splitlines()[0]
    with tempfile.TemporaryDirectory(prefix="pgmq-debian-") as directory:
        # The script of sid serves every suite, also those that this machine's debootstrap does not know.
        command = ["debootstrap", "--variant=minbase", SUITES[major], directory, mirror]
        run = subprocess.run([*command, "/usr/share/debootstrap/scripts/sid"], capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr
        pathlib.Path(directory).chmod(0o755)
        # The mirror's lists are as old as this machine finds acceptable.
        checks = servers.output("apt-config", "dump", "Acquire::Check-Valid-Until", "Acquire::Check-Date")
        (pathlib.Path(directory) / "etc" / "apt" / "apt.conf.d" / "checks").write_text(checks + "\n")
        with subprocess.Popen(["tar", "-C", directory, "--exclude=*.deb", "-c", "."], stdout=subprocess.PIPE) as tar:
            docker("import", "-", f"pgmq-test-debian:{major}", stdin=tar.stdout)
    docker(
        "build", "--network", "host", "--tag", name,
        "--build-arg", f"DEBIAN=pgmq-test-debian:{major}", "--build-arg", f"PG_MAJOR={major}",
        "--build-arg", f"PGDATA={data_directory(major)}", "--build-arg", f"DATA={volume_directory(major)}",
        servers.ROOT / "tests" / "docker",
    )  # fmt: skip
    return name


def data_directory(major: str) -> str:
    return "/var/lib/postgresql/data" if int(major) < 18 else f"/var/lib/postgresql/{major}/docker"


def volume_directory(major: str) -> str:
    """Where the official image has its volume."""
    return "/var/lib/postgresql/data" if int(major) < 18 else "/var/lib/postgresql"


class Image:
    """The image of a major version, as `make docker` builds it."""

    def __init__(self, major: str) -> None:
        self.major = major
        base = os.environ.get("DOCKER_BASE")
        self.base = f"{base}:{major}" if base else make_stand_in(major)
        started = time.monotonic()
        flags = f"--network host --build-arg BASE={self.base}"
        make = ["make", "--no-print-directory", "docker", f"PG_MAJOR={major}", f"DOCKER_FLAGS={flags}"]
        run = subprocess.run(make, cwd=servers.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert run.returncode == 0, run.stdout
        self.seconds = time.monotonic() - started
        self.name = f"pg{major}-pgmq:v{version()}"

    def run(self, script: str, name: str | None = None) -> str:
        """What a script prints in the image, or in the one named."""
        return docker("run", "--rm", "--network", "host", "--entrypoint", "bash", name or self.name, "-c", script)


def version() -> str:
    control = (servers.ROOT / "pgmq.control").read_text()
    return control.partition("default_version = '")[2].partition("'")[0]


def size(image: str) -> int:
    return int(docker("image", "inspect", "--format", "{{.Size}}", image))


class Container:
    """A container of the image, with its server on a free port of this machine."""

    def __init__(
        self,
        image: Image,
        *options: str,
        user: str = "postgres",
        database: str = "postgres",
        command: tuple[str, ...] = (),
    ) -> None:
        self.user = user
        self.database = database
        self.port = servers.free_port()
        self.id = docker(
            "create", "--network", "host", "--env", f"PGPORT={self.port}", "--env", f"POSTGRES_PASSWORD={PASSWORD}",
            "--env", f"POSTGRES_USER={user}", "--env", f"POSTGRES_DB={database}", *options, image.name, *command,
        )  # fmt: skip

    def health(self) -> str:
        return docker("inspect", "--format", "{{.State.Status}} {{.State.Health.Status}}", self.id)

    def start(self) -> Container:
        docker("start", self.id)
        self.wait()
        return self

    def wait(self) -> None:
        wait(lambda: self.health() != "running starting", "the container leaves the state starting")
        assert self.health() == "running healthy", docker("logs", self.id)

    def close(self) -> None:
        docker("rm", "--force", "--volumes", self.id)

    def psql(self, script: str, *options: str) -> str:
        """What somebody sees who runs psql in the container."""
        command = ["exec", "--interactive", self.id, "psql", "-X", "-U", self.user, "-d", self.database, *options]
        return docker(*command, input=script)

    def connect(self, user: str = "", database: str = "") -> psycopg.Connection:
        """From outside, as a program does."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, password=PASSWORD, autocommit=True,
            user=user or self.user, dbname=database or self.database,
        )  # fmt: skip


@pytest.fixture(scope="module", params=MAJORS)
def image(request: pytest.FixtureRequest, engine: None) -> Image:
    return Image(request.param)


@pytest.fixture(scope="module")
def container(image: Image) -> Iterator[Container]:
    with contextlib.closing(Container(image)) as made:
        yield made.start()


def test_the_image_is_labelled_and_its_size_is_told(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image.name))
    assert labels["org.opencontainers.image.version"] == version()
    assert labels["org.opencontainers.image.title"] == f"pgmq on PostgreSQL {image.major}"
    assert labels["org.opencontainers.image.base.name"] == image.base
    added = size(image.name) - size(image.base)
    with capsys.disabled():
        told = f"{size(image.name) / 1e6:.0f} MB, {added / 1e6:.0f} MB of them on top of {image.base}"
        print(f"\n{image.name}: {told}; built in {image.seconds:.0f} s", flush=True)
    assert added < 100e6


def test_nothing_but_packages_and_our_own_files_is_added_to_the_base(image: Image) -> None:
    # Without the places where the packages' own scripts keep what they make.
    kept = "^/(var/lib/(dpkg|python|systemd)|var/log|var/cache|etc/(ld.so.cache|python3)|dev|proc|sys)|/__pycache__/"
    every = "find / -xdev ! -type d | sort -u"
    before = set(image.run(every, name=image.base).splitlines())
    # Older packages say /lib where it is a link to /usr/lib.
    packages = "sed -E 's#^/(bin|lib|lib64|sbin)/#/usr&#' /var/lib/dpkg/info/*.list | sort -u"
    script = f"comm -23 <({every}) <({packages}) | grep -Ev '{kept}'"
    added = {path for path in image.run(script).splitlines() if path not in before}
    extension = f"/usr/share/postgresql/{image.major}/extension"
    assert added == {
        "/docker-entrypoint-initdb.d/00-pgmq.sql",
        "/usr/share/doc/pgmq/LICENSE",
        f"{extension}/pgmq.control",
        *(f"{extension}/{script.name}" for script in (servers.ROOT / "sql").glob("pgmq--*.sql")),
    }


def test_the_server_runs_as_postgres_with_the_settings_for_queues(image: Image, container: Container) -> None:
    assert docker("exec", container.id, "stat", "--format", "%U", "/proc/1") == "postgres"
    with container.connect() as connection:
        settings = dict(connection.execute("select name, setting from pg_settings").fetchall())
    expected = {
        "autovacuum_naptime": "10",
        "max_wal_size": "4096",
        "checkpoint_timeout": "900",
        "shared_preload_libraries": "pg_partman_bgw",
        "pg_partman_bgw.dbname": "postgres",
        "pg_partman_bgw.role": "postgres",
        "data_directory": data_directory(image.major),
    }
    assert {name: settings[name] for name in expected} == expected
    assert "pg_partman" in docker("top", container.id)


def test_no_database_has_pgmq_before_somebody_creates_it(container: Container) -> None:
    for database in ("template1", "postgres"):
        with container.connect(database=database) as connection:
            extensions = connection.execute("select extname from pg_extension order by 1").fetchall()
        assert extensions == [("plpgsql",), ("plpython3u",)]


def test_a_superuser_creates_pgmq_in_a_new_database_without_cascade_and_its_owner_uses_it(container: Container) -> None:
    with container.connect() as admin:
        admin.execute(f"create role app login password '{PASSWORD}'")
        admin.execute("create database app owner app")
    with container.connect(database="app") as admin:
        admin.execute("create extension pgmq")
        admin.execute("grant usage, create on schema pgmq to app")
        admin.execute("grant select, insert, delete on pgmq.meta to app")
    with container.connect(user="app", database="app") as connection:
        connection.execute("select pgmq.create('orders')")
        connection.execute("""select pgmq.send('orders', '{"item": "tea"}')""")
        assert connection.execute("select message from pgmq.pop('orders')").fetchone() == ({"item": "tea"},)


def test_nobody_but_a_superuser_creates_pgmq(container: Container) -> None:
    with container.connect() as admin:
        admin.execute(f"create role guest login password '{PASSWORD}'")
        admin.execute("grant create on database postgres to guest")
    refused = pytest.raises(psycopg.errors.InsufficientPrivilege)
    with container.connect(user="guest", database="postgres") as connection, refused:
        connection.execute("create extension pgmq")


def test_pg_partman_can_be_created(container: Container) -> None:
    container.psql("create database parts;", "--set=ON_ERROR_STOP=on")
    with container.connect(database="parts") as connection:
        connection.execute("create schema partman")
        connection.execute("create extension pg_partman schema partman")


def test_the_tour_gives_the_results_that_the_readme_shows(container: Container) -> None:
    container.psql("create database tour;")
    psql = ["docker", "exec", "--interactive", container.id, "psql", f"--username={container.user}", "--dbname=tour"]
    # PL/Python is there already.
    notice = '-NOTICE:  installing required extension "plpython3u"'
    assert list(demo.differences(psql).values()) == [[notice]]


def test_a_restart_keeps_the_data(container: Container) -> None:
    with container.connect() as connection:
        connection.execute("create database kept")
    with container.connect(database="kept") as connection:
        connection.execute("create extension pgmq")
        connection.execute("select pgmq.create('orders')")
        connection.execute("select pgmq.send('orders', to_jsonb(n)) from generate_series(1, 3) n")
        in_flight = connection.execute("select msg_id, vt from pgmq.read('orders', 3600, 1)").fetchall()
    docker("restart", container.id)
    container.wait()
    with container.connect(database="kept") as connection:
        assert connection.execute("select msg_id from pgmq.read('orders', 3600, 9)").fetchall() == [(2,), (3,)]
        assert connection.execute("select msg_id, vt from pgmq.q_orders where msg_id = 1").fetchall() == in_flight
        assert connection.execute("select * from pgmq.send('orders', '4')").fetchone() == (4,)


@pytest.fixture
def volume(image: Image) -> Iterator[str]:
    name = f"pgmq-test-{uuid.uuid4().hex}"
    docker("volume", "create", name)
    yield f"--volume={name}:{volume_directory(image.major)}"
    docker("volume", "rm", name)


def test_a_new_container_on_the_same_volume_keeps_the_data(image: Image, volume: str) -> None:
    with contextlib.closing(Container(image, volume)) as first:
        first.start()
        with first.connect() as connection:
            connection.execute("create extension pgmq")
            connection.execute("select pgmq.create('orders')")
            connection.execute("select pgmq.send('orders', '1')")
    with contextlib.closing(Container(image, volume)) as second:
        second.start()
        with second.connect() as connection:
            assert connection.execute("select msg_id, message from pgmq.pop('orders')").fetchall() == [(1, 1)]


def test_a_server_is_healthy_when_it_is_prepared_whatever_its_names(image: Image, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "50-own.sh"
    script.write_text(
        """#!/bin/bash
        set -e
        psql -X -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c 'create extension pgmq'
        touch /tmp/waiting
        until [ -e /tmp/go ]; do sleep 0.1; done
        """
    )
    script.chmod(0o755)
    names = {"user": "the chief", "database": """Bob's "orders\""""}
    with contextlib.closing(Container(image, **names)) as container:
        docker("cp", script, f"{container.id}:/docker-entrypoint-initdb.d/")
        docker("start", container.id)
        find = ["exec", container.id, "ls", "/tmp/waiting"]
        wait(lambda: docker(*find, check=False) == "/tmp/waiting", "the user's own script runs", 30)
        check = json.loads(docker("inspect", "--format", "{{json .Config.Healthcheck.Test}}", container.id))[1]
        unhealthy = ["exec", container.id, "sh", "-c", f"{check} || echo not yet"]
        assert docker(*unhealthy) == "not yet"
        docker("exec", container.id, "touch", "/tmp/go")
        container.wait()
        with container.connect() as connection:
            assert connection.execute("select pgmq.create('orders')").fetchone() == ("",)
            told = "select current_setting('pg_partman_bgw.dbname'), current_setting('pg_partman_bgw.role')"
            assert connection.execute(told).fetchone() == (names["database"], names["user"])
        # Nor does asking for its health fill the log.
        assert "FATAL" not in docker("logs", container.id)


def test_another_library_can_be_preloaded(image: Image) -> None:
    options = ("postgres", "-c", "shared_preload_libraries=auto_explain")
    with contextlib.closing(Container(image, command=options)) as container:
        container.start()
        with container.connect() as connection:
            connection.execute("create extension pgmq")


def test_compose_names_the_image_of_this_version() -> None:
    assert f"-pgmq:v{version()}\n" in (servers.ROOT / "compose.yaml").read_text()


def has_bridge() -> bool:
    """Whether the engine can map ports: the one of our own has only the machine's network."""
    return docker("network", "ls", "--quiet", "--filter", "name=^bridge$") != ""


def type_into(command: str, lines: list[str], environment: dict[str, str]) -> str:
    """What a terminal shows to somebody who types a command, and lines into it."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, 200))
    typed = subprocess.Popen(
        ["bash", "-c", command], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    os.write(master, "".join(f"{line}\n" for line in lines).encode())
    shown = b""
    # A terminal that nobody has open any more is an error.
    with contextlib.suppress(OSError):
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    assert typed.wait() == 0, shown.decode()
    return shown.decode()


def test_the_commands_of_the_page(image: Image, tmp_path: pathlib.Path) -> None:
    ((block,), _) = documented("docs/docker.md")
    build, start, enter = block.commands
    if f"PG_MAJOR={image.major}" not in build:
        pytest.skip("the page builds another image")
    assert docker("ps", "--all", "--quiet", "--filter", "name=^pgmq$") == "", "there is a container pgmq already"
    path = os.environ["PATH"]
    if not has_bridge():
        program = tmp_path / "docker"
        real = shutil.which("docker")
        options = f"--network host --env PGPORT={servers.free_port()}"
        program.write_text(f'#!/bin/sh\n[ "$1" != run ] || {{ shift; set -- run {options} "$@"; }}\nexec {real} "$@"\n')
        program.chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{path}"
    flags = f"--network host --build-arg BASE={image.base}"
    environment = {**os.environ, "PATH": path, "DOCKER_FLAGS": flags}
    try:
        for command in (build, start):
            told = subprocess.run(
                ["bash", "-c", command], cwd=servers.ROOT, env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            assert told.returncode == 0, told.stdout
        check = ("inspect", "--format", "{{.State.Health.Status}}", "pgmq")
        wait(lambda: docker(*check) == "healthy", "the container is healthy")
        page = (servers.ROOT / "docs" / "docker.md").read_text()
        statements = page.partition("```sql\n")[2].partition("```")[0].splitlines()
        shown = type_into(enter, [*statements, "\\q"], environment)
        assert "CREATE EXTENSION" in shown and "(1 row)" in shown and "ERROR" not in shown, shown
    finally:
        docker("rm", "--force", "--volumes", "pgmq", check=False)


def test_compose_starts_the_image(image: Image) -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode or not has_bridge():
        pytest.skip("no docker compose, or an engine without a network of its own")
    (command,) = [command for command in documented("docs/docker.md")[1] if "compose" in command]
    port = servers.free_port()
    own = {"PG_MAJOR": image.major, "PORT": str(port), "COMPOSE_PROJECT_NAME": f"pgmq-test-{uuid.uuid4().hex}"}
    options = {"cwd": servers.ROOT, "env": {**os.environ, **own}, "text": True}
    try:
        up = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        assert up.returncode == 0, up.stdout
        with psycopg.connect(
            host="127.0.0.1", port=port, user="postgres", password=PASSWORD, autocommit=True
        ) as connection:
            connection.execute("create extension pgmq")
    finally:
        subprocess.run(["docker", "compose", "down", "--volumes"], capture_output=True, **options)


def test_make_demo_gets_what_a_bare_debian_lacks(image: Image) -> None:
    if image.major != MAJORS[0]:
        pytest.skip("one is enough")
    bare = image.base if os.environ.get("DOCKER_BASE") else f"pgmq-test-debian:{image.major}"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=servers.ROOT, check=True, stdout=subprocess.PIPE).stdout
    tar = ["tar", "--create", "--null", "--files-from=-", "--ignore-failed-read"]
    checkout = subprocess.run(tar, cwd=servers.ROOT, input=files, check=True, stdout=subprocess.PIPE).stdout
    script = """
        set -e
        mkdir /pgmq
        tar --extract --directory /pgmq
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends make python3 > /dev/null
        cd /pgmq
        make demo
    """
    command = [
        "docker",
        "run",
        "--rm",
        "--interactive",
        "--network",
        "host",
        "--entrypoint",
        "bash",
        bare,
        "-c",
        script,
    ]
    told = subprocess.run(command, input=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert told.returncode == 0, told.stdout.decode()
    assert told.stdout.endswith(b"All as the README shows it.\n"), told.stdout.decode()
