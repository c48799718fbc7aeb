"""uvicorn, with connections that can be cut."""

import asyncio
import os
import socket
import struct
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from simulator.http.gateway import CUT

LINGER_OFF = struct.pack("ii", 1, 0)


class CuttableProtocol(HttpToolsProtocol):
    """Lets the application cut the connection that it is answering."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {CUT: self._cut}
        self.scope["extensions"] = extensions

    def _cut(self) -> None:
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            # Without lingering, the peer gets a reset instead of a clean end.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_OFF)
        self.transport.abort()


def serve(
    app: ASGIApp,
    beside: Callable[[], Coroutine[Any, Any, None]],
    host: str,
    port: int,
    ready: Callable[[int], None],
) -> None:
    """Serve, with `beside` running until it is stopped; call `ready` with the port once it is bound."""
    config = uvicorn.Config(
        app,
        # The simulated provider has a clock of its own.
        date_header=False,
        http=CuttableProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        # The timeout is longer than clients keep idle connections, so that only faults cut them.
        timeout_keep_alive=120,
        # Connections held on purpose must not delay the shutdown.
        timeout_graceful_shutdown=1,
    )
    # The protocol is named TCP, because asyncio otherwise leaves Nagle's algorithm on, which costs 40 ms a request.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
        ready(listening.getsockname()[1])
        asyncio.run(_both(uvicorn.Server(config).serve(sockets=[listening]), beside()))


async def _both(serving: Coroutine[Any, Any, None], beside: Coroutine[Any, Any, None]) -> None:
    running = asyncio.ensure_future(beside)
    running.add_done_callback(_complain)
    await serving
    running.cancel()


def _complain(done: asyncio.Future[None]) -> None:
    """End the process if the task beside the server has failed, because half a provider would be misleading."""
    if not done.cancelled() and (error := done.exception()):
        traceback.print_exception(error)
        os._exit(1)
