"""The platform's API: which path leads to which part of it."""

from starlette.routing import BaseRoute, Route

from serving.simulator import catalog, ingest, reading
from serving.simulator.calls import Answer, Call, Handler
from serving.simulator.gateway import Gateway
from serving.simulator.platform import Platform
from serving.simulator.problems import Problem

HANDLERS: dict[tuple[str, str], Handler] = {
    ("POST", "/events/ingest"): ingest.ingest,
    ("GET", "/events"): reading.list_events,
    ("GET", "/events/{event_id:path}"): reading.get_event,
    ("POST", "/meters"): catalog.create_meter,
    ("GET", "/meters"): catalog.list_meters,
    ("GET", "/meters/{id}"): catalog.get_meter,
    ("PATCH", "/meters/{id}"): catalog.change_meter,
    ("DELETE", "/meters/{id}"): catalog.archive_meter,
    ("POST", "/meters/{id}/unarchive"): catalog.unarchive_meter,
    ("POST", "/customers"): catalog.create_customer,
    ("GET", "/customers"): catalog.list_customers,
    ("GET", "/customers/{customer_id}"): catalog.get_customer,
    ("POST", "/products"): catalog.create_product,
    ("GET", "/products/{product_id}"): catalog.get_product,
    ("GET", "/subscriptions"): catalog.list_subscriptions,
    ("GET", "/subscriptions/{subscription_id}"): catalog.get_subscription,
    ("GET", "/subscriptions/{subscription_id}/usage-history"): reading.usage_history,
}


def routes(gateway: Gateway) -> list[BaseRoute]:
    """One route per method, and one for all that is not there, which asks for a key all the same."""
    known: list[BaseRoute] = [
        Route(path, gateway.endpoint(handler), methods=[method])
        for (method, path), handler in HANDLERS.items()
    ]
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return [*known, Route("/{path:path}", gateway.endpoint(_unknown), methods=methods)]


def _unknown(platform: Platform, call: Call) -> Answer:
    raise Problem(404, "NOT_FOUND", f"there is no {call.method} {call.path}")
