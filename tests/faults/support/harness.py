"""Runs the metering flow as processes that die and are started again, and gathers what came out of it."""

import atexit
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from threading import Event, Thread
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from tests.faults.support.edges import Dead, Edges, Files, SqliteFiles, Stores, lines_of
from tests.faults.support.kill_orders import KILLS, MET, Kill, Met, Orders, Phase
from tests.reference.traffic import Case
from tests.support.places import ROOT
from tests.support.ports import free_addresses
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.ports import StoredTotal, StoreError, StoreReader
from tidegate.operators.model.records import Total

FILES, SQLITE = Files(), SqliteFiles()
SECONDS = 120
STARTS = 12
# What is met where a run goes on from a snapshot.
RESUMING = (
    "cut journal", "cut journal state", "cut journal ids", "cut alerts", "cut dead", "cut billing",
    "unlink journal state", "unlink journal ids", "build source", "build sink", "build shard", "build store",
    "journal open", "poll", "journal append", "store COMMIT", "store write", "snapshot sink", "snapshot shard",
    "kafka starts", "kafka look back", "kafka produce", "kafka write", "kafka commit",
)  # fmt: skip


class Layout(NamedTuple):
    """How a run is spread: worker threads, processes, files of input, and if another process writes totals."""

    workers: int = 1
    processes: int = 1
    files: int = 1
    aside: bool = False


class Result(NamedTuple):
    """All that a run left, without what depends on the clock."""

    totals: dict[tuple[Any, ...], Total]
    counters: dict[tuple[int, str], int]
    alerts: Counter[bytes]
    dead: Counter[Dead]
    billed: Counter[bytes]

    def differences(self, other: "Result") -> list[str]:
        """Where they differ, a few of each."""
        found = []
        for name in self._fields:
            mine: Mapping[Any, object] = getattr(self, name)
            theirs: Mapping[Any, object] = getattr(other, name)
            keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
            found += [f"{name} {key}: {mine.get(key)} instead of {theirs.get(key)}" for key in keys[:5]]
            if len(keys) > 5:
                found.append(f"{name}: {len(keys)} differ in all")
        return found

    @property
    def counted(self) -> Counter[str]:
        """Counters over all shards."""
        counted: Counter[str] = Counter()
        for (_, name), value in self.counters.items():
            counted[name] += value
        return counted


