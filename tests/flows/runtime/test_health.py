"""What a flow tells of itself over HTTP, and the watchdog that sees it stand still."""

import re
import socket
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest

from tests.flows.conftest import Place
from tests.flows.meter.test_control_source import FOLLOWED, eventually, has_totals
from tests.support.ports import free_addresses
from tidegate.flows.runtime.health import HealthError, Watchdog, serve
from tidegate.flows.runtime.metrics import ShardNumbers, Telemetry


def got(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def values(text: str) -> dict[str, float]:
    """Samples by name and labels."""
    return {name: float(value) for name, value in re.findall(r"^([a-z][^ ]*) (\S+)$", text, re.MULTILINE)}


class Shard:
    def __init__(self, events: int) -> None:
        self.counts = {"events": events}

    def numbers(self) -> ShardNumbers:
        return ShardNumbers(self.counts, 0, 0, 0, 0, 0, 0, 0)


class Partition:
    def __init__(self, waiting: int) -> None:
        self.name, self.unit, self.handed_out, self.caught_up_at, self.waiting = (
            "part",
            "bytes",
            0,
            0.0,
            waiting,
        )

    def behind(self) -> int:
        return self.waiting


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watched() -> tuple[Telemetry, Shard, Partition, Clock, list[bool], Watchdog]:
    telemetry, shard, partition, clock = Telemetry(), Shard(0), Partition(0), Clock()
    told: list[bool] = []
    telemetry.shards.add(shard)
    telemetry.partitions.add(partition)
    watchdog = Watchdog(telemetry, timedelta(seconds=30), lambda stalled, _: told.append(stalled), clock)
    return telemetry, shard, partition, clock, told, watchdog


def test_a_flow_with_nothing_to_read_has_not_stalled(
    watched: tuple[Telemetry, Shard, Partition, Clock, list[bool], Watchdog],
) -> None:
    """A quiet night pages nobody."""
    telemetry, _, _, clock, told, watchdog = watched
    for _ in range(100):
        watchdog.look()
        clock.now += 10
    assert not telemetry.stalled and told == []


def test_a_stall_is_told_once_and_so_is_its_end(
    watched: tuple[Telemetry, Shard, Partition, Clock, list[bool], Watchdog],
) -> None:
    telemetry, shard, partition, clock, told, watchdog = watched
    watchdog.look()
    partition.waiting = 7
    clock.now += 29
    watchdog.look()
    assert told == []
    clock.now += 31
    watchdog.look()
    watchdog.look()
    assert told == [True] and telemetry.stalled
    shard.counts["events"] = 1
    watchdog.look()
    assert told == [True, False] and not telemetry.stalled


def test_a_backlog_that_is_worked_off_is_no_stall(
    watched: tuple[Telemetry, Shard, Partition, Clock, list[bool], Watchdog],
) -> None:
    _, shard, partition, clock, told, watchdog = watched
    partition.waiting = 10**9
    for _ in range(100):
        watchdog.look()
        shard.counts["events"] += 1
        clock.now += 20
    assert told == []


def test_readiness_follows_the_watchdog() -> None:
    """Traffic and alerts go by this answer; liveness does not, as a restart heals no stalled store."""
    telemetry = Telemetry()
    port = serve(telemetry, Watchdog(telemetry, timedelta(days=1), lambda *_: None), "127.0.0.1", 0)
    assert got(port, "/readyz") == (200, '{"status": "ready"}')
    telemetry.stalled = True
    assert got(port, "/readyz")[0] == 503
    assert got(port, "/healthz")[0] == 200
    assert got(port, "/else")[0] == 404
    assert values(got(port, "/metrics")[1])["tidegate_stalled"] == 1


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        telemetry = Telemetry()
        with pytest.raises(HealthError, match=f"127.0.0.1:{port} can't be had"):
            serve(telemetry, Watchdog(telemetry, timedelta(days=1), lambda *_: None), "127.0.0.1", port)


def test_a_running_flow_tells_what_it_metered(place: Place) -> None:
    """The figures on the wall are those of the books."""
    place.append("first.jsonl")
    address = free_addresses(1)[0]
    port = int(address.rpartition(":")[2])
    with place.running(**FOLLOWED, METRICS=f"127.0.0.1:{port}"):
        eventually(lambda: has_totals(place))
        written = "tidegate_journal_write_seconds_count"
        eventually(lambda: values(got(port, "/metrics")[1]).get(written, 0) > 0)
        found = values(got(port, "/metrics")[1])
        assert found["tidegate_snapshot_seconds_count"] > 0
        assert got(port, "/readyz")[0] == 200
    outcomes = {
        re.findall(r'"(\w+)"', name)[0]: v
        for name, v in found.items()
        if name.startswith("tidegate_events_t")
    }
    assert outcomes == {"rejects": 1, "too_late": 1, "duplicates": 1, "conflicts": 1, "accepted": 7}
    unmetered = {name: v for name, v in found.items() if name.startswith("tidegate_unmetered_total")}
    assert len(unmetered) == 6 and not any(unmetered.values())
    assert found["tidegate_customers"] == 2 and found["tidegate_keys"] == 4
    assert found["tidegate_remembered_ids"] == 7
    assert found["tidegate_catalog_version"] == 1
    assert found["tidegate_store_rows_total"] >= len(place.totals())
    assert found["tidegate_visible_seconds_count"] >= 1
    assert [v for name, v in found.items() if name.startswith("tidegate_lag_bytes{")] == [0]
    assert found["tidegate_ready"] == found['tidegate_phase{phase="running"}'] == 1
    assert 0 <= found['tidegate_totals_age_seconds{shard="0"}'] < 60
    assert found['tidegate_readings_total{meter="tokens",outcome="counted"}'] == 6
    assert found['tidegate_alerts_total{kind="cap_reached",state="raised"}'] == 1


def test_a_flow_that_cannot_have_the_port_says_so(place: Place) -> None:
    place.append("first.jsonl")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        complained = place.refused(METRICS=f"127.0.0.1:{taken.getsockname()[1]}")
    assert complained.startswith("TIDEGATE_METRICS: ") and complained.count("\n") == 1
    assert place.refused(METRICS="nonsense").startswith("TIDEGATE_METRICS: needs HOST:PORT")


def test_what_a_file_still_has_counts_as_lag(tmp_path: Path) -> None:
    from tidegate.connectors.files.ndjson import FileSource

    path = tmp_path / "in.ndjson"
    path.write_bytes(b"{}\n" * 10)
    source = FileSource(path=str(path), follow=True, poll_bytes=4096)
    partition = source.build_part("source", source.list_parts()[0], None)
    assert partition.behind() == 30  # type: ignore[attr-defined]
    assert [len(poll.block) for poll in partition.next_batch()] == [30]
    assert partition.behind() == 0  # type: ignore[attr-defined]
    partition.close()
