"""The gate, measured: from memory, over one round trip beside the barest one, and followed through catalogs.

    python -m benchmarks.gate                     # all of it on SQLite, and on Redis if there is a redis-server
    python -m benchmarks.gate --only near,far --rounds 9
    python -m benchmarks.gate --only crowd --seeds 50

- near: a check from the near cache, in µs.
- far: a check that asks the store, and the barest thing that asks it too (Redis: GET by redis-py; SQLite: one row by
  its key), turn by turn in one process. Ratios are taken round by round.
- catalog: processes that ask a thousand times a second; ms from when `apply` returned to the first decision under it.
- crowd: 64 clients at a cap of 10,000, with kills; by how much the total went over it.
- settle: what the flow's writer pays per event for looking whether it ends a hold, in ns.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.contestants import free_ports
from benchmarks.crowd import CATALOG, CUSTOMER, METER, Crowd, address_of, holds_of
from benchmarks.ended import ENDED
from tidegate.connectors.clock import wall_clock
from tidegate.operators.columns.quantity import SCALE
from tidegate.operators.model.periods import Calendar, find_period
from tidegate.operators.model.ports import Hold, Scope, Settled
from tidegate.operators.model.records import Total
from tidegate.serving.gate import Gate

PARTS: Final = ("near", "far", "catalog", "crowd", "settle")
WAITING: Final = (0, 10, 10_000)
# Seconds from one check to the next of those who wait for a catalog.
BETWEEN: Final = 0.001
PATIENCE: Final = timedelta(seconds=5)
Report = dict[str, Any]


def main() -> None:
    options = _options()
    report: Report = {}
    with ExitStack() as stack:
        for kind in options.stores.split(","):
            server = stack.enter_context(redis_server()) if kind == "redis" else ""
            if kind == "redis" and not server:
                print("redis: no redis-server on this machine", file=sys.stderr)
                continue
            for part in options.only.split(","):
                with tempfile.TemporaryDirectory() as folder:
                    measure = MEASURES[part]
                    found = measure(Place(kind, server, Path(folder)), options)
                report[f"{part} {kind}"] = found
                print(
                    f"{part:8} {kind:7} " + ", ".join(f"{name} {value}" for name, value in found.items()),
                    flush=True,
                )
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2))


class Place:
    """An empty store at each call of `fresh`."""

    def __init__(self, kind: str, server: str, folder: Path) -> None:
        self.kind, self.server, self.folder = kind, server, folder
        self._made = 0

    def fresh(self) -> str:
        self._made += 1
        if self.kind == "sqlite":
            return f"sqlite:{self.folder}/store-{self._made}.db"
        _flush(self.server)
        return self.server


def filled(store: str, used: int = 500, cap: int = 1_000_000) -> None:
    """A catalog, and some usage of the customer."""
    start, end = find_period(Calendar("month"), "UTC", wall_clock())
    total = Total(CUSTOMER, "period", METER, start, end, used, 1, used, wall_clock(), 0, 0, 0, True)
    address_of(store).make()
    with (
        closing(address_of(store).open_writer(resumed=False)) as writer,
        closing(address_of(store).open_control()) as control,
    ):
        writer.write([total], [], heartbeats=[ENDED])
        control.apply(CATALOG.format(cap=cap), origin="cli", by="benchmark")


def near(place: Place, options: argparse.Namespace) -> Report:
    store = place.fresh()
    filled(store)
    with Gate(holds_of(store), timeout=PATIENCE) as gate:
        while "near" not in gate.counters():
            assert not (decision := gate.check(CUSTOMER, METER)).degraded, decision
        rounds = [_timed(lambda: gate.check(CUSTOMER, METER), options.checks) for _ in range(options.rounds)]
    counts = gate.counters()
    return _figures(rounds) | {"from memory": f"{counts['near'] / counts['allowed']:.2%}"}


def far(place: Place, options: argparse.Namespace) -> Report:
    store = place.fresh()
    filled(store)
    with Gate(holds_of(store), near=False, timeout=PATIENCE) as gate, bare(place, store) as barest:
        assert not (decision := gate.check(CUSTOMER, METER)).degraded, decision
        ours, theirs = [], []
        for _ in range(options.rounds):
            one, other = _in_turn(lambda: gate.check(CUSTOMER, METER), barest, options.checks // 10)
            ours.append(one)
            theirs.append(other)
    ratios = {
        f"p{q} ratio": statistics.median(
            float(np.percentile(one, q) / np.percentile(other, q))
            for one, other in zip(ours, theirs, strict=True)
        )
        for q in (50, 99)
    }
    bare_figures = {f"bare {name}": value for name, value in _figures(theirs).items()}
    return _figures(ours) | bare_figures | {name: f"{ratio:.2f}" for name, ratio in ratios.items()}


def catalog(place: Place, options: argparse.Namespace) -> Report:
    store = place.fresh()
    filled(store)
    spawn = multiprocessing.get_context("spawn")
    channel = spawn.Queue()
    askers = [
        spawn.Process(target=_ask, args=(store, channel), daemon=True) for _ in range(options.processes)
    ]
    delays: list[float] = []
    try:
        for asker in askers:
            asker.start()
        for _ in askers:
            channel.get(timeout=60)
        with closing(address_of(store).open_control()) as control:
            for n in range(options.changes):
                number = control.apply(CATALOG.format(cap=1000 + n), origin="cli", by="benchmark").number
                applied = time.monotonic()
                seen = 0
                while seen < len(askers):
                    catalog_, at = channel.get(timeout=60)
                    if catalog_ == number:
                        delays.append((at - applied) * 1e3)
                        seen += 1
    finally:
        for asker in askers:
            asker.kill()
            asker.join()
    return {
        "p50 ms": f"{np.percentile(delays, 50):.1f}",
        "p99 ms": f"{np.percentile(delays, 99):.1f}",
        "greatest ms": f"{max(delays):.1f}",
        "changes": f"{len(delays)}",
    }


def crowd(place: Place, options: argparse.Namespace) -> Report:
    """By seed, with kills; and the same once with `check` alone."""
    worst = 0
    for seed in range(options.seed_from, options.seed_from + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            crowd_ = Crowd(Path(folder), place.fresh(), "reserve", options.cap, 4, options.clients // 4, seed)
            outcome = crowd_.run(kills=8)
        assert outcome.total == outcome.sent, outcome
        worst = max(worst, outcome.total + outcome.held - options.cap)
        assert worst <= 0, f"seed {seed}: over the cap by {worst}"
    with tempfile.TemporaryDirectory() as folder:
        pause = options.clients / options.rate
        crowd_ = Crowd(Path(folder), place.fresh(), "check", options.cap, 4, options.clients // 4, 0, pause)
        alone = crowd_.run(kills=0)
    return {
        "reserve over the cap": f"{max(worst, 0)} in {options.seeds} runs",
        "check over the cap": f"{alone.total - options.cap}",
        "sent per s": f"{alone.rate:.0f}",
        "staleness p99 s": f"{alone.staleness_p99:.4f}",
        "rate × staleness": f"{alone.rate * alone.staleness_p99:.0f}",
    }


def settle(place: Place, options: argparse.Namespace) -> Report:
    """Writes of 1,000 events, without and with so many holds that wait for others."""
    events, found = 1000, {}
    rng = np.random.default_rng(1)
    for waiting in WAITING:
        store = place.fresh()
        address_of(store).make()
        now = wall_clock()
        with (
            closing(address_of(store).open_writer(resumed=False)) as writer,
            closing(holds_of(store)) as holds,
        ):
            for n in range(waiting):
                hold = Hold(f"c{n % 100}", "", str(n), {METER: SCALE}, now + 3_600_000_000)
                holds.reserve(hold, {}, Scope((METER,), 0), now)
            words = [
                Settled(*rng.integers(0, 2**63, (2, events), np.uint64)) for _ in range(options.rounds * 10)
            ]
            writer.write([], [], settled=words[:1])
            took = _timed_each([lambda word=word: writer.write([], [], settled=[word]) for word in words])
            nothing = _timed_each([lambda n=n: writer.write([_some(n)], []) for n in range(len(words))])
        found[f"ns per event, {waiting} waiting"] = f"{np.median(took) / events:.0f}"
        found["µs per write of one total"] = f"{np.median(nothing) / 1e3:.0f}"
    return found


MEASURES: Final[dict[str, Callable[[Place, argparse.Namespace], Report]]] = {
    "near": near,
    "far": far,
    "catalog": catalog,
    "crowd": crowd,
    "settle": settle,
}


def _ask(store: str, channel: Any) -> None:
    with Gate(holds_of(store), timeout=PATIENCE) as gate:
        last = -1
        while True:
            decision = gate.check(CUSTOMER, METER)
            if not decision.degraded and decision.catalog != last:
                last = decision.catalog
                channel.put((last, time.monotonic()))
            time.sleep(BETWEEN)


def _some(n: int) -> Total:
    return Total("some", "period", METER, 0, 1, n, n + 1, n, n, 0, 0, 0, True)


def _timed(call: Callable[[], object], times: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return _timed_each([call] * times)


def _timed_each(calls: list[Any]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    took = np.empty(len(calls), np.int64)
    clock = time.perf_counter_ns
    for n, call in enumerate(calls):
        begun = clock()
        call()
        took[n] = clock() - begun
    return took


def _in_turn(one: Callable[[], object], other: Callable[[], object], times: int) -> tuple[Any, Any]:
    took = _timed_each([one, other] * times)
    return took[::2], took[1::2]


def _figures(rounds: list[Any]) -> Report:
    """The medians of the rounds' percentiles, in µs."""
    quantiles = (50, 99, 99.9)
    return {
        f"p{q} µs": f"{statistics.median(float(np.percentile(took, q)) for took in rounds) / 1e3:.1f}"
        for q in quantiles
    }


