"""The ways to meter a data set that are measured against each other, each run as real processes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from bytewax.recovery import init_db_dir

from benchmarks import oracle, per_event
from benchmarks.generate import Dataset
from benchmarks.oracle import Row

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = Path(__file__).with_name("launch.py")
EPOCH_S = "10"
LOG_SHOWN = 2000


class Failed(Exception):
    """A process ended badly, or its totals are wrong; says which and why."""


@dataclass(frozen=True)
class Command:
    """What to start, and when: Python's arguments, and what the environment has besides PATH and HOME."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


@dataclass(frozen=True)
class Usage:
    """What one process took, from its start to its end; `output` is what it printed."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str = ""


@dataclass(frozen=True)
class Measured:
    """A verified run: its processes' usages, and the events each process was given (0: shared)."""

    events: int
    usages: tuple[Usage, ...]
    shares: tuple[int, ...]

    @property
    def wall_s(self) -> float:
        return max(usage.wall_s for usage in self.usages)

    @property
    def cpu_s(self) -> float:
        return sum(usage.cpu_s for usage in self.usages)

    @property
    def peak_bytes(self) -> int:
        return sum(usage.peak_bytes for usage in self.usages)

    def rate(self, start_up_s: float = 0) -> float:
        """Events per second, without so many seconds of each process; of independent ones the sum."""
        if any(self.shares):
            pairs = zip(self.shares, self.usages, strict=True)
            return sum(share / max(usage.wall_s - start_up_s, 1e-9) for share, usage in pairs)
        return self.events / max(self.wall_s - start_up_s, 1e-9)


