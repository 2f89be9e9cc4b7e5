"""Runs the rivals side by side, in rounds, and writes the report."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import click
import rich.console
import rich.progress
import servers

from benchmarks import ROOT, report
from benchmarks.measure import median
from benchmarks.rivals import Place, Rival, Unavailable, all_rivals
from benchmarks.scenarios import FULL, QUICK, Scenario, Size, run_scenario, sections

# The same for all rivals. A checkpoint in the middle of a run, and the full pages after it, would fall on one of them.
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "autovacuum": "on",
    "max_connections": 400,
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
}

console = rich.console.Console()


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    told = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30),
        "system": f"{platform.system()} {platform.release()}",
    }


def commit() -> str:
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def install(classes: list[type[Rival]], place: Place) -> tuple[list[Rival], dict[str, dict[str, str]]]:
    """Those that can be had here, and what the report says of each."""
    here, told = [], {}
    for cls in classes:
        rival = cls(place)
        about = {"promises": cls.promises, "lacks": cls.lacks, "better": cls.better}
        try:
            rival.install()
        except Unavailable as unavailable:
            about["missing"] = str(unavailable)
            console.print(f"[yellow]{cls.name} is left out:[/] {unavailable}", highlight=False)
        else:
            about["version"] = rival.version
            here.append(rival)
        told[cls.name] = about
    return here, told


def run_major(
    major: int,
    classes: list[type[Rival]],
    picked: dict[str, list[Scenario]],
    rounds: int,
    protocol: str,
    progress: rich.progress.Progress,
) -> Iterator[dict[str, Any]]:
    """All scenarios on one server; the results so far after each of them."""
    task = progress.add_task(f"PostgreSQL {major}", total=sum(map(len, picked.values())))
    reached = {"listen_addresses": "127.0.0.1", "port": servers.free_port()}
    with (
        tempfile.TemporaryDirectory() as directory,
        servers.cluster(servers.get_major(major), **SETTINGS, **reached) as cluster,
    ):
        place = Place(cluster, pathlib.Path(directory), protocol)
        here, told = install(classes, place)
        results: dict[str, Any] = {"server": cluster.installation.version, "rivals": told, "sections": {}}
        try:
            for heading, members in picked.items():
                section = results["sections"][heading] = {}
                for scenario in members:
                    outcome = run_scenario(
                        scenario,
                        here,
                        scenario.rounds(rounds),
                        lambda text: progress.update(task, description=f"PostgreSQL {major}  {text}"),
                    )
                    section[scenario.name] = {"commit": commit(), **outcome}
                    progress.advance(task)
                    tell(section[scenario.name])
                    yield results
        finally:
            for rival in here:
                rival.close()
            place.observer.close()


def tell(outcome: dict[str, Any]) -> None:
    """A line a rival, as soon as a scenario is done."""
    console.print(f"[bold]{outcome['title']}[/]", highlight=False)
    for name, samples in outcome["samples"].items():
        if name in outcome["errors"]:
            console.print(f"  {name:16} [red]{outcome['errors'][name]}[/]", highlight=False)
            continue
        rate, cpu, p50 = (median(report.values(samples, key)) for key in ("rate", "cpu_us", "p50_ms"))
        console.print(
            f"  {name:16} {report.number(rate):>9} messages/s {report.number(cpu):>9} us CPU"
            f" {report.number(p50):>8} ms",
            highlight=False,
        )


@click.command(help=__doc__)
@click.option("--full", is_flag=True, help="The full sizes, on 15 and 18: hours.")
@click.option("--major", "majors", type=click.Choice([str(m) for m in servers.MAJORS]), multiple=True)
@click.option("--scenario", "names", multiple=True, help="A scenario by its name, or those that begin so; repeatable.")
@click.option("--rival", "rival_names", multiple=True, help="A rival by its name; repeatable.")
@click.option("--rounds", type=click.IntRange(1), help="How often each rival runs each scenario.")
@click.option("--seconds", type=click.FloatRange(1), help="How long the timed runs take.")
@click.option("--protocol", type=click.Choice(["prepared", "extended", "simple"]), default="prepared")
@click.option("--output", type=click.Path(path_type=pathlib.Path), help="A directory for results and report.")
@click.option("--add", is_flag=True, help="Keep the results that are there of what does not run again.")
@click.option("--report", "report_only", is_flag=True, help="Write the report of the results that are there.")
def main(
    full: bool,
    majors: tuple[str, ...],
    names: tuple[str, ...],
    rival_names: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    protocol: str,
    output: pathlib.Path | None,
    add: bool,
    report_only: bool,
) -> None:
    # For the rivals, which read what libpq reads.
    servers.neutralize()
    output = output or ROOT / ("docs/benchmarks" if full or report_only else "results/benchmarks")
    file = output / "results.json"
    if report_only:
        report.write(json.loads(file.read_text()), output)
        return
    size: Size = FULL if full else QUICK
    if seconds:
        size = dataclasses.replace(size, seconds=seconds)
    picked = {
        heading: [scenario for scenario in members if not names or scenario.name.startswith(names)]
        for heading, members in sections(size).items()
    }
    known = all_rivals()
    unknown = set(rival_names) - set(known)
    if unknown or not any(picked.values()):
        raise click.UsageError(f"no such rival: {', '.join(sorted(unknown))}" if unknown else "no such scenario")
    classes = [known[name] for name in rival_names or known]
    rounds = rounds or size.rounds
    kept = json.loads(file.read_text())["servers"] if add and file.exists() else {}
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "settings": SETTINGS,
        "protocol": protocol,
        "servers": dict(kept),
    }
    output.mkdir(parents=True, exist_ok=True)
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TimeElapsedColumn())
    with rich.progress.Progress(*columns, console=console) as progress:
        for major in majors or (("15", "18") if full else ("15",)):
            for server in run_major(int(major), classes, picked, rounds, protocol, progress):
                results["servers"][major] = report.together(kept.get(major), server, sections(size))
                file.write_text(json.dumps(results, indent=1) + "\n")
    report.write(results, output)
    console.print(f"{output / 'README.md'}")


if __name__ == "__main__":
    try:
        main()
    except servers.Missing as missing:
        raise SystemExit(str(missing)) from missing
