"""Applications behind the gate: nothing passes a cap, what was answered was metered, who fails has used nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Scope

from examples.llm_endpoint import build, parrot
from tests.serving.http.local import local
from tests.serving.http.served import Served
from tests.serving.http.test_recovery import meter
from tidegate.connectors.clock import wall_clock
from tidegate.connectors.log.writer import LogWriter
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.holds import SqliteHolds
from tidegate.operators.gate.customer_limits import CatalogLimits
from tidegate.serving.client.emit import EmitError, HttpEmit, LogEmit
from tidegate.serving.client.middleware import Denied, Metering, UsageMiddleware
from tidegate.serving.gate import AsyncGate
from tidegate.settings.catalog.file import parse_catalog

PATIENCE = timedelta(seconds=10)
CATALOG = """meters:
  - {name: calls, event_name: api.call, aggregation: {type: count}}
  - {name: tokens_out, event_name: llm.tokens, aggregation: {type: sum, key: output_tokens}}
default_plan: free
plans: {free: {limits: {calls: {cap: 10}, tokens_out: {cap: 100}}}}
"""


class Place:
    """A store with this catalog, a gate on it, and the events that were emitted."""

    def __init__(self, folder: Path) -> None:
        control = SqliteControl(folder / "store.db")
        control.apply(CATALOG, origin="cli", by="test")
        control.close()
        self.holds = SqliteHolds(folder / "store.db")
        self.gate = AsyncGate.open(f"sqlite:{folder / 'store.db'}")
        self.events: list[dict[str, Any]] = []
        self.lost: list[EmitError] = []
        self.fails = False
        self.metering = Metering(self.gate, self.emit, source="/app", lost=self.lost.append)

    async def emit(self, event: bytes, customer: str) -> None:
        if self.fails:
            raise EmitError("nobody answers", event)
        self.events.append(json.loads(event))

    def held(self, customer: str = "acme") -> dict[str, int]:
        """What holds count, whole."""
        own = CatalogLimits(parse_catalog(CATALOG), 1).find(customer)
        now = wall_clock()
        account = self.holds.account(customer, own.build_scope(own.find_period(now)[0]), now)
        return {meter: quantity // 10**24 for meter, quantity in account.held.items() if quantity}


@asynccontextmanager
async def at(folder: Path) -> AsyncIterator[Place]:
    place = Place(folder)
    try:
        yield place
    finally:
        await place.gate.close()
        place.holds.close()


def run(scenario: Callable[[Place], Awaitable[None]], folder: Path) -> None:
    async def whole() -> None:
        async with at(folder) as place:
            await scenario(place)

    asyncio.run(whole())


def customer_of(scope: Scope) -> str | None:
    found = dict(scope["headers"]).get(b"x-customer")
    return found.decode() if found else None


def app(place: Place, endpoint: Callable[[Request], Awaitable[Response]], **choices: Any) -> UsageMiddleware:
    inner = Starlette(routes=[Route("/", endpoint)])
    given: dict[str, Any] = {"meter": "calls", "name": "api.call", "customer": customer_of} | choices
    return UsageMiddleware(inner, metering=place.metering, **given)


def client(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://app", headers={"x-customer": "acme"})


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


def test_a_request_is_held_answered_and_metered_under_one_id(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        seen: list[dict[str, int]] = []

        async def endpoint(request: Request) -> Response:
            seen.append(place.held())
            return PlainTextResponse("hello")

        async with client(app(place, endpoint)) as asking:
            answer = await asking.get("/")
        assert (answer.status_code, answer.text) == (200, "hello")
        assert answer.headers["ratelimit-policy"] == '"calls";q=10'
        assert answer.headers["ratelimit"].startswith('"calls";r=9;t=')
        (event,) = place.events
        assert (event["subject"], event["type"], event["source"]) == ("acme", "api.call", "/app")
        # It counts from before the work until its event has come through the flow.
        assert seen == [{"calls": 1}] and place.held() == {"calls": 1}
        receipt = await place.gate.release("acme", event["id"], source="/app")
        assert receipt.state == "committed"

    run(scenario, tmp_path)


def test_of_many_at_once_no_more_pass_than_the_cap_lets(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        async with client(app(place, hello)) as asking:
            answers = await asyncio.gather(*(asking.get("/") for _ in range(40)))
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(200), statuses.count(429), len(place.events)) == (10, 30, 10)
        denied = next(answer for answer in answers if answer.status_code == 429)
        assert denied.headers["content-type"] == "application/problem+json"
        assert int(denied.headers["retry-after"]) > 0
        assert denied.json()["decision"]["reason"] == "cap_reached"

    run(scenario, tmp_path)


@pytest.mark.parametrize("status", [404, 500])
def test_what_failed_is_not_metered_and_nothing_stays_held(tmp_path: Path, status: int) -> None:
    async def scenario(place: Place) -> None:
        async def endpoint(request: Request) -> Response:
            return PlainTextResponse("no", status)

        async with client(app(place, endpoint)) as asking:
            assert (await asking.get("/")).status_code == status
        assert (place.events, place.held()) == ([], {})

    run(scenario, tmp_path)


def test_an_endpoint_that_raises_has_used_nothing(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        async def endpoint(request: Request) -> Response:
            raise RuntimeError("broken")

        async with client(app(place, endpoint)) as asking:
            assert (await asking.get("/")).status_code == 500
        assert (place.events, place.held()) == ([], {})

    run(scenario, tmp_path)


def test_the_end_of_an_answer_is_sent_only_when_it_was_metered(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one "
            assert place.events == []
            yield b"two"

        async def endpoint(request: Request) -> Response:
            request.state.held.used(Decimal("1"), words=2)
            return StreamingResponse(pieces())

        ends: list[int] = []
        gate = app(place, endpoint)

        async def watched(scope: Scope, receive: Any, send: Any) -> None:
            async def counting(message: Any) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    ends.append(len(place.events))
                await send(message)

            await gate(scope, receive, counting)

        async with client(watched) as asking:
            assert (await asking.get("/")).text == "one two"
        assert ends == [1] and place.events[0]["data"] == {"words": 2}

    run(scenario, tmp_path)


def test_who_has_no_customer_is_not_metered(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        async with client(app(place, hello)) as asking:
            del asking.headers["x-customer"]
            answer = await asking.get("/")
        assert answer.status_code == 200 and "ratelimit" not in answer.headers
        assert place.events == []

    run(scenario, tmp_path)


def test_an_event_that_could_not_be_sent_is_handed_over_and_counts_all_the_same(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        place.fails = True
        async with client(app(place, hello)) as asking:
            assert (await asking.get("/")).status_code == 200
        (lost,) = place.lost
        assert json.loads(lost.event)["subject"] == "acme"
        assert place.held() == {"calls": 1}

    run(scenario, tmp_path)


def test_a_decorated_function_uses_the_meter_or_is_not_called(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        called: list[str] = []

        @place.metering.metered("calls", "api.call", customer=lambda who, *, loud: who, quantity=4)
        async def greet(who: str, *, loud: bool) -> str:
            called.append(who)
            return f"hello {who}"

        assert await greet("acme", loud=True) == "hello acme"
        assert await greet("acme", loud=False) == "hello acme"
        with pytest.raises(Denied, match="calls: cap_reached"):
            await greet("acme", loud=True)
        assert called == ["acme", "acme"]

    run(scenario, tmp_path)


def test_of_a_model_only_the_tokens_that_came_are_used(tmp_path: Path) -> None:
    """Two answers of at most 60 cannot run at once under a cap of 100, but one after the other they can."""

    async def scenario(place: Place) -> None:
        going, go = asyncio.Event(), asyncio.Event()

        async def model(prompt: str, most: int) -> list[str]:
            going.set()
            await go.wait()
            return prompt.split()

        async with client(build(place.metering, model)) as asking:
            ask = {"prompt": "one two three", "max_tokens": 60}
            first = asyncio.create_task(asking.post("/complete", json=ask))
            await going.wait()
            assert place.held() == {"tokens_out": 60}
            assert (await asking.post("/complete", json=ask)).status_code == 429
            go.set()
            assert (await first).json() == {"answer": "one two three", "tokens": 3}
            assert place.held() == {"tokens_out": 3}
            assert (await asking.post("/complete", json=ask)).status_code == 200
        assert [event["data"]["output_tokens"] for event in place.events] == [3, 3]

    run(scenario, tmp_path)


def test_the_example_end_to_end(tmp_path: Path) -> None:
    """Over HTTP into the log, through the flow: the totals are what was answered, and nothing is held any more."""
    served = Served(tmp_path, catalog=CATALOG, start=False)
    with local(tmp_path, served) as here:

        async def scenario() -> int:
            gate = AsyncGate(SqliteHolds(served.store), timeout=PATIENCE, write_timeout=PATIENCE)
            async with HttpEmit(here.url, served.tokens["ingest"]) as emit:
                metering = Metering(gate, emit, source="/llm")
                async with client(build(metering, parrot)) as asking:
                    asks = [{"prompt": "high and low", "max_tokens": most} for most in (5, 7, 11)]
                    answers = [await asking.post("/complete", json=ask) for ask in asks]
            await gate.close()
            return sum(answer.json()["tokens"] for answer in answers)

        used = asyncio.run(scenario())
        assert used == 23
    assert meter(served)["total"] == used
    holds = SqliteHolds(served.store)
    own = CatalogLimits(parse_catalog(CATALOG), 1).find("acme")
    now = wall_clock()
    assert not any(holds.account("acme", own.build_scope(own.find_period(now)[0]), now).held.values())
    holds.close()


def test_http_emit_sends_again_what_was_not_answered() -> None:
    statuses = [503, 429, 202]
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        if len(bodies) == 1:
            raise httpx.ConnectError("nobody there")
        return httpx.Response(statuses[len(bodies) - 2])

    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def scenario() -> None:
        transport = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        async with HttpEmit("http://x/", "tg_", client=transport, sleep=sleep, chance=lambda: 0.0) as emit:
            await emit(b"event", "acme")

    asyncio.run(scenario())
    assert bodies == [b"event"] * 4
    assert pauses == [0.1, 0.2, 0.4]


def test_http_emit_does_not_repeat_what_is_refused() -> None:
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.content)
        return httpx.Response(422, text="time_missing")

    async def scenario() -> None:
        transport = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        async with HttpEmit("http://x", "tg_", client=transport) as emit:
            with pytest.raises(EmitError, match="422 time_missing"):
                await emit(b"event", "acme")

    asyncio.run(scenario())
    assert len(asked) == 1


def test_log_emit_writes_where_the_flow_reads(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = LogWriter(tmp_path, lanes=2)
        await LogEmit(log)(b'{"id":1}', "acme")
        await log.close()
        with pytest.raises(EmitError) as caught:
            await LogEmit(log)(b'{"id":2}', "acme")
        assert caught.value.event == b'{"id":2}'

    asyncio.run(scenario())
    assert (tmp_path / "0" / "000000000001.ndjson").read_bytes() == b'{"id":1}\n'
