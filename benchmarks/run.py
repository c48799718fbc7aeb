"""Measures the metering flow beside what it competes with, in the same run, alternating; see benchmarks/README.md.

    python -m benchmarks.run                     # flow in 1 and 2 processes, per event, loop, copies
    python -m benchmarks.run --key-cost          # 1,000,000 keys beside 10,000
    python -m benchmarks.run --snapshot-cost     # recovery beside none, 100,000 keys
    python -m benchmarks.run --latency           # append to visible at 5,000 events/s
    python -m benchmarks.run --memory            # bytes per key and per remembered id

Every total of every run is compared with the oracle's before the run counts.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import latency, state
from benchmarks.contestants import CONTESTANTS, Failed, Measured, measure
from benchmarks.generate import Dataset, Workload, add_arguments, generate, workload_of

MIB = 1 << 20
DEFAULT = "flow1,per_event,loop,flow2,copies"
FEW_KEYS, SNAPSHOT_KEYS, MANY_KEYS = 10_000, 100_000, 1_000_000
# Long enough for several epochs of 10 s.
SNAPSHOT_EVENTS = 8_000_000
START_UP_RUNS = 3
# Of what is piped into a file.
WIDTH = 118

Runs = dict[str, list[Measured]]


@dataclass(frozen=True)
class Line:
    """The runs of one contestant; numbers are medians."""

    name: str
    runs: int
    wall_s: float
    start_up_s: float
    rate: float
    rate_without_start_up: float
    cpu_s_per_million: float
    peak_mib: float


@dataclass(frozen=True)
class Finding:
    """A number that docs/benchmarks.md promises: its median, lowest and highest over the rounds."""

    name: str
    goal: str
    value: float
    lowest: float
    highest: float
    is_met: bool


@dataclass(frozen=True)
class Report:
    """What a benchmark found, ready to be shown or written down."""

    title: str
    lines: tuple[Line, ...]
    findings: tuple[Finding, ...]
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all benchmarks share: the options, where to write, whom to tell."""

    workload: Workload
    rounds: int
    directory: Path
    scratch: Path
    console: Console

    def dataset(self, **changes: Any) -> Dataset:
        """The options' data set, or one that differs from it."""
        return generate(replace(self.workload, **changes), self.directory)

    def active(self, **changes: Any) -> Dataset:
        """As `dataset`, in one file; Failed where the events are too few for the keys."""
        workload = replace(self.workload, **changes, parts=1)
        if workload.events < workload.events_min:
            raise Failed(f"--events: {workload.keys:,} active keys need {workload.events_min:,}")
        return generate(workload, self.directory)

    def alternate(self, ways: Mapping[str, Callable[[], Measured]]) -> Runs:
        """Each way once per round, in turn, so that what else the machine does falls on all alike."""
        runs: Runs = {name: [] for name in ways}
        for number in range(self.rounds):
            for name, way in ways.items():
                measured = way()
                runs[name].append(measured)
                self.console.print(
                    f"round {number + 1}, {name}: {measured.wall_s:.2f} s, "
                    f"{measured.rate():,.0f} events/s, every total exact"
                )
        return runs

    def start_up(self, name: str, **settings: str) -> float:
        """What the contestant takes for one single event: the median of a few."""
        one = self.dataset(events=1, keys=5, duplicates=0.0)
        return median(measure(name, one, self.scratch, **settings).wall_s for _ in range(START_UP_RUNS))


def line_of(name: str, runs: list[Measured], start_up_s: float) -> Line:
    return Line(
        name=name,
        runs=len(runs),
        wall_s=median(run.wall_s for run in runs),
        start_up_s=start_up_s,
        rate=median(run.rate() for run in runs),
        rate_without_start_up=median(run.rate(start_up_s) for run in runs),
        cpu_s_per_million=median(run.cpu_s / run.events * 1e6 for run in runs),
        peak_mib=median(run.peak_bytes for run in runs) / MIB,
    )


