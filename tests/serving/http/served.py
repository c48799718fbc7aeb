"""`tidegate serve` for tests: a process of its own on a free port, in a folder of its own, that dies with this one."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import httpx

from tests.support.heartbeats import ENDED
from tests.support.places import ROOT
from tidegate.connectors.sqlite.api_keys import KeyFile
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.store import SqliteReader, SqliteWriter
from tidegate.operators.gate.access import SCOPES, Scope

PR_SET_PDEATHSIG = 1
START_S, STOP_S = 30.0, 10.0

CATALOG = """# What the tests sell.
meters:
  - {name: calls, event_name: api.call, aggregation: {type: count}, unit: calls}
  - {name: tokens, event_name: llm.tokens, aggregation: {type: sum, key: tokens}, unit: tokens}
  - {name: seats, event_name: seats.set, aggregation: {type: last, key: seats}}
default_plan: free
plans:
  free:
    limits:
      calls: {cap: 100, thresholds: [80%, 100%]}
      tokens: {included: 1000, on_cap: allow, tiers: [{price: 0.5}]}
customers:
  # Pays for more.
  acme:
    limits:
      calls: {cap: 1000}
"""


class Served:
    """A service in `folder`. Everything in it is the default but what `settings` say, by name without prefix."""

    def __init__(self, folder: Path, *, catalog: str = CATALOG, start: bool = True, **settings: str) -> None:
        # A busy machine is no store that is away.
        self.folder, self._settings = folder, {"CHECK_TIMEOUT": "10s", "WRITE_TIMEOUT": "10s"} | settings
        (folder / "catalog.yaml").write_text(catalog)
        (folder / "data").mkdir()
        # The flow makes the store, and does so first.
        with closing(SqliteWriter(self.store)) as writer:
            writer.write([], [], heartbeats=[ENDED])
        keys = KeyFile(folder / "data" / "keys.db")
        self.tokens: dict[str, str] = {scope: keys.create(scope, frozenset({scope}))[0] for scope in SCOPES}
        self.tokens["all"] = keys.create("all", frozenset(SCOPES))[0]
        self.tokens["acme"] = keys.create("acme's page", frozenset({"read"}), customer="acme")[0]
        keys.close()
        self._clients: list[httpx.Client] = []
        self._port = 0
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        if start:
            self.start()

    @property
    def store(self) -> Path:
        return self.folder / "data" / "tidegate.db"

    def environment(self) -> dict[str, str]:
        """Of this process, without settings of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        given = {f"TIDEGATE_{name.upper()}": value for name, value in self._settings.items()}
        return kept | {"PYTHONPATH": str(ROOT)} | given

    def start(self, port: int | None = None) -> None:
        """Starts it, after `kill` on the same port again, and waits until it takes requests."""
        me = os.getpid()
        port = self._port if port is None else port
        self.log = (self.folder / "serve.log").open("ab+")
        begin = self.log.seek(0, os.SEEK_END)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidegate", "serve", "--listen", f"127.0.0.1:{port}"],
            cwd=self.folder,
            env=self.environment(),
            stderr=self.log,
            preexec_fn=lambda: die_with(me),
        )
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"listens on (http://\S+:(\d+))", self.said(begin))):
            assert self.process.poll() is None and time.monotonic() < deadline, self.said(begin)
            time.sleep(0.01)
        self.url, self._port = found[1], int(found[2])
        with httpx.Client(base_url=self.url, timeout=START_S, verify=False) as client:
            # The socket takes connections before the application does; this one waits its turn.
            assert client.get("/healthz").status_code == 200

    def said(self, begin: int = 0) -> str:
        """What it wrote on standard error."""
        return (self.folder / "serve.log").read_bytes()[begin:].decode()

    def client(self, key: str | None = "all") -> httpx.Client:
        """With the token of this name, or none."""
        headers = {"authorization": f"Bearer {self.tokens[key]}"} if key else {}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=10, verify=False)
        self._clients.append(client)
        return client

    def create_key(self, name: str, *scopes: Scope, customer: str | None = None) -> str:
        """The token of another key."""
        keys = KeyFile(self.folder / "data" / "keys.db")
        token, _ = keys.create(name, frozenset(scopes), customer=customer)
        keys.close()
        self.tokens[name] = token
        return token

    def writer(self) -> SqliteWriter:
        return SqliteWriter(self.store)

    def reader(self) -> SqliteReader:
        return SqliteReader(self.store)

    def control(self) -> SqliteControl:
        return SqliteControl(self.store)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """In order; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self.process is None:
            return 0
        process, self.process = self.process, None
        with suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            self.log.close()


def die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
