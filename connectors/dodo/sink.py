"""The billing branch's end at Dodo Payments: what is accepted goes into the outbox, and from there to the provider.

Neither the provider nor the disk is waited for where events flow: `write_batch` hands over to a thread that appends to
the outbox, and another one sends. Only a snapshot waits, until all that came before it is on disk; so nothing can be
behind the flow's position and not in the outbox. What comes twice after a crash is known by its id.

Guarantee: each event once at the provider, or held back with its reason. One process of a machine sends, for all that
share the outbox; if it dies another one takes over. Limits: one outbox a machine, on its own disk; when it is full, or
cannot be written, the flow stops, as it does when the store cannot be.
"""

import fcntl
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from math import inf
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Event, Lock, Thread
from time import monotonic
from typing import Any

import msgspec

from tidegate.connectors.dodo.client import DodoClient
from tidegate.connectors.dodo.sender import IDLE, Sender, Stopped, Terms
from tidegate.connectors.engine import FixedPartitionedSink, StatefulSinkPartition
from tidegate.connectors.outbox.ledger import Ledger, ledger_path
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.operators.billing.outgoing import unpack
from tidegate.operators.billing.rate_limit import Rate
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.ports import Note, StoreError, StoreWriter
from tidegate.operators.model.records import Accepted
from tidegate.operators.model.wire import format_instant

QUEUED_BYTES_MAX = 64 << 20
EVENTS_AT_ONCE = 5000
TAKE_OVER_EVERY = 1.0
STOP_SECONDS = 60.0
NOTE_AGAIN_AFTER = 30.0
SLICE = 0.25

_log = logging.getLogger("tidegate.billing")


