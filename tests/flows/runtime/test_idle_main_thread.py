"""A busy worker is not robbed of the interpreter's lock by a main thread that only looks for signals."""

import time
from pathlib import Path

import pytest

from tests.flows.conftest import Place
from tests.flows.meter.test_control_source import FOLLOWED, eventually, has_totals
from tests.flows.meter.test_metering import FIRST

# Bytewax alone comes to a thousand and more; a slow machine to fewer, never to more.
LOOKS_PER_SECOND_MAX = 300


def switches(process: int) -> int:
    """How often the main thread has gone to sleep."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_main_thread_of_two_workers_sleeps(place: Place) -> None:
    place.append("first.jsonl")
    with place.running("-w", "2", **FOLLOWED) as process:
        eventually(lambda: has_totals(place) and place.periods() == FIRST)
        begun, before = time.monotonic(), switches(process.pid)
        time.sleep(1.0)
        seen = switches(process.pid) - before
        assert seen <= LOOKS_PER_SECOND_MAX * (time.monotonic() - begun)
