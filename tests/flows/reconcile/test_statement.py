"""The statement and the evidence of a run: from an invoice to the events behind one line, and back."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from tests.flows.reconcile.metered import END, KEY, SECOND, System, system, written
from tidegate.connectors.reconciliation.evidence import verify_runs
from tidegate.connectors.reconciliation.statement_store import read_statement
from tidegate.operators.billing.statement import StatementLine
from tidegate.operators.model.wire import format_instant
from tidegate.serving.cli.main import app


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[System]:
    with system(tmp_path) as made:
        yield made


def ask(metered: System, *arguments: str) -> Any:
    given = {
        "TIDEGATE_STORE": f"sqlite:{metered.folder / 'store.db'}",
        "TIDEGATE_BILLING": "dodo://simulator?tls=false",
        "TIDEGATE_DODO_API_KEY": KEY,
        "TIDEGATE_DATA_DIR": str(metered.data),
    }
    return CliRunner().invoke(app, list(arguments), env=given)


def lines_of(metered: System) -> list[StatementLine]:
    return read_statement(metered.data / "reconciliation")


def closed(metered: System) -> tuple[str, list[str]]:
    """A customer whose period of 5 and 7 tokens has been billed, and the events' ids."""
    acme = metered.customer()
    metered.apply()
    ids = [metered.event(acme, tokens=n) for n in (5, 7)]
    metered.run(400)
    edge = metered.clock.now // SECOND * SECOND
    at = format_instant(edge)[:19] + "Z"
    metered.simulator.roll(metered.subscriptions[acme], at=at, end=written(END))
    metered.edges[acme].insert(1, at)
    metered.apply()
    metered.clock.sleep(60)
    metered.reconcile()
    return acme, ids


def test_from_an_invoice_to_the_events_behind_a_line_and_back(metered: System) -> None:
    acme, ids = closed(metered)
    [payment, _] = metered.simulator.api.get("/payments", params={"customer_id": acme}).json()["items"]
    answer = ask(metered, "statement", "--invoice", payment["invoice_id"], "--meter", "tokens", "--csv")
    [line] = csv.DictReader(io.StringIO(answer.stdout))
    assert (line["customer"], line["units"], line["ours"], line["unbilled"]) == (acme, "12", "12", "0")
    assert (line["price"], line["amount"], line["currency"]) == ("1", "0.12", "USD")
    assert (line["payment"], line["payment_status"]) == (payment["payment_id"], "succeeded")
    behind = ask(
        metered, "statement", "--invoice", payment["payment_id"], "--meter", "tokens", "--events", "--json"
    )
    events = sorted(map(json.loads, behind.stdout.splitlines()), key=lambda one: one["event"])
    assert [(one["id"], one["event"], one["units"], one["state"]) for one in events] == [
        (ids[0], "e1", "5", "acknowledged"),
        (ids[1], "e2", "7", "acknowledged"),
    ]
    for id in (ids[1], "e2"):
        for whose in (("--customer", acme), ()):
            back = ask(metered, "statement", *whose, "--event", id, "--json")
            [found] = [json.loads(one) for one in back.stdout.splitlines()]
            assert (found["invoice"], found["meter"]) == (payment["invoice_id"], "tokens")
    shown = ask(metered, "statement", "--invoice", payment["invoice_id"])
    assert "Sum: 0.12 USD" in shown.stdout


def test_events_that_are_not_billed_say_why(metered: System) -> None:
    acme, ids = closed(metered)
    metered.simulator.drop(ids[1])
    metered.reconcile()
    behind = ask(metered, "statement", "--customer", acme, "--meter", "tokens", "--events", "--json")
    events = {one["event"]: one["finding"] for one in map(json.loads, behind.stdout.splitlines())}
    assert events == {"e1": "", "e2": "missing_there"}


def test_an_open_cycle_has_no_invoice_yet_and_closed_ones_stay(metered: System) -> None:
    acme, _ = closed(metered)
    tokens = [line for line in lines_of(metered) if line.meter == "tokens"]
    assert [(line.units, bool(line.invoice)) for line in tokens] == [("12", True), ("0", False)]
    metered.reconcile()
    assert [line.key for line in lines_of(metered) if line.meter == "tokens"] == [line.key for line in tokens]
    assert {line.run for line in lines_of(metered)} == {2}
    shown = ask(metered, "statement", "--customer", acme)
    assert "0.12 USD" in shown.stdout and "open" in shown.stdout