@dataclass
class Run:
    """A folder with input and outputs, and the starts that were made in it."""

    folder: Path
    layout: Layout
    edges: Edges
    stores: Stores
    settings: dict[str, str] = field(default_factory=dict)
    kills: list[Kill] = field(default_factory=list)
    starts: int = 0

    @classmethod
    def prepared(
        cls,
        folder: Path,
        case: Case,
        layout: Layout,
        edges: Edges = FILES,
        stores: Stores = SQLITE,
        **settings: str,
    ) -> "Run":
        """A folder with the case's catalog and lines, parted by customer into the layout's parts."""
        folder.mkdir(parents=True)
        (folder / "catalogs.pickle").write_bytes(pickle.dumps([(case.catalog, 0)]))
        given = {
            **edges.prepare(folder, parted(case.lines, layout.files)),
            "STORE": stores.address(folder),
            "BILLING": "file:billing/",
            "BRANCHES": "store,alerts,billing",
            "DATA_DIR": "state",
            "LATENESS": f"{int(case.lateness.total_seconds())}s",
            "POLL_BYTES": "4096",
            "SHARDS": "4",
            "COALESCE": "3ms",
            "RECOVERY_PARTS": str(layout.processes),
            "STORE_ASIDE": "1" if layout.aside else "0",
            **settings,
        }
        return cls(folder, layout, edges, stores, given)

    def change(self, lines: list[bytes], catalog: Catalog, applied_at: int, **settings: str) -> None:
        """Append lines to its input, and go on under the next catalog version and other settings."""
        versions = self.folder / "catalogs.pickle"
        earlier = pickle.loads(versions.read_bytes())
        versions.write_bytes(pickle.dumps([*earlier, (catalog, applied_at)]))
        self.edges.append(self.folder, parted(lines, self.layout.files))
        self.settings |= settings

    def start(self, kill: Kill | None = None, victim: int = 0, pace_ms: int = 5) -> bool:
        """Starts it and waits for its end; whether it came to the end of its input."""
        codes = self._ran(kill, victim, pace_ms)
        noted = self._noted()
        if not any(codes):
            return True
        assert noted, f"exit codes {codes} of start {self.starts}:\n{self.said()}"
        killed = codes[victim % len(codes)]
        if killed == 1 and self.layout.aside:
            # System calls are also counted in the process that writes, which then is the one to die.
            assert "ended with exit code -9; start again" in self._last_said(), self.said()
        else:
            assert killed in (-signal.SIGKILL, -signal.SIGALRM), f"exit code {killed}:\n{self.said()}"
        self.kills += noted
        return False

    def start_while(self, excuse: str, pace_ms: int = 5) -> bool:
        """Starts it again and again until it comes to the end of its input, as long as its last words are `excuse`."""
        while any(codes := self._ran(None, 0, pace_ms)):
            assert self.starts < STARTS, self.said()
            assert excuse in self._last_said(), f"exit codes {codes} of start {self.starts}:\n{self.said()}"
        return True

    def said(self) -> str:
        """The last words of each process."""
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("said-*")))

    def _last_said(self) -> str:
        """All that was said by the processes of the last start."""
        return "".join(path.read_text() for path in self.folder.glob(f"said-{self.starts:02}-*"))

    def _ran(self, kill: Kill | None, victim: int, pace_ms: int) -> list[int]:
        """Starts it and waits for its end; the exit codes."""
        self.starts += 1
        count = self.layout.processes
        addresses = free_addresses(count) if count > 1 else []
        begun = [
            self._process(
                Orders(
                    kill=kill if number == victim % count else None,
                    workers=self.layout.workers,
                    process=number,
                    addresses=addresses,
                    pace_ms=pace_ms,
                )
            )
            for number in range(count)
        ]
        return ended(begun)

    @property
    def met(self) -> Met:
        """What the last start met that ended by itself."""
        return msgspec.json.decode((self.folder / MET).read_bytes(), type=Met)

    def result(self) -> Result:
        """What the run left."""
        reader = self.stores.reader(self.folder)
        try:
            totals = {total[:4]: total for total, _ in reader.totals()}
            counters = {(shard, name): value for shard, name, value in reader.counters()}
        finally:
            reader.close()
        dead = Counter(self.edges.dead(self.folder))
        billed = Counter(line for path in self.folder.glob("billing/*.ndjson") for line in lines_of(path))
        alerts = Counter(map(self._steady, self.edges.alerts(self.folder)))
        return Result(totals, counters, alerts, dead, billed)

    def _steady(self, alert: bytes) -> bytes:
        """An alert without what depends on which of several streams is read first: the time of one without customer."""
        fields = json.loads(alert)
        if self.layout.files == 1 or fields["customer"]:
            return alert
        return json.dumps(fields | dict.fromkeys(("at", "period_start", "period_end"))).encode()

    @property
    def calls(self) -> int:
        """How many system calls changed files in the last start that ended by itself; 0 without a compiler."""
        return int((self.folder / "calls").read_text()) if counting_calls() else 0

    def _process(self, orders: Orders) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        environment |= {f"TIDEGATE_{name}": value for name, value in self.settings.items()}
        environment["PYTHONPATH"] = str(ROOT)
        if preloaded := counting_calls():
            environment |= {"LD_PRELOAD": str(preloaded), "CRASH_FOLDER": str(self.folder)}
            if orders.kill and orders.kill.kind == "call":
                environment |= {"CRASH_NTH": str(orders.kill.nth), "CRASH_PHASE": orders.kill.phase}
        with (self.folder / f"said-{self.starts:02}-{orders.process}").open("wb") as said:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.faults.support.self_killing_flow",
                    msgspec.json.encode(orders).decode(),
                ],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def _noted(self) -> list[Kill]:
        path = self.folder / KILLS
        if not path.exists():
            return []
        noted = [msgspec.json.decode(line, type=Kill) for line in path.read_bytes().splitlines()]
        path.unlink()
        return noted


