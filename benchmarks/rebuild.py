"""How long it takes until a Redis that was emptied is whole again: seconds, for so many keys (customers and meters).

A flow counts one event of each customer, follows the file, and idles; Redis is emptied, and the store is asked until it
is complete again and has every customer. Totals of three windows per key are written.
Run: `python -m benchmarks.rebuild [keys]`. Starts a Redis of its own (tests/support/redis_server.py).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from tests.support import redis_server
from tidegate.connectors.redis.reader import RedisReader
from tidegate.operators.model.ports import StoreError

CATALOG = """\
meters:
  - {name: calls, event_name: call, aggregation: {type: count}}
default_plan: p
plans: {p: {limits: {calls: {cap: 1000000}}}}
"""
PATIENCE_S = 1800.0


def written(path: Path, keys: int) -> None:
    """One event of each customer, as CloudEvents."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with path.open("w") as file:
        for n in range(keys):
            file.write(
                f'{{"specversion":"1.0","id":"{n}","source":"bench","type":"call","subject":"customer_{n:07}",'
                f'"time":"{now}","data":{{}}}}\n'
            )


def flow(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    settings = {
        "SOURCE": "file:in.ndjson?follow=true",
        "STORE": f"redis://127.0.0.1:{port}",
        "CATALOG": "catalog.yaml",
        "ALERTS": "file:alerts.ndjson",
        "DATA_DIR": "state",
    }
    given = {f"TIDEGATE_{name}": value for name, value in settings.items()}
    environment = {**os.environ, **given, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "bytewax.run", "tidegate.flows.metering"]
    return subprocess.Popen(command, cwd=folder, env=environment)


def counted(reader: RedisReader) -> int:
    return sum(counter.value for counter in reader.counters() if counter.name == "accepted")


def waited(what: Callable[[], object]) -> float:
    """Seconds until it is so."""
    begun = time.monotonic()
    while True:
        # While it is not all there, reading is refused.
        with suppress(StoreError):
            if what():
                return time.monotonic() - begun
        if time.monotonic() - begun > PATIENCE_S:
            raise SystemExit("waited in vain")
        time.sleep(0.05)


def main(keys: int) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(redis_server.single("appendonly no"))
        (folder / "catalog.yaml").write_text(CATALOG)
        written(folder / "in.ndjson", keys)
        process = flow(folder, server.port)
        stack.callback(process.kill)
        reader = stack.enter_context(closing(RedisReader(hosts=[("127.0.0.1", server.port)])))
        took = waited(lambda: counted(reader) == keys and len(reader.names()) == keys)
        print(f"{keys} keys: first written in {took:.1f} s")
        facts = dict(line.partition(b":")[::2] for line in server.ask("INFO", "memory").split(b"\r\n"))
        print(f"{int(facts[b'used_memory']) / keys:.0f} bytes of Redis a key")
        server.ask("FLUSHALL")
        print(f"whole again after {waited(lambda: len(reader.names()) == keys):.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
