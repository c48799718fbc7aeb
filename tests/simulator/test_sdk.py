"""The platform's official SDK, as it is published, drives the simulator; what the SDK does is seen here too."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import dodopayments
import pytest
from dodopayments import DodoPayments
from dodopayments.types.add_meter_to_price_param import AddMeterToPriceParam
from dodopayments.types.filter_type_param import MeterFilterConditionList
from dodopayments.types.price_param import UsageBasedPrice

from simulator.client import Simulator
from tests.simulator.conftest import NOW, Inside, event, ingest
from tests.support.platform import KEY


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the SDK would have waited between its tries."""
    waits: list[float] = []
    # The module's own `time`, as other threads of this process sleep, too.
    slow = SimpleNamespace(**vars(time) | {"sleep": waits.append})
    monkeypatch.setattr("dodopayments._base_client.time", slow)
    return waits


@pytest.fixture
def sdk(inside: Inside) -> DodoPayments:
    return inside.sdk()


PRICE: UsageBasedPrice = {
    "type": "usage_based_price",
    "currency": "USD",
    "fixed_price": 2900,
    "payment_frequency_count": 1,
    "payment_frequency_interval": "Month",
    "subscription_period_count": 20,
    "subscription_period_interval": "Year",
}


def test_from_a_meter_to_the_bill(sdk: DodoPayments, sim: Simulator) -> None:
    """The whole way a product takes with the SDK: meter, product, customer, events, totals."""
    paid: MeterFilterConditionList = {"key": "cached", "operator": "equals", "value": False}
    meter = sdk.meters.create(
        name="LLM tokens",
        event_name="llm.tokens",
        measurement_unit="tokens",
        aggregation={"type": "sum", "key": "tokens"},
        filter={"conjunction": "and", "clauses": [paid]},
    )
    priced: AddMeterToPriceParam = {
        "meter_id": meter.id,
        "price_per_unit": "0.002",
        "free_threshold": 100_000,
    }
    product = sdk.products.create(name="Pro", tax_category="saas", price={**PRICE, "meters": [priced]})
    customer = sdk.customers.create(email="ada@example.com", name="Ada", metadata={"tenant": "t1"})
    subscription_id = sim.create_subscription(customer.customer_id, product.product_id)

    ingested = sdk.usage_events.ingest(
        events=[
            {
                "event_id": f"e{n}",
                "customer_id": customer.customer_id,
                "event_name": "llm.tokens",
                "timestamp": NOW - timedelta(minutes=n),
                "metadata": {"tokens": 92_110, "cached": False, "model": "small-1"},
            }
            for n in (0, 1)
        ]
    )
    assert ingested.ingested_count == 2
    sim.advance(60)
    sim.change_subscription(subscription_id, end=NOW + timedelta(days=3))

    [cycle] = sdk.subscriptions.retrieve_usage_history(subscription_id).items
    # One of the two happened before the subscription began.
    assert (cycle.start_date, cycle.end_date) == (NOW, NOW + timedelta(days=3))
    assert [(m.consumed_units, m.chargeable_units, m.total_price) for m in cycle.meters] == [
        ("92110", "0", 0)
    ]
    sim.insert(event("e9", customer.customer_id, "llm.tokens", metadata={"tokens": 92_110, "cached": False}))
    sim.advance(60)
    [cycle] = sdk.subscriptions.retrieve_usage_history(subscription_id).items
    [used] = cycle.meters
    assert (used.consumed_units, used.chargeable_units) == ("184220", "84220")
    assert (used.price_per_unit, used.total_price) == ("0.002", 168)

    read = sdk.subscriptions.retrieve(subscription_id)
    assert (read.meters[0].meter_id, read.customer.email, read.status) == (
        meter.id,
        "ada@example.com",
        "active",
    )
    [listed] = sdk.subscriptions.list(customer_id=customer.customer_id, status="active").items
    assert listed.next_billing_date == NOW + timedelta(days=3)


def test_events_read_back(sdk: DodoPayments, sim: Simulator) -> None:
    sim.create_customer("cus_a")
    ingest(sim, event("a:1", metadata={"n": 1.5, "ok": True, "model": "x"}), event("odd / id?#"))
    sim.advance(2)
    read = sdk.usage_events.retrieve("a:1")
    assert (read.timestamp, read.metadata) == (NOW, {"n": 1.5, "ok": True, "model": "x"})
    assert sdk.usage_events.retrieve("odd / id?#").event_id == "odd / id?#"
    with pytest.raises(dodopayments.NotFoundError):
        sdk.usage_events.retrieve("A:1")


