"""The installed objects held against the published interface, tests/contract/*.tsv: adding to it is free."""

from __future__ import annotations

import csv
import pathlib

import psycopg
import pytest

HERE = pathlib.Path(__file__).parent / "contract"


def rows(name: str) -> list[dict[str, str]]:
    with open(HERE / name, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


FUNCTIONS = rows("functions.tsv")
RELATIONS = {row["relation"]: [] for row in rows("relations.tsv")}
for row in rows("relations.tsv"):
    RELATIONS[row["relation"]].append(row)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda row: f"{row['name']}({row['arguments']})")
def test_a_function_has_the_arguments_and_the_result_of_the_interface(
    db: psycopg.Connection, function: dict[str, str]
) -> None:
    with db.transaction():
        db.execute("set local search_path = ''")
        query = """
            select pg_get_function_result(oid),
                case provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end
            from pg_proc
            where pronamespace = 'pgmq'::regnamespace and proname = %s and pg_get_function_arguments(oid) = %s
        """
        found = db.execute(query, [function["name"], function["arguments"]]).fetchall()
    assert found == [(function["result"], function["volatility"])]


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_has_the_columns_of_the_interface(db: psycopg.Connection, queue: str, relation: str) -> None:
    with db.transaction():
        db.execute("set local search_path = ''")
        query = """
            select a.attname::text, format_type(a.atttypid, a.atttypmod),
                case when a.attnotnull then 'not null' else 'null' end,
                case
                    when a.attidentity = 'a' then 'identity always'
                    when a.attgenerated = 's' then 'generated stored'
                    else coalesce(pg_get_expr(d.adbin, d.adrelid), '')
                end
            from pg_attribute as a
            left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
            where a.attrelid = to_regclass(%s) and a.attnum > 0 and not a.attisdropped
            order by a.attnum
        """
        found = db.execute(query, ["pgmq." + relation.replace("<queue>", queue)]).fetchall()
    expected = [(row["column"], row["type"], row["nullable"], row["default"]) for row in RELATIONS[relation]]
    assert [list(column) for column in found] == [list(column) for column in expected]


def test_no_other_form_of_a_function_makes_a_call_ambiguous(db: psycopg.Connection) -> None:
    query = (
        "select pg_get_function_arguments(oid) from pg_proc where pronamespace = 'pgmq'::regnamespace and proname = %s"
    )
    with db.transaction():
        db.execute("set local search_path = ''")
        for name in {row["name"] for row in FUNCTIONS}:
            forms = {row["arguments"] for row in FUNCTIONS if row["name"] == name}
            assert {row[0] for row in db.execute(query, [name])} == forms
