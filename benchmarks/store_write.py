"""What a row costs to write into a store: µs per total, inserted and then updated, and of it the µs of this process.

Totals of three windows per customer, fresh for each round and out of order, are written as a flow does it,
a shard per call. Run: `python -m benchmarks.store_write [totals] [address]`. Without an address it writes into SQLite;
with one, such as `redis://localhost:6379?prefix=bench`, it writes there, and what is written stays.
"""

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing

from tidegate.operators.events.keys import shard_of
from tidegate.operators.model.ports import StoreWriter
from tidegate.operators.model.records import Total, Window
from tidegate.settings.settings import load_settings

SHARDS = 16
HOUR = 3_600_000_000
START = 1_704_067_200_000_000
WINDOWS: dict[Window, int] = {"period": 31 * 24 * HOUR, "day": 24 * HOUR, "hour": HOUR}


def totals_of_a_shard(shard: int, customers: int, version: int) -> list[Total]:
    """The totals of those of `customers` that live in `shard`, shuffled."""

    def totals() -> Iterator[Total]:
        for n in range(customers):
            if shard_of(customer := f"customer_{n:07}", SHARDS) == shard:
                for window, length in WINDOWS.items():
                    end, used, as_of = START + length, 1000 * version + n, START + version
                    times = (START, end, used, version, version, as_of)
                    yield Total(customer, window, "api_calls", *times, 0, 0, 0, True)

    return random.Random(shard).sample(drawn := list(totals()), len(drawn))


def write(writer: StoreWriter, rows: int) -> None:
    for version, act in enumerate(("insert", "update", "update", "update"), 1):
        took, own, written = 0.0, 0.0, 0
        for shard in range(SHARDS):
            totals = totals_of_a_shard(shard, rows // len(WINDOWS), version)
            begun, used = time.perf_counter(), time.process_time()
            writer.write(totals, [])
            took += time.perf_counter() - begun
            own += time.process_time() - used
            written += len(totals)
        each, ours = took / written * 1e6, own / written * 1e6
        print(f"{act} {written} totals: {each:.2f} µs each, {ours:.2f} of them here")


def main(rows: int, address: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        given = {"source": "file:-", "store": address or f"sqlite:{folder}/store.db"}
        store = load_settings(given).store
        store.make()
        with closing(store.open()) as writer:
            write(writer, rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300_000, sys.argv[2] if len(sys.argv) > 2 else None)
