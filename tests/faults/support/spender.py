"""A client of the service that spends what it may, for tests/faults/test_cap_campaign.py: a process that gets killed.

    python -m tests.faults.support.spender URL TOKEN SEED NUMBER FILE HOW

Its threads reserve (or, by HOW, check), and where they may, send an event with the same id. An answer that does not
come is asked for again under the same id. FILE gets a line for each event that was answered with 202. A thread ends
after having been turned away at the cap `TURNED_AWAY` times in a row.
"""

import random
import sys
import threading
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Final

import httpx

CUSTOMER: Final = "acme"
METER: Final = "calls"
THREADS: Final = 4
TURNED_AWAY: Final = 10
PAUSE_S: Final = 0.02


class Spender:
    """One thread, with a connection of its own."""

    def __init__(self, url: str, token: str, name: str, seed: str, accepted: Path, how: str) -> None:
        self._url, self._headers = url, {"authorization": f"Bearer {token}"}
        self._name, self._rng, self._accepted, self._how = name, random.Random(seed), accepted, how

    def run(self) -> None:
        turned_away = 0
        for number in count():
            id = f"{self._name}-{number}"
            may, at_cap = self._ask(id)
            turned_away = turned_away + 1 if at_cap else 0
            if turned_away == TURNED_AWAY:
                return
            if may:
                self._use(id)
            time.sleep(PAUSE_S * self._rng.random() * 2)

    def _ask(self, id: str) -> tuple[bool, bool]:
        """Whether it may, and else whether that is because the cap is reached."""
        if self._how == "check":
            answer = self._until_answered("GET", f"/v1/check?customer={CUSTOMER}&meter={METER}")
        else:
            asked = {"customer": CUSTOMER, "id": id, "meter": METER, "quantity": "1", "expires_in": 3600}
            answer = self._until_answered("POST", "/v1/reservations", asked)
        body = answer.json()
        decision = body.get("decision", body)
        return bool(decision.get("allowed")), decision.get("reason") == "cap_reached"

    def _use(self, id: str) -> None:
        if self._how == "reserve" and self._rng.random() < 0.1:
            self._until_answered("DELETE", f"/v1/reservations/{id}?customer={CUSTOMER}")
            return
        event = {
            "event_id": id,
            "customer_id": CUSTOMER,
            "event_name": "api.call",
            "timestamp": datetime.now(UTC).isoformat(),
        }
        self._until_answered("POST", "/v1/events", event)
        with self._accepted.open("a") as file:
            file.write(f"{id}\n")
        if self._how == "reserve" and self._rng.random() < 0.3:
            self._until_answered("POST", f"/v1/reservations/{id}/commit", {"customer": CUSTOMER})

    def _until_answered(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Ask until there is an answer of the service that is not about its store being away."""
        while True:
            try:
                # To make a client that could check certificates would take most of the time.
                with httpx.Client(
                    base_url=self._url, headers=self._headers, timeout=5, verify=False
                ) as client:
                    answer = client.request(method, path, json=body)
                if answer.status_code < 500:
                    return answer
            except httpx.HTTPError:
                pass
            time.sleep(0.05)


def main(url: str, token: str, seed: str, number: str, file: str, how: str) -> None:
    threads = [
        threading.Thread(
            target=Spender(url, token, f"{number}-{thread}", f"{seed} {number} {thread}", Path(file), how).run
        )
        for thread in range(THREADS)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
