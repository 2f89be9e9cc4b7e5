"""The README tells the truth: its tour gives the results that it shows."""

import os
import pathlib
from collections.abc import Callable

import demo
import psycopg
import servers
from conftest import Database


def test_the_tour_gives_the_results_that_the_readme_shows(make_database: Callable[..., Database]) -> None:
    installation = servers.Installation("", pathlib.Path(os.environ["PGMQ_TEST_BIN"]), pathlib.Path(), pathlib.Path())
    psql = [servers.find_psql(installation), make_database(extension=False).dsn]
    assert demo.differences(psql) == {}


def test_the_table_of_functions_names_every_function(db: psycopg.Connection) -> None:
    names = db.execute(
        r"""
        select distinct proname
        from pg_proc
        where pronamespace = 'pgmq'::regnamespace and proname !~ '^_|\$'
            and prorettype <> 'trigger'::regtype and proname not in ('create_non_partitioned', 'detach_archive')
        """
    ).fetchall()
    text = demo.README.read_text().partition("\n## Functions\n")[2].partition("\n## ")[0]
    assert [name for (name,) in names if f"`{name}(" not in text] == []
