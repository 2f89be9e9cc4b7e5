"""Build the install script out of plpy/ and sql/: python3 sql/build.py --extension > sql/pgmq--2.0.0.sql

With --extension it is the script of CREATE EXTENSION, with --psql one for psql alone, with --takeover that of
ALTER EXTENSION UPDATE from the reference implementation.

A module of plpy/ becomes a part of one function of the server, pgmq._load, which puts the functions of the extension
into GD once a session. Each that carries @sql("signature") gets an SQL function that finds it there, with its docstring
as the comment.
"""

import argparse
import ast
import hashlib
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
MODULES = ("interface", "compiler", "dispatch", "partman", "queues", "partitions", "topics", "notifications")
SCRIPTS = ("schema", "references", "names", "hints", "queues", "messages", "groups", "topics", "notifications")

HEADER = {
    "takeover": '\\echo Use "alter extension pgmq update" to load this file. \\quit\n',
    "extension": """\\echo Use "create extension pgmq cascade" to load this file. \\quit
set local search_path = pg_catalog, pg_temp;
""",
    "psql": """\\set ON_ERROR_STOP on
begin;
set local search_path = pg_catalog, pg_temp;
do $do$
begin
    if to_regclass('pgmq.meta') is not null then
        raise exception 'pgmq: this database has pgmq already'
            using errcode = 'duplicate_object',
                hint = 'docs/upgrading.md says how a later version takes the place of an earlier one.';
    end if;
end
$do$;
create extension if not exists plpython3u;
create schema if not exists pgmq;
""",
}
FOOTER = {"extension": "", "takeover": "", "psql": "commit;\n"}


def version() -> str:
    control = (HERE.parent / "pgmq.control").read_text()
    found = re.search(r"^default_version = '(.+)'$", control, re.M)
    if found is None:
        sys.exit("pgmq.control has no default_version")
    return found.group(1)


def dollar_quoted(tag: str, text: str) -> str:
    if f"${tag}$" in text:
        sys.exit(f"a source contains ${tag}$")
    return f"${tag}$\n{text.strip(chr(10))}\n${tag}$"


def literal_of_file(found: re.Match[str]) -> str:
    """A file as adjacent Python strings, a line each: PL/Python puts a tab before every line of its source."""
    lines = (HERE / found.group(1)).read_text().splitlines(keepends=True)
    return "(\n" + "".join(f"    {line!r}\n" for line in lines) + ")"


def module_source(name: str) -> str:
    """The source of a module without what the server has already: plpy, and the other modules."""
    source = (HERE.parent / "plpy" / f"{name}.py").read_text()
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            ours = node.names[0].name == "plpy"
        else:
            ours = isinstance(node, ast.ImportFrom) and node.module in MODULES
        if ours:
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    text = re.sub(r"\n{3,}", "\n\n\n", "\n".join(lines))
    return re.sub(r'"@file:(.+?)@"', literal_of_file, text)


