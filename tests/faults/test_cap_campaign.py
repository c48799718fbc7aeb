"""A cap of a hundred and clients that want more, while flow, service, store and clients are killed, paused and cut.

TIDEGATE_GATE_SEEDS says how many seeds are tried on each store (1), TIDEGATE_GATE_FIRST where to begin. Everything is a
process of its own. With `reserve` the events that the service took never exceed the cap, and all are counted once.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import pytest

from tests.faults.support.spender import CUSTOMER, THREADS
from tests.serving.http.served import Served
from tests.support import redis_server
from tests.support.options import option
from tests.support.places import ROOT
from tests.support.proxy import Proxy
from tests.support.servers import dies_with_us

FIRST: Final = int(option("TIDEGATE_GATE_FIRST", "0"))
SEEDS: Final = range(FIRST, FIRST + int(option("TIDEGATE_GATE_SEEDS", "1")))
CAP: Final = 100
PROCESSES: Final = 2
FAULTS: Final = 6
WITHIN_S: Final = 90
CATALOG: Final = f"""
meters: [{{name: calls, event_name: api.call, aggregation: {{type: count}}}}]
default_plan: p
plans: {{p: {{limits: {{calls: {{cap: {CAP}, fail: closed, max_lag: MAX_LAG}}}}}}}}
"""


class Child:
    """A process that is started, killed, paused and started again."""

    def __init__(self, folder: Path, words: list[str], environment: dict[str, str]) -> None:
        self._folder, self._words, self._environment = folder, words, environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "children.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._words],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_us,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self, seconds: float) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Embedded:
    """The store in one file: a process that holds its lock stands for a pause, a folder that is gone for a cut."""

    address = "sqlite:data/tidegate.db"

    def __init__(self, folder: Path) -> None:
        self._file = folder / "data" / "tidegate.db"

    def pause(self, seconds: float) -> None:
        with suppress(sqlite3.Error), closing(sqlite3.connect(self._file, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)

    def cut(self, seconds: float) -> None:
        away = self._file.with_name("away.db")
        self._file.rename(away)
        time.sleep(seconds)
        # The flow makes no new one in the meantime, as it ends; if it is started it must not find none.
        away.rename(self._file)

    kill = cut


class Remote:
    """Redis, behind a proxy that cuts."""

    def __init__(self, server: redis_server.Server) -> None:
        self._server = server
        self._proxy = Proxy(f"127.0.0.1:{server.port}")
        self.address = f"redis://{self._proxy.address}"

    def pause(self, seconds: float) -> None:
        self._server.pause()
        time.sleep(seconds)
        self._server.go_on()

    def cut(self, seconds: float) -> None:
        with self._proxy.away():
            time.sleep(seconds)

    def kill(self, seconds: float) -> None:
        self._server.kill()
        time.sleep(seconds)
        self._server.start()

    def close(self) -> None:
        self._proxy.close()


@contextmanager
def embedded(folder: Path) -> Iterator[Embedded]:
    yield Embedded(folder)


@contextmanager
def redis(folder: Path) -> Iterator[Remote]:
    with redis_server.single("appendonly yes") as server, closing(Remote(server)) as remote:
        yield remote


class Site:
    """Flow, service behind a proxy, store, and clients of `how`."""

    def __init__(self, folder: Path, store: Any, seed: int, how: str, max_lag: str) -> None:
        self.folder, self.store, self._rng = folder, store, random.Random(f"{seed} {how}")
        self._seed, self._how = seed, how
        catalog = CATALOG.replace("MAX_LAG", max_lag)
        self.served = Served(folder, catalog=catalog, STORE=store.address, INGEST="log:data/ingest/")
        self._proxy = Proxy(self.served.url.removeprefix("http://"))
        environment = self.served.environment() | {
            "TIDEGATE_SOURCE": "log:data/ingest/",
            "TIDEGATE_SHARDS": "2",
            "TIDEGATE_EPOCH": "1s",
        }
        self.flow = Child(folder, ["-m", "bytewax.run", "tidegate.flows.metering"], environment)
        self.clients = [self._client(number) for number in range(PROCESSES)]
        self._numbers = iter(range(PROCESSES, 10_000))

    def _client(self, number: int) -> Child:
        url, token = f"http://{self._proxy.address}", self.served.tokens["all"]
        words = ["-m", "tests.faults.support.spender", url, token, str(self._seed), str(number)]
        file = str(self.folder / f"accepted-{number}")
        return Child(self.folder, [*words, file, self._how], os.environ | {"PYTHONPATH": str(ROOT)})

    def start(self) -> None:
        self.flow.start()
        eventually(lambda: self.get("/readyz").status_code == 200)
        for one in self.clients:
            one.start()

    def get(self, path: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.served.tokens['all']}"}
        return httpx.get(f"{self.served.url}{path}", headers=headers, timeout=10, verify=False)

    def hurt(self) -> str:
        """Do one of the four some harm, of one of three kinds; return what it was."""
        who, how = self._rng.choice(FAULT_KINDS)
        seconds = self._rng.uniform(0.05, 0.8)
        match who:
            case "store":
                getattr(self.store, how)(seconds)
            case "service":
                self._hurt_service(how, seconds)
            case "client":
                self._hurt_client(how, seconds)
            case _ if how == "kill":
                self.flow.kill()
                time.sleep(seconds)
            case _ if self.flow.runs:
                self.flow.pause(seconds)
        if not self.flow.runs:
            self.flow.start()
        return f"{who} {how}"

    def _hurt_service(self, how: str, seconds: float) -> None:
        if how == "cut":
            with self._proxy.away():
                time.sleep(seconds)
        elif how == "kill":
            self.served.kill()
            time.sleep(seconds)
            self.served.start()
        else:
            assert self.served.process is not None
            self.served.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            self.served.process.send_signal(signal.SIGCONT)

    def _hurt_client(self, how: str, seconds: float) -> None:
        place = self._rng.randrange(len(self.clients))
        if how == "pause" and self.clients[place].runs:
            self.clients[place].pause(seconds)
        elif how == "kill":
            self.clients[place].kill()
            self.clients[place] = self._client(next(self._numbers))
            self.clients[place].start()
        else:
            self._proxy.cut()

    def taken(self) -> set[str]:
        """The ids of all events that are in the service's log."""
        read = b"".join(path.read_bytes() for path in sorted(self.folder.glob("data/ingest/*/*.ndjson")))
        # Only one lane is written, and what is being written ends without a line break.
        return {msgspec.json.decode(line)["event_id"] for line in read.split(b"\n")[:-1]}

    def accepted(self) -> set[str]:
        return {id for path in self.folder.glob("accepted-*") for id in path.read_text().split()}

    def total(self) -> int:
        (meter,) = self.get(f"/v1/customers/{CUSTOMER}/usage").json()["meters"]
        return int(meter["total"])

    def counted(self) -> tuple[bool, int]:
        """Whether the counters add up, and how many events they say are metered."""
        body = self.get("/v1/overview").json()
        return body["balanced"], body["counters"]["metered"]

    def close(self) -> None:
        for one in (self.flow, *self.clients):
            if one.process is not None:
                with suppress(ProcessLookupError):
                    one.process.send_signal(signal.SIGCONT)
                one.kill()
        self._proxy.close()
        self.served.kill()


