"""Drift that an operator has accepted: listed as such, without alert and without exit code, until it grows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.flows.reconcile.metered import MINUTE, System, system
from tidegate.serving.cli.main import app


@pytest.fixture
def metered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    monkeypatch.setenv("TIDEGATE_STORE", f"sqlite:{tmp_path / 'store.db'}")
    monkeypatch.setenv("TIDEGATE_DATA_DIR", str(tmp_path / "data"))
    with system(tmp_path, tier=2) as made:
        yield made


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["reconcile", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def document(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("--show", "--json", *words)[1])
    return found


def states(m: System) -> list[str]:
    return [one["state"] for one in m.lines("alerts-drift.ndjson")]


def uncovered(m: System, tokens: int = 100) -> str:
    """A customer whose product does not have the meter."""
    acme = m.customer(meters=[m.meters["calls"]])
    m.apply()
    m.event(acme, tokens=tokens)
    m.event(acme)
    m.run(900, step=60)
    assert m.reconcile()[acme, "tokens"]["status"] == "drift"
    return acme


def test_a_finding_is_quiet_until_it_grows(metered: System) -> None:
    acme = uncovered(metered)
    assert run("--show")[0] == 1
    assert run("ack", "tokens", "--customer", acme, "--why", "pilot, not billed")[0] == 0
    code, shown = run("--show")
    assert code == 0 and "acknowledged by" in shown and "pilot, not billed" in shown

    found = metered.reconcile()[acme, "tokens"]
    assert (found["status"], found["acknowledged"]["up_to"]) == ("acknowledged", "100")
    assert states(metered) == ["raised", "resolved"]
    [line] = [one for one in document()["coverage"] if one["meter"] == "tokens"]
    assert (line["state"], line["unbilled"]) == ("named, acknowledged", "100")
    note = json.loads(metered.store.notes("acknowledgement")[0].body)
    assert note["reason"] == "pilot, not billed" and note["by"]
    [shown_drift] = [json.loads(one.body) for one in metered.store.notes("drift", acme)]
    assert shown_drift["status"] == "acknowledged"

    metered.event(acme, tokens=5)
    metered.run(900, step=60)
    assert metered.reconcile(reconcile_tolerance="5")[acme, "tokens"]["status"] == "acknowledged"
    assert metered.reconcile()[acme, "tokens"]["status"] == "drift"
    assert run("--show")[0] == 1
    raised = [one for one in metered.lines("alerts-drift.ndjson") if one["state"] == "raised"]
    assert len(raised) == 2 and raised[0]["id"] != raised[1]["id"]


def test_a_cause_is_accepted_for_all_and_withdrawn(metered: System) -> None:
    """Internal usage of a meter that no product has."""
    assert run("ack", "tokens", "--cause", "not_on_plan", "--why", "measured for ourselves")[0] == 0
    acme = metered.customer(meters=[metered.meters["calls"]])
    metered.apply()
    metered.event(acme, tokens=7)
    metered.event(acme)
    lost = metered.event(acme)
    metered.run(900, step=60)
    metered.simulator.drop(lost)
    found = metered.reconcile()
    assert found[acme, "tokens"]["status"] == "acknowledged"
    # Another meter, or another cause, is not accepted with it.
    assert found[acme, "calls"]["status"] == "drift"
    assert {one["total"] for one in metered.lines("alerts-drift.ndjson")} == {"2"}

    assert "not_on_plan" in run("acks")[1]
    assert run("unack", "tokens", "--cause", "not_on_plan", "--why", "a mistake")[0] == 0
    assert "Nothing is acknowledged" in run("acks")[1]
    assert metered.reconcile()[acme, "tokens"]["status"] == "drift"
    assert states(metered) == ["raised", "raised"]


def test_what_is_accepted_is_not_repaired(metered: System) -> None:
    """Who accepted it has billed it by hand, so a repair would bill it twice."""
    acme = metered.customer()
    metered.apply()
    lost = metered.event(acme, tokens=9, at=metered.clock.now - 10 * MINUTE)
    metered.run(900, step=60)
    metered.simulator.drop(lost)
    assert metered.reconcile()[acme, "tokens"]["status"] == "drift"
    run("ack", "tokens", "--customer", acme, "--why", "invoiced by hand")
    for _ in range(3):
        found = metered.reconcile(reconcile_repair="true")[acme, "tokens"]
        metered.run(300, step=60)
    assert (found["status"], found["repairs"]) == ("acknowledged", [])
    journal = metered.data / "reconciliation" / "repairs.ndjson"
    assert not journal.exists() or not journal.read_text()


def test_the_document_has_findings_and_proof_of_one_customer(metered: System) -> None:
    acme = uncovered(metered)
    other = metered.customer()
    metered.apply()
    metered.event(other, tokens=3)
    metered.run(900, step=60)
    metered.reconcile()
    whole = document()
    assert {one["customer"] for one in whole["coverage"]} == {acme, other}
    assert whole["run"]["ended_at"] and whole["is_drifted"]
    [one] = document("--customer", acme)["findings"]
    assert one["findings"][0]["cause"] == "not_on_plan" and one["findings"][0]["ids"]
    assert (one["off"], one["repairs"], one["acknowledged"]) == ("100", [], None)
    quiet = document("--customer", other)
    assert not quiet["findings"] and not quiet["is_drifted"] and run("--show", "--customer", other)[0] == 0
    assert [one["state"] for one in quiet["coverage"]] == ["billed"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tokens", "--customer", "nobody", "--why", "w"], "no drift"),
        (["tokens", "--customer", "nobody", "--why", " "], "reason"),
        (["tokens", "--customer", "nobody", "--why", "w", "--up-to", "-1e9"], "--up-to"),
        (["tokens", "--customer", "nobody", "--why", "w", "--period", "today"], "--period"),
        (["tokens", "--cause", "gap", "--period", "2026-11-03T00:00:00Z", "--why", "w"], "one of the two"),
    ],
)
def test_what_cannot_be_accepted_is_said(metered: System, words: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["reconcile", "ack", *words])
    assert done.exit_code == 1 and says in str(done.exception)
