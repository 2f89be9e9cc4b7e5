"""The README's tour on a throwaway server: each statement with psql's own result. Run by `make demo`."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import servers

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"


def tour(language: str = "sql") -> list[str]:
    """The blocks of the section "Tour": the SQL, or with language "" the results shown."""
    section = README.read_text().partition("\n## Tour\n")[2].partition("\n## ")[0]
    return [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.M | re.S) if name == language]


def run(cluster: servers.Cluster, psql: str) -> None:
    arguments = [psql, "-X", "--echo-queries", "--no-psqlrc", "--pset=pager=off", "--set=ON_ERROR_STOP=on"]
    sys.stdout.flush()
    subprocess.run(arguments, input="".join(tour()), text=True, check=True, env=cluster.environment)


def main() -> None:
    installation = servers.get_any()
    psql = servers.find_psql(installation)
    print(f"PostgreSQL {installation.version} of {installation.bin}", flush=True)
    with servers.cluster(installation) as cluster:
        run(cluster, psql)


if __name__ == "__main__":
    try:
        main()
    except servers.Missing as missing:
        sys.exit(str(missing))
    except subprocess.CalledProcessError:
        sys.exit("the tour failed: see above")
