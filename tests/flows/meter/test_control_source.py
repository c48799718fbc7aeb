"""The control input of a running flow: adjustments, requests to resend, and catalogs that change under way."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.request import urlopen

import pytest

from tests.flows.conftest import SCENARIOS, SECONDS, Place
from tests.support.ports import free_addresses
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.store import SqliteReader
from tidegate.operators.model.adjustments import USED_BEFORE
from tidegate.operators.model.ports import Adjustment, Note, Resend
from tidegate.settings.catalog.versions import apply_text

FOLLOWED = {"SOURCE": "file:in.ndjson?follow=true", "EPOCH": "1s"}
JUNE_17 = 1_781_690_400_000_000
"""2026-06-17T10:00Z"""
TOKENS = ("acme", "tokens")


def eventually(is_so: Callable[[], Any]) -> None:
    """Waits until it is so; far longer than it ever takes."""
    deadline = monotonic() + SECONDS
    while not is_so():
        assert monotonic() < deadline
        sleep(0.03)


def control(place: Place) -> closing[SqliteControl]:
    return closing(SqliteControl(place.folder / "store.db"))


def adjustment(id: str, quantity: str, **fields: Any) -> Adjustment:
    given: dict[str, Any] = {"customer": "acme", "meter": "tokens", "at": JUNE_17}
    return Adjustment(id=id, quantity=quantity, **(given | {"reason": "test", "by": "ops"} | fields))


def notes(place: Place, kind: str) -> list[Note]:
    with closing(SqliteReader(place.folder / "store.db")) as reader:
        return reader.notes(kind)


def has_totals(place: Place) -> bool:
    return (place.folder / "store.db").exists() and TOKENS in place.periods()


def test_an_adjustment_stands_beside_later_events_and_counts_once(place: Place) -> None:
    """A repair must neither be lost in a crash nor be made a second time by the restart."""
    place.append("first.jsonl")
    with place.running(**FOLLOWED):
        eventually(lambda: has_totals(place) and place.periods()[TOKENS] == "33.6")
        with control(place) as log:
            log.append(adjustment("1", "-3.5"))
            eventually(lambda: place.periods()[TOKENS] == "30.1")
            place.append("second.jsonl")
            eventually(lambda: place.periods()[TOKENS] == "130.1")
            log.append(adjustment("1", "-3.5"))
            log.append(adjustment("2", "0.9"))
            eventually(lambda: place.periods()[TOKENS] == "131")
    with place.running(**FOLLOWED), control(place) as log:
        log.append(adjustment("3", "1", customer="late", at=JUNE_17))
        eventually(lambda: place.periods().get(("late", "tokens")) == "1")
        assert place.periods()[TOKENS] == "131"
    totals = [total for total in place.totals().values() if (total.customer, total.meter) == TOKENS]
    assert {str(total.adjustment) for total in totals if total.window == "period"} == {"-2.6"}
    assert {note.id: json.loads(note.body)["refused"] for note in notes(place, "adjustment")} == {
        "1": None,
        "2": None,
        "3": None,
    }


def test_what_cannot_be_adjusted_is_said(place: Place) -> None:
    place.append("first.jsonl")
    with place.running(**FOLLOWED):
        eventually(lambda: has_totals(place))
        with control(place) as log:
            log.append(adjustment("meter", "1", meter="nothing"))
            log.append(adjustment("period", "1", at=JUNE_17 - 90 * 86_400_000_000))
            log.append(adjustment("number", "a lot"))
            log.append(adjustment("long", "1", customer="c" * 300))
            for at in (-1_388_534_400_000_000, 253_402_300_799_000_000, 10**30):
                log.append(adjustment(f"zoned {at}", "1", customer="initech", at=at))
                log.append(adjustment(f"ever {at}", "1", customer="ever", at=at))
            with closing(sqlite3.connect(place.folder / "store.db")) as db, db:
                db.execute('INSERT INTO control (id, body) VALUES (\'g\', \'{"type": "grant", "id": "g"}\')')
            log.append(adjustment("last", "0.4"))
            eventually(lambda: len(notes(place, "adjustment")) == 11)
        refused = {note.id: json.loads(note.body)["refused"] for note in notes(place, "adjustment")}
        assert refused["meter"] == "no meter 'nothing'"
        assert refused["period"] == "its period is no longer held"
        assert refused["number"].startswith("quantity: needs a decimal")
        assert refused["long"] == "customer: needs 1 to 256 characters, got 300"
        assert all(why == "at: needs 2000-01-01 to 2099-12-31" for id, why in refused.items() if " " in id)
        eventually(lambda: place.periods()[TOKENS] == "34")
    place.run()


@pytest.mark.parametrize("older", [False, True], ids=["lost", "put back"])
def test_a_store_that_was_lost_takes_adjustments_and_is_filled_again(place: Place, older: bool) -> None:
    """Its new control log begins at 1 again; all that was read before was passed over, and rebuilds waited for ever."""
    place.append("first.jsonl")
    place.run()
    store, copy = place.folder / "store.db", place.folder / "copy.db"
    with closing(sqlite3.connect(store)) as db, closing(sqlite3.connect(copy)) as made:
        db.backup(made)
    with control(place) as log:
        for id in "123":
            log.append(adjustment(id, "1"))
    place.run()
    expected = place.periods()
    assert expected[TOKENS] == "36.6"
    for path in place.folder.glob("store.db*"):
        path.unlink()
    if older:
        copy.rename(store)
    with control(place) as log:
        log.append(adjustment("1", "1"))
        log.append(adjustment("4", "100"))
        log.append(adjustment("2", "7"))
        log.append(Resend(id="rebuild"))
    place.run()
    assert place.periods() == expected | {TOKENS: "136.6"}
    assert len([note for note in notes(place, "resend") if note.id.startswith("rebuild/")]) == 4
    refused = {note.id: json.loads(note.body)["refused"] for note in notes(place, "adjustment")}
    assert [why for id, why in refused.items() if id.startswith("2/")] == [USED_BEFORE]


def test_a_lowered_cap_is_told_of_customers_who_are_idle(place: Place) -> None:
    """Through the file and through the store alike, and while nobody sends anything."""
    catalog = place.folder / "catalog.yaml"
    shutil.copy(SCENARIOS / "catalog.yaml", catalog)
    place.append("first.jsonl")
    with place.running(**FOLLOWED, CATALOG="catalog.yaml"):
        eventually(lambda: has_totals(place))
        assert ("globex", "cap_reached", "raised", "1") not in place.alerts()
        lower = catalog.read_text().replace("cap: 5", "cap: 1")
        catalog.write_text(lower)
        eventually(lambda: ("globex", "cap_reached", "raised", "1") in place.alerts())
        with control(place) as log:
            apply_text(log, lower.replace("cap: 1", "cap: 2"), origin="api", by="ops", expected=2)
        eventually(lambda: ("globex", "cap_reached", "raised", "2") in place.alerts())
        told = {(json.loads(note.body)["kind"], note.customer) for note in notes(place, "alert")}
        assert ("cap_reached", "globex") in told


def test_a_new_meter_counts_from_then_on(place: Place) -> None:
    catalog = place.folder / "catalog.yaml"
    shutil.copy(SCENARIOS / "catalog.yaml", catalog)
    place.append("first.jsonl")
    with place.running(**FOLLOWED, CATALOG="catalog.yaml"):
        eventually(lambda: has_totals(place))
        shutil.copy(SCENARIOS / "raised.yaml", catalog)
        with control(place) as log:
            eventually(lambda: log.catalog_number() == 2)
        sleep_until_followed(place)
        place.append("second.jsonl")
        eventually(lambda: place.periods().get(("acme", "longest")) == "100")
        assert place.periods()[TOKENS] == "133.6"


def sleep_until_followed(place: Place) -> None:
    """The shards know the catalog once the raised cap has released what the old one had reached."""
    eventually(lambda: ("acme", "cap_released", "resolved", "none") in place.alerts())


def test_a_broken_catalog_file_changes_nothing(place: Place) -> None:
    """Whoever saves half a file does not take the caps away."""
    catalog = place.folder / "catalog.yaml"
    shutil.copy(SCENARIOS / "catalog.yaml", catalog)
    place.append("first.jsonl")
    with place.running(**FOLLOWED, CATALOG="catalog.yaml") as process:
        eventually(lambda: has_totals(place))
        catalog.write_text("meters: [")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "catalog stays as it is" in line and "catalog.yaml" in line
        place.append("second.jsonl")
        eventually(lambda: place.periods()[TOKENS] == "133.6")
        with control(place) as log:
            assert log.catalog_number() == 1


def test_a_change_made_elsewhere_outlives_a_restart_with_the_old_file(place: Place) -> None:
    """The file counts when it is edited, not each time that the flow starts."""
    place.append("first.jsonl")
    place.run()
    text = Path(place.settings["CATALOG"]).read_text()
    with control(place) as log:
        apply_text(log, text.replace("cap: 5", "cap: 4"), origin="api", by="ops")
    place.run()
    with control(place) as log:
        newest = log.catalog()
        assert newest is not None and (newest.number, newest.origin) == (2, "api")
    assert ("acme", "cap_reached", "raised", "4") in place.alerts()


def test_what_a_store_lost_is_written_again(place: Place) -> None:
    """Also of customers who send nothing any more."""
    place.append("first.jsonl")
    with place.running(**FOLLOWED):
        eventually(lambda: has_totals(place) and len(place.periods()) == 4)
        expected = place.totals()
        with closing(sqlite3.connect(place.folder / "store.db")) as db:
            for number in range(16):
                db.execute(f"DELETE FROM packed_{number:02}")
            db.commit()
        assert place.totals() == {}
        with control(place) as log:
            log.append(Resend(id="drill"))
        eventually(lambda: len(notes(place, "resend")) == 4)
        assert place.totals() == expected


WITHOUT = """meters:
  - {name: calls, event_name: call, aggregation: {type: count}}
