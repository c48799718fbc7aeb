"""SIGTERM ends a flow in order: everything that was read is metered, written and saved, and the exit code is 0."""

import json
import signal
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.faults.support.edges import lines_of
from tests.flows.conftest import SECONDS, Place
from tests.flows.meter.test_control_source import FOLLOWED, eventually, has_totals
from tests.flows.meter.test_metering import COUNTERS, FIRST, SECOND
from tests.support.ports import free_addresses, free_ports


def answer(port: int, path: str) -> tuple[int, dict[str, Any]]:
    """What a probe is answered; 0 where nobody listens yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


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
        code, complained = ended(process)
        assert code == 0 and "stops reading" in complained and complained.count("\n") == 1
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


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_cluster_of_which_one_process_is_stopped_ends_in_order(place: Place, stopped: int) -> None:
    """As `kubectl delete pod` does it: nobody goes on reading nothing, and nothing has to be read again."""
    place.append("first.jsonl")
    addresses = ";".join(free_addresses(2))
    settings = FOLLOWED | {"RECOVERY_PARTS": "2", "EPOCH": "10m"}
    # The mark of an earlier run stops nobody.
    (place.folder / "state").mkdir()
    (place.folder / "state" / "draining.lock").write_text("0")
    with (
        place.running("-i", "0", "-a", addresses, **settings) as first,
        place.running("-i", "1", "-a", addresses, **settings) as second,
    ):
        eventually(lambda: has_totals(place) and place.periods() == FIRST)
        (first, second)[stopped].send_signal(signal.SIGTERM)
        found = [ended(process) for process in (first, second)]
    assert [code for code, _ in found] == [0, 0]
    assert "SIGTERM: stops reading; all 2 processes" in found[stopped][1]
    # Where the other had no partition to read it may end before it has to be asked.
    other = found[1 - stopped][1]
    assert not other or f"process {stopped} was stopped: stops reading as well" in other
    replayed = place.counters()
    place.run(RECOVERY_PARTS="2")
    assert place.counters() == replayed == COUNTERS


def test_a_process_that_waits_for_others_says_so_and_can_be_stopped(place: Place) -> None:
    addresses = ";".join(free_addresses(2))
    (port,) = free_ports(1)
    for number, (asked, code) in enumerate([(signal.SIGTERM, 0), (signal.SIGINT, 130)]):
        settings = FOLLOWED | {"METRICS": f"127.0.0.1:{port}"}
        with place.running("-i", "0", "-a", addresses, **settings) as process:
            eventually(lambda: answer(port, "/readyz")[1].get("status") == "waiting")
            assert answer(port, "/readyz")[0] == 503 and answer(port, "/healthz")[0] == 200, number
            process.send_signal(asked)
            assert ended(process)[0] == code


def test_a_process_that_nobody_comes_to_gives_up(place: Place) -> None:
    addresses = ";".join(free_addresses(2))
    with place.running("-i", "0", "-a", addresses, **FOLLOWED, PEER_TIMEOUT="1s") as process:
        code, complained = ended(process)
    assert code == 1
    assert "the flow ends: the other processes of its cluster of 2 were not there within 1 s" in complained
    assert "Traceback" not in complained
