"""What a newcomer has: the commands of the documentation, a fresh checkout, the distribution, a server without pgmq.

Few servers come with PGXS. What is installed is SQL, so one PGXS serves them all: it is told to put the files where the
server of this run looks for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import servers

META = json.loads((servers.ROOT / "META.json").read_text())
NAME = f"{META['name']}-{META['version']}"
PROGRAMS = ("make", "psql", "pgxn", "docker", "git")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of commands."""

    document: str
    section: str
    commands: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.document}, {self.section}"


def documented(document: str) -> tuple[list[Block], list[str]]:
    """The blocks of commands of a document, and the commands that its text names."""
    section, language, fenced = "", None, []
    blocks, inline, text = [], [], []
    for line in (servers.ROOT / document).read_text().splitlines():
        if line.startswith("```"):
            if language == "sh":
                blocks.append(Block(document, section, tuple(filter(None, fenced))))
            language, fenced = (line[3:], []) if language is None else (None, [])
        elif language is None:
            text.append(line)
            if line.startswith("#"):
                section = line.strip("# ")
        elif language == "sh":
            # A comment stands alone or apart from the command.
            fenced.append(re.sub(r"(^|\s\s+)#.*", "", line).strip())
        else:
            assert line.split(" ")[0] not in PROGRAMS, f"{document}: not marked as sh: {line}"
    for span in re.findall(r"`([^`]+)`", "\n".join(text)):
        words = [word for word in span.split() if not re.match(r"\w+=", word)]
        if len(words) > 1 and words[0] in PROGRAMS:
            inline.append(" ".join(span.split()))
    return blocks, inline


def run(*command: str | os.PathLike, **options: Any) -> str:
    """What a command prints; where it fails, the test says what it printed."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A git repository whose one commit is this one's files as they are now."""
    directory = tmp_path_factory.mktemp("checkout")
    for name in run("git", "ls-files", "-z", cwd=servers.ROOT).strip("\0").split("\0"):
        if (servers.ROOT / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(servers.ROOT / name, directory / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "all"]):
        run("git", *command, cwd=directory)
    return directory


@pytest.fixture(scope="session")
def distribution(checkout: pathlib.Path) -> pathlib.Path:
    """The zip that `make dist` builds."""
    run("make", "dist", cwd=checkout)
    return checkout / f"{NAME}.zip"


def find_pgxs() -> str:
    """A pg_config whose server headers, and with them PGXS, are here."""

    def look() -> Iterator[str]:
        told = [os.environ.get("PG_CONFIG") or "pg_config"]
        for path in [*told, *map(str, pathlib.Path("/usr/lib/postgresql").glob("*/bin/pg_config"))]:
            program = shutil.which(path)
            if program and pathlib.Path(servers.output(program, "--pgxs")).exists():
                yield program

    found = next(look(), None)
    if found is None and servers.has_apt():
        servers.apt_install("postgresql-server-dev-all", "make")
        found = next(look(), None)
    if found is None:
        raise servers.Missing(
            "PGXS is missing: install PostgreSQL's server headers (Debian: postgresql-server-dev-all)"
        )
    return found


@dataclasses.dataclass(frozen=True)
class Site:
    """A running server that has never seen the extension, and the programs that lead to it."""

    cluster: servers.Cluster
    programs: pathlib.Path

    @property
    def pg_config(self) -> pathlib.Path:
        return self.programs / "pg_config"

    @property
    def environment(self) -> dict[str, str]:
        path = [str(self.programs), str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
        return {**self.cluster.environment, "PATH": os.pathsep.join(path)}

    @property
    def extension_files(self) -> list[str]:
        return sorted(path.name for path in (self.cluster.installation.share / "extension").glob("pgmq*"))

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(self.cluster.dsn(database), autocommit=True)

    def type(self, command: str, cwd: pathlib.Path, **environment: str) -> str:
        """What a command prints to somebody who types it here."""
        return run("bash", "-c", command, cwd=cwd, env={**self.environment, **environment}, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def make_site(config: pytest.Config, programs: pathlib.Path) -> Iterator[Site]:
    pgxs = find_pgxs()
    major = config.option.major
    installation = servers.get_major(major) if major else servers.newest()
    with servers.cluster(installation) as cluster:
        mirror = cluster.installation
        for path in (mirror.share / "extension").glob("pgmq*"):
            path.unlink()
        for directory in (mirror.bin, programs):
            (directory / "psql").symlink_to(servers.find_psql(installation))
        told = {
            "version": f"PostgreSQL {mirror.version}",
            "bindir": mirror.bin,
            "sharedir": mirror.share,
            "libdir": mirror.package_lib,
            "pkglibdir": mirror.package_lib,
        }
        pg_config = programs / "pg_config"
        pg_config.write_text(
            '#!/bin/sh\ncase "$1" in\n'
            + "".join(f"--{option}) echo '{value}' ;;\n" for option, value in told.items())
            + f'*) exec {pgxs} "$@" ;;\nesac\n'
        )
        pg_config.chmod(0o755)
        yield Site(cluster, programs)


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with make_site(request.config, tmp_path_factory.mktemp("programs")) as made:
        yield made
