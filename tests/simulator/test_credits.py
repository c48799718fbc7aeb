"""Credits: eventually right, about a minute late, the oldest first."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from simulator.client import Simulator
from tests.simulator.conftest import NOW, event, ingest


@pytest.fixture
def kind(sim: Simulator) -> str:
    sim.create_meter("tokens", "sum", "n", id="mtr_t")
    sim.create_customer("cus_a")
    return make_kind(sim)


def make_kind(sim: Simulator, **fields: Any) -> str:
    new = {"name": f"kind {fields}", "unit": "credit", "precision": 2}
    made = sim.api.post(
        "/credit-entitlements", json=new | {"overage_enabled": False, "rollover_enabled": False} | fields
    )
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def subscribe(sim: Simulator, kind: str, **attached: Any) -> str:
    """1000 units a credit, the first 100 free, 10 credits a cycle."""
    priced = {
        "meter_id": "mtr_t",
        "free_threshold": 100,
        "credit_entitlement_id": kind,
        "meter_units_per_credit": "1000",
    }
    credit = {"credit_entitlement_id": kind, "credits_amount": "10"} | attached
    return sim.create_subscription("cus_a", sim.create_product([priced], credit_entitlements=[credit]))


def use(sim: Simulator, id: str, n: int) -> None:
    ingest(sim, event(id, metadata={"n": n}))
    sim.advance(60)


def entry(sim: Simulator, kind: str, type: str, amount: str, key: str | None = None) -> httpx.Response:
    body = {"entry_type": type, "amount": amount, "idempotency_key": key}
    return sim.api.post(f"/credit-entitlements/{kind}/balances/cus_a/ledger-entries", json=body)


def balance(sim: Simulator, kind: str) -> tuple[str, str]:
    read = sim.api.get(f"/credit-entitlements/{kind}/balances/cus_a").json()
    return read["balance"], read["overage"]


def ledger(sim: Simulator, kind: str, **query: str) -> list[tuple[str, str]]:
    found = sim.api.get(
        f"/credit-entitlements/{kind}/balances/cus_a/ledger", params={"page_size": "100"} | query
    )
    return [(one["transaction_type"], one["amount"]) for one in found.json()["items"]]


def test_usage_is_deducted_by_the_worker(sim: Simulator, kind: str) -> None:
    subscription = subscribe(sim, kind)
    assert balance(sim, kind) == ("10", "0")
    ingest(sim, event("a", metadata={"n": 2600}))
    assert balance(sim, kind) == ("10", "0")
    sim.advance(60)
    assert balance(sim, kind) == ("7.5", "0")
    # 1.999 credits are 1.99 at this precision; what is left over is not lost.
    use(sim, "b", 499)
    use(sim, "c", 1)
    assert balance(sim, kind) == ("7", "0")
    assert ledger(sim, kind, transaction_type="credit_deducted") == [
        ("credit_deducted", "0.01"),
        ("credit_deducted", "0.49"),
        ("credit_deducted", "2.5"),
    ]
    [used] = sim.api.get(f"/subscriptions/{subscription}/credit-usage").json()["items"]
    assert (used["balance"], used["overage"], used["limit_reached"]) == ("7", "0", False)


def test_what_is_exhausted_is_no_more_deducted_and_ingest_goes_on(sim: Simulator, kind: str) -> None:
    subscription = subscribe(sim, kind)
    use(sim, "a", 50_000)
    assert balance(sim, kind) == ("0", "0")
    assert ingest(sim, event("b")).status_code == 200
    [used] = sim.api.get(f"/subscriptions/{subscription}/credit-usage").json()["items"]
    assert used["limit_reached"] is True


@pytest.mark.parametrize(
    ("behavior", "after", "told"),
    [
        ("forgive_at_reset", ("10", "0"), "overage_reset"),
        ("invoice_at_billing", ("10", "0"), "overage_charged"),
        ("carry_deficit", ("10", "5"), None),
        ("carry_deficit_auto_repay", ("5", "0"), None),
    ],
)
def test_overage_and_what_becomes_of_it(
    sim: Simulator, kind: str, behavior: str, after: tuple[str, str], told: str | None
) -> None:
    kind = make_kind(sim, overage_enabled=True, overage_limit=5, overage_behavior=behavior)
    subscription = subscribe(sim, kind)
    use(sim, "a", 14_100)
    assert balance(sim, kind) == ("0", "4")
    use(sim, "b", 9_000)
    assert balance(sim, kind) == ("0", "5")
    sim.roll(subscription, at=sim.read_now())
    assert balance(sim, kind) == after
    told_of = {name for name, _ in ledger(sim, kind)} & {"overage_reset", "overage_charged"}
    assert told_of == ({told} if told else set())


def test_the_oldest_grant_goes_first_and_expires(sim: Simulator, kind: str) -> None:
    subscribe(sim, kind, expires_after_days=1)
    entry(sim, kind, "credit", "100")
    use(sim, "a", 4_100)

    def grants(status: str) -> list[str]:
        path = f"/credit-entitlements/{kind}/balances/cus_a/grants"
        return [
            one["remaining_amount"] for one in sim.api.get(path, params={"status": status}).json()["items"]
        ]

    assert (grants("active"), grants("expired")) == (["6", "100"], [])
    sim.advance(86400)
    assert (grants("active"), grants("expired")) == (["100"], ["6"])
    assert ledger(sim, kind)[0] == ("credit_expired", "6")
    entry(sim, kind, "debit", "100")
    assert grants("depleted") == ["0"]


def test_a_key_is_used_once(sim: Simulator, kind: str) -> None:
    """A retry after a lost answer is a 409, and means that it worked."""
    sim.add_fault("reset_after_commit", where="writes")
    with pytest.raises(httpx.ReadError):
        entry(sim, kind, "credit", "5", "recon:1")
    assert entry(sim, kind, "credit", "5", "recon:1").status_code == 409
    assert balance(sim, kind) == ("5", "0")
    assert entry(sim, kind, "credit", "5").status_code == 201
    assert entry(sim, kind, "credit", "5").status_code == 201
    assert balance(sim, kind) == ("15", "0")


@pytest.mark.parametrize(
    ("type", "amount", "status"),
    [
        ("debit", "5", 201),
        ("debit", "5.01", 400),
        ("credit", "0", 400),
        ("credit", "-1", 400),
        ("credit", "0.001", 400),
        ("credit", "9999999999.99", 201),
        ("credit", "10000000000", 400),
        ("credit", "NaN", 400),
        ("credit", "five", 422),
        ("transfer", "1", 422),
    ],
)
def test_entries_by_hand(sim: Simulator, kind: str, type: str, amount: str, status: int) -> None:
    entry(sim, kind, "credit", "5")
    before = balance(sim, kind)
    assert entry(sim, kind, type, amount).status_code == status
    assert (balance(sim, kind) == before) == (status != 201)


def test_entries_for_nobody(sim: Simulator, kind: str) -> None:
    for path in (f"/credit-entitlements/{kind}/balances/cus_x", "/credit-entitlements/cde_x/balances/cus_a"):
        body = {"entry_type": "credit", "amount": "1"}
        assert sim.api.post(f"{path}/ledger-entries", json=body).status_code == 404
        assert sim.api.get(path).status_code == 404


def test_kinds_of_credit(sim: Simulator, kind: str) -> None:
    def listed(**query: str) -> list[str]:
        return [one["id"] for one in sim.api.get("/credit-entitlements", params=query).json()["items"]]

    again = {
        "name": "kind {}",
        "unit": "u",
        "precision": 0,
        "overage_enabled": False,
        "rollover_enabled": False,
    }
    assert (
        sim.api.post("/credit-entitlements", json=again).json()["code"]
        == "CREDIT_ENTITLEMENT_NAME_ALREADY_EXISTS"
    )
    assert sim.api.delete(f"/credit-entitlements/{kind}").status_code == 200
    assert sim.api.delete(f"/credit-entitlements/{kind}").status_code == 410
    assert (listed(), listed(deleted="true")) == ([], [kind])
    assert sim.api.post(f"/credit-entitlements/{kind}/undelete").status_code == 200
    assert listed() == [kind]


def test_the_ledger_by_date(sim: Simulator, kind: str) -> None:
    entry(sim, kind, "credit", "1")
    sim.advance(10)
    entry(sim, kind, "credit", "2")
    later = (NOW + timedelta(seconds=5)).isoformat()
    assert ledger(sim, kind, start_date=later) == [("manual_adjustment", "2")]
    assert ledger(sim, kind, end_date=later) == [("manual_adjustment", "1")]
