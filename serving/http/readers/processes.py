"""Whether the flow's processes work, as they say themselves where TIDEGATE_METRICS is set (flows/runtime/health.py)."""

import asyncio
from collections.abc import Callable
from typing import Final

from tidegate.serving.http.schemas import ProcessBody
from tidegate.settings.serving import ServingSettings

PROCESSES_MAX: Final = 64
EVERY_S: Final = 5.0
WITHIN_S: Final = 1.0


class Processes:
    """Asks each process at its port, the first at TIDEGATE_METRICS and so on, at most every few seconds.

    Processes on other machines, or with other ports, are not found; Prometheus is for those.
    """

    def __init__(self, settings: ServingSettings, monotonic: Callable[[], float]) -> None:
        self._at, self._monotonic = settings.metrics, monotonic
        self._most = 0
        self._found: list[ProcessBody] = []
        self._asked_at = float("-inf")

    async def states(self) -> list[ProcessBody]:
        """All that were there once, and the next one; empty where nothing says where they are."""
        if self._at is not None and self._monotonic() - self._asked_at >= EVERY_S:
            host, port = self._at
            asked = (
                _state(number, host, port + number) for number in range(min(self._most + 4, PROCESSES_MAX))
            )
            found = await asyncio.gather(*asked)
            self._most = max((one.process + 1 for one in found if one.state != "away"), default=self._most)
            # The first is expected in any case.
            self._found = found[: max(self._most, 1)]
            self._asked_at = self._monotonic()
        return self._found


async def _state(number: int, host: str, port: int) -> ProcessBody:
    try:
        async with asyncio.timeout(WITHIN_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET /readyz HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                status = (await reader.readline()).split(b" ")[1:2]
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return ProcessBody(number, "away")
    return ProcessBody(number, "ready" if status == [b"200"] else "stalled" if status == [b"503"] else "away")
