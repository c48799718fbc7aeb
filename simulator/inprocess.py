"""The simulator without a socket: a transport for httpx, sync and async, whose faults are httpx's own errors."""

import asyncio
import threading

import httpx
from starlette.types import ASGIApp

from simulator.http.gateway import AnswerHeld, ConnectionCut


class AppTransport(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """Passes requests to `app`. A cut connection is a ReadError, an answer held back a ReadTimeout, immediately."""

    def __init__(self, app: ASGIApp) -> None:
        self._asgi = httpx.ASGITransport(app)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = threading.Lock()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._asgi.handle_async_request(request)
        except ConnectionCut as error:
            raise httpx.ReadError("the connection was reset", request=request) from error
        except AnswerHeld as error:
            raise httpx.ReadTimeout("no answer came", request=request) from error

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        # The app works in one thread, so callers from several threads take turns.
        with self._turn:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            return self._loop.run_until_complete(self._answered(request))

    async def _answered(self, request: httpx.Request) -> httpx.Response:
        answer = await self.handle_async_request(request)
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=content, request=request)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None
