"""The report of a run: tables in Markdown and plots, out of results.json alone, so that they can be made again."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.measure import median, median_ratio
from benchmarks.scenarios import CROWD, TARGETS, Scenario, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, REFERENCE = "pgmq", "reference"
BEGIN, END = "<!-- made by python -m benchmarks --report -->", "<!-- end of what is made -->"
# Told apart without colours by their marks, and with most kinds of colour blindness by their colours.
STYLES = {
    "pgmq": ("#0072b2", "o"),
    "reference": ("#d55e00", "s"),
    "bare table": ("#777777", "^"),
    "PgQ": ("#009e73", "v"),
}

Results = Mapping[str, Any]
# By the scenario after which they stand: the file and what it shows.
Plots = Mapping[str, tuple[str, str]]


def number(value: float | None) -> str:
    """Three significant digits, thousands parted."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def values(samples: Sequence[Mapping[str, Any] | None], key: str) -> list[float | None]:
    """One of the measures, or of the scenario's own figures, round by round."""
    return [sample.get(key, sample["figures"].get(key)) if sample else None for sample in samples]


def outcomes(server: Results) -> dict[str, Any]:
    return {name: outcome for section in server["sections"].values() for name, outcome in section.items()}


def together(kept: Results | None, new: Results, order: Mapping[str, Sequence[Scenario]]) -> dict[str, Any]:
    """The results of a server with those of an earlier run, as far as they are not replaced."""
    if kept is None:
        return dict(new)
    found = {**outcomes(kept), **outcomes(new)}
    return {
        "server": new["server"],
        "rivals": {**kept["rivals"], **new["rivals"]},
        "sections": {
            heading: {scenario.name: found[scenario.name] for scenario in members if scenario.name in found}
            for heading, members in order.items()
        },
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    marks = ["---" if column < numbers_from else "---:" for column in range(len(head))]
    return [line(head), line(marks), *map(line, rows), ""]


def ratio(outcome: Mapping[str, Any], name: str, other: str, key: str, *, is_cost: bool) -> float | None:
    """How many times as much of a measure one has as the other, or of a cost how many times as little."""
    samples = outcome["samples"]
    if not (samples.get(name) and samples.get(other)):
        return None
    pair = values(samples[name], key), values(samples[other], key)
    return median_ratio(*(reversed(pair) if is_cost else pair))


def reached(server: Results, target: Target) -> float | None:
    outcome = outcomes(server).get(target.scenario)
    if outcome is None or not outcome["samples"].get(OURS):
        return None
    if target.against is None:
        return median(values(outcome["samples"][OURS], target.measure))
    key = {"cpu": "cpu_us", "rate": "rate", "wal": "wal_bytes"}[target.measure]
    return ratio(outcome, OURS, target.against, key, is_cost=target.measure == "cpu")


def measured_in(target: Target) -> str:
    if target.against is None:
        told = {"flatness": "CPU a message, last to first", "kept": "throughput, with readers to without"}
        return told[target.measure]
    return {
        "cpu": f"CPU, {target.against} to ours",
        "rate": f"throughput, ours to {target.against}",
        "wal": f"WAL, ours to {target.against}",
    }[target.measure]


def reached_text(value: float, target: Target) -> str:
    return number(value) if target.is_met(value) else f"**{number(value)}**"


def targets(results: Results) -> list[str]:
    majors = list(results["servers"])
    rows = []
    for target in TARGETS:
        found = [reached(results["servers"][major], target) for major in majors]
        ran = [outcomes(results["servers"][major]).get(target.scenario) for major in majors]
        outcome = next(filter(None, ran), None)
        if outcome is None or OURS not in outcome["samples"] or target.against not in (None, *outcome["samples"]):
            continue
        cells = ["**none**" if value is None else reached_text(value, target) for value in found]
        rows.append([target.title, outcome["title"], measured_in(target), target.wanted, *cells])
    if not rows:
        return []
    head = ["", "scenario", "measured", "wanted", *(f"reached on {major}" for major in majors)]
    text = "Medians of the rounds' ratios. What was not reached is **bold**, and so is what gave no figure."
    return ["## Ours to the reference and to the limit", "", text, "", *table(head, rows, numbers_from=3)]


def scenario_rows(outcome: Mapping[str, Any]) -> Iterator[list[str]]:
    title = outcome["title"]
    for name, samples in outcome["samples"].items():
        if name in outcome["errors"]:
            yield [title, name, "", f"failed: {outcome['errors'][name]}", *[""] * 6]
        elif samples:
            measures = [
                number(median(values(samples, key))) for key in ("rate", "p50_ms", "p99_ms", "cpu_us", "wal_bytes")
            ]
            faster = ratio(outcome, name, REFERENCE, "rate", is_cost=False)
            cheaper = ratio(outcome, name, REFERENCE, "cpu_us", is_cost=True)
            rounds = sum(sample is not None for sample in samples)
            yield [title, name, str(rounds), *measures, number(faster), number(cheaper)]
        title = ""


def figure_lines(outcome: Mapping[str, Any]) -> Iterator[str]:
    """What a scenario measured besides."""
    for name, samples in outcome["samples"].items():
        figures = {key: median(values(samples, key)) for sample in filter(None, samples) for key in sample["figures"]}
        told = ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in figures.items())
        if told and set(figures) != {"missed"}:
            yield f"- {outcome['title']}: {name}: {told}"


