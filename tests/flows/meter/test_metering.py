"""The metering flow as people start it, from end to end, on scenarios small enough to count by hand."""

import fcntl
import pickle
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import combinations
from time import monotonic, sleep
from typing import Any

import pytest
from bytewax.testing import run_main

from tests.flows.conftest import SCENARIOS, SECONDS, Place, alerts_in
from tidegate.connectors.files.ndjson import Written
from tidegate.flows.meter import dataflow
from tidegate.flows.meter.emission import Emission
from tidegate.flows.meter.shard_step import PAUSE_MAX, ShardLogic, pause
from tidegate.flows.meter.store_step import StoreStep
from tidegate.flows.runtime.metrics import Telemetry
from tidegate.flows.runtime.shutdown import Drain
from tidegate.operators.events.decode import Decoder
from tidegate.operators.model.ports import Payloads, StoreWriter
from tidegate.settings.settings import load_settings

FIRST = {
    ("acme", "calls"): "5",
    ("acme", "tokens"): "33.6",
    ("globex", "calls"): "2",
    ("globex", "tokens"): "7",
}
SECOND = {
    ("acme", "calls"): "6",
    ("acme", "tokens"): "133.6",
    ("globex", "calls"): "3",
    ("globex", "tokens"): "107",
    ("new", "calls"): "1",
    ("new", "tokens"): "0.25",
}
ALERTS = [
    ("", "unmetered", "announced", "not_a_number"),
    ("acme", "cap_reached", "raised", "5"),
    ("acme", "threshold", "raised", "80%"),
]
DEAD = ["conflict", "not_json", "too_late"]
COUNTERS = {
    "events": 11, "rejects": 1, "too_late": 1, "duplicates": 1, "conflicts": 1, "accepted": 7, "metered": 7,
    "matching:calls": 7, "counted:calls": 7, "matching:tokens": 6, "counted:tokens": 6,
    "not_a_number:tokens": 1,
}  # fmt: skip
BRANCHES = ("store", "alerts", "billing")