def test_meters_from_making_to_archiving(sdk: DodoPayments) -> None:
    made = sdk.meters.create(
        name="calls", event_name="api.call", measurement_unit="calls", aggregation={"type": "count"}
    )
    sdk.meters.update(made.id, name="API calls")
    assert sdk.meters.retrieve(made.id).name == "API calls"
    sdk.meters.archive(made.id)
    assert sdk.meters.list().items == []
    assert [meter.id for meter in sdk.meters.list(archived=True).items] == [made.id]
    with pytest.raises(dodopayments.APIStatusError) as caught:
        sdk.meters.archive(made.id)
    assert (caught.value.status_code, caught.value.body) == (
        410,
        {"code": "METER_IS_DELETED", "message": f"meter {made.id!r} is archived already"},
    )
    sdk.meters.unarchive(made.id)
    assert [meter.id for meter in sdk.meters.list().items] == [made.id]


def test_credits(sdk: DodoPayments, sim: Simulator) -> None:
    customer_id = sim.create_customer()
    kind = sdk.credit_entitlements.create(
        name="credits", unit="credit", precision=2, overage_enabled=False, rollover_enabled=False
    )
    balances = sdk.credit_entitlements.balances
    with pytest.raises(dodopayments.NotFoundError):
        balances.retrieve(customer_id, credit_entitlement_id=kind.id)
    made = balances.create_ledger_entry(
        customer_id,
        credit_entitlement_id=kind.id,
        entry_type="credit",
        amount="500.5",
        idempotency_key="recon:1",
        reason="double count",
    )
    assert (made.balance_before, made.balance_after, made.is_credit) == ("0", "500.5", True)
    assert balances.retrieve(customer_id, credit_entitlement_id=kind.id).balance == "500.5"
    [grant] = balances.list_grants(customer_id, credit_entitlement_id=kind.id).items
    assert (grant.remaining_amount, grant.source_type) == ("500.5", "api")
    [entry] = balances.list_ledger(customer_id, credit_entitlement_id=kind.id).items
    assert (entry.transaction_type, entry.amount) == ("manual_adjustment", "500.5")
    [held] = sdk.customers.list_credit_entitlements(customer_id).items
    assert (held.name, held.balance) == ("credits", "500.5")


@pytest.mark.parametrize("given", [{}, {"page_number": 0}])
def test_its_own_paging_loses_a_page(sdk: DodoPayments, sim: Simulator, given: dict[str, Any]) -> None:
    """Why nobody may iterate over the SDK's lists: of 45 events it gives 35, and page 1 is never asked for."""
    sim.create_customer("cus_a")
    ingest(sim, *(event(f"e{n}") for n in range(45)))
    sim.advance(2)
    assert len(list(sdk.usage_events.list(**given))) == 35
    asked = [request["query"] for request in sim.list_requests() if request["path"] == "/events"]
    assert not any("page_number=1" in query for query in asked)


def test_pages_by_hand_lose_nothing(sdk: DodoPayments, sim: Simulator) -> None:
    sim.create_customer("cus_a")
    ingest(sim, *(event(f"e{n}") for n in range(45)))
    sim.advance(2)
    seen: list[str] = []
    for number in range(100):
        page = sdk.usage_events.list(page_size=10, page_number=number).items
        seen += [one.event_id for one in page]
        if len(page) < 10:
            break
    assert sorted(seen) == sorted(f"e{n}" for n in range(45))


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_it_tries_three_times(sdk: DodoPayments, sim: Simulator, slept: list[float], status: int) -> None:
    sim.create_customer("cus_a")
    sim.add_fault("error", status=status, times=2)
    assert sdk.usage_events.ingest(events=[event()]).ingested_count == 1  # type: ignore[list-item]
    assert [(one["retry"], one["status"]) for one in sim.list_requests()] == [
        ("0", status),
        ("1", status),
        ("2", 200),
    ]
    assert 0.375 <= slept[0] <= 0.5 and 0.75 <= slept[1] <= 1.0
    sim.add_fault("error", status=status, times=3)
    with pytest.raises(dodopayments.APIStatusError):
        sdk.usage_events.ingest(events=[event()])  # type: ignore[list-item]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422])
def test_it_tries_no_second_time(sdk: DodoPayments, sim: Simulator, slept: list[float], status: int) -> None:
    sim.add_fault("error", status=status)
    with pytest.raises(dodopayments.APIStatusError) as caught:
        sdk.usage_events.ingest(events=[event()])  # type: ignore[list-item]
    assert caught.value.status_code == status
    assert slept == []


