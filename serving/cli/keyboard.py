"""Single keys from the terminal, for commands that go on until they are stopped."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

QUIT: Final = b"qQ"


@contextmanager
def keys_at_once() -> Iterator[None]:
    """Have standard input hand over each key without its line, and put the terminal back; elsewhere do nothing."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        # Ctrl-C still interrupts.
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def is_quit_within(seconds: float) -> bool:
    """Wait for so long, and return whether `q` was pressed meanwhile."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        # Not by Python's own buffer, which would take more keys than it hands over.
        if select.select([sys.stdin], [], [], left)[0] and set(os.read(sys.stdin.fileno(), 64)) & set(QUIT):
            return True
    return False