@cache
def counting_calls() -> Path | None:
    """What counts system calls and kills at one of them, compiled; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    folder = Path(mkdtemp(prefix="tidegate-calls-"))
    atexit.register(shutil.rmtree, folder)
    command: list[str | Path] = [
        compiler,
        "-O1",
        "-shared",
        "-fPIC",
        "-o",
        folder / "calls.so",
        Path(__file__).with_name("calls.c"),
    ]
    subprocess.run(command, check=True)
    return folder / "calls.so"


def ended(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """The exit codes; once one process has died, the others are given a moment and then killed as well."""
    deadline = monotonic() + SECONDS
    try:
        # All are asked, as one that died before it connected leaves the other waiting for it.
        while None in (codes := [process.poll() for process in processes]):
            if any(codes):
                deadline = min(deadline, monotonic() + 3)
            running = processes[codes.index(None)]
            try:
                running.wait(0.05)
            except subprocess.TimeoutExpired:
                if monotonic() > deadline:
                    assert any(codes), "the flow hangs"
                    running.kill()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes]


def parted(lines: list[bytes], files: int) -> list[list[bytes]]:
    """The lines by file, so that all of a customer's lie in one; lines of several customers are left out."""
    if files == 1:
        return [lines]
    parts: list[list[bytes]] = [[] for _ in range(files)]
    for line in lines:
        customers = customers_of(line)
        if len(customers) < 2:
            parts[zlib.crc32(next(iter(customers), line.decode("latin-1")).encode()) % files].append(line)
    return parts


def customers_of(line: bytes) -> set[str]:
    """The customers of the events on a line, as far as there are any."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return set()
    events = found if isinstance(found, list) else [found]
    named = (event.get("subject", event.get("customer_id")) for event in events if isinstance(event, dict))
    return {customer for customer in named if isinstance(customer, str) and customer.isprintable()}


@contextmanager
def watched(run: Run) -> Iterator[list[str]]:
    """Reads the store all the while, and lists what went back in it."""
    wrong: list[str] = []
    done = Event()
    watcher = Thread(target=_watch, args=(run, done, wrong))
    watcher.start()
    try:
        yield wrong
    finally:
        done.set()
        watcher.join()


def _watch(run: Run, done: Event, wrong: list[str]) -> None:
    seen: dict[tuple[Any, ...], Total] = {}
    counted: dict[tuple[int, str], int] = {}
    reader: StoreReader | None = None
    last, reads = 0, 0
    while not done.wait(0.03):
        try:
            reader = reader or run.stores.reader(run.folder)
            changes = reader.changes(last)
        except StoreError:
            # Nothing was written yet.
            assert not reads
            continue
        if changes.seq == last:
            continue
        last, reads = changes.seq, reads + 1
        for stored in reader.totals():
            wrong += fallen(seen, stored)
        for shard, name, value in reader.counters():
            if value < counted.get((shard, name), 0):
                wrong.append(f"counter {shard} {name}: {counted[shard, name]} then {value}")
            counted[shard, name] = value
    if reader:
        reader.close()
    if not reads:
        wrong.append("the store was never seen to change")


def fallen(seen: dict[tuple[Any, ...], Total], stored: StoredTotal) -> list[str]:
    """What is smaller than when this total was last seen."""
    total = stored.total
    before = seen.get(total[:4])
    seen[total[:4]] = total
    if before is None:
        return []
    growing = ("version", "as_of", "events", "late", "corrected")
    back = [name for name in growing if getattr(total, name) < getattr(before, name)]
    if total.steady and total.corrected == before.corrected and Decimal(total.total) < Decimal(before.total):
        back.append("total")
    return [f"{name} of {total[:4]}: {getattr(before, name)} then {getattr(total, name)}" for name in back]


def random_kill(rng: random.Random, met: Met, calls: int, resumed: bool) -> Kill:
    """A place to die: any kind of operation, rare ones nearly as often as frequent ones; any call; any time."""
    if calls and rng.random() < 0.3:
        reach = 200 if resumed else calls
        return Kill("call", rng.randint(1, reach), rng.choice(("before", "half", "after")))
    if rng.random() < 0.15:
        return Kill("time", seconds=rng.random() * met.seconds * (0.3 if resumed else 1))
    phase: Phase = rng.choice(("before", "half", "half", "after", "soon"))
    if resumed and rng.random() < 0.6:
        # What there is to meet depends on where input and outputs lie; a cut is met only after a kill.
        apt = [
            kind
            for kind in RESUMING
            if kind in met.operations or kind.startswith(("cut", "unlink", "kafka look"))
        ]
        return Kill(rng.choice(apt), rng.randint(1, 3), phase)
    kinds = sorted(met.operations)
    [kind] = rng.choices(kinds, [met.operations[kind] ** 0.4 for kind in kinds])
    return Kill(kind, rng.randint(1, met.operations[kind]), phase)
