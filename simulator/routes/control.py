"""The control plane under `/__sim`: how tests and the demo change the provider. It requires no key."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from simulator.billing import periods
from simulator.billing.ticks import tick
from simulator.http import credit_views, views
from simulator.http.calls import Call
from simulator.http.faults import Rule
from simulator.http.gateway import Gateway
from simulator.http.limits import read_tier
from simulator.routes import control_bodies, reading, webhooks
from simulator.routes.seeding import Seeds, create_seeds
from simulator.routes.webhook_deliveries import Sender
from simulator.state import planting
from simulator.state.instants import SECOND, from_datetime, write_instant
from simulator.state.problems import Problem

T = TypeVar("T")

PREFIX: Final = "/__sim"
LISTED_MAX: Final = 10_000

Act = Callable[[Gateway, Call], Any]


def reset(gateway: Gateway, call: Call) -> Any:
    gateway.platform.reset(call.read_body(control_bodies.Reset).seed)
    gateway.restart()
    return state(gateway, call)


def get_clock(gateway: Gateway, call: Call) -> Any:
    clock = gateway.platform.clock
    return {"now": write_instant(clock.now()), "rate": clock.hand.rate}


def set_clock(gateway: Gateway, call: Call) -> Any:
    order, platform = call.read_body(control_bodies.SetClock), gateway.platform
    at = platform.now if order.now is None else from_datetime(order.now)
    if at < platform.now:
        # Totals record how far they were read; after the clock was set back, later events may lie before that.
        platform.note_change()
    platform.clock.set(at + int(order.advance_s * SECOND), order.rate)
    tick(platform)
    return get_clock(gateway, call)


def seed(gateway: Gateway, call: Call) -> Any:
    return create_seeds(gateway.platform, call.read_body(Seeds))


def get_switches(gateway: Gateway, call: Call) -> Any:
    return gateway.platform.switches


def set_switches(gateway: Gateway, call: Call) -> Any:
    memory = gateway.platform.memory
    memory.switches = memory.switches.replace(call.read_body(dict[str, Any]))
    gateway.platform.note_change()
    gateway.relimit()
    return memory.switches


def set_tier(gateway: Gateway, call: Call) -> Any:
    tier = call.read_body(control_bodies.SetTier).tier
    read_tier(tier)
    gateway.platform.memory.tier = tier
    gateway.relimit()
    return {"tier": tier}


def set_key(gateway: Gateway, call: Call) -> Any:
    order = call.read_body(control_bodies.SetKey)
    gateway.platform.memory.keys[order.key] = order.mode
    return {"mode": order.mode}


def get_faults(gateway: Gateway, call: Call) -> Any:
    return gateway.plan.list_rules()


def add_fault(gateway: Gateway, call: Call) -> Any:
    return gateway.plan.add(call.read_body(Rule), gateway.platform.now)


def clear_faults(gateway: Gateway, call: Call) -> Any:
    gateway.plan.clear(call.read_text("id"))
    return gateway.plan.list_rules()


def add_script(gateway: Gateway, call: Call) -> Any:
    script = call.read_body(control_bodies.Script)
    gateway.plan.script(script.where, script.steps)
    return gateway.plan.list_rules()


def drop_events(gateway: Gateway, call: Call) -> Any:
    return {"event_ids": planting.drop(gateway.platform, call.read_body(planting.Drop))}


def double_events(gateway: Gateway, call: Call) -> Any:
    return {"event_ids": planting.double(gateway.platform, call.read_body(planting.Double))}


def insert_events(gateway: Gateway, call: Call) -> Any:
    return {"stored": planting.insert(gateway.platform, call.read_body(control_bodies.Insert).events)}


def skew(gateway: Gateway, call: Call) -> Any:
    planting.skew(gateway.platform, call.read_body(planting.Skew))
    return gateway.platform.memory.skews


def roll(gateway: Gateway, call: Call) -> Any:
    platform, order = gateway.platform, call.read_body(control_bodies.Roll)
    subscription = platform.subscriptions.get(call.params["subscription_id"])
    periods.roll(
        platform, subscription, at=_micro(order.at), start=_micro(order.start), end=_micro(order.end)
    )
    return views.render_subscription(platform, subscription)


def change_subscription(gateway: Gateway, call: Call) -> Any:
    platform, order = gateway.platform, call.read_body(control_bodies.ChangeSubscription)
    subscription = platform.subscriptions.get(call.params["subscription_id"])
    changes = {
        field: value for field in order.__struct_fields__ if (value := getattr(order, field)) is not None
    }
    for field in ("end", "expires_at"):
        if field in changes:
            changes[field] = from_datetime(changes[field])
    periods.change(platform, subscription, changes)
    return views.render_subscription(platform, subscription)


def usage(gateway: Gateway, call: Call) -> Any:
    """Return each cycle's history as it will be once everything stored is visible."""
    platform, wanted = gateway.platform, call.read_text("subscription_id")
    return [
        {
            "subscription_id": subscription.subscription_id,
            "customer_id": subscription.customer_id,
            "items": [
                reading.cycle_usage(platform, subscription, cycle, None) for cycle in subscription.cycles
            ],
        }
        for subscription in platform.subscriptions
        if wanted in (None, subscription.subscription_id)
    ]