class DodoSink(FixedPartitionedSink[bytes, None]):
    """Takes `(shard, pack(accepted))`. `catalog` gives the catalog in force; alerts are also noted in a store.

    `chosen` are the fields of `sender.Terms`.
    `drain` bounds how long the end of a finite input waits for the outbox to be sent; what is left goes with the next
    start.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        rate: Rate,
        outbox: Path,
        *,
        parts: int,
        catalog: Callable[[], Catalog],
        bytes_max: int,
        ledger: timedelta = timedelta(0),
        ledger_bytes_max: int = 16 << 30,
        drain: timedelta = timedelta(0),
        sync: bool = True,
        open_store: Callable[[], StoreWriter] | None = None,
        **chosen: Any,
    ) -> None:
        terms = Terms(**chosen)
        self._parts = parts

        def open_works() -> _Works:
            book = Ledger(ledger_path(outbox), keep=ledger, bytes_max=ledger_bytes_max) if ledger else None
            kept = Outbox(
                outbox, bytes_max=bytes_max, sync=sync, unfolded=terms.rollup is not None, ledger=book
            )

            def client(sleep: Callable[[float], None]) -> DodoClient:
                return DodoClient(base_url, api_key, rate, sleep=sleep)

            return _Works(kept, client, catalog, terms, open_store)

        self._open_works = open_works
        self._drain = drain.total_seconds()
        self._lock = Lock()
        self._works: _Works | None = None
        self._opened = 0

    def list_parts(self) -> list[str]:
        # Bytewax routes by place among the sorted names, so these must sort as numbers do.
        return [f"{part:04d}" for part in range(self._parts)]

    def part_fn(self, item_key: str) -> int:
        return int(item_key) % self._parts

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_Partition":
        with self._lock:
            self._opened += 1
            if self._works is None:
                self._works = self._open_works()
            return _Partition(self._works, self._close_one)

    def _close_one(self) -> None:
        with self._lock:
            self._opened -= 1
            if not self._opened and self._works is not None:
                works, self._works = self._works, None
                works.close(self._drain)


class _Partition(StatefulSinkPartition[bytes, None]):
    def __init__(self, works: "_Works", close_one: Callable[[], None]) -> None:
        self._works = works
        self._close_one = close_one

    def write_batch(self, values: list[bytes]) -> None:
        for packed in values:
            self._works.put(packed)

    def snapshot(self) -> None:
        self._works.flush()

    def close(self) -> None:
        self._close_one()


class _Works:
    """The two threads of a process: one that appends to the outbox, one that sends."""

    def __init__(
        self,
        outbox: Outbox,
        open_client: Callable[[Callable[[float], None]], DodoClient],
        catalog: Callable[[], Catalog],
        terms: Terms,
        open_store: Callable[[], StoreWriter] | None,
    ) -> None:
        self._outbox, self._catalog, self._terms = outbox, catalog, terms
        self._open_store = open_store
        self._queue: SimpleQueue[bytes | Event] = SimpleQueue()
        self._state = Condition()
        self._queued_bytes = self._put = self._kept = self._durable = 0
        self._failed: BaseException | None = None
        self._stop, self._wake = Event(), Event()
        # Turns are counted; that of number `_idle_since` found nothing to send.
        self._turn, self._idle_since = 0, 0.0
        self._linger = True
        self._client = open_client(self._pause)
        self._threads = [
            Thread(target=self._guarded, args=(work,), name=f"billing-{work.__name__}", daemon=True)
            for work in (self._append, self._send)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, packed: bytes) -> None:
        """Hands over; waits only where the disk is that far behind. Raises what a thread failed of."""
        with self._state:
            self._state.wait_for(lambda: self._failed or self._queued_bytes < QUEUED_BYTES_MAX)
            self._check()
            self._put += 1
            self._queued_bytes += len(packed)
        self._queue.put(packed)

    def flush(self) -> None:
        """Wait until all that was handed over is on disk."""
        with self._state:
            self._check()
            if self._durable == self._put:
                return
        done = Event()
        self._queue.put(done)
        while not done.wait(1):
            self._check()

    def close(self, drain: float) -> None:
        """End both threads; until then what waits is sent, for `drain` seconds at most."""
        try:
            self.flush()
            self._linger = False
            with self._state:
                # A turn under way may have looked before the last event was added.
                next_one = self._turn + 1
                self._wake.set()
                self._state.wait_for(lambda: self._failed or self._idle_since >= next_one, drain)
            self._check()
        finally:
            self._stop.set()
            self._wake.set()
            self._queue.put(Event())
            for thread in self._threads:
                thread.join(STOP_SECONDS)
            self._client.close()
            self._outbox.close()

    def _check(self) -> None:
        if self._failed:
            raise self._failed

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Stopped:
            pass
        except BaseException as error:
            with self._state:
                self._failed = error
                self._state.notify_all()

    def _append(self) -> None:
        while not self._stop.is_set():
            packed: list[bytes] = []
            events: list[Accepted] = []
            piece = self._queue.get()
            while isinstance(piece, bytes):
                packed.append(piece)
                events += unpack(piece)
                if self._queue.empty() or len(events) >= EVENTS_AT_ONCE:
                    break
                piece = self._queue.get()
            # All that was handed over before a flush has been taken when its mark is.
            flushed = None if isinstance(piece, bytes) else piece
            self._outbox.add(events, snapshot=flushed is not None)
            self._wake.set()
            with self._state:
                self._kept += len(packed)
                self._queued_bytes -= sum(map(len, packed))
                if flushed is not None:
                    self._durable = self._kept
                    flushed.set()
                self._state.notify_all()

    def _send(self) -> None:
        lock = self._elected()
        self._is_idle(0)
        try:
            with ThreadPoolExecutor(self._terms.concurrency, "billing-request") as pool:
                sender = Sender(
                    self._outbox, self._client, self._catalog, self._terms, sleep=self._pause, pool=pool
                )
                self._turn_on(sender)
        finally:
            os.close(lock)

    def _turn_on(self, sender: Sender) -> None:
        note_at = 0.0
        while not self._stop.is_set():
            self._wake.clear()
            with self._state:
                self._turn += 1
            pause = sender.turn(linger=self._linger)
            if monotonic() >= note_at and not self._note():
                note_at = monotonic() + NOTE_AGAIN_AFTER
            if pause is None:
                self._is_idle(self._turn)
            if pause != 0:
                self._wait(pause)

    def _wait(self, pause: float | None) -> None:
        if pause is None:
            self._wake.wait(IDLE)
        else:
            # In slices, as the end of the input may put an end to lingering, and house is kept meanwhile.
            self._pause(min(pause, SLICE))

    def _is_idle(self, turn: float) -> None:
        with self._state:
            self._idle_since = turn
            self._state.notify_all()

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _elected(self) -> int:
        """Wait until no other process of this machine sends from this outbox; return the lock's descriptor."""
        path = self._outbox.path.with_name(self._outbox.path.name + ".sender")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return lock
                except BlockingIOError:
                    # The other one sends what is left.
                    self._is_idle(inf)
                    self._pause(TAKE_OVER_EVERY)
        except BaseException:
            os.close(lock)
            raise

    def _note(self) -> bool:
        """Write new alerts into the store; return False if that failed and has to wait."""
        if self._open_store is None:
            return True
        news = self._outbox.unnoted()
        if not news:
            return True
        notes = []
        for _, kind, state, at, text in news:
            body = {"kind": f"billing_{kind}", "state": state, "at": format_instant(at), "text": text}
            notes.append(Note("alert", f"billing-{kind}-{at}-{state}", "", at, msgspec.json.encode(body)))
        try:
            with closing(self._open_store()) as store:
                store.write([], [], notes)
        except StoreError as error:
            _log.warning("billing: alerts wait to be noted in the store: %s", error)
            return False
        self._outbox.noted(news[-1][0])
        return True