@contextmanager
def bare(place: Place, store: str) -> Iterator[Callable[[], object]]:
    """The barest question to the same store."""
    if place.kind == "redis":
        import redis

        with redis.Redis.from_url(_url(store)) as client:
            client.set("bare", "x" * 100)
            yield lambda: client.get("bare")
    else:
        import sqlite3

        with closing(sqlite3.connect(store.removeprefix("sqlite:"), isolation_level=None)) as db:
            yield lambda: db.execute("SELECT value FROM meta WHERE key = 'tidegate_schema'").fetchone()


@contextmanager
def redis_server() -> Iterator[str]:
    """The address of a Redis of our own on a socket in a temporary folder; "" where there is none to start."""
    program = shutil.which("redis-server")
    if program is None:
        yield ""
        return
    with tempfile.TemporaryDirectory() as folder:
        (port,) = free_ports(1)
        server = subprocess.Popen(
            [
                program,
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--dir",
                folder,
                "--save",
                "",
                "--appendonly",
                "yes",
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            _await(port)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def _await(port: int) -> None:
    import redis

    for _ in range(200):
        try:
            with redis.Redis(port=port) as client:
                client.ping()
                return
        except redis.ConnectionError:
            time.sleep(0.05)
    raise RuntimeError("redis-server did not start")


def _url(store: str) -> str:
    return f"{store}/0"


def _flush(server: str) -> None:
    import redis

    with redis.Redis.from_url(_url(server)) as client:
        client.flushall()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stores", default="sqlite,redis")
    parser.add_argument("--only", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--checks", type=int, default=50_000, help="per round; a tenth of it where the store is asked"
    )
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--changes", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--seed-from", type=int, default=0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument(
        "--rate", type=int, default=2000, help="requests per second of the crowd with check alone"
    )
    parser.add_argument("--cap", type=int, default=10_000)
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
