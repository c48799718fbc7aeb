"""The log of requests and answers, newest last, without keys and bodies."""

from collections import deque
from typing import Final

import msgspec

KEPT: Final = 100_000


class LoggedRequest(msgspec.Struct, kw_only=True, gc=False):
    """One request. `status` is what was sent, None if the connection was cut instead.

    `events` and `stored` count those of a batch. `fault` is the kind that struck, `retry` the client's own count if it
    sends one.
    """

    number: int
    at: int
    method: str
    path: str
    query: str
    status: int | None
    bytes: int
    events: int = 0
    stored: int = 0
    fault: str | None = None
    code: str | None = None
    retry: str | None = None


class RequestLog:
    """The last hundred thousand requests; `total` counts all, `statuses` counts them by status."""

    def __init__(self) -> None:
        self._kept: deque[LoggedRequest] = deque(maxlen=KEPT)
        self.total = 0

    def add(self, entry: LoggedRequest) -> None:
        self.total += 1
        entry.number = self.total
        self._kept.append(entry)

    def list_after(self, number: int, limit: int) -> list[LoggedRequest]:
        """Return the requests after the `number`-th, oldest first."""
        skipped = self.total - len(self._kept)
        begin = max(0, number - skipped)
        return [self._kept[index] for index in range(begin, min(begin + limit, len(self._kept)))]

    def clear(self) -> None:
        self._kept.clear()
        self.total = 0
