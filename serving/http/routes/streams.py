"""Server-sent events: a customer's usage, or everybody's at a glance, as they change.

Each message is the whole state and not a difference. So whoever comes back, with or without Last-Event-ID, has
with the first message all that happened meanwhile, and a slow reader skips states but never the newest.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec

from tidegate.serving.http.problems import Problem
from tidegate.serving.http.readers.store_follower import EVERYBODY
from tidegate.serving.http.readers.usage import period
from tidegate.serving.http.routes.customers import usage_of
from tidegate.serving.http.routing import Call, Nothing, Route, Stream, Success
from tidegate.serving.http.schemas import CustomerPath, UsageQuery
from tidegate.serving.http.state import Service

SSE: Final = "text/event-stream"
USAGE_WITHIN_S: Final = 1.0
"""How often it is looked whether totals have become stale; a comment keeps the connection alive."""
# What the gate refuses changes no total, and is to be seen all the same.
OVERVIEW_WITHIN_S: Final = 2.0
RETRY_MS: Final = 1000
USAGE_EVERY_S: Final = 0.1
OVERVIEW_EVERY_S: Final = 1.0
AGAIN_AFTER_S: Final = 1.0


class _Shown:
    """What the last message said."""

    stale = False


class StreamQuery(UsageQuery, frozen=True, forbid_unknown_fields=True):
    """As of usage; the newest buckets are enough for a chart that has the older ones."""

    hours: int = 2
    days: int = 2


async def usage_stream(service: Service, call: Call[CustomerPath, UsageQuery, None]) -> Stream:
    customer = call.path.customer
    shown = _Shown()

    async def state() -> Any:
        found = await usage_of(service, customer, call.query)
        shown.stale = found.stale
        return found

    def outdated(since: int) -> bool:
        """Whether a new period has begun, or totals have become stale, or fresh again."""
        if service.is_stale(customer) != shown.stale:
            return True
        catalog = service.live.version.catalog
        return period(catalog, customer, since) != period(catalog, customer, service.clock())

    # So that who asks for what can't be is told at once.
    await state()
    return _stream(service, call, customer, "usage", state, outdated, USAGE_EVERY_S, USAGE_WITHIN_S)


async def overview_stream(service: Service, call: Call[Nothing, Nothing, None]) -> Stream:
    board = service.board
    await board.overview()
    return _stream(
        service,
        call,
        EVERYBODY,
        "overview",
        board.overview,
        lambda since: True,
        OVERVIEW_EVERY_S,
        OVERVIEW_WITHIN_S,
    )


def _stream(
    service: Service,
    call: Call[Any, Any, Any],
    customer: str,
    event: str,
    state: Callable[[], Awaitable[Any]],
    outdated: Callable[[int], bool],
    every: float,
    within: float,
) -> Stream:
    place = service.places.take(call.key)
    pieces = _pieces(service, call, customer, event, state, outdated, every, within)
    return Stream(pieces, SSE, place.release)


async def _pieces(
    service: Service,
    call: Call[Any, Any, Any],
    customer: str,
    event: str,
    state: Callable[[], Awaitable[Any]],
    outdated: Callable[[int], bool],
    every: float,
    within: float,
) -> AsyncIterator[bytes]:
    live = service.live
    waiter = live.add(customer)
    try:
        yield b"retry: %d\n\n" % RETRY_MS
        # Asked each time, as a key may be revoked while its customer is busy, and a store away when the service ends.
        while service.access.still_admits(call.key) and not live.stopped:
            # Before reading, so that what changes while it is read is not missed.
            waiter.changed.clear()
            seq, number, told_at = live.seq, live.version.number, service.clock()
            try:
                found = await state()
            except Problem:
                # The page stays, and is told when the store is back: EventSource gives up after an error's answer.
                yield b": the store does not answer\n\n"
                await asyncio.sleep(AGAIN_AFTER_S)
                continue
            yield b"id: %d.%d\nevent: %s\ndata: %s\n\n" % (
                seq,
                number,
                event.encode(),
                msgspec.json.encode(found),
            )
            await asyncio.sleep(every)
            while not await _is_set(waiter.changed, within):
                if not service.access.still_admits(call.key):
                    return
                if outdated(told_at):
                    break
                yield b": \n\n"
    finally:
        live.remove(customer, waiter)


async def _is_set(changed: asyncio.Event, within: float) -> bool:
    try:
        async with asyncio.timeout(within):
            await changed.wait()
    except TimeoutError:
        return False
    return True


ROUTES = (
    Route(
        "GET",
        "/v1/customers/{customer}/stream",
        usage_stream,
        "A customer's usage, as it changes",
        [Success(200, "Events named usage, each with what GET usage gives.", None, SSE)],
        customer="path",
        at=CustomerPath,
        query=StreamQuery,
        about="Each message is the whole state, so nothing is lost across a reconnect. The id is of the store's feed "
        "and the catalog's version.",
    ),
    Route(
        "GET",
        "/v1/stream",
        overview_stream,
        "The overview, as it changes",
        [Success(200, "Events named overview, each with what GET /v1/overview gives.", None, SSE)],
        about="At most one a second.",
    ),
)
