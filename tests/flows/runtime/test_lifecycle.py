"""The phases of a process and what ends it, without processes: time and signals are given."""

import logging
import signal
from datetime import timedelta
from pathlib import Path
from time import sleep

import pytest

from tests.flows.runtime.test_health import Clock, Partition
from tidegate.flows.runtime.lifecycle import CONNECT_S, MARK_EVERY_LOOKS, Lifecycle, cluster_size
from tidegate.flows.runtime.metrics import STORE_SILENT_S, Telemetry
from tidegate.flows.runtime.shutdown import Drain, DrainedSource


class Process:
    """One of a cluster of `size`, in a data directory."""

    def __init__(self, folder: Path, process: str = "0", size: int = 2) -> None:
        self.drain, self.clock, self.ends = Drain(), Clock(), list[int]()
        patience = timedelta(seconds=60)
        self.life = Lifecycle(self.drain, folder, process, size, patience, self.ends.append, self.clock)

    def phase(self) -> str:
        return self.life.phase

    def run(self) -> "Process":
        self.life.wait()
        self.drain.has_begun = self.drain.is_open = True
        self.look()
        return self

    def look(self, signals: bytes = b"") -> None:
        self.life.look(signals)
        for _ in range(MARK_EVERY_LOOKS):
            self.life.look()


def test_the_phases_follow_each_other(tmp_path: Path) -> None:
    one = Process(tmp_path)
    assert one.phase() == "starting"
    one.life.wait()
    assert one.phase() == "waiting"
    one.drain.has_begun = True
    assert one.phase() == "starting", "its source is still to be opened"
    one.drain.is_open = True
    assert one.phase() == "running"
    one.look(bytes([signal.SIGURG, signal.SIGTERM]))
    assert one.phase() == "draining" and one.ends == []


def test_one_process_alone_never_waits_for_others(tmp_path: Path) -> None:
    one = Process(tmp_path, size=1)
    one.life.wait()
    one.clock.now += 1e6
    one.look()
    assert one.life.phase == "starting" and one.ends == []


@pytest.mark.parametrize(("asked", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize("waits", [False, True])
def test_a_process_that_has_read_nothing_ends_at_once(
    tmp_path: Path, asked: int, code: int, waits: bool
) -> None:
    one = Process(tmp_path)
    if waits:
        one.life.wait()
    one.look(bytes([asked]))
    assert one.ends == [code]


def test_a_wait_is_reported_and_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = Process(tmp_path)
    one.life.wait()
    for _ in range(59):
        one.clock.now += 1
        one.look()
    assert one.ends == [] and [r.levelno for r in caplog.records] == [logging.WARNING]
    one.clock.now += 1
    one.life.look()
    assert one.ends == [1] and "TIDEGATE_PEER_TIMEOUT" in caplog.text


def test_an_end_reaches_all_of_the_run_and_none_of_the_next(tmp_path: Path) -> None:
    running = [Process(tmp_path, str(number), 3).run() for number in range(3)]
    running[1].look(bytes([signal.SIGTERM]))
    for one in running:
        one.look()
    assert [one.drain.asked for one in running] == [True] * 3
    # The next run begins seconds later; times of files may be 10 ms coarse.
    sleep(0.02)
    following = [Process(tmp_path, str(number), 3).run() for number in range(3)]
    for one in following:
        one.look()
    assert [one.drain.asked for one in following] == [False] * 3


def test_what_is_not_read_any_more_stays_visible() -> None:
    """A process that drains waits for the others; meanwhile its partitions are not read, and their lag grows."""
    telemetry, drain = Telemetry(lambda: 200.0), Drain()

    class Part(Partition):
        def __init__(self) -> None:
            super().__init__(7)
            self.unit = "messages"

        def next_awake(self) -> None:
            return None

        def close(self) -> None:
            self.waiting = 0

    class Source:
        def list_parts(self) -> list[str]:
            return ["one"]

        def build_part(self, *_: object) -> Part:
            return Part()

    source = DrainedSource(Source(), drain, telemetry)  # type: ignore[arg-type]
    (name,) = source.list_parts()
    part = source.build_part("source", name, None)
    part.caught_up_at = 150.0
    drain.ask()
    with pytest.raises(StopIteration):
        part.next_batch()
    part.close()
    del part
    assert telemetry.behind() == 7
    found = {
        s.name: s.value for m in telemetry.registry.collect() for s in m.samples if s.labels.get("partition")
    }
    assert found == {"tidegate_lag_messages": 7, "tidegate_lag_seconds": 50}


def test_a_store_that_owes_an_answer_makes_the_process_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr("tidegate.flows.runtime.metrics.time.monotonic", lambda: now)
    telemetry = Telemetry()
    with telemetry.track_store_wait():
        assert telemetry.trouble() is None
        now += STORE_SILENT_S + 0.1
        trouble = telemetry.trouble()
        assert trouble is not None and trouble[0] == "store_away"
    assert telemetry.trouble() is None


@pytest.mark.parametrize(
    ("words", "variables", "size"),
    [
        ([], {}, 1),
        (["-a", "one:1;two:2"], {}, 2),
        ([], {"BYTEWAX_ADDRESSES": "one:1;two:2;three:3"}, 3),
        ([], {"BYTEWAX_HOSTFILE_PATH": "hosts"}, 2),
        ([], {"BYTEWAX_HOSTFILE_PATH": "missing"}, 1),
    ],
)
def test_the_size_of_the_cluster_is_what_bytewax_is_given(
    words: list[str], variables: dict[str, str], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hosts").write_text("one:1\ntwo:2\n\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bytewax.run", *words, "tidegate.flows.metering"])
    for name in ("BYTEWAX_ADDRESSES", "BYTEWAX_HOSTFILE_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cluster_size() == size


def test_processes_that_are_all_there_connect_soon_or_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Process(tmp_path)
    one.life.wait()
    one.clock.now += 50
    one.life.connect()
    one.clock.now += CONNECT_S - 1
    one.look()
    assert one.ends == []
    one.clock.now += 1
    one.life.look()
    assert one.ends == [1] and "did not connect within 30 s" in caplog.text
