"""May this request pass: checks, reservations, and forward-auth for proxies."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from operators.gate import Decision, Receipt
from serving.gate import Quantity as Amount
from serving.service.problems import Problem, not_found, unavailable, unfit
from serving.service.routing import Answer, Call, Nothing, Route, Sent, Success
from serving.service.shapes import (
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
from serving.service.state import Service
from serving.service.wording import amount, decision_body, denied, json, rate_headers, whole

RATE = {
    "RateLimit": "What is left and for how many seconds, where there is a cap.",
    "RateLimit-Policy": "The cap.",
}
RETRY = {"Retry-After": "Seconds until the period ends, or until the store may be back."}
HEADER = "x-tidegate-"
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
    """For a proxy that asks before it lets a request through; it has to set the headers itself, over what came."""
    query = call.query
    customer = query.customer or _header(call.headers, "customer", 256)
    meter = query.meter or _header(call.headers, "meter", 100)
    quantity = call.headers.get(f"{HEADER}quantity", "1") if query.quantity is UNSET else query.quantity
    decision = await service.gate.check(customer, meter, _from_header(quantity))
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


def _header(headers: Mapping[str, str], name: str, most: int) -> str:
    found = headers.get(HEADER + name, "")
    try:
        # Headers are read as Latin-1; names are UTF-8.
        found = found.encode("latin-1").decode()
    except UnicodeDecodeError:
        found = ""
    if not 0 < len(found) <= most:
        raise unfit(
            f"{name}: needs the parameter {name} or the header {HEADER}{name}, 1 to {most} characters"
        )
    return found


def _from_header(quantity: Quantity) -> Amount:
    try:
        return amount(msgspec.convert(quantity, Quantity, strict=False))
    except msgspec.ValidationError as error:
        raise unfit(f"quantity: {error}") from None


ROUTES = (
    Route(
        "GET",
        "/v1/check",
        get_check,
        "May this request pass?",
        [Success(200, "The decision, also where it is no.", DecisionBody, headers=RATE | RETRY)],
        scope="check",
        query=CheckQuery,
    ),
    Route(
        "POST",
        "/v1/check",
        post_check,
        "May this request pass, on several meters?",
        [Success(200, "The decision, also where it is no.", DecisionBody, headers=RATE | RETRY)],
        scope="check",
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
        problems=(409, 429),
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
    Route(
        "GET",
        "/v1/forward-auth",
        forward_auth,
        "Answer a proxy: let it through or not",
        [Success(200, "Let it through.", DecisionBody, headers=RATE)],
        scope="check",
        query=ForwardQuery,
        problems=(429,),
        about="For nginx, Traefik and Envoy; docs/api.md has their configuration.",
    ),
)
