"""SIGTERM ends a flow in order: everything that was read is metered, written and saved, and the exit code is 0."""

import signal
import subprocess

import pytest

from tests.faults.harness import lines_of
from tests.flows.conftest import SECONDS, Place
from tests.flows.test_control import FOLLOWED, eventually, has_totals
from tests.flows.test_metering import COUNTERS, FIRST, SECOND
from tests.ports import free_addresses


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, complained = process.communicate(timeout=SECONDS)
    return process.returncode, complained


@pytest.mark.parametrize("options", [(), ("-w", "2")], ids=["one worker", "two workers"])
def test_a_flow_that_is_told_to_stop_has_nothing_to_do_again(place: Place, options: tuple[str, ...]) -> None:
    """An epoch of ten minutes: what the next start does not count twice was saved at the end."""
    settings = FOLLOWED | {"EPOCH": "10m", "COALESCE": "10s"}
    place.append("first.jsonl")
    with place.running(*options, **settings) as process:
        eventually(lambda: has_totals(place))
        place.append("second.jsonl")
        # Totals pause for ten seconds after the first write, so only the end writes what this adds.
        eventually(lambda: len(place.billed()) == 10)
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")
    assert place.periods() == SECOND
    replayed = place.counters()
    place.run(*options)
    assert place.counters() == replayed
    assert len(lines_of(place.folder / "dead.ndjson")) == len(place.dead()) == 3


def test_a_cluster_that_is_told_to_stop_ends(place: Place) -> None:
    place.append("first.jsonl")
    addresses = ";".join(free_addresses(2))
    settings = FOLLOWED | {"RECOVERY_PARTS": "2"}
    with (
        place.running("-i", "0", "-a", addresses, **settings) as first,
        place.running("-i", "1", "-a", addresses, **settings) as second,
    ):
        eventually(lambda: has_totals(place) and place.periods() == FIRST)
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
        assert [ended(process)[0] for process in (first, second)] == [0, 0]
    assert place.counters() == COUNTERS
