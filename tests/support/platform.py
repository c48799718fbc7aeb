"""The billing platform's simulator for tests: as a process on a free port, or inside the test.

A conftest takes over the fixtures it wants: `from tests.support.platform import platform, platform_process  # noqa:
F401`.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from simulator.app import build_app
from simulator.client import Simulator
from simulator.inprocess import AppTransport
from simulator.state.platform import Platform
from tests.support.places import ROOT

KEY = "sim_key"
PR_SET_PDEATHSIG = 1
STOP_S = 10.0


class PlatformProcess:
    """A simulator in a process of its own, which dies with this one. `database` lets it survive `kill`."""

    def __init__(self, database: Path | None = None, seed: int = 1, key: str = KEY, port: int = 0) -> None:
        self._arguments = ["--seed", str(seed), "--key", key]
        if database:
            self._arguments += ["--database", str(database)]
        self._key, self._port = key, port
        self.start()

    def start(self) -> None:
        """Starts it, after `kill` on the same port again."""
        me = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simulator", "--port", str(self._port), *self._arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: _die_with(me),
        )
        assert self._process.stdout
        self.url = self._process.stdout.readline().strip()
        assert self.url.startswith("http://"), f"the simulator did not start: {self._process.wait()}"
        self._port = int(self.url.rpartition(":")[2])
        self.simulator = Simulator(self.url, self._key)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, as a crash of the platform."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, with_signal: signal.Signals) -> None:
        self.simulator.close()
        with suppress(ProcessLookupError):
            self._process.send_signal(with_signal)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


@contextmanager
def in_process(seed: int = 1, key: str = KEY) -> Iterator[Simulator]:
    """A simulator without a socket; its `api` and `transport` speak to it from this thread."""
    transport = AppTransport(build_app(Platform(seed, key=key))[0])
    simulator = Simulator("http://simulator", key, transport)
    try:
        yield simulator
    finally:
        simulator.close()
        transport.close()


@pytest.fixture(scope="session")
def platform_process() -> Iterator[PlatformProcess]:
    """One process for all tests that reset it first."""
    process = PlatformProcess()
    yield process
    process.stop()


@pytest.fixture
def platform(platform_process: PlatformProcess) -> Simulator:
    """An empty platform behind a real socket, at tier 0, its clock in real time."""
    platform_process.simulator.reset()
    return platform_process.simulator


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
