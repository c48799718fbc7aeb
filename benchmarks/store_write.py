"""What a row costs to write into the SQLite store: µs per total, inserted and then updated.

Totals of three windows per customer, fresh for each round and out of order, are written as a flow does it,
a shard per call. Run: `python -m benchmarks.store_write [totals]`.
"""

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from connectors.sqlite import SqliteWriter
from operators.keys import shard_of
from operators.records import Total, Window

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
                    yield Total(
                        customer,
                        window,
                        "api_calls",
                        START,
                        end,
                        used,
                        version,
                        version,
                        as_of,
                        0,
                        0,
                        0,
                        True,
                    )

    return random.Random(shard).sample(drawn := list(totals()), len(drawn))


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(SqliteWriter(Path(folder, "store.db"))) as writer:
        for version, act in enumerate(("insert", "update", "update", "update"), 1):
            took, written = 0.0, 0
            for shard in range(SHARDS):
                totals = totals_of_a_shard(shard, rows // len(WINDOWS), version)
                begun = time.perf_counter()
                writer.write(totals, [])
                took += time.perf_counter() - begun
                written += len(totals)
            print(f"{act} {written} totals: {took / written * 1e6:.2f} µs each")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300_000)
