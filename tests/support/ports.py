"""Ports for servers that have to be told theirs before they start."""

import os
import socket
from contextlib import closing, suppress
from itertools import cycle, islice

# Below those that systems give to outgoing connections, of which there are thousands while tests run.
FIRST, EACH, WORKERS = 18_000, 1_700, 8

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_own = range(FIRST + _worker * EACH, FIRST + (_worker + 1) * EACH)
# Two runs at a time are not to go through the same ports in step.
_begin = os.getpid() * 31 % EACH
_candidates = cycle([*_own[_begin:], *_own[:_begin]])


def free_ports(number: int) -> list[int]:
    """Ports of this worker that nobody listens on, and that no other call here gets until all had their turn."""
    found: list[int] = []
    for port in islice(_candidates, EACH):
        with suppress(OSError), closing(socket.create_server(("127.0.0.1", port))):
            found.append(port)
        if len(found) == number:
            return found
    raise AssertionError(f"of {EACH} ports from {_own.start} on, too few are free")


def free_addresses(number: int) -> list[str]:
    """The same as addresses."""
    return [f"127.0.0.1:{port}" for port in free_ports(number)]
