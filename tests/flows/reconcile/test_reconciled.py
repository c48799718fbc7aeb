"""All of it together, in real processes: metering, billing, the provider, reconciliation, and what people type."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from typing import Any

import pytest

from tests.flows.conftest import SECONDS, Place
from tests.flows.reconcile.metered import KEY
from tests.support.platform import PlatformProcess
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.sqlite.store import SqliteReader

CATALOG = """# By hand.
meters:
  - {name: tokens, event_name: llm.tokens, aggregation: {type: sum, key: tokens}}
plans: {p: {}}
"""


def eventually(is_so: Callable[[], Any]) -> None:
    """Waits until it is so; far longer than it ever takes."""
    deadline = monotonic() + SECONDS
    while not is_so():
        assert monotonic() < deadline
        sleep(0.05)


@pytest.fixture
def platform() -> Iterator[PlatformProcess]:
    process = PlatformProcess(key=KEY)
    process.simulator.set_tier("unlimited")
    process.simulator.set_switches(usage_visibility_lag_s=0, event_visibility_lag_s=0)
    yield process
    process.stop()


def settings(place: Place, platform: PlatformProcess) -> dict[str, str]:
    host = platform.url.removeprefix("http://")
    return {
        "SOURCE": "file:in.ndjson?follow=true",
        "CLOCK": "wall",
        "EPOCH": "1s",
        "CATALOG": "catalog.yaml",
        "BILLING": f"dodo://{host}?tls=false&tier=2&reads=3000&linger=0",
        "DODO_API_KEY": KEY,
        "RECONCILE_SETTLE": "1s",
    }


def tidegate(place: Place, given: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tidegate", *arguments],
        cwd=place.folder,
        env=place.environment(**given),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def send(place: Place, customer: str, *tokens: int) -> None:
    now = datetime.now(UTC)
    with (place.folder / "in.ndjson").open("a") as file:
        for number in tokens:
            event = {
                "event_id": f"{customer}-{number}", "customer_id": customer, "event_name": "llm.tokens",
                "timestamp": now.isoformat(), "metadata": {"tokens": number},
            }  # fmt: skip
            file.write(json.dumps(event) + "\n")


def acknowledged(place: Place) -> int:
    with closing(OutboxReader(place.folder / "state" / "outbox.db")) as reader:
        return reader.read_statistics().counts.get("acknowledged", 0)


def total(place: Place, customer: str) -> str | None:
    with closing(SqliteReader(place.folder / "store.db")) as reader:
        found = [str(one.total) for one, _ in reader.read(customer) if one.window == "period"]
    return found[0] if found else None


def test_what_customers_see_is_set_right_through_the_flow_and_stays(
    place: Place, platform: PlatformProcess
) -> None:
    """Periods are pulled, a lost event is sent again, another producer's is adopted; later events come on top."""
    simulator = platform.simulator
    meter = simulator.create_meter("llm.tokens", "sum", "tokens", name="tokens")
    product = simulator.create_product([{"meter_id": meter, "price_per_unit": "1", "free_threshold": 50}])
    acme, globex = simulator.create_customer(), simulator.create_customer()
    now = datetime.now(UTC)
    dates = {"start": (now - timedelta(days=5)).isoformat(), "end": (now + timedelta(days=25)).isoformat()}
    for who in (acme, globex):
        simulator.create_subscription(who, product, **dates)
    (place.folder / "catalog.yaml").write_text(CATALOG)
    (place.folder / "in.ndjson").touch()
    given = settings(place, platform)

    shown = tidegate(place, given, "catalog", "pull")
    assert shown.returncode == 0, shown.stderr
    assert f"+  {acme}:" in shown.stdout and "Nothing is applied" in shown.stdout
    pulled = tidegate(place, given, "catalog", "pull", "--apply")
    assert "applied as catalog version 2" in pulled.stdout, pulled.stderr
    assert "Nothing to change" in tidegate(place, given, "catalog", "pull").stdout

    with place.running(**given):
        send(place, acme, 5, 7)
        send(place, globex, 11)
        eventually(lambda: (place.folder / "state" / "outbox.db").exists() and acknowledged(place) == 3)
        lost = next(e["event_id"] for e in simulator.list_events() if e["metadata"] == {"tokens": 7})
        simulator.drop(lost)
        other = {
            "event_id": "evt_other",
            "customer_id": globex,
            "event_name": "llm.tokens",
            "metadata": {"tokens": 9},
        }
        simulator.insert(other)
        # What was acknowledged lately may not show yet, and is no drift.
        sleep(1)
        dry = tidegate(place, given, "reconcile", "--once")
        assert dry.returncode == 1, dry.stderr
        assert "would resend" in dry.stdout and "would adjust" in dry.stdout
        assert total(place, globex) == "11"
        repaired = tidegate(place, given, "reconcile", "--once", "--repair")
        assert repaired.returncode == 1, repaired.stderr
        eventually(lambda: total(place, globex) == "20")
        eventually(lambda: lost in {e["event_id"] for e in simulator.list_events()})
        send(place, globex, 13)
        eventually(lambda: total(place, globex) == "33" and acknowledged(place) == 5)
        assert total(place, acme) == "12"
        agreed = tidegate(place, given, "reconcile", "--once")
        assert agreed.returncode == 0, agreed.stdout + agreed.stderr
        units = {
            u["customer_id"]: u["items"][0]["meters"][0]["consumed_units"] for u in simulator.read_usage()
        }
        assert units == {acme: "12", globex: "33"}
        for printed in (shown, pulled, dry, repaired, agreed):
            assert "hunter2" not in printed.stdout + printed.stderr
    with place.running(**given):
        # A restart keeps the adjustment, and makes it no second time.
        send(place, globex, 1)
        eventually(lambda: total(place, globex) == "34")
    written = [path for path in place.folder.rglob("*") if path.is_file()]
    assert not [path for path in written if b"hunter2" in path.read_bytes()]


def test_reconcile_says_what_is_wrong_with_its_settings(place: Place, platform: PlatformProcess) -> None:
    given = settings(place, platform)
    (place.folder / "catalog.yaml").write_text(CATALOG)
    wrong = tidegate(place, given | {"BILLING": "file:billing/"}, "reconcile", "--once")
    assert wrong.returncode == 1 and "needs dodo:" in wrong.stderr
    key = tidegate(place, given | {"DODO_API_KEY": "hunter2-wrong"}, "catalog", "pull")
    assert key.returncode == 1 and "refuses the API key" in key.stderr and "hunter2" not in key.stderr
    none = tidegate(place, given, "reconcile", "--show")
    assert none.returncode == 1 and "there is no such file; run `tidegate reconcile`" in none.stderr