@pytest.mark.parametrize("kind", ["reset_after_commit", "hang_after_commit", "error_after_commit"])
def test_a_lost_answer_and_its_retry(
    sdk: DodoPayments, sim: Simulator, slept: list[float], kind: str
) -> None:
    """The event is stored once, and the retry's count of 0 is no sign of failure."""
    sim.create_customer("cus_a")
    sim.add_fault(kind)
    assert sdk.usage_events.ingest(events=[event()]).ingested_count == 0  # type: ignore[list-item]
    assert len(list(sim.list_events())) == 1
    assert len(slept) == 1


@pytest.mark.parametrize(
    ("header", "waits"), [("7", 7.0), ("60", 60.0), ("61", None), ("0", None), ("-1", None), ("soon", None)]
)
def test_what_it_makes_of_retry_after(
    sdk: DodoPayments, sim: Simulator, slept: list[float], header: str, waits: float | None
) -> None:
    sim.create_customer("cus_a")
    sim.add_fault("rate_limited", retry_after=header)
    sdk.usage_events.ingest(events=[event()])  # type: ignore[list-item]
    assert slept[0] == waits if waits else 0.375 <= slept[0] <= 0.5


def test_it_neither_batches_nor_validates(sdk: DodoPayments, sim: Simulator) -> None:
    """What is wrong goes out as it is, and the platform turns it down."""
    sim.create_customer("cus_a")
    wrong: list[list[dict[str, Any]]] = [
        [],
        [event(f"e{n}") for n in range(1001)],
        [event(metadata={"k": None})],
        [event(metadata={"k": {"nested": 1}})],
        [event(metadata={"k": 10**20})],
        [event(timestamp=datetime(2026, 11, 22, 12))],
    ]
    for events in wrong:
        with pytest.raises(dodopayments.UnprocessableEntityError):
            sdk.usage_events.ingest(events=events)  # type: ignore[arg-type]
    assert len(sim.list_requests()) == len(wrong)


def test_numbers_it_cannot_send(sdk: DodoPayments, sim: Simulator) -> None:
    for value, error in [(Decimal("1.5"), TypeError), (float("nan"), ValueError)]:
        with pytest.raises(error):
            sdk.usage_events.ingest(events=[event(metadata={"k": value})])  # type: ignore[list-item]
    assert sim.list_requests() == []


def test_an_answer_of_another_kind_raises_nothing(inside: Inside, sdk: DodoPayments, sim: Simulator) -> None:
    """A page of HTML with 200 is a str, a body without the count has None: types must be looked at."""
    sim.create_customer("cus_a")
    inside.transport.spoiled = True
    sim.add_script("html", {"kind": "no_count", "body": "{}"})
    assert isinstance(sdk.usage_events.ingest(events=[event()]), str)  # type: ignore[list-item]
    assert sdk.usage_events.ingest(events=[event()]).ingested_count is None  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, dodopayments.BadRequestError),
        (401, dodopayments.AuthenticationError),
        (403, dodopayments.PermissionDeniedError),
        (404, dodopayments.NotFoundError),
        (409, dodopayments.ConflictError),
        (410, dodopayments.APIStatusError),
        (413, dodopayments.APIStatusError),
        (422, dodopayments.UnprocessableEntityError),
        (429, dodopayments.RateLimitError),
        (503, dodopayments.InternalServerError),
    ],
)
def test_its_errors(inside: Inside, sim: Simulator, status: int, error: type[Exception]) -> None:
    sim.add_fault("error", status=status, where="any")
    with pytest.raises(error) as caught:
        inside.sdk(max_retries=0).meters.list()
    assert type(caught.value) is error
    assert isinstance(caught.value, dodopayments.APIStatusError)
    assert caught.value.body == {"code": "INTERNAL_SERVER_ERROR", "message": ""}


def test_over_a_socket(platform: Simulator, slept: list[float]) -> None:
    """The same through a real server, with a reset that is one, and no idempotency header."""
    platform.create_customer("cus_a")
    platform.add_fault("reset_after_commit")
    with DodoPayments(bearer_token=KEY, base_url=platform.url) as sdk:
        now = datetime.now(UTC)
        assert sdk.usage_events.ingest(events=[event(timestamp=now)]).ingested_count == 0  # type: ignore[list-item]
    assert [(one["status"], one["fault"]) for one in platform.list_requests()] == [
        (None, "reset_after_commit"),
        (200, None),
    ]
    assert [one["event_id"] for one in platform.list_events()] == ["e1"]


def test_a_seed_repeats_every_id(make: Callable[..., Inside]) -> None:
    def ids(seed: int) -> list[str]:
        sim = make(seed=seed).sim
        meter = sim.create_meter("tokens")
        product, customer = sim.create_product([meter]), sim.create_customer()
        return [
            meter,
            product,
            customer,
            sim.create_subscription(customer, product),
            sim.read_state()["business_id"],
        ]

    assert ids(7) == ids(7)
    assert not set(ids(7)) & set(ids(8))
