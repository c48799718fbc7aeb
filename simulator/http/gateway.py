"""What every request of the API passes: key, limits, faults, the log; then the handler of its route."""

import asyncio
import hmac
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from simulator.billing.ticks import tick
from simulator.http.calls import Answer, Call, Handler, render_refusal
from simulator.http.faults import BEFORE_COMMIT, WRONG_BODIES, Fault, Plan
from simulator.http.limits import UNAUTHENTICATED, Limiter, Verdict, read_tier
from simulator.http.request_log import LoggedRequest, RequestLog
from simulator.state.platform import Platform
from simulator.state.problems import Problem

CUT: Final = "tidegate.cut"
"""The ASGI extension with which a server offers to cut a connection."""

HOLD_S: Final = 300.0
# A longer body is not read, because no client of this API has a reason to send one.
BODY_MAX: Final = 96 << 20
NO_COUNTS: Final = (
    "{}",
    '{"ingested_count":null}',
    '{"ingested_count":"3"}',
    '{"ingested_count":1.5}',
    "[]",
    "null",
)
HTML: Final = "<!doctype html><html><body><h1>Just a moment...</h1></body></html>"


class ConnectionCut(Exception):
    """The connection ends without an answer. Raised if there is no socket to cut."""


class AnswerHeld(Exception):
    """No answer is sent while the client waits. Raised if there is no socket to hold."""


class Gateway:
    """Routes requests to the `Handler`s of one provider. One thread, one request at a time."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.log = RequestLog()
        self.restart()

    def restart(self) -> None:
        """Start over with faults, limits and the log, as after a reset."""
        self.plan = Plan(self.platform.memory.seed)
        self.log.clear()
        self.relimit()

    def relimit(self) -> None:
        """Apply a changed tier or switch; the windows start empty."""
        memory = self.platform.memory
        self._limiter = Limiter(read_tier(memory.tier), memory.switches)
        self._strangers: defaultdict[str, Limiter] = defaultdict(
            lambda: Limiter(UNAUTHENTICATED, self.platform.switches)
        )

    def endpoint(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await self._serve(request, handler)

        return endpoint

    async def _serve(self, request: Request, handler: Handler) -> Response:
        body = await _body(request)
        if body is None:
            # The client has gone, and what arrived is not a request.
            return Response(status_code=400)
        with self.platform.transaction():
            tick(self.platform)
            call = Call(
                request.method, request.scope["path"], request.path_params, request.query_params, body
            )
            verdict, answer = self._admit(request, call)
            fault = None if answer else self.plan.strike(call.method, call.path, self.platform.now)
            if answer is None:
                answer = self._act(handler, call._replace(fault=fault))
        self._note(request, call, answer, fault)
        response = await _sent(answer, fault, verdict.headers)
        response.headers["date"] = format_datetime(
            datetime.fromtimestamp(self.platform.now / 1e6, UTC), usegmt=True
        )
        return response

    def _admit(self, request: Request, call: Call) -> tuple[Verdict, Answer | None]:
        """Return the limiter's verdict, and the refusal if the key or the limits do not let the request pass."""
        refused = self._check_key(request.headers.get("authorization", ""), call.method)
        if refused and refused.status == 401:
            limiter = self._strangers[request.client.host if request.client else ""]
        else:
            limiter = self._limiter
        verdict = limiter.admit(self.platform.now)
        if not verdict.allowed:
            return verdict, render_refusal(_too_many())
        return verdict, render_refusal(refused) if refused else None

    def _check_key(self, header: str, method: str) -> Problem | None:
        scheme, _, key = header.partition(" ")
        mode = "revoked"
        for known, its_mode in self.platform.memory.keys.items():
            if scheme.lower() == "bearer" and hmac.compare_digest(known.encode(), key.strip().encode()):
                mode = its_mode
        if mode == "revoked":
            return Problem(401, "UNAUTHORIZED", "needs a valid key: Authorization: Bearer KEY")
        if mode == "read_only" and method != "GET":
            return Problem(403, "FORBIDDEN", "this key may only read")
        return None

    def _act(self, handler: Handler, call: Call) -> Answer:
        """Return the provider's answer; a fault before the work leaves the state unchanged."""
        fault = call.fault
        if fault and fault.kind == "rate_limited":
            return render_refusal(_too_many())
        if (fault and fault.kind in BEFORE_COMMIT) or (
            fault and fault.kind in WRONG_BODIES and not fault.commit
        ):
            return _failed(fault)
        try:
            answer = handler(self.platform, call)
        except Problem as problem:
            answer = render_refusal(problem)
        if fault and fault.kind == "error_after_commit":
            return _failed(fault)._replace(events=answer.events, stored=answer.stored)
        return answer

    def _note(self, request: Request, call: Call, answer: Answer, fault: Fault | None) -> None:
        is_silent = fault is not None and fault.kind.startswith(("reset", "hang"))
        self.log.add(
            LoggedRequest(
                number=0,
                at=self.platform.now,
                method=call.method,
                path=call.path,
                query=request.url.query,
                status=None if is_silent else answer.status,
                bytes=len(call.body),
                events=answer.events,
                stored=answer.stored,
                fault=fault.kind if fault else None,
                code=answer.problem.code if answer.problem else None,
                retry=request.headers.get("x-stainless-retry-count"),
            )
        )


