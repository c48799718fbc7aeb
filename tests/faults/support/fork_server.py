"""Flow processes that bill, forked from one that has imported everything, so that hundreds of them start quickly.

`ForkServer` is the other end: it orders starts, each a process of its own with its own settings, which may have to kill
itself: at the nth time that it comes to a place, before or after it, or between a transaction's changes and its commit;
or after some time, wherever it is then.
"""

import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from tests.support.places import ROOT

PR_SET_PDEATHSIG = 1
PLACES = ("add", "sending", "acknowledge", "keep_back", "ingest", "put", "flush", "event")
Phase = Literal["before", "half", "after"]


class Death(msgspec.Struct, frozen=True):
    """Where to die; of the place `time`, `seconds` after the start."""

    place: str
    nth: int = 1
    phase: Phase = "after"
    seconds: float = 0.0


class Birth(msgspec.Struct, frozen=True):
    """One start of the metering flow, in a folder, with these settings."""

    folder: str
    settings: dict[str, str]
    death: Death | None = None
    epoch_ms: int = 40


class ForkServer:
    """Starts flows. What they print goes to `said` in their folder."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.support.fork_server", str(os.getpid())],
            cwd=ROOT,
            env={
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("TIDEGATE_", "BYTEWAX_"))
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, birth: Birth) -> int:
        """Runs a flow to its end, or its death; the exit code, negative for a signal."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(msgspec.json.encode(birth) + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """Forks for each order on standard input, and answers with the exit code."""
    _import_all()
    for line in sys.stdin.buffer:
        birth = msgspec.json.decode(line, type=Birth)
        child = os.fork()
        if child == 0:
            live(birth)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def live(birth: Birth) -> None:
    """The life of a child; does not return."""
    _die_with(os.getppid())
    said = os.open(Path(birth.folder) / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(birth.folder)
    os.environ.update({f"TIDEGATE_{name}": value for name, value in birth.settings.items()})
    code = 1
    try:
        if birth.death:
            _arm(birth.death)
        _flow(birth.epoch_ms)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _import_all() -> None:
    import bytewax.recovery
    import bytewax.run
    import httpx

    import tidegate.connectors.dodo.sink
    import tidegate.flows.meter.dataflow

    assert bytewax.recovery and bytewax.run and httpx
    assert tidegate.connectors.dodo.sink and tidegate.flows.meter.dataflow


def _flow(epoch_ms: int) -> None:
    from bytewax.recovery import RecoveryConfig
    from bytewax.run import cli_main

    from tidegate.connectors.dodo import sender
    from tidegate.flows.meter import dataflow
    from tidegate.flows.runtime import recovery
    from tidegate.flows.runtime.metrics import Telemetry
    from tidegate.flows.runtime.shutdown import Drain
    from tidegate.settings.settings import load_settings

    # Patience is not what is tested here, and would be most of the time.
    sender.PAUSE_MAX = 0.2
    settings = load_settings()
    catalogs = dataflow.open_catalogs(settings)
    folder = recovery.prepare(settings.data_dir, settings.recovery_parts, settings.shards)
    cli_main(
        dataflow.build(settings, catalogs, Drain(), Telemetry()),
        epoch_interval=timedelta(milliseconds=epoch_ms),
        recovery_config=RecoveryConfig(folder, timedelta(0)),
    )


def _arm(death: Death) -> None:
    if death.place == "time":
        # The default action ends the process at once, wherever it is, without the interpreter's help.
        signal.setitimer(signal.ITIMER_REAL, max(death.seconds, 1e-3))
        return
    from tidegate.connectors.dodo import sink
    from tidegate.connectors.dodo.client import DodoClient
    from tidegate.connectors.outbox.outbox import Outbox

    client, works = ("ingest", "event"), ("put", "flush")
    owner: Any = DodoClient if death.place in client else sink._Works if death.place in works else Outbox
    met = 0

    def is_it() -> bool:
        nonlocal met
        met += 1
        return met == death.nth

    if death.phase == "half" and owner is Outbox:
        _die_within(Outbox, is_it)
        return
    _die_around(owner, death.place, death.phase, is_it)


def _die_around(owner: Any, name: str, phase: Phase, is_it: Callable[[], bool]) -> None:
    act = getattr(owner, name)

    @functools.wraps(act)
    def deadly(*args: Any, **kwargs: Any) -> Any:
        doomed = is_it()
        if doomed and phase == "before":
            _die()
        done = act(*args, **kwargs)
        if doomed:
            _die()
        return done

    setattr(owner, name, deadly)


def _die_within(owner: Any, is_it: Callable[[], bool]) -> None:
    """At the nth transaction, with all its changes made and none committed."""
    begin = owner.transaction

    @contextmanager
    def transaction(self: Any, **given: Any) -> Iterator[Any]:
        with begin(self, **given) as db:
            yield db
            if is_it():
                _die()

    owner.transaction = transaction


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    _die_with(int(sys.argv[1]))
    serve()
