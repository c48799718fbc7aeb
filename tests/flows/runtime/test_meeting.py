"""A cluster comes up though something else connects to its exchange ports meanwhile."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.flows.conftest import Place
from tests.flows.meter.test_control_source import FOLLOWED, eventually, has_totals
from tests.flows.meter.test_metering import FIRST
from tests.flows.runtime.test_shutdown import answer
from tests.support.ports import free_addresses, free_ports
from tidegate.flows.runtime.meeting import Meeting


def junk(address: str, words: bytes = b"GET / HTTP/1.1\r\n\r\n") -> bool:
    """Connect as a scanner does; return whether anybody listened."""
    host, _, port = address.rpartition(":")
    with suppress(ConnectionResetError, BrokenPipeError):
        try:
            stranger = socket.create_connection((host, int(port)), 1)
        except ConnectionRefusedError:
            return False
        with stranger:
            stranger.sendall(words)
    return True


def test_nobody_can_connect_while_a_process_waits_for_another(place: Place) -> None:
    place.append("first.jsonl")
    addresses, (port,) = free_addresses(2), free_ports(1)
    settings = FOLLOWED | {"RECOVERY_PARTS": "2"}
    with place.running(
        "-i", "0", "-a", ";".join(addresses), **settings, METRICS=f"127.0.0.1:{port}"
    ) as first:
        eventually(lambda: answer(port, "/readyz")[1].get("status") == "waiting")
        assert not any(junk(address) for address in addresses)
        with place.running("-i", "1", "-a", ";".join(addresses), **settings) as second:
            eventually(lambda: has_totals(place) and place.periods() == FIRST)
            assert first.poll() is None and second.poll() is None


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b""])
def test_a_stranger_at_the_start_has_the_process_start_over(place: Place, words: bytes) -> None:
    """The other process is said to be there, so that this one opens its port and waits."""
    place.append("first.jsonl")
    addresses = free_addresses(2)
    settings = FOLLOWED | {"RECOVERY_PARTS": "2", "LOG": "json"}
    other = Meeting(place.folder / "state", "1", 2)
    (place.folder / "state").mkdir()
    other.come()
    with place.running("-i", "0", "-a", ";".join(addresses), **settings) as first:
        eventually(lambda: junk(addresses[0], words))
        eventually(lambda: junk(addresses[0], words))
        other.leave()
        with place.running("-i", "1", "-a", ";".join(addresses), **settings):
            eventually(lambda: has_totals(place) and place.periods() == FIRST)
        first.kill()
        said = [json.loads(line) for line in first.communicate()[1].splitlines()]
    assert any("starts over" in one["message"] for one in said)
    assert not any("Traceback" in one["message"] for one in said)


def test_all_are_there_once_each_of_them_has_come(tmp_path: Path) -> None:
    meetings = [Meeting(tmp_path, str(number), 3) for number in range(3)]
    for one in meetings:
        assert not any(each.are_all_there() for each in meetings if each is not meetings[2])
        one.come()
    assert all(one.are_all_there() for one in meetings)
    meetings[1].leave()
    assert [one.are_all_there() for one in meetings] == [False, True, False]
    for one in meetings:
        one.leave()


def test_those_who_wait_go_on_together(tmp_path: Path) -> None:
    went: list[str] = []

    meetings = {number: Meeting(tmp_path, number, 2) for number in "01"}

    def wait(number: str) -> None:
        meetings[number].wait()
        went.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in "01"]
    threads[0].start()
    threads[0].join(0.3)
    assert went == []
    threads[1].start()
    for one in threads:
        one.join(10)
    assert went == ["0", "1"], "those who connect come after those who listen"
    for each in meetings.values():
        each.leave()


def test_threads_of_a_process_may_leave_at_once(tmp_path: Path) -> None:
    """Each worker says that all have connected, at the same moment."""
    with ThreadPoolExecutor(8) as threads:
        for _ in range(300):
            meeting = Meeting(tmp_path, "0", 1)
            meeting.come()
            begin = threading.Barrier(8)

            def leave(meeting: Meeting = meeting, begin: threading.Barrier = begin) -> None:
                begin.wait()
                meeting.leave()

            for left in [threads.submit(leave) for _ in range(8)]:
                left.result()
