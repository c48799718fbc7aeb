"""The provider's API: the path of each route and its handler."""

from starlette.routing import BaseRoute, Route

from simulator.http.calls import Answer, Call, Handler
from simulator.http.gateway import Gateway
from simulator.routes import catalog, credits, ingest, payments, plans, reading, wallets, webhooks
from simulator.state.platform import Platform
from simulator.state.problems import Problem

BALANCE = "/credit-entitlements/{entitlement_id}/balances/{customer_id}"

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
    ("PATCH", "/customers/{customer_id}"): catalog.change_customer,
    ("GET", "/customers/{customer_id}/entitlements"): wallets.list_entitlements,
    ("GET", "/customers/{customer_id}/wallets"): wallets.list_wallets,
    ("GET", "/customers/{customer_id}/wallets/ledger-entries"): wallets.list_movements,
    ("POST", "/customers/{customer_id}/wallets/ledger-entries"): wallets.add_movement,
    ("POST", "/products"): catalog.create_product,
    ("GET", "/products"): catalog.list_products,
    ("GET", "/products/{product_id}"): catalog.get_product,
    ("GET", "/subscriptions"): catalog.list_subscriptions,
    ("GET", "/subscriptions/{subscription_id}"): catalog.get_subscription,
    ("PATCH", "/subscriptions/{subscription_id}"): plans.update,
    ("POST", "/subscriptions/{subscription_id}/change-plan"): plans.change_plan,
    ("POST", "/subscriptions/{subscription_id}/change-plan/preview"): plans.preview,
    ("DELETE", "/subscriptions/{subscription_id}/change-plan/scheduled"): plans.cancel_scheduled,
    ("GET", "/payments"): payments.list_payments,
    ("GET", "/payments/{payment_id}"): payments.get_payment,
    ("GET", "/payments/{payment_id}/line-items"): payments.list_line_items,
    ("GET", "/subscriptions/{subscription_id}/usage-history"): reading.usage_history,
    ("GET", "/subscriptions/{subscription_id}/credit-usage"): credits.credit_usage,
    ("GET", "/customers/{customer_id}/credit-entitlements"): credits.customer_credits,
    ("POST", "/credit-entitlements"): credits.create,
    ("GET", "/credit-entitlements"): credits.list_kinds,
    ("GET", "/credit-entitlements/{id}"): credits.get,
    ("PATCH", "/credit-entitlements/{id}"): credits.change,
    ("DELETE", "/credit-entitlements/{id}"): credits.delete,
    ("POST", "/credit-entitlements/{id}/undelete"): credits.undelete,
    ("GET", "/credit-entitlements/{entitlement_id}/balances"): credits.list_balances,
    ("GET", BALANCE): credits.get_balance,
    ("GET", f"{BALANCE}/grants"): credits.list_grants,
    ("GET", f"{BALANCE}/ledger"): credits.list_ledger,
    ("POST", f"{BALANCE}/ledger-entries"): credits.create_entry,
    ("POST", "/webhooks"): webhooks.create,
    ("GET", "/webhooks"): webhooks.list_endpoints,
    ("GET", "/webhooks/{webhook_id}"): webhooks.get,
    ("PATCH", "/webhooks/{webhook_id}"): webhooks.change,
    ("DELETE", "/webhooks/{webhook_id}"): webhooks.delete,
    ("GET", "/webhooks/{webhook_id}/secret"): webhooks.secret,
}


def build_routes(gateway: Gateway) -> list[BaseRoute]:
    """Return one route per method, and one for unknown paths, which also requires a key."""
    known: list[BaseRoute] = [
        Route(path, gateway.endpoint(handler), methods=[method])
        for (method, path), handler in HANDLERS.items()
    ]
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return [*known, Route("/{path:path}", gateway.endpoint(_unknown), methods=methods)]


def _unknown(platform: Platform, call: Call) -> Answer:
    raise Problem(404, "NOT_FOUND", f"there is no {call.method} {call.path}")
