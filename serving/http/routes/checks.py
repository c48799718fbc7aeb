"""May this request pass: checks, reservations, and forward-auth for proxies."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from msgspec import UNSET, UnsetType

from tidegate.operators.gate.decision import Decision, Receipt
from tidegate.serving.gate import Quantity as Amount
from tidegate.serving.http.problems import Problem, not_found, unavailable, unfit
from tidegate.serving.http.routing import Answer, Call, Nothing, Route, Sent, Success
from tidegate.serving.http.schemas import (
    Check,
    CheckQuery,
    Commit,
    DecisionBody,
    ForwardQuery,
    Quantity,
    ReceiptBody,
    ReleaseQuery,
    ReservationPath,
    Reserve,
    exact,
)
from tidegate.serving.http.serialization import amount, decision_body, denied, json, rate_headers, whole
from tidegate.serving.http.state import Service

RATE = {
    "RateLimit": "What is left and for how many seconds, where there is a cap.",
    "RateLimit-Policy": "The cap.",
}
RETRY = {
    "Retry-After": "Seconds until the period ends, until the first hold ends if holds alone are in the way, or until "
    "the store may be back."
}
FORWARD_AUTH = "/v1/forward-auth"
CUSTOMER_HEADER = "x-tidegate-customer"
CUSTOMER_MAX = 256
EXPIRES_MAX = 604_800


async def get_check(service: Service, call: Call[Nothing, CheckQuery, None]) -> Answer:
    query = call.query
    return _told(service, await service.gate.check(query.customer, query.meter, amount(query.quantity)))


async def post_check(service: Service, call: Call[Nothing, Nothing, Check]) -> Answer:
    asked = call.body
    quantities = _asked(asked.meter, asked.quantity, asked.quantities)
    return _told(service, await service.gate.check_many(asked.customer, quantities))


async def reserve(service: Service, call: Call[Nothing, Nothing, Reserve]) -> Answer:
    asked = call.body
    quantities = _asked(asked.meter, asked.quantity, asked.quantities)
    decision = await service.gate.reserve_many(
        asked.customer,
        quantities,
        timedelta(seconds=whole(asked.expires_in, "expires_in", EXPIRES_MAX, 1)),
        id=asked.id,
        source=asked.source,
    )
    if decision.reason == "conflict":
        raise Problem(409, "conflict", decision.detail, decision=decision_body(decision))
    if not decision.allowed:
        raise denied(decision, service.clock())
    headers = rate_headers(decision, service.clock())
    status = 200 if decision.reason in ("held", "settled") else 201
    return json(status, decision_body(decision))._replace(headers=headers)


async def commit(service: Service, call: Call[ReservationPath, Nothing, Commit]) -> Answer:
    said = call.body
    if said.quantity is not UNSET and said.quantities is not UNSET:
        raise unfit("needs quantity or quantities, and not both")
    final: Any = None if said.quantity is UNSET else amount(said.quantity)
    if said.quantities is not UNSET:
        final = {meter: amount(quantity) for meter, quantity in said.quantities.items()}
    return _closed(await service.gate.commit(said.customer, call.path.id, final, source=said.source))


async def release(service: Service, call: Call[ReservationPath, ReleaseQuery, None]) -> Answer:
    query = call.query
    return _closed(await service.gate.release(query.customer, call.path.id, source=query.source))


async def forward_auth(service: Service, call: Call[Nothing, ForwardQuery, None]) -> Answer:
    """Answer a proxy that asks before it lets a request through, whatever the request's own method and path are.

    Meter and quantity are of the proxy's address alone: headers and what is appended to the address are the client's.
    """
    query = call.query
    customer = query.customer or _customer(call.headers)
    quantity = 1 if query.quantity is UNSET else amount(query.quantity)
    decision = await service.gate.check(customer, query.meter, quantity)
    if not decision.allowed:
        raise denied(decision, service.clock(), query.deny)
    return json(200, decision_body(decision))._replace(headers=rate_headers(decision, service.clock()))


def _told(service: Service, decision: Decision) -> Answer:
    return json(200, decision_body(decision))._replace(headers=rate_headers(decision, service.clock()))


def _asked(
    meter: str | UnsetType, quantity: Quantity | UnsetType, quantities: Mapping[str, Quantity] | UnsetType
) -> dict[str, Amount]:
    if quantities is UNSET and meter is not UNSET:
        return {meter: 1 if quantity is UNSET else amount(quantity)}
    if quantities is not UNSET and meter is UNSET and quantity is UNSET:
        return {name: amount(one) for name, one in quantities.items()}
    raise unfit("needs meter, with or without quantity, or quantities by meter")


def _closed(receipt: Receipt) -> Answer:
    match receipt.state:
        case "unavailable":
            raise unavailable(receipt.detail)
        case "unknown":
            raise not_found("there is no such reservation, or it ended more than an hour ago")
        case "conflict":
            raise Problem(409, "conflict", receipt.detail or "it was committed before with other quantities")
        case state:
            exceeded = {meter: exact(quantity) for meter, quantity in receipt.exceeded.items()}
            return json(200, ReceiptBody(receipt.customer, receipt.id, state, exceeded, receipt.expired))


def _customer(headers: Mapping[str, str]) -> str:
    found = headers.get(CUSTOMER_HEADER, "")
    try:
        # Headers are read as Latin-1; names are UTF-8.
        found = found.encode("latin-1").decode()
    except UnicodeDecodeError:
        found = ""
    if not 0 < len(found) <= CUSTOMER_MAX:
        raise unfit(
            f"customer: needs the parameter customer or the header {CUSTOMER_HEADER}, 1 to {CUSTOMER_MAX} characters"
        )
    return found


def _forward_auth(method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]) -> Route:
    return Route(
        method,
        FORWARD_AUTH,
        forward_auth,
        "Answer a proxy: let it through or not",
        [Success(200, "Let it through.", DecisionBody, headers=RATE)],
        scope="check",
        query=ForwardQuery,
        appended=True,
        problems=(404, 429),
        about="For nginx, Caddy, Traefik and Envoy; docs/api.md has their configuration. The method is that of the "
        "request that the proxy asks about. In the parameters everything from the first / or ? on is ignored, as some "
        "proxies append the request's own path there.",
    )


ROUTES = (
    Route(
        "GET",
        "/v1/check",
        get_check,
        "May this request pass?",
        [Success(200, "The decision, also where it is no.", DecisionBody, headers=RATE | RETRY)],
        scope="check",
        problems=(404,),
        query=CheckQuery,
    ),
    Route(
        "POST",
        "/v1/check",
        post_check,
        "May this request pass, on several meters?",
        [Success(200, "The decision, also where it is no.", DecisionBody, headers=RATE | RETRY)],
        scope="check",
        problems=(404,),
        takes=[Sent("application/json", Check)],
    ),
    Route(
        "POST",
        "/v1/reservations",
        reserve,
        "Hold quantities for an event to come",
        [
            Success(201, "They are held.", DecisionBody, headers=RATE),
            Success(200, "They were held before, or the event has come already.", DecisionBody, headers=RATE),
        ],
        scope="check",
        takes=[Sent("application/json", Reserve)],
        problems=(404, 409, 429),
        about="The same id with the same quantities may be sent again: it holds nothing more.",
    ),
    Route(
        "POST",
        "/v1/reservations/{id}/commit",
        commit,
        "Say what was used of what was held",
        [Success(200, "It counts until its event comes.", ReceiptBody)],
        scope="check",
        at=ReservationPath,
        takes=[Sent("application/json", Commit)],
        problems=(404, 409),
    ),
    Route(
        "DELETE",
        "/v1/reservations/{id}",
        release,
        "Give back what was held",
        [Success(200, "It counts no more.", ReceiptBody)],
        scope="check",
        at=ReservationPath,
        query=ReleaseQuery,
        problems=(404, 409),
    ),
    _forward_auth("GET"),
    _forward_auth("POST"),
    _forward_auth("PUT"),
    _forward_auth("PATCH"),
    _forward_auth("DELETE"),
    _forward_auth("OPTIONS"),
)
