"""The alerts of a flow on their way out: each is queued within its epoch, and a thread of the process delivers it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tidegate.connectors.alerts.queue import Deliverer, Queue, Sender
from tidegate.connectors.engine import DynamicSink, StatelessSinkPartition

CLOSE_WAITS: Final = 5.0


class DeliverySink(DynamicSink[tuple[str, bytes]]):
    """Queues the `(id, alert as JSON)` of each alert for one target, and has them delivered.

    `target` is what the queue and the log call the receiver, so it has no secret in it.
    """

    def __init__(self, target: str, path: Path, open_deliverer: Callable[[], Deliverer]) -> None:
        self._target = target
        self._path = path
        self._open_deliverer = open_deliverer
        self._lock = threading.Lock()
        self._started: tuple[Queue, Sender] | None = None

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_DeliveryPartition":
        # Workers of one process share queue and thread.
        with self._lock:
            if self._started is None:
                queue = Queue(self._path)
                sender = Sender(queue, self._target, self._open_deliverer())
                threading.Thread(target=sender.run, name=f"to {self._target}", daemon=True).start()
                self._started = queue, sender
        return _DeliveryPartition(self._target, *self._started)


class _DeliveryPartition(StatelessSinkPartition[tuple[str, bytes]]):
    def __init__(self, target: str, queue: Queue, sender: Sender) -> None:
        self._target = target
        self._queue = queue
        self._sender = sender

    def write_batch(self, items: list[tuple[str, bytes]]) -> None:
        self._queue.add(self._target, items)
        self._sender.wake()

    def close(self) -> None:
        # What can be delivered soon should not wait for the next start.
        deadline = time.monotonic() + CLOSE_WAITS
        while not self._sender.is_idle() and time.monotonic() < deadline:
            time.sleep(0.01)