def ratio(name: str, goal: float, above: list[float], below: list[float]) -> Finding:
    """Rates of two contestants, divided round by round; the goal is a least value."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    value = median(ratios)
    return Finding(name, f"≥ {goal:g}", value, min(ratios), max(ratios), value >= goal)


def side_by_side(bench: Bench, names: list[str]) -> Report:
    """The flow beside the others. Ratios are of rates without start-up, and with it in their own lines."""
    dataset = bench.dataset()
    start_ups = {name: bench.start_up(name) for name in names}
    runs = bench.alternate({name: partial(measure, name, dataset, bench.scratch) for name in names})
    findings = []
    for above, below, goal in (
        ("flow1", "per_event", 4.0),
        ("flow1", "per_event_1s", 4.0),
        ("flow1", "loop", 0.9),
        ("flow2", "copies", 0.8),
    ):
        if above in runs and below in runs:
            for told, with_start_up in (("", False), (", start-up included", True)):
                rates = [
                    [run.rate(0 if with_start_up else start_ups[name]) for run in runs[name]]
                    for name in (above, below)
                ]
                findings.append(ratio(f"{above} / {below}{told}", goal, *rates))
    lines = tuple(line_of(CONTESTANTS[name].title, runs[name], start_ups[name]) for name in names)
    return Report("Side by side", lines, tuple(findings), asdict(bench.workload))


def key_cost(bench: Bench) -> Report:
    """One process with many active keys beside one with few, on as many events."""
    datasets = {f"{keys:,} keys": bench.active(keys=keys) for keys in (FEW_KEYS, MANY_KEYS)}
    return _against(bench, "Cost of keys", 0.5, {name: (data, {}) for name, data in datasets.items()})


def snapshot_cost(bench: Bench, epochs: list[str]) -> Report:
    """One process with recovery, per epoch length, beside one without."""
    asked = bench.workload.events
    events = SNAPSHOT_EVENTS if asked == Workload().events else asked
    dataset = bench.active(keys=SNAPSHOT_KEYS, events=events)
    ways = {"no recovery": (dataset, {"recovery": "false"})}
    ways |= {f"epochs of {epoch}": (dataset, {"epoch": epoch}) for epoch in epochs}
    return _against(bench, "Cost of snapshots", 0.85, ways)


def _against(
    bench: Bench, title: str, goal: float, ways: dict[str, tuple[Dataset, dict[str, str]]]
) -> Report:
    """The flow in one process in several ways, each beside the first one."""
    start_ups = {name: bench.start_up("flow1", **settings) for name, (_, settings) in ways.items()}
    runs = bench.alternate(
        {
            name: partial(measure, "flow1", dataset, bench.scratch, **settings)
            for name, (dataset, settings) in ways.items()
        }
    )
    rates = {name: [run.rate(start_ups[name]) for run in runs[name]] for name in ways}
    base, *others = ways
    findings = tuple(ratio(f"{name} / {base}", goal, rates[name], rates[base]) for name in others)
    lines = tuple(line_of(f"flow, 1 process, {name}", runs[name], start_ups[name]) for name in ways)
    return Report(title, lines, findings, asdict(bench.workload))


def memory(bench: Bench) -> Report:
    """Growth of the peak with keys (as many events) and with ids (as many keys), one process."""
    events = bench.workload.events
    ways = {
        "few": bench.active(keys=FEW_KEYS),
        "more keys": bench.active(keys=MANY_KEYS),
        "more ids": bench.active(keys=FEW_KEYS, events=2 * events),
    }
    runs = bench.alternate(
        {name: partial(measure, "flow1", dataset, bench.scratch) for name, dataset in ways.items()}
    )
    ids = round(events * (1 - bench.workload.duplicates))
    held = state.bytes_per_identity(bench.active(keys=FEW_KEYS, events=2 * events))
    findings = (
        _growth("bytes per key, by the peak", 2048, runs["more keys"], runs["few"], MANY_KEYS - FEW_KEYS),
        _growth("bytes per remembered id, by the peak", 40, runs["more ids"], runs["few"], ids),
        Finding("bytes per remembered id, by the tables", "≤ 40", held, held, held, held <= 40),
    )
    lines = tuple(line_of(f"flow, 1 process, {name}", runs[name], 0) for name in ways)
    return Report("Memory", lines, findings, asdict(bench.workload))


def _growth(name: str, goal: int, more: list[Measured], less: list[Measured], count: int) -> Finding:
    growths = [(a.peak_bytes - b.peak_bytes) / count for a, b in zip(more, less, strict=True)]
    value = median(growths)
    return Finding(name, f"≤ {goal:,}", value, min(growths), max(growths), value <= goal)


def latencies(bench: Bench, epochs: list[str], seconds: float, rate: int) -> Report:
    """Append to visible, in ms, with the default epoch and with shorter ones."""
    findings, details = [], {}
    for epoch in epochs:
        folders = [bench.scratch / f"latency-{epoch}-{number}" for number in range(bench.rounds)]
        seen = [latency.measure(folder, epoch, seconds, rate) for folder in folders]
        for name, goal, values in (
            ("p50", None, [one.p50_ms for one in seen]),
            ("p99", 50, [one.p99_ms for one in seen]),
            ("greatest", None, [one.greatest_ms for one in seen]),
        ):
            value = median(values)
            told = f"≤ {goal}" if goal else ""
            is_met = goal is None or value <= goal
            findings.append(
                Finding(f"{name} ms, epoch {epoch}", told, value, min(values), max(values), is_met)
            )
        details[epoch] = [asdict(one) for one in seen]
    return Report(f"Latency at {rate:,} events/s", (), tuple(findings), details)


def show(report: Report, console: Console) -> None:
    """The report as tables."""
    if report.lines:
        table = Table(title=report.title)
        for column in (
            "",
            "runs",
            "wall s",
            "start-up s",
            "events/s",
            "… after start-up",
            "CPU s/M",
            "peak MiB",
        ):
            table.add_column(column, justify="left" if column == "" else "right")
        for line in report.lines:
            table.add_row(
                line.name,
                str(line.runs),
                f"{line.wall_s:.2f}",
                f"{line.start_up_s:.2f}",
                f"{line.rate:,.0f}",
                f"{line.rate_without_start_up:,.0f}",
                f"{line.cpu_s_per_million:.2f}",
                f"{line.peak_mib:,.0f}",
            )
        console.print(table)
    if report.findings:
        table = Table(title=f"{report.title}: median of the rounds")
        for column in ("", "goal", "median", "lowest", "highest", ""):
            table.add_column(column, justify="left" if column == "" else "right")
        for found in report.findings:
            verdict = ("[green]met[/]" if found.is_met else "[red]missed[/]") if found.goal else ""
            numbers = (f"{number:,.2f}" for number in (found.value, found.lowest, found.highest))
            table.add_row(found.name, found.goal, *numbers, verdict)
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    kind = parser.add_mutually_exclusive_group()
    for name in ("key-cost", "snapshot-cost", "latency", "memory"):
        kind.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, alternating")
    parser.add_argument("--only", default=DEFAULT, help=f"of {','.join(CONTESTANTS)}")
    parser.add_argument("--epochs", default="10s,1s", help="for --snapshot-cost and --latency")
    parser.add_argument("--seconds", type=float, default=45, help="for --latency")
    parser.add_argument("--rate", type=int, default=5000, help="for --latency: events per second")
    parser.add_argument("--json", type=Path, help="write the report here too")
    parser.add_argument(
        "--scratch", type=Path, help="where stores and state are written, else a temporary folder"
    )
    chosen = parser.parse_args()
    names = [name for name in chosen.only.split(",") if name]
    if unknown := [name for name in names if name not in CONTESTANTS]:
        parser.error(f"--only: unknown {', '.join(unknown)}; choices: {', '.join(CONTESTANTS)}")
    epochs = chosen.epochs.split(",")
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(dir=chosen.scratch, prefix="tidegate-benchmark-") as scratch:
        bench = Bench(workload_of(chosen), chosen.rounds, chosen.dir, Path(scratch), console)
        try:
            if chosen.key_cost:
                report = key_cost(bench)
            elif chosen.snapshot_cost:
                report = snapshot_cost(bench, epochs)
            elif chosen.latency:
                report = latencies(bench, epochs, chosen.seconds, chosen.rate)
            elif chosen.memory:
                report = memory(bench)
            else:
                report = side_by_side(bench, names)
        except Failed as error:
            console.print(str(error), markup=False)
            sys.exit(1)
    show(report, Console(width=None if sys.stdout.isatty() else WIDTH))
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(report), indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
