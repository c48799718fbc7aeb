"""Plans, pauses, payments, wallets and changed records, as the official SDK drives them."""

from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import dodopayments
import pytest
from dodopayments import DodoPayments

from simulator.app import build_app
from simulator.client import Simulator
from simulator.inprocess import AppTransport
from simulator.state.platform import Platform
from simulator.state.storage import SqliteFile
from tests.simulator.conftest import NOW, Inside, event, history, ingest

MODES = ["prorated_immediately", "full_immediately", "difference_immediately"]


@pytest.fixture
def sdk(inside: Inside) -> DodoPayments:
    return inside.sdk(max_retries=0)


@pytest.fixture
def plans(sim: Simulator) -> tuple[str, str, str]:
    """A subscription that has used 150 of 100 free tokens, at 2 cents each, and two products."""
    meter, customer = sim.create_meter("tokens", "sum", "n", id="mtr_t"), sim.create_customer("cus_a")
    small = {"meter_id": meter, "price_per_unit": "2", "free_threshold": 100}
    free = sim.create_product([small], price={"fixed_price": 1000})
    pro = sim.create_product([small | {"free_threshold": 3_000_000_000}], price={"fixed_price": 5000})
    subscription = sim.create_subscription(
        customer, free, start=NOW - timedelta(days=10), end=NOW + timedelta(days=20)
    )
    assert ingest(sim, event("e1", metadata={"n": 150})).status_code == 200
    sim.advance(60)
    return subscription, free, pro


def change(sdk: DodoPayments, id: str, product: str, mode: Any, **fields: Any) -> Any:
    return sdk.subscriptions.change_plan(
        id, product_id=product, proration_billing_mode=mode, quantity=1, **fields
    )


def test_a_preview_reads_the_usage_so_far_with_its_price(
    sdk: DodoPayments, sim: Simulator, plans: tuple[str, str, str]
) -> None:
    """And changes nothing."""
    id, _, pro = plans
    before = sim.read_state()["subscriptions"]
    found = sdk.subscriptions.preview_change_plan(
        id, product_id=pro, proration_billing_mode="full_immediately", quantity=1
    )
    plan, used = found.immediate_charge.line_items
    assert (used.type, used.units_consumed, used.free_threshold) == ("meter", "150", 100)  # type: ignore[union-attr]
    assert (used.chargeable_units, used.price_per_unit, used.subtotal) == ("50", "2", 100)  # type: ignore[union-attr]
    assert (plan.type, found.immediate_charge.summary.total_amount) == ("subscription", 5100)
    assert (found.new_plan.product_id, found.new_plan.meters[0].free_threshold) == (pro, 3_000_000_000)
    assert sim.read_state()["subscriptions"] == before


@pytest.mark.parametrize("mode", MODES)
def test_a_change_of_plan_bills_usage_and_begins_a_cycle(
    sdk: DodoPayments, sim: Simulator, plans: tuple[str, str, str], mode: str
) -> None:
    id, _, pro = plans
    paid = change(sdk, id, pro, mode)
    now = NOW + timedelta(seconds=60)
    read = sdk.subscriptions.retrieve(id)
    assert (read.product_id, read.previous_billing_date, read.meters[0].free_threshold) == (
        pro,
        now,
        3 * 10**9,
    )
    payment = sdk.payments.retrieve(paid.payment_id)
    assert (payment.charge_type, payment.includes_usage) == ("plan_change", True)
    [period] = payment.service_periods
    assert (period.subscription_id, period.starts_at, period.ends_at) == (id, now, read.next_billing_date)
    lines = sdk.payments.retrieve_line_items(payment.payment_id).items
    assert lines[1].amount == 100 and sum(line.amount for line in lines) == payment.total_amount
    ingest(sim, event("e2", metadata={"n": 7}))
    sim.advance(60)
    assert [one["meters"][0]["consumed_units"] for one in history(sim, id)] == ["7", "150"]


@pytest.mark.parametrize("mode", ["prorated_immediately_keep_cycle", "do_not_bill"])
def test_a_change_that_keeps_the_cycle_bills_usage_later(
    sdk: DodoPayments, sim: Simulator, plans: tuple[str, str, str], mode: str
) -> None:
    id, _, pro = plans
    paid = change(sdk, id, pro, mode)
    [cycle] = history(sim, id)
    assert cycle["meters"][0]["free_threshold"] == 3 * 10**9
    kinds = [(one.charge_type, one.includes_usage) for one in sdk.payments.list(subscription_id=id).items]
    is_billed = mode != "do_not_bill"
    assert kinds == [("plan_change", False)] * is_billed + [("new", False)]
    assert bool(paid.payment_id) == is_billed
    if is_billed:
        [period] = sdk.payments.retrieve(paid.payment_id).service_periods
        assert 0.6 < float(period.proration_factor) < 0.7


