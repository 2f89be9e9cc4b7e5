"""The README's tour on a throwaway server, held against what the README shows. Run by `make demo`."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
import subprocess
import sys

import servers

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(
    r"(?P<text>(?:(?!```).*\n)+)```sql\n(?P<sql>(?:(?!```).*\n)+)```\n```\n(?P<shown>(?:(?!```).*\n)+)```\n"
)
# psql prints it after each block: what came before is the block's.
MARK = "-- end of block --"


@dataclasses.dataclass(frozen=True)
class Block:
    """Statements of the tour, the text before them, and the results that the README shows."""

    line: int
    text: str
    sql: str
    shown: str

    @property
    def name(self) -> str:
        return f"README.md, line {self.line} ({' '.join(self.text.split())})"

    def difference(self, printed: str) -> list[str]:
        """The lines in which what psql printed differs, none if it does not."""
        shown = difflib.unified_diff(self.shown.splitlines(), printed.splitlines(), lineterm="", n=0)
        return [line for line in shown if not line.startswith(("---", "+++", "@@"))]


def tour() -> list[Block]:
    """The blocks of the section "Tour"."""
    readme = README.read_text(encoding="utf-8")
    before, title, rest = readme.partition("\n## Tour\n")
    section = rest.partition("\n## ")[0]
    found = list(BLOCK.finditer(section))
    if not found or 4 * len(found) != len(re.findall("^```", section, re.M)):
        sys.exit("README.md: in the tour a block of SQL is not followed by its results")
    lines = [(before + title + section[: match.start("sql")]).count("\n") + 1 for match in found]
    return [Block(line, match["text"].strip(), match["sql"], match["shown"]) for line, match in zip(lines, found)]


def play(command: list[str], environment: dict[str, str] | None = None) -> list[tuple[Block, str]]:
    """Each block with what psql prints for it, all in one session. The last is the one that psql did not survive."""
    blocks = tour()
    psql = subprocess.run(
        [*command, "--no-psqlrc", "--pset=pager=off"],
        input="".join(f"{block.sql}\\echo {MARK}\n" for block in blocks),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
    )  # fmt: skip
    *printed, rest = psql.stdout.split(f"{MARK}\n")
    if len(printed) < len(blocks):
        printed.append(f"{rest}psql ended with code {psql.returncode}\n")
    return list(zip(blocks, printed))


def differences(command: list[str], environment: dict[str, str] | None = None) -> dict[str, list[str]]:
    """The names of the blocks for which psql prints something else than the README shows, and in which lines."""
    found = {block.name: block.difference(printed) for block, printed in play(command, environment)}
    return {name: lines for name, lines in found.items() if lines}


def main() -> None:
    installation = servers.get_any()
    psql = servers.find_psql(installation)
    print(f"PostgreSQL {installation.version} of {installation.bin}", flush=True)
    wrong = []
    with servers.cluster(installation) as cluster:
        for block, printed in play([psql], cluster.environment):
            print("", *(f"-- {line}" for line in block.text.splitlines()), sep="\n")
            print(*(f"=> {line}" for line in block.sql.splitlines()), printed, sep="\n", end="", flush=True)
            difference = block.difference(printed)
            if difference:
                wrong.append(block.name)
                print("The README shows (-), psql printed (+):", *difference, sep="\n", flush=True)
    if wrong:
        sys.exit("\n".join(f"{name}: psql printed something else than is shown there" for name in wrong))
    print("All as the README shows it.")


if __name__ == "__main__":
    try:
        main()
    except servers.Missing as missing:
        sys.exit(str(missing))
