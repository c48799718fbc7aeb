"""What a customer has used, once or as it happens."""

import msgspec
from msgspec import UNSET

from tidegate.serving.http.problems import Problem
from tidegate.serving.http.readers.unmetered import read_unmetered
from tidegate.serving.http.readers.usage import usage_body
from tidegate.serving.http.routing import Answer, Call, Route, Success
from tidegate.serving.http.schemas import CustomerPath, UsageBody, UsageQuery
from tidegate.serving.http.serialization import asked_at, bodies, json
from tidegate.serving.http.state import Service
from tidegate.serving.views.formatting import US
from tidegate.serving.views.limit_status import read_account

ALERTS_SHOWN = 20
CAUSES_SHOWN = 20


async def get_usage(service: Service, call: Call[CustomerPath, UsageQuery, None]) -> Answer:
    return json(200, await usage_of(service, call.path.customer, call.query))


async def usage_of(service: Service, customer: str, query: UsageQuery) -> UsageBody:
    """Read at one moment; 503 as long as the store has not been seen."""
    if service.live.problem:
        raise Problem(503, "unavailable", service.live.problem, headers={"retry-after": "1"})
    now = service.clock()
    at = now if query.at is UNSET else asked_at(query.at)
    (stored, held), notes, unmetered = await service.reader.ask(
        lambda reader: (
            read_account(reader, customer, now),
            reader.notes("alert", customer, ALERTS_SHOWN),
            read_unmetered(reader, customer, CAUSES_SHOWN),
        )
    )
    body = usage_body(
        service.live.version,
        customer,
        stored,
        held,
        bodies(notes),
        unmetered,
        now=now,
        at=at,
        hours=query.hours,
        days=query.days,
    )
    lag = service.gate.lag(customer)
    return msgspec.structs.replace(
        body, lag=None if lag is None else lag / US, stale=service.is_stale(customer)
    )


ROUTES = (
    Route(
        "GET",
        "/v1/customers/{customer}/usage",
        get_usage,
        "A customer's usage, bill and limits",
        [Success(200, "As of now.", UsageBody)],
        customer="path",
        at=CustomerPath,
        query=UsageQuery,
        problems=(404,),
        about="A customer who sent nothing yet has totals of 0 under the default plan.",
    ),
)