FAULT_KINDS: Final = [
    *((who, how) for who in ("store", "service", "client") for how in ("kill", "pause", "cut")),
    ("flow", "kill"),
    ("flow", "kill"),
    ("flow", "pause"),
]


def eventually(is_so: Callable[[], bool], act: Callable[[], None] = lambda: None) -> None:
    until = time.monotonic() + WITHIN_S
    while True:
        with suppress(httpx.HTTPError, KeyError, ValueError):
            if is_so():
                return
        assert time.monotonic() < until
        act()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("store", [embedded, redis])
@pytest.mark.parametrize("seed", SEEDS)
def test_with_reserve_the_cap_is_never_exceeded(seed: int, store: Any, tmp_path: Path) -> None:
    with store(tmp_path) as found, closing(Site(tmp_path, found, seed, "reserve", "3s")) as site:
        site.start()
        done = [site.hurt() for _ in range(FAULTS)]

        def heal() -> None:
            if not site.flow.runs:
                site.flow.start()

        eventually(lambda: not any(one.runs for one in site.clients), heal)
        assert all(one.process and one.process.returncode == 0 for one in site.clients)
        taken = site.taken()
        eventually(lambda: site.total() == len(taken), heal)
        assert len(taken) <= CAP, done
        assert site.accepted() <= taken, done
        # What is not used is held for threads that were killed between a reserve and its event, or was given back
        # when all others had given up.
        unused = (done.count("client kill") + PROCESSES) * THREADS
        assert len(taken) >= CAP - unused, done
        # Counters come about a second after totals.
        eventually(lambda: site.counted() == (True, len(taken)), heal)


@pytest.mark.slow
def test_with_check_and_a_dead_flow_the_overshoot_is_bounded(tmp_path: Path) -> None:
    """What one service took counts for it at once; a flow that stays dead closes the cap after `max_lag`.

    So the clients of a service go past the cap by what they had asked for and not yet sent, one event a thread.
    """
    with embedded(tmp_path) as found, closing(Site(tmp_path, found, 0, "check", "1h")) as site:
        site.start()
        eventually(lambda: len(site.taken()) > 10)
        site.flow.kill()
        eventually(lambda: not any(one.runs for one in site.clients))
        assert CAP <= len(site.taken()) <= CAP + PROCESSES * THREADS
        site.flow.start()
        eventually(lambda: site.total() == len(site.taken()))
