"""Webhooks as they arrive: signed, late, twice and in any order, and true at the moment they arrive."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from simulator.client import Simulator
from tests.simulator.conftest import Inside, event, ingest


class Receiver(httpx.AsyncBaseTransport):
    """Answers with the next of `answers`, then 200; keeps what came."""

    def __init__(self) -> None:
        self.answers: list[int | Exception] = []
        self.got: list[httpx.Request] = []
        self.during: Callable[[], None] = lambda: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.got.append(request)
        self.during()
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer)

    def types(self) -> list[str]:
        return [json.loads(request.content)["type"] for request in self.got]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def inside(make: Callable[..., Inside], receiver: Receiver) -> Inside:
    made = make(receivers=receiver)
    made.sim.set_switches(webhook_duplicates=0, webhook_order="fifo")
    return made


def endpoint(sim: Simulator, **fields: Any) -> tuple[str, str]:
    """Its id and secret."""
    made = sim.api.post("/webhooks", json={"url": "http://receiver/hook"} | fields).json()
    return made["id"], sim.api.get(f"/webhooks/{made['id']}/secret").json()["secret"]


def subscribe(sim: Simulator) -> str:
    return sim.create_subscription(
        sim.create_customer("cus_a"), sim.create_product([sim.create_meter("tokens")])
    )


def test_a_signature_verifies_on_the_raw_body_only(sim: Simulator, receiver: Receiver) -> None:
    _, secret = endpoint(sim)
    subscribe(sim)
    sim.deliver()
    [request] = receiver.got
    headers = dict(request.headers)
    assert Webhook(secret).verify(request.content.decode(), headers)["type"] == "subscription.active"
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(request.content.decode() + " ", headers)
    other = f"whsec_{base64.b64encode(b'another').decode()}"
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(request.content.decode(), headers)


def test_the_sdk_unwraps_it(inside: Inside, receiver: Receiver) -> None:
    _, secret = endpoint(inside.sim)
    subscription = subscribe(inside.sim)
    inside.sim.deliver()
    [request] = receiver.got
    unwrapped = inside.sdk().webhooks.unwrap(
        request.content.decode(), headers=dict(request.headers), key=secret
    )
    assert unwrapped.type == "subscription.active"
    assert unwrapped.data.subscription_id == subscription


def test_a_rotated_secret_holds_for_a_day(sim: Simulator, receiver: Receiver) -> None:
    id, old = endpoint(sim)
    subscription = subscribe(sim)
    sim.rotate_secret(id)
    new = sim.api.get(f"/webhooks/{id}/secret").json()["secret"]
    sim.deliver()
    sim.advance(86400)
    sim.emit("subscription.updated", subscription)
    sim.deliver()
    first, last = receiver.got
    for secret in (old, new):
        Webhook(secret).verify(first.content.decode(), dict(first.headers))
    Webhook(new).verify(last.content.decode(), dict(last.headers))
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(last.content.decode(), dict(last.headers))


def test_the_whole_schedule_of_retries(sim: Simulator, receiver: Receiver) -> None:
    """At once, then 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h later, each under the same id; then no more."""
    endpoint(sim)
    subscribe(sim)
    receiver.answers = [
        500,
        httpx.ConnectError("refused"),
        404,
        301,
        httpx.ReadTimeout("slow"),
        429,
        503,
        500,
    ]
    for wait in (0, 5, 300, 1800, 7200, 18000, 36000, 36000):
        before = len(receiver.got)
        if wait:
            sim.advance(wait - 1)
            assert sim.deliver() == []
            sim.advance(1)
        sim.deliver()
        assert len(receiver.got) == before + 1
    sim.advance(10**6)
    assert sim.deliver() == []
    assert len({request.headers["webhook-id"] for request in receiver.got}) == 1
    assert [(one["attempts"], one["state"]) for one in sim.list_webhooks()] == [(8, "given_up")]


def test_it_carries_the_state_at_delivery(sim: Simulator, receiver: Receiver) -> None:
    """So the edges in a webhook may be newer than what it tells of."""
    endpoint(sim)
    subscription = subscribe(sim)
    receiver.answers = [500]
    sim.deliver()
    sim.roll(subscription)
    sim.advance(5)
    sim.deliver()
    dates = [json.loads(request.content)["data"]["previous_billing_date"][:10] for request in receiver.got]
    assert receiver.types() == ["subscription.active", "subscription.renewed", "subscription.active"]
    assert dates == ["2026-11-22", "2026-12-22", "2026-12-22"]


@pytest.mark.parametrize(
    ("change", "type"),
    [
        ({"status": "on_hold"}, "subscription.on_hold"),
        ({"status": "past_due"}, "subscription.past_due"),
        ({"status": "paused"}, "subscription.paused"),
        ({"status": "cancelled"}, "subscription.cancelled"),
        ({"status": "expired"}, "subscription.expired"),
        ({"status": "failed"}, "subscription.failed"),
        ({"end": "2026-12-01T00:00:00Z"}, "subscription.updated"),
        ({"cancel_at_next_billing_date": True}, "subscription.updated"),
    ],
)
def test_what_is_told_of_a_subscription(
    sim: Simulator, receiver: Receiver, change: dict[str, Any], type: str
) -> None:
    subscription = subscribe(sim)
    endpoint(sim)
    sim.change_subscription(subscription, **change)
    sim.deliver()
    assert receiver.types() == [type]


def test_a_pause_that_ends_and_a_new_plan(sim: Simulator, receiver: Receiver) -> None:
    subscription = subscribe(sim)
    endpoint(sim)
    sim.change_subscription(subscription, status="paused")
    sim.change_subscription(subscription, status="active")
    sim.change_subscription(subscription, product_id=sim.create_product([]))
    sim.deliver()
    assert receiver.types() == ["subscription.paused", "subscription.unpaused", "subscription.plan_changed"]


def test_only_the_types_asked_for_and_only_while_enabled(sim: Simulator, receiver: Receiver) -> None:
    endpoint(sim, filter_types=["subscription.renewed"])
    endpoint(sim, disabled=True)
    subscription = subscribe(sim)
    sim.roll(subscription)
    sim.deliver()
    assert receiver.types() == ["subscription.renewed"]


def test_credits_tell_too(sim: Simulator, receiver: Receiver) -> None:
    endpoint(sim)
    meter, customer = sim.create_meter("tokens", "sum", "n"), sim.create_customer("cus_a")
    new = {"name": "k", "unit": "u", "precision": 0, "overage_enabled": False, "rollover_enabled": False}
    kind = sim.api.post("/credit-entitlements", json=new).json()["id"]
    priced = {"meter_id": meter, "credit_entitlement_id": kind, "meter_units_per_credit": "1"}
    credit = {"credit_entitlement_id": kind, "credits_amount": "10", "low_balance_threshold_percent": 20}
    sim.create_subscription(customer, sim.create_product([priced], credit_entitlements=[credit]))
    for number in range(3):
        ingest(sim, event(f"e{number}", metadata={"n": 3}))
        sim.advance(60)
    sim.deliver()
    assert receiver.types() == [
        "subscription.active",
        "credit.added",
        "credit.deducted",
        "credit.deducted",
        "credit.deducted",
        "credit.balance_low",
    ]
    low = json.loads(receiver.got[-1].content)["data"]
    assert (low["available_balance"], low["threshold_amount"], low["customer_id"]) == ("1", "2", customer)


@pytest.mark.parametrize("order", ["fifo", "reversed", "shuffled"])
def test_orders(sim: Simulator, receiver: Receiver, order: str) -> None:
    subscription = subscribe(sim)
    endpoint(sim)
    sim.set_switches(webhook_order=order)
    for _ in range(12):
        sim.advance(1)
        sim.roll(subscription)
    sim.deliver()
    stamps = [json.loads(request.content)["timestamp"] for request in receiver.got]
    assert (stamps == sorted(stamps)) == (order == "fifo")
    assert (stamps == sorted(stamps, reverse=True)) == (order == "reversed")
    assert len(set(stamps)) == 12


def test_a_reset_takes_back_what_is_on_its_way(inside: Inside, sim: Simulator, receiver: Receiver) -> None:
    """Also where it comes while one is being delivered; the simulator goes on."""
    subscription = subscribe(sim)
    endpoint(sim)
    for _ in range(3):
        sim.emit("subscription.updated", subscription)
    receiver.during = lambda: inside.platform.reset(2)
    sim.deliver()
    assert len(receiver.got) == 1
    assert sim.list_webhooks() == []


@pytest.mark.parametrize("url", ["nowhere", "ftp://receiver/", ""])
def test_an_endpoint_needs_an_address(sim: Simulator, url: str) -> None:
    assert sim.api.post("/webhooks", json={"url": url}).status_code == 422


def test_some_come_twice(sim: Simulator, receiver: Receiver) -> None:
    subscription = subscribe(sim)
    endpoint(sim)
    sim.set_switches(webhook_duplicates=0.5)
    for _ in range(40):
        sim.emit("subscription.updated", subscription)
    sim.deliver()
    ids = [request.headers["webhook-id"] for request in receiver.got]
    assert len(set(ids)) == 40
    assert 50 <= len(ids) <= 70


def test_whose_time_the_signature_carries(sim: Simulator, receiver: Receiver) -> None:
    subscription = subscribe(sim)
    endpoint(sim)
    for clock in ("platform", "wall"):
        sim.set_switches(webhook_clock=clock)
        sim.emit("subscription.updated", subscription)
        sim.deliver()
    platforms, walls = (int(request.headers["webhook-timestamp"]) for request in receiver.got)
    assert platforms == int(sim.read_now().timestamp())
    assert abs(walls - datetime.now(UTC).timestamp()) < 60


def test_endpoints_by_cursor_and_idempotency(inside: Inside, sim: Simulator) -> None:
    ids = [endpoint(sim, idempotency_key=f"k{number}")[0] for number in range(5)]
    assert endpoint(sim, idempotency_key="k3")[0] == ids[3]
    assert [one.id for one in inside.sdk().webhooks.list(limit=2)] == ids
    assert sim.api.delete(f"/webhooks/{ids[0]}").status_code == 204
    assert sim.api.get(f"/webhooks/{ids[0]}").status_code == 404


def test_no_secret_is_shown(sim: Simulator) -> None:
    _, secret = endpoint(sim)
    subscribe(sim)
    shown = json.dumps(
        [sim.read_state(), sim.list_webhooks(), sim.list_requests(), sim.api.get("/webhooks").json()]
    )
    assert secret not in shown and secret.removeprefix("whsec_") not in shown


def test_a_renewal_names_its_payment(inside: Inside, receiver: Receiver) -> None:
    sim = inside.sim
    endpoint(sim, filter_types=["subscription.renewed", "subscription.updated"])
    id = subscribe(sim)
    sim.roll(id, at=inside.sim.advance(60))
    sim.emit("subscription.updated", id)
    sim.deliver()
    paid = {json.loads(one.content)["type"]: json.loads(one.content)["data"] for one in receiver.got}
    [renewal, _] = inside.sdk().payments.list(subscription_id=id).items
    assert paid["subscription.renewed"]["payment_id"] == renewal.payment_id
    assert paid["subscription.updated"]["payment_id"] is None
