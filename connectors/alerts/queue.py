"""Messages on their way to people and systems: a durable queue per process, and a thread that delivers it.

An alert is put in the queue (one SQLite file) within the epoch that it left the flow in, and a thread takes it from
there, so that no receiver holds the flow up. What fails is tried again, later each time and with jitter, for up to
KEEP; then it is kept as undelivered, to be seen and retried by hand. A receiver that is down is not asked once for
each message that waits.

Guarantees: each message at least once, under an id that repeats; a replay of the flow finds it there already. Order:
oldest first, as far as retries let it. Limits: the queue holds WAITING_MAX messages per target, and more is an error
that stops the flow; delivered ids are remembered for REMEMBER.

Source: the retry schedule of https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from tidegate.connectors.sqlite.files import open_file
from tidegate.connectors.sqlite.schema import Schema
from tidegate.operators.model.errors import TidegateError

HOUR: Final = 3600.0
# Seconds from one try to the next; together a little over three days.
PAUSES: Final = (5.0, 60.0, 300.0, 1800.0, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 20 * HOUR)
PAUSE_MAX: Final = 24 * HOUR
KEEP: Final = timedelta(hours=72)
REMEMBER: Final = timedelta(days=35)
WAITING_MAX: Final = 1_000_000
# Between two tries of a target that just failed, whichever message is next.
REST_MIN, REST_MAX = 0.2, 60.0
LOOK_EVERY: Final = 5.0

_LOG = logging.getLogger("tidegate.deliveries")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS deliveries (
    target TEXT, id TEXT, body BLOB, made_at REAL, tries INTEGER DEFAULT 0, due_at REAL,
    state TEXT DEFAULT 'waiting', error TEXT DEFAULT '', PRIMARY KEY (target, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS due ON deliveries (target, state, due_at);
"""
# What an earlier version stranded, or a clock that was set back: due in longer than any pause lasts, or never.
_UNPARK = "UPDATE deliveries SET due_at = ? WHERE state = 'waiting' AND (due_at IS NULL OR due_at > ?)"


class DeliveryError(TidegateError):
    """The queue is full or can't be used; says what to do."""


SCHEMA: Final = Schema(
    name="deliveries",
    error=DeliveryError,
    mark="SELECT 1 FROM sqlite_schema WHERE name = 'deliveries'",
    migrations=(_SCHEMA,),
    maker="start the flow with a receiver in TIDEGATE_ALERTS",
    if_damaged="restore it from a backup, or move it away: what waits in it is not delivered then",
)


class Refused(TidegateError):
    """A delivery that failed.

    `again` is the seconds until another try that the receiver asked for, `gone` that it wants none ever.
    """

    def __init__(self, reason: str, again: float | None = None, gone: bool = False) -> None:
        super().__init__(reason)
        # Whatever a deliverer makes of an answer, it parks no message for longer than our own pauses do.
        self.again = min(again, PAUSE_MAX) if again is not None and again >= 0 else None
        self.gone = gone


class Message(NamedTuple):
    """What is to be delivered: its id, the alert as JSON, and how often it was tried."""

    id: str
    body: bytes
    tries: int


class QueuedMessage(NamedTuple):
    """A message in the queue, for people."""

    target: str
    id: str
    state: str
    tries: int
    due_at: float
    error: str
    body: bytes


class Deliverer(Protocol):
    """One way out. `at_once` is how many messages it takes together."""

    at_once: int

    def deliver(self, messages: Sequence[Message]) -> None:
        """Raise Refused, or any OSError, where they did not arrive."""
        ...


