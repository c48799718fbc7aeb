"""The overview's rows: what they rest on changes also where nothing is written."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.heartbeats import ENDED
from tidegate.connectors.files.dead_letters import FileDeadLetters
from tidegate.connectors.outbox import operator_actions
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.schema import State
from tidegate.connectors.sqlite.holds import SqliteHolds
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter
from tidegate.operators.columns.quantity import SCALE
from tidegate.operators.model.catalog import VersionedCatalog
from tidegate.operators.model.periods import Calendar, find_period
from tidegate.operators.model.ports import Hold, Scope
from tidegate.operators.model.records import Accepted, Total
from tidegate.serving.http.readers.overview_cache import Board
from tidegate.settings.addresses.sinks import DeadLetterFile, Dodo
from tidegate.settings.catalog.file import parse_catalog
from tidegate.settings.serving import ServingSettings

NOW = 1_795_900_000_000_000
START, END = find_period(Calendar("month"), "UTC", NOW)
SECOND = 1_000_000
CATALOG = parse_catalog(
    "meters: [{name: calls, event_name: c, aggregation: {type: count}}]\n"
    "default_plan: p\nplans: {p: {limits: {calls: {cap: 3}}}}\n"
)


class Overview:
    def __init__(self, path: Path) -> None:
        self.now = NOW
        self.writer, self.reader, self.holds = SqliteWriter(path), SqliteReader(path), SqliteHolds(path)
        self.board = Board(ServingSettings(), lambda: self.now)

    def use(self, customer: str, calls: int) -> None:
        total = Total(customer, "period", "calls", START, END, calls, 1, calls, NOW, 0, 0, 0, True)
        self.writer.write([total], [], heartbeats=[ENDED])

    def reserve(self, customer: str, calls: int, until: int) -> None:
        hold = Hold(customer, "", "held", {"calls": calls * SCALE}, until)
        assert self.holds.reserve(hold, {}, Scope((), START), self.now).outcome == "held"

    def levels(self) -> dict[str, str]:
        body = self.board.refresh(self.reader, VersionedCatalog(1, CATALOG))
        return {row.customer: row.level for row in body.top}


@pytest.fixture
def overview(tmp_path: Path) -> Iterator[Overview]:
    found = Overview(tmp_path / "store.db")
    with closing(found.writer), closing(found.reader), closing(found.holds):
        yield found


def test_a_hold_is_seen_when_it_begins_and_when_it_has_expired(overview: Overview) -> None:
    """Nobody writes when a hold expires: the row itself knows when."""
    overview.use("acme", 1)
    overview.use("other", 1)
    assert overview.levels() == {"acme": "free", "other": "free"}
    overview.reserve("acme", 2, NOW + 10 * SECOND)
    assert overview.levels() == {"acme": "denied", "other": "free"}
    overview.now += 10 * SECOND - 1
    assert overview.levels() == {"acme": "denied", "other": "free"}
    overview.now += 1
    assert overview.levels() == {"acme": "free", "other": "free"}


def test_a_hold_from_before_the_first_look_is_seen(overview: Overview) -> None:
    overview.use("acme", 1)
    overview.reserve("acme", 2, NOW + 10 * SECOND)
    assert overview.levels() == {"acme": "denied"}


def test_dead_letters_of_both_places_are_counted_until_they_are_dealt_with(
    overview: Overview, tmp_path: Path
) -> None:
    letter = {"id": "a", "reason": "not_json", "detail": "", "received_at": "", "payload": "GET /"}
    path = tmp_path / "dead.ndjson"
    path.write_text(json.dumps(letter) + "\n")
    with closing(Outbox(tmp_path / "outbox.db")) as outbox:
        outbox.add([Accepted("u1", "acme", 1, "on_time", b"{}")])
        outbox.keep_back(outbox.too_old(10), State.refused, "refused_by_platform", "400 NO")
        settings = ServingSettings(
            dead_letters=DeadLetterFile(path=str(path)),
            billing=Dodo(path="test"),
            data_dir=tmp_path,
        )
        board = Board(settings, lambda: NOW)
        counts = board.refresh(overview.reader, VersionedCatalog(1, CATALOG)).dead_letters
        assert counts == {"not_json": 1, "refused_by_platform": 1}
        operator_actions.drop(outbox, ["u1"], by="ann", why="")
        FileDeadLetters(path).drop(["a"], by="ann", why="")
        assert board.refresh(overview.reader, VersionedCatalog(1, CATALOG)).dead_letters == {}


def test_who_was_denied_is_not_in_the_next_period(overview: Overview) -> None:
    """Whoever is denied sends nothing, so no event says that its new period has begun."""
    overview.use("acme", 3)
    assert overview.levels() == {"acme": "denied"}
    overview.now = END
    assert overview.levels() == {"acme": "free"}