class Silence(Response):
    """No answer: holds the connection for `hold_s` or until the client has gone, then cuts it."""

    def __init__(self, hold_s: float) -> None:
        super().__init__()
        self._hold_s = hold_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cut = scope.get("extensions", {}).get(CUT)
        if cut is None:
            raise AnswerHeld if self._hold_s else ConnectionCut
        if self._hold_s:
            await _until_gone(receive, self._hold_s)
        cut()
        # The server expects an answer unless it has seen the connection close.
        await _until_gone(receive, 1.0)


async def _until_gone(receive: Receive, longest_s: float) -> None:
    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    try:
        await asyncio.wait_for(gone(), longest_s)
    except TimeoutError:
        return


async def _body(request: Request) -> bytes | None:
    """Return the body, cut off if it is far too long; None if the client left before it had sent it."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size <= BODY_MAX:
                parts.append(part)
    except ClientDisconnect:
        return None
    return b"".join(parts)


async def _sent(answer: Answer, fault: Fault | None, headers: dict[str, str]) -> Response:
    content = b"" if answer.document is None else msgspec.json.encode(answer.document)
    headers = dict(headers)
    kind = fault.kind if fault else "ok"
    if kind == "rate_limited" and headers:
        headers["X-RateLimit-Remaining"] = "0"
    if fault and fault.retry_after is not None:
        headers["Retry-After"] = fault.retry_after
    if kind.startswith("reset"):
        return Silence(0)
    if fault and kind.startswith("hang"):
        return Silence(HOLD_S if fault.delay_s is None else fault.delay_s)
    if fault and kind == "slow":
        await asyncio.sleep(1.0 if fault.delay_s is None else fault.delay_s)
    if kind == "html":
        return Response(HTML, 200, headers, media_type="text/html")
    if kind == "truncated":
        content = content[: max(1, len(content) // 2)]
    if fault and kind == "no_count":
        body = fault.body if fault.body is not None else NO_COUNTS[int(fault.draw * len(NO_COUNTS))]
        return Response(body, fault.status or 200, headers, media_type="application/json")
    if answer.status == 204:
        return Response(None, 204, headers)
    return Response(content, answer.status, headers, media_type="application/json")


def _failed(fault: Fault) -> Answer:
    if fault.kind in WRONG_BODIES:
        return Answer(200, {"ingested_count": 0})
    status = fault.status or 500
    return render_refusal(Problem(status, "INTERNAL_SERVER_ERROR", ""))


def _too_many() -> Problem:
    return Problem(429, "TOO_MANY_REQUESTS", "")
