"""The simulator as a developer starts it: one command, an address, and a file that outlives a kill."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from simulator.client import Simulator
from simulator.state.platform import Platform
from simulator.state.storage import SqliteFile
from tests.simulator.conftest import event, history, ingest
from tests.support.platform import PlatformProcess, in_process


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[PlatformProcess]:
    process = PlatformProcess(tmp_path / "platform.db", seed=5)
    yield process
    process.stop()


def test_what_it_holds_outlives_a_kill(durable: PlatformProcess) -> None:
    """Else a crash of the simulator would look like a loss of ours."""
    sim = durable.simulator
    sim.set_tier("unlimited")
    sim.set_switches(
        usage_visibility_lag_s=0, event_visibility_lag_s=0, unknown_customer="accept_unattributed"
    )
    sim.set_clock("2030-01-01T00:00:00Z", rate=0)
    meter, customer = (
        sim.create_meter("tokens", "sum", "n"),
        sim.create_customer("cus_a", metadata={"tenant": 1}),
    )
    subscription = sim.create_subscription(customer, sim.create_product([meter]))
    ingest(sim, event("a", metadata={"n": 1.5, "ok": True}), event("b", customer="nobody"), event("c"))
    sim.drop("c", remember=True)
    sim.double("a")
    sim.skew(subscription, meter, "10")
    hook = sim.api.post("/webhooks", json={"url": "http://127.0.0.1:9/"}).json()["id"]
    secret = sim.api.get(f"/webhooks/{hook}/secret").json()
    kept = {key: value for key, value in sim.read_state().items() if key not in ("faults", "requests")}
    events, used = list(sim.list_events()), history(sim, subscription)
    assert used[0]["meters"][0]["consumed_units"] == "13"
    durable.kill()
    durable.start()
    sim = durable.simulator
    assert {
        key: value for key, value in sim.read_state().items() if key not in ("faults", "requests")
    } == kept
    assert list(sim.list_events()) == events
    assert history(sim, subscription) == used
    assert sim.api.get(f"/webhooks/{hook}/secret").json() == secret
    assert ingest(sim, event("a"), event("c"), event("d")).json() == {"ingested_count": 1}
    assert sim.create_customer() not in {one["customer_id"] for one in kept["customers"]}


def test_an_answer_means_that_it_is_kept(durable: PlatformProcess) -> None:
    """Killed between any two answers, it still has whatever it said 200 to."""
    durable.simulator.create_customer("cus_a")
    durable.simulator.set_tier("unlimited")
    said: list[str] = []
    for number in range(40):
        batch = [event(f"{number}-{index}") for index in range(25)]
        if ingest(durable.simulator, *batch).status_code == 200:
            said += [one["event_id"] for one in batch]
        if number in (3, 19):
            durable.kill()
            durable.start()
    assert [one["event_id"] for one in durable.simulator.list_events()] == said


def test_a_database_goes_on_with_its_own_seed_and_keys(tmp_path: Path) -> None:
    first = Platform(7, key="first", storage=SqliteFile(tmp_path / "platform.db"))
    made = first.new_id("cus")
    first.close()
    again = Platform(8, key="second", storage=SqliteFile(tmp_path / "platform.db"))
    assert (again.memory.seed, again.new_id("cus") != made, again.memory.keys) == (
        7,
        True,
        {"first": "read_write"},
    )
    again.close()


def test_it_dies_with_its_parent() -> None:
    """A test run that is killed leaves no server behind."""
    code = (
        "import os, signal\n"
        "from tests.support.platform import PlatformProcess\n"
        "process = PlatformProcess()\n"
        "print(process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    pid = int(run.stdout)
    for _ in range(1000):
        if not _is_alive(pid):
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"process {pid} lives on")


def _is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_webhooks_go_out_by_themselves(platform: Simulator) -> None:
    got: list[str] = []
    arrived = threading.Event()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()
            got.append(json.loads(body)["type"])
            arrived.set()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            assert platform.api.post("/webhooks", json={"url": url}).status_code == 200
            platform.create_subscription(platform.create_customer(), platform.create_product([]))
            assert arrived.wait(10)
        finally:
            platform.set_switches(webhook_auto=False)
            server.shutdown()
            thread.join()
    assert set(got) == {"subscription.active"}


def test_a_hurried_clock(platform: Simulator) -> None:
    """An hour a second, so that an outage of three hours need not be waited for."""
    platform.set_clock("2030-01-01T00:00:00Z", rate=3600)
    first = platform.read_now()
    threading.Event().wait(0.05)
    assert platform.read_now() > first > datetime(2030, 1, 1, tzinfo=UTC)


def test_many_at_once_lose_nothing(platform: Simulator) -> None:
    platform.create_customer("cus_a")
    platform.set_tier("unlimited")

    def send(worker: int) -> None:
        with httpx.Client(base_url=platform.url, headers=platform.api.headers, trust_env=False) as client:
            for number in range(20):
                batch = {"events": [event(f"{worker}-{number}-{index}") for index in range(10)]}
                assert client.post("/events/ingest", json=batch).status_code == 200

    workers = [threading.Thread(target=send, args=(worker,)) for worker in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({one["event_id"] for one in platform.list_events()}) == 8 * 20 * 10


def test_without_a_socket() -> None:
    with in_process(seed=3, key="another") as sim:
        sim.create_customer("cus_a")
        assert ingest(sim, event()).json() == {"ingested_count": 1}
        assert sim.read_state()["seed"] == 3


def test_a_reset_forgets_everything(sim: Simulator) -> None:
    sim.create_customer("cus_a")
    ingest(sim, event())
    sim.add_fault("error", times=None)
    sim.set_switches(order="as_stored")
    sim.reset(9)
    state = sim.read_state()
    assert (state["seed"], state["events"], state["requests"], state["customers"]) == (9, 0, 0, [])
    assert (state["faults"], state["switches"]["order"]) == ({"rules": [], "scripts": []}, "newest_first")