def test_what_a_change_of_plan_refuses(
    sdk: DodoPayments, sim: Simulator, plans: tuple[str, str, str]
) -> None:
    id, _, pro = plans
    with pytest.raises(dodopayments.BadRequestError):
        sdk.subscriptions.change_plan(
            id, product_id=pro, proration_billing_mode="full_immediately", quantity=2
        )
    with pytest.raises(dodopayments.NotFoundError):
        change(sdk, id, "pdt_none", "full_immediately")
    sdk.subscriptions.update(id, status="paused")
    with pytest.raises(dodopayments.ConflictError):
        change(sdk, id, pro, "full_immediately")


def test_a_change_of_plan_waits_for_the_end_of_the_cycle(
    sdk: DodoPayments, sim: Simulator, plans: tuple[str, str, str]
) -> None:
    """Nothing is charged before; then the usage is billed at the old prices, and the next cycle has the new ones."""
    id, free, pro = plans
    later: dict[str, Any] = {"effective_at": "next_billing_date"}
    found = sdk.subscriptions.preview_change_plan(
        id, product_id=pro, proration_billing_mode="full_immediately", quantity=1, **later
    )
    assert (found.immediate_charge.line_items, found.immediate_charge.summary.total_amount) == ([], 0)
    assert change(sdk, id, pro, "full_immediately", **later).payment_id is None
    read = sdk.subscriptions.retrieve(id)
    planned = read.scheduled_change
    assert planned is not None and (read.product_id, planned.product_id) == (free, pro)
    assert planned.effective_at == read.next_billing_date
    sim.roll(id, at=NOW + timedelta(hours=1))
    read = sdk.subscriptions.retrieve(id)
    assert (read.product_id, read.scheduled_change, read.meters[0].free_threshold) == (pro, None, 3 * 10**9)
    paid, _ = sdk.payments.list(subscription_id=id).items
    assert (paid.charge_type, paid.includes_usage, paid.total_amount) == ("plan_change", True, 5000 + 100)
    assert [one["meters"][0]["free_threshold"] for one in history(sim, id)] == [3 * 10**9, 100]


def test_a_scheduled_change_is_replaced_or_taken_back(
    sdk: DodoPayments, sim: Simulator, plans: tuple[str, str, str]
) -> None:
    id, free, pro = plans
    with pytest.raises(dodopayments.NotFoundError):
        sdk.subscriptions.cancel_change_plan(id)
    change(sdk, id, pro, "do_not_bill", effective_at="next_billing_date")
    with pytest.raises(dodopayments.ConflictError):
        change(sdk, id, pro, "do_not_bill")
    change(sdk, id, free, "do_not_bill", effective_at="next_billing_date", cancel_scheduled_change_plan=True)
    planned = sdk.subscriptions.retrieve(id).scheduled_change
    assert planned is not None and planned.product_id == free
    sdk.subscriptions.cancel_change_plan(id)
    assert sdk.subscriptions.retrieve(id).scheduled_change is None
    sim.roll(id, at=NOW + timedelta(hours=1))
    assert sdk.subscriptions.retrieve(id).product_id == free


@pytest.mark.parametrize("bills", [True, False])
def test_a_pause_moves_the_end_and_bills_usage_at_once(
    sdk: DodoPayments, sim: Simulator, plans: tuple[str, str, str], bills: bool
) -> None:
    id, *_ = plans
    sim.set_switches(bill_usage_at_pause=bills)
    end = sdk.subscriptions.retrieve(id).next_billing_date
    assert sdk.subscriptions.update(id, status="paused").status == "paused"
    sim.advance(5 * 86400)
    read = sdk.subscriptions.update(id, status="active")
    assert (read.status, read.next_billing_date) == ("active", end + timedelta(days=5))
    used = [one["meters"][0]["consumed_units"] for one in history(sim, id)]
    assert used == (["0", "150"] if bills else ["150"])
    amounts = [one.total_amount for one in sdk.payments.list(subscription_id=id).items]
    assert amounts == ([100, 1000] if bills else [1000])


@pytest.mark.parametrize(
    "fields", [{"pause": True}, {"status": "paused", "metadata": {"a": "b"}}, {"status": "sleeping"}]
)
def test_what_an_update_refuses(
    sdk: DodoPayments, plans: tuple[str, str, str], fields: dict[str, Any]
) -> None:
    with pytest.raises(dodopayments.UnprocessableEntityError):
        sdk.subscriptions.update(plans[0], **fields)


