"""Lines that others than our log write to standard error, as log records: Timely's and Rust's, and tracebacks.

Where the log is JSON, one object a line, a line of text in it is one that nothing can read. So descriptor 2 becomes a
pipe, of which a thread makes records of the logger `stderr`; the log itself goes to what descriptor 2 was. What a
process writes that is then killed may be lost, what it writes before it ends by itself is not.
"""

import atexit
import logging
import os
import sys
import threading
from contextlib import suppress
from typing import Final, TextIO

LINE_MAX: Final = 65_536
END_S: Final = 2.0
_LOG = logging.getLogger("stderr")

_taken: "tuple[TextIO, threading.Thread] | None" = None


def take_stderr() -> TextIO:
    """Have lines on descriptor 2 logged; return the stream that it was, for the log. Once in a process."""
    global _taken
    if _taken is None:
        before = os.fdopen(os.dup(2), "w", buffering=1)
        reads, writes = os.pipe()
        os.dup2(writes, 2)
        os.close(writes)
        thread = threading.Thread(target=_log_lines, args=(reads,), name="stderr", daemon=True)
        thread.start()
        _taken = before, thread
        atexit.register(restore_stderr)
    return _taken[0]


def restore_stderr() -> None:
    """Make descriptor 2 what it was, once all that was written to it is logged."""
    global _taken
    if _taken is None:
        return
    (before, thread), _taken = _taken, None
    with suppress(ValueError, OSError):
        sys.stderr.flush()
    os.dup2(before.fileno(), 2)
    # Children may have the pipe too, and go on.
    thread.join(END_S)


def _log_lines(reads: int) -> None:
    with os.fdopen(reads, "r", errors="replace") as lines:
        while line := lines.readline(LINE_MAX):
            if text := line.strip():
                _LOG.warning("%s", text)
