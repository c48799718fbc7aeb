"""The statement over HTTP: to operators, by customer and by invoice."""

from pathlib import Path
from typing import Any

import httpx

from tests.serving.http.served import Served
from tidegate.connectors.reconciliation.statement_store import write_statement
from tidegate.operators.billing.statement import RepairRecord, StatementLine


def line(customer: str, invoice: str, **fields: Any) -> StatementLine:
    texts: dict[str, Any] = {
        name: "0" for name in ("units", "free", "ours", "in_flight", "held_back", "unbilled")
    }
    given = dict(
        customer=customer, subscription=f"sub_{customer}", product="pdt_1", meter="tokens", meter_id=f"mtr_{invoice}",
        period_start="2026-11-03T09:12:44.000000Z", period_end="2026-12-03T09:12:44.000000Z", price="0.5",
        currency="USD", amount=1234, invoice=invoice, payment=invoice.replace("inv", "pay"), payment_status="succeeded",
        cause="", repaired=(), run=1, as_of="2026-11-22T12:00:00.000000Z",
    )  # fmt: skip
    return StatementLine(**texts | given | fields)


def keep(folder: Path, *lines: StatementLine) -> None:
    write_statement(folder / "data" / "reconciliation", lines, 1_700_000_000_000_000, 1_800_000_000_000_000)


def test_lines_are_found_by_customer_and_by_invoice(served: Served, api: httpx.Client) -> None:
    """An invoice's id or its payment's; without reconciliation on this machine there are none."""
    assert api.get("/v1/statement").json() == {"lines": []}
    (served.folder / "data" / "reconciliation").mkdir()
    act = RepairRecord(act="resend", state="done", quantity="0", events=2, why="missing_there")
    keep(served.folder, line("acme", "inv_1", repaired=(act,)), line("other", "inv_2"))
    [found] = api.get("/v1/statement", params={"customer": "acme"}).json()["lines"]
    assert (found["invoice"], found["amount"], found["repaired"][0]["events"]) == ("inv_1", 1234, 2)
    for id in ("inv_2", "pay_2"):
        assert [
            one["customer"] for one in api.get("/v1/statement", params={"invoice": id}).json()["lines"]
        ] == ["other"]
    assert len(api.get("/v1/statement", params={"limit": 1}).json()["lines"]) == 1


def test_a_customers_key_does_not_read_it(served: Served) -> None:
    assert served.client("acme").get("/v1/statement").status_code == 403
