"""The simulator as an ASGI application: the API, and the control plane under its prefix."""

from starlette.applications import Starlette

from serving.simulator import api, control
from serving.simulator.gateway import Gateway
from serving.simulator.platform import Platform


def build(platform: Platform) -> Starlette:
    """An application for a server, or for `inprocess.AppTransport`."""
    gateway = Gateway(platform)
    return Starlette(routes=[*control.routes(gateway), *api.routes(gateway)])
