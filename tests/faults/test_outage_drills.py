"""What dies, and what the gate, the probes, the pages, the metrics and the alerts say: docs/outages.md, row by row.

A real flow and a real service, on the embedded store and on Redis. Each row is reached within WITHIN_S.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.http.served import Served
from tests.support import redis_server

CATALOG = """
meters:
  - {name: shut, event_name: api.call, aggregation: {type: count}}
  - {name: open, event_name: api.call, aggregation: {type: count}}
default_plan: p
plans: {p: {limits: {shut: {cap: 3, fail: closed, max_lag: 3s}, open: {cap: 3, fail: open, max_lag: 3s}}}}
"""
# Far longer than the seconds that docs/outages.md says, as the suite shares its cores.
WITHIN_S = 60


class Site:
    """A flow on the service's log, the service, and their store."""

    def __init__(self, folder: Path, store: str) -> None:
        self.served = Served(folder, catalog=CATALOG, STORE=store, MAX_LAG="3s", INGEST="log:data/ingest/")
        self.client = self.served.client()
        self.said = ""
        self.flow = self.start_flow()

    def start_flow(self) -> "subprocess.Popen[bytes]":
        environment = self.served.environment() | {
            "TIDEGATE_SOURCE": "log:data/ingest/",
            "TIDEGATE_SHARDS": "4",
            "TIDEGATE_EPOCH": "1s",
        }
        with (self.served.folder / "flow.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "bytewax.run", "tidegate.flows.metering"],
                cwd=self.served.folder,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def end_flow(self) -> None:
        with suppress(ProcessLookupError):
            self.flow.send_signal(signal.SIGCONT)
            self.flow.kill()
        self.flow.wait()

    def send(self, id: str) -> int:
        event = {
            "event_id": id,
            "customer_id": "acme",
            "event_name": "api.call",
            "timestamp": datetime.now(UTC).isoformat(),
        }
        return self.client.post("/v1/events", json=event).status_code

    def check(self, meter: str) -> dict[str, Any]:
        answer = self.client.get("/v1/check", params={"customer": "acme", "meter": meter})
        found: dict[str, Any] = answer.json()
        return found

    def alerts(self) -> list[tuple[str, str]]:
        """Kind and state of each alert that is shown."""
        return [(one["kind"], one["state"]) for one in self.client.get("/v1/alerts").json()["alerts"]]

    def status(self, path: str) -> int:
        return self.client.get(path).status_code

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def says(self, gate: str, ready: int, flow: str) -> bool:
        """Whether the gate, the probe, the overview and the metric say this; a row of the table."""
        shut, open_ = self.check("shut"), self.check("open")
        found = (
            (shut["reason"], shut["allowed"], open_["reason"], open_["allowed"]),
            (self.status("/readyz"), self.status("/readyz?check=service")),
            self.client.get("/v1/overview").json()["flow"]["state"],
            self.metric("tidegate_flow_shards_behind") > 0,
        )
        self.said = f"found {found}"
        return found == (
            (gate, gate == "within", gate, True),
            (ready, 200),
            flow,
            flow == "behind",
        )

    def says_without_store(self, *, shut: bool, open_: bool) -> bool:
        """Whether each cap decides by its `fail`."""
        found = self.check("shut"), self.check("open")
        reasons = {one["reason"] for one in found}
        return reasons == {"unavailable"} and [one["allowed"] for one in found] == [shut, open_]


def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN_S
    while True:
        with suppress(httpx.HTTPError, KeyError):
            if is_so():
                return
        assert time.monotonic() < until
        time.sleep(0.1)


@contextmanager
def embedded() -> Iterator[tuple[str, Callable[[Path], None], Callable[[Path], None]]]:
    """The address of a store, what takes it away, and what brings it back."""

    def hide(folder: Path) -> None:
        (folder / "data/tidegate.db").rename(folder / "hidden.db")

    def show(folder: Path) -> None:
        (folder / "hidden.db").rename(folder / "data/tidegate.db")

    yield "sqlite:data/tidegate.db", hide, show


@contextmanager
def redis() -> Iterator[tuple[str, Callable[[Path], None], Callable[[Path], None]]]:
    with redis_server.single("appendonly yes") as server:

        def kill(folder: Path) -> None:
            server.kill()

        def start(folder: Path) -> None:
            server.start()

        yield f"redis://127.0.0.1:{server.port}", kill, start


@pytest.mark.slow
@pytest.mark.parametrize("store", [embedded, redis])
def test_every_row_of_the_table(store: Any, tmp_path: Path) -> None:
    with store() as (address, take_away, bring_back):
        site = Site(tmp_path, address)
        try:
            eventually(lambda: site.client.get("/v1/overview").json()["flow"]["shards"] == 4)
            eventually(lambda: site.says("within", 200, "live"))
            assert site.send("1") == 202
            assert site.check("shut")["used"] == "1"

            # The flow hangs, and goes on.
            site.flow.send_signal(signal.SIGSTOP)
            eventually(lambda: site.says("stale", 503, "behind"))
            site.flow.send_signal(signal.SIGCONT)
            eventually(lambda: site.says("within", 200, "live"))

            # The flow is killed. What the service accepts meanwhile counts at once.
            site.end_flow()
            assert site.send("2") == 202
            assert site.check("open")["used"] == "2"
            eventually(lambda: site.says("stale", 503, "behind"))
            eventually(lambda: ("flow_behind", "raised") in site.alerts())
            assert site.send("3") == 202
            assert not site.check("open")["allowed"], "three of three are used"

            # It is started again and has missed nothing.
            site.flow = site.start_flow()
            eventually(lambda: site.status("/readyz") == 200)
            eventually(
                lambda: site.client.get("/v1/customers/acme/usage").json()["meters"][0]["total"] == "3"
            )
            assert site.check("shut")["reason"] == "cap_reached"

            # The store is away, and back.
            take_away(tmp_path)
            eventually(lambda: site.says_without_store(shut=False, open_=True))
            eventually(lambda: site.status("/readyz") == 503 and site.status("/readyz?check=service") == 503)
            eventually(lambda: site.status("/v1/customers/acme/usage") == 503)
            eventually(lambda: site.metric("tidegate_store_reachable") == 0)
            bring_back(tmp_path)
            if site.flow.poll() is not None:
                site.flow = site.start_flow()
            eventually(lambda: site.check("shut")["reason"] in ("cap_reached", "stale"))

            # The service is killed and started again, and the flow is dead: what was taken before counts all the same.
            site.end_flow()
            assert site.send("4") == 202
            site.served.kill()
            site.served.start()
            site.client = site.served.client()
            assert site.check("shut")["allowed"] is False
            eventually(lambda: site.check("open")["used"] == "4")
        finally:
            site.end_flow()
            site.served.kill()