"""


def test_a_catalog_that_is_wrong_at_a_start_leaves_the_last_good_one_in_force(place: Place) -> None:
    """A meter that comes back as another one, a file that is no catalog: neither ends a start, and ready says so."""
    catalog = place.folder / "catalog.yaml"
    tokens = "  - {name: tokens, event_name: call, aggregation: {type: sum, key: tokens}}\n"
    catalog.write_text(WITHOUT + tokens)
    place.append("first.jsonl")
    place.run(CATALOG="catalog.yaml")
    catalog.write_text(WITHOUT)
    place.run(CATALOG="catalog.yaml")
    (address,) = free_addresses(1)
    for wrong in (WITHOUT + tokens.replace("sum", "max"), "meters: ["):
        catalog.write_text(wrong)
        with place.running(**FOLLOWED, CATALOG="catalog.yaml", METRICS=address):
            eventually(lambda: "catalog.yaml" in answer(address, "/readyz").get("catalog", ""))
            with control(place) as log:
                assert log.catalog_number() == 2
            catalog.write_text(WITHOUT)
            eventually(lambda: answer(address, "/readyz") == {"status": "ready"})
    catalog.write_text(WITHOUT + tokens)
    place.append("second.jsonl")
    place.run(CATALOG="catalog.yaml")
    assert place.periods()[("acme", "calls")] == "6"
    assert place.periods()[TOKENS] == "133.6"


def test_a_version_that_the_state_cannot_follow_is_passed_over(place: Place) -> None:
    """An older program applied it; and a store that was lost takes whatever comes first."""
    catalog = place.folder / "catalog.yaml"
    tokens = "  - {name: tokens, event_name: call, aggregation: {type: sum, key: tokens}}\n"
    catalog.write_text(WITHOUT + tokens)
    place.append("first.jsonl")
    place.run(CATALOG="catalog.yaml")
    for path in place.folder.glob("store.db*"):
        path.unlink()
    with control(place) as log:
        log.apply(WITHOUT + tokens.replace("sum", "max"), origin="api", by="older")
    place.append("second.jsonl")
    catalog.unlink()
    place.run(CATALOG="catalog.yaml")
    assert place.periods()[TOKENS] == "133.6"


def answer(address: str, path: str) -> dict[str, Any]:
    """What the flow's port says, empty as long as nobody listens."""
    try:
        with urlopen(f"http://{address}{path}", timeout=SECONDS) as found:
            return dict(json.load(found))
    except OSError:
        return {}
