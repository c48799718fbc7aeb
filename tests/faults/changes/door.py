"""The HTTP service beside the flow: events through it, and requests of every odd kind, none of which is a 5xx."""

import random
import signal
import time
from typing import Any
from urllib.parse import quote

import httpx

from tests.faults.changes.changes import ODD_QUANTITIES, plain_adjustment, settle, stop
from tests.faults.changes.forks import Process, Start
from tests.faults.changes.traffic import CUSTOMERS, METERS, written
from tests.faults.changes.world import PATIENCE, Fault, World
from tidegate.operators.model.ports import Adjustment

ODD_INSTANTS = (
    "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "1926-01-01T00:00:00Z", "2000-01-01T00:00:00Z",
    "2099-12-31T23:59:59.999999Z", "2026-03-29T02:30:00+01:00", "now", "", "10" * 500, "2026-13-01T00:00:00Z",
)  # fmt: skip
ODD_NAMES = (*CUSTOMERS, "nobody", "x" * 256, "x" * 257, "\u0000", "a/b", "..", "%", "\ud7ff")
ODD_NUMBERS = (*ODD_QUANTITIES, "1", "5", "1e15", "-0", "0x10", "1,000", "٣")


class Door:
    """A service on the world's store, which stays whatever becomes of the flow and of the store."""

    def __init__(self, world: World) -> None:
        self._world = world
        settings = {"TIDEGATE_INGEST": "log:ingest/", "TIDEGATE_SHARDS": world.settings["SHARDS"]}
        arguments = ["serve", "--listen", "127.0.0.1:0", "--auth", "none"]
        start = Start("tidegate", arguments, str(world.folder), settings, f"served-{world.starts:03}")
        self._process: Process = world.forks.start(start)
        deadline = time.monotonic() + PATIENCE
        while " listens on " not in (words := self._process.words()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Fault(f"the service does not start: {words[-2000:]}")
            time.sleep(0.02)
        url = words.partition(" listens on ")[2].split()[0]
        self._client = httpx.Client(base_url=url, timeout=PATIENCE)

    def close(self) -> None:
        self._client.close()
        self._process.send(signal.SIGTERM)
        if self._process.wait(PATIENCE) is None:
            self._process.send(signal.SIGKILL)
            raise Fault("the service does not end")
        if "Traceback" in self._process.words():
            raise Fault(f"the service raised: {self._process.words()[-3000:]}")

    def abandon(self) -> None:
        """Kill it, if it still runs."""
        self._client.close()
        self._process.send(signal.SIGKILL)

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """Send a request; 5xx is a fault, but for 503 while the store is not there or incomplete."""
        answer = self._client.request(method, path, **given)
        is_away = answer.status_code == 503 and (self._world.was_lost or path == "/readyz" or "check" in path)
        if answer.status_code >= 500 and not is_away:
            raise Fault(f"{method} {path} {given}: {answer.status_code} {answer.text[:500]}")
        return answer

    def send(self, count: int) -> None:
        """Post events, one by one or together; those it acknowledges are what the flow will read."""
        world = self._world
        elements = [each for each in world.events.elements(count, world.now()) if each.reason != "not_json"]
        while elements:
            size = world.rng.choice((1, 1, 3))
            taken, elements = elements[:size], elements[size:]
            answer = self.ask(
                "POST",
                "/v1/events",
                content=world.events.payload(taken),
                headers={"content-type": "application/json"},
            )
            if answer.status_code in (202, 207):
                results = answer.json()["results"]
                kept = [
                    each
                    for each, result in zip(taken, results, strict=True)
                    if result["status"] != "rejected"
                ]
                world.sent["log"] += [[each] for each in kept]

    def ask_anything(self) -> None:
        """A request with anything in it."""
        rng = self._world.rng
        customer, meter = quote(rng.choice(ODD_NAMES), safe=""), rng.choice((*METERS, *METERS)).name
        at = rng.choice((*ODD_INSTANTS, written(self._world.now())))
        quantity = rng.choice(ODD_NUMBERS)
        given: dict[str, Any] = {"customer": rng.choice(ODD_NAMES), "meter": meter, "quantity": quantity}
        usage = {"at": at, "hours": rng.choice((0, 48, 840, 841, -1)), "days": rng.choice((0, 31, 400, "x"))}
        match rng.randrange(9):
            case 0 | 1:
                self.ask("GET", f"/v1/customers/{customer}/usage", params=_some(rng, usage))
            case 2:
                self.ask("GET", "/v1/check", params=given)
            case 3:
                self.ask(
                    "POST", "/v1/check", json={"customer": given["customer"], "quantities": {meter: quantity}}
                )
            case 4:
                self.ask("GET", f"/v1/explain/{customer}/{meter}", params=_some(rng, {"at": at, "events": 5}))
            case 5:
                self.ask("PUT", f"/v1/customers/{customer}/limits/{meter}", json={"cap": quantity})
            case 6:
                body = given | {
                    "id": f"hold {rng.randrange(5)}",
                    "expires_in": rng.choice(("1m", "0", "-1", at)),
                }
                self.ask("POST", "/v1/reservations", json=body)
            case 7:
                path = rng.choice(("overview", "alerts", "unmetered", "drift", "catalog", "catalog/versions"))
                self.ask("GET", f"/v1/{path}")
            case _:
                self.ask("GET", rng.choice(("/metrics", "/readyz", "/healthz", "/openapi.json")))

    def adjust(self) -> None:
        """An adjustment, plain or odd, or one under the id of another."""
        world = self._world
        rng, plain = world.rng, plain_adjustment(self._world)
        body = {
            "id": plain.id[:1024] or "one",
            "customer": plain.customer or "acme",
            "meter": plain.meter or "x",
        }
        body |= {"at": written(world.now()), "quantity": plain.quantity, "reason": plain.reason}
        if plain.reason != "plain" or rng.random() < 0.3:
            body |= {"at": rng.choice(ODD_INSTANTS), "quantity": rng.choice(ODD_NUMBERS), "reason": "odd"}
        answer = self.ask("POST", "/v1/adjustments", json=body)
        if answer.status_code != 202:
            return
        at = world.now()
        world.adjustments[body["id"]] = Adjustment(**(body | {"at": at}), by="api")  # type: ignore[arg-type]
        other = self.ask("POST", "/v1/adjustments", json=body | {"customer": "another"})
        if other.status_code != 409:
            raise Fault(f"an id that stands for another adjustment: {other.status_code} {other.text[:300]}")


def _some(rng: random.Random, given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if rng.random() < 0.6}


def through_the_door(world: World) -> None:
    """Events and requests through the service, while the flow reads its log; then the source of before again."""
    if not world.store.exists():
        return
    if world.door is None:
        world.door = Door(world)
    door, source = world.door, world.settings["SOURCE"]
    world.settings["SOURCE"] = "log:ingest/"
    process = world.start()
    for _ in range(world.rng.choice((1, 2))):
        door.send(world.rng.randint(1, 20))
        for _ in range(5):
            door.ask_anything()
        door.adjust()
    settle(world, process)
    stop(world, process)
    # What was asked for at the end may be in the log only.
    world.settings["SOURCE"] = "log:ingest/?follow=false"
    world.run()
    world.settings["SOURCE"] = source