def sql_functions(key: str) -> str:
    """An SQL function for each @sql of the modules."""
    parts = []
    constants: dict[str, str] = {}
    for name in MODULES:
        for node in ast.parse((HERE.parent / "plpy" / f"{name}.py").read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                constants.update({t.id: str(node.value.value) for t in node.targets if isinstance(t, ast.Name)})
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == "sql":
                    parts.append(
                        sql_function(key, node, [text_of(a, constants) for a in decorator.args], not decorator.keywords)
                    )
    return "\n".join(parts)


def text_of(argument: ast.expr, constants: dict[str, str]) -> str:
    """The text of an argument of @sql: a string, or the name of a constant of the modules."""
    return constants[argument.id] if isinstance(argument, ast.Name) else str(ast.literal_eval(argument))


def sql_function(key: str, node: ast.FunctionDef, decoration: list[str], is_pinned: bool) -> str:
    signature, clauses = [*decoration, ""][:2]
    head, _, result = signature.partition(") ")
    head += ")"
    arguments = ", ".join(a.arg for a in node.args.args)
    body = f"""
if {key!r} not in GD:
    plpy.execute("select pgmq._load()")
return GD[{key!r}][{node.name!r}]({arguments})
"""
    docstring = ast.get_docstring(node)
    if docstring is None:
        sys.exit(f"{node.name} has no docstring")
    comment = docstring.replace("'", "''")
    # What names a function in COMMENT is its name and the types of its arguments, without defaults.
    named = re.sub(r" default [^,)]+", "", head)
    return (
        f"create function pgmq.{head}\n{result}\nlanguage plpython3u\n"
        + ("set search_path = pg_catalog, pg_temp\n" if is_pinned else "")
        + (f"{clauses}\n" if clauses else "")
        + f"as {dollar_quoted('python', body)};\ncomment on function pgmq.{named} is\n'{comment}';\n"
    )


def loader(sources: str, key: str) -> str:
    body = f"{sources}\n\nGD[{key!r}] = FUNCTIONS\n"
    return (
        "create function pgmq._load()\nreturns void\nlanguage plpython3u\n"
        f"as {dollar_quoted('python', body)};\n"
        "comment on function pgmq._load() is 'Internal: puts the Python of the extension into the session.';\n"
    )


def signatures(script: str) -> list[str]:
    """The functions of a script as the catalogs show them: name, arguments, result, number of defaults."""
    found = re.findall(
        r"^create function pgmq\.(\w+)\((.*?)\)\nreturns (.*?)\n(?=language|volatile|stable|immutable)",
        script,
        re.M | re.S,
    )
    listed = []
    for name, arguments, result in found:
        named = " ".join(re.sub(r" default [^,\n]+", "", arguments).split())
        result = re.sub(r"^setof ", "SETOF ", re.sub(r"^table ?\(", "TABLE(", result))
        text = f"{name}({named}) {result}, {arguments.count(' default ')}"
        listed.append(text.replace("timestamptz", "timestamp with time zone"))
    return listed


def tables_where_missing(schema: str) -> str:
    """The script of the schema for a database that has some of it: what is there keeps its privileges."""
    parts = []
    for paragraph in re.split(r"\n\n(?=create (?:type|table) )", schema):
        statements = re.findall(r"^[a-z].*?;$", paragraph, re.M | re.S)
        statements = [s for s in statements if not s.startswith("grant usage on schema")]
        made = re.match(r"create (?:type|table) (pgmq\.\w+)", statements[0]) if statements else None
        if made is None:
            continue
        if made.group(1) in ("pgmq.topic_version", "pgmq.dispatch_lock"):
            # The reference has none: one that is there is not ours, and stops the script.
            parts.append("\n".join(statements))
            continue
        kept = ("alter ", "comment ", "create index ", "create unique index ", "select ")
        always = [s for s in statements if s.startswith(kept)]
        once = "\n".join(s for s in statements if s not in always)
        parts.append(
            f"do $do$\nbegin\nif to_regclass('{made.group(1)}') is null then\n{once}\nend if;\nend\n$do$;\n"
            + "\n".join(always)
        )
    return "\n\n".join(parts) + "\n"


def takeover_script(script: str, schema: str) -> str:
    """The script of an update from the reference, out of that of CREATE EXTENSION."""
    before, after = re.split(r"^-- @part \w+\n", (HERE / "takeover.sql").read_text(), flags=re.M)[1:]
    regex = re.search(r"compiled_regex text generated always as \(\n\s+(.*?)\n", schema)
    if regex is None:
        sys.exit("schema.sql has no compiled_regex")
    listed = ",\n        ".join(f"'{signature}'" for signature in signatures(script))
    before = before.replace("@signatures@", listed).replace("@compiled_regex@", regex.group(1))
    rest = re.sub(r"^create function ", "create or replace function ", script.removeprefix(schema), flags=re.M)
    return "\n".join([before, tables_where_missing(schema), rest, after])


def install_script(kind: str) -> str:
    sources = "\n\n".join(module_source(name) for name in MODULES)
    # A session may outlive an upgrade: what it has loaded is known by version and content.
    key = f"pgmq {version()} {hashlib.sha256(sources.encode()).hexdigest()[:8]}"
    script = "\n".join(
        [(HERE / f"{name}.sql").read_text() for name in SCRIPTS] + [loader(sources, key), sql_functions(key)]
    )
    if kind == "takeover":
        script = takeover_script(script, (HERE / "schema.sql").read_text())
    else:
        script = (HERE / "preamble.sql").read_text() + "\n" + script
    if kind == "psql":
        script = re.sub(r"^select pg_catalog\.pg_extension_config_dump.*\n", "", script, flags=re.M)
    return HEADER[kind] + "\n" + script + FOOTER[kind]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--extension", dest="kind", action="store_const", const="extension")
    kinds.add_argument("--psql", dest="kind", action="store_const", const="psql")
    kinds.add_argument("--takeover", dest="kind", action="store_const", const="takeover")
    sys.stdout.write(install_script(parser.parse_args().kind))


if __name__ == "__main__":
    main()