def test_what_is_repaired_and_what_nobody_bills_is_on_it(metered: System) -> None:
    """An event that was lost there and sent again; usage of a customer without a subscription."""
    acme = metered.customer()
    metered.apply()
    lost = metered.event(acme, tokens=5)
    metered.run(400)
    metered.simulator.drop(lost)
    stranger = metered.simulator.create_customer()
    metered.event(stranger, tokens=9)
    metered.run(400)
    metered.reconcile(reconcile_repair="true")
    found = {(line.customer, line.meter): line for line in lines_of(metered)}
    assert [(one.act, one.events) for one in found[acme, "tokens"].repaired] == [("resend", 1)]
    unbilled = found[stranger, "tokens"]
    assert (unbilled.units, unbilled.ours, unbilled.unbilled, unbilled.invoice) == ("0", "9", "9", "")
    assert unbilled.cause == "no_subscription"
    shown = ask(metered, "reconcile", "--show", "--json", "--customer", stranger)
    [finding] = json.loads(shown.stdout)["findings"]
    assert (shown.exit_code, finding["customer"], finding["drift"]) == (1, stranger, "9")
    assert finding["findings"][0]["ids"]


def test_without_a_statement_one_clear_line(metered: System) -> None:
    answer = ask(metered, "statement")
    assert answer.exit_code == 1 and "there is no such file; run `tidegate reconcile`" in str(
        answer.exception
    )


def test_looking_for_events_makes_no_store(metered: System) -> None:
    acme, _ = closed(metered)
    (metered.folder / "store.db").rename(metered.folder / "away.db")
    answer = ask(metered, "statement", "--customer", acme, "--events")
    assert answer.exit_code == 1 and "there is no such file" in str(answer.exception)
    assert not (metered.folder / "store.db").exists()


def test_payments_that_cannot_be_read_leave_the_statement_without_them(metered: System) -> None:
    acme = metered.customer()
    metered.apply()
    metered.event(acme, tokens=5)
    metered.run(400)
    metered.simulator.add_fault("error", where="/payments", status=404, times=None)
    metered.reconcile()
    assert [line.units for line in lines_of(metered) if line.meter == "tokens"] == ["5"]


def test_a_cell_is_never_a_formula_to_a_spreadsheet(metered: System) -> None:
    acme = metered.customer()
    name = "=cmd|x"
    period = f"{{type: billing, edges: [{', '.join(metered.edges[acme])}]}}"
    metered.apply(f"{metered.catalog_text}customers:\n  {name!r}: {{billing_id: {acme}, period: {period}}}\n")
    metered.reconcile()
    answer = ask(metered, "statement", "--csv")
    assert answer.exit_code == 0 and "\n'=cmd|x," in answer.stdout and "\n=cmd" not in answer.stdout


@pytest.mark.parametrize("what", ["nothing", "outcome", "inputs", "signature", "taken out", "left"])
def test_evidence_shows_every_change(metered: System, what: str) -> None:
    """Whatever is changed in the files of a run, left out of them or taken away is named."""
    closed(metered)
    for _ in range(2):
        metered.reconcile()
    folder = metered.data / "reconciliation"
    found, wrong = verify_runs(folder)
    assert [one.run for one in found] == [1, 2, 3] and wrong == []
    place = folder / "evidence"
    lines = gzip.decompress((place / "2.ndjson.gz").read_bytes()).splitlines(keepends=True)
    if what == "outcome":
        lines[-1] = lines[-1].replace(b'"units"', b'"Units"')
    if what == "inputs":
        lines[0] = lines[0].replace(b'"', b"'", 1)
    if what == "left":
        del lines[1]
    (place / "2.ndjson.gz").write_bytes(gzip.compress(b"".join(lines)))
    if what == "signature":
        body = json.loads((place / "2.json").read_bytes())
        (place / "2.json").write_bytes(msgspec.json.encode(body | {"catalog": 99}))
    if what == "taken out":
        (place / "2.json").unlink()
    wrong = verify_runs(folder)[1]
    assert bool(wrong) == (what != "nothing")
    answer = ask(metered, "reconcile", "--verify")
    assert answer.exit_code == int(what != "nothing")
    assert ("run 3" if what == "taken out" else "run 2") in answer.stdout or what == "nothing"