def test_an_update_sets_what_is_given(sdk: DodoPayments, plans: tuple[str, str, str]) -> None:
    at = NOW + timedelta(days=3)
    read = sdk.subscriptions.update(plans[0], cancel_at_next_billing_date=True, next_billing_date=at)
    assert (read.cancel_at_next_billing_date, read.next_billing_date) == (True, at)
    assert sdk.subscriptions.update(plans[0], status="cancelled").cancelled_at is not None


def test_payments_name_their_period_and_bill_the_usage_before(
    sdk: DodoPayments, sim: Simulator, plans: tuple[str, str, str]
) -> None:
    id, *_ = plans
    sim.roll(id, at=NOW + timedelta(seconds=30))
    renewal, first = sdk.payments.list(customer_id="cus_a").items
    assert (first.charge_type, first.includes_usage, first.total_amount) == ("new", False, 1000)
    assert (renewal.charge_type, renewal.includes_usage, renewal.total_amount) == ("renewal", True, 1100)
    assert renewal.service_periods[0].starts_at == first.service_periods[0].ends_at
    assert sdk.payments.list(customer_id="cus_b").items == []
    with pytest.raises(dodopayments.NotFoundError):
        sdk.payments.retrieve("pay_none")


def test_past_due_usage_goes_on_to_count(
    sdk: DodoPayments, sim: Simulator, plans: tuple[str, str, str]
) -> None:
    id, *_ = plans
    sim.change_subscription(id, status="past_due")
    ingest(sim, event("e2", metadata={"n": 5}))
    sim.advance(60)
    assert history(sim, id)[0]["meters"][0]["consumed_units"] == "155"


def test_wallets_move_by_hand(sdk: DodoPayments, sim: Simulator) -> None:
    sim.create_customer("cus_a")
    wallets = sdk.customers.wallets
    made = wallets.ledger_entries.create(
        "cus_a", amount=500, currency="USD", entry_type="credit", idempotency_key="k1"
    )
    assert made.balance == 500
    with pytest.raises(dodopayments.ConflictError):
        wallets.ledger_entries.create(
            "cus_a", amount=500, currency="USD", entry_type="credit", idempotency_key="k1"
        )
    with pytest.raises(dodopayments.BadRequestError):
        wallets.ledger_entries.create("cus_a", amount=501, currency="USD", entry_type="debit")
    wallets.ledger_entries.create("cus_a", amount=200, currency="USD", entry_type="debit")
    listed = wallets.list("cus_a")
    assert (listed.items[0].balance, listed.total_balance_usd) == (300, 300)
    moved = [
        (one.before_balance, one.after_balance, one.is_credit)
        for one in wallets.ledger_entries.list("cus_a").items
    ]
    assert moved == [(0, 500, True), (500, 300, False)]
    assert sdk.customers.list_entitlements("cus_a").items == []


def test_records_change(sdk: DodoPayments, sim: Simulator, plans: tuple[str, str, str]) -> None:
    """A patch sets what it names, and nothing else; products are listed with their prices."""
    assert sdk.customers.update("cus_a", name="Grace").name == "Grace"
    assert sdk.customers.retrieve("cus_a").email == "someone@example.com"
    kind = sdk.credit_entitlements.create(
        name="credits", unit="credit", precision=2, overage_enabled=False, rollover_enabled=False
    )
    sdk.credit_entitlements.update(kind.id, name="coins")
    read = sdk.credit_entitlements.retrieve(kind.id)
    assert (read.name, read.unit, read.precision) == ("coins", "credit", 2)
    hook = sdk.webhooks.create(url="http://us/a")
    sdk.webhooks.update(hook.id, url="http://us/b", disabled=True)
    found = sdk.webhooks.retrieve(hook.id)
    assert (found.url, found.disabled) == ("http://us/b", True)
    assert [(one.product_id, one.price) for one in sdk.products.list().items] == [
        (plans[1], 1000),
        (plans[2], 5000),
    ]
    assert sdk.products.list(archived=True).items == []


def test_a_kill_keeps_what_moved_in_wallets(tmp_path: Path) -> None:
    """What the API changed is in the database with everything else."""
    file = tmp_path / "p.db"
    with closing(Platform(1, key="k", storage=SqliteFile(file))) as one:
        transport = AppTransport(build_app(one)[0])
        sim = Simulator("http://simulator", "k", transport)
        sim.create_customer("cus_a")
        entry = {"amount": 7, "currency": "USD", "entry_type": "credit"}
        assert sim.api.post("/customers/cus_a/wallets/ledger-entries", json=entry).status_code == 200
        sim.close()
        transport.close()
    with closing(Platform(1, key="k", storage=SqliteFile(file))) as again:
        assert [wallet.balance for wallet in again.wallets] == [7]
