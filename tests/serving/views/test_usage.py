import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.serving.samples import total
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter
from tidegate.operators.model.ports import StoredTotal
from tidegate.operators.model.records import Counter, Total
from tidegate.serving.views.usage import Tail, Usage


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SqliteWriter]:
    store = SqliteWriter(tmp_path / "store.db")
    yield store
    store.close()


@pytest.fixture
def usage(tmp_path: Path, writer: SqliteWriter) -> Iterator[Usage]:
    reader = SqliteReader(tmp_path / "store.db")
    yield Usage(reader, tmp_path / "alerts.ndjson", tmp_path / "dead.ndjson")
    reader.close()


def test_usage_follows_the_store(writer: SqliteWriter, usage: Usage) -> None:
    usage.refresh(0)
    assert usage.totals == {}
    writer.write([total(total=5, version=1), total("cus_2", total=7, version=1)], [Counter(0, "events", 2)])
    usage.refresh(1_000_000)
    writer.write([total(total=6, version=2)], [Counter(0, "events", 4), Counter(1, "events", 1)])
    usage.refresh(2_000_000)
    assert (usage.total("cus_1", "calls"), usage.total("cus_2", "calls")) == (Decimal(6), Decimal(7))
    assert usage.sums["events"] == 5
    assert usage.rate() == pytest.approx(2.5)


def test_the_latest_period_counts_and_a_correction_of_an_old_one_does_not_replace_it(
    writer: SqliteWriter, usage: Usage
) -> None:
    month = 10**12
    writer.write([total(total=5, version=1), total(total=1, version=1, start=month, end=2 * month)], [])
    usage.refresh(month)
    writer.write([total(total=9, version=2)], [])
    usage.refresh(month + 1)
    assert usage.total("cus_1", "calls") == 1


def test_a_period_that_begins_later_does_not_hide_the_one_that_holds_now(
    writer: SqliteWriter, usage: Usage
) -> None:
    month = 10**12
    far = total(total=1, version=1, start=900 * month, end=901 * month)
    writer.write([total(total=5, version=1, start=month, end=2 * month), far], [])
    usage.refresh(month + 1)
    assert usage.total("cus_1", "calls") == 5
    usage.refresh(2 * month)
    writer.write([total(total=2, version=2, start=2 * month, end=3 * month)], [])
    usage.refresh(2 * month + 1)
    assert usage.total("cus_1", "calls") == 2


def test_hours_and_days_are_not_taken_for_periods(writer: SqliteWriter, usage: Usage) -> None:
    hour: Total = total(total=5, version=1)._replace(window="hour")
    writer.write([hour], [])
    usage.refresh(0)
    assert usage.total("cus_1", "calls") == 0


def test_what_a_replay_repeats_is_counted_once(tmp_path: Path, writer: SqliteWriter, usage: Usage) -> None:
    alert = json.dumps({"id": "a", "kind": "threshold", "state": "raised"}) + "\n"
    letters = "".join(json.dumps({"id": str(i), "reason": "not_json"}) + "\n" for i in (1, 2, 1))
    (tmp_path / "alerts.ndjson").write_text(alert)
    (tmp_path / "dead.ndjson").write_text(letters)
    usage.refresh(0)
    # As a restart does: cut back, and written again.
    (tmp_path / "alerts.ndjson").write_text("")
    usage.refresh(1)
    (tmp_path / "alerts.ndjson").write_text(alert)
    usage.refresh(2)
    assert usage.alert_kinds == {"threshold": 1}
    assert usage.dead == {"not_json": 2}


def test_a_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_bytes(b"one\ntw")
    assert tail.lines() == [b"one"]
    assert tail.lines() == []
    path.write_bytes(b"one\ntwo\nthree\n")
    assert tail.lines() == [b"two", b"three"]
    path.write_bytes(b"new\n")
    assert tail.lines() == [b"new"]
    # Cut back and written further than it was, all between two looks.
    path.write_bytes(b"another\nand more\n")
    assert tail.lines() == [b"another", b"and more"]
    assert tail.lines() == []


def test_only_what_has_changed_is_read(
    writer: SqliteWriter, usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A screen refreshes four times a second, however many customers there are."""
    writer.write([total(total=5, version=1), total("cus_2", total=7, version=1)], [])
    usage.refresh(0)
    asked: list[str] = []
    read = usage.reader.read

    def noting(customer: str) -> list[StoredTotal]:
        asked.append(customer)
        return read(customer)

    monkeypatch.setattr(usage.reader, "read", noting)
    usage.refresh(1)
    writer.write([total("cus_2", total=8, version=2)], [])
    usage.refresh(2)
    assert asked == ["cus_2"]
