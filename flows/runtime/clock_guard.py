"""Ends a process whose wall clock was set back.

Bytewax goes by the wall clock for when to ask a source or a step again, and has fixed the next time already. After the
clock was set back by an hour it would ask nobody for an hour, and would not end on SIGTERM either. A new start goes on
at once, from the last snapshot.

Source: `awake_due` in Bytewax 0.21's src/inputs.rs.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

LOOK_EVERY_S = 0.2
_LOG = logging.getLogger("tidegate.flow")
BACK_MAX_S = 10.0
"""What is waited out. Clocks that are kept right by slewing never go back."""


class ClockGuard:
    """Compares the wall clock with the monotonic one. `end` is called with the line that says why."""

    def __init__(
        self,
        end: Callable[[str], object] | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._end = end or end_process
        self._wall, self._monotonic = wall, monotonic
        self._ahead = wall() - monotonic()

    def look(self) -> None:
        """End if the clock was set back since the last look."""
        ahead = self._wall() - self._monotonic()
        back, self._ahead = self._ahead - ahead, ahead
        if back > BACK_MAX_S:
            self._end(
                f"the wall clock was set back by {back:.0f} s; start the flow again, which goes on where it was"
            )

    def watch(self) -> None:
        """Look from a thread of its own until the process ends."""
        threading.Thread(target=self._watch, name="clock", daemon=True).start()

    def _watch(self) -> None:
        never = threading.Event()
        while not never.wait(LOOK_EVERY_S):
            self.look()


def end_process(why: str) -> NoReturn:
    """Log why, and end the process as a kill would, as its threads can't be asked."""
    _LOG.error("the flow ends: %s", why)
    logging.shutdown()
    os._exit(1)