def server_part(major: str, server: Results, plots: Plots) -> list[str]:
    lines = [f"## PostgreSQL {server['server']}", ""]
    head = ["scenario", "rival", "rounds", "messages/s", "p50 ms", "p99 ms", "CPU us", "WAL bytes", "faster", "cheaper"]
    for heading, section in server["sections"].items():
        if not section:
            continue
        lines += [f"### {heading}", ""]
        rows = [row for outcome in section.values() for row in scenario_rows(outcome)]
        lines += table(head, rows, numbers_from=2)
        told = [line for outcome in section.values() for line in figure_lines(outcome)]
        lines += [*told, ""] if told else []
        for scenario, (name, text) in plots.items():
            if scenario in section:
                lines += [f"![{text}]({name})", ""]
    return lines


def rivals_part(results: Results) -> list[str]:
    lines = ["## The rivals", ""]
    told: dict[str, dict[str, Any]] = {}
    missing = []
    for major, server in results["servers"].items():
        for name, about in server["rivals"].items():
            if "missing" in about:
                missing.append(f"- {name} was left out on PostgreSQL {major}: {about['missing']}.")
            told[name] = {**about, **{key: told[name][key] for key in ("version",) if key in told.get(name, {})}}
    rows = [
        [name, about.get("version", ""), about["promises"], about["lacks"], about["better"]]
        for name, about in told.items()
    ]
    lines += table(["", "version", "promises", "does not have", "does better"], rows, numbers_from=5)
    return [*lines, *missing, ""] if missing else lines


def generated(results: Results, plots: Mapping[str, Plots]) -> str:
    """The part of the page that the results alone decide."""
    machine = results["machine"]
    settings = ", ".join(f"`{name} = {value}`" for name, value in results["settings"].items())
    commits = {
        outcome["commit"]: None for server in results["servers"].values() for outcome in outcomes(server).values()
    }
    lines = [
        f"Measured {results['date']} at commit {', '.join(commits)} on {machine['cores']} cores of",
        f"{machine['processor']}, {machine['memory_gb']} GB, {machine['system']}; pgbench: `-M {results['protocol']}`.",
        f"Every server: {settings}.",
        "",
        *targets(results),
        *rivals_part(results),
    ]
    for major, server in results["servers"].items():
        lines += server_part(major, server, plots.get(major, {}))
    return "\n".join(lines).rstrip() + "\n"


def draw(results: Results, directory: pathlib.Path) -> dict[str, Plots]:
    """The plots of each server. The same results make the same files."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "pgmq",
            "svg.fonttype": "none",
            "font.size": 9,
            "figure.figsize": (8, 4),
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )
    drawn: dict[str, Plots] = {}
    for major, server in results["servers"].items():
        found = outcomes(server)
        for scenario, figure, text in (
            *draw_crowd(found, "durable_cycle", "Full cycles a second by the number of clients, durable"),
            *draw_crowd(found, "cycle", "Full cycles a second by the number of clients"),
            *draw_held(found, "CPU and latency of a cycle while the xmin is held, and after"),
        ):
            name = f"{scenario}-{major}.svg"
            figure.tight_layout()
            figure.savefig(directory / name, metadata={"Date": None, "Creator": None})
            drawn[major] = {**drawn.get(major, {}), scenario: (name, text)}
    return drawn


def draw_crowd(found: Mapping[str, Any], prefix: str, text: str) -> Iterator[tuple[str, Figure, str]]:
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float]]] = {}
    for clients in CROWD:
        for name, samples in samples_of(found, f"{prefix}_{clients}"):
            rate = median(values(samples, "rate"))
            if rate is not None:
                lines.setdefault(name, []).append((clients, rate))
                last = f"{prefix}_{clients}"
    if not any(len(points) > 1 for points in lines.values()):
        return
    figure = Figure()
    axes = figure.subplots()
    for position, (name, points) in enumerate(lines.items()):
        color, mark = style(name, position)
        axes.plot(*zip(*points, strict=True), label=name, color=color, marker=mark)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CROWD, list(map(str, CROWD)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients")
    axes.set_ylabel("messages a second")
    axes.legend()
    yield last, figure, text


def draw_held(found: Mapping[str, Any], text: str) -> Iterator[tuple[str, Figure, str]]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    held = {name: samples[-1]["series"] for name, samples in samples_of(found, "held_xmin") if samples[-1]}
    if not held:
        return
    figure = Figure(figsize=(8, 6))
    above, below = figure.subplots(2, 1, sharex=True)
    for position, (name, series) in enumerate(held.items()):
        seconds = [point["seconds"] for point in series]
        above.plot(seconds, [point["cpu_us"] for point in series], label=name, color=style(name, position)[0])
        below.plot(seconds, [point["p50_ms"] for point in series], label=name, color=style(name, position)[0])
    end = max(point["seconds"] for series in held.values() for point in series if point["held"])
    for axes, label in ((above, "CPU us a message"), (below, "p50 ms a cycle")):
        axes.axvspan(0, end, color="#000000", alpha=0.06, linewidth=0)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.set_ylabel(label)
    above.legend()
    below.set_xlabel("seconds; the xmin is held in the grey part")
    yield "held_xmin", figure, text


def style(name: str, position: int) -> tuple[str, str]:
    others = ("#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c564b", "#9467bd", "#bcbd22")
    return STYLES.get(name, (others[position % len(others)], "."))


def samples_of(found: Mapping[str, Any], scenario: str) -> list[tuple[str, list[Any]]]:
    return [item for item in found[scenario]["samples"].items() if item[1]] if scenario in found else []


def write(results: Results, directory: pathlib.Path) -> None:
    """Draw the plots and put the tables between the page's markers; without a page, make one."""
    page = directory / "README.md"
    text = page.read_text() if page.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    made = generated(results, draw(results, directory))
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    page.write_text(re.sub(pattern, lambda _: f"{BEGIN}\n\n{made}\n{END}", text, flags=re.S))
