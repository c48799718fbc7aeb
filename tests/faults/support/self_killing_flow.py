"""The metering flow in a process that kills itself: at a chosen operation, before, in the middle of or after it.

Started by tests/faults/support/harness.py, as `python -m tests.faults.support.self_killing_flow ORDERS`, in the
folder that holds all of the run. What it counts are the operations by which the process is seen from outside or goes
on after a crash: writes, syncs, cuts and removals of files in that folder, statements that change the store, polls,
snapshots, and the building of partitions and shards. Bytewax's own writes can't be wrapped; calls.c, preloaded, meets
them where there is a C compiler, and a timer everywhere, started at random or right after one of the operations above
(`soon`).
"""

import builtins
import functools
import io
import os
import pickle
import random
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, TypeVar

import msgspec

from tests.faults.support.kill_orders import KILLS, MET, Kill, Met, Orders
from tidegate.operators.model.catalog import Catalog, VersionedCatalog
from tidegate.settings.catalog.versions import CatalogFollower

T = TypeVar("T")

FOLDER = f"{Path.cwd()}/"
SOON = 0.004


class KillHarness:
    """Counts operations by kind, and ends the process at the one that is meant."""

    def __init__(self, kill: Kill | None) -> None:
        self._kill = kill
        self._counts: Counter[str] = Counter()
        self._lock = Lock()
        self._started = 0.0
        self._say = os.write
        self._log = os.open(KILLS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def start(self) -> None:
        """From here on the timer runs, if the kill is one by time."""
        self._started = monotonic()
        if self._kill and self._kill.kind == "time":
            self._note()
            self._arm(self._kill.seconds)

    def around(self, kind: str, act: Callable[[], T], half: Callable[[], object] | None = None) -> T:
        """Does it, and dies on the way if this is the one; `half` does half of it."""
        phase = self._phase(kind)
        if phase == "before":
            self._die()
        if phase == "half" and half:
            half()
            self._die()
        if phase == "soon":
            self._note()
            self._arm(random.random() * SOON)
        done = act()
        if phase in ("after", "half"):
            self._die()
        return done

    def finish(self) -> None:
        """Writes down what was met."""
        # Processes of a cluster write it at once; what stands is the last one's, whole.
        mine = Path(f"{MET}.{os.getpid()}")
        mine.write_bytes(msgspec.json.encode(Met(self._counts, monotonic() - self._started)))
        mine.replace(MET)

    def _phase(self, kind: str) -> str | None:
        with self._lock:
            self._counts[kind] += 1
            kill = self._kill
            met = kill and kill.kind == kind and kill.nth == self._counts[kind]
        return kill.phase if kill and met else None

    def _note(self) -> None:
        assert self._kill
        self._say(self._log, msgspec.json.encode(self._kill) + b"\n")

    def _arm(self, seconds: float) -> None:
        # The default action ends the process at once, wherever it is, without the interpreter's help.
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))

    def _die(self) -> None:
        self._note()
        os.kill(os.getpid(), signal.SIGKILL)


def kind_of(path: str) -> str:
    """What a file of the run is for, as its path tells."""
    name = os.path.basename(path)
    if "/journal/" in path:
        return "journal " + ("lock" if name == "lock" else name.split("-")[0] if "-" in name else "folder")
    if "/billing/" in path:
        return "billing mark" if ".start" in name else "billing"
    for part in ("alerts", "dead", "recovery", "store"):
        if f"/{part}" in path:
            return f"{part} mark" if ".start" in name else part
    return "folder"


