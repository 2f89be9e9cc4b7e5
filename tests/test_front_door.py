"""The front door: each command that the documentation gives is run as a newcomer types it, and `make demo` anywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import psycopg
import pytest
import servers
import test_docker
import test_pgxn
from newcomer import META, NAME, Block, Site, documented, run

DOCUMENTS = ("README.md", "docs/install.md", "docs/docker.md")
DOCUMENTED = {document: documented(document) for document in DOCUMENTS}
BLOCKS = [block for blocks, _ in DOCUMENTED.values() for block in blocks]


def works(connection: psycopg.Connection) -> bool:
    connection.execute("select pgmq.create('orders')")
    connection.execute("""select pgmq.send('orders', '{"item": "tea"}')""")
    return connection.execute("select message from pgmq.pop('orders')").fetchall() == [({"item": "tea"},)]


def version(connection: psycopg.Connection) -> list[str]:
    """The version of the extension, if it is there."""
    return [row[0] for row in connection.execute("select extversion from pg_extension where extname = 'pgmq'")]


def install(commands: tuple[str, ...], site: Site, checkout: pathlib.Path) -> None:
    for command in commands:
        site.type(command, checkout)
    with site.connect("app" if "-d app" in commands[-1] else "postgres") as connection:
        assert version(connection) == [META["version"]]
        assert works(connection)


def install_sql_alone(commands: tuple[str, ...], site: Site, checkout: pathlib.Path) -> None:
    for command in commands:
        site.type(command, checkout)
    with site.connect("app") as connection:
        assert version(connection) == []
        assert works(connection)


def install_from_pgxn(commands: tuple[str, ...], site: Site, distribution: pathlib.Path) -> None:
    install, plpython, load, unload, uninstall = commands
    mirror = site.programs / "mirror"
    serve(distribution, mirror)
    # A mirror is a matter of options alone.
    program = site.programs / "pgxn"
    program.write_text(
        f'#!/bin/sh\ncommand="$1"; shift\nexec {shutil.which("pgxn", path=site.environment["PATH"])} "$command" '
        f'--mirror file://{mirror} "$@"\n'
    )
    program.chmod(0o755)
    # A server's machine may have no Python outside PL/Python.
    elsewhere = site.programs

    def type(command: str) -> None:
        site.type(command, elsewhere, PYTHON="false")

    type(install)
    assert site.extension_files == sorted([*test_pgxn.SCRIPTS, "pgmq.control"])
    type(plpython)
    with site.connect("app") as connection:
        type(load)
        assert version(connection) == [META["version"]]
        assert works(connection)
        type(unload)
        assert version(connection) == []
        assert connection.execute("select count(*) from pgmq.q_orders").fetchone() == (0,)
    type(uninstall)
    assert site.extension_files == []


def serve(distribution: pathlib.Path, mirror: pathlib.Path) -> None:
    """A mirror of PGXN with the distribution in it."""
    paths = {"dist": "/{dist}.json", "meta": "/{dist}-{version}.json", "download": "/{dist}-{version}.zip"}
    meta = {**META, "sha1": hashlib.sha1(distribution.read_bytes()).hexdigest()}
    releases = {"name": META["name"], "releases": {"stable": [{"version": META["version"]}]}}
    mirror.mkdir()
    for name, content in (("index", paths), (META["name"], releases), (NAME, meta)):
        (mirror / f"{name}.json").write_text(json.dumps(content))
    shutil.copy(distribution, mirror / f"{NAME}.zip")


RUNNERS: dict[str, Callable[[tuple[str, ...], Site, pathlib.Path, pathlib.Path], None]] = {
    "README.md, Install": lambda commands, site, checkout, _: install(commands, site, checkout),
    "docs/install.md, Source": lambda commands, site, checkout, _: install(commands, site, checkout),
    "docs/install.md, SQL alone": lambda commands, site, checkout, _: install_sql_alone(commands, site, checkout),
    "docs/install.md, PGXN": lambda commands, site, _, distribution: install_from_pgxn(commands, site, distribution),
}


@pytest.fixture
def app(site: Site) -> Site:
    """The site with a database for the application, which the documentation calls app."""
    with site.connect() as connection:
        connection.execute("create database app")
    return site


@pytest.mark.parametrize("name", RUNNERS)
def test_the_commands_do_what_they_are_given_for(
    name: str, app: Site, checkout: pathlib.Path, distribution: pathlib.Path
) -> None:
    (block,) = [block for block in BLOCKS if block.name == name]
    RUNNERS[name](block.commands, app, checkout, distribution)


def test_sql_alone_as_the_readme_says_it(app: Site, checkout: pathlib.Path) -> None:
    (command,) = [command for command in DOCUMENTED["README.md"][1] if "sql/pgmq.sql" in command]
    app.type(command, checkout, PGDATABASE="app")
    with app.connect("app") as connection:
        assert works(connection)


BY_TESTS = {
    "make && psql -f sql/pgmq.sql": test_sql_alone_as_the_readme_says_it,
    "make installcheck": test_pgxn.test_make_installcheck_in_the_unpacked_distribution,
    "make dist": test_pgxn.test_the_distribution_holds_what_git_has_and_the_install_scripts,
    "POSTGRES_PASSWORD=secret docker compose up --wait": test_docker.test_compose_starts_the_image,
    "make docker DOCKER_FLAGS='--build-arg BASE=postgres:18.1-bookworm'": test_docker.Image,
}
BLOCKS_BY_TESTS = {"docs/docker.md, The image": test_docker.test_the_commands_of_the_page, **RUNNERS}
# Runs of the tests are no tests: a line of a script runs each, as it stands or with these arguments.
BY_SCRIPTS = {
    "make demo": (".ci/run", "make demo"),
    "make test": (".ci/run", "make test"),
    "make test-all": (".ci/run", "make test-all MAJORS="),
    "make test PYTEST_ARGS='-k name'": (".ci/run", "hostile make test PYTEST_ARGS='-k name'"),
    "make lint": (".github/workflows/test.yml", "- run: make lint"),
    "make test-docker": (".ci/run", "make test-docker"),
    "make test-docker DOCKER_BASE=postgres DOCKER_MAJORS='14 16'": (
        ".github/workflows/images.yml",
        "- run: make test-docker DOCKER_BASE=postgres DOCKER_MAJORS=",
    ),
}


def is_part(command: str, whole: str) -> bool:
    """Whether a command is another, perhaps without some of its arguments."""
    words = iter(whole.split())
    return all(word in words for word in command.split())


def unexecuted(blocks: list[Block], inline: list[str]) -> list[str]:
    """The documented commands that nothing executes."""
    executed = [command for block in BLOCKS if block.name in BLOCKS_BY_TESTS for command in block.commands]
    rest = [command for block in blocks if block.name not in BLOCKS_BY_TESTS for command in block.commands]
    return [
        command
        for command in [*rest, *inline]
        if command not in (*BY_TESTS, *BY_SCRIPTS) and not any(is_part(command, whole) for whole in executed)
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_documented_command_is_executed(document: str) -> None:
    assert unexecuted(*DOCUMENTED[document]) == []


def test_a_documented_command_that_nothing_executes_is_seen() -> None:
    block = Block("README.md", "More", ("make demo", "make coffee"))
    assert unexecuted([block], ["make tea", "psql -f sql/pgmq.sql"]) == ["make coffee", "make tea"]


def test_nothing_is_said_to_be_executed_that_is_not_documented() -> None:
    commands = [command for block in BLOCKS for command in block.commands]
    commands += [command for _, inline in DOCUMENTED.values() for command in inline]
    assert {*BY_TESTS, *BY_SCRIPTS} - {*commands} == set()
    assert {*BLOCKS_BY_TESTS} - {block.name for block in BLOCKS} == set()


@pytest.mark.parametrize("command", BY_SCRIPTS)
def test_a_script_runs_the_command(command: str) -> None:
    name, text = BY_SCRIPTS[command]
    lines = [line.strip() for line in (servers.ROOT / name).read_text().splitlines()]
    assert [line for line in lines if line == text or (text.endswith("=") and line.startswith(text))]


def test_make_test_all_is_of_every_major_version(checkout: pathlib.Path) -> None:
    assert "for major in 14 15 16 17 18;" in run("make", "--dry-run", "test-all", cwd=checkout)


# What a user may have in their environment for servers of their own.
HOSTILE = {
    "PGDATABASE": "nowhere",
    "PGUSER": "nobody",
    "PGHOST": "nowhere.invalid",
    "PGPORT": "1",
    "PGSERVICE": "nothing",
    "PGSERVICEFILE": "/nonexistent",
    "PGSYSCONFDIR": "/nonexistent",
    "PGPASSFILE": "/nonexistent",
    "PGDATA": "/nonexistent",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGSSLMODE": "verify-full",
    "PGCLIENTENCODING": "nonsense",
    "PGDATESTYLE": "nonsense",
    "PGTZ": "nonsense",
    "PSQL_PAGER": "false",
    "PYTHONPATH": "/nonexistent",
    "PYTHONOPTIMIZE": "1",
    "LANG": "ja_JP.eucJP",
    "LC_ALL": "de_DE.ISO-8859-1",
    "LC_MESSAGES": "fr_FR.UTF-8",
    "LANGUAGE": "fr",
}


def make(target: str, directory: pathlib.Path, *before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `make` says to somebody with this environment."""
    return subprocess.run(
        [*before, "make", target], cwd=directory, env={**os.environ, **environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip


def test_the_demo_in_a_hostile_environment(checkout: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name in (".psqlrc", ".postgresqlrc", ".pgpass", ".pg_service.conf"):
        (tmp_path / name).write_text("\\echo broken\n\\quit\n")
    home = {"HOME": str(tmp_path), "PSQLRC": str(tmp_path / ".psqlrc")}
    # What is kept in the home that this takes away is still found.
    for name, directory in (("PYENV_ROOT", "~/.pyenv"), ("XDG_CACHE_HOME", "~/.cache")):
        home[name] = os.environ.get(name) or os.path.expanduser(directory)
    # Those who want to be among themselves.
    done = make("demo", checkout, "sh", "-c", 'umask 077; exec "$@"', "sh", **HOSTILE, **home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("All as the README shows it.\n")


def test_the_demo_names_the_block_that_the_readme_has_wrong(checkout: pathlib.Path) -> None:
    readme = checkout / "README.md"
    right = readme.read_text()
    assert right.count("\n          4\n") == 1
    try:
        readme.write_text(right.replace("\n          4\n", "\n          3\n"))
        done = make("demo", checkout)
        readme.write_text(right.replace("select pgmq.delete('orders', 6);", "\\quit"))
        quitted = make("demo", checkout)
    finally:
        readme.write_text(right)
    assert done.returncode != 0
    assert "\n-          3\n+          4\n" in done.stdout
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("README.md")]
    assert re.fullmatch(
        r"README.md, line \d+ \(Archive one, .*\): psql printed something else than is shown there", told
    )
    assert quitted.returncode != 0
    assert "README.md, line" in quitted.stderr and "(See how full the queue is" in quitted.stderr


@dataclasses.dataclass(frozen=True)
class Stranger:
    """Somebody without privileges and with few programs, who has a checkout."""

    directory: pathlib.Path

    @property
    def programs(self) -> pathlib.Path:
        return self.directory / "bin"

    def has(self, *programs: str) -> None:
        for program in programs:
            # Not one from the home of another.
            found = shutil.which(program, path="/usr/local/bin:/usr/bin:/bin")
            assert found, program
            (self.programs / program).symlink_to(found)

    def has_own(self, program: str, script: str) -> None:
        (self.programs / program).write_text(f"#!/bin/sh\n{script}\n")
        (self.programs / program).chmod(0o755)

    def make(self, target: str, *hidden: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What `make` says where nothing is in the directories hidden."""
        nobody = pwd.getpwnam("nobody")
        hide = "".join(f"[ ! -d {path} ] || mount -t tmpfs none {path}\n" for path in hidden)
        before = ["unshare", "--mount", "sh", "-ec", f'{hide}exec "$@"', "sh"]
        before += ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        environment = {"PATH": str(self.programs), "HOME": str(self.directory / "home"), **environment}
        before += ["env", "-u", "PG_CONFIG", *(f"{name}={value}" for name, value in environment.items())]
        return make(target, self.directory / "checkout", *before)


@pytest.fixture
def stranger(checkout: pathlib.Path) -> Iterator[Stranger]:
    if not servers.is_root() or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("only root who may mount can be somebody else, on a machine with nothing on it")
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="pgmq-stranger-", dir="/tmp") as name:
        stranger = Stranger(pathlib.Path(name))
        shutil.copytree(checkout, stranger.directory / "checkout")
        (stranger.directory / "home").mkdir()
        stranger.programs.mkdir()
        stranger.has("sh", "make", "sed", "mv", "touch", "python3")
        for path in [stranger.directory, *stranger.directory.rglob("*")]:
            os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
        yield stranger


SERVERS = ("/usr/lib/postgresql", str(servers.ROOTS_CACHE))
NEWEST = max(servers.MAJORS)


def test_the_demo_of_somebody_without_privileges(stranger: Stranger) -> None:
    stranger.has("psql")
    done = stranger.make("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("All as the README shows it.\n")


def refuses(done: subprocess.CompletedProcess[str], *told: str) -> None:
    """What is missing is told in one line, and `make` adds that it failed."""
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    assert lines[:-1] == [*told]
    assert re.match(r"make: \*\*\* .*Error", lines[-1])


def test_without_python(stranger: Stranger) -> None:
    (stranger.programs / "python3").unlink()
    for target in ("demo", "test"):
        refuses(stranger.make(target), "python3 is missing: install Python 3")


def test_without_a_server_and_npm(stranger: Stranger) -> None:
    missing = f"PostgreSQL {NEWEST} with PL/Python is missing, and npm, which could get it: install either"
    refuses(stranger.make("demo", *SERVERS), missing)


def test_where_npm_gets_nothing(stranger: Stranger) -> None:
    lines = ("code ECONNREFUSED", "errno ECONNREFUSED", "FetchError: request failed, reason: refused", "    at Client")
    stranger.has_own("npm", "".join(f"echo 'npm error {line}' >&2; " for line in lines) + "exit 1")
    refuses(
        stranger.make("demo", *SERVERS),
        f"getting PostgreSQL {servers.EMBEDDED[NEWEST]}",
        f"npm could not get PostgreSQL {NEWEST}: FetchError: request failed, reason: refused",
    )


def test_without_a_place_for_a_server(stranger: Stranger) -> None:
    stranger.has_own("npm", "exit 1")
    refuses(
        stranger.make("demo", *SERVERS, HOME="/nonexistent"),
        f"PostgreSQL {NEWEST} with PL/Python cannot be kept in /nonexistent/.cache/pgmq/servers: "
        "Permission denied; XDG_CACHE_HOME names another place",
    )


def test_without_pl_python(stranger: Stranger) -> None:
    for name in ("bin", "share", "lib"):
        (stranger.directory / name).mkdir(exist_ok=True)
    (stranger.programs / "postgres").touch()
    where = {"bindir": "bin", "sharedir": "share", "pkglibdir": "lib"}
    cases = "".join(f"--{option}) echo {stranger.directory / name};; " for option, name in where.items())
    stranger.has_own("pg_config", f'case "$1" in --version) echo PostgreSQL 17.1;; {cases} esac')
    refuses(
        stranger.make("demo", *SERVERS),
        f"PostgreSQL 17.1 of {stranger.programs} has no PL/Python: install it (Debian: postgresql-plpython3-17)",
    )


def test_without_psql(stranger: Stranger) -> None:
    servers.get_embedded(NEWEST)
    missing = "psql is missing: install the PostgreSQL client (Debian: postgresql-client)"
    refuses(stranger.make("demo", SERVERS[0]), missing)


def test_where_pip_gets_nothing(stranger: Stranger) -> None:
    can_make = (
        subprocess.run([stranger.programs / "python3", "-c", "import ensurepip"], capture_output=True).returncode == 0
    )
    done = stranger.make("test", PIP_NO_INDEX="1")
    told = done.stderr.splitlines()[0]
    expected = "pip could not install what tests/requirements.txt names: No matching distribution found for "
    assert told.startswith(expected if can_make else "python3 cannot make a virtual environment: install python3-venv")
    refuses(done, told)
