import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from examples.demo.terminal import Screen
from tests.serving.samples import total
from tests.support.heartbeats import ENDED
from tests.support.places import ROOT
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter
from tidegate.operators.model.records import Counter
from tidegate.serving.views.usage import Usage
from tidegate.settings.catalog.file import load_catalog, parse_catalog

CATALOG = ROOT / "examples" / "catalog.yaml"
NOW = 10**12


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    """Forty customers, of whom cus_003 is at its cap of tokens; alerts and dead letters."""
    writer = SqliteWriter(tmp_path / "store.db")
    tokens = [
        total(f"cus_{i:03}", total=i * 100, version=1)._replace(meter="tokens_in") for i in range(1, 41)
    ]
    tokens.append(total("cus_003", total=230_000, version=2)._replace(meter="tokens_in"))
    writer.write(tokens, [Counter(0, "events", 123_456), Counter(0, "accepted", 123_456)], heartbeats=[ENDED])
    writer.close()
    alert = {"kind": "threshold", "state": "raised", "customer": "cus_007", "meter": "calls", "level": "80%"}
    more = {"total": "80", "at": "2026-11-22T10:00:00.000000Z"}
    alerts = "".join(json.dumps(alert | more | {"id": str(i)}) + "\n" for i in range(20))
    (tmp_path / "alerts").write_text(alerts)
    (tmp_path / "dead").write_text('{"id": "x", "reason": "not_json"}\n')
    reader = SqliteReader(tmp_path / "store.db")
    usage = Usage(reader, tmp_path / "alerts", tmp_path / "dead")
    usage.refresh(NOW)
    screen = Screen(load_catalog(CATALOG), usage, "Ctrl-C ends it")
    screen.look(NOW)
    yield screen
    reader.close()


def drawn(screen: Screen, width: int, height: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(screen.page(NOW, 61_000_000, width, height))
    return out.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (90, 30), (110, 24), (126, 36), (200, 60)])
def test_a_page_fits_its_terminal(screen: Screen, width: int, height: int) -> None:
    lines = drawn(screen, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    page = "\n".join(lines)
    for part in (
        "01:01",
        "123,456",
        "cus_003",
        "230k",
        "DENIED",
        "not_json",
        "Ctrl-C ends it",
        "cus_007 passed 80%",
    ):
        assert part in page


def test_who_is_at_its_cap_is_told_above_all(screen: Screen) -> None:
    assert "cus_003 is at its cap of 200,000 tokens_in: its requests are refused" in "\n".join(
        drawn(screen, 80, 24)
    )
    assert screen.denials() == {("cus_003", "tokens_in"): NOW}


def test_a_cap_on_a_level_is_no_less_seen(tmp_path: Path) -> None:
    """Unique, greatest and last values fill no bar, and deny all the same; also where nothing else is limited."""
    meters = "meters: [{name: users, event_name: call, aggregation: {type: unique, key: user}}]\n"
    catalog = parse_catalog(f"{meters}default_plan: p\nplans: {{p: {{limits: {{users: {{cap: 3}}}}}}}}\n")
    with closing(SqliteWriter(tmp_path / "store.db")) as writer:
        writer.write([total("cus_1", total=4, version=1)._replace(meter="users")], [], heartbeats=[ENDED])
    with closing(SqliteReader(tmp_path / "store.db")) as reader:
        usage = Usage(reader, tmp_path / "alerts", tmp_path / "dead")
        usage.refresh(NOW)
        screen = Screen(catalog, usage, "")
        screen.look(NOW)
        assert screen.denials() == {("cus_1", "users"): NOW}
        assert "cus_1 is at its cap of 3 users" in "\n".join(drawn(screen, 110, 24))


def test_a_denial_is_as_old_as_when_it_was_first_seen(screen: Screen) -> None:
    screen.look(NOW + 5)
    assert screen.denials() == {("cus_003", "tokens_in"): NOW}
