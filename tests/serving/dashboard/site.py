"""The dashboard as its readers have it: the real service, the real flow on its log, and a real browser."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote, unquote
from uuid import uuid4

import httpx
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page

from tests.serving.http.served import Served
from tests.support.places import ROOT
from tests.support.servers import dies_with_us

CATALOG = """
meters:
  - {name: calls, event_name: api.call, aggregation: {type: count}, unit: calls}
  - {name: tokens, event_name: llm.tokens, aggregation: {type: sum, key: tokens}, unit: tokens}
  - {name: seats, event_name: seats.set, aggregation: {type: last, key: seats}, unit: seats}
default_plan: free
plans:
  free:
    zone: Europe/Berlin
    limits:
      calls: {cap: 5, thresholds: [80%, 100%]}
      tokens: {included: 1000, on_cap: allow, thresholds: [50%, 100%], tiers: [{price: 0.5}]}
"""
PATIENCE_MS = 15_000
SHOTS = ROOT / "build" / "screenshots"
EXPECTED = "net::ERR_"


class Site:
    """One service with its flow, for all tests; each uses customers of its own."""

    def __init__(self, folder: Path) -> None:
        self.shop, self.stranger = Shop(), Shop()
        self.served = Served(folder, catalog=CATALOG, frames=self.shop.origin)
        flow = {
            "TIDEGATE_SOURCE": "log:data/ingest/",
            "TIDEGATE_ALERTS": "file:data/alerts.ndjson",
            "TIDEGATE_CATALOG": "catalog.yaml",
        }
        self._log = (folder / "flow.log").open("wb")
        self._flow = subprocess.Popen(
            [sys.executable, "-m", "bytewax.run", "tidegate.flows.metering"],
            cwd=folder,
            env=self.served.environment() | flow,
            stderr=self._log,
            preexec_fn=dies_with_us,
        )
        self.api = self.served.client()

    @property
    def url(self) -> str:
        return self.served.url

    def restart(self) -> None:
        self.served.start()
        self.api = self.served.client()

    def key(self, name: str, customer: str | None = None) -> str:
        """The token of a key that may read, once the service knows it."""
        token = self.served.create_key(name, "read", customer=customer)
        headers = {"authorization": f"Bearer {token}"}
        wait_until(lambda: self.api.get("/v1/key", headers=headers).status_code == 200)
        return token

    def use(self, customer: str, calls: int = 0, hours_ago: int = 0, **properties: int) -> None:
        """Sends events; each property is an event of its own."""
        at = time.time_ns() - hours_ago * 3600 * 10**9
        events = [self._event(at, customer, "api.call", {}) for _ in range(calls)]
        names = {"tokens": "llm.tokens", "seats": "seats.set"}
        events += [self._event(at, customer, names[key], {key: value}) for key, value in properties.items()]
        self._post(events)

    def send(self, customer: str, name: str, properties: dict[str, Any]) -> None:
        """Sends one event of any name."""
        self._post([self._event(time.time_ns(), customer, name, properties)])

    def _post(self, events: list[dict[str, Any]]) -> None:
        headers = {"content-type": "application/cloudevents-batch+json"}
        assert self.api.post("/v1/events", content=json.dumps(events), headers=headers).status_code == 202

    def may_call(self, customer: str) -> bool:
        answer = self.api.get("/v1/check", params={"customer": customer, "meter": "calls"})
        return bool(answer.json()["allowed"])

    def close(self) -> None:
        # It holds nothing that anybody needs.
        self._flow.kill()
        self._flow.wait()
        self._log.close()
        self.served.stop()
        self.shop.close()
        self.stranger.close()

    @staticmethod
    def _event(ns: int, customer: str, name: str, properties: dict[str, Any]) -> dict[str, Any]:
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(ns // 10**9))}.{ns // 1000 % 10**6:06d}Z"
        event = {"specversion": "1.0", "id": uuid4().hex, "source": "tests", "type": name}
        return event | {"subject": customer, "time": at, "data": properties}


class Shop:
    """Another site, with pages that show what it is asked for in a frame."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                src = escape(unquote(self.path.partition("?")[2]))
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.end_headers()
                self.wfile.write(
                    f'<title>Shop</title><iframe width="900" height="700" src="{src}"></iframe>'.encode()
                )

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self._server.serve_forever, daemon=True).start()
        # By name, so that it is another site and not another port alone.
        self.origin = f"http://localhost:{self._server.server_port}"

    def framing(self, address: str) -> str:
        return f"{self.origin}/account?{quote(address)}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Reader:
    """Opens pages, and holds against them whatever they say on the console."""

    def __init__(self, browser: Browser, site: Site) -> None:
        self._browser, self._site = browser, site
        self.complaints: list[str] = []

    @contextmanager
    def page(
        self, key: str | None = "all", *, width: int = 1280, theme: Any = "light", timezone: str = "UTC"
    ) -> Iterator[Page]:
        """A fresh browser at no address yet, signed in with this key."""
        context = self._browser.new_context(
            base_url=self._site.url,
            viewport={"width": width, "height": 800},
            color_scheme=theme,
            reduced_motion="reduce",
            timezone_id=timezone,
        )
        context.set_default_timeout(PATIENCE_MS)
        if key is not None:
            token = json.dumps(self._site.served.tokens[key])
            # In frames and on other sites too, where it must not matter.
            context.add_init_script(f"try {{ sessionStorage.setItem('tidegate.key', {token}) }} catch {{}}")
        page = context.new_page()
        page.on("console", self._hear_console)
        page.on("pageerror", lambda error: self._hear(str(error)))
        page.on("dialog", self._hear_dialog)
        try:
            yield page
        finally:
            context.close()

    def _hear_console(self, said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            self._hear(said.text)

    def _hear_dialog(self, dialog: Dialog) -> None:
        self._hear(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _hear(self, text: str) -> None:
        self.complaints.append(text)


def shot(page: Page, name: str) -> None:
    """A screenshot for whoever wants to see."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def timing(name: str, seconds: float) -> None:
    """Keeps a time for whoever wants to know; nothing depends on it."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    path = SHOTS / "timings.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {name: round(seconds, 3)}, indent=2) + "\n")


def is_wider_than_its_window(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


def chromium() -> str | None:
    """Where a browser is, if there is one."""
    named = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    return named if Path(named).exists() else None


def wait_until(what: Any, seconds: float = PATIENCE_MS / 1000) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=1).status_code == 200
    except httpx.TransportError:
        return False
