"""A service that was started again knows what was taken before and is not counted yet."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.http.served import Served
from tidegate.connectors.clock import wall_clock
from tidegate.connectors.log.writer import log_position
from tidegate.operators.model.freshness import Heartbeat
from tidegate.serving.http.readers import uncounted


def send(client: httpx.Client, *ids: str, customer: str = "new") -> None:
    events = [
        {"event_id": id, "customer_id": customer, "event_name": "api.call", "timestamp": moment(client)}
        for id in ids
    ]
    assert client.post("/v1/events", json=events).status_code == 202


def moment(client: httpx.Client) -> str:
    """A time of the present period."""
    return str(client.get("/v1/customers/new/usage").json()["now"])


def used(client: httpx.Client, customer: str = "new") -> str:
    answer = client.get("/v1/check", params={"customer": customer, "meter": "calls"})
    return str(answer.json()["used"])


def beat(served: Served, positions: dict[str, int], shards: int = 1) -> None:
    writer = served.writer()
    now = wall_clock()
    writer.write([], [], heartbeats=[Heartbeat(n, shards, "0", now, now, positions) for n in range(shards)])
    writer.close()


def log_of(served: Served) -> Path:
    (path,) = sorted((served.folder / "data/ingest/0").glob("*.ndjson"))[-1:]
    return path


@pytest.fixture
def filled(alone: Served) -> Served:
    """Four events in the log, of which the first two are counted, and a service that is killed."""
    alone.start()
    client = alone.client()
    send(client, "1", "2")
    counted = log_of(alone).stat().st_size
    send(client, "3", "4")
    beat(alone, {"0": log_position(int(log_of(alone).stem), counted)})
    alone.kill()
    return alone


def test_checks_know_what_was_taken_before_a_restart(filled: Served) -> None:
    filled.start()
    client = filled.client()
    assert used(client) == "2", "of four events two are in totals, which have none here"
    send(client, "5")
    assert used(client) == "3"
    # The same event again is no other one.
    send(client, "4")
    assert used(client) == "3"


def test_what_the_flow_counts_meanwhile_is_no_longer_added(filled: Served) -> None:
    filled.start()
    client = filled.client()
    path = log_of(filled)
    beat(filled, {"0": log_position(int(path.stem), path.stat().st_size)})
    for _ in range(200):
        if used(client) == "0":
            break
    assert used(client) == "0"


def test_a_line_that_was_never_answered_for_is_left_out(filled: Served) -> None:
    whole = log_of(filled).read_bytes()
    log_of(filled).write_bytes(whole[:-5])
    filled.start()
    assert used(filled.client()) == "1"


def test_a_flow_that_has_counted_nothing_yet_lacks_all_of_the_log(alone: Served) -> None:
    alone.start()
    send(alone.client(), "1", "2")
    alone.kill()
    beat(alone, {"0": 0})
    alone.start()
    assert used(alone.client()) == "2"


def test_a_flow_that_does_not_read_the_log_leaves_it_alone(filled: Served) -> None:
    beat(filled, {"elsewhere": 7})
    filled.start()
    assert used(filled.client()) == "0"


def test_a_tail_that_is_too_long_is_left_out_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(uncounted, "TAIL_BYTES", 10)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "000000000001.ndjson").write_text("{}\n" * 10)
    taken: list[Any] = []
    assert uncounted.take_up(tmp_path, [], lambda _: [], lambda *one: taken.append(one)) == 0
    assert taken == [] and "not counted yet" in caplog.text
