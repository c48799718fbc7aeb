"""A store's writer in a process of its own: totals are written on one core while the next are counted on another.

To its caller it is a writer like any other: `write` returns when all is stored. Calls go to the process, and answers
come back, through pipes, pickled.

Guarantees: those of the writer that it opens. If this process dies, however it does, the other ends with the call under
way; if the other dies, that is a StoreError. Limits: what opens the writer, and what is written, needs to be picklable;
one thread at a time.
"""

import fcntl
import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import BinaryIO

from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Note, Settled, StoreError, StoreWriter
from tidegate.operators.model.records import Counter, Total

PIPE_BYTES = 1 << 20
_SERVE = f"from {__name__} import serve; serve()"
# Rows are many short-lived lists without cycles, which the collector would visit for nothing.
_COLLECT = (200_000, 50, 50)


class AsideWriter:
    """The writer that `open_writer` opens, in another process, which is started and not waited for.

    Raises StoreError, also for what went wrong when it was opened.
    """

    def __init__(self, open_writer: Callable[[], StoreWriter]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._process.stdin is not None
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            # As much as the system lets anyone have: in many small pieces, each would wake the other process.
            with suppress(OSError):
                fcntl.fcntl(self._process.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._is_open = False
        self._say(open_writer)

    @property
    def pid(self) -> int:
        """The other process."""
        return self._process.pid

    def write(
        self,
        totals: Sequence[Total],
        counters: Sequence[Counter],
        notes: Sequence[Note] = (),
        settled: Sequence[Settled] = (),
        heartbeats: Sequence[Heartbeat] = (),
    ) -> None:
        """As the writer that was opened."""
        if not self._is_open:
            self._hear()
            self._is_open = True
        self._say((totals, counters, notes, settled, heartbeats))
        self._hear()

    def close(self) -> None:
        """End the process after the call in progress."""
        # What it did not take any more, as it had died, was told as an error then.
        with suppress(BrokenPipeError), self._process:
            pass

    def _say(self, message: object) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            pickle.dump(message, stdin, pickle.HIGHEST_PROTOCOL)
            stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def _hear(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            refused = pickle.load(stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._gone() from None
        if refused is not None:
            raise StoreError(refused)

    def _gone(self) -> StoreError:
        return StoreError(
            f"store: the process that writes it ended with exit code {self._process.wait()}; start again, nothing that"
            " was counted is lost"
        )


def serve() -> None:
    """Run the writer process: open a writer, and write what it is given until its input ends."""
    # What a terminal or a service manager sends to all processes is for the flow, which ends this one in good order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    gc.set_threshold(*_COLLECT)
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever prints would break an answer.
    os.dup2(2, 1)
    # Cut off or closed pipes are the other's end.
    with ExitStack() as opened, suppress(EOFError, pickle.UnpicklingError, BrokenPipeError):
        writer: list[StoreWriter] = []
        open_writer = pickle.load(sys.stdin.buffer)
        _answer(answers, lambda: writer.append(opened.enter_context(closing(open_writer()))))
        while True:
            _answer(answers, partial(writer[0].write, *pickle.load(sys.stdin.buffer)))


def _answer(answers: BinaryIO, act: Callable[[], object]) -> None:
    """Call it, and send back what was wrong, None if nothing was."""
    refused = None
    try:
        act()
    except StoreError as error:
        refused = str(error)
    pickle.dump(refused, answers)
    answers.flush()
