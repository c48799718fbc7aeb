"""How far a flow process has come, and what a signal does to it, from its first second to its last.

    starting ─ waiting ─ running ─ draining
    (settings,  (for the    (reads)    (reads no more, writes what it has)
      store)     others)

Bytewax holds the main thread while processes of a cluster connect to each other, where Python's signal handlers do not
run. So a thread of ours reads the signals. Before the process reads anything there is nothing to save, and SIGTERM
or SIGINT ends it at once; so does a wait for the others that takes longer than `patience`.

A cluster ends as a whole: a process that is asked to drain leaves a mark in the data directory, which all of them
share, and the others drain as well. A mark counts for the run that it was left in, by the times of the file system.
"""

import argparse
import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

from tidegate.flows.runtime.shutdown import Drain

Phase = Literal["starting", "waiting", "running", "draining"]
PHASES: Final[tuple[Phase, ...]] = ("starting", "waiting", "running", "draining")

LOOK_EVERY_S: Final = 0.1
MARK_EVERY_LOOKS: Final = 5
SAY_EVERY_S: Final = 30.0
CONNECT_S: Final = 30.0
"""For processes that are all there; one that connects and says nothing holds the others up for as long."""
MARK: Final = "draining.lock"

_LOG = logging.getLogger("tidegate.flow")


def cluster_size() -> int:
    """Return the number of processes that `bytewax.run` was given the addresses of, 1 without any."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-a", "--addresses", default=os.environ.get("BYTEWAX_ADDRESSES"))
    given: str | None = parser.parse_known_args()[0].addresses
    if given is None and (path := os.environ.get("BYTEWAX_HOSTFILE_PATH")):
        with suppress(OSError):
            return max(1, sum(bool(line.strip()) for line in Path(path).read_text().splitlines()))
    return len(given.split(";")) if given else 1


class Lifecycle:
    """The phase of process `process` of `processes`. `end` ends it with an exit status, without a way back."""

    def __init__(
        self,
        drain: Drain,
        data_dir: Path,
        process: str = "0",
        processes: int = 1,
        patience: timedelta = timedelta(minutes=5),
        end: Callable[[int], object] = os._exit,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._drain = drain
        self._mark, self._own = data_dir / MARK, data_dir / f"process-{process}.lock"
        self._process, self._processes = process, processes
        self._patience = patience.total_seconds()
        self._end, self._now = end, now
        self._signals = -1
        self._looks = 0
        self._began_at: int | None = None
        self._waits_since: float | None = None
        self._say_at = float("inf")
        self._said_draining = self._is_connecting = False
        self._saying = threading.Lock()

    @property
    def phase(self) -> Phase:
        if self._drain.asked:
            return "draining"
        if self._drain.is_open:
            return "running"
        is_waiting = self._waits_since is not None and not self._drain.has_begun
        return "waiting" if is_waiting and self._processes > 1 else "starting"

    def install(self) -> None:
        """Read signals from now on. To be called on the main thread."""
        self._signals, written = os.pipe()
        for one in (self._signals, written):
            os.set_blocking(one, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="lifecycle", daemon=True).start()
        atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        """Say what the thread had no time for, as a flow with nothing to write ends as soon as it is asked to."""
        if self._drain.asked:
            self._say_draining()

    def wait(self) -> None:
        """Note that all is prepared, and that from now on the process waits for the others."""
        self._waits_since = self._now()
        self._say_at = self._waits_since + SAY_EVERY_S

    def connect(self) -> None:
        """Note that the others are there, and that from now on the processes connect to each other."""
        self._waits_since = self._now()
        self._is_connecting = True

    def look(self, signals: bytes = b"") -> None:
        """Act on signals that came, on the time that has passed, and on what other processes ask for."""
        if signal.SIGTERM in signals:
            self._stop()
        elif signal.SIGINT in signals and not self._drain.is_open:
            _LOG.warning("interrupted before it read anything")
            self._end(130)
        if self._processes > 1:
            self._look_at_others()

    def _run(self) -> None:
        while True:
            # Not woken by each signal: those of flows/runtime/idle_main_thread.py come fifty times a second.
            time.sleep(LOOK_EVERY_S)
            received = b""
            with suppress(BlockingIOError):
                received = os.read(self._signals, 4096)
            try:
                self.look(received)
            except OSError:
                _LOG.exception("the data directory cannot be looked at")

    def _stop(self) -> None:
        if not self._drain.is_open:
            _LOG.warning("SIGTERM: ends before it has read anything")
            self._end(0)
            return
        self._say_draining()
        self._drain.ask()

    def _say_draining(self) -> None:
        """Say it once, to the log and to the other processes."""
        with self._saying:
            if self._said_draining:
                return
            self._said_draining = True
        if self._processes == 1:
            _LOG.warning("SIGTERM: stops reading, writes what it has, and ends")
            return
        _LOG.warning("SIGTERM: stops reading; all %d processes of the cluster do, and end", self._processes)
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._mark.write_text(self._process)
        # By the clock of the file system, as the marks of when each process began.
        os.utime(self._mark)

    def _look_at_others(self) -> None:
        if not self._drain.has_begun:
            self._wait_for_others()
            return
        if self._began_at is None:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            self._own.touch()
            self._began_at = self._own.stat().st_mtime_ns
        self._looks += 1
        if self._said_draining or self._looks % MARK_EVERY_LOOKS:
            return
        with suppress(FileNotFoundError):
            if self._mark.stat().st_mtime_ns >= self._began_at:
                self._said_draining = True
                _LOG.warning(
                    "process %s was stopped: stops reading as well, and ends", self._mark.read_text()
                )
                self._drain.ask()

    def _wait_for_others(self) -> None:
        if self._waits_since is None:
            return
        now = self._now()
        waited = now - self._waits_since
        if self._is_connecting and waited >= CONNECT_S:
            _LOG.error(
                "the flow ends: the %d processes of its cluster were all there, and did not connect within %.0f s;"
                " see that they reach each other, and that nobody else connects to their ports",
                self._processes,
                waited,
            )
            self._end(1)
        elif waited >= self._patience:
            _LOG.error(
                "the flow ends: the other processes of its cluster of %d were not there within %.0f s"
                " (TIDEGATE_PEER_TIMEOUT); start them all, with one TIDEGATE_DATA_DIR, where they reach each other",
                self._processes,
                waited,
            )
            self._end(1)
        elif now >= self._say_at:
            self._say_at = now + SAY_EVERY_S
            _LOG.warning("waits for the other processes of its cluster of %d", self._processes)
