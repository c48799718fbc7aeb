"""From the event that crosses a level to the webhook received, while other traffic runs: `python -m benchmarks.alerts`.

Every crossing has a customer of its own, whose first event reaches the cap of 1; the receiver is in this process, on
loopback, and notes when each signed POST was whole. In between, the flow meters `--rate` other events a second.
"""

import argparse
import base64
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CATALOG = """
meters:
  - {name: calls, event_name: call, aggregation: {type: count}}
plans:
  first: {limits: {calls: {cap: 1}}}
  none: {}
default_plan: first
customers:
"""
BACKGROUND = 500
PATIENCE_S = 30.0


class Receiver(ThreadingHTTPServer):
    def __init__(self) -> None:
        self.got: dict[str, float] = {}
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        server = self.server
        assert isinstance(server, Receiver)
        server.got[json.loads(body)["data"]["customer"]] = time.monotonic()
        self.send_response(204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _line(customer: str, number: int) -> str:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return (
        f'{{"specversion":"1.0","id":"{number}","source":"bench","type":"call","subject":"{customer}",'
        f'"time":"{at}","data":{{}}}}\n'
    )


def measure(folder: Path, alerts: int, per_second: float, rate: int) -> list[float]:
    """Seconds from append to receipt of each alert; SystemExit where one never came."""
    receiver = Receiver()
    named = "".join(f"  background-{n}: {{plan: none}}\n" for n in range(BACKGROUND))
    (folder / "catalog.yaml").write_text(CATALOG + named)
    events = folder / "in.ndjson"
    events.write_text("")
    settings = {
        "TIDEGATE_SOURCE": "file:in.ndjson?follow=true",
        "TIDEGATE_STORE": "sqlite:store.db",
        "TIDEGATE_ALERTS": f"webhook://127.0.0.1:{receiver.server_address[1]}/?tls=false&private=true",
        "TIDEGATE_WEBHOOK_SECRETS": f"whsec_{base64.b64encode(bytes(24)).decode()}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "bytewax.run", "tidegate.flows.metering"]
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("TIDEGATE_", "BYTEWAX_"))
    }
    appended: dict[str, float] = {}
    with (
        (folder / "flow.log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, env=kept | settings, stdout=log, stderr=log) as flow,
        events.open("a", buffering=1 << 16) as file,
    ):
        try:
            begin, written = time.monotonic(), 0
            first = begin + 3.0
            while len(appended) < alerts:
                now = time.monotonic()
                due = int((now - begin) * rate)
                file.writelines(_line(f"background-{n % BACKGROUND}", n) for n in range(written, due))
                written = due
                if now >= first + len(appended) / per_second * random.uniform(0.5, 1.5):
                    customer = f"customer-{len(appended)}"
                    file.write(_line(customer, 0))
                    appended[customer] = time.monotonic()
                file.flush()
                time.sleep(0.002)
            deadline = time.monotonic() + PATIENCE_S
            while appended.keys() - receiver.got.keys():
                if time.monotonic() > deadline or flow.poll() is not None:
                    raise SystemExit(f"alerts did not come; see {folder / 'flow.log'}")
                time.sleep(0.01)
        finally:
            flow.kill()
    receiver.shutdown()
    return sorted(receiver.got[customer] - at for customer, at in appended.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--alerts", type=int, default=500)
    parser.add_argument("--per-second", type=float, default=25)
    parser.add_argument("--rate", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidegate-alerts-") as folder:
        found = measure(Path(folder), given.alerts, given.per_second, given.rate)
    p50, p99 = found[len(found) // 2], found[len(found) * 99 // 100]
    print(f"{len(found)} alerts, {given.rate} events/s beside them: from append to webhook received")
    print(f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, greatest {found[-1] * 1000:.0f} ms")


if __name__ == "__main__":
    main()
