"""One end of the store on a thread of its own, so that the event loop never waits for a disk or a network."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final, Generic, Protocol, TypeVar

from tidegate.operators.model.ports import StoreError, StoreReplaced
from tidegate.serving.http.problems import unavailable

WAITING_MAX: Final = 256
WITHIN: Final = timedelta(seconds=5)


class Closable(Protocol):
    def close(self) -> None: ...


E = TypeVar("E", bound=Closable)
T = TypeVar("T")


class Desk(Generic[E]):
    """Does one thing after the other with an end that is opened at the first, and anew after a failure."""

    def __init__(self, name: str, open: Callable[[], E], within: timedelta = WITHIN) -> None:
        self._open, self._within = open, within
        self._thread = ThreadPoolExecutor(1, f"tidegate-{name}")
        self._end: E | None = None
        self._waiting = 0

    async def ask(self, work: Callable[[E], T]) -> T:
        """Run `work` and return its result; a Problem of status 503 if the store fails, or is too slow or too busy."""
        if self._waiting >= WAITING_MAX:
            raise unavailable(f"{WAITING_MAX} requests wait for the store already; ask again soon")
        self._waiting += 1
        future = self._thread.submit(self._do, work)
        future.add_done_callback(self._done)
        try:
            # Not cancelled when time is up: the thread is busy with it all the same.
            return await asyncio.wait_for(
                asyncio.shield(asyncio.wrap_future(future)), self._within.total_seconds()
            )
        except TimeoutError:
            raise unavailable(f"the store did not answer within {self._within.seconds} s") from None
        except StoreError as error:
            raise unavailable(str(error)) from None

    def close(self) -> None:
        """Close without waiting for calls in progress."""
        self._thread.submit(self._drop)
        self._thread.shutdown(wait=False, cancel_futures=False)

    def _do(self, work: Callable[[E], T]) -> T:
        try:
            return self._try(work)
        except StoreReplaced:
            return self._try(work)

    def _try(self, work: Callable[[E], T]) -> T:
        if self._end is None:
            self._end = self._open()
        try:
            return work(self._end)
        except StoreError:
            self._drop()
            raise

    def _drop(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end.close()

    def _done(self, _: Future[Any]) -> None:
        self._waiting -= 1
