"""Work that breaks in its middle: what it reported is metered, nothing else, and no hold is left behind."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tests.serving.client.test_middleware import Place, app, client, customer_of, run
from tidegate.serving.client.middleware import UsageMiddleware

TOKENS = {"meter": "tokens_out", "name": "llm.tokens", "key": "output_tokens", "quantity": 20}
PIECES = 16


async def broken_pieces(
    request: Request, report: bool, then: Callable[[], Awaitable[None]]
) -> AsyncIterator[bytes]:
    for i in range(1, PIECES + 1):
        if report:
            request.state.held.used(i)
        yield b"piece "
    await then()


async def break_down() -> None:
    raise RuntimeError("the model is gone")


@pytest.mark.parametrize("report", [True, False])
def test_a_stream_that_breaks_meters_what_it_reported(tmp_path: Path, report: bool) -> None:
    async def scenario(place: Place) -> None:
        async def endpoint(request: Request) -> Response:
            return StreamingResponse(broken_pieces(request, report, break_down))

        with suppress(httpx.HTTPError):
            await client(app(place, endpoint, **TOKENS)).get("/")
        assert [event["data"] for event in place.events] == [{"output_tokens": PIECES}] * report
        assert place.held() == ({"tokens_out": PIECES} if report else {})

    run(scenario, tmp_path)


async def cancel_by_scope(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await anyio.sleep(0.1)
        group.cancel_scope.cancel()


async def cancel_by_task(work: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        await work()

    task = asyncio.create_task(body())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("report", [True, False])
@pytest.mark.parametrize("cancel", [cancel_by_scope, cancel_by_task])
def test_cancelled_work_leaves_no_hold(tmp_path: Path, cancel: Any, report: bool) -> None:
    """Starlette cancels by an anyio scope, which cancels again whatever is awaited for the cleanup."""

    async def scenario(place: Place) -> None:
        async def work() -> None:
            async with place.metering.reserved(
                "acme", "tokens_out", 50, name="llm.tokens", key="output_tokens"
            ) as held:
                if report:
                    held.used(7)
                await anyio.sleep(60)

        await cancel(work)
        await place.metering.aclose()
        assert place.held() == ({"tokens_out": 7} if report else {})
        assert len(place.events) == report

    run(scenario, tmp_path)


@pytest.mark.parametrize("cancel", [cancel_by_scope, cancel_by_task])
def test_work_that_is_cancelled_while_it_reserves_leaves_no_hold(
    tmp_path: Path, cancel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(place: Place) -> None:
        reserve = place.gate.reserve

        async def slow(*given: Any, **more: Any) -> Any:
            decision = await reserve(*given, **more)
            await asyncio.sleep(0.3)
            return decision

        monkeypatch.setattr(place.gate, "reserve", slow)

        async def work() -> None:
            async with place.metering.reserved("acme", "calls", 5, name="api.call"):
                raise AssertionError("was cancelled before")

        await cancel(work)
        await place.metering.aclose()
        assert place.held() == {}
        assert place.events == []

    run(scenario, tmp_path)


# Real servers and frameworks


@asynccontextmanager
async def under_uvicorn(app: Any, port: int) -> AsyncIterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def under_hypercorn(app: Any, port: int) -> AsyncIterator[None]:
    config, stop = Config(), asyncio.Event()
    config.bind, config.errorlog = [f"127.0.0.1:{port}"], None
    task = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            break
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        stop.set()
        await task


def with_starlette(place: Place, endpoint: Any) -> Any:
    inner = Starlette()
    inner.add_route("/", endpoint)
    return UsageMiddleware(inner, metering=place.metering, customer=customer_of, **TOKENS)  # type: ignore[arg-type]


def with_fastapi(place: Place, endpoint: Any) -> Any:
    inner = FastAPI()
    inner.add_api_route("/", endpoint)
    inner.add_middleware(UsageMiddleware, metering=place.metering, customer=customer_of, **TOKENS)  # type: ignore[arg-type]
    return inner


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


SERVERS = pytest.mark.parametrize("server", [under_uvicorn, under_hypercorn])
FRAMEWORKS = pytest.mark.parametrize("framework", [with_starlette, with_fastapi])


async def settled(place: Place, expected: dict[str, int]) -> None:
    """Wait until holds are these; cleanup may end after the client has gone."""
    async with asyncio.timeout(30):
        while place.held() != expected:
            await asyncio.sleep(0.02)


@SERVERS
@FRAMEWORKS
def test_a_client_that_leaves_pays_for_what_was_reported(tmp_path: Path, server: Any, framework: Any) -> None:
    async def scenario(place: Place) -> None:
        async def endpoint(request: Request) -> Response:
            async def wait() -> None:
                await asyncio.sleep(60)

            return StreamingResponse(broken_pieces(request, True, wait))

        port = free_port()
        async with server(framework(place, endpoint), port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nhost: app\r\nx-customer: acme\r\n\r\n")
            await reader.readuntil(b"piece")
            writer.close()
            await settled(place, {"tokens_out": PIECES})
        assert [event["data"] for event in place.events] == [{"output_tokens": PIECES}]

    run(scenario, tmp_path)


@SERVERS
@FRAMEWORKS
def test_an_answer_with_a_background_task_that_fails_is_metered_once(
    tmp_path: Path, server: Any, framework: Any
) -> None:
    async def scenario(place: Place) -> None:
        async def endpoint(request: Request) -> Response:
            request.state.held.used(Decimal(3))
            return Response("done", background=BackgroundTask(break_down))

        port = free_port()
        async with server(framework(place, endpoint), port), httpx.AsyncClient() as asking:
            answer = await asking.get(f"http://127.0.0.1:{port}/", headers={"x-customer": "acme"})
            assert (answer.status_code, answer.text) == (200, "done")
            await settled(place, {"tokens_out": 3})
        assert len(place.events) == 1

    run(scenario, tmp_path)


@SERVERS
@FRAMEWORKS
def test_an_endpoint_that_takes_too_long_has_used_nothing(
    tmp_path: Path, server: Any, framework: Any
) -> None:
    async def scenario(place: Place) -> None:
        async def endpoint(request: Request) -> Response:
            async with asyncio.timeout(0.05):
                await asyncio.sleep(60)
            return Response("late")

        port = free_port()
        async with server(framework(place, endpoint), port), httpx.AsyncClient() as asking:
            answer = await asking.get(f"http://127.0.0.1:{port}/", headers={"x-customer": "acme"})
            assert answer.status_code == 500
            await settled(place, {})
        assert place.events == []

    run(scenario, tmp_path)
