"""The service on a thread of the test, behind a real socket: for what needs no process of its own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

from tests.serving.http.served import START_S, Served
from tidegate.serving.http.provider_webhooks import Webhooks
from tidegate.serving.http.server import listening_on, server_of
from tidegate.serving.http.state import Service
from tidegate.settings.serving import ServingSettings, load_serving_settings


def settings_of(served: Served, **choices: Any) -> ServingSettings:
    """Of a service on these files."""
    folder = served.folder
    paths = {
        "store": f"sqlite:{served.store}",
        "catalog": str(folder / "catalog.yaml"),
        "keys": str(folder / "data" / "keys.db"),
        "ingest": f"log:{folder}/data/ingest/",
        "data_dir": str(folder / "data"),
        "billing": f"file:{folder}/data/billing/",
    }
    # A busy machine is no store that is away.
    times = {"check_timeout": "10s", "write_timeout": "10s"}
    return load_serving_settings(paths | times | choices)


class Local:
    """A service, and clients of it."""

    def __init__(self, served: Served, service: Service, url: str) -> None:
        self.served, self.service, self.url = served, service, url
        self.client = self.client_of("all")

    def client_of(self, key: str | None, **headers: str) -> httpx.Client:
        """With the token of this name, or none."""
        token = {"authorization": f"Bearer {self.served.tokens[key]}"} if key else {}
        return httpx.Client(base_url=self.url, headers=token | headers, timeout=10, verify=False)


@contextmanager
def local(
    folder: Path, served: Served | None = None, webhooks: Webhooks | None = None, **choices: Any
) -> Iterator[Local]:
    """A service in this folder, with `choices` as settings; `clock` and `monotonic` are the service's."""
    served = served or Served(folder, start=False)
    given = {name: choices.pop(name) for name in ("clock", "monotonic") if name in choices}
    service = Service(settings_of(served, **choices), **given)
    with listening_on("127.0.0.1", 0) as listening:
        server = server_of(service, webhooks)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        deadline = time.monotonic() + START_S
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the service did not start"
            time.sleep(0.002)
        here = Local(served, service, f"http://127.0.0.1:{listening.getsockname()[1]}")
        try:
            yield here
        finally:
            here.client.close()
            server.should_exit = True
            thread.join()