def in_process(place: Place, monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Runs the flow in this process, without recovery."""
    for name, value in place.environment(RECOVERY="false", **settings).items():
        if name.startswith("TIDEGATE_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(place.folder)
    loaded = load_settings()
    run_main(dataflow.build(loaded, dataflow.open_catalogs(loaded), Drain(), Telemetry()))


def inline() -> StoreStep:
    """The store of a shard that is looked at alone."""

    def nobody(worker: int) -> StoreWriter:
        raise AssertionError("no step asks for it")

    return StoreStep(nobody, None, Telemetry(), live=False, large=0, epoch=timedelta(seconds=10))


def eventually(is_so: Callable[[], Any]) -> None:
    """Waits until it is so; far longer than it ever takes."""
    deadline = monotonic() + SECONDS
    while not is_so():
        assert monotonic() < deadline
        sleep(0.03)


@pytest.mark.parametrize(
    "branches", [chosen for size in (1, 2, 3) for chosen in combinations(BRANCHES, size)], ids=",".join
)
def test_each_branch_runs_if_it_is_chosen(
    place: Place, monkeypatch: pytest.MonkeyPatch, branches: tuple[str, ...]
) -> None:
    """So that one fleet can show usage while another bills it; dead letters are written by all."""
    place.append("first.jsonl")
    in_process(place, monkeypatch, BRANCHES=",".join(branches))
    assert place.dead() == DEAD
    assert bool(place.periods()) == ("store" in branches)
    assert (place.folder / "alerts.ndjson").exists() == ("alerts" in branches)
    assert (place.folder / "billing").exists() == ("billing" in branches)
    if "store" in branches:
        assert place.periods() == FIRST
        assert place.counters() == COUNTERS
    if "alerts" in branches:
        assert place.alerts() == ALERTS
    if "billing" in branches:
        assert len(place.billed()) == len(set(place.billed())) == COUNTERS["accepted"]


def test_what_waited_to_be_written_is_written_after_a_crash(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Totals pause between writes; if the flow dies then, nobody has to wait for the customer's next event."""
    for name, value in place.environment(COALESCE="10s", SHARDS="1").items():
        if name.startswith("TIDEGATE_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(place.folder)
    settings = load_settings()
    catalogs = dataflow.open_catalogs(settings)
    decoder = Decoder(catalogs.current.catalog, number=1, shards=1, clock="event", future=settings.future)

    def given(logic: ShardLogic, scenario: str) -> list[Emission]:
        payloads = Payloads((SCENARIOS / scenario).read_bytes(), 0, None, "")
        return list(logic.on_batch(list(decoder.decode(payloads)))[0])

    def written(emissions: Iterable[Emission]) -> dict[tuple[str, str], str]:
        return {
            (total.customer, total.meter): str(total.total)
            for emission in emissions
            for total in emission.totals
            if total.window == "period"
        }

    first = ShardLogic(settings, catalogs, Telemetry(), inline(), None)
    assert written(given(first, "first.jsonl")) == FIRST
    assert written(given(first, "second.jsonl")) == {}
    assert written(first.on_notify()[0]) == {}, "counters are due sooner, and take no totals along"
    position = pickle.loads(pickle.dumps(first.snapshot()))
    assert first._journal
    first._journal._lock.close()

    second = ShardLogic(settings, catalogs, Telemetry(), inline(), position)
    resumed = second.numbers()
    assert resumed is not None and not any(resumed.counts.values()), (
        "a scraper would see events that never came"
    )
    due = second.notify_at()
    assert due is not None and due <= datetime.now(UTC)
    assert FIRST | written(second.on_notify()[0]) == SECOND
    assert second._journal
    second._journal._lock.close()


@pytest.mark.parametrize(
    ("totals", "events", "age", "expected"),
    [
        (10, 5, timedelta(0), timedelta(milliseconds=10)),
        (1_000, 5, timedelta(0), timedelta(milliseconds=20)),
        (1_000, 500, timedelta(0), timedelta(milliseconds=20)),
        (1_000, 500, timedelta(seconds=1), timedelta(milliseconds=100)),
        (1_000, 500, timedelta(days=1), timedelta(milliseconds=320)),
        (1_000_000, 500, timedelta(days=1), timedelta(seconds=20)),
        (100_000, 500, timedelta(days=1), timedelta(seconds=10)),
        (1_000, 5, timedelta(days=1), timedelta(milliseconds=20)),
    ],
)
def test_only_a_backlog_is_written_seldom(
    totals: int, events: int, age: timedelta, expected: timedelta
) -> None:
    """Customers who use something now see it now; a day that is worked off in a minute need not be seen each second."""
    settings = load_settings({"source": "file:-", "shards": "4"})
    assert pause(settings, totals, events, age, PAUSE_MAX) == expected


@pytest.mark.parametrize("polls", ["4096", "1048576"])
@pytest.mark.parametrize("shards", ["1", "16"])
def test_nothing_hangs_on_how_the_stream_is_cut(
    place: Place, monkeypatch: pytest.MonkeyPatch, polls: str, shards: str
) -> None:
    place.append("first.jsonl")
    in_process(place, monkeypatch, POLL_BYTES=polls, SHARDS=shards)
    assert (place.periods(), place.counters(), place.alerts()) == (FIRST, COUNTERS, ALERTS)


def test_alerts_go_to_standard_output_if_so_chosen(place: Place) -> None:
    """Once: a restart has nothing to tell, as it reads nothing again."""
    place.append("first.jsonl")
    assert alerts_in(place.run(ALERTS="stdout:")) == ALERTS
    assert place.run(ALERTS="stdout:") == ""


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"SHARDS": "12"}, "TIDEGATE_SHARDS: needs a power of two"),
        ({"SOURCE": "flie:in.ndjson"}, "TIDEGATE_SOURCE: "),
        ({"SHRADS": "16"}, "TIDEGATE_SHRADS: is unknown"),
        ({"CATALOG": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
    ],
)
def test_a_wrong_setting_is_one_line(place: Place, settings: dict[str, str], line: str) -> None:
    complained = place.refused(**settings)
    assert complained.startswith(line)
    assert complained.count("\n") == 1
    assert not (place.folder / "state").exists()


