"""Sending webhooks: signed, retried, out of order and twice, with the latest state of their object.

Signatures: Standard Webhooks, HMAC-SHA256 over `{id}.{timestamp}.{body}` with the decoded part after `whsec_`.
"""

import asyncio
import base64
import hashlib
import hmac
import random
from typing import Any, Final

import httpx
import msgspec

from simulator.billing.balances import compute_left
from simulator.billing.crediting import describe_entry, find_low_level
from simulator.billing.ticks import tick
from simulator.http import views
from simulator.http.credit_views import render_entry
from simulator.routes.payments import iterate_payments
from simulator.state.identifiers import draw_chance
from simulator.state.instants import SECOND, write_instant
from simulator.state.platform import Platform, read_wall_clock
from simulator.state.records import Delivery, Endpoint
from simulator.state.usage import ZERO, format_plain

# The wait before each attempt, after the previous one.
SCHEDULE_S: Final = (0, 5, 300, 1800, 7200, 18000, 36000, 36000)
TIMEOUT_S: Final = 15.0
DONE_KEPT: Final = 1000
WAITING_MAX: Final = 100_000
IDLE_S: Final = 0.05
RENEWED: Final = "subscription.renewed"


def emit(platform: Platform, type: str, subject: str) -> None:
    """Queue a webhook for each endpoint that subscribes to this type."""
    for endpoint in platform.endpoints:
        wanted = not endpoint.disabled and (endpoint.filter_types is None or type in endpoint.filter_types)
        if wanted and len(platform.deliveries) < WAITING_MAX:
            id = platform.new_id("msg")
            now = platform.now
            platform.deliveries.put(
                id,
                Delivery(
                    id=id, endpoint_id=endpoint.id, type=type, subject=subject, emitted_at=now, due_at=now
                ),
            )


def sign(secret: str, id: str, timestamp: str, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


class Sender:
    """Sends webhooks that are due. `transport` is for tests that receive without a socket."""

    def __init__(self, platform: Platform, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._platform, self._transport = platform, transport
        platform.emit = lambda type, subject: emit(platform, type, subject)

    async def run(self) -> None:
        """Send webhooks as they become due, and advance the provider's time, until cancelled."""
        while True:
            with self._platform.transaction():
                tick(self._platform)
            if self._platform.switches.webhook_auto:
                await self.deliver()
            await asyncio.sleep(IDLE_S)

    async def deliver(self) -> list[dict[str, Any]]:
        """Try everything that is due now; return each receiver's answer, None if it did not answer."""
        tried: list[dict[str, Any]] = []
        due = self._due()
        if not due:
            # A client costs ten milliseconds, and this runs twenty times a second.
            return tried
        async with httpx.AsyncClient(timeout=TIMEOUT_S, transport=self._transport, trust_env=False) as client:
            for delivery in due:
                for _ in range(2 if self._is_doubled(delivery) else 1):
                    # A reset during another delivery has removed it.
                    if self._platform.deliveries.find(delivery.id) is delivery:
                        status = await self._post(client, delivery)
                        tried.append({"id": delivery.id, "type": delivery.type, "status": status})
                with self._platform.transaction():
                    if self._platform.deliveries.find(delivery.id) is delivery:
                        self._settle(delivery, status)
        return tried

    def _due(self) -> list[Delivery]:
        platform, order = self._platform, self._platform.switches.webhook_order
        due = [one for one in platform.deliveries if one.state == "waiting" and one.due_at <= platform.now]
        due.sort(key=lambda one: one.due_at, reverse=order == "reversed")
        if order == "shuffled" and due:
            random.Random(draw_chance(platform.memory.seed, due[0].id, len(due))).shuffle(due)
        return due

    def _is_doubled(self, delivery: Delivery) -> bool:
        drawn = draw_chance(self._platform.memory.seed, delivery.id, delivery.attempts)
        return drawn < self._platform.switches.webhook_duplicates

    async def _post(self, client: httpx.AsyncClient, delivery: Delivery) -> int | None:
        endpoint = self._platform.endpoints.find(delivery.endpoint_id)
        if endpoint is None:
            return None
        body = msgspec.json.encode(self._envelope(delivery))
        headers = endpoint.headers | self._signed(endpoint, delivery.id, body)
        try:
            return (await client.post(endpoint.url, content=body, headers=headers)).status_code
        except (httpx.HTTPError, httpx.InvalidURL):
            return None

    def _signed(self, endpoint: Endpoint, id: str, body: bytes) -> dict[str, str]:
        now = self._platform.now
        stamp = str(
            (now if self._platform.switches.webhook_clock == "platform" else read_wall_clock()) // SECOND
        )
        secrets = [endpoint.secret]
        if endpoint.old_secret is not None and now < endpoint.old_until:
            secrets.append(endpoint.old_secret)
        return {
            "content-type": "application/json",
            "webhook-id": id,
            "webhook-timestamp": stamp,
            "webhook-signature": " ".join(sign(secret, id, stamp, body) for secret in secrets),
        }

    def _envelope(self, delivery: Delivery) -> dict[str, Any]:
        return {
            "business_id": self._platform.memory.business_id,
            "type": delivery.type,
            "timestamp": write_instant(delivery.emitted_at),
            "data": _content(self._platform, delivery),
        }

    def _settle(self, delivery: Delivery, status: int | None) -> None:
        delivery.attempts += 1
        if status is not None and 200 <= status < 300:
            delivery.state = "delivered"
        elif delivery.attempts == len(SCHEDULE_S):
            delivery.state = "given_up"
        else:
            delivery.due_at = self._platform.now + SCHEDULE_S[delivery.attempts] * SECOND
        self._platform.deliveries.put(delivery.id, delivery)
        done = [one.id for one in self._platform.deliveries if one.state != "waiting"]
        for id in done[:-DONE_KEPT]:
            self._platform.deliveries.remove(id)


def _content(platform: Platform, delivery: Delivery) -> dict[str, Any]:
    if delivery.type.startswith("subscription."):
        subscription = platform.subscriptions.get(delivery.subject)
        # Its payments always succeed, so there is no grace period to end.
        paid = list(iterate_payments(platform, subscription))[-1].id if delivery.type == RENEWED else None
        beside = {"payload_type": "Subscription", "past_due_ends_at": None, "payment_id": paid}
        return beside | views.render_subscription(platform, subscription)
    if delivery.type == "credit.balance_low":
        return {"payload_type": "CreditBalanceLow"} | _low_balance(platform, delivery.subject)
    balance, entry = describe_entry(platform, delivery.subject)
    return {"payload_type": "CreditLedgerEntry"} | render_entry(platform, balance, entry)


def _low_balance(platform: Platform, subject: str) -> dict[str, Any]:
    subscription_id, _, entitlement_id = subject.partition("/")
    subscription, kind = (
        platform.subscriptions.get(subscription_id),
        platform.entitlements.get(entitlement_id),
    )
    product = platform.products.get(subscription.product_id)
    attached = next(one for one in product.credit_entitlements if one.credit_entitlement_id == kind.id)
    balance = platform.balances.get(f"{kind.id}/{subscription.customer_id}")
    return {
        "available_balance": format_plain(compute_left(balance)),
        "brand_id": views.render_brand(platform),
        "credit_entitlement_id": kind.id,
        "credit_entitlement_name": kind.name,
        "customer_id": subscription.customer_id,
        "subscription_id": subscription_id,
        "subscription_credits_amount": attached.credits_amount,
        "threshold_amount": format_plain(find_low_level(attached) or ZERO),
        "threshold_percent": attached.low_balance_threshold_percent,
    }
