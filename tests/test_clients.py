"""Published clients, unmodified and from their packages, do what their documentation shows.

Each client takes its tours in a process of its own, with its own packages, in a database of its own in which it creates
the extension. The packages are pinned beside the tours and kept in .venv-clients.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import psycopg
import pytest
import servers
from conftest import Database

TOURS = pathlib.Path(__file__).resolve().parent / "clients"
KEPT = servers.ROOT / ".venv-clients"


@contextlib.contextmanager
def missing(directory: pathlib.Path, key: str) -> Iterator[bool]:
    """Whether the directory has yet to be filled, by this run and no other; key says with what."""
    KEPT.mkdir(exist_ok=True)
    with open(KEPT / f"{directory.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = directory / "made"
        if made.exists() and made.read_text() == key:
            yield False
            return
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        yield True
        made.write_text(key)


def get(package: str, program: str, *command: str | os.PathLike, cwd: pathlib.Path) -> None:
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if run.returncode:
        lines = run.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if "error" in line.lower()]
        pytest.fail(f"{package} is missing, and {program} could not get it: {(errors or lines)[0]}", pytrace=False)


def python_packages(client: str) -> pathlib.Path:
    """The directory of a client's packages, from the network only if they are not there already."""
    requirements = TOURS / f"tour_{client}.txt"
    directory = KEPT / client
    with missing(directory, sys.version + requirements.read_text()) as empty:
        if empty:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            get(f"what {requirements.name} lists", "pip", *pip, "--target", directory, "-r", requirements, cwd=KEPT)
    return directory


def npm_packages() -> pathlib.Path:
    for program in ("node", "npm"):
        if not shutil.which(program):
            pytest.fail(f"{program} is missing: install Node.js with npm", pytrace=False)
    directory = KEPT / "npm"
    lock = TOURS / "npm" / "package-lock.json"
    with missing(directory, lock.read_text()) as empty:
        if empty:
            shutil.copy(TOURS / "npm" / "package.json", directory)
            shutil.copy(lock, directory)
            get("pgmq-js", "npm", "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=directory)
    return directory / "node_modules"


def take(database: Database, *command: str | os.PathLike, **environment: str) -> None:
    """Run a tour. The clients read their address from these variables, and some of them know TCP alone."""
    told = psycopg.conninfo.conninfo_to_dict(database.dsn)
    environment.update(
        PG_HOST="127.0.0.1",
        PG_PORT=told["port"],
        PG_USERNAME=told["user"],
        PG_PASSWORD="unused",
        PG_DATABASE=told["dbname"],
    )
    run = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    if run.returncode:
        pytest.fail(run.stdout, pytrace=False)


@pytest.fixture
def empty(make_database: Callable[..., Database]) -> Database:
    """A database without the extension."""
    return make_database(extension=False)


def python_tour(client: str, tour: str, form: str, database: Database) -> None:
    packages = python_packages(client)
    # -S keeps the packages of the tests out.
    take(database, sys.executable, "-S", TOURS / f"tour_{client}.py", tour, form, PYTHONPATH=str(packages))


@pytest.mark.parametrize("form", ["sync", "async", "sqlalchemy", "sqlalchemy_async"])
@pytest.mark.parametrize(
    "tour",
    [
        "messages",
        "transactions",
        "groups",
        "topics",
        "throttles",
        "notifications",
        "notifications_of_an_upper_case_name",
    ],
)
def test_pgmq_takes_its_tours(tour: str, form: str, empty: Database) -> None:
    python_tour("pgmq", tour, form, empty)


@pytest.mark.parametrize("form", ["sync", "async"])
@pytest.mark.parametrize("tour", ["messages", "reads", "transactions"])
def test_tembo_pgmq_python_takes_its_tours(tour: str, form: str, empty: Database) -> None:
    python_tour("tembo", tour, form, empty)


@pytest.mark.parametrize("form", ["sync", "async"])
@pytest.mark.parametrize("tour", ["messages", "transactions"])
def test_pgmq_sqlalchemy_takes_its_tours(tour: str, form: str, empty: Database) -> None:
    python_tour("sqlalchemy", tour, form, empty)


def test_pgmq_sqlalchemy_consumes_through_asyncpg(empty: Database) -> None:
    python_tour("sqlalchemy", "without_types", "asyncpg", empty)


@pytest.mark.clients_npm
def test_pgmq_js_takes_its_tour(empty: Database) -> None:
    take(empty, "node", TOURS / "npm" / "tour.js", NODE_PATH=str(npm_packages()))
