"""Real flows and what their heartbeats say: alive, idle, behind, killed, drained, at the end of the input."""

import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.flows.conftest import Place
from tests.flows.meter.test_control_source import FOLLOWED, eventually, has_totals
from tidegate.connectors.sqlite.store import SqliteReader
from tidegate.operators.model.freshness import Heartbeat
from tidegate.serving.gate import Gate

CLOSED = """
meters:
  - {name: calls, event_name: api.call, aggregation: {type: count}}
default_plan: p
plans: {p: {limits: {calls: {cap: 1000000, fail: closed, max_lag: 2s}}}}
"""


def heartbeats(store: Path) -> list[Heartbeat]:
    with closing(SqliteReader(store)) as reader:
        return reader.heartbeats()


def test_a_killed_flow_closes_caps_and_a_restarted_one_opens_them(place: Place) -> None:
    (place.folder / "catalog.yaml").write_text(CLOSED)
    place.append("first.jsonl")
    settings = FOLLOWED | {"CATALOG": str(place.folder / "catalog.yaml")}
    with place.running(**settings) as process:
        eventually((place.folder / "store.db").exists)
        with closing(Gate.open(f"sqlite:{place.folder / 'store.db'}")) as gate:
            eventually(lambda: gate.check("acme", "calls").reason == "within")
            # Idle for longer than the cap's `max_lag`, and fresh all the same.
            time.sleep(2.5)
            assert gate.check("acme", "calls").reason == "within"
            process.send_signal(signal.SIGKILL)
            process.wait()
            eventually(lambda: gate.check("acme", "calls").reason == "stale")
            assert not gate.check("acme", "calls").allowed
            with place.running(**settings):
                eventually(lambda: gate.check("acme", "calls").allowed)


def test_a_flow_that_was_told_to_stop_is_no_longer_fresh(place: Place) -> None:
    place.append("first.jsonl")
    with place.running(**FOLLOWED) as process:
        eventually(lambda: has_totals(place) and len(heartbeats(place.folder / "store.db")) > 0)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert not any(one.ended for one in heartbeats(place.folder / "store.db"))


@pytest.mark.parametrize("options", [(), ("-w", "2")], ids=["one worker", "two workers"])
def test_an_input_that_ended_was_counted_to_its_end(place: Place, options: tuple[str, ...]) -> None:
    place.append("first.jsonl")
    place.run(*options)
    found = heartbeats(place.folder / "store.db")
    assert [one.shard for one in found] == list(range(4))
    assert all(one.ended for one in found)