class WatchedFile:
    """A file that was opened for writing."""

    def __init__(self, file: Any, harness: KillHarness, kind: str) -> None:
        self._file, self._killer, self._kind = file, harness, kind

    def write(self, block: Any) -> Any:
        return self._killer.around(
            f"write {self._kind}", lambda: self._file.write(block), lambda: self._half(block)
        )

    def flush(self) -> Any:
        return self._killer.around(f"flush {self._kind}", self._file.flush)

    def _half(self, block: Any) -> None:
        self._file.write(block[: len(block) // 2])
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._file.close()


def watch_files(harness: KillHarness) -> None:
    """Wraps what changes files, where the file lies in the run's folder."""
    write, plain_open = os.write, io.open

    def ours(place: Any) -> str | None:
        if isinstance(place, int):
            try:
                path = os.readlink(f"/proc/self/fd/{place}")
            except OSError:
                return None
        else:
            path = os.path.abspath(place)
        return kind_of(path) if path.startswith(FOLDER) else None

    def watched_write(fd: int, block: Any) -> int:
        kind = ours(fd)
        if kind is None:
            return write(fd, block)
        half = functools.partial(write, fd, bytes(block)[: len(block) // 2])
        return harness.around(f"write {kind}", lambda: write(fd, block), half)

    def watched_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        opened = plain_open(file, mode, *args, **kwargs)
        kind = ours(file) if set(mode) & set("wax+") else None
        return opened if kind is None else WatchedFile(opened, harness, kind)

    def watch(verb: str, name: str) -> None:
        act = getattr(os, name)

        def watched(place: Any, *args: Any, **kwargs: Any) -> Any:
            kind = ours(place)
            if kind is None:
                return act(place, *args, **kwargs)
            return harness.around(f"{verb} {kind}", lambda: act(place, *args, **kwargs))

        setattr(os, name, watched)

    os.write = watched_write
    io.open = builtins.open = watched_open
    for name in ("fsync", "fdatasync"):
        watch("sync", name)
    for name in ("truncate", "ftruncate"):
        watch("cut", name)
    for name in ("unlink", "replace", "rename", "link"):
        watch(name, name)


def watch_store(harness: KillHarness) -> None:
    """Wraps the statements that change the store."""
    connect = sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            act = super().execute
            verb = sql.split(None, 1)[0]
            if verb not in ("BEGIN", "INSERT", "DELETE", "COMMIT"):
                return act(sql, *args)
            return harness.around(f"store {verb}", lambda: act(sql, *args))

        def executemany(self, sql: str, rows: Iterable[Any]) -> sqlite3.Cursor:
            act, rows = super().executemany, list(rows)
            half = functools.partial(act, sql, rows[: len(rows) // 2])
            return harness.around("store counters", lambda: act(sql, rows), half)

    sqlite3.connect = functools.partial(connect, factory=Watched)  # type: ignore[assignment]


def watch_steps(harness: KillHarness, pace: timedelta) -> None:
    """Wraps polls, snapshots and buildings; and slows the source down, so that a short input sees many epochs."""
    from tidegate.connectors.files import lines, ndjson, partition
    from tidegate.flows.meter import shard_step, store_step
    from tidegate.flows.runtime import journal, recovery

    watch(harness, lines.LinesRead, "next_batch", "poll")
    watch(harness, partition.FilePartition, "snapshot", "snapshot source")
    watch(harness, partition.FilePartition, "__init__", "build source")
    watch(harness, ndjson._LinesWritten, "snapshot", "snapshot sink")
    watch(harness, ndjson._LinesWritten, "__init__", "build sink")
    watch(harness, shard_step.ShardLogic, "snapshot", "snapshot shard")
    watch(harness, shard_step.ShardLogic, "__init__", "build shard")
    watch(harness, store_step._Sink, "build", "build store")
    watch(harness, journal.Journal, "append", "journal append")
    watch(harness, journal.Journal, "__init__", "journal open")
    watch(harness, recovery, "init_db_dir", "recovery init")

    slow_down(lines.LinesRead, pace)


def watch_kafka(harness: KillHarness, pace: timedelta) -> None:
    """As the steps of files; and what brokers are asked."""
    from tidegate.connectors.kafka import consumer, producer, sinks, source

    watch(harness, source._Partition, "next_batch", "poll")
    watch(harness, source._Partition, "snapshot", "snapshot source")
    watch(harness, source._Partition, "__init__", "build source")
    watch(harness, source, "settled", "kafka starts")
    watch(harness, consumer.Feed, "_send_commits", "kafka commit")
    watch(harness, sinks._Partition, "write_batch", "kafka write")
    watch(harness, sinks._Partition, "snapshot", "snapshot sink")
    watch(harness, sinks._Partition, "__init__", "build sink")
    watch(harness, sinks, "ids_since", "kafka look back")
    watch(harness, sinks, "settled", "kafka starts")
    watch(harness, producer.Delivery, "_produce", "kafka produce")
    slow_down(source._Partition, pace)


def watch_redis(harness: KillHarness) -> None:
    """Wraps the writes of the store; its server is not ours to kill."""
    from tidegate.connectors.redis import writer

    watch(harness, writer.RedisWriter, "write", "store write")


def watch(harness: KillHarness, owner: Any, name: str, kind: str) -> None:
    """Wraps a function, so that the process may die at it."""
    act = getattr(owner, name)

    @functools.wraps(act)
    def watched(*args: Any, **kwargs: Any) -> Any:
        return harness.around(kind, lambda: act(*args, **kwargs))

    setattr(owner, name, watched)


def slow_down(partition: Any, pace: timedelta) -> None:
    """Lets a source be asked no sooner than after `pace`."""
    awake = partition.next_awake

    def paced(part: Any) -> datetime | None:
        return max(awake(part) or datetime.now(UTC), datetime.now(UTC) + pace)

    partition.next_awake = paced


def fixed(versions: list[tuple[Catalog, int]]) -> CatalogFollower:
    """Catalogs that were made up and never written as YAML: versions from 0 on, and when they were applied."""

    class Fixed(CatalogFollower):
        def __init__(self) -> None:
            self._newest = len(versions) - 1
            self.problem = self.file_problem = ""
            self._in_force = None
            self._lock = threading.Lock()

        def follow(self) -> VersionedCatalog:
            return self.current

        def get(self, number: int) -> VersionedCatalog:
            return VersionedCatalog(number, *versions[number])

    return Fixed()


def main(orders: Orders) -> None:
    from bytewax.recovery import RecoveryConfig
    from bytewax.run import cli_main

    from tidegate.flows.meter import dataflow
    from tidegate.flows.runtime import recovery
    from tidegate.flows.runtime.metrics import Telemetry
    from tidegate.flows.runtime.shutdown import Drain
    from tidegate.settings.settings import load_settings

    harness = KillHarness(orders.kill)
    settings = load_settings()
    settings.store.make()
    catalogs = fixed(pickle.loads(Path(orders.catalogs).read_bytes()))
    watch_files(harness)
    watch_store(harness)
    pace = timedelta(milliseconds=orders.pace_ms)
    watch_steps(harness, pace)
    if settings.source.scheme == "kafka":
        watch_kafka(harness, pace)
    if settings.store.scheme == "redis":
        watch_redis(harness)
    harness.start()
    folder = recovery.prepare(settings.data_dir, settings.recovery_parts, settings.shards)
    cli_main(
        dataflow.build(settings, catalogs, Drain(), Telemetry()),
        workers_per_process=orders.workers,
        process_id=orders.process if orders.addresses else None,
        addresses=orders.addresses or None,
        epoch_interval=timedelta(milliseconds=orders.epoch_ms),
        recovery_config=RecoveryConfig(folder, timedelta(0)),
    )
    harness.finish()


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Orders))
