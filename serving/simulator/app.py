"""The simulator as an ASGI application: the API, and the control plane under its prefix."""

import httpx
from starlette.applications import Starlette

from serving.simulator import api, control
from serving.simulator.deliveries import Sender
from serving.simulator.gateway import Gateway
from serving.simulator.platform import Platform


def build(platform: Platform, receivers: httpx.AsyncBaseTransport | None = None) -> tuple[Starlette, Sender]:
    """An application for a server, or for `inprocess.AppTransport`, and what sends its webhooks.

    `receivers` takes them where they are not to go over a socket.
    """
    gateway, sender = Gateway(platform), Sender(platform, receivers)
    return Starlette(routes=[*control.routes(gateway, sender), *api.routes(gateway)]), sender
