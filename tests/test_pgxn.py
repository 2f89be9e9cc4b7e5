"""The distribution for PGXN, as a stranger gets it: built from git, installed with PGXS by pgxnclient, and removed."""

from __future__ import annotations

import copy
import os
import pathlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import servers
from newcomer import META, NAME, Site, run

REFERENCE_VERSIONS = ("1.10.0", "1.10.1", "1.11.0", "1.11.1", "1.12.0", "1.12.1", "1.13.0", "1.13.1")
# CREATE EXTENSION, and the updates from the reference implementation.
SCRIPTS = [f"pgmq--{start}{META['version']}.sql" for start in ("", *(f"{version}--" for version in REFERENCE_VERSIONS))]

# The PGXN Meta Spec 1.0 as a JSON schema. No package of Python's knows it; this is written from its text.
# fmt: off
LICENSES = [
    "agpl_3", "apache_1_1", "apache_2_0", "artistic_1", "artistic_2", "bsd", "freebsd", "gfdl_1_2", "gfdl_1_3",
    "gpl_1", "gpl_2", "gpl_3", "lgpl_2_1", "lgpl_3_0", "mit", "mozilla_1_0", "mozilla_1_1", "openssl", "perl_5",
    "postgresql", "qpl_1_0", "ssleay", "sun", "zlib", "open_source", "restricted", "unrestricted", "unknown",
]
# fmt: on
SEMVER = r"(0|[1-9][0-9]*)[.](0|[1-9][0-9]*)[.](0|[1-9][0-9]*)(-[A-Za-z][0-9A-Za-z-]*)?"
RANGE = rf"((==|!=|<=|>=|<|>) *)?({SEMVER}|0)"
TERM = r"^[^\s/\\\x00-\x1f\x7f]{2,}$"
TEXT = {"type": "string", "minLength": 1}
URL = {"type": "string", "pattern": "^[a-z][a-z0-9+.-]*://[^ ]+$"}
TEXTS = {"type": "array", "minItems": 1, "items": TEXT}
CUSTOM = {"^[xX]_": {}}


def map_of(required: str = "", **properties: Any) -> dict[str, Any]:
    """A map with these keys, and any that begin with x_, which the specification leaves to the author."""
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "patternProperties": CUSTOM,
        "additionalProperties": False,
    }


VERSION = {"type": "string", "pattern": f"^{SEMVER}$"}
PREREQUISITES = {
    "type": "object",
    "patternProperties": {
        **CUSTOM,
        TERM: {"oneOf": [{"const": 0}, {"type": "string", "pattern": f"^{RANGE}(, *{RANGE})*$"}]},
    },
    "additionalProperties": False,
}
RELATIONS = map_of(**dict.fromkeys(("requires", "recommends", "suggests", "conflicts"), PREREQUISITES))
EXTENSION = map_of("file version", file=TEXT, version=VERSION, abstract=TEXT, docfile=TEXT)
SCHEMA = map_of(
    "abstract license maintainer meta-spec name provides version",
    **{
        "abstract": TEXT,
        "description": TEXT,
        "generated_by": TEXT,
        "license": {
            "oneOf": [
                {"enum": LICENSES},
                {"type": "array", "minItems": 1, "items": {"enum": LICENSES}},
                {"type": "object", "minProperties": 1, "additionalProperties": URL},
            ]
        },
        "maintainer": {"oneOf": [TEXT, TEXTS]},
        "meta-spec": map_of("version", version={"type": "string", "pattern": "^1[.]0[.][0-9]+$"}, url=URL),
        "name": {"type": "string", "pattern": TERM},
        "no_index": map_of(file=TEXTS, directory=TEXTS),
        "prereqs": map_of(**dict.fromkeys(("configure", "build", "test", "runtime", "develop"), RELATIONS)),
        "provides": {
            "type": "object",
            "minProperties": 1,
            "patternProperties": {TERM: EXTENSION},
            "additionalProperties": False,
        },
        "release_status": {"enum": ["stable", "testing", "unstable"]},
        "resources": map_of(
            homepage=URL,
            bugtracker=map_of(web=URL, mailto={"type": "string", "pattern": "^[^@ ]+@[^@ ]+$"}),
            repository=map_of(url=URL, web=URL, type={"type": "string", "pattern": "^[a-z]+$"}),
        ),
        "tags": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "pattern": r"^[^/\\\x00-\x1f\x7f]{1,255}$"},
        },
        "version": VERSION,
    },
)


def errors_of(meta: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(meta)]


