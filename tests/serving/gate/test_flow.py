"""The gate and the real flow on one store: what is reserved becomes usage when its event is metered, and not before."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from tests.flows.conftest import Place
from tests.serving.gate.fakes import METERS
from tests.serving.gate.test_sqlite_faults import soon
from tidegate.connectors.sqlite.holds import SqliteHolds
from tidegate.serving.gate import Gate

CATALOG = f"{METERS}default_plan: p\nplans: {{p: {{limits: {{tokens: {{cap: 100, fail: closed}}}}}}}}\n"
LONG = timedelta(minutes=10)


def in_cloud_events(id: str, n: str) -> str:
    now = datetime.now(UTC).isoformat()
    start = f'{{"specversion": "1.0", "id": "{id}", "source": "/llm", "type": "llm", "subject": "acme", '
    return f'{start}"time": "{now}", "data": {{"n": {n}}}}}\n'


def in_dodos_shape(id: str, n: str) -> str:
    event = {
        "event_id": id,
        "customer_id": "acme",
        "event_name": "llm",
        "timestamp": datetime.now(UTC).isoformat(),
    }
    return json.dumps({**event, "metadata": {"n": float(n)}}) + "\n"


def test_what_is_reserved_becomes_usage_when_its_event_is_metered(tmp_path: Path) -> None:
    """Whichever shape it comes in, killed flows and repeats included; and the cap is exact all along."""
    place = Place(tmp_path)
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    place.settings |= {"CATALOG": "catalog.yaml", "SOURCE": "file:in.ndjson?follow=true", "BRANCHES": "store"}
    events = tmp_path / "in.ndjson"
    events.touch()

    def send(shape: Callable[[str, str], str], id: str, n: str) -> None:
        with events.open("a") as file:
            file.write(shape(id, n))

    store = SqliteHolds(tmp_path / "store.db")
    with Gate(store, source="/llm", near=False, fail="closed", timeout=timedelta(seconds=5)) as gate:

        def stands(used: str, reserved: str) -> bool:
            decision = gate.check("acme", "tokens", 0)
            # They move together: usage is never missing and never there twice.
            whole = Decimal(used) + Decimal(reserved)
            if not decision.degraded:
                assert decision.used is not None and decision.reserved is not None
                assert decision.used + decision.reserved == whole
            return (decision.used, decision.reserved) == (Decimal(used), Decimal(reserved))

        with place.running():
            soon(lambda: not gate.check("acme", "tokens").degraded)
            assert gate.reserve("acme", "tokens", 60, LONG, id="1").allowed
            assert not gate.reserve("acme", "tokens", 41, LONG, id="2").allowed
            assert gate.commit("acme", "1", Decimal("40.5")).state == "committed"
            assert stands("0", "40.5")
            send(in_cloud_events, "1", "40.5")
            soon(lambda: stands("40.5", "0"))
            assert gate.reserve("acme", "tokens", 59, LONG, id="2", source="").allowed
            send(in_dodos_shape, "2", "59")
            soon(lambda: stands("99.5", "0"))
            # Repeats of the event and of the reserve change nothing.
            send(in_cloud_events, "1", "40.5")
            again = gate.reserve("acme", "tokens", 60, LONG, id="1")
            assert (again.allowed, again.reason) == (True, "settled")
            assert gate.reserve("acme", "tokens", Decimal("0.5"), LONG, id="3").allowed
        # The flow is dead; what is held is held.
        assert stands("99.5", "0.5") and not gate.check("acme", "tokens", Decimal("0.1")).allowed
        send(in_cloud_events, "3", "0.25")
        assert stands("99.5", "0.5")
        with place.running():
            soon(lambda: gate.check("acme", "tokens", 0).used == Decimal("99.75"))
            assert stands("99.75", "0")
            # A flow that begins does not know at once how far it has come.
            soon(lambda: not gate.check("acme", "tokens", 0).degraded)
            assert gate.check("acme", "tokens", Decimal("0.25")).allowed
            assert not gate.check("acme", "tokens", Decimal("0.26")).allowed
