"""Processes of the product, forked from one that has imported everything, under a wall clock that a test sets.

They are what a user starts: `python -m bytewax.run tidegate.flows.metering` and `tidegate serve`, with settings from
the environment and a folder of their own. Where libfaketime is installed (Debian's faketime), a file says what time
it is for all of them; the test's own clock stays right.
"""

import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import SupportsIndex

import msgspec

from tests.faults.support.fork_server import _die_with
from tests.support.places import ROOT

TICK = os.sysconf("SC_CLK_TCK")


class Start(msgspec.Struct, frozen=True):
    """What to start in `folder`; standard output and error go to the file `said` there."""

    module: str
    arguments: list[str]
    folder: str
    settings: dict[str, str]
    said: str


class Order(msgspec.Struct, frozen=True):
    """Start something, or ask how the process `poll` ended."""

    start: Start | None = None
    poll: int = 0


class Process:
    """A process that was started."""

    def __init__(self, forks: "Forks", pid: int, said: Path) -> None:
        self._forks, self.pid, self.said = forks, pid, said
        self.code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.code is None:
            self.code = self._forks.ask(Order(poll=self.pid))
        return self.code

    def wait(self, seconds: float) -> int | None:
        """Return the exit code once it has ended, None if it does not end in time."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.code

    def send(self, how: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, how)

    def cpu(self) -> float:
        """Return the seconds of processor time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def words(self) -> str:
        """Return all that it has printed."""
        return self.said.read_text(errors="replace") if self.said.exists() else ""


class Forks:
    """The process to fork from. `clock` is the file with the offset of the wall clock, None without libfaketime."""

    def __init__(self, folder: Path) -> None:
        self.clock = folder / "clock" if (library := _libfaketime()) else None
        given = {
            name: text for name, text in os.environ.items() if not name.startswith(("TIDEGATE_", "BYTEWAX_"))
        }
        if self.clock is not None and library is not None:
            given |= {
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            }
            self.set_clock(0)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.changes.forks", str(os.getpid())],
            cwd=ROOT,
            env=given | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def set_clock(self, ahead: int) -> None:
        """Let the processes' wall clock be so many seconds ahead."""
        assert self.clock is not None
        written = self.clock.with_suffix(".new")
        written.write_text(f"{ahead:+d}\n")
        written.replace(self.clock)

    def start(self, start: Start) -> Process:
        pid = self.ask(Order(start=start))
        assert pid
        return Process(self, pid, Path(start.folder) / start.said)

    def ask(self, order: Order) -> int | None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        answer: int | None = msgspec.json.decode(self._process.stdout.readline(), type=int | None)
        return answer

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _libfaketime() -> Path | None:
    if shutil.which("faketime") is None:
        return None
    return next(iter(sorted(Path("/usr/lib").glob("**/libfaketimeMT.so.1"))), None)


def _sleep(seconds: float | SupportsIndex, /) -> None:
    select.select([], [], [], max(0.0, float(seconds)))


def serve() -> None:
    """Fork for each start on standard input, and answer with the process's id; for each poll with its exit code."""
    # Of threads, libfaketime's own refuses arguments that are right.
    time.sleep = _sleep
    _import_all()
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=Order)
        answer = _ended(order.poll)
        if order.start is not None:
            answer = os.fork()
            if answer == 0:
                _live(order.start)
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


def _ended(pid: int) -> int | None:
    if not pid:
        return None
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _live(start: Start) -> None:
    """Be the process that was asked for; does not return."""
    _die_with(os.getppid())
    said = os.open(Path(start.folder) / start.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(said, stream)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    os.chdir(start.folder)
    os.environ.update(start.settings)
    sys.argv = [start.module, *start.arguments]
    code = 1
    try:
        runpy.run_module(start.module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _import_all() -> None:
    import bytewax.recovery
    import bytewax.run

    import tidegate.flows.meter.dataflow
    import tidegate.flows.metering
    import tidegate.serving.cli.main
    import tidegate.serving.http.server

    assert bytewax.recovery and bytewax.run and tidegate.flows.meter.dataflow and tidegate.serving.http.server
    assert tidegate.flows.metering and tidegate.serving.cli.main
    # Bytewax and the command line import them again, by name, as a user's start does.
    sys.modules.pop("tidegate.flows.metering")
    sys.modules.pop("bytewax.run")


if __name__ == "__main__":
    _die_with(int(sys.argv[1]))
    serve()
