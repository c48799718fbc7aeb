"""The processes of a cluster meet in the data directory that they share, before any of them opens its exchange port.

Timely opens the port of a process, waits for the others there, and gives up at the first connection that is none of
theirs: a port scanner or a health check of a load balancer ends the flow. So each process holds a lock in the data
directory for as long as it is ready to connect, and calls Timely when it sees the locks of all, those with higher
numbers a little later, as they connect to lower ones and try again only after a second. The port is then open for a
fraction of a second, not for as long as the slowest process takes to come. A stranger who hits that has the process
start over.

Source: `create_sockets` in Timely 0.12's communication/src/networking.rs
"""

import fcntl
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Final, TextIO

from tidegate.connectors.files.locks import is_held
from tidegate.settings.foreign_lines import restore_stderr

LOOK_EVERY_S: Final = 0.1
APART_S: Final = 0.3
APART_MAX_S: Final = 3.0
STARTS_MAX: Final = 20
_FAILED: Final = "failed to initialize networking: "
_STRANGER: Final = ("incorrect timely handshake", "failed to fill whole buffer", "Connection reset by peer")
_STARTS: Final = "_TIDEGATE_STARTS_OVER"
_LOG = logging.getLogger("tidegate.flow")


class Meeting:
    """Process `process` of the `processes` that share `data_dir`."""

    def __init__(self, data_dir: Path, process: str, processes: int) -> None:
        self._own = _path(data_dir, process)
        self._turn_s = min(APART_S * int(process), APART_MAX_S) if process.isdigit() else 0.0
        self._others = [_path(data_dir, str(n)) for n in range(processes) if str(n) != process]
        self._lock: TextIO | None = None
        self._leaving = Lock()

    def wait(self) -> None:
        """Return when all others are ready too. What ends a wait that is too long is flows/runtime/lifecycle.py."""
        self.come()
        while not self.are_all_there():
            _sleep(LOOK_EVERY_S)
        _sleep(self._turn_s)

    def come(self) -> None:
        """Show that this process is ready, until it leaves or ends."""
        self._lock = self._own.open("a+")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def are_all_there(self) -> bool:
        return all(map(is_held, self._others))

    def leave(self) -> None:
        """Stop showing it: all have connected, and who comes now comes for another run. Each worker thread calls it."""
        with self._leaving:
            lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()


def restart_on_foreign_connection() -> None:
    """Have the process start over, `STARTS_MAX` times, where something else than a peer connected to its exchange port.

    Whatever else Timely gives up for ends it with one line.
    """
    before = sys.excepthook

    def act(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _, failed, why = str(error).partition(_FAILED)
        if not failed:
            before(kind, error, trace)
            return
        starts = int(os.environ.get(_STARTS, "0"))
        if not any(words in why for words in _STRANGER) or starts == STARTS_MAX:
            _LOG.error("the flow ends: its exchange port: %s", why.strip())
            return
        _LOG.warning(
            "something that is no process of this cluster connected to the exchange port (%s): starts over;"
            " nobody else should reach that port",
            why.strip(),
        )
        os.environ[_STARTS] = str(starts + 1)
        logging.shutdown()
        restore_stderr()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    sys.excepthook = act


def _sleep(seconds: float) -> None:
    # At Ctrl-C the thread that reads signals ends the process, in a line.
    with suppress(KeyboardInterrupt):
        time.sleep(seconds)


def _path(data_dir: Path, process: str) -> Path:
    return data_dir / f"meeting-{process}.lock"