def environment(**more: str) -> dict[str, str]:
    """The harness's environment without settings of ours, so that no one's shell changes a number."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def run(commands: Sequence[Command], directory: Path) -> tuple[Usage, ...]:
    """Runs the commands at the same time; Failed with the end of its log where one fails."""
    asked = [
        {
            "arguments": [sys.executable, *command.arguments],
            "environment": environment(**command.environment),
            "directory": str(directory),
            "delay_s": command.delay_s,
            "log": str(directory / f"log-{number}"),
            "output": str(directory / f"output-{number}"),
        }
        for number, command in enumerate(commands)
    ]
    launched = subprocess.run(
        [sys.executable, "-S", "-E", str(LAUNCH)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    usages = []
    for number, usage in enumerate(json.loads(launched.stdout)):
        if usage["exit_code"]:
            log = (directory / f"log-{number}").read_text(errors="replace")[-LOG_SHOWN:]
            raise Failed(f"{' '.join(commands[number].arguments)} ended with {usage['exit_code']}:\n{log}")
        output = (directory / f"output-{number}").read_text(errors="replace")
        wall_s = usage["ended"] - usage["started"]
        usages.append(Usage(wall_s, usage["cpu_s"], usage["peak_bytes"], output))
    return tuple(usages)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(taken.getsockname()[1]) for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def flow_settings(source: str, catalog: Path, directory: Path, **more: str) -> dict[str, str]:
    """The settings of a flow that keeps all it writes in `directory`; `more` in lower case."""
    settings = {
        "source": source,
        "catalog": str(catalog),
        "store": f"sqlite:{directory / 'totals.db'}",
        "data_dir": str(directory / "state"),
        "alerts": f"file:{directory / 'alerts.ndjson'}",
        "dead_letters": f"file:{directory / 'dead-letters.ndjson'}",
        "branches": "store,alerts",
        **more,
    }
    return {f"TIDEGATE_{name.upper()}": value for name, value in settings.items()}


FLOW = ("-m", "bytewax.run", "tidegate.flows.metering")
# Processes of a cluster connect to those before them, and to one that does not listen yet only a second later.
IN_ORDER_S = 0.2


def flow_1(dataset: Dataset, directory: Path, **settings: str) -> Measured:
    """This flow in one process, on the whole file."""
    chosen = flow_settings(f"file:{dataset.whole}", dataset.catalog, directory, **settings)
    usages = run([Command(FLOW, chosen)], directory)
    return Measured(dataset.events, usages, (0,))


def flow_2(dataset: Dataset, directory: Path, **settings: str) -> Measured:
    """This flow in two processes, on the parts as partitions."""
    settings = {"recovery_parts": "2", **settings}
    chosen = flow_settings(f"file:{dataset.glob}", dataset.catalog, directory, **settings)
    addresses = ";".join(f"localhost:{port}" for port in free_ports(2))
    commands = [Command((*FLOW, "-i", str(i), "-a", addresses), chosen, IN_ORDER_S * i) for i in range(2)]
    return Measured(dataset.events, run(commands, directory), (0, 0))


def copies(dataset: Dataset, directory: Path, **settings: str) -> Measured:
    """As many independent flows as there are parts, each on its own part: what the machine has to give."""
    commands = []
    for number, part in enumerate(dataset.parts):
        own = directory / f"copy-{number}"
        own.mkdir()
        commands.append(Command(FLOW, flow_settings(f"file:{part}", dataset.catalog, own, **settings)))
    usages = run(commands, directory)
    return Measured(dataset.events, usages, dataset.part_events)


def loop(dataset: Dataset, directory: Path) -> Measured:
    """The hand-written loop, until its totals are there: what it writes for the comparison is not timed."""
    command = Command(("-m", "benchmarks.loop", str(dataset.whole), "--dump", str(directory / "dump")))
    (usage,) = run([command], directory)
    told: dict[str, Any] = json.loads(usage.output)
    wall_s = usage.wall_s - told["after_s"]
    own = Usage(wall_s, told["cpu_s"], told["peak_bytes"])
    return Measured(dataset.events, (own,), (0,))


def by_event(dataset: Dataset, directory: Path, flush_s: str = "0") -> Measured:
    """Per-event Bytewax, recovery on."""
    recovery = directory / "recovery"
    recovery.mkdir()
    init_db_dir(recovery, 1)
    arguments = (
        "-m",
        "bytewax.run",
        "benchmarks.per_event:flow",
        "-r",
        str(recovery),
        "-s",
        EPOCH_S,
        "-b",
        "0",
    )
    settings = {
        "PER_EVENT_SOURCE": str(dataset.whole),
        "PER_EVENT_STORE": str(directory / "totals.db"),
        "PER_EVENT_FLUSH_S": flush_s,
    }
    return Measured(dataset.events, run([Command(arguments, settings)], directory), (0,))


def by_event_flushing(dataset: Dataset, directory: Path) -> Measured:
    return by_event(dataset, directory, flush_s="1")


def _flow_rows(directory: Path) -> Iterator[Row]:
    stores = sorted(directory.glob("**/totals.db"))
    return chain.from_iterable(oracle.stored(f"sqlite:{store}") for store in stores)


@dataclass(frozen=True)
class Contestant:
    """What it is, how to run it, and how to read what it made of the data set."""

    title: str
    run: Callable[..., Measured]
    rows: Callable[[Path], Iterator[Row]]


def _per_event_rows(directory: Path) -> Iterator[Row]:
    return per_event.stored(directory / "totals.db")


CONTESTANTS = {
    "flow1": Contestant("flow, 1 process", flow_1, _flow_rows),
    "flow2": Contestant("flow, 2 processes", flow_2, _flow_rows),
    "copies": Contestant("independent flows, one per part", copies, _flow_rows),
    "loop": Contestant("loop, nothing durable", loop, lambda folder: oracle.dumped(folder / "dump")),
    "per_event": Contestant("per event", by_event, _per_event_rows),
    "per_event_1s": Contestant("per event, store once a second", by_event_flushing, _per_event_rows),
}


def measure(name: str, dataset: Dataset, scratch: Path, **settings: str) -> Measured:
    """One run, every total of it compared with the oracle; Failed if a single one is wrong."""
    contestant = CONTESTANTS[name]
    directory = scratch / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    measured = contestant.run(dataset, directory, **settings)
    right = oracle.expected([dataset.whole], cache=dataset.directory / "expected.parquet")
    verdict = oracle.compare(contestant.rows(directory), right)
    if not verdict.is_exact:
        differences = "\n".join(verdict.differences)
        raise Failed(
            f"{name}: {verdict.wrong:,} totals are wrong, {verdict.expected:,} expected, "
            f"{verdict.compared:,} found\n{differences}"
        )
    shutil.rmtree(directory)
    return measured
