"""The ASGI application: every request passes the same gates, in the same order, whatever it is for.

    route ─ key ─ rate ─ scope ─ parameters ─ whose ─ body ─ handler ─ answer

Each may end it with a problem; what nobody foresaw is a problem of status 500, whose cause is in the log alone.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tidegate.serving.gate import UnknownMeter
from tidegate.serving.http import provider_webhooks, requests
from tidegate.serving.http.access import own_customer
from tidegate.serving.http.openapi import document
from tidegate.serving.http.pages import Pages
from tidegate.serving.http.problems import MEDIA, Problem
from tidegate.serving.http.provider_webhooks import Webhooks
from tidegate.serving.http.routes import ROUTES
from tidegate.serving.http.routing import Answer, Call, Found, Route, Router, Stream
from tidegate.serving.http.state import Service

NONE: Final = "none"
ARRIVING_MAX: Final = 16
"""How many of the longest bodies may arrive at once."""
QUIET: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
"""Headers of every answer of the API: it is nothing to be shown, framed, guessed at or kept."""

_log = logging.getLogger("tidegate.service")


class App:
    """The API of one service, and the endpoint for the provider's webhooks. Its lifespan is the service's."""

    def __init__(self, service: Service, webhooks: Webhooks | None = None) -> None:
        self.service = service
        self._webhooks = webhooks
        # Deliveries are signed, so they pass none of the gates for keys.
        self._hook = provider_webhooks.routes(webhooks)[0] if webhooks is not None else None
        self._router = Router(ROUTES)
        service.openapi = json.dumps(document(ROUTES)).encode()
        self._arriving = requests.Arriving(ARRIVING_MAX * service.settings.request_bytes_max)
        self._pages = Pages(service.settings.frames, service.settings.auth)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            if self._hook is not None and scope["path"] == self._hook.path:
                await self._hook.handle(scope, receive, send)
            elif self._pages.has(scope["path"]):
                await self._pages(scope, receive, send)
            else:
                await self._serve(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.service.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.service.close()
        if self._webhooks is not None:
            await asyncio.to_thread(self._webhooks.close)
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, began, name = self.service, self.service.monotonic(), NONE
        answer: Answer | Stream
        try:
            route, call = await self._read(scope, receive)
            name = route.name
            answer = await route.handler(service, call)
        except UnknownMeter as unknown:
            problem = Problem(404, "unknown-meter", str(unknown))
            answer = Answer(problem.status, problem.body(), MEDIA)
        except Problem as problem:
            answer = Answer(problem.status, problem.body(), MEDIA, list(problem.headers.items()))
        except requests.Disconnected:
            return
        except Exception:
            _log.exception("%s %s failed", scope["method"], name)
            unforeseen = Problem(500, "internal", "something is wrong with the service; its log says what")
            answer = Answer(500, unforeseen.body(), MEDIA)
        if isinstance(answer, Stream):
            service.metrics.request(name, 200, service.monotonic() - began)
            try:
                await _stream(answer, scope["method"] == "HEAD", receive, send)
            finally:
                answer.close()
            return
        await _answer(answer, scope["method"] == "HEAD", send)
        service.metrics.request(name, answer.status, service.monotonic() - began)

    async def _read(self, scope: Scope, receive: Receive) -> tuple[Route, Call[Any, Any, Any]]:
        headers = requests.headers_of(scope["headers"])
        found = self._find(scope)
        route = found.route
        key = self.service.access.admit(route, headers)
        path = requests.path_parts(route, found.parts)
        own = requests.before_appended(scope["query_string"]) if route.appended else scope["query_string"]
        query = requests.parameters(route.query, own)
        query = own_customer(route, key, path, query)
        body = None
        if route.takes:
            sent = requests.sent_as(route, headers)
            raw = await requests.body(
                receive, headers, self.service.settings.request_bytes_max, self._arriving
            )
            body = requests.content(sent, raw)
        return route, Call(path, query, body, headers, key)

    def _find(self, scope: Scope) -> Found:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        try:
            found = self._router.find(method, scope["raw_path"].decode("latin-1"))
        except ValueError:
            raise Problem(400, "malformed", "path: needs percent-encoded UTF-8") from None
        if found is None:
            raise Problem(404, "not-found", "there is no such path; /openapi.json has those that there are")
        if isinstance(found, frozenset):
            allowed = ", ".join(sorted(found | ({"HEAD"} if "GET" in found else set())))
            raise Problem(405, "method", f"needs one of {allowed}", headers={"allow": allowed})
        return found


def build(service: Service, webhooks: Webhooks | None = None) -> ASGIApp:
    """Build the application, with CORS if there are origins whose pages may call it."""
    app: ASGIApp = App(service, webhooks)
    if service.settings.cors:
        app = CORSMiddleware(
            app,
            allow_origins=service.settings.cors,
            allow_methods=["GET", "PUT", "POST", "DELETE"],
            allow_headers=["authorization", "content-encoding", "content-type", "if-match", "last-event-id"],
            expose_headers=["etag", "ratelimit", "ratelimit-policy", "retry-after"],
            max_age=600,
        )
    return app


async def _answer(answer: Answer, is_head: bool, send: Send) -> None:
    headers = [
        (b"content-type", answer.media.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        *QUIET,
        *((name.encode(), value.encode("latin-1", "replace")) for name, value in answer.headers),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else answer.body})


async def _stream(stream: Stream, is_head: bool, receive: Receive, send: Send) -> None:
    """Send pieces until there are no more, or nobody listens; to HEAD none."""
    headers = [(b"content-type", stream.media.encode()), *QUIET, (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if is_head:
        await send({"type": "http.response.body", "body": b""})
        return
    sending = asyncio.create_task(_send_all(stream.pieces, send))
    leaving = asyncio.create_task(_left(receive))
    await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
    for task in (sending, leaving):
        task.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await task


async def _send_all(pieces: AsyncIterator[bytes], send: Send) -> None:
    async for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
