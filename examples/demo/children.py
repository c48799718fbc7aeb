"""The demo's processes: each with a log of its own, and none that outlives the demo."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 10.0
LOG_LINES = 15
PR_SET_PDEATHSIG = 1


class DemoError(Exception):
    """The demo cannot go on; says why."""


class Child:
    """A Python module as a process in `folder`, which dies with this one, however that ends."""

    def __init__(
        self, name: str, folder: Path, *command: str, settings: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        # What the shell has set for another flow stays out of this one; so do .env and tidegate.toml, by the folder.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TIDEGATE_", "BYTEWAX_", "DODO_"))
        }
        demo = os.getpid()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=folder,
                env={**kept, "PYTHONPATH": str(ROOT), **(settings or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the demo, which then stops the others.
                start_new_session=True,
                preexec_fn=lambda: _die_with(demo),
            )

    def check(self) -> None:
        """DemoError if the process has ended, with what it said last."""
        code = self._process.poll()
        if code is not None:
            end = (
                f"ended by itself with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
            )
            told = [f"The {self.name} {end}; DEMO_KEEP=1 make demo goes on from here."]
            if said := self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]:
                told += [f"Its last words, of {self.log}:", *said]
            raise DemoError("\n".join(told))

    def said(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """End the process and wait for its end."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _die_with(parent: int) -> None:
    """Has this process killed when its parent dies. On Linux; elsewhere only a clean end stops it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
