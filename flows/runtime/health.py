"""Whether a flow process lives, is ready and gets on, over HTTP: `/metrics`, `/healthz` and `/readyz`.

It lives while it answers. It is ready while it reads (flows/runtime/lifecycle.py), its store answers, and it has not
stalled: something is there to read, and for `stall` nothing has been metered. A stall is reported as an alert (a note
in the store, a line in the log), and reported again when it is over; both are looked for every second by a thread that
the flow's own work can't hold up for long.

Limits: bound to the address that is given, without TLS or login, as scrapers and probes expect inside a cluster.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from tidegate.flows.runtime.metrics import Telemetry
from tidegate.operators.model.errors import TidegateError

LOOK_EVERY = 1.0

_LOG = logging.getLogger("tidegate.health")


class HealthError(TidegateError):
    """The address for metrics can't be had; says what to do."""


class Watchdog:
    """Notes when nothing has moved for `stall` although something is there to read. `tell` is given what changed."""

    def __init__(
        self,
        telemetry: Telemetry,
        stall: timedelta,
        tell: Callable[[bool, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._telemetry = telemetry
        self._stall = stall.total_seconds()
        self._tell = tell
        self._clock = clock
        self._progress: tuple[int, int] = (-1, -1)
        self._moved_at = clock()

    def look(self) -> None:
        """Once a second, or whenever somebody asks."""
        progress = self._telemetry.events(), self._telemetry.handed_out()
        behind = self._telemetry.behind()
        now = self._clock()
        if progress != self._progress or not behind:
            self._progress, self._moved_at = progress, now
        stalled = now - self._moved_at >= self._stall
        if stalled != self._telemetry.stalled:
            self._telemetry.stalled = stalled
            if stalled:
                _LOG.error(
                    "stalled: nothing was metered for %.0f s, and %d wait to be read", self._stall, behind
                )
            else:
                _LOG.warning("no longer stalled")
            self._tell(stalled, behind)

    def run(self) -> None:
        """Check for a stall for as long as the process lives."""
        while True:
            time.sleep(LOOK_EVERY)
            try:
                self.look()
            except Exception:
                # The thread must outlive a store that is away, which may be why the flow has stalled.
                _LOG.exception("the watchdog could not tell")


def serve(telemetry: Telemetry, watchdog: Watchdog, host: str, port: int) -> int:
    """Serve and watch in threads that end with the process; return the port in use, where 0 chooses one."""
    try:
        server = make_server(host, port, _app(telemetry), ThreadingWSGIServer, handler_class=_Quiet)
    except OSError as error:
        raise HealthError(
            f"TIDEGATE_METRICS: {host}:{port} can't be had ({error.strerror}); choose another port"
        ) from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    threading.Thread(target=watchdog.run, name="watchdog", daemon=True).start()
    return server.server_port


def _app(telemetry: Telemetry) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    metrics: Any = make_wsgi_app(telemetry.registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                found: Iterable[bytes] = metrics(environ, start_response)
                return found
            case "/healthz":
                return _answer(start_response, "200 OK", {"status": "alive"})
            case "/readyz":
                if trouble := telemetry.trouble():
                    status, detail = trouble
                    body = {"status": status, "detail": detail}
                    return _answer(start_response, "503 Service Unavailable", body)
                problem = telemetry.catalog_problem()
                return _answer(
                    start_response, "200 OK", {"status": "ready"} | ({"catalog": problem} if problem else {})
                )
            case _:
                return _answer(
                    start_response, "404 Not Found", {"paths": ["/metrics", "/healthz", "/readyz"]}
                )

    return app


def _answer(start_response: StartResponse, status: str, body: dict[str, Any]) -> list[bytes]:
    start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [json.dumps(body).encode()]


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds, and say nothing new."""
