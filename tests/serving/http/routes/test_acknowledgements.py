"""Acknowledging drift at the service's door: what is meant is found, answered at once, and written down."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.serving.http.local import Local, local
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.store import SqliteWriter
from tidegate.operators.model.ports import Note

START = "2026-11-03T09:12:44.250000Z"
ROUTE = "/v1/drift/acknowledgements"


@pytest.fixture
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with local(tmp_path_factory.mktemp("acknowledged")) as found:
        yield found


def plant(here: Local, off: str, start: str = START) -> None:
    """What reconciliation would have noted."""
    fields = {"customer": "small", "meter": "calls", "period_start": start, "off": off, "tolerance": "0.5"}
    finding = fields | {"status": "drift", "findings": [{"cause": "missing_there"}]}
    with closing(SqliteWriter(here.served.store)) as writer:
        writer.write(
            [], [], [Note("drift", f"small/calls/{start}", "small", 1, json.dumps(finding).encode())]
        )


def post(here: Local, id: str, key: str = "all", **fields: Any) -> tuple[int, dict[str, Any]]:
    given = {"id": id, "customer": "small", "meter": "calls", "reason": "pilot"}
    with here.client_of(key) as client:
        answer = client.post(ROUTE, json=given | fields)
    return answer.status_code, answer.json()


def statuses(here: Local) -> list[str]:
    return [one["status"] for one in here.client.get("/v1/drift").json()["findings"]]


def test_a_finding_is_accepted_and_withdrawn(here: Local) -> None:
    plant(here, "-12.25")
    assert post(here, "a1")[0] == 202
    assert post(here, "a1", reason="asked again")[0] == 202
    assert statuses(here) == ["acknowledged"]
    [one] = here.client.get(ROUTE).json()["acknowledgements"]
    assert (one["up_to"], one["period_start"], one["reason"]) == ("-12.25", START, "pilot") and one["by"]

    # More than was accepted and the tolerance, and the same amount to the other side.
    for off, status in (("-12.75", "acknowledged"), ("-12.76", "drift"), ("12.25", "drift")):
        plant(here, off)
        assert statuses(here) == [status]

    plant(here, "-12.25")
    assert post(here, "a2", withdraw=True)[0] == 202
    assert statuses(here) == ["drift"] and not here.client.get(ROUTE).json()["acknowledgements"]
    assert post(here, "a3", withdraw=True)[0] == 404


def test_a_cause_is_accepted_for_all(here: Local) -> None:
    plant(here, "3")
    assert post(here, "c0", customer="", cause="gap")[0] == 202
    assert statuses(here) == ["drift"]
    assert post(here, "c1", customer="", cause="missing_there", up_to="2")[0] == 202
    assert statuses(here) == ["drift"]
    assert post(here, "c2", customer="small", cause="missing_there")[0] == 202
    assert statuses(here) == ["acknowledged"]


def test_what_is_not_clear_is_refused(here: Local) -> None:
    assert post(here, "n1")[0] == 404
    plant(here, "3")
    plant(here, "4", "2026-10-03T09:12:44.000000Z")
    status, problem = post(here, "n2")
    assert status == 404 and START in problem["detail"]
    assert post(here, "n3", period_start=START)[0] == 202
    assert post(here, "n3", period_start="2026-10-03T09:12:44Z")[0] == 409
    assert post(here, "n4", period_start=START, cause="gap")[0] == 404
    assert post(here, "n5", period_start="now")[0] == 422
    assert post(here, "n6", key="acme", period_start=START)[0] == 403


def test_what_was_read_of_the_control_log_is_not_read_again(
    here: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log grows for years; each request reads what is new."""
    plant(here, "3")
    read: list[int] = []
    real = SqliteControl.after

    def counted(self: SqliteControl, *given: Any) -> Any:
        found = real(self, *given)
        read.append(len(found))
        return found

    for number in range(3):
        assert post(here, f"a{number}", customer="", cause=f"cause{number}")[0] == 202
    assert statuses(here) == ["drift"]
    monkeypatch.setattr(SqliteControl, "after", counted)
    assert statuses(here) == ["drift"] and sum(read) == 0
    assert post(here, "a3")[0] == 202
    read.clear()
    assert statuses(here) == ["acknowledged"] and sum(read) <= 1