class Queue:
    """The messages of one process. Safe for threads. Times are seconds since the epoch."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._file = open_file(path, SCHEMA, "rwc", pragmas={"synchronous": "FULL"})
        now = clock()
        with self._file.transaction() as db:
            db.execute(_UNPARK, (now, now + PAUSE_MAX))

    def add(self, target: str, messages: Iterable[tuple[str, bytes]]) -> None:
        """Put messages in, on disk when it returns; one whose id is known is left as it is."""
        now = self._clock()
        with self._lock:
            waiting = self._file.value(
                "SELECT count(*) FROM deliveries WHERE target = ? AND state = 'waiting'", (target,)
            )
            if waiting >= WAITING_MAX:
                raise DeliveryError(
                    f"alerts: {waiting} wait for {target!r}, which takes none; mend it, or take it out of"
                    " TIDEGATE_ALERTS, and start again"
                )
            with self._file.transaction() as db:
                db.executemany(
                    "INSERT OR IGNORE INTO deliveries (target, id, body, made_at, due_at) VALUES (?, ?, ?, ?, ?)",
                    [(target, id, body, now, now) for id, body in messages],
                )

    def due(self, target: str, limit: int) -> list[Message]:
        """Messages whose time has come, the oldest first."""
        query = """SELECT id, body, tries FROM deliveries WHERE target = ? AND state = 'waiting' AND due_at <= ?
            ORDER BY due_at, made_at LIMIT ?"""
        with self._lock:
            return [Message(*row) for row in self._file.rows(query, (target, self._clock(), limit))]

    def next_due(self, target: str) -> float | None:
        """When the next message is due."""
        query = "SELECT min(due_at) FROM deliveries WHERE target = ? AND state = 'waiting'"
        with self._lock:
            found: float | None = self._file.value(query, (target,))
        return found

    def delivered(self, target: str, messages: Sequence[Message]) -> None:
        """Note that these have arrived, and forget ids from before REMEMBER."""
        oldest = self._clock() - REMEMBER.total_seconds()
        with self._lock, self._file.transaction() as db:
            db.executemany(
                "UPDATE deliveries SET state = 'delivered', body = x'', error = '' WHERE target = ? AND id = ?",
                [(target, message.id) for message in messages],
            )
            db.execute(
                "DELETE FROM deliveries WHERE target = ? AND state = 'delivered' AND due_at < ?",
                (target, oldest),
            )

    def failed(self, target: str, messages: Sequence[Message], refused: Refused) -> None:
        """Note that these have not arrived: try again later, or never if they are too old or the receiver is gone."""
        now = self._clock()
        last = now - KEEP.total_seconds()
        with self._lock, self._file.transaction() as db:
            for message in messages:
                pause = refused.again or PAUSES[min(message.tries, len(PAUSES) - 1)] * random.uniform(
                    0.8, 1.2
                )
                db.execute(
                    """UPDATE deliveries SET tries = tries + 1, due_at = ?, error = ?,
                    state = CASE WHEN ? OR made_at <= ? THEN 'undelivered' ELSE 'waiting' END
                    WHERE target = ? AND id = ?""",
                    (now + pause, str(refused)[:500], refused.gone, last, target, message.id),
                )

    def list_messages(self, state: str | None = None, limit: int = 100) -> list[QueuedMessage]:
        """Return what is in the queue, the newest first."""
        query = f"""SELECT target, id, state, tries, due_at, error, body FROM deliveries
            {"WHERE state = ?" if state else ""} ORDER BY made_at DESC LIMIT ?"""
        with self._lock:
            return [
                QueuedMessage(*row) for row in self._file.rows(query, (state, limit) if state else (limit,))
            ]

    def retry(self) -> int:
        """Has all undelivered messages tried again, as if they were new; how many."""
        now = self._clock()
        with self._lock, self._file.transaction() as db:
            return db.execute(
                """UPDATE deliveries SET state = 'waiting', tries = 0, due_at = ?, made_at = ?
                WHERE state = 'undelivered'""",
                (now, now),
            ).rowcount

    def close(self) -> None:
        with self._lock:
            self._file.close()


class Sender:
    """Delivers one target's messages, in a thread or step by step."""

    def __init__(
        self, queue: Queue, target: str, deliverer: Deliverer, clock: Callable[[], float] = time.time
    ) -> None:
        self._queue = queue
        self._target = target
        self._deliverer = deliverer
        self._clock = clock
        self._wake = threading.Event()
        self._failures = 0
        self._resting_until = 0.0
        self.delivered = self.failed = 0

    def step(self) -> float | None:
        """Delivers what is due, once; seconds to the next time there may be something, None if nothing waits."""
        now = self._clock()
        if now < self._resting_until:
            return self._resting_until - now
        messages = self._queue.due(self._target, self._deliverer.at_once)
        if not messages:
            due = self._queue.next_due(self._target)
            return None if due is None else max(0.0, due - now)
        try:
            self._deliverer.deliver(messages)
        except (Refused, OSError) as error:
            self._note(
                messages, error if isinstance(error, Refused) else Refused(f"{type(error).__name__}: {error}")
            )
        else:
            self._failures = 0
            self.delivered += len(messages)
            self._queue.delivered(self._target, messages)
        return 0.0

    def _note(self, messages: Sequence[Message], refused: Refused) -> None:
        self._failures += 1
        self.failed += len(messages)
        rest = min(REST_MAX, REST_MIN * 2 ** min(self._failures, 12))
        self._resting_until = self._clock() + random.uniform(rest / 2, rest)
        _LOG.warning("alerts to %s: %d not delivered: %s", self._target, len(messages), refused)
        self._queue.failed(self._target, messages, refused)

    def wake(self) -> None:
        """Something new is there."""
        self._wake.set()

    def run(self) -> None:
        """For as long as the process lives."""
        while True:
            pause = self.step()
            # Another process may have had some tried again.
            self._wake.wait(LOOK_EVERY if pause is None else min(pause, LOOK_EVERY))
            self._wake.clear()

    def is_idle(self) -> bool:
        """Whether nothing is due now."""
        due = self._queue.next_due(self._target)
        return due is None or due > self._clock()


def undelivered(path: Path) -> list[QueuedMessage]:
    """Return the messages that wait or were given up in the queue at `path`."""
    with closing(Queue(path)) as queue:
        return [one for one in queue.list_messages(limit=WAITING_MAX) if one.state != "delivered"]
