"""uvicorn around the application: one process, one event loop."""

import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address

import uvicorn

from tidegate.serving.http.app import build
from tidegate.serving.http.connection.connections import Connections
from tidegate.serving.http.connection.descriptors import fit_descriptors
from tidegate.serving.http.connection.protocol import GuardedProtocol
from tidegate.serving.http.provider_webhooks import Webhooks
from tidegate.serving.http.state import Service
from tidegate.settings.serving import ServingSettings

BACKLOG = 1024
DRAIN_S = 5
SWEEP_EVERY = 5


def serve(settings: ServingSettings, ready: Callable[[str], None], webhooks: Webhooks | None = None) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is told the address once requests are taken.

    With `webhooks` it takes the provider's deliveries too.

    Raises: OSError where it cannot listen, TidegateError where the store, keys or log of events cannot be used.
    """
    service = Service(fit_descriptors(settings, _warn))
    service.check()
    with listening_on(*settings.listen) as listening:
        ready(_shown(listening))
        server = server_of(service, webhooks)
        # uvicorn ends in order and then raises the signal once more, for whoever had a handler before.
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listening])
        if not server.started:
            sys.exit(1)


def server_of(service: Service, webhooks: Webhooks | None = None) -> "Server":
    """Return a server of this service, to be run on a socket that listens."""
    settings = service.settings
    connections = Connections(
        settings.connections, settings.connections_per_address, time.monotonic, service.metrics.turned_away
    )
    config = uvicorn.Config(
        build(service, webhooks),
        loop="uvloop",
        http=partial(GuardedProtocol, connections),  # type: ignore[arg-type]
        backlog=BACKLOG,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    return Server(config, service, connections)


class Server(uvicorn.Server):
    """Ends streams before it waits for requests to end, and connections that have taken too long."""

    def __init__(self, config: uvicorn.Config, service: Service, connections: Connections) -> None:
        super().__init__(config)
        self._service, self._connections = service, connections

    async def on_tick(self, counter: int) -> bool:
        """Check, ten times a second, whether to stop."""
        self._connections.tick()
        if counter % SWEEP_EVERY == 0:
            self._connections.sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.live.stop()
        await super().shutdown(sockets)


def listening_on(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        family = socket.AF_INET
    # Named TCP, else asyncio leaves Nagle's algorithm on, which costs 40 ms a request.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _shown(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