def test_restarts_go_on_where_the_last_run_ended(place: Place) -> None:
    """By the plain command alone: recovery is on, nothing is counted twice, appended lines are counted once."""
    place.append("first.jsonl")
    place.run()
    assert place.periods() == FIRST
    left = place.totals(), place.counters(), place.alerts(), place.dead(), place.billed()
    assert left[1:4] == (COUNTERS, ALERTS, DEAD)

    place.run()
    assert (place.totals(), place.counters(), place.alerts(), place.dead(), place.billed()) == left

    place.append("second.jsonl")
    place.run()
    assert place.periods() == SECOND
    assert place.counters()["duplicates"] == 2
    assert (place.alerts(), place.dead()) == (ALERTS, DEAD)
    assert len(place.billed()) == len(set(place.billed())) == COUNTERS["accepted"] + 3


def test_no_run_goes_on_from_an_epoch_that_a_kill_cut_short(place: Place) -> None:
    """Bytewax keeps what was saved of it, and the next run has an epoch of that number too."""
    place.append("first.jsonl")
    place.run()
    with closing(sqlite3.connect(place.folder / "state" / "recovery" / "part-0.sqlite3")) as part, part:
        ((epoch,),) = part.execute("SELECT max(worker_frontier) FROM fronts").fetchall()
        half = ("metering.alerts_1", "0", epoch, pickle.dumps(Written(0, 1)))
        part.execute(
            "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES (?, ?, ?, ?)", half
        )
    # In its epoch nothing is written to this output.
    place.run()
    place.run()
    assert place.alerts() == ALERTS


def test_nobody_forgets_what_a_running_flow_has_saved(place: Place) -> None:
    """A second start may come while it runs, before it is refused."""
    place.append("first.jsonl")
    with place.running(SOURCE="file:in.ndjson?follow=true"):
        eventually(lambda: (place.folder / "store.db").exists() and place.periods() == FIRST)
        lock = (place.folder / "state" / "running.lock").open()
        with lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_without_recovery_each_start_counts_from_the_beginning(place: Place) -> None:
    """The totals are the same then, as they are absolute; what is appended to files is there twice."""
    place.append("first.jsonl")
    for times in (1, 2):
        place.run(RECOVERY="false")
        assert place.periods() == FIRST
        assert place.alerts() == sorted(ALERTS * times)
    assert not (place.folder / "state").exists()


def test_a_changed_catalog_goes_on_from_the_old_totals(place: Place) -> None:
    """A raised cap lets the customer on, says so, and is watched from then on; a new meter begins at zero."""
    place.append("first.jsonl")
    place.run()
    raised = {"CATALOG": str(SCENARIOS / "raised.yaml")}
    place.run(**raised)
    assert place.periods() == FIRST
    # 5 of 10 calls: neither the cap nor the 80 % hold any more.
    resolved = [("acme", "cap_released", "resolved", "none"), ("acme", "threshold", "resolved", "none")]
    assert place.alerts() == sorted(ALERTS + resolved)

    place.append("second.jsonl")
    place.run(**raised)
    assert place.periods() == SECOND | {
        ("acme", "longest"): "100",
        ("globex", "longest"): "100",
        ("new", "longest"): "0.25",
    }
    assert place.counters()["matching:longest"] == 3
    assert place.alerts() == sorted(ALERTS + resolved)

    # And back: both hold again, under the old limit's version, and are reported again; what is unmetered is no news.
    place.run()
    assert place.alerts() == sorted([*ALERTS, *resolved, *ALERTS[1:]])


def test_the_aggregation_of_a_meter_is_fixed_once_it_has_counted(place: Place) -> None:
    place.append("first.jsonl")
    place.run()
    place.append("second.jsonl")
    with place.started(CATALOG=str(SCENARIOS / "another_aggregation.yaml")) as process:
        _, complained = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, complained
    assert complained.count("meter 'tokens': its aggregation is fixed once it has counted") == 1, complained
    assert place.periods() == SECOND