def test_meta_json_is_valid_against_the_pgxn_meta_spec() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert errors_of(META) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda meta: meta.pop("license"),
        lambda meta: meta.update(license="postgres"),
        lambda meta: meta.update(version="2.0"),
        lambda meta: meta.update(name="p"),
        lambda meta: meta.update(maintainer=[]),
        lambda meta: meta.update(homepage="https://example.com"),
        lambda meta: meta.update(tags=["queue/fifo"]),
        lambda meta: meta["provides"]["pgmq"].pop("file"),
        lambda meta: meta["prereqs"]["runtime"]["requires"].update(PostgreSQL="14"),
        lambda meta: meta["meta-spec"].update(version="2.0.0"),
    ],
)
def test_the_schema_refuses_what_the_spec_does(spoil: Callable[[dict[str, Any]], object]) -> None:
    meta = copy.deepcopy(META)
    spoil(meta)
    assert len(errors_of(meta)) == 1


def test_one_version_in_meta_json_and_in_the_control_file() -> None:
    control = (servers.ROOT / "pgmq.control").read_text()
    version = re.search(r"^default_version = '(.+)'$", control, re.M).group(1)
    provided = META["provides"]["pgmq"]
    assert [META["version"], provided["version"], provided["file"]] == [version, version, f"sql/pgmq--{version}.sql"]


def test_the_distribution_holds_what_git_has_and_the_install_scripts(
    checkout: pathlib.Path, distribution: pathlib.Path
) -> None:
    expected = {
        *run("git", "ls-files", cwd=checkout).splitlines(),
        *(f"sql/{name}" for name in SCRIPTS),
        "sql/pgmq.sql",
    }
    with zipfile.ZipFile(distribution) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/")]
        assert sorted(files) == sorted(f"{NAME}/{name}" for name in expected)
        for kind, name in (("--extension", f"sql/pgmq--{META['version']}.sql"), ("--psql", "sql/pgmq.sql")):
            built = run(sys.executable, checkout / "sql/build.py", kind)
            assert archive.read(f"{NAME}/{name}").decode() == built
        provided = META["provides"]["pgmq"]
        assert {f"{NAME}/{provided['file']}", f"{NAME}/{provided['docfile']}"} <= set(files)


def test_what_is_not_committed_stops_make_dist(checkout: pathlib.Path, distribution: pathlib.Path) -> None:
    before = distribution.read_bytes()
    control = checkout / "pgmq.control"
    kept = control.read_text()
    control.write_text(kept + "# changed\n")
    try:
        done = subprocess.run(["make", "dist"], cwd=checkout, capture_output=True, text=True)
    finally:
        control.write_text(kept)
    assert done.returncode != 0
    assert "commit first" in done.stderr
    assert distribution.read_bytes() == before


@pytest.fixture
def unpacked(distribution: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The distribution, unpacked so that its install scripts are older than what they are made from."""
    with zipfile.ZipFile(distribution) as archive:
        archive.extractall(tmp_path)
    for path in (tmp_path / NAME / "sql").glob("pgmq*.sql"):
        os.utime(path, (0, 0))
    return tmp_path / NAME


def test_nothing_is_built_from_the_distribution(unpacked: pathlib.Path) -> None:
    before = (unpacked / f"sql/pgmq--{META['version']}.sql").stat()
    run("make", "PYTHON=false", "all", cwd=unpacked)
    assert (unpacked / f"sql/pgmq--{META['version']}.sql").stat() == before


def test_pgxn_install_load_unload_and_uninstall(site: Site, distribution: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def pgxn(command: str, *arguments: str) -> None:
        # PYTHON=false: a target may have none.
        site.type(
            f"pgxn {command} --pg_config {site.pg_config} {' '.join(arguments)} {distribution}",
            tmp_path,
            PYTHON="false",
        )

    assert site.extension_files == []
    pgxn("install")
    assert site.extension_files == sorted([*SCRIPTS, "pgmq.control"])

    with site.connect() as connection:
        connection.execute("create extension plpython3u")
        pgxn("load", "--dbname postgres")
        loaded = connection.execute("select extversion from pg_extension where extname = 'pgmq'").fetchall()
        assert loaded == [(META["version"],)]
        connection.execute("select pgmq.create('orders')")
        connection.execute("select pgmq.send('orders', '{\"n\": 1}')")
        assert connection.execute("select message from pgmq.pop('orders')").fetchall() == [({"n": 1},)]

        pgxn("unload", "--dbname postgres")
        assert connection.execute("select count(*) from pg_extension where extname = 'pgmq'").fetchone() == (0,)
        # Queues are the user's.
        assert connection.execute("select count(*) from pgmq.q_orders").fetchone() == (0,)

    pgxn("uninstall")
    assert site.extension_files == []


def test_make_installcheck_in_the_unpacked_distribution(site: Site, unpacked: pathlib.Path) -> None:
    site.type("make install", unpacked, PYTHON="false")
    told = site.type("make installcheck", unpacked, PYTHON="false")
    assert re.search(r"^.*\bsmoke\b.*\bok\b", told, re.M), told
    assert re.search(r"All 1 tests passed", told), told
