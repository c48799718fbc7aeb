"""Records on standard output, one a line, for people and pipes.

It takes the `(key, line)` of every other sink. Guarantee: at least once; nothing is remembered, so after
a restart the lines since the last snapshot come again. A reader that goes away (`| head`) ends the flow.
"""

import os
import sys
from typing import BinaryIO

from tidegate.connectors.engine import DynamicSink, StatelessSinkPartition
from tidegate.operators.model.errors import TidegateError


class StdoutClosed(TidegateError):
    """Whoever read standard output has gone."""


class StdoutSink(DynamicSink[tuple[str, bytes]]):
    """Writes the line of each `(key, line)` to standard output, a batch at a time."""

    def __init__(self, out: BinaryIO | None = None) -> None:
        self._out = out

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_StdoutPartition":
        return _StdoutPartition(self._out or sys.stdout.buffer)


class _StdoutPartition(StatelessSinkPartition[tuple[str, bytes]]):
    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write_batch(self, items: list[tuple[str, bytes]]) -> None:
        lines = [line for _, line in items]
        block = b"".join(line + b"\n" for line in lines)
        assert block.count(b"\n") == len(lines), "stdout: a line holds a newline"
        try:
            # In one write, for lines of several workers must not mix.
            self._out.write(block)
            self._out.flush()
        except BrokenPipeError:
            _discard(self._out)
            raise StdoutClosed("stdout: its reader has gone; the flow stops") from None


def _discard(out: BinaryIO) -> None:
    # Else Python tries to flush once more at its exit, and complains: docs.python.org/3/library/signal.html,
    # "Note on SIGPIPE".
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, out.fileno())
    os.close(devnull)