def test_the_number_of_shards_is_fixed_at_the_first_start(place: Place) -> None:
    place.append("first.jsonl")
    place.run()
    complained = place.refused(SHARDS="8")
    assert "set TIDEGATE_SHARDS=4" in complained
    assert complained.count("\n") == 1
    place.append("second.jsonl")
    place.run()
    assert place.periods() == SECOND


def test_another_source_goes_on_from_the_same_totals(place: Place) -> None:
    """From a file to the log of the HTTP service and back: what the other one had is a repeat, nothing comes twice."""
    place.append("first.jsonl")
    place.run()
    (place.folder / "log" / "0").mkdir(parents=True)
    for scenario in ("first.jsonl", "second.jsonl"):
        place.append(scenario, "log/0/000000000001.ndjson")
    place.run(SOURCE="log:log?follow=false")
    assert place.periods() == SECOND
    before = place.counters()["events"]
    place.run()
    place.run(SOURCE="log:log?follow=false")
    assert (place.periods(), place.counters()["events"]) == (SECOND, before)


def test_what_the_flow_writes_is_never_its_input(place: Place) -> None:
    """A glob over the folder of its own dead letters would read each one again as another one, for ever."""
    own = {"SOURCE": "file:*.ndjson", "ALERTS": "file:alerts.ndjson"}
    place.append("first.jsonl")
    for _ in range(3):
        place.run(**own)
    assert (place.periods(), place.dead(), place.alerts()) == (FIRST, DEAD, ALERTS)
    (place.folder / "linked").symlink_to("dead.ndjson")
    complained = place.refused(SOURCE="file:linked?follow=true")
    assert "'linked': is written by the flow itself" in complained
    assert complained.count("\n") == 1


def test_files_of_a_glob_come_and_go(place: Place) -> None:
    """A file that is gone keeps its position for when it is back; one that is renamed is read as repeats."""
    place.append("first.jsonl")
    place.append("second.jsonl", "in-2.ndjson")
    place.run(SOURCE="file:in*.ndjson")
    events = place.counters()["events"]
    (place.folder / "in-2.ndjson").rename(place.folder / "away")
    place.run(SOURCE="file:in*.ndjson")
    (place.folder / "away").rename(place.folder / "in-2.ndjson")
    (place.folder / "in.ndjson").rename(place.folder / "in-1.ndjson")
    place.run(SOURCE="file:in*.ndjson")
    assert place.periods() == SECOND
    assert (
        place.counters()["events"] - events
        == len((place.folder / "in-1.ndjson").read_bytes().split(b"\n")) - 1
    )


def test_other_places_for_output_are_written_from_then_on(place: Place) -> None:
    """Also back in the first one, whose lines stay."""
    place.append("first.jsonl")
    place.run()
    dead, alerts, billed = place.dead(), place.alerts(), place.billed()
    place.append("second.jsonl")
    other = {"DEAD_LETTERS": "stdout:", "ALERTS": "stdout: file:other.ndjson", "BILLING": "file:other/"}
    place.run(**other)
    place.run()
    place.run(**other)
    assert (place.dead(), place.alerts(), place.billed()) == (dead, alerts, billed)
    assert sum(p.read_bytes().count(b"\n") for p in (place.folder / "other").glob("*.ndjson")) == 3
    assert place.periods() == SECOND


def test_what_a_followed_file_grows_by_is_soon_in_the_store(place: Place) -> None:
    """Also while nothing comes: the totals of the last lines do not wait for the next."""
    place.append("first.jsonl")
    with place.running(SOURCE="file:in.ndjson?follow=true"):
        eventually((place.folder / "store.db").exists)
        eventually(lambda: place.periods() == FIRST)
        place.append("second.jsonl")
        eventually(lambda: place.periods() == SECOND)
        eventually(lambda: place.counters()["duplicates"] == 2)


