"""The benchmarks run, and their report says what the results say."""

from __future__ import annotations

import copy
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import servers

sys.path.insert(0, str(servers.ROOT))

from benchmarks import report
from benchmarks.measure import Point, cpu_seconds, median_ratio, percentile
from benchmarks.pgbench import Outcome, Transaction
from benchmarks.rivals import Place, Worker
from benchmarks.rivals.sql import BareTable, Ours, Reference, SqlRival, payload_of
from benchmarks.scenarios import FULL, QUICK, TARGETS, TINY, Scenario, run_scenario, sections

SCENARIOS = {scenario.name: scenario for section in sections(TINY).values() for scenario in section}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    parts = psycopg.conninfo.conninfo_to_dict(os.environ["PGMQ_TEST_DSN"])
    installation = servers.Installation("0", pathlib.Path(os.environ["PGMQ_TEST_BIN"]), pathlib.Path(), pathlib.Path())
    cluster = servers.Cluster(installation, pathlib.Path(parts["host"]), int(parts["port"]), parts["user"])
    return Place(cluster, tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def rivals(place: Place, admin: psycopg.Connection) -> Iterator[list[SqlRival]]:
    found = [Ours(place), Reference(place), BareTable(place)]
    for rival in found:
        rival.install()
    yield found
    for rival in found:
        rival.close()
        admin.execute(f"drop database {rival.database} with (force)")
    place.observer.close()


@pytest.mark.parametrize("name", ["durable_send", "delete_10", "cycle_4"])
def test_a_scenario_measures_every_rival_that_supports_it(rivals: list[SqlRival], name: str) -> None:
    outcome = run_scenario(SCENARIOS[name], rivals, 1)
    assert outcome["errors"] == {}
    assert list(outcome["samples"]) == ["pgmq", "reference", "bare table"]
    for (sample,) in outcome["samples"].values():
        assert sample["rate"] > 0
        assert sample["cpu_us"] > 0
        assert sample["wal_bytes"] > 100
        assert 0 <= sample["p50_ms"] <= sample["p99_ms"]


def test_what_the_bare_table_has_not_is_not_asked_of_it(rivals: list[SqlRival]) -> None:
    outcome = run_scenario(SCENARIOS["read_grouped_head_small"], rivals, 1)
    assert outcome["errors"] == {}
    assert list(outcome["samples"]) == ["pgmq", "reference"]


def test_a_failure_is_said_in_one_line_and_leaves_no_queue(rivals: list[SqlRival]) -> None:
    ours = rivals[0]

    def fail(rival: SqlRival) -> None:
        rival.bench("select pgmq.delete('no such queue', 1);\n", transactions=1)

    outcome = run_scenario(Scenario("fails", "a failure", "send", fail), [ours], 2)
    assert outcome["samples"] == {"pgmq": []}
    assert "does not exist" in outcome["errors"]["pgmq"]
    assert "\n" not in outcome["errors"]["pgmq"]
    assert ours.connection.execute("select count(*) from pgmq.meta").fetchone() == (0,)


def test_the_sizes_have_the_same_scenarios_and_every_target_has_one() -> None:
    names = [[scenario.name for section in sections(size).values() for scenario in section] for size in (QUICK, FULL)]
    assert names[0] == names[1] == list(SCENARIOS)
    assert {target.scenario for target in TARGETS} <= set(names[0])


@pytest.mark.parametrize("size", [20, 1_000, 64_000])
def test_a_payload_has_the_size_asked_for(size: int) -> None:
    assert len(payload_of(size)) == size


def test_the_cpu_time_of_a_process_that_has_ended_counts() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        seconds = cpu_seconds([process.pid])
        process.stdin.write("\n")
    assert 0.29 < seconds < 3


def test_ratios_are_taken_round_by_round() -> None:
    # The machine was ten times as slow in the second round.
    assert median_ratio([2, 20, 4], [1, 10, 2]) == 2
    assert median_ratio([None, 6], [1, 2]) == 3
    assert median_ratio([], []) is None


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([5.0], 0.5) == 5


class Line(Worker):
    """A worker in a line: it answers all but the cycle, which ends it."""

    name = "line"
    supports = frozenset(("send", "cycle"))
    in_postgres = False

    def install(self) -> None:
        answer = '{"ok": true, "messages": 5, "seconds": 0.5, "latency_ms": {"p50": 1.5, "p99": 2.5}}'
        script = f"import sys\nfor line in sys.stdin:\n if 'cycle' in line: break\n print({answer!r}, flush=True)"
        self.dsn = ""
        self.command = [sys.executable, "-c", script]

    def processes(self) -> list[int]:
        return [self.process.pid]


def test_a_worker_answers_a_line_at_a_time(place: Place) -> None:
    worker = Line(place)
    worker.install()
    worker.setup(20)
    sample = worker.send(5, 1, 1)
    worker.teardown()
    assert (sample.rate, sample.p50_ms, sample.p99_ms, sample.wal_bytes) == (10, 1.5, 2.5, None)


def test_a_worker_that_ends_is_reported(place: Place) -> None:
    worker = Line(place)
    worker.install()
    outcome = run_scenario(SCENARIOS["durable_cycle_4"], [worker], 1)
    assert "its worker ended" in outcome["errors"]["line"] or "Broken pipe" in outcome["errors"]["line"]


def sample(rate: float, cpu_us: float, **figures: float) -> dict[str, Any]:
    return {
        "rate": rate,
        "cpu_us": cpu_us,
        "wal_bytes": 600.0,
        "p50_ms": 0.5,
        "p99_ms": 2.0,
        "figures": figures,
        "series": [
            {"seconds": second, "held": float(second < 3), "rate": rate, "cpu_us": cpu_us, "p50_ms": 0.5, "p99_ms": 1.0}
            for second in (1, 2, 3, 4)
        ],
    }


def outcome(title: str, **samples: list[dict[str, Any]]) -> dict[str, Any]:
    found = {key.replace("_", " "): value for key, value in samples.items()}
    return {"title": title, "commit": "abc1234", "samples": found, "errors": {}}


ABOUT = {"version": "1", "promises": "This.", "lacks": "That.", "better": "Other."}
RESULTS: dict[str, Any] = {
    "date": "2026-01-02",
    "machine": {"processor": "P", "cores": 2, "memory_gb": 4, "system": "Linux"},
    "settings": {"fsync": "on"},
    "protocol": "prepared",
    "servers": {
        "15": {
            "server": "15.1",
            "rivals": {
                "pgmq": ABOUT,
                "reference": ABOUT,
                "bare table": ABOUT,
                "PgQ": {**ABOUT, "missing": "no package"},
            },
            "sections": {
                "One call": {
                    "send": outcome("send", pgmq=[sample(30, 10), sample(3, 100)], reference=[sample(10, 25)] * 2)
                },
                "Many": {
                    "cycle_16": outcome("cycle, 16", pgmq=[sample(60, 1)] * 2, bare_table=[sample(100, 1)] * 2),
                    "cycle_64": outcome("cycle, 64", pgmq=[sample(70, 1)] * 2, bare_table=[sample(100, 1)] * 2),
                },
                "Around": {
                    "held_xmin": outcome("held", pgmq=[sample(5, 5, flatness=1.25)]),
                    "readers": outcome("readers", pgmq=[sample(5, 5, kept=0.97)]),
                },
            },
        }
    },
}


def test_the_report_holds_what_was_reached_against_what_was_wanted() -> None:
    lines = [line for line in report.targets(RESULTS) if line.startswith("| ") and "at " in line]
    reached = {(line.split(" | ")[1], line.split(" | ")[3]): line.split(" | ")[4] for line in lines}
    assert reached == {
        # The median of 2.5 and 0.25: round by round.
        ("send", "at least 1.8"): "**1.38** |",
        ("cycle, 64", "at least 0.65"): "0.7 |",
        ("held", "at most 1.15"): "**1.25** |",
        ("readers", "at least 0.95"): "0.97 |",
        ("cycle, 16", "at least 0.7"): "**0.6** |",
    }


def test_the_report_says_who_is_missing_and_what_failed() -> None:
    results = copy.deepcopy(RESULTS)
    broken = results["servers"]["15"]["sections"]["One call"]["send"]
    broken["samples"]["reference"], broken["errors"]["reference"] = [], "out of luck"
    text = report.generated(results, {})
    assert "- PgQ was left out on PostgreSQL 15: no package." in text
    assert "failed: out of luck" in text


def test_the_same_results_make_the_same_files_and_leave_the_page_alone(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"# Mine\n\n{report.BEGIN}\nwhat was there\n{report.END}\n\nMine too\n")
    report.write(RESULTS, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    report.write(RESULTS, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert set(first) == {"README.md", "cycle_64-15.svg", "held_xmin-15.svg"}
    text = page.read_text()
    assert text.startswith("# Mine\n")
    assert text.endswith("\n\nMine too\n")
    assert "what was there" not in text
    assert "![Full cycles a second by the number of clients](cycle_64-15.svg)" in text


def test_what_runs_again_takes_the_place_of_what_was_there() -> None:
    kept = RESULTS["servers"]["15"]
    again = {**outcome("send", pgmq=[sample(7, 7)]), "commit": "def5678"}
    new = {"server": "15.2", "rivals": {"pgmq": {**ABOUT, "version": "2"}}, "sections": {"One call": {"send": again}}}
    found = report.together(kept, new, sections(TINY))
    assert report.outcomes(found) == {**report.outcomes(kept), "send": again}
    assert list(report.outcomes(found)) == ["send", "cycle_16", "cycle_64", "held_xmin", "readers"]
    assert (found["server"], found["rivals"]["pgmq"]["version"], found["rivals"]["reference"]) == ("15.2", "2", ABOUT)
    assert "at commit def5678, abc1234 on" in report.generated({**RESULTS, "servers": {"15": found}}, {})


def test_the_page_has_the_markers() -> None:
    text = (servers.ROOT / "docs/benchmarks/README.md").read_text()
    assert text.index(report.BEGIN) < text.index(report.END)


def test_calls_too_long_to_cut_are_measured_whole() -> None:
    points = [Point(second, second / 2, second * 100) for second in range(12)]
    short = Outcome([Transaction(0, 1 + i / 10, 90) for i in range(90)], points)
    assert short.steady(1).messages == 70
    long = Outcome([Transaction(0, 4, 3_500), Transaction(0, 8, 3_900)], points)
    sample = long.steady(1, 10)
    assert (sample.messages, sample.seconds, sample.cpu_us) == (20, 7.5, 275_000)
