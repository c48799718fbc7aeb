"""What reconciliation has found, on the overview: what was accepted too, with the reason and by whom."""

import json
from contextlib import closing

from playwright.sync_api import expect

from tests.serving.dashboard.site import Reader, Site
from tidegate.connectors.sqlite.store import SqliteWriter
from tidegate.operators.model.ports import Note


def test_an_acknowledged_finding_is_shown_with_its_reason(reader: Reader, site: Site) -> None:
    by = {"reason": "invoiced by hand, in_7", "by": "ada"}
    finding = {
        "status": "acknowledged", "customer": "found", "meter": "calls", "drift": "-7", "acknowledged": by
    }  # fmt: skip
    body = json.dumps(finding).encode()
    with closing(SqliteWriter(site.served.store)) as writer:
        writer.write([], [], [Note("drift", "found/calls/1", "found", 1, body)])
    with reader.page(key="read") as page:
        page.goto("/")
        row = page.locator(".findings li", has_text="found")
        for words in ("calls", "acknowledged", "-7", "invoiced by hand, in_7", "ada"):
            expect(row).to_contain_text(words)
    with closing(SqliteWriter(site.served.store)) as writer:
        writer.write([], [], [Note("drift", "found/calls/1", "found", 2, b"")])
