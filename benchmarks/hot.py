"""What a hot customer costs a cluster: `python -m benchmarks.hot`.

The same number of events goes through two processes, from four files: spread evenly over 1,000 customers, by Zipf with
an exponent of 1.5, and with one customer who makes half of all. Everything of one customer is metered by one worker;
but events are decoded where they are read, before they travel, which is half of the work and stays spread. Timed from
the first total in the store to the end of both processes.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import accumulate
from pathlib import Path

from benchmarks.contestants import free_ports
from tidegate.connectors.sqlite.store import SqliteReader
from tidegate.operators.model.ports import StoreError

ROOT = Path(__file__).resolve().parent.parent
CATALOG = """
meters:
  - {name: tokens, event_name: call, aggregation: {type: sum, key: tokens}}
  - {name: calls, event_name: call, aggregation: {type: count}}
"""
CUSTOMERS, FILES = 1000, 4
PATIENCE_S = 300.0


def _evenly(draw: random.Random) -> list[int]:
    return draw.choices(range(CUSTOMERS), k=1000)


def _zipf(draw: random.Random) -> list[int]:
    weights = list(accumulate(rank**-1.5 for rank in range(1, CUSTOMERS + 1)))
    return draw.choices(range(CUSTOMERS), cum_weights=weights, k=1000)


def _half(draw: random.Random) -> list[int]:
    return [0 if draw.random() < 0.5 else draw.randrange(CUSTOMERS) for _ in range(1000)]


SHAPES: dict[str, Callable[[random.Random], list[int]]] = {
    "evenly": _evenly, "Zipf 1.5": _zipf, "one makes half": _half
}  # fmt: skip


def _write(folder: Path, shape: Callable[[random.Random], list[int]], events: int) -> None:
    draw = random.Random(1)
    files = [(folder / f"in-{number}.ndjson").open("w") for number in range(FILES)]
    number = 0
    while number < events:
        for customer in shape(draw):
            second = number * 3600 // events
            files[number % FILES].write(
                f'{{"specversion":"1.0","id":"{number:012d}","source":"/gateway/eu-1","type":"call",'
                f'"subject":"cust-{customer:06d}","time":"2026-06-17T10:{second // 60:02}:{second % 60:02}Z",'
                f'"data":{{"model":"m-large","tokens":{number % 4000},"cached":false}}}}\n'
            )
            number += 1
    for file in files:
        file.close()


def _addresses(count: int) -> str:
    return ";".join(f"127.0.0.1:{port}" for port in free_ports(count))


def _counted(store: Path) -> int:
    try:
        with closing(SqliteReader(store)) as reader:
            return sum(counter.value for counter in reader.counters() if counter.name == "events")
    except StoreError:
        return 0


def _has_begun(store: Path) -> bool:
    try:
        with closing(SqliteReader(store)) as reader:
            return reader.changes(0).seq > 0
    except StoreError:
        return False


def measure(folder: Path, shape: Callable[[random.Random], list[int]], events: int, processes: int) -> float:
    """Events a second; SystemExit where they are not all counted."""
    _write(folder, shape, events)
    (folder / "catalog.yaml").write_text(CATALOG)
    settings = {
        "TIDEGATE_SOURCE": "file:in-*.ndjson",
        "TIDEGATE_STORE": "sqlite:store.db",
        "TIDEGATE_RECOVERY_PARTS": str(processes),
        "PYTHONPATH": str(ROOT),
    }
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("TIDEGATE_", "BYTEWAX_"))
    }
    addresses = _addresses(processes)
    began = ended = 0.0
    cluster = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bytewax.run",
                "-i",
                str(number),
                "-a",
                addresses,
                "tidegate.flows.metering",
            ],
            cwd=folder,
            env=kept | settings,
        )
        for number in range(processes)
    ]
    deadline = time.monotonic() + PATIENCE_S
    try:
        while any(process.poll() is None for process in cluster):
            began = began or (time.monotonic() if _has_begun(folder / "store.db") else 0.0)
            if time.monotonic() > deadline:
                raise SystemExit("the flow does not end")
            time.sleep(0.01)
        ended = time.monotonic()
    finally:
        for process in cluster:
            process.kill()
            process.wait()
    if (counted := _counted(folder / "store.db")) != events:
        raise SystemExit(f"{counted} of {events} events were counted")
    return events / (ended - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in SHAPES}
    for _ in range(given.rounds):
        for name, shape in SHAPES.items():
            with tempfile.TemporaryDirectory(prefix="tidegate-hot-") as folder:
                found[name].append(measure(Path(folder), shape, given.events, given.processes))
    even = sorted(found["evenly"])[given.rounds // 2]
    print(f"{given.events:,} events, {given.processes} processes, median of {given.rounds}")
    for name, rates in found.items():
        rate = sorted(rates)[given.rounds // 2]
        print(f"{name:16} {rate:10,.0f} events/s   {rate / even:.2f} of evenly")


if __name__ == "__main__":
    main()
