"""Threads that make calls, so that whoever waits for one can stop waiting."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Full, Queue
from threading import Lock, Thread
from typing import Any, TypeVar

from tidegate.operators.model.ports import StoreError

T = TypeVar("T")
QUEUED_MAX = 1024


class Lane:
    """At most `threads` calls at a time, made in order; the threads start with the first call.

    They are daemons: a call that never returns does not keep the process from ending.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._threads = name, threads
        self._calls: Queue[tuple[Future[Any], Callable[[], Any]] | None] = Queue(QUEUED_MAX)
        self._lock = Lock()
        self._started = 0

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Make the call and return its outcome, in time. One that is cancelled before its turn is not made.

        StoreError where too many wait.
        """
        future: Future[T] = Future()
        try:
            self._calls.put_nowait((future, call))
        except Full:
            raise StoreError(f"gate: {QUEUED_MAX} calls wait for the store already") from None
        if self._started < self._threads:
            self._start()
        return future

    def close(self) -> None:
        """Lets the threads end, after the calls that were submitted; waits for none.

        Where so many calls wait that there is no room to say so, the threads end with the process.
        """
        with self._lock, suppress(Full):
            for _ in range(self._started):
                self._calls.put_nowait(None)

    def _start(self) -> None:
        with self._lock:
            if self._started < self._threads:
                self._started += 1
                Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()

    def _run(self) -> None:
        while (taken := self._calls.get()) is not None:
            future, call = taken
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            # Not to hold on to what it was called with until the next call comes.
            del taken, future, call
