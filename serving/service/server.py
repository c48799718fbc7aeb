"""uvicorn around the application: one process, one event loop."""

import signal
import socket
import sys
from collections.abc import Callable
from ipaddress import ip_address

import uvicorn

from serving.platform_webhooks import Webhooks
from serving.service.app import build
from serving.service.state import Service
from settings.serving import ServingSettings

BACKLOG = 1024
DRAIN_S = 5


def serve(settings: ServingSettings, ready: Callable[[str], None], webhooks: Webhooks | None = None) -> None:
    """Serves until SIGTERM or SIGINT; `ready` is told the address once requests are taken.

    With `webhooks` it takes the platform's deliveries too.

    Raises OSError where it cannot listen, KeysError, SettingsError, IngestError as they say.
    """
    service = Service(settings)
    with listening_on(*settings.listen) as listening:
        ready(_shown(listening))
        server = server_of(service, webhooks)
        # uvicorn ends in order and then raises the signal once more, for whoever had a handler before.
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listening])
        if not server.started:
            sys.exit(1)


def server_of(service: Service, webhooks: Webhooks | None = None) -> "Server":
    """A server of this service, to be run on a socket that listens."""
    config = uvicorn.Config(
        build(service, webhooks),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    return Server(config, service)


class Server(uvicorn.Server):
    """Tells streams to end before it waits for requests to."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

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
