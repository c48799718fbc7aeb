"""Which real servers a session ran its tests against, in one line at its end, and what was left out for want of one.

Whoever starts a server says so by `ran`; a test that has none to run against skips itself by `lacking`.
"""

import ctypes
import signal
from typing import Any, NoReturn

import pytest

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl

_RAN: list[str] = []
_LACKING: list[str] = []


def dies_with_us() -> None:
    """For `preexec_fn`: the child is killed when the thread that made it ends, however that came."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def ran(server: str) -> None:
    """Remembers a server by name and version."""
    if server not in _RAN:
        _RAN.append(server)


def lacking(reason: str) -> NoReturn:
    """Skips the test that runs."""
    if reason not in _LACKING:
        _LACKING.append(reason)
    pytest.skip(reason)


def told() -> dict[str, Any]:
    """What this process knows, for another one to hear."""
    return {"ran": _RAN, "lacking": _LACKING}


def hear(news: dict[str, Any] | None) -> None:
    """Takes what another process knows."""
    for server in (news or {}).get("ran", ()):
        ran(server)
    for reason in (news or {}).get("lacking", ()):
        if reason not in _LACKING:
            _LACKING.append(reason)


def summary() -> list[str]:
    """What to say at the end."""
    lines = [f"servers: {', '.join(_RAN)}"] if _RAN else []
    return lines + [f"left out what {reason}" for reason in _LACKING]
