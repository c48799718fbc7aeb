"""What a flow accepts and does not meter, from its input to every place that shows it, also across a change."""

import json
from contextlib import closing
from pathlib import Path

from tests.flows.conftest import SCENARIOS, Place
from tidegate.connectors.sqlite.store import SqliteReader
from tidegate.serving.http.readers.unmetered import read_unmetered, reasons_of
from tidegate.serving.http.schemas import UnmeteredBody
from tidegate.serving.views.balance import summed, unbalanced

KNOWS_JOBS = """meters:
  - {name: calls, event_name: call, aggregation: {type: count}}
  - {name: tokens, event_name: call, aggregation: {type: sum, key: tokens}}
  - {name: jobs, event_name: job, aggregation: {type: sum, key: n}, numbers: text}
on_unmetered: dead_letter
"""


def append(place: Place, *events: tuple[str, str, str, object]) -> None:
    with (place.folder / "in.ndjson").open("a") as file:
        for id, customer, name, data in events:
            event = {"specversion": "1.0", "id": id, "source": "api", "type": name, "subject": customer}
            file.write(json.dumps(event | {"time": "2026-06-17T12:00:00Z", "data": data}) + "\n")


def causes(place: Place, customer: str | None = None) -> dict[tuple[str, str], UnmeteredBody]:
    with closing(SqliteReader(place.folder / "store.db")) as reader:
        assert unbalanced(summed(reader.counters())) == []
        return {(each.event_name, each.reason): each for each in read_unmetered(reader, customer, 100)}


def test_what_no_meter_reads_is_named_counted_and_announced_once(place: Place, tmp_path: Path) -> None:
    """Over two runs and a catalog that learns the name; what came before stays as it was counted."""
    append(
        place,
        ("1", "acme", "job", {"n": 1}),
        ("2", "globex", "job", {"n": 2}),
        ("3", "acme", "call", {"tokens": "5"}),
    )
    place.run()
    found = causes(place)
    jobs = found["job", "unknown_name"]
    assert (jobs.events, jobs.text) == (2, "no meter takes events of the name 'job'")
    assert (jobs.customer, jobs.event_id) in {("acme", "1"), ("globex", "2")}
    assert found["call", "text_number"].partly and found["call", "text_number"].meter == "tokens"
    assert {each.event_id for each in causes(place, "acme").values()} == {"1", "3"}
    assert causes(place, "globex")["job", "unknown_name"].event_id == "2"
    assert (place.counters()["metered"], place.counters()["unmetered"]) == (1, 2)
    told = [alert for alert in place.alerts() if alert[1] == "unmetered"]
    ids = [json.loads(line)["id"] for line in (tmp_path / "alerts.ndjson").read_text().splitlines()]
    # One for each cause and shard, those of a cause under one id.
    assert len(told) in (2, 3) and len(set(ids)) == 2

    catalog = tmp_path / "knows-jobs.yaml"
    catalog.write_text(KNOWS_JOBS)
    append(place, ("4", "acme", "job", {"n": "7"}), ("5", "acme", "task", {}), ("1", "acme", "job", {"n": 1}))
    place.run(CATALOG=str(catalog))
    assert place.periods()["acme", "jobs"] == "7"
    assert causes(place)["job", "unknown_name"].events == 2
    assert place.dead() == ["unmetered"]
    counters = place.counters()
    assert (counters["metered"], counters["unmetered"], counters["duplicates"]) == (2, 2, 1)
    with closing(SqliteReader(place.folder / "store.db")) as reader:
        assert reasons_of(summed(reader.counters())) == {"unknown_name": 2}

    append(place, ("6", "acme", "job", {}), ("7", "acme", "task", {}))
    place.run(CATALOG=str(SCENARIOS / "catalog.yaml"))
    assert causes(place)["job", "unknown_name"].events == 3
    assert [alert for alert in place.alerts() if alert[1] == "unmetered"].count(
        ("", "unmetered", "announced", "unknown_name")
    ) == 3, "job in both shards and task, and job not again"