def events(gateway: Gateway, call: Call) -> Any:
    """Return everything stored, visible or not, in the order it was stored; doubled events occur twice."""
    platform = gateway.platform
    found = platform.events.list_after(call.read_number("after") or 0, _limit(call))
    return [
        views.render_event(platform, event)
        | {"position": event.position, "stored_at": write_instant(event.stored_at)}
        for event in found
    ]


def requests(gateway: Gateway, call: Call) -> Any:
    return gateway.log.list_after(call.read_number("after") or 0, _limit(call))


def state(gateway: Gateway, call: Call) -> Any:
    platform = gateway.platform
    return {
        "seed": platform.memory.seed,
        "now": write_instant(platform.now),
        "rate": platform.clock.hand.rate,
        "business_id": platform.memory.business_id,
        "tier": platform.memory.tier,
        "switches": platform.switches,
        "events": len(platform.events),
        "requests": gateway.log.total,
        "meters": [
            views.render_meter(platform, meter) | {"archived": meter.is_archived} for meter in platform.meters
        ],
        "customers": [views.render_customer(platform, customer) for customer in platform.customers],
        "products": [views.render_product(platform, product) for product in platform.products],
        "subscriptions": [views.render_subscription(platform, one) for one in platform.subscriptions],
        "credit_entitlements": [credit_views.render_kind(platform, kind) for kind in platform.entitlements],
        "balances": [credit_views.render_balance(balance) for balance in platform.balances],
        "webhooks": [webhooks.view(endpoint) for endpoint in platform.endpoints],
        "skews": platform.memory.skews,
        "faults": gateway.plan.list_rules(),
    }


def get_webhooks(gateway: Gateway, call: Call) -> Any:
    """Return the webhooks that are queued or were sent recently."""
    return [
        msgspec.to_builtins(one)
        | {"emitted_at": write_instant(one.emitted_at), "due_at": write_instant(one.due_at)}
        for one in gateway.platform.deliveries
    ]


def emit_webhook(gateway: Gateway, call: Call) -> Any:
    order = call.read_body(control_bodies.Emit)
    gateway.platform.emit(order.type, gateway.platform.subscriptions.get(order.subject).subscription_id)
    return {"type": order.type}


def rotate_secret(gateway: Gateway, call: Call) -> Any:
    webhooks.rotate(gateway.platform, call.params["webhook_id"])
    return {"rotated": call.params["webhook_id"]}


ACTS: dict[tuple[Literal["GET", "POST", "PATCH", "DELETE"], str], Act] = {
    ("POST", "/reset"): reset,
    ("GET", "/state"): state,
    ("GET", "/clock"): get_clock,
    ("POST", "/clock"): set_clock,
    ("POST", "/seed"): seed,
    ("GET", "/switches"): get_switches,
    ("POST", "/switches"): set_switches,
    ("POST", "/tier"): set_tier,
    ("POST", "/keys"): set_key,
    ("GET", "/faults"): get_faults,
    ("POST", "/faults"): add_fault,
    ("DELETE", "/faults"): clear_faults,
    ("POST", "/script"): add_script,
    ("GET", "/events"): events,
    ("POST", "/events/drop"): drop_events,
    ("POST", "/events/double"): double_events,
    ("POST", "/events/insert"): insert_events,
    ("POST", "/skew"): skew,
    ("GET", "/usage"): usage,
    ("GET", "/requests"): requests,
    ("POST", "/subscriptions/{subscription_id}/roll"): roll,
    ("PATCH", "/subscriptions/{subscription_id}"): change_subscription,
    ("GET", "/webhooks"): get_webhooks,
    ("POST", "/webhooks/emit"): emit_webhook,
    ("POST", "/webhooks/{webhook_id}/rotate"): rotate_secret,
}


def routes(gateway: Gateway, sender: Sender) -> list[Route]:
    async def deliver(request: Request) -> Response:
        return Response(msgspec.json.encode(await sender.deliver()), media_type="application/json")

    return [
        Route(f"{PREFIX}/webhooks/deliver", deliver, methods=["POST"]),
        *(
            Route(PREFIX + path, _endpoint(gateway, act), methods=[method])
            for (method, path), act in ACTS.items()
        ),
    ]


def _endpoint(gateway: Gateway, act: Act) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        body = await request.body() or b"{}"
        call = Call(request.method, request.scope["path"], request.path_params, request.query_params, body)
        try:
            with gateway.platform.transaction():
                status, document = 200, act(gateway, call)
        except Problem as problem:
            status, document = problem.status, {"code": problem.code, "message": problem.message}
        except ValueError as error:
            status, document = 422, {"code": "WRONG_ORDER", "message": str(error)}
        return Response(msgspec.json.encode(document), status, media_type="application/json")

    return endpoint


def _limit(call: Call) -> int:
    limit = call.read_number("limit")
    return LISTED_MAX if limit is None else min(limit, LISTED_MAX)


def _micro(at: datetime | None) -> int | None:
    return None if at is None else from_datetime(at)