def test_rescaling_keeps_every_total(place: Place) -> None:
    """One worker, two threads, two processes, one again; each gets new lines, and repeats of old ones."""
    settings = {"SOURCE": "file:in-*.ndjson", "RECOVERY_PARTS": "2"}
    lines = (SCENARIOS / "first.jsonl").read_bytes().splitlines(keepends=True)
    for customer in (b"acme", b"globex"):
        own = b"".join(line for line in lines if customer in line)
        (place.folder / f"in-{customer.decode()}.ndjson").write_bytes(own)
    place.run(**settings)
    assert place.periods() == FIRST
    alerts = [alert for alert in place.alerts() if alert[0] == "acme"]

    def grow(day: int) -> None:
        for customer in ("acme", "globex"):
            event = lines[0].replace(b'"acme"', b'"%s"' % customer.encode())
            event = event.replace(b'"id":"1"', b'"id":"day %d"' % day).replace(
                b"-17T10:00", b"-17T13:%02d" % day
            )
            with (place.folder / f"in-{customer}.ndjson").open("ab") as file:
                # Twice, for what is remembered must have moved along with the totals.
                file.write(event * 2 + lines[1].replace(b'"acme"', b'"%s"' % customer.encode()))

    scales: list[Callable[[], Any]] = [
        lambda: place.run("-w", "2", **settings),
        lambda: place.run_processes(2, **settings),
        lambda: place.run(**settings),
    ]
    for day, scale in enumerate(scales, 1):
        grow(day)
        scale()
        # globex had no event of the id that is repeated, so it counts once, the first time.
        assert place.periods()["acme", "calls"] == str(5 + day)
        assert place.periods()["globex", "calls"] == str(2 + day + 1)
    assert [alert for alert in place.alerts() if alert[0] == "acme"] == alerts
    assert len(place.billed()) == len(set(place.billed()))


@pytest.mark.parametrize("resumed", [False, True], ids=["at the first start", "after a restart"])
def test_a_second_flow_on_the_same_data_is_refused(place: Place, resumed: bool) -> None:
    """Two would each count half, and overwrite each other's totals; nor may the second cut off what the first wrote."""
    place.append("first.jsonl")
    if resumed:
        place.run()
    place.append("second.jsonl")
    with place.running(SOURCE="file:in.ndjson?follow=true", EPOCH="10m") as first:
        eventually((place.folder / "store.db").exists)
        eventually(lambda: place.periods() == SECOND and len(place.billed()) == 10)
        assert (place.alerts(), place.dead()) == (ALERTS, DEAD)
        complained = place.refused(SOURCE="file:in.ndjson?follow=true")
        assert "another" in complained and "stop it" in complained
        assert first.poll() is None
        assert (place.alerts(), place.dead(), len(place.billed())) == (ALERTS, DEAD, 10)
    place.run()
    assert (place.periods(), place.alerts(), place.dead()) == (SECOND, ALERTS, DEAD)
    assert len(place.billed()) == len(set(place.billed())) == 10


def test_a_refused_second_flow_leaves_the_first_one_its_recovery(place: Place) -> None:
    """The first goes on, takes snapshots, dies later, and must find them."""

    def committed() -> int:
        with closing(sqlite3.connect(place.folder / "state/recovery/part-0.sqlite3")) as store:
            return int(store.execute("SELECT coalesce(max(commit_epoch), 0) FROM commits").fetchone()[0])

    place.append("first.jsonl")
    with place.running(SOURCE="file:in.ndjson?follow=true", EPOCH="1s"):
        eventually((place.folder / "store.db").exists)
        eventually(lambda: place.periods() == FIRST)
        place.refused(SOURCE="file:in.ndjson?follow=true", EPOCH="1s")
        place.append("second.jsonl")
        eventually(lambda: place.periods() == SECOND)
        before = committed()
        eventually(lambda: committed() > before + 3)
    place.run()
    assert (place.periods(), place.alerts(), place.dead()) == (SECOND, ALERTS, DEAD)
    assert len(place.billed()) == len(set(place.billed())) == 10
